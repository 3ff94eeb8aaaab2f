//! Answers: for every failure in a log, the answer of a host of ours to the same, and for every cause one cure.

use dmaspace::HostAddress;
use std::collections::BTreeMap;

use dmaspace::door::Errno;
use dmaspace::listener::{Fate, Update};
use dmaspace::{Access, HostMemory, IovaRange, Section};
use serde::Serialize;

use crate::program::cause::{Cause, HostView};
use crate::program::explain::Code;
use crate::program::failure;
use crate::program::finding::{Failure, Finding};
use crate::program::outcome::Hex;
use crate::program::stage::{Setting, Stage};
use crate::program::trace::said::{Call, Failed, Message};

/// A failure of a log, and the answer of a host of ours to the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Answer {
    /// The line of the log.
    pub(crate) line: usize,
    /// The call that failed there; nothing for a message.
    pub(crate) call: Option<&'static str>,
    /// The first address.
    pub(crate) first: Option<Hex>,
    /// The last address, which is inside.
    pub(crate) last: Option<Hex>,
    /// The name of the memory region, if it is told.
    pub(crate) name: Option<String>,
    /// `true` for another device's memory.
    pub(crate) is_device_memory: bool,
    /// The error there.
    pub(crate) errno: Option<String>,
    /// The causes that fit address, size and error.
    pub(crate) causes: Vec<String>,
    /// The fate of the same range here.
    pub(crate) here: Option<String>,
    /// `true` if the host asked refuses the same range.
    pub(crate) is_refused: bool,
}

/// A cause with its cure, and how often it was met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cure {
    /// The code of the cause.
    pub(crate) code: Code,
    /// The cause.
    pub(crate) cause: String,
    /// The number of ranges or messages that have it.
    pub(crate) count: u64,
    /// The cure, as the user types it.
    pub(crate) cure: String,
}

/// Causes, counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Causes {
    counted: BTreeMap<Cause, u64>,
}

impl Causes {
    /// A cause was met.
    pub(crate) fn add(&mut self, cause: Cause) {
        *self.counted.entry(cause).or_insert(0) += 1;
    }

    /// One cure for each cause.
    pub(crate) fn cures(&self) -> Vec<Cure> {
        let cure = |(cause, count): (&Cause, &u64)| Cure {
            code: cause.code(),
            cause: cause.to_string(),
            count: *count,
            cure: cause.cure(),
        };
        self.counted.iter().map(cure).collect()
    }
}

/// Answers every finding on the host of `setting`, and adds the causes.
///
/// # Errors
/// When the host cannot be had.
pub(crate) fn answer(
    findings: &[Finding],
    setting: &Setting,
    causes: &mut Causes,
) -> Result<Vec<Answer>, failure::Failure> {
    if findings.is_empty() {
        return Ok(Vec::new());
    }
    let stage = Stage::new(&setting.without_recording(), dmaspace::FrontEnd::default())?;
    Ok(findings.iter().map(|finding| answer_one(finding, &stage, causes)).collect())
}

fn answer_one(finding: &Finding, stage: &Stage, causes: &mut Causes) -> Answer {
    let answer = match &finding.failure {
        Failure::Message(message) => {
            let cause = of_message(*message);
            let text = cause.to_string();
            causes.add(cause);
            Answer { causes: vec![text], ..Answer::new(finding.line) }
        }
        Failure::Call { failed, is_device } => answer_call(finding.line, failed, *is_device, stage, causes),
    };
    debug_assert!(!answer.causes.is_empty(), "{finding:?}");
    answer
}

fn of_message(message: Message) -> Cause {
    match message {
        Message::LockedMemory(limit) => Cause::LockedMemoryThere(limit),
        Message::Firmware => Cause::Firmware,
        Message::Interrupts => Cause::Interrupts,
        Message::NotViable => Cause::NotViable,
        Message::Unaligned => Cause::Unaligned,
    }
}

fn answer_call(line: usize, failed: &Failed, is_device: bool, stage: &Stage, causes: &mut Causes) -> Answer {
    let Failed { call, at, errno, name } = failed;
    let found = match call {
        Call::Map => of_map(*errno, *at, is_device || looks_like_a_bar(*at, name.as_deref()), &stage.view()),
        Call::Unmap => vec![Cause::NotMapped],
        Call::Register => vec![if *errno == ENOMEM { Cause::LockedMemoryThere(0) } else { Cause::Unpinnable }],
    };
    let texts = found.iter().map(ToString::to_string).collect();
    for cause in found {
        causes.add(cause);
    }
    let here = if *call == Call::Map { fate_here(*at, is_device, name.as_deref(), stage) } else { None };
    let is_refused = here.as_ref().is_some_and(|(fate, _)| *fate == Fate::Refused);
    Answer {
        call: Some(match call {
            Call::Map => "map",
            Call::Unmap => "unmap",
            Call::Register => "register",
        }),
        first: Some(Hex(at.first().get())),
        last: Some(Hex(at.last().get())),
        name: name.clone(),
        is_device_memory: is_device,
        errno: Some(Errno(i32::try_from(*errno).unwrap_or(i32::MAX)).to_string()),
        causes: texts,
        here: here.map(|(fate, reason)| format!("{fate}: {reason}")),
        is_refused,
        ..Answer::new(line)
    }
}

const ENOMEM: u32 = 12;

/// The causes of a map call's failure: the objections of the host asked to the address, if they fit the error, and
/// otherwise the cause that does.
fn of_map(errno: u32, at: IovaRange, is_device: bool, view: &HostView<'_>) -> Vec<Cause> {
    let is_of_address = matches!(errno, 1 | 2 | 22 | 98);
    let of_addresses = if is_of_address { view.of_addresses(at) } else { Vec::new() };
    match of_addresses.is_empty() {
        false => of_addresses,
        true => vec![Cause::of_error(errno, at, is_device, "iommufd")],
    }
}

/// Returns whether a range that no line calls a BAR is probably one: it lies above 4 GiB at a multiple of its size,
/// and no RAM is called so.
fn looks_like_a_bar(at: IovaRange, name: Option<&str>) -> bool {
    const ABOVE: u64 = 1 << 32;
    let size = at.len().and_then(|len| len.get().checked_next_power_of_two());
    name.is_none() && at.first().get() >= ABOVE && size.is_some_and(|size| at.first().get() % size == 0)
}

/// The fate of the same range on the host asked, and why.
fn fate_here(at: IovaRange, is_device: bool, name: Option<&str>, stage: &Stage) -> Option<(Fate, String)> {
    /// Anywhere, aligned as well as any memory is.
    const PLACE: u64 = 1 << 44;
    const ALIGNMENT: u64 = 1 << 30;
    let place = PLACE + at.first().get() % ALIGNMENT;
    let memory = HostMemory::unbacked(HostAddress::new(place), at.len()?)?;
    let section = match is_device {
        true => Section::device_memory(name.unwrap_or("BAR"), at.first(), memory, Access::READ_WRITE),
        false => Section::ram(name.unwrap_or("ram"), at.first(), memory, Access::READ_WRITE),
    };
    let report = stage.listener().explain(&Update::new().adding(section.ok()?)).ok()?;
    let verdict = report.spaces.into_iter().next()?.sections.into_iter().next()?;
    Some((verdict.fate, verdict.reason.to_string()))
}

impl Answer {
    fn new(line: usize) -> Self {
        Self {
            line,
            call: None,
            first: None,
            last: None,
            name: None,
            is_device_memory: false,
            errno: None,
            causes: Vec::new(),
            here: None,
            is_refused: false,
        }
    }
}
