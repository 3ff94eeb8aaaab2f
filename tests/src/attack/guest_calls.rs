//! A guest on POWER that calls anything, on kernels that fail or garble their replies.
//!
//! # The promises
//! - Nothing panics, whatever guest and kernel say, and a call that the guest makes is answered.
//! - A call that succeeds has written its entries. A call that is refused has written nothing, if no kernel call of it
//!   was disturbed, or one failed without an effect.
//! - Outside of fences, a table has exactly the entries that the space behind it maps.
//! - Each byte that a device reaches is in the index of a space, or behind a fence that keeps its memory.
//! - Everything is closed in the end.

use std::sync::Arc;

use dmaspace::choose::{BackendKind, OpenRequest};
use dmaspace::facts::Facts;
use dmaspace::open::{Host, Opened};
use dmaspace_core::{Iova, IovaRange, PciAddressSpace};
use dmaspace_soft::SoftHost;
use dmaspace_spapr_guest::hypercalls::{H_GET_TCE, H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE};
use dmaspace_spapr_guest::{Layout, Liobn, Tce, Tokens};

use super::hostile_door::{Conduct, HostileDoor, Hostility};
use super::input::Input;
use super::oracle::assert_reach_is_kept;
use crate::model::{Reached, Stretch};
use crate::spapr_guest::{FIRST, LIST, PE, RAM, SECOND, SpaprGuest, UNIT};

/// The hosts, and the ways to their IOMMUs.
const HOSTS: [(&str, BackendKind); 4] = [
    ("powernv9", BackendKind::Spapr),
    ("pseries", BackendKind::Spapr),
    ("powernv9-64k", BackendKind::Spapr),
    ("vtd", BackendKind::Iommufd),
];

/// The conducts under which memory that a device reaches is kept.
const CONDUCTS: [Conduct; 3] = [Conduct::Truthful, Conduct::Fails, Conduct::Garbles];

const PAGE: u64 = 0x1000;
/// The most steps of a run.
const MOST_STEPS: usize = 200;

