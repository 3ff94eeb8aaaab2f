//! A trace of QEMU's VFIO events: what its memory listener was told, as a course of updates.
//!
//! QEMU's log backends write a line for each event, `<pid>@<time>:<name> <what happened>`, among lines of other events and of QEMU's own;
//! what [`line`] does not know is counted and passed over. A line that is known and says something else than it can is refused: half a
//! trace replays to a state that never was.
//!
//! A trace has no transactions, but it has their shape: QEMU's memory core tells a listener first what goes and then what comes (qemu:
//! system/memory.c, address_space_set_flatview), so a step ends where something goes after something came. Two transactions that only add
//! become one that way, and so do one that only removes and one after it that only adds; the state after each step is one that was.
//!
//! - `vfio_listener_region_add_ram` is RAM, read-write: a trace does not tell ROM from RAM, nor a BAR from either, except where QEMU says
//!   afterwards that it did not map a device's memory.
//! - `vfio_listener_region_add_iommu` is a translated window. Its page is that of the host window QEMU made there, if it made one.
//! - `vfio_listener_region_skip` is nothing to devices.
//! - `vfio_prereg_register` is target memory. The trace does not tell where the guest sees it: its host address stands in for that.
//! - `iommufd_backend_map_dma` and its like are the calls behind the above, and are only looked at where the listener's events were not
//!   traced.
//! - What goes without ever having come is passed over: QEMU's listener is also told of ranges that it could not map, and a trace may
//!   begin in the middle.

mod form;
mod line;
mod placed;

use std::collections::BTreeMap;

use dmaspace::listener::Update;
use dmaspace::section::TargetMemory;
use dmaspace::{HostMemory, Iova, IovaRange, PageSize, Section, SystemAddress, SystemRange};

use crate::program::course::{Course, Step};
use crate::program::guest::{is_where_pcs_take_interrupts, page_of_translated};
use crate::program::mtree::BadLine;
use line::{Said, Speaker};
use placed::Placed;

/// Whether a line is one of such a trace.
pub(crate) fn is_line(line: &str) -> bool {
    line::is_known(line)
}

/// Reads a trace, bytes as they come. `guest_page`, if given, is the page of every translated window.
///
/// # Errors
/// The first line that is not what it has to be.
pub(crate) fn parse(text: &[u8], guest_page: Option<PageSize>) -> Result<Course, BadLine> {
    let mut said = Vec::new();
    let mut ignored = 0;
    for (n, bytes) in text.split(|byte| *byte == b'\n').enumerate() {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim();
        match line::read(text) {
            None => ignored += usize::from(!text.is_empty()),
            Some(Ok((speaker, what))) => said.push(Line { number: n + 1, text: text.to_owned(), speaker, what }),
            Some(Err(expected)) => return Err(BadLine { line: n + 1, expected, found: Some(text.to_owned()) }),
        }
    }
    let has_listener = said.iter().any(|line| line.speaker == Speaker::Listener && line.comes());
    let mut tracer = Tracer { guest_page, ignored, ..Tracer::default() };
    for line in said {
        if has_listener && line.speaker == Speaker::Iommufd {
            tracer.ignored += 1;
        } else {
            tracer.follow(line.number, line.what).map_err(|expected| BadLine {
                line: line.number,
                expected,
                found: Some(line.text),
            })?;
        }
    }
    Ok(tracer.finish())
}

/// A line that is known.
struct Line {
    number: usize,
    text: String,
    speaker: Speaker,
    what: Said,
}

impl Line {
    fn comes(&self) -> bool {
        matches!(self.what, Said::Memory { .. } | Said::Translated { .. })
    }
}

/// What was followed so far.
#[derive(Default)]
struct Tracer {
    guest_page: Option<PageSize>,
    sections: Placed<Iova, Section>,
    targets: Placed<SystemAddress, TargetMemory>,
    /// The pages of the windows that QEMU made, by first address.
    pages: BTreeMap<Iova, PageSize>,
    steps: Vec<Step>,
    open: Option<Open>,
    ignored: usize,
    mapped: u64,
    registered: Option<u64>,
}

/// A step that may not be over.
#[derive(Default)]
struct Open {
    first: usize,
    last: usize,
    removed: Vec<Section>,
    added: Vec<Section>,
    removed_targets: Vec<TargetMemory>,
    added_targets: Vec<TargetMemory>,
}

impl Open {
    fn has_added(&self) -> bool {
        !self.added.is_empty() || !self.added_targets.is_empty()
    }

    fn close(self) -> Step {
        let update = self.removed.into_iter().fold(Update::new(), Update::removing);
        let update = self.removed_targets.into_iter().fold(update, Update::removing_target);
        let update = self.added.into_iter().fold(update, Update::adding);
        let update = self.added_targets.into_iter().fold(update, Update::adding_target);
        Step { lines: (self.first, self.last), update, failed_there: None }
    }
}

