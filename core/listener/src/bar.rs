//! BARs of passed-through devices: the parts of a BAR that other devices can reach.
//!
//! A VMM maps the areas of a BAR that VFIO lets it map, and emulates the MSI-X table and its pending bits between them.
//! The rest is pieces with odd ends, and an IOMMU maps whole pages. [`Bar::sections`] returns these pages,
//! [`Bar::relocation`] the places of the table and the pending bits at which no page would be lost.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU64};

use crate::section::Section;
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{BadRange, Iova, IovaRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

/// The bytes of one vector in an MSI-X table (linux: include/uapi/linux/pci_regs.h, PCI_MSIX_ENTRY_SIZE).
const TABLE_ENTRY: u64 = 16;

/// A BAR: its size, the areas this process could map, and the structures the VMM emulates in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    name: String,
    size: NonZeroU64,
    areas: Vec<Area>,
    msix: Option<Msix>,
}

/// A part of a BAR that this process mapped: all of it, or one of the areas of VFIO's sparse mmap capability.
///
/// Exhaustive: an area has no more than a place and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// The offset of its first byte in the BAR.
    pub offset: u64,
    /// Its memory in this process.
    pub memory: HostMemory,
}

/// The device's MSI-X structures, as far as they lie in one BAR.
///
/// Exhaustive: the PCI capability has no more structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Msix {
    /// The number of vectors.
    pub vectors: NonZeroU16,
    /// The offset of the table, if it is in this BAR.
    pub table: Option<u64>,
    /// The offset of the pending bits, if they are in this BAR.
    pub pba: Option<u64>,
}

/// The reason why a description is of no BAR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadBar {
    /// An area, or an MSI-X structure, reaches past the end.
    #[error("the {what} at {offset:#x} of {name} reaches past its {size:#x} bytes")]
    PastTheEnd {
        /// The BAR.
        name: String,
        /// The part of the BAR.
        what: &'static str,
        /// The offset of the part.
        offset: u64,
        /// The BAR's size.
        size: NonZeroU64,
    },
    /// Two areas share bytes.
    #[error("the areas at {0:#x} and {1:#x} of a BAR overlap")]
    Overlap(u64, u64),
}

/// Places of the MSI-X structures that cost no page of the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Relocation {
    /// The size of the BAR with the structures at its end, as the guest would see it.
    pub size: u64,
    /// The offset of the table, if it is in this BAR.
    pub table: Option<u64>,
    /// The offset of the pending bits, if they are in this BAR.
    pub pba: Option<u64>,
}

/// Bytes of a BAR, by offset: from the first to before the second.
type Span = (u64, u64);

impl Msix {
    fn table_span(self) -> Option<(u64, u64)> {
        self.table.map(|at| (at, u64::from(self.vectors.get()) * TABLE_ENTRY))
    }

    /// One bit a vector, in words of 64 bits.
    fn pba_span(self) -> Option<(u64, u64)> {
        self.pba.map(|at| (at, u64::from(self.vectors.get()).div_ceil(64) * 8))
    }
}

impl Bar {
    /// A BAR of `size` bytes. `name` is what sections and warnings will call it ("0000:01:00.0 BAR 2"), `areas` is what
    /// of it this process mapped.
    ///
    /// # Errors
    /// [`BadBar`] when something lies outside the BAR, or areas overlap.
    pub fn new(name: &str, size: NonZeroU64, mut areas: Vec<Area>, msix: Option<Msix>) -> Result<Self, BadBar> {
        areas.sort_by_key(|area| area.offset);
        for area in &areas {
            check_fits(name, size, "area", area.offset, area.memory.len().get())?;
        }
        let overlapping = areas.iter().zip(areas.iter().skip(1)).find(|(area, next)| area.span().1 > next.offset);
        if let Some((area, next)) = overlapping {
            return Err(BadBar::Overlap(area.offset, next.offset));
        }
        let structures = msix.map(|msix| [("MSI-X table", msix.table_span()), ("MSI-X PBA", msix.pba_span())]);
        for (what, span) in structures.into_iter().flatten() {
            if let Some((at, len)) = span {
                check_fits(name, size, what, at, len)?;
            }
        }
        Ok(Self { name: name.into(), size, areas, msix })
    }

