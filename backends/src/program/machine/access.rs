//! Who may open a node.

use std::fs::OpenOptions;
use std::path::Path;

use dmaspace::facts::HostFiles as _;

use crate::program::machine::Machine;
use crate::program::root::{Owner, Root};

/// The result of opening a node, or of looking at its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It can be opened.
    Open,
    /// It does not exist.
    Missing,
    /// This user may not open it. The owner, where it is known.
    Denied(Option<Owner>),
    /// Another program has it open.
    Busy,
    /// It cannot be opened for another reason.
    Failed(String),
    /// A copy of the host's files does not tell.
    Unknown,
}

/// A user, as far as the files of a process tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    uid: Option<u64>,
    groups: Vec<u64>,
    capabilities: u64,
}

/// The capability that opens every file (linux: include/uapi/linux/capability.h).
const CAP_DAC_OVERRIDE: u32 = 1;

impl User {
    pub(super) fn of(root: &Root) -> Self {
        let status = root.text("proc/self/status").unwrap_or_default();
        let numbers = |name: &str| -> Vec<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let mut groups = numbers("Groups:");
        groups.extend(numbers("Gid:").get(1));
        Self {
            uid: numbers("Uid:").get(1).copied(),
            groups,
            capabilities: effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or_default(),
        }
    }

    /// The number of the user, if it is known.
    pub(crate) fn uid(&self) -> Option<u64> {
        self.uid
    }

    /// Returns whether the user is root. `None` where that is not known.
    pub(crate) fn is_root(&self) -> Option<bool> {
        self.uid.map(|uid| uid == 0)
    }

    fn may_open(&self, owner: Owner) -> Option<bool> {
        let uid = self.uid?;
        let shift = match (owner.uid == uid, self.groups.contains(&owner.gid)) {
            (true, _) => 6,
            (false, true) => 3,
            (false, false) => 0,
        };
        let overrides = (self.capabilities >> CAP_DAC_OVERRIDE) & 1 == 1;
        Some(overrides || (owner.mode >> shift) & 6 == 6)
    }
}

impl Machine {
    /// Looks whether a node can be opened for reading and writing.
    pub(crate) fn access(&self, node: &Path) -> Access {
        if !self.root.exists(node.strip_prefix("/").unwrap_or(node)) {
            return Access::Missing;
        }
        if self.root.is_here {
            return open(node, self.root.owner(node));
        }
        let owner = self.root.owner(node).filter(|_| self.root.has_nodes());
        match owner.and_then(|owner| self.user.may_open(owner)) {
            Some(true) => Access::Open,
            Some(false) => Access::Denied(owner),
            None => Access::Unknown,
        }
    }
}

fn open(node: &Path, owner: Option<Owner>) -> Access {
    match OpenOptions::new().read(true).write(true).open(node) {
        Ok(_) => Access::Open,
        Err(error) => match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Access::Denied(owner),
            Some(libc::EBUSY) => Access::Busy,
            Some(libc::ENOENT) => Access::Missing,
            _ => Access::Failed(error.to_string()),
        },
    }
}
