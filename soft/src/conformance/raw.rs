//! Plain requests, one function each: no retry, no check of the answer.
//!
//! Sizes are given apart from the memory, so that a request can reach beyond its memory; memory that is `None` leaves
//! the address zero, where no process has memory.

use dmaspace_abi::vfio::{Extension, IommuType};
use dmaspace_abi::{device, iommufd, spapr, type1, vfio};
use dmaspace_core::contract::{AttachPlace, AttachPoint};
use dmaspace_core::door::{Attached, Attachment, Command, Door, Errno, Handle, HandleKind, Lease, Request};
use dmaspace_core::{Access, HostMemory};
use std::mem::offset_of;
use std::num::NonZeroUsize;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The context in which memory is mapped.
///
/// Exhaustive: a caller must know in which context it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// A container of the type1 driver.
    Type1(Handle),
    /// An iommufd in the place of a type1 container.
    Compat(Handle),
    /// A container of the sPAPR driver.
    Spapr(Handle),
    /// An address space.
    Ioas {
        /// `/dev/iommu`.
        iommufd: Handle,
        /// The id of the address space.
        id: u32,
    },
}

/// Maps `size` bytes at a bus address.
///
/// # Errors
/// The kernel's errno.
pub fn map(
    door: &dyn Door,
    on: Context,
    at: u64,
    size: u64,
    memory: Option<&HostMemory>,
    access: Access,
) -> Result<i32, Errno> {
    match on {
        Context::Type1(container) | Context::Compat(container) | Context::Spapr(container) => {
            let flags = vfio_flags(access);
            let mut map = vfio::MapDma { argsz: vfio::MapDma::SIZE, flags, iova: at, size, ..Default::default() };
            with_memory(door, container, vfio::MAP_DMA, &mut map, offset_of!(vfio::MapDma, vaddr), memory)
        }
        Context::Ioas { iommufd, id } => {
            let flags = iommufd::MAP_FIXED_IOVA | iommufd_flags(access);
            let mut map = iommufd::IoasMap {
                size: iommufd::IoasMap::SIZE,
                flags,
                ioas_id: id,
                length: size,
                iova: at,
                ..Default::default()
            };
            with_memory(door, iommufd, iommufd::IOAS_MAP, &mut map, offset_of!(iommufd::IoasMap, user_va), memory)
        }
    }
}

/// Maps `size` bytes of the file that memory is mapped from.
///
/// # Errors
/// The kernel's errno; `ENOTTY` where the context has no such request.
pub fn map_file(
    door: &dyn Door,
    on: Context,
    at: u64,
    size: u64,
    memory: Option<&HostMemory>,
    access: Access,
) -> Result<i32, Errno> {
    let Context::Ioas { iommufd, id } = on else { return Err(Errno::ENOTTY) };
    let mut map = iommufd::IoasMapFile {
        size: iommufd::IoasMapFile::SIZE,
        flags: iommufd::MAP_FIXED_IOVA | iommufd_flags(access),
        ioas_id: id,
        fd: 0,
        start: memory.and_then(HostMemory::file).map_or(0, |(_, offset)| offset),
        length: size,
        iova: at,
    };
    let lease = memory.map(|memory| lease_of(door, memory));
    let offset = offset_of!(iommufd::IoasMapFile, fd);
    let attachment = lease.as_ref().map(|memory| Attachment { offset, what: Attached::FileOf(memory) });
    let mut attachments: Vec<_> = attachment.into_iter().collect();
    let command = Command::with_bytes(iommufd::IOAS_MAP_FILE, map.as_mut_bytes());
    door.ioctl(iommufd, &mut command.attaching(&mut attachments))
}

