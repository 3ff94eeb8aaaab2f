//! The kinds of interrupt.

use std::fmt;

use dmaspace_abi::device::{IRQ_ERROR, IRQ_INTX, IRQ_MSI, IRQ_MSIX, IRQ_REQUEST};

/// A kind of interrupt: an index that the kernel defines for each bus. The constants are those of PCI devices (linux:
/// include/uapi/linux/vfio.h, VFIO_PCI_INTX_IRQ_INDEX and the following).
///
/// Exhaustive: a number of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IrqIndex(pub u32);

impl IrqIndex {
    /// The INTx interrupt, which the kernel masks when it delivers it.
    pub const INTX: Self = Self(IRQ_INTX);
    /// The MSI interrupts.
    pub const MSI: Self = Self(IRQ_MSI);
    /// The MSI-X interrupts.
    pub const MSIX: Self = Self(IRQ_MSIX);
    /// The notification of an uncorrectable error, which PCI Express devices have.
    pub const ERROR: Self = Self(IRQ_ERROR);
    /// The notification that the kernel wants the device back.
    pub const REQUEST: Self = Self(IRQ_REQUEST);
}

impl fmt::Display for IrqIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INTX => f.write_str("INTx"),
            Self::MSI => f.write_str("MSI"),
            Self::MSIX => f.write_str("MSI-X"),
            Self::ERROR => f.write_str("error notification"),
            Self::REQUEST => f.write_str("request notification"),
            Self(other) => write!(f, "interrupt {other}"),
        }
    }
}
