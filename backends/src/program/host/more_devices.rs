//! A soft host with more devices: a plan for many devices needs no description of each.

use std::collections::BTreeSet;

use dmaspace::pci::PciAddress;
use dmaspace_soft::Profile;
use dmaspace_soft::profile::DeviceProfile;

/// The host with `n` devices more, in groups like the first that can be passed on, and these devices. On POWER each is
/// behind a PCI host bridge of its own.
pub(super) fn with(profile: &Profile, n: u32) -> (Profile, Vec<PciAddress>) {
    let mut profile = profile.clone();
    let mut added = Vec::new();
    let Some(model) = profile.groups.iter().find(|group| !group.held_by_kernel && !super::is_kept(group)).cloned()
    else {
        return (profile, added);
    };
    let (mut group, mut node) = (Numbers::of_groups(&profile), Numbers::of_nodes(&profile));
    let mut addresses = addresses_not_in(&profile);
    let has_node = model.devices.iter().any(|device| device.node.is_some());
    for _ in 0..n {
        let Some(address) = addresses.next() else { break };
        let device = DeviceProfile { address: address.to_string(), node: has_node.then(|| node.next()) };
        let mut next = model.clone();
        (next.number, next.devices) = (group.next(), vec![device]);
        profile.groups.push(next);
        added.push(address);
    }
    (profile, added)
}

/// The addresses that no device of the host has.
fn addresses_not_in(profile: &Profile) -> impl Iterator<Item = PciAddress> + use<> {
    let devices = profile.groups.iter().flat_map(|group| &group.devices);
    let taken: BTreeSet<String> = devices.map(|device| device.address.to_lowercase()).collect();
    let all = (0x100..=0xffff_u32).map(|domain| format!("{domain:04x}:01:00.0"));
    all.filter(move |address| !taken.contains(address)).filter_map(|address| address.parse().ok())
}

/// Numbers behind those that are taken.
struct Numbers {
    next: u32,
}

impl Numbers {
    fn of_groups(profile: &Profile) -> Self {
        Self::behind(profile.groups.iter().map(|group| group.number))
    }

    fn of_nodes(profile: &Profile) -> Self {
        let devices = profile.groups.iter().flat_map(|group| &group.devices);
        Self::behind(devices.filter_map(|device| device.node))
    }

    fn behind(taken: impl Iterator<Item = u32>) -> Self {
        Self { next: taken.max().map_or(0, |last| last.saturating_add(1)) }
    }

    fn next(&mut self) -> u32 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_more_devices_is_a_host() {
        for name in Profile::PRESETS {
            let preset = Profile::preset(name).expect("a preset");
            let (profile, added) = with(&preset, 40);
            assert_eq!((profile.check(), added.len()), (Ok(()), 40), "{name}");
            assert_eq!(profile.groups.len(), preset.groups.len() + 40, "{name}");
        }
    }
}
