//! KVM on POWER: the VFIO device, and TCE tables whose hypercalls KVM answers itself.
//!
//! kvm-ioctls does not support POWER, so the few calls are made here, on descriptors that the VMM passes.
#![expect(unsafe_code, reason = "UNSAFETY: KVM's calls on POWER, of which no crate has a safe form")]

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::{ptr, slice};

use dmaspace_core::door::{Door as _, Errno, Failure, Handle, Request};
use dmaspace_core::sync::{Mutex, Rank};
use dmaspace_core::{IovaRange, PageSize};
use dmaspace_spapr_guest::hypercalls::{H_GET_TCE, H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE};
use dmaspace_spapr_guest::kernel_table::next_of;
use dmaspace_spapr_guest::{InKernelTable, InKernelTables, Liobn, Tce};

use super::abi::{self, CreateDevice, CreateSpaprTce64, DeviceAttr, EnableCap, VfioSpaprTce};
use super::links::{GroupCalls, Links};
use crate::linux::LinuxDoor;

/// KVM's VFIO device of one virtual machine, and its TCE tables.
///
/// Pass it to [`PciHostBridge::with_kernel`](dmaspace_spapr_guest::PciHostBridge::with_kernel). The virtual machine and
/// the containers must be of this process, and the machine's memory slots must contain the memory that is registered:
/// KVM finds an entry's memory through both.
#[derive(Clone, Debug)]
pub struct KvmVfio {
    shared: Arc<Shared>,
}

/// Its lock is [`Rank::KernelLinks`] in the order of all locks ([`dmaspace_core::sync`]).
#[derive(Debug)]
struct Shared {
    door: Arc<LinuxDoor>,
    vm: OwnedFd,
    device: OwnedFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    links: Links<Handle>,
    /// The number of the next table.
    next: u64,
}

impl KvmVfio {
    /// Makes the VFIO device of the virtual machine behind `vm`, for handles of `door`.
    ///
    /// # Errors
    /// KVM's errno: `EBUSY` when the machine has a VFIO device already, which the VMM must pass to
    /// [`KvmVfio::with_device`].
    pub fn new(door: Arc<LinuxDoor>, vm: OwnedFd) -> Result<Self, Errno> {
        let mut request = CreateDevice { kind: abi::DEV_TYPE_VFIO, ..CreateDevice::default() };
        // SAFETY: KVM reads and writes the struct, which has no pointer in it.
        unsafe { ioctl(&vm, abi::CREATE_DEVICE, &raw mut request) }?;
        // SAFETY: KVM just made this descriptor for us (linux: virt/kvm/kvm_main.c, kvm_ioctl_create_device), and it
        // has no other owner.
        let device = unsafe { OwnedFd::from_raw_fd(request.descriptor) };
        Ok(Self::with_device(door, vm, device))
    }

    /// Uses the VFIO device that a VMM made itself.
    pub fn with_device(door: Arc<LinuxDoor>, vm: OwnedFd, device: OwnedFd) -> Self {
        Self { shared: Arc::new(Shared { door, vm, device, state: Mutex::new(Rank::KernelLinks, State::default()) }) }
    }

    /// The device, for other uses of the VMM.
    pub fn device(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.shared.device)
    }
}

impl Shared {
    /// Has KVM answer a hypercall. The two that carry many entries are off by default (linux:
    /// arch/powerpc/kvm/book3s_hv.c, default_hcall_list).
    fn enable(&self, hypercall: u64) -> Result<(), Errno> {
        let arguments = [hypercall, 1, 0, 0];
        let mut request = EnableCap { capability: abi::CAP_PPC_ENABLE_HCALL, flags: 0, arguments, padding: [0; 64] };
        // SAFETY: KVM reads the struct, which has no pointer in it.
        unsafe { ioctl(&self.vm, abi::ENABLE_CAP, &raw mut request) }.map(drop)
    }

    /// Sets an attribute of the VFIO device, whose value KVM reads during the call.
    fn set<T>(&self, attribute: u64, value: &T) -> Result<(), Errno> {
        let address = ptr::from_ref(value).expose_provenance() as u64;
        let mut request = DeviceAttr { flags: 0, group: abi::DEV_VFIO_FILE, attribute, address };
        // SAFETY: KVM reads the struct, and as much of the value behind the address as the attribute has: callers pass
        // a value of the attribute's type.
        unsafe { ioctl(&self.device, abi::SET_DEVICE_ATTR, &raw mut request) }.map(drop)
    }
}

/// The calls about groups, with the table that is being linked.
struct Calls<'a> {
    shared: &'a Shared,
    table: RawFd,
}

impl Calls<'_> {
    /// Sets an attribute whose value is the descriptor of `group`.
    fn set_to_group(&self, attribute: u64, group: Handle) -> Result<(), Errno> {
        self.shared.set(attribute, &self.shared.door.descriptor(group)?.as_raw_fd())
    }
}

impl GroupCalls<Handle> for Calls<'_> {
    fn add(&self, group: Handle) -> Result<(), Errno> {
        self.set_to_group(abi::DEV_VFIO_FILE_ADD, group)
    }

    fn set(&self, group: Handle) -> Result<(), Errno> {
        let group = self.shared.door.descriptor(group)?;
        let pair = VfioSpaprTce { group: group.as_raw_fd(), table: self.table };
        self.shared.set(abi::DEV_VFIO_GROUP_SET_SPAPR_TCE, &pair)
    }

    fn delete(&self, group: Handle) -> Result<(), Errno> {
        self.set_to_group(abi::DEV_VFIO_FILE_DEL, group)
    }
}