/// Unmaps `size` bytes at a bus address; returns the result and the size field after the call.
///
/// # Errors
/// The kernel's errno.
pub fn unmap(door: &dyn Door, on: Context, at: u64, size: u64) -> Result<(i32, u64), Errno> {
    match on {
        Context::Type1(container) | Context::Compat(container) => unmap_type1(door, container, 0, at, size),
        Context::Spapr(container) => {
            let mut unmap = vfio::UnmapDma { argsz: vfio::UnmapDma::SIZE, iova: at, size, ..Default::default() };
            Ok((ask(door, container, vfio::UNMAP_DMA, &mut unmap)?, unmap.size))
        }
        Context::Ioas { iommufd, id } => {
            let mut unmap = iommufd::IoasUnmap { size: iommufd::IoasUnmap::SIZE, ioas_id: id, iova: at, length: size };
            Ok((ask(door, iommufd, iommufd::IOAS_UNMAP, &mut unmap)?, unmap.length))
        }
    }
}

/// Unmaps everything in one call; on sPAPR by removing the window at 0.
///
/// # Errors
/// The kernel's errno.
pub fn unmap_all(door: &dyn Door, on: Context) -> Result<(i32, u64), Errno> {
    match on {
        Context::Type1(container) | Context::Compat(container) => unmap_type1(door, container, type1::UNMAP_ALL, 0, 0),
        Context::Spapr(container) => Ok((remove(door, container, 0)?, 0)),
        Context::Ioas { .. } => unmap(door, on, 0, u64::MAX),
    }
}

/// Unmaps in a type1 container, with flags.
///
/// # Errors
/// The kernel's errno.
pub(crate) fn unmap_type1(
    door: &dyn Door,
    container: Handle,
    flags: u32,
    at: u64,
    size: u64,
) -> Result<(i32, u64), Errno> {
    let mut unmap = vfio::UnmapDma { argsz: vfio::UnmapDma::SIZE, flags, iova: at, size };
    Ok((ask(door, container, vfio::UNMAP_DMA, &mut unmap)?, unmap.size))
}

/// Updates the address of a type1 container's mapping, with `access`, which no update may have.
///
/// # Errors
/// The kernel's errno.
pub(crate) fn update_vaddr(
    door: &dyn Door,
    container: Handle,
    (iova, size): (u64, u64),
    memory: Option<&HostMemory>,
    access: Access,
) -> Result<i32, Errno> {
    let flags = type1::MAP_VADDR | vfio_flags(access);
    let mut map = vfio::MapDma { argsz: vfio::MapDma::SIZE, flags, vaddr: 0, iova, size };
    with_memory(door, container, vfio::MAP_DMA, &mut map, offset_of!(vfio::MapDma, vaddr), memory)
}

/// Makes a DIRTY_PAGES request of a type1 container, without a bitmap.
///
/// # Errors
/// The kernel's errno.
pub fn dirty_pages(door: &dyn Door, container: Handle, flags: u32) -> Result<i32, Errno> {
    let mut log = type1::DirtyBitmap { argsz: type1::DIRTY_BITMAP_HEAD, flags, ..Default::default() };
    ask(door, container, type1::DIRTY_PAGES, &mut log)
}

/// Reads the log of a type1 container for at most 64 pages: the result, and the number of dirty ones.
///
/// # Errors
/// The kernel's errno.
pub(crate) fn get_log(
    door: &dyn Door,
    container: Handle,
    (iova, size): (u64, u64),
    page: u64,
) -> Result<(i32, u64), Errno> {
    let bitmap = type1::Bitmap { pgsize: page, size: 8, data: 0 };
    let (argsz, flags) = (type1::DirtyBitmap::SIZE, type1::DIRTY_GET_BITMAP);
    let mut get = type1::DirtyBitmap { argsz, flags, iova, size, bitmap };
    let offset = offset_of!(type1::DirtyBitmap, bitmap) + offset_of!(type1::Bitmap, data);
    with_bits(door, container, type1::DIRTY_PAGES, &mut get, offset)
}

/// Unmaps at most 64 pages of a type1 container and reads their log: the result, and the number of dirty ones.
///
/// # Errors
/// The kernel's errno.
pub(crate) fn unmap_and_get_log(
    door: &dyn Door,
    container: Handle,
    (iova, size): (u64, u64),
    page: u64,
) -> Result<(i32, u64), Errno> {
    let bitmap = type1::Bitmap { pgsize: page, size: 8, data: 0 };
    let (argsz, flags) = (type1::UnmapDirty::SIZE, type1::UNMAP_GET_DIRTY);
    let mut unmap = type1::UnmapDirty { unmap: vfio::UnmapDma { argsz, flags, iova, size }, bitmap };
    let offset = offset_of!(type1::UnmapDirty, bitmap) + offset_of!(type1::Bitmap, data);
    with_bits(door, container, vfio::UNMAP_DMA, &mut unmap, offset)
}

