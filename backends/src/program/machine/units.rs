//! The IOMMUs that the kernel lists in `/sys/class/iommu`, and the meaning of their registers.

use dmaspace::facts::HostFiles as _;

use crate::program::root::Root;

/// An IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its name: `dmar0`, `ivhd0`, `smmu3.0x0000000043000000`.
    pub(crate) name: String,
    pub(crate) kind: UnitKind,
    /// The number of devices behind it.
    pub(crate) devices: usize,
}

/// The kind of an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitKind {
    /// Intel's, with its capability registers.
    Intel {
        /// CAP_REG.
        cap: u64,
        /// ECAP_REG.
        ecap: u64,
    },
    /// AMD's.
    Amd,
    /// Arm's.
    Smmu,
    /// The paravirtual one.
    Virtio,
    /// Another.
    Other,
}

/// All of them, sorted by their names.
pub(super) fn read(root: &Root) -> Vec<Unit> {
    let names = root.sorted_names("sys/class/iommu");
    names.into_iter().map(|name| unit(root, name)).collect()
}

fn unit(root: &Root, name: String) -> Unit {
    let at = format!("sys/class/iommu/{name}");
    let register = |file: &str| {
        let text = root.text(format!("{at}/intel-iommu/{file}"))?;
        u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    };
    let kind = match register("cap") {
        Some(cap) => UnitKind::Intel { cap, ecap: register("ecap").unwrap_or_default() },
        None if root.exists(format!("{at}/amd-iommu").as_ref()) || name.starts_with("ivhd") => UnitKind::Amd,
        None if name.starts_with("smmu") || name.starts_with("arm-smmu") => UnitKind::Smmu,
        None if name.contains("viommu") || name.starts_with("virtio") => UnitKind::Virtio,
        None => UnitKind::Other,
    };
    let devices = root.names(format!("{at}/devices").as_ref()).map_or(0, |names| names.len());
    Unit { name, kind, devices }
}

impl UnitKind {
    /// The vendor's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Intel { .. } => "Intel VT-d",
            Self::Amd => "AMD-Vi",
            Self::Smmu => "Arm SMMU",
            Self::Virtio => "virtio-iommu",
            Self::Other => "other",
        }
    }

    /// The address bits that devices behind it have, if its registers tell.
    ///
    /// Intel: the smaller of MGAW and the widest page table (linux: drivers/iommu/intel/iommu.c,
    /// paging_domain_alloc). AMD: page tables of six levels (linux: drivers/iommu/amd/iommu.c, dma_max_address).
    pub(crate) fn address_bits(self) -> Option<u32> {
        match self {
            Self::Intel { cap, .. } => {
                let guest_bits = u32::try_from((cap >> 16) & 0x3f).unwrap_or_default() + 1;
                let tables = (cap >> 8) & 0x1f;
                let widest = 63_u32.checked_sub(tables.leading_zeros())?;
                Some(guest_bits.min(30 + 9 * widest))
            }
            Self::Amd => Some(64),
            _ => None,
        }
    }

    /// The mask of its page sizes, if its registers tell.
    pub(crate) fn page_sizes(self) -> Option<u64> {
        match self {
            // Second-stage large pages: bit 34 is 2 MiB, bit 35 is 1 GiB.
            Self::Intel { cap, .. } => Some(0x1000 | (((cap >> 34) & 1) << 21) | (((cap >> 35) & 1) << 30)),
            Self::Amd => Some(0x000f_ff7f_ffff_f000),
            _ => None,
        }
    }

    /// Returns whether it logs the writes of devices: VT-d's SLADS, in scalable mode.
    pub(crate) fn logs_writes(self, is_scalable: bool) -> bool {
        match self {
            Self::Intel { ecap, .. } => is_scalable && (ecap >> 43) & 1 == 1 && (ecap >> 45) & 1 == 1,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_of_an_intel_iommu_is_in_its_registers() {
        // A desktop of the 9th generation, a server, and QEMU's with 48 bits.
        let cases = [
            (0xd2_008c_4066_0462, 39, 0x4020_1000),
            (0x8d2_078c_106f_0466, 48, 0x4020_1000),
            (0xd2_008c_222f_0686, 48, 0x4020_1000),
        ];
        for (cap, bits, pages) in cases {
            let kind = UnitKind::Intel { cap, ecap: 0 };
            assert_eq!((kind.address_bits(), kind.page_sizes()), (Some(bits), Some(pages)), "{cap:#x}");
        }
        assert_eq!(UnitKind::Intel { cap: 0, ecap: 0 }.address_bits(), None);
    }
}
