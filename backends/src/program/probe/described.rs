//! A machine as a host file.

use std::collections::BTreeSet;

use dmaspace::facts::{IommuGroup, PciDevice, Platform};
use dmaspace::reserved::Why;
use dmaspace::{PageSize, PageSizes};
use dmaspace_soft::Profile;
use dmaspace_soft::profile::{
    Architecture, DeviceProfile, FixedIommu, Group, KernelInterface, KernelVersion, ProcessLimits, Reason,
    ReservedProfile, TceIommu,
};

use super::Found;
use super::asked::{Answers, Asked};
use crate::program::machine::{Machine, State, UnitKind, Unseen};

/// The widest address of page tables with four levels, which nearly all have.
const COMMON_LAST: u64 = 0xffff_ffff_ffff;
/// type1 containers do not offer the last page of 2^64.
const NEARLY_ALL: u64 = u64::MAX - (1 << 20);

/// A reserved range: its first and last address, and the reason, unless it has a word of a newer kernel.
type Range = (u64, u64, Option<Reason>);

/// Describes a machine.
pub(super) fn describe(machine: &Machine, answers: &Answers) -> Found {
    let mut unseen = machine.unseen.clone();
    let groups: Vec<&IommuGroup> = machine.facts.groups.values().filter(|group| !group.noiommu).collect();
    let common = common_ranges(&groups);
    let is_power = machine.facts.platform.is_power();
    let has_iommu = !groups.is_empty();
    let fixed = (has_iommu && !is_power).then(|| fixed(machine, answers, &common, &mut unseen));
    let tce = if has_iommu && is_power { tce(machine, answers, &mut unseen) } else { None };
    note_unasked(machine, answers, &mut unseen);
    let kernel = machine.facts.kernel.parse().unwrap_or_else(|_| {
        unseen.push(Unseen::new("the kernel's version, 6.12 is assumed", "/proc/sys/kernel/osrelease in the copy"));
        KernelVersion::V6_12
    });
    let mut profile = Profile::vtd();
    profile.name = machine.name();
    profile.architecture = Architecture::from(machine.architecture());
    profile.kernel = kernel;
    profile.host_page = machine.facts.host_page.bytes();
    profile.backends = if has_iommu { backends(machine) } else { Vec::new() };
    profile.fixed = fixed;
    profile.tce = tce;
    set_limits(machine, &mut profile.limits, &mut unseen);
    profile.groups = groups.iter().filter_map(|group| described_group(machine, group, &common)).collect();
    Found { profile, unseen }
}

/// The ranges that every group has.
fn common_ranges(groups: &[&IommuGroup]) -> BTreeSet<Range> {
    let mut sets = groups.iter().map(|group| ranges_of(group));
    let first = sets.next().unwrap_or_default();
    let common = sets.fold(first, |common, ranges| common.intersection(&ranges).copied().collect());
    common.into_iter().filter(|(.., reason)| *reason != Some(Reason::Direct)).collect()
}

fn ranges_of(group: &IommuGroup) -> BTreeSet<Range> {
    let range = |region: &dmaspace::facts::ReservedRegion| {
        (region.range.first().get(), region.range.last().get(), reason_of(&region.kind))
    };
    group.reserved.iter().map(range).collect()
}

fn reason_of(kind: &str) -> Option<Reason> {
    Reason::of_kernel(kind)
}

/// The ranges in the form of a host file. An unknown word of a newer kernel means that nothing can be mapped there.
fn described_ranges<'a>(ranges: impl Iterator<Item = &'a Range>) -> Vec<ReservedProfile> {
    let range = |(first, last, reason): &Range| ReservedProfile {
        first: *first,
        last: *last,
        reason: reason.unwrap_or(Reason::Reserved),
    };
    ranges.map(range).collect()
}

