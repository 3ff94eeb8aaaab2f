//! The checks after every step.

use std::collections::BTreeSet;

use dmaspace_core::contract::Unit;
use dmaspace_core::{HostMemory, IovaRange, Window};
use dmaspace_listener::Section;
use dmaspace_listener::section::{Backing, TargetMemory};
use dmaspace_listener::{Fate, Report, SpaceReport};
use dmaspace_tests::model::{Guest, ModelHost, Reached, page_of_entries};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::dma;
use crate::host_under_test::HostKind;
use crate::test_host::{Before, TestHost};
use crate::world::World;

// --- At any time

impl World {
    /// Listener, spaces, hosts and devices agree with the model.
    pub(crate) fn check(&mut self) -> TestCaseResult {
        prop_assert!(self.listener.sections().eq(&self.guest.sections), "the listener's list is another one");
        prop_assert!(self.listener.targets().eq(&self.guest.targets), "the listener's list is another one");
        for n in 0..self.places.len() {
            self.check_place(&self.places[n])?;
            let place = &mut self.places[n];
            place.live = place.reached();
            let upper = place.host().windows.iter().any(|window| window.range.first().get() > 0);
            place.is_spent |= upper && place.host_under_test.spec.kind == HostKind::PSeries;
            dma::check(place, &self.memory_of_guest.all, self.steps)?;
        }
        if self.served().all(|place: &TestHost| {
            !place.is_stale && !place.is_loose && !place.has_odd_registrations && !place.is_fenced()
        }) {
            prop_assert_eq!(self.listener.audit(), []);
        }
        Ok(())
    }

    fn check_place(&self, place: &TestHost) -> TestCaseResult {
        let (host, reached, name) = (place.host(), place.reached(), place.name());
        for fence in &host.fences {
            prop_assert_eq!(reached.within(*fence).bytes(), 0, "{} lives behind a fence", name);
        }
        let expected = match place {
            TestHost { is_stale: true, .. } => place.live.clone(),
            TestHost { is_served: true, .. } if !place.is_idle() => {
                self.check_windows(&host)?;
                self.guest.reached_on(&host)
            }
            _ => Reached::default(),
        };
        let (found, expected) = (reached.outside(&host.fences), expected.outside(&host.fences));
        if place.is_loose || place.is_fenced() {
            // A best-effort section that touches a fence may be given up as a whole.
            prop_assert_eq!(&found.shared_with(&expected), &found, "{} maps more than was requested", name);
            let required = expected.shared_with(&self.guest_without_best_effort().reached_on(&host));
            prop_assert_eq!(&required.shared_with(&found), &required, "{} lacks a required mapping", name);
        } else {
            prop_assert_eq!(&found, &expected, "{} (left) and the model (right)", name);
        }
        if !place.is_fenced() {
            let ledger = place.host_under_test.soft.ledger();
            let held: u64 = place.held().iter().map(|memory| memory.len().get()).sum();
            let known = u128::from(held) + reached.bytes();
            // Pins that could not be released may still be shared, until their place is needed.
            let left = place.host_under_test.spec.kind == HostKind::Pool && place.has_odd_registrations;
            let agrees = u128::from(ledger.mapped) == known || (left && u128::from(ledger.mapped) > known);
            prop_assert!(agrees, "{} bytes are known, the host's ledger: {:?}", known, ledger);
            self.check_registrations(place)?;
            self.check_shared_pins(place)?;
        }
        Ok(())
    }

    fn guest_without_best_effort(&self) -> Guest {
        let mut guest = self.guest.clone();
        guest.sections.retain(|section| !matches!(section.backing(), Backing::DeviceMemory { .. }));
        guest
    }

    /// Of the windows that are created there are those the guest needs, and no other.
    fn check_windows(&self, host: &ModelHost) -> TestCaseResult {
        if host.offer.is_none() || !host.fences.is_empty() || !self.guest.objections(host).is_empty() {
            return Ok(());
        }
        let wanted = self.guest.windows_on(host);
        prop_assert_eq!(host.windows.len(), wanted.len(), "{:?} for {:?}", host.windows, wanted);
        for (found, wanted) in host.windows.iter().zip(&wanted) {
            let begins = found.range.first() == wanted.range.first();
            prop_assert!(begins && found.range.covers(wanted.range), "{:?} for {:?}", found, wanted);
            let mut translated = self.guest.sections.iter().filter(|section| page_of_entries(section).is_some());
            if let Some(section) = translated.find(|section| section.range().overlaps(found.range)) {
                prop_assert_eq!(found.range, section.range());
                prop_assert!(Some(found.granule()) <= page_of_entries(section));
            }
        }
        Ok(())
    }