/// Makes a request that fills a bitmap of 64 bits; returns the result and the number of bits set.
fn with_bits<T: FromBytes + IntoBytes + Immutable>(
    door: &dyn Door,
    on: Handle,
    request: Request,
    argument: &mut T,
    offset: usize,
) -> Result<(i32, u64), Errno> {
    let mut bits = 0_u64;
    let mut data = [Attachment { offset, what: Attached::Buffer(bits.as_mut_bytes()) }];
    let command = Command::with_bytes(request, argument.as_mut_bytes());
    let result = door.ioctl(on, &mut command.attaching(&mut data))?;
    Ok((result, u64::from(bits.count_ones())))
}

/// Maps memory in one address space that another, or the same one, has mapped.
///
/// # Errors
/// The kernel's errno.
///
/// # Safety
/// If the door is real, all that is mapped in the source range was mapped by [`map`] or [`map_file`], which keep memory
/// for ever.
#[expect(unsafe_code, reason = "UNSAFETY: no request names the memory that is copied")]
pub unsafe fn copy(
    door: &dyn Door,
    iommufd: Handle,
    (from, source): (u32, u64),
    (to, target): (u32, u64),
    size: u64,
    access: Access,
) -> Result<i32, Errno> {
    let mut copy = iommufd::IoasCopy {
        size: iommufd::IoasCopy::SIZE,
        flags: iommufd::MAP_FIXED_IOVA | iommufd_flags(access),
        dst_ioas_id: to,
        src_ioas_id: from,
        length: size,
        dst_iova: target,
        src_iova: source,
    };
    let stand_in = usize::try_from(size).ok().and_then(NonZeroUsize::new);
    let Some(memory) = stand_in.and_then(|size| HostMemory::zeroed(size, door.host_page())) else {
        return ask(door, iommufd, iommufd::IOAS_COPY, &mut copy);
    };
    // Memory of the right length: the real one was kept for ever when it was mapped.
    let lease = lease_of(door, &memory);
    let offset = offset_of!(iommufd::IoasCopy, length);
    let mut attachments = [Attachment { offset, what: Attached::Copied(&lease) }];
    let command = Command::with_bytes(iommufd::IOAS_COPY, copy.as_mut_bytes());
    door.ioctl(iommufd, &mut command.attaching(&mut attachments))
}

/// Registers `size` bytes for sPAPR windows.
///
/// # Errors
/// The kernel's errno.
pub fn register(door: &dyn Door, container: Handle, memory: Option<&HostMemory>, size: u64) -> Result<i32, Errno> {
    block(door, container, spapr::REGISTER_MEMORY, memory, size)
}

/// Unregisters `size` bytes.
///
/// # Errors
/// The kernel's errno.
pub fn unregister(door: &dyn Door, container: Handle, memory: Option<&HostMemory>, size: u64) -> Result<i32, Errno> {
    block(door, container, spapr::UNREGISTER_MEMORY, memory, size)
}

/// Creates a window; returns the result and the window's first address.
///
/// # Errors
/// The kernel's errno.
pub fn create(
    door: &dyn Door,
    container: Handle,
    page_shift: u32,
    size: u64,
    levels: u32,
) -> Result<(i32, u64), Errno> {
    let argsz = spapr::TceCreate::SIZE;
    let mut create = spapr::TceCreate { argsz, page_shift, window_size: size, levels, ..Default::default() };
    Ok((ask(door, container, spapr::TCE_CREATE, &mut create)?, create.start_addr))
}

/// Removes the window that holds an address.
///
/// # Errors
/// Removes the window that contains an address.
pub fn remove(door: &dyn Door, container: Handle, at: u64) -> Result<i32, Errno> {
    let mut remove = spapr::TceRemove { argsz: spapr::TceRemove::SIZE, flags: 0, start_addr: at };
    ask(door, container, spapr::TCE_REMOVE, &mut remove)
}

