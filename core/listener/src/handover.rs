//! Handing over all spaces of a listener to another process (live update).

use dmaspace_core::contract::live_update::{Handover, LiveUpdate, NamedMemory};
use dmaspace_core::error::Error;

use crate::discardable;
use crate::in_force::InForce;

/// Hands all spaces over, or none.
pub(crate) fn hand_over(all: &InForce, memory: &NamedMemory) -> Result<Vec<Handover>, Error> {
    // Verbs under way end in every space or in none.
    let _blocks = discardable::pause_all(&all.discardables);
    let _windows: Vec<_> = all.windows.values().map(|window| window.pause()).collect();
    let mut handed: Vec<&dyn LiveUpdate> = Vec::new();
    let mut handovers = Vec::new();
    for space in all.spaces().map(|space| space.powers().live_update) {
        let was_here = !space.is_handed_over();
        match space.hand_over(memory) {
            Ok(handover) => handovers.push(handover),
            Err(error) => {
                for space in handed {
                    if let Err(error) = space.take_back() {
                        log::error!("{error}: it stays handed over, and can be taken back later");
                    }
                }
                return Err(error);
            }
        }
        if was_here {
            handed.push(space);
        }
    }
    Ok(handovers)
}

/// Takes back all spaces that are handed over, and returns the first error.
pub(crate) fn take_back(all: &InForce) -> Result<(), Error> {
    let mut result = Ok(());
    for space in all.spaces().map(|space| space.powers().live_update).filter(|space| space.is_handed_over()) {
        result = result.and(space.take_back());
    }
    result
}
