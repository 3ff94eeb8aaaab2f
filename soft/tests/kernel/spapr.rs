//! sPAPR's own behaviour: charges, levels, page sizes, the ends of windows, several groups.

use crate::setting::{GIB, HIGH, MIB, Opened, PAGE, RW, device, memory, open, open_group, unbacked};
use dmaspace_abi::spapr::{self, DdwInfo, TceInfo};
use dmaspace_abi::vfio::IommuType;
use dmaspace_core::door::{Door, Errno, HandleKind};
use dmaspace_core::{Iova, PageSize};
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw;
use dmaspace_soft::profile::{KernelVersion, ProcessLimits};
use dmaspace_soft::{DmaError, Profile, SoftHost};

fn limited(profile: Profile, memlock: u64) -> Profile {
    profile.with_limits(ProcessLimits::new(Some(memlock), 1))
}

fn info(profile: Profile, dialect: Dialect) -> TceInfo {
    let opened = Opened::new(profile, dialect);
    raw::tce_info(&*opened.host, opened.handle()).expect("there is a group")
}

#[test]
fn info_reports_the_default_window_and_for_v2_the_windows_that_can_be_made() {
    let bare = info(Profile::powernv9(), Dialect::Spapr);
    assert_eq!((bare.dma32_window_start, bare.dma32_window_size, bare.flags), (0, 0x8000_0000, spapr::INFO_DDW));
    assert_eq!(bare.ddw, DdwInfo { pgsizes: 0x4021_1000, max_dynamic_windows_supported: 2, levels: 5 });
    let partition = info(Profile::pseries(), Dialect::Spapr);
    assert_eq!(partition.dma32_window_size, 0x4000_0000);
    assert_eq!(partition.ddw, DdwInfo { pgsizes: 0x0121_1000, max_dynamic_windows_supported: 2, levels: 1 });
    let v1 = info(Profile::powernv9(), Dialect::SpaprV1);
    assert_eq!((v1.flags, v1.ddw), (0, DdwInfo::default()));
}

#[test]
fn info_never_writes_more_than_was_asked_for_nor_its_size() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let mut info = TceInfo { argsz: 31, ddw: DdwInfo { levels: 77, ..Default::default() }, ..Default::default() };
    raw::ask(&*opened.host, opened.handle(), spapr::TCE_GET_INFO, &mut info).expect("16 bytes are enough");
    assert_eq!((info.argsz, info.dma32_window_size, info.ddw.levels), (31, 0x8000_0000, 77));
    info.argsz = 15;
    assert_eq!(raw::ask(&*opened.host, opened.handle(), spapr::TCE_GET_INFO, &mut info), Err(Errno::EINVAL));
}

#[test]
fn registered_memory_and_tables_are_charged_and_mapping_is_free() {
    for (profile, table) in [(Profile::powernv9(), 2 * (GIB >> 9)), (Profile::pseries(), GIB >> 9)] {
        let opened = Opened::new(profile, Dialect::Spapr);
        let (host, container, ram) = (&*opened.host, opened.handle(), memory(4 * PAGE));
        raw::remove(host, container, 0).expect("not made yet");
        assert_eq!(host.ledger().locked, 0);
        raw::create(host, container, 12, GIB, 1).expect("made");
        assert_eq!(host.ledger().locked, table);
        raw::register(host, container, Some(&ram), 4 * PAGE).expect("registered");
        assert_eq!(raw::map(host, opened.context, MIB, 4 * PAGE, Some(&ram), RW), Ok(0));
        let ledger = host.ledger();
        assert_eq!((ledger.locked, ledger.mappings, ledger.windows), (table + 4 * PAGE, 4, 1));
        assert_eq!((ledger.ever_tables, ledger.ever_pinned), (table, 4 * PAGE));
        raw::remove(host, container, 0).expect("with its entries");
        raw::unregister(host, container, Some(&ram), 4 * PAGE).expect("nothing leans on it");
        assert_eq!((host.ledger().locked, host.ledger().leaked), (0, 0));
    }
}

#[test]
fn the_limit_refuses_registrations_and_tables() {
    let opened = Opened::new(limited(Profile::powernv9(), 3 * PAGE), Dialect::Spapr);
    let (host, container, ram) = (&*opened.host, opened.handle(), memory(4 * PAGE));
    assert_eq!(raw::register(host, container, Some(&ram), 4 * PAGE), Err(Errno::ENOMEM));
    assert_eq!(raw::register(host, container, Some(&ram), 3 * PAGE), Ok(0));
    assert_eq!(
        raw::map(host, opened.context, MIB, PAGE, Some(&ram), RW),
        Err(Errno::ENOMEM),
        "the default window's table"
    );
    assert_eq!(host.ledger().locked, 3 * PAGE);
}