/// Allows maps in an sPAPR v1 container.
///
/// # Errors
/// The kernel's errno.
pub fn enable(door: &dyn Door, container: Handle) -> Result<i32, Errno> {
    door.ioctl(container, &mut Command::bare(spapr::ENABLE))
}

/// Disallows maps in an sPAPR v1 container.
///
/// # Errors
/// The kernel's errno.
pub fn disable(door: &dyn Door, container: Handle) -> Result<i32, Errno> {
    door.ioctl(container, &mut Command::bare(spapr::DISABLE))
}

/// The reply of an sPAPR container to TCE_GET_INFO.
///
/// # Errors
/// The kernel's errno.
pub fn tce_info(door: &dyn Door, container: Handle) -> Result<spapr::TceInfo, Errno> {
    let mut info = spapr::TceInfo { argsz: spapr::TceInfo::SIZE, ..Default::default() };
    ask(door, container, spapr::TCE_GET_INFO, &mut info).map(|_| info)
}

/// Checks an extension of a container; a positive result means that the kernel has it.
///
/// # Errors
/// The kernel's errno.
pub fn check_extension(door: &dyn Door, container: Handle, extension: Extension) -> Result<i32, Errno> {
    door.ioctl(container, &mut Command::with_value(vfio::CHECK_EXTENSION, extension.0))
}

/// Chooses the IOMMU driver of a container.
///
/// # Errors
/// The kernel's errno.
pub fn set_iommu(door: &dyn Door, container: Handle, version: IommuType) -> Result<i32, Errno> {
    door.ioctl(container, &mut Command::with_value(vfio::SET_IOMMU, version.0))
}

/// Lets a group join a container of a host in software.
///
/// # Errors
/// The kernel's errno; `EPERM` for a real kernel, where it takes [`set_real_container`].
#[expect(unsafe_code, reason = "UNSAFETY: requests as they are, without a space")]
pub fn set_container(door: &dyn Door, group: Handle, container: Handle) -> Result<i32, Errno> {
    if door.is_real() {
        return Err(Errno::EPERM);
    }
    // SAFETY: no device reaches memory through the container.
    unsafe { set_real_container(door, group, container) }
}

/// Puts a group into a container.
///
/// # Errors
/// The kernel's errno.
///
/// # Safety
/// No space uses the container, now or later.
#[expect(unsafe_code, reason = "UNSAFETY: requests as they are, without a space")]
pub unsafe fn set_real_container(door: &dyn Door, group: Handle, container: Handle) -> Result<i32, Errno> {
    // SAFETY: the caller's promise.
    let point = unsafe { AttachPoint::beside_spaces(AttachPlace::Container(container)) };
    let mut set = vfio::SetContainer::default();
    let offset = offset_of!(vfio::SetContainer, container);
    let mut attachments = [Attachment { offset, what: Attached::Container(point) }];
    let command = Command::with_bytes(vfio::GROUP_SET_CONTAINER, set.as_mut_bytes());
    door.ioctl(group, &mut command.attaching(&mut attachments))
}

/// Lets a group leave its container.
///
/// # Errors
/// The kernel's errno.
pub fn unset_container(door: &dyn Door, group: Handle) -> Result<i32, Errno> {
    door.ioctl(group, &mut Command::bare(vfio::GROUP_UNSET_CONTAINER))
}

/// The flags of a group.
///
/// # Errors
/// The kernel's errno.
pub fn group_status(door: &dyn Door, group: Handle) -> Result<u32, Errno> {
    let mut status = vfio::GroupStatus { argsz: vfio::GroupStatus::SIZE, flags: 0 };
    ask(door, group, vfio::GROUP_GET_STATUS, &mut status).map(|_| status.flags)
}