/// A guest's call, and its place in reports.
type Call = (&'static str, fn(&mut Run));

const CALLS: [Call; 12] = [
    ("put", Run::put),
    ("put", Run::put),
    ("put", Run::put),
    ("put a list", Run::put_list),
    ("put a list", Run::put_list),
    ("put a list", Run::put_list),
    ("stuff", Run::stuff),
    ("stuff", Run::stuff),
    ("any hypercall", Run::any_hypercall),
    ("create or remove a window", Run::change_windows),
    ("attach or detach a host", Run::change_hosts),
    ("any RTAS call", Run::any_rtas),
];

/// A guest, its hosts and their kernel.
struct Run {
    input: Input,
    guest: SpaprGuest,
    opened: Vec<Opened>,
    host: Host,
    door: Arc<HostileDoor>,
    soft: Arc<SoftHost>,
    backend: BackendKind,
}

/// Runs an input.
///
/// # Panics
/// If a promise does not hold.
pub fn attack(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (preset, backend) = input.choose(&HOSTS);
    let conduct = input.choose(&CONDUCTS);
    let (choices, lies) = input.halves();
    let mut run = Run::new(preset, backend, conduct, choices, lies);
    let mut steps = 0;
    while !run.input.is_used_up() && steps < MOST_STEPS {
        let (name, call) = CALLS[run.input.index(CALLS.len())];
        run.door.watcher.tell(|| name.to_owned());
        call(&mut run);
        run.check();
        steps += 1;
    }
    run.end();
}

impl Run {
    fn new(preset: &str, backend: BackendKind, conduct: Conduct, input: Input, lies: Input) -> Self {
        let profile = crate::soft::profile(preset);
        let profile = if backend == BackendKind::SpaprV1 { profile.with_fixed_window() } else { profile };
        let soft = SoftHost::new(profile).expect("presets make sense");
        soft.deny_huge_pages();
        let door = Hostility::door(soft.clone(), conduct, lies);
        let host = Host::new(door.clone(), Facts::of_soft(soft.profile()));
        let mut run =
            Self { input, guest: SpaprGuest::new(Layout::pseries(0)), opened: Vec::new(), host, door, soft, backend };
        // The kernel behaves well until the guest is there.
        run.door.watcher.behave(true);
        run.open();
        let space = run.opened[0].space.space();
        let layout = Layout::pseries(0).placed_on([space]).expect("there is room");
        run.guest = SpaprGuest::new(layout);
        run.guest.attach(&run.opened[0]).expect("an empty view fits");
        let _ = run.guest.reset();
        run.door.watcher.behave(false);
        run
    }

    fn open(&mut self) {
        let groups = &self.soft.profile().groups;
        let group = &groups[self.opened.len() % groups.len()];
        let address = group.devices[0].address.parse().expect("a PCI address");
        let request = OpenRequest::device(address).with_backend(self.backend);
        self.opened.extend(self.host.open(&request));
    }

    fn liobn(&mut self) -> u64 {
        self.input.choose(&[FIRST, FIRST, FIRST, SECOND, SECOND, FIRST + 2])
    }

    /// The first bus address and the page of the window with that LIOBN.
    fn window(&self, liobn: u64) -> (u64, u64) {
        let windows = self.guest.windows();
        let window = windows.iter().find(|window| u64::from(window.liobn.get()) == liobn);
        window.map_or((0, PAGE), |window| (window.range.first().get(), window.page.bytes()))
    }

    /// A bus address near the start of a window, most often.
    fn ioba(&mut self, liobn: u64) -> u64 {
        let (first, page) = self.window(liobn);
        match self.input.below(24) {
            0 => self.input.edge(),
            1 => first + 8,
            _ => first + self.input.below(48) * page,
        }
    }

    /// An entry: with all rights and a page of memory most often.
    fn tce(&mut self, liobn: u64) -> u64 {
        let (_, page) = self.window(liobn);
        let target = self.input.below(32) * page;
        match self.input.below(16) {
            0 => self.input.edge(),
            1 => target | 0x7f8 | self.input.below(4),
            2 => (RAM + target) | 3,
            3..=5 => 0,
            6 => target | 1,
            7 => target | 2,
            _ => target | 3,
        }
    }

    fn put(&mut self) {
        let liobn = self.liobn();
        let (ioba, tce) = (self.ioba(liobn), self.tce(liobn));
        self.call(H_PUT_TCE, [liobn, ioba, tce, 0], &[tce]);
    }

    fn put_list(&mut self) {
        let liobn = self.liobn();
        let ioba = self.ioba(liobn);
        let (_, page) = self.window(liobn);
        let most = if self.input.once_in(8) { 64 } else { 12 };
        let count = 1 + self.input.below(most);
        let mut list: Vec<u64> = Vec::new();
        for _ in 0..count {
            let tce = match list.last() {
                Some(last) if self.input.once_in(2) => last.wrapping_add(page),
                _ => self.tce(liobn),
            };
            list.push(tce);
        }
        self.guest.write_list(LIST, &list);
        self.call(H_PUT_TCE_INDIRECT, [liobn, ioba, LIST, count], &list);
    }

    fn stuff(&mut self) {
        let liobn = self.liobn();
        let (ioba, tce) = (self.ioba(liobn), self.tce(liobn));
        let count = self.input.choose(&[1, 2, 3, 16, 48, 512]);
        let entries = vec![tce; usize::try_from(count).expect("small")];
        self.call(H_STUFF_TCE, [liobn, ioba, tce, count], &entries);
    }

    fn any_hypercall(&mut self) {
        let token = self.input.choose(&[H_GET_TCE, H_PUT_TCE, H_PUT_TCE_INDIRECT, H_STUFF_TCE]);
        let mut registers = [self.liobn(), 0, 0, 0];
        for register in &mut registers[1..] {
            *register = self.input.edge();
        }
        if self.input.once_in(4) {
            registers[0] = self.input.edge();
        }
        let _ = self.guest.hypercall(token, registers);
    }

    /// Makes a call that writes `entries`, and holds the table to the answer.
    fn call(&mut self, token: u64, registers: [u64; 4], entries: &[u64]) {
        let [liobn, ioba, ..] = registers;
        let before = self.entries(liobn, ioba, entries.len());
        let disturbed = self.door.watcher.disturbed();
        let code = self.guest.hypercall(token, registers);
        self.door.watcher.tell(|| format!("{token:#x} {registers:x?} gives {code}"));
        let after = self.entries(liobn, ioba, entries.len());
        let disturbances = self.door.watcher.disturbed() - disturbed;
        if code == 0 {
            let expected: Vec<_> = entries.iter().copied().map(Some).collect();
            assert_eq!(after, expected, "a call that succeeded has not written its entries");
        } else if disturbances == 0 || (disturbances == 1 && self.door.watcher.conduct <= Conduct::Fails) {
            assert_eq!(after, before, "a call that was refused has written");
        }
    }

    /// The entries that the guest reads.
    fn entries(&self, liobn: u64, ioba: u64, count: usize) -> Vec<Option<u64>> {
        let (_, page) = self.window(liobn);
        let tables = self.guest.bridge().tables();
        let read = |n| {
            let at = ioba.checked_add(n * page)?;
            tables.h_get_tce(Liobn::from_register(liobn)?, Iova::new(at)).ok().map(Tce::get)
        };
        (0..count as u64).map(read).collect()
    }

    fn change_windows(&mut self) {
        match self.input.below(4) {
            0 => drop(self.guest.reset()),
            1 => drop(self.guest.remove(SECOND)),
            _ => {
                let shift = self.input.choose(&[12, 16, 21, 24]);
                let _ = self.guest.create(shift, shift + 6 + self.input.byte() as u32 % 12);
            }
        }
    }

    fn change_hosts(&mut self) {
        if self.opened.len() < 2 {
            self.open();
            if let Some(opened) = self.opened.get(1) {
                let _ = self.guest.attach(opened);
            }
        } else {
            let space = self.opened[self.input.index(2)].space.space().clone();
            let (bridge, listener) = &mut self.guest.bridges[0];
            if bridge.detach(listener, &space).is_err() || self.input.once_in(2) {
                let _ = bridge.attach(listener, space);
            }
        }
    }

    fn any_rtas(&mut self) {
        let tokens = Tokens::default();
        let token = self.input.choose(&[tokens.query, tokens.create, tokens.remove, tokens.reset]);
        let mut arguments = vec![PE, UNIT[0], UNIT[1], 16, 30];
        let place = self.input.index(arguments.len());
        arguments[place] = self.input.edge() as u32;
        arguments.truncate(1 + self.input.index(5));
        let results = 1 + self.input.index(7);
        let _ = self.guest.rtas(token, &arguments, results);
    }

    fn served(&self) -> Vec<Arc<dyn PciAddressSpace>> {
        self.guest.bridges[0].1.spaces().cloned().collect()
    }

    fn fences(&self) -> Vec<IovaRange> {
        self.served().iter().flat_map(|space| space.describe().fences).map(|fence| fence.range).collect()
    }

    fn check(&self) {
        assert_reach_is_kept(&self.soft, &self.opened);
        self.check_tables();
    }

    /// The tables have what each host maps, outside the fences of all.
    fn check_tables(&self) {
        let fences = self.fences();
        let base = self.guest.memory.address().get();
        let says = self.guest.says().into_iter();
        let says: Reached =
            says.map(|(range, target, access)| Stretch { range, host: base + target, access }).collect();
        for space in self.served() {
            let has = Reached::of(&space.mappings(IovaRange::all()));
            assert_eq!(says.outside(&fences), has.outside(&fences), "fences: {fences:?}");
        }
    }

    fn end(self) {
        let Self { guest, opened, host, door, soft, .. } = self;
        drop((guest, opened, host, door));
        let ledger = soft.ledger();
        let open = ledger.containers + ledger.groups + ledger.devices + ledger.iommufds;
        assert_eq!(open, 0, "descriptors stayed open: {ledger:?}");
    }
}
