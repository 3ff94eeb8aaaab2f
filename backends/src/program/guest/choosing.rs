//! The choice of the address space that devices see.
//!
//! A text has many address spaces, and does not say which one a passed-through device sees. The choice is ranked: the
//! one that was asked for; a POWER guest's PCI host bridge, the one of a VFIO device first, never a VIO adapter;
//! system memory. The user is told where another choice was possible.

use crate::program::mtree::{AddressSpace, FlatView, Range};
use crate::program::printable;
use crate::program::translating::{EmulatedIommu, is_window_of_pci};

/// QEMU's name for the processors' address space (qemu: system/physmem.c, memory_map_init), and that of its root.
pub(super) const SYSTEM_MEMORY: &str = "memory";
const ROOT_OF_MEMORY: &str = "system";

/// QEMU's name for the address space of a passed-through device, through its bus master switch (qemu: hw/pci/pci.c,
/// do_pci_register_device).
const VFIO_DEVICE: &str = "vfio-pci";

/// The address space that devices see.
#[derive(Clone, Debug)]
pub(super) struct Chosen<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its view.
    pub(super) view: &'a FlatView,
    /// Remarks on the choice, for people.
    pub(super) notes: Vec<String>,
}

/// The reason why no guest could be found in the views.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct NoGuest {
    /// The heading of the view where that became clear.
    pub(crate) line: usize,
    why: String,
}

impl NoGuest {
    fn unknown(name: &str, views: &[FlatView]) -> Self {
        let name = printable::quoted(name, LONGEST_NAME);
        let why = format!("expected an address space {name} up to here; there are: {}", names(views));
        Self { line: views.last().map_or(1, |view| view.line), why }
    }

    fn ambiguous(name: &str, first: &FlatView, other: &FlatView) -> Self {
        let name = printable::quoted(name, LONGEST_NAME);
        let why = format!("expected one address space {name}, but the one at line {} differs from this", first.line);
        Self { line: other.line, why }
    }

    fn cut(view: &FlatView) -> Self {
        let why = "expected ranges in this view, or `No rendered FlatView`: it was cut out of a longer text".to_owned();
        Self { line: view.line, why }
    }
}

/// Chooses among `views`. `name`, if given, was asked for.
///
/// # Errors
/// When there is no such address space, or more than one.
pub(super) fn choose<'a>(views: &'a [FlatView], name: Option<&'a str>) -> Result<Chosen<'a>, NoGuest> {
    let chosen = match name {
        Some(name) => Chosen { name, view: view_called(views, name)?, notes: Vec::new() },
        None => choose_by_rank(views)?,
    };
    match chosen.view.ranges.is_empty() && !chosen.view.is_empty {
        true => Err(NoGuest::cut(chosen.view)),
        false => Ok(chosen),
    }
}

fn choose_by_rank(views: &[FlatView]) -> Result<Chosen<'_>, NoGuest> {
    let mut bridges: Vec<_> = views.iter().filter_map(|view| Some((bridge_of(view)?, view))).collect();
    bridges.sort_by_key(|(name, view)| (!has_vfio_device(view), *name));
    bridges.dedup_by_key(|(name, _)| *name);
    match bridges.first() {
        Some((name, _)) => {
            Ok(Chosen { name, view: view_of(views, name)?, notes: note_on_bridges(&bridges).into_iter().collect() })
        }
        None => {
            let (name, view) = memory_of(views)?;
            Ok(Chosen { name, view, notes: note_on_iommu(views, name).into_iter().collect() })
        }
    }
}

/// The name of the PCI host bridge whose address space a view is.
fn bridge_of(view: &FlatView) -> Option<&str> {
    view.ranges.iter().find(|range| is_window_of_bridge(range))?;
    let of_bridge = view.spaces.iter().find(|space| is_of_bridge(space));
    of_bridge.or(view.spaces.first()).map(|space| space.name.as_str())
}

fn is_of_bridge(space: &AddressSpace) -> bool {
    let names = [&space.name, &space.root];
    names.iter().any(|name| EmulatedIommu::of_space(name).is_some_and(|iommu| iommu.is_of_power))
}

/// Returns whether a range is a window of a PCI host bridge on POWER.
pub(super) fn is_window_of_bridge(range: &Range) -> bool {
    !range.kind.is_memory() && is_window_of_pci(&range.name)
}

fn has_vfio_device(view: &FlatView) -> bool {
    view.spaces.iter().any(|space| space.name == VFIO_DEVICE)
}

