//! A door that counts the calls through it, those that fail included, and the bytes of those that succeed.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use dmaspace::door::{Argument, Attached, Command, Descriptor, Door, Errno, Handle, HandleKind};
use dmaspace::locked::LockedMemory;
use dmaspace::registrations::ProcessRegistrations;
use dmaspace::{Access, HostMemory, PageSize};
use dmaspace_abi::spapr::TceCreate;
use dmaspace_core::sync::{Mutex, MutexGuard, Rank};
use serde::Serialize;
use zerocopy::FromBytes;

/// Calls that change what devices reach, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Calls {
    /// Map, copy and map from a file.
    pub(crate) map: u64,
    /// Unmap.
    pub(crate) unmap: u64,
    /// Register memory.
    pub(crate) register: u64,
    /// Unregister memory.
    pub(crate) unregister: u64,
    /// Create a window.
    pub(crate) create_window: u64,
    /// Remove a window, the default one too.
    pub(crate) remove_window: u64,
}

impl Calls {
    /// The calls made since then.
    pub(crate) fn since(self, then: Self) -> Self {
        Self {
            map: self.map - then.map,
            unmap: self.unmap - then.unmap,
            register: self.register - then.register,
            unregister: self.unregister - then.unregister,
            create_window: self.create_window - then.create_window,
            remove_window: self.remove_window - then.remove_window,
        }
    }

    /// These calls and others.
    pub(crate) fn and(self, more: Self) -> Self {
        Self {
            map: self.map + more.map,
            unmap: self.unmap + more.unmap,
            register: self.register + more.register,
            unregister: self.unregister + more.unregister,
            create_window: self.create_window + more.create_window,
            remove_window: self.remove_window + more.remove_window,
        }
    }
}

/// A door with a counter at it. The counter's lock is [`Rank::DoorWrapper`] in the order of all locks
/// ([`dmaspace_core::sync`]).
#[derive(Debug)]
pub(crate) struct CountingDoor {
    door: Arc<dyn Door>,
    counted: Mutex<Counted>,
}

/// A TCE table that was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TceTable {
    /// The length of its window in bytes.
    pub(crate) window: u64,
    /// The page of its window in bytes.
    pub(crate) page: u64,
    /// The number of its levels.
    pub(crate) levels: u32,
}

impl TceTable {
    /// The table that a command asks for, if it asks for one.
    fn of(command: &Command<'_>) -> Option<Self> {
        if command.request.name != "VFIO_IOMMU_SPAPR_TCE_CREATE" {
            return None;
        }
        let Argument::Bytes(bytes) = &command.argument else { return None };
        let (create, _) = TceCreate::read_from_prefix(bytes).ok()?;
        Some(Self { window: create.window_size, page: 1_u64.checked_shl(create.page_shift)?, levels: create.levels })
    }
}

#[derive(Clone, Debug, Default)]
struct Counted {
    calls: Calls,
    /// Memory, not counting devices', in calls that mapped it.
    mapped: u64,
    /// Memory in calls that registered it.
    registered: u64,
    /// The tables that were created.
    tables: Vec<TceTable>,
}

impl Counted {
    /// By name: a number means one thing on a type1 container and another on an sPAPR one.
    fn count(&mut self, command: &Command<'_>) {
        let calls = &mut self.calls;
        match command.request.name {
            "VFIO_IOMMU_MAP_DMA" | "IOMMU_IOAS_MAP" | "IOMMU_IOAS_COPY" | "IOMMU_IOAS_MAP_FILE" => calls.map += 1,
            "VFIO_IOMMU_SPAPR_REGISTER_MEMORY" => calls.register += 1,
            "VFIO_IOMMU_UNMAP_DMA" | "IOMMU_IOAS_UNMAP" => calls.unmap += 1,
            "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY" => calls.unregister += 1,
            "VFIO_IOMMU_SPAPR_TCE_CREATE" => calls.create_window += 1,
            "VFIO_IOMMU_SPAPR_TCE_REMOVE" => calls.remove_window += 1,
            _ => {}
        }
    }

