//! The parts of the swept hosts: memory, sections, windows, and the progress of a guest.

use dmaspace_core::contract::MapRequest;
use std::sync::Arc;

use dmaspace_core::contract::{Unit, WindowRequest};
use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::Update;
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{Listener, Section};
use dmaspace_spapr_guest::{AnsweredBy, Layout, PciHostBridge, SystemMemory, Tce, TceTables};
use dmaspace_tests::kernel::SoftKvm;

use dmaspace_tests::faults::{Done, SweptHost, Trouble, done};

/// The regions of the guest's memory: 2 MiB, 1 MiB, 64 KiB.
pub(crate) const RAM: usize = 0;
pub(crate) const DIMM: usize = 1;
pub(crate) const BAR: usize = 2;

pub(crate) const K4: u64 = 0x1000;
pub(crate) const K64: u64 = 0x1_0000;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const RW: Access = Access::READ_WRITE;

/// The address of the DIMM.
pub(crate) const DIMM_AT: u64 = 256 * MIB;
/// The DIMM has four of these.
pub(crate) const BLOCK: PageSize = match PageSize::from_bytes(256 << 10) {
    Some(block) => block,
    None => PageSize::K64,
};
/// The start of the second window on hosts that create it.
pub(crate) const HIGH: u64 = 1 << 59;
pub(crate) const UNITS: Unit = Unit::Pages(PageSize::K64);

pub(crate) fn range(first: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(first), len).expect("a range of the test")
}

pub(crate) fn request(first: u64) -> WindowRequest {
    WindowRequest::new(range(first, 256 * MIB), PageSize::K4)
}

pub(crate) fn ram(
    world: &SweptHost,
    name: &str,
    at: u64,
    region: usize,
    offset: u64,
    len: u64,
    access: Access,
) -> Section {
    Section::ram(name, Iova::new(at), world.ram(region, offset, len), access).expect("a section of the test")
}

pub(crate) fn shadow(world: &SweptHost, access: Access) -> Section {
    ram(world, "shadow", 0xc_0000, RAM, 0xc_0000, K64, access)
}

pub(crate) fn dimm(world: &SweptHost) -> Section {
    ram(world, "dimm", DIMM_AT, DIMM, 0, MIB, RW)
}

/// The DIMM again, as blocks that come and go.
pub(crate) fn discardable(world: &SweptHost) -> Section {
    let (at, memory) = (Iova::new(DIMM_AT), world.ram(DIMM, 0, MIB));
    Section::discardable("virtio-mem", at, memory, RW, BLOCK).expect("a section of the test")
}

/// A discardable section, and plain memory beside it.
pub(crate) fn beside(world: &SweptHost) -> Update {
    Update::new().adding(shadow(world, Access::READ)).adding(discardable(world))
}

/// A guest with these blocks populated.
pub(crate) fn with_blocks(world: &mut SweptHost, populated: &[u64]) {
    with_empty_view(world, FrontEnd::default());
    world.commit(beside(world)).expect("undisturbed");
    for block in populated {
        populate(world, *block, 1).expect("undisturbed");
    }
}

pub(crate) fn blocks(first: u64, count: u64) -> IovaRange {
    range(DIMM_AT + first * BLOCK.bytes(), count * BLOCK.bytes())
}

pub(crate) fn populate(world: &SweptHost, first: u64, count: u64) -> Operated {
    world.discardable(DIMM_AT).populate(blocks(first, count))?;
    done()
}

pub(crate) fn discard(world: &SweptHost, first: u64, count: u64) -> Operated {
    world.discardable(DIMM_AT).discard(blocks(first, count))?;
    done()
}

pub(crate) fn bar(world: &SweptHost, at: u64) -> Section {
    let memory = world.ram(BAR, 0, K64);
    Section::device_memory("another device's BAR", Iova::new(at), memory, RW).expect("a section of the test")
}

/// A small PC, with RAM below the place where every window ends that is created for it.
pub(crate) fn flat(world: &SweptHost) -> Update {
    let sections = [
        ram(world, "pc.ram", 0, RAM, 0, 0xa_0000, RW),
        Section::nothing("vga", range(0xa_0000, 0x2_0000)),
        shadow(world, Access::READ),
        ram(world, "pc.ram", MIB, RAM, MIB, 0xf_0000, RW),
        ram(world, "top", 512 * MIB - K64, RAM, 2 * MIB - K64, K64, RW),
        Section::msi("msi", range(0xfee0_0000, MIB)),
    ];
    sections.into_iter().fold(Update::new(), Update::adding)
}

