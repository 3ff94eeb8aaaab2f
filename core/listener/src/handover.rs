//! Handing over all that a listener serves.

use crate::{Listener, hold};
use dmaspace_core::contract::live_update::{Handover, LiveUpdate, NamedMemory};
use dmaspace_core::error::Error;

impl Listener {
    /// Hands all spaces over to another process, or none, and describes each, in the order they joined ([`dmaspace_core::contract::live_update`]). Commits,
    /// entries and blocks are refused from then on.
    ///
    /// The successor's listener is told the same view, the populated blocks of discardable sections included, and serves the spaces
    /// after they have adopted what is described here: entries of translated windows that are live in a space that joins are found there.
    ///
    /// # Errors
    /// As [`LiveUpdate::hand_over`]; every space that could be handed over is taken back then.
    pub fn hand_over(&self, memory: &NamedMemory) -> Result<Vec<Handover>, Error> {
        // What is under way ends in every space or in none.
        let _held = hold(&self.discardables);
        let _gates: Vec<_> = self.windows.values().map(|window| window.hold()).collect();
        let mut handed: Vec<&dyn LiveUpdate> = Vec::new();
        let mut handovers = Vec::new();
        for space in self.spaces().map(|space| space.powers().live_update) {
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
            handed.extend(was_here.then_some(space));
        }
        Ok(handovers)
    }

    /// Takes back every space that is handed over, after a hand-over to nobody.
    ///
    /// # Errors
    /// The first of [`LiveUpdate::take_back`]; the other spaces are taken back all the same, and this can be tried again.
    pub fn take_back(&self) -> Result<(), Error> {
        let away = self.spaces().map(|space| space.powers().live_update).filter(|space| space.is_handed_over());
        away.map(|space| space.take_back()).fold(Ok(()), Result::and)
    }
}
