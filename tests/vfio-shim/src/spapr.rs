//! The dialect of sPAPR containers, version 2 (linux: drivers/vfio/vfio_iommu_spapr_tce.c).
//!
//! A client of the kernel finds the default window there, and removes it or uses it. A space removes the default window
//! at the first device, so a client that uses it without creating it is refused.

use std::sync::atomic::{AtomicBool, Ordering};

use dmaspace::contract::{MapRequest, MemoryRegistration, Unit, WindowControl, WindowRequest};
use dmaspace::door::Errno;
use dmaspace::error::{Error, Kind};
use dmaspace::{HostMemory, Iova, IovaRange, PageSize, PciAddressSpace};
use dmaspace_abi::spapr::{
    REGISTER_MEMORY, RegisterMemory, TCE_CREATE, TCE_GET_INFO, TCE_REMOVE, TceCreate, TceRemove, UNREGISTER_MEMORY,
};
use dmaspace_abi::vfio::{MAP_DMA, MapDma, UNMAP_DMA, UnmapDma};

use crate::answers::{Answer, answer, errno_of};
use crate::argument::Argument;
use crate::door;
use crate::settings::Settings;
use crate::status::Status;
use crate::type1::access;

/// The state of a container that a space does not have.
#[derive(Debug, Default)]
pub(crate) struct Dialect {
    /// The client has removed the default window.
    default_window_is_gone: AtomicBool,
    /// KVM writes entries that no space knows.
    kvm_writes: AtomicBool,
}

impl Dialect {
    /// Notes that KVM writes entries from now on.
    pub(crate) fn note_kvm_tables(&self) {
        self.kvm_writes.store(true, Ordering::Relaxed);
    }

    /// The answer to a call on a container with the sPAPR driver.
    pub(crate) fn call(
        &self,
        space: &dyn PciAddressSpace,
        status: &Status,
        request: u32,
        argument: Argument<'_>,
    ) -> Answer {
        if request == MAP_DMA.number {
            answer(map(space, status, argument))
        } else if request == UNMAP_DMA.number {
            self.unmap(space, status, argument)
        } else if request == REGISTER_MEMORY.number {
            answer(register(space, status, argument))
        } else if request == UNREGISTER_MEMORY.number {
            answer(unregister(space, status, argument))
        } else if request == TCE_CREATE.number {
            answer(create(space, status, argument))
        } else if request == TCE_REMOVE.number {
            answer(self.remove(space, status, argument))
        } else if request == TCE_GET_INFO.number {
            // Only tells of the platform.
            None
        } else {
            Some(Err(Errno::ENOTTY))
        }
    }

