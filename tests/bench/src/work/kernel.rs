//! Windows that a kernel fills: the searches of its table.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dmaspace_core::door::{Failure, Handle};
use dmaspace_core::{IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener, Update};
use dmaspace_spapr_guest::kernel_table::next_of;
use dmaspace_spapr_guest::{AnsweredBy, InKernelTable, InKernelTables, Layout, Liobn, PciHostBridge, Tce, TceTables};

use crate::host::{self, Kind};
use crate::measure::Work;

/// The size of the guest's memory.
const RAM: u64 = 1 << 20;
/// The page that the guest puts an entry for, and the entry.
const PUT: (usize, u64) = (1000, 0x5003);

/// A guest with a window of `entries` entries that a kernel fills, and one entry in it.
struct Guest {
    bridge: PciHostBridge,
    listener: Listener,
    kernel: Arc<Kernel>,
    /// The size of the window as a power of two.
    shift: u32,
}

/// A kernel with the memory of one table, which it uses again.
#[derive(Debug)]
struct Kernel {
    entries: Vec<AtomicU64>,
    liobn: Liobn,
}

/// The kernel's table of one window, for as long as it exists. The default window's has no entries.
#[derive(Debug)]
struct Table {
    kernel: Option<Arc<Kernel>>,
}

#[derive(Debug)]
struct Tables(Arc<Kernel>);

#[expect(unsafe_code, reason = "UNSAFETY: a kernel for a host that does nothing")]
// SAFETY: no device reaches memory through a host that does nothing.
unsafe impl InKernelTables for Tables {
    fn create(&self, liobn: Liobn, _: IovaRange, _: PageSize) -> Result<Arc<dyn InKernelTable>, Failure> {
        Ok(Arc::new(Table { kernel: (liobn == self.0.liobn).then(|| self.0.clone()) }))
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: a kernel for a host that does nothing")]
// SAFETY: as above.
unsafe impl InKernelTable for Table {
    fn entry(&self, index: u64) -> Tce {
        self.next_entry(index, index).map_or(Tce::NONE, |(_, tce)| tce)
    }

    fn next_entry(&self, from: u64, last: u64) -> Option<(u64, Tce)> {
        next_of(&self.kernel.as_ref()?.entries, from, last)
    }

    fn link(&self, _: Handle) -> Result<(), Failure> {
        Ok(())
    }

    fn unlink(&self, _: Handle) -> Result<(), Failure> {
        Ok(())
    }
}

impl Guest {
    fn new(entries: u64) -> Self {
        let layout = Layout::pseries(0);
        let words = (0..entries).map(|_| AtomicU64::new(0)).collect();
        let kernel = Arc::new(Kernel { entries: words, liobn: layout.liobn(1) });
        let bridge = PciHostBridge::new(layout, Arc::new(TceTables::new())).expect("a proper layout");
        let mut bridge = bridge.with_kernel(Arc::new(Tables(kernel.clone())));
        let mut listener = Listener::new(FrontEnd::default());
        bridge.attach(&mut listener, host::served(Kind::Entries)).expect("nothing is refused");
        bridge.reset(&mut listener).expect("nothing is refused");
        let target = TargetMemory::new("ram", SystemAddress::new(0), host::ram(RAM)).expect("a range");
        listener.commit(Update::new().adding_target(target)).expect("nothing is refused");
        Self { bridge, listener, kernel, shift: 12 + entries.ilog2() }
    }

    fn write(&self, tce: u64) {
        let (place, _) = PUT;
        self.kernel.entries.get(place).expect("a large table").store(tce, Ordering::Relaxed);
    }

    fn create(&mut self) -> Liobn {
        let created = self.bridge.create_window(&mut self.listener, 12, self.shift);
        let (window, _) = created.expect("nothing is refused");
        assert_eq!(self.bridge.answered_by(window.liobn), Some(AnsweredBy::Kernel));
        window.liobn
    }
}

/// Creating a window, one entry of the guest's, and removing the window.
pub(crate) fn windows(entries: u64) -> Box<dyn Work> {
    let mut guest = Guest::new(entries);
    Box::new(move |n| {
        for _ in 0..n / entries {
            let liobn = guest.create();
            guest.write(PUT.1);
            guest.bridge.remove_window(&mut guest.listener, liobn).expect("it is there");
            guest.write(0);
        }
    })
}

/// Plugging and unplugging memory beside such a window with one entry.
pub(crate) fn plugs(entries: u64) -> Box<dyn Work> {
    let mut guest = Guest::new(entries);
    guest.create();
    guest.write(PUT.1);
    let memory = host::unit_of_ram(0x7f00_0000_0000, 1 << 30, 1);
    let dimm = TargetMemory::new("dimm", SystemAddress::new(1 << 30), memory).expect("a range");
    Box::new(move |n| {
        for _ in 0..n / entries {
            guest.listener.commit(Update::new().adding_target(dimm.clone())).expect("nothing is refused");
            guest.listener.commit(Update::new().removing_target(dimm.clone())).expect("nothing points to it");
        }
    })
}