pub(crate) fn low_window(len: u64) -> Section {
    Section::translated("tce-iommu-80000000", range(0, len), PageSize::K4)
}

/// The start of the second window: sPAPR's place where the host creates windows, one that a PC's IOMMU has elsewhere,
/// or beside the first.
pub(crate) fn high(world: &SweptHost) -> u64 {
    match (world.creates_windows(), world.has_one_window()) {
        (true, _) => HIGH,
        (_, true) => 512 * MIB,
        _ => 4096 * MIB,
    }
}

pub(crate) fn high_window(world: &SweptHost) -> Section {
    Section::translated("tce-iommu-80000001", range(high(world), 256 * MIB), PageSize::K64)
}

/// The guest's regions, one after the other.
pub(crate) fn target(world: &SweptHost, region: usize) -> TargetMemory {
    let (at, len) = if region == RAM { (0, 2 * MIB) } else { (2 * MIB, MIB) };
    TargetMemory::new("spapr.ram", SystemAddress::new(at), world.ram(region, 0, len)).expect("a piece of the test")
}

/// A half of the first region.
pub(crate) fn half(world: &SweptHost, n: u64) -> TargetMemory {
    let memory = world.ram(RAM, n * MIB, MIB);
    TargetMemory::new("spapr.ram", SystemAddress::new(n * MIB), memory).expect("a piece of the test")
}

/// sPAPR's bus: two windows, and RAM that is reached only through entries.
pub(crate) fn translated(world: &SweptHost) -> Update {
    let windows = Update::new().adding(low_window(256 * MIB)).adding(high_window(world));
    windows.adding_target(target(world, RAM)).adding_target(target(world, DIMM))
}

pub(crate) fn with_empty_view(world: &mut SweptHost, front: FrontEnd) {
    world.listener = Listener::new(front);
    world.open(0).expect("undisturbed");
    world.join(0).expect("undisturbed");
}

pub(crate) fn with_two_spaces(world: &mut SweptHost) {
    world.open(0).expect("undisturbed");
    world.open_elsewhere(1).expect("undisturbed");
    world.join(0).expect("undisturbed");
    world.join(1).expect("undisturbed");
}

pub(crate) fn with_two_spaces_mapped(world: &mut SweptHost) {
    with_two_spaces(world);
    world.commit(flat(world)).expect("undisturbed");
}

pub(crate) fn with_a_pool(world: &mut SweptHost, spaces: usize) {
    for n in 0..spaces {
        world.open_sharing(n).expect("undisturbed");
        world.join(n).expect("undisturbed");
    }
}

pub(crate) fn with_flat_map(world: &mut SweptHost) {
    with_empty_view(world, FrontEnd::default());
    world.commit(flat(world)).expect("undisturbed");
}

/// A flat map, and two devices, behind two IOMMUs if the host has so many.
pub(crate) fn with_two_devices(world: &mut SweptHost) {
    with_flat_map(world);
    world.add(0, 2).expect("undisturbed");
}

/// A tracked guest whose two devices have written.
pub(crate) fn with_writes(world: &mut SweptHost) {
    with_two_devices(world);
    world.track().expect("undisturbed");
    world.write(0, 0);
    world.write(1, 0x9_f000);
    world.write(0, MIB);
    world.write(1, 512 * MIB - K4);
}

/// Two translated windows, and a few entries in both.
pub(crate) fn with_entries(world: &mut SweptHost) {
    with_empty_view(world, FrontEnd::default());
    world.commit(translated(world)).expect("undisturbed");
    put_some(world);
    let window = world.window(high(world));
    window.put_run(Iova::new(high(world) + MIB), SystemAddress::new(MIB), 3 * K64, RW).expect("undisturbed");
}

pub(crate) fn put_some(world: &SweptHost) {
    let window = world.window(0);
    window.put_run(Iova::new(MIB), SystemAddress::new(0), 4 * K4, RW).expect("undisturbed");
    window.put(Iova::new(2 * MIB), SystemAddress::new(MIB), Access::READ).expect("undisturbed");
}

/// A bridge after its reset, which has created windows of 256 MiB in such pages, with entries in all of them.
pub(crate) fn with_bridge(world: &mut SweptHost, page_shifts: &[u32]) {
    with_empty_view(world, FrontEnd::default());
    let targets = Update::new().adding_target(target(world, RAM)).adding_target(target(world, DIMM));
    world.commit(targets).expect("undisturbed");
    let layout = Layout::pseries(0).placed_on([&world.space(0)]).expect("there is room");
    let bridge = PciHostBridge::new(layout, Arc::new(TceTables::new())).expect("a proper layout");
    let bridge = set_up(world, bridge, page_shifts, 28);
    for window in bridge.windows() {
        let at = window.range.first().get() + 3 * window.page.bytes();
        let entry = bridge.tables().h_stuff_tce(&RecordedRam, window.liobn, Iova::new(at), Tce::new(0x1_0003), 2);
        entry.expect("undisturbed");
    }
}