    /// The BAR at `at` on the bus, for an IOMMU whose smallest page is `page`: device memory as far as whole pages of
    /// it are nothing else, and nothing for the rest. The sections are ascending and cover the BAR.
    ///
    /// # Errors
    /// [`BadRange::Overflow`] when the BAR would end past 2^64-1.
    pub fn sections(&self, at: Iova, page: PageSize) -> Result<Vec<Section>, BadRange> {
        let bar = IovaRange::with_len(at, self.size.get())?;
        let mut sections = Vec::new();
        let mut rest = Some(bar);
        for (range, memory) in self.mappable(at, page) {
            let (below, above) = rest.map_or((None, None), |rest| rest.without(range));
            sections.extend(below.map(|hole| Section::nothing(&self.name_of(bar, hole), hole)));
            sections.push(Section::device_memory(&self.name, range.first(), memory, Access::READ_WRITE)?);
            rest = above;
        }
        sections.extend(rest.map(|hole| Section::nothing(&self.name_of(bar, hole), hole)));
        Ok(sections)
    }

    /// Places of the MSI-X structures at which all memory that this process mapped of the BAR can be mapped in pages of
    /// `page`: pages of their own behind the BAR's bytes, in a BAR twice as large or more. `None` if they cost no byte
    /// as they are.
    pub fn relocation(&self, page: PageSize) -> Option<Relocation> {
        let msix = self.msix?;
        let without = Self { msix: None, ..self.clone() };
        let structures = [msix.table_span(), msix.pba_span()];
        let emulated: u64 = structures.iter().flatten().map(|(_, len)| len).sum();
        if without.mappable_bytes(page) <= self.mappable_bytes(page) + u128::from(emulated) {
            return None;
        }
        let mut end = page.round_up(self.size.get())?;
        let mut place = |span: Option<(u64, u64)>| {
            let (_, len) = span?;
            let at = end;
            end = end.checked_add(len)?;
            Some(at)
        };
        let [table, pba] = structures.map(&mut place);
        Some(Relocation { size: page.round_up(end)?.checked_next_power_of_two()?, table, pba })
    }

    /// The bytes that can be mapped in pages of `page`. A BAR lies at a multiple of its size: all pages up to that size
    /// lie as they would at 0.
    fn mappable_bytes(&self, page: PageSize) -> u128 {
        self.mappable(Iova::new(0), page).map(|(range, _)| range.bytes()).sum()
    }

    /// The whole pages of the BAR at `at` that are mapped memory and nothing else.
    fn mappable(&self, at: Iova, page: PageSize) -> impl Iterator<Item = (IovaRange, HostMemory)> {
        let holes = self.msix.map(|msix| [msix.table_span(), msix.pba_span()]);
        let mut holes: Vec<Span> =
            holes.into_iter().flatten().flatten().map(|(at, len)| (at, at.saturating_add(len))).collect();
        holes.sort_unstable();
        let pieces = self.joined_areas().into_iter().flat_map(move |area| without(area.span(), &holes, &area));
        pieces.filter_map(move |(first, memory)| {
            let range = IovaRange::with_len(Iova::new(at.get().checked_add(first)?), memory.len().get()).ok()?;
            let whole = range.trimmed_to(page)?;
            Some((whole, memory.slice(range.offset_of(whole.first()), whole.len()?.get())?))
        })
    }

    /// Areas that continue each other, in the BAR and in this process, lose less as one.
    fn joined_areas(&self) -> Vec<Area> {
        let mut joined: Vec<Area> = Vec::new();
        for area in &self.areas {
            let last = joined.last_mut().filter(|last| last.span().1 == area.offset);
            match last.and_then(|last| Some((last.memory.joined_with(&area.memory)?, last))) {
                Some((memory, last)) => last.memory = memory,
                None => joined.push(area.clone()),
            }
        }
        joined
    }

    /// The name of a part that cannot be mapped.
    fn name_of(&self, bar: IovaRange, hole: IovaRange) -> String {
        match self.msix {
            Some(msix) if is_in(bar, msix.table_span(), hole) => format!("{} msix-table", self.name),
            Some(msix) if is_in(bar, msix.pba_span(), hole) => format!("{} msix-pba", self.name),
            _ => format!("{} (not mappable)", self.name),
        }
    }
}

