//! Everything that is played on real kernels, on the soft host: the same scenarios, the same contract, the same answers.

use std::process::ExitCode;
use std::sync::Arc;

use dmaspace::choose::BackendKind;
use dmaspace_soft::{Profile, SoftHost};
use dmaspace_tests::plays;
use dmaspace_tests::power::{self, Machine};
use dmaspace_tests::soft::{backends_of, host, stage, stage_in_a_pool};
use dmaspace_tests::stage::Stage;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for preset in Profile::PRESETS {
        for backend in backends_of(preset) {
            for play in plays::on_soft(preset, *backend) {
                let name = format!("{preset}::{backend}::{}", play.name);
                trials.push(Trial::test(name, move || on_stage(preset, *backend, |stage| play.play(stage))));
            }
        }
        if backends_of(preset).contains(&BackendKind::Spapr) {
            for trial in power::ALL.iter().chain(power::LARGE) {
                let name = format!("{preset}::power::{}", trial.name);
                trials.push(Trial::test(name, || on_machine(preset, Machine::soft, trial.play)));
            }
            for trial in power::HUGE {
                let name = format!("{preset}::power::{}", trial.name);
                trials.push(Trial::test(name, || on_machine(preset, Machine::believing, trial.play)));
            }
        }
    }
    trials.extend(trials_in_a_pool());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// An address space that gets its mappings as copies is one like any other.
fn trials_in_a_pool() -> impl Iterator<Item = Trial> {
    plays::on_soft("vtd", BackendKind::Iommufd).into_iter().map(|play| {
        let name = format!("vtd::pool::{}", play.name);
        Trial::test(name, move || on_stage_of(&host("vtd"), stage_in_a_pool, |stage| play.play(stage)))
    })
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
    play(&mut set(host));
    cleared(host)
}

fn on_machine(preset: &str, machine: fn(&Arc<SoftHost>) -> Machine, play: fn(&Machine)) -> Result<(), Failed> {
    let host = host(preset);
    play(&machine(&host));
    cleared(&host)
}

fn cleared(host: &SoftHost) -> Result<(), Failed> {
    let ledger = host.ledger();
    if ledger.is_clear() { Ok(()) } else { Err(format!("left behind: {ledger:?}").into()) }
}
