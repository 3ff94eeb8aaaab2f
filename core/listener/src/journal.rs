//! The journal of a plan: the steps done on one space, and their undo in reverse.
//!
//! An undo step that fails in the kernel leaves a range whose state is unknown: the range is fenced. An undo step that
//! the space refuses because its windows are gone made no call, and the kernel has forgotten everything there anyway:
//! nothing is fenced, and the space is planned anew once it has a device
//! ([`ServedSpace::is_current`](crate::served_space::ServedSpace::is_current)).

use dmaspace_core::contract::{MapRequest, Mapping, PciAddressSpace, Unit, WindowRequest};
use dmaspace_core::door::Failure;
use dmaspace_core::error::{Error, Kind, Operation, Subject};
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

/// The steps done on one space, in order.
#[derive(Debug)]
pub(super) struct Journal {
    /// [`PciAddressSpace::times_forgotten`] when the journal began.
    forgotten: u64,
    done: Vec<Done>,
}

/// One step, with the facts its undo needs.
#[derive(Debug)]
pub(super) enum Done {
    /// The mappings were unmapped.
    Unmapped(Vec<Mapping>),
    /// The window was removed with these mappings in it.
    WindowRemoved(WindowRequest, Vec<Mapping>),
    /// The memory was registered.
    Registered(HostMemory),
    /// The pins of the memory are shared.
    PinsShared(HostMemory),
    /// The window was created.
    WindowCreated(IovaRange),
    /// The range was mapped.
    Mapped(IovaRange),
    /// The memory was unregistered.
    Unregistered(HostMemory),
    /// The pins of the memory are no longer shared.
    SharingStopped(HostMemory),
    /// Live units of this page size were replaced; these are the old mappings.
    Replaced(Vec<Mapping>, PageSize),
    /// A step for a best-effort section failed and left these fences.
    Fenced(Vec<IovaRange>),
}

impl Journal {
    /// An empty journal for `space`.
    pub(super) fn of(space: &dyn PciAddressSpace) -> Self {
        Self { forgotten: space.times_forgotten(), done: Vec::new() }
    }

    /// Enters a step that was done.
    pub(super) fn enter(&mut self, done: Done) {
        self.done.push(done);
    }

    /// Unregisters memory beside a plan.
    pub(super) fn unregister(&mut self, space: &dyn PciAddressSpace, memory: HostMemory) -> Result<(), Error> {
        let registration =
            space.powers().registration.ok_or_else(|| powerless(Operation::Unregister, memory.clone()))?;
        registration.unregister(&memory)?;
        self.done.push(Done::Unregistered(memory));
        Ok(())
    }

    /// The window around `range`, if it was created in this journal.
    pub(super) fn window_around(&self, range: IovaRange) -> Option<IovaRange> {
        self.done.iter().find_map(|done| match done {
            Done::WindowCreated(window) if window.covers(range) => Some(*window),
            _ => None,
        })
    }

    /// Returns whether windows of the space were created or removed.
    pub(super) fn has_changed_windows(&self) -> bool {
        self.done.iter().any(|done| matches!(done, Done::WindowCreated(_) | Done::WindowRemoved(..)))
    }

    /// Undoes all steps, the last one first, and returns the ranges that had to be fenced.
    pub(super) fn undo(&self, space: &dyn PciAddressSpace) -> Vec<IovaRange> {
        let mut fenced = Vec::new();
        for done in self.done.iter().rev() {
            fenced.extend(self.undo_step(space, done));
        }
        fenced
    }

    fn undo_step(&self, space: &dyn PciAddressSpace, done: &Done) -> Vec<IovaRange> {
        match done {
            Done::Unmapped(live) => self.map_again(space, live),
            Done::WindowRemoved(request, live) => self.create_again(space, *request, live),
            Done::WindowCreated(range) => {
                match space.powers().window_control.map(|control| control.remove_window(*range)) {
                    Some(Err(error)) => error.fenced().to_vec(),
                    _ => Vec::new(),
                }
            }
            Done::Mapped(range) => space.unmap(*range).map_or_else(|error| error.fenced().to_vec(), |_| Vec::new()),
            Done::Fenced(fenced) => fenced.clone(),
            Done::Replaced(old, page) => self.put_back(space, old, *page),
            Done::Registered(memory) => {
                self.log(space, space.powers().registration.map(|registration| registration.unregister(memory)))
            }
            Done::Unregistered(memory) => self.log(
                space,
                space.powers().registration.map(|registration| with_second_try(|| registration.register(memory))),
            ),
            Done::PinsShared(memory) => {
                self.log(space, space.powers().pin_sharing.map(|sharing| sharing.stop_sharing(memory)))
            }
            Done::SharingStopped(memory) => {
                self.log(space, space.powers().pin_sharing.map(|sharing| sharing.share_pins(memory)))
            }
        }
    }

