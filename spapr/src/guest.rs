//! The guest's side: what a VMM has to offer a guest on POWER. Arithmetic, and calls on a listener's windows; no kernel.
//!
//! A guest programs its IOMMU with four hypercalls. Each names a *table* by its LIOBN and writes or reads *entries* (TCEs) of it:
//!
//! ```text
//!  H_PUT_TCE, …  ──► check (refusal) ──► changes (runs) ──► host: TranslatedWindow ──► table
//! ```
//!
//! - [`entry`], [`table`]: one entry; a table that costs what is in it, and what emulated devices ask of it.
//! - [`change`]: what a hypercall changes, in as few runs as there are, so that a host is asked once a run.
//! - [`tables`]: all tables of a guest by LIOBN, and the hosts behind them.
//! - [`hypercalls`]: the four calls. [`refusal`]: why not, and the return code.
//!
//! The rules are PAPR's, as its public edition has them (Linux on Power Architecture Reference, ch_lpar_option.xml, "Translation Control
//! Entry Access"). Where it is silent they are KVM's (linux: arch/powerpc/kvm/book3s_64_vio.c), and the tests hold a table of where both
//! and QEMU (hw/ppc/spapr_iommu.c) differ. One rule is relaxed, and said so: [`hypercalls::MOST_ENTRIES`].

pub mod change;
#[cfg(test)]
mod conformance;
pub mod entry;
mod host;
pub mod hypercalls;
pub mod refusal;
pub mod table;
pub mod tables;

pub use change::{Change, Run};
pub use entry::Tce;
pub use hypercalls::SystemMemory;
pub use refusal::{Refusal, ReturnCode};
pub use table::{BadTable, Entries, Fault, OutsideTable, TceTable};
pub use tables::{Liobn, LiobnInUse, TceTables};
