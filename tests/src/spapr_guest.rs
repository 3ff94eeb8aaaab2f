//! A guest on POWER with one bridge: its memory, its RTAS calls and hypercalls, and the hosts behind it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace::open::Opened;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange, PageSize, PciAddressSpace, SystemAddress, Windows};
use dmaspace_listener::section::TargetMemory;
use dmaspace_listener::{FrontEnd, Listener};
use dmaspace_listener::{Report, Update};
use dmaspace_soft::{SoftDevice, SoftHost};
use dmaspace_spapr_guest::hypercalls::{H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE};
use dmaspace_spapr_guest::{
    GuestWindow, InKernelTables, Layout, PciHostBridge, ReturnCode, RtasAnswer, RtasError, TceTables, Tokens,
};

use crate::soft::open;

/// The bytes of its memory that are there. More may be believed in.
pub const RAM: u64 = 16 << 20;

/// The address of the buffer of RTAS calls; lists of entries use the rest of its page.
const BUFFER: u64 = RAM - 0x2000;
/// The address of the lists of entries.
pub const LIST: u64 = RAM - 0x1000;

/// A configuration address.
pub const PE: u32 = 0x2000;
/// The halves of the bridge's unit ID.
pub const UNIT: [u32; 2] = [0x800_0000, 0x2000_0000];

/// The first window's LIOBN.
pub const FIRST: u64 = 0x8000_0000;
/// The second one's.
pub const SECOND: u64 = 0x8000_0001;

/// The guest. Its bridge's first reset is its own.
#[derive(Debug)]
pub struct SpaprGuest {
    /// Its one bridge, and the listener of that.
    pub bridges: Vec<(PciHostBridge, Listener)>,
    /// Its memory.
    pub memory: HostMemory,
}

/// The reach of devices: bus address, offset in the guest's memory, access.
pub type Entry = (IovaRange, u64, Access);

impl SpaprGuest {
    /// Without a host.
    pub fn new(layout: Layout) -> Self {
        Self::with_ram(layout, RAM)
    }

    /// With so much memory, of which no more is taken than is used.
    pub fn with_ram(layout: Layout, len: u64) -> Self {
        let len = NonZeroUsize::new(usize::try_from(len).expect("it fits")).expect("not empty");
        let ram = HostMemory::zeroed(len, PageSize::K64).expect("memory for the guest");
        let bridge = PciHostBridge::new(layout, Arc::new(TceTables::new())).expect("a proper layout");
        let mut listener = Listener::new(FrontEnd::default());
        let target = TargetMemory::new("spapr.ram", SystemAddress::new(0), ram.clone()).expect("a proper range");
        listener.commit(Update::new().adding_target(target)).expect("no space that could refuse");
        Self { bridges: vec![(bridge, listener)], memory: ram }
    }

    /// A guest on a space of the host's, before its first reset. The host's windows bound the layout.
    pub fn on(soft: &Arc<SoftHost>, backend: BackendKind) -> (Self, Opened) {
        let opened = open(soft, backend);
        let layout = Layout::pseries(0).placed_on([opened.space.space()]).expect("there is room");
        let mut guest = Self::new(layout);
        guest.attach(&opened).expect("an empty view fits");
        (guest, opened)
    }

    /// Its bridge.
    pub fn bridge(&self) -> &PciHostBridge {
        &self.bridges[0].0
    }

    /// Its listener.
    pub fn listener(&mut self) -> &mut Listener {
        &mut self.bridges[0].1
    }

    /// A guest with a bridge that hands windows to the kernel where it can.
    pub fn with_kernel(mut self, kernel: Arc<dyn InKernelTables>) -> Self {
        let (bridge, listener) = self.bridges.remove(0);
        self.bridges.push((bridge.with_kernel(kernel), listener));
        self
    }

    /// Its memory.
    pub fn ram(&self) -> &HostMemory {
        &self.memory
    }

    /// Its windows.
    pub fn windows(&self) -> Vec<GuestWindow> {
        self.bridge().windows().to_vec()
    }

    /// Plugs a host in.
    ///
    /// # Errors
    /// Why it was not, in words.
    pub fn attach(&mut self, opened: &Opened) -> Result<(), String> {
        let (bridge, listener) = &mut self.bridges[0];
        bridge.attach(listener, opened.space.space().clone()).map(drop).map_err(|error| error.to_string())
    }

    /// Makes an RTAS call. Returns the status, the other results, and the change it made or the reason for the refusal.
    pub fn rtas(&mut self, token: u32, arguments: &[u32], results: usize) -> (Vec<u32>, Result<Report, RtasError>) {
        let counts = [token, arguments.len() as u32, results as u32];
        let cells = counts.iter().chain(arguments);
        let bytes: Vec<u8> = cells.flat_map(|cell| cell.to_be_bytes()).collect();
        self.memory.write(BUFFER, &bytes).expect("inside its RAM");
        let answer = Tokens::default().call(&mut self.bridges, &self.memory, SystemAddress::new(BUFFER));
        let Ok(RtasAnswer::Called(result)) = answer else { panic!("not one of the four calls: {answer:?}") };
        let mut bytes = vec![0; 4 * results];
        self.memory.read(BUFFER + 12 + 4 * arguments.len() as u64, &mut bytes).expect("inside its RAM");
        let cells = bytes.chunks_exact(4).map(|cell| u32::from_be_bytes(cell.try_into().expect("a cell")));
        (cells.collect(), result)
    }

