//! A limit on locked memory that is met: every backend names the wanted bytes, the limit, and the locked bytes.

use dmaspace_core::contract::MapRequest;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::facts::Facts;
use dmaspace::open::{Host, OpenError, OpenSpace};
use dmaspace_core::contract::{Unit, WindowRequest};
use dmaspace_core::door::Errno;
use dmaspace_core::error::Kind;
use dmaspace_core::words::locked::{AccountingMode, Allowance, PinLimit};
use dmaspace_core::{Access, Error, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};
use dmaspace_tests::soft::{self, host};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// An open space without a device, on a host where `memlock` bytes may be locked.
fn bare(preset: &str, backend: BackendKind, memlock: u64) -> (Arc<SoftHost>, Host, OpenSpace) {
    let soft = host(preset);
    soft.set_memlock(Some(memlock));
    let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
    let opened = host.open_space(backend).expect("the soft host has it");
    (soft, host, opened)
}

/// Attaches the first device of the host.
fn attach(soft: &SoftHost, host: &Host, opened: &mut OpenSpace) -> Result<(), OpenError> {
    let address = soft.profile().groups[0].devices[0].address.parse().expect("a PCI address");
    opened.add(host, address).map(drop)
}

/// A space with a device.
fn started(preset: &str, backend: BackendKind, memlock: u64) -> (Arc<SoftHost>, OpenSpace) {
    let (soft, host, mut opened) = bare(preset, backend, memlock);
    attach(&soft, &host, &mut opened).expect("nothing is to be locked for it");
    (soft, opened)
}

fn memory(len: u64) -> HostMemory {
    soft::memory(1 << 40, len)
}

fn map(space: &dyn PciAddressSpace, at: u64, memory: &HostMemory, unit: Unit) -> Result<(), Error> {
    space.map(MapRequest::new(Iova::new(at), memory, Access::READ_WRITE).with_unit(unit))
}

fn window(len: u64) -> WindowRequest {
    WindowRequest::new(IovaRange::with_len(Iova::new(0), len).expect("a proper range"), PageSize::K4)
}

fn short(wanted: u64, limit: u64, taken: u64, payer: AccountingMode) -> Kind {
    Kind::PinLimit(PinLimit::new(Some(wanted), Some(Allowance::new(Some(limit), taken, payer))))
}

#[test]
fn type1_counts_the_locked_memory_of_the_process() {
    let (_, opened) = started("vtd", BackendKind::Type1, 3 * PAGE);
    map(&**opened.space(), MIB, &memory(2 * PAGE), Unit::Whole).expect("it fits");
    let error = map(&**opened.space(), 2 * MIB, &memory(2 * PAGE), Unit::Whole).expect_err("it does not");
    assert_eq!(error.kind(), short(2 * PAGE, 3 * PAGE, 2 * PAGE, AccountingMode::Process));
    let text = "map 0x200000..=0x201fff: \
                8192 bytes more do not fit into the 12288 bytes that may be locked (RLIMIT_MEMLOCK), 8192 of them \
                taken (VFIO_IOMMU_MAP_DMA: ENOMEM); raise RLIMIT_MEMLOCK, or grant CAP_IPC_LOCK";
    assert_eq!(error.to_string(), text);
}

#[test]
fn iommufd_counts_pinned_memory_of_this_process_only() {
    let (_, opened) = started("vtd", BackendKind::Iommufd, 3 * PAGE);
    map(&**opened.space(), MIB, &memory(2 * PAGE), Unit::Whole).expect("it fits");
    let error = map(&**opened.space(), 2 * MIB, &memory(2 * PAGE), Unit::Whole).expect_err("it does not");
    assert_eq!(error.kind(), short(2 * PAGE, 3 * PAGE, 2 * PAGE, AccountingMode::User));
    assert!(error.to_string().contains("8192 of them taken by this process (IOMMU_IOAS_MAP: ENOMEM)"), "{error}");
}

#[test]
fn iommufd_pins_earlier_mappings_when_the_first_device_is_attached() {
    let (soft, host, mut opened) = bare("vtd", BackendKind::Iommufd, 3 * PAGE);
    map(&**opened.space(), MIB, &memory(4 * PAGE), Unit::Pages(PageSize::K4)).expect("nothing is pinned yet");
    let error = attach(&soft, &host, &mut opened).expect_err("now it is");
    let OpenError::Attach { error } = error else { panic!("{error}") };
    assert_eq!(error.kind(), short(4 * PAGE, 3 * PAGE, 0, AccountingMode::User));
    opened.space().unmap(IovaRange::all()).expect("no unit is cut");
    attach(&soft, &host, &mut opened).expect("nothing is to be locked for it");
}

