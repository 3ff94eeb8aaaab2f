//! A platform model of PAPR's IOMMU, for VMMs that emulate a POWER machine: TCE tables, the hypercalls and RTAS calls
//! by which a guest fills and creates them, and the device tree that describes them.
//!
//! The crate stands by itself: it needs no POWER host. A guest's devices may be emulated by the VMM, which then looks
//! bus addresses up in the guest's tables ([`TceTables::translate`]); or they may be a host's devices behind any
//! address space that a [`Listener`](dmaspace_listener::Listener) serves: TCE windows of POWER, or an IOMMU of a PC.
//! There are no calls to a kernel in this crate.
//!
//! A guest writes its DMA windows with four hypercalls. Each names a table by its LIOBN:
//!
//! ```text
//!  H_PUT_TCE, …  ──► checks (refusal) ──► changes, in runs (change) ──► host: TranslatedWindow ──► table
//! ```
//!
//! A bridge has one window after a reset and at most two. The guest creates and removes windows with four RTAS calls:
//!
//! ```text
//!  H_RTAS ──► buffer ──► arguments ──► bridge: one commit of its listener, and a table
//! ```
//!
//! # Example
//! A guest creates a window and maps a page, on a host in software:
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use dmaspace::{Facts, Host, OpenRequest};
//! use dmaspace_core::{HostAddress, HostMemory, SystemAddress};
//! use dmaspace_listener::section::TargetMemory;
//! use dmaspace_listener::{Listener, Update};
//! use dmaspace_soft::{Profile, SoftHost};
//! use dmaspace_spapr_guest::{Layout, PciHostBridge, Tce, TceTables};
//!
//! let machine = SoftHost::new(Profile::powernv9())?;
//! let host = Host::new(machine.clone(), Facts::of_soft(machine.profile()));
//! let opened = host.open(&OpenRequest::device("0000:01:00.0".parse()?))?;
//! let space = opened.space.space();
//!
//! // The guest may map all of its RAM, 256 MiB, and has mapped none of it.
//! let ram = HostMemory::unbacked(HostAddress::new(0x7f00_0000_0000), (256 << 20).try_into()?).ok_or("it wraps")?;
//! let mut listener = Listener::default();
//! listener.commit(Update::new().adding_target(TargetMemory::new("ram", SystemAddress::new(0), ram.clone())?))?;
//!
//! let layout = Layout::pseries(0).placed_on([space]).ok_or("the host has no room for two windows")?;
//! let mut bridge = PciHostBridge::new(layout, Arc::new(TceTables::new()))?;
//! bridge.attach(&mut listener, space.clone())?;
//! bridge.reset(&mut listener)?;
//!
//! // ibm,create-pe-dma-window, once its arguments are read from the guest's buffer: 2 GiB in pages of 64K.
//! let (window, report) = bridge.create_window(&mut listener, 16, 31)?;
//! let reason = report.spaces[0].sections[0].reason.to_string();
//! assert!(reason.ends_with("with 4K pages, which the memory behind it is made of; the guest's are 64K"));
//!
//! // H_PUT_TCE: devices may read and write the guest's memory at 0x70000.
//! let at = window.range.first();
//! bridge.tables().h_put_tce(&ram, window.liobn, at, Tce::new(0x7_0003))?;
//! assert_eq!(space.lookup(at).map(|entry| entry.memory.address()), Some(HostAddress::new(0x7f00_0007_0000)));
//! # Ok(())
//! # }
//! ```
//!
//! # Modules
//! - [`bridge`]: a PCI host bridge, its windows, and their places on a host; [`device_tree`]: the properties that
//!   describe them.
//! - [`rtas`]: the four calls for windows, and their buffers.
//! - [`hypercalls`]: the four calls for entries. [`refusal`]: reasons to refuse one, and return codes.
//! - [`liobn`], [`entry`], [`table`]: a table's name, one entry, and a table whose cost is that of its entries.
//! - [`change`]: the changes that a hypercall makes, in as few runs as possible, since a host gets one call for each
//!   run.
//! - [`tables`]: all tables of a guest, and the hosts behind them.
//! - [`in_kernel`]: tables whose hypercalls KVM answers itself; [`kernel_table`]: the traits that KVM implements for
//!   it.
//!
//! # PAPR's words
//! | word | meaning |
//! |---|---|
//! | TCE | translation control entry: 8 bytes that map a page of the bus to guest memory, with the rights of devices |
//! | TCE table | the entries of one DMA window |
//! | LIOBN | logical I/O bus number: the 32-bit name of a TCE table in hypercalls |
//! | IOBA | I/O bus address: where a device reads and writes; an [`Iova`](dmaspace_core::Iova) here |
//! | DMA window | a range of bus addresses with a TCE table; the *default window* is the one after a reset |
//! | DDW | dynamic DMA windows: the option by which a guest creates and removes windows |
//! | PHB | PCI host bridge: the root of a PCI bus, with its windows; named by its BUID |
//! | PE | partitionable endpoint: devices that share windows; all devices of a bridge are one PE here, as in QEMU |
//! | RTAS | run-time abstraction services: calls to firmware, each with a buffer in guest memory |
//! | MTT | multiple TCE tables: an option to name several tables in one hypercall, which is not offered |
//! | in-kernel TCE table | a table that KVM fills: the guest's hypercalls do not leave the kernel |
//!
//! # Sources
//! The rules are PAPR's, as its public edition has them (Linux on Power Architecture Reference, "LoPAR":
//! ch_lpar_option.xml, "Translation Control Entry Access"; sec_rtas_dma_window.xml). Where PAPR says nothing the rules
//! are KVM's (linux: arch/powerpc/kvm/book3s_64_vio.c), or QEMU's where KVM has no say. The tests hold tables of the
//! arguments for which they and QEMU (hw/ppc/spapr_iommu.c, spapr_rtas_ddw.c) differ. One rule is relaxed on purpose:
//! [`hypercalls::MOST_ENTRIES`].
//!
//! # Threads and locks
//! Hypercalls come from any processor. The locks are [`dmaspace_core::sync`]'s: a table's connection to its host is
//! locked first, before any lock of the listener or of a space; a table's entries are locked last and for a moment
//! only, so that a processor never waits for a host while it holds them.

pub mod bridge;
pub mod change;
pub mod device_tree;
pub mod entry;
mod host;
pub mod hypercalls;
pub mod in_kernel;
pub mod kernel_table;
pub mod liobn;
pub mod refusal;
pub mod rtas;
mod stretch;
pub mod table;
pub mod tables;

pub use bridge::{BadLayout, DdwOffer, GuestWindow, Layout, PciHostBridge, WindowError};
pub use change::EntryChange;
pub use device_tree::Property;
pub use entry::Tce;
pub use hypercalls::SystemMemory;
pub use in_kernel::{AnsweredBy, VmmReason};
pub use kernel_table::{InKernelTable, InKernelTables};
pub use liobn::Liobn;
pub use refusal::{Refusal, ReturnCode};
pub use rtas::{RtasAnswer, RtasError, RtasStatus, Tokens};
pub use table::{BadTable, Entries, Fault, OutsideTable, TceTable};
pub use tables::{ConnectError, LiobnInUse, TceTables};
