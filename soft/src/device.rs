//! A device that does DMA: reads and writes at bus addresses, through whatever its group is attached to. It raises
//! interrupts, too.

use std::fmt;
use std::sync::Arc;

use dmaspace_core::words::memory::CopyError;
use dmaspace_core::{Access, HostMemory, Iova, IovaRange};

use crate::dialect::feature::{Migration, Token};
use crate::dialect::function::Function;
use crate::dialect::iommufd::DeviceIndex;
use crate::engine::Run;
use crate::kernel::Kernel;
use crate::machine::Machine;

/// A device of a soft host. It does DMA wherever its group is attached, whether or not a process has it open.
#[derive(Clone)]
pub struct SoftDevice {
    machine: Arc<Machine>,
    index: DeviceIndex,
    address: String,
}

/// A transfer that ended at a bus address it could not use. The bytes before were transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DMA at {at}: {why}")]
#[non_exhaustive]
pub struct DmaFault {
    /// The first bus address that could not be used.
    pub at: Iova,
    /// The reason.
    pub why: DmaError,
}

/// The reason why a bus address could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// The device's group is attached to nothing.
    #[error("the device is not attached")]
    NotAttached,
    /// The device's PE is frozen, or held in reset.
    #[error("the device's PE is frozen")]
    Frozen,
    /// Nothing is mapped at the address.
    #[error("nothing is mapped there")]
    NotMapped,
    /// The mapping does not allow the access, but this one.
    #[error("the mapping is {0}")]
    NotAllowed(Access),
    /// The memory could not be copied.
    #[error("{0}")]
    Memory(CopyError),
}

/// Memory that a device reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReachedMemory {
    /// The bus addresses.
    pub range: IovaRange,
    /// The memory behind them, byte for byte.
    pub memory: HostMemory,
    /// The access that the map asked for.
    pub access: Access,
}

impl SoftDevice {
    pub(crate) fn new(machine: Arc<Machine>, index: DeviceIndex, address: String) -> Self {
        Self { machine, index, address }
    }

    /// The device's PCI address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Freezes the device's PE, as the platform does after an error on the bus (EEH). Does nothing on a host without
    /// EEH.
    pub fn freeze(&self) {
        self.machine.with(|state| state.kernel.freeze(self.index));
    }

    /// All memory that the device reaches: entries that a failed map left in the hardware first, then the mappings,
    /// ascending. `None` if the device is not attached.
    pub fn reached(&self) -> Option<Vec<ReachedMemory>> {
        self.machine.with(|state| {
            let table = state.kernel.table_of(self.index)?;
            let reached = table.iter_with_left_behind().cloned();
            Some(reached.map(|Run { range, memory, access, .. }| ReachedMemory { range, memory, access }).collect())
        })
    }

    /// Raises the device's interrupt pin. INTx is delivered at once if it is enabled and not masked, and otherwise when
    /// it is unmasked; delivering masks it.
    pub fn raise_intx(&self) {
        self.with_function((), |function| function.irqs.assert());
    }

    /// Lowers the device's interrupt pin.
    pub fn lower_intx(&self) {
        self.with_function((), |function| function.irqs.deassert());
    }

    /// Lets the host look at the eventfd that unmasks INTx. A kernel does that by itself.
    pub fn follow_unmask(&self) {
        self.with_function((), |function| function.irqs.follow_unmask());
    }

    /// Sends the message of an MSI or MSI-X vector. Returns `true` if the vector has an eventfd, which was signalled.
    pub fn send_msi(&self, vector: u32) -> bool {
        self.with_function(false, |function| function.irqs.send(vector))
    }

    /// Reports an uncorrectable error. Returns `true` if there is an eventfd for it, which was signalled.
    pub fn report_error(&self) -> bool {
        self.with_function(false, |function| function.irqs.report_error())
    }

    /// Lets the kernel ask for the device back. Returns `true` if there is an eventfd for it, which was signalled.
    pub fn request_back(&self) -> bool {
        self.with_function(false, |function| function.irqs.request_back())
    }

