//! One line of a trace: which event it is, and what that says.
//!
//! The forms are QEMU's (qemu: hw/vfio/trace-events, backends/trace-events). Older ones differ in two: windows had no name, and there was
//! an event for each way of skipping.

use dmaspace::{Access, HostMemory, Iova, IovaRange, PageSize};

use super::form::Fields;

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Memory comes.
    Memory { at: IovaRange, memory: HostMemory, access: Access },
    /// A translated window comes.
    Translated { at: IovaRange, name: String },
    /// Something comes that devices cannot be given.
    Nothing { at: IovaRange },
    /// What lies here goes.
    Gone { at: IovaRange },
    /// This was memory of a device, and was not mapped.
    Device { at: IovaRange, name: String },
    /// Target memory comes.
    Target(HostMemory),
    /// Target memory goes.
    TargetGone(HostMemory),
    /// The host made a window of these pages.
    Window { first: Iova, page: PageSize },
    /// Nothing that a replay could do.
    Irrelevant,
}

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// QEMU's memory listener: what it was told.
    Listener,
    /// QEMU's iommufd backend: which calls it makes.
    Iommufd,
}

/// Reads a line: `None` when it is no event that is known here.
///
/// # Errors
/// What was expected, when it is one and says something else.
pub(crate) fn read(line: &str) -> Option<Result<(Speaker, Said), String>> {
    let (event, rest) = event_in(line)?;
    let fields = event.forms.iter().find_map(|form| Fields::of(form, rest));
    Some(match fields {
        Some(fields) => (event.say)(fields).map(|said| (event.speaker, said)),
        None => Err(event.expected()),
    })
}

/// Whether a line is an event that is known here.
pub(crate) fn is_known(line: &str) -> bool {
    event_in(line).is_some()
}

/// The event of a line, and what follows its name. Log backends put something before the name: QEMU's own `<pid>@<time>:`, others a
/// time, a program, a processor.
fn event_in(line: &str) -> Option<(&'static Event, &str)> {
    line.split_ascii_whitespace().find_map(|word| {
        let name = word.rsplit_once(':').map_or(word, |(_, name)| name);
        let event = EVENTS.iter().find(|event| event.name == name)?;
        let (_, rest) = line.split_once(word)?;
        Some((event, rest.trim()))
    })
}

/// An event of QEMU's.
struct Event {
    name: &'static str,
    speaker: Speaker,
    /// What may follow the name: `0x…` is a number in hexadecimal, `<n>` one in decimal, `<name>` any text.
    forms: &'static [&'static str],
    say: fn(Fields<'_>) -> Result<Said, String>,
}

impl Event {
    fn expected(&self) -> String {
        let forms: Vec<_> = self.forms.iter().map(|form| format!("`{} {form}`", self.name)).collect();
        forms.join(" or ")
    }
}

const fn told(
    name: &'static str,
    forms: &'static [&'static str],
    say: fn(Fields<'_>) -> Result<Said, String>,
) -> Event {
    Event { name, speaker: Speaker::Listener, forms, say }
}

const fn called(
    name: &'static str,
    forms: &'static [&'static str],
    say: fn(Fields<'_>) -> Result<Said, String>,
) -> Event {
    Event { name, speaker: Speaker::Iommufd, forms, say }
}

