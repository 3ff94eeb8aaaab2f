//! Everything that is played on real kernels, on the soft host: the same scenarios, the same contract, the same answers.

use std::process::ExitCode;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace_soft::{Profile, SoftHost};
use dmaspace_tests::boot::q35_boot;
use dmaspace_tests::contract::{self, Field};
use dmaspace_tests::dirty::{dirty_pages, scattered};
use dmaspace_tests::scenarios;
use dmaspace_tests::soft::{backends_of, host, stage, stage_in_a_pool};
use dmaspace_tests::stage::Stage;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for preset in Profile::PRESETS {
        for backend in backends_of(preset) {
            let name = |what: &str| format!("{preset}::{backend}::{what}");
            // The guests of the scenarios have pages of 4 KiB.
            for scenario in scenarios::ALL.iter().filter(|_| preset != "vtd-64k") {
                trials.push(Trial::test(name(scenario.name), || on_stage(preset, *backend, scenario.play)));
            }
            if preset == "vtd-ssads" && *backend == BackendKind::Iommufd {
                trials.push(Trial::test(name("exactly_the_dirty_pages"), || {
                    on_stage(preset, *backend, |stage| dirty_pages(stage, true))
                }));
            }
            if *backend == BackendKind::Spapr {
                let name = name("smaller_pages_than_said");
                trials.push(Trial::test(name, || on_stage(preset, *backend, scenarios::smaller_pages_than_said)));
            }
            if preset == "vtd" {
                trials.push(Trial::test(name("q35_boot"), || on_stage(preset, *backend, q35_boot)));
                trials.push(Trial::test(name("scattered_mappings"), || on_stage(preset, *backend, scattered)));
            }
            for case in contract::ALL {
                let name = name(&format!("contract::{}", case.name));
                trials.push(Trial::test(name, || on_stage(preset, *backend, |stage| (case.check)(&Field::new(stage)))));
            }
        }
    }
    trials.extend(trials_in_a_pool());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// An address space that gets its mappings as copies is one like any other.
fn trials_in_a_pool() -> Vec<Trial> {
    let trial = |what: &str, play: fn(&mut Stage)| {
        Trial::test(format!("vtd::pool::{what}"), move || on_stage_of(&host("vtd"), stage_in_a_pool, play))
    };
    let mut trials = vec![trial("q35_boot", q35_boot), trial("scattered_mappings", scattered)];
    trials.extend(scenarios::ALL.iter().map(|scenario| trial(scenario.name, scenario.play)));
    trials.extend(contract::ALL.iter().map(|case| {
        let play = move || on_stage_of(&host("vtd"), stage_in_a_pool, |stage| (case.check)(&Field::new(stage)));
        Trial::test(format!("vtd::pool::contract::{}", case.name), play)
    }));
    trials
}

/// Plays on a fresh host, and sees that nothing is left on it.
fn on_stage(preset: &str, backend: BackendKind, play: impl FnOnce(&mut Stage)) -> Result<(), Failed> {
    on_stage_of(&host(preset), |host| stage(host, backend), play)
}

fn on_stage_of(
    host: &Arc<SoftHost>,
    set: impl FnOnce(&Arc<SoftHost>) -> Stage,
    play: impl FnOnce(&mut Stage),
) -> Result<(), Failed> {
    let mut stage = set(host);
    play(&mut stage);
    drop(stage);
    let ledger = host.ledger();
    if ledger.is_clear() { Ok(()) } else { Err(format!("left behind: {ledger:?}").into()) }
}
