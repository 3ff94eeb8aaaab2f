//! The description of a host: plain data, presets of hosts that were measured, and the check of a description from a
//! file.
//!
//! A [`Profile`] holds numbers and names only, so that `dmaspace probe` can print one and a person can write one. In a
//! file, everything but the aperture and the reserved ranges has a default.
//! [`Profile::check`] reports the field that is wrong, and why; a soft host is only made of a profile that passed it.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use dmaspace_core::{Iova, IovaRange, PageSize, PageSizes};

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

#[cfg(feature = "serde")]
mod hex;
mod presets;
mod region;
#[cfg(feature = "serde")]
mod written;

pub use region::BadRegion;

/// The description of a host, as far as devices' DMA is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(from = "written::WrittenProfile"))]
#[non_exhaustive]
pub struct Profile {
    /// The name of the host.
    pub name: String,
    /// The processor.
    pub architecture: Architecture,
    /// The kernel whose answers the host gives.
    pub kernel: KernelVersion,
    /// The page size of the host's memory, in bytes.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub host_page: u64,
    /// The kernel's interfaces to the IOMMU.
    pub backends: Vec<KernelInterface>,
    /// The IOMMU of a host with fixed windows. Required for type1 and iommufd.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub fixed: Option<FixedIommu>,
    /// The IOMMU of a host with windows that are created. Required for sPAPR.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub tce: Option<TceIommu>,
    /// The limits of a process.
    pub limits: ProcessLimits,
    /// The groups of devices that are bound to VFIO.
    pub groups: Vec<Group>,
}

/// A processor architecture, by the name that `uname -m` prints. Request numbers are always those this library was
/// compiled for: a POWER host can run on a PC.
///
/// Exhaustive: [`Architecture::Other`] is any other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(from = "String", into = "String"))]
pub enum Architecture {
    /// PCs.
    X86_64,
    /// POWER, little-endian.
    Ppc64le,
    /// 64-bit Arm.
    Aarch64,
    /// Another architecture: `riscv64`, `s390x`, `loongarch64`.
    Other(String),
}

impl From<String> for Architecture {
    fn from(name: String) -> Self {
        match name.as_str() {
            "x86_64" | "amd64" => Self::X86_64,
            "ppc64le" | "ppc64el" => Self::Ppc64le,
            "aarch64" | "arm64" => Self::Aarch64,
            _ => Self::Other(name),
        }
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.to_string()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Ppc64le => "ppc64le",
            Self::Aarch64 => "aarch64",
            Self::Other(name) => name,
        })
    }
}

/// A kernel interface to the IOMMU.
///
/// Exhaustive: a survey tries each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "lowercase"))]
pub enum KernelInterface {
    /// VFIO type1 containers.
    Type1,
    /// VFIO sPAPR TCE containers, both versions.
    Spapr,
    /// `/dev/iommu`.
    Iommufd,
}

/// An IOMMU with fixed windows: everything up to the last address, except for reserved ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize))]
#[non_exhaustive]
pub struct FixedIommu {
    /// The page sizes as a mask: bit n stands for 2^n bytes.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub page_sizes: u64,
    /// The last bus address that it translates.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub last: u64,
    /// Ranges that no device behind it can use.
    pub reserved: Vec<ReservedProfile>,
    /// `true` if devices may read memory that was mapped for writing only, as on VT-d.
    pub write_implies_read: bool,
}

/// A range that cannot be mapped.
///
/// Exhaustive: the kernel's three words in sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct ReservedProfile {
    /// The first bus address.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub first: u64,
    /// The last bus address, which is inside.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub last: u64,
    /// The reason for the reservation.
    pub reason: Reason,
}

/// The reason for a reservation, in the kernel's words of `/sys/kernel/iommu_groups/<n>/reserved_regions` (linux:
/// drivers/iommu/iommu.c, iommu_group_resv_type_string).
///
/// Exhaustive: the kernel's words in sysfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "kebab-case"))]
pub enum Reason {
    /// A write to the range is an interrupt, or the kernel uses the range to deliver interrupts.
    Msi,
    /// The hardware uses the range otherwise.
    Reserved,
    /// The firmware requires an identity mapping of the range.
    Direct,
    /// The firmware asks for an identity mapping of the range, but works without: the range can be mapped.
    DirectRelaxable,
}

