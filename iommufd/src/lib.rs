//! I/O address spaces of `/dev/iommu` (iommufd), as a [`Backend`], and the devices that are attached to them.
//!
//! [`Ioas`] turns one request into one call; [`dmaspace_core`] checks requests and keeps the index. The façade crate
//! opens `/dev/iommu` and device nodes.
//!
//! An address space exists without devices, and memory can be mapped in it before the first one is attached. Nothing is
//! pinned then: faults of the memory show when a device is attached (linux: drivers/iommu/iommufd/io_pagetable.c,
//! iopt_table_add_domain). Its windows are the whole address space at first; each attached device narrows them, each
//! detached one widens them.
//!
//! Memory with a known file ([`HostMemory::file`](dmaspace_core::HostMemory::file)) is mapped by that where the kernel
//! can (since Linux 6.13): this is the only way to map a BAR, which its device must export. All other memory is mapped
//! by its address.
//!
//! A device is attached to a page table that logs its writes, where its IOMMU can log; else to the address space
//! itself. The difference shows only in the dirty log ([`dmaspace_core::contract::dirty`]).
//!
//! No errno is taken at its word. `ENOENT` from a map means that the kernel failed to find the address space, never
//! that there is nothing to do; an unmap that would cut a mapping removes the earlier ones and then fails with
//! `ENOENT`, so only unions of known mappings are ever unmapped.

mod cdev;
mod dirty;
#[cfg(test)]
mod fixture;
mod object;
mod option;
mod page_table;
mod process;
mod ranges;
mod sharing;

use std::mem::offset_of;
use std::sync::Arc;

use dmaspace_abi::IovaSpan;
use dmaspace_abi::iommufd::{IOAS_IOVA_RANGES, IoasIovaRanges};
use dmaspace_core::backend::Calls;
use dmaspace_core::contract::{
    AttachPlace, AttachPoint, Attachable, Capabilities, LiveUpdateSupport, MappingModel, ObjectId,
};
use dmaspace_core::door::{Attached, Attachment, Command, Door, Errno, Failure, Lease, OwnedHandle};
use dmaspace_core::retry::Undone;
use dmaspace_core::words::locked::{AccountingMode, Allowance, LockedMemory};
use dmaspace_core::{Access, Backend, IovaRange, Windows};
use zerocopy::IntoBytes;

pub use cdev::Cdev;
pub use object::Iommufd;
use object::Object;
use page_table::PageTables;
pub use sharing::Pool;

/// An I/O address space of an iommufd.
#[derive(Debug)]
pub struct Ioas {
    /// The page tables, dropped before the address space that they map.
    tables: PageTables,
    object: Object,
    /// Dropped last: its iommufd is closed with its last user.
    pool: Option<Arc<Pool>>,
}

impl Ioas {
    /// Takes over `iommufd` and creates an address space in it. Dropping the result destroys the address space and
    /// closes the iommufd.
    ///
    /// # Errors
    /// The kernel's failure; the iommufd is closed then.
    pub fn new(iommufd: OwnedHandle) -> Result<Self, Failure> {
        Self::within(Iommufd::new(iommufd))
    }

    /// Creates an address space in an iommufd that may have others. It pins the memory of its mappings by itself, even
    /// if others have it pinned.
    ///
    /// # Errors
    /// The kernel's failure.
    pub fn within(iommufd: Arc<Iommufd>) -> Result<Self, Failure> {
        Ok(Self { tables: PageTables::default(), object: Object::new_ioas(iommufd)?, pool: None })
    }

    /// Takes over an address space that another user of the iommufd created, by its id. It is destroyed with the result
    /// or, while a device is attached to it, with the iommufd.
    ///
    /// Devices that are attached to it already reach all that is mapped. A device that is attached anew with this
    /// library may be one of them ([`Cdev::bound`]): the kernel moves it from the address space to the same address
    /// space (linux: drivers/vfio/iommufd.c, vfio_iommufd_physical_attach_ioas).
    ///
    /// # Safety
    /// `id` is an address space of `iommufd` in which nothing is mapped. From now on nothing but the result maps or
    /// unmaps there. A device that the result does not know is detached before the result is dropped: memory that was
    /// mapped may be reused then.
    #[expect(unsafe_code, reason = "UNSAFETY: the index of a space must have every mapping of its address space")]
    pub unsafe fn adopted(iommufd: Arc<Iommufd>, id: ObjectId) -> Self {
        Self { tables: PageTables::default(), object: Object::adopted_ioas(iommufd, id), pool: None }
    }

    /// Creates an address space that shares pins with the others of the pool, for memory whose pins are shared
    /// ([`dmaspace_core::contract::PinSharing`]), which a listener does.
    ///
    /// # Errors
    /// The kernel's failure.
    pub fn sharing(pool: Arc<Pool>) -> Result<Self, Failure> {
        Ok(Self { pool: Some(pool.clone()), ..Self::within(pool.iommufd().clone())? })
    }

