//! The state in a form that serde can write.
//!
//! Addresses are `"0x…"`, sizes are numbers of bytes. `in_force` is made of the same pieces as a recording's
//! ([`crate::recording::Piece`]): sections, then target memory.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::recording::{self, Hex, Piece};
use crate::report::WarningCause;
use crate::served_space::RecurringWarning;
use crate::state::{DiscardableState, LiveMapping, Registration, SpaceState, State, TranslatedState};
use dmaspace_core::contract::{Fence, Unit};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::{HostMemory, UnplugUnit};
use dmaspace_core::words::page::PageSize;

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut units: HashMap<UnplugUnit, u64> = HashMap::new();
        let mut unit = |memory: &HostMemory| {
            let next = units.len() as u64;
            *units.entry(memory.unit()).or_insert(next)
        };
        let mut in_force: Vec<_> = self.sections.iter().map(|it| Piece::of_section(it, &mut unit)).collect();
        in_force.extend(self.targets.iter().map(|target| Piece::of_target(target, &mut unit)));
        let written = Written {
            in_force,
            translated: self.translated.iter().map(Translated::of).collect(),
            discardable: self.discardable.iter().map(Discardable::of).collect(),
            spaces: self.spaces.iter().map(Space::of).collect(),
        };
        written.serialize(serializer)
    }
}

#[derive(Serialize)]
struct Written<'a> {
    in_force: Vec<Piece>,
    translated: Vec<Translated>,
    discardable: Vec<Discardable>,
    spaces: Vec<Space<'a>>,
}

#[derive(Serialize)]
struct Range {
    first: Hex,
    last: Hex,
}

#[derive(Serialize)]
struct Translated {
    #[serde(flatten)]
    range: Range,
    page: u64,
    live: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    kernel_owned: bool,
}

#[derive(Serialize)]
struct Discardable {
    #[serde(flatten)]
    range: Range,
    granule: u64,
    populated: Vec<Range>,
}

#[derive(Serialize)]
struct Space<'a> {
    backend: &'static str,
    devices: &'a [String],
    windows: Vec<recording::JsonWindow>,
    mappings: Vec<Mapping<'a>>,
    registrations: Vec<Registered<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shared_pins: Vec<Registered<'a>>,
    fences: Vec<Fenced>,
    mappings_left: Option<u64>,
    commits: u64,
    pinned: u64,
    shared: u64,
    disturbed: u64,
    warnings: Vec<Warned<'a>>,
}

#[derive(Serialize)]
struct Mapping<'a> {
    #[serde(flatten)]
    range: Range,
    host: Hex,
    access: String,
    /// The bytes of a page that can be unmapped by itself; none when all of it goes at once.
    unit: Option<u64>,
    owners: Vec<&'a str>,
}

#[derive(Serialize)]
struct Registered<'a> {
    host: Hex,
    len: u64,
    owners: Vec<&'a str>,
}

#[derive(Serialize)]
struct Fenced {
    #[serde(flatten)]
    range: Range,
    cause: String,
}

#[derive(Serialize)]
struct Warned<'a> {
    name: &'a str,
    cause: &'static str,
    text: &'a str,
    times: u64,
}

impl Range {
    fn of(range: IovaRange) -> Self {
        Self { first: Hex(range.first().get()), last: Hex(range.last().get()) }
    }
}

impl Translated {
    fn of(state: &TranslatedState) -> Self {
        Self {
            range: Range::of(state.range),
            page: state.page.bytes(),
            live: state.live,
            kernel_owned: state.kernel_owned,
        }
    }
}

impl Discardable {
    fn of(state: &DiscardableState) -> Self {
        let populated = state.populated.iter().copied().map(Range::of).collect();
        Self { range: Range::of(state.range), granule: state.granule.bytes(), populated }
    }
}

impl<'a> Space<'a> {
    fn of(state: &'a SpaceState) -> Self {
        Self {
            backend: state.backend,
            devices: &state.devices,
            windows: state.windows.iter().map(recording::JsonWindow::of).collect(),
            mappings: state.mappings.iter().map(Mapping::of).collect(),
            registrations: state.registrations.iter().map(Registered::of).collect(),
            shared_pins: state.shared_pins.iter().map(Registered::of).collect(),
            fences: state.fences.iter().map(Fenced::of).collect(),
            mappings_left: state.mappings_left,
            commits: state.totals.commits,
            pinned: state.totals.pinned,
            shared: state.totals.shared,
            disturbed: state.totals.disturbed,
            warnings: state.warnings.iter().map(Warned::of).collect(),
        }
    }
}

impl<'a> Mapping<'a> {
    fn of(LiveMapping { mapping, owners }: &'a LiveMapping) -> Self {
        let unit = match mapping.unit {
            Unit::Whole => None,
            Unit::Pages(page) => Some(PageSize::bytes(page)),
        };
        Self {
            range: Range::of(mapping.range),
            host: Hex(mapping.memory.address().get()),
            access: mapping.access.to_string(),
            unit,
            owners: names(owners),
        }
    }
}

impl<'a> Registered<'a> {
    fn of(Registration { memory, owners }: &'a Registration) -> Self {
        Self { host: Hex(memory.address().get()), len: memory.len().get(), owners: names(owners) }
    }
}

impl Fenced {
    fn of(Fence { range, cause, .. }: &Fence) -> Self {
        Self { range: Range::of(*range), cause: cause.to_string() }
    }
}

impl<'a> Warned<'a> {
    fn of(RecurringWarning { warning, times }: &'a RecurringWarning) -> Self {
        let cause = match warning.cause {
            WarningCause::LosesBytes => "loses_bytes",
            WarningCause::NotMapped => "not_mapped",
            WarningCause::FewMappings => "few_mappings",
            WarningCause::ManyRegistrations => "many_registrations",
        };
        Self { name: &warning.name, cause, text: &warning.text, times: *times }
    }
}

fn names(owners: &[Arc<str>]) -> Vec<&str> {
    owners.iter().map(AsRef::as_ref).collect()
}