    /// Gives the device a driver that can migrate it and that logs its writes. `flags` are the kernel's: 1 for
    /// stop-copy, 2 for P2P, 4 for pre-copy. The state that is migrated is the bytes of its BAR.
    pub fn support_migration(&self, flags: u64) {
        self.with_function((), |function| function.migration = Some(Migration::new(flags)));
    }

    /// Makes the device a virtual function of `physical`, so that users of both must share a token.
    pub fn become_virtual_function_of(&self, physical: &Self) {
        physical.with_function((), |function| function.token = Token::Physical([0; 16], 0));
        self.with_function((), |function| function.token = Token::Virtual(physical.index));
    }

    fn with_function<T>(&self, absent: T, work: impl FnOnce(&mut Function) -> T) -> T {
        self.machine.with(|state| match state.kernel.devices.get_mut(self.index) {
            Some(device) => work(&mut device.function),
            None => absent,
        })
    }

    /// Reads bytes at a bus address, as the device would.
    ///
    /// # Errors
    /// [`DmaFault`] at the first address that cannot be read.
    pub fn dma_read(&self, at: Iova, into: &mut [u8]) -> Result<(), DmaFault> {
        self.machine.with(|state| {
            let mut done: usize = 0;
            while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
                let (run, offset, here) = reach(&state.kernel, self.index, at, done, Access::READ)?;
                let len = shorter(run, offset, rest.len());
                let memory = rest.get_mut(..len).map_or(Ok(()), |part| run.memory.read(offset, part));
                memory.map_err(|error| DmaFault { at: here, why: DmaError::Memory(error) })?;
                done += len;
            }
            Ok(())
        })
    }

    /// Writes bytes at a bus address, as the device would.
    ///
    /// # Errors
    /// [`DmaFault`] at the first address that cannot be written; the bytes before it were written.
    pub fn dma_write(&self, at: Iova, from: &[u8]) -> Result<(), DmaFault> {
        self.machine.with(|state| {
            let mut done: usize = 0;
            while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
                let (run, offset, here) = reach(&state.kernel, self.index, at, done, Access::WRITE)?;
                let len = shorter(run, offset, rest.len());
                let memory = rest.get(..len).map_or(Ok(()), |part| run.memory.write(offset, part));
                memory.map_err(|error| DmaFault { at: here, why: DmaError::Memory(error) })?;
                if let Ok(written) = IovaRange::with_len(here, len as u64) {
                    state.kernel.note_write(self.index, written);
                }
                done += len;
            }
            Ok(())
        })
    }
}

/// The run that the device reaches `done` bytes behind `at`, the offset in the run, and the address.
fn reach(
    kernel: &Kernel,
    device: DeviceIndex,
    at: Iova,
    done: usize,
    need: Access,
) -> Result<(&Run, u64, Iova), DmaFault> {
    let Some(here) = at.get().checked_add(done as u64).map(Iova::new) else {
        return Err(DmaFault { at: Iova::new(u64::MAX), why: DmaError::NotMapped });
    };
    match run_at(kernel, device, here, need) {
        Ok(run) => Ok((run, run.range.offset_of(here), here)),
        Err(why) => Err(DmaFault { at: here, why }),
    }
}

fn run_at(kernel: &Kernel, device: DeviceIndex, at: Iova, need: Access) -> Result<&Run, DmaError> {
    if kernel.is_frozen(device) {
        return Err(DmaError::Frozen);
    }
    let found = kernel.translate(device, at).ok_or(DmaError::NotAttached)?;
    let (run, access) = found.ok_or(DmaError::NotMapped)?;
    if access.contains(need) { Ok(run) } else { Err(DmaError::NotAllowed(access)) }
}

/// The number of bytes, at most `len`, that the run has behind `offset`.
fn shorter(run: &Run, offset: u64, len: usize) -> usize {
    debug_assert!(offset < run.bytes(), "the run ends before the address that it contains");
    usize::try_from(run.bytes() - offset).unwrap_or(usize::MAX).min(len)
}

impl fmt::Debug for SoftDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftDevice").field("address", &self.address).finish_non_exhaustive()
    }
}
