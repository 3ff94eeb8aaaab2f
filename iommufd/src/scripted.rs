//! A door for unit tests that writes down what it is asked and answers from a script. Hosts that behave live in the
//! soft host.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dmaspace_abi::iommufd::{self, HwInfo, HwptAlloc, IoasAlloc};
use dmaspace_core::Backend;
use dmaspace_core::contract::AttachPoint;
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Argument, Command, Door, Errno, Handle, HandleKind, Lease, OwnedHandle};
use dmaspace_core::{Access, HostMemory, PageSize};
use zerocopy::FromBytes;

use crate::Ioas;

/// What it was asked: the name of the call, the argument, the offsets at which something was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) attached: Vec<usize>,
}

/// What it does to the argument and answers.
pub(crate) type Answer = fn(&mut [u8]) -> Result<i32, Errno>;

#[derive(Debug, Default)]
pub(crate) struct Scripted {
    calls: Mutex<Vec<Call>>,
    /// What to answer, in order; then 0.
    script: Mutex<VecDeque<Answer>>,
    runs: ProcessRegistrations,
}

impl Scripted {
    pub(crate) fn new(script: &[Answer]) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(script.iter().copied().collect()), ..Self::default() })
    }

    /// What it was asked since the last time.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().expect("no panic elsewhere"))
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.take().iter().map(|call| call.name).collect()
    }
}

/// The right to attach devices to an address space, which no space has.
#[expect(unsafe_code, reason = "UNSAFETY: no device is behind a scripted door")]
pub(crate) fn point(ioas: &Ioas) -> AttachPoint<'static> {
    // SAFETY: no space uses the address space.
    unsafe { AttachPoint::beside_spaces(ioas.attach_place()) }
}

/// A lease of memory that is not there.
pub(crate) fn lease(memory: &HostMemory) -> Lease<'_> {
    Lease::of_unbacked(memory).expect("there is no memory behind it")
}

// SAFETY: no device is behind it.
#[expect(unsafe_code, reason = "UNSAFETY: a door without devices")]
unsafe impl Door for Scripted {
    fn ioctl(&self, _: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        let Argument::Bytes(bytes) = &mut command.argument else { return Err(Errno::EINVAL) };
        let attached = command.attachments.iter().map(|attachment| attachment.offset).collect();
        let call = Call { name: command.request.name, bytes: bytes.to_vec(), attached };
        self.calls.lock().expect("no panic elsewhere").push(call);
        let answer = self.script.lock().expect("no panic elsewhere").pop_front();
        answer.map_or(Ok(0), |answer| answer(bytes))
    }

    fn close(&self, _: Handle) -> Result<(), Errno> {
        let call = Call { name: "close", bytes: Vec::new(), attached: Vec::new() };
        self.calls.lock().expect("no panic elsewhere").push(call);
        Ok(())
    }

    fn host_page(&self) -> PageSize {
        PageSize::K64
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }

    fn is_real(&self) -> bool {
        false
    }

    fn open(&self, _: &Path, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::ENOENT)
    }

    fn adopt(&self, _: OwnedFd, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::EBADF)
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
}

/// The names of the requests, as they are in the tests.
pub(crate) mod names {
    pub(crate) const BIND: &str = "VFIO_DEVICE_BIND_IOMMUFD";
    pub(crate) const ATTACH: &str = "VFIO_DEVICE_ATTACH_IOMMUFD_PT";
    pub(crate) const DETACH: &str = "VFIO_DEVICE_DETACH_IOMMUFD_PT";
    pub(crate) const HW_INFO: &str = "IOMMU_GET_HW_INFO";
    pub(crate) const HWPT_ALLOC: &str = "IOMMU_HWPT_ALLOC";
    pub(crate) const SET: &str = "IOMMU_HWPT_SET_DIRTY_TRACKING";
    pub(crate) const GET: &str = "IOMMU_HWPT_GET_DIRTY_BITMAP";
    pub(crate) const DESTROY: &str = "IOMMU_DESTROY";
}

/// An address space numbered 7 behind such a door, in an iommufd.
pub(crate) fn ioas(script: &[Answer]) -> (Arc<Scripted>, Ioas) {
    let script: Vec<Answer> = [seventh as Answer].iter().chain(script).copied().collect();
    let door = Scripted::new(&script);
    let ioas = Ioas::new(iommufd(&door)).expect("made");
    assert_eq!(door.names(), ["IOMMU_IOAS_ALLOC"]);
    (door, ioas)
}

pub(crate) const IOMMUFD: Handle = Handle::new(1, HandleKind::Iommufd);

/// The open iommufd of the tests.
pub(crate) fn iommufd(door: &Arc<Scripted>) -> OwnedHandle {
    OwnedHandle::simulated(door.clone(), IOMMUFD).expect("the door is not real")
}

/// An open device.
pub(crate) fn device(door: &Arc<Scripted>, id: u64) -> OwnedHandle {
    let handle = Handle::new(id, HandleKind::Device);
    OwnedHandle::simulated(door.clone(), handle).expect("the door is not real")
}

pub(crate) fn seventh(bytes: &mut [u8]) -> Result<i32, Errno> {
    IoasAlloc::mut_from_bytes(bytes).expect("room for the struct").out_ioas_id = 7;
    Ok(0)
}

/// Done.
pub(crate) fn done(_: &mut [u8]) -> Result<i32, Errno> {
    Ok(0)
}

/// The IOMMU in front of the device logs what it writes.
pub(crate) fn logs(bytes: &mut [u8]) -> Result<i32, Errno> {
    HwInfo::mut_from_bytes(bytes).expect("room for the struct").out_capabilities = iommufd::CAP_DIRTY_TRACKING;
    Ok(0)
}

/// Page table 9 was made.
pub(crate) fn ninth(bytes: &mut [u8]) -> Result<i32, Errno> {
    HwptAlloc::mut_from_bytes(bytes).expect("room for the struct").out_hwpt_id = 9;
    Ok(0)
}

/// Page table 10 was made.
pub(crate) fn tenth(bytes: &mut [u8]) -> Result<i32, Errno> {
    HwptAlloc::mut_from_bytes(bytes).expect("room for the struct").out_hwpt_id = 10;
    Ok(0)
}
