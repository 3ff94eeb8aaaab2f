//! The device's half beside DMA, on the host in software: information, regions, interrupts, resets and features.
#![expect(clippy::expect_used, clippy::indexing_slicing, reason = "a failing arrangement is a failing test")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use dmaspace::device::{
    AffectedOwner, Device, DeviceError, DeviceKind, IrqAction, IrqData, IrqIndex, MigrationState, VfToken,
};
use dmaspace::door::{Errno, HandleKind, OwnedHandle};
use dmaspace::soft::{FaultMode, FaultPlan, Profile, SoftDevice, SoftHost};
use dmaspace::{Access, BackendKind, Facts, Host, HostMemory, Iova, IovaRange, OpenRequest, Opened, PageSize};

const ADDRESS: &str = "0000:00:03.0";

/// A device of a host, opened.
struct Open {
    soft: Arc<SoftHost>,
    opened: Opened,
}

impl Open {
    fn on(profile: Profile, address: &str, backend: BackendKind) -> Self {
        let soft = SoftHost::new(profile).expect("a preset");
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let request = OpenRequest::device(address.parse().expect("an address")).with_backend(backend);
        let opened = host.open(&request).expect("the soft host opens its device");
        Self { soft, opened }
    }

    fn new() -> Self {
        Self::on(Profile::vtd(), ADDRESS, BackendKind::Type1)
    }

    fn device(&self) -> &Device {
        &self.opened.devices[0]
    }

    fn hardware(&self) -> SoftDevice {
        self.soft.device(ADDRESS).expect("it is there")
    }
}

fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("a descriptor is left")
}