const EVENTS: [Event; 19] = [
    told("vfio_listener_region_add_ram", &["region_add [ram] 0x… - 0x… [0x…]"], |fields| {
        let [first, last, address] = fields.numbers()?;
        let at = range(first, last)?;
        Ok(Said::Memory { at, memory: memory_behind(at, address)?, access: Access::READ_WRITE })
    }),
    told(
        "vfio_listener_region_add_iommu",
        &["region_add [iommu] <name> 0x… - 0x…", "region_add [iommu] 0x… - 0x…"],
        |fields| {
            let [first, last] = fields.numbers()?;
            Ok(Said::Translated { at: range(first, last)?, name: fields.name.unwrap_or("iommu").to_owned() })
        },
    ),
    told("vfio_listener_region_skip", &["SKIPPING <name> 0x… - 0x…"], |fields| {
        let [first, last] = fields.numbers()?;
        let at = range(first, last)?;
        Ok(match fields.name {
            Some("region_add") => Said::Nothing { at },
            Some("region_del") => Said::Gone { at },
            _ => Said::Irrelevant,
        })
    }),
    told("vfio_listener_region_add_skip", &["SKIPPING region_add 0x… - 0x…"], |fields| {
        let [first, last] = fields.numbers()?;
        Ok(Said::Nothing { at: range(first, last)? })
    }),
    told("vfio_listener_region_del_skip", &["SKIPPING region_del 0x… - 0x…"], |fields| {
        let [first, last] = fields.numbers()?;
        Ok(Said::Gone { at: range(first, last)? })
    }),
    told("vfio_listener_region_del", &["region_del 0x… - 0x…"], |fields| {
        let [first, last] = fields.numbers()?;
        Ok(Said::Gone { at: range(first, last)? })
    }),
    // A `region_del` with the range follows.
    told("vfio_listener_region_del_iommu", &["region_del [iommu] <name>"], |_| Ok(Said::Irrelevant)),
    told(
        "vfio_listener_region_add_no_dma_map",
        &["Region \"<name>\" 0x… size=0x… is not aligned to 0x… and cannot be mapped for DMA"],
        |fields| {
            let [first, size, _] = fields.numbers()?;
            Ok(Said::Device { at: span(first, size)?, name: fields.name.unwrap_or_default().to_owned() })
        },
    ),
    told("vfio_prereg_listener_region_add_skip", &["0x… - 0x…"], |_| Ok(Said::Irrelevant)),
    told("vfio_prereg_listener_region_del_skip", &["0x… - 0x…"], |_| Ok(Said::Irrelevant)),
    told("vfio_prereg_register", &["va=0x… size=0x… ret=<n>"], |fields| {
        let [address, size, _] = fields.numbers()?;
        Ok(Said::Target(memory_at(address, size)?))
    }),
    told("vfio_prereg_unregister", &["va=0x… size=0x… ret=<n>"], |fields| {
        let [address, size, _] = fields.numbers()?;
        Ok(Said::TargetGone(memory_at(address, size)?))
    }),
    told("vfio_spapr_create_window", &["pageshift=0x… levels=<n> winsize=0x… offset=0x…"], |fields| {
        let [shift, _, _, first] = fields.numbers()?;
        let page = u32::try_from(shift).ok().and_then(PageSize::from_shift);
        let page = page.ok_or_else(|| format!("a pageshift below 64, which {shift:#x} is not"))?;
        Ok(Said::Window { first: Iova::new(first), page })
    }),
    told("vfio_spapr_remove_window", &["offset=0x…"], |_| Ok(Said::Irrelevant)),
    // It names a region, but not where the guest sees it.
    told("vfio_region_mmap", &["Region <name> [0x… - 0x…]"], |_| Ok(Said::Irrelevant)),
    called(
        "iommufd_backend_map_dma",
        &["iommufd=<n> ioas=<n> iova=0x… size=0x… addr=0x… readonly=<n> (<n>)"],
        |fields| {
            let [_, _, iova, size, address, read_only, _] = fields.numbers()?;
            let at = span(iova, size)?;
            Ok(Said::Memory { at, memory: memory_behind(at, address)?, access: access(read_only) })
        },
    ),
    called(
        "iommufd_backend_map_file_dma",
        &["iommufd=<n> ioas=<n> iova=0x… size=0x… fd=<n> start=<n> readonly=<n> (<n>)"],
        |fields| {
            let [_, _, iova, size, file, start, read_only, _] = fields.numbers()?;
            let at = span(iova, size)?;
            // The trace does not say where QEMU has the file mapped: its own offsets do, one unit for each file.
            Ok(Said::Memory { at, memory: memory_behind(at, start)?.in_unit(file), access: access(read_only) })
        },
    ),
    called("iommufd_backend_unmap_dma", &["iommufd=<n> ioas=<n> iova=0x… size=0x… (<n>)"], |fields| {
        let [_, _, iova, size, _] = fields.numbers()?;
        Ok(Said::Gone { at: span(iova, size)? })
    }),
    called(
        "iommufd_backend_unmap_dma_non_exist",
        &["Unmap nonexistent mapping: iommufd=<n> ioas=<n> iova=0x… size=0x… (<n>)"],
        |_| Ok(Said::Irrelevant),
    ),
];