/// An IOMMU whose windows are tables of TCEs that are created and removed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize))]
#[non_exhaustive]
pub struct TceIommu {
    /// The manager of the tables.
    pub platform: TceManager,
    /// The page sizes of windows as a mask: bit n stands for 2^n bytes.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub page_sizes: u64,
    /// The length in bytes of the default 32-bit window, which begins where the first slot does.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub default_window: u64,
    /// The number of windows that the kernel reports. It has two slots whatever it reports, but refuses v2 if it
    /// reports none.
    pub windows: u32,
    /// The most levels of a table.
    pub levels: u32,
    /// The first addresses of windows in the first and in the second slot.
    #[cfg_attr(feature = "serde", serde(with = "hex::list"))]
    pub starts: [u64; 2],
    /// The number of TCEs of the largest window, where firmware creates them.
    #[cfg_attr(feature = "serde", serde(with = "hex"))]
    pub largest_window: u64,
    /// `true` if the kernel recovers from PCI errors (EEH).
    pub eeh: bool,
}

/// The manager of TCE tables.
///
/// Exhaustive: Linux has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(rename_all = "lowercase"))]
pub enum TceManager {
    /// The kernel, on bare metal.
    PowerNv,
    /// A hypervisor, by hypercalls, in a partition or a KVM guest.
    PSeries,
}

/// The limits of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize))]
#[non_exhaustive]
pub struct ProcessLimits {
    /// RLIMIT_MEMLOCK in bytes; absent for a process with CAP_IPC_LOCK, which has no limit.
    pub memlock: Option<u64>,
    /// The number of mappings that a type1 container accepts (vfio_iommu_type1's `dma_entry_limit`).
    pub dma_entries: u32,
}

/// An IOMMU group that is bound to VFIO.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize))]
#[non_exhaustive]
pub struct Group {
    /// The group's number, as in `/dev/vfio/<number>`.
    pub number: u32,
    /// `true` if a kernel driver still holds one of the group's devices, which makes the group unusable.
    pub held_by_kernel: bool,
    /// Ranges that are reserved only for the group's devices.
    pub reserved: Vec<ReservedProfile>,
    /// The number of the IOMMU in front of the group. A page table of iommufd fits one IOMMU only.
    pub iommu: u32,
    /// `true` if that IOMMU logs the writes of the group's devices, for iommufd (VT-d: SSADS, in scalable mode).
    pub logs_writes: bool,
    /// The devices of the group.
    pub devices: Vec<DeviceProfile>,
}

/// A PCI device.
///
/// Exhaustive: the kernel names a device by these alone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(deny_unknown_fields))]
pub struct DeviceProfile {
    /// The PCI address, as in `0000:00:03.0`.
    pub address: String,
    /// The number of the device's own node, as in `/dev/vfio/devices/vfio<number>`.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub node: Option<u32>,
}

/// A kernel's version, as in "6.12"; read from the release that `uname -r` prints, too: `6.12.48+deb13-amd64`.
///
/// Exhaustive: the numbers that order kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize), serde(try_from = "String", into = "String"))]
pub struct KernelVersion {
    /// The number before the dot.
    pub major: u16,
    /// The number after the dot.
    pub minor: u16,
}

impl KernelVersion {
    /// Linux 6.12, the kernel of Debian 13.
    pub const V6_12: Self = Self { major: 6, minor: 12 };
    /// Linux 7.2.
    pub const V7_2: Self = Self { major: 7, minor: 2 };

    fn parse(text: &str) -> Option<Self> {
        let (major, rest) = text.split_once('.')?;
        // As `uname -r` prints it: 6.8.12-1-pve.
        let minor = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The error of a text that is no kernel version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kernel version such as 6.12")]
pub struct BadVersion(String);

impl FromStr for KernelVersion {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        Self::parse(text).ok_or_else(|| BadVersion(text.to_owned()))
    }
}

impl TryFrom<String> for KernelVersion {
    type Error = BadVersion;

    fn try_from(text: String) -> Result<Self, BadVersion> {
        text.parse()
    }
}

impl From<KernelVersion> for String {
    fn from(version: KernelVersion) -> Self {
        version.to_string()
    }
}

/// The error of a profile: the field, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
#[non_exhaustive]
pub struct BadProfile {
    /// The field, as a path: `groups[1].devices[0].address`.
    pub field: String,
    /// The reason why the field is wrong.
    pub why: String,
}

/// The most entries of a window: as many as the largest block of Linux's page allocator holds, with 4 KiB pages and
/// with 64 KiB ones (linux: arch/powerpc/Kconfig, ARCH_FORCE_MAX_ORDER).
const MAX_WINDOW_ENTRIES: u64 = 1 << 37;

impl Profile {
    /// The name of the form of a description in a file, as the field `schema` of the file may give it.
    pub const SCHEMA: &str = "dmaspace/host";

