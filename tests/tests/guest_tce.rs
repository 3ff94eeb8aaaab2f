//! A guest's hypercalls on a POWER host in software: devices reach the entries of the table, in as few calls as there
//! can be.

use std::num::NonZeroUsize;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::open::Opened;
use dmaspace_core::door::Errno;
use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, SystemAddress};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener, Section};
use dmaspace_listener::{TranslatedWindow, Update};
use dmaspace_soft::{FaultMode, FaultPlan, SoftDevice, SoftHost};
use dmaspace_spapr_guest::{
    ConnectError, Entries, Fault, Liobn, Refusal, ReturnCode, SystemMemory, Tce, TceTable, TceTables,
};
use dmaspace_tests::soft::{host, open, range};

const MAP: &str = "VFIO_IOMMU_MAP_DMA";
const UNMAP: &str = "VFIO_IOMMU_UNMAP_DMA";

const GIB: u64 = 1 << 30;
const PAGE: u64 = 0x1000;
const LIOBN: u32 = 0x8000_0000;
const RAM: u64 = 16 << 20;
/// The address of the guest's lists.
const LIST: u64 = RAM - PAGE;

struct Memory {
    ram: HostMemory,
    /// The bytes the VMM believes to be there.
    len: u64,
}

impl SystemMemory for Memory {
    fn holds(&self, range: SystemRange) -> bool {
        range.last().get() < self.len
    }

    fn read(&self, at: SystemAddress, into: &mut [u8]) -> bool {
        self.ram.read(at.get(), into).is_ok()
    }

    fn write(&self, at: SystemAddress, from: &[u8]) -> bool {
        self.ram.write(at.get(), from).is_ok()
    }
}

/// A guest with one PHB, whose default window is 1 GiB.
struct Guest {
    soft: Arc<SoftHost>,
    device: SoftDevice,
    opened: Opened,
    _listener: Listener,
    window: TranslatedWindow,
    tables: TceTables,
    memory: Memory,
}

fn name() -> Liobn {
    Liobn::new(LIOBN)
}

impl Guest {
    /// The table is there, and not connected.
    fn apart() -> Self {
        let soft = host("powernv9");
        let opened = open(&soft, BackendKind::Spapr);
        let device = soft.device(opened.devices[0].name()).expect("it is there");
        let ram = HostMemory::zeroed(NonZeroUsize::new(RAM as usize).expect("not empty"), PageSize::K4);
        let ram = ram.expect("memory for the guest");
        let target = TargetMemory::new("ram", SystemAddress::new(0), ram.clone()).expect("a proper range");
        let mut listener = Listener::new(FrontEnd::default());
        listener.attach(opened.space.space().clone()).expect("an empty view fits");
        let window = Section::translated("tce", range(0, GIB), PageSize::K4);
        listener.commit(Update::new().adding(window).adding_target(target)).expect("it fits");
        let window = listener.translated(Iova::new(0)).expect("it is in force");
        let tables = TceTables::new();
        let table = TceTable::new(Iova::new(0), PageSize::K4, GIB / PAGE).expect("a proper table");
        tables.add(name(), table).expect("it is free");
        let memory = Memory { ram, len: RAM };
        Self { soft, device, opened, _listener: listener, window, tables, memory }
    }

    fn new() -> Self {
        let guest = Self::apart();
        guest.connect().expect("both are empty");
        guest.soft.reset_calls();
        guest
    }

    fn connect(&self) -> Result<(), ConnectError> {
        self.tables.connect(name(), self.window.clone())
    }

    fn put(&self, ioba: u64, tce: u64) -> Result<(), Refusal> {
        self.tables.h_put_tce(&self.memory, name(), Iova::new(ioba), Tce::new(tce))
    }

    fn list(&self, ioba: u64, list: &[u64]) -> Result<(), Refusal> {
        let bytes: Vec<u8> = list.iter().flat_map(|tce| tce.to_be_bytes()).collect();
        self.memory.ram.write(LIST, &bytes).expect("the guest's memory");
        let at = SystemAddress::new(LIST);
        self.tables.h_put_tce_indirect(&self.memory, name(), Iova::new(ioba), at, list.len() as u64)
    }

    fn stuff(&self, ioba: u64, tce: u64, count: u64) -> Result<(), Refusal> {
        self.tables.h_stuff_tce(&self.memory, name(), Iova::new(ioba), Tce::new(tce), count)
    }

