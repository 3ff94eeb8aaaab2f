//! Handing a space over to another process, and adopting one.
//!
//! The kernel keeps a mapping by its IOVA; a hand-over changes the address at which it finds the memory. An address
//! that is updated twice is refused, and so is one that is invalidated twice. After a call that failed it is unknown
//! which holds: the address is invalidated, whatever the answer, and then updated.

use crate::backend::{Backend, VaddrCalls};
use crate::contract::live_update::{HandedMapping, Handover, NamedMemory};
use crate::contract::{LiveUpdateSupport, Mapping};
use crate::door::{Failure, Lease};
use crate::error::{Error, Kind, Operation};
use crate::retry::{Undone, until_gone, with_retries};
use crate::space::layout::{WindowSet, hull_over};
use crate::space::mapper::{call_size, locked_by_mapping, units};
use crate::space::{Space, refused};
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;

/// The calls that change the addresses of mappings, for one operation. The gate is held exclusively.
pub(super) struct AddressCalls<'a, B> {
    backend: &'a B,
    calls: &'a dyn VaddrCalls,
    operation: Operation,
}

impl<'a, B: Backend> AddressCalls<'a, B> {
    /// The calls of a backend that makes them, or the reason why there are none.
    pub(super) fn of(space: &'a Space<B>, operation: Operation) -> Result<Self, Error> {
        let backend = &space.backend;
        let why = match (backend.capabilities().hands_over, backend.calls().vaddr) {
            (LiveUpdateSupport::WhereTheKernelCan, Some(calls)) => return Ok(Self { backend, calls, operation }),
            (LiveUpdateSupport::Never(why), _) => why,
            (LiveUpdateSupport::WhereTheKernelCan, None) => "the backend makes no such calls",
        };
        Err(Error::new(operation, IovaRange::all(), Kind::Unsupported(why)))
    }

    /// Refuses where the host as it is now cannot.
    pub(super) fn check_obstacle(&self) -> Result<(), Error> {
        match self.calls.obstacle() {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(Error::new(self.operation, IovaRange::all(), Kind::Unsupported(why))),
            Err(failure) => Err(self.kernel_error(failure)),
        }
    }

    pub(super) fn kernel_error(&self, failure: Failure) -> Error {
        Error::from_kernel(self.operation, IovaRange::all(), failure)
    }

    /// Updates the addresses of all mappings. After an error as many as possible are invalidated again.
    pub(super) fn update_all(&self, mappings: &[Mapping]) -> Result<(), Error> {
        let mut updated: Vec<IovaRange> = Vec::new();
        for mapping in mappings {
            for (range, memory) in self.kernel_mappings(mapping) {
                updated.push(range);
                if let Err(failure) = self.update(range, &memory) {
                    self.invalidate_each(&updated);
                    let wanted = locked_by_mapping(self.backend, &mapping.memory);
                    return Err(refused(self.backend, self.operation, mapping.range, failure, wanted));
                }
            }
        }
        Ok(())
    }

    /// Invalidates all addresses, or none.
    pub(super) fn invalidate_all(&self, set: &WindowSet) -> Result<(), Failure> {
        let slots: Vec<_> = set.slots.iter().map(AsRef::as_ref).collect();
        let Some((_, bytes)) = hull_over(&slots, IovaRange::all()) else { return Ok(()) };
        let Err(failure) = self.invalidate_bytes(bytes) else { return Ok(()) };
        // The call may have done its work all the same, or met an address that an earlier failure had invalidated.
        let live = set.mappings(IovaRange::all());
        self.restore(&live);
        if self.invalidate_bytes(bytes).is_ok() {
            return Ok(());
        }
        self.restore(&live);
        Err(failure)
    }

    fn invalidate_bytes(&self, bytes: u64) -> Result<(), Failure> {
        match self.calls.invalidate(IovaRange::all())? {
            Undone::WasNotThere => Err(Failure::malformed("unmap", "a mapping had no valid address")),
            Undone::Done(Some(invalidated)) if invalidated != bytes => {
                Err(Failure::malformed("unmap", "the number of invalidated bytes is not that of the mapped bytes"))
            }
            Undone::Done(_) => Ok(()),
        }
    }

    /// Updates all addresses to what they were.
    fn restore(&self, live: &[Mapping]) {
        for (range, memory) in live.iter().flat_map(|mapping| self.kernel_mappings(mapping)) {
            if let Err(failure) = with_retries(|| self.update(range, &memory)) {
                log::error!("{}: the address of {range} could not be restored: {failure}", self.backend.name());
            }
        }
    }

    /// Updates one address. A call that failed may have done its work: the address is invalidated before the next.
    fn update(&self, range: IovaRange, memory: &HostMemory) -> Result<(), Failure> {
        let Err(failure) = self.calls.update(range, &Lease::kept_by_space(memory)) else { return Ok(()) };
        // An address that is invalid already is no failure.
        let _ = self.calls.invalidate(range);
        self.calls.update(range, &Lease::kept_by_space(memory)).map_err(|_| failure)
    }

    /// Invalidates addresses that were updated, or may have been.
    fn invalidate_each(&self, ranges: &[IovaRange]) {
        for range in ranges {
            if let Err(failure) = until_gone(|| self.calls.invalidate(*range)) {
                log::warn!("{range} keeps an address of this process: {failure}");
            }
        }
    }

