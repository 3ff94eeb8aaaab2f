//! The host as a door: every call counted, spoilt if a fault is due, and answered by the kernel in software.
//!
//! One lock guards everything, and nothing is called out to while it is held: memory the kernel lets go is dropped
//! after, because its owner's code runs then. DMA copies bytes under the lock, so that once an unmap has returned no
//! device sees the memory.

use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmaspace_abi::{iommufd, spapr, vfio};
use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Argument, Command, Door, Errno, Handle, HandleKind};
use dmaspace_core::words::locked::LockedMemory;
use dmaspace_core::{Access, HostMemory, PageSize};

use crate::calls::Calls;
use crate::device::SoftDevice;
use crate::dialect::Pid;
use crate::fault::{FaultMode, FaultPlan, Faults};
use crate::kernel::{File, Kernel, Reply};
use crate::ledger::Ledger;
use crate::profile::{BadProfile, Profile};

/// A host in software, as one process on it sees it.
pub struct SoftHost {
    machine: Arc<Machine>,
    process: Pid,
    runs: ProcessRegistrations,
}

/// What all processes of a host share.
pub(crate) struct Machine {
    profile: Profile,
    page: PageSize,
    state: Mutex<State>,
}

/// What the lock guards.
pub(crate) struct State {
    pub(crate) kernel: Kernel,
    calls: Calls,
    faults: Faults,
}

impl Machine {
    /// Does something under the lock, and lets go of memory after it.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = work(&mut state);
        let released = std::mem::take(&mut state.kernel.world.released);
        drop(state);
        drop(released);
        result
    }

    /// A thread that panicked while it held the lock is a failing test: the others go on with what it left.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SoftHost {
    /// Boots a host, with one process on it.
    ///
    /// # Errors
    /// [`BadProfile`]: which field of the profile is wrong, and why.
    pub fn new(profile: Profile) -> Result<Arc<Self>, BadProfile> {
        let mut kernel = Kernel::boot(&profile)?;
        let process = kernel.spawn();
        let page = kernel.world.page();
        let state = Mutex::new(State { kernel, calls: Calls::default(), faults: Faults::default() });
        Ok(Arc::new(Self {
            machine: Arc::new(Machine { profile, page, state }),
            process,
            runs: ProcessRegistrations::default(),
        }))
    }

    /// What it was made of.
    pub fn profile(&self) -> &Profile {
        &self.machine.profile
    }

    /// The device at a PCI address.
    pub fn device(&self, address: &str) -> Option<SoftDevice> {
        let index = self.machine.with(|state| state.kernel.device(address))?;
        Some(SoftDevice::new(self.machine.clone(), index, address.to_owned()))
    }

    /// Which calls were made since the host was booted or the counts were reset, by all processes.
    pub fn calls(&self) -> Calls {
        self.machine.with(|state| state.calls.clone())
    }

    /// Counts from zero again.
    pub fn reset_calls(&self) {
        self.machine.with(|state| state.calls = Calls::default());
    }

    /// Spoils calls to come. What was planned before is forgotten.
    pub fn plan_faults(&self, plans: &[FaultPlan]) {
        self.machine.with(|state| state.faults.plan(plans));
    }

    /// How many of the planned faults have done what they were meant to.
    pub fn faults_fired(&self) -> usize {
        self.machine.with(|state| state.faults.fired())
    }

    /// What is held and what was done.
    pub fn ledger(&self) -> Ledger {
        self.machine.with(|state| state.kernel.ledger())
    }

    /// Changes RLIMIT_MEMLOCK for all processes; `None` is CAP_IPC_LOCK. What is charged already stays.
    pub fn set_memlock(&self, limit: Option<u64>) {
        self.machine.with(|state| {
            state.kernel.world.limit = limit;
            state.kernel.world.processes.values_mut().for_each(|process| process.account.limit = limit);
        });
    }

    /// From now on the memory that is registered is made of the host's page, whatever
    /// [`HostMemory::backed_by`](dmaspace_core::HostMemory::backed_by) says of it.
    pub fn deny_huge_pages(&self) {
        self.machine.with(|state| state.kernel.world.has_huge_pages = false);
    }

    /// fork(2): a process that holds the same descriptors, and has nothing locked or registered. A descriptor is closed
    /// when both have closed it; dropping a process's host is its end.
    pub fn fork(&self) -> Arc<Self> {
        let process = self.machine.with(|state| state.kernel.fork(self.process));
        Arc::new(Self { machine: self.machine.clone(), process, runs: ProcessRegistrations::default() })
    }

    /// A call other than an ioctl: there is no way of spoiling it but to fail.
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

    /// An ioctl; `finish` makes of the kernel's reply what the caller wants.
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

