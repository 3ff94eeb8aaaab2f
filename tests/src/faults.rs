//! The failure sweep: every call of a sequence is spoilt in every way a kernel could spoil it, and nothing may come of it but a clean answer.
//!
//! A [`Sequence`] arranges a [`World`] and then does one operation, which is to happen wholly or not at all. It is played undisturbed
//! first, to see what the world is like before and after and which calls the operation makes. Then it is played again
//! - for each call, each way of spoiling it and each errno that fits it;
//! - for each of those and each later call: two faults, the second most often while the first is being made good;
//! - for each call, with all later calls of its name failing too, and with all later calls failing.
//!
//! # What is promised, and looked at each time
//! - The operation succeeds, and the world is as after an undisturbed one; or it fails, and the world is as before, but for the
//!   ranges the error names, which are fenced. The error says what was asked and what the kernel said.
//! - Outside fences a device finds what the space says, page for page; the host holds what it held, byte for byte.
//! - The same operation then succeeds, or is refused with a fence as the reason.
//! - A page that a device wrote is told to whoever tracks that.
//! - When everything is dropped the host holds nothing, but for charges it leaked itself. Memory is let go of; what devices still
//!   reached behind a fence is held for ever.
//!
//! # What cannot be promised
//! - A kernel that says 0 and does nothing ([`FaultMode::ZeroWithoutEffect`]) is believed where nothing contradicts it: maps, unmaps,
//!   registrations, windows, detachments ([`BELIEVED`]). Only this is promised then: no device reaches a page that was not mapped there
//!   before or was asked for; errors are named as ever; closing the descriptors, when everything is dropped, ends it all.
//! - A kernel that says three times that there is nothing to take away is believed, too.

mod observed;
mod spoiling;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use dmaspace_core::door::Errno;
use dmaspace_core::error::Kind;
use dmaspace_core::{Iova, IovaRange};
use dmaspace_soft::{FaultMode, SoftHost};

use observed::{Found, Observed};
pub use spoiling::{BELIEVED, REQUESTS, Spoilt};
use spoiling::{Lasting, first_ways_of, modes_of, second_ways_of, ways_of};
use world::{Call, region_of};
pub use world::{Done, Ground, Trouble, World, done};

/// How the world looks, and the one operation under test.
#[derive(Clone, Copy)]
pub struct Sequence {
    /// The name in reports.
    pub name: &'static str,
    /// Where it is played.
    pub on: &'static [Ground],
    /// What comes before. Undisturbed.
    pub arrange: fn(&mut World),
    /// The operation. It can be done again after it failed.
    pub operate: fn(&mut World) -> Result<Done, Trouble>,
}

/// Operations of more calls than this are not put through two faults at once.
const LONGEST_WITH_TWO: usize = 12;

/// What a sequence is like when nobody disturbs it.
struct Clean {
    before: Observed,
    after: Observed,
    calls: Vec<Call>,
    /// Set when it is the operation's job to fail.
    refusal: Option<Trouble>,
    /// Where each space's device looks.
    points: Vec<BTreeSet<Iova>>,
}

/// A sequence somewhere, and the calls that are spoilt.
struct Case<'a> {
    sequence: &'a Sequence,
    ground: Ground,
    spoilt: &'a [Spoilt],
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spoilt: Vec<_> = self.spoilt.iter().map(ToString::to_string).collect();
        write!(f, "{}/{}/{}", self.sequence.name, self.ground, spoilt.join("+"))
    }
}

/// What came of the faults of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The operation did all the same what it does undisturbed.
    Hidden,
    /// It failed, and everything was as before.
    Undone,
    /// It failed, and something was fenced.
    Fenced,
    /// It failed, something was fenced, and devices still reached memory there: the memory is held for ever.
    Held,
    /// The kernel lied, and nothing told.
    Believed,
}

/// The calls a case made, and what came of it or was wrong with it.
struct Played {
    calls: Vec<Call>,
    verdict: Result<Outcome, String>,
}

impl Sequence {
    fn arranged(&self, ground: Ground) -> World {
        let mut world = World::new(ground);
        (self.arrange)(&mut world);
        world.take_calls();
        world
    }

