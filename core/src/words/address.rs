//! Addresses and ranges of them. Two address spaces occur here, the device's and the guest's, and the types keep them
//! apart.
//!
//! Ranges hold their `last` byte, not the one past it: a range may end at 2^64-1, where an exclusive end does not fit
//! (linux: drivers/iommu/iommufd/pages.c, head comment). They are never empty, so nothing here has to ask.

use std::fmt;
use std::hash::Hash;
use std::num::NonZeroU64;

use crate::words::page::PageSize;

mod sealed {
    pub trait Sealed {}
}

/// An address in one particular address space.
///
/// Sealed: [`Iova`] and [`SystemAddress`] are the two there are.
pub trait Address: sealed::Sealed + Copy + Ord + Hash + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Wraps a raw number that means an address of this space.
    fn new(raw: u64) -> Self;

    /// The raw number, for arithmetic and for kernels.
    fn get(self) -> u64;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw number that means an address of this space.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl sealed::Sealed for $name {}

        impl Address for $name {
            fn new(raw: u64) -> Self {
                Self(raw)
            }

            fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// A bus address as the device emits it: an address of the PCI address space.
    Iova
}

address! {
    /// An address of the guest's system memory, as its processors see it. On a PC without a vIOMMU it happens to equal
    /// the bus address; on sPAPR it never does.
    SystemAddress
}

address! {
    /// An address of a process on the host, as a pointer to the memory has it.
    HostAddress
}

/// A range of bus addresses.
pub type IovaRange = AddressRange<Iova>;

/// A range of the guest's system memory.
pub type SystemRange = AddressRange<SystemAddress>;

/// The fault of bounds that are no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRange {
    /// The length is zero, or the last byte lies before the first.
    #[error("the range is empty")]
    Empty,
    /// The last byte would lie past 2^64-1.
    #[error("the range ends past 2^64-1")]
    Overflow,
}

/// A non-empty range of addresses with an inclusive last byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressRange<A> {
    first: A,
    last: A,
}

impl<A: Address> AddressRange<A> {
    /// The range `first..=last`.
    ///
    /// # Errors
    /// [`BadRange::Empty`] when `last` lies before `first`.
    pub fn new(first: A, last: A) -> Result<Self, BadRange> {
        if first <= last { Ok(Self { first, last }) } else { Err(BadRange::Empty) }
    }

    /// The range of `len` bytes from `first`.
    ///
    /// # Errors
    /// [`BadRange::Empty`] for no bytes, [`BadRange::Overflow`] when the last of them lies past 2^64-1.
    pub fn with_len(first: A, len: u64) -> Result<Self, BadRange> {
        let reach = len.checked_sub(1).ok_or(BadRange::Empty)?;
        let last = first.get().checked_add(reach).ok_or(BadRange::Overflow)?;
        Ok(Self { first, last: A::new(last) })
    }

    /// All addresses there are.
    pub fn all() -> Self {
        Self { first: A::new(0), last: A::new(u64::MAX) }
    }

    /// The first byte.
    pub const fn first(self) -> A
    where
        A: Copy,
    {
        self.first
    }

    /// The last byte, which is inside.
    pub const fn last(self) -> A
    where
        A: Copy,
    {
        self.last
    }

    /// The number of bytes, or `None` for all 2^64 of them.
    pub fn len(self) -> Option<NonZeroU64> {
        (self.last.get() - self.first.get()).checked_add(1).and_then(NonZeroU64::new)
    }

    /// The number of bytes in a type that holds 2^64.
    pub fn bytes(self) -> u128 {
        u128::from(self.last.get() - self.first.get()) + 1
    }

    /// One past the last byte, or `None` for a range that ends at 2^64-1.
    pub fn end(self) -> Option<A> {
        self.last.get().checked_add(1).map(A::new)
    }

    /// Returns `true` if `address` lies inside.
    pub fn contains(self, address: A) -> bool {
        self.first <= address && address <= self.last
    }

    /// Returns `true` if all of `other` lies inside.
    pub fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Returns `true` if the two share a byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Returns `true` if `next` begins right after this range ends.
    pub fn touches(self, next: Self) -> bool {
        self.end() == Some(next.first)
    }

    /// The bytes the two share.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last)).ok()
    }

    /// The smallest range that holds both.
    pub fn hull(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }

    /// The parts of this range below and above `hole`.
    pub fn without(self, hole: Self) -> (Option<Self>, Option<Self>) {
        if !self.overlaps(hole) {
            return if self.last < hole.first { (Some(self), None) } else { (None, Some(self)) };
        }
        let below = hole.first.get().checked_sub(1).and_then(|last| Self::new(self.first, A::new(last)).ok());
        let above = hole.end().and_then(|first| Self::new(first, self.last).ok());
        (below, above)
    }

    /// The two parts on either side of `border`, which must lie inside and not be the first byte.
    pub fn split_before(self, border: A) -> Option<(Self, Self)> {
        if border <= self.first || border > self.last {
            return None;
        }
        let below = Self { first: self.first, last: A::new(border.get() - 1) };
        Some((below, Self { first: border, last: self.last }))
    }

    /// The whole pages of `page` inside this range: both ends move inwards, so nothing outside it is ever exposed.
    pub fn trimmed_to(self, page: PageSize) -> Option<Self> {
        let first = page.round_up(self.first.get())?;
        // In exclusive terms: the end rounded down. At 2^64-1 the end is 2^64, a multiple of every page.
        let last = match self.last.get().checked_add(1) {
            Some(end) => page.round_down(end).checked_sub(1)?,
            None => u64::MAX,
        };
        Self::new(A::new(first), A::new(last)).ok()
    }

    /// The smallest range of whole pages that holds it.
    #[must_use]
    pub fn widened_to(self, page: PageSize) -> Self {
        Self { first: A::new(page.round_down(self.first.get())), last: A::new(self.last.get() | (page.bytes() - 1)) }
    }

    /// Returns `true` if both ends lie on borders of `page`.
    pub fn is_aligned_to(self, page: PageSize) -> bool {
        // The end past 2^64-1 wraps around to 0, which every page divides.
        page.divides(self.first.get() | self.last.get().wrapping_add(1))
    }

    /// How far `address` lies behind the first byte; zero when it lies before it.
    pub fn offset_of(self, address: A) -> u64 {
        address.get().saturating_sub(self.first.get())
    }
}