#[test]
fn spapr_counts_tables_and_registered_memory() {
    let (_, opened) = started("powernv9", BackendKind::Spapr, 64 * MIB);
    let space = opened.space();
    let (windows, registration) =
        (space.powers().window_control.expect("POWER"), space.powers().registration.expect("POWER"));
    let table = windows.table_bytes(window(1 << 30));
    windows.create_window(window(1 << 30)).expect("its table fits");
    let error = registration.register(&memory(64 * MIB)).expect_err("no room beside the table");
    assert_eq!(error.kind(), short(64 * MIB, 64 * MIB, table, AccountingMode::Process));
    windows.remove_window(window(1 << 30).range).expect("it is empty");
    registration.register(&memory(64 * MIB)).expect("all there is");
    let error = windows.create_window(window(1 << 30)).expect_err("no room beside the memory");
    assert_eq!(error.kind(), short(table, 64 * MIB, 64 * MIB, AccountingMode::Process));
    assert_eq!(error.failure(), None, "a table that cannot fit is not asked for");
}

#[test]
fn the_first_version_of_spapr_counts_all_of_its_window_and_the_table_when_the_device_comes() {
    const WINDOW: u64 = 2 << 30;
    const TABLE: u64 = 8 * MIB;
    for memlock in [WINDOW - PAGE, WINDOW, WINDOW + TABLE - PAGE] {
        let (soft, host, mut opened) = bare("powernv9", BackendKind::SpaprV1, memlock);
        let error = attach(&soft, &host, &mut opened).expect_err("it does not fit");
        let OpenError::Attach { error } = error else { panic!("{error}") };
        assert_eq!(error.kind(), short(WINDOW + TABLE, memlock, 0, AccountingMode::Process), "{error}");
        assert_eq!(soft.ledger().locked, 0);
    }
    let (soft, opened) = started("powernv9", BackendKind::SpaprV1, WINDOW + TABLE);
    map(&**opened.space(), 0, &memory(WINDOW), Unit::Whole).expect("it is paid for");
    assert_eq!(soft.ledger().locked, WINDOW + TABLE);
    drop(opened);
    assert!(soft.ledger().is_clear());
}

#[test]
fn a_map_in_parts_wants_all_of_them_and_has_given_back_its_own() {
    for backend in [BackendKind::Type1, BackendKind::Iommufd, BackendKind::Type1OnIommufd] {
        let (soft, opened) = started("vtd", backend, 4 * PAGE);
        map(&**opened.space(), MIB, &memory(PAGE), Unit::Whole).expect("it fits");
        let error = map(&**opened.space(), 2 * MIB, &memory(8 * PAGE), Unit::Pages(PageSize::K4));
        let payer = if backend == BackendKind::Type1 { AccountingMode::Process } else { AccountingMode::User };
        let error = error.expect_err("three of eight fit");
        assert_eq!(
            (error.kind().clone(), error.fenced().to_vec()),
            (short(8 * PAGE, 4 * PAGE, PAGE, payer), Vec::new()),
            "{backend}"
        );
        assert_eq!(soft.ledger().mappings, 1);
    }
}

#[test]
fn a_kernel_that_runs_out_of_memory_met_no_limit() {
    let (soft, opened) = started("vtd", BackendKind::Type1, MIB);
    let refusal = || {
        soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailBefore).of("VFIO_IOMMU_MAP_DMA").with(Errno::ENOMEM)]);
        map(&**opened.space(), MIB, &memory(PAGE), Unit::Whole).expect_err("a fault was planned")
    };
    let text = "map 0x100000..=0x100fff: the kernel is out of memory; \
                4096 bytes more fit into the 1048576 bytes that may be locked (RLIMIT_MEMLOCK), 0 of them taken \
                (VFIO_IOMMU_MAP_DMA: ENOMEM); free memory on the host";
    assert_eq!(refusal().to_string(), text);
    soft.set_memlock(None);
    let text = "map 0x100000..=0x100fff: the kernel is out of memory; no limit on locked memory is in force \
                (VFIO_IOMMU_MAP_DMA: ENOMEM); free memory on the host";
    assert_eq!(refusal().to_string(), text);
}

#[test]
fn entries_and_another_devices_memory_lock_nothing() {
    let spoilt = FaultPlan::nth(1, FaultMode::FailBefore).of("VFIO_IOMMU_MAP_DMA").with(Errno::ENOMEM);
    let (soft, opened) = started("powernv9", BackendKind::Spapr, 64 * MIB);
    let (space, ram) = (opened.space(), memory(64 << 10));
    space.powers().window_control.expect("POWER").create_window(window(1 << 30)).expect("its table fits");
    space.powers().registration.expect("POWER").register(&ram).expect("it fits");
    soft.plan_faults(&[spoilt]);
    let error = map(&**space, MIB, &ram, Unit::Whole).expect_err("a fault was planned");
    assert!(error.to_string().contains("the kernel is out of memory; nothing more was to be locked"), "{error}");

    let (soft, opened) = started("vtd", BackendKind::Type1, 0);
    soft.plan_faults(&[spoilt]);
    let bar = memory(PAGE).device_memory();
    let error = map(&**opened.space(), MIB, &bar, Unit::Whole).expect_err("a fault was planned");
    assert!(error.to_string().contains("the kernel is out of memory; nothing more was to be locked"), "{error}");
}
