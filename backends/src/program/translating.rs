//! Regions that translate: QEMU's emulated IOMMUs, by the names their regions have.
//!
//! A flat view does not say that a region translates. Up to QEMU 10 its kind is `i/o`, from QEMU 11 on `container`;
//! its name is what tells it. [`TRANSLATING`] is the only table of such names.

use dmaspace::PageSize;

/// An emulated IOMMU.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EmulatedIommu {
    /// Its name for people.
    pub(crate) name: &'static str,
    /// The names of its translating regions.
    regions: &'static [Pattern],
    /// The names of the address spaces behind it, or of their roots.
    spaces: &'static [Pattern],
    /// `true` for POWER's: its regions are TCE windows, and its address spaces belong to a PCI host bridge.
    pub(crate) is_of_power: bool,
    /// `true` for one that QEMU emulates as bare metal has it: all addresses are translated, by tables in the guest's
    /// own memory, and QEMU passes no host device through to a guest with it.
    pub(crate) is_bare_metal: bool,
}

/// A form of names.
#[derive(Debug, PartialEq, Eq)]
enum Pattern {
    Exactly(&'static str),
    From(&'static str),
    Between(&'static str, &'static str),
}

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        match self {
            Self::Exactly(known) => name == *known,
            Self::From(start) => name.starts_with(start),
            Self::Between(start, end) => name.starts_with(start) && name.ends_with(end),
        }
    }
}

use Pattern::{Between, Exactly, From};

/// Every emulated IOMMU, with the file of QEMU that names its regions and spaces.
const TRANSLATING: [EmulatedIommu; 9] = [
    // hw/ppc/spapr_iommu.c, spapr_tce_table_realize; hw/ppc/spapr_pci.c, spapr_phb_realize
    EmulatedIommu {
        name: "sPAPR TCE",
        regions: &[From(TCE_TABLE)],
        spaces: &[From("pci@")],
        is_of_power: true,
        is_bare_metal: false,
    },
    // hw/pci-host/pnv_phb3.c, pnv_phb3_dma_iommu; hw/pci-host/pnv_phb4.c, pnv_phb4_dma_iommu, which is PHB5's too
    EmulatedIommu {
        name: "PHB3, PHB4 or PHB5",
        regions: &[
            Exactly("phb3_iommu"),
            Between("phb3-", "iommu"),
            Between("phb4-", "iommu"),
            Between("phb5-", "iommu"),
        ],
        spaces: &[From("phb3"), From("phb4"), From("phb5")],
        is_of_power: true,
        is_bare_metal: true,
    },
    // hw/arm/smmu-common.c, smmu_find_add_as; include/hw/arm/smmuv3.h, TYPE_SMMUV3_IOMMU_MEMORY_REGION
    EmulatedIommu {
        name: "SMMUv3",
        regions: &[From("smmuv3-iommu-memory-region")],
        spaces: &[From("smmuv3-iommu-memory-region")],
        is_of_power: false,
        is_bare_metal: false,
    },
    // hw/i386/intel_iommu.c, vtd_find_add_as
    EmulatedIommu {
        name: "VT-d",
        regions: &[Between("vtd-", "-dmar")],
        spaces: &[From("vtd-")],
        is_of_power: false,
        is_bare_metal: false,
    },
    // hw/i386/amd_iommu.c, amdvi_host_dma_iommu
    EmulatedIommu {
        name: "AMD-Vi",
        regions: &[Exactly("amd_iommu")],
        spaces: &[From("amd_iommu_devfn_"), Exactly("amdvi_root")],
        is_of_power: false,
        is_bare_metal: false,
    },
    // hw/virtio/virtio-iommu.c, virtio_iommu_find_add_as
    EmulatedIommu {
        name: "virtio-iommu",
        regions: &[From("virtio-iommu-memory-region-")],
        spaces: &[Exactly("virtio-iommu-device"), From("virtio-iommu-memory-region-")],
        is_of_power: false,
        is_bare_metal: false,
    },
    // hw/riscv/riscv-iommu.c, riscv_iommu_space
    EmulatedIommu {
        name: "the RISC-V IOMMU",
        regions: &[Exactly("riscv_iommu"), Between("riscv-iommu-", "-iova")],
        spaces: &[Between("riscv-iommu-", "-iova")],
        is_of_power: false,
        is_bare_metal: false,
    },
    // No QEMU has one yet; the word is that of the kernel's drivers for these machines.
    EmulatedIommu {
        name: "the LoongArch IOMMU",
        regions: &[From("loongarch-iommu"), From("loongarch_iommu")],
        spaces: &[From("loongarch-iommu"), From("loongarch_iommu")],
        is_of_power: false,
        is_bare_metal: false,
    },
    // hw/s390x/s390-pci-bus.c, s390_pci_iommu_enable
    EmulatedIommu {
        name: "zPCI",
        regions: &[From("iommu-s390-")],
        spaces: &[From("iommu-s390-"), From("iommu-root-")],
        is_of_power: false,
        is_bare_metal: false,
    },
];

