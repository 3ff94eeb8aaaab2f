//! Dirty tracking over all spaces of a listener at once.

use std::sync::Arc;

use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::contract::dirty::{DirtySink, Precision, Synced};
use dmaspace_core::error::Error;
use dmaspace_core::words::address::IovaRange;

/// The sink that devices' writes are reported to, while they are tracked.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    sink: Option<Arc<dyn DirtySink>>,
}

impl Tracking {
    /// Starts tracking in all of `spaces`, or in none.
    pub(crate) fn start(
        &mut self,
        spaces: &[Arc<dyn PciAddressSpace>],
        sink: Arc<dyn DirtySink>,
    ) -> Result<Vec<Precision>, Error> {
        let mut precisions = Vec::with_capacity(spaces.len());
        for (place, space) in spaces.iter().enumerate() {
            match space.powers().dirty_tracking.start(sink.clone()) {
                Ok(precision) => precisions.push(precision),
                Err(error) => {
                    for begun in spaces.iter().take(place) {
                        stop(begun.as_ref());
                    }
                    return Err(error);
                }
            }
        }
        self.sink = Some(sink);
        Ok(precisions)
    }

    /// Asks every space, even if another one failed.
    pub(crate) fn sync(&self, spaces: &[Arc<dyn PciAddressSpace>]) -> Result<Vec<Synced>, Error> {
        let answers: Vec<_> = spaces.iter().map(|space| space.powers().dirty_tracking.sync(IovaRange::all())).collect();
        answers.into_iter().collect()
    }

    /// Stops tracking in all of `spaces`.
    pub(crate) fn stop(&mut self, spaces: &[Arc<dyn PciAddressSpace>]) {
        if self.sink.take().is_some() {
            for space in spaces {
                stop(space.as_ref());
            }
        }
    }

    /// Starts tracking in a space that joins, before anything is mapped in it.
    pub(crate) fn start_on(&self, space: &dyn PciAddressSpace) -> Result<(), Error> {
        if let Some(sink) = &self.sink {
            space.powers().dirty_tracking.start(sink.clone())?;
        }
        Ok(())
    }

    /// Stops tracking in a space that leaves, or did not join after all.
    pub(crate) fn stop_on(&self, space: &dyn PciAddressSpace) {
        if self.sink.is_some() {
            stop(space);
        }
    }
}

fn stop(space: &dyn PciAddressSpace) {
    if let Err(error) = space.powers().dirty_tracking.stop() {
        log::debug!("{error}");
    }
}
