//! Pins that the address spaces of one iommufd share.
//!
//! The kernel pins and charges each page once for all mappings that were copied from one another, in any address space
//! (linux: drivers/iommu/iommufd/pages.c, struct iopt_pages). So memory is first mapped in an address space without
//! devices, which pins nothing, and copied from there to the address spaces that devices are attached to.
//!
//! In that hidden address space the bus address of memory is its address in this process: each byte has one place,
//! neighbours are neighbours, and a copy may begin and end anywhere and span pieces (linux:
//! drivers/iommu/iommufd/io_pagetable.c, iopt_get_pages).
//!
//! Invariants: pieces are disjoint; each counts the shared spans that overlap it, and exists while there is one. A
//! piece with a count of zero is one that the kernel did not unmap: no copy uses it, and it is unmapped before its
//! place is needed again.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::Arc;

use dmaspace_abi::iommufd::{self, IoasCopy};
use dmaspace_core::backend::SharingCalls;
use dmaspace_core::door::{Attached, Attachment, Command, Errno, Failure, Lease};
use dmaspace_core::retry::{Undone, until_gone};
use dmaspace_core::sync::{Rank, RwLock};
use dmaspace_core::{Access, HostAddress, HostMemory, Iova};
use zerocopy::IntoBytes;

use crate::object::{Iommufd, Object};

/// The memory whose pins the address spaces of one iommufd share: each page is pinned and charged once, however many of
/// them map it. Its lock is [`Rank::BackendPool`] in the order of all locks ([`dmaspace_core::sync`]).
///
/// Shared memory is mapped, and pinned, for writing, unless it is [`HostMemory::host_read_only`].
///
/// Sharing saves pins at the price of one more map call per shared span. In a second address space a copy is also
/// cheaper where memory has small pages; with huge pages, mapping again takes fewer instructions, but pins everything
/// again ([`crate::Ioas::within`]).
#[derive(Debug)]
pub struct Pool {
    hidden: Object,
    pieces: RwLock<Pieces>,
}

/// The mappings of the hidden address space, by host address.
type Pieces = BTreeMap<HostAddress, Piece>;

#[derive(Debug)]
struct Piece {
    memory: HostMemory,
    holders: usize,
}

impl Pool {
    /// Creates a pool in an iommufd, which is closed with the pool and all address spaces in it.
    ///
    /// # Errors
    /// The kernel's failure.
    pub fn new(iommufd: Arc<Iommufd>) -> Result<Arc<Self>, Failure> {
        Ok(Arc::new(Self {
            hidden: Object::new_ioas(iommufd)?,
            pieces: RwLock::new(Rank::BackendPool, Pieces::default()),
        }))
    }

    /// The iommufd that it belongs to.
    pub fn iommufd(&self) -> &Arc<Iommufd> {
        self.hidden.iommufd()
    }

    /// Maps memory in another address space by copying it. `None` if its pins are not shared, or not with this access:
    /// nothing was done then.
    pub(crate) fn copy(
        &self,
        to: &Object,
        at: Iova,
        memory: &Lease<'_>,
        access: Access,
    ) -> Option<Result<(), Failure>> {
        // The lock keeps the pieces until the copy is made.
        let pieces = self.pieces.read();
        let cover = Cover::of(&pieces, memory)?;
        if access.contains(Access::WRITE) && !cover.is_writable {
            log::warn!("{memory} was held for reading, and is pinned once more for {access}");
            return None;
        }
        let mut copy = IoasCopy {
            size: IoasCopy::SIZE,
            flags: iommufd::fixed_map_flags(access),
            dst_ioas_id: to.id().get(),
            src_ioas_id: self.hidden.id().get(),
            length: memory.len().get(),
            dst_iova: at.get(),
            src_iova: memory.address().get(),
        };
        let mut lease = [Attachment { offset: offset_of!(IoasCopy, length), what: Attached::Copied(memory) }];
        let command = Command::with_bytes(iommufd::IOAS_COPY, copy.as_mut_bytes());
        Some(self.iommufd().call(command.attaching(&mut lease)))
    }

    /// Unmaps a piece, whether or not it is mapped.
    fn unmap(&self, memory: &HostMemory) -> Result<(), Failure> {
        let (at, len) = (memory.address(), memory.len().get());
        let _outcome =
            until_gone(|| match Undone::unless_absent(self.hidden.unmap(at.get(), len), &[Errno::ENOENT])? {
                Undone::Done(other) if other != len => Err(Failure::malformed(
                    iommufd::IOAS_UNMAP.name,
                    "another number of bytes was unmapped than lived there",
                )),
                outcome => Ok(outcome),
            })?;
        Ok(())
    }

    /// Unmaps the pieces with a count of zero. A piece that the kernel does not unmap stays in the list.
    fn withdraw(&self, pieces: &mut Pieces, memory: HostMemory) {
        pieces.remove(&memory.address());
        if let Err(failure) = self.unmap(&memory) {
            log::error!("iommufd: {memory} could not be let go of: {failure}");
            pieces.insert(memory.address(), Piece { memory, holders: 0 });
        }
    }
}

