//! The kernels' answers: for every request the checks in their order, the errno of each, and the effect.
//!
//! The order is part of the answer: a request with two faults gets the errno of the check that comes first. Every
//! module here names the kernel function it follows. Requests that concern no mapping, window, registration,
//! attachment, opening or device answer `ENOTTY`, or `EINVAL` where the kernel does.

pub(crate) mod call;
pub(crate) mod cdev;
mod device;
pub(crate) mod feature;
pub(crate) mod function;
pub(crate) mod iommufd;
pub(crate) mod irqs;
pub(crate) mod spapr;
pub(crate) mod type1;
pub(crate) mod vfio;

use std::collections::BTreeMap;

use dmaspace_core::door::Errno;
use dmaspace_core::{HostMemory, IovaRange, PageSize};

use crate::dialect::spapr::{Firmware, Pe};
use crate::engine::{Account, Registry};
use crate::facts::Facts;

/// A process, known by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pid(pub(crate) u64);

/// A process's share of the kernel's memory management.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) account: Account,
    pub(crate) registry: Registry,
}

impl Process {
    fn new(page: PageSize, limit: Option<u64>) -> Self {
        Self { account: Account::new(page, limit), registry: Registry::default() }
    }
}

/// The state that all contexts of all dialects share.
#[derive(Debug)]
pub(crate) struct System {
    /// The properties of the host.
    pub(crate) facts: Facts,
    /// The processes that have been charged.
    pub(crate) processes: BTreeMap<Pid, Process>,
    /// RLIMIT_MEMLOCK of every process, present and future.
    pub(crate) limit: Option<u64>,
    /// `true` if memory has the page size that its owner states.
    pub(crate) has_huge_pages: bool,
    /// The firmware's knowledge of each group's windows.
    firmware: BTreeMap<u32, Firmware>,
    /// The state of each group's PE.
    pes: BTreeMap<u32, Pe>,
    /// Memory that the kernel released, to be dropped after the lock: code of its owner runs then.
    pub(crate) released: Vec<HostMemory>,
    /// The errno of a fault under way: the call does only a part of its work and then fails with it
    /// ([`crate::FaultMode::PartialEffect`]).
    pub(crate) cut: Option<Errno>,
}

impl System {
    pub(crate) fn new(facts: Facts, limit: Option<u64>) -> Self {
        Self {
            facts,
            processes: BTreeMap::new(),
            limit,
            has_huge_pages: true,
            firmware: BTreeMap::new(),
            pes: BTreeMap::new(),
            released: Vec::new(),
            cut: None,
        }
    }

    pub(crate) fn page(&self) -> PageSize {
        self.facts.page
    }

    /// The process with this number, created at its first use.
    pub(crate) fn process(&mut self, pid: Pid) -> &mut Process {
        let Self { facts, limit, processes, .. } = self;
        processes.entry(pid).or_insert_with(|| Process::new(facts.page, *limit))
    }

    /// The account of a process that is charged.
    pub(crate) fn account(&mut self, pid: Pid) -> &mut Account {
        &mut self.process(pid).account
    }

    /// Uncharges a process, unless it has ended, and its account with it.
    pub(crate) fn give_back(&mut self, pid: Pid, back: impl FnOnce(&mut Account)) {
        if let Some(process) = self.processes.get_mut(&pid) {
            back(&mut process.account);
        }
    }

    pub(crate) fn firmware(&mut self, group: u32) -> &mut Firmware {
        self.firmware.entry(group).or_default()
    }

    /// The PE of a group, intact unless an earlier call changed it.
    pub(crate) fn pe(&mut self, group: u32) -> &mut Pe {
        self.pes.entry(group).or_default()
    }

    /// Returns whether a group's PE keeps its devices from memory.
    pub(crate) fn is_frozen(&self, group: u32) -> bool {
        self.pes.get(&group).is_some_and(|pe| pe.stops_dma())
    }

    /// Releases memory, to be dropped after the lock.
    pub(crate) fn release(&mut self, memory: HostMemory) {
        self.released.push(memory);
    }
}

/// The parts of `ranges` outside `hole`.
pub(crate) fn outside(ranges: &[IovaRange], hole: IovaRange) -> Vec<IovaRange> {
    let mut left = Vec::with_capacity(ranges.len() + 1);
    for range in ranges {
        let (below, above) = range.without(hole);
        left.extend([below, above].into_iter().flatten());
    }
    left
}

/// Returns `errno` unless `holds`, for checks in a row.
pub(crate) fn require(holds: bool, errno: Errno) -> Result<(), Errno> {
    if holds { Ok(()) } else { Err(errno) }
}
