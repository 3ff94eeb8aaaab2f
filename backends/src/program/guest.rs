//! The guest that flat views describe: which of them is its PCI address space, and what each range there means to devices.

use dmaspace::{Access, IovaRange, PageSize};

use crate::program::mtree::{AddressSpace, FlatView, Range, What};

/// QEMU's name for what processors see.
const SYSTEM_MEMORY: &str = "memory";

/// A guest, as far as its devices' DMA is concerned.
#[derive(Clone, Debug)]
pub(crate) struct Guest<'a> {
    /// The name of the PCI address space.
    pub(crate) address_space: &'a str,
    /// The ranges of the PCI address space, ascending, and what each means.
    pub(crate) pci: Vec<(&'a Range, Meaning)>,
    /// The RAM of system memory, ascending, where devices reach it through translated windows.
    pub(crate) targets: Vec<&'a Range>,
}

/// What a range means to devices.
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

/// Why no guest could be found in the views.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct NoGuest {
    /// The heading of the view where that became clear.
    pub(crate) line: usize,
    why: String,
}

impl NoGuest {
    fn unknown(name: &str, views: &[FlatView]) -> Self {
        let why = format!("expected an address space {name:?} up to here; there are: {}", names(views));
        Self { line: views.last().map_or(1, |view| view.line), why }
    }

    fn ambiguous(name: &str, first: &FlatView, other: &FlatView) -> Self {
        let why = format!("expected one address space {name:?}, but the one at line {} differs from this", first.line);
        Self { line: other.line, why }
    }
}

impl<'a> Guest<'a> {
    /// The guest whose PCI address space is `name`; or else the first that holds TCE windows, if one does; or else `memory`.
    /// `guest_page`, if given, is the page of every translated window.
    ///
    /// # Errors
    /// When there is no such address space, or more than one.
    pub(crate) fn of(
        views: &'a [FlatView],
        name: Option<&'a str>,
        guest_page: Option<PageSize>,
    ) -> Result<Self, NoGuest> {
        let (address_space, view) = match (name, views.iter().find(|view| holds_tce_windows(view))) {
            (Some(name), _) => (name, view_called(views, name)?),
            (None, Some(view)) => (view.spaces.first().map_or("", |space| &space.name), view),
            (None, None) => (SYSTEM_MEMORY, view_of(views, SYSTEM_MEMORY)?),
        };
        let pci: Vec<_> = view.ranges.iter().map(|range| (range, Meaning::of(range, guest_page))).collect();
        let translates = pci.iter().any(|(_, meaning)| matches!(meaning, Meaning::Translated(_)));
        let targets = if translates { ram(view_of(views, SYSTEM_MEMORY)?) } else { Vec::new() };
        Ok(Self { address_space, pci, targets })
    }

    /// Whether its windows are POWER's.
    pub(crate) fn has_tce_windows(&self) -> bool {
        self.pci.iter().any(|(range, _)| is_tce_window(range))
    }
}

fn ram(view: &FlatView) -> Vec<&Range> {
    view.ranges.iter().filter(|range| range.kind.what == What::Ram).collect()
}

fn holds_tce_windows(view: &FlatView) -> bool {
    view.ranges.iter().any(is_tce_window)
}

/// The view of the address space that somebody calls `name`. Where many have one name, the name of the root tells them apart.
fn view_called<'a>(views: &'a [FlatView], name: &str) -> Result<&'a FlatView, NoGuest> {
    let is_named = views.iter().any(|view| view.spaces.iter().any(|space| space.name == name));
    if is_named { view_of(views, name) } else { only(views, name, |space| space.root == name) }
}

/// The view of the address space `name`.
fn view_of<'a>(views: &'a [FlatView], name: &str) -> Result<&'a FlatView, NoGuest> {
    only(views, name, |space| space.name == name)
}

fn only<'a>(
    views: &'a [FlatView],
    name: &str,
    is_meant: impl Fn(&AddressSpace) -> bool,
) -> Result<&'a FlatView, NoGuest> {
    let mut meant = views.iter().filter(|view| view.spaces.iter().any(&is_meant));
    let first = meant.next().ok_or_else(|| NoGuest::unknown(name, views))?;
    match meant.find(|other| !says_the_same(first, other)) {
        None => Ok(first),
        Some(other) => Err(NoGuest::ambiguous(name, first, other)),
    }
}

/// Whether two views say the same, wherever in the text they stand.
fn says_the_same(view: &FlatView, other: &FlatView) -> bool {
    let place = |range: &Range| (range.first, range.last, range.kind, range.offset);
    let alike = |(a, b): (&Range, &Range)| place(a) == place(b) && a.name == b.name;
    view.ranges.len() == other.ranges.len() && view.ranges.iter().zip(&other.ranges).all(alike)
}

/// The names there are, each once, in their order.
fn names(views: &[FlatView]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for space in views.iter().flat_map(|view| &view.spaces) {
        if !names.contains(&space.name.as_str()) {
            names.push(&space.name);
        }
    }
    names.join(", ")
}