#[test]
fn the_same_block_in_two_containers_is_charged_once() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let host = opened.host.clone();
    let second = {
        use dmaspace_abi::vfio::IommuType;
        let container = crate::setting::open(&host, "/dev/vfio/vfio", dmaspace_core::door::HandleKind::Container);
        raw::set_container(&*host, open_group(&host, 1), container).expect("joins");
        raw::set_iommu(&*host, container, IommuType::SPAPR_TCE_V2).expect("given");
        container
    };
    let ram = memory(PAGE);
    assert_eq!(raw::register(&*host, opened.handle(), Some(&ram), PAGE), Ok(0));
    assert_eq!(raw::register(&*host, second, Some(&ram), PAGE), Ok(0));
    assert_eq!((host.ledger().locked, host.ledger().registrations), (PAGE, 1));
    assert_eq!(raw::unregister(&*host, opened.handle(), Some(&ram), PAGE), Ok(0));
    assert_eq!((host.ledger().locked, host.ledger().leaked), (PAGE, 0));
    assert_eq!(raw::unregister(&*host, opened.handle(), Some(&ram), PAGE), Err(Errno::ENOENT), "not this container's");
    assert_eq!(raw::unregister(&*host, second, Some(&ram), PAGE), Ok(0));
    assert_eq!(host.ledger().locked, 0);
}

#[test]
fn bare_metal_leaks_the_charge_of_a_table_it_cannot_make() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    raw::remove(host, container, 0).expect("not made yet");
    assert_eq!(raw::create(host, container, 12, 64 * GIB, 1), Err(Errno::ENOMEM), "one level of 128 MiB");
    assert_eq!((host.ledger().locked, host.ledger().leaked), (256 * MIB, 256 * MIB));
    assert_eq!(raw::create(host, container, 12, 64 * GIB, 2), Ok((0, 0)));
    opened.close();
    assert_eq!(host.ledger().locked, 256 * MIB, "until the process ends");
}

#[test]
fn a_partition_takes_an_error_for_a_size_and_leaks_four_gibibytes() {
    let opened = Opened::new(Profile::pseries(), Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    raw::remove(host, container, 0).expect("not made yet");
    assert_eq!(raw::create(host, container, 16, 64 * GIB, 2), Err(Errno::EINVAL));
    assert_eq!(host.ledger().leaked, 0xffff_f000);

    let opened = Opened::new(limited(Profile::pseries(), GIB), Dialect::Spapr);
    raw::remove(&*opened.host, opened.handle(), 0).expect("not made yet");
    assert_eq!(raw::create(&*opened.host, opened.handle(), 16, 64 * GIB, 2), Err(Errno::ENOMEM));
    assert_eq!(opened.host.ledger().leaked, 0);
}

#[test]
fn windows_with_pages_larger_than_the_memorys_map_nothing() {
    for profile in [Profile::powernv9(), Profile::pseries()] {
        let opened = Opened::new(profile, Dialect::Spapr);
        let (host, container) = (&*opened.host, opened.handle());
        raw::remove(host, container, 0).expect("not made yet");
        let (_, start) = raw::create(host, container, 16, 4 * GIB, 1).expect("made");
        let small = unbacked(GIB, MIB);
        raw::register(host, container, Some(&small), MIB).expect("registered");
        assert_eq!(raw::map(host, opened.context, start, 0x1_0000, Some(&small), RW), Err(Errno::EINVAL));
        let huge = unbacked(2 * GIB, 4 * MIB).backed_by(PageSize::M2);
        raw::register(host, container, Some(&huge), 4 * MIB).expect("registered");
        assert_eq!(raw::map(host, opened.context, start, 4 * MIB, Some(&huge), RW), Ok(0));
        assert_eq!(host.ledger().mappings, 64);
    }
}

#[test]
fn hosts_with_large_pages_show_them_in_large_and_small_windows() {
    let opened = Opened::new(Profile::powernv9_64k(), Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    let ram = memory(0x4_0000);
    raw::register(host, container, Some(&ram), 0x4_0000).expect("registered");
    let (_, high) = raw::create(host, container, 16, GIB, 1).expect("made");
    assert_eq!(raw::map(host, opened.context, high, 0x2_0000, Some(&ram), RW), Ok(0));
    let tail = ram.slice(0x1000, 0x1000).expect("a small page of it");
    assert_eq!(raw::map(host, opened.context, MIB, 0x1000, Some(&tail), RW), Ok(0));
    opened.device().dma_write(Iova::new(MIB + 5), &[9]).expect("mapped");
    let mut byte = [0];
    ram.read(0x1005, &mut byte).expect("there");
    assert_eq!(byte, [9]);
    let odd = ram.slice(0x1000, 0x1_0000).expect("not on a large page's border");
    assert_eq!(raw::register(host, container, Some(&odd), 0x1_0000), Err(Errno::EINVAL));
}

#[test]
fn bare_metal_goes_on_at_the_beginning_when_a_map_or_unmap_leaves_the_window() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, context, device) = (&*opened.host, opened.context, opened.device());
    let (old, new) = (memory(PAGE), memory(2 * PAGE));
    raw::register(host, opened.handle(), Some(&old), PAGE).expect("registered");
    raw::register(host, opened.handle(), Some(&new), 2 * PAGE).expect("registered");
    raw::map(host, context, 0, PAGE, Some(&old), RW).expect("the first page");
    let last = 2 * GIB - PAGE;
    assert_eq!(raw::map(host, context, last, 2 * PAGE, Some(&new), RW), Ok(0), "only the first entry was looked at");
    device.dma_write(Iova::new(0), &[7]).expect("mapped");
    let mut byte = [0];
    new.read(PAGE, &mut byte).expect("there");
    assert_eq!(byte, [7], "the old entry was replaced");
    assert_eq!(raw::unmap(host, context, last, 2 * PAGE).map(|(result, _)| result), Ok(0));
    assert_eq!(device.dma_read(Iova::new(0), &mut byte).map_err(|fault| fault.why), Err(DmaError::NotMapped));
}

