//! One line of a trace or a log: which event or error it is.

use super::events::Event;
use super::messages;
use super::said::Said;
use crate::program::surroundings::{Line, Lines};

/// A line that was read.
pub(super) enum Read {
    /// Its content, and how many lines it took beside the first.
    Said(Said, usize),
    /// It is none that is known here.
    Unknown,
}

/// Returns whether a line is an event or an error that is known here.
pub(crate) fn is_known(line: &str) -> bool {
    event_in(line).is_some() || messages::read(line).is_some() || messages::may_go_on(line)
}

/// Reads a line, and the lines that a mail program folded off it.
///
/// # Errors
/// The expected form, in words, when it is an event whose content is needed, in no known form.
pub(super) fn read(line: &Line<'_>, lines: &mut Lines<'_>) -> Result<Read, String> {
    /// A line is folded into three at most.
    const MOST_LINES: usize = 3;
    if let Some(said) = read_cut(line, lines) {
        return Ok(Read::Said(said, 1));
    }
    let first = match read_one(&line.text) {
        Ok(Some(said)) => return Ok(Read::Said(said, 0)),
        Ok(None) if !messages::may_go_on(&line.text) && event_in(&line.text).is_none() => return Ok(Read::Unknown),
        other => other,
    };
    let mut whole = line.text.clone().into_owned();
    let mut last = line.clone();
    for taken in 1..=MOST_LINES {
        let Some(next) = lines.peek(taken - 1).filter(|next| line.may_go_on_in(next)) else { break };
        // The call behind `Region pc.ram:` is known by itself.
        if is_known(&next.text) && !messages::names_region(&whole) {
            break;
        }
        whole.push_str(last.joint(next));
        whole.push_str(&next.text);
        last = next.clone();
        if let Ok(Some(said)) = read_one(&whole) {
            return Ok(Read::Said(said, taken));
        }
    }
    first.map(|_| Read::Unknown)
}

/// Reads a line that a terminal cut in the middle of its last number.
fn read_cut(line: &Line<'_>, lines: &mut Lines<'_>) -> Option<Said> {
    let next = if line.is_cut { lines.peek(0)? } else { return None };
    let goes_on = line.may_go_on_in(next) && line.joint(next).is_empty() && !is_known(&next.text);
    if goes_on { read_one(&format!("{}{}", line.text, next.text)).ok()? } else { None }
}

fn read_one(line: &str) -> Result<Option<Said>, String> {
    match event_in(line) {
        Some((event, rest)) => match event.read(rest).or_else(|expected| reread(event, rest).ok_or(expected)) {
            Ok(said) => Ok(Some(said)),
            Err(expected) if event.is_needed => Err(expected),
            Err(_) => Ok(None),
        },
        None => Ok(messages::read(line)),
    }
}

/// The content of an event without the quotation marks that a log puts behind it.
fn reread(event: &Event, rest: &str) -> Option<Said> {
    let bare = rest.trim_end_matches(['"', '\'', '`', ',', ';', ' ']);
    if bare.len() < rest.len() { event.read(bare).ok() } else { None }
}

/// The event of a line, and what follows its name. Log backends put something before the name: QEMU's own
/// `<pid>@<time>:`, others a time, a program, a processor.
fn event_in(line: &str) -> Option<(&'static Event, &str)> {
    ["vfio_", "iommufd_"].iter().find_map(|start| {
        line.match_indices(start).find_map(|(at, _)| {
            /// No name of an event is longer.
            const LONGEST: usize = 48;
            let (before, text) = line.split_at_checked(at)?;
            let (name, rest) = text.split_at_checked(text.bytes().take(LONGEST).position(|byte| byte == b' ')?)?;
            let starts_word = !before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_');
            let event = Event::called(name)?;
            if starts_word { Some((event, rest.trim())) } else { None }
        })
    })
}

#[cfg(test)]
mod tests {
    use dmaspace::{Access, Iova, IovaRange};

    use super::super::said::{Call, Failed, Ioas, Message, memory_at, range};
    use super::*;

    fn said(line: &str) -> Said {
        read_one(line).expect("a good line").expect("a known event")
    }

