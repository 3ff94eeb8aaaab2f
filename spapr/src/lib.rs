//! VFIO's sPAPR TCE containers, the IOMMUs of POWER hosts, as a [`Backend`].
//!
//! [`Spapr`], for version 2, and [`SpaprV1`] turn one request into one call on a container. The façade crate opens the
//! container, and a group joins it. Checking requests and remembering mappings is [`dmaspace_core`]'s.
//!
//! In version 2 nothing can be mapped at first. Memory is *registered*, which pins and charges it (`prereg`; the
//! kernel's word is preregistration). *Windows* are created, each a table of one page size (`windows`, with the
//! arithmetic in `tce`). Then entries are written, one for each page. The kernel keeps entries and no mappings: a map
//! over live entries replaces them, any page can be cleared, and only the first page of a map is checked against its
//! window (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_ioctl). The caller must have checked the other pages.
//!
//! When the last device leaves, the kernel forgets windows, registrations and entries, and [`Backend::refresh`] forgets
//! them too.
//!
//! Version 1 is for platforms that cannot create windows (`v1`): it has one window, and neither registration nor a
//! second group.
//!
//! This crate is the host's side. The guest's side, for VMMs that emulate a POWER machine, is the crate
//! `dmaspace-spapr-guest`.

mod eeh;
mod entries;
#[cfg(test)]
mod fixture;
mod info;
mod prereg;
mod tce;
mod v1;
mod windows;

use std::sync::OnceLock;

use dmaspace_core::backend::Calls;
use dmaspace_core::contract::{AttachPlace, Capabilities, LiveUpdateSupport, MappingModel};
use dmaspace_core::door::{Door, Failure, Lease, OwnedHandle};
use dmaspace_core::retry::Undone;
use dmaspace_core::sync::{Mutex, Rank};
use dmaspace_core::words::locked::{Allowance, LockedMemory};
use dmaspace_core::{Access, Backend, IovaRange, Windows};

pub use v1::SpaprV1;
use windows::Tables;

/// An sPAPR TCE v2 container.
///
/// Its lock is [`Rank::Backend`] in the order of all locks ([`dmaspace_core::sync`]).
#[derive(Debug)]
pub struct Spapr {
    container: OwnedHandle,
    /// `Some` while there are devices. Locked while a window is created or removed; maps and unmaps do not take the
    /// lock.
    tables: Mutex<Option<Tables>>,
    /// True if the kernel recovers PEs. Empty until the first look-up.
    eeh: OnceLock<bool>,
}

impl Spapr {
    /// Takes over `container`. The first group that joins it selects the sPAPR v2 driver. The drop closes the
    /// container; the kernel keeps its mappings until its last group has left.
    ///
    /// The first call that registers memory or touches a window binds the container to this process for good (linux:
    /// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_mm_set): after a fork, the child gets `EPERM`.
    pub fn new(container: OwnedHandle) -> Self {
        Self { container, tables: Mutex::new(Rank::Backend, None), eeh: OnceLock::new() }
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: reports the kernel's answers")]
// SAFETY: each verb is one call of the kernel's, whose answer is returned as it is; a container forgets its mappings
// with its last group (linux: drivers/vfio/container.c, __vfio_group_unset_container).
unsafe impl Backend for Spapr {
    fn name(&self) -> &'static str {
        "spapr"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(&**self.container.door())
    }

    /// Charged to the process: registered memory and the tables of windows (linux:
    /// arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc; drivers/vfio/vfio_iommu_spapr_tce.c,
    /// tce_iommu_create_table).
    fn allowance(&self) -> Option<Allowance> {
        self.container.door().locked_memory().map(LockedMemory::of_process)
    }

    fn is_real(&self) -> bool {
        self.container.door().is_real()
    }

    fn attach_place(&self) -> AttachPlace {
        AttachPlace::Container(self.container.handle())
    }

    fn forgets_with_the_last_device(&self) -> bool {
        true
    }

    /// Returns the windows that were created. The first device removes the default window before any call makes it
    /// real.
    fn refresh(&self, devices: usize) -> Result<Windows, Failure> {
        let mut tables = self.tables.lock();
        if devices == 0 {
            *tables = None;
            return Ok(Windows::default());
        }
        let known = match tables.take() {
            Some(known) => known,
            None => self.begin()?,
        };
        tables.insert(known).windows()
    }

    fn map(&self, range: IovaRange, memory: &Lease<'_>, access: Access) -> Result<(), Failure> {
        entries::write(&self.container, range, memory, access)
    }

    /// Returns no length: the kernel does not report it.
    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure> {
        entries::clear(&self.container, range).map(|()| Undone::Done(None))
    }

    fn calls(&self) -> Calls<'_> {
        let mut calls = Calls::default();
        calls.windows = Some(self);
        calls.registration = Some(self);
        calls.eeh = Some(self);
        calls
    }
}