    fn get(&self, ioba: u64) -> Result<u64, Refusal> {
        self.tables.h_get_tce(name(), Iova::new(ioba)).map(Tce::get)
    }

    /// The maps and unmaps since the last time.
    fn calls(&self) -> [u64; 2] {
        let calls = self.soft.calls();
        self.soft.reset_calls();
        [MAP, UNMAP].map(|name| calls.of(name))
    }

    /// The entries of the table: bus address, offset in RAM, rights.
    fn says(&self) -> Vec<(IovaRange, u64, Access)> {
        let live = self.tables.live(name()).expect("the table is there");
        live.into_iter().map(|run| (run.range, run.target.get(), run.access)).collect()
    }

    /// The host's mappings.
    fn has(&self) -> Vec<(IovaRange, u64, Access)> {
        let mappings = self.opened.space.space().mappings(IovaRange::all());
        let base = self.memory.ram.address();
        mappings.into_iter().map(|live| (live.range, live.memory.address().get() - base.get(), live.access)).collect()
    }

    fn assert_agreed(&self) {
        assert_eq!(self.says(), self.has());
    }

    /// The device and the table agree on `ioba`.
    fn assert_seen(&self, ioba: u64) {
        let translate = |access| self.tables.translate(name(), Iova::new(ioba), access);
        let mut found = [0; 8];
        let read = self.device.dma_read(Iova::new(ioba), &mut found);
        match translate(Access::READ).expect("the table is there") {
            Ok((at, _)) => {
                let mut there = [0; 8];
                self.memory.ram.read(at.get(), &mut there).expect("the guest's memory");
                assert_eq!((read, found), (Ok(()), there), "{ioba:#x}");
            }
            Err(fault) => assert!(read.is_err(), "{ioba:#x}: {fault}"),
        }
        let sent = (ioba ^ 0x5a5a_5a5a).to_be_bytes();
        let write = self.device.dma_write(Iova::new(ioba), &sent);
        match translate(Access::WRITE).expect("the table is there") {
            Ok((at, _)) => {
                let mut there = [0; 8];
                self.memory.ram.read(at.get(), &mut there).expect("the guest's memory");
                assert_eq!((write, there), (Ok(()), sent), "{ioba:#x}");
            }
            Err(fault) => assert!(write.is_err(), "{ioba:#x}: {fault}"),
        }
    }
}

/// The entries of 512 pages from `target` on.
fn pages(target: u64, rights: u64) -> Vec<u64> {
    (0..512).map(|n| (target + n * PAGE) | rights).collect()
}

#[test]
fn five_hundred_and_twelve_contiguous_entries_are_one_call() {
    let guest = Guest::new();
    assert_eq!(guest.list(0x20_0000, &pages(0, 3)), Ok(()));
    assert_eq!(guest.calls(), [1, 0]);
    // An entry that is there already takes no call, an entry with another target is replaced in one call.
    assert_eq!(guest.list(0x20_0000, &pages(0, 3)), Ok(()));
    assert_eq!(guest.calls(), [0, 0]);
    assert_eq!(guest.list(0x20_0000, &pages(0x20_0000, 1)), Ok(()));
    assert_eq!(guest.calls(), [1, 0]);
    assert_eq!(guest.list(0x20_0000, &[0; 512]), Ok(()));
    assert_eq!(guest.calls(), [0, 1]);
    guest.assert_agreed();
}

#[test]
fn clearing_a_whole_window_is_one_call_and_clearing_it_again_none() {
    let guest = Guest::new();
    for ioba in [0, 0x123_0000, GIB / 2, GIB - 512 * PAGE] {
        assert_eq!(guest.list(ioba, &pages(0, 3)), Ok(()));
    }
    guest.calls();
    assert_eq!(guest.stuff(0, 0, GIB / PAGE), Ok(()));
    assert_eq!(guest.calls(), [0, 1]);
    assert_eq!((guest.says(), guest.has()), (vec![], vec![]));
    assert_eq!(guest.stuff(0, 0, GIB / PAGE), Ok(()));
    assert_eq!(guest.calls(), [0, 0]);
}