impl Tracer {
    fn follow(&mut self, line: usize, said: Said) -> Result<(), String> {
        match said {
            Said::Memory { at, memory, access } => {
                self.mapped = self.mapped.saturating_add(memory.len().get());
                let section = Section::ram("ram", at.first(), memory, access);
                self.add(line, section.map_err(|error| format!("a range, but {error}"))?)
            }
            Said::Translated { at, name } => {
                let made = self.pages.get(&at.first()).copied();
                let page = self.guest_page.or(made).or(page_of_translated(&name)).unwrap_or(PageSize::K4);
                self.add(line, Section::translated(&name, at, page))
            }
            Said::Nothing { at } if is_where_pcs_take_interrupts(at) => self.add(line, Section::msi("msi", at)),
            Said::Nothing { at } => self.add(line, Section::nothing("i/o", at)),
            Said::Gone { at } => self.remove(line, at),
            Said::Device { at, name } => {
                self.make_device(at, &name);
                Ok(())
            }
            Said::Target(memory) => self.add_target(line, memory),
            Said::TargetGone(memory) => self.remove_target(line, &memory),
            Said::Window { first, page } => {
                self.pages.insert(first, page);
                Ok(())
            }
            Said::Irrelevant => Ok(()),
        }
    }

    fn add(&mut self, line: usize, section: Section) -> Result<(), String> {
        self.sections.put(section.range(), section.clone(), line)?;
        self.open(line, false).added.push(section);
        Ok(())
    }

    fn remove(&mut self, line: usize, range: IovaRange) -> Result<(), String> {
        let gone = self.sections.take(range)?;
        if gone.is_empty() {
            self.ignored += 1;
        } else {
            self.open(line, true).removed.extend(gone);
        }
        Ok(())
    }

    fn add_target(&mut self, line: usize, memory: HostMemory) -> Result<(), String> {
        let registered = self.registered.get_or_insert(0);
        *registered = registered.saturating_add(memory.len().get());
        let target = TargetMemory::new("ram", SystemAddress::new(memory.address()), memory);
        let target = target.map_err(|error| format!("a range, but {error}"))?;
        self.targets.put(target.range(), target.clone(), line)?;
        self.open(line, false).added_targets.push(target);
        Ok(())
    }

    fn remove_target(&mut self, line: usize, memory: &HostMemory) -> Result<(), String> {
        let range = SystemRange::with_len(SystemAddress::new(memory.address()), memory.len().get());
        let gone = self.targets.take(range.map_err(|error| format!("a range, but {error}"))?)?;
        if gone.is_empty() {
            self.ignored += 1;
        } else {
            self.open(line, true).removed_targets.extend(gone);
        }
        Ok(())
    }

    /// What came last was a device's memory, if it is this: whole pages of it, or what was left of them.
    fn make_device(&mut self, at: IovaRange, name: &str) {
        let Some(last) = self.open.as_mut().and_then(|open| open.added.last_mut()) else { return };
        let Some((memory, access)) = last.direct().filter(|_| at.covers(last.range())) else { return };
        let pinned = memory.len().get();
        let Ok(device) = Section::device_memory(name, last.range().first(), memory.clone(), access) else { return };
        *last = device.clone();
        self.sections.exchange(device.range().first(), device);
        self.mapped = self.mapped.saturating_sub(pinned);
    }

    /// The step that a line belongs to.
    fn open(&mut self, line: usize, removes: bool) -> &mut Open {
        if removes && self.open.as_ref().is_some_and(Open::has_added) {
            self.close();
        }
        let open = self.open.get_or_insert_with(|| Open { first: line, ..Open::default() });
        open.last = line;
        open
    }

    fn close(&mut self) {
        self.steps.extend(self.open.take().map(Open::close));
    }

