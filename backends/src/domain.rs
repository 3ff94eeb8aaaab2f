//! A domain: the devices that see one guest bus, the spaces they are attached to, and the listener that keeps those
//! spaces up to date. It is all that a VMM has to hold for its DMA.
//!
//! A [`Domain`] is shared between threads. It opens a space when a device needs one, closes it when its last device
//! leaves, and has the listener look at every space whose devices changed, so that the VMM need not call
//! [`Listener::sync`].
//!
//! # Before the first device, and after the last
//! A domain without a device accepts commits. The sections that the guest needs are *pending* then
//! ([`Report::pending`]): they were checked against each other, and against no host. The device that is added first is
//! given all of them, or adding it fails with everything as it was. Nothing is mapped or pinned without a device, so
//! all backends behave alike here, although type1 forgets its mappings with the last device and iommufd keeps them.
//! Entries of translated windows are in spaces only: without a device the guest's tables have them, and
//! [`Domain::add_with_entries`] brings them.
//!
//! # The space for a device
//! A device joins the space that its group is in. Any other device joins the first space whose backend can take it, and
//! gets a space of its own if none does: a first version of sPAPR takes one group, and a type1 container takes no
//! device whose IOMMU differs too much. A space of its own is opened as [`Host::open`] does, on the preferred backend
//! or, where the kernel refuses that, the next.
//!
//! # Locks
//! All verbs but those of the handles ([`Domain::translated`], [`Domain::discardable`]) take one lock
//! ([`Rank::Domain`]), queries for reading. It comes before all other locks, and is held during kernel calls. Code of a
//! caller that runs meanwhile must not call the domain: recorders, registries, sinks of dirty pages, owners of memory,
//! and the closures of [`Domain::with_listener`], [`Domain::with_spaces`] and [`Domain::add_opened`].
#![cfg_attr(feature = "soft", doc = "```")]
#![cfg_attr(not(feature = "soft"), doc = "```ignore")]
//! use std::num::NonZeroU64;
//!
//! use dmaspace::soft::{Profile, SoftHost};
//! use dmaspace::{Access, Domain, Facts, FrontEnd, Host, HostAddress, HostMemory, Iova, Section};
//! # let gib = NonZeroU64::new(1 << 30).ok_or("no memory")?;
//!
//! // On a real host: Domain::new(Host::this()?, FrontEnd::pc()). This one is in software.
//! let machine = SoftHost::new(Profile::vtd())?;
//! let host = Host::new(machine.clone(), Facts::of_soft(machine.profile()));
//! let domain = Domain::new(host, FrontEnd::pc());
//!
//! let ram = HostMemory::unbacked(HostAddress::new(0x7f00_0000_0000), gib).ok_or("it wraps")?;
//! let ram = Section::ram("ram", Iova::new(0), ram, Access::READ_WRITE)?;
//! let report = domain.update_to(&[ram], &[])?;
//! assert_eq!(report.pending().count(), 1);
//!
//! let added = domain.add("0000:00:03.0".parse()?)?; // and all RAM is mapped, or nothing happened
//! assert_eq!(machine.ledger().mapped, 1 << 30);
//!
//! domain.remove(added.device)?;
//! assert!(machine.ledger().is_clear());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod devices;
mod error;
mod memory;
mod questions;

use std::fmt;
use std::sync::Arc;

use dmaspace_core::PciAddressSpace;
use dmaspace_core::sync::{Rank, RwLock};
use dmaspace_listener::{FrontEnd, Listener, Report};

use crate::choose::{BackendKind, Choice};
use crate::device::Device;
use crate::facts::Facts;
use crate::open::{Host, OpenSpace};

pub use error::DomainError;

/// The devices that see one guest bus, the spaces they are attached to, and their listener ([the module](self)).
///
/// Dropping a domain closes its spaces, except for those that a [`Device`] keeps open.
pub struct Domain {
    state: RwLock<State>,
}

/// The parts of a domain, under its lock.
struct State {
    host: Host,
    backend: Option<BackendKind>,
    /// The open spaces. Each has a device and is served by the listener, unless closing it failed.
    spaces: Vec<OpenSpace>,
    listener: Listener,
}

/// A device that was added to a domain.
#[derive(Debug)]
#[non_exhaustive]
pub struct Added {
    /// The device. Pass it to [`Domain::remove`] when the guest unplugs it: a device that is dropped instead is closed,
    /// and its group or node stays attached until its space is closed.
    pub device: Device,
    /// The memory that was put in force for the device.
    pub report: Report,
    /// The reason for the backend of its space. `None` for a device that the caller opened.
    pub choice: Option<Choice>,
}

impl Domain {
    /// A domain without devices on `host`, for a guest whose bus `front` describes.
    pub fn new(host: Host, front: FrontEnd) -> Self {
        let listener = Listener::new(front);
        let state = State { host, backend: None, spaces: Vec::new(), listener };
        Self { state: RwLock::new(Rank::Domain, state) }
    }

    /// Opens spaces on `backend` and on no other.
    #[must_use]
    pub fn with_backend(mut self, backend: BackendKind) -> Self {
        self.state.get_mut().backend = Some(backend);
        self
    }

    /// Replaces the facts of the host, after devices were plugged or bound to other drivers.
    pub fn set_facts(&self, facts: Facts) {
        let mut state = self.state.write();
        state.host = state.host.clone().with_facts(facts);
    }

    /// Runs `act` on the open spaces, for their descriptors, groups and backends. `act` must not call the domain.
    pub fn with_spaces<R>(&self, act: impl FnOnce(&[OpenSpace]) -> R) -> R {
        act(&self.state.read().spaces)
    }

    /// Runs `act` on the listener, for anything that has no verb here, in one piece. `act` must not call the domain.
    /// Spaces of the domain must not be detached from the listener.
    pub fn with_listener<R>(&self, act: impl FnOnce(&mut Listener) -> R) -> R {
        act(&mut self.state.write().listener)
    }

    /// The spaces, in the order in which the listener serves them.
    pub fn spaces(&self) -> Vec<Arc<dyn PciAddressSpace>> {
        self.state.read().listener.spaces().cloned().collect()
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.read();
        f.debug_struct("Domain").field("spaces", &state.spaces).field("listener", &state.listener).finish()
    }
}
