//! The fate of every section, with its window, the bytes lost at its ends, and the reason why a host cannot take it.

use crate::plan::{Planner, Run};
use crate::report::{Fate, FateReason, Verdict, Warning};
use crate::section::{Backing, Need, Section, Shrink};
use crate::update::continues;
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;
use dmaspace_core::words::window::Window;

impl<'a> Planner<'a> {
    /// Decides the fate of every section in `range` and returns the runs to be mapped there, trimmed.
    pub(super) fn judge(&mut self, range: IovaRange) -> Vec<Run<'a>> {
        let view = self.view;
        let judged = self.plan.sections.len();
        let expected = if range == IovaRange::all() { view.sections.len() } else { 0 };
        self.plan.sections.reserve(expected);
        let mut runs: Vec<Run<'a>> = Vec::with_capacity(expected);
        let mut populated: Vec<Run<'a>> = Vec::new();
        let mut before: Option<&Section> = None;
        for section in view.sections.within(range) {
            let before = before.replace(section);
            if let Backing::Discardable { memory, access, granule } = section.backing() {
                populated.extend(self.judge_discardable(section, memory, *access, *granule));
                continue;
            }
            match self.place(section) {
                Ok(run) => match runs.last_mut().filter(|last| last.is_continued(before, section, &run)) {
                    Some(last) => last.range = last.range.hull(run.range),
                    None => runs.push(run),
                },
                Err(verdict) => self.plan.sections.push(verdict),
            }
        }
        let mut wanted: Vec<_> = runs.into_iter().filter_map(|run| self.trim(run)?.clipped_to(range)).collect();
        if !populated.is_empty() {
            wanted.extend(populated.into_iter().filter_map(|run| run.clipped_to(range)));
            wanted.sort_by_key(|run| run.range);
        }
        // Ranges are judged in ascending order; within one, fates are known in the order of runs.
        if let Some(new) = self.plan.sections.get_mut(judged..) {
            new.sort_by_key(|verdict| verdict.piece.range());
        }
        wanted
    }

    /// The run a section is by itself, or its fate if it is not mapped.
    fn place(&self, section: &'a Section) -> Result<Run<'a>, Verdict<Section>> {
        if let Some(reason) = self.windows.refusal(section) {
            return Err(Verdict::new(section.clone(), Fate::Refused, reason.to_owned()));
        }
        let (need, unmet) = match section.need() {
            Some(Need::Required) => (Need::Required, Fate::Refused),
            Some(Need::BestEffort) | None => (Need::BestEffort, Fate::Skipped),
        };
        let Some((memory, access)) = section.direct() else { return Err(self.judge_indirect(section)) };
        let window = self.window_for(section.range(), memory, access);
        let window = window.map_err(|reason| Verdict::new(section.clone(), unmet, reason))?;
        let (range, address) = (section.range(), memory.address().get());
        Ok(Run { range, address, memory, access, need, window, unit: None })
    }

    /// The window for memory that is mapped as a whole, or the reason why it cannot be mapped.
    fn window_for(&self, range: IovaRange, memory: &HostMemory, access: Access) -> Result<Window, String> {
        if let Some(reason) = self.unfit(memory, access) {
            return Err(reason);
        }
        let Some(window) = self.windows.after.covering(range) else { return Err(self.outside(range)) };
        match self.host.fences.iter().find(|fence| fence.range.overlaps(range)) {
            Some(fence) => Err(format!("{} is fenced after an earlier failure", fence.range)),
            None => Ok(*window),
        }
    }

    /// The reason why this host cannot map such memory at any address.
    pub(super) fn unfit(&self, memory: &HostMemory, access: Access) -> Option<String> {
        if access.is_empty() {
            return Some("devices may neither read nor write it".into());
        }
        if !self.host.powers.reaches(memory) {
            let but = if self.host.powers.maps_files { ", unless that device exported it" } else { "" };
            return Some(format!("{} cannot map another device's memory{but}", self.host.space.describe().backend));
        }
        let needs_writing = access.contains(Access::WRITE) || !self.host.powers.maps_host_read_only;
        (memory.is_host_read_only() && needs_writing).then(|| "this process itself may only read the memory".into())
    }

    /// The fate of a section that is not mapped by itself.
    fn judge_indirect(&self, section: &Section) -> Verdict<Section> {
        let (fate, reason) = match section.backing() {
            Backing::Translated { page } => self.judge_translated(section.range(), *page),
            Backing::Msi => (Fate::Msi, "a write here is an interrupt".into()),
            _ => (Fate::Skipped, "emulated: no memory is behind it".into()),
        };
        Verdict::new(section.clone(), fate, reason)
    }

    /// The fate of a translated section. Windows that are created fit exactly; of a section over fixed windows, the
    /// parts inside them are usable, unless their pages are too large for an entry.
    fn judge_translated(&self, range: IovaRange, page: PageSize) -> (Fate, FateReason) {
        if let Some(window) = self.windows.after.overlapping(range).find(|window| window.granule() > page) {
            let why = format!("its entries are pages of {page}, and {} is the host's smallest", window.granule());
            return (Fate::Refused, why.into());
        }
        if let Some(window) = self.windows.after.covering(range) {
            let granule = window.granule();
            let why = self.windows.why_of_page(granule, page);
            let reason = format!("the host's window {} with {granule} pages{why}", window.range);
            return (Fate::Window, reason.into());
        }
        let shared = self.windows.after.overlapping(range).filter_map(|window| window.range.intersection(range));
        let usable = shared.filter_map(|shared| shared.trimmed_to(page));
        let words: Vec<_> = usable.map(|usable| usable.to_string()).collect();
        if words.is_empty() {
            return (Fate::Refused, self.outside(range).into());
        }
        (Fate::Window, format!("usable as far as the host's windows reach: {}", words.join(", ")).into())
    }

    /// The reason why `range` does not lie inside one window, and a place that would do.
    pub(super) fn outside(&self, range: IovaRange) -> String {
        let elsewhere = self.free_place(range).map_or_else(String::new, |place| format!("; {place} would do"));
        self.why_outside(range) + &elsewhere
    }

    fn why_outside(&self, range: IovaRange) -> String {
        match self.windows.after.top() {
            None => "the host offers no window".into(),
            Some(top) if range.first() > top => format!("above the host's top address {top}"),
            Some(top) => self.in_the_way(range, top).unwrap_or_else(|| {
                let windows: Vec<_> = self.windows.after.iter().map(|window| window.range.to_string()).collect();
                format!("not inside one window of the host ({})", windows.join(", "))
            }),
        }
    }

    /// The reserved ranges that overlap `range`, and the host's top address if it ends above that.
    fn in_the_way(&self, range: IovaRange, top: Iova) -> Option<String> {
        let mut reserved = self.host.space.describe().reserved;
        reserved.retain(|reserved| reserved.range.overlaps(range));
        // Devices often share one; the first is as good as any.
        reserved.sort_by_key(|reserved| reserved.range);
        reserved.dedup_by_key(|reserved| reserved.range);
        let mut all: Vec<_> = reserved.iter().map(ToString::to_string).collect();
        if range.last() > top {
            all.push(format!("the addresses above the host's top address {top}"));
        }
        (!all.is_empty()).then(|| format!("it would lie over {}", all.join(", and over ")))
    }

    /// A free place for a section of this size: above 4 GiB, aligned to its size.
    fn free_place(&self, range: IovaRange) -> Option<IovaRange> {
        const ABOVE_4G: u64 = 1 << 32;
        // A suggestion is not worth a search through everything there is.
        const OBSTACLES: usize = 64;
        let windows = &self.windows.after;
        let len = range.len()?.get();
        let step = len.checked_next_power_of_two()?;
        let mut at = ABOVE_4G.max(step);
        for _ in 0..OBSTACLES {
            let place = IovaRange::with_len(Iova::new(at), len).ok()?;
            let beyond = if windows.covering(place).is_some() {
                let section = self.view.sections.last_within(place).map(Section::range);
                let fences = self.host.fences.iter().map(|fence| fence.range).filter(|fence| fence.overlaps(place));
                let taken = section.into_iter().chain(fences).map(IovaRange::last).max();
                let Some(taken) = taken else { return Some(place) };
                taken.get().checked_add(1)?
            } else {
                windows.iter().map(|window| window.range.first().get()).find(|first| *first > at)?
            };
            at = beyond.checked_next_multiple_of(step)?;
        }
        None
    }

    /// Trims a run to whole pages and decides the fate of its sections. `None` when nothing of it is mapped.
    fn trim(&mut self, run: Run<'a>) -> Option<Run<'a>> {
        let granule = run.window.granule();
        let trimmed = self.with_rest_of_pages(&run).trimmed_to(granule);
        let is_congruent = granule.divides(run.range.first().get().wrapping_sub(run.address));
        let is_skipped = trimmed.is_some() && !is_congruent;
        if !self.scope.is_of_steps_alone {
            for section in self.view.sections.within(run.range) {
                self.plan.sections.push(match is_skipped {
                    true => self.judge_incongruent(section, &run),
                    false => self.judge_trimmed(section, trimmed, &run),
                });
            }
        }
        if is_skipped { None } else { run.clipped_to(trimmed?) }
    }

    /// The range of `run`, with the sections outside of the planned ranges that continue it in the pages at its ends.
    fn with_rest_of_pages(&self, run: &Run<'_>) -> IovaRange {
        let (granule, sections, mut range) = (run.window.granule(), &self.view.sections, run.range);
        if range.is_aligned_to(granule) {
            return range;
        }
        while !granule.divides(range.first().get()) {
            let next = sections.beginning_at(range.first());
            let before = sections.ending_before(range.first());
            let Some((before, next)) = before.zip(next) else { break };
            if !self.place(before).is_ok_and(|part| part.is_continued(Some(before), next, run)) {
                break;
            }
            range = range.hull(before.range());
        }
        while let Some(end) = range.end().filter(|end| !granule.divides(end.get())) {
            let before = sections.last_within(range);
            let Some(next) = sections.beginning_at(end) else { break };
            if !self.place(next).is_ok_and(|part| run.is_continued(before, next, &part)) {
                break;
            }
            range = range.hull(next.range());
        }
        range
    }

    /// The fate of a section no page of which is a page in the host.
    fn judge_incongruent(&self, section: &Section, run: &Run<'_>) -> Verdict<Section> {
        let granule = run.window.granule();
        let fate = if self.refuses(run) { Fate::Refused } else { Fate::Skipped };
        let reason = format!("its bus and host addresses lie differently in pages of {granule}");
        let mut verdict = Verdict::new(section.clone(), fate, reason);
        if run.need == Need::Required && fate == Fate::Skipped {
            verdict.lost_head = section.range().len().map_or(u64::MAX, |len| len.get());
        }
        verdict
    }

    /// Whether a run must be mapped to its last byte.
    fn refuses(&self, run: &Run<'_>) -> bool {
        run.need == Need::Required && self.front.shrink == Shrink::Refuse
    }

    fn judge_trimmed(&self, section: &Section, trimmed: Option<IovaRange>, run: &Run<'_>) -> Verdict<Section> {
        let (range, granule) = (section.range(), run.window.granule());
        let refuses = self.refuses(run);
        let Some(shared) = trimmed.and_then(|trimmed| trimmed.intersection(range)) else {
            let fate = if refuses { Fate::Refused } else { Fate::Skipped };
            let mut verdict = Verdict::new(section.clone(), fate, format!("no whole page of {granule} lies in it"));
            verdict.lost_head = range.len().map_or(u64::MAX, |len| len.get());
            return verdict;
        };
        let lost_head = shared.first().get() - range.first().get();
        let lost_tail = range.last().get() - shared.last().get();
        let (fate, reason) = match (lost_head, lost_tail) {
            (head, tail) if refuses && (head, tail) != (0, 0) => {
                (Fate::Refused, format!("{head} + {tail} bytes at its ends are no whole page of {granule}").into())
            }
            (head, tail) => (Fate::Mapped, FateReason::mapped(run.access, granule, head, tail)),
        };
        Verdict { piece: section.clone(), fate, reason, lost_head, lost_tail }
    }

    /// Warnings of best-effort sections that are not mapped and of lost bytes, with the one remedy there is.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        self.plan.sections.iter().filter_map(|verdict| Warning::of(verdict, &self.advice(verdict))).collect()
    }

    fn advice(&self, verdict: &Verdict<Section>) -> String {
        if verdict.lost_head == 0 && verdict.lost_tail == 0 {
            return String::new();
        }
        let range = verdict.piece.range();
        let around = range.first().get().checked_sub(1).map(Iova::new).into_iter().chain(range.end());
        let mut neighbours =
            around.filter_map(|at| self.view.sections.within(IovaRange::new(at, at).ok()?).next()).map(Section::name);
        let table = neighbours.find(|name| name.contains("msix"));
        table.map_or_else(String::new, |name| format!("; relocating {name}, which splits it, would help"))
    }
}

impl Run<'_> {
    /// Returns whether `next`, which begins with `section`, continues this run, which ends with `before`.
    fn is_continued(&self, before: Option<&Section>, section: &Section, next: &Self) -> bool {
        before.is_some_and(|before| continues(before, section)) && self.window == next.window && self.need == next.need
    }
}
