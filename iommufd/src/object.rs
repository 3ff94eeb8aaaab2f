//! `/dev/iommu` and the objects in it, as values that are destroyed when they are dropped.
//!
//! Objects depend on each other (an address space is in use while a device is attached, a page table needs its address
//! space) and the kernel destroys none that is in use. So the owner of several declares them in the order of their
//! destruction: fields are dropped from top to bottom. The iommufd itself is closed with the last object in it.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmaspace_abi::iommufd::{self, Destroy, HwptAlloc, IoasAlloc, IoasMap, IoasMapFile, IoasUnmap};
use dmaspace_core::contract::{DeviceId, ObjectId};
use dmaspace_core::door::{
    Attached, Attachment, Command, DirectMap, DirectUnmap, Door, Errno, Failure, Handle, Lease, OwnedHandle,
};
use dmaspace_core::retry::{Undone, until_gone};
use dmaspace_core::words::locked::AccountingMode;
use dmaspace_core::{Access, HostMemory, Iova};
use zerocopy::IntoBytes;

/// An open `/dev/iommu`, which several address spaces may share: closed when the last of them is dropped.
///
/// Address spaces of one iommufd can share pins, and a device bound to it can move from one to another. All address
/// spaces of one user share the limit on locked memory, in any iommufd.
#[derive(Debug)]
pub struct Iommufd {
    handle: OwnedHandle,
    /// `true` if pins are charged to this process alone.
    charges_process: AtomicBool,
    /// `true` once the kernel has refused to map by file.
    lacks_files: AtomicBool,
}

impl Iommufd {
    /// Takes over `handle`.
    pub fn new(handle: OwnedHandle) -> Arc<Self> {
        Arc::new(Self { handle, charges_process: AtomicBool::new(false), lacks_files: AtomicBool::new(false) })
    }

    /// The handle, to which devices are bound.
    pub fn handle(&self) -> Handle {
        self.handle.handle()
    }

    /// The door of the handle.
    pub fn door(&self) -> &Arc<dyn Door> {
        self.handle.door()
    }

    /// The account that is charged, as far as this process has chosen it.
    pub(crate) fn charged(&self) -> AccountingMode {
        if self.charges_process.load(Ordering::Relaxed) { AccountingMode::Process } else { AccountingMode::User }
    }

    pub(crate) fn remember_payer(&self, payer: AccountingMode) {
        self.charges_process.store(payer == AccountingMode::Process, Ordering::Relaxed);
    }

    /// Returns whether the kernel maps by file, as far as is known: the first such map finds out.
    pub(crate) fn maps_files(&self) -> bool {
        !self.lacks_files.load(Ordering::Relaxed)
    }

    /// The offset of `memory` in its file, if it can be mapped by that: its pages must have the same alignment in the
    /// file as in this process.
    fn place_in_file(&self, memory: &HostMemory) -> Option<u64> {
        let (_, offset) = memory.file().filter(|(file, _)| self.maps_files() && file.is_behind(self.door()))?;
        let page = self.door().host_page();
        page.divides(memory.address().get().wrapping_sub(offset)).then_some(offset)
    }

    /// Returns whether memory may be mapped by its address after its file was refused.
    fn may_go_by_address(&self, memory: &HostMemory, refusal: &Failure) -> bool {
        if refusal.errno() == Some(Errno::ENOTTY) {
            self.lacks_files.store(true, Ordering::Relaxed);
        }
        // The file is no memory, too short, or exported by a driver from which this kernel does not accept it (linux:
        // drivers/iommu/iommufd/pages.c, iopt_alloc_dmabuf_pages).
        let of_the_file = [Errno::ENOTTY, Errno::EINVAL, Errno::EOPNOTSUPP, Errno::EBADF];
        !memory.is_device_memory() && refusal.errno().is_some_and(|errno| of_the_file.contains(&errno))
    }

    pub(crate) fn call(&self, command: Command<'_>) -> Result<(), Failure> {
        self.handle.call(command)
    }
}

