//! Host memory that devices may reach, vouched for once by its owner.
//!
//! A mapping outlives the call that makes it, so its memory must stay. A region of vm-memory stays while the mapping
//! keeps a clone of it (`HostMemory::of_region`). A caller that has only a pointer promises it once, in
//! [`HostMemory::vouch_for`] or [`HostMemory::held_by`], and everything after that is safe.
//!
//! Devices and guests write the bytes behind a [`HostMemory`] at any time. No Rust reference into it is ever made;
//! copies are atomic, word by word (`copy`).
#![expect(unsafe_code, reason = "UNSAFETY: the one place that turns a vouched-for address into bytes")]

mod copy;
mod file;

use std::alloc::{self, Layout};
use std::any::Any;
use std::fmt;
use std::fs::File;
use std::mem::MaybeUninit;
use std::num::{NonZeroU64, NonZeroUsize};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

pub use file::MemoryFile;
pub(crate) use file::OpenedFile;

use crate::words::address::HostAddress;
use crate::words::page::PageSize;
use copy::{Vouched, Words};
#[cfg(feature = "vm-memory")]
use vm_memory::{GuestRegionMmap, mmap::NewBitmap};

/// The bits of an address inside a word of a copy.
const WORD_MASK: u64 = size_of::<u64>() as u64 - 1;

/// A span of this process's memory that devices may be given.
///
/// Cheap to clone; a clone keeps alive the memory of the original.
#[derive(Clone)]
pub struct HostMemory {
    base: *mut u8,
    len: NonZeroU64,
    /// The number of the unplug unit: the owner's address, zero without an owner, or the number of an address without
    /// memory.
    unit: u64,
    /// The owner that keeps the span mapped, where there is one.
    owner: Option<Arc<dyn Any + Send + Sync>>,
    traits: Traits,
    edges: Edges,
    /// Shared, to keep the many copies of this small.
    mapped: Option<Arc<Mapped>>,
    /// The parts that the owner vouched for, where the span was rounded to whole pages; `None` where it was not.
    vouched: Option<Arc<[Part]>>,
}

/// Bytes that an owner vouched for, by address. The last byte is inside.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    first: u64,
    last: u64,
}

/// The file that the memory is mapped from.
#[derive(PartialEq, Eq)]
struct Mapped {
    file: MemoryFile,
    /// The address at which the file's first byte would lie: one value for all memory of one mapping of the file.
    begin: u64,
}

/// Memory that is unmapped together, an *unplug unit*. Two live spans have equal units exactly when neither can be
/// unmapped without the other. Not meaningful after the memory is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnplugUnit(OwnedBy);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum OwnedBy {
    Voucher,
    /// The owner at this address.
    Owner(u64),
    Nobody(u64),
}

/// Bytes of our own, behind [`HostMemory::zeroed`].
struct Allocation {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the bytes belong to no thread; only the pointer is kept here, and only to free them.
unsafe impl Send for Allocation {}
// SAFETY: as above; nothing is done through a shared reference.
unsafe impl Sync for Allocation {}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once: by the last clone that held it.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// The words of 8 bytes that a span begins and ends in, as far as they reach out of the span.
#[derive(Clone, Copy, Default)]
struct Edges {
    /// The bytes of the first word below the span are the owner's memory, too.
    below: bool,
    /// The bytes of the last word above the span are the owner's memory, too.
    above: bool,
}

/// The origin of the memory and the owner's statements about it, in one word: an index compares them for each page.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Traits(u16);

impl Traits {
    const NONE: Self = Self(0);
    const HOST_READ_ONLY: Self = Self(1 << 8);
    const DEVICE_MEMORY: Self = Self(1 << 9);
    /// There is no memory, only an address.
    const UNBACKED: Self = Self(1 << 10);
    /// The shift of the backing page, and one more; zero where the owner did not say.
    const PAGE: u16 = 0xff;

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn with_page(self, page: PageSize) -> Self {
        Self((self.0 & !Self::PAGE) | u16::try_from(page.shift() + 1).unwrap_or_default())
    }

