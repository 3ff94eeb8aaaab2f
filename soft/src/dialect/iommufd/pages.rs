//! Memory that mappings show: once for all mappings of it, in whichever address space
//! (linux: drivers/iommu/iommufd/pages.c).
//!
//! Invariants: pages are there while a mapping, or a call under way, uses them; a page is pinned and charged exactly while a mapping in an
//! address space with a page table shows it, and once however many do.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use dmaspace_core::door::Errno;
use dmaspace_core::{HostMemory, PageSize};

use crate::dialect::call::UserMemory;
use crate::dialect::{Pid, World, require};
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
    /// Whether the process is charged, not its user.
    charges_process: bool,
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
        require(length > 0 && length <= u64::MAX - page.bytes(), Errno::EINVAL)?;
        let address = memory.address;
        address.checked_add(length).ok_or(Errno::EOVERFLOW)?;
        let whole = memory.pinnable(length, false);
        let there = if memory.is_device_memory() { 0 } else { memory.pinnable_bytes(length, writable) };
        let charges_process = self.charges_process;
        self.last += 1;
        self.all.insert(
            self.last,
            Pages { by, address, there, writable, pinned: Coverage::default(), users: 1, charges_process },
        );
        // What is not there can be mapped as long as nobody pins it.
        let nothing = || HostMemory::unbacked(address, NonZeroU64::new(length)?);
        Ok(Piece { pages: self.last, memory: whole.or_else(nothing).ok_or(Errno::EOVERFLOW)? })
    }

    /// One user more.
    pub(super) fn get(&mut self, piece: &Piece) {
        if let Some(pages) = self.all.get_mut(&piece.pages) {
            pages.users += 1;
        }
    }

    /// One user less. The last lets go of the memory.
    pub(super) fn put(&mut self, world: &mut World, piece: &Piece) {
        let Some(pages) = self.all.get_mut(&piece.pages) else { return };
        pages.users -= 1;
        if pages.users == 0 {
            self.all.remove(&piece.pages);
        }
        world.release(piece.memory.clone());
    }

    /// Whether devices may be given writes.
    pub(super) fn are_writable(&self, piece: &Piece) -> bool {
        self.all.get(&piece.pages).is_some_and(|pages| pages.writable)
    }

    /// Pins what a mapping shows and charges what nobody had pinned before; says how many bytes that was.
    pub(super) fn pin(&mut self, world: &mut World, run: &Run) -> Result<u64, Errno> {
        let page = world.page();
        let Some(pages) = self.all.get_mut(&run.source) else { return Ok(0) };
        let (first, end) = pages.indices(run, page);
        let fresh = pages.pinned.unused(first, end);
        let there = run.memory.last() - pages.address < pages.there;
        require(there || fresh == 0, Errno::EFAULT)?;
        let (account, bytes) = (world.account(pages.by), fresh << page.shift());
        if pages.charges_process {
            account.lock_pinned(bytes)?
        } else {
            account.pin(bytes)?
        }
        pages.pinned.add(first, end);
        Ok(fresh << page.shift())
    }

    /// Remembers that a call has pinned so many bytes for a mapping.
    pub(super) fn note_pins(&self, world: &mut World, run: &Run, bytes: u64) {
        if let Some(pages) = self.all.get(&run.source) {
            world.account(pages.by).note_pins(bytes);
        }
    }

    /// Unpins what a mapping showed, where no other shows it.
    pub(super) fn unpin(&mut self, world: &mut World, run: &Run) {
        let page = world.page();
        let Some(pages) = self.all.get_mut(&run.source) else { return };
        let (first, end) = pages.indices(run, page);
        let stale = pages.pinned.remove(first, end);
        let charges_process = pages.charges_process;
        world.give_back(pages.by, |account| {
            account.unpin(stale << page.shift());
            account.unlock(if charges_process { stale << page.shift() } else { 0 });
        });
    }
}

impl Pages {
    /// The pages a mapping shows, counted from the one the memory begins in.
    fn indices(&self, run: &Run, page: PageSize) -> (u64, u64) {
        let base = page.round_down(self.address);
        let first = (run.memory.address() - base) >> page.shift();
        let last = (run.memory.last() - base) >> page.shift();
        (first, last + 1)
    }
}
