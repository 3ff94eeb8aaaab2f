//! A probe as people read it.

use dmaspace::{Iova, IovaRange};
use dmaspace_soft::Profile;
use dmaspace_soft::profile::{FixedIommu, Group, KernelInterface, Reason, ReservedProfile, TceIommu};

use super::Found;
use super::described::{is_kept, page_names};
use crate::program::machine::{Machine, State, Unseen};
use crate::program::text::{lines_of_table, paragraph};
use crate::program::units::in_units;

/// A machine.
pub(super) fn of(machine: &Machine, found: &Found) -> String {
    let parts = [
        heading(&found.profile, &machine.facts.kernel),
        paragraph("The kernel's interfaces", Some(interfaces(machine))),
        paragraph("IOMMUs", Some(units(machine))),
        windows(&found.profile),
        paragraph("Groups of devices", groups_of(machine)),
        paragraph("Limits", Some(limits(&found.profile))),
        paragraph("Not seen", unseen(&found.unseen)),
    ];
    parts.concat()
}

/// A host that is only described.
pub(super) fn of_described(profile: &Profile) -> String {
    let parts = [
        heading(profile, &profile.kernel.to_string()),
        paragraph("The kernel's interfaces", Some(format!("  {}\n", backends(&profile.backends)))),
        windows(profile),
        paragraph("Groups of devices", described_groups(&profile.groups)),
        paragraph("Limits", Some(limits(profile))),
    ];
    parts.concat()
}

fn heading(profile: &Profile, kernel: &str) -> String {
    let page = in_units(profile.host_page.into());
    format!("{}: {}, Linux {kernel}, pages of {page}\n", profile.name, profile.architecture)
}