// SAFETY: its tables are KVM's.
unsafe impl InKernelTables for KvmVfio {
    fn create(&self, liobn: Liobn, window: IovaRange, page: PageSize) -> Result<Arc<dyn InKernelTable>, Failure> {
        for hypercall in [H_GET_TCE, H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE] {
            self.shared.enable(hypercall).map_err(|errno| failed(abi::ENABLE_CAP, errno))?;
        }
        let size = window.len().map_or(0, |len| len.get() >> page.shift());
        let offset = window.first().get() >> page.shift();
        let mut request =
            CreateSpaprTce64 { liobn: liobn.get().into(), page_shift: page.shift(), flags: 0, offset, size };
        // SAFETY: KVM reads the struct, which has no pointer in it.
        let answer = unsafe { ioctl(&self.shared.vm, abi::CREATE_SPAPR_TCE_64, &raw mut request) };
        let created = answer.map_err(|errno| failed(abi::CREATE_SPAPR_TCE_64, errno))?;
        // SAFETY: KVM just made this descriptor for us (linux: arch/powerpc/kvm/book3s_64_vio.c,
        // kvm_vm_ioctl_create_spapr_tce), and it has no other owner.
        let descriptor = unsafe { OwnedFd::from_raw_fd(created) };
        let entries = Entries::new(&descriptor, size).map_err(|errno| failed(MMAP, errno))?;
        let number = {
            let mut state = self.shared.state.lock();
            state.next += 1;
            state.next
        };
        Ok(Arc::new(KvmTable { open: Some((entries, descriptor)), number, shared: self.shared.clone() }))
    }
}

/// A TCE table of KVM's.
#[derive(Debug)]
struct KvmTable {
    /// `Some` until it is dropped: KVM keeps the table for as long as it is open or mapped.
    open: Option<(Entries, OwnedFd)>,
    number: u64,
    shared: Arc<Shared>,
}

// SAFETY: entries are read from KVM's table, which it shares with this process, and KVM's answer to unlinking is
// returned as it is.
unsafe impl InKernelTable for KvmTable {
    fn entry(&self, index: u64) -> Tce {
        self.next_entry(index, index).map_or(Tce::NONE, |(_, tce)| tce)
    }

    fn next_entry(&self, from: u64, last: u64) -> Option<(u64, Tce)> {
        self.open.as_ref().and_then(|(entries, _)| next_of(entries.all(), from, last))
    }

    fn link(&self, group: Handle) -> Result<(), Failure> {
        let table = self.open.as_ref().map_or(-1, |(_, descriptor)| descriptor.as_raw_fd());
        let calls = Calls { shared: &self.shared, table };
        let linked = self.shared.state.lock().links.link(&calls, group, self.number);
        linked.map_err(|errno| Failure::from_errno("KVM_DEV_VFIO_GROUP_SET_SPAPR_TCE", errno))
    }

    fn unlink(&self, group: Handle) -> Result<(), Failure> {
        let calls = Calls { shared: &self.shared, table: -1 };
        let unlinked = self.shared.state.lock().links.unlink(&calls, group);
        unlinked.map_err(|errno| Failure::from_errno("KVM_DEV_VFIO_FILE_DEL", errno))
    }
}

impl Drop for KvmTable {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        self.open = None;
        state.links.close(&Calls { shared: &self.shared, table: -1 }, self.number);
    }
}

/// The name of mmap in a failure.
const MMAP: Request = Request { number: 0, name: "mmap" };

/// The entries of a table, mapped for reading.
#[derive(Debug)]
struct Entries {
    /// Only ever read; atomic because a raw pointer could not be shared between threads.
    base: AtomicPtr<c_void>,
    bytes: NonZeroUsize,
    count: usize,
}

impl Entries {
    fn new(table: &OwnedFd, count: u64) -> Result<Self, Errno> {
        let count = usize::try_from(count).map_err(|_| Errno::EOVERFLOW)?;
        let product = count.checked_mul(size_of::<u64>());
        let bytes = product.and_then(NonZeroUsize::new).ok_or(Errno::EOVERFLOW)?;
        let shared = libc::MAP_SHARED;
        // SAFETY: with a null hint and without MAP_FIXED the kernel picks addresses nothing else uses.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes.get(), libc::PROT_READ, shared, table.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED { Err(last_error()) } else { Ok(Self { base: AtomicPtr::new(base), bytes, count }) }
    }

    fn all(&self) -> &[AtomicU64] {
        let first = self.base.load(Ordering::Relaxed).cast::<AtomicU64>();
        // SAFETY: so many entries lie inside the mapping, which lasts as long as `self`, aligned as its first page is;
        // KVM writes each of them whole, and this process has atomic references to them only.
        unsafe { slice::from_raw_parts(first, self.count) }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        let base = *self.base.get_mut();
        // SAFETY: the span is the mapping made in `new`, and no pointer into it outlives a call of `get`.
        let result = unsafe { libc::munmap(base, self.bytes.get()) };
        if result != 0 {
            log::error!("munmap of {:#x} bytes at {base:p}: {}", self.bytes, last_error());
        }
    }
}

/// Makes a call of KVM's.
///
/// # Safety
/// `argument`, and the memory that pointers in it point to, must be as the kernel reads and writes them for `request`.
unsafe fn ioctl<T>(on: &OwnedFd, request: Request, argument: *mut T) -> Result<i32, Errno> {
    // SAFETY: the caller promises it.
    let result = unsafe { libc::ioctl(on.as_raw_fd(), request.number as libc::Ioctl, argument) };
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

fn last_error() -> Errno {
    std::io::Error::last_os_error().into()
}

fn failed(request: Request, errno: Errno) -> Failure {
    Failure::from_errno(request.name, errno)
}
