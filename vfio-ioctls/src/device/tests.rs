use dmaspace::soft::{Profile, SoftDevice, SoftHost};
use dmaspace::{BackendKind, Facts, Host, HostAddress, HostMemory};

use super::*;

/// A device of a host in software, opened, with its container.
struct Open {
    soft: Arc<SoftHost>,
    container: Arc<VfioContainer>,
    device: VfioDevice,
}

fn boot() -> (Arc<SoftHost>, Arc<VfioContainer>) {
    let soft = SoftHost::new(Profile::vtd()).expect("a preset");
    let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let container = VfioContainer::with_backend(&host, BackendKind::Type1).expect("type1 is there");
    (soft, Arc::new(container))
}

fn open() -> Open {
    let (soft, container) = boot();
    let device = add(&container, 3);
    Open { soft, container, device }
}

fn add(container: &Arc<VfioContainer>, group: u32) -> VfioDevice {
    let opened = container.open_in_group(group, &format!("0000:00:{group:02x}.0")).expect("opened");
    VfioDevice::of(opened, container.clone()).expect("described")
}

fn hardware(open: &Open) -> SoftDevice {
    open.soft.device("0000:00:03.0").expect("it is there")
}

fn memory(at: u64, len: u64) -> HostMemory {
    HostMemory::unbacked(HostAddress::new(at), len.try_into().expect("not zero")).expect("no wrap")
}

#[test]
fn a_device_is_described_by_region_and_interrupt() {
    let open = open();
    let device = &open.device;
    assert_eq!((device.get_region_size(0), device.get_region_flags(0), device.get_region_offset(0)), (0x4000, 3, 0));
    assert_eq!((device.get_region_size(7), device.get_region_offset(7)), (0x1000, 7 << 40));
    assert_eq!((device.get_region_size(8), device.get_region_caps(8)), (0, Vec::new()));
    assert_eq!(device.get_irq_info(2), Some(&VfioIrq { flags: 1, index: 2, count: 16 }));
    assert_eq!((device.get_irq_info(5), device.max_interrupts(), device.iommufd_dev_id()), (None, 16, None));
    assert_eq!((device.as_raw_fd(), open.container.as_raw_fd()), (-1, -1), "a host in software has no descriptors");
}

#[test]
fn regions_are_read_and_written_and_failures_change_nothing() {
    let open = open();
    let device = &open.device;
    let mut bytes = [9; 4];
    device.region_read(0, &mut bytes, 0);
    assert_eq!(bytes, [9; 4], "its memory is disabled");
    device.region_write(7, &[6, 0], 4);
    device.region_write(0, b"dmas", 8);
    device.region_read(0, &mut bytes, 8);
    assert_eq!(&bytes, b"dmas");
    for (index, at) in [(0, 0x3ffe), (0, u64::MAX), (1, 0), (40, 0)] {
        device.region_read(index, &mut bytes, at);
        assert_eq!(&bytes, b"dmas", "{index} {at:#x}");
    }
    device.reset();
    device.region_read(0, &mut bytes, 8);
    assert_eq!(bytes, [0; 4]);
}

#[test]
fn interrupts_signal_their_eventfds() {
    let open = open();
    let (device, hardware) = (&open.device, hardware(&open));
    let eventfds = [EventFd::new(0).expect("made"), EventFd::new(0).expect("made")];
    device.enable_msix(eventfds.iter().collect()).expect("enabled");
    assert!(hardware.send_msi(1));
    device.trigger_irq(2, 0).expect("triggered");
    assert_eq!(eventfds.each_ref().map(|eventfd| eventfd.read().expect("signalled")), [1, 1]);
    assert!(matches!(device.enable_msi(vec![&eventfds[0]]), Err(VfioError::VfioDeviceEnableIrq)), "MSI-X is enabled");
    assert!(matches!(device.trigger_irq(2, 16), Err(VfioError::VfioDeviceTriggerIrq)));
    assert!(matches!(device.trigger_irq(7, 0), Err(VfioError::VfioDeviceTriggerIrq)));
    device.disable_msix().expect("disabled");
    assert!(matches!(device.disable_msix(), Err(VfioError::VfioDeviceDisableIrq)));
    device.enable_irq(0, vec![&eventfds[0]]).expect("enabled");
    device.set_irq_resample_fd(0, vec![&eventfds[1]]).expect("set");
    assert!(matches!(device.set_irq_resample_fd(2, vec![&eventfds[1]]), Err(VfioError::VfioDeviceSetIrqResampleFd)));
    hardware.raise_intx();
    device.unmask_irq(0).expect("unmasked");
    assert_eq!(eventfds[0].read().expect("signalled"), 2);
    assert!(matches!(device.unmask_irq(1), Err(VfioError::VfioDeviceUnmaskIrq)));
}

