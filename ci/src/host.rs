//! The table of the emulated hosts, [`HOSTS`]: each host's machine, its kernel and the tasks of its init.
//!
//! A new host is a new row of the table.

use anyhow::{Result, bail};

/// The processor of a host, and of the binaries that run on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// POWER9, little endian.
    Ppc64le,
    /// A 64-bit PC.
    X86_64,
}

impl Architecture {
    /// The architecture's name in Debian's package names.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Ppc64le => "ppc64el",
            Self::X86_64 => "amd64",
        }
    }

    /// The name of its target, as in cargo's `--target`.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Ppc64le => "powerpc64le-unknown-linux-gnu",
            Self::X86_64 => "x86_64-unknown-linux-gnu",
        }
    }

    /// The QEMU program that emulates the architecture, and the Debian package of that program.
    pub(crate) fn qemu(self) -> (&'static str, &'static str) {
        match self {
            Self::Ppc64le => ("qemu-system-ppc64", "qemu-system-ppc"),
            Self::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
        }
    }

    /// The architecture that an ELF header names; `None` for a file that no host can run.
    pub(crate) fn of_elf(header: &[u8]) -> Option<Self> {
        let machine = header.strip_prefix(b"\x7fELF")?.get(14..16)?;
        match machine {
            [62, 0] => Some(Self::X86_64),
            [21, 0] => Some(Self::Ppc64le),
            _ => None,
        }
    }
}

/// The origin of a host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KernelSource {
    /// The package `linux-image-<flavour>`, whose VFIO drivers are modules.
    Debian {
        /// Debian's name for this build of the kernel.
        flavour: &'static str,
    },
    /// Debian's kernel source, built with `iommufd-kernel.fragment`. All drivers are built in.
    WithIommufd(Source),
}

/// The choice among the versions of Debian's kernel source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The version of Debian's metapackage `linux-source`.
    Preferred,
    /// The lowest version from this one on, so that the kernel stays the same for as long as Debian has this version.
    /// The kernel also exports BARs as dma-bufs (`iommufd-dmabuf.fragment`).
    Since(&'static str),
}

/// One emulated host.
#[derive(Debug)]
pub(crate) struct Host {
    /// The host's name in `EMULATED_HOST`.
    pub(crate) name: &'static str,
    pub(crate) architecture: Architecture,
    pub(crate) kernel: KernelSource,
    /// QEMU's arguments for the machine and its devices.
    pub(crate) machine: &'static [&'static str],
    /// The size of the host's RAM, as QEMU reads it. Pages that the host does not touch cost nothing.
    pub(crate) memory: &'static str,
    pub(crate) kernel_arguments: &'static str,
    /// The modules that init loads, in this order: each follows the modules it depends on.
    pub(crate) modules: &'static [&'static str],
    /// Init removes the reset methods of the devices. A hot reset of a PHB4 fails in QEMU, after 4 s, whenever a device
    /// is closed.
    pub(crate) skips_device_reset: bool,
}

