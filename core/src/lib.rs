//! The words and the contract of dmaspace: DMA windows for passed-through PCI devices. No kernel in here, and no crate of this
//! project either: every other one leans on this, it leans on none.
//!
//! A PCI host bridge gives its devices an address space of their own, made of *windows*. A host's IOMMU offers windows too. The whole
//! job is to keep the windows the host offers in step with the windows the guest sees:
//!
//! ```text
//!  what the guest's bus looks like                    what the host offers
//!  Section ──► Listener ──► plan ──► apply ──► PciAddressSpace ──► Backend ──► Door ──► Linux, or the soft host
//! ```
//!
//! A guest with 1 GiB of RAM gets it in force on a host in software; on a real one, only the door differs:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use dmaspace_core::door::{HandleKind, OwnedHandle};
//! use dmaspace_listener::Update;
//! use dmaspace_core::{Access, HostMemory, Iova, PciAddressSpace, Space};
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
//! // What the guest's bus looks like: all of it happens, or nothing.
//! let mut listener = Listener::new(FrontEnd::pc());
//! listener.attach(space.clone())?;
//! let memory = HostMemory::unbacked(0x7f00_0000_0000, (1 << 30).try_into()?).ok_or("it wraps")?;
//! let ram = Section::ram("pc.ram", Iova::new(0), memory, Access::READ_WRITE)?;
//! let report = listener.commit(Update::new().adding(ram))?;
//! assert_eq!(report.spaces[0].sections[0].to_string(), "0x0..=0x3fffffff (pc.ram): mapped: read-write with 4K pages");
//! assert!(space.lookup(Iova::new(0x12_3456)).is_some());
//!
//! // Dropping it gives everything back.
//! drop((listener, space));
//! assert!(host.ledger().is_clear());
//! # Ok(())
//! # }
//! ```
//!
//! - [`address`], [`page`], [`access`], [`memory`], [`window`], [`reserved`], [`section`], [`bar`]: the words.
//! - [`contract`]: what a PCI address space promises, whatever is behind it; [`space`] keeps the promises for any [`backend`].
//! - [`listener`]: transactions of sections, planned purely, applied with a journal.
//! - [`filling`]: windows that the kernel fills by itself, as guests' hypercalls tell it to.
//! - [`dirty`]: what devices write, told to a VMM's own bitmap. [`eeh`]: devices that their host has isolated.
//! - [`handover`]: a VMM replaces itself while devices stay attached.
//! - `recording` (feature `serde`): what a listener is told, in a form that serde writes and reads.
//! - [`door`]: the one narrow place through which kernel calls go; [`asking`]: asking again what must not fail; [`runs`]: what a process
//!   has registered of its memory.
//! - [`error`]: what was asked, of which range, what was wrong, what the kernel said; [`locked`]: what did not fit into the limit on
//!   locked memory.

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
pub use words::address::{Iova, IovaRange, SystemAddress, SystemRange};
pub use words::memory::{HostMemory, MemoryFile};
pub use words::page::{PageSize, PageSizes};
pub use words::window::{Window, Windows};
