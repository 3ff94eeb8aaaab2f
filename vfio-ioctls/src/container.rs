//! The address space of a VMM's devices, behind the original's container.

use std::any::Any;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use dmaspace::contract::Attachable;
use dmaspace::device::Device;
use dmaspace::door::{Descriptor, Door, Errno, HandleKind, OwnedHandle};
use dmaspace::group::VfioGroup as OpenGroup;
use dmaspace::listener::{CommitError, Update};
use dmaspace::{
    Access, BackendKind, Facts, FrontEnd, Host, HostMemory, Iova, IovaRange, LinuxDoor, Listener, OpenError, OpenSpace,
    Section,
};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::error::sys;
use crate::{Result, VfioDeviceFd, VfioError, VfioOps};

/// The address space of a VMM's devices: a VFIO container, with the sections of the guest's memory.
///
/// Memory that is mapped before the first device is put in force with it. On POWER the container is of the sPAPR
/// driver; its windows are created for the memory as it is mapped.
pub struct VfioContainer {
    state: Mutex<State>,
    door: Arc<dyn Door>,
    descriptor: Option<Descriptor>,
}

struct State {
    // Dropped first: it uses the space.
    listener: Listener,
    space: OpenSpace,
}

/// A group of devices, which is open as long as one of them. As in the original, no function returns one.
pub struct VfioGroup(Descriptor);

impl VfioContainer {
    /// Opens a container. `device_fd` is the hypervisor's VFIO device, which is told of every group.
    ///
    /// # Errors
    /// [`VfioError::OpenContainer`], [`VfioError::VfioApiVersion`]; [`VfioError::VfioExtension`] on a host without an
    /// IOMMU driver that this crate knows.
    pub fn new(device_fd: Option<Arc<VfioDeviceFd>>) -> Result<Self> {
        let door = Arc::new(LinuxDoor::new());
        let facts =
            Facts::of_this_host(&*door).map_err(|error| VfioError::OpenContainer(std::io::Error::other(error)))?;
        let mut host = Host::new(door.clone(), facts);
        if let Some(device_fd) = device_fd {
            host = told(host, &door, &device_fd)?;
        }
        Self::on(&host)
    }

    /// Opens a container on any host.
    pub(crate) fn on(host: &Host) -> Result<Self> {
        let backend = if cfg!(target_arch = "powerpc64") { BackendKind::Spapr } else { BackendKind::Type1 };
        Self::with_backend(host, backend)
    }

    pub(crate) fn with_backend(host: &Host, backend: BackendKind) -> Result<Self> {
        let space = host.open_space(backend).map_err(opening_error)?;
        let mut listener = Listener::new(FrontEnd::pc());
        listener.attach(space.space().clone()).map_err(|_| VfioError::VfioExtension)?;
        let descriptor = space.descriptor().ok();
        Ok(Self { state: Mutex::new(State { listener, space }), door: host.door().clone(), descriptor })
    }

    /// Maps `size` bytes at `user_addr` for reading and writing at the bus address `iova`.
    ///
    /// # Errors
    /// [`VfioError::IommuDmaMap`] with the kernel's errno, or the one that the kernel has for the reason.
    ///
    /// # Safety
    /// Until [`VfioContainer::vfio_dma_unmap`] has removed the mapping, devices read and write the memory at any time:
    /// it stays mapped in this process, and no Rust reference to it exists.
    #[expect(unsafe_code, reason = "UNSAFETY: the caller promises that the memory outlives its mapping")]
    pub unsafe fn vfio_dma_map(&self, iova: u64, size: usize, user_addr: *mut u8) -> Result<()> {
        let (base, len) = (NonNull::new(user_addr), NonZeroUsize::new(size));
        let (Some(base), Some(len)) = (base, len) else { return Err(VfioError::IommuDmaMap(sys(Errno::EINVAL))) };
        // SAFETY: the caller's promise.
        let memory = unsafe { HostMemory::vouch_for(base, len) };
        self.map(iova, memory.ok_or(VfioError::IommuDmaMap(sys(Errno::EOVERFLOW)))?)
    }

