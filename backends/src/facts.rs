//! Facts about a host, read once into plain structs.
//!
//! Most facts come from sysfs and procfs, below a root of the caller's choice or from other [`HostFiles`]: tests bring
//! a directory, and `dmaspace probe` reads an archive of another machine's files. Only a VFIO container itself knows
//! its IOMMU drivers, so it is asked through the door. Nothing is decided here ([`crate::choose`] decides), and the
//! only node that is opened is `/dev/vfio/vfio`, which affects nothing else.
//!
//! A file that does not exist is a fact. A file that cannot be read or understood is an error. sysfs is no snapshot: a
//! device that vanishes while it is read appears without the facts that had not been read yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use dmaspace_abi::vfio::{CHECK_EXTENSION, IommuType};
use dmaspace_core::door::{Command, Door, Handle, HandleKind, Kernel};
use dmaspace_core::words::reserved::{Reserved, Why};
use dmaspace_core::{IovaRange, PageSize};

use crate::pci::PciAddress;

mod files;
mod locked;
mod sysfs;
#[cfg(test)]
mod tests;

use files::Files;
pub use files::{Directory, FactsError, HostFiles, Problem};
pub(crate) use locked::locked_memory;

/// The node of VFIO containers.
pub const CONTAINER_NODE: &str = "/dev/vfio/vfio";
/// The node of iommufd.
pub const IOMMUFD_NODE: &str = "/dev/iommu";
/// KVM's node.
pub const KVM_NODE: &str = "/dev/kvm";

/// The facts of a host that decide how devices can be passed through.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// The kind of machine.
    pub platform: Platform,
    /// The kernel's release: `6.12.95+deb13-amd64`.
    pub kernel: String,
    /// The size of the pages that the host's memory is made of.
    pub host_page: PageSize,
    /// The limits on pinning and mapping.
    pub limits: Limits,
    /// The nodes that exist.
    pub nodes: Nodes,
    /// The modules of [`MODULES`] that sysfs lists. A module that is built in is listed only if it has parameters or a
    /// version.
    pub modules: BTreeSet<&'static str>,
    /// The IOMMU drivers that a container can use. `None` if no container could be opened to ask.
    pub iommu_types: Option<IommuTypes>,
    /// The IOMMU groups, by number.
    pub groups: BTreeMap<u32, IommuGroup>,
    /// The PCI functions.
    pub devices: BTreeMap<PciAddress, PciDevice>,
}

/// The modules that [`Facts::modules`] may contain.
pub const MODULES: [&str; 8] =
    ["vfio", "vfio_iommu_type1", "vfio_iommu_spapr_tce", "vfio_pci", "iommufd", "kvm", "kvm_intel", "kvm_amd"];

/// The kind of machine, as far as it decides which IOMMU interfaces there are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Platform {
    /// A 64-bit PC.
    X86_64,
    /// POWER on bare metal.
    Powernv,
    /// POWER below a hypervisor that may pass devices on ("LPAR").
    Pseries,
    /// Another machine, by the kernel's name for its architecture.
    Other(String),
}

impl Platform {
    /// Returns `true` if the IOMMU is driven through sPAPR TCE tables.
    pub const fn is_power(&self) -> bool {
        matches!(self, Self::Powernv | Self::Pseries)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Powernv => "powernv",
            Self::Pseries => "pseries",
            Self::Other(name) => name,
        })
    }
}

/// The limits on the memory this process may pin and on the mappings of its containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The bytes this process may lock (RLIMIT_MEMLOCK). `None` for no limit.
    pub locked_memory: Option<u64>,
    /// The bytes to which an unprivileged process may raise that limit. `None` for no limit.
    pub locked_memory_ceiling: Option<u64>,
    /// `true` if CAP_IPC_LOCK lifts that limit.
    pub may_lock_without_limit: bool,
    /// The mappings a type1 container takes (`dma_entry_limit`), if the module says so.
    pub type1_mappings: Option<u64>,
}

