//! A bench: a space under test with everything a case works with.
//!
//! Cases count in *units* of the bench: 64 KiB, or the window's granule where that is larger, so that every unit is
//! aligned on every host. Unit 0 lies at the start of a window with room for [`ROOM`] units; the memory has [`ROOM`]
//! units too.

use dmaspace_core::contract::MapRequest;
use std::any::Any;
use std::fmt::Debug;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;

use dmaspace_core::contract::dirty::DirtyTracking;
use dmaspace_core::contract::eeh::Eeh;
use dmaspace_core::contract::kernel_tables::KernelTables;
use dmaspace_core::contract::live_update::{Handover, LiveUpdate, NamedMemory};
use dmaspace_core::contract::{
    Attachable, Capabilities, Fence, Mapping, MemoryRegistration, PciAddressSpace, PinSharing, Snapshot, Swap, Unit,
    WindowChange, WindowControl, WindowRequest,
};
use dmaspace_core::error::{Error, Kind};
use dmaspace_core::{Access, HostAddress, HostMemory, Iova, IovaRange, PageSize, Window};

use crate::hooks::{Call, Dma, Faults};

/// The number of units that can be mapped from the base of a bench on.
pub(crate) const ROOM: u64 = 64;

/// The smallest unit: a multiple of every host's page.
const SMALLEST_UNIT: PageSize = PageSize::K64;

pub(crate) const WHOLE: Unit = Unit::Whole;

/// The number of bytes one transfer of a device moves.
pub(crate) const SPOT: usize = 64;

/// The unit at which results of a device show: bus address and memory.
const SCRATCH: u64 = ROOM - 1;

/// Opens benches: the entry of the suite for a backend's tests.
pub trait UnderTest {
    /// Opens a bench on a host on which nothing is mapped.
    fn open(&self) -> Bench;
}

impl<F: Fn() -> Bench> UnderTest for F {
    fn open(&self) -> Bench {
        self()
    }
}

/// Opens something that few cases need.
type Opener<T> = Box<dyn FnOnce() -> Arc<T>>;

/// A space under test, its device, its memory, and the hooks.
///
/// Fields are dropped in this order, and a device is closed before its space is.
pub struct Bench {
    dma: Option<Box<dyn Dma>>,
    faults: Option<Box<dyn Faults>>,
    device: Option<Arc<dyn Attachable>>,
    spare: Option<Opener<dyn Attachable>>,
    second: Option<Opener<dyn PciAddressSpace>>,
    space: Option<Arc<dyn PciAddressSpace>>,
    memory: Option<HostMemory>,
    kept: Vec<Box<dyn Any>>,
    leftovers: Option<Box<dyn Fn() -> Option<String>>>,
    /// Bus address of unit 0 and the unit, once the bench is prepared.
    base: u64,
    unit: PageSize,
    seed: u8,
}

impl Bench {
    /// A bench for `space`, to which `device` is attached and nothing else. Nothing is mapped, registered or held in
    /// the space.
    pub fn new(space: Arc<dyn PciAddressSpace>, device: Arc<dyn Attachable>) -> Self {
        Self {
            dma: None,
            faults: None,
            device: Some(device),
            spare: None,
            second: None,
            space: Some(space),
            memory: None,
            kept: Vec::new(),
            leftovers: None,
            base: 0,
            unit: SMALLEST_UNIT,
            seed: 0,
        }
    }

    /// Uses this memory, which must have 64 units of 64 KiB (or of the granule, where that is larger) and be aligned to
    /// one. By default the bench allocates it.
    #[must_use]
    pub fn with_memory(self, memory: HostMemory) -> Self {
        Self { memory: Some(memory), ..self }
    }

    /// Has the attached device move bytes. It is dropped before the device is detached.
    #[must_use]
    pub fn with_dma(self, dma: Box<dyn Dma>) -> Self {
        Self { dma: Some(dma), ..self }
    }

