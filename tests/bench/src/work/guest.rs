//! Entries of a translated window: through the handle, and through the guest's hypercalls.

use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener, Section, TranslatedWindow, Update};
use dmaspace_spapr_guest::{Liobn, Tce, TceTable, TceTables};

use crate::host::{self, HIGH, Kind};
use crate::measure::Work;

const PAGE: u64 = 0x1000;
/// The entries of the window: 64 GiB.
const ENTRIES: u64 = 1 << 24;
/// The guest's memory: two pages of it never continue each other in the rows for scattered entries.
const RAM: u64 = 1 << 30;
const LIOBN: Liobn = Liobn::new(0x8000_0000);
/// The list of H_PUT_TCE_INDIRECT.
const LIST: u64 = 0;
/// The right to read and to write, as a guest encodes it.
const READ_WRITE: u64 = 3;

/// A guest with one window on a host that answers at once.
struct Guest {
    listener: Listener,
    window: TranslatedWindow,
    tables: TceTables,
    ram: HostMemory,
}

fn at(n: u64) -> Iova {
    Iova::new(HIGH + n * PAGE)
}

/// The target of entry n: no two neighbours continue each other.
fn target(n: u64) -> SystemAddress {
    SystemAddress::new((n * 5 * PAGE) % RAM)
}

fn range(n: u64, count: u64) -> IovaRange {
    IovaRange::with_len(at(n), count * PAGE).expect("inside the window")
}

impl Guest {
    /// A guest whose tables have no entry and no host.
    fn new() -> Self {
        let memory = host::ram(RAM);
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(host::served(Kind::Entries)).expect("nothing is refused");
        let section = Section::translated("window", range(0, ENTRIES), PageSize::K4);
        let target = TargetMemory::new("ram", SystemAddress::new(0), memory.clone()).expect("a range");
        listener.commit(Update::new().adding(section).adding_target(target)).expect("nothing is refused");
        let window = listener.translated(at(0)).expect("the section is there");
        let tables = TceTables::new();
        let table = TceTable::new(at(0), PageSize::K4, ENTRIES).expect("a table");
        tables.add(LIOBN, table).expect("the first table");
        Self { listener, window, tables, ram: memory }
    }

    /// A guest with `live` entries, two pages apart, put through the handle.
    fn with_entries(live: u64) -> Self {
        let guest = Self::new();
        for n in 0..live {
            guest.put(2 * n);
        }
        guest
    }

    fn put(&self, n: u64) {
        self.window.put(at(n), target(n), Access::READ_WRITE).expect("the entry is free");
    }

    fn connected(live: u64) -> Self {
        let guest = Self::new();
        guest.tables.connect(LIOBN, guest.window.clone()).expect("an empty window");
        for n in 0..live {
            guest.put_tce(2 * n, target(n).get() | READ_WRITE);
        }
        guest
    }

    fn put_tce(&self, n: u64, tce: u64) {
        self.tables.h_put_tce(&self.ram, LIOBN, at(n), Tce::new(tce)).expect("a good call");
    }

    fn write_list(&self, targets: impl Fn(u64) -> SystemAddress) {
        for n in 0..512 {
            let tce = (targets(n).get() | READ_WRITE).to_be_bytes();
            self.ram.write(LIST + 8 * n, &tce).expect("inside");
        }
    }

    fn put_list(&self, n: u64) {
        let list = SystemAddress::new(LIST);
        self.tables.h_put_tce_indirect(&self.ram, LIOBN, at(n), list, 512).expect("a good call");
    }

    fn stuff(&self, n: u64, count: u64) {
        self.tables.h_stuff_tce(&self.ram, LIOBN, at(n), Tce::NONE, count).expect("a good call");
    }
}

/// Putting and clearing one entry through the handle, beside live entries.
pub(crate) fn puts(live: u64) -> Box<dyn Work> {
    let guest = Guest::with_entries(live);
    Box::new(move |n| {
        for k in 0..n {
            let free = 2 * (k * 7919 % live.max(1)) + 1;
            guest.put(free);
            assert_eq!(guest.window.clear(range(free, 1)), Ok(PAGE));
        }
    })
}

