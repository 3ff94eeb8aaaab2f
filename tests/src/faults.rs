//! The failure sweep: every call of a sequence is injected in every way a kernel could inject it, and nothing may come
//! of it but a clean answer.
//!
//! A [`Sequence`] arranges a [`SweptHost`] and then does one operation, which is to happen wholly or not at all. It is
//! run undisturbed first, to see the host before and after, and the calls that the operation makes. Then it
//! is run again
//! - for each call, each way of injection it and each errno that fits it;
//! - for each of those and each later call: two faults, the second most often while the first is being made good;
//! - for each call, with all later calls of its name failing too, and with all later calls failing.
//!
//! # The promises, checked in each case
//! - The operation succeeds, and the world is as after an undisturbed one; or it fails, and the world is as before, but
//!   for the ranges the error names, which are fenced. The error names the request and the kernel's answer.
//! - Outside fences a device finds the memory that the space lists, page for page; the host holds the same resources as
//!   before, byte for byte.
//! - The same operation then succeeds, or is refused with a fence as the reason.
//! - A page that a device wrote is told to the tracker.
//! - When everything is dropped the host holds nothing, but for charges it leaked itself. Memory is let go of; what
//!   devices still reached behind a fence is held for ever.
//!
//! # The limits of the promises
//! - A kernel that says 0 and does nothing ([`FaultMode::ZeroWithoutEffect`]) is believed where nothing contradicts it:
//!   maps, unmaps, registrations, windows, detachments ([`UNDETECTABLE`]). Only this is promised then: no device
//!   reaches a page that was not mapped there before or was asked for; errors are named as ever; closing the
//!   descriptors, when everything is dropped, ends it all.
//! - A kernel that says three times that there is nothing to take away is believed, too.

mod injection;
mod observed;
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

pub use injection::{Injected, REQUESTS, UNDETECTABLE};
use injection::{Lasting, first_ways_of, modes_of, second_ways_of, ways_of};
use observed::{Found, Observed};
use world::{Call, region_of};
pub use world::{Done, HostConfig, SweptHost, Trouble, done};

/// The state of the host, and the one operation under test.
#[derive(Clone, Copy)]
pub struct Sequence {
    /// The name in reports.
    pub name: &'static str,
    /// The hosts it runs on.
    pub on: &'static [HostConfig],
    /// The arrangement before the operation. No call of it fails.
    pub arrange: fn(&mut SweptHost),
    /// The operation. It can be done again after it failed.
    pub operate: fn(&mut SweptHost) -> Result<Done, Trouble>,
}

/// Operations of more calls than this are not put through two faults at once.
const LONGEST_WITH_TWO: usize = 12;

/// The undisturbed run of a sequence.
struct Clean {
    before: Observed,
    after: Observed,
    calls: Vec<Call>,
    /// Set when it is the operation's job to fail.
    refusal: Option<Trouble>,
    /// The addresses at which each space's device looks.
    points: Vec<BTreeSet<Iova>>,
}

/// A sequence somewhere, and the calls that are injected.
struct Case<'a> {
    sequence: &'a Sequence,
    config: HostConfig,
    injected: &'a [Injected],
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let injected: Vec<_> = self.injected.iter().map(ToString::to_string).collect();
        write!(f, "{}/{}/{}", self.sequence.name, self.config, injected.join("+"))
    }
}

/// The outcome of a case's faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultOutcome {
    /// The operation had the result of an undisturbed run all the same.
    Hidden,
    /// It failed, and everything was as before.
    Undone,
    /// It failed, and something was fenced.
    Fenced,
    /// It failed, something was fenced, and devices still reached memory there: the memory is held for ever.
    Held,
    /// The kernel lied, and nothing told.
    Undetectable,
}

/// The calls a case made, and what came of it or was wrong with it.
struct RunResult {
    calls: Vec<Call>,
    verdict: Result<FaultOutcome, String>,
}

impl Sequence {
    fn arranged(&self, config: HostConfig) -> SweptHost {
        let mut world = SweptHost::new(config);
        (self.arrange)(&mut world);
        world.take_calls();
        world
    }

