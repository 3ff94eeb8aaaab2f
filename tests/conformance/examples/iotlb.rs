//! A backend without VFIO: an IOTLB in memory, as a vhost-vdpa device has it.
//!
//! The kernel of vhost-vdpa keeps a list of mappings and two calls: VHOST_IOTLB_UPDATE adds one, VHOST_IOTLB_INVALIDATE
//! removes them. This backend keeps the same list in memory and has a device that does DMA through it.
#![expect(
    unsafe_code,
    reason = "UNSAFETY: a space frees memory when a backend or a device says that it is unreachable"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_conformance::{Bench, Call, Dma, Faults};
use dmaspace_core::contract::{
    AttachPlace, AttachPoint, Attachable, Capabilities, LiveUpdateSupport, MappingModel, PciAddressSpace,
};
use dmaspace_core::door::{Errno, Failure, Lease};
use dmaspace_core::retry::Undone;
use dmaspace_core::{Access, Backend, Error, HostMemory, Iova, IovaRange, PageSize, PageSizes, Space, Windows};

/// The last bus address that the device can use.
const LAST: u64 = (1 << 48) - 1;

/// The device's list of mappings, which the backend writes and the device reads.
#[derive(Debug, Default)]
struct Table {
    mappings: Mutex<BTreeMap<Iova, Mapped>>,
    failing: Mutex<BTreeMap<&'static str, (u32, u32)>>,
}

#[derive(Debug)]
struct Mapped {
    range: IovaRange,
    memory: HostMemory,
    access: Access,
}

impl Table {
    fn mappings(&self) -> MutexGuard<'_, BTreeMap<Iova, Mapped>> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failing(&self) -> MutexGuard<'_, BTreeMap<&'static str, (u32, u32)>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if a test asked for it: the first number is of calls that succeed before, the second of those that fail.
    fn check(&self, call: &'static str) -> Result<(), Failure> {
        match self.failing().get_mut(call) {
            Some((skipped, _)) if *skipped > 0 => *skipped -= 1,
            Some((_, times)) if *times > 0 => {
                *times -= 1;
                return Err(Failure::from_errno(call, Errno::EIO));
            }
            _ => {}
        }
        Ok(())
    }

    /// The memory from `at` to the end of its mapping, if a device may access it so.
    fn reach(&self, at: Iova, access: Access) -> Option<HostMemory> {
        let mappings = self.mappings();
        let (_, mapped) = mappings.range(..=at).next_back()?;
        if !mapped.range.contains(at) || !mapped.access.contains(access) {
            return None;
        }
        let offset = mapped.range.offset_of(at);
        mapped.memory.slice(offset, mapped.memory.len().get() - offset)
    }
}

/// The backend: calls, and nothing else. [`Space`] checks, remembers and fences.
#[derive(Debug, Default)]
struct Iotlb {
    table: Arc<Table>,
}

const UPDATE: &str = "VHOST_IOTLB_UPDATE";
const INVALIDATE: &str = "VHOST_IOTLB_INVALIDATE";

// SAFETY: the table is all that the device reads, so what has left it cannot be reached; a mapping holds the memory of
// its lease.
unsafe impl Backend for Iotlb {
    fn name(&self) -> &'static str {
        "iotlb"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(MappingModel::Mappings, PageSize::K4);
        capabilities.hands_over =
            LiveUpdateSupport::Never("an IOTLB belongs to one process; open the device again in the new one");
        capabilities
    }

    fn is_real(&self) -> bool {
        false
    }

    fn refresh(&self, _devices: usize) -> Result<Windows, Failure> {
        let range = IovaRange::new(Iova::new(0), Iova::new(LAST));
        let range = range.map_err(|_| Failure::malformed("VHOST_VDPA_GET_IOVA_RANGE", "the range is empty"))?;
        Ok(Windows::uniform(vec![range], PageSizes::only(PageSize::K4)))
    }

    fn map(&self, range: IovaRange, memory: &Lease<'_>, access: Access) -> Result<(), Failure> {
        self.table.check(UPDATE)?;
        self.table.mappings().insert(range.first(), Mapped { range, memory: HostMemory::clone(memory), access });
        Ok(())
    }

    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure> {
        self.table.check(INVALIDATE)?;
        let mut mappings = self.table.mappings();
        let inside: Vec<Iova> = mappings.range(range.first()..=range.last()).map(|(first, _)| *first).collect();
        let gone: Vec<Mapped> = inside.iter().filter_map(|first| mappings.remove(first)).collect();
        drop(mappings);
        let bytes = gone.iter().map(|mapped| mapped.memory.len().get()).sum();
        Ok(if gone.is_empty() { Undone::WasNotThere } else { Undone::Done(Some(bytes)) })
    }
}

