//! A checked profile, in types: what the dialects ask about the host.

use std::collections::BTreeMap;

use dmaspace_core::door::Errno;
use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes};

use crate::profile::{BadProfile, Group, KernelVersion, Profile, Reserved, TceIommu};

/// What the host is.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The host's page.
    pub(crate) page: PageSize,
    /// Whose answers it gives.
    pub(crate) kernel: KernelVersion,
    /// Its IOMMU, if its windows are fixed.
    pub(crate) fixed: Option<Fixed>,
    /// Its IOMMU, if its windows are created.
    pub(crate) tce: Option<TceIommu>,
    /// How many mappings a type1 container takes.
    pub(crate) dma_entries: u32,
    /// What is reserved for the devices of each group, the IOMMU's own reservations included.
    reserved: BTreeMap<u32, Vec<IovaRange>>,
    /// What is in front of each group.
    iommus: BTreeMap<u32, Iommu>,
}

/// One of the host's IOMMUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Iommu {
    number: u32,
    /// Whether it logs what devices write.
    pub(crate) logs_writes: bool,
}

/// An IOMMU with fixed windows.
#[derive(Clone, Debug)]
pub(crate) struct Fixed {
    /// What it translates at all.
    pub(crate) aperture: IovaRange,
    /// The pages it can use.
    pub(crate) page_sizes: PageSizes,
    /// Whether devices may read what was mapped for writing only.
    pub(crate) write_implies_read: bool,
}

impl Facts {
    pub(crate) fn of(profile: &Profile) -> Result<Self, BadProfile> {
        profile.check()?;
        let fixed = profile.fixed.as_ref();
        let common = fixed.map_or(&[][..], |fixed| &fixed.reserved);
        let reserved = |own: &[Reserved]| common.iter().chain(own).filter_map(Reserved::that_counts).collect();
        Ok(Self {
            // Both were checked.
            page: PageSize::from_bytes(profile.host_page).unwrap_or(PageSize::K4),
            kernel: profile.kernel,
            fixed: fixed.and_then(|fixed| {
                Some(Fixed {
                    aperture: IovaRange::new(Iova::new(0), Iova::new(fixed.last)).ok()?,
                    page_sizes: PageSizes::from_mask(fixed.page_sizes)?,
                    write_implies_read: fixed.write_implies_read,
                })
            }),
            tce: profile.tce.clone(),
            dma_entries: profile.limits.dma_entries,
            reserved: profile.groups.iter().map(|group| (group.number, reserved(&group.reserved))).collect(),
            iommus: profile.groups.iter().map(|group| (group.number, Iommu::of(group))).collect(),
        })
    }

    /// What the devices of `group` cannot use.
    pub(crate) fn reserved(&self, group: u32) -> &[IovaRange] {
        self.reserved.get(&group).map_or(&[], Vec::as_slice)
    }

    /// What is in front of `group`.
    pub(crate) fn iommu(&self, group: u32) -> Iommu {
        self.iommus.get(&group).copied().unwrap_or_default()
    }

    /// Whether the kernel knows page tables that are made by hand and log: since Linux 6.7. 6.6 had half of the
    /// requests, of no use for that.
    pub(crate) fn has_logging_page_tables(&self) -> bool {
        self.kernel >= KernelVersion { major: 6, minor: 7 }
    }

    /// Whether a type1 container's mappings can be given other addresses: since Linux 5.12.
    pub(crate) fn moves_addresses(&self) -> bool {
        self.kernel >= KernelVersion { major: 5, minor: 12 }
    }

    /// What type1 says to a range that wraps around 2^64.
    pub(crate) fn wrap(&self) -> Errno {
        if self.is_modern() { Errno::EOVERFLOW } else { Errno::EINVAL }
    }

    /// Whether the answers are those of Linux 7.2 rather than 6.12, where the two differ.
    pub(crate) fn is_modern(&self) -> bool {
        self.kernel >= KernelVersion::V7_2
    }
}

impl Iommu {
    fn of(group: &Group) -> Self {
        Self { number: group.iommu, logs_writes: group.logs_writes }
    }
}
