//! The registrations of the spaces of one process, on the soft host: the same runs in any order of joining.

use std::collections::BTreeSet;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace_core::contract::WindowRequest;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace, SystemAddress, Window};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{CommitError, Update};
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_soft::SoftHost;
use dmaspace_tests::soft::{host, memory, range};
use proptest::prelude::*;

const K64: u64 = 0x1_0000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOST: u64 = 1 << 45;
const RW: Access = Access::READ_WRITE;

const REGISTER: &str = "VFIO_IOMMU_SPAPR_REGISTER_MEMORY";
const UNREGISTER: &str = "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY";

/// A host, and spaces on it with a device each.
struct RegistrationFixture {
    soft: Arc<SoftHost>,
    opened: Vec<Opened>,
}

impl RegistrationFixture {
    fn new(preset: &str, spaces: usize) -> Self {
        let soft = host(preset);
        let host = Host::new(soft.clone(), Facts::of_soft(soft.profile()));
        let open = |n: usize| {
            let device = soft.profile().groups[n].devices[0].address.parse().expect("a PCI address");
            host.open(&OpenRequest::device(device).with_backend(BackendKind::Spapr))
                .expect("the soft host opens its device")
        };
        let opened = (0..spaces).map(open).collect();
        Self { soft, opened }
    }

    fn space(&self, n: usize) -> Arc<dyn PciAddressSpace> {
        self.opened[n].space.space().clone()
    }

    fn listener(&self, spaces: &[usize]) -> Listener {
        let mut listener = Listener::new(FrontEnd::default());
        for n in spaces {
            listener.attach(self.space(*n)).expect("the view in force fits");
        }
        listener
    }

    /// The registrations of a space, in MiB from the beginning of the guest's memory.
    fn runs(&self, n: usize) -> Vec<(u64, u64)> {
        let there = registered(&*self.space(n));
        there.iter().map(|run| ((run.address().get() - HOST) / MIB, run.len().get() / MIB)).collect()
    }

    /// The number of registrations that were made and ended since the last time.
    fn calls(&self) -> [u64; 2] {
        let calls = self.soft.calls();
        self.soft.reset_calls();
        [REGISTER, UNREGISTER].map(|name| calls.of(name))
    }

    /// The locked memory beside the tables of windows, in MiB.
    fn pinned(&self) -> u64 {
        self.soft.ledger().locked.saturating_sub(self.tables()) / MIB
    }

    fn tables(&self) -> u64 {
        let windows = (0..self.opened.len()).flat_map(|n| {
            let space = self.space(n);
            let table = |window: &Window| {
                let request = WindowRequest::new(window.range, window.granule());
                space.powers().window_control.map_or(0, |control| control.table_bytes(request))
            };
            space.windows().windows.iter().map(table).collect::<Vec<_>>()
        });
        windows.sum()
    }

    /// Drops everything, and sees that nothing is left.
    fn close(self) {
        let Self { soft, opened } = self;
        drop(opened);
        assert!(soft.ledger().is_clear(), "{:?}", soft.ledger());
    }
}

fn registered(space: &dyn PciAddressSpace) -> Vec<HostMemory> {
    space.powers().registration.expect("POWER wants memory registered").registered()
}

/// The guest's memory from one MiB on, as long as it is said.
fn target(at: u64, len: u64) -> TargetMemory {
    let memory = memory(HOST + at * MIB, len * MIB);
    TargetMemory::new("ram", SystemAddress::new(at * MIB), memory).expect("a proper range")
}

fn adding(at: u64, len: u64) -> Update {
    Update::new().adding_target(target(at, len))
}

fn window() -> Section {
    Section::translated("window", range(0, GIB), PageSize::K4)
}

fn put(listener: &Listener, mib: u64) {
    let window = listener.translated(Iova::new(0)).expect("the window is in force");
    window.put(Iova::new(mib * MIB), SystemAddress::new(mib * MIB), RW).expect("RAM is there");
}

#[test]
fn a_late_joiner_registers_exactly_the_runs_there_are() {
    for preset in ["powernv9", "powernv9-64k", "pseries"] {
        let fixture = RegistrationFixture::new(preset, 2);
        let mut listener = fixture.listener(&[0]);
        listener.commit(adding(0, 4).adding(window())).expect("it fits");
        put(&listener, 1);
        // Something leans on the first run, so that what comes is one of its own; and what goes leaves its run as long
        // as it was.
        listener.commit(adding(4, 4)).expect("it fits");
        listener.commit(adding(8, 2)).expect("it fits");
        let shorter = Update::new().removing_target(target(4, 4)).adding_target(target(4, 3));
        listener.commit(shorter).expect("no entry points there");
        let expected = [(0, 4), (4, 6)];
        assert_eq!(fixture.runs(0), expected, "{preset}");
        let pinned = fixture.pinned();
        let report = listener.attach(fixture.space(1)).expect("it takes the runs as they are").spaces.remove(0);
        assert_eq!((fixture.runs(1), fixture.pinned()), (expected.to_vec(), pinned), "{preset}");
        assert_eq!((report.pinned, report.shared / MIB), (0, 10), "{preset}");
        assert_eq!(fixture.space(1).mappings(IovaRange::all()), fixture.space(0).mappings(IovaRange::all()));
        listener.detach(&fixture.space(0)).expect("everything can be taken out");
        assert_eq!((fixture.runs(0), fixture.runs(1), fixture.pinned()), (vec![], expected.to_vec(), pinned));
        drop(listener);
        fixture.close();
    }
}

