//! Spaces of one iommufd over one guest, on the soft host: the pinned bytes, and the calls.

use dmaspace_core::contract::MapRequest;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace_core::door::{Errno, HandleKind, OwnedHandle};
use dmaspace_core::error::Kind;
use dmaspace_core::{
    Access, HostAddress, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace, Space, SystemAddress,
};
use dmaspace_iommufd::{Cdev, Ioas, Iommufd, Pool};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{Fate, Update};
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};
use dmaspace_tests::soft::{host, memory, ram, range};

const K4: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOST: u64 = 1 << 45;
const RW: Access = Access::READ_WRITE;

const MAP: &str = "IOMMU_IOAS_MAP";
const COPY: &str = "IOMMU_IOAS_COPY";
const UNMAP: &str = "IOMMU_IOAS_UNMAP";

/// A host with a pool, and spaces in it, each with a device.
struct PoolFixture {
    soft: Arc<SoftHost>,
    host: Host,
    opened: Vec<Opened>,
    pool: Arc<Pool>,
}

impl PoolFixture {
    fn new(spaces: usize) -> Self {
        let soft = host("vtd");
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let pool = host.open_pool().expect("the soft host has it");
        let mut fixture = Self { soft, host, opened: Vec::new(), pool };
        for _ in 0..spaces {
            fixture.open();
        }
        fixture
    }

    /// Opens one more space.
    fn open(&mut self) {
        let device = &self.soft.profile().groups[self.opened.len()].devices[0];
        let wish = OpenRequest::device(device.address.parse().expect("a PCI address"));
        self.opened.push(self.host.open_in(&self.pool, &wish).expect("the soft host opens its device"));
    }

    fn space(&self, n: usize) -> Arc<dyn PciAddressSpace> {
        self.opened[n].space.space().clone()
    }

    fn listener(&self, front: FrontEnd) -> Listener {
        let mut listener = Listener::new(front);
        for opened in &self.opened {
            listener.attach(opened.space.space().clone()).expect("an empty view fits");
        }
        self.soft.reset_calls();
        listener
    }

    /// The number of maps, copies and unmaps.
    fn calls(&self) -> [u64; 3] {
        let calls = self.soft.calls();
        self.soft.reset_calls();
        [MAP, COPY, UNMAP].map(|name| calls.of(name))
    }

    /// Drops everything, and sees that nothing is left.
    fn close(self) {
        let Self { soft, host, opened, pool } = self;
        drop((host, opened, pool));
        assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
    }
}

fn adding(sections: impl IntoIterator<Item = Section>) -> Update {
    sections.into_iter().fold(Update::new(), Update::adding)
}

/// A guest with 4 GiB: below the hole of a PC, and above it, in one piece of host memory.
fn guest() -> Update {
    adding([ram(0, HOST, 3 * GIB), ram(4 * GIB, HOST + 3 * GIB, GIB)])
}

#[test]
fn two_spaces_over_one_guest_pin_it_once_for_one_map_call_more() {
    let fixture = PoolFixture::new(2);
    let mut listener = fixture.listener(FrontEnd::default());
    let report = listener.commit(guest()).expect("it fits");
    assert_eq!((fixture.soft.ledger().pinned, fixture.soft.ledger().ever_pinned), (4 * GIB, 4 * GIB));
    let counted: Vec<_> = report.spaces.iter().map(|space| (space.pinned, space.shared)).collect();
    assert_eq!(counted, [(4 * GIB, 0), (0, 4 * GIB)]);
    assert_eq!(fixture.calls(), [1, 4, 0], "one map of all there is, two copies in each space");
    let state = listener.state();
    assert_eq!(state.spaces[1].shared_pins.len(), 1);
    let words = state.to_string();
    assert!(words.contains("0x100000000 bytes more were mapped whose pins are shared with other spaces"), "{words}");
    drop(listener);
    fixture.close();
}

