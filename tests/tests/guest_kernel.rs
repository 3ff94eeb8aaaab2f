//! Windows that the kernel fills, on hosts in software with a KVM in software beside them.

use dmaspace_core::contract::MapRequest;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::open::Opened;
use dmaspace_core::contract::Unit;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, PciAddressSpace};
use dmaspace_listener::{CommitError, Update};
use dmaspace_soft::{FaultMode, FaultPlan, SoftDevice, SoftHost};
use dmaspace_spapr_guest::{AnsweredBy, Layout, Liobn, Tce, VmmReason, WindowError};
use dmaspace_tests::dirty::Told;
use dmaspace_tests::kernel::SoftKvm;
use dmaspace_tests::soft::{host, open, range};
use dmaspace_tests::spapr_guest::{FIRST, RAM, SECOND, SpaprGuest};

const HIGH: u64 = 1 << 59;
const CREATE: &str = "VFIO_IOMMU_SPAPR_TCE_CREATE";

/// A guest with a KVM, and a host that it has or will have.
struct World {
    soft: Arc<SoftHost>,
    guest: SpaprGuest,
    kvm: Arc<SoftKvm>,
    opened: Opened,
}

impl World {
    /// The host is not attached yet.
    fn without_host(backend: BackendKind) -> Self {
        let soft = host("powernv9");
        let opened = open(&soft, backend);
        let placed = Layout::pseries(0).placed_on([opened.space.space()]);
        let mut layout = placed.unwrap_or(Layout::pseries(0));
        // Small, since every look into the kernel's table reads all of it.
        layout.default_window = range(0, 16 << 20);
        let guest = SpaprGuest::new(layout);
        let kvm = SoftKvm::new(&soft, guest.ram());
        Self { guest: guest.with_kernel(kvm.tables()), kvm, soft, opened }
    }

    fn new() -> Self {
        let mut world = Self::without_host(BackendKind::Spapr);
        world.guest.attach(&world.opened).expect("an empty view fits");
        assert_eq!(world.guest.reset(), 0);
        world
    }

    fn space(&self) -> Arc<dyn PciAddressSpace> {
        self.opened.space.space().clone()
    }

    fn device(&self) -> SoftDevice {
        self.soft.device(self.opened.devices[0].name()).expect("it is there")
    }

    /// H_PUT_TCE, answered by the kernel or by the VMM.
    fn put(&self, liobn: u64, ioba: u64, tce: u64) -> i64 {
        if self.kvm.put(liobn, ioba, tce) { 0 } else { self.guest.put(liobn, ioba, tce) }
    }

    fn answered_by(&self, liobn: u64) -> Option<AnsweredBy> {
        self.guest.bridge().answered_by(Liobn::new(u32::try_from(liobn).expect("a LIOBN")))
    }

    fn filled(&self) -> usize {
        self.space().powers().kernel_tables.map_or(0, |tables| tables.kernel_owned().len())
    }

    /// Tables, host and device agree at these bus addresses.
    fn assert_agreed(&self, liobn: u64, places: &[u64]) {
        assert_eq!(self.guest.says(), self.guest.has(self.space().as_ref()));
        for at in places.iter() {
            self.guest.assert_reaches(&self.device(), liobn, *at);
        }
    }
}

