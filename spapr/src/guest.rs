//! The guest's side: what a VMM has to offer a guest on POWER. Arithmetic, and calls on a listener's windows; no kernel.
//!
//! A guest programs its IOMMU with four hypercalls. Each names a *table* by its LIOBN and writes or reads *entries* (TCEs) of it:
//!
//! ```text
//!  H_PUT_TCE, …  ──► check (refusal) ──► changes (runs) ──► host: TranslatedWindow ──► table
//! ```
//!
//! Each table is a window of a *bridge*, which has one after a reset and can have two. The guest creates and removes them by four RTAS
//! calls:
//!
//! ```text
//!  H_RTAS ──► buffer ──► arguments ──► bridge: one commit of its listener, and a table
//! ```
//!
//! - [`bridge`]: a PCI host bridge, its windows, and where they can be on a host; [`device_tree`]: how the guest learns of them.
//! - [`rtas`]: the four calls, and their buffers.
//! - [`entry`], [`table`]: one entry; a table that costs what is in it, and what emulated devices ask of it.
//! - [`change`]: what a hypercall changes, in as few runs as there are, so that a host is asked once a run.
//! - [`tables`]: all tables of a guest by LIOBN, and the hosts behind them.
//! - [`hypercalls`]: the four calls. [`refusal`]: why not, and the return code.
//!
//! The rules are PAPR's, as its public edition has them (Linux on Power Architecture Reference, ch_lpar_option.xml, "Translation Control
//! Entry Access"; sec_rtas_dma_window.xml). Where it is silent they are KVM's (linux: arch/powerpc/kvm/book3s_64_vio.c), or QEMU's where
//! KVM has no say, and the tests hold tables of where they and QEMU (hw/ppc/spapr_iommu.c, spapr_rtas_ddw.c) differ. One rule is
//! relaxed, and said so: [`hypercalls::MOST_ENTRIES`].

pub mod bridge;
pub mod change;
#[cfg(test)]
mod conformance;
pub mod device_tree;
pub mod entry;
mod host;
pub mod hypercalls;
pub mod refusal;
pub mod rtas;
pub mod table;
pub mod tables;

pub use bridge::{BadLayout, DdwOffer, GuestWindow, Layout, PciHostBridge, WindowError};
pub use change::{Change, Run};
pub use device_tree::Property;
pub use entry::Tce;
pub use hypercalls::SystemMemory;
pub use refusal::{Refusal, ReturnCode};
pub use rtas::{RtasError, Status, Tokens};
pub use table::{BadTable, Entries, Fault, OutsideTable, TceTable};
pub use tables::{Liobn, LiobnInUse, TceTables};
