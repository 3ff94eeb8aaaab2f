//! The entries of translated windows: runs of them, the memory they point to, and the answers a guest gets.

use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace_core::contract::{MapBatch, Mapping, Unit};
use dmaspace_core::door::Errno;
use dmaspace_core::error::Error;
use dmaspace_core::sync::RwLock;
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{BadRange, Iova, IovaRange, SystemAddress, SystemRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

use crate::pieces::Pieces;
use crate::section::TargetMemory;

/// The memory that entries can point to, shared by the listener and its windows.
pub(crate) type Targets = Arc<RwLock<Pieces<SystemAddress, TargetMemory>>>;

/// The reason why an entry was not put or cleared: the guest's answer. The host is as before, except for ranges that
/// [`EntryError::Space`] names as fenced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The window was removed.
    #[error("the window is gone")]
    NoSuchWindow,
    /// The range does not lie inside the window.
    #[error("{0} does not lie inside the window {1}")]
    OutsideWindow(IovaRange, IovaRange),
    /// The bounds are no range.
    #[error(transparent)]
    BadRange(#[from] BadRange),
    /// Bus address, target or length are no multiples of the window's page.
    #[error("not a multiple of the window's {0} pages")]
    Misaligned(PageSize),
    /// The guest named system memory that is no RAM.
    #[error("there is no RAM at {0}")]
    NotRam(SystemAddress),
    /// A host refused.
    #[error(transparent)]
    Space(#[from] Error),
    /// A host refused an entry of a window whose pages are larger than its own; the memory is probably made of smaller
    /// pages. A window without an entry is created again with the host's pages; this window could not be.
    #[error(
        "{0}; the host's window is of {1} pages, which may be larger than the memory's, and cannot be made again as it \
         is"
    )]
    PagesTooLarge(Error, PageSize),
}

impl EntryError {
    /// The errno of the failed call; for a refusal before the kernel was asked, the errno with which kernels refuse the
    /// same ([`Error::as_errno`]).
    pub fn as_errno(&self) -> Errno {
        match self {
            Self::NoSuchWindow => Errno::ENODEV,
            Self::BadRange(BadRange::Overflow) => Errno::EOVERFLOW,
            Self::OutsideWindow(..) | Self::BadRange(_) | Self::Misaligned(_) => Errno::EINVAL,
            Self::NotRam(_) => Errno::EFAULT,
            Self::Space(error) | Self::PagesTooLarge(error, _) => error.as_errno(),
        }
    }
}

/// Has the [kind](std::io::ErrorKind) of [`EntryError::as_errno`] and the text of the [`EntryError`].
impl From<EntryError> for std::io::Error {
    fn from(error: EntryError) -> Self {
        error.as_errno().with_text_of(error)
    }
}

/// Entries that continue each other on the bus and in system memory.
///
/// Exhaustive: an entry of a guest's table holds no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRun {
    /// The bus addresses.
    pub range: IovaRange,
    /// The system address of the first byte.
    pub target: SystemAddress,
    /// The accesses allowed to devices.
    pub access: Access,
}

impl EntryRun {
    /// The number of bytes; zero for all 2^64, which no window has.
    pub(crate) fn len(&self) -> u64 {
        self.range.len().map_or(0, NonZeroU64::get)
    }
}

/// Adds the maps that put `runs` to a batch, each in as few pieces as possible.
pub(crate) fn add_to(
    batch: &mut MapBatch,
    targets: &Pieces<SystemAddress, TargetMemory>,
    runs: &[EntryRun],
) -> Result<(), EntryError> {
    // Most runs lie in the piece of the run before.
    let mut known: Option<&TargetMemory> = None;
    for run in runs {
        let target = SystemRange::with_len(run.target, run.len())?;
        match known.map(TargetMemory::range).filter(|around| around.covers(target)) {
            Some(around) => batch.add(run.range, around.offset_of(target.first()), run.access)?,
            None => known = Some(add_pieces_to(batch, targets, known, run, target)?),
        }
    }
    Ok(())
}

/// Adds the maps of a run that does not lie in the `known` piece, which is the batch's last. Returns the last piece.
fn add_pieces_to<'t>(
    batch: &mut MapBatch,
    targets: &'t Pieces<SystemAddress, TargetMemory>,
    known: Option<&'t TargetMemory>,
    run: &EntryRun,
    target: SystemRange,
) -> Result<&'t TargetMemory, EntryError> {
    let (mut piece, mut rest) = (known, (run.range, target));
    loop {
        let (range, target) = rest;
        let known = piece.filter(|piece| starts_in(target, piece));
        let around = known.or_else(|| targets.within(target).next().filter(|piece| starts_in(target, piece)));
        let around = around.ok_or(EntryError::NotRam(target.first()))?;
        if known.is_none() {
            batch.set_memory(around.memory());
            piece = Some(around);
        }
        let offset = around.range().offset_of(target.first());
        let above = target.without(around.range()).1;
        let border = above.and_then(|above| range.first().get().checked_add(target.offset_of(above.first())));
        let Some((above, border)) = above.zip(border) else {
            batch.add(range, offset, run.access)?;
            return Ok(around);
        };
        let (head, tail) = range.split_before(Iova::new(border)).ok_or(EntryError::NotRam(target.first()))?;
        batch.add(head, offset, run.access)?;
        rest = (tail, above);
    }
}

fn starts_in(target: SystemRange, piece: &TargetMemory) -> bool {
    piece.range().contains(target.first())
}

/// Returns the host memory behind a range of system memory that lies in one piece of target memory, as most do.
#[inline(always)]
pub(crate) fn resolve_in_one(
    targets: &Pieces<SystemAddress, TargetMemory>,
    target: SystemAddress,
    len: u64,
) -> Option<HostMemory> {
    let range = SystemRange::with_len(target, len).ok()?;
    let piece = targets.around(range)?;
    piece.memory().slice(piece.range().offset_of(range.first()), len)
}

/// Returns the host memory behind a range of system memory, in as few pieces as possible.
pub(crate) fn resolve(
    targets: &Pieces<SystemAddress, TargetMemory>,
    target: SystemAddress,
    len: u64,
) -> Result<Vec<HostMemory>, EntryError> {
    let range = SystemRange::with_len(target, len)?;
    let mut pieces = Vec::with_capacity(1);
    let mut next = Some(range.first());
    for piece in targets.within(range) {
        let shared = piece.range().intersection(range).ok_or(EntryError::NotRam(target))?;
        if next != Some(shared.first()) {
            break;
        }
        let offset = piece.range().offset_of(shared.first());
        let memory = shared.len().and_then(|len| piece.memory().slice(offset, len.get()));
        debug_assert!(memory.is_some(), "target memory is as long as its range");
        pieces.extend(memory);
        next = shared.end();
        if shared.last() == range.last() {
            return Ok(pieces);
        }
    }
    Err(EntryError::NotRam(next.unwrap_or(target)))
}

/// Places pieces of memory one after the other on the bus, from `first` on.
pub(crate) fn placed(first: Iova, pieces: Vec<HostMemory>, access: Access, page: PageSize) -> Vec<Mapping> {
    let mut next = Some(first);
    let mut mappings = Vec::with_capacity(pieces.len());
    for memory in pieces {
        let range = next.and_then(|at| IovaRange::with_len(at, memory.len().get()).ok());
        debug_assert!(range.is_some(), "the memory behind a range of the bus ends where the range does");
        let Some(range) = range else { break };
        next = range.end();
        mappings.push(Mapping::new(range, memory, access, Unit::Pages(page)));
    }
    mappings
}
