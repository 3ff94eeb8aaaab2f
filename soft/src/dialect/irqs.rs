//! The interrupts of a device, and the eventfds that they are delivered to (linux: drivers/vfio/pci/vfio_pci_intrs.c).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};

use dmaspace_abi::device::{self, IrqSet};
use dmaspace_core::door::Errno;

use crate::dialect::call::Call;
use crate::dialect::require;

/// The interrupts of a device.
#[derive(Debug, Default)]
pub(crate) struct Irqs {
    /// The kind that is enabled: INTx, MSI or MSI-X.
    enabled: Option<u32>,
    intx: Intx,
    /// The eventfds of MSI or MSI-X vectors.
    vectors: BTreeMap<u32, Eventfd>,
    /// The number of vectors that MSI or MSI-X was enabled with.
    allocated: u32,
    error: Option<Eventfd>,
    request: Option<Eventfd>,
}

/// The state of INTx.
#[derive(Debug, Default)]
struct Intx {
    trigger: Option<Eventfd>,
    /// A signal on it unmasks the interrupt.
    unmask: Option<Eventfd>,
    is_masked: bool,
    /// The level of the device's pin.
    is_asserted: bool,
}

/// The number of MSI interrupts.
const MSI: u32 = 8;
/// The number of MSI-X interrupts.
const MSIX: u32 = 16;

/// One SET_IRQS.
struct Request<'c> {
    head: IrqSet,
    /// A byte for each interrupt.
    bools: &'c [u8],
    eventfds: &'c [Option<BorrowedFd<'c>>],
}

impl Request<'_> {
    fn is(&self, data: u32) -> bool {
        self.head.flags & data != 0
    }

    /// The first eventfd.
    fn eventfd(&self) -> Result<Option<Eventfd>, Errno> {
        self.eventfds.first().copied().flatten().map(Eventfd::of).transpose()
    }

    /// Returns whether the action is taken on interrupt `n` of the request.
    fn selects(&self, n: u32) -> bool {
        self.is(device::IRQ_DATA_NONE) || self.bools.get(n as usize).is_some_and(|byte| *byte != 0)
    }
}

impl Irqs {
    /// vfio_pci_get_irq_count.
    pub(crate) fn count(index: u32) -> u32 {
        match index {
            device::IRQ_INTX | device::IRQ_ERROR | device::IRQ_REQUEST => 1,
            device::IRQ_MSI => MSI,
            device::IRQ_MSIX => MSIX,
            _ => 0,
        }
    }

    /// vfio_pci_ioctl_set_irqs. `dynamic`: vectors can be added while MSI-X is enabled.
    pub(crate) fn set(&mut self, dynamic: bool, call: &Call<'_, '_>) -> Result<i32, Errno> {
        let head: IrqSet = call.read()?;
        let end = validate(&head)?;
        let bools = if head.flags & device::IRQ_DATA_BOOL == 0 {
            &[]
        } else {
            call.bytes()?.get(size_of::<IrqSet>()..end).ok_or(Errno::EFAULT)?
        };
        let request = Request { head, bools, eventfds: call.eventfds(size_of::<IrqSet>()) };
        match (head.index, head.flags & device::IRQ_ACTIONS) {
            (device::IRQ_INTX, device::IRQ_MASK) => self.mask_intx(&request)?,
            (device::IRQ_INTX, device::IRQ_UNMASK) => self.unmask_intx(&request)?,
            (device::IRQ_INTX, device::IRQ_TRIGGER) => self.trigger_intx(&request)?,
            (device::IRQ_MSI | device::IRQ_MSIX, device::IRQ_TRIGGER) => self.trigger_vectors(dynamic, &request)?,
            (device::IRQ_ERROR, device::IRQ_TRIGGER) => notification(&mut self.error, &request)?,
            (device::IRQ_REQUEST, device::IRQ_TRIGGER) => notification(&mut self.request, &request)?,
            _ => return Err(Errno::ENOTTY),
        }
        Ok(0)
    }

    fn is_intx(&self) -> bool {
        self.enabled == Some(device::IRQ_INTX)
    }

    /// vfio_pci_set_intx_mask.
    fn mask_intx(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        require(self.is_intx() && request.head.start == 0 && request.head.count == 1, Errno::EINVAL)?;
        require(!request.is(device::IRQ_DATA_EVENTFD), Errno::ENOTTY)?;
        if request.selects(0) {
            self.intx.is_masked = true;
        }
        Ok(())
    }

