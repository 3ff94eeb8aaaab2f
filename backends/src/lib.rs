//! DMA for PCI devices that are passed through to guests, on x86_64 and ppc64le: the crate a VMM depends on.
//!
//! The host's IOMMU translates a device's bus addresses, and the VMM must keep that translation in step with the
//! guest's bus. The kernel has three quite different interfaces for it: VFIO type1, POWER's sPAPR TCE and iommufd. Here
//! they are one trait, [`PciAddressSpace`], and one [`Listener`] drives any of them from the guest's memory map.
//!
//! This crate chooses a backend and opens devices. The backends ([`type1`], [`spapr`], [`iommufd`]) only make kernel
//! calls. [`Space`] is built on a backend, and implements the trait: it checks requests, keeps the index of all
//! mappings, and undoes what fails. Everything that a VMM needs of the other crates is re-exported here.
#![cfg_attr(feature = "soft", doc = "```")]
#![cfg_attr(not(feature = "soft"), doc = "```ignore")]
//! use std::num::NonZeroU64;
//!
//! use dmaspace::section::{FrontEnd, Section};
//! use dmaspace::{Access, Facts, Host, HostAddress, HostMemory, Iova, Listener, OpenRequest};
//! use dmaspace::soft::{Profile, SoftHost};
//!
//! // On a real host: let host = Host::this()?. This one is in software.
//! let machine = SoftHost::new(Profile::vtd())?;
//! let host = Host::new(machine.clone(), Facts::of_soft(machine.profile()));
//!
//! // The backend for this device, and why not the others:
//! let request = OpenRequest::device("0000:00:03.0".parse()?);
//! println!("{}", host.choose(&request));
//! let opened = host.open(&request)?;
//!
//! // The guest's bus. `vm_memory::sections` makes the sections of a whole guest.
//! let gib = NonZeroU64::new(1 << 30).ok_or("no memory")?;
//! let ram = HostMemory::unbacked(HostAddress::new(0x7f00_0000_0000), gib).ok_or("it wraps")?;
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
//! # Modules
//! - [`facts`]: the facts of a host, read once. [`choose`]: the choice of a backend, with the obstacles of the others
//!   and their remedies.
//! - [`open`]: from PCI addresses, from descriptors or from another crate's backend to a space with its devices
//!   attached. [`group`] and [`device`] are the open groups and devices; [`options`] are the options of opening.
//! - [`domain`]: all of the above and a listener in one value, for all threads of a VMM.
//! - [`Pool`]: several spaces over one guest that pin its memory once ([`Host::open_pool`], [`Host::open_in`]).
//! - [`registry`] and [`kvm`]: telling KVM of groups and devices.
//! - [`inherited`]: taking over the descriptors of a VMM that is being replaced, with devices at work; [`live_update`]
//!   explains it.
//! - [`linux`]: the door to the kernel.
//! - [`listener`]: the memory listener; [`section`] and [`bar`]: the parts of a guest's bus.
//! - [`spapr_guest`]: the guest's side of sPAPR, for a VMM with POWER guests.
//!
//! # Features
//! - `vm-memory`: sections straight from a `vm_memory::GuestMemory` (`vm_memory`).
//! - `recording`: recordings of a listener's input as JSON lines (`recording`).
//! - `soft`: the host in software, for a VMM's own tests (`soft`).
//! - `program`: the program `dmaspace`.
//!
//! # In a jail
//! A VMM that may open nothing is given its descriptors, and adopts them:
//! ```
//! use std::os::fd::OwnedFd;
//! use std::sync::Arc;
//!
//! use dmaspace::door::{HandleKind, OwnedHandle};
//! use dmaspace::{BackendKind, Device, LinuxDoor, OpenSpace};
//!
//! /// `/dev/vfio/vfio` and `/dev/vfio/7`, opened by another process.
//! fn adopt(container: OwnedFd, group: OwnedFd) -> Result<(OpenSpace, Device), Box<dyn std::error::Error>> {
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
//! // A descriptor that is no container is refused, and closed.
//! let no_container = || std::fs::File::open("/dev/null").map(OwnedFd::from);
//! assert!(adopt(no_container()?, no_container()?).is_err());
//! # Ok::<(), std::io::Error>(())
//! ```
#![cfg_attr(docsrs, feature(doc_cfg))]

mod backend_kind;
pub mod choose;
mod commands;
pub mod device;
pub mod domain;
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
pub mod prefault;
#[cfg(feature = "recording")]
#[cfg_attr(docsrs, doc(cfg(feature = "recording")))]
pub mod recording;
pub mod registry;
#[cfg(test)]
mod scripted;
#[cfg(feature = "soft")]
mod soft_facts;

pub use choose::{BackendKind, Choice, OpenRequest};
pub use device::Device;
pub use domain::Domain;
pub use facts::Facts;
pub use linux::LinuxDoor;
pub use open::{Host, OpenError, OpenSpace, Opened};
pub use options::OpenOptions;
pub use pci::PciAddress;

#[doc(no_inline)]
pub use dmaspace_iommufd::{self as iommufd, Iommufd, Pool};
#[cfg(feature = "soft")]
#[cfg_attr(docsrs, doc(cfg(feature = "soft")))]
#[doc(no_inline)]
pub use dmaspace_soft as soft;
#[doc(no_inline)]
pub use dmaspace_spapr as spapr;
#[doc(no_inline)]
pub use dmaspace_spapr_guest as spapr_guest;
#[doc(no_inline)]
pub use dmaspace_type1 as type1;

#[doc(no_inline)]
pub use dmaspace_core::backend::{self, Backend};
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
    Access, HostAddress, HostMemory, Iova, IovaRange, MemoryFile, PageSize, PageSizes, PciAddressSpace, Space,
    SystemAddress, SystemRange, Window, Windows,
};
#[doc(no_inline)]
pub use dmaspace_core::{retry, space, sync};
#[cfg(feature = "vm-memory")]
#[cfg_attr(docsrs, doc(cfg(feature = "vm-memory")))]
#[doc(no_inline)]
pub use dmaspace_listener::vm_memory;
#[doc(no_inline)]
pub use dmaspace_listener::{
    self as listener, CommitError, FrontEnd, Listener, Report, Section, TranslatedWindow, Update, bar, section,
};

/// The README, whose code must compile.
#[cfg(all(doctest, feature = "program"))]
#[doc = include_str!("../../README.md")]
pub struct Readme;
