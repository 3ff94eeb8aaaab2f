//! Interrupts through eventfds, resets, and the descriptions of a device, on a real kernel.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::device::{AffectedOwner, Device, DeviceKind, IrqIndex};
use dmaspace::open::{Host, OpenError, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_core::door::Errno;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::edu::Edu;

/// A trial: its name, and its body with the host, the backend and an `edu`.
pub type DeviceTrial = (&'static str, fn(&Host, BackendKind, PciAddress) -> Result<(), OpenError>);

/// Every trial.
pub const ALL: &[DeviceTrial] = &[
    ("a_device_is_described", a_device_is_described),
    ("intx_arrives_again_until_it_is_acknowledged", intx_arrives_again_until_it_is_acknowledged),
    ("a_signal_on_the_resample_eventfd_unmasks_intx", a_signal_on_the_resample_eventfd_unmasks_intx),
    ("an_msi_arrives", an_msi_arrives),
    ("interrupts_are_refused_as_the_soft_host_refuses_them", interrupts_are_refused_as_the_soft_host_refuses_them),
    ("a_reset_works_where_the_kernel_says_so", a_reset_works_where_the_kernel_says_so),
    ("a_hot_reset_works_where_the_bus_can_be_reset", a_hot_reset_works_where_the_bus_can_be_reset),
    ("edu_has_neither_migration_nor_a_log", edu_has_neither_migration_nor_a_log),
];

/// The time for an interrupt to arrive.
const PATIENCE: Duration = Duration::from_secs(20);
/// The time after which an interrupt is taken not to arrive.
const SILENCE: Duration = Duration::from_millis(300);

fn open(host: &Host, backend: BackendKind, address: PciAddress) -> Result<(Opened, Edu), OpenError> {
    let mut opened = host.open(&OpenRequest::device(address).with_backend(backend))?;
    let edu = Edu::new(opened.devices.remove(0));
    Ok((opened, edu))
}

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("a descriptor is left")
}

/// Waits for a signal, and resets the counter. Returns `false` if none came.
fn is_signalled(eventfd: &OwnedFd, within: Duration) -> bool {
    let timeout = Timespec::try_from(within).expect("a short time");
    let mut waiting = [PollFd::new(eventfd, PollFlags::IN)];
    let ready = poll(&mut waiting, Some(&timeout)).expect("poll(2) accepts an eventfd");
    ready > 0 && rustix::io::read(eventfd, &mut [0; 8]).is_ok()
}

fn errno<T>(result: Result<T, dmaspace::device::DeviceError>) -> Option<Errno> {
    result.err().and_then(|error| error.errno())
}

fn a_device_is_described(host: &Host, backend: BackendKind, address: PciAddress) -> Result<(), OpenError> {
    let (_opened, edu) = open(host, backend, address)?;
    let device = edu.device();
    let properties = device.properties().expect("described");
    assert_eq!((properties.kind, properties.irqs), (DeviceKind::Pci, 5));
    assert!(properties.regions >= 9, "{properties:?}");
    let intx = device.irqs(IrqIndex::INTX).expect("described");
    assert_eq!((intx.count, intx.eventfd, intx.maskable, intx.automasked), (1, true, true, true));
    let msi = device.irqs(IrqIndex::MSI).expect("described");
    assert_eq!((msi.count, msi.eventfd, msi.maskable, msi.resizable), (1, true, false, false));
    assert_eq!(device.irqs(IrqIndex::MSIX).map(|irqs| irqs.count), Ok(0));
    assert_eq!(device.irqs(IrqIndex::REQUEST).map(|irqs| irqs.count), Ok(1));
    assert_eq!(errno(device.irqs(IrqIndex(5))), Some(Errno::EINVAL));
    let bar = device.region(0).expect("described");
    assert_eq!((bar.size, bar.offset, bar.mappable.len()), (1 << 20, 0, 1));
    assert_eq!(device.region(7).expect("described").offset, 7 << 40);
    Ok(())
}

fn intx_arrives_again_until_it_is_acknowledged(
    host: &Host,
    backend: BackendKind,
    address: PciAddress,
) -> Result<(), OpenError> {
    let (_opened, edu) = open(host, backend, address)?;
    let (device, arrived) = (edu.device(), new_eventfd());
    device.deliver_irqs(IrqIndex::INTX, 0, &[Some(arrived.as_fd())]).expect("enabled");
    edu.raise(1);
    assert!(is_signalled(&arrived, PATIENCE), "INTx does not arrive");
    assert!(!is_signalled(&arrived, SILENCE), "its delivery does not mask it");
    device.unmask_irqs(IrqIndex::INTX, 0, 1).expect("unmasked");
    assert!(is_signalled(&arrived, PATIENCE), "INTx is still raised, and does not arrive again");
    edu.acknowledge(1);
    device.unmask_irqs(IrqIndex::INTX, 0, 1).expect("unmasked");
    assert!(!is_signalled(&arrived, SILENCE), "INTx arrives after it was acknowledged");
    device.trigger_irqs(IrqIndex::INTX, 0, 1).expect("triggered");
    assert!(is_signalled(&arrived, PATIENCE), "a triggered INTx does not arrive");
    device.disable_irqs(IrqIndex::INTX).expect("disabled");
    Ok(())
}

fn a_signal_on_the_resample_eventfd_unmasks_intx(
    host: &Host,
    backend: BackendKind,
    address: PciAddress,
) -> Result<(), OpenError> {
    let (_opened, edu) = open(host, backend, address)?;
    let (device, arrived, resample) = (edu.device(), new_eventfd(), new_eventfd());
    device.deliver_irqs(IrqIndex::INTX, 0, &[Some(arrived.as_fd())]).expect("enabled");
    device.unmask_irqs_by(IrqIndex::INTX, 0, &[Some(resample.as_fd())]).expect("set");
    assert_eq!(errno(device.unmask_irqs_by(IrqIndex::INTX, 0, &[Some(resample.as_fd())])), Some(Errno::EBUSY));
    edu.raise(1);
    assert!(is_signalled(&arrived, PATIENCE), "INTx does not arrive");
    rustix::io::write(&resample, &1_u64.to_ne_bytes()).expect("the counter is not full");
    assert!(is_signalled(&arrived, PATIENCE), "INTx is still raised, and does not arrive again");
    edu.acknowledge(1);
    device.unmask_irqs_by(IrqIndex::INTX, 0, &[None]).expect("removed");
    device.disable_irqs(IrqIndex::INTX).expect("disabled");
    Ok(())
}

fn an_msi_arrives(host: &Host, backend: BackendKind, address: PciAddress) -> Result<(), OpenError> {
    let (_opened, edu) = open(host, backend, address)?;
    let (device, arrived) = (edu.device(), new_eventfd());
    device.deliver_irqs(IrqIndex::MSI, 0, &[Some(arrived.as_fd())]).expect("enabled");
    for value in [1, 2] {
        edu.raise(value);
        assert!(is_signalled(&arrived, PATIENCE), "MSI does not arrive");
        edu.acknowledge(value);
    }
    device.deliver_irqs(IrqIndex::MSI, 0, &[None]).expect("removed");
    edu.raise(1);
    assert!(!is_signalled(&arrived, SILENCE), "MSI arrives without an eventfd");
    edu.acknowledge(1);
    device.disable_irqs(IrqIndex::MSI).expect("disabled");
    Ok(())
}

fn interrupts_are_refused_as_the_soft_host_refuses_them(
    host: &Host,
    backend: BackendKind,
    address: PciAddress,
) -> Result<(), OpenError> {
    let (_opened, edu) = open(host, backend, address)?;
    let (device, eventfd) = (edu.device(), new_eventfd());
    let one = [Some(eventfd.as_fd())];
    let null = std::fs::File::open("/dev/null").expect("it is there");
    assert_eq!(errno(device.disable_irqs(IrqIndex::MSI)), Some(Errno::EINVAL), "MSI is not enabled");
    assert_eq!(errno(device.mask_irqs(IrqIndex::INTX, 0, 1)), Some(Errno::EINVAL), "INTx is not enabled");
    assert_eq!(errno(device.deliver_irqs(IrqIndex::MSI, 1, &one)), Some(Errno::EINVAL), "there is one MSI");
    assert_eq!(errno(device.deliver_irqs(IrqIndex::MSI, 0, &[Some(null.as_fd())])), Some(Errno::EINVAL));
    assert_eq!(errno(device.mask_irqs(IrqIndex::MSI, 0, 1)), Some(Errno::ENOTTY));
    device.deliver_irqs(IrqIndex::MSI, 0, &one).expect("enabled");
    assert_eq!(errno(device.deliver_irqs(IrqIndex::INTX, 0, &one)), Some(Errno::EINVAL), "MSI is enabled");
    device.disable_irqs(IrqIndex::MSI).expect("disabled");
    device.deliver_irqs(IrqIndex::REQUEST, 0, &one).expect("set");
    device.trigger_irqs(IrqIndex::REQUEST, 0, 1).expect("delivered");
    assert!(is_signalled(&eventfd, PATIENCE), "the request does not arrive");
    device.disable_irqs(IrqIndex::REQUEST).expect("removed");
    assert_eq!(errno(device.trigger_irqs(IrqIndex::REQUEST, 0, 1)), Some(Errno::EINVAL));
    Ok(())
}

fn a_reset_works_where_the_kernel_says_so(
    host: &Host,
    backend: BackendKind,
    address: PciAddress,
) -> Result<(), OpenError> {
    let (_opened, edu) = open(host, backend, address)?;
    let can_reset = edu.device().properties().expect("described").can_reset;
    let reset = edu.device().reset();
    let expected = if can_reset { None } else { Some(Errno::EINVAL) };
    assert_eq!(errno(reset), expected);
    edu.device().enable().expect("the device answers after the reset");
    assert!(edu.is_there(), "the device does not answer after the reset");
    Ok(())
}

fn a_hot_reset_works_where_the_bus_can_be_reset(
    host: &Host,
    backend: BackendKind,
    address: PciAddress,
) -> Result<(), OpenError> {
    let (opened, edu) = open(host, backend, address)?;
    let groups: Vec<_> = opened.space.groups().iter().map(|group| &**group).collect();
    match edu.device().affected_by_hot_reset() {
        Ok(affected) => hot_reset(edu.device(), address, &affected, &groups),
        // A root bus has no bridge that could reset it.
        Err(error) => {
            assert_eq!(error.errno(), Some(Errno::ENODEV));
            assert_eq!(errno(edu.device().hot_reset(&groups)), Some(Errno::ENODEV));
        }
    }
    Ok(())
}

fn hot_reset(
    device: &Device,
    address: PciAddress,
    affected: &dmaspace::device::AffectedDevices,
    groups: &[&dmaspace::group::VfioGroup],
) {
    let found = affected.devices.iter().find(|found| found.address == address).expect("the device itself is listed");
    assert!(matches!(found.owner, AffectedOwner::Group(_)), "{affected:?}");
    assert_eq!(affected.all_owned, None);
    assert_eq!(errno(device.hot_reset(&[])), Some(Errno::EINVAL), "it was opened through its group");
    let alone = affected.devices.len() == 1;
    assert_eq!(errno(device.hot_reset(groups)), if alone { None } else { Some(Errno::EINVAL) });
}

fn edu_has_neither_migration_nor_a_log(
    host: &Host,
    backend: BackendKind,
    address: PciAddress,
) -> Result<(), OpenError> {
    let (_opened, edu) = open(host, backend, address)?;
    assert_eq!(edu.device().migration(), Ok(None));
    assert_eq!(errno(edu.device().migration_state()), Some(Errno::ENOTTY));
    assert_eq!(errno(edu.device().stop_logging()), Some(Errno::ENOTTY));
    assert_eq!(errno(edu.device().set_vf_token(&dmaspace::device::VfToken([0; 16]))), Some(Errno::ENOTTY));
    Ok(())
}
