//! The device itself: its driver, its nodes, its BARs, its reset.

use std::path::{Path, PathBuf};

use dmaspace::choose::{Choice, OpenRequest};
use dmaspace::facts::{CONTAINER_NODE, HostFiles as _, IOMMUFD_NODE, PciDevice};
use dmaspace::pci::PciAddress;

use super::remark::Remarks;
use crate::program::explain::Code;
use crate::program::machine::{Access, Bar, Function, Machine, Unseen};
use crate::program::units::in_units;

pub(super) fn examine(machine: &Machine, device: &PciDevice, remarks: &mut Remarks, unseen: &mut Vec<Unseen>) {
    let function = machine.function(device.address);
    if device.is_with_vfio() {
        nodes(machine, device, remarks);
    } else {
        driver(device, remarks);
    }
    bars(machine, &function, remarks);
    if !function.has_capabilities {
        let needs = if machine.root.is_here { "root" } else { "the file config of the device, read by root" };
        unseen.push(Unseen::new("the device's capabilities, and with them the table of its interrupts", needs));
    }
    width(machine, device, remarks);
    states(machine, device, remarks);
}

/// Returns whether the device is a bridge, by its class or by its header.
pub(super) fn is_bridge(machine: &Machine, device: &PciDevice) -> bool {
    device.is_bridge() || machine.function(device.address).header != 0
}

fn driver(device: &PciDevice, remarks: &mut Remarks) {
    let address = device.address;
    match device.driver.as_deref() {
        Some(driver) => {
            let said =
                format!("The host's driver {driver} uses the device. Stop what uses it, then hand it to vfio-pci:");
            remarks.no(Code::DriverBound, said, binding(address, true));
        }
        None => {
            let said = "The device has no driver, and VFIO does not have it yet. Hand it to vfio-pci:";
            remarks.no(Code::NoDriver, said, binding(address, false));
        }
    }
}

/// The commands that bind a device to vfio-pci.
pub(super) fn binding(address: PciAddress, is_bound: bool) -> Vec<String> {
    let at = format!("/sys/bus/pci/devices/{address}");
    let mut commands = vec!["modprobe vfio-pci".to_owned()];
    commands.extend(is_bound.then(|| format!("echo {address} > {at}/driver/unbind")));
    commands.push(format!("echo vfio-pci > {at}/driver_override"));
    commands.push(format!("echo {address} > /sys/bus/pci/drivers_probe"));
    commands
}

/// The nodes of the two ways to a device: its group's with a container, and its own with iommufd.
fn nodes(machine: &Machine, device: &PciDevice, remarks: &mut Remarks) {
    let group = device.group.and_then(|number| machine.facts.groups.get(&number)).map(|group| group.path());
    let own = device.vfio.as_ref().map(|vfio| vfio.path());
    let by_group = group.map(|node| [PathBuf::from(CONTAINER_NODE), node]);
    let by_itself = own.map(|node| [PathBuf::from(IOMMUFD_NODE), node]);
    let ways: Vec<[(PathBuf, Access); 2]> = by_group
        .into_iter()
        .chain(by_itself)
        .map(|way| way.map(|node| (node.clone(), machine.access(&node))))
        .collect();
    let is_open =
        |way: &&[(PathBuf, Access); 2]| way.iter().all(|(_, access)| matches!(access, Access::Open | Access::Unknown));
    if ways.iter().any(|way| is_open(&way)) {
        backend(machine, device, remarks);
        return;
    }
    let complete = ways.iter().find(|way| way.iter().all(|(_, access)| *access != Access::Missing));
    match complete {
        Some(way) => closed(machine, way, remarks),
        None => missing(machine, &ways, remarks),
    }
}

/// Both nodes of a way exist, and one of them cannot be opened.
fn closed(machine: &Machine, way: &[(PathBuf, Access); 2], remarks: &mut Remarks) {
    let user = machine.user.uid().map_or_else(|| "USER".to_owned(), |uid| uid.to_string());
    for (node, access) in way {
        let shown = node.display();
        match access {
            Access::Denied(owner) => {
                let owned = owner.map_or_else(String::new, |owner| {
                    format!(": it belongs to user {} and group {}, mode {:04o}", owner.uid, owner.gid, owner.mode)
                });
                let said = format!("You may not open {shown}{owned}. libvirt does this by itself for its guests.");
                remarks.no(Code::NoPermission, said, [format!("chown {user} {shown}")]);
            }
            Access::Busy => {
                let said = format!("Another program has {shown} open, probably a guest that still runs.");
                remarks.no(Code::InUse, said, [format!("fuser -v {shown}")]);
            }
            Access::Failed(why) => {
                remarks.no(Code::NoNode, format!("{shown} cannot be opened: {why}"), [format!("ls -l {shown}")]);
            }
            Access::Open | Access::Missing | Access::Unknown => {}
        }
    }
}

