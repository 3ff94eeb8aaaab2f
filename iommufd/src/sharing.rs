//! Pins that address spaces of one iommufd share.
//!
//! The kernel pins and charges each page once for all mappings that were copied from one another, in whichever address spaces (linux:
//! drivers/iommu/iommufd/pages.c, struct iopt_pages). So memory is mapped in an address space that no device is attached to first, which
//! pins nothing, and from there it is copied to where devices reach it.
//!
//! In that hidden address space memory lies where it lies in this process: each byte has one place, neighbours are neighbours, and a copy
//! may begin and end anywhere and span pieces (linux: drivers/iommu/iommufd/io_pagetable.c, iopt_get_pages).
//!
//! Invariants: pieces are disjoint; each counts the holdings that overlap it, and is there as long as there is one. A piece that no one
//! holds is one the kernel would not unmap: nobody copies it, and it is unmapped before its place is needed again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use dmaspace_core::asking::insist;
use dmaspace_core::backend::SharingCalls;
use dmaspace_core::door::{Command, Errno, Failure};
use dmaspace_core::{Access, HostMemory, Iova};
use zerocopy::IntoBytes;

use crate::abi::{self, IoasCopy};
use crate::map_flags;
use crate::object::{Iommufd, Object};

/// What address spaces of one iommufd hold, so that each page of it is pinned and charged once, however many of them map it.
///
/// Pins are saved at the price of one map call more for each run of memory that is held. In a second address space a copy is the cheaper
/// way, too, where memory is made of small pages; of huge ones, mapping again takes fewer instructions, and pins everything again
/// ([`crate::Ioas::within`]).
#[derive(Debug)]
pub struct Pool {
    hidden: Object,
    pieces: RwLock<Pieces>,
}

/// Mappings of the hidden address space, by host address.
type Pieces = BTreeMap<u64, Piece>;

#[derive(Debug)]
struct Piece {
    memory: HostMemory,
    holders: usize,
}

impl Pool {
    /// Makes a pool in an iommufd, which is closed when the pool and all address spaces in it are gone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(iommufd: Arc<Iommufd>) -> Result<Arc<Self>, Failure> {
        Ok(Arc::new(Self { hidden: Object::new_ioas(iommufd)?, pieces: RwLock::default() }))
    }

    /// The iommufd it is in.
    pub fn iommufd(&self) -> &Arc<Iommufd> {
        self.hidden.iommufd()
    }

    /// Maps memory in another address space by copying it. `None` when it is not held, or not with such rights: then nothing was done.
    pub(crate) fn copy(
        &self,
        to: &Object,
        at: Iova,
        memory: &HostMemory,
        access: Access,
    ) -> Option<Result<(), Failure>> {
        // What is held stays held until the copy is made.
        let pieces = self.pieces.read().unwrap_or_else(PoisonError::into_inner);
        if holders(&pieces, memory) == 0 {
            return None;
        }
        let mut copy = IoasCopy {
            size: IoasCopy::SIZE,
            flags: map_flags(access),
            dst_ioas_id: to.id(),
            src_ioas_id: self.hidden.id(),
            length: memory.len().get(),
            dst_iova: at.get(),
            src_iova: memory.address(),
        };
        let copied = self.iommufd().call(Command::with_bytes(abi::IOAS_COPY, copy.as_mut_bytes()));
        let lacks_rights = |failure: &Failure| match failure.errno() {
            Some(Errno::EPERM) => true,
            // It is held for writing, and pinned for that whoever asks: perhaps it may only be read.
            Some(Errno::EFAULT) => !access.contains(Access::WRITE),
            _ => false,
        };
        match copied {
            Err(failure) if lacks_rights(&failure) => {
                log::warn!("{memory} is pinned by itself, for {access}: {failure}");
                None
            }
            result => Some(result),
        }
    }

    /// Unmaps a piece, if it is there.
    fn unmap(&self, memory: &HostMemory) -> Result<(), Failure> {
        let (at, len) = (memory.address(), memory.len().get());
        let unmapped = insist(Errno::ENOENT, || match self.hidden.unmap(at, len)? {
            all if all == len => Ok(()),
            _ => Err(Failure::malformed(abi::IOAS_UNMAP.name, "another number of bytes was unmapped than lived there")),
        });
        unmapped.map(drop)
    }

    /// Unmaps what nobody holds. What the kernel will not unmap stays known.
    fn withdraw(&self, pieces: &mut Pieces, memory: HostMemory) {
        pieces.remove(&memory.address());
        if let Err(failure) = self.unmap(&memory) {
            log::error!("iommufd: {memory} could not be let go of: {failure}");
            pieces.insert(memory.address(), Piece { memory, holders: 0 });
        }
    }
}