    pub(crate) fn map(&self, iova: u64, memory: HostMemory) -> Result<()> {
        let name = format!("memory at {iova:#x}");
        let section = Section::ram(&name, Iova::new(iova), memory, Access::READ_WRITE);
        let update = Update::new().adding(section.map_err(|_| VfioError::IommuDmaMap(sys(Errno::EOVERFLOW)))?);
        let committed = self.state().listener.commit(update);
        committed.map(|_| ()).map_err(|error| VfioError::IommuDmaMap(sys(errno_of(&error))))
    }

    /// Unmaps `size` bytes at the bus address `iova`: all mappings that lie in the range.
    ///
    /// # Errors
    /// [`VfioError::IommuDmaUnmap`] with `EINVAL` for a mapping that the range cuts, or with the kernel's errno;
    /// [`VfioError::InvalidDmaUnmapSize`] if not all of the range was mapped: its mappings are unmapped all the same,
    /// as the original does.
    pub fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<()> {
        let Ok(range) = IovaRange::with_len(Iova::new(iova), size as u64) else {
            return Err(VfioError::IommuDmaUnmap(sys(Errno::EINVAL)));
        };
        let mut state = self.state();
        let within: u128 = state.listener.sections_in(range).map(|section| section.range().bytes()).sum();
        let removal = Update::new().removing_range(&state.listener, range);
        let committed = state.listener.commit(removal.map_err(|_| VfioError::IommuDmaUnmap(sys(Errno::EINVAL)))?);
        committed.map_err(|error| VfioError::IommuDmaUnmap(sys(errno_of(&error))))?;
        if within == range.bytes() { Ok(()) } else { Err(VfioError::InvalidDmaUnmapSize) }
    }

    /// Maps every region of the guest's memory at its guest address.
    ///
    /// # Errors
    /// As [`VfioContainer::vfio_dma_map`]; [`VfioError::GetHostAddress`]. The regions before the one that failed stay
    /// mapped.
    ///
    /// # Safety
    /// As [`VfioContainer::vfio_dma_map`], for every region.
    #[expect(unsafe_code, reason = "UNSAFETY: the caller promises that the memory outlives its mappings")]
    pub unsafe fn vfio_map_guest_memory<M: GuestMemoryBackend>(&self, mem: &M) -> Result<()> {
        for region in mem.iter() {
            let base = region.get_host_address(MemoryRegionAddress(0)).map_err(|_| VfioError::GetHostAddress)?;
            let size = usize::try_from(region.len()).map_err(|_| VfioError::IommuDmaMap(sys(Errno::EOVERFLOW)))?;
            // SAFETY: the caller's promise.
            unsafe { self.vfio_dma_map(region.start_addr().raw_value(), size, base)? };
        }
        Ok(())
    }

    /// Unmaps every region of the guest's memory.
    ///
    /// # Errors
    /// As [`VfioContainer::vfio_dma_unmap`]. The regions before the one that failed stay unmapped.
    pub fn vfio_unmap_guest_memory<M: GuestMemoryBackend>(&self, mem: &M) -> Result<()> {
        for region in mem.iter() {
            let size = usize::try_from(region.len()).map_err(|_| VfioError::IommuDmaUnmap(sys(Errno::EOVERFLOW)))?;
            self.vfio_dma_unmap(region.start_addr().raw_value(), size)?;
        }
        Ok(())
    }

    /// Opens the device at a path of sysfs, and puts all memory in force for it.
    pub(crate) fn open(&self, sysfspath: &Path) -> Result<Device> {
        let name = sysfspath.file_name().and_then(|name| name.to_str()).ok_or(VfioError::InvalidPath)?;
        self.open_in_group(group_of(sysfspath)?, name)
    }

