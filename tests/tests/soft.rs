//! Everything that is played on real kernels, on the soft host: the same scenarios, the same contract, the same answers.

use std::process::ExitCode;

use dmaspace::choose::BackendKind;
use dmaspace_soft::{Profile, SoftHost};
use dmaspace_tests::boot::q35_boot;
use dmaspace_tests::contract::{self, Field};
use dmaspace_tests::dirty::{dirty_pages, scattered};
use dmaspace_tests::limits::limit_met_in_the_middle_of_a_commit;
use dmaspace_tests::scenarios;
use dmaspace_tests::soft::{backends_of, host, stage};
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
            trials.push(Trial::test(name("limit_met_in_the_middle_of_a_commit"), || meets_limit(preset, *backend)));
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
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn on_stage(preset: &str, backend: BackendKind, play: impl FnOnce(&mut Stage)) -> Result<(), Failed> {
    on_stage_of(preset, backend, |stage, _| play(stage))
}

fn meets_limit(preset: &str, backend: BackendKind) -> Result<(), Failed> {
    on_stage_of(preset, backend, |stage, host| {
        limit_met_in_the_middle_of_a_commit(stage, host, &|bytes| host.set_memlock(Some(bytes)));
    })
}

/// Plays on a fresh host, and sees that nothing is left on it.
fn on_stage_of(preset: &str, backend: BackendKind, play: impl FnOnce(&mut Stage, &SoftHost)) -> Result<(), Failed> {
    let host = host(preset);
    let mut stage = stage(&host, backend);
    play(&mut stage, &host);
    drop(stage);
    let ledger = host.ledger();
    if ledger.is_clear() { Ok(()) } else { Err(format!("left behind: {ledger:?}").into()) }
}