/// Checks that a part of a BAR ends where the BAR does, or before.
fn check_fits(name: &str, size: NonZeroU64, what: &'static str, offset: u64, len: u64) -> Result<(), BadBar> {
    match offset.checked_add(len) {
        Some(end) if end <= size.get() => Ok(()),
        _ => Err(BadBar::PastTheEnd { name: name.into(), what, offset, size }),
    }
}

/// Returns whether a structure at such offsets of `bar` shares bytes with `hole`.
fn is_in(bar: IovaRange, structure: Option<(u64, u64)>, hole: IovaRange) -> bool {
    let Some((offset, len)) = structure else { return false };
    let first = bar.first().get().checked_add(offset).map(Iova::new);
    let range = first.and_then(|first| IovaRange::with_len(first, len).ok());
    range.is_some_and(|range| range.overlaps(hole))
}

impl Area {
    fn span(&self) -> Span {
        (self.offset, self.offset.saturating_add(self.memory.len().get()))
    }
}

/// The parts of an area outside `holes`, which are ascending: where they begin, and their memory.
fn without((first, end): Span, holes: &[Span], area: &Area) -> Vec<(u64, HostMemory)> {
    let mut from = first;
    let mut out = Vec::new();
    for (hole, after) in holes.iter().chain(&[(end, end)]) {
        let piece = area.memory.slice(from.saturating_sub(first), (*hole).min(end).saturating_sub(from));
        out.extend(piece.map(|memory| (from, memory)));
        from = from.max(*after);
    }
    out
}