    /// Opens a device of a group.
    pub(crate) fn open_in_group(&self, number: u32, name: &str) -> Result<Device> {
        let mut state = self.state();
        let group = state.group(&self.door, number)?;
        let device = state.space.open_device(&group, name).map_err(opening_error)?;
        drop(group);
        match state.listener.sync() {
            Ok(_) => Ok(device),
            Err(error) => {
                let errno = errno_of(&error);
                state.remove(device);
                Err(VfioError::IommuDmaMap(sys(errno)))
            }
        }
    }

    /// Closes a device, and its group with the last device.
    pub(crate) fn close(&self, device: Device) {
        self.state().remove(device);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The group with this number, attached if it is not yet.
    fn group(&mut self, door: &Arc<dyn Door>, number: u32) -> Result<Arc<OpenGroup>> {
        let name = format!("group {number}");
        if let Some(group) = self.space.groups().iter().find(|group| group.name() == name) {
            return Ok(group.clone());
        }
        let path = format!("/dev/vfio/{number}");
        let opened = OwnedHandle::open(door.clone(), Path::new(&path), HandleKind::Group);
        let node = opened.map_err(|errno| VfioError::OpenGroup(io_error(errno), number.to_string()))?;
        self.space.add_group(node, &name).map_err(opening_error)
    }

    fn remove(&mut self, device: Device) {
        if let Err(error) = self.space.remove(device) {
            log::error!("{error}");
        }
        if self.space.groups().is_empty() {
            return;
        }
        if let Err(error) = self.listener.sync() {
            log::error!("after a device was removed: {error}");
        }
    }
}

impl AsRawFd for VfioContainer {
    /// The descriptor of the container; -1 on a host in software.
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

impl VfioOps for VfioContainer {
    #[expect(unsafe_code, reason = "UNSAFETY: the caller promises that the memory outlives its mapping")]
    unsafe fn vfio_dma_map(&self, iova: u64, size: usize, user_addr: *mut u8) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { Self::vfio_dma_map(self, iova, size, user_addr) }
    }

    fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<()> {
        Self::vfio_dma_unmap(self, iova, size)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl AsRawFd for VfioGroup {
    /// The descriptor of the group.
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Has the hypervisor's VFIO device told of every group.
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
fn told(host: Host, door: &Arc<LinuxDoor>, device_fd: &VfioDeviceFd) -> Result<Host> {
    let device = device_fd.try_clone()?.to_kvm()?;
    Ok(host.with_registry(Arc::new(dmaspace::kvm::KvmVfio::with_device(door.clone(), device))))
}

#[cfg(not(all(feature = "kvm", target_arch = "x86_64")))]
fn told(host: Host, _: &Arc<LinuxDoor>, _: &VfioDeviceFd) -> Result<Host> {
    Ok(host)
}

/// The number of the group of a device.
fn group_of(sysfspath: &Path) -> Result<u32> {
    let group = sysfspath.join("iommu_group").read_link().map_err(|_| VfioError::InvalidPath)?;
    let number = group.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    number.ok_or(VfioError::InvalidPath)
}

fn errno_of(error: &CommitError) -> Errno {
    error.as_errno()
}

fn io_error(errno: Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno.0)
}

/// The original's error for an error of opening.
fn opening_error(error: OpenError) -> VfioError {
    let errno = error.as_errno();
    log::warn!("{error}");
    match &error {
        OpenError::Node { .. } => VfioError::OpenContainer(io_error(errno)),
        OpenError::Version(_) => VfioError::VfioApiVersion,
        OpenError::NotViable { .. } => VfioError::GroupViable,
        OpenError::Registry { .. } => VfioError::SetDeviceAttr(sys(errno)),
        OpenError::Refused { failure, .. } if failure.call() == "VFIO_GROUP_GET_STATUS" => VfioError::GetGroupStatus,
        OpenError::Refused { .. } => VfioError::GroupGetDeviceFD(sys(errno)),
        OpenError::Attach { error } => match error.failure() {
            Some(failure) if failure.call() == "VFIO_SET_IOMMU" => VfioError::ContainerSetIOMMU(sys(errno)),
            _ => VfioError::GroupSetContainer,
        },
        _ => VfioError::VfioExtension,
    }
}
