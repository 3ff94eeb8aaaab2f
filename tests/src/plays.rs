//! What is played on a stage, by name: the same on real kernels and on the soft host.

use dmaspace::choose::BackendKind;

use crate::boot::q35_boot;
use crate::contract::{self, Case, Field};
use crate::dirty::{dirty_pages, scattered};
use crate::scenarios::{self, Scenario};
use crate::stage::Stage;

/// Something that is played.
pub struct Play {
    /// Its name in lists, behind the backend's.
    pub name: String,
    what: What,
}

enum What {
    Scenario(fn(&mut Stage)),
    Case(&'static Case),
}

impl Play {
    fn scenario(name: &str, play: fn(&mut Stage)) -> Self {
        Self { name: name.to_owned(), what: What::Scenario(play) }
    }

    fn case(case: &'static Case) -> Self {
        Self { name: format!("contract::{}", case.name), what: What::Case(case) }
    }

    /// Plays it.
    pub fn play(&self, stage: &mut Stage) {
        match self.what {
            What::Scenario(play) => play(stage),
            What::Case(case) => (case.check)(&Field::new(stage)),
        }
    }
}

/// What is played on a real kernel, where devices are slow: an iommufd in a container's place maps as any other does.
pub fn on(backend: BackendKind) -> Vec<Play> {
    let in_short = backend == BackendKind::Type1OnIommufd;
    let scenarios = scenarios::ALL.iter().filter(|scenario| !in_short || IN_SHORT.contains(&scenario.name));
    let scenarios = scenarios.filter(|scenario| has_something_to_show(scenario, backend));
    let scenarios = scenarios.map(|scenario| Play::scenario(scenario.name, scenario.play)).chain(of_spapr(backend));
    let long_ones = if in_short { Vec::new() } else { long_ones(backend) };
    scenarios.chain(long_ones).chain(cases(backend)).collect()
}

/// The scenarios that say most for their time.
const IN_SHORT: [&str; 2] = ["flat_pc_map", "limit_met_in_the_middle_of_a_commit"];

/// What is played on a soft host.
pub fn on_soft(preset: &str, backend: BackendKind) -> Vec<Play> {
    // The guests of the scenarios have pages of 4 KiB.
    let scenarios = scenarios::ALL.iter().filter(|_| preset != "vtd-64k");
    let scenarios = scenarios.filter(|scenario| has_something_to_show(scenario, backend));
    let mut plays: Vec<_> = scenarios.map(|scenario| Play::scenario(scenario.name, scenario.play)).collect();
    if preset == "vtd" {
        plays.extend(long_ones(backend));
    }
    if preset == "vtd-ssads" && backend == BackendKind::Iommufd {
        plays.push(Play::scenario("exactly_the_dirty_pages", |stage| dirty_pages(stage, true)));
    }
    plays.extend(of_spapr(backend));
    plays.extend(cases(backend));
    plays
}

/// A v1 container locks all it ever will when its device comes.
fn has_something_to_show(scenario: &Scenario, backend: BackendKind) -> bool {
    backend != BackendKind::SpaprV1 || scenario.name != "limit_met_in_the_middle_of_a_commit"
}

/// Where windows are created, in pages of several sizes.
fn of_spapr(backend: BackendKind) -> Option<Play> {
    let play = || Play::scenario("smaller_pages_than_said", scenarios::smaller_pages_than_said);
    (backend == BackendKind::Spapr).then(play)
}

/// On POWER the window over all RAM would be made anew whenever RAM comes above it, or there is one that does not reach all RAM.
fn long_ones(backend: BackendKind) -> Vec<Play> {
    if backend.is_of_power() {
        return Vec::new();
    }
    vec![Play::scenario("q35_boot", q35_boot), Play::scenario("scattered_mappings", scattered)]
}

fn cases(backend: BackendKind) -> impl Iterator<Item = Play> {
    contract::ALL.iter().filter(move |case| case.applies_to(backend)).map(Play::case)
}
