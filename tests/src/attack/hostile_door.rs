//! A door to a host in software whose kernel fails and lies as an input says.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Argument, Attached, Command, Door, Errno, Handle, HandleKind};
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::{Access, HostMemory, PageSize};
use dmaspace_soft::{FaultMode, FaultPlan, SoftHost};

use super::input::Input;

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
#[derive(Debug)]
pub(super) struct HostileDoor {
    pub(super) soft: Arc<SoftHost>,
    pub(super) conduct: Conduct,
    lies: Mutex<Lies>,
    calls: AtomicU64,
    /// Set when each call is printed.
    is_talkative: bool,
}

#[derive(Debug)]
struct Lies {
    input: Input,
    /// A call is disturbed once in so many times.
    rarity: u64,
    is_over: bool,
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

impl HostileDoor {
    pub(super) fn new(soft: Arc<SoftHost>, conduct: Conduct, mut input: Input) -> Arc<Self> {
        let rarity = input.choose(&[3, 8, 20, 60]);
        let lies = Mutex::new(Lies { input, rarity, is_over: conduct == Conduct::Truthful });
        let is_talkative = std::env::var_os("DMASPACE_ATTACK_TALK").is_some();
        Arc::new(Self { soft, conduct, lies, calls: AtomicU64::new(0), is_talkative })
    }

    /// The number of calls so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
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

    /// Decides on the next call. A fault is planned.
    fn disturb(&self, call: &'static str) -> [Option<Edit>; 3] {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let disturbance = self.lies().next(call, self.conduct);
        self.tell(|| format!("  {call} {disturbance:x?}"));
        match disturbance {
            Some(Disturbance::Edits(edits)) => edits,
            Some(Disturbance::Fault(plan)) => {
                self.soft.plan_faults(&[plan]);
                [None; 3]
            }
            None => [None; 3],
        }
    }
}

impl Lies {
    fn next(&mut self, call: &'static str, conduct: Conduct) -> Option<Disturbance> {
        if self.is_over || self.input.is_used_up() || !self.input.once_in(self.rarity) {
            return None;
        }
        let (takes, names) = (TAKING.contains(&call), NAMING.contains(&call));
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
            5 if may_lie || !takes => FaultMode::ZeroWithoutEffect,
            _ if names && !may_lie => FaultMode::FailBefore,
            _ => return Some(Disturbance::Edits(self.edits())),
        };
        // A kernel has no memory for more entries when it leaves some of a map behind.
        let errno = if mode == FaultMode::PartialEffect && !takes { Errno::ENOMEM } else { errno };
        Some(Disturbance::Fault(FaultPlan::nth(1, mode).with(errno)))
    }

    fn edits(&mut self) -> [Option<Edit>; 3] {
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

#[expect(unsafe_code, reason = "UNSAFETY: a door without devices")]
// SAFETY: no real device is behind it.
unsafe impl Door for HostileDoor {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        self.disturb("open");
        self.soft.open(path, kind)
    }

    fn adopt(&self, descriptor: OwnedFd, kind: HandleKind) -> Result<Handle, Errno> {
        self.soft.adopt(descriptor, kind)
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        let edits = self.disturb(command.request.name);
        let result = self.soft.ioctl(on, command);
        self.tell(|| format!("    {on:?} {:x?} gives {result:?}", command.argument));
        apply(edits, command);
        result
    }

    fn ioctl_opening(&self, on: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        self.disturb(command.request.name);
        self.soft.ioctl_opening(on, command, kind)
    }

    fn pread(&self, on: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.soft.pread(on, offset, into)
    }

    fn pwrite(&self, on: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        self.soft.pwrite(on, offset, from)
    }

    fn mmap(&self, on: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
        self.soft.mmap(on, offset, len, access)
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.soft.close(handle)
    }

    fn host_page(&self) -> PageSize {
        self.soft.host_page()
    }

    fn locked_memory(&self) -> Option<LockedMemory> {
        self.soft.locked_memory()
    }

    fn runs(&self) -> &ProcessRegistrations {
        self.soft.runs()
    }

    fn is_real(&self) -> bool {
        false
    }
}
