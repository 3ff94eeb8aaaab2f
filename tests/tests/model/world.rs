//! A world: a guest, a listener, hosts; and what happens in it, step by step.

use std::sync::Arc;

use dmaspace_core::door::Errno;
use dmaspace_listener::Listener;
use dmaspace_soft::FaultMode;
use dmaspace_tests::model::Guest;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::bus::GuestMemory;
use crate::host_under_test::HostKind;
use crate::setting::Setting;
use crate::step::{Fault, Step};
use crate::test_host::{Before, TestHost};
use crate::update_builder::build;

pub(crate) struct World {
    // Dropped in this order: the listener knows the spaces.
    pub(crate) listener: Listener,
    pub(crate) places: Vec<TestHost>,
    pub(crate) guest: Guest,
    pub(crate) setting: Setting,
    pub(crate) memory_of_guest: GuestMemory,
    pub(crate) steps: u64,
}

impl World {
    pub(crate) fn new(setting: Setting, memory_of_guest: GuestMemory) -> Result<Self, TestCaseError> {
        let listener = Listener::new(setting.front.clone());
        let guest = Guest { shrink: setting.front.shrink, ..Guest::default() };
        let places = setting.hosts.iter().map(TestHost::new).collect();
        let mut world = Self { listener, places, guest, setting, memory_of_guest, steps: 0 };
        (0..world.setting.served).try_for_each(|place| world.join(place, None))?;
        Ok(world)
    }

    pub(crate) fn take(&mut self, step: &Step) -> TestCaseResult {
        self.steps += 1;
        let places = self.places.len();
        match step {
            Step::Commit { ops, whole, fault } => {
                let change = build(ops, &self.setting, &self.memory_of_guest, &self.guest);
                self.commit(&change, *whole, *fault)?;
            }
            Step::Put(entries, fault) => self.put(entries, false, *fault)?,
            Step::Replace(entries, fault) => self.put(entries, true, *fault)?,
            Step::Clear(entries) => self.clear(entries)?,
            Step::Join(place, fault) => self.join(place % places, *fault)?,
            Step::Leave(place, fault) => self.leave(place % places, *fault)?,
            Step::Plug(place, told) => self.plug(place % places, *told)?,
            Step::Unplug(place, told) => self.unplug(place % places, *told)?,
        }
        self.check()
    }

    pub(crate) fn served(&self) -> impl Iterator<Item = &TestHost> {
        self.places.iter().filter(|place| place.is_served)
    }

    pub(crate) fn before(&self) -> Vec<Before> {
        self.places.iter().map(TestHost::before).collect()
    }

    /// Has the listener do something, with a call that goes wrong, and says on which host one did.
    pub(crate) fn disturbed<T>(
        &mut self,
        fault: Option<Fault>,
        work: impl FnOnce(&mut Listener) -> T,
    ) -> (T, Option<usize>) {
        if let Some(fault) = fault {
            let place = fault.place % self.places.len();
            let host_under_test = &self.places[place].host_under_test;
            let plan = match (fault.plan.mode, host_under_test.spec.kind) {
                // Entries are left behind when there was no memory for more of the table.
                (FaultMode::PartialEffect, HostKind::Type1) => fault.plan.with(Errno::ENOMEM),
                _ => fault.plan,
            };
            let plans = (0..=fault.more).map(|n| plan.later(n));
            host_under_test.soft.plan_faults(&plans.collect::<Vec<_>>());
        }
        let result = work(&mut self.listener);
        let fired = self.places.iter().position(|place| place.host_under_test.soft.faults_fired() > 0);
        for place in self.places.iter() {
            place.host_under_test.soft.plan_faults(&[]);
        }
        if let Some(fired) = fired {
            self.places[fired].has_odd_registrations = true;
        }
        (result, fired)
    }

    /// The places in the order in which the listener knows their spaces.
    pub(crate) fn order(&self) -> Vec<usize> {
        self.listener
            .spaces()
            .filter_map(|space| self.places.iter().position(|place| Arc::ptr_eq(place.space(), space)))
            .collect()
    }

    /// Everything is dropped, and nothing is left anywhere.
    pub(crate) fn end(self) -> TestCaseResult {
        let is_fenced = self.places.iter().any(TestHost::is_fenced);
        let hosts: Vec<_> = self.places.iter().map(|place| place.host_under_test.soft.clone()).collect();
        drop(self);
        for host in hosts {
            let mut ledger = host.ledger();
            ledger.locked -= ledger.leaked;
            prop_assert!(is_fenced || ledger.is_clear(), "left behind: {:?}", ledger);
        }
        Ok(())
    }
}
