//! Windows: the ranges of bus addresses in which a host lets devices reach memory.

use std::fmt;

use crate::words::address::{Iova, IovaRange};
use crate::words::page::{PageSize, PageSizes};

/// One window of a host: where it lies, and which pages it is made of.
///
/// type1 and iommufd offer fixed ones around reserved holes; sPAPR v2 offers the ones that were created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Window {
    /// Where it lies on the bus.
    pub range: IovaRange,
    /// The pages the host can use in it. The smallest is the granule of every mapping; a created window has exactly
    /// one.
    pub page_sizes: PageSizes,
}

impl Window {
    /// A window over `range`, made of pages of these sizes.
    pub const fn new(range: IovaRange, page_sizes: PageSizes) -> Self {
        Self { range, page_sizes }
    }

    /// What both ends of a mapping, and the host address behind it, must be aligned to.
    pub const fn granule(&self) -> PageSize {
        self.page_sizes.smallest()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.range, self.page_sizes)
    }
}

/// The windows a host offers at one moment: ascending, disjoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    windows: Vec<Window>,
}

/// Two windows share bus addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the windows {0} and {1} overlap")]
#[non_exhaustive]
pub struct OverlappingWindows(pub IovaRange, pub IovaRange);

impl Windows {
    /// Sorts `windows`.
    ///
    /// # Errors
    /// When two of them overlap.
    pub fn new(mut windows: Vec<Window>) -> Result<Self, OverlappingWindows> {
        windows.sort_by_key(|window| window.range);
        let overlap = windows.iter().zip(windows.iter().skip(1)).find(|(a, b)| a.range.overlaps(b.range));
        match overlap {
            Some((a, b)) => Err(OverlappingWindows(a.range, b.range)),
            None => Ok(Self { windows }),
        }
    }

    /// Windows over `ranges` that are all made of the same pages, as a host with fixed windows describes them. The
    /// ranges may come in any order; those that overlap become one window.
    pub fn uniform(mut ranges: Vec<IovaRange>, page_sizes: PageSizes) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by(|next, range| {
            let overlap = range.overlaps(*next);
            if overlap {
                *range = range.hull(*next);
            }
            overlap
        });
        Self { windows: ranges.into_iter().map(|range| Window { range, page_sizes }).collect() }
    }

    /// The windows, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Window> + ExactSizeIterator {
        self.windows.iter()
    }

    /// The window that holds `at`.
    pub fn containing(&self, at: Iova) -> Option<&Window> {
        let after = self.windows.partition_point(|window| window.range.first() <= at);
        self.windows.get(after.checked_sub(1)?).filter(|window| window.range.contains(at))
    }

    /// The window that holds all of `range`.
    pub fn covering(&self, range: IovaRange) -> Option<&Window> {
        self.containing(range.first()).filter(|window| window.range.covers(range))
    }

    /// The windows that share bytes with `range`, ascending.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &Window> {
        let first = self.windows.partition_point(|window| window.range.last() < range.first());
        self.windows.iter().skip(first).take_while(move |window| window.range.first() <= range.last())
    }

    /// The highest bus address of any window.
    pub fn top(&self) -> Option<Iova> {
        self.windows.last().map(|window| window.range.last())
    }

    /// Returns `true` if there is none: a host whose windows are created, before the first one.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(first: u64, last: u64) -> Window {
        let range = IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test");
        Window { range, page_sizes: PageSizes::only(PageSize::K4) }
    }

    fn vtd() -> Windows {
        Windows::new(vec![window(0xfef0_0000, 0xffff_ffff_ffff), window(0, 0xfedf_ffff)]).expect("disjoint")
    }

    #[test]
    fn the_hole_between_two_windows_belongs_to_neither() {
        let windows = vtd();
        assert_eq!(windows.containing(Iova::new(0xfedf_ffff)).map(|w| w.range.first().get()), Some(0));
        assert_eq!(windows.containing(Iova::new(0xfee0_0000)), None);
        assert_eq!(windows.containing(Iova::new(0xfef0_0000)).map(|w| w.range.first().get()), Some(0xfef0_0000));
        assert_eq!(windows.containing(Iova::new(0x1_0000_0000_0000)), None);
    }

    #[test]
    fn a_range_across_the_hole_is_covered_by_no_window_but_overlaps_two() {
        let windows = vtd();
        let across = window(0xfed0_0000, 0xffef_ffff).range;
        assert_eq!(windows.covering(across), None);
        assert_eq!(windows.overlapping(across).count(), 2);
        assert_eq!(windows.top(), Some(Iova::new(0xffff_ffff_ffff)));
    }

    #[test]
    fn uniform_windows_unite_overlapping_ranges_and_keep_touching_ones_apart() {
        let ranges = [(0x4000, 0x4fff), (0x2000, 0x3fff), (0, 0xfff), (0x500, 0x17ff)];
        let windows = Windows::uniform(
            ranges.map(|(first, last)| window(first, last).range).to_vec(),
            PageSizes::only(PageSize::K4),
        );
        let expected = vec![window(0, 0x17ff), window(0x2000, 0x3fff), window(0x4000, 0x4fff)];
        assert_eq!(windows, Windows::new(expected).expect("disjoint"));
    }

    #[test]
    fn overlapping_windows_are_refused_by_name() {
        let error = Windows::new(vec![window(0, 0x1fff), window(0x1000, 0x2fff)]).expect_err("they overlap");
        assert_eq!(error.to_string(), "the windows 0x0..=0x1fff and 0x1000..=0x2fff overlap");
    }
}
