//! Live update: one VMM is replaced by another, by exec(2) or by passing its descriptors on, while devices stay
//! attached and continue DMA.
//!
//! Mappings stay in the IOMMU, and the pages behind them stay pinned, when the process that mapped them ends. Two facts
//! must be moved to the successor: the address of the memory in the process, which the kernel uses for later pins, and
//! the process that is charged. A hand-over moves both:
//!
//! ```text
//!  old process                                    new process
//!  hand_over ──► [Handover], descriptors, memory files ──► a space of inherited descriptors ──► adopt
//!      │                                                                                          │
//!      └── take_back, without a successor                 until then devices do DMA, and nothing ─┘
//!                                                         is mapped, unmapped or attached
//! ```
//!
//! 1. [`LiveUpdate::hand_over`] invalidates this process's addresses in the kernel and describes the mappings. From
//!    then on the space refuses every change ([`Kind::HandedOver`](crate::error::Kind::HandedOver)), and dropping it
//!    closes descriptors only: devices lose nothing. Without a successor, [`LiveUpdate::take_back`] ends the hand-over.
//! 2. The successor makes a space of the descriptors ([`Space::inherited`](crate::Space::inherited); the façade crate
//!    does it for groups and containers) and adopts the description, with its own memory: [`LiveUpdate::adopt`].
//!
//! Both steps in one process move the guest's memory to another address.
//!
//! # Memory
//! Addresses mean nothing to a successor, so both processes name their memory ([`NamedMemory`]): a mapping is described
//! by a name and an offset. The name must denote the same memory in both, a file that is mapped again; no kernel checks
//! it. Devices go on reaching the pages that were pinned. Anonymous memory is lost to the successor, which sees other
//! pages than the devices do. Another device's memory (a BAR) is mapped again from that device's descriptor, and is not
//! charged.
//!
//! # Listeners
//! A listener hands over all its spaces or none (`Listener::hand_over` of dmaspace-listener). In the new process the
//! listener must first have the view of the guest's bus, populated blocks included; a space that has adopted needs no
//! call when it joins.
//!
//! # Dirty tracking
//! Tracking may be on: the kernel keeps its log with the mappings and continues it. The new process starts tracking
//! anew ([`DirtyTracking::start`](crate::contract::dirty::DirtyTracking::start)) and receives all pages written since
//! the last sync of the old process. The VMM must pass on the pages that the old process has received.
//!
//! # Between the steps
//! The kernel cannot pin by an invalid address: a group is not attached (`EBUSY`; linux:
//! drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_attach_group), and a mediated device, which pins while it works,
//! would fail: with one attached the hand-over is refused.

#[cfg(feature = "serde")]
mod json;

use std::collections::BTreeMap;
use std::fmt;

use crate::contract::Unit;
use crate::error::Error;
use crate::words::access::Access;
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;
use crate::words::window::Window;

/// A process's memory by the names that it and its successor use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedMemory {
    pieces: BTreeMap<String, HostMemory>,
}

impl NamedMemory {
    /// A set without memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `memory` under `name`, and replaces memory of that name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, memory: HostMemory) -> Self {
        self.pieces.insert(name.into(), memory);
        self
    }

    /// The memory of this name.
    pub fn get(&self, name: &str) -> Option<&HostMemory> {
        self.pieces.get(name)
    }

    /// The place of `memory` in memory that has a name. `None` if no named memory holds all of it.
    pub fn place_of(&self, memory: &HostMemory) -> Option<Place> {
        let holds = |piece: &HostMemory| piece.address() <= memory.address() && memory.last() <= piece.last();
        let (name, piece) = self.pieces.iter().find(|(_, piece)| holds(piece))?;
        Some(Place { name: name.clone(), offset: memory.address().get() - piece.address().get() })
    }
}

/// A place in memory that has a name.
///
/// Exhaustive: a place has no more than these.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The memory's name.
    pub name: String,
    /// The number of bytes before it.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

/// The description of a space for the process that adopts it. With the feature `serde` it can be written and read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Handover {
    /// The backend's name.
    pub backend: String,
    /// The attached devices or groups, whose descriptors are passed on, in the order in which they were attached.
    pub devices: Vec<String>,
    /// The host's windows, ascending, for information: the successor reads them from the kernel.
    pub windows: Vec<Window>,
    /// The live mappings, ascending.
    pub mappings: Vec<HandedMapping>,
    /// The number of mappings that the kernel still accepted, where it counts them: if it accepts another number later,
    /// the mappings have changed.
    pub mappings_left: Option<u64>,
}

