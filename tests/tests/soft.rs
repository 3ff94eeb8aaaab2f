//! Everything that runs on real kernels, on the soft host: the same scenarios, the same contract, the same answers.

use std::process::ExitCode;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace_conformance::Bench;
use dmaspace_soft::{Profile, SoftHost};
use dmaspace_tests::fixture::Fixture;
use dmaspace_tests::power::{self, Machine};
use dmaspace_tests::soft::{backends_of, fixture, fixture_in_a_pool, host};
use dmaspace_tests::{subject, suite};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for preset in Profile::PRESETS {
        for backend in backends_of(preset) {
            trials.extend(trials_on(preset, *backend));
        }
        if backends_of(preset).contains(&BackendKind::Spapr) {
            trials.extend(power_trials(preset));
        }
    }
    trials.extend(trials_in_a_pool());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trials_on(preset: &'static str, backend: BackendKind) -> Vec<Trial> {
    let mut trials = contract_trials(&format!("{preset}::{backend}"), move || subject::on_soft(preset, backend));
    for scenario in suite::scenarios_on_soft(preset, backend) {
        let name = format!("{preset}::{backend}::{}", scenario.name);
        trials.push(Trial::test(name, move || {
            let host = host(preset);
            run_and_clear(&host, fixture(&host, backend), scenario.run)
        }));
    }
    trials
}

/// The cases of the contract that apply.
fn contract_trials(prefix: &str, open: impl Fn() -> Bench + Copy + Send + 'static) -> Vec<Trial> {
    let mut trials = Vec::new();
    for case in suite::cases_for(&open) {
        trials.push(Trial::test(format!("{prefix}::{}", suite::name_of(case)), move || {
            case.run(&open);
            Ok(())
        }));
    }
    trials
}

/// An address space that gets its mappings as copies is one like any other.
fn trials_in_a_pool() -> Vec<Trial> {
    let mut trials = contract_trials("vtd::pool", subject::in_a_soft_pool);
    for scenario in suite::scenarios_on_soft("vtd", BackendKind::Iommufd) {
        trials.push(Trial::test(format!("vtd::pool::{}", scenario.name), move || {
            let host = host("vtd");
            run_and_clear(&host, fixture_in_a_pool(&host), scenario.run)
        }));
    }
    trials
}

fn power_trials(preset: &'static str) -> Vec<Trial> {
    let mut trials = Vec::new();
    for trial in power::ALL.iter().chain(power::LARGE) {
        let name = format!("{preset}::power::{}", trial.name);
        trials.push(Trial::test(name, || on_machine(preset, Machine::soft, trial.run)));
    }
    for trial in power::HUGE {
        let name = format!("{preset}::power::{}", trial.name);
        trials.push(Trial::test(name, || on_machine(preset, Machine::believing, trial.run)));
    }
    trials
}

/// Runs a scenario and checks that nothing is left on the host.
fn run_and_clear(host: &SoftHost, mut fixture: Fixture, run: fn(&mut Fixture)) -> Result<(), Failed> {
    run(&mut fixture);
    drop(fixture);
    cleared(host)
}

fn on_machine(preset: &str, machine: fn(&Arc<SoftHost>) -> Machine, run: fn(&Machine)) -> Result<(), Failed> {
    let host = host(preset);
    run(&machine(&host));
    cleared(&host)
}

fn cleared(host: &SoftHost) -> Result<(), Failed> {
    let ledger = host.ledger();
    if ledger.is_clear() { Ok(()) } else { Err(format!("left behind: {ledger:?}").into()) }
}
