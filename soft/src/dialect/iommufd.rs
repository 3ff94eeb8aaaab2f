//! An open `/dev/iommu`: address spaces, their page tables, and the devices bound to it (linux:
//! drivers/iommu/iommufd/).
//!
//! An address space pins nothing until a device is attached; memory that cannot be pinned shows then. An unmap removes
//! whole mappings one by one and stops at the first that it would cut, without restoring the earlier ones.
//!
//! A file is mapped as the memory that the caller has mapped from it. Linux 6.12 has no such request, and none to move
//! to another process.
//!
//! Limits: only page tables that the kernel manages.

mod container;
mod devices;
mod ioas;
mod option;
mod page_table;
mod pages;

use std::collections::BTreeMap;
use std::mem::offset_of;

use dmaspace_abi::IovaSpan;
use dmaspace_abi::iommufd::{
    self, Destroy, IoasAlloc, IoasChangeProcess, IoasCopy, IoasIovaRanges, IoasMap, IoasMapFile, IoasUnmap,
};
use dmaspace_core::door::Errno;
use dmaspace_core::{Access, Iova, IovaRange};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::dialect::call::Call;
use crate::dialect::{System, require};
use crate::engine::Table;
use ioas::{Ioas, Place};
use pages::PagesStore;

/// The index of a device in the host's list.
pub(crate) type DeviceIndex = usize;

/// An open `/dev/iommu`.
#[derive(Debug, Default)]
pub(crate) struct Context {
    objects: BTreeMap<u32, Object>,
    pages: PagesStore,
    /// The address space that stands in for a container.
    container: Option<u32>,
    /// The page table that each group is attached to, and the attached devices.
    groups: BTreeMap<u32, Attachment>,
}

/// The object of an id.
#[derive(Debug)]
enum Object {
    Ioas(Ioas),
    /// A page table, by the id of the address space that it maps and that owns it.
    PageTable(u32),
    /// A bound device, by its group.
    Device(u32),
}

/// The attached devices of a group, all on one page table.
#[derive(Debug, Default)]
struct Attachment {
    page_table: Option<u32>,
    devices: Vec<DeviceIndex>,
}

impl Context {
    /// The number of address spaces and page tables.
    pub(crate) fn object_count(&self) -> usize {
        self.objects.values().filter(|object| !matches!(object, Object::Device(_))).count()
    }

