//! RTAS calls of a guest without a host, and their effects.

use std::cell::RefCell;
use std::sync::Arc;

use dmaspace_core::words::address::SystemRange;
use dmaspace_core::{Access, Iova, SystemAddress};
use dmaspace_listener::{EntryRun, FrontEnd, Listener};

use super::{BadBuffer, MOST_CELLS, RtasAnswer, RtasError, Tokens};
use crate::{GuestWindow, Layout, Liobn, PciHostBridge, SystemMemory, Tce, TceTables};
use After::{Both, Nowhere, OnlyHigh, Reset, Used};

pub(super) const QUERY: u32 = 0x2026;
pub(super) const CREATE: u32 = 0x2027;
pub(super) const REMOVE: u32 = 0x2028;
pub(super) const RESET: u32 = 0x2029;

/// The bridge's unit ID, and the configuration address of a device below it.
pub(super) const HI: u32 = 0x800_0000;
pub(super) const LO: u32 = 0x2000_0000;
pub(super) const PE: u32 = 0x2000;

pub(super) const FIRST: u32 = 0x8000_0000;
pub(super) const SECOND: u32 = 0x8000_0001;

/// The calls made before, and the windows that exist then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum After {
    /// The default window.
    Reset,
    /// The default window, and 4 GiB at 2^59 in pages of 64K.
    Both,
    /// Both, with an entry in each.
    Used,
    /// The one at 2^59.
    OnlyHigh,
    /// No window.
    Nowhere,
}

/// Memory from 0 on.
struct Memory(RefCell<Vec<u8>>);

impl Memory {
    fn new() -> Self {
        Self(RefCell::new(vec![0xee; 0x2000]))
    }

    fn cells(&self, at: usize, count: usize) -> Vec<u32> {
        let bytes = self.0.borrow();
        let cells = bytes[at..at + 4 * count].chunks_exact(4).map(|cell| cell.try_into().expect("a cell"));
        cells.map(u32::from_be_bytes).collect()
    }

