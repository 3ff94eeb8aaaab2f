//! The fixture a scenario plays on: a space, a device attached to it, and the guest's RAM.

use dmaspace_core::contract::MapRequest;
use std::any::Any;
use std::sync::Arc;

use dmaspace_core::contract::WindowRequest;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace};

use crate::device::TestDevice;
use crate::limits::LockLimit;
use crate::ram::{Ram, SPOT, pattern};

/// The RAM of the guests of the scenarios.
pub const RAM: usize = 16 << 20;

/// A space with a device on some host.
pub struct Fixture {
    /// Dropped first: on real hosts a group cannot be left while its device is open.
    pub device: Box<dyn TestDevice>,
    /// The space the device is attached to.
    pub space: Arc<dyn PciAddressSpace>,
    /// The limit on the memory that this process may lock.
    pub lock_limit: Box<dyn LockLimit>,
    /// The guest's RAM.
    pub ram: Ram,
    seed: u64,
    scratch: Option<(Iova, HostMemory)>,
    /// Whatever else has to stay open meanwhile. Dropped last, in this order.
    kept: Vec<Box<dyn Any>>,
}

/// A write of the device's that is under way.
pub struct Transfer {
    at: Iova,
    memory: HostMemory,
    sent: [u8; SPOT],
}

impl Fixture {
    /// Sets the fixture.
    pub fn new(space: Arc<dyn PciAddressSpace>, device: Box<dyn TestDevice>, lock_limit: Box<dyn LockLimit>) -> Self {
        Self { device, space, lock_limit, ram: Ram::new(RAM), seed: 0, scratch: None, kept: Vec::new() }
    }

