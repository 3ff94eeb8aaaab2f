//! The guest that flat views describe: which of them is its PCI address space, and what each range there means to
//! devices.

mod choosing;

use dmaspace::{Access, IovaRange, PageSize};

pub(crate) use choosing::NoGuest;

use crate::program::mtree::{FlatViews, Range, What};
use crate::program::printable;
use crate::program::translating::{is_bare_metal, is_msi, page_of_translated};
use choosing::{Chosen, SYSTEM_MEMORY, choose, is_window_of_bridge, view_of};

/// A guest, as far as its devices' DMA is concerned.
#[derive(Clone, Debug)]
pub(crate) struct Guest<'a> {
    /// The name of the PCI address space.
    pub(crate) address_space: &'a str,
    /// The ranges of the PCI address space, ascending, and what each means.
    pub(crate) pci: Vec<(&'a Range, Meaning)>,
    /// The RAM of system memory, ascending, where devices reach it through translated windows.
    pub(crate) targets: Vec<&'a Range>,
    /// The number of lines around the views that were passed over.
    pub(crate) passed_over: usize,
    /// Remarks on the choice of the address space and on words that are not known, for people.
    pub(crate) notes: Vec<String>,
}

/// The meaning of a range to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// RAM, or ROM that devices may read.
    Memory(Access),
    /// Another device's memory.
    DeviceMemory,
    /// A window whose entries, for pages of this size, the guest fills.
    Translated(PageSize),
    /// Writes are interrupts.
    Msi,
    /// Devices cannot be given it, for this reason.
    Nothing(&'static str),
}

/// The reason for a range that a powernv guest's PCI host bridge translates. QEMU emulates the bridge as bare metal has
/// it, for all addresses there are: no window of a host stands for one, and the guest's own tables tell the rest.
const BARE_METAL: &str = "translated by tables in the guest's memory: no host window stands for it";

/// The reason for a kind of range that is not known here.
const UNKNOWN: &str = "a kind that is not known here: nothing that devices can be given";

impl<'a> Guest<'a> {
    /// The guest whose PCI address space is `name`, or else the one of the highest rank: see [`choosing`].
    /// `guest_page`, if given, is the page of every translated window.
    ///
    /// # Errors
    /// When there is no such address space, or more than one.
    pub(crate) fn of(
        text: &'a FlatViews,
        name: Option<&'a str>,
        guest_page: Option<PageSize>,
    ) -> Result<Self, NoGuest> {
        let Chosen { name, view, mut notes } = choose(&text.views, name)?;
        let pci: Vec<_> = view.ranges.iter().map(|range| (range, Meaning::of(range, guest_page))).collect();
        notes.extend(note_on_kinds(&pci));
        notes.extend(note_on_bare_metal(&pci));
        let translates = pci.iter().any(|(_, meaning)| meaning.is_translated());
        let targets = match translates {
            true => view_of(&text.views, SYSTEM_MEMORY)?
                .ranges
                .iter()
                .filter(|range| range.kind.what == What::Ram)
                .collect(),
            false => Vec::new(),
        };
        Ok(Self { address_space: name, pci, targets, passed_over: text.passed_over, notes })
    }

    /// Returns whether its windows are POWER's.
    pub(crate) fn has_tce_windows(&self) -> bool {
        self.pci.iter().any(|(range, _)| is_window_of_bridge(range))
    }
}

/// A powernv guest has no device of the host.
fn note_on_bare_metal(pci: &[(&Range, Meaning)]) -> Option<String> {
    pci.iter().any(|(_, meaning)| *meaning == Meaning::Nothing(BARE_METAL)).then(|| {
        "this is a powernv guest, whose PCI host bridge QEMU emulates as bare metal: it passes no host device through \
         to one"
            .to_owned()
    })
}

/// One remark on all ranges of kinds that are not known here, with each word once.
fn note_on_kinds(pci: &[(&Range, Meaning)]) -> Option<String> {
    const MOST_WORDS: usize = 8;
    let unknown = pci.iter().filter(|(_, meaning)| *meaning == Meaning::Nothing(UNKNOWN));
    let mut words: Vec<String> = Vec::new();
    let mut n = 0;
    for (range, _) in unknown {
        n += 1;
        let word = range.kind.to_string();
        if words.len() < MOST_WORDS && !words.contains(&word) {
            words.push(word);
        }
    }
    let listed = words.join(", ");
    let (are, kinds) = if n == 1 { ("range is", "a kind") } else { ("ranges are", "kinds") };
    (n > 0).then(|| {
        format!(
            "{n} {are} of {kinds} not known here ({}): devices are given nothing there",
            printable::cut(&listed, 100)
        )
    })
}