    /// The translations of all address spaces.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Table> {
        self.objects.values().filter_map(|object| match object {
            Object::Ioas(ioas) => Some(&ioas.table),
            Object::PageTable(_) | Object::Device(_) => None,
        })
    }

    /// The translation of a device of `group`, if the group is attached.
    pub(crate) fn table_of(&self, group: u32) -> Option<&Table> {
        let page_table = self.groups.get(&group)?.page_table?;
        match self.objects.get(&page_table) {
            Some(Object::PageTable(ioas)) => self.ioas(*ioas).ok().map(|ioas| &ioas.table),
            _ => None,
        }
    }

    /// iommufd_fops_release: removes every object.
    pub(crate) fn release(&mut self, system: &mut System) {
        let ids: Vec<_> = self.objects.keys().copied().collect();
        for id in ids {
            if let Some(Object::Ioas(mut ioas)) = self.objects.remove(&id) {
                ioas.unmap_all(system, &mut self.pages);
            }
        }
    }

    /// iommufd_fops_ioctl.
    pub(crate) fn ioctl(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<i32, Errno> {
        match call.number() {
            number if number == iommufd::DESTROY.number => self.destroy(system, call),
            number if number == iommufd::IOAS_ALLOC.number => self.alloc(call),
            number if number == iommufd::IOAS_IOVA_RANGES.number => self.iova_ranges(call),
            number if number == iommufd::IOAS_MAP.number => self.map(system, call),
            number if number == iommufd::IOAS_MAP_FILE.number && system.facts.is_modern() => {
                self.map_file(system, call)
            }
            number if number == iommufd::IOAS_CHANGE_PROCESS.number && system.facts.is_modern() => {
                self.change_process(system, call)
            }
            number if number == iommufd::IOAS_COPY.number => self.copy(system, call),
            number if number == iommufd::IOAS_UNMAP.number => self.unmap(system, call),
            number if number == iommufd::IOAS_ALLOW_IOVAS.number => self.allow_iovas(call),
            number if number == iommufd::OPTION.number => self.option(system, call),
            number if number == iommufd::GET_HW_INFO.number => self.hw_info(system, call),
            number if number == iommufd::HWPT_ALLOC.number => self.hwpt_alloc(system, call),
            number if number == iommufd::HWPT_SET_DIRTY_TRACKING.number => self.set_dirty_tracking(system, call),
            number if number == iommufd::HWPT_GET_DIRTY_BITMAP.number => self.get_dirty_bitmap(system, call),
            _ => return self.container_ioctl(system, call),
        }
        .map(|()| 0)
    }

    /// iommufd_destroy: an object in use is refused.
    fn destroy(&mut self, system: &mut System, call: &Call<'_, '_>) -> Result<(), Errno> {
        let destroy: Destroy = read(call)?;
        let in_use = self.is_in_use(destroy.id);
        match self.objects.get_mut(&destroy.id).ok_or(Errno::ENOENT)? {
            Object::Ioas(ioas) if ioas.page_tables.is_empty() => {
                ioas.unmap_all(system, &mut self.pages);
                self.objects.remove(&destroy.id);
            }
            Object::PageTable(_) if !in_use => self.remove_page_table(system, destroy.id),
            Object::Ioas(_) | Object::PageTable(_) | Object::Device(_) => return Err(Errno::EBUSY),
        }
        self.container = self.container.filter(|id| *id != destroy.id);
        Ok(())
    }

    /// iommufd_ioas_alloc_ioctl.
    fn alloc(&mut self, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        let mut alloc: IoasAlloc = read(call)?;
        require(alloc.flags == 0, Errno::EOPNOTSUPP)?;
        alloc.out_ioas_id = self.free_id();
        self.objects.insert(alloc.out_ioas_id, Object::Ioas(Ioas::default()));
        call.write(&alloc);
        Ok(())
    }

    /// iommufd_ioas_iova_ranges: writes as many ranges as there is room for, and their number. More ranges than room is
    /// an error, which writes both all the same.
    fn iova_ranges(&self, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        let mut ranges: IoasIovaRanges = read(call)?;
        require(ranges.reserved == 0, Errno::EOPNOTSUPP)?;
        let ioas = self.ioas(ranges.ioas_id)?;
        let usable = ioas.usable();
        let room = ranges.num_iovas;
        for (n, range) in usable.iter().take(room as usize).enumerate() {
            let span = IovaSpan { start: range.first().get(), last: range.last().get() };
            let array = call.buffer(offset_of!(IoasIovaRanges, allowed_iovas)).ok_or(Errno::EFAULT)?;
            let at = n * size_of::<IovaSpan>();
            let element = array.get_mut(at..at + size_of::<IovaSpan>()).ok_or(Errno::EFAULT)?;
            element.copy_from_slice(span.as_bytes());
        }
        ranges.num_iovas = u32::try_from(usable.len()).unwrap_or(u32::MAX);
        ranges.out_iova_alignment = ioas.alignment.bytes();
        call.write(&ranges);
        require(ranges.num_iovas <= room, Errno::EMSGSIZE)
    }

    /// iommufd_ioas_map.
    fn map(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        let mut map: IoasMap = read(call)?;
        require(map.flags & !KNOWN_FLAGS == 0 && map.reserved == 0, Errno::EOPNOTSUPP)?;
        require(map.iova != u64::MAX && map.length != u64::MAX, Errno::EOVERFLOW)?;
        let access = access_of(map.flags)?;
        let ioas = ioas_of(&mut self.objects, map.ioas_id)?;
        let memory = call.memory(offset_of!(IoasMap, user_va), map.user_va);
        let piece = self.pages.add(call.by, system.page(), &memory, map.length, access.contains(Access::WRITE))?;
        let mapped = ioas.map(system, &mut self.pages, vec![piece.clone()], place(map.flags, map.iova), access);
        self.pages.put(system, &piece);
        map.iova = mapped?.get();
        call.write(&map);
        Ok(())
    }

    /// iommufd_ioas_map_file.
    fn map_file(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        let mut map: IoasMapFile = read(call)?;
        require(map.flags & !KNOWN_FLAGS == 0, Errno::EOPNOTSUPP)?;
        require(map.iova != u64::MAX && map.length != u64::MAX, Errno::EOVERFLOW)?;
        let access = access_of(map.flags)?;
        let ioas = ioas_of(&mut self.objects, map.ioas_id)?;
        require(map.length > 0, Errno::EINVAL)?;
        require(map.start.checked_add(map.length - 1).is_some(), Errno::EOVERFLOW)?;
        let memory = call.file_of(offset_of!(IoasMapFile, fd)).ok_or(Errno::EBADF)?;
        let writable = access.contains(Access::WRITE);
        let piece = self.pages.add_file(call.by, system.page(), &memory, map.start, map.length, writable)?;
        let mapped = ioas.map(system, &mut self.pages, vec![piece.clone()], place(map.flags, map.iova), access);
        self.pages.put(system, &piece);
        map.iova = mapped?.get();
        call.write(&map);
        Ok(())
    }

    /// iommufd_ioas_copy: maps the memory of another range, pinned once for both.
    fn copy(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        let mut copy: IoasCopy = read(call)?;
        require(copy.flags & !KNOWN_FLAGS == 0, Errno::EOPNOTSUPP)?;
        require([copy.length, copy.src_iova, copy.dst_iova].iter().all(|field| *field != u64::MAX), Errno::EOVERFLOW)?;
        let access = access_of(copy.flags)?;
        let source = ioas_of(&mut self.objects, copy.src_ioas_id)?;
        let mut pieces = source.pieces(Iova::new(copy.src_iova), copy.length)?;
        // The caller's memory, not that of the source: the source may be rounded to whole pages, and its owner vouches
        // for a part.
        if let Some(mapped) = call.copied(offset_of!(IoasCopy, length)) {
            for piece in &mut pieces {
                let offset = piece.memory.address().get().checked_sub(mapped.address().get());
                let part = offset.and_then(|offset| mapped.slice(offset, piece.memory.len().get()));
                piece.memory = part.unwrap_or_else(|| piece.memory.clone());
            }
        }
        let target = ioas_of(&mut self.objects, copy.dst_ioas_id)?;
        let at = target.map(system, &mut self.pages, pieces, place(copy.flags, copy.dst_iova), access)?;
        copy.dst_iova = at.get();
        call.write(&copy);
        Ok(())
    }

    /// iommufd_ioas_unmap.
    fn unmap(&mut self, system: &mut System, call: &mut Call<'_, '_>) -> Result<(), Errno> {
        let mut unmap: IoasUnmap = read(call)?;
        let ioas = ioas_of(&mut self.objects, unmap.ioas_id)?;
        let everything = unmap.iova == 0 && unmap.length == u64::MAX;
        let range = if everything { IovaRange::all() } else { unmap_range(&unmap)? };
        let bytes = ioas.unmap(system, &mut self.pages, range)?;
        require(bytes > 0 || everything, Errno::ENOENT)?;
        unmap.length = bytes;
        call.write(&unmap);
        Ok(())
    }

    /// iommufd_ioas_change_process: moves all address spaces, or none.
    fn change_process(&mut self, system: &mut System, call: &Call<'_, '_>) -> Result<(), Errno> {
        let change: IoasChangeProcess = read(call)?;
        require(change.reserved == 0, Errno::EOPNOTSUPP)?;
        self.pages.change_process(system, call.by)
    }

    fn ioas(&self, id: u32) -> Result<&Ioas, Errno> {
        match self.objects.get(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            Some(Object::PageTable(_) | Object::Device(_)) | None => Err(Errno::ENOENT),
        }
    }

    fn ioas_mut(&mut self, id: u32) -> Result<&mut Ioas, Errno> {
        ioas_of(&mut self.objects, id)
    }

    /// The lowest free id: ids are used again.
    fn free_id(&self) -> u32 {
        (1..)
            .zip(self.objects.keys())
            .find(|(free, taken)| free != *taken)
            .map_or_else(|| u32::try_from(self.objects.len()).unwrap_or(u32::MAX).saturating_add(1), |(free, _)| free)
    }
}

