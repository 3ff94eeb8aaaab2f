//! KVM's VFIO device, by which a virtual machine knows its groups and devices.
//!
//! A PC's KVM needs it to get two things right: whether the guest may turn caching off, since a device's DMA may bypass
//! the cache (linux: virt/kvm/vfio.c, kvm_vfio_update_coherency), and the drivers that translate guest addresses
//! themselves.
//!
//! On POWER it links groups to in-kernel TCE tables, and KVM answers the hypercalls on these tables itself. A group is
//! added only together with a table, so [`KvmVfio`] is no registry of groups there ([`crate::registry`]); it creates
//! tables ([`InKernelTables`](dmaspace_spapr_guest::InKernelTables)).

#[cfg(any(target_arch = "powerpc64", test))]
#[cfg_attr(not(target_arch = "powerpc64"), expect(dead_code, reason = "only its numbers are checked here"))]
mod abi;
#[cfg(any(target_arch = "powerpc64", test))]
mod links;
#[cfg(target_arch = "powerpc64")]
mod power;

#[cfg(target_arch = "powerpc64")]
pub use power::KvmVfio;

cfg_if::cfg_if! {
    if #[cfg(target_arch = "x86_64")] {
        use std::os::fd::AsRawFd;
        use std::sync::Arc;

        use dmaspace_core::door::{Door as _, Errno, Handle};
        use kvm_bindings::{
            KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_create_device, kvm_device_attr,
            kvm_device_type_KVM_DEV_TYPE_VFIO,
        };
        use kvm_ioctls::{DeviceFd, VmFd};

        use crate::linux::LinuxDoor;
        use crate::registry::Registry;

        /// KVM's VFIO device of one virtual machine.
        #[derive(Debug)]
        pub struct KvmVfio {
            door: Arc<LinuxDoor>,
            device: DeviceFd,
        }

        impl KvmVfio {
            /// Makes the VFIO device of `vm`, for handles of `door`.
            ///
            /// # Errors
            /// KVM's errno: `EBUSY` when the machine has a VFIO device already, which the VMM must pass to
            /// [`KvmVfio::with_device`].
            pub fn new(door: Arc<LinuxDoor>, vm: &VmFd) -> Result<Self, Errno> {
                let mut request = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
                let device = vm.create_device(&mut request).map_err(errno)?;
                Ok(Self::with_device(door, device))
            }

            /// Uses the VFIO device that a VMM made itself.
            pub fn with_device(door: Arc<LinuxDoor>, device: DeviceFd) -> Self {
                Self { door, device }
            }

            /// The device, for other uses of the VMM.
            pub fn device(&self) -> &DeviceFd {
                &self.device
            }

            /// Sets an attribute whose value is the descriptor behind `handle`.
            fn set(&self, attribute: u32, handle: Handle) -> Result<(), Errno> {
                self.set_to(attribute, self.door.descriptor(handle)?.as_raw_fd())
            }

            fn set_to(&self, attribute: u32, descriptor: i32) -> Result<(), Errno> {
                let set = self.device.set_device_attr(&kvm_device_attr {
                    flags: 0,
                    group: KVM_DEV_VFIO_FILE,
                    attr: attribute.into(),
                    // Read during the call only.
                    addr: (&raw const descriptor).expose_provenance() as u64,
                });
                set.map_err(errno)
            }
        }

        impl Registry for KvmVfio {
            fn add(&self, handle: Handle) -> Result<(), Errno> {
                self.set(KVM_DEV_VFIO_FILE_ADD, handle)
            }

            fn remove(&self, handle: Handle) -> Result<(), Errno> {
                self.set(KVM_DEV_VFIO_FILE_DEL, handle)
            }
        }

        fn errno(error: kvm_ioctls::Error) -> Errno {
            Errno(error.errno())
        }
    }
}
