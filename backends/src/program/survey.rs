//! A guest on every host there is a preset of, as a table in Markdown: on which of them it could live, and its losses
//! there.

use dmaspace::listener::Fate;
use dmaspace_soft::Profile;
use dmaspace_soft::profile::KernelInterface;

use crate::program::arguments;
use crate::program::mtree::What;
use crate::program::outcome::{Judged, Outcome};
use crate::program::text::in_units;

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
pub(crate) fn hosts() -> impl Iterator<Item = (&'static str, arguments::Backend)> {
    Profile::PRESETS.into_iter().flat_map(|name| {
        let backends = Profile::preset(name).map(|profile| profile.backends).unwrap_or_default();
        backends.into_iter().map(move |backend| (name, kind_of(backend)))
    })
}

/// sPAPR's first version is for hosts that refuse the second, and none of these does.
fn kind_of(backend: KernelInterface) -> arguments::Backend {
    match backend {
        KernelInterface::Type1 => arguments::Backend::Type1,
        KernelInterface::Spapr => arguments::Backend::Spapr,
        KernelInterface::Iommufd => arguments::Backend::Iommufd,
    }
}

/// The table of one guest: a row for each host, with the outcome of a replay on it.
pub(crate) fn table(file: &str, rows: &[(&'static str, Outcome)]) -> String {
    const COLUMNS: &str = "| host | backend | | map calls | mapped | pinned | tables | lost | what devices do not \
                           reach, and why |\n\
                           |---|---|---|---|---|---|---|---|---|\n";
    let body: String = rows.iter().map(|(host, outcome)| row(host, outcome)).collect();
    format!("\n## {file}\n\n{COLUMNS}{body}")
}

fn row(host: &str, outcome: &Outcome) -> String {
    let Outcome { ok, backend, sections, calls, bytes, .. } = outcome;
    let lost: u128 = sections.iter().map(|judged| u128::from(judged.lost_head) + u128::from(judged.lost_tail)).sum();
    let cells = [
        (if *ok { "in force" } else { "**refused**" }).to_owned(),
        calls.map.to_string(),
        in_units(bytes.mapped.into()),
        in_units(bytes.pinned.into()),
        in_units(bytes.tables.into()),
        in_units(lost),
        why(sections),
    ];
    format!("| {host} | {backend} | {} |\n", cells.join(" | "))
}

/// The ranges that are missing in whole or in part, those of one fate for one reason together. Ranges that the VMM
/// emulates are left out.
fn why(sections: &[Judged]) -> String {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for judged in sections.iter().filter(|judged| !is_all_there(judged)) {
        let what = format!("{}: {}", judged.fate, judged.reason);
        let name = judged.name.clone();
        match groups.iter_mut().find(|(known, _)| *known == what) {
            Some((_, names)) if !names.contains(&name) => names.push(name),
            Some(_) => {}
            None => groups.push((what, vec![name])),
        }
    }
    groups.iter().map(|(what, names)| format!("{} {what}", names.join(", "))).collect::<Vec<_>>().join("<br>")
}

fn is_all_there(judged: &Judged) -> bool {
    let is_whole = judged.lost_head == 0 && judged.lost_tail == 0;
    match judged.fate {
        Fate::Mapped | Fate::Registered | Fate::PinsShared | Fate::Window | Fate::Discardable | Fate::Msi => is_whole,
        Fate::Skipped => judged.kind.what == What::Io,
        _ => false,
    }
}
