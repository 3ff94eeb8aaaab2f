//! Facts about a host, read once into plain structs.
//!
//! Most come from sysfs and procfs, below a root of the caller's choice, so that tests bring a directory and a probe can look into a
//! chroot; what a VFIO container can do has to be asked through the door. Nothing is decided here ([`crate::choose`] does), and nothing
//! is opened but `/dev/vfio/vfio`, which has no effect on anybody.
//!
//! A file that is not there is a fact; one that cannot be read or understood is an error. sysfs takes no snapshot: a device that
//! vanishes while it is looked at shows up without what had not been read yet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use dmaspace_abi::vfio::{CHECK_EXTENSION, IommuType};
use dmaspace_core::door::{Command, Door, HandleKind, Kernel};
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::words::reserved::{Reserved, Why};
use dmaspace_core::{Iova, IovaRange, PageSize};

use crate::pci::PciAddress;

/// The node of VFIO containers.
pub const CONTAINER_NODE: &str = "/dev/vfio/vfio";
/// The node of iommufd.
pub const IOMMUFD_NODE: &str = "/dev/iommu";
/// KVM's node.
pub const KVM_NODE: &str = "/dev/kvm";

/// What a host offers to somebody who wants to pass devices through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The kind of machine.
    pub platform: Platform,
    /// The kernel's release: `6.12.95+deb13-amd64`.
    pub kernel: String,
    /// The page the host's memory is made of.
    pub host_page: PageSize,
    /// What this process may pin and map.
    pub limits: Limits,
    /// Which nodes there are.
    pub nodes: Nodes,
    /// Modules of [`MODULES`] the kernel admits to. Built-in ones show only if they have parameters or a version.
    pub modules: BTreeSet<&'static str>,
    /// The IOMMU drivers a container could be given to; `None` when no container could be opened to ask.
    pub iommu_types: Option<IommuTypes>,
    /// The IOMMU groups, by number.
    pub groups: BTreeMap<u32, IommuGroup>,
    /// The PCI functions.
    pub devices: BTreeMap<PciAddress, PciDevice>,
}

/// The modules looked for.
pub const MODULES: [&str; 8] =
    ["vfio", "vfio_iommu_type1", "vfio_iommu_spapr_tce", "vfio_pci", "iommufd", "kvm", "kvm_intel", "kvm_amd"];

/// The kind of machine, as far as it decides which IOMMU interfaces there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platform {
    /// A 64-bit PC.
    X86_64,
    /// POWER on bare metal.
    Powernv,
    /// POWER below a hypervisor that may pass devices on ("LPAR").
    Pseries,
    /// Something else, by the kernel's name for it.
    Other(String),
}

impl Platform {
    /// Whether its IOMMU is driven through sPAPR TCE tables.
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

/// What this process may pin, and containers may map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of locked memory (RLIMIT_MEMLOCK); `None`: no limit.
    pub locked_memory: Option<u64>,
    /// What it may be raised to without privilege.
    pub locked_memory_ceiling: Option<u64>,
    /// Whether CAP_IPC_LOCK lifts that limit.
    pub may_lock_without_limit: bool,
    /// Mappings a type1 container takes (`dma_entry_limit`), where the module says.
    pub type1_mappings: Option<u64>,
}

/// Which of the well-known nodes exist. Whether they may be opened shows when they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// [`CONTAINER_NODE`].
    pub container: bool,
    /// [`IOMMUFD_NODE`].
    pub iommufd: bool,
    /// [`KVM_NODE`].
    pub kvm: bool,
}

/// The IOMMU drivers that answered a container's CHECK_EXTENSION.
///
/// Only loaded modules answer, and an sPAPR module says yes to v2 even where the platform cannot do it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IommuTypes {
    /// type1, in its second version.
    pub type1: bool,
    /// sPAPR TCE with one fixed window.
    pub spapr: bool,
    /// sPAPR TCE with windows that are created.
    pub spapr_v2: bool,
}