/// A container belongs to the process that first maps or registers in it, for as long as it is open (linux:
/// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_mm_set).
const ONE_PROCESS: LiveUpdateSupport = LiveUpdateSupport::Never(
    "an sPAPR container belongs to one process for good; unplug its devices from the guest, and open them again in the \
     new process",
);

/// The capabilities of both versions. Memory is pinned for writing with any access (linux:
/// arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_do_alloc; drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_use_page),
/// and only memory that the kernel manages can be pinned.
fn capabilities(door: &dyn Door) -> Capabilities {
    let mut capabilities = Capabilities::new(MappingModel::PageEntries, door.host_page());
    capabilities.maps_host_read_only = false;
    capabilities.hands_over = ONE_PROCESS;
    capabilities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::lease;
    use dmaspace_abi::spapr::{self, DdwInfo, RegisterMemory, TceCreate, TceInfo, TceRemove};
    use dmaspace_abi::vfio::{MapDma, UnmapDma};
    use dmaspace_core::HostAddress;
    use dmaspace_core::HostMemory;
    use dmaspace_core::backend::{RegistrationCalls, WindowCalls};
    use dmaspace_core::contract::WindowRequest;
    use dmaspace_core::door::{self, Errno};
    use dmaspace_core::{Iova, PageSize};
    use dmaspace_soft::{Reply, ScriptedDoor};
    use std::num::NonZeroU64;
    use std::sync::Arc;
    use zerocopy::{FromBytes, IntoBytes};

    const INFO: &str = "VFIO_IOMMU_SPAPR_TCE_GET_INFO";
    const CREATE: &str = "VFIO_IOMMU_SPAPR_TCE_CREATE";
    const REMOVE: &str = "VFIO_IOMMU_SPAPR_TCE_REMOVE";

    /// A POWER9 host.
    fn powernv(bytes: &mut [u8]) -> Result<i32, Errno> {
        let info = TceInfo::mut_from_bytes(bytes).expect("room for the struct");
        info.flags = spapr::INFO_DDW;
        info.dma32_window_size = 0x8000_0000;
        info.ddw = DdwInfo { pgsizes: 0x4021_1000, max_dynamic_windows_supported: 2, levels: 5 };
        Ok(0)
    }

    fn granted_at_0(_: &mut [u8]) -> Result<i32, Errno> {
        Ok(0)
    }

    fn granted_at_top(bytes: &mut [u8]) -> Result<i32, Errno> {
        TceCreate::mut_from_bytes(bytes).expect("room for the struct").start_addr = 1 << 59;
        Ok(0)
    }

    fn granted_past_the_end(bytes: &mut [u8]) -> Result<i32, Errno> {
        TceCreate::mut_from_bytes(bytes).expect("room for the struct").start_addr = u64::MAX - 0xffff;
        Ok(0)
    }

    fn done(_: &mut [u8]) -> Result<i32, Errno> {
        Ok(0)
    }

    fn no_memory(_: &mut [u8]) -> Result<i32, Errno> {
        Err(Errno::ENOMEM)
    }

    /// A container with this script, and one that has a device already.
    fn container(script: &[Reply]) -> (Arc<ScriptedDoor>, Spapr) {
        let door = ScriptedDoor::new(script);
        let spapr = Spapr::new(crate::fixture::container(&door));
        (door, spapr)
    }

    fn started(script: &[Reply]) -> (Arc<ScriptedDoor>, Spapr) {
        let script: Vec<Reply> = [powernv as Reply, done].iter().chain(script).copied().collect();
        let (door, spapr) = container(&script);
        spapr.refresh(1).expect("a host as it is");
        door.take();
        (door, spapr)
    }

    fn range(first: u64, len: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(first), len).expect("a range of the test")
    }

    fn low_window() -> WindowRequest {
        WindowRequest::new(range(0, 1 << 30), PageSize::K4)
    }

    fn memory() -> HostMemory {
        HostMemory::unbacked(HostAddress::new(0x7000_0000), NonZeroU64::new(0x2_0000).expect("not zero"))
            .expect("no wrap")
    }

    #[test]
    fn the_first_device_removes_the_default_window_and_others_make_no_call() {
        let (door, spapr) = container(&[powernv]);
        assert_eq!(spapr.refresh(0), Ok(Windows::default()));
        assert_eq!(spapr.offer(), None);
        assert_eq!(spapr.refresh(1), Ok(Windows::default()));
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [INFO, REMOVE]);
        assert_eq!(TceRemove::read_from_bytes(&calls[1].bytes).expect("the struct").start_addr, 0);
        assert_eq!(spapr.offer().map(|offer| offer.slots), Some(2));
        assert_eq!(spapr.refresh(2), Ok(Windows::default()));
        assert_eq!(door.names(), [""; 0]);
    }

    #[test]
    fn a_first_refresh_that_failed_is_repeated() {
        let (door, spapr) = container(&[powernv, no_memory, powernv]);
        assert_eq!(spapr.refresh(1).map_err(|failure| failure.errno()), Err(Some(Errno::ENOMEM)));
        assert_eq!(spapr.offer(), None);
        assert_eq!(spapr.refresh(1), Ok(Windows::default()));
        assert_eq!(door.names(), [INFO, REMOVE, INFO, REMOVE]);
    }

    #[test]
    fn windows_last_until_the_last_device_leaves() {
        let (door, spapr) = started(&[granted_at_0, powernv]);
        let window = spapr.create(low_window()).expect("granted");
        assert_eq!(spapr.refresh(2).map(|windows| windows.iter().copied().collect()), Ok(vec![window]));
        assert_eq!(spapr.refresh(0), Ok(Windows::default()));
        assert_eq!(spapr.refresh(1), Ok(Windows::default()));
        assert_eq!(door.names(), [CREATE, INFO, REMOVE]);
    }

    #[test]
    fn a_window_is_removed_by_its_exact_start() {
        let (door, spapr) = started(&[granted_at_top]);
        let window = spapr.create(low_window()).expect("granted, if elsewhere");
        assert_eq!(window.range, range(1 << 59, 1 << 30));
        assert_eq!(spapr.remove(window), Ok(Undone::Done(())));
        let calls = door.take();
        let create = TceCreate::read_from_bytes(&calls[0].bytes).expect("the struct");
        assert_eq!((create.argsz, create.page_shift, create.window_size, create.levels), (40, 12, 1 << 30, 1));
        assert_eq!(TceRemove::read_from_bytes(&calls[1].bytes).expect("the struct").start_addr, 1 << 59);
        assert_eq!(spapr.refresh(1), Ok(Windows::default()));
    }

    #[test]
    fn a_block_that_could_not_be_allocated_is_tried_smaller() {
        let (door, spapr) = started(&[no_memory, granted_at_0]);
        assert!(spapr.create(low_window()).is_ok());
        let levels =
            door.take().into_iter().map(|call| TceCreate::read_from_bytes(&call.bytes).expect("the struct").levels);
        assert_eq!(levels.collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn impossible_grants_are_refused_and_not_remembered() {
        let (door, spapr) = started(&[granted_at_0, granted_at_0, granted_past_the_end]);
        let window = spapr.create(low_window()).expect("granted");
        assert_eq!(spapr.create(low_window()), Err(Failure::malformed(CREATE, "it overlaps another window")));
        assert_eq!(spapr.create(low_window()), Err(Failure::malformed(CREATE, "it ends past 2^64-1")));
        assert_eq!(spapr.refresh(1).map(|windows| windows.iter().copied().collect()), Ok(vec![window]));
        assert_eq!(door.names(), [CREATE, CREATE, CREATE]);
    }

    #[test]
    fn a_window_that_could_not_be_removed_is_still_there() {
        let (_, spapr) = started(&[granted_at_0, no_memory]);
        let window = spapr.create(low_window()).expect("granted");
        assert!(spapr.remove(window).is_err());
        assert_eq!(spapr.refresh(1).map(|windows| windows.iter().len()), Ok(1));
    }

    #[test]
    fn a_window_the_kernel_does_not_know_any_more_is_forgotten() {
        let no_such_window: Reply = |_| Err(Errno::EINVAL);
        let (_, spapr) = started(&[granted_at_0, no_such_window, granted_at_0]);
        let window = spapr.create(low_window()).expect("granted");
        assert_eq!(spapr.remove(window), Ok(Undone::WasNotThere));
        assert_eq!(spapr.refresh(1), Ok(Windows::default()));
        assert_eq!(spapr.create(low_window()), Ok(window));
    }

    #[test]
    fn tables_are_charged_as_the_platform_does() {
        let (_, spapr) = started(&[]);
        assert_eq!(spapr.table_bytes(low_window()), 4096 << 10);
        let (_, unknown) = container(&[]);
        assert_eq!(unknown.table_bytes(low_window()), 2048 << 10);
    }

    #[test]
    fn addresses_are_attached_and_their_fields_left_zero() {
        let (door, spapr) = started(&[]);
        spapr.map(range(0x1000, 0x2_0000), &lease(&memory()), Access::WRITE).expect("done");
        spapr.register(&lease(&memory())).expect("done");
        assert_eq!(spapr.unregister(&lease(&memory())), Ok(Undone::Done(())));
        assert_eq!(spapr.unmap(range(0x1000, 0x2_0000)), Ok(Undone::Done(None)));
        let calls = door.take();
        let map = MapDma { argsz: 32, flags: 2, vaddr: 0, iova: 0x1000, size: 0x2_0000 };
        assert_eq!((calls[0].bytes.as_slice(), calls[0].attached.as_slice()), (map.as_bytes(), &[8][..]));
        let span = RegisterMemory { argsz: 24, flags: 0, vaddr: 0, size: 0x2_0000 };
        assert_eq!((calls[1].bytes.as_slice(), calls[1].attached.as_slice()), (span.as_bytes(), &[8][..]));
        assert_eq!((calls[2].bytes.as_slice(), calls[2].attached.as_slice()), (span.as_bytes(), &[8][..]));
        let unmap = UnmapDma { argsz: 24, flags: 0, iova: 0x1000, size: 0x2_0000 };
        assert_eq!((calls[3].bytes.as_slice(), calls[3].attached.len()), (unmap.as_bytes(), 0));
    }

    #[test]
    fn positive_results_are_refusals() {
        let one: Reply = |_| Ok(1);
        let pages: Reply = |_| Ok(128);
        let (_, spapr) = started(&[one, one, pages]);
        let answer = |result: Result<(), Failure>| result.expect_err("refused").answer();
        assert_eq!(answer(spapr.map(range(0, 0x2_0000), &lease(&memory()), Access::READ)), door::Answer::Positive(1));
        assert_eq!(answer(spapr.unmap(range(0, 0x2_0000)).map(drop)), door::Answer::Positive(1));
        assert_eq!(answer(spapr.register(&lease(&memory()))), door::Answer::Positive(128));
    }

    #[test]
    fn dropping_it_closes_the_container_and_nothing_else() {
        let (door, spapr) = container(&[]);
        drop(spapr);
        assert_eq!(door.names(), ["close"]);
    }
}
