//! Dirty tracking over all spaces of a listener at once.

use std::sync::Arc;

use crate::Listener;
use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::contract::dirty::{DirtySink, Precision, Synced};
use dmaspace_core::error::Error;
use dmaspace_core::words::address::IovaRange;

impl Listener {
    /// Tells `sink` from now on what devices write, through any of the spaces: when it is asked ([`Listener::sync_dirty`]), and whenever
    /// something is unmapped. Spaces that are attached later are tracked too. Says how exact each space is, in their order.
    ///
    /// What processors write is not the listener's: a VMM joins it with KVM's log.
    ///
    /// ```
    /// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
    /// use dmaspace_core::contract::dirty::{Dirtied, DirtySink};
    /// use dmaspace_listener::{FrontEnd, Listener};
    ///
    /// #[derive(Default)]
    /// struct Count(AtomicU64);
    ///
    /// impl DirtySink for Count {
    ///     fn mark(&self, dirtied: Dirtied<'_>) {
    ///         self.0.fetch_add(dirtied.len, Ordering::Relaxed);
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), dmaspace_core::Error> {
    /// let (mut listener, written) = (Listener::new(FrontEnd::pc()), Arc::new(Count::default()));
    /// listener.track_dirty(written.clone())?;
    /// // The guest runs, commits come and go.
    /// listener.sync_dirty()?;
    /// println!("{} bytes to send again", written.0.swap(0, Ordering::Relaxed));
    /// listener.stop_tracking();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Kind::Tracking`](dmaspace_core::error::Kind::Tracking) when a space is tracked already, or what a kernel said. No space is tracked then that
    /// was not before.
    pub fn track_dirty(&mut self, sink: Arc<dyn DirtySink>) -> Result<Vec<Precision>, Error> {
        let mut begun: Vec<&Arc<dyn PciAddressSpace>> = Vec::with_capacity(self.members.len());
        let mut precisions = Vec::with_capacity(self.members.len());
        for space in self.members.iter().map(|member| &member.space) {
            match space.powers().dirty_tracking.start(sink.clone()) {
                Ok(precision) => precisions.push(precision),
                Err(error) => {
                    begun.into_iter().for_each(stop);
                    return Err(error);
                }
            }
            begun.push(space);
        }
        self.sink = Some(sink);
        Ok(precisions)
    }

    /// Tells the sink what devices have written since they were told last, everywhere. Every space is asked, whatever another says.
    ///
    /// # Errors
    /// The first that a space gave; all that space was asked about was marked then. [`Kind::NotTracking`](dmaspace_core::error::Kind::NotTracking)
    /// from a space that is not tracked.
    pub fn sync_dirty(&self) -> Result<Vec<Synced>, Error> {
        let answers: Vec<_> = self.spaces().map(|space| space.powers().dirty_tracking.sync(IovaRange::all())).collect();
        answers.into_iter().collect()
    }

    /// Tells the sink nothing any more. What was written since it was told last is not told: ask before.
    pub fn stop_tracking(&mut self) {
        if self.sink.take().is_some() {
            self.spaces().for_each(stop);
        }
    }

    /// A space that joins is tracked before anything is mapped in it.
    pub(super) fn track_joining(&self, space: &Arc<dyn PciAddressSpace>) -> Result<(), Error> {
        self.sink.iter().try_for_each(|sink| space.powers().dirty_tracking.start(sink.clone()).map(drop))
    }

    /// A space that leaves, or did not come after all, is tracked no longer.
    pub(super) fn track_no_longer(&self, space: &Arc<dyn PciAddressSpace>) {
        if self.sink.is_some() {
            stop(space);
        }
    }
}

fn stop(space: &Arc<dyn PciAddressSpace>) {
    if let Err(error) = space.powers().dirty_tracking.stop() {
        log::debug!("{error}");
    }
}
