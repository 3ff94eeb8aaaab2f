//! The memory of mappings, pinned once for all mappings of it, in any address space (linux:
//! drivers/iommu/iommufd/pages.c).
//!
//! Invariants: pages exist while a mapping, or a call under way, uses them; a page is pinned and charged once, exactly
//! while a mapping in an address space with a page table uses it.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use dmaspace_core::door::Errno;
use dmaspace_core::{HostAddress, HostMemory, PageSize};

use crate::dialect::call::UserMemory;
use crate::dialect::{Pid, System, require};
use crate::engine::{Coverage, Run};

/// A part of the memory of some pages.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// The number of the pages.
    pub(super) pages: u64,
    /// The part of their memory.
    pub(super) memory: HostMemory,
}

/// Memory of a map call (linux: struct iopt_pages).
#[derive(Debug)]
struct Pages {
    by: Pid,
    /// The first address.
    address: u64,
    /// The number of bytes from there on that can be pinned.
    there: u64,
    writable: bool,
    pinned: Coverage,
    users: u64,
    /// The errno when not all of it can be pinned.
    lacking: Errno,
    charged: Charged,
    /// `true` if the memory was mapped by its file.
    of_file: bool,
}

impl Pages {
    /// Memory by its address, with one user.
    fn new(by: Pid, address: u64, there: u64, writable: bool, charged: Charged) -> Self {
        let (pinned, lacking) = (Coverage::default(), Errno::EFAULT);
        Self { by, address, there, writable, pinned, users: 1, lacking, charged, of_file: false }
    }
}

/// The account that is charged for pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charged {
    User,
    Process,
    /// No account: the memory is another device's.
    Nobody,
}

/// All pages of one iommufd.
#[derive(Debug, Default)]
pub(super) struct PagesStore {
    all: BTreeMap<u64, Pages>,
    last: u64,
    /// `true` if pins to come are charged to the process.
    pub(super) charges_process: bool,
}

impl PagesStore {
    /// iopt_alloc_pages: pins nothing and checks nothing. The caller is a user until it calls [`PagesStore::put`].
    pub(super) fn add(
        &mut self,
        by: Pid,
        page: PageSize,
        memory: &UserMemory,
        length: u64,
        writable: bool,
    ) -> Result<Piece, Errno> {
        let address = memory.address;
        address.checked_add(length).ok_or(Errno::EOVERFLOW)?;
        let whole = memory.pinnable(length, false);
        let there = if memory.is_device_memory() { 0 } else { memory.pinnable_bytes(length, writable) };
        let pages = Pages::new(by, address, there, writable, self.charged());
        self.insert(page, pages, whole, length)
    }

    /// iopt_alloc_file_pages, and iopt_alloc_dmabuf_pages for another device's memory, all of which must exist at once:
    /// `length` bytes from `start` of the file that `memory` is mapped from. The file is as long as `memory`.
    pub(super) fn add_file(
        &mut self,
        by: Pid,
        page: PageSize,
        memory: &HostMemory,
        start: u64,
        length: u64,
        writable: bool,
    ) -> Result<Piece, Errno> {
        let (_, offset) = memory.file().ok_or(Errno::EBADF)?;
        let shown = start.checked_sub(offset);
        let whole = shown.and_then(|at| memory.slice(at, length));
        let exported = memory.is_device_memory();
        require(whole.is_some() || !exported, Errno::EINVAL)?;
        let address = memory.address().get().wrapping_add(start.wrapping_sub(offset));
        let there = shown.map_or(0, |at| memory.len().get().saturating_sub(at).min(length));
        let charged = if exported { Charged::Nobody } else { self.charged() };
        let pages = Pages::new(by, address, there, writable, charged);
        let pages = Pages { lacking: Errno::EINVAL, of_file: !exported, ..pages };
        self.insert(page, pages, whole, length)
    }

    /// iopt_alloc_pages.
    fn insert(&mut self, page: PageSize, pages: Pages, whole: Option<HostMemory>, length: u64) -> Result<Piece, Errno> {
        require(length > 0 && length <= u64::MAX - page.bytes(), Errno::EINVAL)?;
        // Memory that does not exist can be mapped while it is not pinned.
        let length = NonZeroU64::new(length).ok_or(Errno::EINVAL)?;
        let memory =
            whole.or_else(|| HostMemory::unbacked(HostAddress::new(pages.address), length)).ok_or(Errno::EOVERFLOW)?;
        self.last += 1;
        self.all.insert(self.last, pages);
        Ok(Piece { pages: self.last, memory })
    }

    fn charged(&self) -> Charged {
        if self.charges_process { Charged::Process } else { Charged::User }
    }

    /// Adds a user.
    pub(super) fn get(&mut self, piece: &Piece) {
        debug_assert!(self.all.contains_key(&piece.pages), "pages that have no user are used");
        if let Some(pages) = self.all.get_mut(&piece.pages) {
            pages.users += 1;
        }
    }

