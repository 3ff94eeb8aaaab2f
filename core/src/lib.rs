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
//! - [`address`], [`page`], [`access`], [`memory`], [`window`], [`section`]: the words.
//! - [`contract`]: what a PCI address space promises, whatever is behind it; [`space`] keeps the promises for any [`backend`].
//! - [`listener`]: transactions of sections, planned purely, applied with a journal.
//! - [`door`]: the one narrow place through which kernel calls go.
//! - [`error`]: what was asked, of which range, what was wrong, what the kernel said.

pub mod access;
pub mod address;
pub mod backend;
pub mod contract;
pub mod door;
pub mod error;
pub mod listener;
pub mod memory;
pub mod page;
pub mod section;
pub mod space;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;
pub mod window;

pub use access::Access;
pub use address::{Iova, IovaRange, SystemAddress, SystemRange};
pub use backend::Backend;
pub use contract::PciAddressSpace;
pub use error::Error;
pub use listener::Listener;
pub use memory::HostMemory;
pub use page::{PageSize, PageSizes};
pub use section::{FrontEnd, Section};
pub use space::Space;
pub use window::{Window, Windows};