#[test]
fn listeners_that_cut_differently_register_the_same_runs() {
    let fixture = RegistrationFixture::new("pseries", 2);
    let (mut one, mut other) = (fixture.listener(&[0]), fixture.listener(&[1]));
    one.commit(adding(2, 4)).expect("it fits");
    other.commit(adding(0, 10)).expect("it takes the run there is, and the rest is registered beside it");
    assert_eq!((fixture.runs(0), fixture.runs(1)), (vec![(2, 4)], vec![(0, 2), (2, 4), (6, 4)]));
    one.commit(adding(6, 1)).expect("the other's run has it");
    assert_eq!(fixture.runs(0), [(2, 4), (6, 4)]);
    assert_eq!((fixture.pinned(), fixture.soft.ledger().registrations), (10, 3));
    other.commit(Update::new().removing_target(target(0, 10))).expect("no entry points there");
    assert_eq!((fixture.runs(1), fixture.pinned()), (vec![], 8), "the first one's stay");
    drop((one, other));
    fixture.close();
}

#[test]
fn a_run_that_another_space_cut_otherwise_is_refused_before_the_kernel_is_asked() {
    let fixture = RegistrationFixture::new("powernv9", 2);
    let spaces = [fixture.space(0), fixture.space(1)];
    let registrations =
        spaces.each_ref().map(|space| space.powers().registration.expect("POWER wants memory registered"));
    registrations[0].register(&memory(HOST, 2 * MIB)).expect("it fits");
    fixture.calls();
    let refused = registrations[1].register(&memory(HOST + MIB, 2 * MIB)).expect_err("it overlaps the other's run");
    assert_eq!((refused.kind().clone(), fixture.calls()), (Kind::AlreadyRegistered, [0, 0]));
    registrations[1].register(&memory(HOST, 2 * MIB)).expect("it is the same");
    assert_eq!(registrations[1].runs().map(|runs| runs.users(&memory(HOST, 2 * MIB))), Some(2));
    drop(spaces);
    fixture.close();
}

#[test]
fn memory_that_comes_next_to_a_run_joins_it_in_every_space() {
    let fixture = RegistrationFixture::new("powernv9", 2);
    let mut listener = fixture.listener(&[0, 1]);
    listener.commit(adding(4, 4).adding(window())).expect("it fits");
    fixture.calls();
    let report = listener.commit(adding(8, 2).adding_target(target(2, 2))).expect("it fits");
    assert_eq!((fixture.runs(0), fixture.runs(1), fixture.pinned()), (vec![(2, 8)], vec![(2, 8)], 8));
    let counted: Vec<_> = report.spaces.iter().map(|space| (space.pinned / MIB, space.shared / MIB)).collect();
    assert_eq!(counted, [(8, 0), (0, 8)]);
    assert_eq!((fixture.calls(), report.spaces[0].disturbed), ([2, 2], 0));
    put(&listener, 9);
    drop(listener);
    fixture.close();
}

#[test]
fn a_run_grows_only_while_no_entry_leans_on_it() {
    let fixture = RegistrationFixture::new("pseries", 2);
    let mut listener = fixture.listener(&[0, 1]);
    listener.commit(adding(0, 4).adding(window())).expect("it fits");
    put(&listener, 1);
    listener.commit(adding(4, 1)).expect("it fits");
    assert_eq!(fixture.runs(0), [(0, 4), (4, 1)]);
    listener.commit(adding(5, 1)).expect("it fits");
    assert_eq!(
        (fixture.runs(0), fixture.runs(1)),
        (vec![(0, 4), (4, 2)], vec![(0, 4), (4, 2)]),
        "nothing leans on the second"
    );
    let entries = listener.translated(Iova::new(0)).expect("the window is in force");
    entries.clear(range(0, GIB)).expect("whole entries");
    listener.commit(adding(6, 1)).expect("it fits");
    assert_eq!((fixture.runs(0), fixture.runs(1)), (vec![(0, 7)], vec![(0, 7)]));
    drop(listener);
    fixture.close();
}

