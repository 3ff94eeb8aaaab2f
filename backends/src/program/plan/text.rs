//! A plan as people read it.

use super::budget::{Budget, LockedMemory, Mappings, Payer, TceTables};
use super::{Guest, Planned};
use dmaspace::listener::Fate;

use crate::program::mtree::What;
use crate::program::outcome::{AddressesOf, Judged};
use crate::program::text::{below, cures, paragraph, plural, section_table, sections_of, window_table};
use crate::program::units::{closely, exactly, in_units};

/// The whole of it.
pub(super) fn plan(planned: &Planned) -> String {
    let Planned { guest: Guest { name, .. }, host, backend, windows, sections, .. } = planned;
    let heading = format!("{name}: {}\non the host {host}, through {backend}\n", devices(planned));
    let parts = [
        paragraph("The PCI address space", section_table(sections_of(sections, AddressesOf::Pci))),
        paragraph(
            "System memory, behind the guest's windows",
            section_table(sections_of(sections, AddressesOf::Memory)),
        ),
        paragraph("The host's windows", window_table(windows)),
        paragraph("Budget", planned.budget.as_ref().map(|budget| of_budget(budget, planned))),
        paragraph("What to do", cures(&planned.cures)),
    ];
    heading + &parts.concat() + "\n" + &result(planned) + "\n"
}

fn devices(planned: &Planned) -> String {
    let Planned { devices, containers, .. } = *planned;
    let count = plural(devices as usize, "device");
    match (devices, containers) {
        (1, 1) => count,
        (_, 1) => format!("{count} in one container"),
        (devices, containers) if devices == containers => format!("{count}, each in a container of its own"),
        _ => format!("{count} in {containers} containers"),
    }
}

fn result(planned: &Planned) -> String {
    let text = match (planned.ok, &planned.budget) {
        (true, _) => return format!("The guest fits{}.", lost_bars(&planned.sections)),
        (false, Some(budget)) if budget.fits() => "The guest does not fit: the host does not map all of its memory.",
        (false, Some(_)) => "The guest does not fit: the host allows too little.",
        (false, None) => "The guest does not fit on any host of this kind.",
    };
    text.to_owned()
}

/// BARs that the other devices will not reach.
fn lost_bars(sections: &[Judged]) -> String {
    let lost = sections.iter().filter(|judged| judged.kind.what == What::RamDevice && judged.fate == Fate::Skipped);
    match lost.count() {
        0 => String::new(),
        n => format!(", but {} will be out of the other devices' reach", plural(n, "BAR")),
    }
}

fn of_budget(budget: &Budget, planned: &Planned) -> String {
    let parts = [
        locked_memory(budget.locked_memory, planned.containers),
        budget.mappings.map_or_else(String::new, |mappings| of_mappings(mappings, planned.containers)),
        budget.tce_tables.as_ref().map_or_else(String::new, |tables| tce_tables(tables, planned.containers)),
        page_tables(budget),
    ];
    parts.concat()
}

fn entry(what: &str, amount: &str, why: &str) -> String {
    format!("  {what:<15}  {amount}\n{}", below(why))
}

/// The number in a unit in which little is lost, and exactly.
fn amount(n: u64) -> String {
    format!("{} ({n})", closely(n))
}

fn locked_memory(locked: LockedMemory, containers: u32) -> String {
    let LockedMemory { needed, one_container, limit, fits, charged_to } = locked;
    let verdict = match (limit, fits) {
        (None, _) => "and this host sets no limit".to_owned(),
        (Some(limit), true) => format!("{} are allowed", amount(limit)),
        (Some(limit), false) => format!("only {} are allowed", amount(limit)),
    };
    let payer = match charged_to {
        Payer::Process => "it counts what the VMM's process locks",
        Payer::User => "it counts what all VMs of the VMM's user lock together",
    };
    let all = if containers > 1 {
        format!(" for all containers, of which one by itself takes {}", closely(one_container))
    } else {
        String::new()
    };
    let why = format!("RLIMIT_MEMLOCK must be {} KiB or more{all}; {payer}", needed.div_ceil(1 << 10));
    entry("locked memory", &format!("{}, {verdict}", amount(needed)), &why)
}

fn of_mappings(Mappings { needed, limit, .. }: Mappings, containers: u32) -> String {
    let each = if containers > 1 { ", in each container" } else { "" };
    entry("mappings", &format!("{needed} of {limit}{each}"), "the limit is vfio_iommu_type1's dma_entry_limit")
}

fn tce_tables(TceTables { bytes: all, each }: &TceTables, containers: u32) -> String {
    let listed: Vec<_> = each
        .iter()
        .map(|table| {
            let (window, page) = (exactly(table.window), exactly(table.page));
            format!("{window} in pages of {page}, {}", plural(table.levels as usize, "level"))
        })
        .collect();
    let windows = if listed.is_empty() { "one fixed window".to_owned() } else { listed.join("; ") };
    let each_has = if containers > 1 { "each container has " } else { "" };
    entry("TCE tables", &amount(*all), &format!("{each_has}{windows}; they count as locked memory"))
}

fn page_tables(budget: &Budget) -> String {
    let mut listed = budget
        .page_tables
        .iter()
        .map(|tables| format!("{} with pages of {}", in_units(tables.bytes.into()), exactly(tables.page)));
    let Some(first) = listed.next() else { return String::new() };
    let larger: Vec<_> = listed.collect();
    let apart = if larger.is_empty() { "" } else { "; " };
    let why = format!("{}{apart}kernel memory, which RLIMIT_MEMLOCK does not count", larger.join(", "));
    entry("page tables", &format!("about {first}"), &why)
}
