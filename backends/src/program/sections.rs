//! From a guest's ranges to an update of a listener: sections, target memory, and the host memory behind them.
//!
//! QEMU's text says which memory region a range shows, and from where in it, but not where QEMU had put the region.
//! So each region, by its name, gets a place of its own. Pieces of one region then continue each other exactly as
//! they did in QEMU, and different regions never do. On a soft host the places are only addresses, so that a guest of
//! 6 TiB replays on a laptop; a real host is given real memory, zeroed, of which the kernel hands out the pages that
//! are pinned.

use dmaspace::HostAddress;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace::listener::Update;
use dmaspace::section::TargetMemory;
use dmaspace::{Access, HostMemory, Iova, IovaRange, PageSize, Section, SystemAddress};
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use crate::program::guest::{Guest, Meaning};
use crate::program::mtree::Range;
use crate::program::units::bytes;

/// The update a listener is told, and the few things it is not.
#[derive(Debug)]
pub(crate) struct Told {
    /// The sections and target memory that come.
    pub(crate) update: Update,
    /// The reasons for which ranges are nothing to a listener, by first address.
    pub(crate) reasons: BTreeMap<u64, &'static str>,
}

/// The source of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: addresses are enough.
    MadeUp,
    /// This host's own memory.
    Real,
}

/// The reason for which there is no host memory for a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoMemory {
    /// One range, by itself or with the rest, is larger than an address space.
    #[error("expected memory that fits into the addresses of one process")]
    TooLarge {
        /// The range's line.
        line: usize,
    },
    /// This host has less.
    #[error("the guest has {need} of memory, but only {have} is free here; a soft host (--host) needs none")]
    TooLittle {
        /// The guest's memory, in words.
        need: String,
        /// The host's memory, in words.
        have: String,
    },
}

/// The update that tells a listener of `guest`.
///
/// # Errors
/// When there is no memory for it.
pub(crate) fn tell(guest: &Guest<'_>, source: Source) -> Result<Told, NoMemory> {
    let regions = Regions::of(guest, source)?;
    let mut told = Told { update: Update::new(), reasons: BTreeMap::new() };
    for (range, meaning) in &guest.pci {
        told.update = told.update.adding(regions.section(range, *meaning)?);
        told.reasons.extend(reason(*meaning, source).map(|reason| (range.first, reason)));
    }
    for range in &guest.targets {
        told.update = told.update.adding_target(regions.target(range)?);
    }
    Ok(told)
}

/// The reason for which a range is nothing to devices, if it is.
fn reason(meaning: Meaning, source: Source) -> Option<&'static str> {
    match meaning {
        Meaning::Nothing(reason) => Some(reason),
        Meaning::DeviceMemory if source == Source::Real => {
            Some("another device's memory, of which the text has the address but not the bytes")
        }
        _ => None,
    }
}

/// The guest's memory regions, by name.
struct Regions {
    source: Source,
    regions: BTreeMap<Arc<str>, HostMemory>,
}

impl Regions {
    fn of(guest: &Guest<'_>, source: Source) -> Result<Self, NoMemory> {
        let shown = sizes(guest, source)?;
        if source == Source::Real {
            check_free_memory(&shown)?;
        }
        let mut place = FIRST_PLACE;
        let mut regions = BTreeMap::new();
        for (name, Size { bytes, line, bus }) in shown {
            let memory = match source {
                Source::MadeUp => made_up(&mut place, bus, bytes),
                Source::Real => real(bytes),
            };
            regions.insert(name, memory.ok_or(NoMemory::TooLarge { line })?);
        }
        Ok(Self { source, regions })
    }

    fn section(&self, range: &Range, meaning: Meaning) -> Result<Section, NoMemory> {
        let (name, at, all) = (range.name.as_ref(), Iova::new(range.first), bus_range(range));
        let section = match meaning {
            Meaning::Memory(access) => Section::ram(name, at, self.memory(range)?, access),
            Meaning::DeviceMemory if self.source == Source::MadeUp => {
                Section::device_memory(name, at, self.memory(range)?, Access::READ_WRITE)
            }
            Meaning::Translated(page) => Ok(Section::translated(name, all, page)),
            Meaning::Msi => Ok(Section::msi(name, all)),
            Meaning::DeviceMemory | Meaning::Nothing(_) => Ok(Section::nothing(name, all)),
        };
        section.map_err(|_| too_large(range))
    }