#[test]
fn a_run_that_others_have_too_stays_as_it_is() {
    let fixture = RegistrationFixture::new("powernv9", 2);
    let (mut one, mut other) = (fixture.listener(&[0]), fixture.listener(&[1]));
    one.commit(adding(0, 4)).expect("it fits");
    other.commit(adding(0, 4).adding(window())).expect("it fits");
    put(&other, 1);
    one.commit(adding(4, 4)).expect("it fits");
    assert_eq!((fixture.runs(0), fixture.runs(1)), (vec![(0, 4), (4, 4)], vec![(0, 4)]));
    drop((one, other));
    fixture.close();
}

#[test]
fn runs_end_where_memory_of_another_owner_begins() {
    let fixture = RegistrationFixture::new("powernv9", 1);
    let mut listener = fixture.listener(&[0]);
    listener.commit(adding(0, 4)).expect("it fits");
    let region = memory(HOST + 4 * MIB, 4 * MIB).in_unit(7);
    let region = TargetMemory::new("dimm", SystemAddress::new(4 * MIB), region).expect("a proper range");
    listener.commit(Update::new().adding_target(region)).expect("it fits");
    assert_eq!(fixture.runs(0), [(0, 4), (4, 4)]);
    drop(listener);
    fixture.close();
}

#[test]
fn a_run_that_cannot_grow_for_the_limit_is_as_it_was() {
    let fixture = RegistrationFixture::new("powernv9", 2);
    let mut listener = fixture.listener(&[0, 1]);
    listener.commit(adding(0, 4)).expect("it fits");
    let before = (fixture.soft.ledger().locked, fixture.pinned());
    fixture.soft.set_memlock(Some(before.0 + MIB));
    let refused = listener.commit(adding(4, 2)).expect_err("it does not fit");
    assert!(
        matches!(&refused, CommitError::Step { error, .. } if matches!(error.kind(), Kind::PinLimit(_))),
        "{refused}"
    );
    assert_eq!((fixture.runs(0), fixture.runs(1)), (vec![(0, 4)], vec![(0, 4)]));
    assert_eq!((fixture.soft.ledger().locked, fixture.pinned()), before);
    listener.commit(adding(4, 1)).expect("it just fits");
    assert_eq!(fixture.runs(1), [(0, 5)]);
    drop(listener);
    fixture.close();
}

#[test]
fn memory_that_comes_in_many_pieces_makes_few_runs_and_is_not_pinned_over_and_over() {
    let fixture = RegistrationFixture::new("powernv9", 1);
    let mut listener = fixture.listener(&[0]);
    for piece in 0..1024 {
        listener.commit(adding(piece, 1)).expect("it fits");
    }
    assert_eq!(fixture.pinned(), 1024);
    assert!(fixture.runs(0).len() <= 4, "{:?}", fixture.runs(0));
    let ever = fixture.soft.ledger().ever_pinned / MIB;
    assert!(ever <= 32 * 1024, "{ever} MiB pinned for 1024");
    drop(listener);
    fixture.close();
}

/// The number of pieces of the guest's memory: the first half of one owner, the rest of another.
const PIECES: u64 = 16;
const SPACES: usize = 3;

/// Listeners, each with the spaces it can serve: in one process, on one host.
const SERVED: [&[usize]; 2] = [&[0, 1], &[2]];

