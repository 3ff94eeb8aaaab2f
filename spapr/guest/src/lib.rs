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
//! A guest creates a window and maps a page, on a host in software:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use dmaspace::{Facts, Host, OpenRequest};
//! use dmaspace_core::words::address::SystemRange;
//! use dmaspace_listener::Update;
//! use dmaspace_listener::section::TargetMemory;
//! use dmaspace_core::{HostMemory, SystemAddress};
//! use dmaspace_listener::Listener;
//! use dmaspace_soft::{Profile, SoftHost};
//! use dmaspace_spapr_guest::{Layout, PciHostBridge, SystemMemory, TceTables};
//!
//! // 256 MiB, in which this guest has no lists and no buffers.
//! struct Ram;
//!
//! impl SystemMemory for Ram {
//!     fn holds(&self, range: SystemRange) -> bool {
//!         range.last().get() < 256 << 20
//!     }
//! #   fn read(&self, _: SystemAddress, _: &mut [u8]) -> bool { false }
//! #   fn write(&self, _: SystemAddress, _: &[u8]) -> bool { false }
//! }
//!
//! let machine = SoftHost::new(Profile::powernv9())?;
//! let host = Host::new(machine.clone(), Facts::of_soft(machine.profile()));
//! let opened = host.open(&OpenRequest::device("0000:01:00.0".parse()?))?;
//! let space = opened.space.space();
//!
//! // All of the guest's RAM may be mapped, and none of it is.
//! let ram = HostMemory::unbacked(0x7f00_0000_0000, (256 << 20).try_into()?).ok_or("it wraps")?;
//! let mut listener = Listener::default();
//! listener.commit(Update::new().adding_target(TargetMemory::new("ram", SystemAddress::new(0), ram)?))?;
//!
//! let layout = Layout::pseries(0).placed_on([space]).ok_or("the host has no room for two windows")?;
//! let mut bridge = PciHostBridge::new(layout, Arc::new(TceTables::new()))?;
//! bridge.attach(&mut listener, space.clone())?;
//! bridge.reset(&mut listener)?;
//!
//! // What ibm,create-pe-dma-window does, once it was read out of the guest's buffer: 2 GiB in pages of 64K.
//! let (window, report) = bridge.create_window(&mut listener, 16, 31)?;
//! assert!(report.spaces[0].sections[0].reason.ends_with("with 4K pages, which the memory behind it is made of; the guest's are 64K"));
//! let at = window.range.first();
//! bridge.tables().h_put_tce(&Ram, window.liobn.get().into(), at.get(), 0x7_0003)?;
//! assert_eq!(space.lookup(at).map(|entry| entry.memory.address()), Some(0x7f00_0007_0000));
//! # Ok(())
//! # }
//! ```
//!
//! - [`bridge`]: a PCI host bridge, its windows, and where they can be on a host; [`device_tree`]: how the guest learns of them.
//! - [`rtas`]: the four calls, and their buffers.
//! - [`entry`], [`table`]: one entry; a table that costs what is in it, and what emulated devices ask of it.
//! - [`change`]: what a hypercall changes, in as few runs as there are, so that a host is asked once a run.
//! - [`tables`]: all tables of a guest by LIOBN, and the hosts behind them.
//! - [`kernel`]: tables whose hypercalls KVM answers itself.
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
pub mod kernel;
pub mod refusal;
pub mod rtas;
pub mod table;
pub mod tables;

pub use bridge::{BadLayout, DdwOffer, GuestWindow, Layout, PciHostBridge, WindowError};
pub use change::{Change, Run};
pub use device_tree::Property;
pub use entry::Tce;
pub use hypercalls::SystemMemory;
pub use kernel::{AnsweredBy, KernelTable, KernelTables, Reason};
pub use refusal::{Refusal, ReturnCode};
pub use rtas::{RtasError, Status, Tokens};
pub use table::{BadTable, Entries, Fault, OutsideTable, TceTable};
pub use tables::{Liobn, LiobnInUse, TceTables};