/// The number of signals since it was last asked.
fn signals(eventfd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(eventfd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

fn signal(eventfd: &OwnedFd) {
    rustix::io::write(eventfd, &1_u64.to_ne_bytes()).expect("the counter is not full");
}

fn lent(eventfds: &[OwnedFd]) -> Vec<Option<BorrowedFd<'_>>> {
    eventfds.iter().map(|eventfd| Some(eventfd.as_fd())).collect()
}

fn errno<T: std::fmt::Debug>(result: Result<T, DeviceError>) -> Option<Errno> {
    result.expect_err("refused").errno()
}

#[test]
fn a_device_says_its_kind_and_counts() {
    let open = Open::new();
    let properties = open.device().properties().expect("described");
    assert_eq!((properties.kind, properties.can_reset), (DeviceKind::Pci, true));
    assert_eq!((properties.regions, properties.irqs, properties.capabilities.len()), (9, 5, 0));
}

#[test]
fn regions_have_places_in_the_descriptor_and_bytes() {
    let open = Open::new();
    let device = open.device();
    let bar = device.region(0).expect("described");
    let config = device.region(7).expect("described");
    assert_eq!((bar.size, bar.offset, config.size, config.offset), (0x4000, 0, 0x1000, 7 << 40));
    assert_eq!((bar.access, bar.mappable.len(), bar.capabilities.len()), (Access::READ_WRITE, 0, 0));
    assert_eq!(device.region(1).map(|region| (region.size, region.flags)), Ok((0, 0)));
    assert_eq!([8, 9].map(|index| errno(device.region(index))), [Some(Errno::EINVAL); 2]);

    let mut bytes = [0; 4];
    let error = device.read(&bar, 8, &mut bytes).expect_err("its memory is disabled").to_string();
    assert_eq!(error, "0000:00:03.0: read BAR 0: EIO; enable the device's memory first (Device::enable)");
    device.enable().expect("enabled");
    device.write(&bar, 8, b"dmas").expect("written");
    device.read(&bar, 8, &mut bytes).expect("read");
    assert_eq!(&bytes, b"dmas");
    device.read(&config, 0, &mut bytes).expect("read");
    assert_eq!(bytes, [0x34, 0x12, 0xe8, 0x11]);
    device.reset().expect("reset");
    device.read(&bar, 8, &mut bytes).expect("the configuration stays");
    assert_eq!(bytes, [0; 4]);
}

#[test]
fn each_kind_of_interrupt_has_its_number_and_flags() {
    let open = Open::new();
    let described = |index| {
        let irqs = open.device().irqs(index).expect("described");
        (irqs.count, irqs.eventfd, irqs.maskable, irqs.automasked, irqs.resizable)
    };
    assert_eq!(described(IrqIndex::INTX), (1, true, true, true, true));
    assert_eq!(described(IrqIndex::MSI), (8, true, false, false, false));
    assert_eq!(described(IrqIndex::MSIX), (16, true, false, false, true));
    assert_eq!(described(IrqIndex::ERROR), (1, true, false, false, false));
    assert_eq!(described(IrqIndex::REQUEST), (1, true, false, false, false));
    let error = open.device().irqs(IrqIndex(5)).expect_err("there is no such kind").to_string();
    assert_eq!(error, "0000:00:03.0: describe interrupt 5: VFIO_DEVICE_GET_IRQ_INFO: EINVAL");
}

#[test]
fn msix_on_power_cannot_grow() {
    let open = Open::on(Profile::powernv9(), "0000:01:00.0", BackendKind::Spapr);
    assert_eq!(open.device().irqs(IrqIndex::MSIX).map(|irqs| irqs.resizable), Ok(false));
}

#[test]
fn intx_is_masked_by_its_delivery_and_delivered_again_while_it_is_raised() {
    let open = Open::new();
    let (device, hardware, eventfd) = (open.device(), open.hardware(), eventfd());
    device.deliver_irqs(IrqIndex::INTX, 0, &[Some(eventfd.as_fd())]).expect("enabled");
    hardware.raise_intx();
    hardware.raise_intx();
    assert_eq!(signals(&eventfd), 1);
    device.unmask_irqs(IrqIndex::INTX, 0, 1).expect("unmasked");
    assert_eq!(signals(&eventfd), 1, "it is still raised");
    hardware.lower_intx();
    device.unmask_irqs(IrqIndex::INTX, 0, 1).expect("unmasked");
    assert_eq!(signals(&eventfd), 0);
    device.mask_irqs(IrqIndex::INTX, 0, 1).expect("masked");
    hardware.raise_intx();
    assert_eq!(signals(&eventfd), 0);
    device.set_irqs(IrqIndex::INTX, 0, IrqAction::Unmask, IrqData::Selected(&[false])).expect("nothing selected");
    assert_eq!(signals(&eventfd), 0);
    device.set_irqs(IrqIndex::INTX, 0, IrqAction::Unmask, IrqData::Selected(&[true])).expect("unmasked");
    assert_eq!(signals(&eventfd), 1);
}

#[test]
fn a_signal_on_the_resample_eventfd_unmasks_intx() {
    let open = Open::new();
    let (device, hardware) = (open.device(), open.hardware());
    let (delivered, resample) = (eventfd(), eventfd());
    let refused = device.unmask_irqs_by(IrqIndex::INTX, 0, &[Some(resample.as_fd())]);
    assert_eq!(errno(refused), Some(Errno::EINVAL), "INTx is not enabled");
    device.deliver_irqs(IrqIndex::INTX, 0, &[Some(delivered.as_fd())]).expect("enabled");
    device.unmask_irqs_by(IrqIndex::INTX, 0, &[Some(resample.as_fd())]).expect("set");
    hardware.raise_intx();
    assert_eq!(signals(&delivered), 1);
    signal(&resample);
    hardware.follow_unmask();
    assert_eq!((signals(&delivered), signals(&resample)), (1, 0));
    let error = device.unmask_irqs_by(IrqIndex::INTX, 0, &[Some(resample.as_fd())]).expect_err("there is one");
    assert_eq!(
        error.to_string(),
        "0000:00:03.0: set INTx: VFIO_DEVICE_SET_IRQS: EBUSY; remove the earlier eventfd first"
    );
    device.unmask_irqs_by(IrqIndex::INTX, 0, &[None]).expect("removed");
    device.unmask_irqs_by(IrqIndex::INTX, 0, &[Some(resample.as_fd())]).expect("set again");
}

#[test]
fn a_message_signals_the_eventfd_of_its_vector() {
    for (index, last) in [(IrqIndex::MSI, 7), (IrqIndex::MSIX, 15)] {
        let open = Open::new();
        let (device, hardware) = (open.device(), open.hardware());
        let eventfds = [eventfd(), eventfd()];
        device.deliver_irqs(index, 0, &lent(&eventfds)).expect("enabled");
        assert_eq!([0, 1, 1, 2].map(|vector| hardware.send_msi(vector)), [true, true, true, false]);
        assert_eq!(eventfds.each_ref().map(signals), [1, 2]);
        device.trigger_irqs(index, 1, 1).expect("delivered");
        device.set_irqs(index, 0, IrqAction::Trigger, IrqData::Selected(&[true, false])).expect("delivered");
        assert_eq!(eventfds.each_ref().map(signals), [1, 1]);
        device.deliver_irqs(index, 0, &[None]).expect("removed");
        assert_eq!([0, 1].map(|vector| hardware.send_msi(vector)), [false, true]);
        let grown = device.deliver_irqs(index, last, &[Some(eventfds[0].as_fd())]);
        let resizable = device.irqs(index).expect("described").resizable;
        assert_eq!(grown.is_ok(), resizable, "{index}");
        device.disable_irqs(index).expect("disabled");
        assert_eq!([0, 1, last].map(|vector| hardware.send_msi(vector)), [false; 3]);
    }
}

#[test]
fn one_of_intx_msi_and_msix_is_enabled_at_a_time() {
    let open = Open::new();
    let (device, eventfd) = (open.device(), eventfd());
    let enable = |index| device.deliver_irqs(index, 0, &[Some(eventfd.as_fd())]);
    enable(IrqIndex::MSIX).expect("enabled");
    for index in [IrqIndex::INTX, IrqIndex::MSI] {
        assert_eq!(errno(enable(index)), Some(Errno::EINVAL));
        assert_eq!(errno(device.disable_irqs(index)), Some(Errno::EINVAL));
    }
    device.disable_irqs(IrqIndex::MSIX).expect("disabled");
    enable(IrqIndex::INTX).expect("enabled");
}

#[test]
fn interrupts_that_the_kernel_cannot_set_are_refused_with_its_errno() {
    let open = Open::new();
    let (device, eventfd) = (open.device(), eventfd());
    let one = [Some(eventfd.as_fd())];
    let null = std::fs::File::open("/dev/null").expect("it is there");
    assert_eq!(errno(device.deliver_irqs(IrqIndex::MSI, 8, &one)), Some(Errno::EINVAL), "there are 8");
    assert_eq!(errno(device.deliver_irqs(IrqIndex::MSI, 7, &[one[0], one[0]])), Some(Errno::EINVAL));
    assert_eq!(errno(device.deliver_irqs(IrqIndex::MSI, u32::MAX, &one)), Some(Errno::EINVAL));
    assert_eq!(errno(device.deliver_irqs(IrqIndex::MSI, 0, &[Some(null.as_fd())])), Some(Errno::EINVAL), "no eventfd");
    assert_eq!(errno(device.disable_irqs(IrqIndex::MSI)), Some(Errno::EINVAL), "the failed call enabled nothing");
    assert_eq!(errno(device.mask_irqs(IrqIndex::MSI, 0, 1)), Some(Errno::ENOTTY));
    assert_eq!(errno(device.mask_irqs(IrqIndex::INTX, 0, 1)), Some(Errno::EINVAL), "INTx is not enabled");
    device.deliver_irqs(IrqIndex::INTX, 0, &one).expect("enabled");
    let by_eventfd = device.set_irqs(IrqIndex::INTX, 0, IrqAction::Mask, IrqData::Eventfds(&one));
    assert_eq!(errno(by_eventfd), Some(Errno::ENOTTY), "the kernel never learnt it");
}

#[test]
fn notifications_are_signalled_and_removed() {
    let open = Open::new();
    let (device, hardware, eventfd) = (open.device(), open.hardware(), eventfd());
    for (index, happen) in [
        (IrqIndex::ERROR, SoftDevice::report_error as fn(&SoftDevice) -> bool),
        (IrqIndex::REQUEST, SoftDevice::request_back),
    ] {
        assert!(!happen(&hardware));
        assert_eq!(errno(device.trigger_irqs(index, 0, 1)), Some(Errno::EINVAL));
        device.deliver_irqs(index, 0, &[Some(eventfd.as_fd())]).expect("set");
        assert!(happen(&hardware));
        device.trigger_irqs(index, 0, 1).expect("delivered");
        assert_eq!(signals(&eventfd), 2);
        device.disable_irqs(index).expect("removed");
        assert!(!happen(&hardware));
    }
}

#[test]
fn a_closed_device_signals_nothing() {
    let mut open = Open::new();
    let (hardware, eventfd) = (open.hardware(), eventfd());
    open.device().deliver_irqs(IrqIndex::MSI, 0, &[Some(eventfd.as_fd())]).expect("enabled");
    open.opened.devices.clear();
    assert!(!hardware.send_msi(0));
}

/// Two devices of one bus behind a bridge, in two groups.
fn two_on_a_bus() -> Profile {
    let mut profile = Profile::vtd();
    profile.groups.truncate(2);
    for (n, group) in profile.groups.iter_mut().enumerate() {
        group.devices[0].address = format!("0000:05:00.{n}");
    }
    profile
}

#[test]
fn a_hot_reset_needs_the_groups_of_all_its_devices() {
    let mut open = Open::on(two_on_a_bus(), "0000:05:00.0", BackendKind::Type1);
    let affected = open.device().affected_by_hot_reset().expect("listed");
    let owners: Vec<_> = affected.devices.iter().map(|device| (device.address.to_string(), device.owner)).collect();
    let expected =
        [("0000:05:00.0".to_owned(), AffectedOwner::Group(3)), ("0000:05:00.1".to_owned(), AffectedOwner::Group(4))];
    assert_eq!((owners.as_slice(), affected.all_owned), (&expected[..], None));

    let first = open.opened.space.groups()[0].clone();
    let error = open.device().hot_reset(&[&first]).expect_err("one group is missing");
    assert_eq!((error.errno(), error.advice().is_some()), (Some(Errno::EINVAL), true));
    assert_eq!(errno(open.device().hot_reset(&[])), Some(Errno::EINVAL), "it was opened through its group");

    let host = Host::new(open.soft.clone(), Facts::of_soft(open.soft.profile()));
    let second = open.opened.space.add(&host, "0000:05:00.1".parse().expect("an address")).expect("opened");
    second.enable().expect("enabled");
    let bar = second.region(0).expect("described");
    second.write(&bar, 0, &[7]).expect("written");
    let groups: Vec<_> = open.opened.space.groups().iter().map(|group| &**group).collect();
    open.device().hot_reset(&groups).expect("both groups are there");
    let mut byte = [7];
    second.read(&bar, 0, &mut byte).expect("read");
    assert_eq!(byte, [0]);
}

#[test]
fn a_hot_reset_of_a_node_needs_one_iommufd_over_all_devices() {
    let mut open = Open::on(two_on_a_bus(), "0000:05:00.0", BackendKind::Iommufd);
    let affected = open.device().affected_by_hot_reset().expect("listed");
    assert_eq!((affected.devices[1].owner, affected.all_owned), (AffectedOwner::Other, Some(false)));
    assert_eq!(errno(open.device().hot_reset(&[])), Some(Errno::EINVAL));
    let host = Host::new(open.soft.clone(), Facts::of_soft(open.soft.profile()));
    let _second = open.opened.space.add(&host, "0000:05:00.1".parse().expect("an address")).expect("opened");
    let affected = open.device().affected_by_hot_reset().expect("listed");
    assert!(affected.devices.iter().all(|device| matches!(device.owner, AffectedOwner::Bound(_))), "{affected:?}");
    assert_eq!(affected.all_owned, Some(true));
    open.device().hot_reset(&[]).expect("all are bound");
}

#[test]
fn a_device_on_a_root_bus_has_no_hot_reset() {
    let open = Open::new();
    assert_eq!(errno(open.device().affected_by_hot_reset()), Some(Errno::ENODEV));
    let group = open.opened.space.groups()[0].clone();
    assert_eq!(errno(open.device().hot_reset(&[&group])), Some(Errno::ENODEV));
    let other = Open::new();
    let refused = errno(other.device().hot_reset(&[&group]));
    assert_eq!(refused, Some(Errno::EBADF), "a group of another door");
}

#[test]
fn many_affected_devices_are_asked_for_twice() {
    let mut profile = two_on_a_bus();
    for slot in 2..22 {
        let mut device = profile.groups[1].devices[0].clone();
        (device.address, device.node) = (format!("0000:05:{slot:02x}.0"), None);
        profile.groups[1].devices.push(device);
    }
    let open = Open::on(profile, "0000:05:00.0", BackendKind::Type1);
    open.soft.reset_calls();
    assert_eq!(open.device().affected_by_hot_reset().map(|affected| affected.devices.len()), Ok(22));
    assert_eq!(open.soft.calls().of("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"), 2);
}

const TOKEN: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";

#[test]
fn a_virtual_function_is_opened_with_the_token_of_its_physical_function() {
    let mut open = Open::on(two_on_a_bus(), "0000:05:00.0", BackendKind::Type1);
    let token: VfToken = TOKEN.parse().expect("a UUID");
    assert_eq!(errno(open.device().set_vf_token(&token)), Some(Errno::ENOTTY), "it has no virtual function");
    let [physical, function] =
        ["0000:05:00.0", "0000:05:00.1"].map(|address| open.soft.device(address).expect("there"));
    function.become_virtual_function_of(&physical);
    open.device().set_vf_token(&token).expect("set");

    let node = OwnedHandle::open(open.soft.clone(), "/dev/vfio/4".as_ref(), HandleKind::Group).expect("opened");
    let group = open.opened.space.add_group(node, "group 4").expect("attached");
    let name = "0000:05:00.1";
    let refused = |name: &str| open.opened.space.open_device(&group, name).expect_err("refused").errno();
    assert_eq!(refused(name), Some(Errno::EACCES));
    assert_eq!(refused(&VfToken([7; 16]).behind(name)), Some(Errno::EACCES));
    assert_eq!(refused("0000:05:00.1 vf_token=short"), Some(Errno::EINVAL));
    assert_eq!(refused("0000:05:00.1 other"), Some(Errno::EINVAL));
    assert_eq!(refused("0000:05:00.2"), Some(Errno::ENODEV));
    let device = open.opened.space.open_device(&group, &token.behind(name)).expect("opened");
    assert_eq!(device.name(), name, "the token is not shown");
    let first = open.opened.space.groups()[0].clone();
    let again = open.opened.space.open_device(&first, "0000:05:00.0").expect_err("its functions are in use");
    assert_eq!(again.errno(), Some(Errno::EACCES));
    open.opened.space.open_device(&first, &token.behind("0000:05:00.0")).expect("opened");
}

#[test]
fn a_token_that_is_not_needed_is_refused() {
    let open = Open::new();
    let group = open.opened.space.groups()[0].clone();
    let token: VfToken = TOKEN.parse().expect("a UUID");
    let refused = open.opened.space.open_device(&group, &token.behind(ADDRESS)).expect_err("no function");
    assert_eq!(refused.errno(), Some(Errno::EINVAL));
}

#[test]
fn tokens_are_uuids_and_secret() {
    let token: VfToken = TOKEN.parse().expect("a UUID");
    assert_eq!(token.0[..4], [0xbd, 0x8d, 0x9d, 0x2b]);
    assert_eq!((token.to_string().as_str(), format!("{token:?}").as_str()), (TOKEN, "VfToken(..)"));
    let bad =
        ["", "bd8d9d2b", &TOKEN[..35], "gd8d9d2b-5a5f-4f5a-a211-f591514ba1f3", "bd8d9d2b5a5f-4f5a-a211-f591514ba1f3-"];
    assert!(bad.iter().all(|text| text.parse::<VfToken>().is_err()));
}

/// A device whose driver migrates it.
fn migratable(flags: u64) -> Open {
    let open = Open::new();
    open.hardware().support_migration(flags);
    open.device().enable().expect("enabled");
    open
}

#[test]
fn a_device_without_migration_says_so() {
    let open = Open::new();
    assert_eq!(open.device().migration(), Ok(None));
    assert_eq!(errno(open.device().migration_state()), Some(Errno::ENOTTY));
    assert_eq!(errno(open.device().migration_data_size()), Some(Errno::ENOTTY));
    let error = open.device().set_migration_state(MigrationState::Stop).expect_err("refused").to_string();
    assert_eq!(
        error,
        "0000:00:03.0: migration: VFIO_DEVICE_FEATURE: errno 25; the driver cannot do this: bind the device to its \
         vendor's VFIO driver, such as mlx5_vfio_pci"
            .replace("errno 25", "ENOTTY")
    );
}

#[test]
fn the_state_of_a_device_moves_to_another_host() {
    let (source, target) = (migratable(1), migratable(1));
    let bar = source.device().region(0).expect("described");
    source.device().write(&bar, 0x100, b"state").expect("written");
    let support = source.device().migration().expect("asked").expect("it can");
    assert_eq!((support.stop_copy, support.p2p, support.pre_copy, support.flags), (true, false, false, 1));
    assert_eq!(source.device().migration_state(), Ok(Some(MigrationState::Running)));

    let out = source.device().set_migration_state(MigrationState::StopCopy).expect("stopped").expect("a stream");
    let into = target.device().set_migration_state(MigrationState::Resuming).expect("stopped").expect("a stream");
    assert_eq!(errno(out.write(&[1])), Some(Errno::EINVAL));
    assert_eq!(errno(out.precopy()), Some(Errno::ENOTTY));
    let (mut out, mut into) = (out, into);
    let moved = std::io::copy(&mut out, &mut into).expect("copied");
    assert_eq!(source.device().migration_data_size(), Ok(moved));
    assert!(target.device().set_migration_state(MigrationState::Running).expect("it runs").is_none());
    let mut bytes = [0; 5];
    target.device().read(&bar, 0x100, &mut bytes).expect("read");
    assert_eq!(&bytes, b"state");
    assert_eq!(errno(into.write(&[1])), Some(Errno::ENODEV), "the stream is ended");
    assert_eq!((source.soft.ledger().streams, target.soft.ledger().streams), (1, 1));
    drop((out, into));
    assert_eq!((source.soft.ledger().streams, target.soft.ledger().streams), (0, 0));
}

#[test]
fn in_pre_copy_the_device_runs_and_its_data_is_estimated() {
    let open = migratable(7);
    let device = open.device();
    let stream = device.set_migration_state(MigrationState::PreCopy).expect("it begins").expect("a stream");
    let estimate = stream.precopy().expect("asked");
    assert!(estimate.initial_bytes > 0x4000, "{estimate:?}");
    let mut data = vec![0; 0x8000];
    assert_eq!(stream.read(&mut data).expect("read") as u64, estimate.initial_bytes);
    assert_eq!(errno(stream.read(&mut data)), Some(Errno(42)), "nothing more yet");
    assert_eq!(stream.precopy().map(|left| left.initial_bytes), Ok(0));
    assert!(device.set_migration_state(MigrationState::StopCopy).expect("it stops").is_none(), "the stream stays");
    assert_eq!(errno(stream.precopy()), Some(Errno::EINVAL));
    assert!(stream.read(&mut data).expect("read") > 0);
    assert_eq!(errno(device.set_migration_state(MigrationState::PreCopy)), Some(Errno::EINVAL), "no way back");
}

#[test]
fn states_that_the_device_lacks_are_refused_and_a_reset_makes_it_run() {
    let open = migratable(1);
    let device = open.device();
    for state in [MigrationState::PreCopy, MigrationState::RunningP2p, MigrationState::PreCopyP2p] {
        assert_eq!(errno(device.set_migration_state(state)), Some(Errno::EINVAL));
    }
    assert_eq!(errno(device.set_migration_state(MigrationState::Error)), Some(Errno::EINVAL));
    let stream = device.set_migration_state(MigrationState::Resuming).expect("it waits").expect("a stream");
    assert_eq!(stream.write(b"another device's").expect("taken"), 16);
    assert_eq!(errno(device.set_migration_state(MigrationState::Running)), Some(Errno::EINVAL));
    assert_eq!(device.migration_state(), Ok(Some(MigrationState::Error)));
    device.reset().expect("reset");
    assert_eq!(device.migration_state(), Ok(Some(MigrationState::Running)));
}

#[test]
fn a_change_of_state_that_fails_after_its_effect_leaves_no_stream() {
    let open = migratable(1);
    open.soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailAfter).of("VFIO_DEVICE_FEATURE")]);
    assert_eq!(errno(open.device().set_migration_state(MigrationState::StopCopy)), Some(Errno::EIO));
    assert_eq!(open.soft.ledger().streams, 0);
    assert_eq!(open.device().migration_state(), Ok(Some(MigrationState::StopCopy)));
}