    /// The guest's memory is registered, in whole pages of the host, and nothing else.
    fn check_registrations(&self, place: &TestHost) -> TestCaseResult {
        if !place.host_under_test.spec.kind.creates_windows() || place.is_stale {
            return Ok(());
        }
        let page = place.host_under_test.spec.host_page;
        let pages = |memory: &HostMemory| {
            let (first, last) = (page.round_down(memory.address().get()), page.round_down(memory.last().get()));
            (first..=last).step_by(page.bytes() as usize)
        };
        let is_wanted = place.is_served && place.host_under_test.devices() > 0;
        let ram = self.guest.sections.iter().filter(|section| matches!(section.backing(), Backing::Ram { .. }));
        let memory = ram.filter_map(Section::direct).map(|(memory, _)| memory);
        let memory = memory.chain(self.guest.targets.iter().map(TargetMemory::memory)).filter(|_| is_wanted);
        let wanted: BTreeSet<u64> = memory.flat_map(pages).collect();
        let found: BTreeSet<u64> = place.registered().iter().flat_map(pages).collect();
        let suffices = place.has_odd_registrations || found.is_superset(&wanted);
        prop_assert!(suffices, "{:x?} are registered, {:x?} are the guest's", found, wanted);
        for run in place.registered() {
            let excused = place.has_odd_registrations || pages(&run).any(|page| wanted.contains(&page));
            prop_assert!(excused, "{} is registered without a user", run);
        }
        Ok(())
    }
}

impl World {
    /// In a pool each page is pinned once, however often it is mapped, and all that is mapped is held.
    fn check_shared_pins(&self, place: &TestHost) -> TestCaseResult {
        if place.host_under_test.spec.kind != HostKind::Pool || place.host_under_test.devices() == 0 {
            return Ok(());
        }
        let page = place.host_under_test.spec.host_page;
        let pages = |memory: HostMemory| (memory.address().get()..=memory.last().get()).step_by(page.bytes() as usize);
        let memory = place.mappings().into_iter().map(|mapping| mapping.memory);
        let mapped: BTreeSet<u64> = memory.flat_map(pages).collect();
        prop_assert_eq!(place.host_under_test.soft.ledger().pinned, mapped.len() as u64 * page.bytes());
        let held: BTreeSet<u64> = place.held().into_iter().flat_map(pages).collect();
        prop_assert!(held.is_superset(&mapped), "{:x?} is held, {:x?} mapped", held, mapped);
        Ok(())
    }
}

// --- After a failure

impl World {
    /// Nothing was even tried.
    pub(crate) fn check_untouched(&self, before: &[Before]) -> TestCaseResult {
        for (place, before) in self.places.iter().zip(before) {
            prop_assert_eq!(&place.host_under_test.soft.ledger(), &before.ledger, "refused, and done all the same");
        }
        self.check_undone(before, &[])
    }

    /// Everything is as it was, except for new fences, which the error names.
    pub(crate) fn check_undone(&self, before: &[Before], named: &[IovaRange]) -> TestCaseResult {
        for (place, before) in self.places.iter().zip(before) {
            let host = place.host();
            for fence in host.fences.iter().filter(|fence| !before.fences.contains(fence)) {
                let is_named = named.iter().any(|named| named.covers(*fence));
                prop_assert!(is_named, "{} is fenced and not named: {:?}", fence, named);
            }
            let (now, then) = (place.reached().outside(named), place.live.outside(named));
            prop_assert_eq!(now, then, "after a failure, on {}", place.name());
            if named.is_empty() {
                prop_assert_eq!(&host.windows, &before.windows);
            }
        }
        Ok(())
    }
}

// --- After success

impl World {
    /// The report of a commit tells what happened, and that was not more than needed.
    pub(crate) fn check_report(
        &mut self,
        before: &[Before],
        old: &Guest,
        report: &Report,
        fired: Option<usize>,
    ) -> TestCaseResult {
        let order = self.order();
        let names: Vec<_> = report.spaces.iter().map(|space| space.backend).collect();
        prop_assert_eq!(names, order.iter().map(|n| self.places[*n].name()).collect::<Vec<_>>());
        for (n, report) in order.into_iter().zip(&report.spaces) {
            if fired == Some(n) {
                self.places[n].is_loose = true;
            } else {
                self.check_disturbance(&self.places[n], &before[n], report)?;
                self.check_pinned(&self.places[n], &before[n], report)?;
                self.check_fates(&self.places[n], old, report)?;
                self.places[n].has_odd_registrations = false;
            }
            self.places[n].is_stale = false;
        }
        Ok(())
    }

