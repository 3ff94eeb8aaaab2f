//! The steps of a world, and the strategies that draw them.

use dmaspace_core::Access;
use dmaspace_core::door::Errno;
use dmaspace_soft::{FaultMode, FaultPlan};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::bus::{Kind, SHIFTS, SLOTS};

/// One step. Places, sections and windows are named by number, modulo how many there are, and so are places in them.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// An update, said change by change or as the whole new list.
    Commit {
        ops: Vec<Op>,
        whole: bool,
        fault: Option<Fault>,
    },
    Put(Entries, Option<Fault>),
    Replace(Entries, Option<Fault>),
    Clear(Entries),
    /// The listener serves a space, or no longer.
    Join(usize, Option<Fault>),
    Leave(usize, Option<Fault>),
    /// A space gets a device, or loses one; the listener is told at once, or has to notice when there is something
    /// else.
    Plug(usize, bool),
    Unplug(usize, bool),
}

/// One change among several of an update.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// As far as there is room; or as it is, whatever lies there already.
    Add {
        candidate: SectionCandidate,
        insists: bool,
    },
    /// Exactly as it is there, or almost.
    Remove {
        which: usize,
        almost: bool,
    },
    /// Over what lies there, which is cut.
    Punch(SectionCandidate),
    /// To where the candidate begins, with its memory.
    Move(usize, SectionCandidate),
    /// With the one behind it, to one.
    Merge(usize),
    AddTarget {
        candidate: SectionCandidate,
        insists: bool,
    },
    RemoveTarget(usize),
}

/// Something that may come, in slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SectionCandidate {
    pub(crate) content: Content,
    pub(crate) at: u64,
    pub(crate) len: u64,
    /// The bytes missing at its ends, as [`crate::bus::Bus::odd`] counts them.
    pub(crate) head: u8,
    pub(crate) tail: u8,
    /// The shift of its memory against the bus.
    pub(crate) shift: u64,
    pub(crate) skew: u8,
    pub(crate) kind: Kind,
    pub(crate) access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Ram,
    DeviceMemory,
    Translated,
    Msi,
    Nothing,
}

/// Entries of a translated window that continue each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries {
    pub(crate) window: usize,
    /// In entries, from the window's first.
    pub(crate) at: u64,
    pub(crate) len: u64,
    /// The target memory, and where in it, in entries.
    pub(crate) target: usize,
    pub(crate) offset: u64,
    pub(crate) access: Access,
    pub(crate) odd: u8,
}

/// A kernel call that goes wrong during a step, on one of the hosts, and how many after it do so, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) place: usize,
    pub(crate) plan: FaultPlan,
    pub(crate) more: u64,
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..40)
}

fn step() -> impl Strategy<Value = Step> {
    let place = || 0..3usize;
    let commit = (vec(op(), 0..6), any::<bool>(), fault());
    prop_oneof![
        12 => commit.prop_map(|(ops, whole, fault)| Step::Commit { ops, whole, fault }),
        6 => (entries(), fault()).prop_map(|(entries, fault)| Step::Put(entries, fault)),
        1 => (entries(), fault()).prop_map(|(entries, fault)| Step::Replace(entries, fault)),
        1 => entries().prop_map(Step::Clear),
        1 => (place(), fault()).prop_map(|(place, fault)| Step::Join(place, fault)),
        1 => (place(), fault()).prop_map(|(place, fault)| Step::Leave(place, fault)),
        1 => (place(), any::<bool>()).prop_map(|(place, told)| Step::Plug(place, told)),
        1 => (place(), any::<bool>()).prop_map(|(place, told)| Step::Unplug(place, told)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0..64usize;
    let rarely = || prop_oneof![14 => Just(false), 1 => Just(true)];
    prop_oneof![
        14 => (candidate(), rarely()).prop_map(|(candidate, insists)| Op::Add { candidate, insists }),
        6 => (which(), rarely()).prop_map(|(which, almost)| Op::Remove { which, almost }),
        6 => candidate().prop_map(Op::Punch),
        2 => (which(), candidate()).prop_map(|(which, candidate)| Op::Move(which, candidate)),
        4 => which().prop_map(Op::Merge),
        6 => (candidate(), rarely()).prop_map(|(candidate, insists)| Op::AddTarget { candidate, insists }),
        1 => which().prop_map(Op::RemoveTarget),
    ]
}

fn candidate() -> impl Strategy<Value = SectionCandidate> {
    use Content::{DeviceMemory, Msi, Nothing, Ram, Translated};
    let content = prop_oneof![
        20 => Just(Ram), 5 => Just(DeviceMemory), 3 => Just(Translated), 1 => Just(Msi), 3 => Just(Nothing)
    ];
    let kind = prop_oneof![20 => Just(Kind::Plain), 1 => select(vec![Kind::ReadOnly, Kind::Huge])];
    let shift = prop_oneof![6 => Just(0u64), 1 => 0..SHIFTS];
    (content, 0..SLOTS, 1..6u64, (odd(9), odd(9)), (shift, odd(30)), kind, access()).prop_map(
        |(content, at, len, (head, tail), (shift, skew), kind, access)| {
            let kind = if content == DeviceMemory { Kind::Device } else { kind };
            SectionCandidate { content, at, len, head, tail, shift, skew, kind, access }
        },
    )
}

/// Odd once, even `times` times.
fn odd(times: u32) -> impl Strategy<Value = u8> {
    prop_oneof![times => Just(0u8), 1 => 1..6u8]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        40 => Just(Access::READ_WRITE), 12 => Just(Access::READ), 2 => Just(Access::WRITE), 1 => Just(Access::empty())
    ]
}

fn entries() -> impl Strategy<Value = Entries> {
    let len = prop_oneof![2 => Just(1u64), 1 => 2..5u64];
    (0..4usize, 0..20u64, len, 0..4usize, 0..40u64, access(), odd(20)).prop_map(
        |(window, at, len, target, offset, access, odd)| Entries { window, at, len, target, offset, access, odd },
    )
}

/// Faults that can be noticed: a call that claims success and does nothing cannot.
fn fault() -> impl Strategy<Value = Option<Fault>> {
    use FaultMode::{FailAfter, FailBefore, PartialEffect, Positive, ShortSize};
    let mode = select(vec![FailBefore, FailBefore, FailAfter, Positive(1), ShortSize, PartialEffect]);
    let errno = select(vec![Errno::EIO, Errno::ENOMEM, Errno::EINVAL, Errno::EFAULT]);
    let more = prop_oneof![4 => Just(0u64), 1 => 1..8u64];
    let fault = (0..3usize, 1..10u64, mode, errno, more).prop_map(|(place, at, mode, errno, more)| Fault {
        place,
        plan: FaultPlan::nth(at, mode).with(errno),
        more,
    });
    prop_oneof![9 => Just(None), 1 => fault.prop_map(Some)]
}
