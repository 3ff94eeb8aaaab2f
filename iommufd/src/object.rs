//! `/dev/iommu` and the objects in it, as values that are destroyed when they are dropped.
//!
//! Objects lean on each other (an address space is in use while a device is attached, a page table leans on its address space) and
//! the kernel destroys none that is in use. So whoever holds several declares them in the order in which they must go: fields are
//! dropped from top to bottom. The iommufd itself is closed when the last object in it is gone.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmaspace_core::asking::insist;
use dmaspace_core::door::{Attached, Attachment, Command, Door, Errno, Failure, Handle, Kernel};
use dmaspace_core::locked::Payer;
use dmaspace_core::{Access, HostMemory, Iova};
use zerocopy::IntoBytes;

use crate::abi::{self, Destroy, HwptAlloc, IoasAlloc, IoasMap, IoasUnmap};
use crate::map_flags;

/// An open `/dev/iommu`, which several address spaces may share: closed when the last of them is dropped.
///
/// Address spaces of one iommufd can share what they pin, and a device bound to it can move from one to another. One user's address
/// spaces share the limit on locked memory whether or not they share this.
#[derive(Debug)]
pub struct Iommufd {
    door: Arc<dyn Door>,
    handle: Handle,
    /// Whether this process alone is charged for what is pinned.
    charges_process: AtomicBool,
}

impl Iommufd {
    /// Takes over `handle`.
    pub fn new(door: Arc<dyn Door>, handle: Handle) -> Arc<Self> {
        Arc::new(Self { door, handle, charges_process: AtomicBool::new(false) })
    }

    /// The handle, for binding devices.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// What it was opened through.
    pub fn door(&self) -> &Arc<dyn Door> {
        &self.door
    }

    /// Who is charged, as far as it was asked for here.
    pub(crate) fn charged(&self) -> Payer {
        if self.charges_process.load(Ordering::Relaxed) { Payer::Process } else { Payer::User }
    }

    pub(crate) fn remember_payer(&self, payer: Payer) {
        self.charges_process.store(payer == Payer::Process, Ordering::Relaxed);
    }

    pub(crate) fn call(&self, command: Command<'_>) -> Result<(), Failure> {
        self.door.call(self.handle, command)
    }
}

impl Drop for Iommufd {
    fn drop(&mut self) {
        // Closed whatever the kernel says.
        let _ = self.door.close(self.handle);
    }
}

/// An object of an iommufd, destroyed when dropped.
#[derive(Debug)]
pub(crate) struct Object {
    id: u32,
    iommufd: Arc<Iommufd>,
}

impl Object {
    /// Makes an address space.
    pub(crate) fn new_ioas(iommufd: Arc<Iommufd>) -> Result<Self, Failure> {
        let mut alloc = IoasAlloc { size: IoasAlloc::SIZE, ..IoasAlloc::default() };
        iommufd.call(Command::with_bytes(abi::IOAS_ALLOC, alloc.as_mut_bytes()))?;
        match alloc.out_ioas_id {
            // Ids begin with 1 (linux: drivers/iommu/iommufd/main.c, iommufd_fops_open).
            0 => Err(Failure::malformed(abi::IOAS_ALLOC.name, "nothing has the id 0")),
            id => Ok(Self { id, iommufd }),
        }
    }

    /// Makes a page table that shows an address space, for a device and others like it, and logs what they write.
    ///
    /// `EOPNOTSUPP` means that the device's IOMMU cannot, `EINVAL` that its driver does not want to (linux:
    /// drivers/iommu/iommufd/hw_pagetable.c, iommufd_hwpt_paging_alloc).
    pub(crate) fn new_page_table(ioas: &Self, device: u32) -> Result<Self, Failure> {
        let mut alloc = HwptAlloc {
            size: HwptAlloc::SIZE,
            flags: abi::HWPT_ALLOC_DIRTY_TRACKING,
            dev_id: device,
            pt_id: ioas.id,
            ..HwptAlloc::default()
        };
        ioas.iommufd.call(Command::with_bytes(abi::HWPT_ALLOC, alloc.as_mut_bytes()))?;
        Ok(Self { id: alloc.out_hwpt_id, iommufd: ioas.iommufd.clone() })
    }

    /// Maps memory in it, if it is an address space.
    pub(crate) fn map(&self, at: Iova, memory: &HostMemory, access: Access) -> Result<(), Failure> {
        let mut map = IoasMap {
            size: IoasMap::SIZE,
            flags: map_flags(access),
            ioas_id: self.id,
            length: memory.len().get(),
            iova: at.get(),
            ..IoasMap::default()
        };
        let mut address = [Attachment { offset: offset_of!(IoasMap, user_va), what: Attached::Memory(memory) }];
        self.iommufd.call(Command::with_bytes(abi::IOAS_MAP, map.as_mut_bytes()).attaching(&mut address))
    }

    /// Unmaps whole mappings in it, and returns how many bytes that were.
    pub(crate) fn unmap(&self, iova: u64, length: u64) -> Result<u64, Failure> {
        let mut unmap = IoasUnmap { size: IoasUnmap::SIZE, ioas_id: self.id, iova, length };
        self.iommufd.call(Command::with_bytes(abi::IOAS_UNMAP, unmap.as_mut_bytes()))?;
        Ok(unmap.length)
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn iommufd(&self) -> &Arc<Iommufd> {
        &self.iommufd
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let mut destroy = Destroy { size: Destroy::SIZE, id: self.id };
        // Refused while a device is attached to it; closing the iommufd ends it then. Until that, others may have it open.
        let destroyed =
            insist(Errno::ENOENT, || self.iommufd.call(Command::with_bytes(abi::DESTROY, destroy.as_mut_bytes())));
        if let Err(failure) = destroyed {
            log::warn!("iommufd: object {} stays until the iommufd is closed: {failure}", self.id);
        }
    }
}