#[test]
fn the_device_sees_the_entries_of_the_table() {
    let guest = Guest::new();
    for page in 0..RAM / PAGE {
        guest.memory.ram.write(page * PAGE, &page.to_be_bytes()).expect("the guest's memory");
    }
    let last = GIB - PAGE;
    assert_eq!(guest.put(0x5000, 0x9003), Ok(()));
    assert_eq!(guest.put(last, 0xa001), Ok(()));
    assert_eq!(guest.list(0x10_0000, &[0x3003, 0x4003, 0x4001, 0, 0x8003]), Ok(()));
    assert_eq!(guest.stuff(0x30_0000, 0xb003, 3), Ok(()));
    let spots = [0x5000, 0x6000, last, 0x10_0000, 0x10_1008, 0x10_2000, 0x10_3000, 0x10_4000, 0x30_0000, 0x30_2000];
    for ioba in spots.iter() {
        guest.assert_seen(*ioba);
    }
    guest.assert_agreed();
    // Replaced, made read-only, cleared.
    assert_eq!(guest.put(0x5000, 0xc003), Ok(()));
    assert_eq!(guest.list(0x10_0000, &[0x3001, 0, 0x4003]), Ok(()));
    assert_eq!(guest.stuff(0x30_0000, 0, 2), Ok(()));
    for ioba in spots.iter() {
        guest.assert_seen(*ioba);
    }
    guest.assert_agreed();
    let fault = guest.tables.translate(name(), Iova::new(0x30_0000), Access::READ);
    assert_eq!(fault, Some(Err(Fault::NotMapped(Iova::new(0x30_0000)))));
}

#[test]
fn random_hypercalls_keep_table_host_and_device_agreed() {
    let guest = Guest::new();
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..500 {
        let ioba = random(64) * PAGE;
        let tce = |n| (n * PAGE) | [0, 1, 3, 3][(n % 4) as usize];
        let result = match random(4) {
            0 => guest.put(ioba, tce(random(1024))),
            1 => guest.stuff(ioba, 0, random(64)),
            2 => guest.stuff(ioba, tce(random(1024)), random(4)),
            _ => {
                let (first, count) = (random(1024), random(32));
                guest.list(ioba, &(0..count).map(|n| ((first + n) * PAGE) | 3).collect::<Vec<_>>())
            }
        };
        assert_eq!(result, Ok(()));
        guest.assert_agreed();
        guest.assert_seen(random(96) * PAGE);
    }
}

#[test]
fn a_host_that_refuses_one_change_has_made_none() {
    // Replaces two, puts one, clears two.
    let (before, list) = ([0x1003, 0x2003, 0, 0x7003, 0x8003], [0x4003, 0x5003, 0xa003, 0, 0]);
    let codes = [(Errno::EIO, ReturnCode::Hardware), (Errno::ENOMEM, ReturnCode::NotEnoughResources)];
    for (nth, (errno, code)) in [1, 2].into_iter().flat_map(|nth| codes.map(|code| (nth, code))) {
        let guest = Guest::new();
        assert_eq!(guest.list(0, &before), Ok(()));
        let agreed = guest.says();
        guest.soft.plan_faults(&[FaultPlan::nth(nth, FaultMode::FailBefore).of(MAP).with(errno)]);
        let refused = guest.list(0, &list);
        assert_eq!((ReturnCode::of(&refused), guest.soft.faults_fired()), (code, 1), "{nth}: {refused:?}");
        assert_eq!((guest.says(), guest.has()), (agreed.clone(), agreed), "{nth}");
        assert_eq!(guest.list(0, &list), Ok(()));
        guest.assert_agreed();
    }
}

#[test]
fn entries_that_cannot_be_cleared_stay_in_the_table() {
    let guest = Guest::new();
    assert_eq!(guest.list(0, &[0x1003, 0x2003, 0, 0x7003]), Ok(()));
    let (says, has) = (guest.says(), guest.has());
    // However often it is asked.
    let never = (1..=64).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(UNMAP));
    guest.soft.plan_faults(&never.collect::<Vec<_>>());
    let refused = guest.list(0, &[0x4003, 0x5003, 0, 0]);
    guest.soft.plan_faults(&[]);
    assert_eq!(ReturnCode::of(&refused), ReturnCode::Hardware, "{refused:?}");
    assert_eq!(guest.says(), says);
    // The space fenced the entry that it could not clear: a device still reaches it.
    assert_eq!(guest.has(), has[..1]);
    for ioba in [0, PAGE, 2 * PAGE, 3 * PAGE].iter() {
        guest.assert_seen(*ioba);
    }
    // The fenced range refuses entries, the rest goes on.
    assert_eq!(ReturnCode::of(&guest.put(3 * PAGE, 0x9003)), ReturnCode::Hardware);
    assert_eq!(guest.put(0, 0x4003), Ok(()));
}

