//! Presets: hosts that were measured, and hosts as the kernel's sources describe them.

use dmaspace_core::PageSize;

use super::{
    Architecture, FixedIommu, Group, KernelInterface, KernelVersion, MAX_WINDOW_ENTRIES, ProcessLimits, Profile,
    Reason, ReservedProfile, TceIommu, TceManager,
};

impl Profile {
    /// The names that [`Profile::preset`] knows.
    pub const PRESETS: [&str; 10] = [
        "vtd",
        "vtd-39bit",
        "vtd-64k",
        "vtd-ssads",
        "amd",
        "arm64-4k",
        "arm64-64k",
        "powernv9",
        "powernv9-64k",
        "pseries",
    ];

    /// The preset of that name.
    pub fn preset(name: &str) -> Option<Self> {
        Some(match name {
            "vtd" => Self::vtd(),
            "vtd-39bit" => Self::vtd_39bit(),
            "vtd-64k" => Self::vtd_64k(),
            "vtd-ssads" => Self::vtd_ssads(),
            "amd" => Self::amd(),
            "arm64-4k" => Self::arm64_4k(),
            "arm64-64k" => Self::arm64_64k(),
            "powernv9" => Self::powernv9(),
            "powernv9-64k" => Self::powernv9_64k(),
            "pseries" => Self::pseries(),
            _ => return None,
        })
    }

    /// A PC with Intel's IOMMU, a kernel with type1 and iommufd, three devices in groups of their own, and no limit on
    /// locked memory.
    pub fn vtd() -> Self {
        let msi = ReservedProfile { first: 0xfee0_0000, last: 0xfeef_ffff, reason: Reason::Msi };
        Self {
            name: "vtd".to_owned(),
            architecture: Architecture::X86_64,
            kernel: KernelVersion::V6_12,
            host_page: PageSize::K4.bytes(),
            backends: vec![KernelInterface::Type1, KernelInterface::Iommufd],
            fixed: Some(FixedIommu {
                page_sizes: 0x4020_1000,
                last: 0xffff_ffff_ffff,
                reserved: vec![msi],
                write_implies_read: true,
            }),
            tce: None,
            limits: ProcessLimits { memlock: None, dma_entries: 0xffff },
            groups: (3..6).map(|slot| Group::of(slot, format!("0000:00:{slot:02x}.0"), Some(slot - 3))).collect(),
        }
    }

    /// [`Profile::vtd`] with no page smaller than 64 KiB, as on Arm servers whose kernels use such pages: it shows the
    /// bytes that a PC guest loses to alignment there.
    pub fn vtd_64k() -> Self {
        let vtd = Self::vtd();
        let fixed = vtd.fixed.map(|fixed| FixedIommu { page_sizes: 0x2001_0000, ..fixed });
        Self { name: "vtd-64k".to_owned(), host_page: PageSize::K64.bytes(), fixed, ..vtd }
    }

    /// [`Profile::vtd`] with two IOMMUs that log the writes of devices, the last device behind the second. They use no
    /// large pages, which are logged as a whole: the log has exactly the pages that were written.
    pub fn vtd_ssads() -> Self {
        let vtd = Self::vtd();
        let fixed = vtd.fixed.map(|fixed| FixedIommu { page_sizes: PageSize::K4.bytes(), ..fixed });
        let mut groups = vtd.groups;
        for group in &mut groups {
            group.logs_writes = true;
        }
        if let Some(last) = groups.last_mut() {
            last.iommu = 1;
        }
        Self { name: "vtd-ssads".to_owned(), fixed, groups, ..vtd }
    }

    /// [`Profile::vtd`] with 39 address bits, as most of Intel's desktops and laptops have.
    pub fn vtd_39bit() -> Self {
        let vtd = Self::vtd();
        let fixed = vtd.fixed.map(|fixed| FixedIommu { last: 0x7f_ffff_ffff, ..fixed });
        Self { name: "vtd-39bit".to_owned(), fixed, ..vtd }
    }

