//! The structs of the header, and the checks of their fields.

use std::ffi::{c_char, c_void};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dmaspace::section::TargetMemory;
use dmaspace::{Access, HostMemory, Iova, IovaRange, MemoryFile, PageSize, Section, SystemAddress, Window};

use crate::failure::Failed;

/// `struct dms_section`. Every bit pattern is one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CSection {
    pub(crate) size: u32,
    pub(crate) kind: u32,
    pub(crate) name: *const c_char,
    pub(crate) iova: u64,
    pub(crate) len: u64,
    pub(crate) address: *mut c_void,
    pub(crate) access: u32,
    pub(crate) fd: i32,
    pub(crate) fd_offset: u64,
    pub(crate) page_size: u64,
    pub(crate) flags: u64,
    pub(crate) reserved: [u64; 6],
}

/// `struct dms_window`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CWindow {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) page_sizes: u64,
    pub(crate) reserved: [u64; 5],
}

const _: () = assert!(size_of::<CWindow>() == 64);
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<CSection>() == 120);

impl From<&Window> for CWindow {
    fn from(window: &Window) -> Self {
        let (first, last) = (window.range.first().get(), window.range.last().get());
        Self { first, last, page_sizes: window.page_sizes.mask(), reserved: [0; 5] }
    }
}

/// The kinds of sections: `DMS_RAM` and its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SectionKind {
    Ram,
    DeviceMemory,
    Discardable,
    Translated,
    Msi,
    Nothing,
    Target,
}

/// The flags of sections: `DMS_READ_ONLY_HERE`, memory that this process may only read.
const READ_ONLY_HERE: u64 = 1;

/// A section or target memory.
pub(crate) enum Piece {
    Section(Section),
    Target(TargetMemory),
}

impl CSection {
    pub(crate) fn kind(&self) -> Result<SectionKind, Failed> {
        Ok(match self.kind {
            1 => SectionKind::Ram,
            2 => SectionKind::DeviceMemory,
            3 => SectionKind::Discardable,
            4 => SectionKind::Translated,
            5 => SectionKind::Msi,
            6 => SectionKind::Nothing,
            7 => SectionKind::Target,
            other => return Err(Failed::argument(format!("there is no kind {other} of sections"))),
        })
    }

    /// Checks the size and the fields that must be zero.
    pub(crate) fn check(&self) -> Result<(), Failed> {
        debug_assert_eq!(self.size as usize, size_of::<Self>(), "checked before all of it was read");
        match (self.flags & !READ_ONLY_HERE, self.reserved) {
            (0, [0, 0, 0, 0, 0, 0]) => Ok(()),
            _ => Err(Failed::argument("a reserved field of struct dms_section is not zero, or a flag is unknown")),
        }
    }

    pub(crate) fn has_memory(&self) -> Result<bool, Failed> {
        Ok(!matches!(self.kind()?, SectionKind::Translated | SectionKind::Msi | SectionKind::Nothing))
    }

    /// The section, over `memory` if it has any.
    pub(crate) fn piece(&self, name: &str, memory: Option<HostMemory>) -> Result<Piece, Failed> {
        let (at, range) = (Iova::new(self.iova), IovaRange::with_len(Iova::new(self.iova), self.len)?);
        let kind = self.kind()?;
        let Some(memory) = memory else {
            return Ok(Piece::Section(match kind {
                SectionKind::Translated => Section::translated(name, range, page(self.page_size)?),
                SectionKind::Msi => Section::msi(name, range),
                _ => Section::nothing(name, range),
            }));
        };
        let memory = if self.flags & READ_ONLY_HERE != 0 { memory.host_read_only() } else { memory };
        Ok(match kind {
            SectionKind::Target => {
                Piece::Target(TargetMemory::new(name, SystemAddress::new(self.iova), backed(memory, self.page_size)?)?)
            }
            SectionKind::Discardable => {
                let block = page(self.page_size)?;
                Piece::Section(Section::discardable(name, at, memory, access(self.access)?, block)?)
            }
            SectionKind::DeviceMemory => {
                Piece::Section(Section::device_memory(name, at, memory.device_memory(), access(self.access)?)?)
            }
            _ => Piece::Section(Section::ram(name, at, backed(memory, self.page_size)?, access(self.access)?)?),
        })
    }
}

/// `memory`, in pages of that size unless it is zero.
fn backed(memory: HostMemory, page_size: u64) -> Result<HostMemory, Failed> {
    if page_size == 0 { Ok(memory) } else { Ok(memory.backed_by(page(page_size)?)) }
}

/// `memory` in the file behind `descriptor`, which was duplicated for it.
pub(crate) fn in_file(memory: HostMemory, descriptor: OwnedFd, offset: u64) -> Result<HostMemory, Failed> {
    let descriptor: Arc<dyn AsFd + Send + Sync> = Arc::new(descriptor);
    let file = MemoryFile::new(descriptor.clone()).or_else(|| MemoryFile::dma_buf(descriptor));
    match file {
        Some(file) => Ok(memory.in_file(file, offset)),
        None => Err(Failed::argument("the file of a section is of no tmpfs or hugetlbfs, and no dma-buf; pass -1")),
    }
}

pub(crate) fn page(bytes: u64) -> Result<PageSize, Failed> {
    PageSize::from_bytes(bytes).ok_or_else(|| Failed::argument(format!("{bytes} bytes are no size of pages")))
}

pub(crate) fn access(bits: u32) -> Result<Access, Failed> {
    let access = u8::try_from(bits).ok().and_then(Access::from_bits);
    access.ok_or_else(|| Failed::argument(format!("{bits:#x} is no access")))
}

pub(crate) fn range(first: u64, len: u64) -> Result<IovaRange, Failed> {
    Ok(IovaRange::with_len(Iova::new(first), len)?)
}

pub(crate) fn length(len: u64) -> Result<NonZeroU64, Failed> {
    NonZeroU64::new(len).ok_or_else(|| Failed::argument("a length is zero"))
}
