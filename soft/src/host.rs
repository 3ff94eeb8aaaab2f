//! The host as a door: every call is counted, fails if a fault is due, and is answered by the kernel in software.
//!
//! One lock guards everything, and no code of a caller runs while it is held: memory that the kernel released is
//! dropped after the lock, because code of its owner runs then. DMA copies bytes under the lock, so that no device sees
//! the memory once an unmap has returned.

use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Command, Door, Errno, Handle, HandleKind};
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::{Access, HostMemory, PageSize};

use crate::calls::CallCounts;
use crate::device::SoftDevice;
use crate::dialect::Pid;
use crate::fault::FaultPlan;
use crate::kernel::{File, Kernel, Reply};
use crate::ledger::Ledger;
use crate::machine::Machine;
use crate::profile::{BadProfile, Profile};

/// A host in software, as one process on it sees it.
pub struct SoftHost {
    machine: Arc<Machine>,
    process: Pid,
    runs: ProcessRegistrations,
}

impl SoftHost {
    /// Boots a host with one process on it.
    ///
    /// # Errors
    /// [`BadProfile`] names the field of the profile that is wrong, and the reason.
    pub fn new(profile: Profile) -> Result<Arc<Self>, BadProfile> {
        let machine = Machine::boot(profile)?;
        let process = machine.with(|state| state.kernel.spawn());
        Ok(Arc::new(Self { machine: Arc::new(machine), process, runs: ProcessRegistrations::default() }))
    }

    /// The profile of the host.
    pub fn profile(&self) -> &Profile {
        self.machine.profile()
    }

    /// The device at a PCI address.
    pub fn device(&self, address: &str) -> Option<SoftDevice> {
        let index = self.machine.with(|state| state.kernel.device(address))?;
        Some(SoftDevice::new(self.machine.clone(), index, address.to_owned()))
    }

    /// The calls that all processes made since the host was booted or the counts were reset.
    pub fn calls(&self) -> CallCounts {
        self.machine.with(|state| state.calls.clone())
    }

    /// Resets the counts to zero.
    pub fn reset_calls(&self) {
        self.machine.with(|state| state.calls = CallCounts::default());
    }

    /// Injects faults into calls to come, in place of the faults that were planned before.
    pub fn plan_faults(&self, plans: &[FaultPlan]) {
        self.machine.with(|state| state.faults.plan(plans));
    }

    /// The number of planned faults that have been injected.
    pub fn faults_fired(&self) -> usize {
        self.machine.with(|state| state.faults.fired())
    }

    /// The resources that the host's processes hold and have used.
    pub fn ledger(&self) -> Ledger {
        self.machine.with(|state| state.kernel.ledger())
    }

    /// Changes RLIMIT_MEMLOCK for all processes; `None` is CAP_IPC_LOCK. Existing charges stay.
    pub fn set_memlock(&self, limit: Option<u64>) {
        self.machine.with(|state| {
            state.kernel.system.limit = limit;
            for process in state.kernel.system.processes.values_mut() {
                process.account.limit = limit;
            }
        });
    }

    /// From now on the kernel finds no huge pages under registered memory, whatever
    /// [`HostMemory::backed_by`](dmaspace_core::HostMemory::backed_by) says.
    pub fn deny_huge_pages(&self) {
        self.machine.with(|state| state.kernel.system.has_huge_pages = false);
    }

    /// Forks the process (fork(2)): the child holds the same descriptors, and has nothing locked or registered. A
    /// descriptor is closed when both processes have closed it; dropping a process's host ends the process.
    pub fn fork(&self) -> Arc<Self> {
        let process = self.machine.with(|state| state.kernel.fork(self.process));
        Arc::new(Self { machine: self.machine.clone(), process, runs: ProcessRegistrations::default() })
    }

    /// A call other than an ioctl, to which every fault is a plain failure.
    fn plain<T>(
        &self,
        name: &'static str,
        call: impl FnOnce(&mut Kernel, Pid) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.machine.with(|state| {
            let result = match state.faults.next(name) {
                Some(plan) => {
                    state.faults.note_fired();
                    Err(plan.errno)
                }
                None => call(&mut state.kernel, self.process),
            };
            state.calls.note(name, result.is_err());
            result
        })
    }