    fn span(first: u64, size: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(first), size).expect("a range of the test")
    }

    #[test]
    fn names_have_blanks_and_lines_have_prefixes() {
        let at = range(0, 0x3fff_ffff).expect("a range");
        let window = "vfio_listener_region_add_iommu region_add [iommu] my 0x1 window 0x0 - 0x3fffffff";
        for prefix in ["", "4242@1700000000.123456:", "Nov 22 16:00:00 host qemu[1]: ", "<...>-1 [000] 1.5: "] {
            let name = "my 0x1 window".to_owned();
            assert_eq!(said(&format!("{prefix}{window}")), Said::Translated { at, name });
        }
    }

    #[test]
    fn old_forms_are_read_as_new_ones() {
        let at = range(0, 0x3fff_ffff).expect("a range");
        for old in ["[iommu] 0x0 - 0x3fffffff", "[iommu] 0 - 3fffffff"] {
            let line = format!("vfio_listener_region_add_iommu region_add {old}");
            assert_eq!(said(&line), Said::Translated { at, name: "iommu".to_owned() });
        }
        assert_eq!(said("vfio_listener_region_del_skip SKIPPING region_del 0 - 3fffffff"), Said::Gone { at });
        let memory = memory_at(0x7f00_0000_0000, 0x4000_0000).expect("memory");
        let line = "vfio_listener_region_add_ram 0.0 pid=1 iova_start=0x0 iova_end=0x3fffffff vaddr=0x7f0000000000";
        assert_eq!(said(line), Said::Memory { at, memory });
    }

    #[test]
    fn calls_of_iommufd_have_the_access_of_devices_and_the_result() {
        let line =
            "iommufd_backend_map_dma  iommufd=9 ioas=2 iova=0x1000 size=0x2000 addr=0x7f0000000000 readonly=1 (-14)";
        let (at, ioas) = (span(0x1000, 0x2000), Ioas { iommufd: 9, id: 2 });
        let memory = memory_at(0x7f00_0000_0000, 0x2000).expect("memory");
        assert_eq!(said(line), Said::Map { ioas, at, memory, access: Access::READ, errno: 14 });
        let line = "iommufd_backend_unmap_dma  iommufd=9 ioas=2 iova=0x1000 size=0x2000 (0)";
        assert_eq!(said(line), Said::Unmap { ioas, at, errno: 0 });
    }

    #[test]
    fn other_events_are_none_of_ours_and_bad_ones_are_named() {
        assert_eq!(read_one("vfio_intx_eoi  (0000:00:03.0) EOI"), Ok(None));
        assert_eq!(read_one(""), Ok(None));
        assert_eq!(read_one("vfio_region_mmap of a later QEMU"), Ok(None));
        for (line, expected) in [
            ("vfio_listener_region_del region_del 0x0 -", "`vfio_listener_region_del region_del 0x… - 0x…`"),
            ("vfio_listener_region_del region_del 0x0 - 0xfff and more", "`vfio_listener_region_del"),
            ("vfio_listener_region_del region_del 0x1000 - 0xfff", "a last address that does not lie before"),
            ("vfio_prereg_register va=0xffffffffffffffff size=0x2 ret=0", "memory that is not empty"),
            ("vfio_prereg_register va=0x0 size=0x10000000000000000 ret=0", "`vfio_prereg_register va=0x…"),
            ("vfio_listener_region_add_ram region_add [ram] 0x0 - 0xffffffffffffffff [0x0]", "less than 2^64"),
            ("vfio_listener_region_add_iommu region_add [iommu] x", "`vfio_listener_region_add_iommu region_add"),
        ] {
            let error = read_one(line).expect_err(line);
            assert!(error.starts_with(expected), "{line}: {error}");
        }
    }

    #[test]
    fn error_lines_have_the_call_the_range_and_the_errno() {
        let failed = |name: Option<&str>| {
            let name = name.map(str::to_owned);
            Said::Failed(Failed { call: Call::Map, at: span(0x1000, 0x2000), errno: 22, name })
        };
        let call = "dma_map(0x5e04, 0x1000, 0x2000, 0x771a) = -22 (Invalid argument)";
        assert_eq!(said(&format!("kvm: vfio_{call}")), failed(None));
        assert_eq!(said(&format!("qemu: warning: vfio_container_{call}")), failed(None));
        assert_eq!(
            said(&format!("listener initialization failed: Region pc.ram: vfio_{call}")),
            failed(Some("pc.ram"))
        );
        assert_eq!(said("218 vfio_dma_map(0x55, 0xfffff000, 0x1000, 0x7f) = 0"), Said::Irrelevant);
        let mail = "> vfio_container_dma_map(0x5e04, 0x1000, 0x2000, 0x771a) =3D -22 (Invalid argument)";
        assert_eq!(said(mail), failed(None));
        assert_eq!(said("Failed to set group container: Invalid argument"), Said::Message(Message::Firmware));
        assert_eq!(
            said("vfio_pin_pages_remote: RLIMIT_MEMLOCK (65536) exceeded"),
            Said::Message(Message::LockedMemory(65536))
        );
    }
}