#[derive(Clone, Debug)]
enum Step {
    /// A listener is told of pieces.
    Add(usize, u64, u64),
    /// One of them goes, if it is there and no entry points to it.
    Remove(usize, u64),
    /// A space joins its listener, or leaves it.
    Turn(usize),
    /// An entry to a piece comes, or goes.
    Entry(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (listener, piece) = (0..SERVED.len(), 0..PIECES);
    prop_oneof![
        4 => (listener.clone(), piece.clone(), 1..4u64)
            .prop_map(|(listener, at, count)| Step::Add(listener, at, count)),
        2 => (listener.clone(), piece.clone()).prop_map(|(listener, at)| Step::Remove(listener, at)),
        2 => (0..SPACES).prop_map(Step::Turn),
        3 => (listener, piece).prop_map(|(listener, at)| Step::Entry(listener, at)),
    ]
}

fn piece(at: u64) -> TargetMemory {
    let memory = memory(HOST + at * K64, K64).in_unit(at / (PIECES / 2));
    TargetMemory::new("ram", SystemAddress::new(at * K64), memory).expect("a proper range")
}

/// The listener's sections, and the guest's entries.
#[derive(Default)]
struct Told {
    pieces: BTreeSet<u64>,
    entries: BTreeSet<u64>,
    serves: BTreeSet<usize>,
}

struct World {
    fixture: RegistrationFixture,
    listeners: Vec<Listener>,
    told: Vec<Told>,
}

impl World {
    fn new(preset: &str) -> Self {
        let fixture = RegistrationFixture::new(preset, SPACES.min(host(preset).profile().groups.len()));
        let mut listeners: Vec<_> = SERVED.iter().map(|_| fixture.listener(&[])).collect();
        for listener in &mut listeners {
            listener.commit(Update::new().adding(window())).expect("no host is asked");
        }
        Self { fixture, listeners, told: SERVED.iter().map(|_| Told::default()).collect() }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Add(n, at, count) => {
                let fresh: Vec<_> =
                    (at..PIECES.min(at + count)).filter(|at| !self.told[n].pieces.contains(at)).collect();
                let update = fresh.iter().fold(Update::new(), |update, at| update.adding_target(piece(*at)));
                self.listeners[n].commit(update).expect("there is room");
                self.told[n].pieces.extend(fresh);
            }
            Step::Remove(n, at) => {
                if self.told[n].pieces.contains(&at) && !self.told[n].entries.contains(&at) {
                    self.listeners[n].commit(Update::new().removing_target(piece(at))).expect("nothing leans on it");
                    self.told[n].pieces.remove(&at);
                }
            }
            Step::Turn(space) => {
                let Some(n) = SERVED.iter().position(|served| served.contains(&space)) else { return };
                if space >= self.fixture.opened.len() {
                    return;
                }
                let (listener, told, space_of) = (&mut self.listeners[n], &mut self.told[n], self.fixture.space(space));
                if told.serves.remove(&space) {
                    listener.detach(&space_of).expect("everything can be taken out");
                    if told.serves.is_empty() {
                        // Entries live in spaces.
                        told.entries.clear();
                    }
                } else {
                    listener.attach(space_of).expect("there is room");
                    told.serves.insert(space);
                }
            }
            Step::Entry(n, at) => {
                let told = &mut self.told[n];
                if told.serves.is_empty() || !told.pieces.contains(&at) {
                    return;
                }
                let window = self.listeners[n].translated(Iova::new(0)).expect("the window is in force");
                if told.entries.remove(&at) {
                    window.clear(range(at * K64, K64)).expect("whole entries");
                } else {
                    window.put_run(Iova::new(at * K64), SystemAddress::new(at * K64), K64, RW).expect("RAM is there");
                    told.entries.insert(at);
                }
            }
        }
    }

    /// The registrations that entries lean on.
    fn leaned_on(&self) -> BTreeSet<(u64, u64)> {
        let mut runs = BTreeSet::new();
        for told in &self.told {
            for space in &told.serves {
                let there = registered(&*self.fixture.space(*space));
                runs.extend(
                    there
                        .iter()
                        .filter(|run: &&HostMemory| told.entries.iter().any(|at| run.overlaps(piece(*at).memory())))
                        .map(|run| (run.address().get(), run.len().get())),
                );
            }
        }
        runs
    }

    /// Each space has the registrations that its listener needs; no two cut memory differently; the kernel has each of
    /// them once.
    fn check(&self) {
        let mut all: BTreeSet<(u64, u64)> = BTreeSet::new();
        for told in &self.told {
            for space in &told.serves {
                let there = registered(&*self.fixture.space(*space));
                for at in &told.pieces {
                    let memory = piece(*at).memory().clone();
                    assert!(there.iter().any(|run| run.overlaps(&memory)), "space {space} lacks piece {at}");
                }
                for run in &there {
                    let pieces = (0..PIECES).filter(|at| run.overlaps(piece(*at).memory()));
                    let (low, high): (Vec<_>, Vec<_>) = pieces.partition(|at| *at < PIECES / 2);
                    assert!(low.is_empty() || high.is_empty(), "{run} crosses owners");
                    let needed = low.iter().chain(&high).any(|at| told.pieces.contains(at));
                    assert!(needed, "space {space} has {run}, which it does not need");
                }
                all.extend(there.iter().map(|run| (run.address().get(), run.len().get())));
            }
        }
        let runs: Vec<_> = all.into_iter().collect();
        assert!(runs.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "cut differently: {runs:x?}");
        let ledger = self.fixture.soft.ledger();
        let pinned: u64 = runs.iter().map(|(_, len)| len).sum();
        let locked = ledger.locked - self.fixture.tables();
        assert_eq!((ledger.registrations, locked, ledger.leaked), (runs.len(), pinned, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spaces_that_come_and_go_agree_on_the_runs(
        preset in prop_oneof![Just("powernv9"), Just("pseries")],
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(preset);
        for step in &steps {
            let before = world.leaned_on();
            world.take(step);
            world.check();
            if matches!(step, Step::Add(..)) {
                prop_assert!(world.leaned_on().is_superset(&before), "a run under entries was registered anew");
            }
        }
        let World { fixture, listeners, .. } = world;
        drop(listeners);
        fixture.close();
    }
}
