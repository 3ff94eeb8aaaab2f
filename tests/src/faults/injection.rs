//! The calls of all backends, and the ways in which each can fail.

use std::fmt;

use dmaspace_core::door::Errno;
use dmaspace_soft::{FaultMode, FaultPlan};

use super::world::Call;

const TYPE1_OR_SPAPR_MAP: &str = "VFIO_IOMMU_MAP_DMA";
const TYPE1_OR_SPAPR_UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

/// Every request the backends and their attachments make.
pub const REQUESTS: [&str; 34] = [
    "VFIO_GET_API_VERSION",
    "VFIO_CHECK_EXTENSION",
    "VFIO_SET_IOMMU",
    "VFIO_GROUP_GET_STATUS",
    "VFIO_GROUP_SET_CONTAINER",
    "VFIO_GROUP_UNSET_CONTAINER",
    "VFIO_GROUP_GET_DEVICE_FD",
    "VFIO_IOMMU_GET_INFO",
    TYPE1_OR_SPAPR_MAP,
    TYPE1_OR_SPAPR_UNMAP,
    "VFIO_IOMMU_DIRTY_PAGES",
    "VFIO_IOMMU_SPAPR_TCE_GET_INFO",
    "VFIO_IOMMU_ENABLE",
    "VFIO_IOMMU_DISABLE",
    "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
    "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY",
    "VFIO_IOMMU_SPAPR_TCE_CREATE",
    "VFIO_IOMMU_SPAPR_TCE_REMOVE",
    "IOMMU_IOAS_ALLOC",
    "IOMMU_IOAS_IOVA_RANGES",
    "IOMMU_OPTION",
    "IOMMU_IOAS_ALLOW_IOVAS",
    "IOMMU_IOAS_MAP",
    "IOMMU_IOAS_MAP_FILE",
    "IOMMU_IOAS_COPY",
    "IOMMU_IOAS_UNMAP",
    "IOMMU_DESTROY",
    "IOMMU_GET_HW_INFO",
    "IOMMU_HWPT_ALLOC",
    "IOMMU_HWPT_SET_DIRTY_TRACKING",
    "IOMMU_HWPT_GET_DIRTY_BITMAP",
    "VFIO_DEVICE_BIND_IOMMUFD",
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    "VFIO_DEVICE_DETACH_IOMMUFD_PT",
];

/// Requests whose success nothing contradicts when the kernel only says so.
pub const UNDETECTABLE: [&str; 20] = [
    TYPE1_OR_SPAPR_MAP,
    TYPE1_OR_SPAPR_UNMAP,
    "VFIO_IOMMU_DIRTY_PAGES",
    "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
    "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY",
    "VFIO_IOMMU_SPAPR_TCE_CREATE",
    "VFIO_IOMMU_SPAPR_TCE_REMOVE",
    "IOMMU_OPTION",
    "IOMMU_IOAS_ALLOW_IOVAS",
    "IOMMU_IOAS_MAP",
    "IOMMU_IOAS_MAP_FILE",
    "IOMMU_IOAS_COPY",
    "IOMMU_IOAS_UNMAP",
    "IOMMU_DESTROY",
    "IOMMU_GET_HW_INFO",
    "IOMMU_HWPT_SET_DIRTY_TRACKING",
    "IOMMU_HWPT_GET_DIRTY_BITMAP",
    "VFIO_GROUP_UNSET_CONTAINER",
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    "VFIO_DEVICE_DETACH_IOMMUFD_PT",
];

/// One call, or one and all that follow, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Injected {
    pub(super) at: u64,
    pub(super) mode: FaultMode,
    pub(super) errno: Errno,
    pub(super) lasting: Lasting,
}

/// The length of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lasting {
    /// One call.
    Once,
    /// All later calls of that name too, of which so many come before.
    SameCalls(&'static str, u64),
    /// All later calls too.
    AllCalls,
}

/// More calls than any operation makes while it is being undone.
const FOR_EVER: u64 = 300;

impl Injected {
    pub(super) fn once(at: u64, (mode, errno): Way) -> Self {
        Self { at, mode, errno, lasting: Lasting::Once }
    }

    pub(super) fn plans(&self) -> Vec<FaultPlan> {
        let plan = |at| FaultPlan::nth(at, self.mode).with(self.errno);
        match self.lasting {
            Lasting::Once => vec![plan(self.at)],
            Lasting::SameCalls(name, before) => (1..FOR_EVER).map(|n| plan(before + n).of(name)).collect(),
            Lasting::AllCalls => (0..FOR_EVER).map(|n| plan(self.at + n)).collect(),
        }
    }
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lasting = match self.lasting {
            Lasting::Once => "",
            Lasting::SameCalls(..) => "-and-its-like",
            Lasting::AllCalls => "-and-all",
        };
        write!(f, "{}{lasting}:{:?}:{}", self.at, self.mode, self.errno)
    }
}

/// A way of injection a call. The errno counts where the call fails.
pub(super) type Way = (FaultMode, Errno);

/// The modes that make a difference to a request of this name.
pub(super) fn modes_of(name: &str) -> Vec<FaultMode> {
    use FaultMode::{FailAfter, FailBefore, PartialEffect, Positive, ShortSize, ZeroWithoutEffect};
    match name {
        "open" => vec![FailBefore],
        "VFIO_GROUP_GET_DEVICE_FD" => vec![FailBefore, FailAfter],
        TYPE1_OR_SPAPR_MAP | "VFIO_IOMMU_SPAPR_TCE_CREATE" => {
            vec![FailBefore, FailAfter, Positive(1), Positive(128), ZeroWithoutEffect, PartialEffect]
        }
        TYPE1_OR_SPAPR_UNMAP | "IOMMU_IOAS_UNMAP" => {
            vec![FailBefore, FailAfter, Positive(1), Positive(128), ZeroWithoutEffect, ShortSize, PartialEffect]
        }
        _ => vec![FailBefore, FailAfter, Positive(1), Positive(128), ZeroWithoutEffect],
    }
}

