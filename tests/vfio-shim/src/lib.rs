//! A test vehicle, and no product: a library that is preloaded into a VMM and answers the calls that the VMM makes on
//! VFIO containers. The VMM believes that it speaks to the kernel's type1 or sPAPR driver; its mappings, registrations
//! and windows are those of a dmaspace [`Space`](dmaspace::Space), which makes the calls to the real container.
//!
//! ```text
//! LD_PRELOAD=/libdmaspace_vfio_shim.so qemu-system-x86_64 -device vfio-pci,host=00:03.0 …
//! ```
//!
//! Programs that were not compiled for this library become clients of it in this way, among them Debian's QEMU and the
//! kernel's own selftests.
//!
//! # Answered here
//! | calls on | answered by |
//! |---|---|
//! | a container: SET_IOMMU, MAP_DMA, UNMAP_DMA, GET_INFO, and sPAPR's calls for windows and registrations | a space |
//! | a group: SET_CONTAINER, UNSET_CONTAINER | a space |
//! | a container: CHECK_EXTENSION, sPAPR's GET_INFO, EEH_PE_OP | the kernel, on the VMM's own descriptor |
//! | groups else, devices, KVM | the kernel |
//!
//! A container is recognized by its device number at its first call (`door`), so the VMM opens it as ever. A group
//! joins when the VMM chooses a driver, because a space attaches a group in one step (`container`).
//!
//! # Environment
//! - `DMASPACE_SHIM_STATUS`: a file that always holds the present counts (`status`).
//! - `DMASPACE_SHIM_SWALLOW`: maps of at least so many bytes are answered with success and not made. A test that
//!   compares data must fail then.
//! - `DMASPACE_SHIM_KVM_TABLES=no`: KVM is said to lack in-kernel TCE tables for VFIO, so that each hypercall of a
//!   POWER guest becomes a call of the VMM.
//!
//! # Not answered
//! Dirty logs (`ENOTTY`), updates of addresses (`VFIO_UPDATE_VADDR` is said to be missing), `/dev/iommu`.

mod answers;
mod argument;
mod container;
mod door;
#[cfg(test)]
mod fixture;
mod settings;
mod spapr;
mod status;
mod table;
mod type1;
