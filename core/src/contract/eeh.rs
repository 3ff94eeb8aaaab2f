//! EEH, POWER's error handling: a device that does something wrong is cut off, the whole of its partitionable endpoint (PE) with it,
//! until somebody has recovered it.
//!
//! A *frozen* PE neither reaches memory nor answers: every read of its registers is all ones, every write goes nowhere. That looks like
//! a dead device and is none. A guest on POWER recovers it itself, through RTAS calls that its VMM turns into these verbs (linux:
//! drivers/vfio/vfio_iommu_spapr_tce.c, vfio_spapr_ioctl_eeh_pe_op):
//!
//! ```text
//!  state: Stopped ──► thaw Mmio, collect what the device says ──► reset Hot, then Deactivate ──► configure ──► state: Normal
//! ```
//!
//! Windows, entries and registrations stay as they are through all of it; what a reset takes is what the device itself was told.

use std::fmt;

use crate::error::Error;

/// What a PE is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeState {
    /// It works.
    Normal,
    /// It is held in reset, until [`Reset::Deactivate`].
    Reset,
    /// It is frozen: no DMA, and registers read all ones.
    Stopped,
    /// Its registers can be reached again, memory cannot.
    StoppedDma,
    /// The host itself is recovering it, or nobody can say.
    Unavailable,
}

impl PeState {
    /// Whether reads of the device's registers say nothing about the device: they are all ones, whatever is in them.
    pub fn answers_all_ones(self) -> bool {
        matches!(self, Self::Reset | Self::Stopped | Self::Unavailable)
    }
}

impl fmt::Display for PeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "works",
            Self::Reset => "is held in reset: end the reset, then configure it",
            Self::Stopped => {
                "is frozen after an error: its registers read all ones and it reaches no memory; thaw its MMIO to see why, then reset it"
            }
            Self::StoppedDma => "reaches no memory after an error, its registers can be read; reset it, or thaw its DMA",
            Self::Unavailable => "is being recovered by the host, ask again later",
        })
    }
}

/// What of a frozen PE is let through again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Thaw {
    /// The processor's accesses to its registers.
    Mmio,
    /// The device's accesses to memory.
    Dma,
}

/// How a PE is reset.
///
/// Firmware may refuse to begin (`EIO`) and do it when asked again: guests make three attempts (linux: arch/powerpc/kernel/eeh.c,
/// eeh_pe_reset_full). A device that was reset has lost its command register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reset {
    /// A hot reset begins.
    Hot,
    /// A fundamental reset begins.
    Fundamental,
    /// Whichever was begun ends, and the PE is thawed.
    Deactivate,
}

/// One operation on a PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeOperation {
    /// Have errors handled like this from now on; a frozen PE is thawed. A VMM does it when its PCI host bridge is reset.
    Enable,
    /// Not any more. The kernel says yes and does nothing.
    Disable,
    /// Ask.
    State,
    /// Let something through again.
    Thaw(Thaw),
    /// Reset it.
    Reset(Reset),
    /// Restore the bridges between it and the host after a reset.
    Configure,
}

/// Recovering the PE behind a space. There is one as long as exactly one group is attached: the kernel does everything to each
/// group of a container and tells the first answer that is not zero, whosever it is.
pub trait Eeh: Send + Sync {
    /// Whether the host recovers devices. Asks the kernel once.
    fn is_available(&self) -> bool;

    /// Does something to the PE.
    ///
    /// # Errors
    /// [`Kind::NotAttached`](crate::error::Kind::NotAttached) without a group, [`Kind::Unsupported`](crate::error::Kind::Unsupported) with
    /// several; else what the kernel says.
    fn operate(&self, operation: PeOperation) -> Result<(), Error>;

    /// What the PE is doing.
    ///
    /// # Errors
    /// As [`Eeh::operate`]; [`Kind::BadReply`](crate::error::Kind::BadReply) for a state nobody knows.
    fn state(&self) -> Result<PeState, Error>;
}

/// Sees a PE change. The kernel has no event for it: whoever drives a device looks when a register reads all ones, when its error
/// interrupt (`VFIO_PCI_ERR_IRQ_INDEX`) comes, or now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeWatch {
    last: Option<PeState>,
}

impl PeWatch {
    /// The state, if it is another than when this was asked last; the first time, unless it is normal.
    ///
    /// # Errors
    /// As [`Eeh::state`]; nothing is remembered then.
    pub fn look(&mut self, eeh: &dyn Eeh) -> Result<Option<PeState>, Error> {
        let state = eeh.state()?;
        let before = self.last.replace(state).unwrap_or(PeState::Normal);
        Ok(Some(state).filter(|state| *state != before))
    }
}
