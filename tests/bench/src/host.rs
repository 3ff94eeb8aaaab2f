//! Hosts that answer at once, and memory for them.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace_core::backend::{Calls, DirtyCalls, DirtyReach, RegistrationCalls, WindowCalls};
use dmaspace_core::contract::{Capabilities, MappingModel, WindowOffer, WindowPlace, WindowRequest};
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Failure, Lease};
use dmaspace_core::retry::Undone;
use dmaspace_core::{
    Access, Backend, HostAddress, HostMemory, Iova, IovaRange, PageSize, PageSizes, PciAddressSpace, Space, Window,
    Windows,
};
use vm_memory::{GuestAddress, GuestRegionMmap};

/// The place of POWER's second window.
pub(crate) const HIGH: u64 = 1 << 59;

/// The kind of host that is imitated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Fixed windows, and mappings that are unmapped whole; the kernel logs in pages of 4 KiB and the log is clean.
    Mappings,
    /// As `Mappings`; an unmap reports the log of its range, as type1's does.
    TellingMappings,
    /// Windows that are created, entries, and memory that is registered.
    Entries,
}

/// A host that answers at once.
pub(crate) struct NullHost {
    kind: Kind,
    runs: ProcessRegistrations,
    /// The bits of each word that the log reports as dirty: 0 for a clean log.
    dirty: u64,
    /// The whole log, if it is not the same word again and again.
    log: Vec<u64>,
}

impl fmt::Debug for NullHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NullHost")
    }
}

/// A space on such a host.
pub(crate) fn space(kind: Kind) -> Arc<Space<NullHost>> {
    dirty_space(kind, 0)
}

/// A space whose log reports `dirty` in each word.
pub(crate) fn dirty_space(kind: Kind, dirty: u64) -> Arc<Space<NullHost>> {
    space_on(NullHost { kind, runs: ProcessRegistrations::default(), dirty, log: Vec::new() })
}

/// A space whose log is `log`, each time.
pub(crate) fn logging_space(log: Vec<u64>) -> Arc<Space<NullHost>> {
    space_on(NullHost { kind: Kind::Mappings, runs: ProcessRegistrations::default(), dirty: 0, log })
}

fn space_on(host: NullHost) -> Arc<Space<NullHost>> {
    Arc::new(Space::new(host).expect("the host answers"))
}

/// A space on such a host, for a listener.
pub(crate) fn served(kind: Kind) -> Arc<dyn PciAddressSpace> {
    space(kind)
}

#[expect(unsafe_code, reason = "UNSAFETY: no device reaches memory through a host that does nothing")]
// SAFETY: there is no device behind it.
unsafe impl Backend for NullHost {
    fn name(&self) -> &'static str {
        "null"
    }

    fn capabilities(&self) -> Capabilities {
        let keeps = if self.kind == Kind::Entries { MappingModel::PageEntries } else { MappingModel::Mappings };
        let mut capabilities = Capabilities::new(keeps, PageSize::K4);
        capabilities.maps_device_memory = true;
        capabilities
    }

    fn is_real(&self) -> bool {
        false
    }

    fn refresh(&self, _: usize) -> Result<Windows, Failure> {
        if self.kind == Kind::Entries {
            return Ok(Windows::default());
        }
        let window = IovaRange::new(Iova::new(0), Iova::new(u64::MAX >> 4)).expect("a range");
        Ok(Windows::uniform(vec![window], PageSizes::only(PageSize::K4)))
    }

    fn map(&self, _: IovaRange, _: &Lease<'_>, _: Access) -> Result<(), Failure> {
        Ok(())
    }

    fn unmap(&self, range: IovaRange) -> Result<Undone<Option<u64>>, Failure> {
        // The number of bytes is unknown to a host that keeps nothing: `None`, as sPAPR's kernel answers.
        let _ = range;
        Ok(Undone::Done(None))
    }

    fn calls(&self) -> Calls<'_> {
        let mut calls = Calls::default();
        if self.kind == Kind::Entries {
            calls.windows = Some(self);
            calls.registration = Some(self);
        } else {
            calls.dirty = Some(self);
        }
        calls
    }
}

impl WindowCalls for NullHost {
    fn offer(&self) -> Option<WindowOffer> {
        let pages = PageSizes::only(PageSize::K4);

        Some(WindowOffer::new(pages, 2, [0, HIGH].map(|first| WindowPlace::new(Iova::new(first), pages)).into()))
    }

    fn create(&self, request: WindowRequest) -> Result<Window, Failure> {
        Ok(Window::new(request.range, PageSizes::only(request.page)))
    }

    fn remove(&self, _: Window) -> Result<Undone, Failure> {
        Ok(Undone::Done(()))
    }

    fn table_bytes(&self, _: WindowRequest) -> u64 {
        0
    }
}

impl RegistrationCalls for NullHost {
    fn register(&self, _: &Lease<'_>) -> Result<(), Failure> {
        Ok(())
    }

    fn unregister(&self, _: &Lease<'_>) -> Result<Undone, Failure> {
        Ok(Undone::Done(()))
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }
}

impl DirtyCalls for NullHost {
    fn page(&self) -> Option<PageSize> {
        Some(PageSize::K4)
    }

    fn start(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn stop(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn reach(&self) -> DirtyReach {
        DirtyReach::of_whole_mappings(1 << 28).with_gaps()
    }

    fn fetch(&self, range: IovaRange, bitmap: &mut [u64]) -> Result<(), Failure> {
        if !self.log.is_empty() {
            let first = usize::try_from(range.first().get() >> 18).unwrap_or(usize::MAX);
            let log = self.log.get(first..).unwrap_or_default();
            let len = log.len().min(bitmap.len());
            if let (Some(into), Some(log)) = (bitmap.get_mut(..len), log.get(..len)) {
                into.copy_from_slice(log);
            }
        } else if self.dirty != 0 {
            let words = usize::try_from(range.bytes() >> 18).unwrap_or(usize::MAX);
            for word in bitmap.iter_mut().take(words) {
                *word = self.dirty;
            }
        }
        Ok(())
    }

    fn unmap(&self, _: IovaRange, _: &mut [u64]) -> Option<Result<Undone<Option<u64>>, Failure>> {
        if self.kind == Kind::TellingMappings { Some(Ok(Undone::Done(None))) } else { None }
    }
}

/// `len` bytes of this process with one owner, as a region of a VMM's memory.
pub(crate) fn ram(len: u64) -> HostMemory {
    let len = usize::try_from(len).expect("a length");
    let region: GuestRegionMmap<()> =
        GuestRegionMmap::from_range(GuestAddress(0), len, None).expect("address space for the memory");
    HostMemory::of_region(&region).expect("not empty")
}

/// Addresses without memory, in an unplug unit of their own.
pub(crate) fn unit_of_ram(address: u64, len: u64, unit: u64) -> HostMemory {
    let len = NonZeroU64::new(len).expect("not empty");
    HostMemory::unbacked(HostAddress::new(address), len).expect("no wrap").in_unit(unit)
}
