//! A guest's bridge on hosts in software: the windows it creates by RTAS calls have hosts' windows behind them, or are
//! refused.

use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::open::Opened;
use dmaspace_core::door::Errno;
use dmaspace_core::{HostAddress, HostMemory, PageSize, SystemAddress};
use dmaspace_listener::Listener;
use dmaspace_listener::Update;
use dmaspace_listener::section::TargetMemory;
use dmaspace_soft::{FaultMode, FaultPlan, Profile, SoftDevice, SoftHost};
use dmaspace_spapr_guest::hypercalls::H_PUT_TCE;
use dmaspace_spapr_guest::{Layout, PciHostBridge, TceTables, Tokens, WindowError};
use dmaspace_tests::flat_view;
use dmaspace_tests::soft::{host, open, range};
use dmaspace_tests::spapr_guest::{FIRST, LIST, PE, SECOND, SpaprGuest, UNIT, windows_of};

const CREATE: &str = "VFIO_IOMMU_SPAPR_TCE_CREATE";
const REMOVE: &str = "VFIO_IOMMU_SPAPR_TCE_REMOVE";
const MAP: &str = "VFIO_IOMMU_MAP_DMA";
const UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

const GIB: u64 = 1 << 30;
const HIGH: u64 = 1 << 59;
const K4: PageSize = PageSize::K4;
const K64: PageSize = PageSize::K64;
const M2: PageSize = PageSize::M2;
const M16: PageSize = PageSize::M16;

#[test]
fn two_windows_created_by_rtas_are_qemu_s_flat_view_and_two_windows_of_the_host() {
    let soft = host("powernv9");
    let (mut guest, opened) = SpaprGuest::on(&soft, BackendKind::Spapr);
    assert_eq!(guest.reset(), 0);
    assert_eq!(guest.query(), [0, 1, 0x20, 0, 0x107, 0]);
    let arguments = [PE, UNIT[0], UNIT[1], 16, 30];
    let (results, report) = guest.rtas(Tokens::default().create, &arguments, 4);
    assert_eq!(results, [0, 0x8000_0001, 0x800_0000, 0]);
    let report = report.expect("it was done");
    let said: Vec<_> = report.spaces[0].sections.iter().map(ToString::to_string).collect();
    println!("{}", said.join("\n"));
    assert_eq!(
        said,
        ["0x800000000000000..=0x80000003fffffff (tce-iommu-80000001): window: the host's window \
          0x800000000000000..=0x80000003fffffff with 4K pages, which the memory behind it is made of; the guest's are \
          64K"]
    );
    let sections: Vec<_> = guest.listener().sections().map(|it| (it.range(), it.name().to_owned())).collect();
    assert_eq!(
        sections,
        flat_view::bus().into_iter().map(|(range, name)| (range, name.to_owned())).collect::<Vec<_>>()
    );
    let windows = [(range(0, GIB), K4), (range(HIGH, GIB), K4)];
    assert_eq!(windows_of(opened.space.space().as_ref()), windows);
    assert_eq!([soft.calls().of(CREATE), soft.ledger().windows as u64], [2, 2]);
}