#[test]
fn entries_of_the_kernel_are_seen_by_the_space_the_tables_and_the_device() {
    let mut world = World::new();
    world.guest.stamp_memory();
    assert_eq!(world.guest.create(16, 24).map_err(|(code, _)| code), Ok((SECOND, HIGH)));
    for liobn in [FIRST, SECOND] {
        assert_eq!(world.answered_by(liobn), Some(AnsweredBy::Kernel));
    }
    assert_eq!((world.filled(), world.kvm.holds()), (2, (2, 2)));
    for (liobn, at, tce) in
        [(FIRST, 0x1000, 0x5003), (FIRST, 0x2000, 0x6003), (FIRST, 0x8000, 0x9001), (SECOND, HIGH, 0x1_0003)]
    {
        assert_eq!(world.put(liobn, at, tce), 0);
        let name = Liobn::from_register(liobn).expect("a LIOBN");
        assert_eq!(world.guest.bridge().tables().h_get_tce(name, Iova::new(at)), Ok(Tce::new(tce)));
    }
    assert_eq!(world.kvm.answered(), 4);
    world.assert_agreed(FIRST, &[0x1000, 0x2000, 0x3000, 0x8000]);
    world.assert_agreed(SECOND, &[HIGH, HIGH + 0x1_0000]);
    let entry = world.space().lookup(Iova::new(0x2004)).expect("it is there");
    assert_eq!(
        (entry.range.first(), entry.access, entry.unit),
        (Iova::new(0x2000), Access::READ_WRITE, Unit::Pages(PageSize::K4))
    );
    assert_eq!(world.space().mappings(IovaRange::with_len(Iova::new(0x1800), 0x1000).expect("a range")).len(), 1);
    let state = world.guest.listener().state();
    let live: Vec<_> = state.translated.iter().map(|window| (window.kernel_owned, window.live)).collect();
    assert_eq!(live, [(true, 0x3000), (true, 0x1_0000)]);
    assert!(state.to_string().contains("and the kernel puts them"), "{state}");
    assert_eq!(world.guest.listener().audit(), []);
    assert_eq!(world.put(FIRST, 0x1000, 0), 0);
    world.assert_agreed(FIRST, &[0x1000, 0x2000]);
}

#[test]
fn another_writer_is_refused_and_nothing_changes() {
    let world = World::new();
    assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
    let (space, calls) = (world.space(), world.soft.calls().total());
    let before = space.mappings(IovaRange::all());
    let page = world.guest.ram().slice(0, 0x1000).expect("inside");
    let whole = world.guest.windows()[0].range;
    let refused = [
        space
            .map(MapRequest::new(Iova::new(0x4000), &page, Access::READ).with_unit(Unit::Pages(PageSize::K4)))
            .map_err(|error| error.kind().clone()),
        space
            .replace(MapRequest::new(Iova::new(0x1000), &page, Access::READ).with_unit(Unit::Pages(PageSize::K4)))
            .map(drop)
            .map_err(|error| error.kind().clone()),
        space.unmap(IovaRange::all()).map(drop).map_err(|error| error.kind().clone()),
        space.unmap(whole).map(drop).map_err(|error| error.kind().clone()),
        space
            .powers()
            .window_control
            .expect("POWER")
            .remove_window(whole)
            .map(drop)
            .map_err(|error| error.kind().clone()),
    ];
    for (n, refused) in refused.into_iter().enumerate() {
        assert_eq!(refused, Err(Kind::KernelOwned(whole)), "{n}");
    }
    // What KVM hands back, since it would not answer.
    assert_eq!([world.guest.put(FIRST, 0x4000, 3), world.guest.stuff(FIRST, 0x1000, 0, 1)], [-1, -1]);
    assert_eq!(world.guest.put(FIRST, 0x4000, RAM | 3), -4);
    assert_eq!((space.mappings(IovaRange::all()), world.soft.calls().total()), (before, calls));
}

#[test]
fn hypercalls_stay_ours_where_the_kernel_says_no() {
    for (call, reason) in [("create", "KVM created no TCE table: create: EINVAL"), ("link", "link: EINVAL")] {
        let mut world = World::without_host(BackendKind::Spapr);
        world.kvm.refuse(Some(call));
        world.guest.attach(&world.opened).expect("an empty view fits");
        assert_eq!(world.guest.reset(), 0);
        let Some(AnsweredBy::Vmm(why)) = world.answered_by(FIRST) else { panic!("the kernel said no") };
        assert!(why.to_string().contains(reason), "{why}");
        assert_eq!((world.kvm.holds(), world.filled()), ((0, 0), 0));
        assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
        assert_eq!(world.kvm.answered(), 0);
        world.assert_agreed(FIRST, &[0x1000]);
        // The next window may have more luck.
        world.kvm.refuse(None);
        assert_eq!(world.guest.reset(), 0);
        assert_eq!(world.answered_by(FIRST), Some(AnsweredBy::Kernel));
        // One that has none does not disturb it.
        world.kvm.refuse(Some(call));
        world.guest.create(16, 24).expect("there is room");
        assert!(matches!(world.answered_by(SECOND), Some(AnsweredBy::Vmm(_))));
        assert_eq!((world.kvm.holds(), world.filled()), ((1, 1), 1));
        for (liobn, at, tce) in [(FIRST, 0x1000, 0x5003), (SECOND, HIGH, 0x1_0003)] {
            assert_eq!(world.put(liobn, at, tce), 0);
            world.assert_agreed(liobn, &[at]);
        }
        assert_eq!(world.kvm.answered(), 1);
    }
}

