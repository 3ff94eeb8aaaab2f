//! A checked profile in types: the properties of the host that the dialects ask for.

use std::collections::{BTreeMap, BTreeSet};

use dmaspace_core::door::Errno;
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes};

use crate::profile::{BadProfile, FixedIommu, Group, KernelVersion, Profile, Reason, ReservedProfile, TceIommu};

/// The properties of the host.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The host's page.
    pub(crate) page: PageSize,
    /// The kernel whose answers the host gives.
    pub(crate) kernel: KernelVersion,
    /// The IOMMU, on hosts with fixed windows.
    pub(crate) fixed: Option<Fixed>,
    /// The IOMMU, on hosts with windows that are created.
    pub(crate) tce: Option<TceIommu>,
    /// The number of mappings that a type1 container accepts.
    pub(crate) dma_entries: u32,
    /// The ranges reserved for the devices of each group, including the IOMMU's own.
    reserved: BTreeMap<u32, Vec<IovaRange>>,
    /// The IOMMU in front of each group.
    iommus: BTreeMap<u32, Iommu>,
    /// The groups with a direct region, which the firmware needs and cannot do without.
    kept_by_firmware: BTreeSet<u32>,
}

/// One of the host's IOMMUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Iommu {
    number: u32,
    /// `true` if the IOMMU logs the writes of devices.
    pub(crate) logs_writes: bool,
}

/// An IOMMU with fixed windows.
#[derive(Clone, Debug)]
pub(crate) struct Fixed {
    /// The addresses that the IOMMU translates.
    pub(crate) aperture: IovaRange,
    /// The page sizes of the IOMMU.
    pub(crate) page_sizes: PageSizes,
    /// `true` if devices may read memory that was mapped for writing only.
    pub(crate) write_implies_read: bool,
}

impl Facts {
    pub(crate) fn of(profile: &Profile) -> Result<Self, BadProfile> {
        profile.check()?;
        let page = PageSize::from_bytes(profile.host_page);
        debug_assert!(page.is_some(), "a checked profile has a page of the host");
        let fixed = profile.fixed.as_ref();
        let common = fixed.map_or(&[][..], |fixed| &fixed.reserved);
        let mut reserved = BTreeMap::new();
        for group in &profile.groups {
            let all = common.iter().chain(&group.reserved).filter_map(ReservedProfile::unmappable);
            reserved.insert(group.number, all.collect());
        }
        Ok(Self {
            page: page.unwrap_or(PageSize::K4),
            kernel: profile.kernel,
            fixed: fixed.and_then(Fixed::of),
            tce: profile.tce.clone(),
            dma_entries: profile.limits.dma_entries,
            reserved,
            iommus: profile.groups.iter().map(|group| (group.number, Iommu::of(group))).collect(),
            kept_by_firmware: profile
                .groups
                .iter()
                .filter(|group| common.iter().chain(&group.reserved).any(|range| range.reason == Reason::Direct))
                .map(|group| group.number)
                .collect(),
        })
    }

    /// The answer to a claim of a group's DMA for a process (linux: drivers/iommu/iommu.c, __iommu_device_set_domain,
    /// since 6.6: a device with a direct region cannot be blocked).
    pub(crate) fn claim(&self, group: u32) -> Result<(), Errno> {
        let is_refused = self.kept_by_firmware.contains(&group) && self.refuses_claims();
        if is_refused { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// The answer to an attachment of a group to a page table of a process (linux: drivers/iommu/intel/iommu.c,
    /// intel_iommu_attach_device, up to 6.5: device_is_rmrr_locked).
    pub(crate) fn attach(&self, group: u32) -> Result<(), Errno> {
        let is_refused = self.kept_by_firmware.contains(&group) && !self.refuses_claims();
        if is_refused { Err(Errno::EPERM) } else { Ok(()) }
    }

    fn refuses_claims(&self) -> bool {
        self.kernel >= KernelVersion { major: 6, minor: 6 }
    }

    /// The ranges that the devices of `group` cannot use.
    pub(crate) fn reserved(&self, group: u32) -> &[IovaRange] {
        debug_assert!(self.reserved.contains_key(&group), "group {group} is none of the profile's");
        self.reserved.get(&group).map_or(&[], Vec::as_slice)
    }

    /// The IOMMU in front of `group`.
    pub(crate) fn iommu(&self, group: u32) -> Iommu {
        debug_assert!(self.iommus.contains_key(&group), "group {group} is none of the profile's");
        self.iommus.get(&group).copied().unwrap_or_default()
    }

    /// Returns whether the kernel allocates page tables by request that log: since Linux 6.7. Linux 6.6 has only a part
    /// of the requests.
    pub(crate) fn has_logging_page_tables(&self) -> bool {
        self.kernel >= KernelVersion { major: 6, minor: 7 }
    }

    /// Returns whether the addresses of a type1 container's mappings can be updated: since Linux 5.12.
    pub(crate) fn moves_addresses(&self) -> bool {
        self.kernel >= KernelVersion { major: 5, minor: 12 }
    }

    /// The errno of type1 for a range that wraps around 2^64.
    pub(crate) fn wrap(&self) -> Errno {
        if self.is_modern() { Errno::EOVERFLOW } else { Errno::EINVAL }
    }

    /// Returns whether MSI-X vectors can be added while MSI-X is enabled (linux: kernel/irq/msi.c,
    /// pci_msix_can_alloc_dyn): the interrupt controllers of a PC can, those of POWER cannot.
    pub(crate) fn has_dynamic_msix(&self) -> bool {
        self.tce.is_none() && self.kernel >= KernelVersion { major: 6, minor: 5 }
    }

    /// Returns whether to answer as Linux 7.2, and not as 6.12, where the two differ.
    pub(crate) fn is_modern(&self) -> bool {
        self.kernel >= KernelVersion::V7_2
    }
}

impl Fixed {
    fn of(described: &FixedIommu) -> Option<Self> {
        let aperture = IovaRange::new(Iova::new(0), Iova::new(described.last)).ok();
        let page_sizes = PageSizes::from_mask(described.page_sizes);
        debug_assert!(aperture.is_some() && page_sizes.is_some(), "a checked profile has page sizes");
        Some(Self { aperture: aperture?, page_sizes: page_sizes?, write_implies_read: described.write_implies_read })
    }
}

impl Iommu {
    fn of(group: &Group) -> Self {
        Self { number: group.iommu, logs_writes: group.logs_writes }
    }
}
