//! A space that loses its last device while another one goes on: the guest notices nothing, and when a device is back
//! the space has the mappings of the other.

use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_core::door::Errno;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, PciAddressSpace, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{EntryError, TranslatedWindow, Update};
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};
use dmaspace_tests::soft::{host, memory, open, range};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 0x1000;
const RW: Access = Access::READ_WRITE;

const HOSTS: [(&str, BackendKind); 5] = [
    ("vtd", BackendKind::Type1),
    ("vtd", BackendKind::Iommufd),
    ("powernv9", BackendKind::Spapr),
    ("powernv9-64k", BackendKind::Spapr),
    ("pseries", BackendKind::Spapr),
];

/// Two spaces with a device each, which one listener serves, with a window and memory for its entries.
struct DeviceFixture {
    soft: Arc<SoftHost>,
    host: Host,
    opened: [Opened; 2],
    listener: Listener,
}

impl DeviceFixture {
    fn new(preset: &str, backend: BackendKind) -> Self {
        let soft = host(preset);
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let open = |n| {
            host.open(&OpenRequest::device(address(&soft, n)).with_backend(backend))
                .expect("the soft host opens its device")
        };
        let opened = [open(0), open(1)];
        let mut listener = Listener::new(FrontEnd::default());
        for opened in &opened {
            listener.attach(opened.space.space().clone()).expect("an empty view fits");
        }
        let target = TargetMemory::new("ram", SystemAddress::new(0), memory(1 << 45, 16 * MIB));
        let update = Update::new().adding(Section::translated("window", range(0, 64 * MIB), PageSize::K4));
        listener.commit(update.adding_target(target.expect("a proper range"))).expect("it fits");
        Self { soft, host, opened, listener }
    }

    fn window(&self) -> TranslatedWindow {
        self.listener.translated(Iova::new(0)).expect("it is in force")
    }

    fn put(&self, mib: u64) -> Result<(), EntryError> {
        self.window().put_run(Iova::new(mib * MIB), SystemAddress::new(MIB), 4 * PAGE, RW)
    }

    /// The device of a space leaves it.
    fn unplug(&mut self, n: usize) {
        let device = self.opened[n].devices.remove(0);
        self.opened[n].space.remove(device).expect("nothing else holds it");
    }

    fn plug(&mut self, n: usize) {
        let address = address(&self.soft, n);
        let device = self.opened[n].space.add(&self.host, address).expect("it comes back");
        self.opened[n].devices.push(device);
    }

    fn space(&self, n: usize) -> &dyn PciAddressSpace {
        self.opened[n].space.space().as_ref()
    }

    /// The bytes of live entries, equal in both spaces.
    fn live(&self) -> u128 {
        let live = [0, 1].map(|n| self.space(n).mappings(IovaRange::all()));
        assert_eq!(live[0], live[1]);
        live[0].iter().map(|mapping| mapping.range.bytes()).sum()
    }
}

fn address(soft: &SoftHost, n: usize) -> PciAddress {
    soft.profile().groups[n].devices[0].address.parse().expect("a PCI address")
}

#[test]
fn entries_come_and_go_while_a_space_has_no_device_and_it_gets_them_when_it_has_one() {
    for (preset, backend) in HOSTS {
        let mut fixture = DeviceFixture::new(preset, backend);
        for mib in [0, 1, 2].iter() {
            fixture.put(*mib).expect("RAM is there");
        }
        for (lost, at) in [(0, 10), (1, 20), (0, 30)] {
            fixture.unplug(lost);
            fixture.put(at).expect("the other space goes on");
            fixture.listener.sync().expect("a space without a device is left alone");
            fixture.put(at + 1).expect("the other space goes on");
            fixture.window().replace(Iova::new(0), SystemAddress::new(at * PAGE), PAGE, RW).expect("it is live");
            fixture.window().clear(range((at + 1) * MIB, PAGE)).expect("it is live");
            assert!(fixture.window().lookup(Iova::new(at * MIB)).expect("it is in force").is_some());
            fixture.plug(lost);
            fixture.put(at + 2).expect("both go on, or one does");
            fixture.window().clear(range(2 * MIB, MIB)).expect("whole entries");
            fixture.listener.sync().expect("it fits as before");
            fixture.put(2).expect("both have the window");
            let puts = 3 + 3 * u128::from(at / 10);
            assert_eq!(fixture.live(), (puts * 4 - u128::from(at / 10)) * u128::from(PAGE), "{preset} {backend}");
            assert_eq!(fixture.listener.audit(), []);
        }
        let DeviceFixture { soft, listener, opened, .. } = fixture;
        drop((listener, opened));
        assert!(soft.ledger().is_clear(), "{preset} {backend}: {:?}", soft.ledger());
    }
}