    /// Removes a user. The last one releases the memory.
    pub(super) fn put(&mut self, system: &mut System, piece: &Piece) {
        debug_assert!(self.all.contains_key(&piece.pages), "pages that have no user lose one");
        let Some(pages) = self.all.get_mut(&piece.pages) else { return };
        pages.users -= 1;
        if pages.users == 0 {
            self.all.remove(&piece.pages);
        }
        system.release(piece.memory.clone());
    }

    /// Returns whether devices may have write access.
    pub(super) fn are_writable(&self, piece: &Piece) -> bool {
        self.all.get(&piece.pages).is_some_and(|pages| pages.writable)
    }

    /// Pins the memory of a mapping and charges the pages that were not pinned before; returns their bytes.
    pub(super) fn pin(&mut self, system: &mut System, run: &Run) -> Result<u64, Errno> {
        let page = system.page();
        debug_assert!(self.all.contains_key(&run.source), "pages that have no user are pinned");
        let Some(pages) = self.all.get_mut(&run.source) else { return Ok(0) };
        let (first, end) = pages.indices(run, page);
        let fresh = pages.pinned.unused(first, end);
        let there = run.memory.last().get() - pages.address < pages.there;
        require(there || fresh == 0, pages.lacking)?;
        let (account, bytes) = (system.account(pages.by), fresh << page.shift());
        match pages.charged {
            Charged::User => account.pin(bytes)?,
            Charged::Process => account.lock_pinned(bytes)?,
            Charged::Nobody => {}
        }
        pages.pinned.add(first, end);
        Ok(if pages.charged == Charged::Nobody { 0 } else { bytes })
    }

    /// Notes that a call has pinned `bytes` for a mapping.
    pub(super) fn note_pins(&self, system: &mut System, run: &Run, bytes: u64) {
        if let Some(pages) = self.all.get(&run.source) {
            system.account(pages.by).note_pins(bytes);
        }
    }

    /// iommufd_ioas_change_process: charges `to` for all that other processes are charged for, and then uncharges them.
    /// A user who owns both is charged twice in between.
    pub(super) fn change_process(&mut self, system: &mut System, to: Pid) -> Result<(), Errno> {
        require(self.all.values().all(|pages| pages.of_file), Errno::EINVAL)?;
        let page = system.page();
        let by_user = self.pinned_by_others(to, Charged::User, page);
        let by_process = self.pinned_by_others(to, Charged::Process, page);
        let account = system.account(to);
        // Without a new charge the limit is not checked, even if the process exceeds it already.
        if by_user > 0 {
            account.pin_beside(by_user, by_user)?;
        }
        if by_process > 0 {
            account.lock_pinned(by_process).inspect_err(|_| account.unpin(by_user))?;
        }
        for pages in self.all.values_mut().filter(|pages| pages.by != to) {
            let (from, bytes) = (std::mem::replace(&mut pages.by, to), pages.pinned_bytes(page));
            give_back(system, from, pages.charged, bytes);
        }
        Ok(())
    }

    /// The bytes that processes other than `to` are charged for, on accounts of this kind.
    fn pinned_by_others(&self, to: Pid, charged: Charged, page: PageSize) -> u64 {
        let others = self.all.values().filter(|pages| pages.by != to && pages.charged == charged);
        others.map(|pages| pages.pinned_bytes(page)).sum()
    }

    /// Unpins the memory of a mapping, where no other mapping uses it.
    pub(super) fn unpin(&mut self, system: &mut System, run: &Run) {
        let page = system.page();
        debug_assert!(self.all.contains_key(&run.source), "pages that have no user are unpinned");
        let Some(pages) = self.all.get_mut(&run.source) else { return };
        let (first, end) = pages.indices(run, page);
        let stale = pages.pinned.remove(first, end);
        give_back(system, pages.by, pages.charged, stale << page.shift());
    }
}

fn give_back(system: &mut System, to: Pid, charged: Charged, bytes: u64) {
    system.give_back(to, |account| {
        account.unpin(if charged == Charged::Nobody { 0 } else { bytes });
        account.unlock(if charged == Charged::Process { bytes } else { 0 });
    });
}

impl Pages {
    /// The number of pinned bytes.
    fn pinned_bytes(&self, page: PageSize) -> u64 {
        self.pinned.used() << page.shift()
    }

    /// The pages of a mapping, counted from the page that the memory begins in.
    fn indices(&self, run: &Run, page: PageSize) -> (u64, u64) {
        let base = page.round_down(self.address);
        let first = (run.memory.address().get() - base) >> page.shift();
        let last = (run.memory.last().get() - base) >> page.shift();
        (first, last + 1)
    }
}