fn fixed(machine: &Machine, answers: &Answers, common: &BTreeSet<Range>, unseen: &mut Vec<Unseen>) -> FixedIommu {
    let asked = || answers.values().flatten();
    let told_last = asked().filter_map(|asked| asked.windows.last()).map(|window| window.range.last().get()).min();
    let told_pages = asked().filter_map(pages_of).reduce(|a, b| a & b);
    let bits = machine.units.iter().filter_map(|unit| unit.kind.address_bits()).min();
    let last = told_last.map(|last| if last > NEARLY_ALL { u64::MAX } else { last }).or(bits.map(last_of_bits));
    if last.is_none() {
        unseen.push(Unseen::new("the number of address bits, 48 are assumed", ASKING));
    }
    let registers = machine.units.iter().filter_map(|unit| unit.kind.page_sizes()).reduce(|a, b| a & b);
    let usual = usual_pages(machine.facts.host_page);
    let page_sizes = told_pages.or(registers);
    if page_sizes.is_none() {
        unseen.push(Unseen::new("the IOMMU's page sizes, the usual ones are assumed", ASKING));
    }
    let is_intel = machine.units.iter().any(|unit| matches!(unit.kind, UnitKind::Intel { .. }));
    let is_smmu = machine.units.iter().any(|unit| unit.kind == UnitKind::Smmu);
    let reserved = described_ranges(common.iter());
    let mut fixed = FixedIommu::new(last.unwrap_or(COMMON_LAST), page_sizes.unwrap_or(usual), reserved);
    fixed.write_implies_read = is_intel || is_smmu;
    fixed
}

const ASKING: &str = "a device bound to vfio-pci, in a group that no program uses, and the right to open its node";

fn last_of_bits(bits: u32) -> u64 {
    1_u64.checked_shl(bits).map_or(u64::MAX, |end| end - 1)
}

/// The page sizes of type1; iommufd only tells an alignment.
fn pages_of(asked: &Asked) -> Option<u64> {
    let is_told = asked.backend == dmaspace::BackendKind::Type1;
    asked.windows.first().filter(|_| is_told).map(|window| window.page_sizes.mask())
}

fn usual_pages(page: PageSize) -> u64 {
    match page.shift() {
        16 => 0x2001_0000,
        14 => 0x0200_4000,
        _ => 0x4020_1000,
    }
}

fn tce(machine: &Machine, answers: &Answers, unseen: &mut Vec<Unseen>) -> Option<TceIommu> {
    let preset = match machine.facts.platform {
        Platform::Pseries => Profile::pseries(),
        _ => Profile::powernv9(),
    };
    debug_assert!(preset.tce.is_some(), "POWER's presets have TCE windows");
    let mut tce = preset.tce?;
    let offers = answers.values().flatten().filter_map(|asked| asked.offer.as_ref());
    let asked = offers.map(|offer| offer.page_sizes.mask()).reduce(|a, b| a & b);
    match asked.or_else(|| pages_in_device_tree(machine)) {
        Some(pages) => tce.page_sizes = pages | PageSize::K4.bytes(),
        None => unseen.push(Unseen::new("the page sizes of windows, the usual ones are assumed", ASKING)),
    }
    let default = answers.values().flatten().find_map(|asked| asked.default_window);
    match default.filter(|len| len.is_power_of_two() && *len < 1 << 32) {
        Some(len) => tce.default_window = len,
        None => unseen.push(Unseen::new("the length of the 32-bit window, the usual one is assumed", ASKING)),
    }
    if answers.values().flatten().any(|asked| asked.backend == dmaspace::BackendKind::SpaprV1) {
        tce.windows = 0;
    }
    Some(tce)
}

