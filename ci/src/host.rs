//! The hosts there are: which machine QEMU plays, which kernel boots on it, what its init has to do.
//!
//! A table and the types it is made of. Adding a host is adding a row to [`HOSTS`].

use anyhow::{Result, bail};

/// The processor of a host, hence of the binaries that run on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// POWER9, little endian.
    Ppc64le,
    /// A 64-bit PC.
    X86_64,
}

impl Architecture {
    /// Debian's name for it in package names.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Ppc64le => "ppc64el",
            Self::X86_64 => "amd64",
        }
    }

    /// The name for it in cargo's `--target`.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Ppc64le => "powerpc64le-unknown-linux-gnu",
            Self::X86_64 => "x86_64-unknown-linux-gnu",
        }
    }

    /// The QEMU that emulates it, and the Debian package it comes in.
    pub(crate) fn qemu(self) -> (&'static str, &'static str) {
        match self {
            Self::Ppc64le => ("qemu-system-ppc64", "qemu-system-ppc"),
            Self::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
        }
    }

    /// The architecture an ELF header names, if it is one of ours.
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
    /// The package `linux-image-<flavour>`; VFIO comes as modules.
    Debian {
        /// Debian's name for this build of the kernel.
        flavour: &'static str,
    },
    /// Debian's kernel source, built with `iommufd-kernel.fragment`; everything is built in.
    WithIommufd(Source),
}

/// The version of Debian's kernel sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The one this Debian prefers.
    Preferred,
    /// The first of this version or a later one: it stays the same for as long as Debian has it. It exports BARs as
    /// well (`iommufd-dmabuf.fragment`).
    Since(&'static str),
}

/// One emulated host.
#[derive(Debug)]
pub(crate) struct Host {
    /// The name `EMULATED_HOST` picks it by.
    pub(crate) name: &'static str,
    pub(crate) architecture: Architecture,
    pub(crate) kernel: KernelSource,
    /// QEMU's arguments for the machine and its devices.
    pub(crate) machine: &'static [&'static str],
    /// The size of its RAM, as QEMU reads it. Pages that the guest does not touch cost nothing.
    pub(crate) memory: &'static str,
    pub(crate) kernel_arguments: &'static str,
    /// Modules to load, each after those it depends on.
    pub(crate) modules: &'static [&'static str],
    /// A PHB4 hot reset fails slowly in QEMU: closing a device takes 4 s unless the kernel is told
    /// that the device has no way to be reset.
    pub(crate) skips_device_reset: bool,
}

const POWER_MODULES: &[&str] = &["vfio", "vfio_iommu_spapr_tce", "vfio-pci-core", "vfio-pci"];
const POWERNV_MODULES: &[&str] = &["vfio", "vfio_iommu_spapr_tce", "vfio-pci-core", "vfio-pci", "kvm", "kvm-hv"];
const PC_MODULES: &[&str] =
    &["irqbypass", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci", "kvm", "ccp", "kvm-amd"];

/// Two `edu` devices, each below a host bridge, hence in a group, of its own. QEMU cuts their DMA
/// addresses to 28 bits unless the mask is widened. (No `-nodefaults`: it takes the root ports away.)
const POWERNV9: &[&str] = &[
    "-machine",
    "powernv9",
    "-device",
    "edu,bus=pcie.0,dma_mask=0xffffffffffffffff",
    "-device",
    "edu,bus=pcie.1,dma_mask=0xffffffffffffffff",
];

/// `-nodefaults`, because QEMU's default VGA and USB would share the first bridge's group; `x-vof`,
/// because QEMU's small firmware hands over to Linux 8 s earlier than SLOF does.
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

/// `-cpu max` has SVM, so that the host has a `/dev/kvm`.
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

/// `no_timer_check`, because an emulated PC on a busy machine is too slow for the kernel's check of its timer, which
/// panics then (linux: arch/x86/kernel/apic/io_apic.c, check_timer).
const PC_ARGUMENTS: &str = "console=ttyS0 intel_iommu=on no_timer_check";

/// No IOMMU: next to one, Linux 6.12 binds the mock device of `CONFIG_IOMMUFD_TEST` to its driver.
const PC_WITHOUT_IOMMU: &[&str] = &["-nodefaults", "-machine", "q35", "-cpu", "max"];

/// The newest Linux whose answers the tests know. What 6.12 does not have: mappings of files, BARs as dma-bufs, another
/// process's charge.
const NEWEST: &str = "7.2";

/// Every host there is.
pub(crate) const HOSTS: &[Host] = &[
    Host {
        name: "powernv9",
        architecture: Architecture::Ppc64le,
        kernel: KernelSource::Debian { flavour: "powerpc64le" },
        machine: POWERNV9,
        // A guest of 4 GiB is served.
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
        // For huge pages: Linux 6.12 has none there with the radix MMU. (A hash kernel with pages of 4 KiB hangs when
        // such memory is registered.)
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
    /// The host of that name.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        match HOSTS.iter().find(|host| host.name == name) {
            Some(host) => Ok(host),
            None => bail!("there is no host {name:?}; there are: {}", names().join(", ")),
        }
    }
}

/// The names of all hosts, in the table's order.
pub(crate) fn names() -> Vec<&'static str> {
    HOSTS.iter().map(|host| host.name).collect()
}

/// Every module some host loads from this kernel: what to unpack of its package.
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
    fn an_unknown_host_is_answered_with_the_known_ones() {
        let message = Host::named("vax").map(|_| ()).map_err(|error| error.to_string());
        assert!(matches!(message, Err(text) if text.contains("vax") && text.contains("powernv9-64k")));
    }

    #[test]
    fn hosts_sharing_a_kernel_share_its_modules() {
        let modules = modules_of(KernelSource::Debian { flavour: "powerpc64le" });
        assert_eq!(modules, POWERNV_MODULES);
    }

    #[test]
    fn an_elf_header_names_its_architecture() {
        let mut header = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0";
        assert_eq!(Architecture::of_elf(&header), Some(Architecture::X86_64));
        header[18] = 21;
        assert_eq!(Architecture::of_elf(&header), Some(Architecture::Ppc64le));
        assert_eq!(Architecture::of_elf(b"#!/bin/sh\n"), None);
    }
}