    /// The newest version of that form, as the field `version` of the file may give it. It is raised when a field goes
    /// or changes its meaning.
    pub const VERSION: u32 = 1;

    /// Returns the profile of a host on which no window can be created, because its firmware is old or the kernel
    /// cannot ask it: SET_IOMMU refuses v2 with `EINVAL`, although CHECK_EXTENSION reports it (linux:
    /// drivers/vfio/vfio_iommu_spapr_tce.c, tce_iommu_attach_group).
    #[must_use]
    pub fn with_fixed_window(mut self) -> Self {
        if let Some(tce) = &mut self.tce {
            tce.windows = 0;
        }
        self
    }

    /// The same host with this kernel.
    #[must_use]
    pub fn with_kernel(self, kernel: KernelVersion) -> Self {
        Self { kernel, ..self }
    }

    /// The same host with these limits of a process.
    #[must_use]
    pub fn with_limits(self, limits: ProcessLimits) -> Self {
        Self { limits, ..self }
    }

    /// The same host with pages of this many bytes.
    #[must_use]
    pub fn with_host_page(self, host_page: u64) -> Self {
        Self { host_page, ..self }
    }

    /// The same host with these interfaces to its IOMMU.
    #[must_use]
    pub fn with_backends(self, backends: Vec<KernelInterface>) -> Self {
        Self { backends, ..self }
    }

    /// The same host with this IOMMU of fixed windows.
    #[must_use]
    pub fn with_fixed_iommu(self, fixed: Option<FixedIommu>) -> Self {
        Self { fixed, ..self }
    }

    /// Checks that a soft host can be made of the profile.
    ///
    /// # Errors
    /// The first field that is wrong, and the reason.
    pub fn check(&self) -> Result<(), BadProfile> {
        let page = self.checked_page()?;
        self.check_backends()?;
        if let Some(fixed) = &self.fixed {
            fixed.check(page)?;
        }
        if let Some(tce) = &self.tce {
            tce.check()?;
        }
        require(self.limits.dma_entries > 0, "limits.dma_entries", "there must be room for a mapping")?;
        self.check_groups()
    }

    /// Returns whether the kernel has `backend`.
    pub fn has(&self, backend: KernelInterface) -> bool {
        self.backends.contains(&backend)
    }

    fn checked_page(&self) -> Result<PageSize, BadProfile> {
        let known = PageSize::from_bytes(self.host_page).filter(|page| (12..=16).contains(&page.shift()));
        known.ok_or_else(|| bad("host_page", "must be a power of two from 4 KiB to 64 KiB"))
    }

    fn check_backends(&self) -> Result<(), BadProfile> {
        let fixed = self.has(KernelInterface::Type1) || self.has(KernelInterface::Iommufd);
        require(
            !(fixed && self.has(KernelInterface::Spapr)),
            "backends",
            "no kernel has sPAPR beside type1 or iommufd",
        )?;
        require(
            !fixed || self.fixed.is_some(),
            "fixed",
            "is missing: type1 and iommufd need an IOMMU with fixed windows",
        )?;
        require(
            !self.has(KernelInterface::Spapr) || self.tce.is_some(),
            "tce",
            "is missing: sPAPR needs an IOMMU with TCE windows",
        )
    }

    fn check_groups(&self) -> Result<(), BadProfile> {
        let (mut numbers, mut addresses, mut nodes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (n, group) in self.groups.iter().enumerate() {
            let at = format!("groups[{n}]");
            require(numbers.insert(group.number), format!("{at}.number"), "another group has it")?;
            require(!group.devices.is_empty(), format!("{at}.devices"), "a group has a device")?;
            check_reserved(&format!("{at}.reserved"), &group.reserved)?;
            for (n, device) in group.devices.iter().enumerate() {
                let at = format!("{at}.devices[{n}]");
                let why = format!("`{}` is no PCI address such as 0000:00:03.0", device.address);
                require(is_pci_address(&device.address), format!("{at}.address"), why)?;
                require(addresses.insert(&device.address), format!("{at}.address"), "another device has it")?;
                let free = device.node.is_none_or(|node| nodes.insert(node));
                require(free, format!("{at}.node"), "another device has it")?;
            }
        }
        Ok(())
    }
}

impl ProcessLimits {
    /// The limits of a process: bytes it may lock (`None` without a limit), and mappings of a type1 container.
    pub const fn new(memlock: Option<u64>, dma_entries: u32) -> Self {
        Self { memlock, dma_entries }
    }
}

impl Group {
    /// A group of these devices, behind the host's first IOMMU, which logs nothing.
    pub fn new(number: u32, devices: Vec<DeviceProfile>) -> Self {
        Self { number, held_by_kernel: false, reserved: Vec::new(), iommu: 0, logs_writes: false, devices }
    }

