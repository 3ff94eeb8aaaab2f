//! Page sizes and sets of them. Masks are 64 bits wide throughout: AMD's go up to 2^51, TCE masks up to 2^34.

use std::fmt;
use std::num::NonZeroU64;

/// The size of a page: a power of two from 1 byte to 2^63, kept as its shift so that no other number can be spelt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    shift: u8,
}

impl PageSize {
    /// 4 KiB.
    pub const K4: Self = Self { shift: 12 };
    /// 64 KiB.
    pub const K64: Self = Self { shift: 16 };
    /// 2 MiB.
    pub const M2: Self = Self { shift: 21 };
    /// 16 MiB.
    pub const M16: Self = Self { shift: 24 };
    /// 1 GiB.
    pub const G1: Self = Self { shift: 30 };

    /// The page of `2^shift` bytes, or `None` from 2^64 on.
    pub const fn from_shift(shift: u32) -> Option<Self> {
        // The comparison makes the cast exact.
        #[allow(clippy::cast_possible_truncation)]
        if shift < 64 { Some(Self { shift: shift as u8 }) } else { None }
    }

    /// The page of `bytes` bytes, or `None` when that is no power of two.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() { Self::from_shift(bytes.trailing_zeros()) } else { None }
    }

    /// The power of two.
    pub const fn shift(self) -> u32 {
        self.shift as u32
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// Returns `true` if `number` is a multiple of this size.
    pub const fn divides(self, number: u64) -> bool {
        number & (self.bytes() - 1) == 0
    }

    /// The nearest multiple at or below `number`.
    pub const fn round_down(self, number: u64) -> u64 {
        number & !(self.bytes() - 1)
    }

    /// The nearest multiple at or above `number`, or `None` when it lies past 2^64-1.
    pub const fn round_up(self, number: u64) -> Option<u64> {
        match number.checked_add(self.bytes() - 1) {
            Some(over) => Some(self.round_down(over)),
            None => None,
        }
    }

    /// The largest page that divides all of `numbers`; `None` when all are zero, which every page divides.
    pub fn largest_dividing(numbers: &[u64]) -> Option<Self> {
        let bits = numbers.iter().fold(0, |bits, number| bits | number);
        Self::from_shift(bits.trailing_zeros())
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
        let unit = UNITS.get(usize::from(self.shift / 10)).unwrap_or(&"");
        write!(f, "{}{unit}", 1u64 << (self.shift % 10))
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A set of page sizes, never empty, as the kernel's masks have it: bit n stands for 2^n. The bits need not be adjacent
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageSizes(NonZeroU64);

impl PageSizes {
    /// The set a mask describes, or `None` for an empty mask.
    pub const fn from_mask(mask: u64) -> Option<Self> {
        match NonZeroU64::new(mask) {
            Some(mask) => Some(Self(mask)),
            None => None,
        }
    }

    /// The set of one.
    pub const fn only(page: PageSize) -> Self {
        Self(NonZeroU64::MIN).shifted(page)
    }

    const fn shifted(self, page: PageSize) -> Self {
        match NonZeroU64::new(self.0.get() << page.shift) {
            Some(mask) => Self(mask),
            None => self,
        }
    }

    /// The mask.
    pub const fn mask(self) -> u64 {
        self.0.get()
    }

    /// The smallest size in the set: what ends must be aligned to.
    pub const fn smallest(self) -> PageSize {
        // At most 63.
        #[allow(clippy::cast_possible_truncation)]
        PageSize { shift: self.0.trailing_zeros() as u8 }
    }

    /// The largest size in the set.
    pub const fn largest(self) -> PageSize {
        // At most 63.
        #[allow(clippy::cast_possible_truncation)]
        PageSize { shift: (63 - self.0.leading_zeros()) as u8 }
    }

    /// Returns `true` if the set has this size.
    pub const fn contains(self, page: PageSize) -> bool {
        self.0.get() & page.bytes() != 0
    }

    /// The sizes no larger than `limit`, or `None` when there are none.
    pub const fn up_to(self, limit: PageSize) -> Option<Self> {
        Self::from_mask(self.0.get() & (limit.bytes() | (limit.bytes() - 1)))
    }

    /// The largest size no larger than `limit`.
    pub fn largest_up_to(self, limit: PageSize) -> Option<PageSize> {
        self.up_to(limit).map(Self::largest)
    }

    /// The sizes both sets have.
    pub const fn intersection(self, other: Self) -> Option<Self> {
        Self::from_mask(self.0.get() & other.0.get())
    }

    /// The sizes, ascending.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = PageSize> {
        (0..64).filter_map(PageSize::from_shift).filter(move |page| self.contains(*page))
    }
}

impl fmt::Display for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, page) in self.iter().enumerate() {
            write!(f, "{}{page}", if n == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for PageSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What PHB4's firmware offers: 4K 64K 2M 1G.
    const PHB4: u64 = 0x4021_1000;
    /// PHB3's: 4K 64K 16M 256M.
    const PHB3: u64 = 0x1101_1000;

    fn largest(mask: u64, limit: PageSize) -> Option<PageSize> {
        PageSizes::from_mask(mask).and_then(|sizes| sizes.largest_up_to(limit))
    }

    #[test]
    fn the_largest_size_up_to_a_limit_skips_gaps_in_the_mask() {
        assert_eq!(largest(PHB4, PageSize::M16), Some(PageSize::M2));
        assert_eq!(largest(PHB4, PageSize::K64), Some(PageSize::K64));
        assert_eq!(largest(PHB3, PageSize::M2), Some(PageSize::K64));
        assert_eq!(largest(PageSize::K64.bytes(), PageSize::K4), None);
        assert_eq!(largest(u64::MAX, PageSize { shift: 63 }), Some(PageSize { shift: 63 }));
    }

    #[test]
    fn an_empty_mask_is_no_set() {
        assert_eq!(PageSizes::from_mask(0), None);
    }

    #[test]
    fn shifts_from_64_on_are_no_page() {
        for shift in [64, 76, 255, u32::MAX] {
            assert_eq!(PageSize::from_shift(shift), None);
        }
        assert_eq!(PageSize::from_bytes(0x3000), None);
        assert_eq!(PageSize::from_bytes(0), None);
    }

    #[test]
    fn rounding_up_stops_at_the_top() {
        assert_eq!(PageSize::K4.round_up(u64::MAX - 0xfff), Some(u64::MAX - 0xfff));
        assert_eq!(PageSize::K4.round_up(u64::MAX - 0xffe), None);
    }

    #[test]
    fn sizes_print_as_people_write_them() {
        assert_eq!(PageSizes::from_mask(PHB4).map(|sizes| sizes.to_string()).as_deref(), Some("4K 64K 2M 1G"));
        assert_eq!(PageSizes::only(PageSize::M16).to_string(), "16M");
    }
}
