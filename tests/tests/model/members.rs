//! Spaces that the listener serves, or no longer, and devices that come to them and go.

use dmaspace::choose::BackendKind;
use dmaspace_listener::CommitError;
use dmaspace_tests::model::{Change, Reached, page_of_entries};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::entries::fits;
use crate::step::Fault;
use crate::test_host::TestHost;
use crate::world::World;

impl World {
    pub(crate) fn join(&mut self, n: usize, fault: Option<Fault>) -> TestCaseResult {
        let place = &self.places[n];
        if place.is_served {
            return Ok(());
        }
        let host = place.host();
        let objections = place.objections(&self.guest);
        let windows = self.guest.windows_on(&host);
        let entries_fit = self.guest.entries.values().all(|entry| fits(entry, &windows, &host));
        let excused = place.is_scarce(&self.guest) || place.is_fenced();
        let space = place.space().clone();
        let before = self.before();
        let (result, fired) = self.disturbed(fault, |listener| listener.attach(space));
        match result {
            Ok(_) => {
                prop_assert!(objections.is_empty() && entries_fit, "joined, although {:?}", objections);
                let place = &mut self.places[n];
                (place.is_served, place.is_stale, place.is_loose) = (true, false, fired.is_some());
                place.has_odd_registrations &= fired.is_some();
                Ok(())
            }
            Err(CommitError::Refused(report)) => {
                let is_fair = !objections.is_empty() || excused || fired.is_some();
                prop_assert!(is_fair, "refused without need: {}", CommitError::Refused(report));
                self.check_untouched(&before)
            }
            Err(CommitError::Step { error, fenced }) => {
                prop_assert!(!entries_fit || excused || fired.is_some(), "failed without cause: {}", error);
                self.check_undone(&before, &[fenced, error.fenced().to_vec()].concat())?;
                self.check()?;
                if fired.is_some() && !excused { self.join(n, None) } else { Ok(()) }
            }
            Err(error) => Err(TestCaseError::fail(error.to_string())),
        }
    }

    pub(crate) fn leave(&mut self, n: usize, fault: Option<Fault>) -> TestCaseResult {
        let space = self.places[n].space().clone();
        if !self.places[n].is_served {
            prop_assert!(matches!(self.listener.detach(&space), Err(CommitError::NotAttached)));
            return Ok(());
        }
        if self.served().nth(1).is_some() && !self.is_joined_in_entries(n) {
            if self.served().any(TestHost::is_fenced) {
                return Ok(());
            }
            self.clear_everything()?;
        }
        let before = self.before();
        let (result, fired) = self.disturbed(fault, |listener| listener.detach(&space));
        match result {
            Ok(()) => {
                let place = &mut self.places[n];
                (place.is_served, place.is_stale, place.is_loose) = (false, false, false);
                if self.served().next().is_none() {
                    // Entries live in spaces: with the last one they are gone.
                    self.guest.entries.clear();
                }
                Ok(())
            }
            Err(CommitError::Step { error, fenced }) => {
                prop_assert!(fired.is_some() || !before[n].fences.is_empty(), "could not leave: {}", error);
                self.check_undone(&before, &[fenced, error.fenced().to_vec()].concat())?;
                self.check()?;
                if fired.is_some() { self.leave(n, None) } else { Ok(()) }
            }
            Err(error) => Err(TestCaseError::fail(error.to_string())),
        }
    }

    pub(crate) fn plug(&mut self, n: usize, told: bool) -> TestCaseResult {
        let before = self.windows_of(n);
        if self.places[n].host_under_test.plug() { self.windows_changed(n, before, told) } else { Ok(()) }
    }

    pub(crate) fn unplug(&mut self, n: usize, told: bool) -> TestCaseResult {
        if self.places[n].host_under_test.devices() == 1 && self.places[n].is_served {
            if self.served().any(TestHost::is_fenced) {
                // Entries behind a fence cannot be cleared.
                return Ok(());
            }
            if !self.is_joined_in_entries(n) {
                self.clear_everything()?;
            }
        }
        let before = self.windows_of(n);
        let place = &mut self.places[n];
        place.host_under_test.unplug();
        if place.host_under_test.devices() == 0 && place.host_under_test.spec.kind.backend() != BackendKind::Iommufd {
            // The kernel forgot everything.
            place.live = Reached::default();
        }
        self.windows_changed(n, before, told)
    }

    /// Returns whether another space that has all entries goes on: this one gets them from there when it is served
    /// again.
    fn is_joined_in_entries(&self, n: usize) -> bool {
        let goes_on = |(other, place): (usize, &TestHost)| {
            other != n && place.is_served && !place.is_idle() && !place.is_stale && !place.is_loose
        };
        self.places.iter().enumerate().any(goes_on)
    }

    fn windows_of(&self, n: usize) -> (bool, u64) {
        (self.places[n].is_idle(), self.places[n].space().windows().generation)
    }

    /// A device came or went: the listener is told, and brings the space in step.
    fn windows_changed(&mut self, n: usize, before: (bool, u64), told: bool) -> TestCaseResult {
        let has_changed = self.windows_of(n) != before;
        let place = &mut self.places[n];
        if place.is_served {
            place.is_stale |= has_changed;
            place.live = place.reached();
        }
        if told { self.commit(&Change::default(), false, None) } else { Ok(()) }
    }

    /// The guest clears all of its entries: with its last device a space loses them, and they would be its to put
    /// again.
    fn clear_everything(&mut self) -> TestCaseResult {
        if !self.guest.entries.is_empty() {
            for section in self.guest.sections.iter().filter(|section| page_of_entries(section).is_some()) {
                let handle = self.listener.translated(section.range().first()).expect("the window is in force");
                let cleared = handle.clear(section.range());
                prop_assert!(cleared.is_ok(), "{:?}", cleared);
            }
            let cleared: Vec<_> = self.guest.entries.values().map(|entry| entry.range).collect();
            for place in self.places.iter_mut() {
                place.live = place.live.outside(&cleared);
            }
            self.guest.entries.clear();
        }
        Ok(())
    }
}
