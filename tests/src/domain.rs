//! A domain from its first device to its last, on the soft host and on real hosts.

use dmaspace::choose::BackendKind;
use dmaspace::device::Device;
use dmaspace::domain::{Domain, DomainError};
use dmaspace::open::Host;
use dmaspace::pci::PciAddress;
use dmaspace_core::{Access, Iova, IovaRange};
use dmaspace_listener::{Fate, FrontEnd, Section};

use crate::device::TestDevice;
use crate::fixture::Fixture;
use crate::limits::LockLimit;
use crate::soft::range;

const MIB: u64 = 1 << 20;

/// Makes a test device of an open device.
pub type Drive = Box<dyn Fn(Device) -> Box<dyn TestDevice>>;

/// The host of a domain, and the means to drive its devices.
pub struct Stage {
    /// The host.
    pub host: Host,
    /// The backend of all spaces.
    pub backend: BackendKind,
    /// Two devices, each in a group of its own.
    pub devices: [PciAddress; 2],
    /// Drives an open device.
    pub drive: Drive,
    /// The limit on locked memory.
    pub lock_limit: Box<dyn LockLimit>,
}

/// RAM is committed without a device, and pending until the first one comes. Each device that is added reaches all of
/// it; those that are there are not disturbed. The last one that is removed leaves nothing open.
///
/// # Errors
/// An error of adding or removing a device.
pub fn from_the_first_device_to_the_last(stage: Stage) -> Result<(), DomainError> {
    let Stage { host, backend, devices: [first, second], drive, lock_limit } = stage;
    let domain = Domain::new(host, FrontEnd::default()).with_backend(backend);
    let pages = crate::ram::Ram::new(crate::fixture::RAM);
    let section = |at: u64, offset: u64| {
        Section::ram("ram", Iova::new(at), pages.slice(offset, MIB), Access::READ_WRITE).expect("a proper section")
    };
    let sections = [section(0, 0), section(64 * MIB, 4 * MIB)];
    let report = domain.update_to(&sections, &[]).expect("no host is asked");
    assert_eq!(report.pending().count(), 2);
    assert!(domain.spaces().is_empty(), "nothing is open without a device");

    let added = domain.add(first)?;
    assert!(added.report.spaces[0].sections.iter().all(|verdict| verdict.fate == Fate::Mapped), "{:?}", added.report);
    domain.remove(added.device)?;
    assert!(domain.spaces().is_empty(), "the space left with its last device");

    let device = drive(domain.add(first)?.device);
    let space = domain.spaces().remove(0);
    let before = space.mappings(IovaRange::all());
    let mut fixture = Fixture::new(space.clone(), device, lock_limit);
    fixture.ram = pages;
    fixture.show_results_at(Iova::new(0x1_0000), fixture.ram.slice(0x1_0000, 0x1000));
    for section in &sections {
        fixture.assert_range(section.range(), section.memory().expect("it is RAM"), true);
    }

    let other = domain.add(second)?;
    assert_eq!(space.mappings(IovaRange::all()), before, "a second device changes nothing for the first");
    for space in domain.spaces() {
        assert_eq!(space.mappings(IovaRange::all()).len(), 2);
    }
    domain.remove_range(range(64 * MIB, MIB)).expect("RAM can go");
    fixture.assert_unreached(Iova::new(64 * MIB));
    fixture.assert_range(sections[0].range(), sections[0].memory().expect("it is RAM"), true);
    domain.remove(other.device)?;
    assert_eq!(domain.audit(), []);
    fixture.assert_range(sections[0].range(), sections[0].memory().expect("it is RAM"), true);
    Ok(())
}
