//! A guest on every host there is a preset of, as a table in Markdown: on which of them it could live, and its losses
//! there.

use dmaspace::listener::Fate;
use dmaspace_soft::Profile;
use dmaspace_soft::profile::KernelInterface;
use serde::Serialize;

use crate::program::costs::Bytes;
use crate::program::counting::Calls;
use crate::program::mtree::What;
use crate::program::outcome::{Judged, Outcome};
use crate::program::units::in_units;
use crate::program::values;

/// The heading above all tables.
pub(crate) const HEADING: &str = "\
# What becomes of a guest on each host

`dmaspace survey FILE…` prints this: every guest is replayed on every soft host, through every backend the host has. \
*Pinned* and *tables*
are what the host has to lock; *lost* are the bytes of memory that are mapped in part, or not at all, because the \
host's pages are larger
than what they begin or end with. What the VMM emulates is left out. Nothing of a refused guest is in force.
";

/// Every preset, with every backend it has.
pub(crate) fn hosts() -> impl Iterator<Item = (&'static str, values::Backend)> {
    Profile::PRESETS.into_iter().flat_map(|name| {
        let backends = Profile::preset(name).map(|profile| profile.backends).unwrap_or_default();
        backends.into_iter().map(move |backend| (name, kind_of(backend)))
    })
}

/// sPAPR's first version is for hosts that refuse the second, and none of these does.
fn kind_of(backend: KernelInterface) -> values::Backend {
    match backend {
        KernelInterface::Type1 => values::Backend::Type1,
        KernelInterface::Spapr => values::Backend::Spapr,
        KernelInterface::Iommufd => values::Backend::Iommufd,
    }
}

/// A guest, and the outcomes of its replays.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Surveyed {
    /// The name of its file.
    file: String,
    /// A row for each host and backend.
    hosts: Vec<Row>,
}

/// The outcome on one host.
#[derive(Clone, Debug, Serialize)]
struct Row {
    /// The host.
    host: &'static str,
    /// The way to its IOMMU.
    backend: &'static str,
    /// `true` if everything required was provided.
    ok: bool,
    /// The kernel calls it took.
    calls: Calls,
    /// The costs.
    bytes: Bytes,
    /// The bytes of memory that devices do not reach because the host's pages are larger.
    lost: u64,
    /// The ranges that devices do not reach, and why.
    missing: Vec<Missing>,
}

/// Ranges of one fate for one reason.
#[derive(Clone, Debug, Serialize)]
struct Missing {
    /// The names of the memory regions, each once.
    names: Vec<String>,
    /// The fate.
    fate: String,
    /// The reason.
    reason: String,
}

impl Surveyed {
    /// A guest, with the outcome on each host.
    pub(crate) fn new(file: String, outcomes: Vec<(&'static str, Outcome)>) -> Self {
        Self { file, hosts: outcomes.iter().map(|(host, outcome)| Row::of(host, outcome)).collect() }
    }
}

impl Row {
    fn of(host: &'static str, outcome: &Outcome) -> Self {
        let Outcome { ok, backend, sections, calls, bytes, .. } = outcome;
        let lost = sections.iter().map(|judged| judged.lost_head.saturating_add(judged.lost_tail));
        let lost = lost.fold(0_u64, u64::saturating_add);
        Self { host, backend, ok: *ok, calls: *calls, bytes: *bytes, lost, missing: missing(sections) }
    }
}

/// The table of one guest: a row for each host.
pub(crate) fn table(Surveyed { file, hosts }: &Surveyed) -> String {
    const COLUMNS: &str = "| host | backend | | map calls | mapped | pinned | tables | lost | what devices do not \
                           reach, and why |\n\
                           |---|---|---|---|---|---|---|---|---|\n";
    let body: String = hosts.iter().map(row).collect();
    format!("\n## {file}\n\n{COLUMNS}{body}")
}

fn row(row: &Row) -> String {
    let Row { host, backend, ok, calls, bytes, lost, missing } = row;
    let cells = [
        (if *ok { "in force" } else { "**refused**" }).to_owned(),
        calls.map.to_string(),
        in_units(bytes.mapped.into()),
        in_units(bytes.pinned.into()),
        in_units(bytes.tables.into()),
        in_units((*lost).into()),
        why(missing),
    ];
    format!("| {host} | {backend} | {} |\n", cells.join(" | "))
}

fn why(missing: &[Missing]) -> String {
    let told: Vec<_> = missing
        .iter()
        .map(|Missing { names, fate, reason }| format!("{} {fate}: {reason}", names.join(", ")))
        .collect();
    told.join("<br>")
}

/// The ranges that are missing in whole or in part, those of one fate for one reason together. Ranges that the VMM
/// emulates are left out.
fn missing(sections: &[Judged]) -> Vec<Missing> {
    let mut all: Vec<Missing> = Vec::new();
    for judged in sections.iter().filter(|judged| !is_all_there(judged)) {
        let (fate, name) = (judged.fate.to_string(), judged.name.clone());
        match all.iter_mut().find(|known| known.fate == fate && known.reason == judged.reason) {
            Some(known) if !known.names.contains(&name) => known.names.push(name),
            Some(_) => {}
            None => all.push(Missing { names: vec![name], fate, reason: judged.reason.clone() }),
        }
    }
    all
}

fn is_all_there(judged: &Judged) -> bool {
    let is_whole = judged.lost_head == 0 && judged.lost_tail == 0;
    match judged.fate {
        Fate::Mapped | Fate::Registered | Fate::PinsShared | Fate::Window | Fate::Discardable | Fate::Msi => is_whole,
        Fate::Skipped => judged.kind.what == What::Io,
        _ => false,
    }
}