fn backends(backends: &[KernelInterface]) -> String {
    let told = backends.iter().map(|backend| match backend {
        KernelInterface::Type1 => "type1",
        KernelInterface::Spapr => "spapr",
        KernelInterface::Iommufd => "iommufd",
    });
    let names: Vec<_> = told.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The interfaces, each with its node and its module.
fn interfaces(machine: &Machine) -> String {
    let nodes = machine.facts.nodes;
    let driver = if machine.facts.platform.is_power() { "vfio_iommu_spapr_tce" } else { "vfio_iommu_type1" };
    let rows = [
        interface(machine, "VFIO containers", "/dev/vfio/vfio", nodes.container, driver),
        interface(machine, "VFIO for PCI", "/dev/vfio/<group>", has_group_node(machine), "vfio_pci"),
        interface(machine, "iommufd", "/dev/iommu", nodes.iommufd, "iommufd"),
        interface(machine, "KVM", "/dev/kvm", nodes.kvm, "kvm"),
    ];
    lines_of_table(["interface", "node", "module"], rows)
}

fn has_group_node(machine: &Machine) -> bool {
    machine.facts.groups.values().any(|group| group.node)
}

fn interface(machine: &Machine, name: &str, node: &str, has_node: bool, module: &str) -> [String; 3] {
    let node = if has_node { node.to_owned() } else { format!("no {node}") };
    let state = match machine.modules.state(module) {
        State::Here => "here",
        // A driver that is built in and has no parameters is not listed.
        _ if has_node => "here",
        State::Loadable => "not loaded",
        State::Absent => "not in this kernel",
        State::Unknown => "not loaded",
    };
    [name.to_owned(), node, format!("{module}: {state}")]
}

fn units(machine: &Machine) -> String {
    if machine.units.is_empty() {
        let said = match machine.facts.groups.values().any(|group| !group.noiommu) {
            true => "not listed in /sys/class/iommu, though there are groups",
            false => "none; dmaspace explain no-iommu",
        };
        return format!("  {said}\n");
    }
    let rows = machine.units.iter().map(|unit| {
        let bits = unit.kind.address_bits().map_or_else(String::new, |bits| bits.to_string());
        let pages = unit.kind.page_sizes().map_or_else(String::new, page_names);
        [unit.name.clone(), unit.kind.name().to_owned(), bits, pages, unit.devices.to_string()]
    });
    lines_of_table(["name", "kind", "address bits", "page sizes", "devices"], rows)
}

/// The ranges that devices can be given, and the ones they cannot.
fn windows(profile: &Profile) -> String {
    match (&profile.fixed, &profile.tce) {
        (Some(fixed), _) => {
            paragraph("Addresses that every device can be given", Some(fixed_windows(fixed)))
                + &paragraph("Addresses that no device can be given", reserved(&fixed.reserved))
        }
        (None, Some(tce)) => paragraph("Windows that can be created", Some(tce_windows(tce))),
        (None, None) => String::new(),
    }
}

fn fixed_windows(fixed: &FixedIommu) -> String {
    let pages = page_names(fixed.page_sizes);
    let rows = usable(fixed).into_iter().map(|(first, last)| {
        let len = u128::from(last) - u128::from(first) + 1;
        [format!("{first:#x}"), format!("{last:#x}"), in_units(len), pages.clone()]
    });
    lines_of_table(["first", "last", "size", "pages"], rows)
}

/// The aperture without its reserved ranges.
fn usable(fixed: &FixedIommu) -> Vec<(u64, u64)> {
    let mut holes: Vec<_> = fixed.reserved.iter().filter(|range| range.reason != Reason::DirectRelaxable).collect();
    holes.sort_by_key(|range| range.first);
    let mut found = Vec::new();
    let mut next = Some(0);
    for hole in holes {
        let Some(first) = next else { break };
        if hole.first > first {
            found.push((first, (hole.first - 1).min(fixed.last)));
        }
        next = hole.last.checked_add(1).map(|end| end.max(first)).filter(|end| *end <= fixed.last);
    }
    found.extend(next.map(|first| (first, fixed.last)));
    found
}

fn reserved(ranges: &[ReservedProfile]) -> Option<String> {
    let rows = ranges.iter().map(|range| {
        [format!("{:#x}", range.first), format!("{:#x}", range.last), range.reason.word().to_owned(), why(range)]
    });
    (!ranges.is_empty()).then(|| lines_of_table(["first", "last", "kind", "why"], rows))
}

fn why(range: &ReservedProfile) -> String {
    let bounds = IovaRange::new(Iova::new(range.first), Iova::new(range.last));
    let is_hypertransport = bounds.is_ok_and(|bounds| bounds.contains(Iova::new(0xfd_0000_0000)));
    match range.reason {
        Reason::Msi => "a write is an interrupt",
        Reason::Reserved if is_hypertransport => "AMD's HyperTransport hole",
        Reason::Reserved => "the hardware uses it",
        Reason::Direct => "the firmware needs it",
        Reason::DirectRelaxable => "the firmware asked for it; it can be mapped",
    }
    .to_owned()
}

fn tce_windows(tce: &TceIommu) -> String {
    let pages = page_names(tce.page_sizes);
    let windows =
        if tce.windows == 0 { "none; one fixed window".to_owned() } else { format!("{}", tce.windows.min(2)) };
    let rows = [
        ["windows at once".to_owned(), windows],
        ["page sizes".to_owned(), pages],
        ["first addresses".to_owned(), tce.starts.map(|start| format!("{start:#x}")).join(", ")],
        ["32-bit window".to_owned(), in_units(tce.default_window.into())],
        ["levels of a table".to_owned(), tce.levels.to_string()],
    ];
    lines_of_table(["", ""], rows)
}

fn groups_of(machine: &Machine) -> Option<String> {
    let mut rows = Vec::new();
    for group in machine.facts.groups.values() {
        for (n, name) in group.members.iter().enumerate() {
            let device = name.parse().ok().and_then(|address| machine.facts.devices.get(&address));
            let number = if n == 0 { group.number.to_string() } else { String::new() };
            let driver = device.and_then(|device| device.driver.clone()).unwrap_or_else(|| "-".to_owned());
            let remark = match device {
                _ if n == 0 && group.noiommu => "without an IOMMU",
                _ if n == 0 && is_kept(group) => "kept by the firmware",
                Some(device) if device.is_bridge() => "bridge",
                Some(device) if device.is_with_vfio() => "can be handed to a guest",
                _ => "",
            };
            let ids = device.map_or_else(String::new, |device| format!("{:04x}:{:04x}", device.vendor, device.device));
            rows.push([number, name.clone(), ids, driver, remark.to_owned()]);
        }
    }
    (!rows.is_empty()).then(|| lines_of_table(["group", "device", "ids", "driver", ""], rows))
}

fn described_groups(groups: &[Group]) -> Option<String> {
    let rows = groups.iter().flat_map(|group| {
        let remark = match group.reserved.iter().any(|range| range.reason == Reason::Direct) {
            true => "kept by the firmware",
            false if group.held_by_kernel => "held by the host",
            false => "can be handed to a guest",
        };
        group.devices.iter().map(move |device| [group.number.to_string(), device.address.clone(), remark.to_owned()])
    });
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| lines_of_table(["group", "device", ""], rows))
}

fn limits(profile: &Profile) -> String {
    let memlock = match profile.limits.memlock {
        Some(bytes) => format!("{} for this user (RLIMIT_MEMLOCK)", in_units(bytes.into())),
        None => "no limit for this user".to_owned(),
    };
    let rows = [
        ["locked memory".to_owned(), memlock],
        ["mappings of a type1 container".to_owned(), profile.limits.dma_entries.to_string()],
    ];
    lines_of_table(["", ""], rows)
}

fn unseen(unseen: &[Unseen]) -> Option<String> {
    let line = |unseen: &Unseen| format!("  {}\n      needs: {}\n", unseen.what, unseen.needs);
    (!unseen.is_empty()).then(|| unseen.iter().map(line).collect())
}