/// A guest whose windows the kernel owns. They are small: every look into its tables reads all of them.
pub(crate) fn with_bridge_and_kernel(world: &mut SweptHost, page_shifts: &[u32]) {
    with_empty_view(world, FrontEnd::default());
    world.commit(Update::new().adding_target(target(world, RAM))).expect("undisturbed");
    let mut layout = Layout::pseries(0).placed_on([&world.space(0)]).expect("there is room");
    layout.default_window = range(0, 2 * MIB);
    let kvm = SoftKvm::new(world.soft(), &world.ram(RAM, 0, 2 * MIB));
    let bridge = PciHostBridge::new(layout, Arc::new(TceTables::new())).expect("a proper layout");
    let bridge = set_up(world, bridge.with_kernel(kvm.tables()), page_shifts, 22);
    for window in bridge.windows() {
        assert_eq!(bridge.answered_by(window.liobn), Some(AnsweredBy::Kernel));
        let at = window.range.first().get() + 3 * window.page.bytes();
        for at in [at, at + window.page.bytes()] {
            assert!(kvm.put(window.liobn.get().into(), at, 0x1_0003));
        }
    }
}

/// Resets a bridge, and creates windows of `1 << window_shift` bytes in such pages.
fn set_up<'a>(
    world: &'a mut SweptHost,
    bridge: PciHostBridge,
    page_shifts: &[u32],
    window_shift: u32,
) -> &'a PciHostBridge {
    world.bridge = Some(bridge);
    let arranged = world.on_bridge(|bridge, listener| {
        bridge.reset(listener)?;
        page_shifts.iter().try_for_each(|shift| bridge.create_window(listener, *shift, window_shift).map(drop))
    });
    arranged.expect("undisturbed");
    world.bridge.as_ref().expect("it is there")
}

pub(crate) fn remove_window(world: &mut SweptHost, number: u8) -> Result<Done, Trouble> {
    world.on_bridge(|bridge, listener| {
        let liobn = bridge.layout().liobn(number);
        bridge.remove_window(listener, liobn).map(drop)
    })
}

/// 3 MiB from 0 on. They are never read.
pub(crate) struct RecordedRam;

impl SystemMemory for RecordedRam {
    fn holds(&self, range: SystemRange) -> bool {
        range.last().get() < 3 * MIB
    }

    fn read(&self, _: SystemAddress, _: &mut [u8]) -> bool {
        false
    }

    fn write(&self, _: SystemAddress, _: &[u8]) -> bool {
        false
    }
}

/// Units of 64 KiB and a whole mapping, put there without a listener.
pub(crate) fn with_mapped_units(world: &mut SweptHost) {
    world.open(0).expect("undisturbed");
    with_mapped_units_in(world);
}

pub(crate) fn with_mapped_units_in(world: &SweptHost) {
    if world.creates_windows() {
        world.registration(|registration| registration.register(&world.ram(RAM, 0, 2 * MIB))).expect("undisturbed");
        world.registration(|registration| registration.register(&world.ram(DIMM, 0, MIB))).expect("undisturbed");
        world.control(|control| control.create_window(request(0))).expect("undisturbed");
        world.control(|control| control.create_window(request(HIGH))).expect("undisturbed");
    }
    let space = world.space(0);
    space.map(MapRequest::new(Iova::new(MIB), &world.ram(RAM, 0, 4 * K64), RW).with_unit(UNITS)).expect("undisturbed");
    space.map(MapRequest::new(Iova::new(2 * MIB), &world.ram(RAM, MIB, 2 * K64), Access::READ)).expect("undisturbed");
}

pub(crate) type Operated = Result<Done, Trouble>;

pub(crate) fn detach(world: &mut SweptHost) -> Operated {
    world.space(0).detach(&world.attached[0])?;
    done()
}

pub(crate) fn leave(world: &mut SweptHost) -> Operated {
    let space = world.space(0);
    world.listener.detach(&space)?;
    done()
}

pub(crate) fn drop_everything(world: &mut SweptHost) -> Operated {
    world.listener = Listener::default();
    world.opened.clear();
    done()
}
