//! Memory in two address spaces: in the guest's, where KVM's slots place it, and in the devices', which the host's
//! IOMMU translates.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use dmaspace::vm_memory::sections;
use dmaspace::{Domain, HostMemory};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::Result;

/// KVM's memory slots: pieces of this process's memory at guest addresses.
#[derive(Debug)]
pub(crate) struct Slots {
    vm: Arc<VmFd>,
    /// The memory in each slot, which must exist for as long as the guest can reach it.
    used: Mutex<BTreeMap<u32, HostMemory>>,
}

impl Slots {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, used: Mutex::default() }
    }

    /// Places memory at a guest address. Returns the number of its slot.
    pub(crate) fn add(&self, at: u64, memory: HostMemory) -> Result<u32> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (0..).find(|slot| !used.contains_key(slot)).ok_or("all memory slots are in use")?;
        self.set(slot, at, memory.address().get(), memory.len().get())?;
        used.insert(slot, memory);
        Ok(slot)
    }

    /// Removes the memory of a slot.
    pub(crate) fn remove(&self, slot: u32) -> Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(slot, 0, 0, 0)?;
        used.remove(&slot);
        Ok(())
    }

    #[expect(unsafe_code, reason = "KVM's call takes the address of this process's memory")]
    fn set(&self, slot: u32, guest_phys_addr: u64, userspace_addr: u64, memory_size: u64) -> Result<()> {
        let region = kvm_userspace_memory_region { slot, flags: 0, guest_phys_addr, memory_size, userspace_addr };
        // SAFETY: the memory is RAM that only the guest and vm-memory use, or a BAR; and `used` keeps it mapped for as
        // long as it is in the slot.
        unsafe { self.vm.set_user_memory_region(region) }?;
        Ok(())
    }
}

/// The guest's RAM.
#[derive(Debug)]
pub(crate) struct Ram {
    memory: GuestMemoryMmap,
    slots: Arc<Slots>,
    /// The devices' address space; `None` if they must not reach RAM.
    domain: Option<Arc<Domain>>,
}

impl Ram {
    /// RAM of `size` bytes at 0.
    pub(crate) fn new(size: u64, slots: Arc<Slots>, domain: Option<Arc<Domain>>) -> Result<Self> {
        let mut ram = Self { memory: GuestMemoryMmap::new(), slots, domain };
        ram.plug(0, size)?;
        Ok(ram)
    }

    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    // docs: plug
    /// Adds RAM of `size` bytes at `at`, also while the guest runs and its device works.
    pub(crate) fn plug(&mut self, at: u64, size: u64) -> Result<()> {
        let region = GuestRegionMmap::from_range(GuestAddress(at), size.try_into()?, None)?;
        let memory = HostMemory::of_region(&region).ok_or("the RAM is empty")?;
        let grown = self.memory.insert_region(Arc::new(region))?;
        // The devices reach the RAM first: a guest that sees it may use it for DMA at once. If the host cannot map all
        // of it, nothing has changed, and the guest never sees it.
        if let Some(domain) = &self.domain {
            domain.update_to(&sections(&grown)?, &[])?;
        }
        self.slots.add(at, memory)?;
        self.memory = grown;
        Ok(())
    }
    // docs: end
}
