//! The host a map is replayed on: a soft one, from a preset or a file, or the one this program runs on.

pub(crate) mod file;
mod more_devices;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, Choice, Obstacle, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::linux::LinuxDoor;
use dmaspace::open::{Host, OpenError, Opened};
use dmaspace::pci::PciAddress;
use dmaspace_soft::profile::{DeviceProfile, Group, Reason};
use dmaspace_soft::{Profile, SoftHost};

use crate::program::counting::CountingDoor;
use crate::program::failure::Failure;
use crate::program::sections::Source;

/// The place of a replay.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On a host in software.
    Soft(Box<Profile>),
    /// Here, with this device.
    Here(PciAddress),
}

/// Spaces on a host, and the counter at its door.
#[derive(Debug)]
pub(crate) struct Ready {
    /// The space that is looked at.
    pub(crate) first: Opened,
    /// Spaces beside it.
    others: Vec<Opened>,
    /// The counter, of all of them.
    pub(crate) counter: Arc<CountingDoor>,
}

impl Ready {
    /// All spaces.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Opened> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Place {
    /// The preset of that name, or the host that the file of that name describes.
    ///
    /// # Errors
    /// The fault of the name or the file.
    pub(crate) fn named(name: &str) -> Result<Self, Failure> {
        let profile = match Profile::preset(name) {
            Some(profile) => profile,
            None => file::read(name)?,
        };
        Ok(Self::Soft(Box::new(profile)))
    }

    /// Its name for people.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Soft(profile) => format!("the soft host {}", profile.name),
            Self::Here(device) => format!("this host, with {device}"),
        }
    }

    /// The source of the guest's memory there.
    pub(crate) fn source(&self) -> Source {
        match self {
            Self::Soft(_) => Source::MadeUp,
            Self::Here(_) => Source::Real,
        }
    }

    /// Opens `spaces` spaces there, exactly as a VMM would, each with a device of its own. A soft host has as many
    /// devices as are needed; this host has the one that was named.
    ///
    /// # Errors
    /// The error of opening.
    pub(crate) fn open(&self, backend: Option<BackendKind>, spaces: NonZeroU32) -> Result<Ready, Failure> {
        match self {
            Self::Soft(profile) => open_soft(profile, backend, spaces),
            Self::Here(device) => open_here(*device, backend),
        }
    }
}

fn open_soft(profile: &Profile, backend: Option<BackendKind>, spaces: NonZeroU32) -> Result<Ready, Failure> {
    let profile = &with_a_free_group(profile);
    let device =
        first_device(profile).ok_or_else(|| bad(profile, &"expected a group with a device that can be passed on"))?;
    let (profile, more) = more_devices::with(profile, spaces.get() - 1);
    let soft = SoftHost::new(profile.clone()).map_err(|error| bad(&profile, &error))?;
    let counter = Arc::new(CountingDoor::new(soft));
    let host = Host::new(counter.clone(), Facts::of_soft(&profile));
    let first = open_soft_space(&host, &profile, device, backend)?;
    let others = more.into_iter().map(|device| open_soft_space(&host, &profile, device, backend));
    Ok(Ready { first, others: others.collect::<Result<_, _>>()?, counter })
}

fn open_soft_space(
    host: &Host,
    profile: &Profile,
    device: PciAddress,
    backend: Option<BackendKind>,
) -> Result<Opened, Failure> {
    match host.open(&wish(device, backend)) {
        Ok(opened) => Ok(opened),
        Err(OpenError::NoBackend(choice)) if is_kept_by_firmware(&choice) => {
            Err(Failure::Host(format!("{}: {choice}", profile.name)))
        }
        // The host is a description, so it is the description, or the backend, that has to change.
        Err(OpenError::NoBackend(choice)) => Err(bad(profile, &choice)),
        Err(error) => Err(Failure::host(&error)),
    }
}

fn bad(profile: &Profile, why: &dyn fmt::Display) -> Failure {
    Failure::Input(format!("{}: {why}", profile.name))
}

/// Returns whether the host has the backend, and its firmware keeps the device.
fn is_kept_by_firmware(choice: &Choice) -> bool {
    let mut obstacles = choice.rejected.iter().flat_map(|(_, obstacles)| obstacles);
    obstacles.any(|obstacle| matches!(obstacle, Obstacle::Firmware { .. }))
}

fn open_here(device: PciAddress, backend: Option<BackendKind>) -> Result<Ready, Failure> {
    let counter = Arc::new(CountingDoor::new(Arc::new(LinuxDoor::new())));
    let facts = Facts::of_this_host(&*counter).map_err(|error| Failure::host(&error))?;
    let host = Host::new(counter.clone(), facts);
    let first = host.open(&wish(device, backend)).map_err(|error| Failure::host(&error))?;
    Ok(Ready { first, others: Vec::new(), counter })
}