/// The shifts of page sizes that the firmware lists for a host bridge (linux:
/// arch/powerpc/platforms/powernv/pci-ioda-tce.c, pnv_ioda_parse_tce_sizes).
fn pages_in_device_tree(machine: &Machine) -> Option<u64> {
    let base = "proc/device-tree";
    let names = machine.root.sorted_names(base);
    let lists = names.iter().filter_map(|name| machine.root.bytes(format!("{base}/{name}/ibm,supported-tce-sizes")));
    let masks = lists.map(|list| {
        let shifts = list.chunks_exact(4).filter_map(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
        shifts.filter(|shift| (12..=30).contains(shift)).fold(0_u64, |mask, shift| mask | (1 << shift))
    });
    masks.filter(|mask| *mask != 0).reduce(|a, b| a & b)
}

/// The interfaces that the kernel has, or has as modules.
fn backends(machine: &Machine) -> Vec<KernelInterface> {
    let (facts, modules) = (&machine.facts, &machine.modules);
    let is_there = |module: &str| matches!(modules.state(module), State::Here | State::Loadable);
    if facts.platform.is_power() {
        return vec![KernelInterface::Spapr];
    }
    let types = facts.iommu_types;
    let has_type1 = types.is_some_and(|types| types.type1) || is_there("vfio_iommu_type1");
    let has_iommufd = facts.nodes.iommufd || is_there("iommufd");
    let mut backends = Vec::new();
    backends.extend(has_type1.then_some(KernelInterface::Type1));
    backends.extend(has_iommufd.then_some(KernelInterface::Iommufd));
    if backends.is_empty() && modules.state("vfio") == State::Unknown {
        // Every kernel of a distribution has it.
        backends.push(KernelInterface::Type1);
    }
    backends
}

fn set_limits(machine: &Machine, described: &mut ProcessLimits, unseen: &mut Vec<Unseen>) {
    let limits = machine.facts.limits;
    let entries = limits.type1_mappings.and_then(|entries| u32::try_from(entries).ok());
    let has_type1 = machine.modules.state("vfio_iommu_type1") == State::Here;
    if entries.is_none() && !has_type1 && !machine.facts.platform.is_power() {
        unseen.push(Unseen::new("dma_entry_limit, 65535 is assumed", "modprobe vfio_iommu_type1"));
    }
    described.memlock = limits.locked_memory.filter(|_| !limits.may_lock_without_limit);
    described.dma_entries = entries.unwrap_or(0xffff).max(1);
}

/// A group with its devices; nothing for a group of bridges alone, or of devices that are not PCI functions.
fn described_group(machine: &Machine, group: &IommuGroup, common: &BTreeSet<Range>) -> Option<Group> {
    let members = group.members.iter().filter_map(|name| machine.facts.devices.get(&name.parse().ok()?));
    let devices: Vec<&PciDevice> = members.filter(|device| !device.is_bridge()).collect();
    let unit = devices.first().and_then(|device| machine.unit_of(device.address));
    let own = ranges_of(group);
    let is_scalable = machine.parameter("intel_iommu").is_some_and(|value| value.contains("sm_on"));
    let kind = unit.and_then(|unit| machine.units.get(unit)).map(|unit| unit.kind);
    if devices.is_empty() {
        return None;
    }
    let mut described = Group::new(group.number, devices.iter().map(|device| described_device(device)).collect());
    described.held_by_kernel = devices.iter().any(|device| is_held(device));
    described.reserved = described_ranges(own.iter().filter(|range| !common.contains(range)));
    described.iommu = unit.and_then(|unit| u32::try_from(unit).ok()).unwrap_or_default();
    described.logs_writes = kind.is_some_and(|kind| kind.logs_writes(is_scalable));
    Some(described)
}

/// Returns whether a driver of the host does DMA with the device.
pub(crate) fn is_held(device: &PciDevice) -> bool {
    !device.is_with_vfio() && device.driver.as_deref().is_some_and(|driver| driver != "pci-stub")
}

fn described_device(device: &PciDevice) -> DeviceProfile {
    let node = device.vfio.as_ref().filter(|vfio| vfio.node);
    let number = node.and_then(|vfio| vfio.name.strip_prefix("vfio")?.parse().ok());
    DeviceProfile { address: device.address.to_string(), node: number }
}

/// The groups that could not be asked although a VFIO driver has their devices.
fn note_unasked(machine: &Machine, answers: &Answers, unseen: &mut Vec<Unseen>) {
    for (group, answer) in answers {
        if let Err(why) = answer {
            let needs = if machine.user.is_root() == Some(true) {
                "a group that no program uses"
            } else {
                "the right to open its node (root, or its owner)"
            };
            unseen.push(Unseen::new(format!("the windows of group {group} ({why})"), needs));
        }
    }
}

/// The page sizes of a mask, for people.
pub(super) fn page_names(mask: u64) -> String {
    let sizes: Vec<PageSize> = PageSizes::from_mask(mask).map(|sizes| sizes.iter().collect()).unwrap_or_default();
    match sizes.as_slice() {
        [first, .., last] if sizes.len() > 6 => format!("{first} to {last}, {} sizes", sizes.len()),
        sizes => sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// Returns whether a group is out of reach because of its firmware.
pub(super) fn is_kept(group: &IommuGroup) -> bool {
    group.reserved.iter().any(|region| Why::of(&region.kind) == Why::Direct)
}
