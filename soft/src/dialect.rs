//! What the kernels say: for every request the checks in their order, the errno of each, and the effect.
//!
//! The order is part of the answer: a request that is wrong in two ways gets the errno of the check that comes first.
//! Every module here names the kernel function it follows. Requests that take part in no mapping, window, registration,
//! attachment or opening answer `ENOTTY`, or `EINVAL` where the kernel would.

pub(crate) mod call;
pub(crate) mod cdev;
pub(crate) mod iommufd;
pub(crate) mod spapr;
pub(crate) mod type1;
pub(crate) mod vfio;

use std::collections::BTreeMap;

use dmaspace_core::door::Errno;
use dmaspace_core::{HostMemory, PageSize};

use crate::dialect::spapr::{Firmware, Pe};
use crate::engine::{Account, Registry};
use crate::facts::Facts;

/// A process, known by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pid(pub(crate) u64);

/// What a process has of the kernel's memory management.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) account: Account,
    pub(crate) registry: Registry,
}

/// Everything a dialect reaches beside its own context.
#[derive(Debug)]
pub(crate) struct System {
    /// What the host is.
    pub(crate) facts: Facts,
    /// Who is there.
    pub(crate) processes: BTreeMap<Pid, Process>,
    /// RLIMIT_MEMLOCK of processes to come, and of those that are there.
    pub(crate) limit: Option<u64>,
    /// Whether memory is of the pages that whoever hands it out says.
    pub(crate) has_huge_pages: bool,
    /// What firmware knows of each group's windows.
    firmware: BTreeMap<u32, Firmware>,
    /// What is wrong with each group's PE.
    pes: BTreeMap<u32, Pe>,
    /// Memory the kernel let go, to be dropped once nothing is locked: its owner's code runs then.
    pub(crate) released: Vec<HostMemory>,
    /// A fault under way: the call does only part of its work and then answers this
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

    /// The process, which appears when it is first heard of.
    pub(crate) fn process(&mut self, pid: Pid) -> &mut Process {
        let account = || Account::new(self.facts.page, self.limit);
        self.processes.entry(pid).or_insert_with(|| Process { account: account(), registry: Registry::default() })
    }

    /// The books of a process that is charged.
    pub(crate) fn account(&mut self, pid: Pid) -> &mut Account {
        &mut self.process(pid).account
    }

    /// Gives a process back what it was charged, unless it is gone, and its books with it.
    pub(crate) fn give_back(&mut self, pid: Pid, back: impl FnOnce(&mut Account)) {
        if let Some(process) = self.processes.get_mut(&pid) {
            back(&mut process.account);
        }
    }

    pub(crate) fn firmware(&mut self, group: u32) -> &mut Firmware {
        self.firmware.entry(group).or_default()
    }

    /// The PE of a group, as it is when nobody has done anything to it.
    pub(crate) fn pe(&mut self, group: u32) -> &mut Pe {
        self.pes.entry(group).or_default()
    }

    /// Whether a group's PE keeps its devices from memory.
    pub(crate) fn is_frozen(&self, group: u32) -> bool {
        self.pes.get(&group).is_some_and(|pe| pe.stops_dma())
    }

    /// Lets go of memory.
    pub(crate) fn release(&mut self, memory: HostMemory) {
        self.released.push(memory);
    }
}

/// `EINVAL` and its kin, for checks in a row.
pub(crate) fn require(holds: bool, errno: Errno) -> Result<(), Errno> {
    if holds { Ok(()) } else { Err(errno) }
}