impl SharingCalls for Pool {
    fn share_pins(&self, memory: &Lease<'_>) -> Result<(), Failure> {
        let mut pieces = self.pieces.write();
        let left: Vec<_> = overlapping(&mut pieces, memory).filter(|piece| piece.holders == 0).map(cloned).collect();
        for left in left {
            self.unmap(&left)?;
            pieces.remove(&left.address());
        }
        let mut made = Vec::new();
        for gap in gaps(&mut pieces, memory) {
            let rights = if gap.is_host_read_only() { Access::READ } else { Access::READ_WRITE };
            let outside = Failure::malformed(iommufd::IOAS_MAP.name, "a gap is not inside the memory it is a gap of");
            let lease = memory.narrowed_to(&gap).ok_or(outside);
            let mapped = lease.and_then(|lease| self.hidden.map(Iova::new(gap.address().get()), &lease, rights));
            made.push(gap);
            if let Err(failure) = mapped {
                // The last piece may be mapped all the same.
                for gap in made {
                    self.withdraw(&mut pieces, gap);
                }
                return Err(failure);
            }
        }
        pieces.extend(made.into_iter().map(|memory| (memory.address(), Piece { memory, holders: 0 })));
        for piece in overlapping(&mut pieces, memory) {
            piece.holders += 1;
        }
        Ok(())
    }

    fn stop_sharing(&self, memory: &HostMemory) {
        let mut pieces = self.pieces.write();
        let mut free = Vec::new();
        for piece in overlapping(&mut pieces, memory).filter(|piece| piece.holders > 0) {
            piece.holders -= 1;
            if piece.holders == 0 {
                free.push(piece.memory.clone());
            }
        }
        for memory in free {
            self.withdraw(&mut pieces, memory);
        }
    }

    fn sharers(&self, memory: &HostMemory) -> usize {
        let pieces = self.pieces.read();
        Cover::of(&pieces, memory).map_or(0, |cover| cover.holders)
    }
}

fn cloned(piece: &mut Piece) -> HostMemory {
    piece.memory.clone()
}

/// The pieces that share bytes with `memory`, descending.
fn overlapping<'a>(pieces: &'a mut Pieces, memory: &HostMemory) -> impl Iterator<Item = &'a mut Piece> + use<'a> {
    let first = memory.address();
    let below = pieces.range_mut(..=memory.last()).rev().map(|(_, piece)| piece);
    below.take_while(move |piece| piece.memory.last() >= first)
}

/// The parts of `memory` that no piece covers, ascending.
fn gaps(pieces: &mut Pieces, memory: &HostMemory) -> Vec<HostMemory> {
    let mut known: Vec<_> = overlapping(pieces, memory).map(cloned).collect();
    known.reverse();
    let mut gaps = Vec::new();
    let mut next = Some(memory.address());
    for piece in known {
        let Some(first) = next else { return gaps };
        gaps.extend(
            memory.slice(first.get() - memory.address().get(), piece.address().get().saturating_sub(first.get())),
        );
        next = piece.last().get().checked_add(1).map(HostAddress::new);
    }
    if let Some(first) = next.filter(|first| *first <= memory.last()) {
        let offset = first.get() - memory.address().get();
        gaps.extend(memory.slice(offset, memory.len().get() - offset));
    }
    gaps
}

/// The properties of memory that is shared as a whole.
struct Cover {
    /// The number of spans that share it.
    holders: usize,
    is_writable: bool,
}

