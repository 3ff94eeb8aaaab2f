//! A door to a host in software whose kernel fails and lies as an input says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_core::door::{Argument, Attached, Command, Errno, Handle};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};

use super::input::Input;
use crate::watched_door::{WatchedDoor, Watcher};

/// The conduct of a kernel, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Conduct {
    /// Each answer is true.
    Truthful,
    /// Calls fail, and have no effect then.
    Fails,
    /// Calls fail after their effect, or do a part of it; replies hold any numbers. Only a call that takes something
    /// away, and the names of objects, are as they should be.
    Garbles,
    /// Calls say that they took something away and did not. No process can be safe from that.
    Lies,
}

impl Conduct {
    pub(super) const ALL: [Self; 4] = [Self::Truthful, Self::Fails, Self::Garbles, Self::Lies];
}

/// Requests that take something away from devices.
const TAKING: [&str; 7] = [
    "VFIO_IOMMU_UNMAP_DMA",
    "VFIO_GROUP_UNSET_CONTAINER",
    "VFIO_IOMMU_DISABLE",
    "VFIO_IOMMU_SPAPR_TCE_REMOVE",
    "IOMMU_IOAS_UNMAP",
    "IOMMU_DESTROY",
    "VFIO_DEVICE_DETACH_IOMMUFD_PT",
];

/// Takes something away, too, where a map replaces the entries that are there: on POWER.
const REPLACING: &str = "VFIO_IOMMU_MAP_DMA";

/// Requests whose reply names an object: a wrong name is another object, to which devices are attached.
const NAMING: [&str; 4] =
    ["IOMMU_IOAS_ALLOC", "IOMMU_HWPT_ALLOC", "VFIO_DEVICE_BIND_IOMMUFD", "VFIO_DEVICE_ATTACH_IOMMUFD_PT"];

/// Errnos with which no kernel says that there was nothing to take away.
const PLAIN: [Errno; 7] =
    [Errno::EIO, Errno::ENOMEM, Errno::EBUSY, Errno::EINTR, Errno::EFAULT, Errno::EPERM, Errno::ENOSPC];

/// Errnos with which a kernel may say that there was nothing.
const MEANING: [Errno; 6] =
    [Errno::ENOENT, Errno::EINVAL, Errno::ENODEV, Errno::ENOTTY, Errno::EOPNOTSUPP, Errno::EADDRINUSE];

/// The door.
pub(super) type HostileDoor = WatchedDoor<Hostility>;

/// The hostility of a door's kernel. One thread makes the calls.
#[derive(Debug)]
pub(super) struct Hostility {
    soft: Arc<SoftHost>,
    pub(super) conduct: Conduct,
    lies: Mutex<Lies>,
    calls: AtomicU64,
    disturbed: AtomicU64,
    /// Set when each call is printed.
    is_talkative: bool,
}

#[derive(Debug)]
struct Lies {
    input: Input,
    /// A call is disturbed once in so many times.
    rarity: u64,
    is_over: bool,
    /// Set when a map replaces the entries that are there.
    maps_replace: bool,
    /// The changes to the reply of the call under way.
    edits: [Option<Edit>; 3],
}

/// A change to the bytes of a reply.
#[derive(Clone, Copy, Debug)]
struct Edit {
    /// The place of the changed number among the numbers of 4 bytes.
    word: u8,
    is_wide: bool,
    number: u64,
}

/// The disturbance of a call.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    Fault(FaultPlan),
    Edits([Option<Edit>; 3]),
}

impl Hostility {
    /// A door to `soft`.
    pub(super) fn door(soft: Arc<SoftHost>, conduct: Conduct, mut input: Input) -> Arc<HostileDoor> {
        let rarity = input.choose(&[3, 8, 20, 60]);
        let is_over = conduct == Conduct::Truthful;
        let maps_replace = soft.profile().tce.is_some();
        let lies = Mutex::new(Lies { input, rarity, is_over, maps_replace, edits: [None; 3] });
        let is_talkative = std::env::var_os("DMASPACE_ATTACK_TALK").is_some();
        let (calls, disturbed) = (AtomicU64::new(0), AtomicU64::new(0));
        let watcher = Self { soft: soft.clone(), conduct, lies, calls, disturbed, is_talkative };
        Arc::new(WatchedDoor { soft, watcher })
    }

    /// The number of calls so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The number of calls so far that were disturbed.
    pub(super) fn disturbed(&self) -> u64 {
        self.disturbed.load(Ordering::Relaxed)
    }

