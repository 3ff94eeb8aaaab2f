//! Handing a space over, and taking one up.
//!
//! The kernel keeps mappings by their place on the bus; what changes hands is where each finds its memory. An address that is given twice
//! is refused, and so is one that is let go of twice: whoever is not sure lets go of one, whatever comes of it, and gives it.

use std::sync::Arc;

use crate::backend::{Backend, VaddrCalls};
use crate::contract::live_update::{HandedMapping, Handover, LiveUpdate, NamedMemory};
use crate::contract::{Attachable, LiveUpdateSupport, Mapping, PciAddressSpace};
use crate::door::{Failure, Lease};
use crate::error::{Error, Kind, Operation, Subject};
use crate::retry::{Undone, until_gone, with_retries};
use crate::space::{Layout, Ownership, Space, hull_over, pages, read, write};
use crate::words::address::IovaRange;
use crate::words::memory::HostMemory;
use crate::words::window::Windows;

impl<B: Backend> Space<B> {
    /// A space of descriptors that another process has handed over: nothing is known to be mapped, and nothing can be changed, before
    /// it has adopted what was described ([`LiveUpdate::adopt`]). `devices` are attached already.
    ///
    /// # Errors
    /// What the kernel said when it was asked for its windows. Nothing is detached or unmapped then.
    pub fn inherited(backend: B, devices: Vec<Arc<dyn Attachable>>) -> Result<Self, Error> {
        let windows = backend.refresh(devices.len());
        let windows = windows.map_err(|failure| {
            let name = devices.first().map_or_else(|| "no device".into(), |device| device.name());
            Error::from_kernel(Operation::Adopt, Subject::Device(name), failure)
        })?;
        Ok(Self::standing_so(Ownership::Inherited, backend, devices, windows))
    }

    fn calls_for_handover(&self, operation: Operation) -> Result<&dyn VaddrCalls, Error> {
        let never = |why| Error::new(operation, IovaRange::all(), Kind::Unsupported(why));
        match (self.backend.powers().hands_over, self.backend.handover_calls()) {
            (LiveUpdateSupport::WhereTheKernelCan, Some(calls)) => Ok(calls),
            (LiveUpdateSupport::Never(why), _) => Err(never(why)),
            (LiveUpdateSupport::WhereTheKernelCan, None) => Err(never("the backend makes no such calls")),
        }
    }

    fn live(&self) -> Vec<Mapping> {
        self.mappings(IovaRange::all())
    }

    fn describe(&self, memory: &NamedMemory) -> Result<Handover, Error> {
        let described = |mapping: Mapping| {
            let nameless = || Kind::NoMemory(format!("{} has no name", mapping.memory));
            let place = memory.place_of(&mapping.memory);
            let place = place.ok_or_else(|| Error::new(Operation::HandOver, mapping.range, nameless()))?;
            Ok(HandedMapping {
                range: mapping.range,
                place,
                access: mapping.access,
                unit: mapping.unit,
                device_memory: mapping.memory.is_device_memory(),
            })
        };
        Ok(Handover {
            backend: self.backend.name().to_owned(),
            devices: self.devices(),
            windows: self.layout().windows.iter().copied().collect(),
            mappings: self.live().into_iter().map(described).collect::<Result<_, _>>()?,
            mappings_left: self.backend.mappings_left(),
        })
    }

    /// What was described, with memory of this process.
    fn resolve(&self, handover: &Handover, memory: &NamedMemory) -> Result<Vec<Mapping>, Error> {
        let wrong = |what: String| Error::new(Operation::Adopt, IovaRange::all(), Kind::BadHandover(what));
        if handover.backend != self.backend.name() {
            return Err(wrong(format!("it is of {}, and this is {}", handover.backend, self.backend.name())));
        }
        let (mut described, mut attached) = (handover.devices.clone(), self.devices());
        described.sort();
        attached.sort();
        if described != attached {
            let names = |devices: &[String]| if devices.is_empty() { "none".into() } else { devices.join(", ") };
            return Err(wrong(format!("its devices are {}, and here are {}", names(&described), names(&attached))));
        }
        let mut mappings: Vec<_> =
            handover.mappings.iter().map(|handed| self.resolve_one(handed, memory)).collect::<Result<_, _>>()?;
        mappings.sort_by_key(|mapping| mapping.range);
        for (below, above) in mappings.iter().zip(mappings.iter().skip(1)) {
            if below.range.overlaps(above.range) {
                return Err(Error::new(Operation::Adopt, above.range, Kind::Overlap(below.range)));
            }
        }
        let left = handover.mappings_left.zip(self.backend.mappings_left());
        if let Some((then, now)) = left.filter(|(then, now)| then != now) {
            return Err(wrong(format!("the kernel took {then} more mappings then, and takes {now} now")));
        }
        Ok(mappings)
    }