fn wish(device: PciAddress, backend: Option<BackendKind>) -> OpenRequest {
    let request = OpenRequest::device(device);
    match backend {
        Some(backend) => request.with_backend(backend),
        None => request,
    }
}

/// The profile as it will be once a device is bound to vfio-pci: where the kernel's drivers hold every group, the first
/// that the firmware leaves alone is free, and its device has a node. On most hosts that is the state before the guest
/// is started.
fn with_a_free_group(profile: &Profile) -> Profile {
    let mut profile = profile.clone();
    if profile.groups.iter().any(|group| !group.held_by_kernel) {
        return profile;
    }
    let usable = profile.groups.iter().position(|group| !is_kept(group));
    if let Some(group) = profile.groups.get_mut(usable.unwrap_or_default()) {
        group.held_by_kernel = false;
        for (node, device) in (0..).zip(&mut group.devices) {
            device.node.get_or_insert(FIRST_NODE + node);
        }
    }
    profile
}

/// A number that no node of a described device has, unless it has very many.
const FIRST_NODE: u32 = 1 << 16;

/// Returns whether the firmware keeps the group's devices.
fn is_kept(group: &Group) -> bool {
    group.reserved.iter().any(|reserved| reserved.reason == Reason::Direct)
}

/// The first device that can be passed on, with a node of its own if one has it, in a group that the firmware leaves
/// alone if there is one.
fn first_device(profile: &Profile) -> Option<PciAddress> {
    let with_node = free_devices(profile).find(|device| device.node.is_some());
    with_node.or_else(|| free_devices(profile).next())?.address.parse().ok()
}

fn free_devices(profile: &Profile) -> impl Iterator<Item = &DeviceProfile> {
    let free = profile.groups.iter().filter(|group| !group.held_by_kernel);
    let (kept, left_alone): (Vec<_>, Vec<_>) = free.partition(|group| is_kept(group));
    left_alone.into_iter().chain(kept).flat_map(|group| &group.devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_has_a_device_and_its_backends() {
        use BackendKind::{Iommufd, Spapr, SpaprV1, Type1, Type1OnIommufd};
        let cases: [(&str, &[BackendKind]); 9] = [
            ("vtd", &[Iommufd, Type1, Type1OnIommufd]),
            ("vtd-39bit", &[Iommufd, Type1, Type1OnIommufd]),
            ("amd", &[Iommufd, Type1, Type1OnIommufd]),
            ("arm64-4k", &[Iommufd, Type1, Type1OnIommufd]),
            ("arm64-64k", &[Iommufd, Type1, Type1OnIommufd]),
            ("vtd-64k", &[Iommufd, Type1, Type1OnIommufd]),
            ("powernv9", &[Spapr, SpaprV1]),
            ("powernv9-64k", &[Spapr, SpaprV1]),
            ("pseries", &[Spapr, SpaprV1]),
        ];
        for (name, backends) in cases {
            let profile = Profile::preset(name).expect("a preset");
            let device = first_device(&profile).expect("a device");
            let fits = |backend| Choice::of(&Facts::of_soft(&profile), &wish(device, Some(backend))).chosen.is_some();
            let fitting = BackendKind::ALL.into_iter().filter(|backend| fits(*backend)).collect::<Vec<_>>();
            assert_eq!(fitting, backends, "{name}");
        }
    }

    #[test]
    fn a_device_in_use_by_another_process_is_not_opened() {
        let mut profile = Profile::vtd();
        profile.groups[0].held_by_kernel = true;
        assert_eq!(first_device(&profile).map(|device| device.to_string()).as_deref(), Some("0000:00:04.0"));
        profile.groups.iter_mut().for_each(|group| group.held_by_kernel = true);
        assert_eq!(first_device(&profile), None);
        assert_eq!(
            first_device(&with_a_free_group(&profile)).map(|device| device.to_string()).as_deref(),
            Some("0000:00:03.0")
        );
    }

    #[test]
    fn a_device_that_the_firmware_keeps_is_taken_last() {
        let mut profile = Profile::vtd();
        profile.groups[0].reserved.push(dmaspace_soft::profile::ReservedProfile {
            first: 0,
            last: 0xfff,
            reason: Reason::Direct,
        });
        assert_eq!(first_device(&profile).map(|device| device.to_string()).as_deref(), Some("0000:00:04.0"));
    }
}
