//! The group of the device: its neighbours, and the ranges that the firmware keeps.

use dmaspace::facts::{IommuGroup, PciDevice};
use dmaspace::reserved::Why;

use super::device::binding;
use super::remark::Remarks;
use crate::program::explain::Code;
use crate::program::machine::Machine;
use crate::program::probe::is_held;

pub(super) fn examine(machine: &Machine, device: &PciDevice, remarks: &mut Remarks) {
    let Some(group) = device.group.and_then(|number| machine.facts.groups.get(&number)) else {
        no_group(machine, remarks);
        return;
    };
    if group.noiommu {
        let said =
            "The device is only in a group without an IOMMU (enable_unsafe_noiommu_mode): a guest cannot be given it.";
        let commands = ["echo 0 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode".to_owned()];
        remarks.no(Code::NoiommuMode, said, commands);
        return;
    }
    regions(group, remarks);
    neighbours(machine, device, group, remarks);
}

fn no_group(machine: &Machine, remarks: &mut Remarks) {
    // Without any group the IOMMU as a whole is the matter.
    if machine.facts.groups.values().any(|group| !group.noiommu) {
        let said = "The device is in no IOMMU group, although others are: no IOMMU is in front of it.";
        remarks.no(Code::NoGroup, said, ["dmesg | grep -i -e iommu -e dmar -e amd-vi -e smmu".to_owned()]);
    }
}

fn regions(group: &IommuGroup, remarks: &mut Remarks) {
    for region in &group.reserved {
        let (range, number) = (region.range, group.number);
        match Why::of(&region.kind) {
            Why::Direct => {
                let said = format!(
                    "The firmware needs {range} mapped one to one for group {number} (RMRR or IVMD), so VFIO refuses \
                     the whole group. Update the firmware, or turn off in its setup what uses the device."
                );
                remarks.no(
                    Code::FirmwareRegion,
                    said,
                    [format!("cat /sys/kernel/iommu_groups/{number}/reserved_regions")],
                );
            }
            Why::DirectRelaxable => {
                let said = format!("The firmware asked for {range} one to one, and can do without.");
                remarks.fine(Code::FirmwareRegionRelaxable, said);
            }
            _ => {}
        }
    }
}

fn neighbours(machine: &Machine, device: &PciDevice, group: &IommuGroup, remarks: &mut Remarks) {
    let parsed = group.members.iter().filter_map(|name| machine.facts.devices.get(&name.parse().ok()?));
    let others: Vec<_> = parsed.filter(|other| other.address != device.address && !other.is_bridge()).collect();
    for other in others.iter().filter(|other| is_held(other)) {
        let driver = other.driver.as_deref().unwrap_or_default();
        let said = format!(
            "Group {} is shared with {} ({:04x}:{:04x}), which the host's driver {driver} uses. Pass it on too, or \
             leave it unused; if the host needs it, put the card into another slot.",
            group.number, other.address, other.vendor, other.device
        );
        remarks.no(Code::GroupShared, said, binding(other.address, true));
    }
    let harmless: Vec<_> =
        others.iter().filter(|other| !is_held(other)).map(|other| other.address.to_string()).collect();
    if !harmless.is_empty() {
        let said = format!("{} of the same group goes with it.", harmless.join(", "));
        remarks.fine(Code::GroupMembers, said);
    }
}
