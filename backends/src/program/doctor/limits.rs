//! Limits: locked memory, mappings, the control group's and the host's memory.

use dmaspace::facts::{HostFiles as _, PciDevice};

use dmaspace::Iova;

use super::remark::{Remarks, Weight};
use crate::program::explain::Code;
use crate::program::machine::Machine;
use crate::program::units::in_units;

/// libvirt adds so much to the guest's memory, for other memory that QEMU maps.
const BESIDES: u64 = 1 << 30;
/// A guest without this much is rare.
const SMALL_GUEST: u64 = 1 << 30;

pub(super) fn examine(machine: &Machine, device: &PciDevice, memory: Option<u64>, remarks: &mut Remarks) {
    locked(machine, memory, remarks);
    mappings(machine, remarks);
    if let Some(memory) = memory {
        hypertransport(machine, device, memory, remarks);
        control_group(machine, memory, remarks);
        host(machine, memory, remarks);
    }
}

fn locked(machine: &Machine, memory: Option<u64>, remarks: &mut Remarks) {
    let limits = machine.facts.limits;
    let Some(limit) = limits.locked_memory.filter(|_| !limits.may_lock_without_limit) else { return };
    let needed = memory.unwrap_or(SMALL_GUEST);
    if limit >= needed {
        return;
    }
    let target = needed.saturating_add(BESIDES);
    let amount = if memory.is_some() { (target >> 10).to_string() } else { "unlimited".to_owned() };
    let has_room = limits.locked_memory_ceiling.is_none_or(|ceiling| ceiling >= target);
    let said = match memory {
        Some(memory) => format!(
            "This user may lock {}, and all {} of the guest's memory are locked, and a little more.",
            in_units(limit.into()),
            in_units(memory.into())
        ),
        None => format!(
            "This user may lock {}, and all of a guest's memory is locked (--memory SIZE).",
            in_units(limit.into())
        ),
    };
    let here = if has_room { "" } else { "   # in a shell of root, from which the guest is started" };
    let commands = [
        format!("ulimit -l {amount}{here}"),
        "or for a unit of systemd: LimitMEMLOCK=infinity; for libvirt: nothing, it raises the limit itself".to_owned(),
    ];
    let weight = if memory.is_some() { Weight::No } else { Weight::Later };
    remarks.add(weight, Code::LockedMemory, said, commands);
}

/// AMD's hole below 1 TiB, which a large guest's memory meets.
fn hypertransport(machine: &Machine, device: &PciDevice, memory: u64, remarks: &mut Remarks) {
    const FIRST: u64 = 0xfd_0000_0000;
    let group = device.group.and_then(|number| machine.facts.groups.get(&number));
    let mut regions = group.into_iter().flat_map(|group| &group.reserved);
    // A PC has up to 2 GiB of its memory above that much, since devices lie below 4 GiB.
    let reaches = memory.saturating_add(2 << 30) > FIRST;
    if reaches && regions.any(|region| region.range.contains(Iova::new(FIRST))) {
        let said = "The guest's memory reaches AMD's hole below 1 TiB. QEMU 7.1 or newer puts it around the hole with \
                    -machine pc-q35-7.1 or newer; others fail with EINVAL.";
        remarks.later(Code::HypertransportHole, said, []);
    }
}

fn mappings(machine: &Machine, remarks: &mut Remarks) {
    const FEW: u64 = 4096;
    if let Some(entries) = machine.facts.limits.type1_mappings.filter(|entries| *entries < FEW) {
        let said = format!("A container takes only {entries} mappings (dma_entry_limit); the default is 65535.");
        let command = "modprobe -r vfio_iommu_type1; modprobe vfio_iommu_type1 dma_entry_limit=65535".to_owned();
        remarks.later(Code::MappingLimit, said, [command]);
    }
}

/// The least memory limit on the way from this process's control group up.
fn control_group(machine: &Machine, memory: u64, remarks: &mut Remarks) {
    let groups = machine.root.text("proc/self/cgroup").unwrap_or_default();
    let Some(path) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return };
    let limits = std::path::Path::new(path).ancestors().filter_map(|group| {
        let file = std::path::Path::new("sys/fs/cgroup").join(group).join("memory.max");
        let limit = machine.root.text(&file)?.parse::<u64>().ok()?;
        Some((limit, group.to_owned()))
    });
    if let Some((limit, group)) = limits.min().filter(|(limit, _)| *limit < memory) {
        let said = format!(
            "The control group /{} may use {}, less than the guest's memory, all of which is allocated at once.",
            group.display(),
            in_units(limit.into())
        );
        remarks.no(
            Code::CgroupLimit,
            said,
            ["systemctl set-property UNIT MemoryMax=infinity   # or the limit of the container or pod".to_owned()],
        );
    }
}

fn host(machine: &Machine, memory: u64, remarks: &mut Remarks) {
    if !machine.root.exists("proc/meminfo".as_ref()) {
        return;
    }
    let text = machine.root.text("proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    let said = |what: &str, bytes: u64| {
        format!(
            "The host has {} of memory{what}, less than the guest, all of whose memory is locked.",
            in_units(bytes.into())
        )
    };
    match (field("MemTotal"), field("MemAvailable")) {
        (Some(total), _) if total < memory => remarks.no(Code::HostMemory, said("", total), []),
        (_, Some(free)) if free < memory => remarks.later(Code::HostMemory, said(" to spare now", free), []),
        _ => {}
    }
}
