//! A kernel that fails, garbles its replies, or lies, while every verb of spaces and of a listener is called.
//!
//! # The promises
//! - Nothing panics, and no verb makes calls without bound, whatever the kernel says.
//! - No audit finds that an index contradicts itself, its windows, its fences or its registrations.
//! - No descriptor stays open once everything is dropped.
//! - Unless the kernel says that it took something away and did not, each byte that a device reaches is in an index or
//!   behind a fence that keeps its memory: memory that a device reaches is never freed.
//! - While calls fail without an effect at the worst, the index has exactly the memory that devices reach, pages that
//!   devices wrote are told, and everything is gone from the kernel in the end.

mod listener_verbs;
mod space_verbs;

use std::collections::BTreeSet;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_core::contract::dirty::{Dirtied, DirtySink};
use dmaspace_core::contract::live_update::{Handover, NamedMemory};
use dmaspace_core::{Access, HostAddress, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace};
use dmaspace_iommufd::Pool;
use dmaspace_listener::{FrontEnd, Listener};
use dmaspace_soft::SoftHost;

use self::listener_verbs::LISTENER_VERBS;
use self::space_verbs::SPACE_VERBS;
use super::hostile_door::{Conduct, HostileDoor, Hostility};
use super::input::Input;
use super::oracle::{Listed, assert_reach_is_kept};

/// The hosts, and the ways to their IOMMUs.
const HOSTS: [(&str, BackendKind); 10] = [
    ("vtd", BackendKind::Type1),
    ("vtd", BackendKind::Iommufd),
    ("powernv9", BackendKind::Spapr),
    ("vtd-ssads", BackendKind::Iommufd),
    ("vtd", BackendKind::Type1OnIommufd),
    ("pseries", BackendKind::Spapr),
    ("powernv9-64k", BackendKind::Spapr),
    ("arm64-64k", BackendKind::Iommufd),
    ("amd", BackendKind::Type1),
    ("powernv9", BackendKind::SpaprV1),
];

/// Addresses and sizes are multiples of it, most often.
const UNIT: u64 = 0x1_0000;
/// The bytes of each piece of memory.
const PIECE: u64 = 32 * UNIT;
/// The most calls of one verb. A verb of the largest range makes one call for each of its pages, some calls twice.
const MOST_CALLS: u64 = 60_000;
/// The most steps of a run.
const MOST_STEPS: usize = 200;

