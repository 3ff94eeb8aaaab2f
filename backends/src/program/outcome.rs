//! What a replay found, in the form `--json` prints it. Field by field, in this order, it is what scripts rely on.

use std::collections::BTreeMap;
use std::fmt;

use dmaspace::contract::{PciAddressSpace, WindowRequest};
use dmaspace::listener::{Fate, SpaceReport, Verdict};
use dmaspace::{IovaRange, PageSize, Window};
use serde::{Serialize, Serializer};

use crate::program::counting::Calls;
use crate::program::guest::Guest;
use crate::program::mtree::{Kind, Range};

/// What a replay found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    /// Whether everything required was provided.
    pub(crate) ok: bool,
    /// What was replayed.
    pub(crate) input: Input,
    /// How the host's IOMMU was reached.
    pub(crate) backend: &'static str,
    /// The host's windows in force at the end, ascending.
    pub(crate) windows: Vec<HostWindow>,
    /// What became of every range: those of the PCI address space, then the RAM behind its translated windows.
    pub(crate) sections: Vec<Judged>,
    /// The kernel calls it took.
    pub(crate) calls: Calls,
    /// What it cost.
    pub(crate) bytes: Bytes,
}

/// What was replayed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Input {
    /// The file.
    pub(crate) file: String,
    /// The address space of it that is the PCI address space.
    pub(crate) address_space: String,
}

/// A window of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HostWindow {
    /// The first bus address.
    pub(crate) first: Hex,
    /// The last bus address, which is inside.
    pub(crate) last: Hex,
    /// The pages it can be mapped in, in bytes, ascending.
    pub(crate) page_sizes: Vec<u64>,
}

/// What became of one range of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Judged {
    /// Whose addresses these are.
    pub(crate) space: AddressesOf,
    /// The first address.
    pub(crate) first: Hex,
    /// The last address, which is inside.
    pub(crate) last: Hex,
    /// The name of the memory region behind it.
    pub(crate) name: String,
    /// What QEMU calls its kind.
    #[serde(serialize_with = "as_text")]
    pub(crate) kind: Kind,
    /// What became of it.
    #[serde(serialize_with = "as_text")]
    pub(crate) fate: Fate,
    /// Why.
    pub(crate) reason: String,
    /// Bytes at its beginning that devices do not reach.
    pub(crate) lost_head: u64,
    /// Bytes at its end that devices do not reach.
    pub(crate) lost_tail: u64,
}

/// Two address spaces occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AddressesOf {
    /// The PCI address space.
    Pci,
    /// System memory.
    Memory,
}

/// What a replay cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Bytes {
    /// Devices reach these at the end.
    pub(crate) mapped: u64,
    /// These were handed to calls that pin, each as often as it was.
    pub(crate) pinned: u64,
    /// The tables of the windows in force at the end take these.
    pub(crate) tables: u64,
    /// These were there before and after, and away in between.
    pub(crate) disturbed: u64,
}

/// An address. JSON's numbers are no place for 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hex(pub(crate) u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn as_text<S: Serializer>(word: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(word)
}

impl HostWindow {
    fn of(window: &Window) -> Self {
        Self {
            first: Hex(window.range.first().get()),
            last: Hex(window.range.last().get()),
            page_sizes: window.page_sizes.iter().map(PageSize::bytes).collect(),
        }
    }
}

/// The windows of a host in force.
pub(crate) fn windows(space: &dyn PciAddressSpace) -> Vec<HostWindow> {
    space.windows().windows.iter().map(HostWindow::of).collect()
}

impl Bytes {
    /// What can be seen of a space at the end, and what was counted on the way.
    pub(crate) fn of(space: &dyn PciAddressSpace, pinned: u64, disturbed: u64) -> Self {
        let mapped = space.mappings(IovaRange::all()).iter().map(|mapping| mapping.memory.len().get()).sum();
        Self { mapped, pinned, tables: tables(space), disturbed }
    }
}

/// Only windows that are created have tables that are charged to somebody.
fn tables(space: &dyn PciAddressSpace) -> u64 {
    let Some(control) = space.window_control() else { return 0 };
    let request = |window: &Window| WindowRequest { range: window.range, page: window.granule() };
    space.windows().windows.iter().map(|window| control.table_bytes(request(window))).sum()
}

/// What became of every range of `guest`, in the words of `report` or, for what a listener does not ask about, of `reasons`.
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

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, name, fate, reason, .. } = self;
        write!(f, "{first}..={last} ({name}): {fate}: {reason}")
    }
}

impl Judged {
    fn of<T>(space: AddressesOf, range: &Range, verdict: Option<&Verdict<T>>) -> Self {
        let (fate, reason) = verdict.map_or((Fate::Skipped, ""), |verdict| (verdict.fate, &verdict.reason));
        Self {
            space,
            first: Hex(range.first),
            last: Hex(range.last),
            name: range.name.clone(),
            kind: range.kind,
            fate,
            reason: reason.to_owned(),
            lost_head: verdict.map_or(0, |verdict| verdict.lost_head),
            lost_tail: verdict.map_or(0, |verdict| verdict.lost_tail),
        }
    }
}