#[test]
fn the_device_logs_the_pages_it_writes() {
    let open = migratable(1);
    let device = open.device();
    let memory = HostMemory::zeroed((1 << 20).try_into().expect("not zero"), PageSize::K4).expect("enough memory");
    let space = open.opened.space.space();
    space.map(dmaspace::contract::MapRequest::new(Iova::new(0), &memory, Access::READ_WRITE)).expect("mapped");
    let range = |first, len| IovaRange::with_len(Iova::new(first), len).expect("a range");
    let logged = range(0, 0x4_0000);
    assert_eq!(errno(device.written_pages(logged, PageSize::K4)), Some(Errno::EINVAL), "there is no log");
    assert_eq!(device.start_logging(PageSize::K4, &[logged]), Ok(PageSize::K4));
    for at in [0x1000, 0x5fff, 0x8_0000] {
        open.hardware().dma_write(Iova::new(at), &[1; 2]).expect("mapped");
    }
    assert_eq!(device.written_pages(logged, PageSize::K4), Ok(vec![0b0110_0010]));
    assert_eq!(device.written_pages(logged, PageSize::K4), Ok(vec![0]), "reading clears");
    open.hardware().dma_write(Iova::new(0x3_f000), &[1]).expect("mapped");
    assert_eq!(device.written_pages(range(0x3_0000, 0x1_0000), PageSize::K64), Ok(vec![1]));
    device.stop_logging().expect("stopped");
}

