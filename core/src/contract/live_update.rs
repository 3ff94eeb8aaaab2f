//! Live update: one VMM makes way for another, by exec(2) or by passing its descriptors on, while devices stay attached and go on doing
//! DMA.
//!
//! What is mapped stays in the IOMMU, and the pages behind it stay pinned, whatever becomes of the process that mapped them. Two things do
//! not: where the memory is in the process, which the kernel remembers for pins to come, and who is charged for it. A hand-over sets both
//! right:
//!
//! ```text
//!  old process                                    new process
//!  hand_over ──► [Handover], descriptors, memory files ──► a space of inherited descriptors ──► adopt
//!      │                                                                                          │
//!      └── take_back, if nobody came                      until then devices do DMA, and nothing ─┘
//!                                                         is mapped, unmapped or attached
//! ```
//!
//! 1. [`LiveUpdate::hand_over`] tells the kernel that this process's addresses count no more, and describes what is there. From then on the
//!    space refuses whatever would change it ([`Kind::HandedOver`](crate::error::Kind::HandedOver)), and dropping it closes
//!    descriptors and nothing else: devices lose nothing. A successor that never came is no loss: [`LiveUpdate::take_back`].
//! 2. Whoever has the descriptors makes a space of them ([`Space::inherited`](crate::Space::inherited); the façade crate does it for
//!    groups and containers) and adopts what was described, with its own memory: [`LiveUpdate::adopt`].
//!
//! The same two steps in one process move the guest's memory to another address.
//!
//! # Memory
//! Addresses mean nothing to a successor, so both sides give their memory names ([`NamedMemory`]): a mapping is described by a name
//! and an offset. It must be *the same memory* under that name, a file that is mapped again: no kernel looks. Devices go on reaching the
//! pages that were pinned. What is anonymous is lost to the successor, who sees other pages than the devices do. Another device's memory
//! (a BAR) is mapped again from that device's descriptor, and charged to nobody.
//!
//! # A listener
//! hands over all its spaces, or none ([`Listener::hand_over`](dmaspace_listener::Listener::hand_over)). In the new process the listener is told
//! what the guest's bus looks like first, populated blocks included; a space that has adopted and joins then is in step without a call.
//!
//! # Dirty tracking
//! may go on: the kernel keeps its log with the mappings and goes on to write it. The new process begins to track anew
//! ([`DirtyTracking::start`](crate::contract::dirty::DirtyTracking::start)) and is told what was written since the old one asked last; what that
//! one was told is the VMM's to pass on.
//!
//! # In between
//! The kernel cannot pin by an address: a group is not attached (`EBUSY`; linux: drivers/vfio/vfio_iommu_type1.c,
//! vfio_iommu_type1_attach_group), and a mediated device, which pins as it goes, would find nothing: where there is one the
//! hand-over is refused.

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

/// A process's memory by the names that it and its successor have for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedMemory {
    pieces: BTreeMap<String, HostMemory>,
}

impl NamedMemory {
    /// No memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, with `memory` under `name`, in place of what had the name before.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, memory: HostMemory) -> Self {
        self.pieces.insert(name.into(), memory);
        self
    }

    /// What has this name.
    pub fn get(&self, name: &str) -> Option<&HostMemory> {
        self.pieces.get(name)
    }

    /// Where `memory` lies in something that has a name. `None`: nothing here holds all of it.
    pub fn place_of(&self, memory: &HostMemory) -> Option<Place> {
        let holds = |piece: &HostMemory| piece.address() <= memory.address() && memory.last() <= piece.last();
        let (name, piece) = self.pieces.iter().find(|(_, piece)| holds(piece))?;
        Some(Place { name: name.clone(), offset: memory.address() - piece.address() })
    }
}

/// A place in memory that has a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The memory's name.
    pub name: String,
    /// How many bytes into it.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