/// An IOMMU group: devices that can only be passed through together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuGroup {
    /// Its number.
    pub number: u32,
    /// Whether it is one of VFIO's groups without an IOMMU, which protect nobody.
    pub noiommu: bool,
    /// Whether `/dev/vfio/<number>` exists: that a VFIO driver holds one of its devices.
    pub node: bool,
    /// Its devices, as sysfs names them. Not all are PCI functions.
    pub members: Vec<String>,
    /// Bus addresses its devices cannot use for DMA.
    pub reserved: Vec<ReservedRegion>,
}

impl IommuGroup {
    /// The node a process opens to use it.
    pub fn path(&self) -> PathBuf {
        let prefix = if self.noiommu { "noiommu-" } else { "" };
        PathBuf::from(format!("/dev/vfio/{prefix}{}", self.number))
    }
}

/// Bus addresses that mean something else than memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// Which.
    pub range: IovaRange,
    /// The kernel's word for why: `msi`, `direct`, `direct-relaxable`, `reserved`.
    pub kind: String,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// Its vendor's id.
    pub vendor: u16,
    /// Its id among that vendor's.
    pub device: u16,
    /// Its class code: base class, subclass, programming interface.
    pub class: u32,
    /// The driver that is bound to it.
    pub driver: Option<String>,
    /// The number of its IOMMU group; `None`: it is behind no IOMMU, or none is in use.
    pub group: Option<u32>,
    /// What VFIO knows it as, while a VFIO driver is bound to it.
    pub vfio: Option<VfioDevice>,
}

impl PciDevice {
    /// Whether it is a bridge. Drivers of bridges do not stand in the way of the other devices of a group.
    pub const fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }

    /// Whether a VFIO driver is bound to it.
    pub fn is_with_vfio(&self) -> bool {
        // Kernels before 6.1 have no vfio-dev; all VFIO drivers carry the word in their names (vfio-pci, mlx5_vfio_pci, …).
        self.vfio.is_some() || self.driver.as_deref().is_some_and(|driver| driver.contains("vfio"))
    }
}

/// A device as VFIO names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioDevice {
    /// `vfio0`, …
    pub name: String,
    /// Whether it can be opened by itself: that `/dev/vfio/devices/<name>` exists.
    pub node: bool,
}

impl VfioDevice {
    /// The node a process opens to use it.
    pub fn path(&self) -> PathBuf {
        Path::new("/dev/vfio/devices").join(&self.name)
    }
}

/// A file could not be read, or made no sense.
#[derive(Debug, thiserror::Error)]
#[error("reading {path}: {problem}", path = .path.display())]
pub struct FactsError {
    /// Which file or directory.
    pub path: PathBuf,
    /// What was wrong with it.
    pub problem: Problem,
}

/// What was wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It could not be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// It does not say what such a file says.
    #[error("{found:?} where {expected} was expected")]
    Unexpected {
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
}

impl Facts {
    /// Where the devices of a group do not reach memory. `whose` names it in the texts.
    pub fn reserved(&self, group: u32, whose: &str) -> Vec<Reserved> {
        let regions = self.groups.get(&group).map_or(&[][..], |group| &group.reserved);
        let named = |region: &ReservedRegion| Reserved {
            range: region.range,
            why: Why::of(&region.kind),
            whose: whose.to_owned(),
        };
        regions.iter().map(named).filter(Reserved::counts).collect()
    }

    /// The facts of the host this process runs on.
    ///
    /// # Errors
    /// When a file below `/proc` or `/sys` cannot be read or understood.
    pub fn of_this_host(door: &dyn Door) -> Result<Self, FactsError> {
        let mut facts = Self::below(Path::new("/"), door.host_page())?;
        facts.iommu_types = iommu_types(door);
        Ok(facts)
    }