    fn play_undisturbed(&self, ground: Ground) -> Result<Clean, String> {
        let mut world = self.arranged(ground);
        let before = world.observe();
        let refusal = (self.operate)(&mut world).err();
        let calls = world.take_calls();
        let after = world.observe();
        if let Some(refusal) = &refusal {
            judge_words(refusal, &fences_of(&world))?;
            after.differs_from(&before, &[]).map_or(Ok(()), Err)?;
        }
        let spaces = before.spaces.len().max(after.spaces.len());
        let seen = |observed: &Observed, n: usize| {
            observed.spaces.get(n).map_or_else(Vec::new, |space| space.points().collect())
        };
        let points: Vec<BTreeSet<Iova>> =
            (0..spaces).map(|n| seen(&before, n).into_iter().chain(seen(&after, n)).collect()).collect();
        let clean = Clean { before, after, calls, refusal, points };
        clean.judge_now(&world, &clean.after, &vec![Vec::new(); spaces])?;
        if let Some(page) = world.untold() {
            return Err(format!("page {page:#x}, which a device wrote, was not told"));
        }
        clean.judge_end(world, &BTreeSet::new(), false)?;
        Ok(clean)
    }
}

impl Case<'_> {
    fn play(&self, clean: &Clean) -> Played {
        let mut calls = Vec::new();
        let played = catch_unwind(AssertUnwindSafe(|| self.play_on(clean, &mut calls)));
        let verdict = played.unwrap_or_else(|_| Err("it panicked".to_owned()));
        Played { calls, verdict }
    }

    fn play_on(&self, clean: &Clean, calls: &mut Vec<Call>) -> Result<Outcome, String> {
        let mut world = self.sequence.arranged(self.ground);
        let plans: Vec<_> = self.spoilt.iter().flat_map(Spoilt::plans).collect();
        world.soft.plan_faults(&plans);
        let result = (self.sequence.operate)(&mut world);
        world.soft.plan_faults(&[]);
        *calls = world.take_calls();
        if self.is_believed(calls) {
            return clean.judge_believed(world, &result).map(|()| Outcome::Believed);
        }
        let fences = fences_of(&world);
        let fenced = fences.iter().any(|fences| !fences.is_empty());
        match &result {
            Ok(done) => clean.judge_success(&world, done, &fences)?,
            Err(trouble) => {
                judge_words(trouble, &fences)?;
                clean.judge_now(&world, &clean.before, &fences)?;
                let again = (self.sequence.operate)(&mut world);
                clean.judge_again(&world, again)?;
            }
        }
        let (reached, may_keep) = (clean.reached_behind(&world, &fences_of(&world)), self.may_keep_memory(&world));
        clean.judge_end(world, &reached, may_keep)?;
        Ok(match (result.is_ok(), fenced) {
            (true, _) => Outcome::Hidden,
            (false, false) => Outcome::Undone,
            (false, true) if reached.is_empty() => Outcome::Fenced,
            (false, true) => Outcome::Held,
        })
    }

    /// What could not be unmapped while everything was dropped keeps its memory, and there is no space left to ask about fences.
    fn may_keep_memory(&self, world: &World) -> bool {
        let doubtful = |spoilt: &Spoilt| spoilt.lasting != Lasting::Once || spoilt.mode == FaultMode::ShortSize;
        world.opened.is_empty() && self.spoilt.iter().any(doubtful)
    }

    /// Whether the kernel lied where nothing tells.
    fn is_believed(&self, calls: &[Call]) -> bool {
        let call = |spoilt: &Spoilt| usize::try_from(spoilt.at - 1).ok().and_then(|n| calls.get(n));
        let lied = self.spoilt.iter().filter(|spoilt| spoilt.mode == FaultMode::ZeroWithoutEffect);
        lied.filter_map(call).any(|call| BELIEVED.contains(&call.name))
    }
}

/// The ranges that are fenced in each open space.
fn fences_of(world: &World) -> Vec<Vec<IovaRange>> {
    let fences = |n: usize| world.space(n).describe().fences.into_iter().map(|fence| fence.range).collect();
    (0..world.opened.len()).map(fences).collect()
}