    /// The kernel's mappings behind a mapping of the space: one for each map call.
    fn kernel_mappings(&self, mapping: &Mapping) -> Vec<(IovaRange, HostMemory)> {
        match call_size(self.backend.capabilities().keeps, mapping.unit) {
            Some(page) => units(mapping.range, &mapping.memory, page).collect(),
            None => vec![(mapping.range, mapping.memory.clone())],
        }
    }
}

/// The description of a space that is handed over.
pub(super) fn describe<B: Backend>(space: &Space<B>, memory: &NamedMemory) -> Result<Handover, Error> {
    let set = space.layout.get();
    let mut mappings = Vec::new();
    for mapping in set.mappings(IovaRange::all()) {
        let Some(place) = memory.place_of(&mapping.memory) else {
            let nameless = Kind::NoMemory(format!("{} has no name", mapping.memory));
            return Err(Error::new(Operation::HandOver, mapping.range, nameless));
        };
        let Mapping { range, access, unit, memory } = mapping;
        mappings.push(HandedMapping { range, place, access, unit, device_memory: memory.is_device_memory() });
    }
    Ok(Handover {
        backend: space.backend.name().to_owned(),
        devices: space.attachments.names(),
        windows: set.windows.iter().copied().collect(),
        mappings,
        mappings_left: mappings_left(space),
    })
}

fn mappings_left<B: Backend>(space: &Space<B>) -> Option<u64> {
    space.backend.calls().mapping_budget?.mappings_left()
}

/// The mappings that a hand-over describes, with memory of this process.
pub(super) fn resolve<B: Backend>(
    space: &Space<B>,
    handover: &Handover,
    memory: &NamedMemory,
) -> Result<Vec<Mapping>, Error> {
    check_same_space(space, handover).map_err(|what| bad_handover(IovaRange::all(), what))?;
    let mut mappings = Vec::new();
    for handed in &handover.mappings {
        let mapping = resolve_one(handed, memory)?;
        space.check_request(Operation::Adopt, mapping.range, &mapping.memory, mapping.access)?;
        space.fences.check(Operation::Adopt, mapping.range)?;
        space.layout.get().slot_for(Operation::Adopt, mapping.range, &mapping.memory, mapping.unit)?;
        mappings.push(mapping);
    }
    mappings.sort_by_key(|mapping| mapping.range);
    for (below, above) in mappings.iter().zip(mappings.iter().skip(1)) {
        if below.range.overlaps(above.range) {
            return Err(Error::new(Operation::Adopt, above.range, Kind::Overlap(below.range)));
        }
    }
    match handover.mappings_left.zip(mappings_left(space)) {
        Some((then, now)) if then != now => {
            let what = format!("the kernel took {then} more mappings then, and takes {now} now");
            Err(bad_handover(IovaRange::all(), what))
        }
        _ => Ok(mappings),
    }
}

pub(super) fn bad_handover(range: IovaRange, what: String) -> Error {
    Error::new(Operation::Adopt, range, Kind::BadHandover(what))
}

/// Compares backend and devices.
fn check_same_space<B: Backend>(space: &Space<B>, handover: &Handover) -> Result<(), String> {
    let backend = space.backend.name();
    if handover.backend != backend {
        return Err(format!("it is of {}, and this is {backend}", handover.backend));
    }
    let mut described = handover.devices.clone();
    let mut attached = space.attachments.names();
    described.sort();
    attached.sort();
    if described == attached {
        return Ok(());
    }
    Err(format!("its devices are {}, and here are {}", listed(&described), listed(&attached)))
}

fn listed(devices: &[String]) -> String {
    if devices.is_empty() { "none".into() } else { devices.join(", ") }
}

fn resolve_one(handed: &HandedMapping, memory: &NamedMemory) -> Result<Mapping, Error> {
    let HandedMapping { range, ref place, access, unit, device_memory } = *handed;
    let no_memory = |what| Error::new(Operation::Adopt, range, Kind::NoMemory(what));
    let name = &place.name;
    let named = memory.get(name).ok_or_else(|| no_memory(format!("there is no memory by the name {name}")))?;
    let Some(piece) = range.len().and_then(|len| named.slice(place.offset, len.get())) else {
        let (len, bytes) = (named.len(), range.bytes());
        return Err(no_memory(format!("{name} has {len:#x} bytes, too few for {bytes:#x} at {place}")));
    };
    match (device_memory, piece.is_device_memory()) {
        (true, false) => Err(no_memory(format!("{name} was another device's memory, and is not here"))),
        (false, true) => Err(no_memory(format!("{name} was not another device's memory, and is here"))),
        _ => Ok(Mapping { range, memory: piece, access, unit }),
    }
}

/// The first range that is in one list and not alike in the other.
pub(super) fn difference(live: &[Mapping], described: &[Mapping]) -> Option<IovaRange> {
    let mut pairs = live.iter().zip(described);
    if let Some((mapping, _)) = pairs.find(|(live, described)| !are_alike(live, described)) {
        return Some(mapping.range);
    }
    live.get(described.len()).or_else(|| described.get(live.len())).map(|mapping| mapping.range)
}

fn are_alike(one: &Mapping, two: &Mapping) -> bool {
    (one.range, one.access, one.unit) == (two.range, two.access, two.unit)
}
