//! Everything that is played on real kernels, on the soft host: the same scenarios, the same contract, the same answers.

use std::process::ExitCode;

use dmaspace::choose::BackendKind;
use dmaspace_soft::Profile;
use dmaspace_tests::plays;
use dmaspace_tests::soft::{backends_of, host, stage};
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
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Plays on a fresh host, and sees that nothing is left on it.
fn on_stage(preset: &str, backend: BackendKind, play: impl FnOnce(&mut Stage)) -> Result<(), Failed> {
    let host = host(preset);
    let mut stage = stage(&host, backend);
    play(&mut stage);
    drop(stage);
    let ledger = host.ledger();
    if ledger.is_clear() { Ok(()) } else { Err(format!("left behind: {ledger:?}").into()) }
}
