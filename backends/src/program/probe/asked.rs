//! The kernel's own answers: the windows of the groups that can be opened now.
//!
//! A group is opened without any of its devices where the kernel has containers, so no device is reset. Where there is
//! only iommufd, a device has to be opened.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::contract::WindowOffer;
use dmaspace::door::{Door, HandleKind, OwnedHandle};
use dmaspace::facts::IommuGroup;
use dmaspace::open::Host;
use dmaspace::{OpenSpace, Window};

use crate::program::machine::Machine;

/// The answers for each group that has a node or a device with one.
pub(crate) type Answers = BTreeMap<u32, Result<Asked, String>>;

/// The kernel's answer for a group.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The interface that was asked.
    pub(crate) backend: BackendKind,
    /// Its fixed windows.
    pub(crate) windows: Vec<Window>,
    /// The windows that can be created.
    pub(crate) offer: Option<WindowOffer>,
    /// The length of the one window of sPAPR's first version.
    pub(crate) default_window: Option<u64>,
}

/// The most groups that are asked.
const MOST: usize = 256;

/// Asks the kernel, if this is its host.
pub(crate) fn ask(machine: &Machine) -> Answers {
    let Some(door) = &machine.door else { return Answers::new() };
    let door: Arc<dyn Door> = door.clone();
    let host = Host::new(door, machine.facts.clone());
    let bound = machine.facts.devices.values().filter(|device| device.is_with_vfio());
    let groups: BTreeMap<_, _> = bound.filter_map(|device| Some((device.group?, device.address))).collect();
    let mut answers = Answers::new();
    for (number, address) in groups.into_iter().take(MOST) {
        let Some(group) = machine.facts.groups.get(&number).filter(|group| !group.noiommu) else { continue };
        let request = OpenRequest::device(address);
        let answer = match container_kind(&host) {
            Some(kind) if group.node => of_group(&host, kind, group),
            _ => of_device(&host, &request),
        };
        answers.insert(number, answer);
    }
    answers
}

/// The kind of a container that this kernel has.
fn container_kind(host: &Host) -> Option<BackendKind> {
    let facts = host.facts();
    let types = facts.iommu_types?;
    match () {
        () if types.type1 => Some(BackendKind::Type1),
        () if types.spapr_v2 => Some(BackendKind::Spapr),
        () if types.spapr => Some(BackendKind::SpaprV1),
        () => None,
    }
}

fn of_group(host: &Host, kind: BackendKind, group: &IommuGroup) -> Result<Asked, String> {
    let space = match with_group(host, kind, group) {
        // A platform that cannot create windows.
        Err(_) if kind == BackendKind::Spapr => with_group(host, BackendKind::SpaprV1, group)?,
        other => other?,
    };
    let mut asked = answer(&space);
    drop(space);
    if kind == BackendKind::Spapr {
        let fixed = with_group(host, BackendKind::SpaprV1, group).ok();
        asked.default_window = fixed.and_then(|space| len_of_first(&space));
    }
    Ok(asked)
}

fn len_of_first(space: &OpenSpace) -> Option<u64> {
    let windows = space.space().windows().windows;
    let len = windows.iter().next()?.range.len()?;
    Some(len.get())
}

fn with_group(host: &Host, kind: BackendKind, group: &IommuGroup) -> Result<OpenSpace, String> {
    let mut space = host.open_space(kind).map_err(|error| error.to_string())?;
    let path = group.path();
    let node = open(host, &path)?;
    space.add_group(node, &format!("group {}", group.number)).map_err(|error| error.to_string())?;
    Ok(space)
}

fn open(host: &Host, path: &Path) -> Result<OwnedHandle, String> {
    let node = OwnedHandle::open(host.door().clone(), path, HandleKind::Group);
    node.map_err(|errno| format!("opening {}: {errno}", path.display()))
}

fn of_device(host: &Host, request: &OpenRequest) -> Result<Asked, String> {
    let opened = host.open(request).map_err(|error| error.to_string())?;
    Ok(answer(&opened.space))
}

fn answer(space: &OpenSpace) -> Asked {
    let windows = space.space().windows().windows;
    let powers = space.space().powers();
    Asked {
        backend: space.backend(),
        windows: windows.iter().copied().collect(),
        offer: powers.window_control.and_then(|control| control.offer()),
        default_window: None,
    }
}
