//! The boot of a q35 with 256 MiB, as QEMU told its listener while firmware ran, and the calls it takes.

use std::cell::RefCell;

use dmaspace::recording::{Asked, Event, Reader};
use dmaspace_core::{HostMemory, IovaRange};
use dmaspace_listener::{FrontEnd, Listener, Update};
use vm_memory::{GuestAddress, GuestRegionMmap};

use crate::Bench;
use crate::compare::{Tried, compare, instructions};

const BOOT: &str = include_str!("../../../data/q35-256m-type1-boot.jsonl");

/// A call of the raw loop.
enum Call {
    Map { iova: u64, address: u64, length: u64 },
    Unmap { iova: u64, length: u64 },
}

/// A mapping as the kernel has it: its range and its host address.
type Live = (IovaRange, u64);

/// Compares the commits of the boot with the calls that they make.
pub(crate) fn measure(bench: &Bench) -> Tried {
    let boot = Boot::read()?;
    let calls = boot.calls(bench)?;
    let raw = || {
        for call in &calls {
            match *call {
                Call::Map { iova, address, length } => bench.raw.map(iova, address, length)?,
                Call::Unmap { iova, length } => bench.raw.unmap(iova, length)?,
            }
        }
        Ok(())
    };
    let ours = || {
        let updates = boot.updates.clone();
        instructions(|| boot.commit(bench, updates))
    };
    let kind = bench.opened.space.backend();
    compare(&format!("{kind}: boot of a q35 with 256 MiB, all of it"), 1, || instructions(raw), ours)
}

/// The recorded updates, above memory of this process.
struct Boot {
    front: FrontEnd,
    updates: Vec<Update>,
}

impl Boot {
    fn read() -> Tried<Self> {
        let ram = recorded_ram()?;
        let (mut front, mut updates) = (FrontEnd::default(), Vec::new());
        for event in Reader::new(BOOT.as_bytes(), |asked: &Asked| memory_in(&ram, asked)) {
            match event?.event {
                Event::Begins { front: recorded, in_force, .. } => {
                    front = recorded;
                    updates.push(in_force);
                }
                Event::Commits { update, .. } => updates.push(update),
                Event::Joins { .. } | Event::Leaves { .. } => {}
            }
        }
        Ok(Self { front, updates })
    }

    fn listener(&self, bench: &Bench) -> Tried<Listener> {
        let mut listener = Listener::new(self.front.clone());
        listener.attach(bench.opened.space.space().clone())?;
        Ok(listener)
    }

    fn commit(&self, bench: &Bench, updates: Vec<Update>) -> Tried {
        let mut listener = self.listener(bench)?;
        for update in updates {
            listener.commit(update)?;
        }
        listener.detach(bench.opened.space.space())?;
        Ok(())
    }

    /// The calls that bring the kernel from step to step: each mapping that goes, and each that comes.
    fn calls(&self, bench: &Bench) -> Tried<Vec<Call>> {
        let space = bench.opened.space.space();
        let live = || -> Vec<Live> {
            let mappings = space.mappings(IovaRange::all());
            mappings.into_iter().map(|mapping| (mapping.range, mapping.memory.address().get())).collect()
        };
        let mut listener = self.listener(bench)?;
        let (mut calls, mut before) = (Vec::new(), live());
        for update in self.updates.clone() {
            listener.commit(update)?;
            let after = live();
            note_changes(&before, &after, &mut calls)?;
            before = after;
        }
        listener.detach(space)?;
        note_changes(&before, &[], &mut calls)?;
        Ok(calls)
    }
}

fn note_changes(before: &[Live], after: &[Live], calls: &mut Vec<Call>) -> Tried {
    for live in before.iter().filter(|live| !after.contains(live)) {
        let (iova, length) = (live.0.first().get(), length_of(live)?);
        calls.push(Call::Unmap { iova, length });
    }
    for live in after.iter().filter(|live| !before.contains(live)) {
        let (iova, length) = (live.0.first().get(), length_of(live)?);
        calls.push(Call::Map { iova, address: live.1, length });
    }
    Ok(())
}

fn length_of((range, _): &Live) -> Tried<u64> {
    Ok(range.len().ok_or("a mapping of all addresses")?.get())
}

/// The memory of the process that was recorded: pieces that were contiguous there, by their addresses there.
fn recorded_ram() -> Tried<Vec<(u64, HostMemory)>> {
    let asked = RefCell::new(Vec::new());
    let note = |it: &Asked| {
        asked.borrow_mut().push((it.address.get(), it.address.get() + it.len.get()));
        it.unbacked()
    };
    for event in Reader::new(BOOT.as_bytes(), note) {
        event?;
    }
    let mut asked = asked.into_inner();
    asked.sort_unstable();
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for (first, end) in asked {
        match spans.last_mut().filter(|(_, last)| first <= *last) {
            Some((_, last)) => *last = end.max(*last),
            None => spans.push((first, end)),
        }
    }
    spans.into_iter().map(|(first, end)| Ok((first, memory_of(end - first)?))).collect()
}

fn memory_of(len: u64) -> Tried<HostMemory> {
    let region: GuestRegionMmap<()> = GuestRegionMmap::from_range(GuestAddress(0), usize::try_from(len)?, None)?;
    Ok(HostMemory::of_region(&region).ok_or("the region is empty")?)
}

fn memory_in(ram: &[(u64, HostMemory)], asked: &Asked) -> Option<HostMemory> {
    let (first, memory) = ram.iter().rfind(|(first, _)| *first <= asked.address.get())?;
    memory.slice(asked.address.get() - first, asked.len.get())
}