impl<A: fmt::Display> fmt::Display for AddressRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.first, self.last)
    }
}

impl<A: fmt::Display> fmt::Debug for AddressRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
    }

    #[test]
    fn a_length_of_zero_is_empty_and_one_past_the_top_overflows() {
        assert_eq!(IovaRange::with_len(Iova::new(7), 0), Err(BadRange::Empty));
        assert_eq!(IovaRange::with_len(Iova::new(u64::MAX), 2), Err(BadRange::Overflow));
        assert_eq!(IovaRange::with_len(Iova::new(u64::MAX), 1), Ok(range(u64::MAX, u64::MAX)));
    }

    #[test]
    fn everything_has_a_byte_count_but_no_length() {
        assert_eq!(IovaRange::all().len(), None);
        assert_eq!(IovaRange::all().bytes(), 1 << 64);
        assert_eq!(range(0, 0xfff).len().map(NonZeroU64::get), Some(0x1000));
    }

    #[test]
    fn trimming_moves_both_ends_inwards() {
        let page = PageSize::K4;
        assert_eq!(range(0xfe00_2050, 0xfe00_3fff).trimmed_to(page), Some(range(0xfe00_3000, 0xfe00_3fff)));
        assert_eq!(range(0xfe00_2050, 0xfe00_2f4f).trimmed_to(page), None);
        assert_eq!(range(0xffff_ffff_ffff_f123, u64::MAX).trimmed_to(page), None);
        assert_eq!(
            range(0xffff_ffff_ffff_0001, u64::MAX).trimmed_to(page),
            Some(range(0xffff_ffff_ffff_1000, u64::MAX))
        );
        assert_eq!(range(0, 0xffe).trimmed_to(page), None);
    }

    #[test]
    fn widening_moves_both_ends_outwards() {
        assert_eq!(range(0x1001, 0x1fff).widened_to(PageSize::K4), range(0x1000, 0x1fff));
        assert_eq!(range(0x1fff, 0x2000).widened_to(PageSize::K4), range(0x1000, 0x2fff));
        assert_eq!(range(u64::MAX, u64::MAX).widened_to(PageSize::K4), range(u64::MAX - 0xfff, u64::MAX));
        assert_eq!(range(1, u64::MAX - 1).widened_to(PageSize::K4), IovaRange::all());
    }

    #[test]
    fn alignment_counts_the_top_of_the_address_space_as_a_border() {
        assert!(IovaRange::all().is_aligned_to(PageSize::G1));
        assert!(range(0x1000, 0x1fff).is_aligned_to(PageSize::K4));
        assert!(!range(0x1000, 0x1ffe).is_aligned_to(PageSize::K4));
    }

    #[test]
    fn a_hole_leaves_the_parts_below_and_above_it() {
        let whole = range(0x1000, 0x4fff);
        assert_eq!(whole.without(range(0x2000, 0x2fff)), (Some(range(0x1000, 0x1fff)), Some(range(0x3000, 0x4fff))));
        assert_eq!(whole.without(range(0, 0x1fff)), (None, Some(range(0x2000, 0x4fff))));
        assert_eq!(whole.without(range(0x4000, u64::MAX)), (Some(range(0x1000, 0x3fff)), None));
        assert_eq!(whole.without(IovaRange::all()), (None, None));
        assert_eq!(whole.without(range(0x5000, 0x5fff)), (Some(whole), None));
        assert_eq!(whole.without(range(0, 0xfff)), (None, Some(whole)));
    }

    #[test]
    fn touching_is_not_overlapping_and_nothing_touches_the_top() {
        assert!(range(0, 0xfff).touches(range(0x1000, 0x1fff)));
        assert!(!range(0, 0xfff).overlaps(range(0x1000, 0x1fff)));
        assert!(!IovaRange::all().touches(range(0, 0)));
    }

    #[test]
    fn splitting_needs_a_border_strictly_inside() {
        let whole = range(0x1000, 0x2fff);
        assert_eq!(whole.split_before(Iova::new(0x2000)), Some((range(0x1000, 0x1fff), range(0x2000, 0x2fff))));
        assert_eq!(whole.split_before(Iova::new(0x1000)), None);
        assert_eq!(whole.split_before(Iova::new(0x3000)), None);
    }
}