#[test]
fn memory_that_entries_of_the_space_that_goes_on_point_to_cannot_go() {
    let mut fixture = DeviceFixture::new("powernv9", BackendKind::Spapr);
    fixture.put(1).expect("RAM is there");
    fixture.unplug(0);
    fixture.listener.sync().expect("a space without a device is left alone");
    let target = fixture.listener.targets().next().expect("it is in force").clone();
    fixture.listener.commit(Update::new().removing_target(target)).expect_err("the second space's entry points there");
}

#[test]
fn a_space_that_joins_while_the_first_has_no_device_gets_the_entries_of_the_second() {
    let mut fixture = DeviceFixture::new("powernv9", BackendKind::Spapr);
    fixture.put(1).expect("RAM is there");
    fixture.unplug(0);
    let wish = OpenRequest::device(address(&fixture.soft, 2)).with_backend(BackendKind::Spapr);
    let third = fixture.host.open(&wish).expect("the soft host opens its device");
    fixture.listener.attach(third.space.space().clone()).expect("it fits");
    assert_eq!(third.space.space().mappings(IovaRange::all()), fixture.space(1).mappings(IovaRange::all()));
    assert_eq!(fixture.space(1).mappings(IovaRange::all()).len(), 1);
}

#[test]
fn nothing_is_put_where_no_space_has_a_device() {
    for (preset, backend) in HOSTS.into_iter().filter(|(_, backend)| *backend != BackendKind::Iommufd) {
        let mut fixture = DeviceFixture::new(preset, backend);
        fixture.put(1).expect("RAM is there");
        fixture.unplug(0);
        fixture.unplug(1);
        fixture.put(2).expect_err("no space would have it");
        fixture.plug(1);
        fixture.plug(0);
        fixture.listener.sync().expect("it fits as before");
        fixture.put(1).expect("it is the guest's to put again");
        assert_eq!(fixture.live(), u128::from(4 * PAGE), "{preset} {backend}");
    }
}

/// The backends with the presets that have them, and the call that detaches a device.
const DETACHES: [(&str, BackendKind, &str); 5] = [
    ("vtd", BackendKind::Type1, "VFIO_GROUP_UNSET_CONTAINER"),
    ("vtd", BackendKind::Type1OnIommufd, "VFIO_GROUP_UNSET_CONTAINER"),
    ("vtd", BackendKind::Iommufd, "VFIO_DEVICE_DETACH_IOMMUFD_PT"),
    ("powernv9", BackendKind::Spapr, "VFIO_GROUP_UNSET_CONTAINER"),
    ("powernv9", BackendKind::SpaprV1, "VFIO_GROUP_UNSET_CONTAINER"),
];

#[test]
fn a_device_whose_detach_answers_enodev_is_detached() {
    for (preset, backend, detach) in DETACHES {
        let soft = host(preset);
        let mut opened = open(&soft, backend);
        let gone = FaultPlan::nth(0, FaultMode::FailBefore).of(detach).with(Errno::ENODEV);
        soft.plan_faults(&(1..=8).map(|n| gone.later(n)).collect::<Vec<_>>());
        let device = opened.devices.remove(0);
        opened.space.remove(device).expect("a device that is gone is attached nowhere");
        assert!(soft.faults_fired() > 1, "{preset} {backend}: one answer proves nothing");
        assert_eq!(opened.space.space().describe().devices, [""; 0], "{preset} {backend}");
    }
}

#[test]
fn a_device_whose_detach_answers_enodev_once_is_detached_by_the_next_call() {
    for (preset, backend, detach) in DETACHES {
        let soft = host(preset);
        let mut opened = open(&soft, backend);
        soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailBefore).of(detach).with(Errno::ENODEV)]);
        let device = opened.devices.remove(0);
        opened.space.remove(device).expect("the second call detaches it");
        assert_eq!(soft.faults_fired(), 1, "{preset} {backend}");
        drop(opened);
        assert!(soft.ledger().is_clear(), "{preset} {backend}: {:?}", soft.ledger());
    }
}