impl Meaning {
    /// Returns whether system memory lies behind it, through a translation.
    fn is_translated(self) -> bool {
        matches!(self, Self::Translated(_) | Self::Nothing(BARE_METAL))
    }

    fn of(range: &Range, guest_page: Option<PageSize>) -> Self {
        match range.kind.what {
            What::Ram => Self::Memory(Access::READ_WRITE),
            What::Rom => Self::Memory(Access::READ),
            What::RamDevice => Self::DeviceMemory,
            // QEMU does not map them either: its listener takes nothing that is not plain memory (qemu:
            // hw/vfio/listener.c, vfio_listener_skipped_section).
            What::RomDevice => Self::Nothing("a ROM device: emulated in part"),
            What::Io | What::Other(_) => Self::of_no_memory(range, guest_page),
        }
    }

    fn of_no_memory(range: &Range, guest_page: Option<PageSize>) -> Self {
        match page_of_translated(&range.name) {
            Some(_) if is_bare_metal(&range.name) => Self::Nothing(BARE_METAL),
            Some(page) => Self::Translated(guest_page.unwrap_or(page)),
            None if is_msi(&range.name) || (range.first, range.last) == INTERRUPTS_OF_PCS => Self::Msi,
            None if range.kind.what == What::Io => Self::Nothing("emulated: nothing to map"),
            None => Self::Nothing(UNKNOWN),
        }
    }
}