#[test]
fn ranges_that_cannot_be_logged_are_refused() {
    let range = |first, len| IovaRange::with_len(Iova::new(first), len).expect("a range");
    let open = migratable(1);
    let device = open.device();
    assert_eq!(errno(device.start_logging(PageSize::K4, &[])), Some(Errno::EINVAL));
    assert_eq!(errno(device.start_logging(PageSize::K4, &[range(0x800, 0x1000)])), Some(Errno::EINVAL));
    let twice = [range(0, 0x2000), range(0x1000, 0x1000)];
    assert_eq!(errno(device.start_logging(PageSize::K4, &twice)), Some(Errno::EINVAL));
    let many: Vec<_> = (0..100).map(|n| range(n << 12, 0x1000)).collect();
    assert_eq!(errno(device.start_logging(PageSize::K4, &many)), Some(Errno::E2BIG));
    assert_eq!(errno(device.start_logging(PageSize::K4, &[IovaRange::all()])), Some(Errno::EOVERFLOW));
    assert_eq!(errno(device.written_pages(IovaRange::all(), PageSize::K4)), Some(Errno::EOVERFLOW));
    let none = Open::new();
    assert_eq!(errno(none.device().start_logging(PageSize::K4, &[range(0, 0x1000)])), Some(Errno::ENOTTY));
}