    fn finish(mut self) -> Course {
        self.close();
        Course {
            told_by: "trace",
            front: None,
            steps: self.steps,
            ignored: self.ignored,
            pinned_there: Some(self.registered.unwrap_or(self.mapped)),
            was_on_power: self.registered.is_some(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dmaspace::section::Backing;
    use proptest::prelude::*;

    use super::*;

    pub(crate) const Q35: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/traces/q35-256m-type1-boot.trace"));
    pub(crate) const PSERIES: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/traces/pseries-512m-spapr-v2-reset.trace"));

    /// One of the traces with a few bytes changed, or lines exchanged.
    pub(crate) fn damaged() -> impl Strategy<Value = Vec<u8>> {
        let bytes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        let lines = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..6);
        (prop::sample::select(vec![Q35, PSERIES]), lines, bytes).prop_map(|(text, exchanged, changed)| {
            let mut lines: Vec<_> = text.lines().collect();
            let n = lines.len();
            exchanged.iter().for_each(|(a, b)| lines.swap(a.index(n), b.index(n)));
            let mut text = lines.join("\n").into_bytes();
            for (place, byte) in changed {
                let place = place.index(text.len());
                text[place] = byte;
            }
            text
        })
    }

    fn course(text: &str) -> Course {
        parse(text.as_bytes(), None).expect("a good trace")
    }

    fn refused(text: &str) -> (usize, String) {
        let bad = parse(text.as_bytes(), None).expect_err("a bad trace");
        (bad.line, bad.to_string())
    }

    #[test]
    fn a_boot_is_cut_where_something_goes_after_something_came() {
        let course = course(Q35);
        let shape = |step: &Step| (step.lines, step.update.removed().len(), step.update.added().len());
        let shapes: Vec<_> = course.steps.iter().map(shape).collect();
        assert_eq!(
            shapes,
            [((1, 5), 0, 5), ((7, 11), 1, 4), ((12, 19), 4, 4), ((20, 28), 4, 5), ((29, 34), 1, 5), ((35, 38), 2, 2)]
        );
        assert_eq!((course.ignored, course.pinned_there), (0, Some(1_343_672_320)));
        assert!(!course.has_tce_windows());
    }

    #[test]
    fn a_reset_of_a_pseries_guest_is_one_step_with_a_window_and_target_memory() {
        let course = course(PSERIES);
        let [step] = &course.steps[..] else { panic!("{course:?}") };
        assert_eq!(step.update.added_targets().len(), 1);
        let backings: Vec<_> = step.update.added().iter().map(|section| section.backing().clone()).collect();
        assert_eq!(backings, [Backing::Nothing, Backing::Translated { page: PageSize::K4 }]);
        assert_eq!(course.pinned_there, Some(0x2000_0000));
        assert!(course.has_tce_windows());
    }

    #[test]
    fn what_never_came_may_go_and_what_is_unknown_is_counted() {
        let course = course(
            "qemu-system-x86_64: warning: something\n\
             1@2.3:vfio_listener_region_del region_del 0x0 - 0xfff\n\
             vfio_intx_eoi  (0000:00:03.0) EOI\n\n\
             vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]\n",
        );
        assert_eq!((course.ignored, course.steps.len()), (3, 1));
    }

    #[test]
    fn overlaps_and_cuts_are_refused() {
        let add = "vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]";
        let (line, error) = refused(&format!("{add}\n{add}\n"));
        assert_eq!(line, 2);
        assert!(error.starts_with("expected a range that does not overlap 0x0..=0xfff of line 1"), "{error}");
        let (line, error) = refused(&format!("\n{add}\nvfio_listener_region_del region_del 0x800 - 0xfff"));
        assert_eq!(line, 3);
        assert!(error.starts_with("expected a range that does not cut 0x0..=0xfff of line 2"), "{error}");
    }

    #[test]
    fn memory_that_was_not_mapped_was_a_devices() {
        let course = course(
            "vfio_listener_region_add_ram region_add [ram] 0xfe001000 - 0xfe001fff [0x7f0000001000]\n\
             vfio_listener_region_add_no_dma_map Region \"0000:01:00.0 BAR 0 mmaps[0]\" 0xfe001000 size=0x1000 is not \
             aligned to 0x10000 and cannot be mapped for DMA\n",
        );
        let section = &course.steps[0].update.added()[0];
        assert_eq!((section.name(), course.pinned_there), ("0000:01:00.0 BAR 0 mmaps[0]", Some(0)));
        assert!(matches!(section.backing(), Backing::DeviceMemory { .. }));
    }

    #[test]
    fn iommufds_calls_stand_in_for_a_listener_that_was_not_traced() {
        let map = "iommufd_backend_map_dma  iommufd=9 ioas=2 iova=0x0 size=0x1000 addr=0x7f0000000000 readonly=0 (0)";
        let file =
            "iommufd_backend_map_file_dma  iommufd=9 ioas=2 iova=0x1000 size=0x1000 fd=3 start=4096 readonly=0 (0)";
        let unmap = "iommufd_backend_unmap_dma  iommufd=9 ioas=2 iova=0x0 size=0x2000 (0)";
        let steps = course(&[map, file, unmap].join("\n")).steps;
        assert_eq!(steps.iter().map(|step| step.update.added().len()).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(steps[1].update.removed().len(), 2);
        let told = "vfio_listener_region_add_ram region_add [ram] 0x0 - 0xfff [0x7f0000000000]";
        let both = course(&[told, map].join("\n"));
        assert_eq!((both.steps.len(), both.ignored), (1, 1));
    }

    proptest! {
        #[test]
        fn damaged_traces_are_read_or_refused(text in damaged()) {
            if let Err(bad) = parse(&text, None) {
                prop_assert!(bad.line >= 1 && bad.to_string().starts_with("expected "));
            }
        }
    }
}
