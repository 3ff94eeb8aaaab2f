//! The facts of a host in software.
//!
//! With the feature `soft` a VMM's own tests, and this project's, open spaces on a host in software exactly as they do
//! on a real one.

use std::collections::{BTreeMap, BTreeSet};

use dmaspace_core::{Iova, IovaRange, PageSize};
use dmaspace_soft::profile::{
    Architecture, DeviceProfile, Group, KernelInterface, Profile, ReservedProfile, TceManager,
};

use crate::facts::{self, Facts, IommuGroup, IommuTypes, Nodes, PciDevice, ReservedRegion, VfioDevice};
use crate::pci::PciAddress;

impl Facts {
    /// The facts of the host that a profile describes.
    pub fn of_soft(profile: &Profile) -> Self {
        Self {
            platform: platform(profile),
            kernel: profile.kernel.to_string(),
            host_page: PageSize::from_bytes(profile.host_page).unwrap_or(PageSize::K4),
            limits: facts::Limits {
                locked_memory: profile.limits.memlock,
                locked_memory_ceiling: profile.limits.memlock,
                may_lock_without_limit: profile.limits.memlock.is_none(),
                type1_mappings: Some(profile.limits.dma_entries.into()),
            },
            nodes: Nodes {
                container: profile.has(KernelInterface::Type1) || profile.has(KernelInterface::Spapr),
                iommufd: profile.has(KernelInterface::Iommufd),
                kvm: false,
            },
            modules: BTreeSet::new(),
            iommu_types: Some(IommuTypes {
                type1: profile.has(KernelInterface::Type1),
                spapr: profile.has(KernelInterface::Spapr),
                spapr_v2: profile.has(KernelInterface::Spapr),
            }),
            groups: profile.groups.iter().map(|group| (group.number, group_facts(profile, group))).collect(),
            devices: profile.groups.iter().flat_map(devices).collect(),
        }
    }
}

fn platform(profile: &Profile) -> facts::Platform {
    match (&profile.architecture, profile.tce.as_ref().map(|tce| tce.platform)) {
        (Architecture::X86_64, _) => facts::Platform::X86_64,
        (Architecture::Aarch64, _) => facts::Platform::Other("aarch64".to_owned()),
        (Architecture::Other(name), _) => facts::Platform::Other(name.clone()),
        (Architecture::Ppc64le, Some(TceManager::PSeries)) => facts::Platform::Pseries,
        (Architecture::Ppc64le, Some(TceManager::PowerNv) | None) => facts::Platform::Powernv,
    }
}

fn group_facts(profile: &Profile, group: &Group) -> IommuGroup {
    let common = profile.fixed.iter().flat_map(|fixed| &fixed.reserved);
    IommuGroup {
        number: group.number,
        noiommu: false,
        node: true,
        members: group.devices.iter().map(|device| device.address.clone()).collect(),
        reserved: common.chain(&group.reserved).filter_map(reserved).collect(),
    }
}

fn reserved(region: &ReservedProfile) -> Option<ReservedRegion> {
    let range = IovaRange::new(Iova::new(region.first), Iova::new(region.last)).ok()?;
    Some(ReservedRegion { range, kind: region.reason.word().to_owned() })
}

/// The facts of a group's devices. Every device of a host in software is bound to VFIO.
fn devices(group: &Group) -> BTreeMap<PciAddress, PciDevice> {
    group.devices.iter().filter_map(|device| device_facts(group.number, device)).collect()
}

fn device_facts(group: u32, device: &DeviceProfile) -> Option<(PciAddress, PciDevice)> {
    let address: PciAddress = device.address.parse().ok()?;
    let vfio = VfioDevice { name: format!("vfio{}", device.node.unwrap_or_default()), node: device.node.is_some() };
    let facts = PciDevice {
        address,
        vendor: 0x1234,
        device: 0x11e8,
        class: 0xff_0000,
        driver: Some("vfio-pci".to_owned()),
        group: Some(group),
        vfio: Some(vfio),
    };
    Some((address, facts))
}