    /// The facts that files below `root` tell.
    ///
    /// # Errors
    /// When a file that is there cannot be read or understood.
    pub fn below(root: &Path, host_page: PageSize) -> Result<Self, FactsError> {
        let files = Files { root };
        Ok(Self {
            platform: platform(&files)?,
            kernel: files.text("proc/sys/kernel/osrelease")?.unwrap_or_default(),
            host_page,
            limits: limits(&files)?,
            nodes: Nodes {
                container: files.exists(CONTAINER_NODE),
                iommufd: files.exists(IOMMUFD_NODE),
                kvm: files.exists(KVM_NODE),
            },
            modules: MODULES.into_iter().filter(|module| files.exists(format!("sys/module/{module}"))).collect(),
            iommu_types: None,
            groups: groups(&files)?,
            devices: devices(&files)?,
        })
    }
}

/// Asks a fresh container which IOMMU drivers there are.
fn iommu_types(door: &dyn Door) -> Option<IommuTypes> {
    let container = door.open(Path::new(CONTAINER_NODE), HandleKind::Container).ok()?;
    let has = |kind: IommuType| {
        let answer = door.ask(container, Command::with_value(CHECK_EXTENSION, kind.extension().0));
        answer.is_ok_and(|answer| answer > 0)
    };
    let types = IommuTypes {
        type1: has(IommuType::TYPE1_V2),
        spapr: has(IommuType::SPAPR_TCE),
        spapr_v2: has(IommuType::SPAPR_TCE_V2),
    };
    if let Err(errno) = door.close(container) {
        log::warn!("closing {CONTAINER_NODE}: {errno}");
    }
    Some(types)
}

fn platform(files: &Files<'_>) -> Result<Platform, FactsError> {
    // Since Linux 6.1; before it, the architecture this was compiled for has to do.
    let machine = files.text("proc/sys/kernel/arch")?.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    Ok(match machine.as_str() {
        "x86_64" => Platform::X86_64,
        "ppc64" | "ppc64le" | "powerpc64" => {
            let cpus = files.text("proc/cpuinfo")?.unwrap_or_default();
            match field_of(&cpus, "platform") {
                Some("PowerNV") => Platform::Powernv,
                Some("pSeries") => Platform::Pseries,
                _ => Platform::Other(machine),
            }
        }
        _ => Platform::Other(machine),
    })
}

/// The value of a `name : value` line.
fn field_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

fn limits(files: &Files<'_>) -> Result<Limits, FactsError> {
    let (locked_memory, locked_memory_ceiling) =
        files.parsed("proc/self/limits", "soft and hard limits", lock_limits)?.unwrap_or_default();
    let may_lock_without_limit = files.parsed("proc/self/status", "capabilities", may_lock)?.unwrap_or_default();
    let type1_mappings =
        files.parsed("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "a number", |text| text.parse().ok())?;
    Ok(Limits { locked_memory, locked_memory_ceiling, may_lock_without_limit, type1_mappings })
}

/// The soft and hard limit in /proc/self/limits.
fn lock_limits(limits: &str) -> Option<(Option<u64>, Option<u64>)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    let mut columns = line.split_whitespace().map(|column| match column {
        "unlimited" => Some(None),
        bytes => bytes.parse().ok().map(Some),
    });
    Some((columns.next()??, columns.next()??))
}

/// What this process may lock and has locked.
pub(crate) fn locked_memory() -> Option<LockedMemory> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    locked_memory_in(&status, &limits)
}

fn locked_memory_in(status: &str, limits: &str) -> Option<LockedMemory> {
    let (limit, _) = lock_limits(limits)?;
    let bytes = |name| {
        let kib: u64 = field_of(status, name)?.strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib.saturating_mul(1024))
    };
    let limit = limit.filter(|_| may_lock(status) != Some(true));
    Some(LockedMemory { limit, locked: bytes("VmLck")?, pinned: bytes("VmPin")? })
}