#[test]
fn the_pages_of_a_host_s_window_and_the_reason_are_in_the_report() {
    const THE_GUEST_S: &str = "which are the guest's";
    let rows = [
        ("powernv9", K4, 12, K4, THE_GUEST_S.to_owned()),
        ("powernv9", K4, 16, K4, "which the memory behind it is made of; the guest's are 64K".to_owned()),
        ("powernv9-64k", K64, 16, K64, THE_GUEST_S.to_owned()),
        ("powernv9-64k", K64, 24, K64, "which the memory behind it is made of; the guest's are 16M".to_owned()),
        ("powernv9", M2, 21, M2, THE_GUEST_S.to_owned()),
        ("powernv9", M16, 24, M2, "the largest of the host's up to 16M; the guest's are 16M".to_owned()),
        ("powernv9-64k", M2, 16, K64, THE_GUEST_S.to_owned()),
        ("pseries", M16, 24, M16, THE_GUEST_S.to_owned()),
    ];
    for (preset, backing, page_shift, page, why) in rows {
        let opened = open(&host(preset), BackendKind::Spapr);
        let layout = Layout::pseries(0).placed_on([opened.space.space()]).expect("there is room");
        let mut bridge = PciHostBridge::new(layout, Arc::new(TceTables::new())).expect("a proper layout");
        let mut listener = Listener::default();
        let memory = HostMemory::unbacked(HostAddress::new(0x7000_0000_0000), NonZeroU64::new(GIB).expect("not zero"))
            .expect("no wrap");
        let memory = memory.backed_by(backing);
        let target = TargetMemory::new("ram", SystemAddress::new(0), memory).expect("a proper range");
        listener.commit(Update::new().adding_target(target)).expect("no space that could refuse");
        bridge.attach(&mut listener, opened.space.space().clone()).expect("it fits");
        bridge.reset(&mut listener).expect("it fits");
        let (window, report) = bridge.create_window(&mut listener, page_shift, 32).expect("it fits");
        let verdict = report.spaces[0].sections.iter().find(|verdict| verdict.piece.range() == window.range);
        let said = verdict.expect("its section").to_string();
        println!("{preset}, memory in pages of {backing}: {said}");
        let expected = format!("the host's window {} with {page} pages, {why}", window.range);
        assert!(said.ends_with(&expected), "{said}");
        assert_eq!(windows_of(opened.space.space().as_ref())[1], (window.range, page));
    }
}

#[test]
fn devices_get_through_both_windows_where_the_tables_say() {
    for (preset, backend) in [
        ("powernv9", BackendKind::Spapr),
        ("powernv9-64k", BackendKind::Spapr),
        ("pseries", BackendKind::Spapr),
        ("vtd", BackendKind::Type1),
        ("vtd", BackendKind::Iommufd),
    ] {
        let soft = host(preset);
        let (mut guest, opened) = SpaprGuest::on(&soft, backend);
        let device = soft.device(opened.devices[0].name()).expect("it is there");
        let space = opened.space.space().as_ref();
        guest.stamp_memory();
        assert_eq!(guest.reset(), 0, "{preset}");
        let (liobn, at) = guest.create(16, 32).expect("there is room");
        assert_eq!(liobn, SECOND);
        assert_eq!(guest.put_list(FIRST, 0x5000, LIST, &[0x3003, 0x4003]), 0);
        assert_eq!(guest.put_list(SECOND, at, LIST, &[0x1_0003, 0x2_0001, 0, 0x7_0003]), 0);
        assert_eq!(guest.says(), guest.has(space), "{preset}");
        let spots = [0, 0x1_0000, 0x1_3000, 0x2_0000, 0x3_f000, 0x4_0000].map(|offset| (SECOND, at + offset));
        let low = [0x4000, 0x5000, 0x6000, 0x7000].map(|ioba| (FIRST, ioba));
        for (liobn, ioba) in low.iter().chain(&spots) {
            guest.assert_reaches(&device, *liobn, *ioba);
        }
        // A window goes, and its entries with it; the other one stays.
        assert_eq!(guest.remove(SECOND), 0);
        for (liobn, ioba) in low.iter().chain(&spots) {
            guest.assert_reaches(&device, *liobn, *ioba);
        }
        assert_eq!((guest.says(), guest.says().len()), (guest.has(space), 1), "{preset}");
        assert_eq!(guest.reset(), 0);
        assert_eq!((guest.says(), guest.has(space)), (vec![], vec![]), "{preset}");
        drop((guest, opened));
        assert!(soft.ledger().is_clear(), "{preset}");
    }
}

