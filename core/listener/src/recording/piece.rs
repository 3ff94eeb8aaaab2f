//! Sections and target memory as flat records, and back.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::recording::Hex;
use crate::section::{Backing, Section, TargetMemory};
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{HostAddress, Iova, IovaRange, SystemAddress};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

/// A section of the PCI address space, or target memory.
///
/// Exhaustive: another field needs another [`VERSION`](super::VERSION).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// The address space of the addresses.
    pub space: SpaceOf,
    /// The first address.
    pub first: Hex,
    /// The last address, which is inside.
    pub last: Hex,
    /// The name.
    pub name: String,
    /// The content.
    pub kind: PieceKind,
    /// The accesses allowed to devices, in the words of [`Access`]: with memory of the PCI address space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// The host address of its first byte: with memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Hex>,
    /// The number of the unplug unit that the memory belongs to: with memory. Memory of different units is never
    /// joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<u64>,
    /// The bytes of the pages that back the memory, where its owner said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_page: Option<u64>,
    /// True if the process itself may only read the memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub host_read_only: bool,
    /// True if the memory is another device's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub device_memory: bool,
    /// The bytes of an entry of a translated window, or of a block of a discardable section.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(is: &bool) -> bool {
    !is
}

/// The two address spaces.
///
/// Exhaustive: a bridge has no third.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpaceOf {
    /// Sections of the PCI address space, at bus addresses.
    Pci,
    /// Target memory, at system addresses.
    Memory,
}

/// The content of a piece: the [`Backing`]s.
///
/// Exhaustive: another content needs another [`VERSION`](super::VERSION).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PieceKind {
    /// Guest RAM or ROM. Target memory is always this.
    Ram,
    /// RAM whose blocks are populated and discarded. The populated ones are not recorded.
    Discardable,
    /// Another device's mmapped BAR.
    Device,
    /// A window whose entries the guest fills.
    Translated,
    /// A range where a write is an interrupt.
    Msi,
    /// Emulated MMIO, and everything else that devices cannot reach.
    Nothing,
}

/// The value that a piece becomes.
///
/// Exhaustive: there are two address spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// A section of the PCI address space.
    Section(Section),
    /// Target memory.
    Target(TargetMemory),
}

/// Memory of the recorded process, for which a reader must provide a substitute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Asked {
    /// Its host address in the recorded process.
    pub address: HostAddress,
    /// The number of bytes.
    pub len: NonZeroU64,
    /// The number of its unplug unit: memory of different units was never joined.
    pub unit: u64,
    /// The pages that backed it, if its owner named them.
    pub backing_page: Option<PageSize>,
    /// True if the recorded process could only read it.
    pub host_read_only: bool,
    /// True if it was another device's.
    pub device_memory: bool,
}

impl Asked {
    /// Addresses without memory, which a listener joins exactly as it joined the recorded memory. `None` if they would
    /// wrap around.
    pub fn unbacked(&self) -> Option<HostMemory> {
        Some(HostMemory::unbacked(self.address, self.len)?.in_unit(self.unit))
    }

    /// `memory` as its owner described it.
    fn described(&self, memory: HostMemory) -> HostMemory {
        let memory = if self.host_read_only { memory.host_read_only() } else { memory };
        let memory = if self.device_memory { memory.device_memory() } else { memory };
        self.backing_page.map_or(memory.clone(), |page| memory.backed_by(page))
    }
}

/// A fault of a piece: the expectation, and the value found instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {0}")]
pub struct BadPiece(pub(super) String);

impl BadPiece {
    pub(super) fn order(first: Hex, last: Hex) -> Self {
        Self(format!("a last address that does not lie before the first, found {first} and {last}"))
    }
}

impl Piece {
    /// A section. `unit` says the number of memory's unplug unit.
    pub fn of_section(section: &Section, unit: impl FnOnce(&HostMemory) -> u64) -> Self {
        let range = section.range();
        let piece = Self::of(SpaceOf::Pci, range.first().get(), range.last().get(), section.name());
        let piece = match section.backing() {
            Backing::Ram { .. } => piece,
            Backing::Discardable { granule, .. } => {
                Self { kind: PieceKind::Discardable, page: Some(granule.bytes()), ..piece }
            }
            Backing::DeviceMemory { .. } => Self { kind: PieceKind::Device, ..piece },
            Backing::Translated { page } => Self { kind: PieceKind::Translated, page: Some(page.bytes()), ..piece },
            Backing::Msi => Self { kind: PieceKind::Msi, ..piece },
            Backing::Nothing => Self { kind: PieceKind::Nothing, ..piece },
        };
        let access = section.access().map(|access| access.to_string());
        match section.memory() {
            Some(memory) => Self { access, ..piece.with(memory, unit(memory)) },
            None => piece,
        }
    }