impl Meaning {
    fn of(range: &Range, guest_page: Option<PageSize>) -> Self {
        match range.kind.what {
            What::Ram => Self::Memory(Access::READ_WRITE),
            What::Rom => Self::Memory(Access::READ),
            What::RamDevice => Self::DeviceMemory,
            // QEMU does not map them either: its listener takes nothing that is not plain memory.
            What::RomDevice => Self::Nothing("a ROM device: emulated in part"),
            What::Io => match page_of_translated(&range.name) {
                Some(page) => Self::Translated(guest_page.unwrap_or(page)),
                None if is_msi(range) => Self::Msi,
                None => Self::Nothing("emulated: nothing to map"),
            },
        }
    }
}

/// The guest's page in a translated window, as far as its name lets one tell, which names no page.
///
/// The default window of a PCI host bridge has 4 KiB pages, by the platform's rules. For other TCE windows 64 KiB are assumed, which
/// is what Linux asks for; for emulated IOMMUs their smallest page, 4 KiB.
pub(crate) fn page_of_translated(name: &str) -> Option<PageSize> {
    const DEFAULT_WINDOW: u32 = 0;
    match tce_table(name) {
        Some(liobn) if liobn & 0xff == DEFAULT_WINDOW => Some(PageSize::K4),
        Some(_) => Some(PageSize::K64),
        None if is_emulated_iommu(name) => Some(PageSize::K4),
        None => None,
    }
}

/// The number of the TCE table behind a window of that name; its last byte says which of its bridge's windows it is (qemu:
/// include/hw/ppc/spapr.h, SPAPR_PCI_LIOBN).
pub(crate) fn tce_table(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("tce-iommu-")?, 16).ok()
}

fn is_tce_window(range: &Range) -> bool {
    range.kind.what == What::Io && tce_table(&range.name).is_some()
}

/// The translating regions of QEMU's other IOMMUs (qemu: hw/i386/intel_iommu.c, hw/i386/amd_iommu.c, hw/virtio/virtio-iommu.c).
fn is_emulated_iommu(name: &str) -> bool {
    let intel = name.starts_with("vtd-") && name.ends_with("-dmar");
    intel || name == "amd_iommu" || name.starts_with("virtio-iommu-memory-region-")
}

/// By its name (qemu: hw/ppc/spapr_pci.c, hw/intc/apic.c, hw/i386/kvm/apic.c, hw/i386/intel_iommu.c, hw/i386/amd_iommu.c), or because it is where
/// PCs take interrupts.
fn is_msi(range: &Range) -> bool {
    const NAMES: [&str; 6] = ["msi", "apic-msi", "kvm-apic-msi", "vtd-ir", "amdvi-ir", "amd_iommu_ir"];
    NAMES.contains(&range.name.as_str()) || (range.first, range.last) == INTERRUPTS_OF_PCS
}

const INTERRUPTS_OF_PCS: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// Whether writes to all of a range are interrupts on every PC.
pub(crate) fn is_where_pcs_take_interrupts(range: IovaRange) -> bool {
    (range.first().get(), range.last().get()) == INTERRUPTS_OF_PCS
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::program::mtree::parse;
    use crate::program::mtree::tests::{PSERIES, Q35_WITH_BAR, Q35_WITH_IOMMU, view_of};

    pub(crate) fn views(text: &str) -> Vec<FlatView> {
        parse(text.as_bytes()).expect("a text of the test")
    }

    fn meaning_of(kind: &str, name: &str) -> Meaning {
        let views = views(&view_of(&format!("0000000000000000-000000003fffffff (prio 0, {kind}): {name}")));
        Meaning::of(&views[0].ranges[0], None)
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
        let targets: Vec<_> = guest.targets.iter().map(|range| (range.last, range.name.as_str())).collect();
        assert_eq!(targets, [(0xffff_ffff, "ppc_spapr.ram")]);
        assert!(guest.has_tce_windows());
    }

    #[test]
    fn an_address_space_is_taken_by_its_name_or_else_by_its_root() {
        let views = views(Q35_WITH_IOMMU);
        for name in ["vtd-root", "vtd-03.0"] {
            let guest = Guest::of(&views, Some(name), None).expect("it is there");
            let msi = guest.pci.iter().find(|(_, meaning)| *meaning == Meaning::Msi);
            assert_eq!(msi.map(|(range, _)| range.name.as_str()), Some("vtd-ir"));
        }
        let empty = Guest::of(&views, Some("edu"), None).expect("it is there, and empty");
        assert!(empty.pci.is_empty());
    }

    #[test]
    fn an_unknown_name_is_answered_with_those_there_are() {
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
    fn translated_windows_have_the_page_their_platform_gives_them_unless_somebody_knows_better() {
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
        assert_eq!(Meaning::of(&by_place[0].ranges[0], None), Meaning::Msi);
        let elsewhere = views(&view_of("00000000fee00000-00000000fee00fff (prio 0, i/o): something"));
        assert!(matches!(Meaning::of(&elsewhere[0].ranges[0], None), Meaning::Nothing(_)));
    }
}