#[test]
fn memory_mapped_before_the_first_device_is_in_force_with_it() {
    let (soft, container) = boot();
    container.map(0, memory(0x7f00_0000_0000, 1 << 20)).expect("it waits");
    assert_eq!(soft.ledger().mapped, 0);
    let device = add(&container, 3);
    assert_eq!(soft.ledger().mapped, 1 << 20);
    container.map(1 << 20, memory(0x7f10_0000_0000, 1 << 20)).expect("mapped");
    assert_eq!(soft.ledger().mapped, 2 << 20);
    drop(device);
    assert_eq!((soft.ledger().mapped, soft.ledger().groups, soft.ledger().devices), (0, 0, 0));
    let _again = add(&container, 3);
    assert_eq!(soft.ledger().mapped, 2 << 20);
}

#[test]
fn memory_that_the_first_device_cannot_reach_keeps_it_out() {
    let (soft, container) = boot();
    // Where interrupts are delivered.
    container.map(0xfee0_0000, memory(0x7f00_0000_0000, 0x1000)).expect("it waits");
    let refused = container.open_in_group(3, "0000:00:03.0").expect_err("refused");
    assert!(matches!(refused, VfioError::IommuDmaMap(_)), "{refused:?}");
    assert_eq!((soft.ledger().groups, soft.ledger().devices), (0, 0));
}

#[test]
fn a_group_is_open_as_long_as_one_of_its_devices_and_memory_as_long_as_a_group() {
    let open = open();
    open.container.map(0, memory(0x7f00_0000_0000, 1 << 20)).expect("mapped");
    let second = add(&open.container, 4);
    assert_eq!((open.soft.ledger().groups, open.soft.ledger().mapped), (2, 1 << 20));
    let Open { soft, container, device } = open;
    drop(device);
    assert_eq!((soft.ledger().groups, soft.ledger().mapped), (1, 1 << 20));
    drop(second);
    drop(container);
    assert!(soft.ledger().is_clear());
}

#[test]
fn unmapping_takes_whole_mappings_and_fails_for_holes() {
    let open = open();
    let unmap = |iova, size| open.container.vfio_dma_unmap(iova, size);
    open.container.map(0, memory(0x7f00_0000_0000, 0x4000)).expect("mapped");
    open.container.map(0x4000, memory(0x7f10_0000_0000, 0x4000)).expect("mapped");
    let twice = open.container.map(0x4000, memory(0x7f20_0000_0000, 0x1000)).expect_err("something is mapped there");
    assert!(matches!(&twice, VfioError::IommuDmaMap(error) if error.errno() == libc::EEXIST), "{twice:?}");
    let cut = unmap(0, 0x6000).expect_err("it cuts the second");
    assert!(matches!(&cut, VfioError::IommuDmaUnmap(error) if error.errno() == libc::EINVAL), "{cut:?}");
    assert_eq!(open.soft.ledger().mapped, 0x8000);
    unmap(0, 0x8000).expect("both");
    assert_eq!(open.soft.ledger().mapped, 0);
    assert!(matches!(unmap(0, 0x8000), Err(VfioError::InvalidDmaUnmapSize)));
    assert!(matches!(unmap(0, 0), Err(VfioError::IommuDmaUnmap(_))));
}