    /// Target memory. `unit` says the number of its unplug unit.
    pub fn of_target(target: &TargetMemory, unit: impl FnOnce(&HostMemory) -> u64) -> Self {
        let (range, memory) = (target.range(), target.memory());
        let piece = Self::of(SpaceOf::Memory, range.first().get(), range.last().get(), target.name());
        piece.with(memory, unit(memory))
    }

    fn of(space: SpaceOf, first: u64, last: u64, name: &str) -> Self {
        Self {
            space,
            first: Hex(first),
            last: Hex(last),
            name: name.to_owned(),
            kind: PieceKind::Ram,
            access: None,
            host: None,
            unit: None,
            backing_page: None,
            host_read_only: false,
            device_memory: false,
            page: None,
        }
    }

    fn with(self, memory: &HostMemory, unit: u64) -> Self {
        Self {
            host: Some(Hex(memory.address().get())),
            unit: Some(unit),
            backing_page: memory.backing_page().map(PageSize::bytes),
            host_read_only: memory.is_host_read_only(),
            device_memory: memory.is_device_memory(),
            ..self
        }
    }

    /// The section or target memory that the piece describes, of memory that `memory` provides, if it can.
    ///
    /// # Errors
    /// [`BadPiece`] when it says nothing that a section or target memory can be: fields that are missing or too many,
    /// bounds that are no range, memory that would wrap around; or when the memory is not made, or not as long as
    /// asked.
    pub fn make(&self, memory: &mut dyn FnMut(&Asked) -> Option<HostMemory>) -> Result<Made, BadPiece> {
        let (at, name) = (Iova::new(self.first.0), self.name.as_str());
        let range = IovaRange::new(at, Iova::new(self.last.0)).map_err(|_| BadPiece::order(self.first, self.last))?;
        let overflows = |_| BadPiece("memory that ends where its range does".into());
        self.check_fields()?;
        Ok(Made::Section(match (self.space, self.kind) {
            (SpaceOf::Memory, _) => {
                let memory = self.memory(range, memory)?;
                return TargetMemory::new(name, SystemAddress::new(self.first.0), memory)
                    .map(Made::Target)
                    .map_err(overflows);
            }
            (SpaceOf::Pci, PieceKind::Ram) => {
                Section::ram(name, at, self.memory(range, memory)?, self.access()?).map_err(overflows)?
            }
            (SpaceOf::Pci, PieceKind::Discardable) => {
                let granule = page("page", self.page.unwrap_or_default())?;
                let memory = self.memory(range, memory)?;
                Section::discardable(name, at, memory, self.access()?, granule).map_err(overflows)?
            }
            (SpaceOf::Pci, PieceKind::Device) => {
                Section::device_memory(name, at, self.memory(range, memory)?, self.access()?).map_err(overflows)?
            }
            (SpaceOf::Pci, PieceKind::Translated) => {
                Section::translated(name, range, page("page", self.page.unwrap_or_default())?)
            }
            (SpaceOf::Pci, PieceKind::Msi) => Section::msi(name, range),
            (SpaceOf::Pci, PieceKind::Nothing) => Section::nothing(name, range),
        }))
    }

    /// Every kind has its fields, and no others: a field too many is a mistake somewhere else.
    fn check_fields(&self) -> Result<(), BadPiece> {
        let has_memory = matches!(self.kind, PieceKind::Ram | PieceKind::Discardable | PieceKind::Device);
        let has_page = matches!(self.kind, PieceKind::Translated | PieceKind::Discardable);
        if self.space == SpaceOf::Memory && self.kind != PieceKind::Ram {
            return Err(BadPiece("the kind ram with the space memory".into()));
        }
        let fields = [
            ("access", self.access.is_some(), has_memory && self.space == SpaceOf::Pci, true),
            ("host", self.host.is_some(), has_memory, true),
            ("unit", self.unit.is_some(), has_memory, true),
            ("backing_page", self.backing_page.is_some(), has_memory, false),
            ("host_read_only", self.host_read_only, has_memory, false),
            ("device_memory", self.device_memory, has_memory, false),
            ("page", self.page.is_some(), has_page, true),
        ];
        for (name, is_there, belongs, is_needed) in fields {
            if is_there && !belongs {
                return Err(BadPiece(format!("no `{name}` with this kind and space")));
            }
            if !is_there && belongs && is_needed {
                return Err(BadPiece(format!("`{name}` with this kind and space")));
            }
        }
        Ok(())
    }

    fn access(&self) -> Result<Access, BadPiece> {
        let known = [Access::READ_WRITE, Access::READ, Access::WRITE, Access::empty()];
        let access = known.into_iter().find(|access| self.access.as_ref() == Some(&access.to_string()));
        access.ok_or_else(|| {
            BadPiece("as `access` one of \"read-write\", \"read-only\", \"write-only\", \"no access\"".into())
        })
    }