    /// A PC with AMD's IOMMU: all 64 bits of address, nearly every power of two as a page size (linux:
    /// drivers/iommu/amd/amd_iommu_types.h, AMD_IOMMU_PGSIZES), and the hole below 1 TiB that HyperTransport uses
    /// (HT_RANGE_START).
    pub fn amd() -> Self {
        let vtd = Self::vtd();
        let hypertransport = ReservedProfile { first: 0xfd_0000_0000, last: 0xff_ffff_ffff, reason: Reason::Reserved };
        let fixed = vtd.fixed.map(|fixed| FixedIommu {
            page_sizes: 0x000f_ff7f_ffff_f000,
            last: u64::MAX,
            reserved: fixed.reserved.into_iter().chain([hypertransport]).collect(),
            write_implies_read: false,
        });
        Self { name: "amd".to_owned(), fixed, ..vtd }
    }

    /// An Arm server with an SMMUv3 and pages of 4 KiB. The kernel maps the doorbell of interrupts at an address of its
    /// own choice (linux: drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c, MSI_IOVA_BASE), where an Arm guest's devices
    /// are, but a PC guest's RAM. A page that is mapped for writing can be read, too (linux:
    /// drivers/iommu/io-pgtable-arm.c, arm_lpae_prot_to_pte: the first stage has no write-only pages).
    pub fn arm64_4k() -> Self {
        let vtd = Self::vtd();
        let doorbell = ReservedProfile { first: 0x800_0000, last: 0x80f_ffff, reason: Reason::Msi };
        let fixed = vtd.fixed.map(|fixed| FixedIommu { reserved: vec![doorbell], ..fixed });
        Self { name: "arm64-4k".to_owned(), architecture: Architecture::Aarch64, fixed, ..vtd }
    }

    /// [`Profile::arm64_4k`] with pages of 64 KiB, for which the SMMU has 64 KiB and 512 MiB.
    pub fn arm64_64k() -> Self {
        let arm = Self::arm64_4k();
        let fixed = arm.fixed.map(|fixed| FixedIommu { page_sizes: 0x2001_0000, ..fixed });
        Self { name: "arm64-64k".to_owned(), host_page: PageSize::K64.bytes(), fixed, ..arm }
    }

    /// Bare-metal POWER9 with 4 KiB pages: sPAPR TCE v1 and v2, three PHBs with a device each, and no limit on locked
    /// memory.
    pub fn powernv9() -> Self {
        Self {
            name: "powernv9".to_owned(),
            architecture: Architecture::Ppc64le,
            kernel: KernelVersion::V6_12,
            host_page: PageSize::K4.bytes(),
            backends: vec![KernelInterface::Spapr],
            fixed: None,
            tce: Some(TceIommu {
                platform: TceManager::PowerNv,
                page_sizes: 0x4021_1000,
                default_window: 0x8000_0000,
                windows: 2,
                levels: 5,
                starts: [0, 1 << 59],
                largest_window: MAX_WINDOW_ENTRIES,
                eeh: true,
            }),
            limits: ProcessLimits { memlock: None, dma_entries: 0xffff },
            groups: (0..3).map(|phb| Group::of(phb, format!("{phb:04x}:01:00.0"), None)).collect(),
        }
    }

    /// [`Profile::powernv9`] with 64 KiB pages.
    pub fn powernv9_64k() -> Self {
        Self { name: "powernv9-64k".to_owned(), host_page: PageSize::K64.bytes(), ..Self::powernv9() }
    }

    /// A POWER9 guest of KVM or PowerVM that is a host itself: other page sizes, one level, one group per container.
    pub fn pseries() -> Self {
        let groups = (0..2).map(|phb| Group::of(phb, format!("{phb:04x}:00:05.0"), None)).collect();
        let tce = TceIommu {
            platform: TceManager::PSeries,
            page_sizes: 0x0121_1000,
            default_window: 0x4000_0000,
            windows: 2,
            levels: 1,
            starts: [0, 1 << 59],
            largest_window: MAX_WINDOW_ENTRIES,
            eeh: false,
        };
        Self { name: "pseries".to_owned(), tce: Some(tce), groups, ..Self::powernv9() }
    }
}