    /// A mapping that is the same before and after was not touched in between, unless the kernel could only unmap it
    /// together with one that changed; and the report counts these bytes.
    fn check_disturbance(&self, place: &TestHost, before: &Before, report: &SpaceReport) -> TestCaseResult {
        let kept = place.live.shared_with(&place.reached());
        let disturbed = |range: IovaRange| kept.within(range).bytes();
        let expected: u128 = if place.host_under_test.spec.kind.creates_windows() {
            let gone = before.windows.iter().filter(|window| !self.would_do(window, place));
            gone.map(|window| disturbed(window.range)).sum()
        } else {
            let whole = before.mappings.iter().filter(|mapping| mapping.unit == Unit::Whole);
            let changed = whole.filter(|mapping| disturbed(mapping.range) < mapping.range.bytes());
            changed.map(|mapping| disturbed(mapping.range)).sum()
        };
        prop_assert_eq!(u128::from(report.disturbed), expected, "disturbed bytes, on {}", place.name());
        Ok(())
    }

    /// Memory was pinned for new mappings and for nothing else, and the report counts it.
    fn check_pinned(&self, place: &TestHost, before: &Before, report: &SpaceReport) -> TestCaseResult {
        if place.host_under_test.devices() == 0 {
            // iommufd maps all the same, and pins when the first one comes.
            return Ok(());
        }
        let sum = |memory: Vec<HostMemory>| memory.iter().map(|memory| u128::from(memory.len().get())).sum();
        let expected: u128 = match place.host_under_test.spec.kind {
            HostKind::PowerNv | HostKind::PSeries => {
                let registered = place.registered().into_iter();
                sum(registered.filter(|memory| !before.registered.contains(memory)).collect())
            }
            // Entry by entry.
            HostKind::PowerNvV1 => place.reached().bytes() - place.live.shared_with(&place.reached()).bytes(),
            HostKind::Type1 | HostKind::Iommufd | HostKind::Pool => {
                let new = place.mappings().into_iter().filter(|mapping| !before.mappings.contains(mapping));
                sum(new.map(|mapping| mapping.memory).filter(|memory| !memory.is_device_memory()).collect())
            }
        };
        let pinned = u128::from(place.host_under_test.soft.ledger().ever_pinned - before.ledger.ever_pinned);
        // A pool pins memory that is mapped twice once, which the report cannot know.
        let pinned = if place.host_under_test.spec.kind == HostKind::Pool { pinned.max(expected) } else { pinned };
        prop_assert_eq!((pinned, u128::from(report.pinned)), (expected, expected), "pinned bytes, on {}", place.name());
        Ok(())
    }

    /// Returns whether a window that was created once would still do: it covers the one that would be created now, no
    /// byte is lost to its pages, and none of them is larger than the pages of the memory behind it.
    fn would_do(&self, window: &Window, place: &TestHost) -> bool {
        let (guest, host) = (&self.guest, place.host());
        let wanted = guest.windows_on(&host).into_iter().find(|wanted| wanted.range.overlaps(window.range));
        let page_of = |memory: &HostMemory| memory.backing_page().unwrap_or(place.host_under_test.spec.host_page);
        let ram = guest.sections.iter().filter(|section| matches!(section.backing(), Backing::Ram { .. }));
        let mut memory = ram.filter_map(Section::direct).map(|(memory, _)| memory);
        wanted.is_some_and(|wanted| {
            let reached = |through: Window| guest.reached_through(&[through], &host).within(window.range);
            window.range.covers(wanted.range)
                && memory.all(|memory| window.granule() <= page_of(memory))
                && reached(*window) == reached(wanted)
        })
    }

    /// The report has the true outcome of each section.
    fn check_fates(&self, place: &TestHost, old: &Guest, report: &SpaceReport) -> TestCaseResult {
        if place.is_idle() || place.is_loose {
            return Ok(());
        }
        for new in self.guest.sections.iter().filter(|section| !old.sections.contains(section)) {
            let is_told = report.sections.iter().any(|verdict| verdict.piece == *new);
            prop_assert!(is_told, "nothing is said of {}", new);
        }
        for verdict in &report.sections {
            let range = verdict.piece.range();
            let Reached(reached) = place.reached().within(range);
            let ends = reached.first().zip(reached.last());
            let fate = match verdict.piece.backing() {
                Backing::Ram { .. } | Backing::DeviceMemory { .. } if ends.is_some() => Fate::Mapped,
                Backing::Translated { .. } => Fate::Window,
                Backing::Msi => Fate::Msi,
                _ => Fate::Skipped,
            };
            prop_assert_eq!(verdict.fate, fate, "{}", verdict);
            if let (Some((first, last)), Fate::Mapped) = (ends, fate) {
                let lost = (range.offset_of(first.range.first()), range.last().get() - last.range.last().get());
                prop_assert_eq!((verdict.lost_head, verdict.lost_tail), lost, "{}", verdict);
            }
        }
        Ok(())
    }
}
