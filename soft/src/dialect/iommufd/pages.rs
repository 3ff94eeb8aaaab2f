//! Memory that mappings show: once for all mappings of it, in whichever address space
//! (linux: drivers/iommu/iommufd/pages.c).
//!
//! Invariants: pages are there while a mapping, or a call under way, uses them; a page is pinned and charged exactly
//! while a mapping in an address space with a page table shows it, and once however many do.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use dmaspace_core::door::Errno;
use dmaspace_core::{HostMemory, PageSize};

use crate::dialect::call::UserMemory;
use crate::dialect::{Pid, System, require};
use crate::engine::{Coverage, Run};

/// A stretch of some pages' memory.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Which pages.
    pub(super) pages: u64,
    /// Which part of their memory.
    pub(super) memory: HostMemory,
}

/// Memory somebody mapped (linux: struct iopt_pages).
#[derive(Debug)]
struct Pages {
    by: Pid,
    /// Where it begins.
    address: u64,
    /// How many bytes from there on can be pinned.
    there: u64,
    writable: bool,
    pinned: Coverage,
    users: u64,
    /// What is said when not all of it can be pinned.
    lacking: Errno,
    charged: Charged,
    /// Whether it is memory of a file.
    of_file: bool,
}

impl Pages {
    /// Memory by its address, with one user.
    fn new(by: Pid, address: u64, there: u64, writable: bool, charged: Charged) -> Self {
        let (pinned, lacking) = (Coverage::default(), Errno::EFAULT);
        Self { by, address, there, writable, pinned, users: 1, lacking, charged, of_file: false }
    }
}

/// Who is charged for what is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Charged {
    User,
    Process,
    /// Another device's memory is nobody's.
    Nobody,
}

/// All pages of one iommufd.
#[derive(Debug, Default)]
pub(super) struct PagesStore {
    all: BTreeMap<u64, Pages>,
    last: u64,
    /// Who is charged for what comes.
    pub(super) charges_process: bool,
}

impl PagesStore {
    /// iopt_alloc_pages: nothing is pinned, or even looked at. The caller is a user, until it says [`PagesStore::put`].
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

    /// iopt_alloc_file_pages, and iopt_alloc_dmabuf_pages for another device's memory, all of which must be there at
    /// once: `length` bytes from `start` of the file that `memory` is mapped from. Of the file there is as much as
    /// `memory` shows.
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
        let address = memory.address().wrapping_add(start.wrapping_sub(offset));
        let there = shown.map_or(0, |at| memory.len().get().saturating_sub(at).min(length));
        let charged = if exported { Charged::Nobody } else { self.charged() };
        let pages = Pages::new(by, address, there, writable, charged);
        let pages = Pages { lacking: Errno::EINVAL, of_file: !exported, ..pages };
        self.insert(page, pages, whole, length)
    }

    /// iopt_alloc_pages.
    fn insert(&mut self, page: PageSize, pages: Pages, whole: Option<HostMemory>, length: u64) -> Result<Piece, Errno> {
        require(length > 0 && length <= u64::MAX - page.bytes(), Errno::EINVAL)?;
        // What is not there can be mapped as long as nobody pins it.
        let nothing = || HostMemory::unbacked(pages.address, NonZeroU64::new(length)?);
        let memory = whole.or_else(nothing).ok_or(Errno::EOVERFLOW)?;
        self.last += 1;
        self.all.insert(self.last, pages);
        Ok(Piece { pages: self.last, memory })
    }

    fn charged(&self) -> Charged {
        if self.charges_process { Charged::Process } else { Charged::User }
    }

    /// One user more.
    pub(super) fn get(&mut self, piece: &Piece) {
        if let Some(pages) = self.all.get_mut(&piece.pages) {
            pages.users += 1;
        }
    }

    /// One user less. The last lets go of the memory.
    pub(super) fn put(&mut self, system: &mut System, piece: &Piece) {
        let Some(pages) = self.all.get_mut(&piece.pages) else { return };
        pages.users -= 1;
        if pages.users == 0 {
            self.all.remove(&piece.pages);
        }
        system.release(piece.memory.clone());
    }

    /// Whether devices may be given writes.
    pub(super) fn are_writable(&self, piece: &Piece) -> bool {
        self.all.get(&piece.pages).is_some_and(|pages| pages.writable)
    }

    /// Pins what a mapping shows and charges what nobody had pinned before; says how many bytes that was.
    pub(super) fn pin(&mut self, system: &mut System, run: &Run) -> Result<u64, Errno> {
        let page = system.page();
        let Some(pages) = self.all.get_mut(&run.source) else { return Ok(0) };
        let (first, end) = pages.indices(run, page);
        let fresh = pages.pinned.unused(first, end);
        let there = run.memory.last() - pages.address < pages.there;
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

    /// Remembers that a call has pinned so many bytes for a mapping.
    pub(super) fn note_pins(&self, system: &mut System, run: &Run, bytes: u64) {
        if let Some(pages) = self.all.get(&run.source) {
            system.account(pages.by).note_pins(bytes);
        }
    }

    /// iommufd_ioas_change_process: `to` is charged for everything that another is charged for, and then that one is
    /// not. For a moment a user who is both is charged twice.
    pub(super) fn change_process(&mut self, system: &mut System, to: Pid) -> Result<(), Errno> {
        require(self.all.values().all(|pages| pages.of_file), Errno::EINVAL)?;
        let page = system.page();
        let moving = |charged| {
            let moving = self.all.values().filter(move |pages| pages.by != to && pages.charged == charged);
            moving.map(|pages| pages.pinned_bytes(page)).sum::<u64>()
        };
        let (by_user, by_process) = (moving(Charged::User), moving(Charged::Process));
        let account = system.account(to);
        // Who is charged for nothing more is not asked whether he is over his limit already.
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

    /// Unpins what a mapping showed, where no other shows it.
    pub(super) fn unpin(&mut self, system: &mut System, run: &Run) {
        let page = system.page();
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
    /// How many bytes are pinned.
    fn pinned_bytes(&self, page: PageSize) -> u64 {
        self.pinned.used() << page.shift()
    }

    /// The pages a mapping shows, counted from the one the memory begins in.
    fn indices(&self, run: &Run, page: PageSize) -> (u64, u64) {
        let base = page.round_down(self.address);
        let first = (run.memory.address() - base) >> page.shift();
        let last = (run.memory.last() - base) >> page.shift();
        (first, last + 1)
    }
}