    /// Makes calls fail through `faults`.
    #[must_use]
    pub fn with_faults(self, faults: Box<dyn Faults>) -> Self {
        Self { faults: Some(faults), ..self }
    }

    /// Has `open` open a second device, which the space can attach beside the first, when a case needs one.
    #[must_use]
    pub fn with_spare(self, open: impl FnOnce() -> Arc<dyn Attachable> + 'static) -> Self {
        Self { spare: Some(Box::new(open)), ..self }
    }

    /// Has `open` open a second space on the same host, with another device attached, when a case needs one.
    #[must_use]
    pub fn with_second_space(self, open: impl FnOnce() -> Arc<dyn PciAddressSpace> + 'static) -> Self {
        Self { second: Some(Box::new(open)), ..self }
    }

    /// Asks `leftovers` after all of the bench is dropped: it names the resources that the host still holds, or returns
    /// `None` when it holds none.
    #[must_use]
    pub fn with_leftovers(self, leftovers: impl Fn() -> Option<String> + 'static) -> Self {
        Self { leftovers: Some(Box::new(leftovers)), ..self }
    }

    /// Keeps something open until the space is dropped.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any) -> Self {
        self.kept.push(Box::new(kept));
        self
    }

    /// Makes the first `ROOM` units mappable: creates a window, registers the memory, shares its pins, as far as the
    /// space has these powers.
    #[must_use]
    pub fn prepared(mut self) -> Self {
        let granule = self.create_first_window().unwrap_or(SMALLEST_UNIT).max(SMALLEST_UNIT);
        self.unit = self.window_list().first().map_or(granule, |window| window.granule().max(granule));
        self.base = self.find_base();
        if self.memory.is_none() {
            let len = usize::try_from(ROOM * self.unit.bytes()).ok().and_then(NonZeroUsize::new);
            self.memory = len.and_then(|len| HostMemory::zeroed(len, self.unit));
        }
        let all = self.ram(0, ROOM);
        if let Some(registration) = self.registration() {
            registration.register(&all).expect("the memory of the bench can be registered");
        }
        if let Some(sharing) = self.pin_sharing() {
            sharing.share_pins(&all).expect("the pins of the bench's memory can be shared");
        }
        self
    }

    /// Creates a window with room for all units, where windows are created, and returns its page.
    fn create_first_window(&self) -> Option<PageSize> {
        let control = self.window_control().filter(|_| self.window_list().is_empty())?;
        let offer = control.offer().expect("a host with a device says which windows it creates");
        let page = offer.page_sizes.smallest();
        let first = offer.places.first().map_or(Iova::new(0), |place| place.first);
        let len = ROOM * page.max(SMALLEST_UNIT).bytes();
        let range = IovaRange::with_len(first, len).expect("a window at a known place");
        control.create_window(WindowRequest::new(range, page)).expect("a first window can be created");
        Some(page)
    }

    fn find_base(&self) -> u64 {
        let room = ROOM * self.unit.bytes();
        let fits = |window: &Window| {
            let base = self.unit.round_up(window.range.first().get())?;
            let all = IovaRange::with_len(Iova::new(base), room).ok()?;
            window.range.covers(all).then_some(base)
        };
        self.window_list().iter().find_map(fits).expect("a window has room for 64 units")
    }

    /// Drops device, space and everything else, and returns the leftovers of the host.
    pub(crate) fn close(&mut self) -> Option<String> {
        self.close_device();
        self.second = None;
        self.space = None;
        (self.device, self.spare) = (None, None);
        self.kept.clear();
        self.leftovers.as_ref().and_then(|leftovers| leftovers())
    }

    /// Closes the device that moves bytes: a group cannot be detached while one of its devices is open.
    pub(crate) fn close_device(&mut self) {
        self.dma = None;
    }

    // The space and its powers. Every call of the contract that cases make stands in this file.

    pub(crate) fn space(&self) -> &Arc<dyn PciAddressSpace> {
        self.space.as_ref().expect("the case did not close the bench")
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.space().describe().capabilities
    }

    pub(crate) fn windows(&self) -> Snapshot {
        self.space().windows()
    }

    pub(crate) fn window_list(&self) -> Vec<Window> {
        self.windows().windows.iter().copied().collect()
    }

    pub(crate) fn devices(&self) -> Vec<String> {
        self.space().describe().devices
    }

    pub(crate) fn fences(&self) -> Vec<Fence> {
        self.space().describe().fences
    }

    pub(crate) fn fenced_ranges(&self) -> Vec<IovaRange> {
        self.fences().into_iter().map(|fence| fence.range).collect()
    }

    pub(crate) fn window_control(&self) -> Option<&dyn WindowControl> {
        self.space().powers().window_control
    }

    pub(crate) fn registration(&self) -> Option<&dyn MemoryRegistration> {
        self.space().powers().registration
    }

    pub(crate) fn pin_sharing(&self) -> Option<&dyn PinSharing> {
        self.space().powers().pin_sharing
    }

    pub(crate) fn kernel_tables(&self) -> Option<&dyn KernelTables> {
        self.space().powers().kernel_tables
    }

    pub(crate) fn eeh(&self) -> Option<&dyn Eeh> {
        self.space().powers().eeh
    }

    pub(crate) fn dirty(&self) -> &dyn DirtyTracking {
        self.space().powers().dirty_tracking
    }

    pub(crate) fn live_update(&self) -> &dyn LiveUpdate {
        self.space().powers().live_update
    }

    pub(crate) fn device(&self) -> Arc<dyn Attachable> {
        self.device.clone().expect("the case did not close the bench")
    }

    pub(crate) fn opens_a_spare(&self) -> bool {
        self.spare.is_some()
    }

    /// Opens the second device.
    pub(crate) fn spare(&mut self) -> Arc<dyn Attachable> {
        self.spare.take().expect("the case needs a second device")()
    }

    pub(crate) fn opens_a_second_space(&self) -> bool {
        self.second.is_some()
    }

    /// Opens the second space.
    pub(crate) fn second_space(&mut self) -> Arc<dyn PciAddressSpace> {
        self.second.take().expect("the case needs a second space")()
    }

    pub(crate) fn counts_leftovers(&self) -> bool {
        self.leftovers.is_some()
    }

    pub(crate) fn has_dma(&self) -> bool {
        self.dma.is_some()
    }

    pub(crate) fn attach(&self, device: &Arc<dyn Attachable>) -> Result<WindowChange, Error> {
        self.space().attach(device.clone())
    }

    pub(crate) fn detach(&self, device: &Arc<dyn Attachable>) -> Result<WindowChange, Error> {
        self.space().detach(device)
    }

    pub(crate) fn map(&self, n: u64, memory: &HostMemory, unit: Unit) -> Result<(), Error> {
        self.map_with(self.at(n), memory, Access::READ_WRITE, unit)
    }

    pub(crate) fn map_with(&self, at: Iova, memory: &HostMemory, access: Access, unit: Unit) -> Result<(), Error> {
        map_in(self.space().as_ref(), at, memory, access, unit)
    }

    /// Maps `pages` units of memory, from unit `from` of it on, at unit `n`.
    pub(crate) fn must_map(&self, n: u64, from: u64, pages: u64, unit: Unit) {
        self.map(n, &self.ram(from, pages), unit).expect("the units are free");
    }

    pub(crate) fn replace(&self, n: u64, memory: &HostMemory, access: Access) -> Result<Swap, Error> {
        self.space().replace(MapRequest::new(self.at(n), memory, access).with_unit(Unit::Pages(self.unit)))
    }

    pub(crate) fn unmap(&self, n: u64, pages: u64) -> Result<u64, Error> {
        self.unmap_range(self.range(n, pages))
    }

    pub(crate) fn unmap_range(&self, range: IovaRange) -> Result<u64, Error> {
        self.space().unmap(range)
    }

    pub(crate) fn lookup(&self, at: Iova) -> Option<Mapping> {
        self.space().lookup(at)
    }

    pub(crate) fn mappings(&self, range: IovaRange) -> Vec<Mapping> {
        self.space().mappings(range)
    }

    pub(crate) fn live(&self) -> Vec<Mapping> {
        self.mappings(IovaRange::all())
    }

    pub(crate) fn hand_over(&self) -> Result<Handover, Error> {
        self.live_update().hand_over(&self.names())
    }

    pub(crate) fn take_back(&self) -> Result<(), Error> {
        self.live_update().take_back()
    }

    #[expect(unsafe_code, reason = "UNSAFETY: a hand-over within one process")]
    pub(crate) fn adopt(&self, handover: &Handover, names: &NamedMemory) -> Result<(), Error> {
        // SAFETY: each name is for the memory that the bench maps, or for none.
        unsafe { self.live_update().adopt(handover, names) }
    }

    // Counting in units.

    /// The bus address of unit `n`.
    pub(crate) fn at(&self, n: u64) -> Iova {
        Iova::new(self.base + n * self.unit.bytes())
    }

    pub(crate) fn unit(&self) -> PageSize {
        self.unit
    }

    /// A map in units that can be unmapped one by one.
    pub(crate) fn pages(&self) -> Unit {
        Unit::Pages(self.unit)
    }

    pub(crate) fn bytes(&self, pages: u64) -> u64 {
        pages * self.unit.bytes()
    }

    pub(crate) fn range(&self, n: u64, pages: u64) -> IovaRange {
        range(self.at(n), self.bytes(pages))
    }

    /// `pages` units of memory, from unit `n` of it on.
    pub(crate) fn ram(&self, n: u64, pages: u64) -> HostMemory {
        self.ram_bytes(self.bytes(n), self.bytes(pages))
    }

    pub(crate) fn ram_bytes(&self, offset: u64, len: u64) -> HostMemory {
        let memory = self.memory.as_ref().expect("the bench is prepared");
        memory.slice(offset, len).expect("the memory of a bench has 64 units")
    }

    /// A unit of addresses without memory.
    pub(crate) fn unbacked(&self) -> HostMemory {
        let len = NonZeroU64::new(self.unit.bytes()).expect("a unit is not empty");
        HostMemory::unbacked(HostAddress::new(self.bytes(1 << 10)), len).expect("low addresses do not wrap")
    }

    pub(crate) fn names(&self) -> NamedMemory {
        NamedMemory::new().with("ram", self.ram(0, ROOM))
    }

    pub(crate) fn granule(&self) -> PageSize {
        self.window_at_base().granule()
    }

    pub(crate) fn window_at_base(&self) -> Window {
        *self.windows().windows.containing(self.at(0)).expect("the base lies in a window")
    }

    /// The highest bus address of any window.
    pub(crate) fn top(&self) -> Iova {
        self.windows().windows.top().expect("there is a window")
    }

    /// The highest unit of the highest window.
    pub(crate) fn top_unit(&self) -> IovaRange {
        let first = self.unit.round_down(self.top().get() - (self.unit.bytes() - 1));
        range(Iova::new(first), self.unit.bytes())
    }

    /// The first address above a window that ends where a unit ends, and at which no other window begins.
    pub(crate) fn hole(&self) -> Option<Iova> {
        let snapshot = self.windows();
        let windows =
            snapshot.windows.iter().filter(|window| window.range.len().is_none_or(|len| len.get() >= self.bytes(1)));
        windows
            .filter_map(|window: &Window| window.range.end().filter(|end| self.unit.divides(end.get())))
            .find(|end| snapshot.windows.containing(*end).is_none())
    }

    /// A unit that lies in a window while no device is attached, and in none with the device. The device is detached
    /// after that if there is one.
    pub(crate) fn device_hole(&mut self) -> Option<IovaRange> {
        let holes = self.hole().map(|end| range(end, self.bytes(1)))?;
        self.close_device();
        let device = self.device();
        self.detach(&device).ok()?;
        self.windows().windows.covering(holes).map(|_| holes)
    }

    /// A place for a second window.
    pub(crate) fn second_window(&self) -> Option<WindowRequest> {
        let offer = self.window_control()?.offer()?;
        let windows = self.windows().windows;
        if offer.slots <= windows.iter().len() {
            return None;
        }
        let page = self.granule();
        let len = self.bytes(ROOM);
        let places = offer.places.iter().filter(|place| place.page_sizes.contains(page) && place.holds(len));
        let ranges = places.filter_map(|place| IovaRange::with_len(place.first, len).ok());
        let free = ranges.filter(|range| windows.overlapping(*range).next().is_none());
        free.map(|range| WindowRequest::new(range, page)).next()
    }

    // Hooks.

    pub(crate) fn can_fail(&self, call: Call) -> bool {
        self.faults.as_ref().is_some_and(|faults| faults.can_fail(call))
    }

    /// The next call of this sort fails.
    pub(crate) fn fail_next(&self, call: Call) {
        self.fail(call, 0, 1);
    }

    /// All calls of this sort fail until [`Bench::mend`].
    pub(crate) fn fail_always(&self, call: Call) {
        self.fail(call, 0, 1000);
    }

    pub(crate) fn fail(&self, call: Call, skipped: u32, times: u32) {
        self.faults.as_ref().expect("the case needs calls that fail").fail(call, skipped, times);
    }

    pub(crate) fn mend(&self) {
        if let Some(faults) = &self.faults {
            faults.mend();
        }
    }

    /// Has a map of unit `n` fail in a way that cannot be undone, and returns the fence.
    pub(crate) fn fence(&self, n: u64, from: u64) -> IovaRange {
        self.fence_with(n, &self.ram(from, 1))
    }

    /// Has a map of `memory`, which is one unit, fail in a way that cannot be undone, and returns the fence.
    pub(crate) fn fence_with(&self, n: u64, memory: &HostMemory) -> IovaRange {
        self.fail_next(Call::Map);
        self.fail_always(Call::Unmap);
        let error = self.map(n, memory, WHOLE).expect_err("the map call fails");
        self.mend();
        let fence = self.range(n, 1);
        assert_eq!(error.fenced(), [fence], "the map could not be undone: {error}");
        fence
    }

    // What cases assert.

    /// Asserts that `attempt` fails with `kind` before the kernel is asked, and changes nothing.
    pub(crate) fn refuses<T: Debug>(&self, kind: &Kind, attempt: impl FnOnce() -> Result<T, Error>) {
        let before = self.state();
        let error = attempt().expect_err("the contract refuses the request");
        assert_eq!(&error.kind(), kind, "{error}");
        assert_eq!(error.failure(), None, "the refusal comes before the kernel is asked: {error}");
        assert_eq!(self.state(), before, "a refusal changes nothing: {error}");
    }

    /// Asserts that `attempt` fails because a call fails, and changes nothing. Returns the error.
    pub(crate) fn fails<T: Debug>(&self, attempt: impl FnOnce() -> Result<T, Error>) -> Error {
        let before = self.state();
        let error = attempt().expect_err("a call was made to fail");
        assert!(error.failure().is_some(), "the error has the answer of the call: {error}");
        assert_eq!(error.fenced(), [], "{error}");
        assert_eq!(self.state(), before, "a failure changes nothing: {error}");
        error
    }

    /// Everything of a space that a caller sees.
    pub(crate) fn state(&self) -> State {
        State {
            live: self.live(),
            windows: self.windows(),
            devices: self.devices(),
            fences: self.fences(),
            registered: self.registration().map_or_else(Vec::new, MemoryRegistration::registered),
            shared: self.pin_sharing().map_or_else(Vec::new, PinSharing::shared),
            kernel_owned: self.kernel_tables().map_or_else(Vec::new, KernelTables::kernel_owned),
        }
    }

    // DMA.

    /// Maps the unit at which results of the device show.
    pub(crate) fn map_scratch(&self) {
        self.must_map(SCRATCH, SCRATCH, 1, WHOLE);
    }

    fn dma(&mut self) -> &mut dyn Dma {
        self.dma.as_deref_mut().expect("the case needs a device that moves bytes")
    }

    fn pattern(&mut self) -> [u8; SPOT] {
        self.seed = self.seed.wrapping_add(1);
        let seed = self.seed;
        std::array::from_fn(|n| seed.wrapping_mul(31).wrapping_add(u8::try_from(n).unwrap_or(0)))
    }

    /// The bytes that the device reads at `at`.
    pub(crate) fn device_reads(&mut self, at: Iova) -> [u8; SPOT] {
        let (scratch, shown) = (self.at(SCRATCH), self.ram(SCRATCH, 1));
        shown.write(0, &[0xa5; SPOT]).expect("the memory of the bench is writable");
        self.dma().load(at, SPOT);
        self.dma().store(scratch, SPOT);
        bytes_of(&shown)
    }

    /// Has the device write bytes at `at` and returns them.
    pub(crate) fn device_writes(&mut self, at: Iova) -> [u8; SPOT] {
        let (sent, scratch, source) = (self.pattern(), self.at(SCRATCH), self.ram(SCRATCH, 1));
        source.write(0, &sent).expect("the memory of the bench is writable");
        self.dma().load(scratch, SPOT);
        self.dma().store(at, SPOT);
        sent
    }

    /// Asserts that the device reads `memory` at `at`.
    pub(crate) fn assert_readable(&mut self, at: Iova, memory: &HostMemory) {
        let sent = self.pattern();
        memory.write(0, &sent).expect("the memory of the bench is writable");
        assert_eq!(self.device_reads(at), sent, "the device reads other bytes at {at}");
    }

    /// Asserts that the device's write to `at` reaches `memory`.
    pub(crate) fn assert_writable(&mut self, at: Iova, memory: &HostMemory) {
        memory.write(0, &[0; SPOT]).expect("the memory of the bench is writable");
        let sent = self.device_writes(at);
        assert_eq!(bytes_of(memory), sent, "the device's write at {at} did not arrive");
    }

    /// Asserts that the device's write to `at` leaves `memory` alone.
    pub(crate) fn assert_not_writable(&mut self, at: Iova, memory: &HostMemory) {
        let kept = self.pattern();
        memory.write(0, &kept).expect("the memory of the bench is writable");
        self.device_writes(at);
        assert_eq!(bytes_of(memory), kept, "the device's write at {at} arrived");
    }

    /// Asserts that the device reads no bytes of `memory` at `at`.
    pub(crate) fn assert_not_readable(&mut self, at: Iova, memory: &HostMemory) {
        let kept = self.pattern();
        memory.write(0, &kept).expect("the memory of the bench is writable");
        assert_ne!(self.device_reads(at), kept, "the device reads memory at {at}");
    }
}

/// Everything of a space that a caller sees.
#[derive(Debug, PartialEq)]
pub(crate) struct State {
    live: Vec<Mapping>,
    windows: Snapshot,
    devices: Vec<String>,
    fences: Vec<Fence>,
    registered: Vec<HostMemory>,
    shared: Vec<HostMemory>,
    kernel_owned: Vec<IovaRange>,
}

/// Maps memory in a space that need not be the bench's.
pub(crate) fn map_in(
    space: &dyn PciAddressSpace,
    at: Iova,
    memory: &HostMemory,
    access: Access,
    unit: Unit,
) -> Result<(), Error> {
    space.map(MapRequest::new(at, memory, access).with_unit(unit))
}

pub(crate) fn range(first: Iova, len: u64) -> IovaRange {
    IovaRange::with_len(first, len).expect("a range of the case")
}

fn bytes_of(memory: &HostMemory) -> [u8; SPOT] {
    let mut bytes = [0; SPOT];
    memory.read(0, &mut bytes).expect("the memory of the bench is readable");
    bytes
}