/// The well-known nodes that exist. Permission to open them shows only when they are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Nodes {
    /// `true` if [`CONTAINER_NODE`] exists.
    pub container: bool,
    /// `true` if [`IOMMUFD_NODE`] exists.
    pub iommufd: bool,
    /// `true` if [`KVM_NODE`] exists.
    pub kvm: bool,
}

/// The IOMMU drivers that a container's CHECK_EXTENSION reported.
///
/// Only loaded modules are reported. The sPAPR module reports its second version even on a platform that cannot do it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IommuTypes {
    /// The second version of type1.
    pub type1: bool,
    /// The first version of sPAPR TCE, with one fixed window.
    pub spapr: bool,
    /// The second version of sPAPR TCE, with windows that are created.
    pub spapr_v2: bool,
}

/// An IOMMU group: devices that can only be passed through together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IommuGroup {
    /// The number of the group.
    pub number: u32,
    /// `true` for one of VFIO's groups without an IOMMU, whose devices reach all of the host's memory.
    pub noiommu: bool,
    /// `true` if `/dev/vfio/<number>` exists: if a VFIO driver is bound to one of its devices.
    pub node: bool,
    /// The devices, by their names in sysfs. Some may not be PCI functions.
    pub members: Vec<String>,
    /// The bus addresses that its devices cannot use for DMA.
    pub reserved: Vec<ReservedRegion>,
}

impl IommuGroup {
    /// The node that a process opens to use it.
    pub fn path(&self) -> PathBuf {
        let prefix = if self.noiommu { "noiommu-" } else { "" };
        PathBuf::from(format!("/dev/vfio/{prefix}{}", self.number))
    }
}

/// A range of bus addresses that does not reach memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReservedRegion {
    /// The range.
    pub range: IovaRange,
    /// The kernel's word for the reason: `msi`, `direct`, `direct-relaxable`, `reserved`.
    pub kind: String,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PciDevice {
    /// The address of the function.
    pub address: PciAddress,
    /// The id of the vendor.
    pub vendor: u16,
    /// The vendor's id for the device.
    pub device: u16,
    /// The class code: base class, subclass, programming interface.
    pub class: u32,
    /// The driver that is bound to it.
    pub driver: Option<String>,
    /// The number of its IOMMU group. `None` if it is behind no IOMMU, or the IOMMU is off.
    pub group: Option<u32>,
    /// The device as VFIO names it, while a VFIO driver is bound to it.
    pub vfio: Option<VfioDevice>,
}

impl PciDevice {
    /// Returns `true` for a bridge. The driver of a bridge does not block the other devices of its group.
    pub const fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }

    /// Returns `true` if a VFIO driver is bound to it.
    pub fn is_with_vfio(&self) -> bool {
        // Kernels before 6.1 have no vfio-dev. All VFIO drivers have the word in their names (vfio-pci, mlx5_vfio_pci,
        // …).
        self.vfio.is_some() || self.driver.as_deref().is_some_and(|driver| driver.contains("vfio"))
    }
}

/// A device as VFIO names it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VfioDevice {
    /// The name: `vfio0`, …
    pub name: String,
    /// `true` if the device can be opened by itself: if `/dev/vfio/devices/<name>` exists.
    pub node: bool,
}

impl VfioDevice {
    /// The node that a process opens to use it.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev/vfio/devices").join(&self.name)
    }
}

/// A device that VFIO can open, known by its place in sysfs: a PCI function, a mediated device, a platform device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SysfsDevice {
    /// The name that its group opens it by: the last part of the path.
    pub name: String,
    /// The number of its IOMMU group. `None` if it is behind no IOMMU.
    pub group: Option<u32>,
    /// The device as VFIO names it, while a VFIO driver is bound to it.
    pub vfio: Option<VfioDevice>,
}

