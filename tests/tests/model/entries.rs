//! Entries of translated windows: the guest puts, replaces and clears them.

use dmaspace_core::contract::Swap;
use dmaspace_core::{Access, Iova, IovaRange, PageSize, SystemAddress, Window};
use dmaspace_listener::{EntryRun, Section};
use dmaspace_tests::model::{ModelHost, Stretch, page_of_entries};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::step::{Entries, Fault};
use crate::test_host::TestHost;
use crate::world::World;

/// The guest's request.
struct Asked {
    window: Section,
    page: PageSize,
    at: Iova,
    target: SystemAddress,
    len: u64,
}

impl Asked {
    /// A run for each page that is asked for, the last page first.
    fn pages(&self, access: Access) -> Vec<EntryRun> {
        let step = self.page.bytes();
        let run = |offset: u64| {
            let first = Iova::new(self.at.get().checked_add(offset)?);
            let range = IovaRange::with_len(first, step.min(self.len - offset)).ok()?;
            let target = SystemAddress::new(self.target.get().checked_add(offset)?);
            Some(EntryRun { range, target, access })
        };
        let pages = (0..self.len.div_ceil(step)).rev().map(|n| run(n * step));
        pages.collect::<Option<Vec<_>>>().unwrap_or_default()
    }
}

impl World {
    /// Puts entries, or replaces those there are.
    pub(crate) fn put(&mut self, entries: &Entries, replaces: bool, fault: Option<Fault>) -> TestCaseResult {
        let Some(asked) = self.asked(entries) else { return Ok(()) };
        let is_live = |entry: &Stretch| self.guest.entries.contains_key(&entry.range.first());
        let possible = self.entries_of(&asked, entries).filter(|new| new.iter().all(|it| is_live(it) == replaces));
        let scarce = self.served().any(|place| place.is_scarce(&self.guest));
        let seamless = self.served().all(|place| place.host_under_test.spec.kind.is_power());
        let before = self.before();
        let runs = asked.pages(entries.access);
        let Asked { window, at, target, len, .. } = asked;
        let (result, fired) = self.disturbed(fault, |listener| {
            let handle = listener.translated(window.range().first()).expect("the window is in force");
            match replaces {
                true => handle.replace(at, target, len, entries.access).map(Some),
                // Page by page, from the last one: it must be the same.
                false if entries.at % 2 == 0 && !runs.is_empty() => handle.put_many(&runs).map(|()| None),
                false => handle.put_run(at, target, len, entries.access).map(|()| None),
            }
        });
        match (result, possible) {
            (Ok(swap), Some(new)) => {
                let expected = replaces.then_some(if seamless { Swap::Seamless } else { Swap::WithGap });
                prop_assert_eq!(swap, expected);
                self.guest.entries.extend(new.into_iter().map(|entry| (entry.range.first(), entry)));
                Ok(())
            }
            (Ok(_), None) => Err(TestCaseError::fail("entries were put that could not be")),
            (Err(error), Some(_)) if fired.is_none() && !scarce => {
                Err(TestCaseError::fail(format!("not put: {error}")))
            }
            (Err(_), _) => {
                // An error of one space names its fences, not those of others: all there are count as named.
                let fences: Vec<_> = self.places.iter().flat_map(|place| place.host().fences).collect();
                self.check_undone(&before, &fences)
            }
        }
    }

    pub(crate) fn clear(&mut self, entries: &Entries) -> TestCaseResult {
        let Some(asked) = self.asked(entries) else { return Ok(()) };
        let Ok(range) = IovaRange::with_len(asked.at, asked.len) else { return Ok(()) };
        let handle = self.listener.translated(asked.window.range().first()).expect("the window is in force");
        let is_proper = asked.window.range().covers(range) && range.is_aligned_to(asked.page);
        match handle.clear(range) {
            Ok(bytes) => {
                prop_assert!(is_proper, "{} was cleared in {}", range, asked.window);
                let live = self.guest.entries.keys().filter(|at| range.contains(**at)).count();
                prop_assert_eq!(bytes, live as u64 * asked.page.bytes());
                self.guest.entries.retain(|at, _| !range.contains(*at));
            }
            Err(error) => prop_assert!(!is_proper, "not cleared: {}", error),
        }
        Ok(())
    }

    /// The window and the bounds meant, unless there is no window, or a space on which entries could not be put for
    /// reasons of its own.
    fn asked(&self, entries: &Entries) -> Option<Asked> {
        (self.served().next().is_some()
            && self.served().all(|place: &TestHost| !place.is_fenced() && !place.is_idle() && !place.is_stale))
        .then_some(())?;
        let mut windows = self.guest.sections.iter().filter(|section| page_of_entries(section).is_some());
        let window = windows.nth(entries.window.checked_rem(windows.clone().count())?)?.clone();
        let page = page_of_entries(&window)?;
        let odd = self.setting.bus.odd(entries.odd) / 2;
        let target = self.guest.targets.get(entries.target.checked_rem(self.guest.targets.len())?)?;
        // Behind the last page is meant once in a while.
        let modulo = |n: u64, bytes: u128| n % ((bytes >> page.shift()) as u64 + 1) * page.bytes();
        let at = window.range().first().get().checked_add(modulo(entries.at, window.range().bytes()) + odd)?;
        let first = page.round_up(target.range().first().get())?;
        let target = first + modulo(entries.offset, target.range().bytes());
        let len = entries.len * page.bytes();
        at.checked_add(len)?;
        Some(Asked { window, page, at: Iova::new(at), target: SystemAddress::new(target), len })
    }

    /// The entries after the request, if every space can have them.
    fn entries_of(&self, asked: &Asked, entries: &Entries) -> Option<Vec<Stretch>> {
        let Asked { window, page, at, target, .. } = asked;
        let hosts: Vec<_> = self.served().map(TestHost::host).collect();
        let entry = |n: u64| {
            let range = IovaRange::with_len(Iova::new(at.get() + n * page.bytes()), page.bytes()).ok()?;
            let host = self.guest.resolve(SystemAddress::new(target.get() + n * page.bytes()), *page)?;
            let entry = Stretch { range, host, access: entries.access };
            let is_proper = page.divides(at.get()) && window.range().covers(range) && !entries.access.is_empty();
            (is_proper && hosts.iter().all(|host| fits(&entry, &host.windows, host))).then_some(entry)
        };
        (0..entries.len).map(entry).collect()
    }
}

/// Returns whether an entry can live in one of these windows.
pub(crate) fn fits(entry: &Stretch, windows: &[Window], host: &ModelHost) -> bool {
    let page = entry.range.bytes();
    let holds = |window: &Window| {
        let granule = window.granule();
        window.range.covers(entry.range) && u128::from(granule.bytes()) <= page && granule.divides(entry.host)
    };
    windows.iter().any(holds) && !host.fences.iter().any(|fence| fence.overlaps(entry.range))
}