    /// vfio_pci_set_intx_unmask; vfio_virqfd_enable.
    fn unmask_intx(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        require(self.is_intx() && request.head.start == 0 && request.head.count == 1, Errno::EINVAL)?;
        if request.is(device::IRQ_DATA_EVENTFD) {
            let eventfd = request.eventfd()?;
            require(eventfd.is_none() || self.intx.unmask.is_none(), Errno::EBUSY)?;
            self.intx.unmask = eventfd;
            self.intx.follow_unmask();
        } else if request.selects(0) {
            self.intx.unmask();
        }
        Ok(())
    }

    /// vfio_pci_set_intx_trigger.
    fn trigger_intx(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        if self.is_intx() && request.head.count == 0 && request.is(device::IRQ_DATA_NONE) {
            self.disable();
            return Ok(());
        }
        require(self.enabled.is_none() || self.is_intx(), Errno::EINVAL)?;
        require(request.head.start == 0 && request.head.count == 1, Errno::EINVAL)?;
        if request.is(device::IRQ_DATA_EVENTFD) {
            self.intx.trigger = request.eventfd()?;
            self.enabled = Some(device::IRQ_INTX);
            self.intx.deliver();
            return Ok(());
        }
        require(self.is_intx(), Errno::EINVAL)?;
        if request.selects(0) {
            signal(self.intx.trigger.as_ref());
        }
        Ok(())
    }

    /// vfio_pci_set_msi_trigger.
    fn trigger_vectors(&mut self, dynamic: bool, request: &Request<'_>) -> Result<(), Errno> {
        let IrqSet { index, start, count, .. } = request.head;
        let is_enabled = self.enabled == Some(index);
        if is_enabled && count == 0 && request.is(device::IRQ_DATA_NONE) {
            self.disable();
            return Ok(());
        }
        require(is_enabled || self.enabled.is_none(), Errno::EINVAL)?;
        if !request.is(device::IRQ_DATA_EVENTFD) {
            require(is_enabled, Errno::EINVAL)?;
            for (n, vector) in (start..start + count).enumerate() {
                if request.selects(u32::try_from(n).unwrap_or(u32::MAX)) {
                    signal(self.vectors.get(&vector));
                }
            }
            return Ok(());
        }
        if !is_enabled {
            (self.enabled, self.allocated) = (Some(index), start + count);
        }
        let may_grow = index == device::IRQ_MSIX && dynamic;
        let set = self.set_block(start, may_grow, request.eventfds);
        if set.is_err() && !is_enabled {
            self.disable();
        }
        set
    }

    /// vfio_msi_set_block: a vector that fails takes the earlier ones of the request with it.
    fn set_block(&mut self, start: u32, may_grow: bool, eventfds: &[Option<BorrowedFd<'_>>]) -> Result<(), Errno> {
        for (vector, eventfd) in (start..).zip(eventfds) {
            if let Err(errno) = self.set_vector(vector, may_grow, *eventfd) {
                for set in start..=vector {
                    self.vectors.remove(&set);
                }
                return Err(errno);
            }
        }
        Ok(())
    }

    /// vfio_msi_set_vector_signal.
    fn set_vector(&mut self, vector: u32, may_grow: bool, eventfd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        self.vectors.remove(&vector);
        let Some(eventfd) = eventfd else { return Ok(()) };
        require(vector < self.allocated || may_grow, Errno::EINVAL)?;
        self.vectors.insert(vector, Eventfd::of(eventfd)?);
        Ok(())
    }

    /// vfio_intx_disable, vfio_msi_disable.
    fn disable(&mut self) {
        let is_asserted = self.intx.is_asserted;
        self.intx = Intx { is_asserted, ..Intx::default() };
        self.vectors.clear();
        (self.enabled, self.allocated) = (None, 0);
    }

    /// The device raises its pin.
    pub(crate) fn assert(&mut self) {
        self.intx.is_asserted = true;
        self.follow_unmask();
        if self.is_intx() {
            self.intx.deliver();
        }
    }

    /// The device lowers its pin.
    pub(crate) fn deassert(&mut self) {
        self.intx.is_asserted = false;
    }

    /// Does the work of the kernel's thread behind an eventfd that unmasks (linux: drivers/vfio/virqfd.c,
    /// virqfd_wakeup): this host looks at it when it is used.
    pub(crate) fn follow_unmask(&mut self) {
        if self.is_intx() {
            self.intx.follow_unmask();
        }
    }

    /// The device sends the message of a vector. Returns whether it was delivered.
    pub(crate) fn send(&self, vector: u32) -> bool {
        signal(self.vectors.get(&vector))
    }

    /// The device reports an uncorrectable error.
    pub(crate) fn report_error(&self) -> bool {
        signal(self.error.as_ref())
    }

    /// The kernel wants the device back.
    pub(crate) fn request_back(&self) -> bool {
        signal(self.request.as_ref())
    }
}

impl Intx {
    /// vfio_intx_handler: an interrupt is masked when it is delivered.
    fn deliver(&mut self) {
        if self.is_asserted && !self.is_masked {
            self.is_masked = true;
            signal(self.trigger.as_ref());
        }
    }