#[test]
fn two_spaces_that_map_again_pin_it_twice() {
    let soft = host("vtd");
    let iommufd = OwnedHandle::open(soft.clone(), "/dev/iommu".as_ref(), HandleKind::Iommufd).expect("it is there");
    let iommufd = Iommufd::new(iommufd);
    let mut listener = Listener::new(FrontEnd::default());
    for node in ["/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio1"] {
        let space = Space::new(Ioas::within(iommufd.clone()).expect("made")).expect("it has windows");
        assert!(space.powers().pin_sharing.is_none());
        let device = OwnedHandle::open(soft.clone(), node.as_ref(), HandleKind::Device).expect("it is there");
        space.attach(Arc::new(Cdev::new(device, node))).expect("attached");
        listener.attach(Arc::new(space)).expect("an empty view fits");
    }
    soft.reset_calls();
    let report = listener.commit(guest()).expect("it fits");
    assert_eq!(soft.ledger().pinned, 8 * GIB);
    assert!(report.spaces.iter().all(|space| (space.pinned, space.shared) == (4 * GIB, 0)));
    assert_eq!((soft.calls().of(MAP), soft.calls().of(COPY)), (4, 0));
}

#[test]
fn spaces_that_cut_differently_share_all_the_same() {
    let fixture = PoolFixture::new(2);
    // One chunks and knows a PC's hints, the other was told of RAM that the first has not.
    let mut listeners = [Listener::new(FrontEnd::pc()), Listener::new(FrontEnd::default())];
    for (n, listener) in listeners.iter_mut().enumerate() {
        listener.attach(fixture.space(n)).expect("an empty view fits");
    }
    listeners[0].commit(guest()).expect("it fits");
    let more = ram(5 * GIB, HOST + 4 * GIB, GIB);
    listeners[1].commit(guest().adding(more.clone())).expect("it fits");
    assert_eq!(fixture.soft.ledger().pinned, 5 * GIB);
    // The first space's shared pins do not concern the second, nor the other way round.
    listeners[0].commit(adding([more])).expect("it fits");
    assert_eq!(fixture.soft.ledger().pinned, 5 * GIB);
    drop(listeners);
    fixture.close();
}

#[test]
fn a_late_space_pins_nothing_and_a_space_that_stays_keeps_everything() {
    let mut fixture = PoolFixture::new(1);
    let mut listener = fixture.listener(FrontEnd::default());
    listener.commit(guest()).expect("it fits");
    fixture.open();
    let late = fixture.space(1);
    let report = listener.attach(late.clone()).expect("it fits there too");
    assert_eq!((report.spaces[0].pinned, report.spaces[0].shared), (0, 4 * GIB));
    assert_eq!(fixture.soft.ledger().ever_pinned, 4 * GIB);
    // The first one goes with its device, its listener's entry, everything.
    let first = fixture.space(0);
    listener.detach(&first).expect("it can leave");
    drop(first);
    drop(fixture.opened.remove(0));
    let ledger = fixture.soft.ledger();
    assert_eq!((ledger.pinned, ledger.ever_pinned), (4 * GIB, 4 * GIB));
    assert!(late.lookup(Iova::new(4 * GIB)).is_some());
    // Memory that is mapped again where it was mapped before finds its pins.
    let section = ram(4 * GIB, HOST + 3 * GIB, GIB);
    listener.commit(Update::new().removing(section.clone())).expect("it can go");
    assert_eq!(fixture.soft.ledger().pinned, 3 * GIB);
    listener.commit(Update::new().adding(section)).expect("it can come back");
    assert_eq!(fixture.soft.ledger().pinned, 4 * GIB);
    drop((listener, late));
    fixture.close();
}

