//! Containers of version 1: one window with 4 KiB pages, which exists while a group is in the container.
//!
//! There is no registration: the kernel pins a page when an entry maps it, and charges nothing for that. It charges the
//! whole window when the container is *enabled*, however little is mapped later, and the window's table when the first
//! map or unmap makes the table (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_enable,
//! tce_iommu_create_default_window). This backend does both when the first device is attached, so that a limit on
//! locked memory that is too low fails the attach, not a later map.
//!
//! A second group is refused with `EBUSY` (tce_iommu_attach_group). When the only group leaves, the kernel disables the
//! container.

use std::num::NonZeroU64;
use std::sync::OnceLock;

use dmaspace_abi::spapr::{self, TceInfo};
use dmaspace_core::backend::{Calls, EehCalls};
use dmaspace_core::contract::eeh::PeOperation;
use dmaspace_core::contract::{AttachPlace, Capabilities};
use dmaspace_core::door::{Command, Failure, Lease, OwnedHandle};
use dmaspace_core::retry::Undone;
use dmaspace_core::sync::{Mutex, Rank};
use dmaspace_core::words::locked::{Allowance, LockedMemory};
use dmaspace_core::{Access, Backend, IovaRange, PageSize, Window, Windows};
use zerocopy::IntoBytes;

use crate::tce::Table;
use crate::{capabilities, eeh, entries, info};

/// An sPAPR TCE v1 container.
///
/// Its lock is [`Rank::Backend`] in the order of all locks ([`dmaspace_core::sync`]).
#[derive(Debug)]
pub struct SpaprV1 {
    container: OwnedHandle,
    window: Mutex<OnlyWindow>,
    /// True if the kernel recovers PEs. Empty until the first look-up.
    eeh: OnceLock<bool>,
}

/// The state of the container's window.
#[derive(Clone, Copy, Debug)]
enum OnlyWindow {
    /// There is no device, so the window is not known.
    Unknown,
    /// The kernel offers the window, and has not enabled it.
    Offered(Window),
    /// The container is enabled and the table is there.
    InForce(Window),
}

impl SpaprV1 {
    /// Takes over `container`. The group that joins it selects the sPAPR v1 driver. The drop closes the container; the
    /// kernel keeps its mappings until the group has left.
    ///
    /// Enabling it binds the container to this process for good (linux: drivers/vfio/vfio_iommu_spapr_tce.c,
    /// tce_iommu_mm_set): after a fork, the child gets `EPERM`.
    pub fn new(container: OwnedHandle) -> Self {
        Self { container, window: Mutex::new(Rank::Backend, OnlyWindow::Unknown), eeh: OnceLock::new() }
    }

    fn read_window(&self) -> Result<Window, Failure> {
        let mut info = TceInfo { argsz: TceInfo::SIZE, ..TceInfo::default() };
        self.container.call(Command::with_bytes(spapr::TCE_GET_INFO, info.as_mut_bytes()))?;
        info::fixed_window(&info)
    }

    /// Enables the container and makes the table. After an error it is not enabled.
    fn put_into_force(&self, window: Window) -> Result<(), Failure> {
        let enabled = self.container.call(Command::bare(spapr::ENABLE));
        let made = enabled.and_then(|()| self.make_table(window));
        made.inspect_err(|_| {
            // A call that failed may have done its work all the same, and disabling a container that is not enabled
            // does nothing (linux: tce_iommu_disable). If this fails, too, the attach fails: the group leaves, and the
            // kernel disables the container then.
            let _ = self.container.call(Command::bare(spapr::DISABLE));
        })
    }