    /// Keeps something open for as long as the fixture stands.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any) -> Self {
        self.kept.push(Box::new(kept));
        self
    }

    /// Maps the first MiB of the guest's RAM at 0: on hosts that want it, the RAM is registered and a window created;
    /// in a pool, its pins are shared.
    pub fn map_first_mib(&self) {
        if let Some(registration) = self.space.powers().registration {
            registration.register(self.ram.all()).expect("the guest's RAM can be registered");
        }
        if let Some(sharing) = self.space.powers().pin_sharing {
            sharing.share_pins(self.ram.all()).expect("the pins of the guest's RAM can be shared");
        }
        if let Some(control) = self.space.powers().window_control {
            let range = IovaRange::with_len(Iova::new(0), 1 << 30).expect("a range of the fixture");
            control.create_window(WindowRequest::new(range, PageSize::K4)).expect("a window of 1 GiB at 0");
        }
        let first = self.ram.slice(0, 1 << 20);
        self.space.map(MapRequest::new(Iova::new(0), &first, Access::READ_WRITE)).expect("nothing is mapped yet");
    }

    /// A host whose windows are created, and that wants memory registered: POWER.
    pub fn creates_windows(&self) -> bool {
        self.space.powers().window_control.is_some()
    }

    /// Sets memory that the device surely reaches: bytes that it read elsewhere are shown there, bytes that it writes
    /// elsewhere come from there.
    pub fn show_results_at(&mut self, at: Iova, memory: HostMemory) {
        self.scratch = Some((at, memory));
    }

    fn scratch(&self) -> (Iova, HostMemory) {
        self.scratch.clone().expect("the scenario said where results show")
    }

    fn fresh(&mut self) -> [u8; SPOT] {
        self.seed += 1;
        pattern(self.seed << 40)
    }

    /// The bytes that the device reads at `at`.
    fn device_reads(&mut self, at: Iova) -> [u8; SPOT] {
        let (scratch, shown) = self.scratch();
        shown.write(0, &[0xa5; SPOT]).expect("scratch memory");
        self.device.load(at, SPOT);
        self.device.store(scratch, SPOT);
        let mut bytes = [0; SPOT];
        shown.read(0, &mut bytes).expect("scratch memory");
        bytes
    }

    fn device_writes(&mut self, at: Iova, bytes: [u8; SPOT]) {
        let (scratch, source) = self.scratch();
        source.write(0, &bytes).expect("scratch memory");
        self.device.load(scratch, SPOT);
        self.device.store(at, SPOT);
    }

    /// The device begins to write to `at`, where `memory` is mapped.
    pub fn begin_transfer(&mut self, at: Iova, memory: HostMemory) -> Transfer {
        let sent = self.fresh();
        memory.write(0, &sent).expect("guest RAM");
        self.device.load(at, SPOT);
        memory.write(0, &[0; SPOT]).expect("guest RAM");
        self.device.begin_store(at, SPOT);
        Transfer { at, memory, sent }
    }

    /// The transfer ends, and all of it arrived.
    pub fn end_transfer(&mut self, transfer: Transfer) {
        self.device.finish();
        let Transfer { at, memory, sent } = transfer;
        assert_eq!(bytes_of(&memory), sent, "the device's write at {at} did not arrive");
    }

    /// The device reads `memory` at `at`, byte for byte.
    pub fn assert_readable(&mut self, at: Iova, memory: &HostMemory) {
        let sent = self.fresh();
        memory.write(0, &sent).expect("guest RAM");
        assert_eq!(self.device_reads(at), sent, "the device reads other bytes at {at}");
    }

    /// And writes it.
    pub fn assert_writable(&mut self, at: Iova, memory: &HostMemory) {
        let sent = self.fresh();
        // The same may have been sent here from another fixture.
        memory.write(0, &[0; SPOT]).expect("guest RAM");
        self.device_writes(at, sent);
        assert_eq!(bytes_of(memory), sent, "the device's write at {at} did not arrive");
    }

    /// The device's write to `at` goes nowhere: `memory` behind it stays as it is.
    pub fn assert_write_refused(&mut self, at: Iova, memory: &HostMemory) {
        let (kept, sent) = (self.fresh(), self.fresh());
        memory.write(0, &kept).expect("guest RAM");
        self.device_writes(at, sent);
        assert_eq!(bytes_of(memory), kept, "the device wrote to read-only memory at {at}");
    }

    /// Nothing is mapped at `at`: no page of the guest changes when the device writes there, and none is read.
    pub fn assert_unreached(&mut self, at: Iova) {
        let (scratch, _) = self.scratch();
        let offset = at.get() & 0xfff;
        self.device.load(scratch, SPOT);
        // The scratch page carries a stamp like any other page while the device writes its earlier content.
        self.ram.stamp(offset);
        self.device.store(at, SPOT);
        if let Some(page) = self.ram.changed_page(offset) {
            panic!("the device's write to {at}, where nothing is mapped, changed page {page:#x} of the guest's RAM");
        }
        let read = self.device_reads(at);
        if let Some(page) = self.ram.page_stamped(&read) {
            panic!("the device read page {page:#x} of the guest's RAM at {at}, where nothing is mapped");
        }
    }

    /// The first, a middle and the last page of a mapped range, in both directions if `writable`.
    pub fn assert_range(&mut self, range: IovaRange, memory: &HostMemory, writable: bool) {
        let len = memory.len().get();
        let last = len - SPOT as u64;
        let middle = (len / 2) & !0xfff;
        let mut spots = vec![0, middle, last];
        spots.dedup();
        for offset in spots {
            let at = Iova::new(range.first().get() + offset);
            let spot = memory.slice(offset, SPOT as u64).expect("inside the range's memory");
            self.assert_readable(at, &spot);
            if writable { self.assert_writable(at, &spot) } else { self.assert_write_refused(at, &spot) }
        }
    }
}

fn bytes_of(memory: &HostMemory) -> [u8; SPOT] {
    let mut bytes = [0; SPOT];
    memory.read(0, &mut bytes).expect("guest RAM");
    bytes
}