#[test]
fn a_partitions_map_that_leaves_the_window_fails_with_the_hypervisors_number() {
    let opened = Opened::new(Profile::pseries(), Dialect::Spapr);
    let (host, context, ram) = (&*opened.host, opened.context, memory(2 * PAGE));
    raw::register(host, opened.handle(), Some(&ram), 2 * PAGE).expect("registered");
    raw::map(host, context, GIB - PAGE, PAGE, Some(&ram), RW).expect("the last page");
    assert_eq!(raw::map(host, context, GIB - PAGE, 2 * PAGE, Some(&ram), RW), Err(Errno::EINTR));
    assert_eq!(host.ledger().mappings, 0, "and the old entry is eaten");
    assert_eq!(raw::unmap(host, context, GIB - PAGE, 2 * PAGE).map(|(result, _)| result), Ok(0));
}

#[test]
fn linux_7_2_refuses_an_unmap_that_leaves_the_window() {
    for profile in [Profile::powernv9(), Profile::pseries()] {
        let opened = Opened::new(profile.with_kernel(KernelVersion::V7_2), Dialect::Spapr);
        let (host, context, ram) = (&*opened.host, opened.context, memory(PAGE));
        raw::register(host, opened.handle(), Some(&ram), PAGE).expect("registered");
        raw::map(host, context, GIB - PAGE, PAGE, Some(&ram), RW).expect("mapped");
        let rest = opened.host.profile().tce.as_ref().expect("it has one").default_window - (GIB - PAGE);
        assert_eq!(raw::unmap(host, context, GIB - PAGE, rest + PAGE).map(|(result, _)| result), Ok(1));
        assert_eq!(host.ledger().mappings, 1);
        assert_eq!(raw::unmap(host, context, GIB - PAGE, rest).map(|(result, _)| result), Ok(0));
        assert_eq!(host.ledger().mappings, 0);
    }
}

