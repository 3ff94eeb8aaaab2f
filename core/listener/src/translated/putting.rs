//! Putting entries, and what is done when a host's pages prove too large for them.

use dmaspace_core::contract::MapRequest;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::apply::Journal;
use crate::page_size_fallback::SmallerPages;
use crate::translated::{EntryError, Shared};
use dmaspace_core::contract::{PciAddressSpace, Unit};
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{Iova, IovaRange, SystemAddress};

/// A run to put.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) at: Iova,
    pub(super) target: SystemAddress,
    pub(super) len: u64,
    pub(super) access: Access,
}

/// Why a run was not put, by which space, and how often windows had been made again when it was tried.
struct Refused {
    error: EntryError,
    by: Option<Arc<dyn PciAddressSpace>>,
    made_again: usize,
}

impl From<EntryError> for Refused {
    fn from(error: EntryError) -> Self {
        Self { error, by: None, made_again: 0 }
    }
}

/// Windows that were made again, with what brings them back.
type Remade = Vec<(Arc<dyn PciAddressSpace>, Journal)>;

impl Shared {
    /// Puts a run, in windows of smaller pages where that helps.
    pub(super) fn put_run(&self, wanted: Wanted) -> Result<(), EntryError> {
        self.checked(wanted.at, wanted.len, wanted.target.get())?;
        let put = self.open().map_err(Refused::from).and_then(|spaces| self.put_on(&spaces, wanted));
        put.or_else(|refused| match self.may_be_put_after_all(&refused) {
            true => self.put_in_smaller_pages(wanted, refused),
            false => Err(refused.error),
        })
    }

    fn put_on(&self, spaces: &[Arc<dyn PciAddressSpace>], wanted: Wanted) -> Result<(), Refused> {
        let Wanted { at, target, len, access } = wanted;
        let made_again = self.made_again.load(Ordering::Relaxed);
        let memory = self.resolve(target, len)?;
        let mut last = None;
        let put = self.on_every_space(spaces, |space, journal| {
            last = Some(space);
            let mut next = at.get();
            for piece in &memory {
                let place = IovaRange::with_len(Iova::new(next), piece.len().get())?;
                space.map(MapRequest::new(place.first(), piece, access).with_unit(Unit::Pages(self.page)))?;
                journal.note_mapped(place);
                next = place.last().get().wrapping_add(1);
            }
            Ok(())
        });
        put.map_err(|error| Refused { error, by: last.cloned(), made_again })
    }

    /// Whether the pages of the space that refused a run may be why, or were and are smaller now.
    fn may_be_put_after_all(&self, refused: &Refused) -> bool {
        let Refused { error: EntryError::Space(error), by: Some(space), made_again } = refused else { return false };
        self.made_again.load(Ordering::Relaxed) != *made_again
            || SmallerPages::after(error, space.as_ref(), self.range).is_some()
    }

    /// Puts a run after the windows of spaces that refuse it, with no entry in them, were made again.
    fn put_in_smaller_pages(&self, wanted: Wanted, mut refused: Refused) -> Result<(), EntryError> {
        // No entry may come meanwhile.
        let _held = self.hold();
        let mut remade = Remade::new();
        loop {
            // Unless another processor was refused, too, and was here first.
            if self.made_again.load(Ordering::Relaxed) == refused.made_again {
                if let Err(error) = self.make_again(refused, &mut remade) {
                    return Err(taking_back(remade, error));
                }
            }
            match self.put_on(&self.spaces(), wanted) {
                Ok(()) => return Ok(()),
                Err(next) => refused = next,
            }
        }
    }

    /// Makes the window of the space that refused a run again.
    ///
    /// # Errors
    /// Why it was refused, or what the space says now.
    fn make_again(&self, refused: Refused, remade: &mut Remade) -> Result<(), EntryError> {
        let Refused { error: EntryError::Space(error), by: Some(space), .. } = refused else {
            return Err(refused.error);
        };
        let Some(smaller) = SmallerPages::after(&error, space.as_ref(), self.range) else { return Err(error.into()) };
        if !space.mappings(self.range).is_empty() || !smaller.has_room(space.as_ref()) {
            return Err(EntryError::PagesTooLarge(error, smaller.from()));
        }
        log::warn!("{}: {error}; trying {smaller}", space.describe().backend);
        let mut journal = Journal::default();
        let done = smaller.put_in_force_empty(space.as_ref(), &mut journal);
        remade.push((space, journal));
        self.made_again.fetch_add(1, Ordering::Relaxed);
        Ok(done?)
    }
}

/// Brings windows back after `error`. Around a fence no window can be made: all stays as it is.
fn taking_back(remade: Remade, error: EntryError) -> EntryError {
    if matches!(&error, EntryError::Space(error) if !error.fenced.is_empty()) {
        return error;
    }
    let lost = remade.into_iter().rev().flat_map(|(space, journal)| journal.undo(space.as_ref()));
    let lost: Vec<_> = lost.collect();
    match error {
        EntryError::Space(error) => error.fencing(lost).into(),
        EntryError::PagesTooLarge(error, page) => EntryError::PagesTooLarge(error.fencing(lost), page),
        other => other,
    }
}
