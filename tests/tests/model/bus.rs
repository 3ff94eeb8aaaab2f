//! The places of sections: slots of one size, the lower ones from the bottom of the bus on, the upper ones elsewhere;
//! and the guest's memory behind them.

use dmaspace_core::{HostMemory, Iova, IovaRange, PageSize};
use dmaspace_tests::ram::Ram;

/// Slots of the lower bank, and of both.
pub(crate) const LOWER: u64 = 16;
pub(crate) const SLOTS: u64 = 24;

/// The largest shift of memory against the bus, in slots.
pub(crate) const SHIFTS: u64 = 4;

/// Memory of different kinds does not lie in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// This process itself may only read it.
    ReadOnly,
    /// Of pages of 64K.
    Huge,
    /// Another device's.
    Device,
}

const KINDS: u64 = 4;

/// The parameters of a bus.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bus {
    /// The size of a slot.
    pub(crate) unit: PageSize,
    pub(crate) upper: Upper,
}

/// The place of the upper slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upper {
    /// From here on.
    At(u64),
    /// Ending at 2^64-1.
    Top,
}

impl Bus {
    pub(crate) fn upper(self) -> u64 {
        match self.upper {
            Upper::At(first) => first,
            Upper::Top => 0u64.wrapping_sub((SLOTS - LOWER) * self.unit.bytes()),
        }
    }

    /// The first byte of a slot.
    pub(crate) fn first(self, slot: u64) -> u64 {
        let unit = self.unit.bytes();
        if slot < LOWER { slot * unit } else { self.upper() + (slot - LOWER) * unit }
    }

    /// The last byte of `len` slots from `slot`, or of their bank.
    pub(crate) fn last(self, slot: u64, len: u64) -> u64 {
        let end = if slot < LOWER { LOWER } else { SLOTS };
        self.first((slot + len - 1).min(end - 1)) + (self.unit.bytes() - 1)
    }

    /// An odd number of bytes, less than a slot; 0 is none.
    pub(crate) fn odd(self, choice: u8) -> u64 {
        let unit = self.unit.bytes();
        [0, 0x50, 0x800, unit / 2, unit / 4, 0x1000][usize::from(choice) % 6] % unit
    }

    /// The offset of the memory for a bus address in memory of a kind, unshifted: neighbours on the bus are neighbours
    /// there.
    pub(crate) fn offset(self, at: u64) -> u64 {
        if at >= self.upper() { LOWER * self.unit.bytes() + (at - self.upper()) } else { at }
    }
}

/// All of the guest's memory.
#[derive(Clone)]
pub(crate) struct GuestMemory {
    pub(crate) all: HostMemory,
}

impl GuestMemory {
    /// Enough for the largest slots.
    pub(crate) fn new() -> Self {
        let (page, len) = (PageSize::M2, KINDS * Self::len_of_a_kind(PageSize::M2));
        let ram = Ram::new((len + page.bytes()) as usize);
        let first = page.round_up(ram.all().address().get()).expect("not at the top");
        Self { all: ram.slice(first - ram.all().address().get(), len) }
    }

    fn len_of_a_kind(unit: PageSize) -> u64 {
        (SLOTS + SHIFTS + 1) * unit.bytes()
    }

    /// Memory of a kind, or nothing where there is not so much.
    pub(crate) fn memory(&self, unit: PageSize, kind: Kind, offset: u64, len: u64) -> Option<HostMemory> {
        let all = Self::len_of_a_kind(unit);
        let memory = self.all.slice(kind as u64 * all, all)?.slice(offset, len)?;
        Some(match kind {
            Kind::Plain => memory,
            Kind::ReadOnly => memory.host_read_only(),
            Kind::Huge => memory.backed_by(PageSize::K64),
            Kind::Device => memory.device_memory(),
        })
    }
}

pub(crate) fn range(first: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the world")
}