    /// Entries that KVM wrote are the kernel's to clear: no space knows them.
    fn unmap(&self, space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Answer {
        let outcome = unmap(space, status, argument);
        if outcome.is_ok() && self.kvm_writes.load(Ordering::Relaxed) { None } else { answer(outcome) }
    }

    fn remove(&self, space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Result<(), Errno> {
        let start = Iova::new(argument.sized::<TceRemove>()?.start_addr);
        let windows = space.windows().windows;
        let Some(window) = windows.containing(start) else {
            let was_gone = self.default_window_is_gone.swap(true, Ordering::Relaxed);
            return if was_gone { Err(Errno::EINVAL) } else { Ok(()) };
        };
        let entries = control(space)?.remove_window(window.range).map_err(|error| errno_of(&error))?;
        status.windows.subtract(1);
        for entry in entries {
            status.mapped_bytes.subtract(entry.memory.len().get());
        }
        Ok(())
    }
}

fn control(space: &dyn PciAddressSpace) -> Result<&dyn WindowControl, Errno> {
    space.powers().window_control.ok_or(Errno::EPERM)
}

fn registration(space: &dyn PciAddressSpace) -> Result<&dyn MemoryRegistration, Errno> {
    space.powers().registration.ok_or(Errno::EPERM)
}

/// Writes entries. Live entries are replaced, as the kernel does.
fn map(space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Result<(), Errno> {
    let asked: MapDma = argument.sized()?;
    let access = access(asked.flags)?;
    let at = Iova::new(asked.iova);
    let range = IovaRange::with_len(at, asked.size).map_err(|_| Errno::EINVAL)?;
    let memory = door::memory(asked.vaddr, asked.size).ok_or(Errno::EINVAL)?;
    if Settings::of_process().swallows(asked.size) {
        status.swallowed.add(1);
        return Ok(());
    }
    let page = space.windows().windows.containing(at).ok_or(Errno::EINVAL)?.granule();
    let request = MapRequest::new(at, &memory, access).with_unit(Unit::Pages(page));
    put(space, status, request, range).map_err(|error| errno_of(&error))?;
    status.maps.add(1);
    status.mapped_bytes.add(asked.size);
    Ok(())
}

fn put(space: &dyn PciAddressSpace, status: &Status, request: MapRequest<'_>, range: IovaRange) -> Result<(), Error> {
    match space.map(request) {
        Err(error) if matches!(error.kind(), Kind::Overlap(_)) => {
            status.mapped_bytes.subtract(space.unmap(range)?);
            space.map(request)
        }
        other => other,
    }
}

fn unmap(space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Result<(), Errno> {
    let asked: UnmapDma = argument.sized()?;
    let range = IovaRange::with_len(Iova::new(asked.iova), asked.size).map_err(|_| Errno::EINVAL)?;
    if asked.flags != 0 || space.windows().windows.covering(range).is_none() {
        return Err(Errno::EINVAL);
    }
    let bytes = space.unmap(range).map_err(|error| errno_of(&error))?;
    status.unmaps.add(1);
    status.mapped_bytes.subtract(bytes);
    Ok(())
}

fn registered(argument: Argument<'_>) -> Result<HostMemory, Errno> {
    let asked: RegisterMemory = argument.sized()?;
    if asked.flags != 0 {
        return Err(Errno::EINVAL);
    }
    door::memory(asked.vaddr, asked.size).ok_or(Errno::EINVAL)
}

fn register(space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Result<(), Errno> {
    let memory = registered(argument)?;
    registration(space)?.register(&memory).map_err(|error| errno_of(&error))?;
    status.registered_bytes.add(memory.len().get());
    Ok(())
}

fn unregister(space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Result<(), Errno> {
    let memory = registered(argument)?;
    registration(space)?.unregister(&memory).map_err(|error| errno_of(&error))?;
    status.registered_bytes.subtract(memory.len().get());
    Ok(())
}

/// Creates a window where the platform has room for it. The space checks that the platform grants that place.
fn create(space: &dyn PciAddressSpace, status: &Status, argument: Argument<'_>) -> Result<(), Errno> {
    let asked: TceCreate = argument.sized()?;
    let page = PageSize::from_shift(asked.page_shift).ok_or(Errno::EINVAL)?;
    if asked.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let control = control(space)?;
    let offer = control.offer().ok_or(Errno::EPERM)?;
    let windows = space.windows().windows;
    let mut places = offer.places.iter().filter(|place| place.holds(asked.window_size));
    let range = places.find_map(|place| {
        let range = IovaRange::with_len(place.first, asked.window_size).ok()?;
        windows.overlapping(range).next().is_none().then_some(range)
    });
    let request = WindowRequest::new(range.ok_or(Errno::ENOSPC)?, page);
    let window = control.create_window(request).map_err(|error| errno_of(&error))?;
    status.windows.add(1);
    argument.write(&TceCreate { start_addr: window.range.first().get(), ..asked })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Fixture, with};
    use dmaspace::BackendKind;
    use dmaspace::soft::Profile;

    struct Client {
        fixture: Fixture,
        dialect: Dialect,
        status: Status,
    }

    impl Client {
        fn new() -> Self {
            let fixture = Fixture::new(Profile::powernv9(), BackendKind::Spapr);
            Self { fixture, dialect: Dialect::default(), status: Status::default() }
        }

        fn call(&self, request: u32, argument: Argument<'_>) -> Answer {
            self.dialect.call(self.fixture.space(), &self.status, request, argument)
        }

        fn register(&self, request: u32) -> Answer {
            let size = self.fixture.memory.len().get();
            let asked = RegisterMemory { argsz: RegisterMemory::SIZE, flags: 0, vaddr: self.fixture.vaddr(), size };
            with(asked, |argument| self.call(request, argument)).0
        }

        /// The answer, and the place of the window.
        fn create(&self, window_size: u64) -> (Answer, u64) {
            let asked =
                TceCreate { argsz: TceCreate::SIZE, page_shift: 12, window_size, levels: 1, ..TceCreate::default() };
            let (answer, told) = with(asked, |argument| self.call(TCE_CREATE.number, argument));
            (answer, told.start_addr)
        }

        fn remove(&self, start_addr: u64) -> Answer {
            let asked = TceRemove { argsz: TceRemove::SIZE, flags: 0, start_addr };
            with(asked, |argument| self.call(TCE_REMOVE.number, argument)).0
        }

        fn map(&self, iova: u64, size: u64) -> Answer {
            let asked = MapDma { argsz: MapDma::SIZE, flags: 3, vaddr: self.fixture.vaddr(), iova, size };
            with(asked, |argument| self.call(MAP_DMA.number, argument)).0
        }

        fn unmap(&self, iova: u64, size: u64) -> Answer {
            let asked = UnmapDma { argsz: UnmapDma::SIZE, flags: 0, iova, size };
            with(asked, |argument| self.call(UNMAP_DMA.number, argument)).0
        }
    }

    #[test]
    fn a_client_does_to_a_window_as_qemu_does() {
        let client = Client::new();
        assert_eq!(client.remove(0), Some(Ok(0)), "the default window");
        assert_eq!(client.register(REGISTER_MEMORY.number), Some(Ok(0)));
        let (answer, start) = client.create(1 << 30);
        assert_eq!(answer, Some(Ok(0)));
        assert_eq!(client.map(start, 0x1_0000), Some(Ok(0)));
        assert_eq!(client.map(start + 0x8000, 0x1_0000), Some(Ok(0)), "over live entries");
        assert_eq!(client.status.mapped_bytes.get(), 0x1_8000);
        assert_eq!(client.unmap(start + 0x1000, 0x1000), Some(Ok(0)), "one entry");
        assert_eq!(client.unmap(start, 1 << 30), Some(Ok(0)), "with gaps");
        assert_eq!(client.register(UNREGISTER_MEMORY.number), Some(Ok(0)));
        assert_eq!(client.remove(start), Some(Ok(0)));
        assert_eq!(client.status.mapped_bytes.get(), 0);
    }

    #[test]
    fn the_default_window_is_removed_once() {
        let client = Client::new();
        assert_eq!(client.remove(0), Some(Ok(0)));
        assert_eq!(client.remove(0), Some(Err(Errno::EINVAL)));
    }

    #[test]
    fn the_second_window_lies_at_the_second_place() {
        let client = Client::new();
        assert_eq!(client.create(1 << 30), (Some(Ok(0)), 0));
        assert_eq!(client.create(1 << 35), (Some(Ok(0)), 1 << 59));
        assert_eq!(client.create(1 << 30).0, Some(Err(Errno::ENOSPC)));
    }

    #[test]
    fn memory_that_is_not_registered_is_not_mapped() {
        let client = Client::new();
        let (_, start) = client.create(1 << 30);
        assert_ne!(client.map(start, 0x1000), Some(Ok(0)));
        assert_eq!(client.map(start + (1 << 40), 0x1000), Some(Err(Errno::EINVAL)), "outside of windows");
    }

    #[test]
    fn entries_that_kvm_writes_are_cleared_by_the_kernel_too() {
        let client = Client::new();
        let (_, start) = client.create(1 << 30);
        client.dialect.note_kvm_tables();
        assert_eq!(client.unmap(start, 0x1000), None);
    }
}