/// An error says what was wrong and what the kernel said, and names every fence there is and none that is not.
fn judge_words(trouble: &Trouble, fences: &[Vec<IovaRange>]) -> Result<(), String> {
    let said = match (&trouble.answer, &trouble.kind) {
        (Some(answer), _) => trouble.text.contains(&answer.to_string()),
        (None, Some(kind)) => trouble.text.contains(&kind.to_string()) && *kind != Kind::Refused,
        (None, None) => !trouble.text.is_empty(),
    };
    if !said || !trouble.text.contains(&trouble.asked) {
        return Err(format!("the error does not say what was asked, or what the kernel said: {}", trouble.text));
    }
    let all: Vec<_> = fences.iter().flatten().copied().collect();
    let is_in = |range: &IovaRange, ranges: &[IovaRange]| observed::outside(*range, ranges).is_empty();
    if let Some(unnamed) = all.iter().find(|fence| !is_in(fence, &trouble.fenced)) {
        return Err(format!("the fence {unnamed} is not named: {}", trouble.text));
    }
    match trouble.fenced.iter().find(|named| !is_in(named, &all)) {
        Some(unfenced) => Err(format!("{unfenced} is named as fenced, and is not: {}", trouble.text)),
        None => Ok(()),
    }
}

impl Clean {
    /// The world is as expected, but for what is exempt, and a device finds what its space says.
    fn judge_now(&self, world: &World, expected: &Observed, exempt: &[Vec<IovaRange>]) -> Result<(), String> {
        if let Some(difference) = world.observe().differs_from(expected, exempt) {
            return Err(difference);
        }
        let mut spaces = self.points.iter().zip(exempt).enumerate().take(world.opened.len());
        let lie = spaces.find_map(|(n, (points, exempt))| world.lie(n, points, exempt));
        lie.map_or(Ok(()), Err)
    }

    /// Fences are where best-effort sections were passed over, if anywhere.
    fn judge_success(&self, world: &World, done: &Done, fences: &[Vec<IovaRange>]) -> Result<(), String> {
        if self.refusal.is_some() {
            return Err("it succeeded, and undisturbed it does not".to_owned());
        }
        if let Some(page) = world.untold() {
            return Err(format!("it succeeded, and page {page:#x}, which a device wrote, was not told"));
        }
        let passed_over = |fence: &IovaRange| done.skipped.iter().any(|skipped| skipped.covers(*fence));
        if let Some(fence) = fences.iter().flatten().find(|fence| !passed_over(fence)) {
            return Err(format!("it succeeded, and left {fence} fenced"));
        }
        let exempt: Vec<_> = fences.iter().map(|fences| [&fences[..], &done.skipped].concat()).collect();
        self.judge_now(world, &self.after, &exempt)
    }

    /// The same operation, nobody disturbing it now.
    fn judge_again(&self, world: &World, again: Result<Done, Trouble>) -> Result<(), String> {
        let fences = &fences_of(world);
        match (again, &self.refusal) {
            (Ok(done), None) => {
                let exempt: Vec<_> = fences.iter().map(|fences| [&fences[..], &done.skipped].concat()).collect();
                self.judge_now(world, &self.after, &exempt).map_err(|why| format!("done again, {why}"))
            }
            (Ok(_), Some(_)) => Err("done again it succeeded, and undisturbed it does not".to_owned()),
            (Err(trouble), Some(refusal)) if (&trouble.kind, trouble.answer) == (&refusal.kind, refusal.answer) => {
                self.judge_now(world, &self.before, fences).map_err(|why| format!("refused again, {why}"))
            }
            (Err(trouble), _) => {
                let names = |fence: &IovaRange| trouble.text.contains(&format!("{fence} is fenced"));
                // A device that leaves takes entries of the others along: it has left, whether they could be put again or not.
                let is_done = trouble.kind == Some(Kind::NotAttached) && fences.iter().any(|fences| !fences.is_empty());
                if !is_done && !fences.iter().flatten().any(names) {
                    return Err(format!("done again it failed, and no fence is why: {}", trouble.text));
                }
                self.judge_now(world, &self.before, fences).map_err(|why| format!("refused, {why}"))
            }
        }
    }

    /// After a lie that nothing tells: no device reaches what it was never given, errors are errors, and the end ends it.
    fn judge_believed(&self, world: World, result: &Result<Done, Trouble>) -> Result<(), String> {
        if let Err(trouble) = result {
            judge_words(trouble, &fences_of(&world))?;
        }
        // What an operation asked for that is refused undisturbed is nowhere to be seen.
        let spaces = if self.refusal.is_none() { world.opened.len() } else { 0 };
        for (n, points) in self.points.iter().enumerate().take(spaces) {
            let Some(device) = world.device_of(n) else { continue };
            for at in points {
                let found = observed::finds(&device, *at);
                let given = self.given_at(&world, n, *at);
                if found.is_some_and(|found| !given.contains(&found)) {
                    return Err(format!("at {at} a device finds {found:x?}, and was given {given:x?}"));
                }
            }
        }
        let (soft, _) = world.close();
        judge_emptied(&soft, true)
    }