impl State {
    /// The kernel's reply, or what a fault makes of it.
    fn answer(&mut self, by: Pid, on: Handle, command: &mut Command<'_>) -> Result<Reply, Errno> {
        let Some(plan) = self.faults.next(command.request.name) else { return self.kernel.ioctl(by, on, command) };
        let opens = command.request.number == vfio::GROUP_GET_DEVICE_FD.number;
        if plan.mode == FaultMode::ShortSize && short_size_of(command).is_none() {
            return self.kernel.ioctl(by, on, command);
        }
        self.faults.note_fired();
        match plan.mode {
            FaultMode::Positive(result) if !opens => Ok(Reply::Number(result)),
            FaultMode::ZeroWithoutEffect if !opens => Ok(Reply::Number(0)),
            FaultMode::ShortSize => self.answer_short(by, on, command),
            FaultMode::FailAfter => self.fail_after(by, on, command).and(Err(plan.errno)),
            FaultMode::PartialEffect if DONE_IN_PARTS.contains(&command.request.name) => {
                self.kernel.world.cut = Some(plan.errno);
                let reply = self.kernel.ioctl(by, on, command);
                self.kernel.world.cut = None;
                reply.and(Err(plan.errno))
            }
            FaultMode::FailBefore
            | FaultMode::Positive(_)
            | FaultMode::ZeroWithoutEffect
            | FaultMode::PartialEffect => Err(plan.errno),
        }
    }

    /// Lets it happen and takes back what was written.
    fn fail_after(&mut self, by: Pid, on: Handle, command: &mut Command<'_>) -> Result<(), Errno> {
        let before = match &command.argument {
            Argument::Bytes(bytes) => bytes.to_vec(),
            Argument::None | Argument::Value(_) => Vec::new(),
        };
        let reply = self.kernel.ioctl(by, on, command)?;
        if let Argument::Bytes(bytes) = &mut command.argument {
            bytes.copy_from_slice(&before);
        }
        if let Reply::Opened(file) = reply {
            self.kernel.release(file);
        }
        Ok(())
    }

    /// Lets it happen and takes a page off the size it wrote back.
    fn answer_short(&mut self, by: Pid, on: Handle, command: &mut Command<'_>) -> Result<Reply, Errno> {
        let reply = self.kernel.ioctl(by, on, command)?;
        let page = self.kernel.world.page();
        if let Some(size) = short_size_of(command) {
            let short = u64::from_ne_bytes(*size).saturating_sub(page.bytes());
            *size = short.to_ne_bytes();
        }
        Ok(reply)
    }
}

/// Requests that kernels are known to do by halves.
const DONE_IN_PARTS: [&str; 4] =
    [vfio::MAP_DMA.name, vfio::UNMAP_DMA.name, iommufd::IOAS_UNMAP.name, spapr::TCE_CREATE.name];

/// The size an unmap writes back.
fn short_size_of<'c>(command: &'c mut Command<'_>) -> Option<&'c mut [u8; 8]> {
    let offset = match command.request.name {
        name if name == vfio::UNMAP_DMA.name => std::mem::offset_of!(vfio::UnmapDma, size),
        name if name == iommufd::IOAS_UNMAP.name => std::mem::offset_of!(iommufd::IoasUnmap, length),
        _ => return None,
    };
    let Argument::Bytes(bytes) = &mut command.argument else { return None };
    bytes.get_mut(offset..offset + 8)?.try_into().ok()
}

impl Door for SoftHost {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        self.plain("open", |kernel, by| kernel.open(by, path)).map(|id| Handle::new(id, kind))
    }

    fn adopt(&self, _descriptor: OwnedFd, _kind: HandleKind) -> Result<Handle, Errno> {
        self.plain("adopt", |_, _| Err(Errno::EBADF))
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        self.request(on, command, |kernel, _, reply| match reply {
            Reply::Number(number) => Ok(number),
            // A descriptor nobody asked for.
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

    fn pread(&self, on: Handle, _offset: u64, _into: &mut [u8]) -> Result<usize, Errno> {
        self.plain("pread", |kernel, by| no_bytes(kernel.file(by, on)?))
    }

    fn pwrite(&self, on: Handle, _offset: u64, _from: &[u8]) -> Result<usize, Errno> {
        self.plain("pwrite", |kernel, by| no_bytes(kernel.file(by, on)?))
    }

    fn mmap(&self, on: Handle, _offset: u64, _len: NonZeroU64, _access: Access) -> Result<HostMemory, Errno> {
        self.plain("mmap", |kernel, by| match kernel.file(by, on)? {
            File::DeviceOfGroup(_) | File::Node(_) => Err(Errno::EINVAL),
            File::Container(_) | File::Group(_) | File::Iommufd(_) => Err(Errno::ENODEV),
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
        self.machine.page
    }

    fn locked_memory(&self) -> Option<LockedMemory> {
        self.machine.with(|state| {
            let world = &state.kernel.world;
            // A process that never locked anything has no account yet.
            let account = world.processes.get(&self.process).map(|process| &process.account);
            let (locked, pinned) = account.map_or((0, 0), |account| (account.locked.now, account.pinned.now));
            Some(LockedMemory { limit: world.limit, locked, pinned })
        })
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }

    fn is_real(&self) -> bool {
        false
    }
}

/// No descriptor here has bytes of its own: devices have no regions.
fn no_bytes(_: File) -> Result<usize, Errno> {
    Err(Errno::EINVAL)
}

/// Its name only: what it holds can be a million mappings, and a space's debug output shows its door.
impl fmt::Debug for SoftHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftHost").field("profile", &self.machine.profile.name).finish_non_exhaustive()
    }
}

impl Drop for SoftHost {
    fn drop(&mut self) {
        self.machine.with(|state| state.kernel.exit(self.process));
    }
}