    fn target(&self, range: &Range) -> Result<TargetMemory, NoMemory> {
        TargetMemory::new(&range.name, SystemAddress::new(range.first), self.memory(range)?)
            .map_err(|_| too_large(range))
    }

    /// The memory behind a range.
    fn memory(&self, range: &Range) -> Result<HostMemory, NoMemory> {
        let region = self.regions.get(&range.name);
        region.and_then(|region| region.slice(range.offset, len(range)?.get())).ok_or_else(|| too_large(range))
    }
}

fn bus_range(range: &Range) -> IovaRange {
    // The text was refused if the last address lay before the first.
    IovaRange::new(Iova::new(range.first), Iova::new(range.last)).unwrap_or_else(|_| IovaRange::all())
}

fn len(range: &Range) -> Option<NonZeroU64> {
    NonZeroU64::new((range.last - range.first).checked_add(1)?)
}

fn too_large(range: &Range) -> NoMemory {
    NoMemory::TooLarge { line: range.line }
}

/// The size of a region, at least.
#[derive(Clone, Copy)]
struct Size {
    bytes: NonZeroU64,
    /// The range that shows its last byte.
    line: usize,
    /// The bus address of its first byte, as the first range that shows it has it.
    bus: u64,
}

/// Returns whether memory is made for a range of that meaning.
fn has_memory(meaning: Meaning, source: Source) -> bool {
    match meaning {
        Meaning::Memory(_) => true,
        Meaning::DeviceMemory => source == Source::MadeUp,
        Meaning::Translated(_) | Meaning::Msi | Meaning::Nothing(_) => false,
    }
}

/// The size of every region that has to be there, as far as ranges show it.
fn sizes(guest: &Guest<'_>, source: Source) -> Result<BTreeMap<Arc<str>, Size>, NoMemory> {
    let shown = guest.pci.iter().filter(|(_, meaning)| has_memory(*meaning, source)).map(|(range, _)| *range);
    let mut sizes: BTreeMap<Arc<str>, Size> = BTreeMap::new();
    for range in shown.chain(guest.targets.iter().copied()) {
        let bytes = len(range).and_then(|len| len.checked_add(range.offset)).ok_or_else(|| too_large(range))?;
        let shown = Size { bytes, line: range.line, bus: range.first.wrapping_sub(range.offset) };
        let size = sizes.entry(range.name.clone()).or_insert(shown);
        if size.bytes < bytes {
            *size = Size { bus: size.bus, ..shown };
        }
    }
    Ok(sizes)
}

/// The first made-up place: anywhere but at zero, so that no two kinds of address are ever equal by chance.
const FIRST_PLACE: u64 = 1 << 44;

/// A place of its own. Places lie in a GiB as their bus addresses do, so that every page size the bus address allows
/// is allowed by the host's too: an address that was made up here is no reason against anything. But QEMU's memory
/// begins with a page of the host's, of 64 KiB at most, and where that does not fit the bus address QEMU itself does
/// not map it. 1 GiB or more lies between places, so that different regions are never taken for one piece.
fn made_up(place: &mut u64, bus: u64, bytes: NonZeroU64) -> Option<HostMemory> {
    let within = PageSize::K64.round_down(bus % PageSize::G1.bytes());
    let memory = HostMemory::unbacked(HostAddress::new(place.checked_add(within)?), bytes)?;
    *place = PageSize::G1.round_up(memory.last().get())?.checked_add(PageSize::G1.bytes())?;
    Some(memory)
}

fn real(bytes: NonZeroU64) -> Option<HostMemory> {
    let pages = MmapRegion::<()>::new(usize::try_from(bytes.get()).ok()?).ok()?;
    HostMemory::of_region(&GuestRegionMmap::new(pages, GuestAddress(0))?)
}

/// All of the guest's memory is about to be pinned: the kernel would rather kill a process than say no.
fn check_free_memory(sizes: &BTreeMap<Arc<str>, Size>) -> Result<(), NoMemory> {
    let need: u128 = sizes.values().map(|size| u128::from(size.bytes.get())).sum();
    match free_memory().map(u128::from) {
        Some(have) if have < need => Err(NoMemory::TooLittle { need: bytes(need), have: bytes(have) }),
        _ => Ok(()),
    }
}

