//! Two devices with address spaces of their own over one guest, and the bytes that the kernel counts as pinned.

use std::fs;
use std::sync::Arc;

use dmaspace::choose::OpenRequest;
use dmaspace::open::{Host, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_core::door::HandleKind;
use dmaspace_core::{Access, Iova, PageSize, PciAddressSpace, Space, SystemAddress};
use dmaspace_iommufd::{Cdev, Ioas, Iommufd};
use dmaspace_listener::Update;
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener, Section};

use crate::edu::Edu;
use crate::fixture::{Fixture, RAM};
use crate::ledger::OfThisProcess;
use crate::soft::range;

const K4: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const RW: Access = Access::READ_WRITE;

/// The address at which a result is shown.
const SCRATCH: u64 = MIB;

/// `VmPin` of this process, in bytes.
fn pinned() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).expect("Linux says it");
    let number = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB");
    number << 10
}

fn listener_of(space: &Arc<dyn PciAddressSpace>) -> Listener {
    let mut listener = Listener::new(FrontEnd::pc());
    listener.attach(space.clone()).expect("an empty view fits");
    listener
}

/// The fixture of a device, over RAM that another may share.
fn fixture_of(mut opened: Opened) -> Fixture {
    let device = Edu::new(opened.devices.remove(0));
    Fixture::new(opened.space.space().clone(), Box::new(device), Box::new(OfThisProcess)).keeping(opened)
}

/// Devices in a pool pin the guest's RAM once, whether they are attached, detached, or behind a vIOMMU.
///
/// # Errors
/// What opening says.
pub fn a_pool_pins_once(host: &Host, devices: [PciAddress; 2]) -> Result<(), dmaspace::OpenError> {
    let pool = host.open_pool()?;
    let mut first = fixture_of(host.open_in(&pool, &OpenRequest::device(devices[0]))?);
    let mut second = fixture_of(host.open_in(&pool, &OpenRequest::device(devices[1]))?);
    second.ram = first.ram.clone();
    drop(pool);
    let (ram, all) = (first.ram.clone(), RAM as u64);
    let none = pinned();
    let mut listener = listener_of(&first.space);
    listener.attach(second.space.clone()).expect("an empty view fits");
    let sections = |first: u64| {
        let low = Section::ram("pc.ram", Iova::new(0), ram.slice(0, first), RW).expect("of the trial");
        let high = Section::ram("pc.ram", Iova::new(4 * all), ram.slice(first, all - first), RW).expect("of the trial");
        Update::new().adding(low).adding(high)
    };
    let report = listener.commit(sections(8 * MIB)).expect("it fits");
    assert_eq!((report.spaces[0].pinned, report.spaces[0].shared), (all, 0));
    assert_eq!((report.spaces[1].pinned, report.spaces[1].shared), (0, all));
    assert_eq!(pinned() - none, all, "the guest's RAM is pinned once");
    for fixture in [&mut first, &mut second] {
        fixture.show_results_at(Iova::new(SCRATCH), ram.slice(SCRATCH, K4));
        fixture.assert_range(range(0, 8 * MIB), &ram.slice(0, 8 * MIB), true);
        fixture.assert_range(range(4 * all, 8 * MIB), &ram.slice(8 * MIB, 8 * MIB), true);
    }

    // The second goes behind its vIOMMU: entries anywhere, into the same pins.
    listener.detach(&second.space).expect("it can leave");
    let mut behind = listener_of(&second.space);
    let window = Section::translated("vIOMMU", range(0, 256 * MIB), PageSize::K4);
    let target = TargetMemory::new("pc.ram", SystemAddress::new(0), ram.all().clone()).expect("of the trial");
    behind.commit(Update::new().adding(window).adding_target(target.clone())).expect("the window fits");
    let entries = behind.translated(Iova::new(0)).expect("in force");
    let at = Iova::new(64 * MIB);
    entries.put(Iova::new(SCRATCH), SystemAddress::new(SCRATCH), RW).expect("there is room");
    entries.put_run(at, SystemAddress::new(5 * MIB), 16 * K4, RW).expect("there is room");
    assert_eq!(pinned() - none, all, "its entries pin nothing more");
    second.assert_range(range(at.get(), 16 * K4), &ram.slice(5 * MIB, 16 * K4), true);
    second.assert_unreached(Iova::new(4 * MIB));

    // The first is closed: the mappings of the second stay.
    drop(listener);
    drop(first);
    assert_eq!(pinned() - none, 17 * K4, "memory that no space maps any more is not pinned");
    second.assert_range(range(at.get(), 16 * K4), &ram.slice(5 * MIB, 16 * K4), true);
    entries.clear(range(0, 256 * MIB)).expect("whole entries");
    behind.commit(Update::new().removing_target(target)).expect("nothing points to it");
    assert_eq!(pinned(), none);
    Ok(())
}

/// The cost without sharing: spaces that map by themselves pin the guest's RAM twice.
///
/// # Errors
/// What opening says.
pub fn mapping_again_pins_twice(host: &Host, devices: [PciAddress; 2]) -> Result<(), dmaspace::OpenError> {
    let door = host.door();
    let open = |path: &std::path::Path, kind| crate::owned::opened(door, path, kind);
    let iommufd = Iommufd::new(open("/dev/iommu".as_ref(), HandleKind::Iommufd));
    let mut listener = Listener::new(FrontEnd::pc());
    let ram = crate::ram::Ram::new(RAM);
    let none = pinned();
    let mut spaces = Vec::new();
    for address in devices {
        let vfio = host.facts().devices[&address].vfio.clone().expect("bound to vfio-pci");
        let node = Cdev::new(open(&vfio.path(), HandleKind::Device), address.to_string());
        let space = Ioas::within(iommufd.clone()).map(Space::new).expect("made").expect("it has windows");
        space.attach(Arc::new(node)).expect("attached");
        spaces.push(Arc::new(space));
    }
    for space in spaces.iter() {
        listener.attach(space.clone()).expect("an empty view fits");
    }
    let section = Section::ram("pc.ram", Iova::new(0), ram.all().clone(), RW).expect("of the trial");
    listener.commit(Update::new().adding(section)).expect("it fits");
    assert_eq!(pinned() - none, 2 * RAM as u64);
    Ok(())
}