#[test]
fn a_window_of_2_to_the_28_entries_costs_nothing_to_fill_and_clear() {
    let opened = Opened::new(Profile::powernv9(), Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    let size = 1 << 40;
    let ram = unbacked(1 << 42, size);
    raw::register(host, container, Some(&ram), size).expect("registered");
    let (_, high) = raw::create(host, container, 12, size, 3).expect("made");
    assert_eq!(raw::map(host, opened.context, high, size, Some(&ram), RW), Ok(0));
    assert_eq!(host.ledger().mappings, 1 << 28);
    let page = ram.slice(0, PAGE).expect("one of them");
    assert_eq!(raw::map(host, opened.context, high + GIB, PAGE, Some(&page), RW), Ok(0), "one replaced in the middle");
    assert_eq!(raw::remove(host, container, high), Ok(0));
    assert_eq!(raw::unregister(host, container, Some(&ram), size), Ok(0));
    assert_eq!(host.ledger().leaked, 0);
}

#[test]
fn groups_share_windows_on_bare_metal_and_one_that_leaves_clears_them() {
    let host = dmaspace_soft::SoftHost::new(Profile::powernv9()).expect("sound");
    let opened = Opened::on(host.clone(), Dialect::Spapr, 2);
    let ram = memory(PAGE);
    raw::register(&*host, opened.handle(), Some(&ram), PAGE).expect("registered");
    raw::map(&*host, opened.context, MIB, PAGE, Some(&ram), RW).expect("mapped");
    for group in [0, 1] {
        assert_eq!(device(&host, group).dma_read(Iova::new(MIB), &mut [0]), Ok(()));
    }
    raw::unset_container(&*host, opened.members[1]).expect("leaves");
    assert_eq!((host.ledger().mappings, host.ledger().windows), (0, 1));
    assert_eq!(
        device(&host, 0).dma_read(Iova::new(MIB), &mut [0]).map_err(|fault| fault.why),
        Err(DmaError::NotMapped)
    );
    assert_eq!(raw::map(&*host, opened.context, MIB, PAGE, Some(&ram), RW), Ok(0), "it can be mapped again");
    raw::set_container(&*host, opened.members[1], opened.handle()).expect("joins the windows there are");
    assert_eq!(device(&host, 1).dma_read(Iova::new(MIB), &mut [0]), Ok(()));
    opened.close();
    assert!(host.ledger().is_clear());
}

#[test]
fn a_partitions_container_has_room_for_one_group() {
    let opened = Opened::new(Profile::pseries(), Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    let second = open_group(host, 1);
    raw::set_container(host, second, container).expect("no window is there yet");
    assert_eq!(raw::create(host, container, 16, 4 * GIB, 1), Err(Errno::EPERM));
    assert_eq!((host.ledger().locked, host.ledger().windows), (0, 0));
    raw::unset_container(host, second).expect("leaves");
    assert_eq!(raw::create(host, container, 16, 4 * GIB, 1), Ok((0, HIGH)), "beside the default one");
    assert_eq!(raw::set_container(host, second, container), Err(Errno::EPERM), "now there are windows");
}

#[test]
fn where_no_window_can_be_created_v2_is_refused_although_it_is_advertised() {
    for profile in [Profile::powernv9(), Profile::pseries()].map(Profile::with_fixed_window) {
        let host = SoftHost::new(profile).expect("a sound profile");
        let container = open(&host, "/dev/vfio/vfio", HandleKind::Container);
        for version in [IommuType::SPAPR_TCE_V2, IommuType::SPAPR_TCE] {
            assert_eq!(raw::check_extension(&*host, container, version.extension()), Ok(1));
        }
        let group = open_group(&host, 0);
        raw::set_container(&*host, group, container).expect("it joins");
        assert_eq!(raw::set_iommu(&*host, container, IommuType::SPAPR_TCE_V2), Err(Errno::EINVAL));
        assert_eq!(raw::set_iommu(&*host, container, IommuType::SPAPR_TCE), Ok(0));
    }
}

#[test]
fn v1_takes_one_group_and_charges_the_whole_window() {
    let opened = Opened::new(Profile::powernv9(), Dialect::SpaprV1);
    let (host, container) = (&*opened.host, opened.handle());
    let second = open_group(host, 1);
    assert_eq!(raw::set_container(host, second, container), Err(Errno::EBUSY));
    assert_eq!(raw::enable(host, container), Ok(0));
    assert_eq!(host.ledger().locked, 2 * GIB);
    let ram = memory(2 * PAGE);
    assert_eq!(raw::map(host, opened.context, MIB, 2 * PAGE, Some(&ram), RW), Ok(0));
    assert_eq!((host.ledger().mappings, host.ledger().ever_pinned), (2, 2 * PAGE));
    assert_eq!(raw::map(host, opened.context, MIB, 3 * PAGE, Some(&ram), RW), Err(Errno::EFAULT));
    assert_eq!(host.ledger().mappings, 0, "eaten");
    assert_eq!(raw::disable(host, container), Ok(0));
    opened.close();
    host.close(second).expect("open");
    assert!(host.ledger().is_clear());

    let poor = Opened::new(limited(Profile::powernv9(), GIB), Dialect::SpaprV1);
    assert_eq!(raw::enable(&*poor.host, poor.handle()), Err(Errno::ENOMEM));
}

#[test]
fn another_devices_memory_is_neither_registered_nor_mapped() {
    for (dialect, enable) in [(Dialect::Spapr, false), (Dialect::SpaprV1, true)] {
        let opened = Opened::new(Profile::powernv9(), dialect);
        let bar = memory(PAGE).device_memory();
        if enable {
            raw::enable(&*opened.host, opened.handle()).expect("enabled");
            assert_eq!(raw::map(&*opened.host, opened.context, MIB, PAGE, Some(&bar), RW), Err(Errno::EFAULT));
        } else {
            assert_eq!(raw::register(&*opened.host, opened.handle(), Some(&bar), PAGE), Err(Errno::EFAULT));
        }
    }
}
