//! Profiles as people write them: everything but the aperture and the reserved ranges has a default.

use std::fmt;

use dmaspace_core::PageSize;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, de};

use super::{
    Architecture, DeviceProfile, FixedIommu, Group, KernelInterface, KernelVersion, MAX_WINDOW_ENTRIES, ProcessLimits,
    Profile, ReservedProfile, TceIommu, TceManager, hex,
};

/// A number in either notation.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(transparent)]
struct Number(#[serde(with = "hex")] u64);

/// A profile of which most may be missing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "expected an object that describes a host")]
pub(super) struct WrittenProfile {
    #[serde(rename = "schema")]
    _schema: Option<FormName>,
    #[serde(rename = "version")]
    _version: Option<FormVersion>,
    name: Option<String>,
    architecture: Option<Architecture>,
    kernel: Option<KernelVersion>,
    host_page: Option<Number>,
    backends: Option<Vec<KernelInterface>>,
    fixed: Option<WrittenFixed>,
    tce: Option<WrittenTce>,
    #[serde(default)]
    limits: WrittenLimits,
    groups: Option<Vec<WrittenGroup>>,
}

/// The name of the form, which is the only one a host's description has.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct FormName;

impl TryFrom<String> for FormName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name == Profile::SCHEMA {
            return Ok(Self);
        }
        Err(format!("the file is of the form `{name}`, and a host file of `{}`", Profile::SCHEMA))
    }
}

/// A version of the form that this library reads.
#[derive(Debug, Deserialize)]
#[serde(try_from = "u64")]
struct FormVersion;

impl TryFrom<u64> for FormVersion {
    type Error = String;

