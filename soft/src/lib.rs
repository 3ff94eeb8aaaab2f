//! A host in software: a [`Door`](dmaspace_core::door::Door) for tests, with no kernel behind it.
//!
//! The backends run on it unmodified. It keeps the state that a kernel and an IOMMU keep (translations, windows,
//! registrations, charges), answers requests in three dialects with the quirks of the kernels that speak them, and lets
//! devices do DMA through the result. Every call is counted, and every call can be made to fail.
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
//! A tour: a [`Profile`] describes a host; [`SoftHost`] is the door; behind it are the kernel's files, the dialects and
//! the engine. [`SoftDevice`] does DMA. [`FaultPlan`] injects faults into calls, [`CallCounts`] counts them, [`Ledger`]
//! counts the resources that are held.
//!
//! Beside it stands [`ScriptedDoor`], which only records calls and answers from a script.
//!
//! Devices have a few registers, interrupts, resets and, if a test wants it, migration ([`SoftDevice`]); no part of
//! them can be mapped. The host lacks nested page tables and the no-IOMMU mode. Requests for them answer `ENOTTY` or
//! `EINVAL`.

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
mod scripted;

pub use calls::{CallCount, CallCounts};
pub use device::{DmaError, DmaFault, ReachedMemory, SoftDevice};
pub use fault::{FaultMode, FaultPlan};
pub use host::SoftHost;
pub use ledger::Ledger;
pub use profile::{BadProfile, Profile};
pub use scripted::{RecordedCall, Replies, Reply, Script, ScriptedDoor};