/// The bytes that the kernel can give without swapping, by its own estimate.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use dmaspace::Listener;
    use dmaspace::section::{Backing, FrontEnd};

    use super::*;
    use crate::program::guest::tests::views;
    use crate::program::mtree::tests::{PSERIES, Q35_WITH_BAR, view_of};

    /// A listener that was told of a guest.
    fn told(text: &str, source: Source) -> Listener {
        let views = views(text);
        let guest = Guest::of(&views, None, None).expect("a guest of the test");
        let mut listener = Listener::new(FrontEnd::default());
        listener.commit(tell(&guest, source).expect("memory for the test").update).expect("no host can refuse");
        listener
    }

    fn memory_at(listener: &Listener, first: u64) -> HostMemory {
        let section = listener.sections().find(|section| section.range().first().get() == first);
        section.and_then(Section::direct).expect("memory of the test").0.clone()
    }

    #[test]
    fn pieces_of_one_region_continue_each_other_and_regions_never_touch() {
        let listener = told(Q35_WITH_BAR, Source::MadeUp);
        let (low, shadow) = (memory_at(&listener, 0), memory_at(&listener, 0xc_3000));
        assert_eq!(low.last().get() + 1, shadow.address().get());
        assert!(low.joined_with(&shadow).is_some());
        let (bios, bar) = (memory_at(&listener, 0xfffc_0000), memory_at(&listener, 0xfea0_0000));
        assert!(bar.is_device_memory() && !bios.is_device_memory());
        let mut places = [low.address(), bios.address(), bar.address()];
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[1].get() - pair[0].get() >= PageSize::G1.bytes()));
        assert!(PageSize::G1.divides(low.address().get()) && PageSize::G1.divides(bios.address().get() - 0x3ffc_0000));
    }

    #[test]
    fn six_tebibytes_take_no_memory() {
        let text = view_of("0000000100000000-000006007fffffff (prio 0, ram): mem @0000000080000000");
        let memory = memory_at(&told(&text, Source::MadeUp), 0x1_0000_0000);
        assert_eq!(memory.len().get(), 0x5ff_8000_0000);
        assert!(memory.is_unbacked());
    }

    #[test]
    fn real_memory_is_there_and_zero_and_bars_are_left_out() {
        let text = view_of(
            "0000000000001000-0000000000002fff (prio 0, ram): mem @0000000000001000\n  \
             0000000000003000-0000000000003fff (prio 0, ramd): BAR",
        );
        let views = views(&text);
        let guest = Guest::of(&views, None, None).expect("a guest");
        let told = tell(&guest, Source::Real).expect("12 KiB");
        assert_eq!(told.reasons.keys().copied().collect::<Vec<_>>(), [0x3000]);
        let mut listener = Listener::new(FrontEnd::default());
        listener.commit(told.update).expect("no host can refuse");
        let mut bytes = [7; 4];
        memory_at(&listener, 0x1000).read(0x1ffc, &mut bytes).expect("inside");
        assert_eq!(bytes, [0; 4]);
        assert_eq!(listener.sections().nth(1).map(Section::backing), Some(&Backing::Nothing));
    }

    #[test]
    fn windows_keep_their_page_and_ram_becomes_target_memory() {
        let listener = told(PSERIES, Source::MadeUp);
        let backings: Vec<_> = listener.sections().map(|section| section.backing().clone()).collect();
        let window = |page| Backing::Translated { page };
        assert_eq!(backings, [window(PageSize::K4), Backing::Msi, window(PageSize::K64)]);
        assert_eq!(listener.targets().map(|target| target.memory().len().get()).sum::<u64>(), 1 << 32);
    }

    #[test]
    fn a_section_that_does_not_fit_is_refused() {
        for range in [
            "0000000000000000-ffffffffffffffff (prio 0, ram): mem",
            "0000000000000000-0000000000000fff (prio 0, ram): mem @fffffffffffff000",
            "0000000000000000-fffff00000000000 (prio 0, ramd): mem",
        ] {
            let views = views(&view_of(range));
            let guest = Guest::of(&views, None, None).expect("a guest");
            assert_eq!(tell(&guest, Source::MadeUp).expect_err("too large"), NoMemory::TooLarge { line: 4 }, "{range}");
        }
        let views = views(&view_of("0000000000000000-0000ffffffffffff (prio 0, ram): mem"));
        let guest = Guest::of(&views, None, None).expect("a guest");
        let refusal = tell(&guest, Source::Real).expect_err("more than this host has").to_string();
        assert!(refusal.starts_with("the guest has 256 TiB (281474976710656) of memory, but only"), "{refusal}");
    }
}