#[test]
fn the_second_window_lies_where_the_host_reaches() {
    let place = |preset: &str, backend, spoil: &dyn Fn(&mut Profile)| {
        let mut profile = Profile::preset(preset).expect("a preset");
        spoil(&mut profile);
        let opened = open(&SoftHost::new(profile).expect("it makes sense"), backend);
        let layout = Layout::pseries(0).placed_on([opened.space.space()]);
        layout.map(|layout| (layout.default_window.first().get(), layout.second.get()))
    };
    let as_it_is = |_: &mut Profile| {};
    assert_eq!(place("powernv9", BackendKind::Spapr, &as_it_is), Some((0, HIGH)));
    assert_eq!(place("pseries", BackendKind::Spapr, &as_it_is), Some((0, HIGH)));
    assert_eq!(place("vtd", BackendKind::Type1, &as_it_is), Some((0, 1 << 47)));
    assert_eq!(place("vtd", BackendKind::Iommufd, &as_it_is), Some((0, 1 << 47)));
    let client = |profile: &mut Profile| profile.fixed.as_mut().expect("a PC").last = 0x7f_ffff_ffff;
    assert_eq!(place("vtd", BackendKind::Type1, &client), Some((0, 1 << 38)));
    let elsewhere = |profile: &mut Profile| profile.tce.as_mut().expect("POWER").starts = [GIB, HIGH];
    assert_eq!(place("powernv9", BackendKind::Spapr, &elsewhere), Some((GIB, HIGH)));
    // Entries of 4K cannot be had there.
    assert_eq!(place("vtd-64k", BackendKind::Type1, &as_it_is), None);
    // Without a host to ask it stays.
    assert_eq!(Layout::pseries(0).placed_on([]), Some(Layout::pseries(0)));
    let (opened, power) = (open(&host("vtd"), BackendKind::Type1), open(&host("powernv9"), BackendKind::Spapr));
    assert_eq!(Layout::pseries(0).placed_on([opened.space.space(), power.space.space()]), None);
}

#[test]
fn a_guest_that_needs_no_default_window_gets_the_host_s_places() {
    // (Pages, window): where it comes to lie on bare metal, and in a partition, where only a window like the default
    // one fits at 0.
    for (page_shift, window_shift, powernv, pseries) in
        [(12, 30, 0, 0), (16, 30, 0, 0), (16, 31, 0, HIGH), (16, 42, 0, HIGH)]
    {
        for (preset, at) in [("powernv9", powernv), ("pseries", pseries)] {
            let soft = host(preset);
            let (mut guest, opened) = SpaprGuest::on(&soft, BackendKind::Spapr);
            assert_eq!((guest.reset(), guest.remove(FIRST)), (0, 0));
            assert_eq!(guest.query()[..2], [0, 2], "{preset}");
            let created = guest.create(page_shift, window_shift).map_err(|(_, why)| why.to_string());
            assert_eq!(created, Ok((FIRST, at)), "{preset} {page_shift} {window_shift}");
            assert_eq!(windows_of(opened.space.space().as_ref()), [(range(at, 1 << window_shift), K4)]);
            // The other place is left. A partition's default window does not come back beside another.
            if at == 0 {
                assert_eq!(guest.create(16, 32).expect("there is room"), (SECOND, HIGH));
                assert_eq!(guest.remove(FIRST), 0);
                let left = if preset == "pseries" { 0 } else { 1 };
                assert_eq!(guest.query()[..2], [0, left]);
                let again = guest.create(12, 30).map_err(|(status, _)| status);
                assert_eq!(again, if left == 0 { Err(-3) } else { Ok((FIRST, 0)) });
            }
            // Whatever there is, the default one comes back alone.
            assert_eq!(guest.reset(), 0);
            assert_eq!(windows_of(opened.space.space().as_ref()), [(range(0, GIB), K4)]);
        }
    }
}

#[test]
fn a_window_promised_by_a_query_can_be_created_on_a_pc() {
    let soft = host("vtd");
    let (mut guest, opened) = SpaprGuest::on(&soft, BackendKind::Type1);
    assert_eq!(guest.reset(), 0);
    // 2^47 bytes in pages of 16M.
    let most = 47 - 24;
    assert_eq!(guest.query(), [0, 1, 0, 1 << most, 0x107, 0]);
    let (status, why) = guest.create(24, 48).expect_err("the host does not reach so far");
    assert_eq!((status, why.to_string().as_str()), (-3, "a window of 2^48 bytes is too large: there is room for 2^47"));
    assert_eq!(guest.create(24, 47).expect("as promised"), (SECOND, 1 << 47));
    // Every size it may have: no more than promised of each.
    for page_shift in [12, 16, 21, 24] {
        assert_eq!(guest.remove(SECOND), 0);
        assert_eq!(guest.create(page_shift, page_shift + most).expect("as promised"), (SECOND, 1 << 47));
    }
    assert_eq!(guest.query(), [0; 6]);
    assert!(guest.create(16, 31).is_err_and(|(status, _)| status == -3));
    drop((guest, opened));
    assert!(soft.ledger().is_clear());
}