/// Opens a device of a group.
///
/// # Errors
/// The kernel's errno.
pub fn open_device(door: &dyn Door, group: Handle, name: &str) -> Result<Handle, Errno> {
    let mut name = [name.as_bytes(), &[0]].concat();
    let mut command = Command::with_bytes(vfio::GROUP_GET_DEVICE_FD, &mut name);
    door.ioctl_opening(group, &mut command, HandleKind::Device)
}

/// Binds a device to an iommufd; returns its id there.
///
/// # Errors
/// The kernel's errno.
pub fn bind(door: &dyn Door, device: Handle, iommufd: Handle) -> Result<u32, Errno> {
    let mut bind = device::BindIommufd { argsz: device::BindIommufd::SIZE, ..Default::default() };
    let offset = offset_of!(device::BindIommufd, iommufd);
    let mut attachments = [Attachment { offset, what: Attached::Handle(iommufd) }];
    let command = Command::with_bytes(device::DEVICE_BIND_IOMMUFD, bind.as_mut_bytes());
    door.ioctl(device, &mut command.attaching(&mut attachments))?;
    Ok(bind.out_devid)
}

/// Attaches a bound device to an address space or page table; returns the page table.
///
/// # Errors
/// The kernel's errno.
pub fn attach(door: &dyn Door, device: Handle, to: u32) -> Result<u32, Errno> {
    let argsz = device::AttachIommufdPt::SIZE;
    let mut attach = device::AttachIommufdPt { argsz, pt_id: to, ..Default::default() };
    ask(door, device, device::DEVICE_ATTACH_IOMMUFD_PT, &mut attach).map(|_| attach.pt_id)
}

/// Detaches a device.
///
/// # Errors
/// The kernel's errno.
pub fn detach(door: &dyn Door, device: Handle) -> Result<i32, Errno> {
    let mut detach = device::DetachIommufdPt { argsz: device::DetachIommufdPt::SIZE, ..Default::default() };
    ask(door, device, device::DEVICE_DETACH_IOMMUFD_PT, &mut detach)
}

/// Creates an address space; returns its id.
///
/// # Errors
/// The kernel's errno.
pub fn alloc_ioas(door: &dyn Door, iommufd: Handle) -> Result<u32, Errno> {
    let mut alloc = iommufd::IoasAlloc { size: iommufd::IoasAlloc::SIZE, ..Default::default() };
    ask(door, iommufd, iommufd::IOAS_ALLOC, &mut alloc).map(|_| alloc.out_ioas_id)
}

/// Charges this process for everything that is mapped in an iommufd, with a request of this size.
///
/// # Errors
/// The kernel's errno; `ENOTTY` where the kernel lacks the request.
pub fn change_process(door: &dyn Door, iommufd: Handle, size: u32) -> Result<i32, Errno> {
    ask(door, iommufd, iommufd::IOAS_CHANGE_PROCESS, &mut iommufd::IoasChangeProcess { size, reserved: 0 })
}

/// The capabilities of the IOMMU in front of a bound device.
///
/// # Errors
/// The kernel's errno.
pub fn hw_info(door: &dyn Door, iommufd: Handle, device: u32, flags: u32) -> Result<u64, Errno> {
    let mut info = iommufd::HwInfo { size: iommufd::HwInfo::SIZE, flags, dev_id: device, ..Default::default() };
    ask(door, iommufd, iommufd::GET_HW_INFO, &mut info).map(|_| info.out_capabilities)
}

/// Allocates a page table for a device, which maps an address space; returns its id.
///
/// # Errors
/// The kernel's errno.
pub fn alloc_page_table(door: &dyn Door, iommufd: Handle, device: u32, ioas: u32, flags: u32) -> Result<u32, Errno> {
    let size = iommufd::HwptAlloc::SIZE;
    let mut alloc = iommufd::HwptAlloc { size, flags, dev_id: device, pt_id: ioas, ..Default::default() };
    ask(door, iommufd, iommufd::HWPT_ALLOC, &mut alloc).map(|_| alloc.out_hwpt_id)
}

