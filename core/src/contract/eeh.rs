//! EEH, POWER's error handling: after an error the host isolates a device together with the rest of its partitionable
//! endpoint (PE), until it is recovered.
//!
//! A *frozen* PE neither reaches memory nor answers: every read of its registers is all ones, every write is lost. It
//! looks like a dead device and is none. A guest on POWER recovers it itself, through RTAS calls that its VMM turns
//! into these verbs (linux: drivers/vfio/vfio_iommu_spapr_tce.c, vfio_spapr_ioctl_eeh_pe_op):
//!
//! ```text
//!  state: Stopped ──► thaw Mmio, collect the device's report ──► reset Hot, then Deactivate
//!                 ──► configure ──► state: Normal
//! ```
//!
//! Windows, entries and registrations stay through all of it; a reset clears the settings of the device itself.

use std::fmt;

use crate::error::Error;

/// The state of a PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeState {
    /// The PE works.
    Normal,
    /// The PE is held in reset, until [`Reset::Deactivate`].
    Reset,
    /// The PE is frozen: no DMA, and registers read all ones.
    Stopped,
    /// The registers of the PE can be read again; it does not reach memory.
    StoppedDma,
    /// The host itself is recovering the PE, or its state is unknown.
    Unavailable,
}

impl PeState {
    /// Returns `true` if reads of the device's registers return all ones, whatever is in them.
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
                "is frozen after an error: its registers read all ones and it reaches no memory; thaw its MMIO to see \
                 why, then reset it"
            }
            Self::StoppedDma => {
                "reaches no memory after an error, its registers can be read; reset it, or thaw its DMA"
            }
            Self::Unavailable => "is being recovered by the host, ask again later",
        })
    }
}

/// The accesses of a frozen PE that are allowed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Thaw {
    /// The processor's accesses to its registers.
    Mmio,
    /// The device's accesses to memory.
    Dma,
}

/// The kind of a reset.
///
/// Firmware may refuse to begin (`EIO`) and succeed at the next attempt: guests make three (linux:
/// arch/powerpc/kernel/eeh.c, eeh_pe_reset_full). A device that was reset has lost its command register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reset {
    /// A hot reset begins.
    Hot,
    /// A fundamental reset begins.
    Fundamental,
    /// The reset ends, and the PE is thawed.
    Deactivate,
}

/// One operation on a PE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PeOperation {
    /// Turns error handling on; a frozen PE is thawed. A VMM does it when its PCI host bridge is reset.
    Enable,
    /// Turns error handling off. The kernel returns success and does nothing.
    Disable,
    /// Reads the state.
    State,
    /// Allows accesses again.
    Thaw(Thaw),
    /// Resets the PE.
    Reset(Reset),
    /// Restores the bridges between the PE and the host after a reset.
    Configure,
}

/// Recovering the PE behind a space. There is one while exactly one group is attached: the kernel performs an operation
/// on each group of a container and returns the first result that is not zero, of any group.
pub trait Eeh: Send + Sync {
    /// Returns `true` if the host recovers devices. Asks the kernel once.
    fn is_available(&self) -> bool;

    /// Performs an operation on the PE.
    ///
    /// # Errors
    /// [`Kind::NotAttached`](crate::error::Kind::NotAttached) without a group,
    /// [`Kind::Unsupported`](crate::error::Kind::Unsupported) with several; otherwise the kernel's failure.
    fn operate(&self, operation: PeOperation) -> Result<(), Error>;

    /// The state of the PE.
    ///
    /// # Errors
    /// The errors of [`Eeh::operate`]; [`Kind::BadReply`](crate::error::Kind::BadReply) for an unknown state.
    fn state(&self) -> Result<PeState, Error>;
}

/// Detects changes of a PE's state. The kernel has no event for it: a driver calls [`PeWatch::look`] when a register
/// reads all ones, when the device's error interrupt (`VFIO_PCI_ERR_IRQ_INDEX`) arrives, or periodically.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeWatch {
    last: Option<PeState>,
}

impl PeWatch {
    /// The state, if it changed since the last call; at the first call, unless it is normal.
    ///
    /// # Errors
    /// The errors of [`Eeh::state`]; the last state is kept then.
    pub fn look(&mut self, eeh: &dyn Eeh) -> Result<Option<PeState>, Error> {
        let state = eeh.state()?;
        let before = self.last.replace(state).unwrap_or(PeState::Normal);
        Ok(Some(state).filter(|state| *state != before))
    }
}
