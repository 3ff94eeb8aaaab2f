//! A world: a guest, a listener, hosts; and what happens in it, step by step.

use std::sync::Arc;

use dmaspace_core::door::Errno;
use dmaspace_listener::Listener;
use dmaspace_soft::{FaultMode, FaultPlan};
use dmaspace_tests::model::Guest;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::bus::Arena;
use crate::draft::draft;
use crate::place::{Before, Place};
use crate::setting::Setting;
use crate::stand::HostKind;
use crate::step::{Fault, Step};

pub(crate) struct World {
    // Dropped in this order: the listener knows the spaces.
    pub(crate) listener: Listener,
    pub(crate) places: Vec<Place>,
    pub(crate) guest: Guest,
    pub(crate) setting: Setting,
    pub(crate) arena: Arena,
    pub(crate) steps: u64,
}

impl World {
    pub(crate) fn new(setting: Setting, arena: Arena) -> Result<Self, TestCaseError> {
        let listener = Listener::new(setting.front.clone());
        let guest = Guest { shrink: setting.front.shrink, ..Guest::default() };
        let places = setting.hosts.iter().map(Place::new).collect();
        let mut world = Self { listener, places, guest, setting, arena, steps: 0 };
        (0..world.setting.served).try_for_each(|place| world.join(place, None))?;
        Ok(world)
    }

    pub(crate) fn take(&mut self, step: &Step) -> TestCaseResult {
        self.steps += 1;
        let places = self.places.len();
        match step {
            Step::Commit { ops, whole, fault } => {
                let change = draft(ops, &self.setting, &self.arena, &self.guest);
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

    pub(crate) fn served(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.is_served)
    }

    pub(crate) fn before(&self) -> Vec<Before> {
        self.places.iter().map(Place::before).collect()
    }

    /// Has the listener do something, with a call that goes wrong, and says on which host one did.
    pub(crate) fn disturbed<T>(
        &mut self,
        fault: Option<Fault>,
        work: impl FnOnce(&mut Listener) -> T,
    ) -> (T, Option<usize>) {
        if let Some(fault) = fault {
            let place = fault.place % self.places.len();
            let stand = &self.places[place].stand;
            let plan = match (fault.plan.mode, stand.spec.kind) {
                // Entries are left behind when there was no memory for more of the table.
                (FaultMode::PartialEffect, HostKind::Type1) => fault.plan.with(Errno::ENOMEM),
                _ => fault.plan,
            };
            let plans = (0..=fault.more).map(|n| FaultPlan { at: plan.at + n, ..plan });
            stand.soft.plan_faults(&plans.collect::<Vec<_>>());
        }
        let result = work(&mut self.listener);
        let fired = self.places.iter().position(|place| place.stand.soft.faults_fired() > 0);
        self.places.iter().for_each(|place| place.stand.soft.plan_faults(&[]));
        if let Some(fired) = fired {
            self.places[fired].has_odd_registrations = true;
        }
        (result, fired)
    }

    /// The places in the order in which the listener knows their spaces.
    pub(crate) fn order(&self) -> Vec<usize> {
        let place_of = |space| self.places.iter().position(|place| Arc::ptr_eq(place.space(), space));
        self.listener.spaces().filter_map(place_of).collect()
    }

    /// Everything is dropped, and nothing is left anywhere.
    pub(crate) fn end(self) -> TestCaseResult {
        let is_fenced = self.places.iter().any(Place::is_fenced);
        let hosts: Vec<_> = self.places.iter().map(|place| place.stand.soft.clone()).collect();
        drop(self);
        for host in hosts {
            let mut ledger = host.ledger();
            ledger.locked -= ledger.leaked;
            prop_assert!(is_fenced || ledger.is_clear(), "left behind: {:?}", ledger);
        }
        Ok(())
    }
}