    /// What a device was given at `at` before, and is given after.
    fn given_at(&self, world: &World, n: usize, at: Iova) -> Vec<Found> {
        let spaces = [&self.before, &self.after].into_iter().filter_map(|observed| observed.spaces.get(n));
        let seen = spaces.flat_map(|space| &space.mappings).filter(|seen| seen.range.contains(at));
        seen.map(|seen| world.expected_of(seen, at)).collect()
    }

    /// The regions of the guest's memory that a device reaches behind a fence.
    fn reached_behind(&self, world: &World, fences: &[Vec<IovaRange>]) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        for (n, points) in self.points.iter().enumerate().take(world.opened.len()) {
            let Some(device) = world.device_of(n) else { continue };
            let fenced = points.iter().filter(|at| fences[n].iter().any(|fence| fence.contains(**at)));
            reached.extend(fenced.filter_map(|at| observed::finds(&device, *at)).map(|found| region_of(found.stamp)));
        }
        reached
    }

    /// Everything is dropped: the host is empty, the guest's memory is gone, unless a device reached it behind a fence.
    fn judge_end(&self, world: World, reached: &BTreeSet<usize>, may_keep: bool) -> Result<(), String> {
        let fenced = may_keep || fences_of(&world).iter().any(|fences| !fences.is_empty());
        let (soft, lives) = world.close();
        judge_emptied(&soft, false)?;
        drop(soft);
        for (region, life) in lives.iter().enumerate() {
            let held = life.strong_count() > 0;
            if reached.contains(&region) && !held {
                return Err(format!("region {region} was let go of, and a device reached it behind a fence"));
            }
            if held && !fenced {
                return Err(format!("region {region} is held, and nothing was fenced"));
            }
        }
        Ok(())
    }
}

/// The host holds nothing, but for the charge of a window that could not be made; and, after a lie about entries, memory that was
/// unregistered under them, which is leaked until the process ends.
fn judge_emptied(soft: &SoftHost, after_a_lie: bool) -> Result<(), String> {
    let ledger = soft.ledger();
    let failed = |call: &str| soft.calls().iter().any(|(name, count)| name == call && count.failed > 0);
    let mut held = observed::held(&ledger);
    if after_a_lie {
        held.registrations = 0;
    }
    if !held.is_clear() {
        return Err(format!("left behind: {ledger:?}"));
    }
    // In sPAPR's first version the first unmap makes the window.
    let enabled = soft.calls().of("VFIO_IOMMU_ENABLE") > 0;
    let no_window = failed("VFIO_IOMMU_SPAPR_TCE_CREATE") || (enabled && failed("VFIO_IOMMU_UNMAP_DMA"));
    if ledger.leaked > 0 && !after_a_lie && !no_window {
        return Err(format!("leaked without a cause: {ledger:?}"));
    }
    Ok(())
}

/// What a sweep came to.
#[derive(Default)]
pub struct Tally {
    /// Cases with one fault.
    pub single: usize,
    /// Cases with two.
    pub double: usize,
    /// Cases with one that lasts.
    pub lasting: usize,
    /// How often what came of it.
    pub outcomes: BTreeMap<Outcome, usize>,
    /// What went wrong: the case, and what.
    pub failures: Vec<String>,
    /// The requests that were spoilt, and the modes.
    covered: BTreeSet<String>,
}

impl Tally {
    /// All cases.
    pub fn cases(&self) -> usize {
        self.single + self.double + self.lasting
    }

    /// Requests that were not spoilt in a mode that makes a difference to them.
    pub fn uncovered(&self) -> Vec<String> {
        let all = REQUESTS.iter().flat_map(|request| modes_of(request).into_iter().map(|mode| named(request, mode)));
        all.filter(|spoilt| !self.covered.contains(spoilt)).collect()
    }