impl Handover {
    /// The description of a space of a backend of this name, without devices or mappings.
    pub fn new(backend: impl Into<String>) -> Self {
        Self {
            backend: backend.into(),
            devices: Vec::new(),
            windows: Vec::new(),
            mappings: Vec::new(),
            mappings_left: None,
        }
    }
}

/// A mapping, or a run of units that continue each other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HandedMapping {
    /// The bus addresses.
    pub range: IovaRange,
    /// The memory behind them, byte for byte.
    pub place: Place,
    /// The access that devices have.
    pub access: Access,
    /// The parts in which it may be unmapped.
    pub unit: Unit,
    /// `true` if it is another device's memory.
    pub device_memory: bool,
}

impl HandedMapping {
    /// A mapping of this process's own memory.
    pub fn new(range: IovaRange, place: Place, access: Access, unit: Unit) -> Self {
        Self { range, place, access, unit, device_memory: false }
    }
}

/// Handing a space over and adopting it: see [the module](self).
#[expect(
    unsafe_code,
    reason = "UNSAFETY: no kernel compares the memory that is adopted with the memory that is pinned"
)]
pub trait LiveUpdate: Send + Sync {
    /// Returns `true` if the space is handed over, or inherited and not adopted yet: it refuses every change then.
    fn is_handed_over(&self) -> bool;

    /// Invalidates this process's addresses in the kernel, and describes the mappings by the names of `memory`. A space
    /// that is handed over already is described again, without a call that changes anything.
    ///
    /// # Errors
    /// Before anything changes: [`Kind::Unsupported`](crate::error::Kind::Unsupported) with the reason and the remedy,
    /// [`Kind::Fenced`](crate::error::Kind::Fenced) if there is a fence,
    /// [`Kind::NoMemory`](crate::error::Kind::NoMemory) for a mapping of memory without a name,
    /// [`Kind::HandedOver`](crate::error::Kind::HandedOver) of a space that was inherited and not adopted. Or the
    /// kernel's failure; every address is valid again then.
    fn hand_over(&self, memory: &NamedMemory) -> Result<Handover, Error>;

    /// Ends a hand-over: this process's addresses are valid again, and it is charged again. If another process has
    /// adopted the space meanwhile, it loses it.
    ///
    /// # Errors
    /// [`Kind::NotHandedOver`](crate::error::Kind::NotHandedOver), or the kernel's failure: the space is still handed
    /// over then, and the call can be repeated.
    fn take_back(&self) -> Result<(), Error>;

    /// Adopts a description, with this process's memory: its addresses are valid from now on, and it is charged.
    ///
    /// # Errors
    /// Each names the mapping. Before the kernel is asked: [`Kind::NotHandedOver`](crate::error::Kind::NotHandedOver);
    /// [`Kind::BadHandover`](crate::error::Kind::BadHandover) when it is not this space's description;
    /// [`Kind::NoMemory`](crate::error::Kind::NoMemory) when memory of that name is missing or too short, or another
    /// device's on one side only; [`Kind::HostReadOnly`](crate::error::Kind::HostReadOnly),
    /// [`Kind::Unbacked`](crate::error::Kind::Unbacked), [`Kind::OutsideWindows`](crate::error::Kind::OutsideWindows),
    /// [`Kind::Misaligned`](crate::error::Kind::Misaligned), [`Kind::Overlap`](crate::error::Kind::Overlap). Then
    /// [`Kind::PinLimit`](crate::error::Kind::PinLimit) of this process,
    /// [`Kind::NoSuchMapping`](crate::error::Kind::NoSuchMapping) when the kernel has no mapping of exactly that range.
    /// The space is still handed over then, devices continue, and this or the old process can try again; this process
    /// stays charged for its part until then.
    ///
    /// # Safety
    /// Under each name `memory` must have the memory that had the name when the space was handed over: a mapping of the
    /// same file, or the same pages at another address. No kernel compares them, devices go on reaching the pages that
    /// were pinned, and from now on the space keeps
    /// `memory` and no other.
    unsafe fn adopt(&self, handover: &Handover, memory: &NamedMemory) -> Result<(), Error>;
}
