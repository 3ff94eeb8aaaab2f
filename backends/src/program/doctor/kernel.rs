//! The kernel: its IOMMU, its modules, its parameters, KVM.

use std::path::Path;

use dmaspace::facts::{HostFiles as _, PciDevice, Platform};

use super::remark::Remarks;
use crate::program::explain::Code;
use crate::program::machine::{Access, Machine, State};

pub(super) fn examine(machine: &Machine, device: &PciDevice, remarks: &mut Remarks) {
    iommu(machine, device, remarks);
    modules(machine, remarks);
    interrupts(machine, remarks);
    parameters(machine, remarks);
    kvm(machine, remarks);
}

/// The IOMMU as a whole. That the device is in no group although others are is its group's matter.
fn iommu(machine: &Machine, device: &PciDevice, remarks: &mut Remarks) {
    let has_groups = machine.facts.groups.values().any(|group| !group.noiommu);
    if has_groups || device.group.is_some_and(|group| machine.facts.groups.contains_key(&group)) {
        return;
    }
    let off = ["intel_iommu", "amd_iommu", "iommu"].into_iter().find(|name| machine.parameter(name) == Some("off"));
    if let Some(name) = off {
        let said = format!("The IOMMU is turned off by {name}=off on the kernel's command line.");
        remarks.no(Code::IommuOff, said, turning_on(machine, Some(name)));
    } else if !machine.units.is_empty() {
        // The kernel lists the IOMMUs that it uses.
        let said = "The kernel uses an IOMMU, and no PCI device is in a group: none is behind it.";
        remarks.no(Code::NoGroup, said, ["dmesg | grep -i -e iommu -e dmar -e amd-vi -e smmu".to_owned()]);
    } else if machine.has_table() {
        let said = "The machine has an IOMMU, and the kernel does not use it.";
        remarks.no(Code::IommuOff, said, turning_on(machine, None));
    } else {
        let said = match machine.facts.platform {
            Platform::X86_64 => {
                "The kernel found no IOMMU: it is off in the firmware (VT-d, AMD-Vi), or the machine has none."
            }
            _ => "The kernel found no IOMMU, or has no driver for it.",
        };
        remarks.no(Code::NoIommu, said, ["dmesg | grep -i -e dmar -e amd-vi -e iommu -e smmu".to_owned()]);
    }
}

/// The words to type, as far as they are known.
fn turning_on(machine: &Machine, off: Option<&str>) -> Vec<String> {
    let is_intel = machine.root.exists("sys/firmware/acpi/tables/DMAR".as_ref());
    let removed = off.map(|name| format!("remove {name}=off"));
    let added = is_intel.then(|| "add intel_iommu=on".to_owned());
    let words: Vec<_> = removed.into_iter().chain(added).collect();
    let words = if words.is_empty() { "add amd_iommu=on or intel_iommu=on".to_owned() } else { words.join(", ") };
    vec![
        format!("editor /etc/default/grub   # GRUB_CMDLINE_LINUX_DEFAULT: {words}"),
        "update-grub && reboot".to_owned(),
    ]
}

/// vfio-pci, and a driver for the IOMMU.
fn modules(machine: &Machine, remarks: &mut Remarks) {
    let has_driver = machine.root.exists("sys/bus/pci/drivers/vfio-pci".as_ref());
    if !has_driver {
        missing(machine, "vfio_pci", "vfio-pci", remarks);
    }
    let driver = if machine.facts.platform.is_power() { "vfio_iommu_spapr_tce" } else { "vfio_iommu_type1" };
    let answered = machine.facts.iommu_types.is_some_and(|types| types.type1 || types.spapr);
    let has_iommufd = machine.facts.nodes.iommufd;
    if answered || has_iommufd || machine.modules.state(driver) == State::Here {
        return;
    }
    // vfio-pci brings it along.
    let comes_along = !has_driver && machine.modules.state(driver) == State::Loadable;
    if !comes_along && machine.modules.state(driver) != State::Unknown {
        missing(machine, driver, driver, remarks);
    }
}

fn missing(machine: &Machine, module: &str, name: &str, remarks: &mut Remarks) {
    match machine.modules.state(module) {
        State::Absent => {
            let said =
                format!("This kernel has no {name}: its modules are not all installed, or it was built without.");
            remarks.no(Code::NoModule, said, [format!("find /lib/modules/$(uname -r) -name '{name}*'")]);
        }
        State::Loadable | State::Unknown => {
            remarks.no(Code::ModuleNotLoaded, format!("{name} is not loaded."), [format!("modprobe {name}")]);
        }
        State::Here => {}
    }
}

/// The remapping of interrupts, on a PC: its interrupts then have `IR-` in their names.
fn interrupts(machine: &Machine, remarks: &mut Remarks) {
    let is_pc = machine.facts.platform == Platform::X86_64;
    let allowed = machine.is_set("vfio_iommu_type1", "allow_unsafe_interrupts")
        || machine.is_set("iommufd", "allow_unsafe_interrupts");
    let has_iommu = !machine.units.is_empty();
    let interrupts = machine.root.text("proc/interrupts").unwrap_or_default();
    let is_remapped = interrupts.contains("IR-") || !interrupts.contains("PCI-MSI");
    if !is_pc || !has_iommu || is_remapped {
        return;
    }
    if allowed {
        let said = "Interrupts are not remapped, and allow_unsafe_interrupts is set: a guest could send the host any \
                    interrupt.";
        remarks.later(Code::UnsafeInterrupts, said, []);
        return;
    }
    let said = "Interrupts are not remapped, so VFIO refuses every device (EPERM). Turn interrupt remapping on in the \
                firmware; or, if you trust the guest:";
    let commands = ["modprobe -r vfio_iommu_type1; modprobe vfio_iommu_type1 allow_unsafe_interrupts=1".to_owned()];
    remarks.no(Code::UnsafeInterrupts, said, commands);
}

fn parameters(machine: &Machine, remarks: &mut Remarks) {
    if machine.parameter("iommu") == Some("pt") || machine.parameter("iommu.passthrough") == Some("1") {
        remarks.fine(Code::PassthroughMode, "iommu=pt is for the host's own devices; guests' are translated as ever.");
    }
    if machine.parameter("pcie_acs_override").is_some() {
        let said = "pcie_acs_override makes groups smaller than the hardware's: devices of different guests may reach \
                    each other's memory.";
        remarks.later(Code::AcsOverride, said, []);
    }
}

fn kvm(machine: &Machine, remarks: &mut Remarks) {
    let node = Path::new("/dev/kvm");
    match machine.access(node) {
        Access::Denied(_) => {
            let said = "You may not open /dev/kvm, so a guest would be emulated, which is very slow.";
            remarks.later(Code::NoPermission, said, ["usermod -aG kvm USER   # and log in again".to_owned()]);
        }
        Access::Missing if machine.root.has_device_of(node) => {
            let said = "/dev/kvm is missing, although the kernel has it: this is a container that was not given it.";
            remarks.later(Code::NoNode, said, ["docker run --device /dev/kvm …".to_owned()]);
        }
        Access::Missing => {
            let module = match machine.facts.platform {
                Platform::Powernv | Platform::Pseries => "kvm_hv",
                _ => "kvm_intel || modprobe kvm_amd",
            };
            let said = "There is no /dev/kvm, so a guest would be emulated, which is very slow.";
            let commands = match machine.facts.platform {
                Platform::Other(_) => Vec::new(),
                _ => vec![format!("modprobe {module}")],
            };
            remarks.later(Code::NoKvm, said, commands);
        }
        _ => {}
    }
}