#[test]
fn a_host_that_registers_no_memory_has_no_window_that_the_kernel_could_fill() {
    let mut world = World::without_host(BackendKind::SpaprV1);
    world.guest.attach(&world.opened).expect("an empty view fits");
    assert_eq!(world.guest.reset(), 0);
    let Some(AnsweredBy::Vmm(why)) = world.answered_by(FIRST) else { panic!("version 1 registers nothing") };
    assert!(why.to_string().contains("this host's windows cannot be handed to the kernel"), "{why}");
    assert_eq!(SpaprGuest::new(Layout::pseries(0)).bridge().answered_by(Liobn::new(0x8000_0000)), None);
}

#[test]
fn a_first_host_has_its_windows_filled_unless_there_are_entries_already() {
    for (entries, answered_by) in [(false, AnsweredBy::Kernel), (true, AnsweredBy::Vmm(VmmReason::Entries))] {
        let mut world = World::without_host(BackendKind::Spapr);
        assert_eq!(world.guest.reset(), 0);
        assert_eq!(world.answered_by(FIRST), Some(AnsweredBy::Vmm(VmmReason::NoHost)));
        if entries {
            assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
        }
        world.guest.attach(&world.opened).expect("there is room");
        assert_eq!(world.answered_by(FIRST), Some(answered_by));
        assert_eq!(world.put(FIRST, 0x2000, 0x6003), 0);
        world.assert_agreed(FIRST, &[0x1000, 0x2000]);
    }
}

#[test]
fn memory_stays_while_the_kernel_s_table_has_an_entry_into_it() {
    let mut world = World::new();
    assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
    let target = world.guest.listener().targets().next().expect("it is there").clone();
    let gone = world.guest.listener().commit(Update::new().removing_target(target.clone()));
    assert!(matches!(gone, Err(CommitError::StillMapped { .. })), "{gone:?}");
    let (bridge, listener) = &mut world.guest.bridges[0];
    let unplugged = bridge.unplug_memory(listener, Update::new().removing_target(target.clone()));
    let is_refused = matches!(unplugged, Err(WindowError::Commit(CommitError::StillMapped { .. })));
    assert!(is_refused, "only the guest clears entries that KVM puts: {unplugged:?}");
    let (space, ram) = (world.space(), world.guest.ram().clone());
    let in_use = space.powers().registration.expect("POWER").unregister(&ram).expect_err("an entry points there");
    assert!(matches!(in_use.kind(), Kind::InUse(_)), "{in_use}");
    world.assert_agreed(FIRST, &[0x1000]);
    assert_eq!(world.put(FIRST, 0x1000, 0), 0);
    world.guest.listener().commit(Update::new().removing_target(target)).expect("no entry points there");
    assert_eq!((world.soft.ledger().registrations, world.filled()), (0, 1));
}