/// H_PUT_TCE, and H_PUT_TCE of nothing, beside live entries.
pub(crate) fn put_tces(live: u64) -> Box<dyn Work> {
    put_tces_of(Guest::connected(live), live)
}

/// H_PUT_TCE, and H_PUT_TCE of nothing, on a table without a host: the share of the guest's side.
pub(crate) fn put_tces_without_a_host() -> Box<dyn Work> {
    let guest = Guest::new();
    guest.put_tce(0, target(0).get() | READ_WRITE);
    put_tces_of(guest, 1)
}

fn put_tces_of(guest: Guest, live: u64) -> Box<dyn Work> {
    Box::new(move |n| {
        for k in 0..n {
            let free = 2 * (k * 7919 % live.max(1)) + 1;
            guest.put_tce(free, target(free).get() | READ_WRITE);
            guest.put_tce(free, 0);
        }
    })
}

/// H_PUT_TCE of the entry that is there.
pub(crate) fn same_tces() -> Box<dyn Work> {
    let guest = Guest::connected(1);
    Box::new(move |n| {
        for _ in 0..n {
            guest.put_tce(0, target(0).get() | READ_WRITE);
        }
    })
}

/// H_PUT_TCE_INDIRECT of 512 entries and H_STUFF_TCE of the same: for each entry.
pub(crate) fn lists(scattered: bool) -> Box<dyn Work> {
    let guest = Guest::connected(1);
    if scattered {
        guest.write_list(target);
    } else {
        guest.write_list(|n| SystemAddress::new(n * PAGE));
    }
    Box::new(move |n| {
        for _ in 0..n / 512 {
            guest.put_list(512);
            guest.stuff(512, 512);
        }
    })
}

/// Clearing a window with n scattered entries at once.
pub(crate) struct Clears(Guest);

impl Clears {
    pub(crate) fn work() -> Box<dyn Work> {
        Box::new(Self(Guest::new()))
    }
}

impl Work for Clears {
    fn prepare(&mut self, n: u64) {
        for entry in 0..n {
            self.0.put(2 * entry);
        }
    }

    fn repeat(&mut self, n: u64) {
        assert_eq!(self.0.window.clear(range(0, ENTRIES)), Ok(n * PAGE));
    }
}

/// Plugging and unplugging memory that no entry points to, beside live entries.
pub(crate) fn plugs(live: u64) -> Box<dyn Work> {
    let mut guest = Guest::with_entries(live);
    let memory = host::unit_of_ram(0x7f00_0000_0000, 1 << 30, 1);
    let dimm = TargetMemory::new("dimm", SystemAddress::new(RAM), memory).expect("a range");
    Box::new(move |n| {
        for _ in 0..n {
            guest.listener.commit(Update::new().adding_target(dimm.clone())).expect("nothing is refused");
            guest.listener.commit(Update::new().removing_target(dimm.clone())).expect("nothing points to it");
        }
    })
}

/// Target memory in `count` pieces, each an unplug unit of its own.
fn targets(count: u64) -> Vec<TargetMemory> {
    let piece = |n: u64| {
        let memory = host::unit_of_ram(0x1_0000_0000 + n * 0x10_0000, 0x10_0000, n + 1);
        TargetMemory::new("dimm", SystemAddress::new(n * 0x10_0000), memory).expect("a range")
    };
    (0..count).map(piece).collect()
}

/// A listener on POWER with `count` pieces of target memory.
pub(crate) fn power_listener(count: u64) -> Listener {
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(host::served(Kind::Entries)).expect("nothing is refused");
    let section = Section::translated("window", range(0, ENTRIES), PageSize::K4);
    let update = targets(count).into_iter().fold(Update::new().adding(section), Update::adding_target);
    listener.commit(update).expect("nothing is refused");
    listener
}
