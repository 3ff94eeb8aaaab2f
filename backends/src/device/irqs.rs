//! Interrupts of a device, delivered through eventfds.
//!
//! A PCI device has five kinds ([`IrqIndex`]). Of INTx, MSI and MSI-X one can be enabled at a time: the first
//! [`Device::deliver_irqs`] of a kind enables it, [`Device::disable_irqs`] disables it. The kernel keeps the eventfds:
//! the caller may close its own descriptors.

use std::mem::offset_of;
use std::os::fd::BorrowedFd;

use dmaspace_abi::device::{
    DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, IRQ_AUTOMASKED, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, IRQ_EVENTFD,
    IRQ_MASK, IRQ_MASKABLE, IRQ_NORESIZE, IRQ_TRIGGER, IRQ_UNMASK, IrqInfo, IrqSet,
};
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure, Kernel};
use zerocopy::IntoBytes;

use crate::device::irq_index::IrqIndex;
use crate::device::{Action, Device, DeviceError};

/// The kernel's description of a kind of interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IrqProperties {
    /// The kind.
    pub index: IrqIndex,
    /// The number of interrupts. 0 for a kind that the device lacks.
    pub count: u32,
    /// `true` if the interrupts can be delivered through eventfds.
    pub eventfd: bool,
    /// `true` if the interrupts can be masked and unmasked.
    pub maskable: bool,
    /// `true` if the kernel masks an interrupt when it delivers it.
    pub automasked: bool,
    /// `true` if interrupts can be added while the kind is enabled. Otherwise it must be disabled and enabled anew with
    /// more.
    pub resizable: bool,
    /// All flags, as the kernel returns them (linux: include/uapi/linux/vfio.h, struct vfio_irq_info).
    pub flags: u32,
}

/// An action on interrupts.
///
/// Exhaustive: the kernel's three actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IrqAction {
    /// Masks interrupts.
    Mask,
    /// Unmasks interrupts.
    Unmask,
    /// Delivers interrupts as if the device had raised them.
    Trigger,
}

/// The interrupts of an action, and its time.
///
/// Exhaustive: the kernel's three forms of data.
#[derive(Clone, Copy, Debug)]
pub enum IrqData<'a> {
    /// The action is taken at once, on this many interrupts. [`IrqAction::Trigger`] of 0 interrupts disables the kind.
    All(u32),
    /// The action is taken at once, on the interrupts whose entry is `true`.
    Selected(&'a [bool]),
    /// With [`IrqAction::Trigger`], an interrupt of the device signals its eventfd from now on. With the other two, a
    /// signal on its eventfd takes the action from now on. `None` removes the eventfd of an interrupt.
    Eventfds(&'a [Option<BorrowedFd<'a>>]),
}

impl Device {
    /// Describes a kind of interrupt (linux: drivers/vfio/pci/vfio_pci_core.c, vfio_pci_ioctl_get_irq_info).
    ///
    /// # Errors
    /// The kernel's answer: `EINVAL` for a kind that the device's bus does not have.
    pub fn irqs(&self, index: IrqIndex) -> Result<IrqProperties, DeviceError> {
        let mut info = IrqInfo { argsz: IrqInfo::SIZE, index: index.0, ..IrqInfo::default() };
        let asked = self.door.call(self.handle, Command::with_bytes(DEVICE_GET_IRQ_INFO, info.as_mut_bytes()));
        asked.map_err(|failure| self.error(Action::DescribeIrqs(index), failure))?;
        Ok(IrqProperties {
            index,
            count: info.count,
            eventfd: info.flags & IRQ_EVENTFD != 0,
            maskable: info.flags & IRQ_MASKABLE != 0,
            automasked: info.flags & IRQ_AUTOMASKED != 0,
            resizable: info.flags & IRQ_NORESIZE == 0,
            flags: info.flags,
        })
    }

