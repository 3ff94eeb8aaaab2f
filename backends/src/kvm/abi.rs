//! The part of KVM's ABI that kvm-bindings does not have for POWER: numbers and structs (linux:
//! include/uapi/linux/kvm.h).
//!
//! Numbers are computed by libc, which knows that POWER has 13 bits for a size and other direction bits, and are
//! checked when this is compiled against literals of each architecture's headers.

use dmaspace_core::door::Request;

/// `KVMIO`.
const KVM: u32 = 0xae;

/// The number that libc computes. The kernel uses 32 bits of it.
#[allow(clippy::cast_possible_truncation)]
const fn request(number: libc::Ioctl, name: &'static str) -> Request {
    Request { number: number as u32, name }
}

/// Make a device, on a VM: [`CreateDevice`].
pub(super) const CREATE_DEVICE: Request = request(libc::_IOWR::<CreateDevice>(KVM, 0xe0), "KVM_CREATE_DEVICE");
/// Set an attribute, on a device: [`DeviceAttr`].
pub(super) const SET_DEVICE_ATTR: Request = request(libc::_IOW::<DeviceAttr>(KVM, 0xe1), "KVM_SET_DEVICE_ATTR");
/// Switch something on, on a VM: [`EnableCap`].
pub(super) const ENABLE_CAP: Request = request(libc::_IOW::<EnableCap>(KVM, 0xa3), "KVM_ENABLE_CAP");
/// Make a TCE table, on a VM: [`CreateSpaprTce64`]. The result is a descriptor.
pub(super) const CREATE_SPAPR_TCE_64: Request =
    request(libc::_IOW::<CreateSpaprTce64>(KVM, 0xa8), "KVM_CREATE_SPAPR_TCE_64");

/// The type of the VFIO device (linux: enum kvm_device_type).
pub(super) const DEV_TYPE_VFIO: u32 = 4;
/// The group of its attributes for files: VFIO groups, or devices with a node of their own.
pub(super) const DEV_VFIO_FILE: u32 = 1;
/// Add a file; the value is its descriptor.
pub(super) const DEV_VFIO_FILE_ADD: u64 = 1;
/// Forget a file; the value is its descriptor.
pub(super) const DEV_VFIO_FILE_DEL: u64 = 2;
/// Link a group and a TCE table; the value is a [`VfioSpaprTce`].
pub(super) const DEV_VFIO_GROUP_SET_SPAPR_TCE: u64 = 3;
/// Have KVM answer a hypercall, or not; the arguments are its token and 1 or 0.
pub(super) const CAP_PPC_ENABLE_HCALL: u32 = 104;

/// The argument of [`CREATE_DEVICE`], which writes the descriptor into it.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct CreateDevice {
    pub(super) kind: u32,
    pub(super) descriptor: i32,
    pub(super) flags: u32,
}

/// The argument of [`SET_DEVICE_ATTR`].
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct DeviceAttr {
    pub(super) flags: u32,
    pub(super) group: u32,
    pub(super) attribute: u64,
    /// The address of the value.
    pub(super) address: u64,
}

/// The value of [`DEV_VFIO_GROUP_SET_SPAPR_TCE`].
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct VfioSpaprTce {
    pub(super) group: i32,
    pub(super) table: i32,
}

/// The argument of [`ENABLE_CAP`].
#[repr(C)]
#[derive(Debug)]
pub(super) struct EnableCap {
    pub(super) capability: u32,
    pub(super) flags: u32,
    pub(super) arguments: [u64; 4],
    pub(super) padding: [u8; 64],
}

/// The argument of [`CREATE_SPAPR_TCE_64`]. Offset and size are in pages of the window.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct CreateSpaprTce64 {
    pub(super) liobn: u64,
    pub(super) page_shift: u32,
    pub(super) flags: u32,
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// Returns true if a request has the number of this architecture.
const fn is(request: Request, on_power: u32, on_x86_64: u32) -> bool {
    request.number == if cfg!(target_arch = "powerpc64") { on_power } else { on_x86_64 }
}

const _: () = {
    assert!(is(CREATE_DEVICE, 0xc00c_aee0, 0xc00c_aee0));
    assert!(is(SET_DEVICE_ATTR, 0x8018_aee1, 0x4018_aee1));
    assert!(is(ENABLE_CAP, 0x8068_aea3, 0x4068_aea3));
    assert!(is(CREATE_SPAPR_TCE_64, 0x8020_aea8, 0x4020_aea8));
    assert!(size_of::<VfioSpaprTce>() == 8);
};
