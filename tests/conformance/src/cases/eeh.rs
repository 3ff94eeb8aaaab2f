//! Recovering a device that its host has isolated.

use dmaspace_core::contract::eeh::{Eeh, PeOperation, PeState, Reset};
use dmaspace_core::error::Kind;

use crate::bench::Bench;

fn eeh(bench: &Bench) -> &dyn Eeh {
    bench.eeh().expect("the case needs a host that recovers devices")
}

/// The number of attempts that guests make: firmware may refuse to begin a reset.
const ATTEMPTS: usize = 3;

fn reset(bench: &Bench) {
    let begun = (0..ATTEMPTS).any(|_| eeh(bench).operate(PeOperation::Reset(Reset::Hot)).is_ok());
    assert!(begun, "a reset can begin");
    eeh(bench).operate(PeOperation::Reset(Reset::Deactivate)).expect("a reset can end");
    eeh(bench).operate(PeOperation::Configure).expect("the bridges can be restored");
}

fn state(bench: &Bench) -> PeState {
    eeh(bench).state().expect("the device's state can be read")
}

pub(super) fn a_device_that_works_is_in_the_normal_state(bench: &mut Bench) {
    eeh(bench).operate(PeOperation::Enable).expect("error handling can be enabled");
    assert_eq!(state(bench), PeState::Normal);
}

pub(super) fn a_device_is_normal_again_after_a_reset(bench: &mut Bench) {
    reset(bench);
    assert_eq!(state(bench), PeState::Normal);
}

pub(super) fn mappings_survive_a_reset(bench: &mut Bench) {
    bench.must_map(0, 0, 4, bench.pages());
    let before = bench.state();
    reset(bench);
    assert_eq!(bench.state(), before);
    assert_eq!(bench.unmap(0, 4).expect("the units are whole"), bench.bytes(4));
}

pub(super) fn no_device_is_recovered_in_an_empty_space(bench: &mut Bench) {
    bench.close_device();
    bench.detach(&bench.device()).expect("the device is attached");
    bench.refuses(&Kind::NotAttached, || eeh(bench).state());
    bench.refuses(&Kind::NotAttached, || eeh(bench).operate(PeOperation::Enable));
}