#[test]
fn entries_of_two_translated_windows_pin_a_page_once_and_take_one_call_each() {
    let fixture = PoolFixture::new(2);
    let mut listeners = [fixture.listener(FrontEnd::default()), Listener::new(FrontEnd::default())];
    listeners[0].detach(&fixture.space(1)).expect("it can leave");
    listeners[1].attach(fixture.space(1)).expect("an empty view fits");
    let target = TargetMemory::new("ram", SystemAddress::new(0), memory(HOST, GIB)).expect("a piece of the test");
    let window = Section::translated("vIOMMU", range(0, 3 * GIB), PageSize::K4);
    for listener in &mut listeners {
        let update = adding([window.clone()]).adding_target(target.clone());
        let report = listener.commit(update).expect("the window fits");
        assert_eq!(report.spaces[0].targets[0].fate, Fate::PinsShared);
        assert_eq!(report.spaces[0].pinned, 0, "holding pins nothing");
    }
    assert_eq!((fixture.calls(), fixture.soft.ledger().pinned), ([1, 0, 0], 0));
    let handles = listeners.each_ref().map(|listener| listener.translated(Iova::new(0)).expect("in force"));
    for (n, handle) in handles.iter().enumerate() {
        let at = Iova::new(n as u64 * MIB);
        handle.put(at, SystemAddress::new(5 * K4), RW).expect("there is room");
        handle.put(Iova::new(n as u64 * MIB + K4), SystemAddress::new(9 * K4), Access::READ).expect("room");
    }
    assert_eq!((fixture.calls(), fixture.soft.ledger().pinned), ([0, 4, 0], 2 * K4));
    handles[0].clear(range(0, 2 * K4)).expect("whole entries");
    assert_eq!(fixture.soft.ledger().pinned, 2 * K4, "the other one still reaches them");
    handles[1].clear(range(MIB, K4)).expect("whole entries");
    assert_eq!(fixture.soft.ledger().pinned, K4);
    // Memory that entries point to does not go, neither here nor there.
    let gone = listeners[1].commit(Update::new().removing_target(target.clone()));
    assert!(gone.expect_err("an entry points to it").to_string().contains("still point to it"));
    handles[1].clear(range(MIB + K4, K4)).expect("whole entries");
    for listener in &mut listeners {
        listener.commit(Update::new().removing_target(target.clone())).expect("nothing points to it");
    }
    assert_eq!(fixture.soft.ledger().mappings, 0, "no holder is left");
    drop((listeners, handles));
    fixture.close();
}

#[test]
fn a_device_behind_its_viommu_and_one_beside_it_pin_the_guest_once() {
    let fixture = PoolFixture::new(2);
    let (mut beside, mut behind) = (Listener::new(FrontEnd::pc()), Listener::new(FrontEnd::default()));
    beside.attach(fixture.space(0)).expect("an empty view fits");
    behind.attach(fixture.space(1)).expect("an empty view fits");
    beside.commit(guest()).expect("it fits");
    let target = TargetMemory::new("ram", SystemAddress::new(0), memory(HOST, 4 * GIB)).expect("a piece of the test");
    let window = Section::translated("vIOMMU", range(0, 3 * GIB), PageSize::K4);
    behind.commit(adding([window]).adding_target(target)).expect("the window fits");
    let handle = behind.translated(Iova::new(0)).expect("in force");
    handle.put_run(Iova::new(GIB), SystemAddress::new(GIB), 64 * K4, RW).expect("there is room");
    assert_eq!(fixture.soft.ledger().ever_pinned, 4 * GIB);
    let live = fixture.space(1).lookup(Iova::new(GIB)).expect("an entry");
    assert_eq!(live.memory.address(), HostAddress::new(HOST + GIB));
    drop((beside, behind, handle));
    fixture.close();
}