    fn page(self) -> Option<PageSize> {
        PageSize::from_shift(u32::from(self.0 & Self::PAGE).checked_sub(1)?)
    }
}

/// The reason for which bytes could not be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The bytes asked for reach past the end.
    #[error("the copy reaches past the end of the memory")]
    PastTheEnd,
    /// There is no memory behind the address ([`HostMemory::unbacked`]).
    #[error("there is no memory behind the address")]
    Unbacked,
    /// The owner said that this process may only read it.
    #[error("this process may not write the memory")]
    HostReadOnly,
    /// The span was rounded to whole pages ([`HostMemory::widened_to`]).
    #[error("the memory is rounded to whole pages, and its owner vouches for a part only")]
    Rounded,
}

// SAFETY: the pointer is only dereferenced by copies, under a promise (`vouch_for`, `held_by`) that is bound to no
// thread.
unsafe impl Send for HostMemory {}
// SAFETY: as above; copies are atomic, so those of two threads are no data race.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Vouches for `len` bytes from `base`.
    ///
    /// `None` when the span would wrap around the address space.
    ///
    /// # Safety
    /// Until the last mapping and the last clone of the result are gone, the span must stay mapped in this process, and
    /// no Rust reference may point into it while a device can write it. Copies are atomic accesses, so `base` must be a
    /// pointer that the language allows writes through, even if the pages are [`HostMemory::host_read_only`]: the
    /// result of `mmap`, for example, and never a pointer made of a shared reference to plain bytes. Spans that share
    /// bytes or touch must begin and end at multiples of 8, or no two threads may copy through them at once.
    pub unsafe fn vouch_for(base: NonNull<u8>, len: NonZeroUsize) -> Option<Self> {
        Self::span(base.as_ptr(), NonZeroU64::try_from(len).ok()?, Traits::NONE)
    }

    /// The memory of one region of a vm-memory map. It holds the region; regions come and go separately (an unplug unit
    /// each).
    ///
    /// A region that maps a memfd, shared, knows its file ([`HostMemory::in_file`]).
    ///
    /// A region that was mapped without `PROT_WRITE` is marked [`HostMemory::host_read_only`]; one in hugetlbfs is not
    /// marked as such, since vm-memory does not know the size of its pages: say it with [`HostMemory::backed_by`].
    #[cfg(feature = "vm-memory")]
    pub fn of_region<B: NewBitmap + Send + Sync + 'static>(region: &GuestRegionMmap<B>) -> Option<Self> {
        let mapping = region.get_mmap();
        let base = NonNull::new(mapping.as_ptr())?;
        let len = NonZeroUsize::new(mapping.size())?;
        let writable = mapping.prot() & libc::PROT_WRITE != 0;
        let shared = mapping.file_offset().filter(|_| mapping.flags() & libc::MAP_SHARED != 0);
        let file = shared.and_then(|place| Some((MemoryFile::new(place.arc().clone())?, place.start())));
        // SAFETY: the region keeps the span mapped while it lives, and vm-memory makes no references into guest memory.
        let memory = unsafe { Self::held_by(base, len, mapping) }?;
        let memory = if writable { memory } else { memory.host_read_only() };
        Some(match file {
            Some((file, offset)) => memory.in_file(file, offset),
            None => memory,
        })
    }

    /// `len` bytes from `base`, which stay mapped for as long as `owner` lives; `owner` is held by the result, by its
    /// clones and by every mapping made of it.
    ///
    /// One owner is one *unplug unit*: memory of different owners comes and goes separately, so it is never joined into
    /// one kernel mapping or registration.
    ///
    /// `None` when the span would wrap around the address space.
    ///
    /// # Safety
    /// While `owner` lives the span must stay mapped in this process, and no Rust reference may point into it while a
    /// device can write it. For `base` the duty of [`HostMemory::vouch_for`] holds.
    pub unsafe fn held_by(base: NonNull<u8>, len: NonZeroUsize, owner: Arc<dyn Any + Send + Sync>) -> Option<Self> {
        let span = Self::span(base.as_ptr(), NonZeroU64::try_from(len).ok()?, Traits::NONE)?;
        Some(Self { unit: Arc::as_ptr(&owner).addr() as u64, owner: Some(owner), ..span })
    }

    /// `len` zeroed bytes of this process, aligned to `page` and freed with the last clone: for tests, examples and
    /// small buffers.
    ///
    /// `None` when the process cannot have them.
    pub fn zeroed(len: NonZeroUsize, page: PageSize) -> Option<Self> {
        let layout = Layout::from_size_align(len.get(), usize::try_from(page.bytes()).ok()?).ok()?;
        // SAFETY: the layout's size is not zero.
        let base = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        let owner = Arc::new(Allocation { base, layout });
        // SAFETY: the bytes live as long as their owner, and nobody else knows their address.
        unsafe { Self::held_by(base, len, owner) }
    }

    /// An address without memory, for hosts in software: a 6 TiB guest can be planned on a laptop. Real backends refuse
    /// it before their first call.
    ///
    /// `None` when the span would wrap around the address space.
    pub fn unbacked(address: HostAddress, len: NonZeroU64) -> Option<Self> {
        let base = ptr::without_provenance_mut(usize::try_from(address.get()).ok()?);
        Self::span(base, len, Traits::UNBACKED)
    }

    /// Sets the unplug unit of an address without memory: addresses of different units are not joined, as memory of
    /// different owners is not. Does nothing for memory that is there, whose owner is its unit.
    #[must_use]
    pub fn in_unit(mut self, number: u64) -> Self {
        if self.is_unbacked() {
            self.unit = number;
        }
        self
    }

    fn span(base: *mut u8, len: NonZeroU64, traits: Traits) -> Option<Self> {
        // An index of single pages keeps addresses ([`HostMemory::like_this_at`]).
        (base.expose_provenance() as u64).checked_add(len.get() - 1)?;
        Some(Self { base, len, unit: 0, owner: None, traits, edges: Edges::default(), mapped: None, vouched: None })
    }

    /// Says that pages of `page` back the memory (hugetlbfs): POWER can then use TCEs of that size.
    /// Unsaid, the host's page is assumed, transparent huge pages included (linux:
    /// arch/powerpc/mm/book3s64/iommu_api.c).
    #[must_use]
    pub fn backed_by(mut self, page: PageSize) -> Self {
        self.traits = self.traits.with_page(page);
        self
    }

    /// Says that this process itself may only read the memory (mapped `PROT_READ`). Devices can then only be given
    /// reads, and POWER, which pins for writing always, refuses it.
    #[must_use]
    pub fn host_read_only(mut self) -> Self {
        self.traits = self.traits.with(Traits::HOST_READ_ONLY);
        self
    }

    /// Says that this is another device's memory, an mmapped BAR. Not every kernel can map that.
    #[must_use]
    pub fn device_memory(mut self) -> Self {
        self.traits = self.traits.with(Traits::DEVICE_MEMORY);
        self
    }

    /// Sets the file that the memory is mapped from, shared, and the offset in it. A kernel that can maps it by the
    /// file; everything else about the memory is as before, and the file is kept open as long as the memory is mapped.
    ///
    /// The mapped bytes are the file's then. Memory of a private mapping is not the file's: do not set a file for it.
    #[must_use]
    pub fn in_file(mut self, file: MemoryFile, offset: u64) -> Self {
        self.mapped = Some(Arc::new(Mapped { file, begin: self.begin().wrapping_sub(offset) }));
        self
    }

    /// The file that the memory is mapped from and the offset in it, if they were set.
    pub fn file(&self) -> Option<(&MemoryFile, u64)> {
        self.mapped.as_ref().map(|mapped| (&mapped.file, self.begin().wrapping_sub(mapped.begin)))
    }

    /// The address of the first byte in this process.
    pub fn address(&self) -> HostAddress {
        HostAddress::new(self.begin())
    }

    fn begin(&self) -> u64 {
        self.base.addr() as u64
    }

    /// The number of bytes.
    pub fn len(&self) -> NonZeroU64 {
        self.len
    }

    /// The address of the last byte.
    pub fn last(&self) -> HostAddress {
        HostAddress::new(self.last_byte())
    }

    fn last_byte(&self) -> u64 {
        // Checked when the span was made.
        self.begin() + (self.len.get() - 1)
    }

    /// The size of the pages that back the memory, if the owner set it.
    pub fn backing_page(&self) -> Option<PageSize> {
        self.traits.page()
    }

    /// Returns `true` if this process may only read the memory.
    pub fn is_host_read_only(&self) -> bool {
        self.traits.has(Traits::HOST_READ_ONLY)
    }

    /// Returns `true` if it is another device's memory.
    pub fn is_device_memory(&self) -> bool {
        self.traits.has(Traits::DEVICE_MEMORY)
    }

    /// Returns `true` if there is only an address and no memory.
    pub fn is_unbacked(&self) -> bool {
        self.traits.has(Traits::UNBACKED)
    }

    /// Returns `true` if the span includes bytes around the memory, up to whole pages ([`HostMemory::widened_to`]).
    pub fn is_rounded(&self) -> bool {
        self.vouched_around(self.begin(), self.last_byte()).is_none()
    }

    /// The bounds of the owner's memory around these bytes of the span; `None` if the owner did not vouch for all of
    /// the bytes.
    fn vouched_around(&self, first: u64, last: u64) -> Option<(u64, u64)> {
        let Some(parts) = &self.vouched else { return Some(self.owned()) };
        let part = parts.iter().find(|part| part.first <= first && last <= part.last)?;
        Some((part.first, part.last))
    }

    /// The parts that the owner vouched for, ascending.
    fn parts(&self) -> Vec<Part> {
        match &self.vouched {
            Some(parts) => parts.to_vec(),
            None => vec![Part { first: self.begin(), last: self.last_byte() }],
        }
    }

    /// The parts of this memory and of `next` that the owner vouched for, touching ones as one.
    fn parts_with(&self, next: &Self) -> Option<Arc<[Part]>> {
        if self.vouched.is_none() && next.vouched.is_none() {
            return None;
        }
        let mut parts = [self.parts(), next.parts()].concat();
        parts.sort();
        let mut joined: Vec<Part> = Vec::new();
        for part in parts {
            match joined.last_mut() {
                Some(before) if part.first <= before.last.saturating_add(1) => before.last = before.last.max(part.last),
                _ => joined.push(part),
            }
        }
        Some(joined.into())
    }

    /// The unplug unit.
    pub fn unit(&self) -> UnplugUnit {
        UnplugUnit(if self.is_unbacked() {
            OwnedBy::Nobody(self.unit)
        } else if self.owner.is_some() {
            OwnedBy::Owner(self.unit)
        } else {
            OwnedBy::Voucher
        })
    }

    /// The `len` bytes from `offset`, or `None` when they are not all inside.
    #[inline]
    pub fn slice(&self, offset: u64, len: u64) -> Option<Self> {
        let len = NonZeroU64::new(len)?;
        if offset.checked_add(len.get())? > self.len.get() {
            return None;
        }
        let base = self.base.wrapping_add(usize::try_from(offset).ok()?);
        Some(Self { base, len, edges: self.edges_of(offset, len), ..self.clone() })
    }

    /// The edges of the `len` bytes from `offset` on, which are all inside.
    #[inline]
    fn edges_of(&self, offset: u64, len: NonZeroU64) -> Edges {
        let first = self.begin() + offset;
        let last = first + (len.get() - 1);
        // Whole words need nothing around them.
        if first & WORD_MASK == 0 && last & WORD_MASK == WORD_MASK {
            return Edges { below: true, above: true };
        }
        self.edges_around(first, last)
    }

    #[inline(never)]
    fn edges_around(&self, first: u64, last: u64) -> Edges {
        let (below, above) = self.owned();
        Edges { below: below <= first & !WORD_MASK, above: last | WORD_MASK <= above }
    }

    /// The first and the last byte of the owner's memory that is known: the span, with the words at its edges.
    fn owned(&self) -> (u64, u64) {
        let below = if self.edges.below { self.begin() & !WORD_MASK } else { self.begin() };
        let above = if self.edges.above { self.last_byte() | WORD_MASK } else { self.last_byte() };
        (below, above)
    }

    /// The `len` bytes from `address` on, of a kind with this memory. They must lie in memory that this process keeps
    /// and that is of a kind with this: an index of single pages keeps the address of each, and one memory of each
    /// kind.
    pub(crate) fn like_this_at(&self, address: u64, len: NonZeroU64) -> Self {
        let address = usize::try_from(address).unwrap_or(usize::MAX);
        let base = if self.is_unbacked() {
            ptr::without_provenance_mut(address)
        } else {
            ptr::with_exposed_provenance_mut(address)
        };
        Self { base, len, edges: Edges::default(), ..self.clone() }
    }

    /// Moves this, which is a clone of `whole` or of a part of it, to the `len` bytes of `whole` from `offset`, without
    /// a new clone of the owner.
    pub(crate) fn move_in(&mut self, whole: &Self, offset: u64, len: NonZeroU64) {
        debug_assert!(self.is_of_a_kind(whole), "{self} is no part of {whole}");
        debug_assert!(offset.checked_add(len.get()).is_some_and(|end| end <= whole.len.get()), "past the end");
        self.base = whole.base.wrapping_add(usize::try_from(offset).unwrap_or(usize::MAX));
        self.len = len;
        self.edges = whole.edges_of(offset, len);
    }

    /// Returns `true` if its owner vouched for all of it and for nothing around it, so that only its kind and its
    /// address are to be known.
    pub(crate) fn is_plain(&self) -> bool {
        self.vouched.is_none()
    }

    /// Returns `true` if nothing about it asks for a check: this process may write it, it is no device's, and nothing
    /// around it is included.
    pub(crate) fn is_ordinary(&self) -> bool {
        !self.traits.has(Traits::HOST_READ_ONLY.with(Traits::DEVICE_MEMORY)) && self.is_plain()
    }

    /// Returns `true` if both share bytes of this process's address space.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.begin() <= other.last_byte() && other.begin() <= self.last_byte()
    }

    /// Returns `true` if both are of one unplug unit and described alike, so that they may share one kernel mapping.
    #[inline]
    pub fn is_of_a_kind(&self, other: &Self) -> bool {
        self.unit == other.unit && self.traits == other.traits && self.is_of_the_file(other)
    }

    #[inline(always)]
    fn is_of_the_file(&self, other: &Self) -> bool {
        let (mapped, same) = (&self.mapped, &other.mapped);
        (mapped.is_none() && same.is_none()) || mapped == same
    }

    /// Returns `true` if `next` begins where this ends and both are of a kind.
    pub fn is_continued_by(&self, next: &Self) -> bool {
        self.last_byte().checked_add(1) == Some(next.begin()) && self.is_of_a_kind(next)
    }

    /// This memory and `next` as one, when `next` begins where this ends and both are of a kind.
    pub fn joined_with(&self, next: &Self) -> Option<Self> {
        let len = self.len.checked_add(next.len.get())?;
        self.is_continued_by(next).then(|| self.grown_by(next, len))
    }

    /// This memory and `next`, which begins inside it or where it ends, as one, when both are of a kind.
    pub fn merged_with(&self, next: &Self) -> Option<Self> {
        let reaches = self.begin() <= next.begin() && next.begin() <= self.last_byte().saturating_add(1);
        let last = self.last_byte().max(next.last_byte());
        let len = NonZeroU64::new((last - self.begin()).checked_add(1)?)?;
        (reaches && self.is_of_a_kind(next)).then(|| self.grown_by(next, len))
    }

    /// This memory and `next`, of `len` bytes together.
    fn grown_by(&self, next: &Self, len: NonZeroU64) -> Self {
        let last = if next.last_byte() >= self.last_byte() { next } else { self };
        let edges = Edges { below: self.edges.below, above: last.edges.above };
        Self { len, edges, vouched: self.parts_with(next), ..self.clone() }
    }

    /// The parts of this memory below and above `hole`, by address.
    pub fn without(&self, hole: &Self) -> (Option<Self>, Option<Self>) {
        let below = self.slice(0, hole.begin().saturating_sub(self.begin()).min(self.len.get()));
        let above = hole.last_byte().checked_add(1).map_or(self.len.get(), |end| end.saturating_sub(self.begin()));
        (below, self.slice(above, self.len.get().saturating_sub(above)))
    }

    /// The whole pages around the memory, for kernels that pin whole pages. The owner did not vouch for the bytes
    /// around the memory, so the result can be registered and its pins shared, but not mapped
    /// ([`HostMemory::is_rounded`]), and only the memory itself can be copied.
    pub fn widened_to(&self, page: PageSize) -> Option<Self> {
        let first = page.round_down(self.begin());
        let end = page.round_up(self.last_byte().checked_add(1)?)?;
        let base = self.base.wrapping_sub(usize::try_from(self.begin() - first).ok()?);
        let len = NonZeroU64::new(end - first)?;
        let vouched = match &self.vouched {
            None if len == self.len => None,
            _ => Some(self.parts().into()),
        };
        Some(Self { base, len, edges: Edges::default(), vouched, ..self.clone() })
    }

    /// Copies bytes out, as a device's read would.
    ///
    /// # Errors
    /// [`CopyError`]; nothing was copied then.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), CopyError> {
        self.at(offset, into.len())?.read(into);
        Ok(())
    }

    /// Copies bytes in, as a device's write would.
    ///
    /// # Errors
    /// [`CopyError`]; nothing was copied then.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), CopyError> {
        let into = self.at(offset, from.len())?;
        if self.traits.has(Traits::HOST_READ_ONLY) {
            return Err(CopyError::HostReadOnly);
        }
        into.write(from);
        Ok(())
    }

    fn at(&self, offset: u64, len: usize) -> Result<Vouched<'_>, CopyError> {
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len)).ok_or(CopyError::PastTheEnd)?;
        if end > self.len.get() {
            return Err(CopyError::PastTheEnd);
        }
        if self.is_unbacked() {
            return Err(CopyError::Unbacked);
        }
        let first = self.begin().saturating_add(offset);
        let last = first.saturating_add((len as u64).saturating_sub(1));
        let words = match self.vouched_around(first, last) {
            Some(_) if self.traits.has(Traits::DEVICE_MEMORY) => Words::None,
            Some((low, high)) => Words::Within(low, high),
            None if len == 0 => Words::None,
            None => return Err(CopyError::Rounded),
        };
        let offset = usize::try_from(offset).map_err(|_| CopyError::PastTheEnd)?;
        // SAFETY: the bytes are inside, there is memory behind them, and the owner vouched for the words.
        Ok(unsafe { Vouched::of(self, self.base.wrapping_add(offset), len, words) })
    }
}