    /// ibm,query-pe-dma-window with six results.
    pub fn query(&mut self) -> Vec<u32> {
        self.rtas(Tokens::default().query, &[PE, UNIT[0], UNIT[1]], 6).0
    }

    /// ibm,create-pe-dma-window: the LIOBN and where it begins, or the status and why.
    ///
    /// # Errors
    /// Status and reason.
    pub fn create(&mut self, page_shift: u32, window_shift: u32) -> Result<(u64, u64), (i32, RtasError)> {
        let arguments = [PE, UNIT[0], UNIT[1], page_shift, window_shift];
        let (results, done) = self.rtas(Tokens::default().create, &arguments, 4);
        match done {
            Ok(_) => Ok((u64::from(results[1]), (u64::from(results[2]) << 32) | u64::from(results[3]))),
            Err(why) => Err((results[0] as i32, why)),
        }
    }

    /// ibm,remove-pe-dma-window: the status.
    pub fn remove(&mut self, liobn: u64) -> i32 {
        self.rtas(Tokens::default().remove, &[u32::try_from(liobn).expect("a LIOBN")], 1).0[0] as i32
    }

    /// ibm,reset-pe-dma-window: the status.
    pub fn reset(&mut self) -> i32 {
        self.rtas(Tokens::default().reset, &[PE, UNIT[0], UNIT[1]], 1).0[0] as i32
    }

    /// H_PUT_TCE: the return code.
    pub fn put(&self, liobn: u64, ioba: u64, tce: u64) -> i64 {
        self.hypercall(H_PUT_TCE, [liobn, ioba, tce, 0])
    }

    /// A hypercall by its token: the return code.
    pub fn hypercall(&self, token: u64, registers: [u64; 4]) -> i64 {
        let answer = self.bridge().tables().hypercall(&self.memory, token, registers);
        ReturnCode::of(&answer.expect("one of the four calls")).get()
    }

    /// Writes a list of entries.
    pub fn write_list(&self, at: u64, list: &[u64]) {
        let bytes: Vec<u8> = list.iter().flat_map(|tce| tce.to_be_bytes()).collect();
        self.memory.write(at, &bytes).expect("inside its RAM");
    }

    /// H_PUT_TCE_INDIRECT, the list being written to `at` first: the return code.
    pub fn put_list(&self, liobn: u64, ioba: u64, at: u64, list: &[u64]) -> i64 {
        self.write_list(at, list);
        self.hypercall(H_PUT_TCE_INDIRECT, [liobn, ioba, at, list.len() as u64])
    }

    /// H_STUFF_TCE: the return code.
    pub fn stuff(&self, liobn: u64, ioba: u64, tce: u64, count: u64) -> i64 {
        self.hypercall(H_STUFF_TCE, [liobn, ioba, tce, count])
    }

    /// The entries of the tables.
    pub fn says(&self) -> Vec<Entry> {
        let live = self.windows().into_iter().filter_map(|window| self.bridge().tables().live(window.liobn));
        let mut entries: Vec<_> = live.flatten().map(|run| (run.range, run.target.get(), run.access)).collect();
        entries.sort_by_key(|(range, ..)| *range);
        entries
    }

    /// The mappings of a host.
    pub fn has(&self, space: &dyn PciAddressSpace) -> Vec<Entry> {
        let base = self.memory.address();
        let mappings = space.mappings(IovaRange::all()).into_iter();
        mappings.map(|live| (live.range, live.memory.address().get() - base.get(), live.access)).collect()
    }

    /// A device gets where the table says, for `ioba` of a window.
    pub fn assert_reaches(&self, device: &SoftDevice, liobn: u64, ioba: u64) {
        let liobn = dmaspace_spapr_guest::Liobn::new(u32::try_from(liobn).expect("a LIOBN"));
        let mut found = [0; 8];
        let read = device.dma_read(Iova::new(ioba), &mut found);
        match self.bridge().tables().translate(liobn, Iova::new(ioba), Access::READ) {
            Some(Ok((at, _))) => {
                let mut there = [0; 8];
                self.memory.read(at.get(), &mut there).expect("inside its RAM");
                assert_eq!((read, found), (Ok(()), there), "{ioba:#x}");
            }
            _ => assert!(read.is_err(), "{ioba:#x}"),
        }
    }

    /// Every page of its memory begins with its number.
    pub fn stamp_memory(&self) {
        for page in 0..(RAM - 0x2000) / 0x1000 {
            self.memory.write(page * 0x1000, &(page + 1).to_be_bytes()).expect("inside its RAM");
        }
    }
}

/// A space's windows: where, and the pages.
pub fn windows_of(space: &dyn PciAddressSpace) -> Vec<(IovaRange, PageSize)> {
    let windows: Arc<Windows> = space.windows().windows;
    windows.iter().map(|window| (window.range, window.granule())).collect()
}