/// What a space hands over, for the process that adopts it. With the feature `serde` it can be written and read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The backend's name.
    pub backend: String,
    /// The devices or groups attached, whose descriptors go along, in the order they came.
    pub devices: Vec<String>,
    /// The host's windows, ascending. For whoever reads it: the successor asks the kernel.
    pub windows: Vec<Window>,
    /// What is mapped, ascending.
    pub mappings: Vec<HandedMapping>,
    /// How many mappings the kernel still took, where it counts them: if it takes another number later, the description is not of what
    /// is there.
    pub mappings_left: Option<u64>,
}

/// A mapping, or a run of units that continue each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedMapping {
    /// Where on the bus.
    pub range: IovaRange,
    /// What is behind it, byte for byte.
    pub place: Place,
    /// What devices may do.
    pub access: Access,
    /// How it may be unmapped.
    pub unit: Unit,
    /// Whether it is another device's memory.
    pub device_memory: bool,
}

/// Handing a space over and taking it up: see [the module](self).
#[expect(
    unsafe_code,
    reason = "UNSAFETY: no kernel compares the memory that is adopted with the memory that is pinned"
)]
pub trait LiveUpdate: Send + Sync {
    /// Whether the space is handed over, or inherited and not adopted yet: nothing of it can be changed then.
    fn is_handed_over(&self) -> bool;

    /// Says to the kernel that this process's addresses count no more, and describes what is mapped by the names of `memory`. Of a space
    /// that is handed over already it is described again, without a call that changes anything.
    ///
    /// # Errors
    /// Before anything changes: [`Kind::Unsupported`](crate::error::Kind::Unsupported) with why this host cannot and what to do,
    /// [`Kind::Fenced`](crate::error::Kind::Fenced) over a range that nobody can vouch for,
    /// [`Kind::NoMemory`](crate::error::Kind::NoMemory) for a mapping of memory without a name,
    /// [`Kind::HandedOver`](crate::error::Kind::HandedOver) of a space that was inherited and not adopted. Or what the kernel says;
    /// every address counts again then.
    fn hand_over(&self, memory: &NamedMemory) -> Result<Handover, Error>;

    /// Ends a hand-over to nobody: this process's addresses count again, and it is charged again. If another process has adopted the space
    /// meanwhile, it is taken from that one.
    ///
    /// # Errors
    /// [`Kind::NotHandedOver`](crate::error::Kind::NotHandedOver), or what the kernel says: the space is still handed over then, and
    /// this can be tried again.
    fn take_back(&self) -> Result<(), Error>;

    /// Takes up what was described, with this process's memory: its addresses count from now on, and it is charged.
    ///
    /// # Errors
    /// Each names the mapping. Before the kernel is asked: [`Kind::NotHandedOver`](crate::error::Kind::NotHandedOver);
    /// [`Kind::BadHandover`](crate::error::Kind::BadHandover) when it is not this space's description;
    /// [`Kind::NoMemory`](crate::error::Kind::NoMemory) when memory of that name is missing or too short, or another device's on one side
    /// only; [`Kind::HostReadOnly`](crate::error::Kind::HostReadOnly), [`Kind::Unbacked`](crate::error::Kind::Unbacked),
    /// [`Kind::OutsideWindows`](crate::error::Kind::OutsideWindows), [`Kind::Misaligned`](crate::error::Kind::Misaligned),
    /// [`Kind::Overlap`](crate::error::Kind::Overlap). Then [`Kind::PinLimit`](crate::error::Kind::PinLimit) of this process,
    /// [`Kind::NoSuchMapping`](crate::error::Kind::NoSuchMapping) when the kernel knows no mapping of exactly that range. The space is
    /// still handed over then, devices go on, and this or the old process can try again; what was charged to this process stays so
    /// until then.
    ///
    /// # Safety
    /// Under each name `memory` has the memory that had the name when the space was handed over: a mapping of the same file, or the same pages at
    /// another address. No kernel compares them, devices go on reaching the pages that were pinned, and from now on the space keeps
    /// `memory` and no other.
    unsafe fn adopt(&self, handover: &Handover, memory: &NamedMemory) -> Result<(), Error>;
}
