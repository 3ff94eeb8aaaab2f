//! Stress: eight threads call every verb of a space, and everything of a listener, on the soft host of each dialect.
//!
//! The threads draw verbs at random and take every answer, except a fence and a reply that cannot be true: no call
//! fails here, so neither has a cause. At the end the space is emptied, the listener's audit finds nothing, and the
//! ledger of the host is clear.
//!
//! `DMASPACE_STRESS_SECONDS` is the time of the whole test, 4 by default; `DMASPACE_STRESS_SEED` repeats the draws of a
//! run.

use dmaspace_core::contract::MapRequest;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use dmaspace::choose::BackendKind;
use dmaspace::open::Opened;
use dmaspace_core::contract::dirty::{Dirtied, DirtySink};
use dmaspace_core::contract::eeh::PeOperation;
use dmaspace_core::contract::kernel_tables::KernelWriter;
use dmaspace_core::contract::live_update::NamedMemory;
use dmaspace_core::contract::{Attachable, Mapping, PciAddressSpace, Unit, WindowRequest};
use dmaspace_core::door::Failure;
use dmaspace_core::error::{Error, Kind};
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::{FrontEnd, TargetMemory};
use dmaspace_listener::{Listener, Section, Update};
use dmaspace_soft::SoftHost;
use dmaspace_tests::subject::spare_on_soft;
use dmaspace_tests::{soft, soft::memory, soft::range};

const THREADS: u64 = 8;
const RW: Access = Access::READ_WRITE;
const K64: u64 = 0x1_0000;
const MIB: u64 = 1 << 20;

/// The units that threads map, and the window they lie in where windows are created.
const UNITS: u64 = 64;
const WINDOW: u64 = UNITS * K64;

/// Each host and backend of the stress. `pool`: the space shares its pins.
const HOSTS: [(&str, BackendKind, bool); 7] = [
    ("vtd", BackendKind::Type1, false),
    ("vtd", BackendKind::Iommufd, false),
    ("vtd", BackendKind::Iommufd, true),
    ("vtd-ssads", BackendKind::Type1OnIommufd, false),
    ("powernv9", BackendKind::Spapr, false),
    ("powernv9", BackendKind::SpaprV1, false),
    ("pseries", BackendKind::Spapr, false),
];