    /// The pool with which it shares pins.
    pub fn pool(&self) -> Option<&Arc<Pool>> {
        self.pool.as_ref()
    }

    /// The iommufd that it belongs to.
    pub fn iommufd(&self) -> &Arc<Iommufd> {
        self.object.iommufd()
    }

    fn id(&self) -> ObjectId {
        self.object.id()
    }

    fn door(&self) -> &dyn Door {
        &**self.iommufd().door()
    }

    fn ask_for_ranges(&self, reply: &mut IoasIovaRanges, spans: &mut [IovaSpan]) -> Result<(), Failure> {
        reply.ioas_id = self.object.id().get();
        let spans = Attached::Buffer(spans.as_mut_bytes());
        let mut array = [Attachment { offset: offset_of!(IoasIovaRanges, allowed_iovas), what: spans }];
        let command = Command::with_bytes(IOAS_IOVA_RANGES, reply.as_mut_bytes());
        self.iommufd().call(command.attaching(&mut array))
    }
}

/// The reason why there is no live update: a mapping belongs to the process that made it, unless it is of a file
/// (linux: drivers/iommu/iommufd/ioas.c, iommufd_ioas_change_process).
const FILES_ONLY: LiveUpdateSupport = LiveUpdateSupport::Never(
    "iommufd hands over mappings of files only (IOMMU_IOAS_MAP_FILE, IOMMU_IOAS_CHANGE_PROCESS), which this library \
     does not do; open a container of vfio_iommu_type1",
);

#[expect(unsafe_code, reason = "UNSAFETY: reports the kernel's answers")]
// SAFETY: each verb is one call of the kernel's, whose answer is returned as it is. An address space keeps its mappings
// whatever devices it has, so none is said to be gone but those that were unmapped.
unsafe impl Backend for Ioas {
    fn name(&self) -> &'static str {
        "iommufd"
    }

    /// Another device's memory cannot be mapped by its address (linux: drivers/iommu/iommufd/pages.c pins the memory of
    /// every mapping), only by the file that the device exported.
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(MappingModel::Mappings, self.door().host_page());
        capabilities.maps_files = self.iommufd().maps_files();
        capabilities.hands_over = FILES_ONLY;
        capabilities
    }

    /// The user is charged, whose total no process can read, unless [`Iommufd::charge`] changed it; this process's part
    /// of it shows as `VmPin` (linux: drivers/iommu/iommufd/pages.c, do_update_pinned).
    fn allowance(&self) -> Option<Allowance> {
        let locked = self.door().locked_memory()?;
        Some(match self.iommufd().charged() {
            AccountingMode::Process => LockedMemory::of_process(locked),
            AccountingMode::User => LockedMemory::of_user(locked),
        })
    }

    fn is_real(&self) -> bool {
        self.door().is_real()
    }

    fn attach_place(&self) -> AttachPlace {
        AttachPlace::Ioas { iommufd: self.iommufd().handle(), ioas: self.object.id() }
    }

    /// A device whose IOMMU can log is attached to a page table that logs, shared with compatible devices; any other
    /// device is attached to the address space itself, and the kernel chooses the page table.
    fn attach(&self, device: &dyn Attachable, point: AttachPoint<'_>) -> Result<(), Failure> {
        self.tables.attach(&self.object, device, point)
    }

    fn detach(&self, device: &dyn Attachable, point: AttachPoint<'_>) -> Result<Undone, Failure> {
        self.tables.detach(device, point)
    }

    fn refresh(&self, _devices: usize) -> Result<Windows, Failure> {
        ranges::gather(self.door().host_page(), |reply, spans| self.ask_for_ranges(reply, spans))
    }

    fn map(&self, range: IovaRange, memory: &Lease<'_>, access: Access) -> Result<(), Failure> {
        match &self.pool {
            None => self.object.map(range.first(), memory, access),
            Some(pool) => {
                let copied = pool.copy(&self.object, range.first(), memory, access);
                copied.unwrap_or_else(|| self.object.map(range.first(), memory, access))
            }
        }
    }

    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure> {
        let called = self.object.unmap(range.first().get(), unmap_length(range));
        Undone::unless_absent(called.map(Some), &[Errno::ENOENT])
    }

    /// Linux: drivers/iommu/iommufd/io_pagetable.c, iopt_table_enforce_dev_resv_regions.
    fn may_be_a_collision(&self, failure: &Failure) -> bool {
        failure.errno() == Some(Errno::EADDRINUSE)
    }

    fn calls(&self) -> Calls<'_> {
        let mut calls = Calls::default();
        calls.pin_sharing = self.pool.as_deref().map(|pool| pool as _);
        calls.dirty = Some(self);
        calls
    }
}