    fn set(&self, at: usize, cells: &[u32]) {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.0.borrow_mut()[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}

impl SystemMemory for Memory {
    fn holds(&self, range: SystemRange) -> bool {
        range.last().get() < 0x2000
    }

    fn read(&self, at: SystemAddress, into: &mut [u8]) -> bool {
        let there = SystemRange::with_len(at, into.len() as u64).is_ok_and(|range| self.holds(range));
        if there {
            let at = usize::try_from(at.get()).expect("inside");
            into.copy_from_slice(&self.0.borrow()[at..at + into.len()]);
        }
        there
    }

    /// The last page is ROM.
    fn write(&self, at: SystemAddress, from: &[u8]) -> bool {
        let there = at.get().checked_add(from.len() as u64).is_some_and(|end| end <= 0x1000);
        if there {
            let at = usize::try_from(at.get()).expect("inside");
            self.0.borrow_mut()[at..at + from.len()].copy_from_slice(from);
        }
        there
    }
}

/// A guest with one bridge and no host.
pub(super) struct Guest {
    bridges: Vec<(PciHostBridge, Listener)>,
    memory: Memory,
}

const BUFFER: usize = 0x40;

impl Guest {
    pub(super) fn after(before: After) -> Self {
        let bridge = PciHostBridge::new(Layout::pseries(0), Arc::new(TceTables::new())).expect("a proper layout");
        let bridges = vec![(bridge, Listener::new(FrontEnd::default()))];
        let mut guest = Self { bridges, memory: Memory::new() };
        guest.succeed(RESET, &[PE, HI, LO], 1);
        if before != Reset && before != Nowhere {
            guest.succeed(CREATE, &[PE, HI, LO, 16, 32], 4);
        }
        match before {
            Reset | Both => {}
            Used => {
                let tables = guest.bridges[0].0.tables();
                let put = tables.h_put_tce(&guest.memory, Liobn::new(FIRST), Iova::new(0x5000), Tce::new(0x1003));
                let (at, tce) = (Iova::new(1 << 59), Tce::new(0xffff_0000));
                let stuffed = tables.h_stuff_tce(&guest.memory, Liobn::new(SECOND), at, tce, 4);
                assert_eq!([put, stuffed], [Ok(()), Ok(())]);
            }
            OnlyHigh | Nowhere => guest.succeed(REMOVE, &[FIRST], 1),
        }
        guest
    }

    pub(super) fn call(&mut self, token: u32, arguments: &[u32], results: u32) -> Result<RtasAnswer, BadBuffer> {
        self.memory.0.borrow_mut().fill(0xee);
        let counts = [token, u32::try_from(arguments.len()).expect("few"), results];
        self.memory.set(BUFFER, &[&counts, arguments].concat());
        Tokens::default().call(&mut self.bridges, &self.memory, SystemAddress::new(BUFFER as u64))
    }

    fn succeed(&mut self, token: u32, arguments: &[u32], results: u32) {
        let answer = self.call(token, arguments, results);
        assert!(matches!(answer, Ok(RtasAnswer::Called(Ok(_)))), "{token:x} {arguments:x?}: {answer:?}");
    }

    /// The first `count` results of a call with so many arguments.
    pub(super) fn results(&self, arguments: usize, count: usize) -> Vec<u32> {
        self.memory.cells(BUFFER + 12 + 4 * arguments, count)
    }

    /// Windows, live entries and sections.
    pub(super) fn state(&self) -> (Vec<GuestWindow>, Vec<Option<Vec<EntryRun>>>, Vec<String>) {
        let (bridge, listener) = &self.bridges[0];
        let windows = bridge.windows().to_vec();
        let live = windows.iter().map(|window| bridge.tables().live(window.liobn)).collect();
        (windows, live, listener.sections().map(ToString::to_string).collect())
    }
}

#[test]
fn a_query_describes_the_offer_in_five_results_or_six() {
    let mut guest = Guest::after(Reset);
    guest.succeed(QUERY, &[PE, HI, LO], 6);
    assert_eq!(guest.results(3, 6), [0, 1, 0x20, 0, 0x107, 0]);
    guest.succeed(QUERY, &[PE, HI, LO], 5);
    assert_eq!(guest.results(3, 5), [0, 1, 0x8000_0000, 0x107, 0]);
    let mut guest = Guest::after(Nowhere);
    guest.succeed(QUERY, &[PE, HI, LO], 5);
    assert_eq!(guest.results(3, 5), [0, 2, 0x8000_0000, 0x107, 0]);
    // QEMU still promises entries, and pages.
    let mut guest = Guest::after(Both);
    guest.succeed(QUERY, &[PE, HI, LO], 6);
    assert_eq!(guest.results(3, 6), [0; 6]);
}

#[test]
fn windows_are_created_where_a_platform_has_room_for_them() {
    let mut guest = Guest::after(Reset);
    guest.succeed(CREATE, &[PE, HI, LO, 24, 31], 4);
    assert_eq!(guest.results(5, 4), [0, SECOND, 0x800_0000, 0]);
    // Without the default window, there is room at 0 next to one at 2^59. (QEMU would put it at 2^59, too.)
    guest.succeed(REMOVE, &[FIRST], 1);
    guest.succeed(CREATE, &[PE, HI, LO, 12, 30], 4);
    assert_eq!(guest.results(5, 4), [0, FIRST, 0, 0]);
    // A window at 0 ends before the MSI window: a larger one is made at 2^59.
    let mut guest = Guest::after(Nowhere);
    guest.succeed(CREATE, &[PE, HI, LO, 16, 42], 4);
    assert_eq!(guest.results(5, 4), [0, FIRST, 0, 0]);
    let mut guest = Guest::after(Nowhere);
    guest.succeed(CREATE, &[PE, HI, LO, 16, 43], 4);
    assert_eq!(guest.results(5, 4), [0, FIRST, 0x800_0000, 0]);
}

#[test]
fn removing_the_last_window_restores_the_default_one() {
    let reset = Guest::after(Reset).state();
    let mut guest = Guest::after(OnlyHigh);
    guest.succeed(REMOVE, &[SECOND], 1);
    assert_eq!(guest.state(), reset);
    // Created at 0 it is not the default one, but one like any other.
    let mut guest = Guest::after(Nowhere);
    guest.succeed(CREATE, &[PE, HI, LO, 16, 36], 4);
    assert!(!guest.state().0[0].is_default);
    guest.succeed(REMOVE, &[FIRST], 1);
    assert_eq!(guest.state(), reset);
    let mut guest = Guest::after(Nowhere);
    assert_eq!(guest.state().0, []);
    guest.succeed(RESET, &[PE, HI, LO], 1);
    assert_eq!(guest.state(), reset);
    let mut guest = Guest::after(Used);
    guest.succeed(RESET, &[PE, HI, LO], 1);
    assert_eq!(guest.state(), reset);
}

#[test]
fn removing_a_window_removes_its_entries_alone() {
    let mut guest = Guest::after(Used);
    guest.succeed(REMOVE, &[SECOND], 1);
    let tables = guest.bridges[0].0.tables().clone();
    assert_eq!(tables.h_get_tce(Liobn::new(FIRST), Iova::new(0x5000)), Ok(Tce::new(0x1003)));
    assert!(tables.h_get_tce(Liobn::new(SECOND), Iova::new(1 << 59)).is_err());
    guest.succeed(CREATE, &[PE, HI, LO, 16, 32], 4);
    assert_eq!(tables.h_get_tce(Liobn::new(SECOND), Iova::new(1 << 59)), Ok(Tce::NONE));
    assert_eq!(
        tables.translate(guest.state().0[1].liobn, Iova::new(0), Access::READ).map(|it| it.is_ok()),
        Some(false)
    );
}

#[test]
fn a_call_without_a_place_for_its_status_does_nothing() {
    let mut guest = Guest::after(Both);
    let state = guest.state();
    let most = u32::try_from(MOST_CELLS).expect("few");
    assert_eq!(guest.call(RESET, &[PE, HI, LO], 0).err(), Some(BadBuffer::NoStatus));
    assert_eq!(guest.call(RESET, &[PE, HI, LO], most).err(), Some(BadBuffer::TooLong(3, most)));
    assert_eq!(guest.call(RESET, &[PE, HI, LO], u32::MAX).err(), Some(BadBuffer::TooLong(3, u32::MAX)));
    let cells = [RESET, 3, 1, PE, HI, LO, 7];
    // In ROM, over the end of memory, over the end of the arguments, past the top.
    for at in [0x1000, 0x1fe8, 0xfe8, 0x1ff8, 0x2000, u64::MAX - 3, u64::MAX] {
        let end = usize::try_from(at).map_or(0, |at| 0x2000usize.saturating_sub(at) / 4).min(cells.len());
        guest.memory.set(usize::try_from(at).unwrap_or(0).min(0x2000 - 4 * end), &cells[..end]);
        let answer = Tokens::default().call(&mut guest.bridges, &guest.memory, SystemAddress::new(at));
        assert_eq!(answer.err(), Some(BadBuffer::NoMemory(SystemAddress::new(at))), "{at:#x}");
    }
    assert_eq!(guest.state(), state);
}

#[test]
fn a_call_with_another_token_is_left_to_the_vmm() {
    let mut guest = Guest::after(Reset);
    let answer = guest.call(0x2025, &[PE, HI, LO], 1);
    assert!(matches!(answer, Ok(RtasAnswer::Other(0x2025))));
    assert_eq!(guest.results(3, 1), [0xeeee_eeee]);
}

#[test]
fn bridges_are_told_apart_by_unit_and_by_liobn() {
    let mut guest = Guest::after(Reset);
    let tables = guest.bridges[0].0.tables().clone();
    let bridge = PciHostBridge::new(Layout::pseries(1), tables).expect("a proper layout");
    guest.bridges.push((bridge, Listener::new(FrontEnd::default())));
    guest.succeed(RESET, &[PE, HI, LO + 1], 1);
    guest.succeed(CREATE, &[PE, HI, LO + 1, 16, 31], 4);
    assert_eq!(guest.results(5, 2), [0, 0x8000_0101]);
    guest.succeed(REMOVE, &[0x8000_0100], 1);
    let windows = guest.bridges.iter().map(|(bridge, _)| bridge.windows().len()).collect::<Vec<_>>();
    assert_eq!(windows, [1, 1]);
    // Two bridges of one index would have the same LIOBNs.
    let tables = guest.bridges[0].0.tables().clone();
    let twin = Layout { unit: 7, ..Layout::pseries(0) };
    guest
        .bridges
        .push((PciHostBridge::new(twin, tables).expect("alone it is proper"), Listener::new(FrontEnd::default())));
    let answer = guest.call(RESET, &[PE, 0, 7], 1);
    assert!(matches!(answer, Ok(RtasAnswer::Called(Err(RtasError::Window(_))))), "{answer:?}");
    assert_eq!(guest.results(3, 1)[0] as i32, -1);
    assert_eq!(guest.bridges[2].1.sections().count(), 0);
    assert_eq!(guest.bridges[0].0.tables().h_get_tce(Liobn::new(FIRST), Iova::new(0)), Ok(Tce::NONE));
}

#[test]
fn no_numbers_in_a_buffer_cause_a_panic() {
    let odd = [0, 1, 4, 12, 16, 24, 31, 59, 63, 64, 0x7fff_ffff, 0x8000_0000, SECOND, HI, LO, u32::MAX];
    let mut guest = Guest::after(Reset);
    // Miri runs 6 of the 256 pairs.
    let step = if cfg!(miri) { 45 } else { 1 };
    for token in [QUERY, CREATE, REMOVE, RESET] {
        for number in (0..odd.len().pow(2)).step_by(step) {
            let (a, b) = (odd[number % odd.len()], odd[number / odd.len()]);
            let _ = guest.call(token, &[a], b);
            let _ = guest.call(token, &[PE, a, b], 6);
            let _ = guest.call(token, &[PE, HI, LO, a, b], 4);
        }
    }
}