    /// Clears an entry of the empty window, for which the kernel makes the table.
    fn make_table(&self, window: Window) -> Result<(), Failure> {
        match IovaRange::with_len(window.range.first(), window.granule().bytes()) {
            Ok(page) => entries::clear(&self.container, page),
            Err(error) => {
                debug_assert!(false, "the window {} has no first page: {error}", window.range);
                Ok(())
            }
        }
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: reports the kernel's answers")]
// SAFETY: each verb is one call of the kernel's, whose answer is returned as it is; a container forgets its mappings
// with its last group (linux: drivers/vfio/container.c, __vfio_group_unset_container).
unsafe impl Backend for SpaprV1 {
    fn name(&self) -> &'static str {
        "spapr-v1"
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(&**self.container.door())
    }

    /// Charged to the process (linux: drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_enable, tce_iommu_create_table).
    fn allowance(&self) -> Option<Allowance> {
        self.container.door().locked_memory().map(LockedMemory::of_process)
    }

    /// The window's bytes and the table's charge on a powernv host. A pseries host charges half as much for the table;
    /// the container does not report the kind of host.
    fn locked_at_start(&self) -> u64 {
        let (OnlyWindow::Offered(window) | OnlyWindow::InForce(window)) = *self.window.lock() else { return 0 };
        let len = window.range.len().map_or(u64::MAX, NonZeroU64::get);
        let table = Table::new(len, PageSize::K4, self.container.door().host_page(), 1);
        len.saturating_add(table.charge_of_one_level())
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

    /// Returns the window. The first device enables the container.
    fn refresh(&self, devices: usize) -> Result<Windows, Failure> {
        let mut known = self.window.lock();
        if devices == 0 {
            *known = OnlyWindow::Unknown;
            return Ok(Windows::default());
        }
        let window = match *known {
            OnlyWindow::InForce(window) => window,
            OnlyWindow::Unknown | OnlyWindow::Offered(_) => {
                let window = self.read_window()?;
                *known = OnlyWindow::Offered(window);
                self.put_into_force(window)?;
                *known = OnlyWindow::InForce(window);
                window
            }
        };
        let windows = Windows::new(vec![window]);
        debug_assert!(windows.is_ok(), "one window overlaps none: {windows:?}");
        Ok(windows.unwrap_or_default())
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
        calls.eeh = Some(self);
        calls
    }
}

impl EehCalls for SpaprV1 {
    fn is_available(&self) -> bool {
        *self.eeh.get_or_init(|| eeh::is_available(&self.container))
    }

    fn operate(&self, operation: PeOperation) -> Result<i32, Failure> {
        eeh::operate(&self.container, operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::lease;
    use dmaspace_abi::vfio::{MapDma, UnmapDma};
    use dmaspace_core::HostAddress;
    use dmaspace_core::HostMemory;
    use dmaspace_core::Iova;
    use dmaspace_core::door::{self, Errno};
    use dmaspace_soft::{Reply, ScriptedDoor};
    use std::sync::Arc;
    use zerocopy::FromBytes;

    const INFO: &str = "VFIO_IOMMU_SPAPR_TCE_GET_INFO";
    const ENABLE: &str = "VFIO_IOMMU_ENABLE";
    const DISABLE: &str = "VFIO_IOMMU_DISABLE";
    const MAP: &str = "VFIO_IOMMU_MAP_DMA";
    const UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

    const GIB: u64 = 1 << 30;

    /// A host whose window is 1 GiB long and begins at 2 GiB.
    fn window_at_2g(bytes: &mut [u8]) -> Result<i32, Errno> {
        let info = TceInfo::mut_from_bytes(bytes).expect("room for the struct");
        (info.dma32_window_start, info.dma32_window_size) = (0x8000_0000, 0x4000_0000);
        Ok(0)
    }

    fn done(_: &mut [u8]) -> Result<i32, Errno> {
        Ok(0)
    }

    fn no_memory(_: &mut [u8]) -> Result<i32, Errno> {
        Err(Errno::ENOMEM)
    }

    fn container(script: &[Reply]) -> (Arc<ScriptedDoor>, SpaprV1) {
        let door = ScriptedDoor::new(script);
        let spapr = SpaprV1::new(crate::fixture::container(&door));
        (door, spapr)
    }

    fn range(first: u64, len: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(first), len).expect("a range of the test")
    }

    fn window() -> Windows {
        Windows::new(vec![Window::new(range(2 * GIB, GIB), dmaspace_core::PageSizes::only(PageSize::K4))])
            .expect("one window overlaps nothing")
    }

    #[test]
    fn the_first_device_enables_the_container_and_brings_the_window_and_its_table() {
        let (door, spapr) = container(&[window_at_2g]);
        assert_eq!(spapr.refresh(0), Ok(Windows::default()));
        assert_eq!(spapr.locked_at_start(), 0);
        assert_eq!(spapr.refresh(1), Ok(window()));
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [INFO, ENABLE, UNMAP]);
        let unmap = UnmapDma { argsz: 24, flags: 0, iova: 2 * GIB, size: 0x1000 };
        assert_eq!(calls[2].bytes, unmap.as_bytes());
        // 2^18 entries, and the same again for the addresses in the process.
        assert_eq!(spapr.locked_at_start(), GIB + 2 * (2 << 20));
    }

    #[test]
    fn it_is_enabled_once_for_as_long_as_there_is_a_device() {
        let (door, spapr) = container(&[window_at_2g, done, done, window_at_2g]);
        spapr.refresh(1).expect("a host as it is");
        door.take();
        assert_eq!(spapr.refresh(1), Ok(window()));
        assert_eq!(door.names(), [""; 0]);
        assert_eq!(spapr.refresh(0), Ok(Windows::default()));
        assert_eq!(spapr.refresh(1), Ok(window()));
        assert_eq!(door.names(), [INFO, ENABLE, UNMAP]);
    }

    #[test]
    fn a_container_that_could_not_be_enabled_is_disabled_and_can_be_tried_again() {
        for (script, calls) in [
            (&[window_at_2g as Reply, no_memory][..], &[INFO, ENABLE, DISABLE][..]),
            (&[window_at_2g, done, no_memory], &[INFO, ENABLE, UNMAP, DISABLE]),
        ] {
            let again: &[Reply] = &[done, window_at_2g];
            let (door, spapr) = container(&[script, again].concat());
            assert_eq!(spapr.refresh(1).map_err(|failure| failure.errno()), Err(Some(Errno::ENOMEM)));
            assert_eq!(door.names(), calls);
            assert_eq!(spapr.locked_at_start(), GIB + 2 * (2 << 20), "what was wanted");
            assert_eq!(spapr.refresh(1), Ok(window()));
        }
    }

    #[test]
    fn a_host_without_a_window_is_not_enabled() {
        let (door, spapr) = container(&[done]);
        let failure = spapr.refresh(1).expect_err("it has no bytes");
        assert_eq!(failure.answer(), door::Answer::Malformed("its window has no bytes, or 4 GiB of them"));
        assert_eq!(door.names(), [INFO]);
    }

    #[test]
    fn entries_are_written_and_cleared_as_in_version_2() {
        let (door, spapr) = container(&[window_at_2g]);
        spapr.refresh(1).expect("a host as it is");
        door.take();
        let memory = HostMemory::unbacked(HostAddress::new(0x7000_0000), NonZeroU64::new(0x2000).expect("not zero"))
            .expect("no wrap");
        spapr.map(range(2 * GIB, 0x2000), &lease(&memory), Access::READ).expect("done");
        assert_eq!(spapr.unmap(range(2 * GIB, 0x2000)), Ok(Undone::Done(None)));
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [MAP, UNMAP]);
        let map = MapDma { argsz: 32, flags: 1, vaddr: 0, iova: 2 * GIB, size: 0x2000 };
        assert_eq!((calls[0].bytes.as_slice(), calls[0].attached.as_slice()), (map.as_bytes(), &[8][..]));
    }

    #[test]
    fn it_creates_no_windows_and_registers_nothing() {
        let (_, spapr) = container(&[]);
        assert!(spapr.calls().windows.is_none() && spapr.calls().registration.is_none());
        assert!(!spapr.capabilities().maps_device_memory && !spapr.capabilities().maps_host_read_only);
    }

    #[test]
    fn dropping_it_closes_the_container_and_nothing_else() {
        let (door, spapr) = container(&[]);
        drop(spapr);
        assert_eq!(door.names(), ["close"]);
    }
}