/// All 2^64 bytes do not fit the field; a length of 2^64-1 from address 0 stands for them.
fn unmap_length(range: IovaRange) -> u64 {
    range.len().map_or(u64::MAX, |len| len.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::lease;
    use crate::fixture::names::DESTROY;
    use crate::fixture::{IOMMUFD, ioas, seventh};
    use dmaspace_abi::iommufd::{Destroy, IoasMap, IoasUnmap};
    use dmaspace_core::HostAddress;
    use dmaspace_core::{HostMemory, Iova};
    use dmaspace_soft::ScriptedDoor;
    use std::num::NonZeroU64;
    use zerocopy::FromBytes;

    fn range(first: u64, len: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(first), len).expect("a range of the test")
    }

    #[test]
    fn a_dropped_address_space_is_destroyed_before_its_iommufd_is_closed() {
        let (door, ioas) = ioas(&[]);
        assert_eq!(ioas.attach_place(), AttachPlace::Ioas { iommufd: IOMMUFD, ioas: ObjectId::new(7) });
        drop(ioas);
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [DESTROY, "close"]);
        assert_eq!(Destroy::read_from_bytes(&calls[0].bytes), Ok(Destroy { size: 8, id: 7 }));
    }

    #[test]
    fn a_shared_iommufd_is_closed_with_the_last_address_space() {
        let (door, first) = ioas(&[seventh]);
        let second = Ioas::within(first.iommufd().clone()).expect("made");
        drop(first);
        assert_eq!(door.names(), ["IOMMU_IOAS_ALLOC", DESTROY]);
        drop(second);
        assert_eq!(door.names(), [DESTROY, "close"]);
    }

    #[test]
    #[expect(unsafe_code, reason = "UNSAFETY: no kernel is behind a scripted door")]
    fn an_adopted_address_space_is_used_by_its_id_and_destroyed() {
        let door = ScriptedDoor::new(&[]);
        let iommufd = Iommufd::new(crate::fixture::iommufd(&door));
        // SAFETY: nothing is mapped behind a scripted door.
        let ioas = unsafe { Ioas::adopted(iommufd, ObjectId::new(9)) };
        assert_eq!(ioas.attach_place(), AttachPlace::Ioas { iommufd: IOMMUFD, ioas: ObjectId::new(9) });
        drop(ioas);
        let calls = door.take();
        assert_eq!(calls.iter().map(|call| call.name).collect::<Vec<_>>(), [DESTROY, "close"]);
        assert_eq!(Destroy::read_from_bytes(&calls[0].bytes), Ok(Destroy { size: 8, id: 9 }));
    }

    #[test]
    fn an_iommufd_whose_address_space_allocation_fails_is_closed() {
        let door = ScriptedDoor::new(&[|_| Err(Errno::ENOMEM)]);
        let failure = Ioas::new(crate::fixture::iommufd(&door)).expect_err("not made");
        assert_eq!(failure.errno(), Some(Errno::ENOMEM));
        assert_eq!(door.names(), ["IOMMU_IOAS_ALLOC", "close"]);
    }

    #[test]
    fn memory_is_an_attachment_and_its_address_field_zero() {
        let (door, ioas) = ioas(&[|bytes| {
            IoasIovaRanges::mut_from_bytes(bytes).expect("room for the struct").out_iova_alignment = 1;
            Ok(0)
        }]);
        let memory = HostMemory::unbacked(HostAddress::new(0x7000_0000), NonZeroU64::new(0x2_0000).expect("not zero"))
            .expect("no wrap");
        ioas.refresh(0).expect("its array is filled with empty ranges");
        ioas.map(range(0x10_0000, 0x2_0000), &lease(&memory), Access::READ_WRITE).expect("done");
        let calls = door.take();
        let ranges = IoasIovaRanges::read_from_bytes(&calls[0].bytes).expect("the struct");
        assert_eq!((ranges.ioas_id, ranges.allowed_iovas, calls[0].attached.as_slice()), (7, 0, &[16][..]));
        let map =
            IoasMap { size: 40, flags: 7, ioas_id: 7, reserved: 0, user_va: 0, length: 0x2_0000, iova: 0x10_0000 };
        assert_eq!((calls[1].bytes.as_slice(), calls[1].attached.as_slice()), (map.as_bytes(), &[16][..]));
    }

    #[test]
    fn unmap_returns_the_kernels_byte_count_and_enoent_as_was_not_there() {
        let (_, ioas) = ioas(&[
            |bytes| {
                IoasUnmap::mut_from_bytes(bytes).expect("room for the struct").length = 0x1000;
                Ok(0)
            },
            |_| Err(Errno::ENOENT),
        ]);
        assert_eq!(ioas.unmap(range(0, 0x4000)), Ok(Undone::Done(Some(0x1000))));
        assert_eq!(ioas.unmap(range(0, 0x4000)), Ok(Undone::WasNotThere));
    }

    #[test]
    fn an_unmap_of_everything_has_the_longest_length() {
        let top = range(0xffff_ffff_ffff_f000, 0x1000);
        assert_eq!((unmap_length(top), unmap_length(IovaRange::all())), (0x1000, u64::MAX));
    }
}