/// Whether the effective capabilities in /proc/self/status include CAP_IPC_LOCK.
fn may_lock(status: &str) -> Option<bool> {
    const CAP_IPC_LOCK: u32 = 14;
    let effective = u64::from_str_radix(field_of(status, "CapEff")?, 16).ok()?;
    Some((effective >> CAP_IPC_LOCK) & 1 == 1)
}

fn groups(files: &Files<'_>) -> Result<BTreeMap<u32, IommuGroup>, FactsError> {
    let root = "sys/kernel/iommu_groups";
    let numbers = files.names(root)?.into_iter().filter_map(|name| name.parse().ok());
    numbers.map(|number| Ok((number, group(files, &format!("{root}/{number}"), number)?))).collect()
}

fn group(files: &Files<'_>, at: &str, number: u32) -> Result<IommuGroup, FactsError> {
    let noiommu = files.text(&format!("{at}/name"))?.as_deref() == Some("vfio-noiommu");
    let reserved = files.parsed(&format!("{at}/reserved_regions"), "lines of first, last and kind", |text| {
        text.lines().map(reserved_region).collect()
    })?;
    let mut group = IommuGroup {
        number,
        noiommu,
        node: false,
        members: files.names(&format!("{at}/devices"))?,
        reserved: reserved.unwrap_or_default(),
    };
    group.node = files.exists(group.path());
    Ok(group)
}

/// A line of a group's reserved_regions: `0x00000000fee00000 0x00000000feefffff msi`.
fn reserved_region(line: &str) -> Option<ReservedRegion> {
    let mut words = line.split_whitespace();
    let mut address = || Some(Iova::new(hexadecimal(words.next()?)?));
    let range = IovaRange::new(address()?, address()?).ok()?;
    Some(ReservedRegion { range, kind: words.next()?.to_owned() })
}

fn devices(files: &Files<'_>) -> Result<BTreeMap<PciAddress, PciDevice>, FactsError> {
    let root = "sys/bus/pci/devices";
    let addresses = files.names(root)?.into_iter().filter_map(|name| name.parse().ok());
    addresses.map(|address| Ok((address, device(files, &format!("{root}/{address}"), address)?))).collect()
}

fn device(files: &Files<'_>, at: &str, address: PciAddress) -> Result<PciDevice, FactsError> {
    let number = |name| files.parsed(&format!("{at}/{name}"), "a hexadecimal number", hexadecimal);
    let id = |name| Ok(number(name)?.and_then(|id| u16::try_from(id).ok()).unwrap_or_default());
    Ok(PciDevice {
        address,
        vendor: id("vendor")?,
        device: id("device")?,
        class: number("class")?.and_then(|class| u32::try_from(class).ok()).unwrap_or_default(),
        driver: files.target(&format!("{at}/driver")),
        group: files.target(&format!("{at}/iommu_group")).and_then(|group| group.parse().ok()),
        vfio: vfio_device(files, at)?,
    })
}

fn vfio_device(files: &Files<'_>, at: &str) -> Result<Option<VfioDevice>, FactsError> {
    let name = files.names(&format!("{at}/vfio-dev"))?.into_iter().next();
    Ok(name.map(|name| {
        let device = VfioDevice { name, node: false };
        VfioDevice { node: files.exists(device.path()), ..device }
    }))
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// Files below a root.
struct Files<'a> {
    root: &'a Path,
}

