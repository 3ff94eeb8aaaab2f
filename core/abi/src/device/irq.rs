//! Interrupts of a VFIO device (linux: include/uapi/linux/vfio.h; drivers/vfio/pci/vfio_pci_intrs.c).

use dmaspace_core::door::Request;
use vfio_bindings::bindings::vfio as kernel;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::vfio::BASE;

/// Device: fills an [`IrqInfo`].
pub const DEVICE_GET_IRQ_INFO: Request = Request::vfio(BASE + 9, "VFIO_DEVICE_GET_IRQ_INFO");
/// Device: sets the eventfds of interrupts, or masks, unmasks or triggers interrupts ([`IrqSet`]).
pub const DEVICE_SET_IRQS: Request = Request::vfio(BASE + 10, "VFIO_DEVICE_SET_IRQS");

const _: () = {
    assert!(DEVICE_GET_IRQ_INFO.is(0x3b6d));
    assert!(DEVICE_SET_IRQS.is(0x3b6e));
};

/// The index of a PCI device's INTx interrupt.
pub const IRQ_INTX: u32 = kernel::VFIO_PCI_INTX_IRQ_INDEX;
/// The index of a PCI device's MSI interrupts.
pub const IRQ_MSI: u32 = kernel::VFIO_PCI_MSI_IRQ_INDEX;
/// The index of a PCI device's MSI-X interrupts.
pub const IRQ_MSIX: u32 = kernel::VFIO_PCI_MSIX_IRQ_INDEX;
/// The index of the notification of an uncorrectable error, which PCI Express devices have.
pub const IRQ_ERROR: u32 = kernel::VFIO_PCI_ERR_IRQ_INDEX;
/// The index of the notification that the kernel wants a PCI device back.
pub const IRQ_REQUEST: u32 = kernel::VFIO_PCI_REQ_IRQ_INDEX;
/// The number of kinds of interrupt that a PCI device has.
pub const PCI_IRQS: u32 = kernel::VFIO_PCI_NUM_IRQS;

/// The argument of and reply to [`DEVICE_GET_IRQ_INFO`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqInfo {
    /// [`IrqInfo::SIZE`].
    pub argsz: u32,
    /// [`IRQ_EVENTFD`], [`IRQ_MASKABLE`], [`IRQ_AUTOMASKED`], [`IRQ_NORESIZE`].
    pub flags: u32,
    /// The kind of interrupt.
    pub index: u32,
    /// The number of interrupts of this kind.
    pub count: u32,
}

/// The interrupts can be delivered through eventfds.
pub const IRQ_EVENTFD: u32 = kernel::VFIO_IRQ_INFO_EVENTFD;
/// The interrupts can be masked and unmasked.
pub const IRQ_MASKABLE: u32 = kernel::VFIO_IRQ_INFO_MASKABLE;
/// The kernel masks an interrupt when it delivers it.
pub const IRQ_AUTOMASKED: u32 = kernel::VFIO_IRQ_INFO_AUTOMASKED;
/// The number of interrupts in use cannot grow while interrupts of this kind are enabled.
pub const IRQ_NORESIZE: u32 = kernel::VFIO_IRQ_INFO_NORESIZE;

/// The head of the argument of [`DEVICE_SET_IRQS`]. The data follows: nothing, a byte each, or a descriptor each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqSet {
    /// [`IrqSet::SIZE`] and the bytes of the data.
    pub argsz: u32,
    /// One of [`IRQ_DATA_NONE`], [`IRQ_DATA_BOOL`], [`IRQ_DATA_EVENTFD`], and one of [`IRQ_MASK`], [`IRQ_UNMASK`],
    /// [`IRQ_TRIGGER`].
    pub flags: u32,
    /// The kind of interrupt.
    pub index: u32,
    /// The first interrupt.
    pub start: u32,
    /// The number of interrupts.
    pub count: u32,
}

/// The action is taken on every interrupt of the range. A [`IRQ_TRIGGER`] of no interrupt disables the kind.
pub const IRQ_DATA_NONE: u32 = kernel::VFIO_IRQ_SET_DATA_NONE;
/// The action is taken on the interrupts whose byte is not zero.
pub const IRQ_DATA_BOOL: u32 = kernel::VFIO_IRQ_SET_DATA_BOOL;
/// The action is bound to the eventfd of each interrupt: [`IRQ_TRIGGER`] signals it, a signal on it causes
/// [`IRQ_UNMASK`]. A descriptor of -1 removes the eventfd.
pub const IRQ_DATA_EVENTFD: u32 = kernel::VFIO_IRQ_SET_DATA_EVENTFD;
/// Masks the interrupts.
pub const IRQ_MASK: u32 = kernel::VFIO_IRQ_SET_ACTION_MASK;
/// Unmasks the interrupts.
pub const IRQ_UNMASK: u32 = kernel::VFIO_IRQ_SET_ACTION_UNMASK;
/// Delivers the interrupts, or sets the eventfds that they are delivered to.
pub const IRQ_TRIGGER: u32 = kernel::VFIO_IRQ_SET_ACTION_TRIGGER;

/// The kinds of data.
pub const IRQ_DATA_TYPES: u32 = kernel::VFIO_IRQ_SET_DATA_TYPE_MASK;
/// The actions.
pub const IRQ_ACTIONS: u32 = kernel::VFIO_IRQ_SET_ACTION_TYPE_MASK;

laid_out_as!(IrqInfo, kernel::vfio_irq_info { argsz, flags, index, count });
laid_out_as!(IrqSet, kernel::vfio_irq_set { argsz, flags, index, start, count });

// The data begins where the head ends.
const _: () = assert!(size_of::<IrqSet>() == std::mem::offset_of!(kernel::vfio_irq_set, data));