/// System memory. A text that names no address spaces has its root, or nothing but one view.
fn memory_of(views: &[FlatView]) -> Result<(&str, &FlatView), NoGuest> {
    match views {
        _ if is_named(views, SYSTEM_MEMORY) => Ok((SYSTEM_MEMORY, view_of(views, SYSTEM_MEMORY)?)),
        _ if is_named(views, ROOT_OF_MEMORY) => Ok((ROOT_OF_MEMORY, view_of(views, ROOT_OF_MEMORY)?)),
        [only] if only.spaces.iter().all(|space| space.name.is_empty()) => Ok(("", only)),
        _ => Err(NoGuest::unknown(SYSTEM_MEMORY, views)),
    }
}

fn note_on_bridges(bridges: &[(&str, &FlatView)]) -> Option<String> {
    let [(first, _), _, ..] = bridges else { return None };
    let all: Vec<_> = bridges.iter().map(|(name, _)| *name).collect();
    let (n, all) = (bridges.len(), listed(&all));
    Some(format!("there are {n} PCI host bridges: {all}; {first} is replayed, --address-space NAME replays another"))
}

fn iommu_of(space: &AddressSpace) -> Option<&'static EmulatedIommu> {
    EmulatedIommu::of_space(&space.name).or(EmulatedIommu::of_space(&space.root))
}

/// A guest with an emulated IOMMU: its devices see another space than its processors.
fn note_on_iommu(views: &[FlatView], chosen: &str) -> Option<String> {
    let spaces = views.iter().flat_map(|view| view.spaces.iter().map(move |space| (space, view)));
    let (space, view, iommu) = spaces.into_iter().find_map(|(space, view)| Some((space, view, iommu_of(space)?)))?;
    let shares = view.spaces.iter().any(|space| space.name == chosen);
    let now = if shares { ", which is the same for now, since the IOMMU lets everything through" } else { "" };
    let name = printable::cut(&space.name, LONGEST_NAME);
    Some(format!(
        "the guest has an emulated IOMMU ({}): devices behind it see another address space, such as {name}{now}; \
         {chosen} is replayed, --address-space NAME replays another",
        iommu.name
    ))
}

/// Returns whether an address space has that name.
fn is_named(views: &[FlatView], name: &str) -> bool {
    views.iter().any(|view| view.spaces.iter().any(|space| space.name == name))
}

/// The view of the address space that a user calls `name`. Where many have one name, the name of the root tells them
/// apart.
fn view_called<'a>(views: &'a [FlatView], name: &str) -> Result<&'a FlatView, NoGuest> {
    if is_named(views, name) { view_of(views, name) } else { only(views, name, |space| space.root == name) }
}

/// The view of the address space `name`.
pub(super) fn view_of<'a>(views: &'a [FlatView], name: &str) -> Result<&'a FlatView, NoGuest> {
    only(views, name, |space| space.name == name)
}

fn only<'a>(
    views: &'a [FlatView],
    name: &str,
    is_meant: impl Fn(&AddressSpace) -> bool,
) -> Result<&'a FlatView, NoGuest> {
    let mut meant = views.iter().filter(|view| view.spaces.iter().any(&is_meant));
    let first = meant.next().ok_or_else(|| NoGuest::unknown(name, views))?;
    match meant.find(|other| !says_the_same(first, other)) {
        None => Ok(first),
        Some(other) => Err(NoGuest::ambiguous(name, first, other)),
    }
}

/// Returns whether two views say the same, wherever in the text they stand.
fn says_the_same(view: &FlatView, other: &FlatView) -> bool {
    let mut pairs = view.ranges.iter().zip(&other.ranges);
    view.ranges.len() == other.ranges.len() && pairs.all(|(range, other)| are_alike(range, other))
}

/// Returns whether two ranges are the same but for their lines.
fn are_alike(range: &Range, other: &Range) -> bool {
    (range.first, range.last, range.offset) == (other.first, other.last, other.offset)
        && range.kind == other.kind
        && range.name == other.name
}

const LONGEST_NAME: usize = 60;

/// The names there are, each once, in their order.
fn names(views: &[FlatView]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for space in views.iter().flat_map(|view| &view.spaces) {
        if !names.contains(&space.name.as_str()) {
            names.push(&space.name);
        }
        // The list is cut anyway, and looking for a name takes longer with each.
        if names.len() > MOST_NAMES {
            break;
        }
    }
    listed(&names)
}

const MOST_NAMES: usize = 24;

fn listed(names: &[&str]) -> String {
    let shown: Vec<_> = names.iter().take(MOST_NAMES).map(|name| printable::cut(name, LONGEST_NAME)).collect();
    let more = if names.len() > MOST_NAMES { ", …" } else { "" };
    shown.join(", ") + more
}