impl fmt::Display for Relocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = [("the MSI-X table", self.table), ("the PBA", self.pba)];
        let words: Vec<_> = places.iter().filter_map(|(what, at)| at.map(|at| format!("{what} at {at:#x}"))).collect();
        write!(f, "with {} of a BAR of {:#x} bytes, all of its memory could be mapped", words.join(" and "), self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::Backing;
    use dmaspace_core::HostAddress;

    fn area(offset: u64, host: u64, len: u64) -> Area {
        let len = NonZeroU64::new(len).expect("not empty");
        Area { offset, memory: HostMemory::unbacked(HostAddress::new(host), len).expect("no wrap") }
    }

    fn msix(vectors: u16, table: u64, pba: u64) -> Option<Msix> {
        let vectors = NonZeroU16::new(vectors).expect("some");
        Some(Msix { vectors, table: Some(table), pba: Some(pba) })
    }

    fn bar_of(size: u64, areas: Vec<Area>, msix: Option<Msix>) -> Bar {
        Bar::new("0000:01:00.0 BAR 2", NonZeroU64::new(size).expect("not empty"), areas, msix).expect("a proper BAR")
    }

    /// First and last offset of each section, whether it is memory, and at which host address.
    fn told(bar: &Bar, page: PageSize) -> Vec<(u64, u64, Option<u64>)> {
        let at = 0xfe00_0000;
        let told = |section: &Section| {
            let host = section.direct().map(|(memory, _)| memory.address().get());
            (section.range().first().get() - at, section.range().last().get() - at, host)
        };
        bar.sections(Iova::new(at), page).expect("no overflow").iter().map(told).collect()
    }

    #[test]
    fn a_table_in_the_middle_costs_its_pages_and_no_more() {
        let bar = bar_of(0x4000, vec![area(0, 0x7000_0000, 0x4000)], msix(5, 0x2000, 0x3000));
        let host = Some(0x7000_0000);
        assert_eq!(told(&bar, PageSize::K4), [(0, 0x1fff, host), (0x2000, 0x3fff, None)]);
        let names: Vec<_> = bar.sections(Iova::new(0), PageSize::K4).expect("no overflow");
        assert_eq!(
            names.iter().map(Section::name).collect::<Vec<_>>(),
            ["0000:01:00.0 BAR 2", "0000:01:00.0 BAR 2 msix-table"]
        );
        assert_eq!(names[1].backing(), &Backing::Nothing);
    }

    #[test]
    fn the_part_between_table_and_pending_bits_is_kept() {
        let bar = bar_of(0x1_0000, vec![area(0, 0x7000_0000, 0x1_0000)], msix(5, 0x2000, 0x8000));
        let host = |offset: u64| Some(0x7000_0000 + offset);
        let expected = [
            (0, 0x1fff, host(0)),
            (0x2000, 0x2fff, None),
            (0x3000, 0x7fff, host(0x3000)),
            (0x8000, 0x8fff, None),
            (0x9000, 0xffff, host(0x9000)),
        ];
        assert_eq!(told(&bar, PageSize::K4), expected);
        assert_eq!(told(&bar, PageSize::K64), [(0, 0xffff, None)]);
    }

    #[test]
    fn the_table_moves_behind_everything_else() {
        let bar = bar_of(0x1_0000, vec![area(0, 0x7000_0000, 0x1_0000)], msix(5, 0x2000, 0x8000));
        let expected = Relocation { size: 0x2_0000, table: Some(0x1_0000), pba: Some(0x1_0050) };
        assert_eq!(bar.relocation(PageSize::K64), Some(expected));
        let words = "with the MSI-X table at 0x10000 and the PBA at 0x10050 of a BAR of 0x20000 bytes, all of its \
                     memory could be mapped";
        assert_eq!(expected.to_string(), words);
        let moved = Some(Msix { vectors: NonZeroU16::new(5).expect("some"), table: expected.table, pba: expected.pba });
        let moved = Bar { size: NonZeroU64::new(expected.size).expect("not empty"), msix: moved, ..bar };
        assert_eq!(told(&moved, PageSize::K64), [(0, 0xffff, Some(0x7000_0000)), (0x1_0000, 0x1_ffff, None)]);
        assert_eq!(moved.relocation(PageSize::K64), None);
    }

    #[test]
    fn a_bar_smaller_than_a_page_is_lost_whole() {
        let bar = bar_of(0x4000, vec![area(0, 0x7000_0000, 0x4000)], None);
        assert_eq!(told(&bar, PageSize::K64), [(0, 0x3fff, None)]);
        assert_eq!(bar.relocation(PageSize::K64), None, "there is no table to blame");
    }

    #[test]
    fn a_full_page_of_table_costs_nothing_else() {
        let bar = bar_of(
            0x4000,
            vec![area(0, 0x7000_0000, 0x4000)],
            Some(Msix { vectors: NonZeroU16::new(256).expect("some"), table: Some(0x1000), pba: None }),
        );
        assert_eq!(bar.relocation(PageSize::K4), None);
    }

    #[test]
    fn sparse_areas_are_all_there_is_and_neighbours_are_joined() {
        let areas = vec![
            area(0x2800, 0x7000_2800, 0x1800),
            area(0x1000, 0x7000_1000, 0x1800),
            area(0x6000, 0x7100_0000, 0x1000),
        ];
        let bar = bar_of(0x8000, areas, None);
        let expected = [
            (0, 0xfff, None),
            (0x1000, 0x3fff, Some(0x7000_1000)),
            (0x4000, 0x5fff, None),
            (0x6000, 0x6fff, Some(0x7100_0000)),
            (0x7000, 0x7fff, None),
        ];
        assert_eq!(told(&bar, PageSize::K4), expected);
    }

    #[test]
    fn an_impossible_bar_is_refused() {
        let size = NonZeroU64::new(0x1000).expect("not empty");
        let one = |areas, msix| Bar::new("BAR 0", size, areas, msix).map(drop).map_err(|error| error.to_string());
        let past = Err("the area at 0x800 of BAR 0 reaches past its 0x1000 bytes".to_owned());
        assert_eq!(one(vec![area(0x800, 0x7000_0000, 0x1000)], None), past);
        let past = Err("the MSI-X table at 0xffffffffffffffff of BAR 0 reaches past its 0x1000 bytes".to_owned());
        assert_eq!(one(Vec::new(), msix(1, u64::MAX, 0)), past);
        let overlap = Err("the areas at 0x0 and 0x7ff of a BAR overlap".to_owned());
        assert_eq!(one(vec![area(0, 0x7000_0000, 0x800), area(0x7ff, 0x7000_0000, 1)], None), overlap);
        assert!(bar_of(0x1000, Vec::new(), None).sections(Iova::new(u64::MAX - 0xffe), PageSize::K4).is_err());
    }
}