    /// Signals the eventfd of each interrupt from `start` on when the device raises it. `None` removes an eventfd. The
    /// first call for a kind enables it.
    ///
    /// # Errors
    /// As [`Device::set_irqs`].
    pub fn deliver_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        self.set_irqs(index, start, IrqAction::Trigger, IrqData::Eventfds(eventfds))
    }

    /// Unmasks each interrupt from `start` on when its eventfd is signalled: the resample eventfd of KVM's INTx.
    /// `None` removes an eventfd.
    ///
    /// # Errors
    /// As [`Device::set_irqs`]; `EBUSY` while the interrupt has another eventfd for this (linux:
    /// drivers/vfio/virqfd.c, vfio_virqfd_enable).
    pub fn unmask_irqs_by(
        &self,
        index: IrqIndex,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<(), DeviceError> {
        self.set_irqs(index, start, IrqAction::Unmask, IrqData::Eventfds(eventfds))
    }

    /// Masks `count` interrupts from `start` on.
    ///
    /// # Errors
    /// As [`Device::set_irqs`].
    pub fn mask_irqs(&self, index: IrqIndex, start: u32, count: u32) -> Result<(), DeviceError> {
        self.set_irqs(index, start, IrqAction::Mask, IrqData::All(count))
    }

    /// Unmasks `count` interrupts from `start` on.
    ///
    /// # Errors
    /// As [`Device::set_irqs`].
    pub fn unmask_irqs(&self, index: IrqIndex, start: u32, count: u32) -> Result<(), DeviceError> {
        self.set_irqs(index, start, IrqAction::Unmask, IrqData::All(count))
    }

    /// Delivers `count` interrupts from `start` on, as if the device had raised them.
    ///
    /// # Errors
    /// As [`Device::set_irqs`].
    pub fn trigger_irqs(&self, index: IrqIndex, start: u32, count: u32) -> Result<(), DeviceError> {
        self.set_irqs(index, start, IrqAction::Trigger, IrqData::All(count))
    }

    /// Disables a kind of interrupt, and removes its eventfds.
    ///
    /// # Errors
    /// As [`Device::set_irqs`]; `EINVAL` for a kind that is not enabled.
    pub fn disable_irqs(&self, index: IrqIndex) -> Result<(), DeviceError> {
        self.set_irqs(index, 0, IrqAction::Trigger, IrqData::All(0))
    }

    /// Takes `action` on interrupts from `start` on, or has it taken by eventfds (linux:
    /// drivers/vfio/pci/vfio_pci_intrs.c, vfio_pci_set_irqs_ioctl).
    ///
    /// # Errors
    /// The kernel's answer: `EINVAL` for interrupts that the device does not have, for a kind that is not enabled, for
    /// one while another is enabled, and for a descriptor that is no eventfd; `ENOTTY` for an action that the kind
    /// lacks; a positive number where the host has no more than that many MSI vectors for the device.
    pub fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<(), DeviceError> {
        self.try_to_set(index, start, action, data).map_err(|failure| self.error(Action::SetIrqs(index), failure))
    }

    fn try_to_set(&self, index: IrqIndex, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<(), Failure> {
        let (kind, count) = match data {
            IrqData::All(count) => (IRQ_DATA_NONE, count),
            IrqData::Selected(selected) => (IRQ_DATA_BOOL, number_of(selected.len())?),
            IrqData::Eventfds(eventfds) => (IRQ_DATA_EVENTFD, number_of(eventfds.len())?),
        };
        let head = IrqSet { argsz: 0, flags: kind | action.flag(), index: index.0, start, count };
        let mut bytes = head.as_bytes().to_vec();
        match data {
            IrqData::All(_) => {}
            IrqData::Selected(selected) => bytes.extend(selected.iter().map(|selected| u8::from(*selected))),
            IrqData::Eventfds(eventfds) => bytes.resize(bytes.len() + size_of::<i32>() * eventfds.len(), 0),
        }
        let argsz = number_of(bytes.len())?;
        bytes.splice(..size_of::<u32>(), argsz.to_ne_bytes());
        let mut attached = Vec::new();
        if let IrqData::Eventfds(eventfds) = data {
            attached.push(Attachment { offset: size_of::<IrqSet>(), what: Attached::Eventfds(eventfds) });
        }
        self.door.call(self.handle, Command::with_bytes(DEVICE_SET_IRQS, &mut bytes).attaching(&mut attached))
    }
}

// The first field is the size.
const _: () = assert!(offset_of!(IrqSet, argsz) == 0);

/// A number of interrupts or bytes. More than the kernel can count is `EINVAL`, as it is for the kernel.
fn number_of(len: usize) -> Result<u32, Failure> {
    u32::try_from(len).map_err(|_| Failure::from_errno(DEVICE_SET_IRQS.name, Errno::EINVAL))
}

impl IrqAction {
    const fn flag(self) -> u32 {
        match self {
            Self::Mask => IRQ_MASK,
            Self::Unmask => IRQ_UNMASK,
            Self::Trigger => IRQ_TRIGGER,
        }
    }
}