#[test]
fn a_window_the_host_has_no_memory_for_is_refused_and_nothing_changed() {
    let soft = host("powernv9");
    let (mut guest, opened) = SpaprGuest::on(&soft, BackendKind::Spapr);
    assert_eq!(guest.reset(), 0);
    assert_eq!(guest.put(FIRST, 0x5000, 0x3003), 0);
    let (windows, says) = (guest.windows(), guest.says());
    soft.set_memlock(Some(soft.ledger().locked + (16 << 20)));
    let (status, why) = guest.create(12, 40).expect_err("its table is 4 GiB");
    assert_eq!(status, -1, "{why}");
    assert!(why.to_string().contains("lock"), "{why}");
    assert_eq!((guest.windows(), guest.says()), (windows, says.clone()));
    assert_eq!((guest.has(opened.space.space().as_ref()), soft.ledger().windows), (says, 1));
    assert_eq!(guest.create(16, 31).expect("it is small"), (SECOND, HIGH));
}

#[test]
fn a_failing_host_leaves_bridge_tables_and_windows_as_they_were() {
    type Call = fn(&mut SpaprGuest) -> i32;
    let calls: [(&str, u64, Call); 4] = [
        (CREATE, 1, |guest| guest.create(16, 31).map_or_else(|(status, _)| status, |_| 0)),
        (REMOVE, 2, |guest| guest.remove(SECOND)),
        (REMOVE, 2, SpaprGuest::reset),
        (UNMAP, 2, SpaprGuest::reset),
    ];
    for (call, windows, operate) in calls {
        let soft = host("powernv9");
        let (mut guest, opened) = SpaprGuest::on(&soft, BackendKind::Spapr);
        let space = opened.space.space().as_ref();
        assert_eq!(guest.reset(), 0);
        assert_eq!(guest.put(FIRST, 0x5000, 0x3003), 0);
        if windows == 2 {
            guest.create(16, 31).expect("there is room");
            assert_eq!(guest.put(SECOND, HIGH, 0x1_0003), 0);
        }
        let before = (guest.windows(), guest.says());
        soft.plan_faults(
            &(1..9).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(call).with(Errno::EIO)).collect::<Vec<_>>(),
        );
        assert_eq!(operate(&mut guest), -1, "{call}");
        soft.plan_faults(&[]);
        assert_eq!((guest.windows(), guest.says()), before, "{call}");
        assert_eq!(windows_of(space).len() as u64, windows, "{call}");
        let fences = space.describe().fences;
        if fences.is_empty() {
            assert_eq!(guest.has(space), guest.says(), "{call}");
            assert_eq!(operate(&mut guest), 0, "{call}");
            assert_eq!(guest.has(space), guest.says(), "{call}");
        }
    }
}

