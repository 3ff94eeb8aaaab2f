use std::fs;
use std::os::unix::fs::symlink;

use dmaspace_core::Iova;
use dmaspace_core::words::locked::LockedMemory;
use tempfile::TempDir;

use super::locked::locked_memory_in;
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
fn power_names_its_platform_in_cpuinfo() {
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
fn a_malformed_file_is_named_with_its_content() {
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
    for bad in ["", "0x10", "0x10 0x20", "0x20 0x10 msi", "10 20 msi", "0x 0x msi", "-0x1 0x2 msi", "\u{0} \u{0} \u{0}"]
        .into_iter()
        .chain(["0x10000000000000000 0x10000000000000001 msi", "0xé 0x2 msi"])
    {
        let error = Host::new().file(path, &format!("{good}\n{bad}\n{good}\n")).facts();
        assert!(error.is_err(), "{bad:?}");
    }
}

#[test]
fn reserved_ranges_have_reason_and_owner_unless_memory_can_be_mapped_there() {
    let text = "0x10 0x1f direct-relaxable\n0xfee00000 0xfeefffff msi\n0x20 0x2f \u{1b}[2J\n";
    let facts = Host::new().file("sys/kernel/iommu_groups/3/reserved_regions", text).facts().expect("understood");
    let texts: Vec<_> = facts.reserved(3, "group 3").iter().map(ToString::to_string).collect();
    let msi = "0xfee00000..=0xfeefffff, where a write is an interrupt (group 3)";
    assert_eq!(texts, [msi, "0x20..=0x2f, reserved as \"\\u{1b}[2J\" (group 3)"]);
    assert!(facts.reserved(4, "group 4").is_empty());
}

#[test]
fn unreadable_files_are_named() {
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
fn the_limit_and_the_locked_bytes_come_from_two_files() {
    let limits = "Max locked memory         8388608              8388608              bytes\n";
    let status = |effective: &str| format!("VmLck:\t    1024 kB\nVmPin:\t       4 kB\nCapEff:\t{effective}\n");
    let limited = LockedMemory::new(Some(8 << 20), 1 << 20, 4096);
    let free = LockedMemory::new(None, 1 << 20, 4096);
    assert_eq!(locked_memory_in(&status("0000000000000000"), limits), Some(limited));
    assert_eq!(locked_memory_in(&status("0000000000004000"), limits), Some(free), "CAP_IPC_LOCK lifts the limit");
    let unlimited = "Max locked memory         unlimited            unlimited            bytes\n";
    assert_eq!(locked_memory_in(&status("0000000000000000"), unlimited), Some(free));
    for status in ["", "VmLck: 1 kB\n", "VmLck: 1 kB\nVmPin: 99999999999999999999 kB\n", "VmLck: -1 kB\nVmPin: 1 kB\n"]
    {
        assert_eq!(locked_memory_in(status, limits), None, "{status:?}");
    }
}