    /// __vfio_pci_intx_unmask: a pin that is still raised is delivered again.
    fn unmask(&mut self) {
        self.is_masked = false;
        self.deliver();
    }

    fn follow_unmask(&mut self) {
        if self.unmask.as_ref().is_some_and(Eventfd::take) {
            self.unmask();
        }
    }
}

/// vfio_pci_set_ctx_trigger_single.
fn notification(place: &mut Option<Eventfd>, request: &Request<'_>) -> Result<(), Errno> {
    let IrqSet { start, count, .. } = request.head;
    require(start == 0 && count <= 1, Errno::EINVAL)?;
    if request.is(device::IRQ_DATA_EVENTFD) {
        require(count == 1, Errno::EINVAL)?;
        *place = request.eventfd()?;
        return Ok(());
    }
    if request.is(device::IRQ_DATA_NONE) {
        require(place.is_some(), Errno::EINVAL)?;
        if count == 0 {
            *place = None;
        } else {
            signal(place.as_ref());
        }
        return Ok(());
    }
    require(count == 1, Errno::EINVAL)?;
    if request.selects(0) {
        signal(place.as_ref());
    }
    Ok(())
}

/// vfio_set_irqs_validate_and_prepare. Returns the end of the data.
fn validate(head: &IrqSet) -> Result<usize, Errno> {
    let known = device::IRQ_DATA_TYPES | device::IRQ_ACTIONS;
    require(head.argsz >= IrqSet::SIZE && head.index < device::PCI_IRQS, Errno::EINVAL)?;
    require(head.count < u32::MAX - head.start && head.flags & !known == 0, Errno::EINVAL)?;
    let count = Irqs::count(head.index);
    require(head.start < count && head.start + head.count <= count, Errno::EINVAL)?;
    let each = match head.flags & device::IRQ_DATA_TYPES {
        device::IRQ_DATA_NONE => 0,
        device::IRQ_DATA_BOOL => size_of::<u8>(),
        device::IRQ_DATA_EVENTFD => size_of::<i32>(),
        _ => return Err(Errno::EINVAL),
    };
    let end = size_of::<IrqSet>() + head.count as usize * each;
    require(head.argsz as usize >= end, Errno::EINVAL)?;
    Ok(end)
}

/// Signals an eventfd. Returns whether there is one.
fn signal(eventfd: Option<&Eventfd>) -> bool {
    if let Some(eventfd) = eventfd {
        eventfd.signal();
    }
    eventfd.is_some()
}

/// A duplicate of a caller's eventfd, as the kernel keeps a reference to it.
#[derive(Debug)]
struct Eventfd(File);

impl Eventfd {
    /// eventfd_ctx_fdget: `EINVAL` for another kind of file.
    fn of(descriptor: BorrowedFd<'_>) -> Result<Self, Errno> {
        let eventfd = Self(File::from(descriptor.try_clone_to_owned()?));
        require(eventfd.count().is_some(), Errno::EINVAL)?;
        Ok(eventfd)
    }

    /// The counter. `None` for a file that is no eventfd (linux: fs/eventfd.c, eventfd_show_fdinfo).
    fn count(&self) -> Option<u64> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd())).ok()?;
        let count = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"))?;
        u64::from_str_radix(count.trim(), 16).ok()
    }

    /// eventfd_signal. A full counter stays as it is, which the kernel does not report either.
    fn signal(&self) {
        let _full = (&self.0).write(&1_u64.to_ne_bytes());
    }

    /// Resets the counter, and returns whether it had been signalled.
    fn take(&self) -> bool {
        let is_signalled = self.count().is_some_and(|count| count > 0);
        is_signalled && (&self.0).read(&mut [0; 8]).is_ok()
    }
}
