//! The tests of one backend, by name: the scenarios, and the cases of the contract.

use dmaspace::choose::BackendKind;
use dmaspace_conformance::{Abilities, CASES, Case, UnderTest};

use crate::boot::q35_boot;
use crate::dirty::{dirty_pages, scattered};
use crate::fixture::Fixture;
use crate::scenarios::{self, Scenario};

/// The scenarios that run on a real kernel, where devices are slow: an iommufd in a container's place maps as any other
/// iommufd does.
pub fn scenarios_on(backend: BackendKind) -> Vec<Scenario> {
    let in_short = backend == BackendKind::Type1OnIommufd;
    let scenarios = scenarios::ALL.iter().filter(|scenario| !in_short || IN_SHORT.contains(&scenario.name));
    let mut scenarios: Vec<_> =
        scenarios.filter(|scenario| has_something_to_show(scenario, backend)).copied().collect();
    scenarios.extend(of_spapr(backend));
    if !in_short {
        scenarios.extend(long_ones(backend));
    }
    scenarios
}

/// The scenarios that show most for their time.
const IN_SHORT: [&str; 2] = ["flat_pc_map", "limit_met_in_the_middle_of_a_commit"];

/// The scenarios that run on a soft host.
pub fn scenarios_on_soft(preset: &str, backend: BackendKind) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    // The guests of the scenarios have pages of 4 KiB.
    if !["vtd-64k", "arm64-64k"].contains(&preset) {
        scenarios.extend(scenarios::ALL.iter().filter(|scenario| has_something_to_show(scenario, backend)).copied());
    }
    // Its windows lie where Arm's hosts deliver interrupts.
    if preset == "arm64-4k" {
        scenarios.retain(|scenario| scenario.name != "two_windows");
    }
    if preset == "vtd" {
        scenarios.extend(long_ones(backend));
    }
    if preset == "vtd-ssads" && backend == BackendKind::Iommufd {
        scenarios.push(Scenario { name: "exactly_the_dirty_pages", run: exactly_the_dirty_pages });
    }
    scenarios.extend(of_spapr(backend));
    scenarios
}

fn exactly_the_dirty_pages(fixture: &mut Fixture) {
    dirty_pages(fixture, true);
}

/// A v1 container locks all it ever will when its device is attached.
fn has_something_to_show(scenario: &Scenario, backend: BackendKind) -> bool {
    backend != BackendKind::SpaprV1 || scenario.name != "limit_met_in_the_middle_of_a_commit"
}

/// The scenario of hosts that create windows in pages of several sizes.
fn of_spapr(backend: BackendKind) -> Option<Scenario> {
    let scenario = Scenario { name: "smaller_pages_than_said", run: scenarios::smaller_pages_than_said };
    (backend == BackendKind::Spapr).then_some(scenario)
}

/// On POWER the window over all RAM would be made anew whenever RAM is added above it, or no window reaches all RAM.
fn long_ones(backend: BackendKind) -> Vec<Scenario> {
    if backend.is_of_power() {
        return Vec::new();
    }
    vec![Scenario { name: "q35_boot", run: q35_boot }, Scenario { name: "scattered_mappings", run: scattered }]
}

/// The cases of the contract that apply to a subject.
pub fn cases_for(subject: &dyn UnderTest) -> Vec<&'static Case> {
    let abilities = Abilities::of(subject);
    CASES.iter().filter(|case| abilities.reason_against(case.needs).is_none()).collect()
}

/// The name of a case in lists, behind the backend's.
pub fn name_of(case: &Case) -> String {
    format!("contract::{}", case.name)
}
