//! The machine's own disk and network card: a device on which the host itself stands.

use std::collections::BTreeSet;
use std::path::{Component, PathBuf};

use dmaspace::facts::{HostFiles as _, PciDevice};
use dmaspace::pci::PciAddress;

use super::remark::Remarks;
use crate::program::explain::Code;
use crate::program::machine::Machine;
use crate::program::root::Root;

pub(super) fn examine(machine: &Machine, device: &PciDevice, remarks: &mut Remarks) {
    // A device that a VFIO driver has carries nothing of the host's any more.
    if device.is_with_vfio() {
        return;
    }
    let root = &machine.root;
    if let Some((disk, place)) = mounted(root).find(|(disk, _)| is_behind(root, &block_device(disk), device.address)) {
        let said = format!(
            "The host itself uses the device: {place} is a file system on {disk}. Without the device the host loses it."
        );
        remarks.no(Code::OwnDisk, said, [format!("lsblk /dev/{disk}")]);
    }
    let network = routed(root).find(|name| is_behind(root, &network_device(name), device.address));
    if let Some(name) = network {
        let said = format!(
            "The host itself uses the device: its default route goes through {name}. Without the device the host is \
             not reached any more, and neither are you if you are logged in through it."
        );
        remarks.no(Code::OwnNetwork, said, ["ip route show default".to_owned()]);
    }
}

fn block_device(name: &str) -> PathBuf {
    ["sys/class/block", name].iter().collect()
}

fn network_device(name: &str) -> PathBuf {
    ["sys/class/net", name].iter().collect()
}

/// Returns whether a link in sysfs leads to something below a PCI function.
fn is_behind(root: &Root, link: &std::path::Path, address: PciAddress) -> bool {
    let Ok(target) = root.target(link) else { return false };
    let address = address.to_string();
    target.components().any(|part| matches!(part, Component::Normal(name) if *name == *address))
}

/// No stack of devices is deeper: a logical volume on a RAID of partitions.
const DEEPEST: usize = 8;

/// The names, and below each one the names that `below` finds for it, each once.
fn with_those_below(names: Vec<String>, below: impl Fn(&str) -> Vec<String>) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = names.into_iter().collect();
    for _ in 0..DEEPEST {
        let found: Vec<String> = all.iter().flat_map(|name| below(name)).collect();
        let known = all.len();
        all.extend(found);
        if all.len() == known {
            break;
        }
    }
    all
}

/// The block devices that hold mounted file systems, each with a place where one is mounted (linux:
/// Documentation/filesystems/proc.rst, 3.5 /proc/<pid>/mountinfo).
fn mounted(root: &Root) -> impl Iterator<Item = (String, String)> {
    let text = root.text("proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let (mut before, mut after) = (before.split(' '), after.split(' '));
        let (Some(number), Some(place), Some(source)) = (before.nth(2), before.nth(1), after.nth(1)) else { continue };
        let names = names_of_disk(root, number, source);
        for name in with_those_below(names, |name| root.sorted_names(format!("sys/block/{name}/slaves"))) {
            found.push((name, place.to_owned()));
        }
    }
    found.into_iter()
}

/// The block device of a file system. Btrfs tells a number of its own, so the node counts, too.
fn names_of_disk(root: &Root, number: &str, source: &str) -> Vec<String> {
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
    let by_number = if is_number { root.link(format!("sys/dev/block/{number}")) } else { None };
    let by_node = source.strip_prefix("/dev/").filter(|name| !name.contains('/'));
    by_number.into_iter().chain(by_node.map(str::to_owned)).collect()
}

/// The network devices through which the default routes go, with the ones below bridges and bonds.
fn routed(root: &Root) -> impl Iterator<Item = String> {
    let names = names_in_ipv4(&root.text("proc/net/route").unwrap_or_default())
        .chain(names_in_ipv6(&root.text("proc/net/ipv6_route").unwrap_or_default()))
        .collect();
    with_those_below(names, |name| lower_devices(root, name)).into_iter()
}

/// The devices of default routes: destination and mask are zero.
fn names_in_ipv4(routes: &str) -> impl Iterator<Item = String> {
    const ANY: &str = "00000000";
    let words = routes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let names = words.filter_map(|words| match words.as_slice() {
        [name, ANY, _, _, _, _, _, ANY, ..] => Some((*name).to_owned()),
        _ => None,
    });
    names.collect::<Vec<_>>().into_iter()
}

/// The devices of default routes: destination and the length of its prefix are zero. Routes through `lo` refuse.
fn names_in_ipv6(routes: &str) -> impl Iterator<Item = String> {
    const ANY: &str = "00000000000000000000000000000000";
    let words = routes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let names = words.filter_map(|words| match words.as_slice() {
        [ANY, "00", .., name] if *name != "lo" => Some((*name).to_owned()),
        _ => None,
    });
    names.collect::<Vec<_>>().into_iter()
}

fn lower_devices(root: &Root, name: &str) -> Vec<String> {
    let names = root.sorted_names(format!("sys/devices/virtual/net/{name}"));
    names.iter().filter_map(|name| name.strip_prefix("lower_")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_routes_are_told_from_others() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                      br0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                      eth1\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(names_in_ipv4(routes).collect::<Vec<_>>(), ["br0"]);
        let zero = "0".repeat(32);
        let routes = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000064 00000001 00000000 00000003 eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n\
             fe80{} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth2\n",
            "0".repeat(28)
        );
        assert_eq!(names_in_ipv6(&routes).collect::<Vec<_>>(), ["eth0"]);
    }

    #[test]
    fn devices_below_devices_are_found_and_loops_end() {
        let below = |name: &str| match name {
            "vg" => vec!["md0".to_owned()],
            "md0" => vec!["sda1".to_owned(), "sdb1".to_owned()],
            "sda1" => vec!["vg".to_owned()],
            _ => Vec::new(),
        };
        let all: Vec<_> = with_those_below(vec!["vg".to_owned()], below).into_iter().collect();
        assert_eq!(all, ["md0", "sda1", "sdb1", "vg"]);
    }
}
