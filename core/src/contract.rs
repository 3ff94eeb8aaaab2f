//! The contract: the promises of a PCI address space with DMA windows, whatever host is behind it.
//!
//! The kernels disagree on the effect of a map over a live mapping, on whether part of a mapping can be unmapped, and
//! on which part of a range they check. [`PciAddressSpace`] gives one answer to each question. [`crate::Space`] keeps
//! it for every [`crate::Backend`], and one suite of tests (`dmaspace-conformance`) holds every backend to it.
//!
//! | To… | implement or use |
//! |---|---|
//! | give devices their DMA | use [`PciAddressSpace`], which only [`crate::Space`] implements |
//! | support another host | implement [`crate::Backend`], and make a [`crate::Space`] of it |
//! | attach another kind of device | implement [`Attachable`] |
//! | have a kernel write a window's entries | implement [`kernel_tables::KernelWriter`] |

mod attachable;
mod capabilities;
pub mod dirty;
pub mod eeh;
pub mod kernel_tables;
pub mod live_update;
mod mapping;
mod pin_sharing;
mod powers;
mod registration;
mod space;
mod windows;

pub use attachable::{AttachPlace, AttachPoint, Attachable, AttachedElsewhere, DeviceId, ObjectId};
pub use capabilities::{Capabilities, LiveUpdateSupport, MappingModel};
pub(crate) use mapping::BatchPart;
pub use mapping::{MapBatch, MapRequest, Mapping, Swap, Unit};
pub use pin_sharing::PinSharing;
// By glob: a new power is declared in its file alone.
pub use powers::*;
pub use registration::MemoryRegistration;
pub(crate) use space::sealed;
pub use space::{Description, Fence, ForListeners, PciAddressSpace};
pub use windows::{Snapshot, WindowChange, WindowControl, WindowOffer, WindowPlace, WindowRequest};