/// An object of an iommufd, destroyed when dropped.
#[derive(Debug)]
pub(crate) struct Object {
    id: ObjectId,
    iommufd: Arc<Iommufd>,
}

impl Object {
    /// Creates an address space.
    pub(crate) fn new_ioas(iommufd: Arc<Iommufd>) -> Result<Self, Failure> {
        let mut alloc = IoasAlloc { size: IoasAlloc::SIZE, ..IoasAlloc::default() };
        iommufd.call(Command::with_bytes(iommufd::IOAS_ALLOC, alloc.as_mut_bytes()))?;
        match alloc.out_ioas_id {
            // Ids begin with 1 (linux: drivers/iommu/iommufd/main.c, iommufd_fops_open).
            0 => Err(Failure::malformed(iommufd::IOAS_ALLOC.name, "nothing has the id 0")),
            id => Ok(Self { id: ObjectId::new(id), iommufd }),
        }
    }

    /// Takes over an address space that another user of the iommufd created.
    pub(crate) fn adopted_ioas(iommufd: Arc<Iommufd>, id: ObjectId) -> Self {
        Self { id, iommufd }
    }

    /// Allocates a page table that maps an address space, fits a device and compatible ones, and logs their writes.
    ///
    /// `EOPNOTSUPP` means that the device's IOMMU cannot log, `EINVAL` that its driver refuses (linux:
    /// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_paging_alloc).
    pub(crate) fn new_page_table(ioas: &Self, device: DeviceId) -> Result<Self, Failure> {
        let mut alloc = HwptAlloc {
            size: HwptAlloc::SIZE,
            flags: iommufd::HWPT_ALLOC_DIRTY_TRACKING,
            dev_id: device.get(),
            pt_id: ioas.id.get(),
            ..HwptAlloc::default()
        };
        ioas.iommufd.call(Command::with_bytes(iommufd::HWPT_ALLOC, alloc.as_mut_bytes()))?;
        Ok(Self { id: ObjectId::new(alloc.out_hwpt_id), iommufd: ioas.iommufd.clone() })
    }

    /// Maps memory, if the object is an address space: by its file if it has one and the kernel accepts it, else by its
    /// address.
    #[inline]
    pub(crate) fn map(&self, at: Iova, memory: &Lease<'_>, access: Access) -> Result<(), Failure> {
        match self.iommufd.place_in_file(memory) {
            Some(start) => self.map_file_or_address(at, memory, start, access),
            None => self.map_address(at, memory, access),
        }
    }

    #[inline(never)]
    fn map_file_or_address(&self, at: Iova, memory: &Lease<'_>, start: u64, access: Access) -> Result<(), Failure> {
        match self.map_file(at, memory, start, access) {
            Err(refusal) if self.iommufd.may_go_by_address(memory, &refusal) => {
                log::debug!("iommufd: {memory} is mapped by its address, since by its file: {refusal}");
                self.map_address(at, memory, access)
            }
            done => done,
        }
    }

    fn map_file(&self, at: Iova, memory: &Lease<'_>, start: u64, access: Access) -> Result<(), Failure> {
        let mut map = IoasMapFile {
            size: IoasMapFile::SIZE,
            flags: iommufd::fixed_map_flags(access),
            ioas_id: self.id.get(),
            fd: 0,
            start,
            length: memory.len().get(),
            iova: at.get(),
        };
        let mut file = [Attachment { offset: offset_of!(IoasMapFile, fd), what: Attached::FileOf(memory) }];
        self.iommufd.call(Command::with_bytes(iommufd::IOAS_MAP_FILE, map.as_mut_bytes()).attaching(&mut file))
    }

    #[inline]
    fn map_address(&self, at: Iova, memory: &Lease<'_>, access: Access) -> Result<(), Failure> {
        let direct = DirectMap { ioas: Some(self.id.get()), at, memory, access };
        match self.iommufd.handle.map_directly(iommufd::IOAS_MAP.name, &direct) {
            Some(mapped) => mapped,
            None => self.map_by_command(at, memory, access),
        }
    }