#[test]
fn a_late_host_gets_the_entries_that_the_kernel_put_or_is_refused() {
    let mut world = World::new();
    assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
    let profile = world.soft.profile().clone();
    let address = profile.groups[1].devices[0].address.parse().expect("a PCI address");
    let host = dmaspace::open::Host::new(world.soft.clone(), dmaspace::Facts::of_soft(&profile));
    let later = host.open(&dmaspace::OpenRequest::device(address).with_backend(BackendKind::Spapr)).expect("it opens");
    let later_space = later.space.space().clone();
    world.kvm.refuse(Some("link"));
    assert!(world.guest.attach(&later).expect_err("it cannot be linked").contains("link: EINVAL"));
    assert_eq!((later_space.windows().windows.is_empty(), world.kvm.holds()), (true, (1, 1)));
    world.kvm.refuse(None);
    world.guest.attach(&later).expect("there is room");
    assert_eq!(world.kvm.holds(), (1, 2));
    assert_eq!(world.put(FIRST, 0x2000, 0x6003), 0);
    for space in [&world.space(), &later_space] {
        assert_eq!(world.guest.says(), world.guest.has(space.as_ref()));
    }
    let device = world.soft.device(later.devices[0].name()).expect("it is there");
    for at in [0x1000, 0x2000, 0x3000].iter() {
        world.guest.assert_reaches(&device, FIRST, *at);
    }
    // It leaves, and the first goes on; then that leaves too, and the table is ours.
    let (bridge, listener) = &mut world.guest.bridges[0];
    bridge.detach(listener, &later_space).expect("it can leave");
    assert_eq!((world.kvm.holds(), world.answered_by(FIRST)), ((1, 1), Some(AnsweredBy::Kernel)));
    assert_eq!(world.put(FIRST, 0x3000, 0x7003), 0);
    world.assert_agreed(FIRST, &[0x1000, 0x2000, 0x3000]);
    let (bridge, listener) = &mut world.guest.bridges[0];
    bridge.detach(listener, world.opened.space.space()).expect("it can leave");
    assert_eq!((world.kvm.holds(), world.guest.says().len()), ((0, 0), 1));
    assert_eq!(world.answered_by(FIRST), Some(AnsweredBy::Vmm(VmmReason::Reclaimed)));
    assert_eq!(world.put(FIRST, 0x9000, 0x1003), 0);
}

#[test]
fn a_window_that_could_not_be_changed_keeps_its_entries_and_is_ours() {
    let mut world = World::new();
    world.guest.stamp_memory();
    world.guest.create(16, 24).expect("there is room");
    assert_eq!(world.guest.remove(FIRST), 0);
    assert_eq!((world.put(SECOND, HIGH, 0x1_0003), world.kvm.holds()), (0, (1, 1)));
    let (says, has) = (world.guest.says(), world.guest.has(world.space().as_ref()));
    // Refused before a host was asked: nothing changed.
    assert_eq!(world.guest.remove(FIRST), -3);
    assert_eq!(world.answered_by(SECOND), Some(AnsweredBy::Kernel));
    // The default window would come back, and does not.
    world.soft.plan_faults(&[FaultPlan::nth(1, FaultMode::FailBefore).of(CREATE)]);
    assert_eq!(world.guest.remove(SECOND), -1);
    assert_eq!(world.answered_by(SECOND), Some(AnsweredBy::Vmm(VmmReason::Reclaimed)));
    assert_eq!((world.kvm.holds(), world.filled()), ((0, 0), 0));
    assert_eq!((world.guest.says(), world.guest.has(world.space().as_ref())), (says, has));
    assert_eq!(world.put(SECOND, HIGH + 0x1_0000, 0x2_0003), 0);
    world.assert_agreed(SECOND, &[HIGH, HIGH + 0x1_0000, HIGH + 0x2_0000]);
    assert_eq!(world.guest.remove(SECOND), 0);
    assert_eq!(world.answered_by(FIRST), Some(AnsweredBy::Kernel));
}

#[test]
fn a_table_ends_with_its_host_s_last_device_and_the_guest_puts_its_entries_again() {
    let mut world = World::new();
    assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
    let device = world.opened.devices.remove(0);
    let change = world.opened.space.remove(device).expect("nothing fails").expect("the group left");
    assert!(change.after.windows.is_empty());
    assert_eq!((world.kvm.holds(), world.kvm.left_before()), ((0, 0), 0));
    assert_eq!(world.answered_by(FIRST), Some(AnsweredBy::Vmm(VmmReason::Reclaimed)));
    assert!(!world.kvm.put(FIRST, 0x2000, 0x6003));
    world.guest.listener().sync().expect("a space without a device is left alone");
    assert_eq!(world.guest.reset(), 0);
}