/// The range where PCs take interrupts.
const INTERRUPTS_OF_PCS: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// Returns whether writes to all of a range are interrupts on every PC.
pub(crate) fn is_where_pcs_take_interrupts(range: IovaRange) -> bool {
    (range.first().get(), range.last().get()) == INTERRUPTS_OF_PCS
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::program::mtree::parse;
    use crate::program::mtree::tests::{PSERIES, Q35_WITH_BAR, Q35_WITH_IOMMU, view_of};
    use crate::program::surroundings::Text;

    pub(crate) fn views(text: &str) -> FlatViews {
        parse(&Text::of(text.as_bytes())).expect("a text of the test")
    }

    fn meaning_of(kind: &str, name: &str) -> Meaning {
        let text = views(&view_of(&format!("0000000000000000-000000003fffffff (prio 0, {kind}): {name}")));
        Meaning::of(&text.views[0].ranges[0], None)
    }

    #[test]
    fn a_pcs_devices_see_its_memory() {
        let views = views(Q35_WITH_BAR);
        let guest = Guest::of(&views, None, None).expect("a PC");
        assert_eq!((guest.address_space, guest.pci.len(), guest.targets.len()), ("memory", 13, 0));
        assert!(!guest.has_tce_windows());
    }

    #[test]
    fn behind_tce_windows_is_the_ram_of_memory() {
        let views = views(PSERIES);
        let guest = Guest::of(&views, None, None).expect("a pseries guest");
        assert_eq!((guest.address_space, guest.pci.len()), ("pci@800000020000000", 3));
        let targets: Vec<_> = guest.targets.iter().map(|range| (range.last, range.name.as_ref())).collect();
        assert_eq!(targets, [(0xffff_ffff, "ppc_spapr.ram")]);
        assert!(guest.has_tce_windows());
    }

    #[test]
    fn a_powernv_guests_bridge_translates_everything_and_asks_for_no_window() {
        let text = format!(
            "FlatView #1\n AS \"phb4-0.0-iommu\", root: phb4-0.0-iommu\n Root memory region: phb4-0.0-iommu\n  \
             0000000000000000-00000000fffeffff (prio 0, container): phb4-0.0-iommu\n  \
             00000000ffff0000-00000000ffffffff (prio 0, i/o): msi32\n\n{}",
            view_of("0000000000000000-00000000ffffffff (prio 0, ram): pnv.ram")
        );
        let views = views(&text);
        let guest = Guest::of(&views, None, None).expect("a powernv guest");
        let meanings: Vec<_> = guest.pci.iter().map(|(_, meaning)| *meaning).collect();
        assert_eq!(meanings, [Meaning::Nothing(BARE_METAL), Meaning::Msi]);
        assert_eq!((guest.targets.len(), guest.notes.len(), guest.has_tce_windows()), (1, 1, true));
    }

    #[test]
    fn an_address_space_is_taken_by_its_name_or_else_by_its_root() {
        let views = views(Q35_WITH_IOMMU);
        for name in ["vtd-root", "vtd-03.0"] {
            let guest = Guest::of(&views, Some(name), None).expect("it is there");
            let msi = guest.pci.iter().find(|(_, meaning)| *meaning == Meaning::Msi);
            assert_eq!(msi.map(|(range, _)| range.name.as_ref()), Some("vtd-ir"));
        }
        let empty = Guest::of(&views, Some("edu"), None).expect("it is there, and empty");
        assert!(empty.pci.is_empty());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_names() {
        let unknown = Guest::of(&views(PSERIES), Some("ram"), None).expect_err("no such space").to_string();
        let names = "memory, cpu-memory-0, I/O, pci@800000020000000, edu";
        assert_eq!(unknown, format!("expected an address space \"ram\" up to here; there are: {names}"));
        let cut = PSERIES.replace("\"memory\"", "\"mem\"");
        let missing = Guest::of(&views(&cut), None, None).expect_err("nothing behind the windows");
        assert_eq!(missing.line, 15);
    }

    #[test]
    fn the_same_view_twice_is_one_and_two_that_differ_are_refused() {
        let (small, large) = (view_of("0000-0fff (prio 0, ram): mem"), view_of("0000-1fff (prio 0, ram): mem"));
        assert!(Guest::of(&views(&[small.clone(), small.clone()].concat()), None, None).is_ok());
        let ambiguous = Guest::of(&views(&[small, large].concat()), None, None).expect_err("which one?");
        assert_eq!(ambiguous.line, 6);
        assert!(ambiguous.to_string().contains("the one at line 1"), "{ambiguous}");
    }

    #[test]
    fn every_kind_has_its_meaning() {
        assert_eq!(meaning_of("ram", "pc.ram"), Meaning::Memory(Access::READ_WRITE));
        assert_eq!(meaning_of("nv-ram", "nvdimm"), Meaning::Memory(Access::READ_WRITE));
        assert_eq!(meaning_of("rom", "pc.bios"), Meaning::Memory(Access::READ));
        assert_eq!(meaning_of("ramd", "BAR 0"), Meaning::DeviceMemory);
        assert!(matches!(meaning_of("romd", "system.flash0"), Meaning::Nothing(_)));
        assert!(matches!(meaning_of("i/o", "hpet"), Meaning::Nothing(_)));
        // Memory may be called anything.
        assert_eq!(meaning_of("ram", "msi"), Meaning::Memory(Access::READ_WRITE));
        assert_eq!(meaning_of("ram", "tce-iommu-80000000"), Meaning::Memory(Access::READ_WRITE));
    }

    #[test]
    fn translated_windows_have_the_page_their_platform_gives_them_unless_told_otherwise() {
        let cases = [
            ("tce-iommu-80000000", Some(PageSize::K4)),
            ("tce-iommu-80000200", Some(PageSize::K4)),
            ("tce-iommu-80000001", Some(PageSize::K64)),
            ("vtd-03.0-dmar", Some(PageSize::K4)),
            ("amd_iommu", Some(PageSize::K4)),
            ("virtio-iommu-memory-region-0-8", Some(PageSize::K4)),
            ("tce-iommu-", None),
            ("tce-root-80000000", None),
            ("intel_iommu", None),
        ];
        for (name, page) in cases {
            let meaning = meaning_of("i/o", name);
            assert_eq!(page, if let Meaning::Translated(page) = meaning { Some(page) } else { None }, "{name}");
        }
        let views = views(PSERIES);
        let guest = Guest::of(&views, None, Some(PageSize::M16)).expect("a pseries guest");
        assert_eq!(guest.pci[0].1, Meaning::Translated(PageSize::M16));
    }

    #[test]
    fn interrupts_are_known_by_name_or_by_place() {
        for name in ["msi", "apic-msi", "kvm-apic-msi", "vtd-ir", "amdvi-ir", "amd_iommu_ir"] {
            assert_eq!(meaning_of("i/o", name), Meaning::Msi, "{name}");
        }
        let by_place = views(&view_of("00000000fee00000-00000000feefffff (prio 0, i/o): something"));
        assert_eq!(Meaning::of(&by_place.views[0].ranges[0], None), Meaning::Msi);
        let elsewhere = views(&view_of("00000000fee00000-00000000fee00fff (prio 0, i/o): something"));
        assert!(matches!(Meaning::of(&elsewhere.views[0].ranges[0], None), Meaning::Nothing(_)));
    }
}