    /// Prints a line of the story, if it is asked for (`DMASPACE_ATTACK_TALK` in the environment).
    pub(super) fn tell(&self, line: impl FnOnce() -> String) {
        if self.is_talkative {
            eprintln!("{}", line());
        }
    }

    /// Stops all disturbances, or goes on with them.
    pub(super) fn behave(&self, well: bool) {
        self.lies().is_over = well || self.conduct == Conduct::Truthful;
        self.soft.plan_faults(&[]);
    }

    fn lies(&self) -> MutexGuard<'_, Lies> {
        self.lies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides on the next call. A fault is planned; changes to the reply are kept until there is one.
    fn disturb(&self, call: &'static str) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut lies = self.lies();
        let disturbance = lies.next(call, self.conduct);
        self.tell(|| format!("  {call} {disturbance:x?}"));
        lies.edits = [None; 3];
        self.disturbed.fetch_add(u64::from(disturbance.is_some()), Ordering::Relaxed);
        match disturbance {
            Some(Disturbance::Edits(edits)) => lies.edits = edits,
            Some(Disturbance::Fault(plan)) => self.soft.plan_faults(&[plan]),
            None => {}
        }
    }
}

impl Lies {
    fn next(&mut self, call: &'static str, conduct: Conduct) -> Option<Disturbance> {
        if self.is_over || self.input.is_used_up() || !self.input.once_in(self.rarity) {
            return None;
        }
        let (takes, names) = (TAKING.contains(&call), NAMING.contains(&call));
        let replaces = self.maps_replace && call == REPLACING;
        let may_lie = conduct == Conduct::Lies;
        let errno = match self.input.below(2) {
            1 if may_lie || !takes => self.input.choose(&MEANING),
            _ => self.input.choose(&PLAIN),
        };
        let mode = match self.input.below(8) {
            _ if conduct == Conduct::Fails => FaultMode::FailBefore,
            0..=1 => FaultMode::FailBefore,
            2 => FaultMode::FailAfter,
            3 => FaultMode::PartialEffect,
            4 => FaultMode::Positive(1 + i32::from(self.input.byte())),
            5 if may_lie || !(takes || replaces) => FaultMode::ZeroWithoutEffect,
            _ if names && !may_lie => FaultMode::FailBefore,
            _ => return Some(Disturbance::Edits(self.draw_edits())),
        };
        // A kernel has no memory for more entries when it leaves some of a map behind.
        let errno = if mode == FaultMode::PartialEffect && !takes { Errno::ENOMEM } else { errno };
        Some(Disturbance::Fault(FaultPlan::nth(1, mode).with(errno)))
    }

    fn draw_edits(&mut self) -> [Option<Edit>; 3] {
        let count = 1 + self.input.index(3);
        let mut edits = [None; 3];
        for edit in edits.iter_mut().take(count) {
            let (word, is_wide) = (self.input.byte(), self.input.once_in(2));
            *edit = Some(Edit { word, is_wide, number: self.input.edge() });
        }
        edits
    }
}

impl Edit {
    fn apply(self, bytes: &mut [u8]) {
        let places = bytes.len() / 4;
        if places == 0 {
            return;
        }
        let at = usize::from(self.word) % places * 4;
        let number = self.number.to_ne_bytes();
        let len = if self.is_wide { 8 } else { 4 };
        for (byte, new) in bytes.iter_mut().skip(at).zip(number.iter().take(len)) {
            *byte = *new;
        }
    }
}

fn apply(edits: [Option<Edit>; 3], command: &mut Command<'_>) {
    for edit in edits.into_iter().flatten() {
        if let Argument::Bytes(bytes) = &mut command.argument {
            edit.apply(bytes);
        }
        for attachment in command.attachments.iter_mut() {
            if let Attached::Buffer(buffer) = &mut attachment.what {
                edit.apply(buffer);
            }
        }
    }
}

impl Watcher for Hostility {
    fn command(&self, command: &Command<'_>) {
        self.disturb(command.request.name);
    }

    fn call(&self, name: &'static str) {
        if name == "open" {
            self.disturb(name);
        }
    }

    fn answer(&self, on: Handle, command: &mut Command<'_>, result: Result<i32, Errno>) {
        self.tell(|| format!("    {on:?} {:x?} gives {result:?}", command.argument));
        let edits = std::mem::take(&mut self.lies().edits);
        apply(edits, command);
    }
}
