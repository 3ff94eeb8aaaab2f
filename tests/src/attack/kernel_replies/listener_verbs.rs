//! The verbs of a listener and of its handles, with arguments of the input.

use std::collections::BTreeSet;

use dmaspace::recording::JsonLines;
use dmaspace_core::{HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::{Backing, TargetMemory};
use dmaspace_listener::{DiscardableRam, EntryRun, FrontEnd, Listener, Section, TranslatedWindow, Update};

use super::{PIECE, Run, UNIT, Verb};
use crate::dirty::page_of;

/// The verbs.
pub(super) const LISTENER_VERBS: &[Verb] = &[
    ("commit", commit),
    ("commit", commit),
    ("commit", commit),
    ("commit", commit),
    ("commit_a_list", commit_a_list),
    ("explain", explain),
    ("sync", sync),
    ("put", put),
    ("put", put),
    ("put_many", put_many),
    ("replace_entries", replace_entries),
    ("clear", clear),
    ("clear", clear),
    ("populate", populate),
    ("populate", populate),
    ("discard", discard),
    ("join", join),
    ("join", join),
    ("leave", leave),
    ("track", track),
    ("sync_dirty", sync_dirty),
    ("sync_dirty", sync_dirty),
    ("stop_tracking", stop_tracking),
    ("write", write),
    ("write", write),
    ("write", write),
    ("hand_over", hand_over),
    ("take_back", take_back),
    ("may_discard", may_discard),
    ("state", state),
    ("record", record),
    ("begin_again", begin_again),
];

/// Sections that a host can serve, most often.
fn section(run: &mut Run) -> Option<Section> {
    let (at, access) = (run.at(), run.access());
    match run.input.below(16) {
        0..=6 => Section::ram("ram", at, run.part(), access).ok(),
        7 => Section::device_memory("bar", at, run.memory[4].slice(0, UNIT)?, access).ok(),
        8..=9 => Section::discardable("dimm", at, run.dimm_at(at)?, access, PageSize::K64).ok(),
        10 => Some(Section::msi("msi", run.range())),
        11 => Some(Section::nothing("hole", run.range())),
        _ => run.window_at(at),
    }
}

fn target(run: &mut Run) -> Option<TargetMemory> {
    let (piece, offset, len) = (run.input.index(2), run.input.below(16) * UNIT, (4 + run.input.below(12)) * UNIT);
    let at = SystemAddress::new(piece as u64 * PIECE + offset);
    TargetMemory::new("target", at, run.memory[piece].slice(offset, len)?).ok()
}

/// Adds a few things in place of those that are there, and removes a few others.
fn update(run: &mut Run) -> Update {
    let (old, old_targets): (Vec<_>, Vec<_>) =
        (run.listener.sections().cloned().collect(), run.listener.targets().cloned().collect());
    let mut removed: BTreeSet<usize> = (0..run.input.below(3)).map(|_| run.input.index(old.len())).collect();
    let (mut update, mut added) = (Update::new(), Vec::<IovaRange>::new());
    for _ in 0..run.input.below(5) {
        let Some(section) = section(run) else { continue };
        let is_free = !added.iter().any(|range| range.overlaps(section.range()));
        if is_free || run.input.once_in(16) {
            added.push(section.range());
            update = update.adding(section);
        }
    }
    if !run.input.once_in(16) {
        removed.extend((0..old.len()).filter(|n| added.iter().any(|range| range.overlaps(old[*n].range()))));
    }
    update = removed.iter().filter_map(|n| old.get(*n)).cloned().fold(update, Update::removing);
    let new = if run.input.once_in(3) { target(run) } else { None };
    let going = old_targets.into_iter().filter(|old| {
        let is_in_the_way = new.as_ref().is_some_and(|new| new.range().overlaps(old.range()));
        is_in_the_way || run.input.once_in(24)
    });
    update = going.fold(update, Update::removing_target);
    new.into_iter().fold(update, Update::adding_target)
}

fn commit(run: &mut Run) {
    let update = update(run);
    let before: Vec<_> = run.listener.sections().cloned().collect();
    let result = run.listener.commit(update);
    if result.is_err() {
        assert!(run.listener.sections().eq(before.iter()), "a commit that failed has changed the view");
    }
}

fn commit_a_list(run: &mut Run) {
    let mut sections: Vec<_> = run.listener.sections().cloned().collect();
    let targets: Vec<_> = run.listener.targets().cloned().collect();
    if !sections.is_empty() {
        sections.remove(run.input.index(sections.len()));
    }
    sections.extend(section(run));
    let update = run.listener.update_to(&sections, &targets);
    let _result = run.listener.commit(update);
}

fn explain(run: &mut Run) {
    let update = update(run);
    let Ok(report) = run.listener.explain(&update) else { return };
    for verdict in report.spaces.iter().flat_map(|space| &space.sections) {
        let _text = (verdict.piece.to_string(), verdict.reason.to_string());
    }
}

fn sync(run: &mut Run) {
    let _result = run.listener.sync();
}

fn window(run: &mut Run) -> Option<TranslatedWindow> {
    let windows = run.listener.sections().filter(|section| matches!(section.backing(), Backing::Translated { .. }));
    let firsts: Vec<Iova> = windows.map(|section| section.range().first()).collect();
    let first = *firsts.get(run.input.index(firsts.len()))?;
    run.listener.translated(first)
}

fn entries(run: &mut Run, window: &TranslatedWindow) -> Option<EntryRun> {
    let (range, page) = (window.range().ok()?, window.page().ok()?);
    let pages = (run.input.below(8), 1 + run.input.below(4));
    let at = range.first().get().checked_add(pages.0 * page.bytes())?;
    let range = IovaRange::with_len(Iova::new(at), pages.1 * page.bytes()).ok()?;
    let targets: Vec<_> = run.listener.targets().map(|target| target.range()).collect();
    let base = targets.get(run.input.index(targets.len())).map_or(0, |range| range.first().get());
    let target = SystemAddress::new(base + run.input.below(4) * UNIT.max(page.bytes()));
    Some(EntryRun { range, target, access: run.access() })
}

fn put(run: &mut Run) {
    let Some(window) = window(run) else { return };
    let Some(EntryRun { range, target, access }) = entries(run, &window) else { return };
    let _result = match range.len() {
        Some(len) if run.input.once_in(2) => window.put_run(range.first(), target, len.get(), access),
        _ => window.put(range.first(), target, access),
    };
    let _found = window.lookup(range.first());
}

fn put_many(run: &mut Run) {
    let Some(window) = window(run) else { return };
    let count = 1 + run.input.below(4);
    let runs: Vec<_> = (0..count).filter_map(|_| entries(run, &window)).collect();
    let _result = window.put_many(&runs);
}

fn replace_entries(run: &mut Run) {
    let Some(window) = window(run) else { return };
    let Some(EntryRun { range, target, access }) = entries(run, &window) else { return };
    let live = window.lookup(range.first()).ok().flatten();
    let range = live.map_or(range, |live| live.range);
    let _result = window.replace(range.first(), target, range.len().map_or(0, |len| len.get()), access);
}

fn clear(run: &mut Run) {
    let Some(window) = window(run) else { return };
    let range = match run.input.below(3) {
        0 => window.range().unwrap_or(IovaRange::all()),
        1 => run.range(),
        _ => entries(run, &window).map_or(IovaRange::all(), |it| it.range),
    };
    let _result = window.clear(range);
}

fn blocks(run: &mut Run) -> Option<(DiscardableRam, IovaRange)> {
    let dimms = run.listener.sections().filter(|section| matches!(section.backing(), Backing::Discardable { .. }));
    let firsts: Vec<Iova> = dimms.map(|section| section.range().first()).collect();
    let first = *firsts.get(run.input.index(firsts.len()))?;
    let (offset, len) = (run.input.below(4) * UNIT, (1 + run.input.below(4)) * UNIT);
    let range = IovaRange::with_len(Iova::new(first.get().checked_add(offset)?), len).ok()?;
    Some((run.listener.discardable(first)?, range))
}

fn populate(run: &mut Run) {
    if let Some((blocks, range)) = blocks(run) {
        let _result = blocks.populate(range);
    }
}

fn discard(run: &mut Run) {
    if let Some((blocks, range)) = blocks(run) {
        let _result = blocks.discard(range);
        let _populated = blocks.populated();
    }
}

fn join(run: &mut Run) {
    let Some(space) = run.space() else { return };
    if !run.listener.spaces().any(|known| std::sync::Arc::ptr_eq(known, &space)) {
        let _result = run.listener.attach(space);
    }
}

fn leave(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let _result = run.listener.detach(&space);
}

fn track(run: &mut Run) {
    run.is_tracking = run.listener.track_dirty(run.untold.clone()).is_ok() || run.is_tracking;
}

/// Everything that was written is told then, also where a call fails.
fn sync_dirty(run: &mut Run) {
    let _result = run.listener.sync_dirty();
    if run.door.watcher.conduct <= super::Conduct::Fails {
        let untold = run.untold.pages().first().copied();
        assert_eq!(untold, None, "a page that a device wrote was not told");
    }
    run.forget_writes();
}

fn stop_tracking(run: &mut Run) {
    run.forget_writes();
    run.listener.stop_tracking();
    run.is_tracking = false;
}

impl Run {
    /// The memory of a discardable section, which no other section has.
    fn dimm_at(&self, at: Iova) -> Option<HostMemory> {
        self.memory[2].slice(at.get() / UNIT % 28 * UNIT, 4 * UNIT)
    }

    /// A translated section: most often where a host of POWER has a place for it.
    fn window_at(&mut self, at: Iova) -> Option<Section> {
        let (at, len) = match self.input.below(4) {
            0 => (Iova::new(0), 16 * UNIT),
            1..=2 => (Iova::new(1 << 59), 1 << (20 + self.input.below(8))),
            _ => (at, 1 << (16 + self.input.below(8))),
        };
        let page = self.input.choose(&[PageSize::K64, PageSize::K64, PageSize::K4, PageSize::M2]);
        IovaRange::with_len(at, len).ok().map(|range| Section::translated("window", range, page))
    }

    pub(super) fn forget_writes(&self) {
        self.untold.pages().clear();
    }
}

/// A device writes into memory that its space maps.
fn write(run: &mut Run) {
    let Some(space) = run.space() else { return };
    let is_served = run.listener.spaces().any(|served| std::sync::Arc::ptr_eq(served, &space));
    let place = run.opened.iter().position(|opened| std::sync::Arc::ptr_eq(opened.space.space(), &space));
    let Some(device) = place.and_then(|place| run.opened[place].devices.first()) else { return };
    let Some(device) = run.soft.device(device.name()) else { return };
    let mappings = space.mappings(IovaRange::all());
    let Some(mapping) = mappings.get(run.input.index(mappings.len())) else { return };
    let offset = (run.input.below(64) * 0x1000 % mapping.memory.len().get()) & !0xfff;
    let at = Iova::new(mapping.range.first().get() + offset);
    // It is noted first: a write that is told at once is told after it happened.
    if device.dma_write(at, &[1; 8]).is_ok() && run.is_tracking && is_served {
        run.untold.pages().insert(page_of(&mapping.memory, offset));
    }
}

fn hand_over(run: &mut Run) {
    let _result = run.listener.hand_over(&run.names());
    if !run.input.once_in(4) {
        let _result = run.listener.take_back();
    }
}

fn take_back(run: &mut Run) {
    let _result = run.listener.take_back();
}

fn may_discard(run: &mut Run) {
    let memory = run.part();
    if run.listener.may_discard(&memory).is_ok() {
        let live = run.listener.spaces().flat_map(|space| space.mappings(IovaRange::all()));
        let user = live.into_iter().find(|mapping| mapping.memory.overlaps(&memory));
        assert!(user.is_none(), "{memory} may be discarded, and is mapped: {user:?}");
    }
}

fn state(run: &mut Run) {
    let _text = run.listener.state().to_string();
}

fn record(run: &mut Run) {
    if run.listener.stop_recording().is_none() {
        run.listener.record_to(Box::new(JsonLines::new(Vec::new())));
    }
}

/// A listener that is dropped leaves its mappings in the spaces, which the next one finds.
fn begin_again(run: &mut Run) {
    if !run.input.once_in(12) {
        return;
    }
    for opened in &run.opened {
        let _result = run.listener.detach(opened.space.space());
    }
    run.forget_writes();
    run.is_tracking = false;
    let front = if run.input.once_in(2) { FrontEnd::pc() } else { FrontEnd::default().reporting_shrinks() };
    run.listener = Listener::new(front);
    for opened in &run.opened {
        let _result = run.listener.attach(opened.space.space().clone());
    }
}