    fn resolve_one(&self, handed: &HandedMapping, memory: &NamedMemory) -> Result<Mapping, Error> {
        let HandedMapping { range, ref place, access, unit, device_memory } = *handed;
        let fail = |kind| Error::new(Operation::Adopt, range, kind);
        let named = memory.get(&place.name);
        let named =
            named.ok_or_else(|| fail(Kind::NoMemory(format!("there is no memory by the name {}", place.name))))?;
        let memory = range.len().and_then(|len| named.slice(place.offset, len.get()));
        let memory = memory.ok_or_else(|| {
            let (len, bytes) = (named.len(), range.bytes());
            fail(Kind::NoMemory(format!("{} has {len:#x} bytes, too few for {bytes:#x} at {place}", place.name)))
        })?;
        if memory.is_device_memory() != device_memory {
            let (was, is) = if device_memory { ("was", "is not") } else { ("was not", "is") };
            return Err(fail(Kind::NoMemory(format!("{} {was} another device's memory, and {is} here", place.name))));
        }
        self.check_request(Operation::Adopt, range, &memory, access)?;
        self.slot_for(Operation::Adopt, range, &memory, unit)?;
        Ok(Mapping { range, memory, access, unit })
    }

    /// What the kernel has of a mapping: one of its own for each unit.
    fn parts<'a>(&self, mapping: &'a Mapping) -> impl Iterator<Item = (IovaRange, HostMemory)> + use<'a, B> {
        let page = self.call_size(mapping.unit);
        let whole = page.is_none().then(|| (mapping.range, mapping.memory.clone()));
        let units =
            page.into_iter().flat_map(|page| pages(mapping.range, page).zip(0..).map(move |(part, n)| (part, n, page)));
        let units =
            units.filter_map(|(part, n, page)| Some((part, mapping.memory.slice(n * page.bytes(), page.bytes())?)));
        whole.into_iter().chain(units)
    }

    /// Has the kernel find everything where it is in this process. After an error as much of it as can be is let go of again.
    fn give_all(&self, calls: &dyn VaddrCalls, operation: Operation, mappings: &[Mapping]) -> Result<(), Error> {
        let mut given: Vec<IovaRange> = Vec::new();
        for mapping in mappings {
            for (range, memory) in self.parts(mapping) {
                if let Err(failure) = give_surely(calls, range, &memory) {
                    given.push(range);
                    given.iter().for_each(|range| let_go_again(calls, *range));
                    let wanted = self.locked_by_mapping(&mapping.memory);
                    return Err(self.refused(operation, mapping.range, failure, wanted));
                }
                given.push(range);
            }
        }
        Ok(())
    }

    /// Lets go of every address, or of none.
    fn let_go_of_all(&self, calls: &dyn VaddrCalls) -> Result<(), Failure> {
        let layout = self.layout();
        let slots: Vec<_> = layout.slots.iter().map(AsRef::as_ref).collect();
        let Some((_, bytes)) = hull_over(&slots, IovaRange::all()) else { return Ok(()) };
        let live = self.live();
        let let_go = || match calls.let_go(IovaRange::all())? {
            Undone::WasNotThere => Err(Failure::malformed("unmap", "a mapping had lost its address before")),
            Undone::Done(Some(gone)) if gone != bytes => {
                Err(Failure::malformed("unmap", "another number of bytes lost its address than lived there"))
            }
            _ => Ok(()),
        };
        let_go().or_else(|failure| {
            // It may have done its work all the same, or met an address that an earlier failure had let go of.
            self.give_back(calls, &live);
            let_go().map_err(|_| {
                self.give_back(calls, &live);
                failure
            })
        })
    }

    /// Has everything be found where it was.
    fn give_back(&self, calls: &dyn VaddrCalls, live: &[Mapping]) {
        for (range, memory) in live.iter().flat_map(|mapping| self.parts(mapping)) {
            if let Err(failure) = with_retries(|| give_surely(calls, range, &memory)) {
                log::error!("{}: the address of {range} could not be given back: {failure}", self.backend.name());
            }
        }
    }

    /// MappingModel in mind what is mapped now.
    fn record_all(&self, mappings: Vec<Mapping>) {
        let layout = self.layout();
        let windows = Windows::clone(&layout.windows);
        *write(&self.layout) = Arc::new(Layout::new(layout.generation, windows, mappings));
    }
}

