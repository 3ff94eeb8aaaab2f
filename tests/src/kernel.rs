//! A KVM in software, next to a soft host: it makes TCE tables, links groups, and answers hypercalls behind everybody's
//! back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_abi::vfio::{MAP_DMA, MAP_READ, MAP_WRITE, MapDma, UNMAP_DMA, UnmapDma};
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure, Handle, HandleKind, Kernel, Lease};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize};
use dmaspace_soft::SoftHost;
use dmaspace_spapr_guest::{InKernelTable, InKernelTables, Liobn, Tce};
use zerocopy::IntoBytes;

/// No soft host of a test opens more handles.
const HANDLES: u64 = 256;

/// The KVM of one virtual machine.
pub struct SoftKvm {
    soft: Arc<SoftHost>,
    ram: HostMemory,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tables: BTreeMap<Liobn, Table>,
    /// By the number of a group's handle.
    links: BTreeMap<u64, BTreeSet<Liobn>>,
    refuses: Option<&'static str>,
    answered: usize,
    left_before: u64,
}

struct Table {
    window: IovaRange,
    page: PageSize,
    entries: BTreeMap<u64, Tce>,
}

impl SoftKvm {
    /// For a guest with this memory, at 0.
    pub fn new(soft: &Arc<SoftHost>, ram: &HostMemory) -> Arc<Self> {
        Arc::new(Self { soft: soft.clone(), ram: ram.clone(), state: Mutex::default() })
    }

    /// The one that makes tables.
    pub fn tables(self: &Arc<Self>) -> Arc<dyn InKernelTables> {
        Arc::new(Shared(self.clone()))
    }

    /// From now on these calls fail: "create", "link", "unlink", or none.
    pub fn refuse(&self, call: Option<&'static str>) {
        self.state().refuses = call;
    }

    /// The number of tables, and of links.
    pub fn holds(&self) -> (usize, usize) {
        let state = self.state();
        (state.tables.len(), state.links.values().map(BTreeSet::len).sum())
    }

    /// The number of hypercalls it has answered.
    pub fn answered(&self) -> usize {
        self.state().answered
    }

    /// The number of groups that had left a container when KVM was last told to forget one.
    pub fn left_before(&self) -> u64 {
        self.state().left_before
    }

    /// H_PUT_TCE of the guest's: whether KVM answers it. One for a table that is linked to no group changes nothing for
    /// devices.
    pub fn put(&self, liobn: u64, ioba: u64, tce: u64) -> bool {
        let mut state = self.state();
        let liobn = Liobn::new(u32::try_from(liobn).expect("a LIOBN"));
        let is_linked = state.links.values().any(|tables| tables.contains(&liobn));
        let Some(table) = state.tables.get_mut(&liobn) else { return false };
        assert!(table.window.contains(Iova::new(ioba)), "{ioba:#x}");
        let (page, tce) = (table.page, Tce::new(tce));
        table.entries.insert(table.window.offset_of(Iova::new(ioba)) >> page.shift(), tce);
        if is_linked {
            let made = (0..HANDLES).filter(|id| self.enter(Handle::new(*id, HandleKind::Container), ioba, page, tce));
            assert!(made.count() > 0, "no container has a window at {ioba:#x}");
        }
        state.answered += 1;
        true
    }

    fn enter(&self, container: Handle, iova: u64, page: PageSize, tce: Tce) -> bool {
        if tce.access().is_empty() {
            let mut unmap = UnmapDma { argsz: UnmapDma::SIZE, flags: 0, iova, size: page.bytes() };
            return self.soft.call(container, Command::with_bytes(UNMAP_DMA, unmap.as_mut_bytes())).is_ok();
        }
        let right = |access, flag| if tce.access().contains(access) { flag } else { 0 };
        let flags = right(Access::READ, MAP_READ) | right(Access::WRITE, MAP_WRITE);
        let mut map = MapDma { argsz: MapDma::SIZE, flags, vaddr: 0, iova, size: page.bytes() };
        let memory = self.ram.slice(tce.target(page).get(), page.bytes()).expect("inside the guest's memory");
        #[expect(unsafe_code, reason = "UNSAFETY: a KVM in software")]
        // SAFETY: a host in software holds the memory of its entries.
        let lease = unsafe { Lease::kept_by_caller(&memory) };
        let offset = std::mem::offset_of!(MapDma, vaddr);
        let mut address = [Attachment { offset, what: Attached::Memory(&lease) }];
        let command = Command::with_bytes(MAP_DMA, map.as_mut_bytes()).attaching(&mut address);
        self.soft.call(container, command).is_ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refused(&self, call: &'static str) -> Result<(), Failure> {
        if self.refuses == Some(call) { Err(Failure::from_errno(call, Errno::EINVAL)) } else { Ok(()) }
    }
}

impl fmt::Debug for SoftKvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SoftKvm")
    }
}

#[derive(Debug)]
struct Shared(Arc<SoftKvm>);

#[expect(unsafe_code, reason = "UNSAFETY: a KVM in software")]
// SAFETY: devices of a host in software reach no memory that is gone.
unsafe impl InKernelTables for Shared {
    fn create(&self, liobn: Liobn, window: IovaRange, page: PageSize) -> Result<Arc<dyn InKernelTable>, Failure> {
        let mut state = self.0.state();
        state.refused("create")?;
        let old = state.tables.insert(liobn, Table { window, page, entries: BTreeMap::new() });
        assert!(old.is_none(), "there is a table with LIOBN {liobn}");
        Ok(Arc::new(SoftTable { kvm: self.0.clone(), liobn }))
    }
}

/// A table, until it is dropped.
#[derive(Debug)]
struct SoftTable {
    kvm: Arc<SoftKvm>,
    liobn: Liobn,
}

#[expect(unsafe_code, reason = "UNSAFETY: a KVM in software")]
// SAFETY: as above.
unsafe impl InKernelTable for SoftTable {
    fn entry(&self, index: u64) -> Tce {
        let state = self.kvm.state();
        state.tables.get(&self.liobn).and_then(|table| table.entries.get(&index)).copied().unwrap_or(Tce::NONE)
    }

    fn next_entry(&self, from: u64, last: u64) -> Option<(u64, Tce)> {
        let state = self.kvm.state();
        let mut entries = state.tables.get(&self.liobn)?.entries.range(from..=last);
        entries.find(|(_, tce)| **tce != Tce::NONE).map(|(index, tce)| (*index, *tce))
    }

    fn link(&self, group: Handle) -> Result<(), Failure> {
        let mut state = self.kvm.state();
        state.refused("link")?;
        state.links.entry(group.id()).or_default().insert(self.liobn);
        Ok(())
    }

    fn unlink(&self, group: Handle) -> Result<(), Failure> {
        let mut state = self.kvm.state();
        state.refused("unlink")?;
        state.links.remove(&group.id());
        state.left_before = self.kvm.soft.calls().of("VFIO_GROUP_UNSET_CONTAINER");
        Ok(())
    }
}

impl Drop for SoftTable {
    fn drop(&mut self) {
        let mut state = self.kvm.state();
        state.tables.remove(&self.liobn);
        state.links.retain(|_, tables| {
            tables.remove(&self.liobn);
            !tables.is_empty()
        });
    }
}
