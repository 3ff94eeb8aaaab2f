//! The guest's RAM: one anonymous mapping, handed out in slices; and memory whose pages can be dropped.

use std::fs::File;
use std::num::NonZeroUsize;

use dmaspace_core::{HostMemory, PageSize};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

/// The number of bytes that one transfer of a test moves.
pub const SPOT: usize = 64;

/// The size of the pages in which a transfer could land by mistake.
const PAGE: u64 = 0x1000;

/// The guest's RAM.
#[derive(Clone, Debug)]
pub struct Ram {
    all: HostMemory,
}

impl Ram {
    /// `len` bytes of anonymous memory.
    pub fn new(len: usize) -> Self {
        let room = len + usize::try_from(ALIGNMENT).expect("64 KiB");
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), room)]).expect("memory for the guest");
        let all = memory.iter().next().and_then(HostMemory::of_region).expect("one region");
        Self { all: aligned(&all, len as u64).expect("room was left") }
    }

    /// `len` bytes in huge pages of hugetlbfs.
    pub fn in_huge_pages(len: u64, page: PageSize) -> Self {
        // The size is told by its shift (linux: include/uapi/linux/memfd.h, MFD_HUGE_SHIFT).
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(page.shift() << 26);
        let file = File::from(memfd_create("huge", flags).expect("the host has huge pages"));
        ftruncate(&file, len).expect("the file grows");
        let size = usize::try_from(len).expect("a few pages");
        let region = GuestRegionMmap::<()>::from_range(GuestAddress(0), size, Some(FileOffset::new(file, 0)));
        let all = HostMemory::of_region(&region.expect("enough huge pages")).expect("not empty");
        Self { all: all.backed_by(page) }
    }

    /// `len` bytes that claim to be in huge pages, for hosts in software.
    pub fn as_if_in_huge_pages(len: u64, page: PageSize) -> Self {
        let len = usize::try_from(len).ok().and_then(NonZeroUsize::new).expect("a few pages");
        Self { all: HostMemory::zeroed(len, page).expect("memory for the guest").backed_by(page) }
    }

    /// Memory that the caller made.
    pub fn of(all: HostMemory) -> Self {
        Self { all }
    }

    /// The `len` bytes from `offset`.
    pub fn slice(&self, offset: u64, len: u64) -> HostMemory {
        self.all.slice(offset, len).expect("inside the guest's RAM")
    }

    /// Everything.
    pub fn all(&self) -> &HostMemory {
        &self.all
    }

    /// Marks every page, at `offset` in it, so that a stray transfer shows.
    pub fn stamp(&self, offset: u64) {
        for page in 0..self.all.len().get() / PAGE {
            self.all.write(page * PAGE + offset, &stamp_of(page)).expect("inside the guest's RAM");
        }
    }

    /// The page whose stamp is no longer what [`Ram::stamp`] left there.
    pub fn changed_page(&self, offset: u64) -> Option<u64> {
        let mut found = [0; SPOT];
        (0..self.all.len().get() / PAGE).find(|page| {
            self.all.read(page * PAGE + offset, &mut found).expect("inside the guest's RAM");
            found != stamp_of(*page)
        })
    }

    /// The page whose stamp `bytes` is.
    pub fn page_stamped(&self, bytes: &[u8; SPOT]) -> Option<u64> {
        (0..self.all.len().get() / PAGE).find(|page| stamp_of(*page) == *bytes)
    }
}

/// Every host's page divides this; the kernel aligns a mapping to less.
const ALIGNMENT: u64 = 0x1_0000;

/// The first aligned `len` bytes of `memory`, which has as much more.
fn aligned(memory: &HostMemory, len: u64) -> Option<HostMemory> {
    memory.slice(memory.address().get().next_multiple_of(ALIGNMENT) - memory.address().get(), len)
}

/// Memory of a file, whose pages can be given back to the host while it stays mapped.
#[derive(Debug)]
pub struct Droppable {
    file: File,
    /// The offset of the memory in the file.
    begin: u64,
    memory: HostMemory,
}

impl Droppable {
    /// `len` bytes.
    pub fn new(len: u64) -> Self {
        let file = File::from(memfd_create("droppable", MemfdFlags::CLOEXEC).expect("a file for memory"));
        ftruncate(&file, len + ALIGNMENT).expect("the file grows");
        let offset = FileOffset::new(file.try_clone().expect("one more descriptor"), 0);
        let size = usize::try_from(len + ALIGNMENT).expect("a few pages");
        let region = GuestRegionMmap::<()>::from_range(GuestAddress(0), size, Some(offset)).expect("memory");
        let all = HostMemory::of_region(&region).expect("not empty");
        let memory = aligned(&all, len).expect("room was left");
        Self { file, begin: memory.address().get() - all.address().get(), memory }
    }

    /// All of it.
    pub fn memory(&self) -> &HostMemory {
        &self.memory
    }

    /// Gives the pages of `len` bytes from `offset` back. A device for which they are still pinned sees other pages
    /// than this process from now on.
    pub fn drop_pages(&self, offset: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, self.begin + offset, len).expect("a hole in the file");
    }
}

/// Thousands are made for each look, by slow processors: hence a word that no other page has, again and again.
fn stamp_of(page: u64) -> [u8; SPOT] {
    let word = (page + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut stamp = [0; SPOT];
    for chunk in stamp.chunks_exact_mut(word.len()) {
        chunk.copy_from_slice(&word);
    }
    stamp
}

/// Bytes that no other seed has.
pub fn pattern(seed: u64) -> [u8; SPOT] {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
}
