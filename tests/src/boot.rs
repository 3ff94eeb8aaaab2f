//! A real boot: what QEMU told its listener while firmware started a q35 with 256 MiB, replayed while the device is at
//! work.
//!
//! The recording is what `dmaspace replay q35-256m-type1-boot.trace --record FILE` makes of QEMU's trace, which carries
//! no access: all is read-write RAM.

use std::cell::RefCell;
use std::collections::BTreeMap;

use dmaspace::recording::{Asked, Event, Reader};
use dmaspace_core::{HostAddress, HostMemory, Iova, IovaRange};
use dmaspace_listener::Update;
use dmaspace_listener::{Listener, Section};

use crate::fixture::Fixture;
use crate::ram::Ram;

const BOOT: &str = include_str!("../data/q35-256m-type1-boot.jsonl");

const MIB: u64 = 1 << 20;

/// The lower bound of pinned bytes: every translation once, and again when another was there meanwhile (257.75 MiB).
const FLOOR: u64 = 257 * MIB + 3 * MIB / 4;

/// The address at which the device works: above everything that firmware changes.
const AT_WORK: u64 = 200 * MIB;

/// Step by step the bus is as it was recorded, nothing that stays is disturbed or pinned twice, and a transfer that
/// began before a step ends well after it.
pub fn q35_boot(fixture: &mut Fixture) {
    let arenas = RecordedRam::of_boot();
    let mut listener = Listener::default();
    let mut pinned = 0;
    let mut steps = 0;
    for event in Reader::new(BOOT.as_bytes(), |asked: &Asked| arenas.memory(asked)) {
        let update = match event.expect("a proper recording").event {
            Event::Begins { front, in_force, .. } => {
                listener = Listener::new(front);
                listener.attach(fixture.space.clone()).expect("an empty view fits");
                in_force
            }
            Event::Commits { update, .. } => update,
            Event::Joins { .. } | Event::Leaves { .. } => Update::new(),
        };
        pinned += step(fixture, &mut listener, update);
        steps += 1;
    }
    assert_eq!(steps, 7, "the beginning, and six transactions of QEMU's");
    assert!(pinned <= FLOOR + 2 * MIB, "{pinned} bytes were pinned, {FLOOR} had to be");
    assert_eq!(bus_of(fixture), expected_bus(&listener), "the bus is as the recording left it");
    let scratch = Iova::new(100 * MIB);
    let shown = page_at(fixture, scratch).expect("RAM is there");
    fixture.show_results_at(scratch, shown);
    for section in listener.sections().cloned().collect::<Vec<_>>() {
        let Some((memory, _)) = section.direct() else { continue };
        fixture.assert_range(section.range(), memory, true);
    }
    let space = fixture.space.clone();
    listener.detach(&space).expect("everything can be taken out");
}

/// Commits one update while the device writes, and returns how many bytes that pinned.
fn step(fixture: &mut Fixture, listener: &mut Listener, update: Update) -> u64 {
    let at = Iova::new(AT_WORK);
    let transfer = page_at(fixture, at).map(|memory| fixture.begin_transfer(at, memory));
    let report = listener.commit(update).expect("the step fits").spaces.remove(0);
    if let Some(transfer) = transfer {
        fixture.end_transfer(transfer);
    }
    assert_eq!(report.disturbed, 0, "a mapping that stays was unmapped meanwhile");
    report.pinned
}

/// The memory behind a page, if it is mapped.
fn page_at(fixture: &Fixture, at: Iova) -> Option<HostMemory> {
    let live = fixture.space.lookup(at)?;
    live.memory.slice(live.range.offset_of(at), 0x1000)
}

/// The memory that devices reach, in stretches that are contiguous on the bus and in the host.
fn bus_of(fixture: &Fixture) -> BTreeMap<Iova, (IovaRange, u64)> {
    let live = fixture.space.mappings(IovaRange::all());
    joined(live.into_iter().map(|mapping| (mapping.range, mapping.memory.address().get())))
}

fn expected_bus(listener: &Listener) -> BTreeMap<Iova, (IovaRange, u64)> {
    joined(
        listener
            .sections()
            .filter_map(|section: &Section| Some((section.range(), section.direct()?.0.address().get()))),
    )
}

fn joined(stretches: impl Iterator<Item = (IovaRange, u64)>) -> BTreeMap<Iova, (IovaRange, u64)> {
    let mut out: BTreeMap<Iova, (IovaRange, u64)> = BTreeMap::new();
    for (range, host) in stretches {
        let below = out.last_entry().filter(|below| {
            let (known, at) = below.get();
            known.touches(range) && at + known.len().map_or(0, std::num::NonZeroU64::get) == host
        });
        match below {
            Some(mut below) => below.get_mut().0 = below.get().0.hull(range),
            None => drop(out.insert(range.first(), (range, host))),
        }
    }
    out
}

/// The memory of the process that was recorded, in pieces that were contiguous there.
struct RecordedRam(Vec<(u64, Ram)>);

impl RecordedRam {
    fn of_boot() -> Self {
        let asked = RefCell::new(Vec::new());
        let note = |it: &Asked| {
            asked.borrow_mut().push((it.address, it.address.get() + it.len.get()));
            it.unbacked()
        };
        for event in Reader::new(BOOT.as_bytes(), note) {
            event.expect("a proper recording");
        }
        let mut spans: Vec<(u64, u64)> = Vec::new();
        let mut asked = asked.into_inner();
        asked.sort_unstable();
        for (first, end) in asked {
            match spans.last_mut().filter(|(_, last)| first <= HostAddress::new(*last)) {
                Some((_, last)) => *last = end.max(*last),
                None => spans.push((first.get(), end)),
            }
        }
        Self(
            spans
                .iter()
                .map(|(first, end): &(u64, u64)| (*first, Ram::new(usize::try_from(end - first).expect("it fits"))))
                .collect(),
        )
    }

    fn memory(&self, asked: &Asked) -> Option<HostMemory> {
        let (first, ram) = self.0.iter().rfind(|(first, _)| *first <= asked.address.get())?;
        ram.all().slice(asked.address.get() - first, asked.len.get())
    }
}