/// Returns `true` if it is a file of tmpfs, as memfds are, or of hugetlbfs. Device nodes lie in a tmpfs, too.
fn is_of_memory(descriptor: BorrowedFd<'_>) -> bool {
    let is_file = |file: File| file.metadata().is_ok_and(|about| about.is_file());
    let lies_in_memory =
        file_system_of(descriptor).is_some_and(|magic| [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC].contains(&magic));
    lies_in_memory && descriptor.try_clone_to_owned().is_ok_and(|cloned| is_file(cloned.into()))
}

/// Returns `true` if it is a dma-buf (linux: include/uapi/linux/magic.h, DMA_BUF_MAGIC).
fn is_dma_buf(descriptor: BorrowedFd<'_>) -> bool {
    const DMA_BUF_MAGIC: libc::c_long = 0x444d_4142;
    file_system_of(descriptor) == Some(DMA_BUF_MAGIC)
}

/// The magic number of the file system in which a file lies.
fn file_system_of(descriptor: BorrowedFd<'_>) -> Option<libc::c_long> {
    let mut told = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, as it is borrowed, and the kernel writes a whole `statfs` and nothing else.
    let result = unsafe { libc::fstatfs(descriptor.as_raw_fd(), told.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: the kernel filled it, as it says.
    let told = unsafe { told.assume_init() };
    Some(told.f_type)
}

/// Compares place, length and kind: equal memory is the same memory for a kernel.
impl PartialEq for HostMemory {
    fn eq(&self, other: &Self) -> bool {
        self.begin() == other.begin() && self.len == other.len && self.is_of_a_kind(other)
    }
}

impl Eq for HostMemory {}

impl fmt::Display for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host memory {:#x}..={:#x}", self.begin(), self.last_byte())
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.unit().0 {
            OwnedBy::Voucher => "vouched",
            OwnedBy::Owner(_) => "held",
            OwnedBy::Nobody(_) => "unbacked",
        };
        write!(f, "{self} ({origin})")?;
        self.file().map_or(Ok(()), |(file, offset)| write!(f, " at {offset:#x} of {file:?}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU8;

    use super::*;

    fn unbacked(address: u64, len: u64) -> HostMemory {
        HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(len).expect("not empty")).expect("no wrap")
    }

    /// Atomics, since a pointer into an `Arc` of plain bytes may not be written through.
    fn bytes(each: u8) -> Arc<[AtomicU8; 32]> {
        Arc::new(std::array::from_fn(|_| AtomicU8::new(each)))
    }

    fn held(bytes: &Arc<[AtomicU8; 32]>) -> HostMemory {
        let base = NonNull::new(bytes[..].as_ptr().cast::<u8>().cast_mut()).expect("not null");
        // SAFETY: the bytes live as long as the Arc, and the references to them are references to atomics.
        unsafe { HostMemory::held_by(base, NonZeroUsize::new(32).expect("not zero"), bytes.clone()) }.expect("no wrap")
    }

    #[test]
    fn a_span_that_wraps_is_refused() {
        assert!(
            HostMemory::unbacked(HostAddress::new(u64::MAX - 0xfff), NonZeroU64::new(0x1001).expect("not zero"))
                .is_none()
        );
        assert_eq!(unbacked(u64::MAX - 0xfff, 0x1000).last(), HostAddress::new(u64::MAX));
    }

    #[test]
    fn slices_stay_inside() {
        let memory = unbacked(0x1000, 0x2000);
        assert_eq!(memory.slice(0x1000, 0x1000), Some(unbacked(0x2000, 0x1000)));
        assert_eq!(memory.slice(0x1000, 0x1001), None);
        assert_eq!(memory.slice(u64::MAX, 2), None);
        assert_eq!(memory.slice(0, 0), None);
    }

    #[test]
    fn only_neighbours_of_a_kind_join() {
        let (low, high) = (unbacked(0x1000, 0x1000), unbacked(0x2000, 0x1000));
        assert_eq!(low.joined_with(&high), Some(unbacked(0x1000, 0x2000)));
        assert_eq!(high.joined_with(&low), None);
        assert_eq!(low.joined_with(&high.clone().device_memory()), None);
        assert_eq!(low.joined_with(&high.clone().in_unit(1)), None);
        assert!(low.in_unit(1).joined_with(&high.in_unit(1)).is_some());
    }

    #[test]
    fn traits_are_kept_beside_each_other() {
        let page = PageSize::from_shift(63).expect("the largest page");
        let memory = unbacked(0x1000, 0x1000);
        assert_eq!(memory.backing_page(), None);
        let memory = memory.device_memory().backed_by(PageSize::G1).backed_by(page);
        assert_eq!((memory.backing_page(), memory.is_device_memory()), (Some(page), true));
        assert!(!memory.is_host_read_only() && memory.host_read_only().is_host_read_only());
        assert!(!unbacked(0, 1).backed_by(PageSize::K4).is_of_a_kind(&unbacked(0, 1).backed_by(PageSize::K64)));
    }

    #[test]
    fn an_owner_is_one_unit_and_cannot_be_talked_out_of_it() {
        let (one, other) = (bytes(0), bytes(0));
        let memory = held(&one);
        assert_eq!(memory.unit(), held(&one).unit());
        assert_eq!(memory.unit(), memory.clone().in_unit(7).unit());
        assert_ne!(memory.unit(), held(&other).unit());
        assert_ne!(memory.unit(), unbacked(memory.begin(), 32).unit());
    }

    #[test]
    fn copies_go_in_and_out_and_never_past_the_end() {
        let bytes = bytes(0);
        let memory = held(&bytes);
        memory.write(30, &[7, 8]).expect("inside");
        let mut out = [0; 2];
        memory.slice(30, 2).expect("inside").read(0, &mut out).expect("inside");
        assert_eq!(out, [7, 8]);
        assert_eq!(memory.write(31, &[1, 2]), Err(CopyError::PastTheEnd));
        assert_eq!(memory.clone().host_read_only().write(0, &[1]), Err(CopyError::HostReadOnly));
        assert_eq!(unbacked(0x1000, 8).read(0, &mut out), Err(CopyError::Unbacked));
    }

    /// The bytes from 0 on of `len` bytes, each another.
    fn counted(len: u8) -> Vec<u8> {
        (0..len).collect()
    }

    #[test]
    fn a_copy_of_any_bytes_leaves_the_others() {
        let step = if cfg!(miri) { 7 } else { 1 };
        for begin in (0..9).step_by(step) {
            let bytes = bytes(0);
            let memory = held(&bytes).slice(begin, 20).expect("inside");
            let copies = (0..20_u8).flat_map(|offset| (0..=20 - offset).map(move |len| (offset, len)));
            for (offset, len) in copies.step_by(step) {
                memory.write(0, &[0xff; 20]).expect("inside");
                memory.write(offset.into(), &counted(len)).expect("inside");
                let mut expected = [0xff; 20];
                expected[usize::from(offset)..usize::from(offset + len)].copy_from_slice(&counted(len));
                let (mut all, mut part) = ([0; 20], vec![0; len.into()]);
                memory.read(0, &mut all).expect("inside");
                memory.read(offset.into(), &mut part).expect("inside");
                assert_eq!((all, part), (expected, counted(len)), "{begin}, {offset}, {len}");
            }
            let mut around = [0; 32];
            held(&bytes).read(0, &mut around).expect("inside");
            let begin = usize::try_from(begin).expect("small");
            assert!(around[..begin].iter().chain(&around[begin + 20..]).all(|byte| *byte == 0), "{begin}: {around:?}");
        }
    }

    #[test]
    fn a_device_s_memory_is_copied_byte_by_byte() {
        let memory = held(&bytes(7)).device_memory();
        memory.write(1, &counted(20)).expect("inside");
        let mut out = [0; 22];
        memory.read(0, &mut out).expect("inside");
        assert_eq!((out[0], &out[1..21], out[21]), (7, &counted(20)[..], 7));
    }

    /// Miri sees to it that no two copies are a data race: of whatever bytes, and through whatever slices.
    #[test]
    fn two_threads_may_copy_the_same_bytes() {
        let memory = HostMemory::zeroed(NonZeroUsize::new(0x40).expect("not zero"), PageSize::K4).expect("64 bytes");
        let slice = memory.slice(3, 0x30).expect("inside");
        std::thread::scope(|scope| {
            for byte in [1_u8, 2] {
                let (memory, slice) = (&memory, &slice);
                scope.spawn(move || memory.write(u64::from(byte), &[byte; 0x20]).expect("inside"));
                scope.spawn(move || memory.read(0, &mut [0; 0x40]).expect("inside"));
                scope.spawn(move || slice.write(0, &[byte; 0x30]).expect("inside"));
                scope.spawn(move || slice.slice(2, 2).expect("inside").read(0, &mut [0; 2]).expect("inside"));
            }
        });
        let mut out = [0];
        memory.read(1, &mut out).expect("inside");
        assert!([1, 2].contains(&out[0]));
    }

    #[test]
    fn pages_around_memory_are_not_copied_but_the_memory_is() {
        let bytes = bytes(7);
        let pages = held(&bytes).widened_to(PageSize::K4).expect("no wrap");
        assert!(
            pages.is_rounded() && !unbacked(0x1000, 0x1000).widened_to(PageSize::K4).expect("no wrap").is_rounded()
        );
        let offset = held(&bytes).begin() - pages.begin();
        let mut out = [0; 32];
        pages.read(offset, &mut out).expect("the owner vouched for these bytes");
        assert_eq!(out, [7; 32]);
        assert_eq!(pages.read(offset - 1, &mut out), Err(CopyError::Rounded));
        assert!(!pages.slice(offset, 32).expect("inside").is_rounded());
        assert_eq!(pages.read(0, &mut [0]), Err(CopyError::Rounded));
        assert_eq!(pages.slice(0, 1).expect("inside").write(0, &[0]), Err(CopyError::Rounded));
    }

    #[test]
    fn zeroed_memory_is_aligned_and_zero() {
        let memory = HostMemory::zeroed(NonZeroUsize::new(0x3000).expect("not zero"), PageSize::K4).expect("12 KiB");
        let mut out = [7; 3];
        memory.read(0x2ffd, &mut out).expect("inside");
        assert_eq!(out, [0; 3]);
        assert!(PageSize::K4.divides(memory.begin()));
    }

    #[test]
    fn the_owner_lives_as_long_as_the_last_clone() {
        let bytes = bytes(0);
        let slice = held(&bytes).slice(1, 1);
        assert_eq!(Arc::strong_count(&bytes), 2);
        drop(slice);
        assert_eq!(Arc::strong_count(&bytes), 1);
    }
}
