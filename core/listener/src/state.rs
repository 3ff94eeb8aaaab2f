//! The state of a listener: everything that is in force, as a value, as text, and with the feature `serde` as JSON.

#[cfg(feature = "serde")]
mod json;

use std::fmt;
use std::sync::Arc;

use crate::discardable;
use crate::in_force::InForce;
use crate::plan::near;
use crate::section::{Section, TargetMemory};
use crate::served_space::{RecurringWarning, ServedSpace, Totals};
use crate::translated;
use crate::update::View;
use dmaspace_core::contract::{Fence, Mapping, PciAddressSpace, Unit};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;
use dmaspace_core::words::window::Window;

/// Everything that is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// The sections, ascending.
    pub sections: Vec<Section>,
    /// The target memory, ascending.
    pub targets: Vec<TargetMemory>,
    /// The translated windows, ascending.
    pub translated: Vec<TranslatedState>,
    /// The discardable sections, ascending.
    pub discardable: Vec<DiscardableState>,
    /// The spaces, in the order they were attached.
    pub spaces: Vec<SpaceState>,
}

/// A translated window.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TranslatedState {
    /// The bus addresses.
    pub range: IovaRange,
    /// The page of its entries.
    pub page: PageSize,
    /// The bytes its live entries reach.
    pub live: u64,
    /// True if the kernel owns the entries, and the listener's verbs are refused.
    pub kernel_owned: bool,
}

/// A discardable section.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscardableState {
    /// The bus addresses.
    pub range: IovaRange,
    /// The size of a block.
    pub granule: PageSize,
    /// The populated ranges, ascending.
    pub populated: Vec<IovaRange>,
}

/// A space.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceState {
    /// The backend's name.
    pub backend: &'static str,
    /// The devices attached to it.
    pub devices: Vec<String>,
    /// The host's windows, ascending.
    pub windows: Vec<Window>,
    /// The live mappings, ascending.
    pub mappings: Vec<LiveMapping>,
    /// The registrations, ascending by host address.
    pub registrations: Vec<Registration>,
    /// The memory whose pins are shared, ascending by host address.
    pub shared_pins: Vec<Registration>,
    /// The fences: ranges that cannot be used any more.
    pub fences: Vec<Fence>,
    /// The number of mappings that the kernel still takes, where it counts them.
    pub mappings_left: Option<u64>,
    /// The cost of all commits so far.
    pub totals: Totals,
    /// The warnings whose causes last.
    pub warnings: Vec<RecurringWarning>,
}

/// A live mapping and its owners.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveMapping {
    /// The mapping.
    pub mapping: Mapping,
    /// The names of the sections it is there for; empty if the listener did not map it.
    pub owners: Vec<Arc<str>>,
}

/// Memory that is registered, or whose pins are shared, and its owners.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registration {
    /// The memory.
    pub memory: HostMemory,
    /// The names of the target memory and sections it is there for; empty if the listener did not register it.
    pub owners: Vec<Arc<str>>,
}

impl State {
    /// The state of everything in force.
    pub(crate) fn of(all: &InForce) -> Self {
        Self {
            sections: all.view.sections.iter().cloned().collect(),
            targets: all.view.targets.iter().cloned().collect(),
            translated: all.windows.values().map(|window| TranslatedState::of(window)).collect(),
            discardable: all.discardables.values().map(|section| DiscardableState::of(section)).collect(),
            spaces: all.served.iter().map(|member| SpaceState::of(member, &all.view)).collect(),
        }
    }
}

impl TranslatedState {
    fn of(window: &translated::Shared) -> Self {
        Self {
            range: window.range(),
            page: window.page(),
            live: window.entries().iter().map(|entry| entry.memory.len().get()).sum(),
            kernel_owned: window.is_kernel_owned(),
        }
    }
}

impl DiscardableState {
    fn of(section: &discardable::Shared) -> Self {
        Self { range: section.range(), granule: section.granule(), populated: section.populated() }
    }
}

impl SpaceState {
    fn of(member: &ServedSpace, view: &View) -> Self {
        let space: &dyn PciAddressSpace = member.space.as_ref();
        let registered = space.powers().registration.map(|registration| registration.registered());
        let shared = space.powers().pin_sharing.map(|sharing| sharing.shared());
        Self {
            backend: space.describe().backend,
            devices: space.describe().devices,
            windows: space.windows().windows.iter().copied().collect(),
            mappings: owned_mappings(space.mappings(IovaRange::all()), view),
            registrations: owned(registered, view),
            shared_pins: owned(shared, view),
            fences: space.describe().fences,
            mappings_left: space.powers().mappings_left(),
            totals: member.totals,
            warnings: member.warnings.values().cloned().collect(),
        }
    }

