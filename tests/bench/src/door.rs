//! The real backends, above a door that answers at once and above the Linux door.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dmaspace::LinuxDoor;
use dmaspace_core::contract::{AttachPoint, Attachable, WindowRequest};
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{
    Argument, Attached, Command, DirectMap, DirectUnmap, Door, Errno, Failure, Handle, HandleKind, OwnedHandle,
};
use dmaspace_core::retry::Undone;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace, Space};
use dmaspace_iommufd::Ioas;
use dmaspace_spapr::Spapr;
use dmaspace_type1::Type1;

use crate::kernel::{self, WINDOW};

/// The backend behind a door that answers at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Real {
    /// A type1 container.
    Type1,
    /// An address space of an iommufd.
    Iommufd,
    /// An sPAPR v2 container.
    Spapr,
}

/// A space on a real backend above a door that answers at once.
pub(crate) fn space(real: Real, memory: &HostMemory) -> Arc<dyn PciAddressSpace> {
    space_behind(Arc::new(NullDoor::default()), real, memory)
}

/// A space on a real backend above the Linux door, whose calls [`kernel`] answers.
pub(crate) fn linux_space(real: Real, memory: &HostMemory) -> Arc<dyn PciAddressSpace> {
    space_behind(Arc::new(LinuxDoor::new()), real, memory)
}

/// A space with a device and a window from address 0, where `memory` is registered if need be.
fn space_behind(door: Arc<dyn Door>, real: Real, memory: &HostMemory) -> Arc<dyn PciAddressSpace> {
    let opened = |kind| OwnedHandle::open(door.clone(), Path::new("/dev/null"), kind).expect("the node opens");
    let space: Arc<dyn PciAddressSpace> = match real {
        Real::Type1 => Arc::new(Space::new(Type1::new(opened(HandleKind::Container))).expect("answered")),
        Real::Iommufd => {
            let ioas = Ioas::new(opened(HandleKind::Iommufd)).expect("answered");
            Arc::new(Space::new(ioas).expect("answered"))
        }
        Real::Spapr => Arc::new(Space::new(Spapr::new(opened(HandleKind::Container))).expect("answered")),
    };
    space.attach(Arc::new(NullDevice)).expect("answered");
    if let Some(control) = space.powers().window_control {
        let range = IovaRange::with_len(Iova::new(0), WINDOW).expect("a range");
        control.create_window(WindowRequest::new(range, PageSize::K4)).expect("answered");
    }
    if let Some(registration) = space.powers().registration {
        registration.register(memory).expect("answered");
    }
    space
}

/// A door behind which every call succeeds.
#[derive(Debug, Default)]
struct NullDoor {
    opened: AtomicU64,
    runs: ProcessRegistrations,
}

#[expect(unsafe_code, reason = "UNSAFETY: no device reaches memory through a door that does nothing")]
// SAFETY: there is no kernel behind it, and no device; numbers are counted up.
unsafe impl Door for NullDoor {
    fn open(&self, _: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        Ok(Handle::new(self.opened.fetch_add(1, Ordering::Relaxed), kind))
    }

    fn adopt(&self, _: OwnedFd, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::EBADF)
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        describe(on, command);
        Ok(0)
    }

    fn map_directly(&self, _: &OwnedHandle, _: &DirectMap<'_>) -> Option<Result<i32, Errno>> {
        Some(Ok(0))
    }

    /// All of the range was mapped: the length stays.
    fn unmap_directly(&self, _: &OwnedHandle, _: &mut DirectUnmap) -> Option<Result<i32, Errno>> {
        Some(Ok(0))
    }

    fn ioctl_opening(&self, _: Handle, _: &mut Command<'_>, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::ENOTTY)
    }

    fn pread(&self, _: Handle, _: u64, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn pwrite(&self, _: Handle, _: u64, _: &[u8]) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn mmap(&self, _: Handle, _: u64, _: NonZeroU64, _: Access) -> Result<HostMemory, Errno> {
        Err(Errno::ENODEV)
    }

    fn close(&self, _: Handle) -> Result<(), Errno> {
        Ok(())
    }

    fn host_page(&self) -> PageSize {
        PageSize::K4
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// Fills in the answers about the host.
fn describe(on: Handle, command: &mut Command<'_>) {
    debug_assert!(on.id() < 2, "one node is opened");
    let Argument::Bytes(bytes) = &mut command.argument else { return };
    let buffer = match command.attachments.first_mut().map(|field| &mut field.what) {
        Some(Attached::Buffer(buffer)) => Some(&mut **buffer),
        _ => None,
    };
    kernel::answer(command.request.number, bytes, buffer);
}

/// A device that is attached without a call.
#[derive(Debug)]
struct NullDevice;

#[expect(unsafe_code, reason = "UNSAFETY: there is no device")]
// SAFETY: no device reaches memory.
unsafe impl Attachable for NullDevice {
    fn name(&self) -> String {
        "null".into()
    }

    fn attach_to(&self, _: AttachPoint<'_>) -> Result<(), Failure> {
        Ok(())
    }

    fn detach_from(&self, _: AttachPoint<'_>) -> Result<Undone, Failure> {
        Ok(Undone::Done(()))
    }
}
