//! The result of a replay, in the form `--json` prints it. Field by field, in this order, it is what scripts rely on.

use std::collections::BTreeMap;
use std::fmt;

use dmaspace::listener::{Fate, SpaceReport, Update, Verdict};
use dmaspace::section::{Backing, TargetMemory};
use dmaspace::{Access, Section};
use serde::{Serialize, Serializer};

pub(crate) use dmaspace::recording::{Hex, JsonWindow as HostWindow, SpaceOf as AddressesOf};

use crate::program::answer::{Answer, Cure};
use crate::program::costs::Bytes;
use crate::program::counting::Calls;
use crate::program::course::Course;
use crate::program::guest::Guest;
use crate::program::mtree::{Kind, Range, What};
use crate::program::stage::Spent;

/// The result of a replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    /// `true` if everything required was provided.
    pub(crate) ok: bool,
    /// The input.
    pub(crate) input: Input,
    /// The way to the host's IOMMU.
    pub(crate) backend: &'static str,
    /// The host's windows in force at the end, ascending.
    pub(crate) windows: Vec<HostWindow>,
    /// The fate of every range of the PCI address space, and of the RAM behind its translated windows.
    pub(crate) sections: Vec<Judged>,
    /// The kernel calls it took.
    pub(crate) calls: Calls,
    /// The costs.
    pub(crate) bytes: Bytes,
    /// The outcome of each step, where the input has steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) steps: Option<Vec<StepOutcome>>,
    /// The failures of the log, and the host's answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) findings: Vec<Answer>,
    /// One cure for each cause of a range that is refused, or not mapped, here or there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) cures: Vec<Cure>,
    /// Remarks on how the input was read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

/// The input of a replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Input {
    /// The file.
    pub(crate) file: String,
    /// The address space of it that is the PCI address space.
    pub(crate) address_space: String,
    /// The address space of a trace that tells of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) space: Option<String>,
    /// The number of lines around flat views that were passed over.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) passed_over: usize,
    /// More about a course of updates.
    #[serde(flatten)]
    pub(crate) course: Option<Told>,
}

/// A course of updates, beside its steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Told {
    /// By which kind of text.
    pub(crate) told_by: &'static str,
    /// The first line of each step, and its last.
    pub(crate) lines: Vec<(usize, usize)>,
    /// The number of lines that were passed over.
    pub(crate) ignored: usize,
    /// The steps, from 1 and ascending, that failed when they were recorded.
    pub(crate) failed_there: Vec<usize>,
    /// The bytes that were pinned there, each as often as it was, where that is told.
    pub(crate) pinned_there: Option<u64>,
}

/// The outcome of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StepOutcome {
    /// `true` if it is in force.
    pub(crate) ok: bool,
    /// The ranges that went.
    pub(crate) removed: Vec<Gone>,
    /// The ranges that came, with their fates.
    pub(crate) added: Vec<Judged>,
    /// The kernel calls it took.
    pub(crate) calls: Calls,
    /// The costs.
    pub(crate) bytes: StepBytes,
    /// The errors.
    pub(crate) errors: Vec<String>,
}

/// A range that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Gone {
    /// The address space of these addresses.
    pub(crate) space: AddressesOf,
    /// The first address.
    pub(crate) first: Hex,
    /// The last address, which is inside.
    pub(crate) last: Hex,
    /// Its name.
    pub(crate) name: String,
    /// QEMU's word for its kind.
    #[serde(serialize_with = "as_text")]
    pub(crate) kind: Kind,
}

/// The costs of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct StepBytes {
    /// These were handed to calls that pin.
    pub(crate) pinned: u64,
    /// These were there before and after, and away in between.
    pub(crate) disturbed: u64,
}

/// The fate of one range of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Judged {
    /// The address space of these addresses.
    pub(crate) space: AddressesOf,
    /// The first address.
    pub(crate) first: Hex,
    /// The last address, which is inside.
    pub(crate) last: Hex,
    /// The name of the memory region behind it.
    pub(crate) name: String,
    /// QEMU's word for its kind.
    #[serde(serialize_with = "as_text")]
    pub(crate) kind: Kind,
    /// The fate.
    #[serde(serialize_with = "as_text")]
    pub(crate) fate: Fate,
    /// The reason.
    pub(crate) reason: String,
    /// Bytes at its beginning that devices do not reach.
    pub(crate) lost_head: u64,
    /// Bytes at its end that devices do not reach.
    pub(crate) lost_tail: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn as_text<S: Serializer>(word: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(word)
}