    /// An ioctl; `finish` turns the kernel's reply into the result.
    fn request<T>(
        &self,
        on: Handle,
        command: &mut Command<'_>,
        finish: impl FnOnce(&mut Kernel, Pid, Reply) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let name = command.request.name;
        self.machine.with(|state| {
            let reply = state.answer(self.process, on, command);
            let result = reply.and_then(|reply| finish(&mut state.kernel, self.process, reply));
            state.calls.note(name, result.is_err());
            result
        })
    }
}

#[expect(unsafe_code, reason = "UNSAFETY: a door without devices")]
// SAFETY: no real device is behind it, and its devices reach memory only through clones that it keeps until the mapping
// is gone.
unsafe impl Door for SoftHost {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        self.plain("open", |kernel, by| kernel.open(by, path)).map(|id| Handle::new(id, kind))
    }

    fn adopt(&self, _descriptor: OwnedFd, _kind: HandleKind) -> Result<Handle, Errno> {
        self.plain("adopt", |_, _| Err(Errno::EBADF))
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        self.request(on, command, |kernel, _, reply| match reply {
            Reply::Number(number) => Ok(number),
            // The caller did not ask for a descriptor.
            Reply::Opened(file) => {
                kernel.release(file);
                Err(Errno::EINVAL)
            }
        })
    }

    fn ioctl_opening(&self, on: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        self.request(on, command, |kernel, by, reply| match reply {
            Reply::Number(_) => Err(Errno::EINVAL),
            Reply::Opened(file) => Ok(Handle::new(kernel.install(by, file), kind)),
        })
    }

    fn pread(&self, on: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.plain("pread", |kernel, by| kernel.function_of(kernel.file(by, on)?)?.read(offset, into))
    }

    fn pwrite(&self, on: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        self.plain("pwrite", |kernel, by| kernel.function_of(kernel.file(by, on)?)?.write(offset, from))
    }

    fn read(&self, on: Handle, into: &mut [u8]) -> Result<usize, Errno> {
        self.plain("read", |kernel, by| match kernel.file(by, on)? {
            File::Stream(device, stream) => kernel.stream(device, stream)?.read(into),
            _ => Err(Errno::EINVAL),
        })
    }

    fn write(&self, on: Handle, from: &[u8]) -> Result<usize, Errno> {
        self.plain("write", |kernel, by| match kernel.file(by, on)? {
            File::Stream(device, stream) => kernel.stream(device, stream)?.write(from),
            _ => Err(Errno::EINVAL),
        })
    }

    fn mmap(&self, on: Handle, _offset: u64, _len: NonZeroU64, _access: Access) -> Result<HostMemory, Errno> {
        self.plain("mmap", |kernel, by| match kernel.file(by, on)? {
            File::DeviceOfGroup(_) | File::Node(_) => Err(Errno::EINVAL),
            File::Container(_) | File::Group(_) | File::Iommufd(_) | File::Stream(..) => Err(Errno::ENODEV),
        })
    }

    fn close(&self, handle: Handle) -> Result<(), Errno> {
        self.machine.with(|state| {
            let result = state.kernel.close(self.process, handle.id());
            state.calls.note("close", result.is_err());
            result
        })
    }

    fn host_page(&self) -> PageSize {
        self.machine.page()
    }

    fn locked_memory(&self) -> Option<LockedMemory> {
        self.machine.with(|state| {
            let system = &state.kernel.system;
            // A process that has never locked memory has no account yet.
            let account = system.processes.get(&self.process).map(|process| &process.account);
            let (locked, pinned) = account.map_or((0, 0), |account| (account.locked.now, account.pinned.now));
            Some(LockedMemory::new(system.limit, locked, pinned))
        })
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// Prints the name only: a host may hold a million mappings, and the debug output of a space includes its door.
impl fmt::Debug for SoftHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftHost").field("profile", &self.machine.profile().name).finish_non_exhaustive()
    }
}

impl Drop for SoftHost {
    fn drop(&mut self) {
        self.machine.with(|state| state.kernel.exit(self.process));
    }
}
