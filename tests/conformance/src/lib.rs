//! The contract of a PCI address space ([`PciAddressSpace`](dmaspace_core::PciAddressSpace)) as test cases, for any
//! backend.
//!
//! A backend's own tests make a [`Bench`]: a fresh space, a device that is attached to it, and hooks, as many as the
//! backend has. [`run`] runs all cases, each on a bench of its own, and [`RunReport`] lists the cases that passed, that
//! failed, and that do not apply:
//!
//! ```no_run
//! # use dmaspace_conformance::Bench;
//! # fn bench() -> Bench { std::process::abort() }
//! let report = dmaspace_conformance::run(&bench);
//! println!("{report}");
//! report.assert_passed();
//! ```
//!
//! `examples/iotlb.rs` is a backend without VFIO descriptors that passes the suite, and `docs/writing-a-backend.md`
//! explains it.
//!
//! A test harness that names its tests at run time takes the cases one by one from [`CASES`]: [`Abilities::of`] says
//! which of them apply, and
//! [`Case::run`] runs one and panics when it fails.
//!
//! # Needs
//! A case names its requirements of a space and of the hooks ([`Requirement`]): window control, memory that is
//! registered, a device that does DMA, calls that can be made to fail. No case asks which backend is behind the space.
//! A need that is not met is a reason in the report, never a failure: the more hooks a bench has, the more of the
//! contract is checked.
//!
//! # Hooks
//! - [`Bench::with_dma`]: a device that reads and writes memory proves a mapping. Without it the cases look at the
//!   index only.
//! - [`Bench::with_faults`]: calls that fail on request prove that errors change nothing and that a fence holds.
//! - [`Bench::with_leftovers`]: a count of the host's resources proves that dropping a space releases everything.
//! - [`Bench::with_second_space`]: another space of one host proves that pins and registrations are shared.
//! - [`Bench::with_spare`]: a second device proves that attaching and detaching leave live mappings alone.

mod ability;
mod bench;
mod cases;
mod hooks;
mod memory;
mod report;
mod writer;

pub use ability::{Abilities, Requirement};
pub use bench::{Bench, UnderTest};
pub use cases::{CASES, Case};
pub use hooks::{Call, Dma, Faults};
pub use report::{RunReport, run};

/// The page for authors of backends: its code compiles and runs the suite.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/writing-a-backend.md")]
pub struct WritingABackend;

/// The front page of this crate on a registry.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
