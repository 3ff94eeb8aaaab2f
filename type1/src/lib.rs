//! VFIO type1 containers: the IOMMUs of PCs and most others, as a [`Backend`].
//!
//! [`Type1`] turns one request into one call on a container that a group has joined; [`dmaspace_core`] checks requests
//! and keeps the index. The numbers and structs are those of [`dmaspace_abi`].
//!
//! Windows are fixed, but not for ever: each device that is attached may narrow them and remove page sizes, each that
//! is detached may restore some (linux: drivers/vfio/vfio_iommu_type1.c, vfio_iommu_type1_attach_group). Both versions
//! of type1 are supported. Version 1 removes a mapping that an unmap only touches; since only whole mappings are ever
//! unmapped here, the difference does not show.
//!
//! `/dev/iommu` can take a container's place (linux: drivers/iommu/iommufd/vfio_compat.c): it accepts the same
//! requests, but pins as iommufd does, refuses another device's memory, does not limit the number of mappings, and
//! keeps its mappings after the last device was detached.

mod dirty;
mod handover;
mod info;

use std::sync::atomic::{AtomicBool, Ordering};

use dmaspace_abi::type1::{GET_INFO, UNMAP_ALL};
use dmaspace_abi::vfio::{self, UnmapDma};
use dmaspace_core::backend::Calls;
use dmaspace_core::contract::{AttachPlace, Capabilities, LiveUpdateSupport, MappingBudget, MappingModel};
use dmaspace_core::door::{Command, Errno, Failure, HandleKind, Lease, OwnedHandle};
use dmaspace_core::retry::Undone;
use dmaspace_core::sync::{Mutex, Rank};
use dmaspace_core::words::locked::{Allowance, LockedMemory};
use dmaspace_core::{Access, Backend, Iova, IovaRange, Windows};

use dirty::DirtyLimits;
use info::Offer;

/// A type1 container, or an iommufd in its place. Its lock is [`Rank::Backend`] in the order of all locks
/// ([`dmaspace_core::sync`]).
#[derive(Debug)]
pub struct Type1 {
    container: OwnedHandle,
    /// The limits of the dirty log, as of the last change of groups.
    dirty: Mutex<Option<DirtyLimits>>,
    /// `true` once the container has answered: its driver comes with the first group.
    has_answered: AtomicBool,
}

impl Type1 {
    /// Takes over `container`, which the first group that joins gives to a type1 driver (v2 by preference). It is
    /// closed when this is dropped; the kernel keeps the mappings until the last group has left.
    ///
    /// A handle of the kind [`HandleKind::Iommufd`] is an iommufd in a container's place.
    pub fn new(container: OwnedHandle) -> Self {
        Self { container, dirty: Mutex::new(Rank::Backend, None), has_answered: AtomicBool::new(false) }
    }

    /// Returns whether locking `len` more bytes would exceed the process's limit.
    fn exceeds_allowance(&self, len: u64) -> bool {
        self.allowance().is_some_and(|allowance| !allowance.admits(len))
    }

    fn dirty_limits(&self) -> Option<DirtyLimits> {
        *self.dirty.lock()
    }

    fn is_iommufd(&self) -> bool {
        self.container.kind() == HandleKind::Iommufd
    }

    fn offer(&self) -> Result<Offer, Failure> {
        info::gather(self.container.door().host_page(), |reply| {
            self.container.call(Command::with_bytes(GET_INFO, reply))
        })
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: reports the kernel's answers")]
// SAFETY: each verb is one call of the kernel's, whose answer is returned as it is; a container, unlike an iommufd,
// forgets its mappings with its last group (linux: drivers/vfio/container.c, __vfio_group_unset_container).
unsafe impl Backend for Type1 {
    fn name(&self) -> &'static str {
        if self.is_iommufd() { "type1-on-iommufd" } else { "type1" }
    }

    /// Another device's memory can be mapped, unless an iommufd is in the container's place: that pins the memory of
    /// every mapping, which fails with `EFAULT` (linux: drivers/iommu/iommufd/pages.c).
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(MappingModel::Mappings, self.container.door().host_page());
        capabilities.maps_device_memory = !self.is_iommufd();
        capabilities.hands_over = if self.is_iommufd() { NO_ADDRESSES } else { LiveUpdateSupport::WhereTheKernelCan };
        capabilities
    }