impl Cover {
    fn of(pieces: &Pieces, memory: &HostMemory) -> Option<Self> {
        let mut cover = Self { holders: usize::MAX, is_writable: true };
        let mut next = memory.address();
        loop {
            let holding = pieces.range(..=next).next_back().map(|(_, piece)| piece);
            let piece = holding.filter(|piece| piece.holders > 0 && piece.memory.last() >= next)?;
            cover.holders = cover.holders.min(piece.holders);
            cover.is_writable &= !piece.memory.is_host_read_only();
            match piece.memory.last().get().checked_add(1) {
                Some(after) if after <= memory.last().get() => next = HostAddress::new(after),
                _ => return Some(cover),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ioas;
    use crate::fixture::lease;
    use dmaspace_abi::iommufd::{Destroy, IoasAlloc, IoasMap, IoasMapFile};
    use dmaspace_core::{Backend, IovaRange, MemoryFile};
    use dmaspace_soft::{Reply, ScriptedDoor};
    use std::num::NonZeroU64;
    use zerocopy::FromBytes;

    const ADDRESS: u64 = 0x7000_0000;

    fn with_id(bytes: &mut [u8], id: u32) -> Result<i32, Errno> {
        IoasAlloc::mut_from_bytes(bytes).expect("room for the struct").out_ioas_id = id;
        Ok(0)
    }

    /// A pool whose hidden address space has the id 7, and an address space with the id 8 in it.
    fn pooled() -> (Arc<ScriptedDoor>, Arc<Pool>, Ioas) {
        let ids: [Reply; 2] = [|bytes| with_id(bytes, 7), |bytes| with_id(bytes, 8)];
        let door = ScriptedDoor::new(&ids);
        let pool = Pool::new(Iommufd::new(crate::fixture::iommufd(&door))).expect("made");
        let ioas = Ioas::sharing(pool.clone()).expect("made");
        door.take();
        (door, pool, ioas)
    }

    fn memory(offset: u64, len: u64) -> HostMemory {
        HostMemory::unbacked(HostAddress::new(ADDRESS + offset), NonZeroU64::new(len).expect("not zero"))
            .expect("no wrap")
    }

    fn range(first: u64, len: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(first), len).expect("a range of the test")
    }

    #[test]
    fn shared_pins_are_mapped_at_their_process_address_and_copied_from_there() {
        let (door, pool, ioas) = pooled();
        pool.share_pins(&lease(&memory(0, 0x4_0000))).expect("held");
        ioas.map(range(0x10_0000, 0x1_0000), &lease(&memory(0x2_0000, 0x1_0000)), Access::READ).expect("copied");
        ioas.map(range(0x20_0000, 0x2_0000), &lease(&memory(0x3_0000, 0x2_0000)), Access::READ).expect("mapped");
        let calls = door.take();
        let held = IoasMap { size: 40, flags: 7, ioas_id: 7, length: 0x4_0000, iova: ADDRESS, ..IoasMap::default() };
        assert_eq!((calls[0].name, calls[0].bytes.as_slice()), ("IOMMU_IOAS_MAP", held.as_bytes()));
        let copied = IoasCopy {
            size: 40,
            flags: 5,
            dst_ioas_id: 8,
            src_ioas_id: 7,
            length: 0x1_0000,
            dst_iova: 0x10_0000,
            src_iova: ADDRESS + 0x2_0000,
        };
        assert_eq!((calls[1].name, calls[1].bytes.as_slice()), ("IOMMU_IOAS_COPY", copied.as_bytes()));
        assert_eq!(calls[2].name, "IOMMU_IOAS_MAP", "not all of it is held");
    }

    #[test]
    fn read_only_memory_is_shared_read_only_and_not_copied_for_writing() {
        let (door, pool, ioas) = pooled();
        pool.share_pins(&lease(&memory(0, 0x1_0000).host_read_only())).expect("held");
        ioas.map(range(0, 0x1_0000), &lease(&memory(0, 0x1_0000)), Access::WRITE).expect("mapped");
        ioas.map(range(0x1_0000, 0x1_0000), &lease(&memory(0, 0x1_0000)), Access::READ).expect("copied");
        let calls = door.take();
        assert_eq!(IoasMap::read_from_bytes(&calls[0].bytes).expect("the struct").flags, 5);
        let names: Vec<_> = calls.iter().map(|call| call.name).collect();
        assert_eq!(names, ["IOMMU_IOAS_MAP", "IOMMU_IOAS_MAP", "IOMMU_IOAS_COPY"]);
    }

    #[test]
    fn memory_with_a_file_is_shared_by_the_file_and_copied() {
        let (door, pool, ioas) = pooled();
        let whole = memory(0, 0x2_0000).in_file(MemoryFile::unbacked(1), 0x40_0000);
        pool.share_pins(&lease(&whole)).expect("held");
        let part = whole.slice(0x1_0000, 0x1_0000).expect("inside");
        ioas.map(range(0x10_0000, 0x1_0000), &lease(&part), Access::READ).expect("copied");
        let calls = door.take();
        assert_eq!((calls[0].name, calls[1].name), ("IOMMU_IOAS_MAP_FILE", "IOMMU_IOAS_COPY"));
        let held = IoasMapFile::read_from_bytes(&calls[0].bytes).expect("the struct");
        assert_eq!((held.ioas_id, held.start, held.length, held.iova), (7, 0x40_0000, 0x2_0000, ADDRESS));
    }

    #[test]
    fn the_hidden_address_space_is_destroyed_last_and_before_the_iommufd_is_closed() {
        let (door, pool, ioas) = pooled();
        drop(pool);
        assert_eq!(door.names(), [""; 0]);
        drop(ioas);
        let calls = door.take();
        let destroyed = [0, 1].map(|n: usize| Destroy::read_from_bytes(&calls[n].bytes).map(|destroy| destroy.id));
        assert_eq!((destroyed, calls[2].name), ([Ok(8), Ok(7)], "close"));
    }

    #[test]
    fn the_last_page_below_2_to_the_64_can_be_shared() {
        let (_, pool, _) = pooled();
        let len = NonZeroU64::new(0x1_0000).expect("not zero");
        let top = HostMemory::unbacked(HostAddress::new(u64::MAX - 0xffff), len).expect("no wrap");
        pool.share_pins(&lease(&top)).expect("held");
        pool.share_pins(&lease(&top)).expect("held twice");
        assert_eq!(pool.sharers(&top), 2);
        pool.stop_sharing(&top);
        pool.stop_sharing(&top);
        assert_eq!(pool.sharers(&top), 0);
    }
}