/// Starts or stops logging writes through a page table.
///
/// # Errors
/// The kernel's errno.
pub fn set_dirty_tracking(door: &dyn Door, iommufd: Handle, page_table: u32, flags: u32) -> Result<i32, Errno> {
    let size = iommufd::HwptSetDirtyTracking::SIZE;
    let mut set = iommufd::HwptSetDirtyTracking { size, flags, hwpt_id: page_table, ..Default::default() };
    ask(door, iommufd, iommufd::HWPT_SET_DIRTY_TRACKING, &mut set)
}

/// Reads the log of a page table for a range, with a bit for each page of the given size.
///
/// # Errors
/// The kernel's errno.
pub fn get_dirty_bitmap(
    door: &dyn Door,
    iommufd: Handle,
    page_table: u32,
    flags: u32,
    (iova, length): (u64, u64),
    page_size: u64,
    bitmap: &mut [u8],
) -> Result<i32, Errno> {
    let size = iommufd::HwptGetDirtyBitmap::SIZE;
    let mut get =
        iommufd::HwptGetDirtyBitmap { size, hwpt_id: page_table, flags, iova, length, page_size, ..Default::default() };
    let offset = offset_of!(iommufd::HwptGetDirtyBitmap, data);
    let mut data = [Attachment { offset, what: Attached::Buffer(bitmap) }];
    let command = Command::with_bytes(iommufd::HWPT_GET_DIRTY_BITMAP, get.as_mut_bytes());
    door.ioctl(iommufd, &mut command.attaching(&mut data))
}

/// Destroys an object of an iommufd.
///
/// # Errors
/// The kernel's errno.
pub fn destroy(door: &dyn Door, iommufd: Handle, id: u32) -> Result<i32, Errno> {
    ask(door, iommufd, iommufd::DESTROY, &mut iommufd::Destroy { size: iommufd::Destroy::SIZE, id })
}

/// Makes a request with a struct.
///
/// # Errors
/// The kernel's errno.
pub fn ask<T: FromBytes + IntoBytes + Immutable>(
    door: &dyn Door,
    on: Handle,
    request: Request,
    argument: &mut T,
) -> Result<i32, Errno> {
    door.ioctl(on, &mut Command::with_bytes(request, argument.as_mut_bytes()))
}

/// The right to map memory. A host in software keeps the memory that it maps; for a real kernel the memory is kept for
/// ever, since no space keeps it.
#[expect(unsafe_code, reason = "UNSAFETY: requests as they are, without a space")]
fn lease_of<'m>(door: &dyn Door, memory: &'m HostMemory) -> Lease<'m> {
    if door.is_real() {
        std::mem::forget(memory.clone());
    }
    // SAFETY: a clone is never dropped.
    unsafe { Lease::kept_by_caller(memory) }
}

fn with_memory<T: FromBytes + IntoBytes + Immutable>(
    door: &dyn Door,
    on: Handle,
    request: Request,
    argument: &mut T,
    offset: usize,
    memory: Option<&HostMemory>,
) -> Result<i32, Errno> {
    let Some(memory) = memory else { return ask(door, on, request, argument) };
    let lease = lease_of(door, memory);
    let mut attachments = [Attachment { offset, what: Attached::Memory(&lease) }];
    let command = Command::with_bytes(request, argument.as_mut_bytes());
    door.ioctl(on, &mut command.attaching(&mut attachments))
}

fn block(
    door: &dyn Door,
    container: Handle,
    request: Request,
    memory: Option<&HostMemory>,
    size: u64,
) -> Result<i32, Errno> {
    let mut block = spapr::RegisterMemory { argsz: spapr::RegisterMemory::SIZE, size, ..Default::default() };
    with_memory(door, container, request, &mut block, offset_of!(spapr::RegisterMemory, vaddr), memory)
}

fn vfio_flags(access: Access) -> u32 {
    let read = if access.contains(Access::READ) { vfio::MAP_READ } else { 0 };
    read | if access.contains(Access::WRITE) { vfio::MAP_WRITE } else { 0 }
}

fn iommufd_flags(access: Access) -> u32 {
    let read = if access.contains(Access::READ) { iommufd::MAP_READABLE } else { 0 };
    read | if access.contains(Access::WRITE) { iommufd::MAP_WRITEABLE } else { 0 }
}
