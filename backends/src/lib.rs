//! DMA for PCI devices that are passed through to guests, on x86_64 and ppc64le: the one crate a VMM has to name.
//!
//! A device's bus addresses are translated by the host's IOMMU, and somebody has to keep that in step with what the
//! guest sees. The kernel offers three quite different ways of doing it, VFIO type1, POWER's sPAPR TCE and iommufd;
//! here they are one trait,
//! [`PciAddressSpace`], and one [`Listener`] drives any of them from the guest's memory map.
//!
//! This crate opens things and chooses. What it opens it hands to the backends ([`dmaspace_type1`], [`dmaspace_spapr`],
//! [`dmaspace_iommufd`]), which only make calls, under [`dmaspace_core`], which checks, remembers and plans, and whose words are all
//! here too.
#![cfg_attr(feature = "soft", doc = "```")]
#![cfg_attr(not(feature = "soft"), doc = "```ignore")]
//! use std::num::NonZeroU64;
//!
//! use dmaspace::section::{FrontEnd, Section};
//! use dmaspace::{Access, Facts, Host, HostMemory, Iova, Listener, OpenRequest};
//! # use dmaspace_soft::{Profile, SoftHost};
//!
//! // The host this runs on: Host::this()?. Here one in software, with the feature `soft`.
//! let machine = SoftHost::new(Profile::vtd())?;
//! let host = Host::new(machine.clone(), Facts::of_soft(machine.profile()));
//!
//! // The backend that does best for this device, and why not the others:
//! let request = OpenRequest::device("0000:00:03.0".parse()?);
//! println!("{}", host.choose(&request));
//! let opened = host.open(&request)?;
//!
//! // The guest's bus, as its front end describes it. With vm-memory a whole guest is one call.
//! let ram = HostMemory::unbacked(0x7f00_0000_0000, NonZeroU64::new(1 << 30).ok_or("no memory")?).ok_or("it wraps")?;
//! let sections = [Section::ram("ram below 1 GiB", Iova::new(0), ram, Access::READ_WRITE)?];
//!
//! let mut listener = Listener::new(FrontEnd::pc());
//! listener.attach(opened.space.space().clone())?;
//! let report = listener.commit(listener.update_to(&sections, &[]))?;
//! for verdict in report.spaces.iter().flat_map(|space| &space.sections) {
//!     println!("{verdict}");
//! }
//! assert_eq!(machine.ledger().mapped, 1 << 30);
//! # drop((listener, opened));
//! # assert!(machine.ledger().is_clear());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The way through
//! - [`facts`]: what this host offers, read once. [`choose`]: which backend, and for every other why not and what to do about it.
//! - [`open`]: from PCI addresses, or from descriptors handed in, to a space with its devices attached; [`group`] and [`device`] are
//!   what is open then; [`options`]: how, where there is a choice.
//! - [`Pool`]: several spaces over one guest, its memory pinned once ([`Host::open_pool`], [`Host::open_in`]).
//! - [`registry`] and [`kvm`]: telling KVM, in time.
//! - [`inherited`]: from the descriptors of a VMM that makes way for this one, devices at work; [`handover`] says how.
//! - [`linux`]: the door to the kernel, and all of this crate's unsafe code.
//! - `recording` (feature): what a listener is told, written down as JSON lines, and read again.
//! - `soft` (feature): the soft host as a host to open spaces on, for a VMM's own tests.
//!
//! # In a jail
//! A VMM that may open nothing is handed its descriptors, and passes them on:
//! ```
//! use std::os::fd::OwnedFd;
//! use std::sync::Arc;
//!
//! use dmaspace::door::{HandleKind, OwnedHandle};
//! use dmaspace::{BackendKind, Device, LinuxDoor, OpenSpace};
//!
//! /// `/dev/vfio/vfio` and `/dev/vfio/7`, opened by somebody else.
//! fn take(container: OwnedFd, group: OwnedFd) -> Result<(OpenSpace, Device), Box<dyn std::error::Error>> {
//!     let door = Arc::new(LinuxDoor::new());
//!     // SAFETY: they were opened for this process alone, and have no duplicates.
//!     let container = unsafe { OwnedHandle::adopt(door.clone(), container, HandleKind::Container)? };
//!     // SAFETY: as above.
//!     let group = unsafe { OwnedHandle::adopt(door, group, HandleKind::Group)? };
//!     let mut space = OpenSpace::of(BackendKind::Type1, container)?;
//!     let group = space.add_group(group, "group 7")?;
//!     let device = space.open_device(&group, "0000:00:03.0")?;
//!     Ok((space, device))
//! }
//!
//! // What is no container is refused, and closed.
//! let no_container = || std::fs::File::open("/dev/null").map(OwnedFd::from);
//! assert!(take(no_container()?, no_container()?).is_err());
//! # Ok::<(), std::io::Error>(())
//! ```

mod backend_kind;
pub mod choose;
mod commands;
pub mod device;
pub mod facts;
pub mod group;
mod host_page;
pub mod inherited;
pub mod kvm;
pub mod linux;
pub mod open;
pub mod options;
pub mod pci;
mod pool;
#[cfg(feature = "recording")]
pub mod recording;
pub mod registry;
#[cfg(test)]
mod scripted;
#[cfg(feature = "soft")]
pub mod soft;

pub use choose::{BackendKind, Choice, OpenRequest};
pub use device::Device;
pub use facts::Facts;
pub use linux::LinuxDoor;
pub use open::{Host, OpenError, OpenSpace, Opened};
pub use options::OpenOptions;
pub use pci::PciAddress;

#[doc(no_inline)]
pub use dmaspace_iommufd::Pool;

#[doc(no_inline)]
pub use dmaspace_core::contract::{self, dirty, eeh, live_update};
#[doc(no_inline)]
pub use dmaspace_core::door::{self, registrations};
#[doc(no_inline)]
pub use dmaspace_core::error::{self, Error};
#[doc(no_inline)]
pub use dmaspace_core::words::{self, access, address, locked, memory, page, reserved, window};
#[doc(no_inline)]
pub use dmaspace_core::{
    Access, HostMemory, Iova, IovaRange, MemoryFile, PageSize, PageSizes, PciAddressSpace, SystemAddress, SystemRange,
    Window, Windows,
};
#[cfg(feature = "vm-memory")]
#[doc(no_inline)]
pub use dmaspace_listener::vm_memory;
#[doc(no_inline)]
pub use dmaspace_listener::{self as listener, FrontEnd, Listener, Section, bar, section};