/// Each way lacks a node.
fn missing(machine: &Machine, ways: &[[(PathBuf, Access); 2]], remarks: &mut Remarks) {
    let Some(way) = ways.first() else {
        remarks.no(
            Code::NoNode,
            "The device has neither a group's node nor one of its own.",
            ["ls -lR /dev/vfio".to_owned()],
        );
        return;
    };
    for (node, access) in way {
        if *access == Access::Missing {
            missing_node(machine, node, remarks);
        }
    }
}

fn missing_node(machine: &Machine, node: &Path, remarks: &mut Remarks) {
    let shown = node.display();
    if machine.root.has_device_of(node) {
        let said = format!(
            "{shown} is missing, although the kernel has the device: this is a container or a chroot that was not \
             given it. Start the container with:"
        );
        remarks.no(Code::NoNode, said, [format!("docker run --device {shown} …")]);
        return;
    }
    let said = format!("{shown} is missing.");
    let command = if node == Path::new(CONTAINER_NODE) { "modprobe vfio-pci" } else { "ls -lR /dev/vfio" };
    remarks.no(Code::NoNode, said, [command.to_owned()]);
}

/// Everything is in place; does a backend fit?
fn backend(machine: &Machine, device: &PciDevice, remarks: &mut Remarks) {
    let choice = Choice::of(&machine.facts, &OpenRequest::device(device.address));
    let has_other = machine.facts.groups.get(&device.group.unwrap_or_default()).is_none_or(|group| group.noiommu);
    let is_explained = choice.rejected.iter().flat_map(|(_, obstacles)| obstacles).any(|obstacle| {
        use dmaspace::choose::Obstacle::{Firmware, Neighbour, NoDriver, NoGroup, NoIommu, NoNode};
        matches!(obstacle, Firmware { .. } | Neighbour { .. } | NoDriver(_) | NoGroup(..) | NoIommu(_) | NoNode { .. })
    });
    if choice.chosen.is_none() && !has_other && !is_explained {
        remarks.no(Code::NoBackend, format!("No interface of the kernel fits: {choice}"), []);
    }
}

fn bars(machine: &Machine, function: &Function, remarks: &mut Remarks) {
    const LARGE: u64 = 1 << 32;
    let page = machine.facts.host_page.bytes();
    for Bar { index, start, len } in &function.bars {
        let size = in_units((*len).into());
        if *len < page || start % page != 0 {
            let page = in_units(page.into());
            let said = format!("BAR {index} has {size}, which is no page of {page}: accesses to it leave the guest.");
            remarks.fine(Code::BarSmall, said);
        } else if *len >= LARGE {
            let said = format!("BAR {index} has {size}: the guest needs UEFI firmware and room above 4 GiB.");
            remarks.fine(Code::BarLarge, said);
        }
    }
    let table = function.msix.and_then(|table| Some((table, function.bars.iter().find(|bar| bar.index == table.bar)?)));
    if let Some((table, bar)) = table {
        let first = table.offset & !(page - 1);
        let end = (table.offset + table.len).next_multiple_of(page);
        if first > 0 || end < bar.len {
            let said = format!(
                "The table of its interrupts (MSI-X) is in BAR {} at {:#x}, among other registers: the page around it \
                 is slow. If the driver is: x-msix-relocation=auto for QEMU's vfio-pci.",
                table.bar, table.offset
            );
            remarks.fine(Code::BarMsix, said);
        }
    }
}

/// The address bits of the IOMMU in front of the device.
fn width(machine: &Machine, device: &PciDevice, remarks: &mut Remarks) {
    /// Guests of today have more.
    const COMMON: u32 = 46;
    let unit = machine.unit_of(device.address).and_then(|unit| machine.units.get(unit));
    let widths = machine.units.iter().filter_map(|unit| unit.kind.address_bits());
    let bits = unit.and_then(|unit| unit.kind.address_bits()).or_else(|| widths.min());
    if let Some(bits) = bits.filter(|bits| *bits < COMMON) {
        let said = format!(
            "The IOMMU translates {bits} address bits ({}); QEMU should give the guest no more: -cpu \
             host,host-phys-bits-limit={bits}",
            in_units(1 << bits)
        );
        remarks.later(Code::NarrowIommu, said, []);
    }
}

/// Its power, its reset, its part in the start of the machine.
fn states(machine: &Machine, device: &PciDevice, remarks: &mut Remarks) {
    let at = format!("sys/bus/pci/devices/{}", device.address);
    if machine.root.text(format!("{at}/power_state")).as_deref() == Some("D3cold") {
        let said = "The device is asleep (D3cold).";
        remarks.later(Code::PowerState, said, [format!("echo on > /{at}/power/control")]);
    }
    if machine.root.text(format!("{at}/boot_vga")).as_deref() == Some("1") {
        let said = "The firmware drew on this graphics device: the host's console may keep its memory.";
        remarks.later(Code::BootDisplay, said, []);
    }
    let method = machine.root.text(format!("{at}/reset_method"));
    let can_reset = match &method {
        Some(method) => !method.is_empty(),
        None => machine.root.exists(format!("{at}/reset").as_ref()),
    };
    if !can_reset {
        let said =
            "The device has no way of being reset by itself: a second start of the guest may find it in a bad state.";
        remarks.later(Code::NoReset, said, []);
    }
}