    fn memory(
        &self,
        range: IovaRange,
        make: &mut dyn FnMut(&Asked) -> Option<HostMemory>,
    ) -> Result<HostMemory, BadPiece> {
        let (Some(Hex(address)), Some(unit)) = (self.host, self.unit) else {
            return Err(BadPiece("`host` and `unit` with memory".into()));
        };
        let len = range.len().ok_or_else(|| BadPiece("less than 2^64 bytes of memory".into()))?;
        if address.checked_add(len.get() - 1).is_none() {
            return Err(BadPiece(format!("memory that ends before 2^64, found {len:#x} bytes from {address:#x}")));
        }
        let asked = Asked {
            address: HostAddress::new(address),
            len,
            unit,
            backing_page: self.backing_page.map(|bytes| page("backing_page", bytes)).transpose()?,
            host_read_only: self.host_read_only,
            device_memory: self.device_memory || self.kind == PieceKind::Device,
        };
        let memory = make(&asked).filter(|memory| memory.len() == len);
        let memory = memory.ok_or_else(|| BadPiece(format!("memory that can be had here, {len:#x} bytes of it")))?;
        Ok(asked.described(memory))
    }
}

/// The page that a field is to say.
pub(super) fn page(field: &str, bytes: u64) -> Result<PageSize, BadPiece> {
    let bad = || BadPiece(format!("a power of two as `{field}`, found {bytes}"));
    PageSize::from_bytes(bytes).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(first: u64, last: u64, host: u64) -> Piece {
        let piece = Piece::of(SpaceOf::Pci, first, last, "ram");
        Piece { access: Some("read-write".into()), host: Some(Hex(host)), unit: Some(0), ..piece }
    }

    fn made(piece: &Piece) -> Result<Made, BadPiece> {
        piece.make(&mut |asked| asked.unbacked())
    }

    #[test]
    fn a_written_piece_is_read_as_the_same_piece() {
        let memory = HostMemory::unbacked(HostAddress::new(0x7000_0000), NonZeroU64::new(0x3000).expect("not zero"))
            .expect("no wrap");
        let memory = memory.in_unit(3).backed_by(PageSize::M2);
        let range = IovaRange::with_len(Iova::new(0x10_0000), 0x1000).expect("a range");
        let sections = [
            Section::ram("rom", Iova::new(0x1000), memory.clone().host_read_only(), Access::READ).expect("a section"),
            Section::ram("odd", Iova::new(0), memory.clone().device_memory(), Access::empty()).expect("a section"),
            Section::device_memory("bar", Iova::new(1), memory.clone(), Access::WRITE).expect("a section"),
            Section::discardable("dimm", Iova::new(0), memory.clone(), Access::READ, PageSize::K4).expect("a section"),
            Section::translated("window", IovaRange::all(), PageSize::K64),
            Section::msi("msi", range),
            Section::nothing("hpet", range),
        ];
        for section in sections {
            assert_eq!(made(&Piece::of_section(&section, |_| 3)), Ok(Made::Section(section)));
        }
        let target = TargetMemory::new("ram", SystemAddress::new(0), memory).expect("target memory");
        assert_eq!(made(&Piece::of_target(&target, |_| 3)), Ok(Made::Target(target)));
    }

    #[test]
    fn malformed_pieces_are_refused_with_the_expected_form() {
        let good = ram(0, 0xfff, 0x7000_0000);
        assert!(made(&good).is_ok());
        let cases: [(Piece, &str); 9] = [
            (ram(0x1000, 0xfff, 0), "a last address that does not lie before the first"),
            (ram(0, u64::MAX, 0), "less than 2^64 bytes"),
            (ram(0, 0xfff, u64::MAX), "memory that ends before 2^64"),
            (Piece { unit: None, ..good.clone() }, "`unit` with this kind"),
            (Piece { page: Some(4096), ..good.clone() }, "no `page` with this kind"),
            (Piece { access: Some("rwx".into()), ..good.clone() }, "as `access` one of"),
            (Piece { backing_page: Some(5), ..good.clone() }, "a power of two as `backing_page`"),
            (Piece { kind: PieceKind::Msi, ..good.clone() }, "no `access` with this kind"),
            (
                Piece { space: SpaceOf::Memory, kind: PieceKind::Msi, ..good.clone() },
                "the kind ram with the space memory",
            ),
        ];
        for (piece, expected) in cases {
            let error = made(&piece).expect_err(expected).to_string();
            assert!(error.starts_with(&format!("expected {expected}")), "{error}");
        }
        let short = good.make(&mut |_| HostMemory::unbacked(HostAddress::new(0), NonZeroU64::MIN));
        assert!(short.is_err());
    }
}