#[test]
fn blocks_that_come_and_go_in_two_spaces_are_pinned_once() {
    let fixture = PoolFixture::new(2);
    let mut listener = fixture.listener(FrontEnd::default());
    let at = Iova::new(4 * GIB);
    let section = Section::discardable("virtio-mem", at, memory(HOST, GIB), RW, PageSize::M2).expect("of the test");
    listener.commit(adding([section])).expect("it fits");
    let handle = listener.discardable(at).expect("in force");
    let blocks = |n: u64, count: u64| range(4 * GIB + 2 * n * MIB, 2 * count * MIB);
    handle.populate(blocks(3, 4)).expect("the memory is there");
    assert_eq!((fixture.soft.ledger().pinned, fixture.calls()), (8 * MIB, [1, 8, 0]));
    handle.discard(blocks(4, 2)).expect("they can go");
    assert_eq!(fixture.soft.ledger().pinned, 4 * MIB);
    assert!(listener.may_discard(&memory(HOST + 8 * MIB, 4 * MIB)).is_ok(), "holding pins nothing");
    assert!(listener.may_discard(&memory(HOST + 6 * MIB, K4)).is_err());
    drop((listener, handle));
    fixture.close();
}

#[test]
fn memory_that_may_only_be_read_is_shared_for_reading() {
    let fixture = PoolFixture::new(2);
    let mut listener = fixture.listener(FrontEnd::default());
    let memory = memory(HOST, MIB).host_read_only();
    let rom = Section::ram("rom", Iova::new(0), memory.clone(), Access::READ).expect("of the test");
    listener.commit(adding([rom])).expect("reading is possible");
    assert_eq!((fixture.soft.ledger().pinned, fixture.calls()), (MIB, [1, 2, 0]));
    // Differently described it may be written, and then it is pinned for that by itself.
    let plain = HostMemory::unbacked(HostAddress::new(HOST), memory.len()).expect("no wrap");
    fixture.space(0).map(MapRequest::new(Iova::new(GIB), &plain, RW)).expect("it is pinned anew");
    assert_eq!((fixture.soft.ledger().pinned, fixture.calls()), (2 * MIB, [1, 0, 0]));
    drop(listener);
    fixture.close();
}

#[test]
fn memory_whose_pins_are_not_shared_is_mapped_by_itself() {
    let fixture = PoolFixture::new(2);
    let half = memory(HOST, MIB);
    let sharing = |n: usize, work: &dyn Fn(&dyn dmaspace_core::contract::PinSharing)| {
        work(fixture.space(n).powers().pin_sharing.expect("it is in a pool"));
    };
    sharing(0, &|sharing| {
        sharing.share_pins(&half).expect("it can be held");
        assert_eq!((sharing.sharers(&half), sharing.sharers(&memory(HOST, 2 * MIB))), (1, 0));
        assert_eq!(sharing.share_pins(&memory(HOST + K4, MIB)).expect_err("twice").kind(), Kind::AlreadyShared);
        assert_eq!(sharing.stop_sharing(&memory(HOST, K4)).expect_err("a part").kind(), Kind::NotShared);
    });
    fixture.soft.reset_calls();
    let map = |n: usize, at: u64, memory: &HostMemory| fixture.space(n).map(MapRequest::new(Iova::new(at), memory, RW));
    map(0, 0, &half).expect("it fits");
    map(1, 0, &half).expect("who holds it does not matter");
    assert_eq!((fixture.soft.ledger().pinned, fixture.calls()), (MIB, [0, 2, 0]));
    map(1, GIB, &memory(HOST + K4, MIB)).expect("it fits");
    assert_eq!((fixture.soft.ledger().pinned, fixture.calls()), (2 * MIB, [1, 0, 0]), "not all of it is held");
    sharing(0, &|sharing| {
        assert_eq!(sharing.stop_sharing(&half).expect_err("in use").kind(), Kind::InUse(range(0, MIB)));
    });
    // Copies stay when it is let go of.
    fixture.space(0).unmap(IovaRange::all()).expect("whole mappings");
    sharing(0, &|sharing| sharing.stop_sharing(&half).expect("nothing leans on it here"));
    assert_eq!(fixture.space(1).lookup(Iova::new(K4)).expect("mapped").memory.address(), HostAddress::new(HOST));
    assert_eq!(fixture.soft.ledger().pinned, 2 * MIB);
    fixture.close();
}