    fn try_from(version: u64) -> Result<Self, String> {
        let known = Profile::VERSION;
        match version {
            0 => Err("version 0 of a host file does not exist".to_owned()),
            _ if version <= u64::from(known) => Ok(Self),
            _ => Err(format!("version {version} of a host file is newer than {known}, the newest this program reads")),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFixed {
    page_sizes: Option<Number>,
    last: Number,
    reserved: Regions,
    #[serde(default)]
    write_implies_read: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTce {
    platform: Option<TceManager>,
    page_sizes: Option<Number>,
    default_window: Option<Number>,
    windows: Option<u32>,
    levels: Option<u32>,
    starts: Option<[Number; 2]>,
    largest_window: Option<Number>,
    eeh: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLimits {
    memlock: Option<Amount>,
    dma_entries: Option<u32>,
}

/// An amount that may have no limit.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number of bytes, or \"unlimited\"")]
enum Amount {
    Unlimited(Unlimited),
    Bytes(Number),
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Unlimited {
    Unlimited,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenGroup {
    number: Option<u32>,
    #[serde(default)]
    held_by_kernel: bool,
    #[serde(default)]
    reserved: Regions,
    #[serde(default)]
    iommu: u32,
    #[serde(default)]
    logs_writes: bool,
    devices: Vec<DeviceProfile>,
}

impl From<WrittenProfile> for Profile {
    fn from(written: WrittenProfile) -> Self {
        let host_page = written.host_page.map_or(PageSize::K4.bytes(), |Number(page)| page);
        let tce = written.tce.map(WrittenTce::with_defaults);
        let architecture = written.architecture.unwrap_or(match tce {
            Some(_) => Architecture::Ppc64le,
            None => Architecture::X86_64,
        });
        let backends = written.backends.unwrap_or_else(|| backends_of(&architecture, tce.is_some()));
        let device = if tce.is_some() { Group::first_of_power() } else { Group::first() };
        Self {
            name: written.name.unwrap_or_else(|| "host".to_owned()),
            architecture,
            kernel: written.kernel.unwrap_or(KernelVersion::V6_12),
            host_page,
            backends,
            fixed: written.fixed.map(|fixed| fixed.with_defaults(host_page)),
            tce,
            limits: written.limits.with_defaults(),
            groups: match written.groups {
                Some(groups) => (0..).zip(groups).map(|(n, group)| group.with_defaults(n)).collect(),
                None => vec![device],
            },
        }
    }
}

/// The interfaces of a kernel for that machine. riscv64 has no type1 (linux: drivers/vfio/Kconfig, VFIO_IOMMU_TYPE1).
fn backends_of(architecture: &Architecture, has_tce: bool) -> Vec<KernelInterface> {
    match architecture {
        _ if has_tce => vec![KernelInterface::Spapr],
        Architecture::Other(name) if name == "riscv64" => vec![KernelInterface::Iommufd],
        _ => vec![KernelInterface::Type1, KernelInterface::Iommufd],
    }
}

impl WrittenFixed {
    fn with_defaults(self, host_page: u64) -> FixedIommu {
        FixedIommu {
            page_sizes: self.page_sizes.map_or_else(|| usual_pages(host_page), |Number(mask)| mask),
            last: self.last.0,
            reserved: self.reserved.0,
            write_implies_read: self.write_implies_read,
        }
    }
}

/// The page sizes of page tables whose smallest page is the host's: each level adds the bits of a page of entries.
fn usual_pages(host_page: u64) -> u64 {
    match host_page {
        0x1_0000 => 0x2001_0000,
        0x4000 => 0x0200_4000,
        _ => 0x4020_1000,
    }
}

impl WrittenTce {
    fn with_defaults(self) -> TceIommu {
        let platform = self.platform.unwrap_or(TceManager::PowerNv);
        let preset = match platform {
            TceManager::PowerNv => Profile::powernv9(),
            TceManager::PSeries => Profile::pseries(),
        };
        debug_assert!(preset.tce.is_some(), "POWER's presets have TCE windows");
        let usual = preset.tce.unwrap_or(TceIommu {
            platform,
            page_sizes: PageSize::K4.bytes(),
            default_window: 1 << 30,
            windows: 2,
            levels: 1,
            starts: [0, 1 << 59],
            largest_window: MAX_WINDOW_ENTRIES,
            eeh: false,
        });
        TceIommu {
            platform,
            page_sizes: self.page_sizes.map_or(usual.page_sizes, |Number(mask)| mask),
            default_window: self.default_window.map_or(usual.default_window, |Number(len)| len),
            windows: self.windows.unwrap_or(usual.windows),
            levels: self.levels.unwrap_or(usual.levels),
            starts: self.starts.map_or(usual.starts, |starts| starts.map(|Number(start)| start)),
            largest_window: self.largest_window.map_or(usual.largest_window, |Number(entries)| entries),
            eeh: self.eeh.unwrap_or(usual.eeh),
        }
    }
}

impl WrittenGroup {
    fn with_defaults(self, place: u32) -> Group {
        Group {
            number: self.number.unwrap_or(place),
            held_by_kernel: self.held_by_kernel,
            reserved: self.reserved.0,
            iommu: self.iommu,
            logs_writes: self.logs_writes,
            devices: self.devices,
        }
    }
}

impl Group {
    fn first() -> Self {
        Self::of(0, "0000:01:00.0".to_owned(), Some(0))
    }

    fn first_of_power() -> Self {
        Self::of(0, "0000:01:00.0".to_owned(), None)
    }
}

impl WrittenLimits {
    fn with_defaults(self) -> ProcessLimits {
        let memlock = match self.memlock {
            Some(Amount::Bytes(Number(bytes))) => Some(bytes),
            Some(Amount::Unlimited(Unlimited::Unlimited)) | None => None,
        };
        ProcessLimits { memlock, dma_entries: self.dma_entries.unwrap_or(DMA_ENTRIES) }
    }
}

/// The kernel's default (linux: drivers/vfio/vfio_iommu_type1.c, dma_entry_limit).
const DMA_ENTRIES: u32 = 0xffff;

/// ReservedProfile ranges: the text of sysfs, or a list of its lines and of objects.
#[derive(Debug, Default)]
struct Regions(Vec<ReservedProfile>);

impl<'de> Deserialize<'de> for Regions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RegionsVisitor)
    }
}

struct RegionsVisitor;

impl<'de> de::Visitor<'de> for RegionsVisitor {
    type Value = Regions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of reserved ranges, or the text of reserved_regions")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Regions, E> {
        ReservedProfile::lines(text).map(Regions).map_err(E::custom)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Regions, A::Error> {
        let mut regions = Vec::new();
        while let Some(Region(region)) = list.next_element()? {
            regions.push(region);
        }
        Ok(Regions(regions))
    }
}

/// A reserved range: an object, or a line of sysfs.
struct Region(ReservedProfile);

impl<'de> Deserialize<'de> for Region {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RegionVisitor).map(Self)
    }
}

struct RegionVisitor;

impl<'de> de::Visitor<'de> for RegionVisitor {
    type Value = ReservedProfile;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a reserved range with first, last and reason, or a line of reserved_regions")
    }

    fn visit_str<E: de::Error>(self, line: &str) -> Result<ReservedProfile, E> {
        line.parse().map_err(E::custom)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<ReservedProfile, A::Error> {
        ReservedProfile::deserialize(MapAccessDeserializer::new(map))
    }
}