/// Gives an address. One that was given by a call that failed has to be let go of first.
fn give_surely(calls: &dyn VaddrCalls, range: IovaRange, memory: &HostMemory) -> Result<(), Failure> {
    calls.give(range, &Lease::kept_by_space(memory)).or_else(|failure| {
        // Nothing to let go of is no failure.
        let _ = calls.let_go(range);
        calls.give(range, &Lease::kept_by_space(memory)).map_err(|_| failure)
    })
}

/// Lets go of an address that was given, or perhaps was.
fn let_go_again(calls: &dyn VaddrCalls, range: IovaRange) {
    if let Err(failure) = until_gone(|| calls.let_go(range)) {
        log::warn!("{range} keeps an address of this process: {failure}");
    }
}

/// The first that is in one and not alike in the other.
fn difference(live: &[Mapping], described: &[Mapping]) -> Option<IovaRange> {
    let alike = |a: &Mapping, b: &Mapping| (a.range, a.access, a.unit) == (b.range, b.access, b.unit);
    let differing = live.iter().zip(described).find(|(live, described)| !alike(live, described));
    let beyond = || live.get(described.len()).or_else(|| described.get(live.len()));
    differing.map(|(live, _)| live).or_else(beyond).map(|mapping| mapping.range)
}

#[expect(
    unsafe_code,
    reason = "UNSAFETY: no kernel compares the memory that is adopted with the memory that is pinned"
)]
impl<B: Backend> LiveUpdate for Space<B> {
    fn is_handed_over(&self) -> bool {
        *read(&self.gate) != Ownership::Here
    }

    fn hand_over(&self, memory: &NamedMemory) -> Result<Handover, Error> {
        let operation = Operation::HandOver;
        let fail = |kind| Error::new(operation, IovaRange::all(), kind);
        let mut standing = write(&self.gate);
        match *standing {
            Ownership::Inherited => return Err(fail(Kind::HandedOver)),
            Ownership::HandedOver => return self.describe(memory),
            Ownership::Here => {}
        }
        let calls = self.calls_for_handover(operation)?;
        if let Some(fence) = self.fences().first() {
            return Err(fail(Kind::Fenced(fence.range)));
        }
        let handover = self.describe(memory)?;
        let from_kernel = |failure| Error::from_kernel(operation, IovaRange::all(), failure);
        if let Some(why) = calls.obstacle().map_err(from_kernel)? {
            return Err(fail(Kind::Unsupported(why)));
        }
        self.let_go_of_all(calls).map_err(from_kernel)?;
        *standing = Ownership::HandedOver;
        Ok(handover)
    }

    fn take_back(&self) -> Result<(), Error> {
        let operation = Operation::TakeBack;
        let mut standing = write(&self.gate);
        if *standing != Ownership::HandedOver {
            return Err(Error::new(operation, IovaRange::all(), Kind::NotHandedOver));
        }
        self.give_all(self.calls_for_handover(operation)?, operation, &self.live())?;
        *standing = Ownership::Here;
        Ok(())
    }

    unsafe fn adopt(&self, handover: &Handover, memory: &NamedMemory) -> Result<(), Error> {
        let operation = Operation::Adopt;
        let mut standing = write(&self.gate);
        if *standing == Ownership::Here {
            return Err(Error::new(operation, IovaRange::all(), Kind::NotHandedOver));
        }
        let calls = self.calls_for_handover(operation)?;
        let mappings = self.resolve(handover, memory)?;
        let differs = (*standing == Ownership::HandedOver).then(|| difference(&self.live(), &mappings)).flatten();
        if let Some(range) = differs {
            let what = "it is not what this space had mapped there when it was handed over";
            return Err(Error::new(operation, range, Kind::BadHandover(what.into())));
        }
        self.give_all(calls, operation, &mappings)?;
        self.record_all(mappings);
        *standing = Ownership::Here;
        Ok(())
    }
}