#[test]
fn entries_that_the_host_does_not_unmap_stay_in_the_table() {
    let guest = Guest::new();
    // However often it is asked.
    let never = (1..=64).map(|n| FaultPlan::nth(n, FaultMode::FailBefore).of(UNMAP));
    let second = FaultPlan::nth(2, FaultMode::FailBefore).of(MAP);
    guest.soft.plan_faults(&never.chain([second]).collect::<Vec<_>>());
    let refused = guest.list(0, &[0x1003, 0x9003]);
    guest.soft.plan_faults(&[]);
    assert_eq!(ReturnCode::of(&refused), ReturnCode::Hardware);
    // A device may still get there.
    assert_eq!((guest.get(0), guest.get(PAGE)), (Ok(0x1003), Ok(0)));
    guest.assert_seen(0);
    guest.assert_seen(PAGE);
}

#[test]
fn memory_that_only_the_vmm_believes_in_is_refused_by_the_host() {
    let mut guest = Guest::new();
    guest.memory.len = 2 * RAM;
    let refused = guest.list(0, &[0x1003, RAM | 3]);
    assert_eq!(ReturnCode::of(&refused), ReturnCode::Parameter, "{refused:?}");
    assert_eq!((guest.says(), guest.has()), (vec![], vec![]));
}

#[test]
fn a_table_puts_its_entries_into_the_window_it_is_connected_to() {
    let guest = Guest::apart();
    assert_eq!(guest.list(0x20_0000, &pages(0, 3)), Ok(()));
    assert_eq!(guest.put(0, 0x7001), Ok(()));
    assert_eq!(guest.has(), []);
    guest.soft.reset_calls();
    guest.soft.plan_faults(&[FaultPlan::nth(2, FaultMode::FailBefore).of(MAP)]);
    assert!(matches!(guest.connect(), Err(ConnectError::Host(_))));
    guest.soft.plan_faults(&[]);
    assert_eq!(guest.has(), []);
    guest.calls();
    assert_eq!(guest.connect(), Ok(()));
    assert_eq!(guest.calls(), [2, 0]);
    guest.assert_agreed();
    assert_eq!(guest.connect(), Err(ConnectError::Connected(name())));
    assert!(guest.tables.disconnect(name()).is_some());
    assert_eq!(guest.put(0, 0), Ok(()));
    assert_eq!(guest.calls(), [0, 0]);
}

#[test]
fn a_table_is_not_connected_to_a_window_that_is_not_its_own() {
    let guest = Guest::apart();
    let other = Liobn::new(1);
    let mut table = TceTable::new(Iova::new(0), PageSize::K64, GIB >> 16).expect("a proper table");
    table.write(Iova::new(0), Entries::List(&[Tce::new(0x1_0003)])).expect("inside");
    guest.tables.add(other, table).expect("it is free");
    let refused = guest.tables.connect(other, guest.window.clone());
    let whole = range(0, GIB);
    assert_eq!(refused, Err(ConnectError::OtherWindow(whole, PageSize::K64, whole, PageSize::K4)));
    assert_eq!(
        guest.tables.connect(Liobn::new(2), guest.window.clone()),
        Err(ConnectError::NoSuchTable(Liobn::new(2)))
    );
    assert!(guest.tables.add(other, TceTable::new(Iova::new(0), PageSize::K4, 1).expect("a table")).is_err());
    assert_eq!(guest.has(), []);
}

#[test]
fn processors_that_call_at_once_leave_table_and_host_agreed() {
    let guest = Guest::new();
    std::thread::scope(|scope| {
        for number in 1..=3u64 {
            let guest = &guest;
            scope.spawn(move || {
                for n in 0..300 {
                    let ioba = (n * 7 + number) % 16 * PAGE;
                    let tce = if n % 3 == 0 { 0 } else { ((n + number) * PAGE) | 3 };
                    assert_eq!(guest.put(ioba, tce), Ok(()));
                }
            });
        }
    });
    guest.assert_agreed();
}
