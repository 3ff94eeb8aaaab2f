//! The listener of a PCI address space: it keeps the windows that hosts offer up to date with the address space a guest
//! sees.
//!
//! A front end describes the guest with [`Section`]s and target memory, and changes them in transactions ([`Update`],
//! [`Listener::commit`]). Nothing asks "is this x86?" or "is this RAM device memory?": a section is required or best
//! effort, a window has a smallest page, and one listener serves every pair of guest and host, and several hosts at
//! once.
//!
//! ```text
//!  Update ──► View ──► plan (pure) ──► apply, with a journal ──► PciAddressSpace
//! ```
//!
//! State that changes by itself between commits has handles, which any thread may use: entries of translated windows
//! ([`TranslatedWindow`]), and blocks of discardable RAM ([`DiscardableRam`]).
//!
//! # A tour
//! - The words: `section` (sections, target memory, the front end), `update` (updates and the view), `pieces` (the
//!   lists of a view), `diff`, [`bar`], [`vm_memory`].
//! - The front: `listener`; `recorder` and [`recording`] record its input.
//! - Everything in force: `in_force`; changed by `commit` (the algorithm) and `membership` (attach and detach),
//!   remembered for each space by `served_space`.
//! - The plan: `plan` (pure: no call, no lock), `windows`, `page_size_fallback`; its outcome: `report`.
//! - The calls: `apply`, `journal` (undo), `merge_registrations`.
//! - The handles: `translated`, `discardable`.
//! - Questions: `audit`, `state`, `balloon`; other powers of all spaces at once: `tracking`, `handover`.
//!
//! # Locks and code of a caller
//! The listener itself is changed through `&mut`. The handles share locks with it, whose order is part of the one order
//! of all locks ([`dmaspace_core::sync`]): sections' and windows' locks come before those of a space, lower addresses
//! first. A [`Recorder`] and the owner of memory that loses its last use run without any lock of a listener;
//! [`KernelEntries`] and a sink of dirty pages may run under them and must not call back.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod apply;
mod audit;
mod balloon;
pub mod bar;
mod commit;
mod diff;
mod discardable;
mod error;
mod handover;
mod in_force;
mod journal;
mod listener;
mod membership;
mod merge_registrations;
mod page_size_fallback;
mod pieces;
mod plan;
mod range_set;
mod recorder;
#[cfg(feature = "serde")]
#[cfg_attr(docsrs, doc(cfg(feature = "serde")))]
pub mod recording;
mod report;
pub mod section;
mod served_space;
mod state;
mod tracking;
mod translated;
mod update;
#[cfg(feature = "vm-memory")]
#[cfg_attr(docsrs, doc(cfg(feature = "vm-memory")))]
pub mod vm_memory;
mod windows;

pub use audit::Finding;
pub use balloon::InUse;
pub use discardable::{BlockError, DiscardableRam};
pub use error::CommitError;
pub use listener::Listener;
pub use recorder::Recorder;
pub use report::{Fate, FateReason, Report, SpaceReport, Verdict, Warning, WarningCause};
pub use section::{FrontEnd, Section};
pub use served_space::{RecurringWarning, Totals};
pub use state::{DiscardableState, LiveMapping, Registration, SpaceState, State, TranslatedState};
pub use translated::{EntryError, EntryRun, KernelEntries, TranslatedWindow};
pub use update::{BadUpdate, Update};
