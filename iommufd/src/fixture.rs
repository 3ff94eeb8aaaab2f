//! Address spaces and devices behind a scripted door, for the unit tests of this crate.

use std::sync::Arc;

use dmaspace_abi::iommufd::{self, HwInfo, HwptAlloc, IoasAlloc};
use dmaspace_core::contract::AttachPoint;
use dmaspace_core::door::{Errno, Handle, HandleKind, Lease, OwnedHandle};
use dmaspace_core::{Backend, HostMemory};
use dmaspace_soft::{Reply, ScriptedDoor};
use zerocopy::FromBytes;

use crate::Ioas;

/// The right to attach devices to an address space that no space uses.
#[expect(unsafe_code, reason = "UNSAFETY: no device is behind a scripted door")]
pub(crate) fn point(ioas: &Ioas) -> AttachPoint<'static> {
    // SAFETY: no space uses the address space.
    unsafe { AttachPoint::beside_spaces(ioas.attach_place()) }
}

/// A lease of memory without bytes.
pub(crate) fn lease(memory: &HostMemory) -> Lease<'_> {
    Lease::of_unbacked(memory).expect("there is no memory behind it")
}

/// The names of requests.
pub(crate) mod names {
    pub(crate) const BIND: &str = "VFIO_DEVICE_BIND_IOMMUFD";
    pub(crate) const ATTACH: &str = "VFIO_DEVICE_ATTACH_IOMMUFD_PT";
    pub(crate) const DETACH: &str = "VFIO_DEVICE_DETACH_IOMMUFD_PT";
    pub(crate) const HW_INFO: &str = "IOMMU_GET_HW_INFO";
    pub(crate) const HWPT_ALLOC: &str = "IOMMU_HWPT_ALLOC";
    pub(crate) const SET: &str = "IOMMU_HWPT_SET_DIRTY_TRACKING";
    pub(crate) const GET: &str = "IOMMU_HWPT_GET_DIRTY_BITMAP";
    pub(crate) const DESTROY: &str = "IOMMU_DESTROY";
}

/// An address space with the id 7 behind a door with these replies.
pub(crate) fn ioas(script: &[Reply]) -> (Arc<ScriptedDoor>, Ioas) {
    let script: Vec<Reply> = [seventh as Reply].iter().chain(script).copied().collect();
    let door = ScriptedDoor::new(&script);
    let ioas = Ioas::new(iommufd(&door)).expect("made");
    assert_eq!(door.names(), ["IOMMU_IOAS_ALLOC"]);
    (door, ioas)
}

pub(crate) const IOMMUFD: Handle = Handle::new(1, HandleKind::Iommufd);

/// The open iommufd of the tests.
pub(crate) fn iommufd(door: &Arc<ScriptedDoor>) -> OwnedHandle {
    door.own(IOMMUFD).expect("the door is not real")
}

/// An open device.
pub(crate) fn device(door: &Arc<ScriptedDoor>, id: u64) -> OwnedHandle {
    door.own(Handle::new(id, HandleKind::Device)).expect("the door is not real")
}

/// Address space 7 is created.
pub(crate) fn seventh(bytes: &mut [u8]) -> Result<i32, Errno> {
    IoasAlloc::mut_from_bytes(bytes).expect("room for the struct").out_ioas_id = 7;
    Ok(0)
}

/// The call succeeds.
pub(crate) fn done(_: &mut [u8]) -> Result<i32, Errno> {
    Ok(0)
}

/// The IOMMU in front of the device can log.
pub(crate) fn logs(bytes: &mut [u8]) -> Result<i32, Errno> {
    HwInfo::mut_from_bytes(bytes).expect("room for the struct").out_capabilities = iommufd::CAP_DIRTY_TRACKING;
    Ok(0)
}

/// Page table 9 is allocated.
pub(crate) fn ninth(bytes: &mut [u8]) -> Result<i32, Errno> {
    HwptAlloc::mut_from_bytes(bytes).expect("room for the struct").out_hwpt_id = 9;
    Ok(0)
}

/// Page table 10 is allocated.
pub(crate) fn tenth(bytes: &mut [u8]) -> Result<i32, Errno> {
    HwptAlloc::mut_from_bytes(bytes).expect("room for the struct").out_hwpt_id = 10;
    Ok(0)
}