const POWER_MODULES: &[&str] = &["vfio", "vfio_iommu_spapr_tce", "vfio-pci-core", "vfio-pci"];
const POWERNV_MODULES: &[&str] = &["vfio", "vfio_iommu_spapr_tce", "vfio-pci-core", "vfio-pci", "kvm", "kvm-hv"];
const PC_MODULES: &[&str] =
    &["irqbypass", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci", "kvm", "ccp", "kvm-amd"];

/// Two `edu` devices, each below its own host bridge and therefore in its own group. QEMU cuts their DMA addresses to
/// 28 bits unless `dma_mask` is wider. `-nodefaults` is absent because it would remove the root ports.
const POWERNV9: &[&str] = &[
    "-machine",
    "powernv9",
    "-device",
    "edu,bus=pcie.0,dma_mask=0xffffffffffffffff",
    "-device",
    "edu,bus=pcie.1,dma_mask=0xffffffffffffffff",
];

/// A pseries machine with two host bridges and an `edu` device below each. `-nodefaults` is there because QEMU's
/// default VGA and USB devices would share the first bridge's group, and `x-vof` because QEMU's small firmware starts
/// Linux 8 s earlier than SLOF does.
const PSERIES: &[&str] = &[
    "-nodefaults",
    "-machine",
    "pseries,cap-htm=off,x-vof=on",
    "-cpu",
    "power9",
    "-device",
    "spapr-pci-host-bridge,index=1,id=p1",
    "-device",
    "edu,bus=pci.0,addr=5,dma_mask=0xffffffffffffffff",
    "-device",
    "edu,bus=p1.0,addr=5,dma_mask=0xffffffffffffffff",
];

/// A PC with an Intel IOMMU and two `edu` devices. `-cpu max` has SVM, so that the host has a `/dev/kvm`.
const PC: &[&str] = &[
    "-nodefaults",
    "-machine",
    "q35,kernel-irqchip=split",
    "-cpu",
    "max",
    "-device",
    "intel-iommu,caching-mode=on",
    "-device",
    "edu,addr=3,dma_mask=0xffffffffffffffff",
    "-device",
    "edu,addr=4,dma_mask=0xffffffffffffffff",
];

/// The kernel arguments of the PCs with an IOMMU. `no_timer_check` is there because an emulated PC on a busy machine is
/// too slow for the kernel's check of its timer, and the kernel panics if the check fails (linux:
/// arch/x86/kernel/apic/io_apic.c, check_timer).
const PC_ARGUMENTS: &str = "console=ttyS0 intel_iommu=on no_timer_check";

/// A PC without an IOMMU. On a PC with one, Linux 6.12 binds the mock device of `CONFIG_IOMMUFD_TEST` to the IOMMU's
/// driver.
const PC_WITHOUT_IOMMU: &[&str] = &["-nodefaults", "-machine", "q35", "-cpu", "max"];

/// The newest Linux whose answers the tests know. Unlike Linux 6.12, it maps files, exports BARs as dma-bufs and
/// charges pinned memory to another process.
const NEWEST: &str = "7.2";

/// All emulated hosts.
pub(crate) const HOSTS: &[Host] = &[
    Host {
        name: "powernv9",
        architecture: Architecture::Ppc64le,
        kernel: KernelSource::Debian { flavour: "powerpc64le" },
        machine: POWERNV9,
        // One test maps all memory of a guest of 4 GiB.
        memory: "5G",
        kernel_arguments: "console=hvc0",
        modules: POWERNV_MODULES,
        skips_device_reset: true,
    },
    Host {
        name: "powernv9-64k",
        architecture: Architecture::Ppc64le,
        kernel: KernelSource::Debian { flavour: "powerpc64le-64k" },
        machine: POWERNV9,
        memory: "2G",
        kernel_arguments: "console=hvc0",
        modules: POWERNV_MODULES,
        skips_device_reset: true,
    },
    Host {
        // This host is for huge pages, which Linux 6.12 does not have on powernv with the radix MMU. Its pages have
        // 64 KiB because a hash kernel with pages of 4 KiB hangs when huge pages are registered.
        name: "powernv9-64k-hash",
        architecture: Architecture::Ppc64le,
        kernel: KernelSource::Debian { flavour: "powerpc64le-64k" },
        machine: POWERNV9,
        memory: "2G",
        kernel_arguments: "console=hvc0 disable_radix hugepagesz=16M hugepages=8",
        modules: POWERNV_MODULES,
        skips_device_reset: true,
    },
    Host {
        name: "pseries",
        architecture: Architecture::Ppc64le,
        kernel: KernelSource::Debian { flavour: "powerpc64le" },
        machine: PSERIES,
        memory: "2G",
        kernel_arguments: "console=hvc0 hugepagesz=2M hugepages=16",
        modules: POWER_MODULES,
        skips_device_reset: false,
    },
    Host {
        name: "vtd",
        architecture: Architecture::X86_64,
        kernel: KernelSource::Debian { flavour: "amd64" },
        machine: PC,
        memory: "1G",
        kernel_arguments: PC_ARGUMENTS,
        modules: PC_MODULES,
        skips_device_reset: false,
    },
    Host {
        name: "vtd-iommufd",
        architecture: Architecture::X86_64,
        kernel: KernelSource::WithIommufd(Source::Preferred),
        machine: PC,
        memory: "1G",
        kernel_arguments: PC_ARGUMENTS,
        modules: &[],
        skips_device_reset: false,
    },
    Host {
        name: "vtd-iommufd-newest",
        architecture: Architecture::X86_64,
        kernel: KernelSource::WithIommufd(Source::Since(NEWEST)),
        machine: PC,
        memory: "1G",
        kernel_arguments: PC_ARGUMENTS,
        modules: &[],
        skips_device_reset: false,
    },
    Host {
        name: "iommufd-mock",
        architecture: Architecture::X86_64,
        kernel: KernelSource::WithIommufd(Source::Preferred),
        machine: PC_WITHOUT_IOMMU,
        memory: "1G",
        kernel_arguments: "console=ttyS0",
        modules: &[],
        skips_device_reset: false,
    },
];

impl Host {
    /// The host with this name.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        match HOSTS.iter().find(|host| host.name == name) {
            Some(host) => Ok(host),
            None => bail!("there is no emulated host {name:?}; the hosts are: {}", names().join(", ")),
        }
    }
}

/// The names of all hosts, in the table's order.
pub(crate) fn names() -> Vec<&'static str> {
    HOSTS.iter().map(|host| host.name).collect()
}

/// The modules that the hosts with this kernel load, to be unpacked from the kernel's package.
pub(crate) fn modules_of(kernel: KernelSource) -> Vec<&'static str> {
    let mut modules = Vec::new();
    for host in HOSTS.iter().filter(|host| host.kernel == kernel) {
        for module in host.modules {
            if !modules.contains(module) {
                modules.push(module);
            }
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_found_by_its_name() {
        assert_eq!(Host::named("pseries").map(|host| host.name).ok(), Some("pseries"));
    }

    #[test]
    fn the_error_about_an_unknown_host_lists_the_known_hosts() {
        let message = Host::named("vax").map(|_| ()).map_err(|error| error.to_string());
        assert!(matches!(message, Err(text) if text.contains("vax") && text.contains("powernv9-64k")));
    }

    #[test]
    fn a_kernel_gets_the_modules_of_all_its_hosts() {
        let modules = modules_of(KernelSource::Debian { flavour: "powerpc64le" });
        assert_eq!(modules, POWERNV_MODULES);
    }

    #[test]
    fn the_architecture_is_read_from_the_elf_header() {
        let mut header = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0";
        assert_eq!(Architecture::of_elf(&header), Some(Architecture::X86_64));
        header[18] = 21;
        assert_eq!(Architecture::of_elf(&header), Some(Architecture::Ppc64le));
        assert_eq!(Architecture::of_elf(b"#!/bin/sh\n"), None);
    }
}