/// The time for each of the two tests on each host.
fn slice_of_time() -> Duration {
    let seconds =
        std::env::var("DMASPACE_STRESS_SECONDS").map_or(4.0, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs_f64(seconds) / u32::try_from(2 * HOSTS.len()).expect("a few hosts")
}

/// A generator of draws (Marsaglia's xorshift).
struct Draws(u64);

impl Draws {
    fn of_thread(thread: u64) -> Self {
        let seed = std::env::var("DMASPACE_STRESS_SEED").map_or(1, |text| text.parse::<u64>().expect("a seed"));
        Self(((seed << 8) | (thread + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The objects that the threads of one run share.
struct Shared {
    space: Arc<dyn PciAddressSpace>,
    spare: Option<Arc<dyn Attachable>>,
    ram: HostMemory,
    sink: Arc<Ignored>,
    called: Mutex<BTreeSet<&'static str>>,
}

#[derive(Debug, Default)]
struct Ignored;

impl DirtySink for Ignored {
    fn mark(&self, _: Dirtied<'_>) {}
}

/// A kernel that owns a window and writes nothing.
#[derive(Debug)]
struct IdleKernel;

#[expect(unsafe_code, reason = "UNSAFETY: a writer of tables is an unsafe trait")]
// SAFETY: it writes nothing, so that it has written nothing but what `mappings` tells.
unsafe impl KernelWriter for IdleKernel {
    fn mappings(&self, _: IovaRange) -> Vec<Mapping> {
        Vec::new()
    }

    fn joins(&self, _: &dyn Attachable) -> Result<(), Failure> {
        Ok(())
    }

    fn leaves(&self, _: &dyn Attachable) -> Result<(), Failure> {
        Ok(())
    }

    fn ends(&self) {}

    fn ends_if_idle(&self) {}
}

/// A verb with arguments that are drawn.
type Verb = fn(&Shared, &mut Draws) -> Result<(), Error>;

const VERBS: &[(&str, Verb)] = &[
    ("map", map),
    ("map", map),
    ("map", map),
    ("replace", replace),
    ("unmap", unmap),
    ("unmap", unmap),
    ("unmap everything", |shared, _| shared.space.unmap(IovaRange::all()).map(|_| ())),
    ("look", look),
    ("look", look),
    ("attach", attach),
    ("detach", detach),
    ("windows", windows),
    ("registration", registration),
    ("pins", pins),
    ("dirty", dirty),
    ("dirty", dirty),
    ("live update", live_update),
    ("kernel tables", kernel_tables),
    ("eeh", eeh),
];

/// A place of up to four units, in the first window or in the second.
fn place(draws: &mut Draws) -> (IovaRange, u64) {
    let (n, units) = (draws.below(UNITS - 4), 1 + draws.below(4));
    let window = if draws.below(4) == 0 { SECOND_WINDOW } else { 0 };
    (range(window + n * K64, units * K64), units)
}

fn piece(shared: &Shared, draws: &mut Draws, units: u64) -> HostMemory {
    shared.ram.slice(draws.below(UNITS - units) * K64, units * K64).expect("inside the RAM")
}

fn map(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    let (range, units) = place(draws);
    let unit = if draws.below(2) == 0 { Unit::Whole } else { Unit::Pages(PageSize::K64) };
    shared.space.map(MapRequest::new(range.first(), &piece(shared, draws, units), RW).with_unit(unit))
}

fn replace(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    let (range, units) = place(draws);
    shared
        .space
        .replace(MapRequest::new(range.first(), &piece(shared, draws, units), RW).with_unit(Unit::Pages(PageSize::K64)))
        .map(|_| ())
}

fn unmap(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    shared.space.unmap(place(draws).0).map(|_| ())
}

fn look(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    let space = &shared.space;
    let (range, _) = place(draws);
    if let Some(found) = space.lookup(range.first()) {
        assert!(found.range.contains(range.first()), "{found:?} at {}", range.first());
    }
    let listed = space.mappings(IovaRange::all());
    assert!(listed.windows(2).all(|pair| pair[0].range.last() < pair[1].range.first()), "{listed:?}");
    assert!(space.describe().devices.len() <= 2);
    assert!(space.describe().reserved.iter().all(|reserved| reserved.range.bytes() > 0));
    assert!(!space.describe().backend.is_empty());
    let _ = (space.windows(), space.powers(), space.powers().mappings_left());
    Ok(())
}

fn attach(shared: &Shared, _: &mut Draws) -> Result<(), Error> {
    shared.spare.as_ref().map_or(Ok(()), |spare| shared.space.attach(spare.clone()).map(|_| ()))
}

fn detach(shared: &Shared, _: &mut Draws) -> Result<(), Error> {
    shared.spare.as_ref().map_or(Ok(()), |spare| shared.space.detach(spare).map(|_| ()))
}

/// The place of a second window on both platforms.
const SECOND_WINDOW: u64 = 1 << 59;

fn windows(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    let Some(control) = shared.space.powers().window_control else { return Ok(()) };
    let window = range(SECOND_WINDOW, WINDOW);
    if draws.below(2) == 0 {
        return control.create_window(WindowRequest::new(window, PageSize::K4)).map(|_| ());
    }
    control.remove_window(window).map(|_| ())
}

fn registration(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    let Some(registration) = shared.space.powers().registration else { return Ok(()) };
    let quarter = shared.ram.slice(draws.below(4) * WINDOW / 4, WINDOW / 4).expect("inside the RAM");
    let _ = registration.registered();
    if draws.below(4) > 0 { registration.register(&quarter) } else { registration.unregister(&quarter) }
}

fn pins(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    let Some(sharing) = shared.space.powers().pin_sharing else { return Ok(()) };
    let quarter = shared.ram.slice(draws.below(4) * WINDOW / 4, WINDOW / 4).expect("inside the RAM");
    assert!(sharing.sharers(&quarter) <= 1, "no other space is in the pool");
    if draws.below(2) == 0 { sharing.share_pins(&quarter) } else { sharing.stop_sharing(&quarter) }
}

fn dirty(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    let tracking = shared.space.powers().dirty_tracking;
    match draws.below(6) {
        0 => tracking.start(shared.sink.clone()).map(|_| ()),
        1 => tracking.stop(),
        _ => tracking.sync(place(draws).0).map(|_| ()),
    }
}

/// Hands over and takes back at once, or the other threads would do nothing for long.
fn live_update(shared: &Shared, _: &mut Draws) -> Result<(), Error> {
    let update = shared.space.powers().live_update;
    let handover = update.hand_over(&NamedMemory::new().with("ram", shared.ram.clone()))?;
    assert_eq!(handover.backend, shared.space.describe().backend);
    update.take_back()
}

fn kernel_tables(shared: &Shared, draws: &mut Draws) -> Result<(), Error> {
    let Some(tables) = shared.space.powers().kernel_tables else { return Ok(()) };
    let window = range(SECOND_WINDOW, WINDOW);
    if draws.below(3) == 0 { tables.hand_to_kernel(window, Arc::new(IdleKernel)) } else { tables.reclaim(window) }
}

fn eeh(shared: &Shared, _: &mut Draws) -> Result<(), Error> {
    let Some(eeh) = shared.space.powers().eeh else { return Ok(()) };
    eeh.operate(PeOperation::Enable)?;
    eeh.state().map(|_| ())
}

fn call_verbs(shared: &Shared, thread: u64, end: Instant) {
    let mut draws = Draws::of_thread(thread);
    while Instant::now() < end {
        let (name, verb) = VERBS[usize::try_from(draws.below(VERBS.len() as u64)).expect("a few verbs")];
        if let Err(error) = verb(shared, &mut draws) {
            assert!(
                error.fenced().is_empty() && !matches!(error.kind(), Kind::Fenced(_) | Kind::BadReply),
                "{name}: {error}"
            );
        }
        shared.called.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }
}

/// Opens a space with a first window of 64 units, where windows are created.
fn open(preset: &str, backend: BackendKind, pool: bool) -> (Arc<SoftHost>, Opened) {
    let host = soft::host(preset);
    let opened = if pool { soft::open_in_a_pool(&host) } else { soft::open(&host, backend) };
    if let Some(control) = opened.space.space().powers().window_control {
        control.create_window(WindowRequest::new(range(0, WINDOW), PageSize::K4)).expect("there is no window");
    }
    (host, opened)
}

#[test]
fn eight_threads_call_every_verb_and_nothing_is_left() {
    for (preset, backend, pool) in HOSTS {
        let (host, opened) = open(preset, backend, pool);
        let shared = Shared {
            space: opened.space.space().clone(),
            spare: spare_on_soft(&host, backend),
            ram: HostMemory::zeroed(NonZeroUsize::new(4 << 20).expect("not zero"), PageSize::K64).expect("4 MiB"),
            sink: Arc::default(),
            called: Mutex::default(),
        };
        let end = Instant::now() + slice_of_time();
        thread::scope(|scope| {
            for n in 0..THREADS {
                let shared = &shared;
                scope.spawn(move || call_verbs(shared, n, end));
            }
        });
        let names: BTreeSet<_> = VERBS.iter().map(|(name, _)| *name).collect();
        assert_eq!(shared.called.into_inner().unwrap_or_else(PoisonError::into_inner), names, "{preset} {backend}");
        assert_eq!(shared.space.describe().fences, [], "{preset} {backend}");
        drop((shared.space, shared.spare, opened));
        assert!(host.ledger().is_clear(), "{preset} {backend}: {:?}", host.ledger());
    }
}

/// The objects that the threads of a listener's run share.
struct Served {
    listener: Mutex<Listener>,
    space: Arc<dyn PciAddressSpace>,
    spare: Option<Arc<dyn Attachable>>,
    entries: u64,
}

impl Served {
    fn listener(&self) -> MutexGuard<'_, Listener> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blocks that are populated and discarded.
const BLOCKS: u64 = 32 * MIB;

/// The start of a guest's window of entries: that of a POWER host's second window, elsewhere an address in the window
/// that is there.
fn entries_of(backend: BackendKind) -> u64 {
    if backend == BackendKind::Spapr { SECOND_WINDOW } else { 64 * MIB }
}

/// The sections that are always in force: entries, blocks, and the memory that entries point to.
fn guest(entries: u64) -> Update {
    let target = TargetMemory::new("target", SystemAddress::new(0), memory(1 << 44, MIB)).expect("a proper range");
    let blocks = Section::discardable("blocks", Iova::new(BLOCKS), memory(1 << 45, 4 * MIB), RW, PageSize::K64);
    let entries = Section::translated("entries", range(entries, 16 * MIB), PageSize::K4);
    Update::new().adding_target(target).adding(blocks.expect("a proper range")).adding(entries)
}

/// One of sixteen sections of RAM.
fn section(n: u64) -> Section {
    soft::ram(n * MIB, (1 << 46) + n * 2 * MIB, MIB)
}

fn commit_sections(served: &Served, draws: &mut Draws) {
    let section = section(draws.below(16));
    let mut listener = served.listener();
    let is_there = listener.sections().any(|known| known.range() == section.range());
    let update = if is_there { Update::new().removing(section) } else { Update::new().adding(section) };
    listener.commit(update).expect("every section fits, whatever other threads do");
}

fn write_entries(served: &Served, draws: &mut Draws) {
    let window = served.listener().translated(Iova::new(served.entries)).expect("the section is in force");
    for _ in 0..16 {
        let at = Iova::new(served.entries + draws.below(256) * 0x1000);
        // An entry may be there already, or not.
        let _ = match draws.below(3) {
            0 => window.clear(range(at.get(), 0x1000)).map(|_| ()),
            1 => window.replace(at, SystemAddress::new(draws.below(256) * 0x1000), 0x1000, RW).map(|_| ()),
            _ => window.put(at, SystemAddress::new(draws.below(256) * 0x1000), RW),
        };
        let found = window.lookup(at).expect("the window is there");
        assert!(found.is_none_or(|mapping| mapping.range.contains(at)));
    }
}

fn change_blocks(served: &Served, draws: &mut Draws) {
    let blocks = served.listener().discardable(Iova::new(BLOCKS)).expect("the section is in force");
    let range = range(BLOCKS + draws.below(60) * K64, (1 + draws.below(4)) * K64);
    // A block may be populated already, or not.
    let _ = if draws.below(2) == 0 { blocks.populate(range) } else { blocks.discard(range) };
    blocks.populated().expect("the section is in force");
}

fn change_devices(served: &Served, draws: &mut Draws) {
    let Some(spare) = &served.spare else { return };
    // The device may be attached already, or not.
    let _ = if draws.below(2) == 0 {
        served.space.attach(spare.clone()).map(|_| ())
    } else {
        served.space.detach(spare).map(|_| ())
    };
}

fn track_dirty(served: &Served, draws: &mut Draws) {
    let mut listener = served.listener();
    match draws.below(4) {
        0 => listener.stop_tracking(),
        1 => {
            // Tracking may have started already.
            let _ = listener.track_dirty(Arc::new(Ignored));
        }
        _ => {
            let _ = listener.sync_dirty();
        }
    }
}

fn explain(served: &Served, draws: &mut Draws) {
    let beyond = section(16 + draws.below(16));
    let report = served.listener().explain(&Update::new().adding(beyond)).expect("the update is consistent");
    assert_eq!(report.spaces.len(), 1);
    let _ =
        (served.space.mappings(IovaRange::all()), served.space.describe().devices, served.space.describe().reserved);
}

/// The work of each thread of a listener's run.
const WORK: [fn(&Served, &mut Draws); 8] = [
    commit_sections,
    commit_sections,
    write_entries,
    write_entries,
    change_blocks,
    change_devices,
    track_dirty,
    explain,
];

#[test]
fn eight_threads_around_a_listener_leave_it_in_step() {
    for (preset, backend, pool) in HOSTS {
        let host = soft::host(preset);
        let opened = if pool { soft::open_in_a_pool(&host) } else { soft::open(&host, backend) };
        let space = opened.space.space().clone();
        let (spare, entries) = (spare_on_soft(&host, backend), entries_of(backend));
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(space.clone()).expect("an empty view fits");
        listener.commit(guest(entries)).expect("the guest fits");
        let served = Served { listener: Mutex::new(listener), space, spare, entries };
        let end = Instant::now() + slice_of_time();
        thread::scope(|scope| {
            for (n, work) in (0..).zip(WORK) {
                let served = &served;
                scope.spawn(move || {
                    let mut draws = Draws::of_thread(n);
                    while Instant::now() < end {
                        work(served, &mut draws);
                    }
                });
            }
        });
        let context = format!("{preset} {backend}");
        let mut listener = served.listener.into_inner().unwrap_or_else(PoisonError::into_inner);
        listener.sync().unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!((listener.audit(), served.space.describe().fences), (vec![], vec![]), "{context}");
        drop((listener, served.space, served.spare, opened));
        assert!(host.ledger().is_clear(), "{context}: {:?}", host.ledger());
    }
}