/// The table of a TCE window has its number in hexadecimal behind this.
const TCE_TABLE: &str = "tce-iommu-";

impl EmulatedIommu {
    /// The IOMMU to which a translating region of that name belongs.
    pub(crate) fn of_region(name: &str) -> Option<&'static Self> {
        if name.starts_with(TCE_TABLE) {
            tce_table(name)?;
        }
        TRANSLATING.iter().find(|iommu| iommu.regions.iter().any(|known| known.fits(name)))
    }

    /// The IOMMU behind which an address space of that name, or with a root of that name, lies.
    pub(crate) fn of_space(name: &str) -> Option<&'static Self> {
        TRANSLATING.iter().find(|iommu| iommu.spaces.iter().any(|known| known.fits(name)))
    }
}

/// The guest's page in a translated window, as far as its name lets one tell, which names no page.
///
/// The default window of a PCI host bridge has 4 KiB pages, by the platform's rules. For other TCE windows 64 KiB are
/// assumed, which is what Linux asks for; for other emulated IOMMUs their smallest page, 4 KiB.
pub(crate) fn page_of_translated(name: &str) -> Option<PageSize> {
    const DEFAULT_WINDOW: u32 = 0;
    EmulatedIommu::of_region(name)?;
    Some(match tce_table(name) {
        Some(liobn) if liobn & 0xff != DEFAULT_WINDOW => PageSize::K64,
        _ => PageSize::K4,
    })
}

/// The number of the TCE table behind a window of that name; its last byte says which of its bridge's windows it is
/// (qemu: include/hw/ppc/spapr.h, SPAPR_PCI_LIOBN).
pub(crate) fn tce_table(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix(TCE_TABLE)?, 16).ok()
}

/// Returns whether a TCE window is a PCI host bridge's, not a VIO adapter's: the numbers of the bridges' tables have
/// the top bit set (qemu: include/hw/ppc/spapr.h, SPAPR_PCI_LIOBN; hw/ppc/spapr_vio.c, SPAPR_VIO_BASE_LIOBN).
pub(crate) fn is_window_of_pci(name: &str) -> bool {
    const PCI: u32 = 1 << 31;
    match tce_table(name) {
        Some(liobn) => liobn & PCI != 0,
        None => EmulatedIommu::of_region(name).is_some_and(|iommu| iommu.is_of_power),
    }
}

/// Returns whether a translating region of that name is a bare metal IOMMU's.
pub(crate) fn is_bare_metal(name: &str) -> bool {
    EmulatedIommu::of_region(name).is_some_and(|iommu| iommu.is_bare_metal)
}

/// Returns whether writes to a region of that name are interrupts (qemu: hw/ppc/spapr_pci.c, hw/pci-host/pnv_phb3.c,
/// hw/pci-host/pnv_phb4.c, hw/intc/apic.c, hw/i386/kvm/apic.c, hw/i386/intel_iommu.c, hw/i386/amd_iommu.c).
pub(crate) fn is_msi(name: &str) -> bool {
    const NAMES: [&str; 8] =
        ["msi", "msi32", "msi64", "apic-msi", "kvm-apic-msi", "vtd-ir", "amdvi-ir", "amd_iommu_ir"];
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_emulated_iommu_is_known_by_its_region_and_by_its_space() {
        let cases = [
            ("tce-iommu-80000001", "pci@800000020000000", "sPAPR TCE"),
            ("phb4-0.5-iommu", "phb4-0.5-iommu", "PHB3, PHB4 or PHB5"),
            ("phb3_iommu", "phb3_iommu", "PHB3, PHB4 or PHB5"),
            ("smmuv3-iommu-memory-region-8-0", "smmuv3-iommu-memory-region-8-0", "SMMUv3"),
            ("vtd-03.0-dmar", "vtd-root", "VT-d"),
            ("amd_iommu", "amd_iommu_devfn_8", "AMD-Vi"),
            ("virtio-iommu-memory-region-0-8", "virtio-iommu-device", "virtio-iommu"),
            ("riscv_iommu", "riscv-iommu-0000:01.0-iova", "the RISC-V IOMMU"),
            ("iommu-s390-0001", "iommu-s390-0001", "zPCI"),
        ];
        for (region, space, name) in cases {
            assert_eq!(EmulatedIommu::of_region(region).map(|iommu| iommu.name), Some(name), "{region}");
            assert_eq!(EmulatedIommu::of_space(space).map(|iommu| iommu.name), Some(name), "{space}");
        }
        for name in
            ["", "tce-iommu-", "tce-root-80000000", "intel_iommu", "virtio-pci-common-virtio-iommu", "phb4-0.0-regs"]
        {
            assert_eq!(EmulatedIommu::of_region(name), None, "{name}");
        }
    }

    #[test]
    fn windows_of_vio_adapters_are_not_pcis() {
        assert!(is_window_of_pci("tce-iommu-80000000") && is_window_of_pci("phb4-0.5-iommu"));
        assert!(!is_window_of_pci("tce-iommu-71000002") && !is_window_of_pci("vtd-03.0-dmar"));
    }
}