    /// A group of one device, behind the host's first IOMMU, which logs nothing.
    fn of(number: u32, address: String, node: Option<u32>) -> Self {
        Self::new(number, vec![DeviceProfile { address, node }])
    }
}

impl FixedIommu {
    /// An IOMMU that translates the addresses up to `last` in these pages, except for reserved ranges.
    pub fn new(last: u64, page_sizes: u64, reserved: Vec<ReservedProfile>) -> Self {
        Self { page_sizes, last, reserved, write_implies_read: false }
    }

    fn check(&self, page: PageSize) -> Result<(), BadProfile> {
        let usable = PageSizes::from_mask(self.page_sizes).and_then(|sizes| sizes.up_to(page));
        require(usable.is_some(), "fixed.page_sizes", format!("none is as small as the host's page, {page}"))?;
        let whole = self.last.checked_add(1).is_none_or(|end| page.divides(end));
        require(whole && self.last > 0, "fixed.last", format!("must be the last byte of a page of {page}"))?;
        check_reserved("fixed.reserved", &self.reserved)
    }
}

impl TceIommu {
    /// The shifts of the smallest and the largest page that Linux can handle: its masks are made by shifting 32-bit
    /// numbers (linux: arch/powerpc/include/asm/iommu.h, IOMMU_PAGE_MASK).
    const PAGE_SHIFTS: RangeInclusive<u32> = 12..=30;

    fn check(&self) -> Result<(), BadProfile> {
        let known_sizes = PageSizes::from_mask(self.page_sizes).is_some_and(Self::has_known_sizes);
        require(known_sizes, "tce.page_sizes", "must have 4 KiB, and nothing below, nor above 1 GiB")?;
        let fits = self.default_window.is_power_of_two() && (0x1000..1 << 32).contains(&self.default_window);
        require(fits, "tce.default_window", "must be a power of two from 4 KiB to 2 GiB")?;
        require((1..=5).contains(&self.levels), "tce.levels", "must be from 1 to 5")?;
        let [first, second] = self.starts;
        require(
            PageSize::G1.divides(first) && first >> 32 == 0,
            "tce.starts[0]",
            "must be a multiple of 1 GiB below 4 GiB",
        )?;
        let room = (first + self.default_window..=1 << 62).contains(&second);
        require(
            PageSize::G1.divides(second) && room,
            "tce.starts[1]",
            "must be a multiple of 1 GiB behind the default window",
        )?;
        require(self.largest_window > 0, "tce.largest_window", "must be at least one TCE")
    }