/// A verb, and its place in reports.
type Verb = (&'static str, fn(&mut Run));

/// The pages that must be told: those that a device wrote after they were told last.
#[derive(Debug, Default)]
struct Untold(Mutex<BTreeSet<u64>>);

impl Untold {
    fn pages(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DirtySink for Untold {
    fn mark(&self, dirtied: Dirtied<'_>) {
        let first = dirtied.address().get();
        let last = first.saturating_add(dirtied.len - 1);
        self.pages().retain(|page| *page < first / 0x1000 || *page > last / 0x1000);
    }
}

/// A host, and everything of a VMM's on it.
struct Run {
    input: Input,
    listener: Listener,
    opened: Vec<Opened>,
    pool: Option<Arc<Pool>>,
    handed_over: Vec<(usize, Handover)>,
    untold: Arc<Untold>,
    is_tracking: bool,
    host: Host,
    door: Arc<HostileDoor>,
    soft: Arc<SoftHost>,
    backend: BackendKind,
    memory: Vec<HostMemory>,
}

/// Runs an input.
///
/// # Panics
/// If a promise does not hold.
pub fn attack(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (preset, backend) = input.choose(&HOSTS);
    let conduct = input.choose(&Conduct::ALL);
    let (choices, lies) = input.halves();
    let mut run = Run::new(preset, backend, conduct, choices, lies);
    // Most spaces are opened before the kernel misbehaves.
    if run.input.once_in(4) {
        run.open();
    } else {
        run.door.watcher.behave(true);
        run.open();
        run.door.watcher.behave(false);
    }
    let mut steps = 0;
    while !run.input.is_used_up() && steps < MOST_STEPS {
        run.step();
        steps += 1;
    }
    run.end();
}

/// Memory with bytes, that devices can write.
fn real_memory() -> HostMemory {
    static MEMORY: OnceLock<HostMemory> = OnceLock::new();
    let len = NonZeroUsize::new(usize::try_from(PIECE).expect("2 MiB")).expect("not empty");
    MEMORY.get_or_init(|| HostMemory::zeroed(len, PageSize::M2).expect("memory for the test")).clone()
}

fn unbacked(address: u64) -> HostMemory {
    let len = NonZeroU64::new(PIECE).expect("not empty");
    HostMemory::unbacked(HostAddress::new(address), len).expect("no wrap")
}

impl Run {
    fn new(preset: &str, backend: BackendKind, conduct: Conduct, input: Input, lies: Input) -> Self {
        let profile = crate::soft::profile(preset);
        let profile = if backend == BackendKind::SpaprV1 { profile.with_fixed_window() } else { profile };
        let soft = SoftHost::new(profile).expect("presets make sense");
        soft.deny_huge_pages();
        let door = Hostility::door(soft.clone(), conduct, lies);
        let memory = vec![
            real_memory(),
            unbacked(1 << 45),
            unbacked((1 << 45) + PIECE).in_unit(1),
            unbacked((1 << 46) + 0x1000),
            unbacked(1 << 44).device_memory(),
            unbacked(1 << 43).host_read_only(),
        ];
        Self {
            input,
            listener: Listener::new(FrontEnd::default()),
            opened: Vec::new(),
            pool: None,
            handed_over: Vec::new(),
            untold: Arc::default(),
            is_tracking: false,
            host: Host::new(door.clone(), Facts::of_soft(soft.profile())),
            door,
            soft,
            backend,
            memory,
        }
    }

    fn address(&self, n: usize) -> PciAddress {
        let groups = &self.soft.profile().groups;
        groups[n % groups.len()].devices[0].address.parse().expect("a PCI address")
    }

    /// Opens a space with a device, and has the listener serve it.
    fn open(&mut self) {
        let request = OpenRequest::device(self.address(self.opened.len())).with_backend(self.backend);
        if let Ok(opened) = self.host.open(&request) {
            let _result = self.listener.attach(opened.space.space().clone());
            self.opened.push(opened);
        }
    }

    fn space(&mut self) -> Option<Arc<dyn PciAddressSpace>> {
        let place = self.input.index(self.opened.len());
        self.opened.get(place).map(|opened| opened.space.space().clone())
    }

    /// A part of the memory: whole units most often.
    fn part(&mut self) -> HostMemory {
        let rare = self.input.once_in(8);
        let piece = if rare { 2 + self.input.index(4) } else { self.input.index(2) };
        let memory = self.memory[piece].clone();
        let (offset, len) = (self.input.below(24) * UNIT, (1 + self.input.below(8)) * UNIT);
        match self.input.below(32) {
            31 => memory.slice(offset + 8, 0x1000),
            30 => memory.slice(offset, len / 16),
            _ => memory.slice(offset, len),
        }
        .expect("inside the memory")
    }

    /// A bus address: a low one, one in the second window of POWER, or an extreme one.
    fn at(&mut self) -> Iova {
        let low = self.input.below(64) * UNIT;
        Iova::new(match self.input.below(32) {
            0..=23 => low,
            24..=29 => (1 << 59) + low,
            30 => low + 0x1000,
            _ => self.input.edge(),
        })
    }

    fn range(&mut self) -> IovaRange {
        let (first, len) = (self.at(), (1 + self.input.below(16)) * UNIT);
        let len = if self.input.once_in(16) { self.input.edge() } else { len };
        IovaRange::with_len(first, len).unwrap_or(IovaRange::all())
    }

    fn access(&mut self) -> Access {
        self.input.choose(&[Access::READ_WRITE, Access::READ_WRITE, Access::READ_WRITE, Access::READ, Access::WRITE])
    }

    fn names(&self) -> NamedMemory {
        let names = ["real", "low", "next", "odd", "bar", "rom"];
        names
            .iter()
            .zip(&self.memory)
            .fold(NamedMemory::new(), |named, (name, memory)| named.with(*name, memory.clone()))
    }

    fn step(&mut self) {
        if self.opened.is_empty() {
            self.open();
        }
        let before = self.door.watcher.calls();
        let verbs = if self.input.once_in(4) { SPACE_VERBS } else { LISTENER_VERBS };
        let (name, verb) = verbs[self.input.index(verbs.len())];
        self.door.watcher.tell(|| name.to_owned());
        verb(self);
        let calls = self.door.watcher.calls() - before;
        assert!(calls <= MOST_CALLS, "{calls} calls of one verb");
        self.check();
    }

    fn check(&self) {
        self.check_audit();
        if self.door.watcher.conduct < Conduct::Lies {
            assert_reach_is_kept(&self.soft, &self.opened);
        }
        if self.door.watcher.conduct <= Conduct::Fails {
            self.check_index();
        }
    }

    /// A space that is out of step with the view is no finding here: verbs of spaces are called past the listener.
    fn check_audit(&self) {
        const EXPECTED: [&str; 2] = ["its windows changed since the last commit", "it is not in step with the guest"];
        let findings = self.listener.audit();
        let contradiction = findings.iter().find(|it| !EXPECTED.iter().any(|text| it.what.starts_with(text)));
        assert!(contradiction.is_none(), "{contradiction:?}");
    }

    /// A device reaches all that its space lists.
    fn check_index(&self) {
        for opened in &self.opened {
            let listed = Listed::by(&**opened.space.space());
            for device in &opened.devices {
                let reached = self.soft.device(device.name()).and_then(|device| device.reached()).unwrap_or_default();
                let difference = listed.differs_from(&reached);
                assert!(difference.is_none(), "{}: {}", device.name(), difference.unwrap_or_default());
            }
        }
    }

    fn end(self) {
        let Self { listener, opened, pool, host, door, soft, .. } = self;
        let conduct = door.watcher.conduct;
        let is_fenced = opened.iter().any(|opened| !opened.space.space().describe().fences.is_empty());
        drop((listener, opened, pool, host, door));
        let ledger = soft.ledger();
        let open = ledger.containers + ledger.groups + ledger.devices + ledger.iommufds;
        assert_eq!(open, 0, "descriptors stayed open: {ledger:?}");
        if conduct <= Conduct::Fails && !is_fenced {
            assert_eq!((ledger.locked - ledger.leaked, ledger.pinned, ledger.mapped), (0, 0, 0), "{ledger:?}");
        }
    }
}