    fn run_undisturbed(&self, config: HostConfig) -> Result<Clean, String> {
        let mut world = self.arranged(config);
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
    fn run(&self, clean: &Clean) -> RunResult {
        let mut calls = Vec::new();
        let run = catch_unwind(AssertUnwindSafe(|| self.run_on(clean, &mut calls)));
        let verdict = run.unwrap_or_else(|_| Err("it panicked".to_owned()));
        RunResult { calls, verdict }
    }

    fn run_on(&self, clean: &Clean, calls: &mut Vec<Call>) -> Result<FaultOutcome, String> {
        let mut world = self.sequence.arranged(self.config);
        let devices = devices_of(&world);
        let plans: Vec<_> = self.injected.iter().flat_map(Injected::plans).collect();
        world.soft.plan_faults(&plans);
        let result = (self.sequence.operate)(&mut world);
        world.soft.plan_faults(&[]);
        *calls = world.take_calls();
        if self.is_undetectable(calls) {
            return clean.judge_undetectable(world, &result).map(|()| FaultOutcome::Undetectable);
        }
        let fences = fences_of(&world);
        let fenced = fences.iter().any(|fences| !fences.is_empty());
        match &result {
            Ok(done) => clean.judge_success(&world, done, &fences)?,
            Err(trouble) => {
                judge_words(trouble, &fences)?;
                if !self.may_keep_a_device(&world, devices) {
                    clean.judge_now(&world, &clean.before, &fences)?;
                    let again = (self.sequence.operate)(&mut world);
                    clean.judge_again(&world, again)?;
                }
            }
        }
        let (reached, may_keep) = (clean.reached_behind(&world, &fences_of(&world)), self.may_keep_memory(&world));
        clean.judge_end(world, &reached, may_keep)?;
        Ok(match (result.is_ok(), fenced) {
            (true, _) => FaultOutcome::Hidden,
            (false, false) => FaultOutcome::Undone,
            (false, true) if reached.is_empty() => FaultOutcome::Fenced,
            (false, true) => FaultOutcome::Held,
        })
    }

    /// An attach whose undo fails for good leaves its device attached. The space knows the device then, and frees
    /// nothing that it reaches; the drop clears the host.
    fn may_keep_a_device(&self, world: &SweptHost, before: usize) -> bool {
        let lasts = self.injected.iter().any(|injected| injected.lasting != Lasting::Once);
        lasts && devices_of(world) > before
    }

    /// A mapping that could not be unmapped during the drop keeps its memory, and no space is left that could list a
    /// fence.
    fn may_keep_memory(&self, world: &SweptHost) -> bool {
        world.opened.is_empty()
            && self
                .injected
                .iter()
                .any(|injected: &Injected| injected.lasting != Lasting::Once || injected.mode == FaultMode::ShortSize)
    }

    /// Returns whether the kernel lied in a way that no later answer shows.
    fn is_undetectable(&self, calls: &[Call]) -> bool {
        let call = |injected: &Injected| usize::try_from(injected.at - 1).ok().and_then(|n| calls.get(n));
        let lied = self.injected.iter().filter(|injected| injected.mode == FaultMode::ZeroWithoutEffect);
        lied.filter_map(call).any(|call| UNDETECTABLE.contains(&call.name))
    }
}

/// The number of devices that the open spaces know.
fn devices_of(world: &SweptHost) -> usize {
    (0..world.opened.len()).map(|n| world.space(n).describe().devices.len()).sum()
}

/// The ranges that are fenced in each open space.
fn fences_of(world: &SweptHost) -> Vec<Vec<IovaRange>> {
    (0..world.opened.len())
        .map(|n: usize| world.space(n).describe().fences.into_iter().map(|fence| fence.range).collect())
        .collect()
}

/// An error names the cause and the kernel's answer, and exactly the fences that exist.
fn judge_words(trouble: &Trouble, fences: &[Vec<IovaRange>]) -> Result<(), String> {
    let said = match (&trouble.answer, &trouble.kind) {
        (Some(answer), _) => trouble.text.contains(&answer.to_string()),
        (None, Some(kind)) => trouble.text.contains(&kind.to_string()) && *kind != Kind::Refused,
        (None, None) => !trouble.text.is_empty(),
    };
    if !said || !trouble.text.contains(&trouble.asked) {
        return Err(format!("the error lacks the request or the kernel's answer: {}", trouble.text));
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
    /// The host is as expected except for exempt ranges, and a device finds the memory that its space lists.
    fn judge_now(&self, world: &SweptHost, expected: &Observed, exempt: &[Vec<IovaRange>]) -> Result<(), String> {
        if let Some(difference) = world.observe().differs_from(expected, exempt) {
            return Err(difference);
        }
        let mut spaces = self.points.iter().zip(exempt).enumerate().take(world.opened.len());
        let lie = spaces.find_map(|(n, (points, exempt))| world.lie(n, points, exempt));
        lie.map_or(Ok(()), Err)
    }

    /// Fences are where best-effort sections were passed over, if anywhere.
    fn judge_success(&self, world: &SweptHost, done: &Done, fences: &[Vec<IovaRange>]) -> Result<(), String> {
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

    /// Judges the second attempt of the operation, in which no call fails.
    fn judge_again(&self, world: &SweptHost, again: Result<Done, Trouble>) -> Result<(), String> {
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
                // A device that leaves takes entries of the others along: it has left, whether they could be put again
                // or not.
                let is_done = trouble.kind == Some(Kind::NotAttached) && fences.iter().any(|fences| !fences.is_empty());
                if !is_done
                    && !fences
                        .iter()
                        .flatten()
                        .any(|fence: &IovaRange| trouble.text.contains(&format!("{fence} is fenced")))
                {
                    return Err(format!("done again it failed, and no fence is why: {}", trouble.text));
                }
                self.judge_now(world, &self.before, fences).map_err(|why| format!("refused, {why}"))
            }
        }
    }

    /// Judges the host after a lie that no answer shows: no device reaches memory that it was never given, errors are
    /// errors, and the drop clears the host.
    fn judge_undetectable(&self, world: SweptHost, result: &Result<Done, Trouble>) -> Result<(), String> {
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

    /// The memory that a device was given at `at` before and after the operation.
    fn given_at(&self, world: &SweptHost, n: usize, at: Iova) -> Vec<Found> {
        let spaces = [&self.before, &self.after].into_iter().filter_map(|observed| observed.spaces.get(n));
        let seen = spaces.flat_map(|space| &space.mappings).filter(|seen| seen.range.contains(at));
        seen.map(|seen| world.expected_of(seen, at)).collect()
    }

    /// The regions of the guest's memory that a device reaches behind a fence.
    fn reached_behind(&self, world: &SweptHost, fences: &[Vec<IovaRange>]) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        for (n, points) in self.points.iter().enumerate().take(world.opened.len()) {
            let Some(device) = world.device_of(n) else { continue };
            let fenced = points.iter().filter(|at| fences[n].iter().any(|fence| fence.contains(**at)));
            reached.extend(fenced.filter_map(|at| observed::finds(&device, *at)).map(|found| region_of(found.stamp)));
        }
        reached
    }

    /// Everything is dropped: the host is empty, the guest's memory is gone, unless a device reached it behind a fence.
    fn judge_end(&self, world: SweptHost, reached: &BTreeSet<usize>, may_keep: bool) -> Result<(), String> {
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

/// The host holds nothing, but for the charge of a window that could not be made; and, after a lie about entries,
/// memory that was unregistered under them, which is leaked until the process ends.
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

/// The results of a sweep.
#[derive(Default)]
pub struct Tally {
    /// Cases with one fault.
    pub single: usize,
    /// Cases with two.
    pub double: usize,
    /// Cases with one that lasts.
    pub lasting: usize,
    /// The number of cases with each outcome.
    pub outcomes: BTreeMap<FaultOutcome, usize>,
    /// The failures: the case, and the reason.
    pub failures: Vec<String>,
    /// The requests that were injected, and the modes.
    covered: BTreeSet<String>,
}

impl Tally {
    /// All cases.
    pub fn cases(&self) -> usize {
        self.single + self.double + self.lasting
    }

    /// Requests that were not injected in a mode that makes a difference to them.
    pub fn uncovered(&self) -> Vec<String> {
        let all = REQUESTS.iter().flat_map(|request| modes_of(request).into_iter().map(|mode| named(request, mode)));
        all.filter(|injected| !self.covered.contains(injected)).collect()
    }

    fn note(&mut self, case: &Case<'_>, verdict: Result<FaultOutcome, String>) {
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
        sequences.iter().flat_map(|sequence| sequence.on.iter().map(move |config| (sequence, *config))).collect();
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    let work = || {
        while let Some((sequence, config)) = fixtures.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut fixture = InjectedRun { sequence, config: *config, only, tally: Tally::default() };
            fixture.run();
            tally.lock().expect("cases catch their panics").append(fixture.tally);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    tally.into_inner().expect("cases catch their panics")
}

/// A sequence on one config, on the way through its cases.
struct InjectedRun<'a> {
    sequence: &'a Sequence,
    config: HostConfig,
    only: &'a str,
    tally: Tally,
}

impl InjectedRun<'_> {
    fn run(&mut self) {
        let name = format!("{}/{}/", self.sequence.name, self.config);
        if !name.starts_with(self.only) && !self.only.starts_with(&name) {
            return;
        }
        let clean = match self.sequence.run_undisturbed(self.config) {
            Ok(clean) => clean,
            Err(why) => return self.tally.failures.push(format!("{name}undisturbed: {why}")),
        };
        let keeps_mappings = !self.config.backend.is_of_power();
        for (at, call) in (1..).zip(&clean.calls) {
            for way in ways_of(call, keeps_mappings) {
                self.tally.covered.insert(named(call.name, way.0));
                self.single(&clean, Injected::once(at, way));
            }
            self.lasting(&clean, at, call);
        }
        // A fault that comes too late changes nothing.
        self.single(&clean, Injected::once(clean.calls.len() as u64 + 1, (FaultMode::FailBefore, Errno::EIO)));
        if clean.calls.len() > LONGEST_WITH_TWO {
            return;
        }
        for (at, call) in (1..).zip(&clean.calls) {
            for way in first_ways_of(call, keeps_mappings) {
                self.double(&clean, Injected::once(at, way), keeps_mappings);
            }
        }
    }

    fn single(&mut self, clean: &Clean, injected: Injected) {
        self.tally.single += usize::from(self.case(clean, &[injected]).is_some());
    }

    fn lasting(&mut self, clean: &Clean, at: u64, call: &Call) {
        let before = clean.calls.iter().zip(1..at).filter(|(earlier, _)| earlier.name == call.name).count() as u64;
        for lasting in [Lasting::SameCalls(call.name, before), Lasting::AllCalls] {
            for mode in [FaultMode::FailBefore, FaultMode::FailAfter] {
                let injected = Injected { at, mode, errno: Errno::EIO, lasting };
                self.tally.lasting += usize::from(self.case(clean, &[injected]).is_some());
            }
        }
    }

    /// The second fault comes at each call that is made after the first.
    fn double(&mut self, clean: &Clean, first: Injected, keeps_mappings: bool) {
        let case = Case { sequence: self.sequence, config: self.config, injected: &[first] };
        let calls = case.run(clean).calls;
        for (at, call) in (1..).zip(&calls).skip(usize::try_from(first.at).unwrap_or(0)) {
            for way in second_ways_of(call, keeps_mappings) {
                self.tally.double += usize::from(self.case(clean, &[first, Injected::once(at, way)]).is_some());
            }
        }
    }

    /// Plays a case if it was asked for.
    fn case(&mut self, clean: &Clean, injected: &[Injected]) -> Option<()> {
        let case = Case { sequence: self.sequence, config: self.config, injected };
        if !case.to_string().starts_with(self.only) {
            return None;
        }
        let run = case.run(clean);
        self.tally.note(&case, run.verdict);
        Some(())
    }
}
