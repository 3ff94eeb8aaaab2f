//! An IOTLB in memory and a device, both of which do as a script says: for tests of a space without a kernel.
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]
#![allow(clippy::expect_used, reason = "tests arrange with it")]

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace_core::contract::{AttachPoint, Attachable, Capabilities, MapRequest, MappingModel, Unit};
use dmaspace_core::door::{Errno, Failure, Lease};
use dmaspace_core::error::Error;
use dmaspace_core::retry::Undone;
use dmaspace_core::sync::{Mutex, Rank};
use dmaspace_core::words::reserved::Reserved;
use dmaspace_core::{
    Access, Backend, HostAddress, HostMemory, Iova, IovaRange, PageSize, PageSizes, PciAddressSpace, Space, Windows,
};

pub const PAGE: u64 = 0x1000;

pub const BROKEN: Failure = Failure::from_errno("IOTLB", Errno::EIO);

/// A call that a backend or a device is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Map(IovaRange),
    Unmap(IovaRange),
    Refresh(usize),
    Attach,
    Detach,
}

/// The answer to a call, before it is made: a failure, or to go on.
pub type Script = Arc<dyn Fn(Call) -> Result<(), Failure> + Send + Sync>;

/// A script under which everything succeeds.
pub fn obliging() -> Script {
    Arc::new(|_| Ok(()))
}

/// An IOTLB: mappings of 4 KiB pages by their first byte, in one window.
pub struct Iotlb {
    pub script: Script,
    pub live: Arc<Mutex<BTreeMap<u64, u64>>>,
    /// The window; none without a device when `forgets` is set.
    pub window: Arc<Mutex<IovaRange>>,
    /// Set for a container, which forgets everything with its last device.
    pub forgets: bool,
    pub keeps: MappingModel,
}

impl Iotlb {
    pub fn playing(script: Script) -> Self {
        Self {
            script,
            live: Arc::new(Mutex::new(Rank::Backend, BTreeMap::new())),
            window: Arc::new(Mutex::new(Rank::Backend, range(0, 0xffff_ffff))),
            forgets: false,
            keeps: MappingModel::Mappings,
        }
    }
}

impl fmt::Debug for Iotlb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Iotlb")
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: no device reaches memory through a map in memory")]
// SAFETY: there is no device behind it.
unsafe impl Backend for Iotlb {
    fn name(&self) -> &'static str {
        "iotlb"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.keeps, PageSize::K4)
    }

    fn is_real(&self) -> bool {
        false
    }

    fn forgets_with_the_last_device(&self) -> bool {
        self.forgets
    }

    fn refresh(&self, devices: usize) -> Result<Windows, Failure> {
        (self.script)(Call::Refresh(devices))?;
        if self.forgets && devices == 0 {
            self.live.lock().clear();
            return Ok(Windows::default());
        }
        Ok(Windows::uniform(vec![*self.window.lock()], PageSizes::only(PageSize::K4)))
    }

    fn map(&self, range: IovaRange, memory: &Lease<'_>, _: Access) -> Result<(), Failure> {
        (self.script)(Call::Map(range))?;
        self.live.lock().insert(range.first().get(), memory.address().get());
        Ok(())
    }

    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure> {
        (self.script)(Call::Unmap(range))?;
        let mut live = self.live.lock();
        let before = live.len();
        live.retain(|first, _| !range.contains(Iova::new(*first)));
        Ok(Undone::Done(Some((before - live.len()) as u64 * PAGE)))
    }
}

/// A device that does as a script says.
pub struct Device {
    pub name: &'static str,
    pub script: Script,
    pub reserved: Vec<Reserved>,
    /// The answer to a detach that the script lets pass.
    pub detached: Undone,
}

impl Device {
    pub fn playing(name: &'static str, script: Script) -> Arc<dyn Attachable> {
        Arc::new(Self { name, script, reserved: Vec::new(), detached: Undone::Done(()) })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: it is no device")]
// SAFETY: it does no DMA.
unsafe impl Attachable for Device {
    fn name(&self) -> String {
        self.name.into()
    }

    fn reserved(&self) -> Vec<Reserved> {
        self.reserved.clone()
    }

    fn attach_to(&self, _: AttachPoint<'_>) -> Result<(), Failure> {
        (self.script)(Call::Attach)
    }

    fn detach_from(&self, _: AttachPoint<'_>) -> Result<Undone, Failure> {
        (self.script)(Call::Detach)?;
        Ok(self.detached)
    }
}

pub fn range(first: u64, last: u64) -> IovaRange {
    IovaRange::new(Iova::new(first), Iova::new(last)).expect("a range of the test")
}

pub fn page_at(first: u64) -> IovaRange {
    range(first, first + PAGE - 1)
}

pub fn memory(address: u64) -> HostMemory {
    HostMemory::unbacked(HostAddress::new(address), NonZeroU64::new(PAGE).expect("not zero")).expect("no wrap")
}

/// The page that the tests map.
pub const AT: u64 = 0x1000;

/// The request to map a page of `memory` at [`AT`].
pub fn request(memory: &HostMemory) -> MapRequest<'_> {
    MapRequest::new(Iova::new(AT), memory, Access::READ_WRITE).with_unit(Unit::Pages(PageSize::K4))
}

pub fn map(space: &Space<Iotlb>, address: u64) -> Result<(), Error> {
    space.map(request(&memory(address)))
}