    /// The bytes devices reach.
    pub fn mapped(&self) -> u64 {
        self.mappings.iter().map(|live| live.mapping.memory.len().get()).sum()
    }
}

/// Mappings, which are ascending, and the sections that each is there for: one walk along both.
fn owned_mappings(mappings: Vec<Mapping>, view: &View) -> Vec<LiveMapping> {
    let mut live = Vec::with_capacity(mappings.len());
    let mut sections = view.sections.iter().peekable();
    for mapping in mappings {
        while sections.next_if(|section| section.range().last() < mapping.range.first()).is_some() {}
        let mut owners = Vec::with_capacity(1);
        for section in sections.clone().take_while(|section| section.range().first() <= mapping.range.last()) {
            owners.push(section.shared_name());
        }
        live.push(LiveMapping { mapping, owners });
    }
    live
}

/// Memory, which is ascending, and the pieces whose memory shares bytes with each span.
fn owned(memory: Option<Vec<HostMemory>>, view: &View) -> Vec<Registration> {
    let spans = memory.unwrap_or_default();
    let mut owners = vec![Vec::new(); spans.len()];
    for target in view.targets.iter() {
        add_owner(&spans, &mut owners, target.memory(), &target.shared_name());
    }
    for section in view.sections.iter() {
        if let Some(shown) = section.memory() {
            add_owner(&spans, &mut owners, shown, &section.shared_name());
        }
    }
    let owned = spans.into_iter().zip(owners);
    owned.map(|(memory, owners)| Registration { memory, owners }).collect()
}

/// Adds the name of a piece that shows `memory` to the owners of each of the spans that it shares bytes with.
fn add_owner(spans: &[HostMemory], owners: &mut [Vec<Arc<str>>], memory: &HostMemory, name: &Arc<str>) {
    let first = spans.partition_point(|span| span.last() < memory.address());
    for owners in owners.iter_mut().skip(first).take(near(spans, memory).len()) {
        owners.push(name.clone());
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} sections, {} pieces of target memory", self.sections.len(), self.targets.len())?;
        for TranslatedState { range, page, live, kernel_owned } in &self.translated {
            let by = if *kernel_owned { ", and the kernel puts them" } else { "" };
            writeln!(f, "translated window {range} with {page} pages: its entries reach {live:#x} bytes{by}")?;
        }
        for DiscardableState { range, granule, populated } in &self.discardable {
            let bytes: u128 = populated.iter().map(|range| range.bytes()).sum();
            writeln!(f, "discardable section {range} in blocks of {granule}: {bytes:#x} bytes populated")?;
        }
        for space in &self.spaces {
            space.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for SpaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { commits, pinned, shared, disturbed } = self.totals;
        let devices = if self.devices.is_empty() { "no device".into() } else { self.devices.join(", ") };
        writeln!(f, "{} with {devices}: {:#x} bytes in {} mappings", self.backend, self.mapped(), self.mappings.len())?;
        writeln!(f, "  {commits} commits pinned {pinned:#x} bytes and disturbed {disturbed:#x}")?;
        if shared > 0 {
            writeln!(f, "  {shared:#x} bytes more were mapped whose pins are shared with other spaces")?;
        }
        if let Some(left) = self.mappings_left {
            writeln!(f, "  {left} mappings left")?;
        }
        self.fmt_parts(f)
    }
}

impl SpaceState {
    /// Writes windows, mappings, registrations, fences and warnings, one a line.
    fn fmt_parts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Window { range, page_sizes, .. } in &self.windows {
            writeln!(f, "  window {range}: {page_sizes} pages")?;
        }
        for LiveMapping { mapping: Mapping { range, memory, access, unit, .. }, owners } in &self.mappings {
            let unit = match unit {
                Unit::Whole => String::new(),
                Unit::Pages(page) => format!(" in {page} pages"),
            };
            writeln!(f, "  {range} -> {memory}, {access}{unit}: {}", named(owners))?;
        }
        for Registration { memory, owners } in &self.registrations {
            writeln!(f, "  registered {memory}: {}", named(owners))?;
        }
        for Registration { memory, owners } in &self.shared_pins {
            writeln!(f, "  pins shared of {memory}: {}", named(owners))?;
        }
        for Fence { range, cause, .. } in &self.fences {
            writeln!(f, "  fence {range}: {cause}")?;
        }
        for RecurringWarning { warning, times } in &self.warnings {
            writeln!(f, "  warning, met {times} times: {warning}")?;
        }
        Ok(())
    }
}

fn named(owners: &[Arc<str>]) -> String {
    if owners.is_empty() { "of no section".into() } else { owners.join(", ") }
}