/// The fate of every range of `guest`, in the words of `report` or, where a listener has no question, of `reasons`.
pub(crate) fn judge(guest: &Guest<'_>, reasons: &BTreeMap<u64, &'static str>, report: &SpaceReport) -> Vec<Judged> {
    let sections: BTreeMap<_, _> =
        report.sections.iter().map(|verdict| (verdict.piece.range().first().get(), verdict)).collect();
    let targets: BTreeMap<_, _> =
        report.targets.iter().map(|verdict| (verdict.piece.range().first().get(), verdict)).collect();
    let pci = guest.pci.iter().map(|(range, _)| {
        let mut judged = Judged::of(AddressesOf::Pci, range, sections.get(&range.first).copied());
        if let Some(reason) = reasons.get(&range.first) {
            judged.reason = (*reason).to_owned();
        }
        judged
    });
    let memory =
        guest.targets.iter().map(|range| Judged::of(AddressesOf::Memory, range, targets.get(&range.first).copied()));
    pci.chain(memory).collect()
}

impl Told {
    /// Of a course.
    pub(crate) fn of(course: &Course) -> Self {
        let failed = course.steps.iter().enumerate().filter(|(_, step)| step.failed_there.is_some());
        Self {
            told_by: course.told_by,
            lines: course.steps.iter().map(|step| step.lines).collect(),
            ignored: course.passed_over,
            failed_there: failed.map(|(n, _)| n + 1).collect(),
            pinned_there: course.pinned_there,
        }
    }
}

impl Gone {
    fn of(judged: Judged) -> Self {
        let Judged { space, first, last, name, kind, .. } = judged;
        Self { space, first, last, name, kind }
    }
}

impl StepOutcome {
    /// Of a step that was to make `update` true.
    pub(crate) fn new(update: &Update, added: Vec<Judged>, spent: Spent, disturbed: u64, errors: Vec<String>) -> Self {
        let sections = update.removed().iter().map(|section| Judged::of_section(section, Fate::Skipped, ""));
        let targets = update.removed_targets().iter().map(|target| Judged::of_target(target, Fate::Skipped, ""));
        Self {
            ok: errors.is_empty(),
            removed: sections.chain(targets).map(Gone::of).collect(),
            added,
            calls: spent.calls,
            bytes: StepBytes { pinned: spent.pinned, disturbed },
            errors,
        }
    }
}

/// QEMU's word for it.
fn kind_of(backing: &Backing) -> Kind {
    let what = match backing {
        Backing::Ram { access: Access::READ, .. } => What::Rom,
        Backing::Ram { .. } | Backing::Discardable { .. } => What::Ram,
        Backing::DeviceMemory { .. } => What::RamDevice,
        _ => What::Io,
    };
    Kind::volatile(what)
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, name, fate, reason, .. } = self;
        write!(f, "{first}..={last} ({name}): {fate}: {reason}")
    }
}

impl Judged {
    /// The fate of a section, in a few words.
    pub(crate) fn of_section(section: &Section, fate: Fate, reason: &str) -> Self {
        let (range, kind) = (section.range(), kind_of(section.backing()));
        let ends = (range.first().get(), range.last().get());
        Self::whole(AddressesOf::Pci, ends, section.name(), kind, fate, reason)
    }

    /// The fate of target memory, in a few words.
    pub(crate) fn of_target(target: &TargetMemory, fate: Fate, reason: &str) -> Self {
        let (range, kind) = (target.range(), Kind::volatile(What::Ram));
        let ends = (range.first().get(), range.last().get());
        Self::whole(AddressesOf::Memory, ends, target.name(), kind, fate, reason)
    }

    /// No byte of it is lost.
    fn whole(space: AddressesOf, (first, last): (u64, u64), name: &str, kind: Kind, fate: Fate, reason: &str) -> Self {
        let (name, reason) = (name.to_owned(), reason.to_owned());
        Self { space, first: Hex(first), last: Hex(last), name, kind, fate, reason, lost_head: 0, lost_tail: 0 }
    }

    /// The fate of a section in a listener's report.
    pub(crate) fn of_section_verdict(verdict: &Verdict<Section>) -> Self {
        let judged = Self::of_section(&verdict.piece, verdict.fate, &verdict.reason.to_string());
        Self { lost_head: verdict.lost_head, lost_tail: verdict.lost_tail, ..judged }
    }

    /// The fate of target memory in a listener's report.
    pub(crate) fn of_target_verdict(verdict: &Verdict<TargetMemory>) -> Self {
        Self::of_target(&verdict.piece, verdict.fate, &verdict.reason.to_string())
    }

    /// Its address space and first address.
    pub(crate) fn place(&self) -> (AddressesOf, u64) {
        (self.space, self.first.0)
    }

    fn of<T>(space: AddressesOf, range: &Range, verdict: Option<&Verdict<T>>) -> Self {
        let (fate, reason) =
            verdict.map_or((Fate::Skipped, String::new()), |verdict| (verdict.fate, verdict.reason.to_string()));
        let whole = Self::whole(space, (range.first, range.last), &range.name, range.kind.clone(), fate, &reason);
        let (lost_head, lost_tail) = verdict.map_or((0, 0), |verdict| (verdict.lost_head, verdict.lost_tail));
        Self { lost_head, lost_tail, ..whole }
    }
}