impl SharingCalls for Pool {
    fn hold(&self, memory: &HostMemory) -> Result<(), Failure> {
        let mut pieces = self.pieces.write().unwrap_or_else(PoisonError::into_inner);
        let left: Vec<_> = overlapping(&mut pieces, memory).filter(|piece| piece.holders == 0).map(cloned).collect();
        for left in left {
            self.unmap(&left)?;
            pieces.remove(&left.address());
        }
        let mut made = Vec::new();
        for gap in gaps(&mut pieces, memory) {
            let rights = if gap.is_host_read_only() { Access::READ } else { Access::READ_WRITE };
            let mapped = self.hidden.map(Iova::new(gap.address()), &gap, rights);
            made.push(gap);
            if let Err(failure) = mapped {
                // The last may be there all the same.
                made.into_iter().for_each(|gap| self.withdraw(&mut pieces, gap));
                return Err(failure);
            }
        }
        pieces.extend(made.into_iter().map(|memory| (memory.address(), Piece { memory, holders: 0 })));
        overlapping(&mut pieces, memory).for_each(|piece| piece.holders += 1);
        Ok(())
    }

    fn let_go(&self, memory: &HostMemory) {
        let mut pieces = self.pieces.write().unwrap_or_else(PoisonError::into_inner);
        let mut free = Vec::new();
        for piece in overlapping(&mut pieces, memory).filter(|piece| piece.holders > 0) {
            piece.holders -= 1;
            if piece.holders == 0 {
                free.push(piece.memory.clone());
            }
        }
        free.into_iter().for_each(|memory| self.withdraw(&mut pieces, memory));
    }

    fn holders(&self, memory: &HostMemory) -> usize {
        holders(&self.pieces.read().unwrap_or_else(PoisonError::into_inner), memory)
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

/// The parts of `memory` that are no piece, ascending.
fn gaps(pieces: &mut Pieces, memory: &HostMemory) -> Vec<HostMemory> {
    let mut known: Vec<_> = overlapping(pieces, memory).map(cloned).collect();
    known.reverse();
    let mut gaps = Vec::new();
    let mut next = Some(memory.address());
    for piece in known {
        let Some(first) = next else { return gaps };
        gaps.extend(memory.slice(first - memory.address(), piece.address().saturating_sub(first)));
        next = piece.last().checked_add(1);
    }
    if let Some(first) = next.filter(|first| *first <= memory.last()) {
        let offset = first - memory.address();
        gaps.extend(memory.slice(offset, memory.len().get() - offset));
    }
    gaps
}

/// How often all of `memory` is held.
fn holders(pieces: &Pieces, memory: &HostMemory) -> usize {
    let mut fewest = usize::MAX;
    let mut next = memory.address();
    loop {
        let holding = pieces.range(..=next).next_back().filter(|(_, piece)| piece.memory.last() >= next);
        let Some((_, piece)) = holding else { return 0 };
        fewest = fewest.min(piece.holders);
        match piece.memory.last().checked_add(1) {
            Some(after) if after <= memory.last() => next = after,
            _ => return fewest,
        }
    }
}