    fn note(&mut self, case: &Case<'_>, verdict: Result<Outcome, String>) {
        match verdict {
            Ok(outcome) => *self.outcomes.entry(outcome).or_default() += 1,
            Err(why) => self.failures.push(format!("{case}: {why}")),
        }
    }

    fn append(&mut self, other: Self) {
        self.single += other.single;
        self.double += other.double;
        self.lasting += other.lasting;
        self.covered.extend(other.covered);
        self.failures.extend(other.failures);
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
    }
}

fn named(request: &str, mode: FaultMode) -> String {
    format!("{request} {mode:?}")
}

/// Plays every case of every sequence, or only those whose names begin with `only`.
pub fn sweep(sequences: &[Sequence], only: &str) -> Tally {
    let fixtures: Vec<_> =
        sequences.iter().flat_map(|sequence| sequence.on.iter().map(move |ground| (sequence, *ground))).collect();
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    let work = || {
        while let Some((sequence, ground)) = fixtures.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut fixture = InjectedRun { sequence, ground: *ground, only, tally: Tally::default() };
            fixture.play();
            tally.lock().expect("cases catch their panics").append(fixture.tally);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    tally.into_inner().expect("cases catch their panics")
}

/// A sequence on one ground, on the way through its cases.
struct InjectedRun<'a> {
    sequence: &'a Sequence,
    ground: Ground,
    only: &'a str,
    tally: Tally,
}

impl InjectedRun<'_> {
    fn play(&mut self) {
        let name = format!("{}/{}/", self.sequence.name, self.ground);
        if !name.starts_with(self.only) && !self.only.starts_with(&name) {
            return;
        }
        let clean = match self.sequence.play_undisturbed(self.ground) {
            Ok(clean) => clean,
            Err(why) => return self.tally.failures.push(format!("{name}undisturbed: {why}")),
        };
        let keeps_mappings = !self.ground.backend.is_of_power();
        for (at, call) in (1..).zip(&clean.calls) {
            for way in ways_of(call, keeps_mappings) {
                self.tally.covered.insert(named(call.name, way.0));
                self.single(&clean, Spoilt::once(at, way));
            }
            self.lasting(&clean, at, call);
        }
        // A fault that comes too late changes nothing.
        self.single(&clean, Spoilt::once(clean.calls.len() as u64 + 1, (FaultMode::FailBefore, Errno::EIO)));
        if clean.calls.len() > LONGEST_WITH_TWO {
            return;
        }
        for (at, call) in (1..).zip(&clean.calls) {
            for way in first_ways_of(call, keeps_mappings) {
                self.double(&clean, Spoilt::once(at, way), keeps_mappings);
            }
        }
    }

    fn single(&mut self, clean: &Clean, spoilt: Spoilt) {
        self.tally.single += usize::from(self.case(clean, &[spoilt]).is_some());
    }

    fn lasting(&mut self, clean: &Clean, at: u64, call: &Call) {
        let before = clean.calls.iter().zip(1..at).filter(|(earlier, _)| earlier.name == call.name).count() as u64;
        for lasting in [Lasting::SameCalls(call.name, before), Lasting::AllCalls] {
            for mode in [FaultMode::FailBefore, FaultMode::FailAfter] {
                let spoilt = Spoilt { at, mode, errno: Errno::EIO, lasting };
                self.tally.lasting += usize::from(self.case(clean, &[spoilt]).is_some());
            }
        }
    }

    /// The second fault comes at each call that is made after the first.
    fn double(&mut self, clean: &Clean, first: Spoilt, keeps_mappings: bool) {
        let case = Case { sequence: self.sequence, ground: self.ground, spoilt: &[first] };
        let calls = case.play(clean).calls;
        for (at, call) in (1..).zip(&calls).skip(usize::try_from(first.at).unwrap_or(0)) {
            for way in second_ways_of(call, keeps_mappings) {
                self.tally.double += usize::from(self.case(clean, &[first, Spoilt::once(at, way)]).is_some());
            }
        }
    }

    /// Plays a case if it was asked for.
    fn case(&mut self, clean: &Clean, spoilt: &[Spoilt]) -> Option<()> {
        let case = Case { sequence: self.sequence, ground: self.ground, spoilt };
        if !case.to_string().starts_with(self.only) {
            return None;
        }
        let played = case.play(clean);
        self.tally.note(&case, played.verdict);
        Some(())
    }
}