    /// The process that maps is charged, for every mapping anew (linux: drivers/vfio/vfio_iommu_type1.c,
    /// vfio_pin_pages_remote). An iommufd in the container's place charges its user, unless it was opened under the
    /// container's name (linux: drivers/iommu/iommufd/main.c, iommufd_fops_open).
    fn allowance(&self) -> Option<Allowance> {
        let account = if self.is_iommufd() { LockedMemory::of_user } else { LockedMemory::of_process };
        self.container.door().locked_memory().map(account)
    }

    fn is_real(&self) -> bool {
        self.container.door().is_real()
    }

    fn attach_place(&self) -> AttachPlace {
        AttachPlace::Container(self.container.handle())
    }

    fn forgets_with_the_last_device(&self) -> bool {
        !self.is_iommufd()
    }

    fn refresh(&self, devices: usize) -> Result<Windows, Failure> {
        // Without a group the container has no driver that could answer; an iommufd still answers without one.
        let is_answered = devices > 0 || (self.is_iommufd() && self.has_answered.load(Ordering::Relaxed));
        let offer = if is_answered { Some(self.offer()?) } else { None };
        self.has_answered.fetch_or(is_answered, Ordering::Relaxed);
        *self.dirty.lock() = offer.as_ref().and_then(|offer| offer.dirty);
        Ok(offer.map(|offer| offer.windows).unwrap_or_default())
    }

    fn map(&self, range: IovaRange, memory: &Lease<'_>, access: Access) -> Result<(), Failure> {
        vfio::map(&self.container, range.first(), memory, access)
    }

    /// A kernel that runs out of memory while it fills a page table leaves entries behind (measured: linux 6.12 on
    /// VT-d); a kernel that refuses to lock more does not. A map of one entry fails as a whole. iommufd removes all
    /// entries.
    fn may_leave_entries(&self, len: u64, failure: &Failure) -> bool {
        if self.is_iommufd() {
            return false;
        }
        let is_one_entry = len <= self.container.door().host_page().bytes();
        failure.errno() == Some(Errno::ENOMEM) && !is_one_entry && !self.exceeds_allowance(len)
    }

    /// `ENOENT` is the answer of an iommufd in a container's place where nothing is mapped.
    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure> {
        let called = match range.len() {
            Some(len) => vfio::unmap(&self.container, range.first(), len.get()),
            // All 2^64 bytes do not fit the field, so the kernel has a flag for them.
            None => vfio::unmap_with_flags(&self.container, UNMAP_ALL, Iova::new(0), 0),
        };
        Undone::unless_absent(called.map(Some), &[Errno::ENOENT])
    }

    /// `EINVAL` is the answer of vfio_iommu_type1 (linux: vfio_iommu_resv_conflict), `EADDRINUSE` that of an iommufd in
    /// a container's place (linux: drivers/iommu/iommufd/io_pagetable.c, iopt_table_enforce_dev_resv_regions).
    fn may_be_a_collision(&self, failure: &Failure) -> bool {
        matches!(failure.errno(), Some(Errno::EINVAL | Errno::EADDRINUSE))
    }

    fn calls(&self) -> Calls<'_> {
        let mut calls = Calls::default();
        calls.dirty = Some(self);
        calls.vaddr = Some(self);
        calls.mapping_budget = Some(self);
        calls
    }
}

impl MappingBudget for Type1 {
    fn mappings_left(&self) -> Option<u64> {
        self.offer().ok()?.mappings_left
    }
}

/// The reason why an iommufd in a container's place has no live update (linux: drivers/iommu/iommufd/vfio_compat.c,
/// iommufd_vfio_check_extension).
const NO_ADDRESSES: LiveUpdateSupport = LiveUpdateSupport::Never(
    "an iommufd in a container's place updates no addresses (VFIO_UPDATE_VADDR); open the iommufd as itself, or a \
     container of vfio_iommu_type1",
);

fn unmap_of(range: IovaRange) -> UnmapDma {
    let all = UnmapDma { argsz: UnmapDma::SIZE, flags: UNMAP_ALL, iova: 0, size: 0 };
    match range.len() {
        Some(len) => UnmapDma { flags: 0, iova: range.first().get(), size: len.get(), ..all },
        // All 2^64 bytes do not fit the field, so the kernel has a flag for them.
        None => all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmap_of_everything_has_a_flag_and_no_length() {
        let top = IovaRange::with_len(Iova::new(0xffff_ffff_ffff_f000), 0x1000).expect("the last page");
        assert_eq!(unmap_of(top), UnmapDma { argsz: 24, flags: 0, iova: 0xffff_ffff_ffff_f000, size: 0x1000 });
        assert_eq!(unmap_of(IovaRange::all()), UnmapDma { argsz: 24, flags: 2, iova: 0, size: 0 });
    }
}