/// Every way of injection a call that fits it.
pub(super) fn ways_of(call: &Call, host_keeps_mappings: bool) -> Vec<Way> {
    let fails: Vec<Errno> = errnos_of(call.name).to_vec();
    let with = |mode: FaultMode| match mode {
        FaultMode::FailBefore => fails.clone(),
        // Nothing has happened when a call is interrupted: the kernel would start it again.
        FaultMode::FailAfter => fails.iter().copied().filter(|errno| *errno != Errno::EINTR).collect(),
        FaultMode::PartialEffect => parts_of(call, host_keeps_mappings).to_vec(),
        FaultMode::ShortSize if call.name == TYPE1_OR_SPAPR_UNMAP && !host_keeps_mappings => Vec::new(),
        FaultMode::Positive(_) | FaultMode::ShortSize | FaultMode::ZeroWithoutEffect => vec![Errno::EIO],
    };
    modes_of(call.name).into_iter().flat_map(|mode| with(mode).into_iter().map(move |errno| (mode, errno))).collect()
}

/// The ways in which the first call of a pair is injected.
pub(super) fn first_ways_of(call: &Call, host_keeps_mappings: bool) -> Vec<Way> {
    let chosen = |way: &Way| match way.0 {
        FaultMode::FailBefore => [Errno::EIO, Errno::ENOMEM].contains(&way.1),
        FaultMode::FailAfter => way.1 == Errno::EIO,
        FaultMode::PartialEffect | FaultMode::ShortSize => true,
        FaultMode::Positive(result) => result == 1,
        FaultMode::ZeroWithoutEffect => false,
    };
    ways_of(call, host_keeps_mappings).into_iter().filter(chosen).collect()
}

/// The ways in which the second is. The errno by which a kernel says that nothing is there is one of them.
pub(super) fn second_ways_of(call: &Call, host_keeps_mappings: bool) -> Vec<Way> {
    let chosen = |way: &Way| match way.0 {
        FaultMode::FailBefore => [Errno::EIO, Errno::ENOENT, Errno::EINVAL, Errno::ENOMEM].contains(&way.1),
        FaultMode::FailAfter => way.1 == Errno::EIO,
        FaultMode::PartialEffect => true,
        FaultMode::ShortSize | FaultMode::Positive(_) | FaultMode::ZeroWithoutEffect => false,
    };
    ways_of(call, host_keeps_mappings).into_iter().filter(chosen).collect()
}

/// The errnos with which kernels fail a call of this name.
fn errnos_of(name: &str) -> &'static [Errno] {
    match name {
        "open" => &[
            Errno::EIO,
            Errno::ENOMEM,
            Errno::ENOENT,
            Errno::EACCES,
            Errno::EBUSY,
            Errno::EMFILE,
            Errno::EINTR,
            Errno::ENODEV,
        ],
        TYPE1_OR_SPAPR_MAP | "IOMMU_IOAS_MAP" | "IOMMU_IOAS_COPY" => &[
            Errno::EIO,
            Errno::ENOMEM,
            Errno::EFAULT,
            Errno::EINVAL,
            Errno::EEXIST,
            Errno::ENOENT,
            Errno::EINTR,
            Errno::EBUSY,
            Errno::ENOSPC,
            Errno::EPERM,
        ],
        "IOMMU_IOAS_MAP_FILE" => &[
            Errno::EIO,
            Errno::ENOMEM,
            Errno::EFAULT,
            Errno::EINVAL,
            Errno::EEXIST,
            Errno::ENOENT,
            Errno::EINTR,
            Errno::EBADF,
            Errno::EOPNOTSUPP,
            Errno::ENOTTY,
        ],
        "VFIO_IOMMU_SPAPR_TCE_CREATE" => &[
            Errno::EIO,
            Errno::ENOMEM,
            Errno::EINVAL,
            Errno::EFAULT,
            Errno::EINTR,
            Errno::EPERM,
            Errno::ENOSPC,
            Errno::ENODEV,
        ],
        _ => &[
            Errno::EIO,
            Errno::ENOMEM,
            Errno::EFAULT,
            Errno::EINVAL,
            Errno::ENOENT,
            Errno::EINTR,
            Errno::EBUSY,
            Errno::ENODEV,
            Errno::EPERM,
            Errno::ENOTTY,
        ],
    }
}

/// The errno with which a kernel fails a call that it has done in part.
fn parts_of(call: &Call, host_keeps_mappings: bool) -> &'static [Errno] {
    match call.name {
        // Entries are left behind when there was no memory for more of the table. One entry is there or is not.
        TYPE1_OR_SPAPR_MAP if host_keeps_mappings && call.bytes <= 0x1000 => &[],
        TYPE1_OR_SPAPR_MAP if host_keeps_mappings => &[Errno::ENOMEM],
        TYPE1_OR_SPAPR_MAP => &[Errno::EIO, Errno::ENOMEM, Errno::EFAULT, Errno::EINVAL],
        TYPE1_OR_SPAPR_UNMAP | "IOMMU_IOAS_UNMAP" => &[Errno::EIO, Errno::ENOMEM, Errno::EINVAL, Errno::ENOENT],
        "VFIO_IOMMU_SPAPR_TCE_CREATE" => &[Errno::EIO, Errno::ENOMEM],
        _ => &[],
    }
}
