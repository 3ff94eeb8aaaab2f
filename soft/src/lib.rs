//! A host in software: what stands behind the [`Door`](dmaspace_core::door::Door) when there is no kernel, or none to
//! be trusted with a test.
//!
//! The backends run on it unmodified. It keeps what a kernel and an IOMMU keep (translations, windows, registrations,
//! charges), answers requests in three dialects with the quirks of the kernels that speak them, and lets devices do DMA
//! through the result. Every call is counted, and every call can be made to fail.
//!
//! ```
//! use dmaspace_core::door::{Door, HandleKind};
//! use dmaspace_soft::{Profile, SoftHost};
//!
//! let host = SoftHost::new(Profile::vtd())?;
//! let container = host.open("/dev/vfio/vfio".as_ref(), HandleKind::Container)?;
//! assert_eq!(host.ledger().containers, 1);
//! host.close(container)?;
//! assert!(host.ledger().is_clear());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The way through the crate: a [`Profile`] says what the host is; [`SoftHost`] is the door; behind it are the kernel's
//! files, the dialects and the engine. [`SoftDevice`] does DMA. [`FaultPlan`] spoils calls, [`Calls`] counts them,
//! [`Ledger`] says what is held.
//!
//! What is not there: dirty tracking of containers, interrupts, devices' registers, hand-made page tables, no-IOMMU
//! mode. Requests for them answer `ENOTTY` or `EINVAL`.

mod calls;
pub mod conformance;
mod device;
mod dialect;
mod engine;
mod facts;
mod fault;
mod host;
mod kernel;
mod ledger;
mod machine;
pub mod profile;

pub use calls::{Calls, Count};
pub use device::{DmaError, DmaFault, SoftDevice};
pub use fault::{FaultMode, FaultPlan};
pub use host::SoftHost;
pub use ledger::Ledger;
pub use profile::{BadProfile, Profile};