#[test]
fn shared_pieces_overlap_and_each_part_stays_until_its_last_sharer_stops() {
    let fixture = PoolFixture::new(3);
    let hold = |n: usize, first: u64, pages: u64| {
        fixture
            .space(n)
            .powers()
            .pin_sharing
            .expect("a pool")
            .share_pins(&memory(HOST + first * K4, pages * K4))
            .expect("held");
    };
    let let_go = |n: usize, first: u64, pages: u64| {
        fixture
            .space(n)
            .powers()
            .pin_sharing
            .expect("a pool")
            .stop_sharing(&memory(HOST + first * K4, pages * K4))
            .expect("let go");
    };
    let holders = |first: u64, pages: u64| {
        fixture.space(0).powers().pin_sharing.expect("a pool").sharers(&memory(HOST + first * K4, pages * K4))
    };
    hold(0, 2, 2);
    hold(1, 6, 2);
    hold(2, 0, 10);
    assert_eq!(fixture.soft.ledger().mappings, 5, "two pieces, and the parts around them");
    assert_eq!([holders(2, 2), holders(6, 2), holders(0, 10), holders(0, 11)], [2, 2, 1, 0]);
    let_go(2, 0, 10);
    assert_eq!(
        [holders(2, 2), holders(6, 2), holders(2, 3), fixture.soft.ledger().mapped as usize / 4096],
        [1, 1, 0, 4]
    );
    hold(2, 3, 4);
    let_go(0, 2, 2);
    assert_eq!([holders(2, 2), holders(3, 4)], [1, 1], "a piece stays whole while a part of it is shared");
    let_go(2, 3, 4);
    let_go(1, 6, 2);
    assert_eq!(fixture.soft.ledger().mappings, 0);
    fixture.close();
}

#[test]
fn a_piece_the_kernel_would_not_unmap_is_not_copied_and_goes_before_its_place_is_needed() {
    let fixture = PoolFixture::new(1);
    let space = fixture.space(0);
    let sharing = space.powers().pin_sharing.expect("it is in a pool");
    let piece = memory(HOST, MIB);
    sharing.share_pins(&piece).expect("held");
    let stubborn: Vec<_> =
        (1..=5).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).with(Errno::EIO).of(UNMAP)).collect();
    fixture.soft.plan_faults(&stubborn);
    sharing.stop_sharing(&piece).expect("memory without pins is no reason to fail");
    fixture.soft.plan_faults(&[]);
    assert_eq!((sharing.sharers(&piece), fixture.soft.ledger().mappings), (0, 1));
    sharing.share_pins(&memory(HOST + K4, MIB)).expect("it goes now");
    assert_eq!((fixture.soft.ledger().mappings, fixture.soft.ledger().mapped), (1, MIB));
    drop(space);
    fixture.close();
}

#[test]
fn memory_whose_pins_cannot_be_shared_is_reported() {
    let fixture = PoolFixture::new(1);
    fixture.soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailBefore).with(Errno::ENOMEM).of(MAP)]);
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(fixture.space(0)).expect("an empty view fits");
    let error = listener.commit(guest()).expect_err("the kernel had no memory").to_string();
    assert!(error.contains("share the pins of host memory 0x200000000000..=0x2000ffffffff"), "{error}");
    assert!(error.contains("IOMMU_IOAS_MAP: ENOMEM"), "{error}");
    assert_eq!(fixture.soft.ledger().mappings, 0);
    drop(listener);
    fixture.close();
}

#[test]
fn hosts_that_share_nothing_say_so() {
    let soft = host("vtd");
    for backend in [BackendKind::Type1, BackendKind::Iommufd] {
        let opened = dmaspace_tests::soft::open(&soft, backend);
        assert!(opened.space.space().powers().pin_sharing.is_none());
    }
}