#[test]
fn a_late_host_gets_all_entries_of_the_tables_and_a_host_that_leaves_keeps_none() {
    let soft = host("powernv9");
    let mut guest = SpaprGuest::new(Layout::pseries(0));
    assert_eq!(guest.reset(), 0);
    guest.create(16, 31).expect("no space that could refuse");
    assert_eq!(guest.put_list(FIRST, 0x5000, LIST, &[0x3003, 0x4003, 0x9001]), 0);
    assert_eq!(guest.put(SECOND, HIGH + 0x3_0000, 0x1_0003), 0);
    let opened = open(&soft, BackendKind::Spapr);
    // One entry cannot be put: the host is not served.
    soft.plan_faults(&[FaultPlan::nth(3, FaultMode::FailBefore).of(MAP)]);
    assert!(guest.attach(&opened).is_err());
    soft.plan_faults(&[]);
    assert_eq!((guest.listener().spaces().count(), soft.ledger().windows), (0, 0));
    assert_eq!(guest.put(FIRST, 0, 0x8003), 0);
    // Entries point to memory that the listener does not know of.
    let ram = guest.listener().targets().next().expect("it is there").clone();
    guest.listener().commit(Update::new().removing_target(ram.clone())).expect("no space that could refuse");
    assert_eq!(guest.attach(&opened), Err("there is no RAM at 0x8000".to_owned()));
    guest.listener().commit(Update::new().adding_target(ram)).expect("no space that could refuse");
    soft.reset_calls();
    assert_eq!(guest.attach(&opened), Ok(()));
    assert_eq!((guest.has(opened.space.space().as_ref()), soft.calls().of(MAP)), (guest.says(), 4));
    // A second one gets the same, and both go on getting it.
    let other_soft = host("powernv9");
    let other = open(&other_soft, BackendKind::Spapr);
    assert_eq!(guest.attach(&other), Ok(()));
    assert_eq!(guest.put(FIRST, 0x6000, 0x2003), 0);
    for opened in [&opened, &other] {
        assert_eq!(guest.has(opened.space.space().as_ref()), guest.says());
    }
    for (opened, left) in [(&opened, 1), (&other, 0)] {
        let (bridge, listener) = &mut guest.bridges[0];
        bridge.detach(listener, opened.space.space()).expect("it can leave");
        assert_eq!((guest.has(opened.space.space().as_ref()), guest.listener().spaces().count()), (vec![], left));
        assert_eq!(guest.put(FIRST, 0x7000, 0x1003), 0);
    }
    assert_eq!(guest.says().len(), 5);
}

#[test]
fn an_unplugged_bridge_leaves_nothing_in_force() {
    let soft = host("powernv9");
    let (mut guest, _opened) = SpaprGuest::on(&soft, BackendKind::Spapr);
    assert_eq!(guest.reset(), 0);
    guest.create(16, 31).expect("there is room");
    assert_eq!(guest.put(SECOND, HIGH, 0x1_0003), 0);
    for _ in 0..2 {
        let (bridge, listener) = &mut guest.bridges[0];
        bridge.withdraw(listener).expect("it can go");
        assert_eq!((listener.sections().count(), soft.ledger().windows, bridge.windows().len()), (0, 0, 0));
        assert_eq!(guest.put(SECOND, HIGH, 0x1_0003), -4);
    }
    assert_eq!(guest.reset(), 0);
    assert_eq!(guest.put(FIRST, 0, 0x1003), 0);
}

#[test]
fn another_listener_is_told_nothing() {
    let mut guest = SpaprGuest::new(Layout::pseries(0));
    assert_eq!(guest.reset(), 0);
    let mut other = Listener::default();
    let (bridge, _) = &mut guest.bridges[0];
    assert!(matches!(bridge.reset(&mut other), Err(WindowError::Commit(_))));
    assert!(matches!(bridge.withdraw(&mut other), Err(WindowError::Commit(_))));
    assert_eq!((other.sections().count(), bridge.windows().len()), (0, 1));
    assert_eq!(guest.put(FIRST, 0, 0x1003), 0);
}

/// A guest that makes random calls, and the host it runs on.
struct RandomGuest {
    guest: SpaprGuest,
    opened: Opened,
    device: SoftDevice,
    backend: BackendKind,
    state: u64,
}