    /// A call that succeeded pins the memory that it hands over, if it maps or registers.
    fn count_bytes(&mut self, command: &Command<'_>) {
        let counted = match command.request.name {
            "VFIO_IOMMU_MAP_DMA" | "IOMMU_IOAS_MAP" | "IOMMU_IOAS_COPY" | "IOMMU_IOAS_MAP_FILE" => &mut self.mapped,
            "VFIO_IOMMU_SPAPR_REGISTER_MEMORY" => &mut self.registered,
            _ => return,
        };
        *counted = counted.saturating_add(memory_in(command));
    }
}

/// The bytes a command hands over, devices' memory excepted: that is not pinned.
fn memory_in(command: &Command<'_>) -> u64 {
    let memory = command.attachments.iter().filter_map(|attachment| match attachment.what {
        Attached::Memory(memory) | Attached::FileOf(memory) if !memory.is_device_memory() => Some(memory.len().get()),
        _ => None,
    });
    memory.sum()
}

impl CountingDoor {
    /// Counts what goes through `door`.
    pub(crate) fn new(door: Arc<dyn Door>) -> Self {
        Self { door, counted: Mutex::new(Rank::DoorWrapper, Counted::default()) }
    }

    /// The calls made so far.
    pub(crate) fn calls(&self) -> Calls {
        self.counted().calls
    }

    /// The bytes handed to calls that mapped them, so far.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.counted().mapped
    }

    /// The TCE tables created so far, in order.
    pub(crate) fn tables(&self) -> Vec<TceTable> {
        self.counted().tables.clone()
    }

    /// The bytes handed to calls that registered them, so far.
    pub(crate) fn registered_bytes(&self) -> u64 {
        self.counted().registered
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock()
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: passes everything on")]
// SAFETY: each command is passed on to another door, as is its answer.
unsafe impl Door for CountingDoor {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        self.door.open(path, kind)
    }

    fn adopt(&self, descriptor: OwnedFd, kind: HandleKind) -> Result<Handle, Errno> {
        self.door.adopt(descriptor, kind)
    }

    fn descriptor(&self, on: Handle) -> Result<Descriptor, Errno> {
        self.door.descriptor(on)
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        self.counted().count(command);
        let answer = self.door.ioctl(on, command)?;
        let mut counted = self.counted();
        counted.count_bytes(command);
        counted.tables.extend(TceTable::of(command));
        drop(counted);
        Ok(answer)
    }

    fn ioctl_opening(&self, on: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        self.door.ioctl_opening(on, command, kind)
    }

    fn pread(&self, on: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.door.pread(on, offset, into)
    }

    fn pwrite(&self, on: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        self.door.pwrite(on, offset, from)
    }

    fn read(&self, on: Handle, into: &mut [u8]) -> Result<usize, Errno> {
        self.door.read(on, into)
    }

    fn write(&self, on: Handle, from: &[u8]) -> Result<usize, Errno> {
        self.door.write(on, from)
    }

    fn mmap(&self, on: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
        self.door.mmap(on, offset, len, access)
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.door.close(handle)
    }

    fn host_page(&self) -> PageSize {
        self.door.host_page()
    }

    fn locked_memory(&self) -> Option<LockedMemory> {
        self.door.locked_memory()
    }

    fn runs(&self) -> &ProcessRegistrations {
        self.door.runs()
    }

    fn is_real(&self) -> bool {
        self.door.is_real()
    }
}

#[cfg(test)]
mod tests {
    use dmaspace::door::Kernel;
    use dmaspace_abi::vfio::{GET_API_VERSION, UNMAP_DMA};
    use dmaspace_soft::{Profile, SoftHost};

    use super::*;

    #[test]
    fn failed_calls_are_counted_and_calls_that_change_nothing_are_not() {
        let door = CountingDoor::new(SoftHost::new(Profile::vtd()).expect("a preset"));
        let container = door.open("/dev/vfio/vfio".as_ref(), HandleKind::Container).expect("a preset has it");
        door.ask(container, Command::bare(GET_API_VERSION)).expect("every kernel answers");
        assert_eq!(door.calls(), Calls::default());
        door.call(container, Command::bare(UNMAP_DMA)).expect_err("no IOMMU yet");
        assert_eq!(door.calls(), Calls { unmap: 1, ..Calls::default() });
    }
}