    #[cold]
    fn map_by_command(&self, at: Iova, memory: &Lease<'_>, access: Access) -> Result<(), Failure> {
        let mut map = IoasMap {
            size: IoasMap::SIZE,
            flags: iommufd::fixed_map_flags(access),
            ioas_id: self.id.get(),
            length: memory.len().get(),
            iova: at.get(),
            ..IoasMap::default()
        };
        let mut address = [Attachment { offset: offset_of!(IoasMap, user_va), what: Attached::Memory(memory) }];
        self.iommufd.call(Command::with_bytes(iommufd::IOAS_MAP, map.as_mut_bytes()).attaching(&mut address))
    }

    /// Unmaps whole mappings, and returns their bytes.
    #[inline]
    pub(crate) fn unmap(&self, iova: u64, length: u64) -> Result<u64, Failure> {
        let mut direct = DirectUnmap { ioas: Some(self.id.get()), first: Iova::new(iova), length };
        match self.iommufd.handle.unmap_directly(iommufd::IOAS_UNMAP.name, &mut direct) {
            Some(Ok(())) => Ok(direct.length),
            Some(Err(failure)) => Err(failure),
            None => self.unmap_by_command(iova, length),
        }
    }

    #[cold]
    fn unmap_by_command(&self, iova: u64, length: u64) -> Result<u64, Failure> {
        let mut unmap = IoasUnmap { size: IoasUnmap::SIZE, ioas_id: self.id.get(), iova, length };
        self.iommufd.call(Command::with_bytes(iommufd::IOAS_UNMAP, unmap.as_mut_bytes()))?;
        Ok(unmap.length)
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn iommufd(&self) -> &Arc<Iommufd> {
        &self.iommufd
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let mut destroy = Destroy { size: Destroy::SIZE, id: self.id.get() };
        // Refused while a device is attached to it; closing the iommufd destroys it then. Until that, others may have
        // the iommufd open.
        let destroyed = until_gone(|| {
            let called = self.iommufd.call(Command::with_bytes(iommufd::DESTROY, destroy.as_mut_bytes()));
            Undone::unless_absent(called, &[Errno::ENOENT])
        });
        if let Err(failure) = destroyed {
            log::warn!("iommufd: object {} stays until the iommufd is closed: {failure}", self.id.get());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::ioas;
    use crate::fixture::lease;
    use dmaspace_core::HostAddress;
    use dmaspace_core::door::HandleKind;
    use dmaspace_core::{Backend, IovaRange, MemoryFile};
    use dmaspace_soft::{Reply, ScriptedDoor};
    use std::num::NonZeroU64;
    use zerocopy::FromBytes;

    const MAP: &str = "IOMMU_IOAS_MAP";
    const MAP_FILE: &str = "IOMMU_IOAS_MAP_FILE";

    const PAGE: u64 = 0x1_0000;

    fn memory() -> HostMemory {
        HostMemory::unbacked(HostAddress::new(0x7000_0000), NonZeroU64::new(PAGE).expect("not zero")).expect("no wrap")
    }

    fn file() -> MemoryFile {
        MemoryFile::unbacked(1)
    }

    fn at(iova: u64) -> IovaRange {
        IovaRange::with_len(Iova::new(iova), PAGE).expect("a range of the test")
    }

    #[test]
    fn memory_with_a_file_is_mapped_by_the_file() {
        let (door, ioas) = ioas(&[]);
        ioas.map(at(0x10_0000), &lease(&memory().in_file(file(), 0x30_0000)), Access::READ).expect("done");
        let calls = door.take();
        assert_eq!((calls.len(), calls[0].name, calls[0].attached.as_slice()), (1, MAP_FILE, &[12][..]));
        let expected =
            IoasMapFile { size: 40, flags: 5, ioas_id: 7, fd: 0, start: 0x30_0000, length: PAGE, iova: 0x10_0000 };
        assert_eq!(IoasMapFile::read_from_bytes(&calls[0].bytes), Ok(expected));
    }

    #[test]
    fn map_file_is_not_repeated_on_a_kernel_without_it() {
        let (door, ioas) = ioas(&[|_| Err(Errno::ENOTTY)]);
        assert!(ioas.capabilities().maps_files);
        ioas.map(at(0), &lease(&memory().in_file(file(), 0)), Access::READ).expect("by its address");
        ioas.map(at(PAGE), &lease(&memory().in_file(file(), 0)), Access::READ).expect("by its address");
        assert_eq!(door.names(), [MAP_FILE, MAP, MAP]);
        assert!(!ioas.capabilities().maps_files);
    }

    #[test]
    fn memory_whose_file_is_refused_is_mapped_by_its_address_and_the_next_file_is_tried_again() {
        let (door, ioas) = ioas(&[|_| Err(Errno::EINVAL)]);
        ioas.map(at(0), &lease(&memory().in_file(file(), 0)), Access::READ).expect("by its address");
        ioas.map(at(PAGE), &lease(&memory().in_file(file(), 0)), Access::READ).expect("by its file");
        assert_eq!(door.names(), [MAP_FILE, MAP, MAP_FILE]);
    }

    #[test]
    fn errnos_not_caused_by_the_file_are_returned() {
        let answers: [Reply; 3] = [|_| Err(Errno::ENOMEM), |_| Err(Errno::EEXIST), |_| Err(Errno::ENOENT)];
        for answer in answers {
            let (door, ioas) = ioas(&[answer]);
            let failure = ioas.map(at(0), &lease(&memory().in_file(file(), 0)), Access::READ).expect_err("refused");
            assert_eq!((failure.call(), failure.errno()), (MAP_FILE, answer(&mut []).err()));
            assert_eq!(door.names(), [MAP_FILE]);
        }
    }

    #[test]
    fn another_devices_memory_is_mapped_by_its_file_or_not_at_all() {
        for refusal in [(|_| Err(Errno::EOPNOTSUPP)) as Reply, |_| Err(Errno::ENOTTY)] {
            let (door, ioas) = ioas(&[refusal]);
            ioas.map(at(0), &lease(&memory().device_memory().in_file(file(), 0)), Access::READ).expect_err("refused");
            assert_eq!(door.names(), [MAP_FILE]);
        }
    }

    #[test]
    fn memory_misaligned_with_its_file_is_mapped_by_its_address() {
        let (door, ioas) = ioas(&[]);
        ioas.map(at(0), &lease(&memory().in_file(file(), 0x1000)), Access::READ).expect("by its address");
        assert_eq!(door.names(), [MAP], "pages have 64 KiB here");
    }

    #[test]
    fn a_file_exported_through_another_door_is_not_used() {
        let (door, ioas) = ioas(&[]);
        let elsewhere = ScriptedDoor::new(&[]);
        let handle = Handle::new(1, HandleKind::Export);
        let export = OwnedHandle::simulated(elsewhere.clone(), handle).expect("the door is not real");
        let exported = MemoryFile::exported(export);
        ioas.map(at(0), &lease(&memory().in_file(exported, 0)), Access::READ).expect("by its address");
        assert_eq!((door.names(), elsewhere.names()), (vec![MAP], vec!["close"]));
    }

    #[test]
    fn a_file_exported_through_this_door_is_mapped_and_closed_with_its_memory() {
        let (door, ioas) = ioas(&[]);
        let handle = Handle::new(9, HandleKind::Export);
        let export = OwnedHandle::simulated(ioas.iommufd().door().clone(), handle).expect("the door is not real");
        let exported = MemoryFile::exported(export);
        let bar = memory().device_memory().in_file(exported, 0);
        ioas.map(at(0), &lease(&bar), Access::READ_WRITE).expect("by its file");
        assert_eq!(door.names(), [MAP_FILE]);
        drop(bar);
        assert_eq!(door.names(), ["close"]);
    }
}