    fn map_again(&self, space: &dyn PciAddressSpace, live: &[Mapping]) -> Vec<IovaRange> {
        let mut lost = Vec::new();
        for mapping in live {
            let Err(error) = with_second_try(|| map(space, mapping)) else { continue };
            if self.leaves_doubt(space, &error) {
                space.fence(mapping.range, Some(mapping.memory.clone()), cause(&error));
                lost.push(mapping.range);
            }
        }
        lost
    }

    fn create_again(&self, space: &dyn PciAddressSpace, request: WindowRequest, live: &[Mapping]) -> Vec<IovaRange> {
        let created = with_second_try(|| match space.powers().window_control {
            Some(control) => control.create_window(request),
            None => Err(powerless(Operation::CreateWindow, request.range)),
        });
        match created {
            Ok(_) => self.map_again(space, live),
            Err(error) if self.leaves_doubt(space, &error) => {
                // Without its window nothing is reachable there, so the fence need not keep memory alive.
                space.fence(request.range, None, cause(&error));
                [error.fenced(), &[request.range]].concat()
            }
            Err(_) => Vec::new(),
        }
    }

    fn put_back(&self, space: &dyn PciAddressSpace, old: &[Mapping], page: PageSize) -> Vec<IovaRange> {
        let mut lost = Vec::new();
        for Mapping { range, memory, access, .. } in old {
            let replaced = with_second_try(|| {
                space.replace(MapRequest::new(range.first(), memory, *access).with_unit(Unit::Pages(page)))
            });
            let Err(error) = replaced else { continue };
            if self.leaves_doubt(space, &error) {
                let fenced = space.unmap(*range).map_or_else(|error| error.fenced().to_vec(), |_| Vec::new());
                space.fence(*range, Some(memory.clone()), cause(&error));
                lost.extend([error.fenced(), &fenced, &[*range]].concat());
            }
        }
        lost
    }

    /// Returns whether an undo step that failed with `error` leaves a range in a state that differs from the one
    /// before. After a refusal because the window is gone, or because the kernel has forgotten everything since the
    /// journal began, the whole space is planned anew.
    fn leaves_doubt(&self, space: &dyn PciAddressSpace, error: &Error) -> bool {
        let windows_are_gone = matches!(error.kind(), Kind::OutsideWindows(_) | Kind::NoSuchWindow);
        error.failure().is_some() || !(windows_are_gone || self.is_forgotten(space))
    }

    fn is_forgotten(&self, space: &dyn PciAddressSpace) -> bool {
        space.times_forgotten() != self.forgotten
    }

    /// Logs the failed undo of a step that devices cannot notice: a registration or a sharing too many, or one too few.
    fn log(&self, space: &dyn PciAddressSpace, result: Option<Result<(), Error>>) -> Vec<IovaRange> {
        match result {
            Some(Err(error)) if !self.is_forgotten(space) => log::error!("undo of a commit: {error}"),
            _ => {}
        }
        Vec::new()
    }
}

/// Maps `mapping` as it is.
pub(super) fn map(space: &dyn PciAddressSpace, mapping: &Mapping) -> Result<(), Error> {
    space.map(MapRequest::new(mapping.range.first(), &mapping.memory, mapping.access).with_unit(mapping.unit))
}

/// The error of a step for which the space has no power: plans use only powers that the space has shown.
pub(super) fn powerless(operation: Operation, subject: impl Into<Subject>) -> Error {
    Error::new(operation, subject, Kind::Unsupported("the space lost this power"))
}

/// Tries an undo step a second time, unless the first try left a fence.
fn with_second_try<T>(step: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    step().or_else(|error| if error.fenced().is_empty() { step() } else { Err(error) })
}

fn cause(error: &Error) -> Failure {
    error.failure().unwrap_or(Failure::malformed("undo", "the state before the commit could not be restored"))
}