#[test]
fn guest_memory_is_mapped_at_its_guest_addresses() {
    use vm_memory::{GuestAddress, GuestMemoryMmap};
    let open = open();
    let ranges = [(GuestAddress(0), 0x10_000), (GuestAddress(0x10_0000), 0x20_000)];
    let guest: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&ranges).expect("mapped");
    #[expect(unsafe_code, reason = "UNSAFETY: no device is behind a host in software")]
    // SAFETY: the guest's memory lives longer than its mappings, which end below.
    unsafe { open.container.vfio_map_guest_memory(&guest) }.expect("mapped");
    assert_eq!(open.soft.ledger().mapped, 0x30_000);
    hardware(&open).dma_write(Iova::new(0x10_0000), b"dma").expect("the device reaches it");
    let mut bytes = [0; 3];
    vm_memory::Bytes::read_slice(&guest, &mut bytes, GuestAddress(0x10_0000)).expect("read");
    assert_eq!(&bytes, b"dma");
    open.container.vfio_unmap_guest_memory(&guest).expect("unmapped");
    assert_eq!(open.soft.ledger().mapped, 0);
}

#[test]
fn a_migration_keeps_its_stream_until_it_ends() {
    let open = open();
    let device = &open.device;
    assert!(matches!(device.query_migration_support(), Ok(None)));
    assert!(matches!(device.set_migration_state(1), Err(VfioError::VfioDeviceFeature(_))));
    hardware(&open).support_migration(5);
    assert!(matches!(device.query_migration_support(), Ok(Some(5))));
    assert!(matches!(device.get_migration_state(), Ok(2)));
    assert!(matches!(device.mig_get_precopy_info(), Err(VfioError::NoMigrationDataFd)));
    device.set_migration_state(6).expect("pre-copy");
    let estimate = device.mig_get_precopy_info().expect("asked");
    assert_eq!(estimate.initial_bytes, device.get_mig_data_size().expect("asked"));
    device.set_migration_state(3).expect("stopped");
    let data = device.read_migration_data_to_end().expect("read");
    assert_eq!(data.len() as u64, estimate.initial_bytes);
    assert!(matches!(device.read_migration_data(&mut [0; 8]), Ok(0)));
    device.set_migration_state(4).expect("resuming");
    device.write_migration_data(&data).expect("written");
    device.set_migration_state(2).expect("running");
    assert!(matches!(device.write_migration_data(&data), Err(VfioError::NoMigrationDataFd)));
    device.set_migration_state(4).expect("resuming");
    assert!(device.set_migration_state(99).is_err());
    assert!(matches!(device.read_migration_data(&mut []), Err(VfioError::NoMigrationDataFd)));
}

#[test]
fn the_log_is_started_once_and_reported_by_page() {
    let open = open();
    let device = &open.device;
    let range = DmaLoggingRange { iova: 0, length: 0x4_0000 };
    assert!(matches!(device.stop_dma_logging(), Err(VfioError::DmaLoggingNotStarted)));
    assert!(matches!(device.report_dma_logging(range, 4096), Err(VfioError::DmaLoggingNotStarted)));
    assert!(matches!(device.start_dma_logging(4096, &[]), Err(VfioError::DmaLoggingInvalidArgument(_))));
    assert!(matches!(device.start_dma_logging(4096, &[range]), Err(VfioError::VfioDeviceFeature(_))));
    hardware(&open).support_migration(1);
    assert!(matches!(device.start_dma_logging(4096, &[range]), Ok(4096)));
    assert!(matches!(device.start_dma_logging(4096, &[range]), Err(VfioError::DmaLoggingAlreadyStarted)));
    let none = DmaLoggingRange::default();
    for (range, page) in [(range, 0), (range, 4097), (none, 4096)] {
        let refused = device.report_dma_logging(range, page);
        assert!(matches!(refused, Err(VfioError::DmaLoggingInvalidArgument(_))), "{refused:?}");
    }
    assert_eq!(device.report_dma_logging(range, 4096).expect("reported"), vec![0]);
    device.stop_dma_logging().expect("stopped");
}

#[test]
fn other_operations_than_the_containers_are_refused() {
    struct Other;
    impl VfioOps for Other {
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }
    let refused = VfioDevice::open(Path::new("/sys/bus/pci/devices/0000:00:03.0"), Arc::new(Other));
    assert!(matches!(refused, Err(VfioError::DowncastVfioOps)));
    let (_soft, container) = boot();
    for path in ["/sys/none", "/"] {
        assert!(matches!(VfioDevice::open(Path::new(path), container.clone()), Err(VfioError::InvalidPath)));
    }
}