    fn has_known_sizes(sizes: PageSizes) -> bool {
        sizes.contains(PageSize::K4) && sizes.iter().all(|page| Self::PAGE_SHIFTS.contains(&page.shift()))
    }
}

fn check_reserved(field: &str, reserved: &[ReservedProfile]) -> Result<(), BadProfile> {
    for (n, range) in reserved.iter().enumerate() {
        require(range.first <= range.last, format!("{field}[{n}]"), "ends before it begins")?;
    }
    Ok(())
}

/// Returns whether a text has the form dddd:bb:dd.f, in hexadecimal. Domains have more digits behind some host bridges
/// (Intel's VMD begins at 10000).
fn is_pci_address(text: &str) -> bool {
    let Some((slot, function)) = text.split_once('.') else { return false };
    let parts: Vec<_> = slot.split(':').collect();
    let known_slot =
        matches!(parts.as_slice(), [domain, bus, slot] if is_domain(domain) && is_hex(bus, 2) && is_hex(slot, 2));
    known_slot && matches!(function.as_bytes(), [b'0'..=b'7'])
}

fn is_domain(text: &str) -> bool {
    (4..=8).any(|digits| is_hex(text, digits))
}

/// Returns whether a text is a hexadecimal number of this many digits.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn require(holds: bool, field: impl Into<String>, why: impl Into<String>) -> Result<(), BadProfile> {
    if holds { Ok(()) } else { Err(bad(field, why)) }
}

fn bad(field: impl Into<String>, why: impl Into<String>) -> BadProfile {
    BadProfile { field: field.into(), why: why.into() }
}

impl ReservedProfile {
    /// The range, if it cannot be mapped.
    pub(crate) fn unmappable(&self) -> Option<IovaRange> {
        let range = IovaRange::new(Iova::new(self.first), Iova::new(self.last)).ok();
        range.filter(|_| self.reason != Reason::DirectRelaxable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_pass_the_check_and_are_found_by_name() {
        for name in Profile::PRESETS {
            let profile = Profile::preset(name).expect("a preset");
            assert_eq!(profile.check(), Ok(()), "{name}");
            assert_eq!(profile.name, name);
        }
        assert_eq!(Profile::preset("vax"), None);
    }

    /// The refusal of a changed [`Profile::vtd`].
    fn refusal_of_vtd(change: impl Fn(&mut Profile)) -> Option<String> {
        let mut profile = Profile::vtd();
        change(&mut profile);
        profile.check().err().map(|bad| bad.to_string())
    }

    /// The field for which a [`Profile::powernv9`] with a changed IOMMU is refused.
    fn refused_field_of_powernv9(change: impl Fn(&mut TceIommu)) -> Option<String> {
        let mut profile = Profile::powernv9();
        change(profile.tce.as_mut().expect("it has one"));
        profile.check().err().map(|bad| bad.field)
    }

    #[test]
    fn a_bad_profile_is_refused_by_field_and_reason() {
        assert_eq!(
            refusal_of_vtd(|p| p.host_page = 5000),
            Some("host_page: must be a power of two from 4 KiB to 64 KiB".to_owned())
        );
        assert_eq!(
            refusal_of_vtd(|p| p.backends.push(KernelInterface::Spapr)),
            Some("backends: no kernel has sPAPR beside type1 or iommufd".to_owned())
        );
        assert_eq!(
            refusal_of_vtd(|p| p.fixed = None),
            Some("fixed: is missing: type1 and iommufd need an IOMMU with fixed windows".to_owned())
        );
        assert_eq!(
            refusal_of_vtd(|p| p.groups[1].devices[0].address = "0:3.0".to_owned()),
            Some("groups[1].devices[0].address: `0:3.0` is no PCI address such as 0000:00:03.0".to_owned())
        );
        assert_eq!(
            refusal_of_vtd(|p| p.groups[2].number = 3),
            Some("groups[2].number: another group has it".to_owned())
        );
        assert_eq!(
            refusal_of_vtd(|p| p.groups[2].devices[0].node = Some(0)),
            Some("groups[2].devices[0].node: another device has it".to_owned())
        );
        assert_eq!(
            refusal_of_vtd(|p| p.groups[0].devices.clear()),
            Some("groups[0].devices: a group has a device".to_owned())
        );
        let backwards = ReservedProfile { first: 2, last: 1, reason: Reason::Msi };
        assert_eq!(
            refusal_of_vtd(|p| p.groups[0].reserved.push(backwards.clone())),
            Some("groups[0].reserved[0]: ends before it begins".to_owned())
        );
    }

    #[test]
    fn a_bad_tce_iommu_is_refused() {
        assert_eq!(refused_field_of_powernv9(|tce| tce.page_sizes = 0x1_0000), Some("tce.page_sizes".to_owned()));
        assert_eq!(refused_field_of_powernv9(|tce| tce.page_sizes |= 1 << 34), Some("tce.page_sizes".to_owned()));
        assert_eq!(refused_field_of_powernv9(|tce| tce.page_sizes |= 1), Some("tce.page_sizes".to_owned()));
        assert_eq!(refused_field_of_powernv9(|tce| tce.default_window = 0x3000), Some("tce.default_window".to_owned()));
        assert_eq!(refused_field_of_powernv9(|tce| tce.levels = 0), Some("tce.levels".to_owned()));
        assert_eq!(refused_field_of_powernv9(|tce| tce.starts = [1, 1 << 59]), Some("tce.starts[0]".to_owned()));
        assert_eq!(
            refused_field_of_powernv9(|tce| tce.starts = [0, 1 << 30]),
            Some("tce.starts[1]".to_owned()),
            "in the default window"
        );
        assert_eq!(
            refused_field_of_powernv9(|tce| tce.starts = [0, 1 << 63]),
            Some("tce.starts[1]".to_owned()),
            "too high for a large one"
        );
    }

    #[test]
    fn versions_are_ordered_and_parsed_from_major_dot_minor() {
        assert_eq!("6.12".parse(), Ok(KernelVersion::V6_12));
        assert_eq!("6.12.8-1-pve".parse(), Ok(KernelVersion::V6_12));
        assert!(KernelVersion::V6_12 < KernelVersion::V7_2);
        assert_eq!(
            "6".parse::<KernelVersion>().map_err(|bad| bad.to_string()),
            Err("`6` is no kernel version such as 6.12".to_owned())
        );
    }
}