impl RandomGuest {
    fn on(preset: &str, backend: BackendKind) -> Self {
        let soft = host(preset);
        let (mut guest, opened) = SpaprGuest::on(&soft, backend);
        let device = soft.device(opened.devices[0].name()).expect("it is there");
        guest.stamp_memory();
        assert_eq!(guest.reset(), 0);
        Self { guest, opened, device, backend, state: 7 }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) % below
    }

    fn call(&mut self) {
        match self.random(12) {
            0 => assert_eq!(self.guest.reset(), 0),
            1 => self.remove_a_window(),
            2 | 3 => self.create_a_window(),
            call => self.write_entries(call),
        }
    }

    fn remove_a_window(&mut self) {
        let liobn = FIRST + self.random(3);
        let is_there = self.guest.windows().iter().any(|window| u64::from(window.liobn.get()) == liobn);
        assert_eq!(self.guest.remove(liobn), if is_there { 0 } else { -3 });
    }

    /// A window that the query promised is created, and after a refusal the windows are as before.
    fn create_a_window(&mut self) {
        let (offer, windows) = (self.guest.query(), self.guest.windows());
        let pages = [(12, 1), (16, 2), (21, 0x100), (24, 4), (13, 0), (30, 0)];
        let (page_shift, bit) = pages[self.random(6) as usize];
        let most = (u64::from(offer[2]) << 32) | u64::from(offer[3]);
        let more = self.random(12) as u32;
        let possible = offer[1] > 0 && offer[4] & bit != 0;
        // More than is promised for all pages may still be there for small ones.
        let promised = possible && 1 << more <= most;
        let created = self.guest.create(page_shift, page_shift + more);
        let as_promised = if created.is_ok() { possible } else { !promised };
        assert!(as_promised, "{offer:x?} {page_shift} {more}: {created:?}");
        assert!(created.is_ok() || self.guest.windows() == windows);
    }

    /// Entries are written by one call or by a list, or cleared, in a window that is there.
    fn write_entries(&mut self, call: u64) {
        let windows = self.guest.windows();
        let Some(window) = windows.get(self.random(2) as usize) else { return };
        let (liobn, page) = (u64::from(window.liobn.get()), window.page.bytes());
        let entries = window.range.len().expect("small").get() / page;
        let ioba = window.range.first().get() + self.random(entries.min(48)) * page;
        // Not for writing only: some IOMMUs let a device read that.
        let rights = if page > 8 << 20 { 0 } else { [0, 1, 3, 3][self.random(4) as usize] };
        let tce = (self.random(8 << 20) / page * page) | rights;
        let code = match call {
            4..=7 => self.guest.put(liobn, ioba, tce),
            8 | 9 => self.guest.put_list(liobn, ioba, LIST, &[tce, tce, 0]),
            _ => self.guest.stuff(liobn, ioba, 0, 3),
        };
        assert!([0, -4].contains(&code), "{code}");
        self.guest.assert_reaches(&self.device, liobn, ioba);
    }

    /// The host has the entries of the tables, and the guest's windows where windows are created.
    fn assert_agreed(&self) {
        let space = self.opened.space.space().as_ref();
        assert_eq!(self.guest.says(), self.guest.has(space));
        if self.backend == BackendKind::Spapr {
            let mut windows: Vec<_> = self.guest.windows().iter().map(|window| window.range).collect();
            windows.sort();
            assert_eq!(windows_of(space).into_iter().map(|(range, _)| range).collect::<Vec<_>>(), windows);
        }
    }
}

#[test]
fn random_calls_keep_the_promises_of_the_query_and_leave_tables_hosts_and_devices_agreed() {
    for (preset, backend) in [("powernv9", BackendKind::Spapr), ("vtd", BackendKind::Iommufd)] {
        let mut guest = RandomGuest::on(preset, backend);
        for _ in 0..600 {
            guest.call();
            guest.assert_agreed();
        }
    }
}

#[test]
fn processors_that_call_while_windows_come_and_go_leave_tables_and_host_agreed() {
    let soft = host("powernv9");
    let (mut guest, opened) = SpaprGuest::on(&soft, BackendKind::Spapr);
    assert_eq!(guest.reset(), 0);
    let tables = guest.bridge().tables().clone();
    let memory = SpaprGuest::new(Layout::pseries(0)).memory;
    std::thread::scope(|scope| {
        for number in 1..=2u64 {
            let (tables, memory) = (&tables, &memory);
            scope.spawn(move || {
                for n in 0..600 {
                    let (liobn, first) = if n % 2 == 0 { (FIRST, 0) } else { (SECOND, HIGH) };
                    let page = ((n * 7 + number) % 16) << 16;
                    let tce = if n % 3 == 0 { 0 } else { page | 3 };
                    let answer = tables.hypercall(memory, H_PUT_TCE, [liobn, first + page, tce, 0]);
                    assert!(liobn == SECOND || answer == Some(Ok(0)), "{answer:?}");
                }
            });
        }
        for _ in 0..40 {
            guest.create(16, 31).expect("there is room");
            assert_eq!(guest.remove(SECOND), 0);
        }
    });
    assert_eq!(guest.says(), guest.has(opened.space.space().as_ref()));
}
