//! The platform, the IOMMU groups and the PCI functions, from procfs and sysfs.

use std::collections::BTreeMap;
use std::path::Path;

use dmaspace_core::{Iova, IovaRange};

use super::files::{FactsError, Files, relative};
use super::locked::field_of;
use super::{IommuGroup, PciDevice, Platform, ReservedRegion, SysfsDevice, VfioDevice};
use crate::pci::PciAddress;

pub(super) fn platform(files: &Files<'_>) -> Result<Platform, FactsError> {
    // The file exists since Linux 6.1. Before that, the architecture of this build has to do.
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

pub(super) fn groups(files: &Files<'_>) -> Result<BTreeMap<u32, IommuGroup>, FactsError> {
    let root = "sys/kernel/iommu_groups";
    let mut groups = BTreeMap::new();
    for name in files.names(root)? {
        if let Ok(number) = name.parse() {
            groups.insert(number, group(files, &format!("{root}/{name}"), number)?);
        }
    }
    Ok(groups)
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
    let first = Iova::new(hexadecimal(words.next()?)?);
    let last = Iova::new(hexadecimal(words.next()?)?);
    let range = IovaRange::new(first, last).ok()?;
    Some(ReservedRegion { range, kind: words.next()?.to_owned() })
}

pub(super) fn devices(files: &Files<'_>) -> Result<BTreeMap<PciAddress, PciDevice>, FactsError> {
    let root = "sys/bus/pci/devices";
    let mut devices = BTreeMap::new();
    for name in files.names(root)? {
        if let Ok(address) = name.parse() {
            devices.insert(address, device(files, &format!("{root}/{name}"), address)?);
        }
    }
    Ok(devices)
}

fn device(files: &Files<'_>, at: &str, address: PciAddress) -> Result<PciDevice, FactsError> {
    let class = hexadecimal_in(files, &format!("{at}/class"))?.and_then(|class| u32::try_from(class).ok());
    Ok(PciDevice {
        address,
        vendor: id_in(files, &format!("{at}/vendor"))?,
        device: id_in(files, &format!("{at}/device"))?,
        class: class.unwrap_or_default(),
        driver: files.target(&format!("{at}/driver")),
        group: group_of(files, at),
        vfio: vfio_device(files, at)?,
    })
}

/// The device at `path`, of any bus.
pub(super) fn device_at(files: &Files<'_>, path: &Path) -> Result<SysfsDevice, FactsError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let at = relative(path).to_string_lossy().into_owned();
    Ok(SysfsDevice { name, group: group_of(files, &at), vfio: vfio_device(files, &at)? })
}

fn group_of(files: &Files<'_>, at: &str) -> Option<u32> {
    files.target(&format!("{at}/iommu_group"))?.parse().ok()
}

fn hexadecimal_in(files: &Files<'_>, path: &str) -> Result<Option<u64>, FactsError> {
    files.parsed(path, "a hexadecimal number", hexadecimal)
}

/// A vendor's or a device's id. A device that vanishes at this moment has the id 0.
fn id_in(files: &Files<'_>, path: &str) -> Result<u16, FactsError> {
    Ok(hexadecimal_in(files, path)?.and_then(|id| u16::try_from(id).ok()).unwrap_or_default())
}

fn vfio_device(files: &Files<'_>, at: &str) -> Result<Option<VfioDevice>, FactsError> {
    let name = files.names(&format!("{at}/vfio-dev"))?.into_iter().next();
    let Some(name) = name else { return Ok(None) };
    let mut device = VfioDevice { name, node: false };
    device.node = files.exists(device.path());
    Ok(Some(device))
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}
