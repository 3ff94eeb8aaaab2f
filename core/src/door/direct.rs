//! Map and unmap calls in a form in which there is nothing to judge.
//!
//! A guest with an IOMMU maps and unmaps by the million. A [`Command`](crate::door::Command) is a number and bytes,
//! which a real door must check before it makes the call; these calls are the arguments themselves, and a door that
//! knows the kernel's structs fills in a struct of its own. Every other door returns `None`, and is then asked by a
//! command.

use crate::door::Lease;
use crate::words::access::Access;
use crate::words::address::Iova;

/// Maps all of `memory` from `at` on.
///
/// Exhaustive: a door must pass each part on.
#[derive(Clone, Copy, Debug)]
pub struct DirectMap<'a> {
    /// The id of the address space in the iommufd; `None` for a container.
    pub ioas: Option<u32>,
    /// The first bus address.
    pub at: Iova,
    /// The memory.
    pub memory: &'a Lease<'a>,
    /// The access of devices.
    pub access: Access,
}

/// Unmaps `length` bytes from `first` on.
///
/// Exhaustive: a door must pass each part on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectUnmap {
    /// The id of the address space in the iommufd; `None` for a container.
    pub ioas: Option<u32>,
    /// The first bus address.
    pub first: Iova,
    /// The length; after the call the length that the kernel reports, where it reports one.
    pub length: u64,
}