fn ioas_of(objects: &mut BTreeMap<u32, Object>, id: u32) -> Result<&mut Ioas, Errno> {
    match objects.get_mut(&id) {
        Some(Object::Ioas(ioas)) => Ok(ioas),
        Some(Object::PageTable(_) | Object::Device(_)) | None => Err(Errno::ENOENT),
    }
}

/// The head of iommufd_fops_ioctl: a struct may be larger than the kernel's, if its tail is zero.
fn read<T: FromBytes + IntoBytes + Immutable>(call: &Call<'_, '_>) -> Result<T, Errno> {
    let bytes = call.bytes()?;
    let size = u32::read_from_prefix(bytes).map_err(|_| Errno::EINVAL)?.0 as usize;
    require(size >= size_of::<T>(), Errno::EINVAL)?;
    let excess = bytes.get(size_of::<T>()..size).ok_or(Errno::EINVAL)?;
    require(excess.iter().all(|byte| *byte == 0), Errno::E2BIG)?;
    call.read()
}

/// The flags of a map that this kernel knows.
const KNOWN_FLAGS: u32 = iommufd::MAP_FIXED_IOVA | iommufd::MAP_WRITEABLE | iommufd::MAP_READABLE;

/// The access of a map's flags, which must not be empty.
fn access_of(flags: u32) -> Result<Access, Errno> {
    let mut access = Access::empty();
    access.set(Access::READ, flags & iommufd::MAP_READABLE != 0);
    access.set(Access::WRITE, flags & iommufd::MAP_WRITEABLE != 0);
    require(!access.is_empty(), Errno::EINVAL).map(|()| access)
}

fn place(flags: u32, iova: u64) -> Place {
    if flags & iommufd::MAP_FIXED_IOVA != 0 { Place::At(Iova::new(iova)) } else { Place::Anywhere }
}

fn unmap_range(unmap: &IoasUnmap) -> Result<IovaRange, Errno> {
    require(unmap.iova != u64::MAX && unmap.length != u64::MAX, Errno::EOVERFLOW)?;
    require(unmap.length > 0, Errno::EINVAL)?;
    IovaRange::with_len(Iova::new(unmap.iova), unmap.length).map_err(|_| Errno::EOVERFLOW)
}