impl Drop for Iotlb {
    /// Closing the device's descriptor empties its list, whatever failed before.
    fn drop(&mut self) {
        let mappings = std::mem::take(&mut *self.table.mappings());
        // An owner of memory may call the space: no lock is held now.
        drop(mappings);
    }
}

/// A device, which finds memory in the table while it is attached.
#[derive(Debug)]
struct NetDevice {
    name: &'static str,
    table: Arc<Table>,
    attached: AtomicBool,
}

impl NetDevice {
    fn new(name: &'static str, table: &Arc<Table>) -> Arc<Self> {
        Arc::new(Self { name, table: table.clone(), attached: AtomicBool::new(false) })
    }

    fn reach(&self, at: Iova, access: Access) -> Option<HostMemory> {
        if !self.attached.load(Ordering::SeqCst) {
            return None;
        }
        self.table.reach(at, access)
    }

    /// The place of this backend is the backend itself: it has no descriptor.
    fn check(&self, point: AttachPoint<'_>, call: &'static str) -> Result<(), Failure> {
        if point.place() != AttachPlace::ThisBackend {
            return Err(Failure::malformed(call, "the device belongs to an IOTLB"));
        }
        self.table.check(call)
    }
}

// SAFETY: the flag is all that lets the device reach memory; a failed attach leaves it false, a detach clears it.
unsafe impl Attachable for NetDevice {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn attach_to(&self, point: AttachPoint<'_>) -> Result<(), Failure> {
        self.check(point, "attach")?;
        self.attached.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn detach_from(&self, point: AttachPoint<'_>) -> Result<Undone, Failure> {
        self.check(point, "detach")?;
        let was_attached = self.attached.swap(false, Ordering::SeqCst);
        Ok(if was_attached { Undone::Done(()) } else { Undone::WasNotThere })
    }
}

/// Opens a space with a device: everything that a VMM or a listener needs.
fn open() -> Result<(Arc<dyn PciAddressSpace>, Arc<NetDevice>), Error> {
    let backend = Iotlb::default();
    let device = NetDevice::new("vdpa0", &backend.table);
    let space: Arc<dyn PciAddressSpace> = Arc::new(Space::new(backend)?);
    space.attach(device.clone())?;
    Ok((space, device))
}

// The hooks of the conformance suite.

/// The device's DMA.
struct Engine {
    device: Arc<NetDevice>,
    buffer: Vec<u8>,
}

impl Dma for Engine {
    fn load(&mut self, from: Iova, len: usize) {
        self.buffer = vec![0; len];
        if let Some(memory) = self.device.reach(from, Access::READ) {
            // A transfer that reaches past the mapping ends without bytes.
            let _ = memory.read(0, &mut self.buffer);
        }
    }

    fn store(&mut self, to: Iova, len: usize) {
        if let (Some(memory), Some(bytes)) = (self.device.reach(to, Access::WRITE), self.buffer.get(..len)) {
            let _ = memory.write(0, bytes);
        }
    }
}

/// Calls that fail on request.
struct Script(Arc<Table>);

fn name_of(call: Call) -> Option<&'static str> {
    match call {
        Call::Map => Some(UPDATE),
        Call::Unmap => Some(INVALIDATE),
        Call::Attach => Some("attach"),
        Call::Detach => Some("detach"),
        _ => None,
    }
}

impl Faults for Script {
    fn can_fail(&self, call: Call) -> bool {
        name_of(call).is_some()
    }

    fn fail(&self, call: Call, skipped: u32, times: u32) {
        if let Some(name) = name_of(call) {
            self.0.failing().insert(name, (skipped, times));
        }
    }

    fn mend(&self) {
        self.0.failing().clear();
    }
}

/// A bench with all hooks that an IOTLB has.
fn bench() -> Bench {
    let (space, device) = open().expect("an IOTLB in memory opens");
    let table = device.table.clone();
    let engine = Engine { device: device.clone(), buffer: Vec::new() };
    let script = Script(table.clone());
    let spare = NetDevice::new("vdpa1", &table);
    let devices = [device.clone(), spare.clone()];
    let bench = Bench::new(space, device).with_dma(Box::new(engine)).with_faults(Box::new(script));
    bench.with_spare(move || spare).with_leftovers(move || {
        let mappings = table.mappings().len();
        let attached = devices.iter().filter(|device| device.attached.load(Ordering::SeqCst)).count();
        (mappings + attached > 0).then(|| format!("{mappings} mappings and {attached} attached devices"))
    })
}

fn main() {
    let report = dmaspace_conformance::run(&bench);
    println!("{report}");
    report.assert_passed();
}

#[test]
fn the_iotlb_keeps_the_contract() {
    main();
}