impl SysfsDevice {
    /// Reads about the device at `path`: `/sys/bus/mdev/devices/<uuid>`, `/sys/bus/platform/devices/<name>`.
    ///
    /// # Errors
    /// [`FactsError`] for a file that cannot be read or understood. A path without a device has neither a group nor a
    /// VFIO device.
    pub fn read(path: &Path) -> Result<Self, FactsError> {
        Self::of_files(&Directory::new("/"), path)
    }

    /// Reads about the device at `path` of the host with these files.
    ///
    /// # Errors
    /// As [`SysfsDevice::read`].
    pub fn of_files(files: &dyn HostFiles, path: &Path) -> Result<Self, FactsError> {
        sysfs::device_at(&Files { files }, path)
    }
}

impl From<&PciDevice> for SysfsDevice {
    fn from(device: &PciDevice) -> Self {
        Self { name: device.address.to_string(), group: device.group, vfio: device.vfio.clone() }
    }
}

impl Facts {
    /// The ranges where the devices of a group do not reach memory. `whose` names the group or device in reports and
    /// errors.
    pub fn reserved(&self, group: u32, whose: &str) -> Vec<Reserved> {
        let regions = self.groups.get(&group).map_or(&[][..], |group| &group.reserved);
        let mut found = Vec::new();
        for ReservedRegion { range, kind } in regions {
            let reserved = Reserved::new(*range, Why::of(kind), whose);
            if reserved.counts() {
                found.push(reserved);
            }
        }
        found
    }

    /// Reads the facts of the host this process runs on.
    ///
    /// # Errors
    /// [`FactsError`] for a file below `/proc` or `/sys` that cannot be read or understood.
    pub fn of_this_host(door: &dyn Door) -> Result<Self, FactsError> {
        let mut facts = Self::below(Path::new("/"), door.host_page())?;
        facts.iommu_types = iommu_types(door);
        Ok(facts)
    }

    /// Reads the facts from the files below `root`. [`Facts::iommu_types`] stays `None`: no file contains them.
    ///
    /// # Errors
    /// [`FactsError`] for a file that exists and cannot be read or understood.
    pub fn below(root: &Path, host_page: PageSize) -> Result<Self, FactsError> {
        Self::of_files(&Directory::new(root), host_page)
    }

    /// Reads the facts from the files of a host, wherever they are. [`Facts::iommu_types`] stays `None`.
    ///
    /// # Errors
    /// [`FactsError`] for a file that exists and cannot be read or understood.
    pub fn of_files(files: &dyn HostFiles, host_page: PageSize) -> Result<Self, FactsError> {
        let files = Files { files };
        Ok(Self {
            platform: sysfs::platform(&files)?,
            kernel: files.text("proc/sys/kernel/osrelease")?.unwrap_or_default(),
            host_page,
            limits: locked::limits(&files)?,
            nodes: Nodes {
                container: files.exists(CONTAINER_NODE),
                iommufd: files.exists(IOMMUFD_NODE),
                kvm: files.exists(KVM_NODE),
            },
            modules: MODULES.into_iter().filter(|module| files.exists(format!("sys/module/{module}"))).collect(),
            iommu_types: None,
            groups: sysfs::groups(&files)?,
            devices: sysfs::devices(&files)?,
        })
    }
}

/// Asks a new container for its IOMMU drivers.
fn iommu_types(door: &dyn Door) -> Option<IommuTypes> {
    let container = door.open(Path::new(CONTAINER_NODE), HandleKind::Container).ok()?;
    let types = IommuTypes {
        type1: has_type(door, container, IommuType::TYPE1_V2),
        spapr: has_type(door, container, IommuType::SPAPR_TCE),
        spapr_v2: has_type(door, container, IommuType::SPAPR_TCE_V2),
    };
    if let Err(errno) = door.close(container) {
        log::warn!("closing {CONTAINER_NODE}: {errno}");
    }
    Some(types)
}

fn has_type(door: &dyn Door, container: Handle, kind: IommuType) -> bool {
    let answer = door.ask(container, Command::with_value(CHECK_EXTENSION, kind.extension().0));
    answer.is_ok_and(|answer| answer > 0)
}
