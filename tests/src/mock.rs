//! The mock device of a kernel with `CONFIG_IOMMUFD_TEST` (linux: drivers/iommu/iommufd/selftest.c): no bus and no
//! memory moves, but its IOMMU logs, and a test can choose the device's writes. No other test has a real kernel that
//! logs.
#![expect(unsafe_code, reason = "UNSAFETY: the one call that no door makes")]

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use dmaspace::linux::LinuxDoor;
use dmaspace_abi::iommufd;
use dmaspace_core::HostMemory;
use dmaspace_core::contract::{AttachPlace, AttachPoint, Attachable, DeviceId};
use dmaspace_core::door::{Command, Door as _, Errno, Failure, Handle, HandleKind, Kernel, OwnedHandle, Request};
use dmaspace_core::retry::Undone;
use zerocopy::IntoBytes;

/// `IOMMU_TEST_CMD`.
const TEST: Request = Request::vfio(0xa0, "IOMMU_TEST_CMD");
const CHECK_MAP: u32 = 3;
const MOCK_DOMAIN_REPLACE: u32 = 10;
const MOCK_DOMAIN_FLAGS: u32 = 12;
const DIRTY: u32 = 13;
/// A device whose IOMMU does not log.
const NO_DIRTY: u32 = 1 << 0;

/// The mock IOMMU's page: half of the host's (linux: MOCK_IO_PAGE_SIZE).
pub const MOCK_PAGE: u64 = 0x800;

/// The kernel's struct: its head, then the used members of a union, flat.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct TestCommand {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    words: [u64; 6],
    last: u32,
    padding: u32,
}

/// Open `/dev/iommu`.
///
/// # Panics
/// When there is none.
pub fn open(door: &Arc<LinuxDoor>) -> OwnedHandle {
    OwnedHandle::open(door.clone(), "/dev/iommu".as_ref(), HandleKind::Iommufd).expect("the host has iommufd")
}

/// A mock device. While it is attached nowhere it lives in an address space of its own: the kernel knows none that are
/// not attached.
#[derive(Debug)]
pub struct MockDevice {
    door: Arc<LinuxDoor>,
    iommufd: Handle,
    /// The selftest's object, and the device it bound.
    object: u32,
    device: u32,
    home: u32,
    at: Mutex<Option<u32>>,
}

impl MockDevice {
    /// A device of this iommufd, whose IOMMU logs or does not.
    ///
    /// # Panics
    /// When the kernel has no mock devices.
    pub fn new(door: &Arc<LinuxDoor>, iommufd: Handle, logs: bool) -> Arc<Self> {
        let mut alloc = iommufd::IoasAlloc { size: iommufd::IoasAlloc::SIZE, ..Default::default() };
        door.call(iommufd, Command::with_bytes(iommufd::IOAS_ALLOC, alloc.as_mut_bytes())).expect("an address space");
        let home = alloc.out_ioas_id;
        // The union: out_stdev_id, out_hwpt_id, out_idev_id, dev_flags.
        let flags = if logs { 0 } else { u64::from(NO_DIRTY) << 32 };
        let made = make(door, iommufd, MOCK_DOMAIN_FLAGS, home, [0, flags, 0, 0, 0, 0]).expect("a mock device");
        let (object, device) = (low(made[0]), low(made[1]));
        Arc::new(Self { door: door.clone(), iommufd, object, device, home, at: Mutex::default() })
    }

    /// Has the device write the pages from `iova` on that are true, in pages of [`MOCK_PAGE`]. Returns how many of them
    /// were mapped.
    ///
    /// # Panics
    /// When it is attached to nothing that logs.
    pub fn write(&self, iova: u64, pages: &[bool]) -> u64 {
        let mut bits = vec![0_u64; pages.len().div_ceil(64)];
        for (n, _) in pages.iter().enumerate().filter(|(_, written)| **written) {
            bits[n / 64] |= 1 << (n % 64);
        }
        let table = self.at.lock().unwrap_or_else(PoisonError::into_inner).expect("it is attached");
        let length = pages.len() as u64 * MOCK_PAGE;
        // flags, iova, length, page_size, uptr, out_nr_dirty.
        let words = [0, iova, length, MOCK_PAGE, bits.as_ptr() as u64, 0];
        let written = make(&self.door, self.iommufd, DIRTY, table, words).expect("the page table logs");
        drop(bits);
        written[5]
    }

    /// Returns whether it finds all of `memory` at `iova`, byte for byte.
    ///
    /// # Panics
    /// When it is attached nowhere.
    pub fn finds(&self, iova: u64, memory: &HostMemory) -> bool {
        let table = self.at.lock().unwrap_or_else(PoisonError::into_inner).expect("it is attached");
        // iova, length, uptr.
        let words = [iova, memory.len().get(), memory.address().get(), 0, 0, 0];
        make(&self.door, self.iommufd, CHECK_MAP, table, words).is_ok()
    }

    fn move_to(&self, place: u32) -> Result<(), Failure> {
        let moved = make(&self.door, self.iommufd, MOCK_DOMAIN_REPLACE, self.object, [u64::from(place), 0, 0, 0, 0, 0]);
        moved.map(drop).map_err(|errno| Failure::from_errno("MOCK_DOMAIN_REPLACE", errno))
    }
}

// SAFETY: the kernel's answers are returned as they are.
unsafe impl Attachable for MockDevice {
    fn name(&self) -> String {
        format!("mock device {}", self.device)
    }

    fn bind_to(&self, _iommufd: Handle) -> Result<Option<DeviceId>, Failure> {
        Ok(Some(DeviceId::new(self.device)))
    }

    fn attach_to(&self, point: AttachPoint<'_>) -> Result<(), Failure> {
        let place = place_of(point)?;
        self.move_to(place)?;
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        Ok(())
    }

    fn detach_from(&self, point: AttachPoint<'_>) -> Result<Undone, Failure> {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        if *at != Some(place_of(point)?) {
            return Ok(Undone::WasNotThere);
        }
        self.move_to(self.home)?;
        *at = None;
        Ok(Undone::Done(()))
    }
}

fn place_of(point: AttachPoint<'_>) -> Result<u32, Failure> {
    match point.place() {
        AttachPlace::Ioas { ioas, .. } => Ok(ioas.get()),
        AttachPlace::PageTable { hwpt, .. } => Ok(hwpt.get()),
        _ => Err(Failure::from_errno("attach", Errno::EINVAL)),
    }
}

fn low(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).expect("32 bits")
}

/// Makes one of the selftest's calls, and returns the union as the kernel left it. A word that is an address must point
/// to the data that the operation reads, until this returns.
fn make(door: &LinuxDoor, iommufd: Handle, op: u32, id: u32, words: [u64; 6]) -> Result<[u64; 6], Errno> {
    let size = u32::try_from(size_of::<TestCommand>()).expect("a small struct");
    let mut command = TestCommand { size, op, id, words, ..TestCommand::default() };
    let descriptor = door.descriptor(iommufd)?;
    // SAFETY: the struct is the kernel's, as long as it says; the callers' only addresses are of a bitmap that DIRTY
    // reads, and that is there until the call returns, and of memory that CHECK_MAP looks up in page tables and does
    // not touch.
    let called = unsafe { libc::ioctl(descriptor.as_raw_fd(), TEST.number.into(), &raw mut command) };
    if called < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(command.words) }
}
