//! The guest's RAM: one anonymous mapping, handed out in slices.

use dmaspace_core::HostMemory;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// How much one transfer of a test moves.
pub const SPOT: usize = 64;

/// Where in every page a transfer could land by mistake, and how to tell.
const PAGE: u64 = 0x1000;

/// The guest's RAM.
#[derive(Clone, Debug)]
pub struct Ram {
    all: HostMemory,
}

impl Ram {
    /// `len` bytes of anonymous memory.
    pub fn new(len: usize) -> Self {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), len)]).expect("memory for the guest");
        let all = memory.iter().next().and_then(HostMemory::of_region).expect("one region");
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

fn stamp_of(page: u64) -> [u8; SPOT] {
    pattern(page.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
}

/// Bytes that no other seed has.
pub fn pattern(seed: u64) -> [u8; SPOT] {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
}