fn access(read_only: u64) -> Access {
    if read_only == 0 { Access::READ_WRITE } else { Access::READ }
}

fn range(first: u64, last: u64) -> Result<IovaRange, String> {
    IovaRange::new(Iova::new(first), Iova::new(last))
        .map_err(|_| "a last address that does not lie before the first".to_owned())
}

fn span(first: u64, size: u64) -> Result<IovaRange, String> {
    IovaRange::with_len(Iova::new(first), size).map_err(|error| format!("a range, but {error}"))
}

fn memory_behind(at: IovaRange, address: u64) -> Result<HostMemory, String> {
    let len = at.len().ok_or_else(|| "less than 2^64 bytes of memory".to_owned())?;
    memory_at(address, len.get())
}

fn memory_at(address: u64, size: u64) -> Result<HostMemory, String> {
    let memory = size.try_into().ok().and_then(|size| HostMemory::unbacked(address, size));
    memory.ok_or_else(|| "memory that is not empty and ends before 2^64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Said {
        read(line).expect("a known event").expect("a good line").1
    }

    #[test]
    fn names_have_blanks_and_lines_have_prefixes() {
        let bare = "vfio_region_mmap Region 0000:01:00.0 BAR 0 mmaps[0] [0x0 - 0xfffff]";
        assert_eq!(said(bare), Said::Irrelevant);
        let at = range(0, 0x3fff_ffff).expect("a range");
        let window = "vfio_listener_region_add_iommu region_add [iommu] my 0x1 window 0x0 - 0x3fffffff";
        for prefix in ["", "4242@1700000000.123456:", "Nov 22 16:00:00 host qemu[1]: ", "<...>-1 [000] 1.5: "] {
            let name = "my 0x1 window".to_owned();
            assert_eq!(said(&format!("{prefix}{window}")), Said::Translated { at, name });
        }
        let old = "vfio_listener_region_add_iommu region_add [iommu] 0x0 - 0x3fffffff";
        assert_eq!(said(old), Said::Translated { at, name: "iommu".to_owned() });
    }

    #[test]
    fn calls_of_iommufd_say_what_devices_may_do() {
        let line =
            "iommufd_backend_map_dma  iommufd=9 ioas=2 iova=0x1000 size=0x2000 addr=0x7f0000000000 readonly=1 (-14)";
        let at = span(0x1000, 0x2000).expect("a range");
        let memory = memory_at(0x7f00_0000_0000, 0x2000).expect("memory");
        assert_eq!(said(line), Said::Memory { at, memory, access: Access::READ });
        let line = "iommufd_backend_unmap_dma  iommufd=9 ioas=2 iova=0x1000 size=0x2000 (0)";
        assert_eq!(said(line), Said::Gone { at });
    }

    #[test]
    fn other_events_are_none_of_ours_and_bad_ones_are_named() {
        assert!(read("vfio_intx_eoi  (0000:00:03.0) EOI").is_none());
        assert!(read("").is_none());
        for (line, expected) in [
            ("vfio_listener_region_del region_del 0x0 -", "`vfio_listener_region_del region_del 0x… - 0x…`"),
            ("vfio_listener_region_del region_del 0x0 - 0xfff and more", "`vfio_listener_region_del"),
            ("vfio_listener_region_del region_del 0x1000 - 0xfff", "a last address that does not lie before"),
            ("vfio_prereg_register va=0xffffffffffffffff size=0x2 ret=0", "memory that is not empty"),
            ("vfio_prereg_register va=0x0 size=0x10000000000000000 ret=0", "`vfio_prereg_register va=0x…"),
            ("vfio_listener_region_add_ram region_add [ram] 0x0 - 0xffffffffffffffff [0x0]", "less than 2^64"),
            ("vfio_spapr_create_window pageshift=0x40 levels=1 winsize=0x0 offset=0x0", "a pageshift below 64"),
            ("vfio_listener_region_add_iommu region_add [iommu] x", "`vfio_listener_region_add_iommu region_add"),
        ] {
            let error = read(line).expect("a known event").expect_err(line);
            assert!(error.starts_with(expected), "{line}: {error}");
        }
    }
}