#[test]
fn a_host_that_lost_its_last_device_beside_others_is_filled_again() {
    let mut world = World::new();
    assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
    let profile = world.soft.profile().clone();
    let address: dmaspace::PciAddress = profile.groups[1].devices[0].address.parse().expect("a PCI address");
    let host = dmaspace::open::Host::new(world.soft.clone(), dmaspace::Facts::of_soft(&profile));
    let mut later =
        host.open(&dmaspace::OpenRequest::device(address).with_backend(BackendKind::Spapr)).expect("it opens");
    world.guest.attach(&later).expect("there is room");
    let device = later.devices.remove(0);
    later.space.remove(device).expect("nothing fails").expect("the group left");
    assert_eq!((world.kvm.holds(), world.answered_by(FIRST)), ((1, 1), Some(AnsweredBy::Kernel)));
    assert_eq!(world.put(FIRST, 0x2000, 0x6003), 0);
    world.assert_agreed(FIRST, &[0x1000, 0x2000]);
    later.space.add(&host, address).expect("there is room");
    world.guest.listener().sync().expect("there is room");
    assert_eq!((world.kvm.holds(), world.answered_by(FIRST)), ((1, 2), Some(AnsweredBy::Kernel)));
    assert_eq!(world.put(FIRST, 0x3000, 0x7003), 0);
    assert_eq!(world.guest.says(), world.guest.has(later.space.space().as_ref()));
    world.assert_agreed(FIRST, &[0x1000, 0x2000, 0x3000]);
}

#[test]
fn a_second_group_is_filled_for_too_and_leaves_before_its_container_goes() {
    let mut world = World::new();
    assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
    let profile = world.soft.profile().clone();
    let host = dmaspace::open::Host::new(world.soft.clone(), dmaspace::Facts::of_soft(&profile));
    let address: dmaspace::PciAddress = profile.groups[1].devices[0].address.parse().expect("a PCI address");
    world.kvm.refuse(Some("link"));
    world.opened.space.add(&host, address).expect_err("it cannot be linked");
    assert_eq!((world.kvm.holds(), world.space().describe().devices.len()), ((1, 1), 1));
    world.assert_agreed(FIRST, &[0x1000]);
    world.kvm.refuse(None);
    let second = world.opened.space.add(&host, address).expect("there is room");
    assert_eq!(world.kvm.holds(), (1, 2));
    world.assert_agreed(FIRST, &[0x1000]);
    world.kvm.refuse(Some("unlink"));
    world.opened.space.remove(second).expect_err("KVM does not let go");
    world.kvm.refuse(None);
    assert_eq!((world.kvm.holds(), world.space().describe().devices.len()), ((1, 2), 2));
    world.assert_agreed(FIRST, &[0x1000]);
}

#[test]
fn everything_registered_counts_as_written_while_the_kernel_fills_a_window() {
    let mut world = World::new();
    let told = Arc::new(Told::default());
    world.guest.listener().track_dirty(told).expect("POWER tells everything");
    assert_eq!(world.put(FIRST, 0x1000, 0x5003), 0);
    assert_eq!(world.put(FIRST, 0x1000, 0), 0);
    let synced = world.guest.listener().sync_dirty().expect("nothing fails");
    assert_eq!(synced.iter().map(|synced| synced.bytes).collect::<Vec<_>>(), [RAM]);
    world.guest.listener().stop_tracking();
}

#[test]
fn dropping_everything_in_any_order_leaves_nothing() {
    for order in 0..3 {
        let World { soft, guest, kvm, opened } = World::new();
        assert!(kvm.put(FIRST, 0x1000, 0x5003));
        match order {
            0 => drop((guest, opened)),
            1 => drop((opened, guest)),
            _ => {
                let SpaprGuest { bridges, .. } = guest;
                let (bridge, listener) = bridges.into_iter().next().expect("one");
                drop((listener, opened, bridge));
            }
        }
        assert_eq!(kvm.holds(), (0, 0), "{order}");
        assert!(soft.ledger().is_clear(), "{order}: {:?}", soft.ledger());
    }
}