impl Files<'_> {
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// What a file says, without the newline at its end; `None` when there is no such file.
    fn text(&self, path: &str) -> Result<Option<String>, FactsError> {
        let path = self.path(path);
        present(std::fs::read_to_string(&path), path).map(|text| text.map(|text| text.trim_end().to_owned()))
    }

    /// What a file says, understood.
    fn parsed<T>(
        &self,
        path: &str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, FactsError> {
        let Some(text) = self.text(path)? else { return Ok(None) };
        match parse(&text) {
            Some(value) => Ok(Some(value)),
            None => Err(FactsError { path: self.path(path), problem: Problem::Unexpected { found: text, expected } }),
        }
    }

    /// The names in a directory, sorted; none when there is no such directory.
    fn names(&self, path: &str) -> Result<Vec<String>, FactsError> {
        let path = self.path(path);
        let Some(entries) = present(std::fs::read_dir(&path), path.clone())? else { return Ok(Vec::new()) };
        let names: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.file_name())).collect();
        let names = names.map_err(|error| FactsError { path, problem: error.into() })?;
        let mut names: Vec<_> = names.into_iter().filter_map(|name| name.into_string().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The last part of what a symbolic link points to.
    fn target(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }
}

/// `None` for something that is not there, or is just going away.
fn present<T>(result: io::Result<T>, path: PathBuf) -> Result<Option<T>, FactsError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO)) =>
        {
            Ok(None)
        }
        Err(error) => Err(FactsError { path, problem: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A directory that looks like a host.
    struct Host(TempDir);

    impl Host {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a temporary directory"))
        }

        fn file(self, path: &str, text: &str) -> Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("inside the root")).expect("made");
            fs::write(path, text).expect("written");
            self
        }

        fn link(self, path: &str, target: &str) -> Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().expect("inside the root")).expect("made");
            symlink(target, path).expect("linked");
            self
        }

        fn directory(self, path: &str) -> Self {
            fs::create_dir_all(self.0.path().join(path)).expect("made");
            self
        }

        fn facts(&self) -> Result<Facts, FactsError> {
            Facts::below(self.0.path(), PageSize::K4)
        }

        /// A function with what every function has.
        fn pci(self, address: &str, ids: [&str; 3]) -> Self {
            let at = format!("sys/bus/pci/devices/{address}");
            let [vendor, device, class] = ids;
            self.file(&format!("{at}/vendor"), &format!("{vendor}\n"))
                .file(&format!("{at}/device"), &format!("{device}\n"))
                .file(&format!("{at}/class"), &format!("{class}\n"))
        }
    }

    /// The emulated PC with VT-d, its edu device bound to vfio-pci.
    fn vtd() -> Host {
        let edu = "sys/bus/pci/devices/0000:00:03.0";
        Host::new()
            .file("proc/sys/kernel/arch", "x86_64\n")
            .file("proc/sys/kernel/osrelease", "6.12.95+deb13-amd64\n")
            .file(
                "proc/self/limits",
                "Limit   Soft Limit  Hard Limit  Units\nMax locked memory  8388608  unlimited  bytes\n",
            )
            .file("proc/self/status", "Name:\tcat\nCapEff:\t0000000000004000\n")
            .file("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n")
            .directory("sys/module/kvm")
            .file("dev/vfio/vfio", "")
            .file("dev/vfio/7", "")
            .file("dev/vfio/devices/vfio0", "")
            .pci("0000:00:03.0", ["0x1234", "0x11e8", "0x00ff00"])
            .pci("0000:00:1f.0", ["0x8086", "0x2918", "0x060100"])
            .link(&format!("{edu}/driver"), "../../../bus/pci/drivers/vfio-pci")
            .link(&format!("{edu}/iommu_group"), "../../../kernel/iommu_groups/7")
            .directory(&format!("{edu}/vfio-dev/vfio0"))
            .directory("sys/kernel/iommu_groups/7/devices/0000:00:03.0")
            .file("sys/kernel/iommu_groups/7/reserved_regions", "0x00000000fee00000 0x00000000feefffff msi\n")
    }

    fn address(text: &str) -> PciAddress {
        text.parse().expect("an address of the test")
    }

    #[test]
    fn an_empty_directory_is_a_host_without_anything() {
        let facts = Host::new().facts().expect("nothing to misunderstand");
        assert!(facts.devices.is_empty() && facts.groups.is_empty() && facts.modules.is_empty());
        assert_eq!(facts.nodes, Nodes::default());
        assert_eq!(facts.limits, Limits::default());
    }

    #[test]
    fn a_pc_is_read_whole() {
        let facts = vtd().facts().expect("all of it makes sense");
        assert_eq!(facts.platform, Platform::X86_64);
        assert_eq!(facts.kernel, "6.12.95+deb13-amd64");
        assert_eq!(facts.nodes, Nodes { container: true, iommufd: false, kvm: false });
        assert_eq!(facts.modules, BTreeSet::from(["kvm", "vfio_iommu_type1"]));
        assert_eq!(
            facts.limits,
            Limits {
                locked_memory: Some(8 << 20),
                locked_memory_ceiling: None,
                may_lock_without_limit: true,
                type1_mappings: Some(65535),
            }
        );
        let msi = IovaRange::new(Iova::new(0xfee0_0000), Iova::new(0xfeef_ffff)).expect("a range");
        let group = IommuGroup {
            number: 7,
            noiommu: false,
            node: true,
            members: vec!["0000:00:03.0".to_owned()],
            reserved: vec![ReservedRegion { range: msi, kind: "msi".to_owned() }],
        };
        assert_eq!(facts.groups, BTreeMap::from([(7, group)]));
        let edu = PciDevice {
            address: address("0000:00:03.0"),
            vendor: 0x1234,
            device: 0x11e8,
            class: 0xff00,
            driver: Some("vfio-pci".to_owned()),
            group: Some(7),
            vfio: Some(VfioDevice { name: "vfio0".to_owned(), node: true }),
        };
        assert_eq!(facts.devices.get(&edu.address), Some(&edu));
    }

    #[test]
    fn a_bridge_is_known_by_its_class_and_a_bare_device_has_no_driver() {
        let facts = vtd().facts().expect("all of it makes sense");
        let bridge = facts.devices.get(&address("0000:00:1f.0")).expect("it was found");
        assert!(bridge.is_bridge() && !bridge.is_with_vfio());
        assert_eq!((&bridge.driver, bridge.group, &bridge.vfio), (&None, None, &None));
        assert!(!facts.devices.get(&address("0000:00:03.0")).expect("it was found").is_bridge());
    }

    #[test]
    fn power_says_what_it_runs_on_in_cpuinfo() {
        for (name, platform) in [("PowerNV", Platform::Powernv), ("pSeries", Platform::Pseries)] {
            let host = Host::new().file("proc/sys/kernel/arch", "ppc64le\n").file(
                "proc/cpuinfo",
                &format!("processor\t: 0\ncpu\t\t: POWER9\n\ntimebase\t: 512000000\nplatform\t: {name}\n"),
            );
            assert_eq!(host.facts().expect("understood").platform, platform);
        }
        let arm = Host::new().file("proc/sys/kernel/arch", "aarch64\n");
        assert_eq!(arm.facts().expect("understood").platform, Platform::Other("aarch64".to_owned()));
    }

    #[test]
    fn a_group_without_an_iommu_has_a_node_of_another_name() {
        let host = Host::new().file("sys/kernel/iommu_groups/0/name", "vfio-noiommu\n").file("dev/vfio/noiommu-0", "");
        let group = host.facts().expect("understood").groups.remove(&0).expect("it was found");
        assert!(group.noiommu && group.node);
        assert_eq!(group.path(), Path::new("/dev/vfio/noiommu-0"));
    }

    #[test]
    fn before_vfio_dev_a_vfio_driver_is_known_by_its_name() {
        let at = "sys/bus/pci/devices/0000:00:03.0";
        let host = Host::new()
            .pci("0000:00:03.0", ["0x15b3", "0x101e", "0x020000"])
            .link(&format!("{at}/driver"), "../../../bus/pci/drivers/mlx5_vfio_pci");
        assert!(host.facts().expect("understood").devices.values().all(PciDevice::is_with_vfio));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_named_with_what_it_says() {
        for (path, text, expected) in [
            ("sys/kernel/iommu_groups/3/reserved_regions", "0x10 0x1 msi\n", "first, last and kind"),
            ("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "many\n", "a number"),
            ("proc/self/limits", "Max locked memory   lots\n", "soft and hard limits"),
            ("proc/self/status", "CapEff:\tnone\n", "capabilities"),
            ("sys/bus/pci/devices/0000:00:03.0/vendor", "1234\n", "a hexadecimal number"),
        ] {
            let error = Host::new().file(path, text).facts().expect_err("it makes no sense").to_string();
            assert!(error.contains(path) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn reserved_regions_that_make_no_sense_are_refused_line_by_line() {
        let path = "sys/kernel/iommu_groups/3/reserved_regions";
        let good = "0x0000000000000000 0xffffffffffffffff msi";
        for bad in
            ["", "0x10", "0x10 0x20", "0x20 0x10 msi", "10 20 msi", "0x 0x msi", "-0x1 0x2 msi", "\u{0} \u{0} \u{0}"]
                .into_iter()
                .chain(["0x10000000000000000 0x10000000000000001 msi", "0xé 0x2 msi"])
        {
            let error = Host::new().file(path, &format!("{good}\n{bad}\n{good}\n")).facts();
            assert!(error.is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_reserved_is_told_with_its_reason_and_its_owner_unless_memory_can_be_mapped_there() {
        let text = "0x10 0x1f direct-relaxable\n0xfee00000 0xfeefffff msi\n0x20 0x2f \u{1b}[2J\n";
        let facts = Host::new().file("sys/kernel/iommu_groups/3/reserved_regions", text).facts().expect("understood");
        let texts: Vec<_> = facts.reserved(3, "group 3").iter().map(ToString::to_string).collect();
        let msi = "0xfee00000..=0xfeefffff, where a write is an interrupt (group 3)";
        assert_eq!(texts, [msi, "0x20..=0x2f, reserved as \"\\u{1b}[2J\" (group 3)"]);
        assert!(facts.reserved(4, "group 4").is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = Host::new().directory("proc/sys/kernel/osrelease").facts().expect_err("a directory");
        assert!(error.to_string().contains("osrelease"), "{error}");
    }

    #[test]
    fn names_that_are_no_addresses_are_passed_over() {
        let host = Host::new().directory("sys/bus/pci/devices/slot").directory("sys/kernel/iommu_groups/x");
        let facts = host.facts().expect("nothing to misunderstand");
        assert!(facts.devices.is_empty() && facts.groups.is_empty());
    }

    #[test]
    fn what_may_be_locked_and_what_is_taken_come_from_two_files() {
        let limits = "Max locked memory         8388608              8388608              bytes\n";
        let status = |effective: &str| format!("VmLck:\t    1024 kB\nVmPin:\t       4 kB\nCapEff:\t{effective}\n");
        let limited = LockedMemory { limit: Some(8 << 20), locked: 1 << 20, pinned: 4096 };
        let free = LockedMemory { limit: None, ..limited };
        assert_eq!(locked_memory_in(&status("0000000000000000"), limits), Some(limited));
        assert_eq!(locked_memory_in(&status("0000000000004000"), limits), Some(free), "CAP_IPC_LOCK lifts the limit");
        let unlimited = "Max locked memory         unlimited            unlimited            bytes\n";
        assert_eq!(locked_memory_in(&status("0000000000000000"), unlimited), Some(free));
        for status in
            ["", "VmLck: 1 kB\n", "VmLck: 1 kB\nVmPin: 99999999999999999999 kB\n", "VmLck: -1 kB\nVmPin: 1 kB\n"]
        {
            assert_eq!(locked_memory_in(status, limits), None, "{status:?}");
        }
    }
}
