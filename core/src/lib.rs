//! The words and the contract of dmaspace: DMA windows for passed-through PCI devices. This crate makes no system call
//! but one that asks for the type of a file; the doors and backends of other crates do. Every other crate of the
//! project depends on it.
//!
//! A PCI host bridge gives its devices an address space of their own, made of *windows*. A host's IOMMU offers windows
//! too. The task is to keep the windows of the host in step with the windows that the guest sees:
//!
//! ```text
//!  the guest's view of the bus                        the host's windows
//!  Section ──► Listener ──► plan ──► apply ──► PciAddressSpace ──► Backend ──► Door ──► Linux, or the soft host
//! ```
//!
//! A guest with 1 GiB of RAM, on a host in software; on a real host only the door differs:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use dmaspace_core::door::{HandleKind, OwnedHandle};
//! use dmaspace_listener::Update;
//! use dmaspace_core::{Access, HostAddress, HostMemory, Iova, PciAddressSpace, Space};
//! use dmaspace_listener::{FrontEnd, Listener, Section};
//! use dmaspace_iommufd::{Cdev, Ioas};
//! use dmaspace_soft::{Profile, SoftHost};
//!
//! // A space, and a device in it.
//! let host = SoftHost::new(Profile::vtd())?;
//! let iommufd = OwnedHandle::open(host.clone(), "/dev/iommu".as_ref(), HandleKind::Iommufd)?;
//! let space: Arc<dyn PciAddressSpace> = Arc::new(Space::new(Ioas::new(iommufd)?)?);
//! let node = OwnedHandle::open(host.clone(), "/dev/vfio/devices/vfio0".as_ref(), HandleKind::Device)?;
//! space.attach(Arc::new(Cdev::new(node, "0000:00:03.0")))?;
//!
//! // The guest's view of the bus: all of it is put into force, or nothing.
//! let mut listener = Listener::new(FrontEnd::pc());
//! listener.attach(space.clone())?;
//! let memory = HostMemory::unbacked(HostAddress::new(0x7f00_0000_0000), (1 << 30).try_into()?).ok_or("it wraps")?;
//! let ram = Section::ram("pc.ram", Iova::new(0), memory, Access::READ_WRITE)?;
//! let report = listener.commit(Update::new().adding(ram))?;
//! assert_eq!(report.spaces[0].sections[0].to_string(), "0x0..=0x3fffffff (pc.ram): mapped: read-write with 4K pages");
//! assert!(space.lookup(Iova::new(0x12_3456)).is_some());
//!
//! // Dropping the space releases everything.
//! drop((listener, space));
//! assert!(host.ledger().is_clear());
//! # Ok(())
//! # }
//! ```
//!
//! # Modules, in reading order
//! | module | contents |
//! |---|---|
//! | [`words`] | addresses, pages, host memory, access, windows, reserved ranges, locked memory |
//! | [`error`] | the operation that failed, its subject, the kind of error, the failed call, advice |
//! | [`contract`] | [`PciAddressSpace`], its powers, and the devices that can be attached |
//! | [`backend`] | the calls that a backend implements |
//! | [`space`] | [`Space`], which keeps the contract for any backend |
//! | [`door`] | the one place through which kernel calls go |
//! | [`retry`], [`sync`] | retries for calls that undo something; locks with one order |
//!
//! # Glossary
//! | word | meaning |
//! |---|---|
//! | access | the rights of a device to memory: to read it, to write it |
//! | accounting mode | the account that locked memory is charged to: the process, or its user |
//! | attach, detach | connect a device (or a VFIO group) to a space, and disconnect it |
//! | attach point | the right to attach a device at a place; only a space makes one |
//! | backend | the calls of one kind of host: type1, sPAPR, iommufd, or another crate's |
//! | bind | give a device to an iommufd, before it is attached |
//! | door | the place through which kernel calls go: Linux, or the soft host |
//! | fence | a range whose state in the kernel is unknown after a failure; it is unusable, and its memory is kept |
//! | granule | the smallest page size of a window; mappings are aligned to it |
//! | in-kernel TCE table | a window's table that KVM writes as the guest's hypercalls ask |
//! | lease | the right to map memory, which a space keeps until the mapping is gone; only a space makes one |
//! | live | mapped now |
//! | live update | replacing a VMM by another while devices stay attached: hand over, adopt |
//! | map, unmap | make memory reachable for devices at bus addresses, and unreachable |
//! | pin | keep pages in memory while devices may reach them; pinned pages count as locked |
//! | preregistration, register | pin and charge memory before it is mapped (sPAPR v2) |
//! | revoke | the kernel ends the access to a BAR that its device exported |
//! | share pins | pin a page once for all spaces of one iommufd |
//! | unit | the smallest part of a mapping that can be unmapped by itself |
//! | unplug unit | memory that its owner unmaps together |
//! | window | a range of bus addresses in which memory can be mapped |

pub mod words;

pub mod error;

pub mod contract;

pub mod backend;
pub mod space;

pub mod door;
pub mod retry;
mod soundness;
pub mod sync;

pub use backend::Backend;
pub use contract::PciAddressSpace;
pub use error::Error;
pub use space::Space;
pub use words::access::Access;
pub use words::address::{HostAddress, Iova, IovaRange, SystemAddress, SystemRange};
pub use words::memory::{HostMemory, MemoryFile};
pub use words::page::{PageSize, PageSizes};
pub use words::window::{Window, Windows};
