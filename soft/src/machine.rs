//! The machine under a soft host's processes: the kernel in software, the counts of calls, and the faults to inject.

use dmaspace_abi::{iommufd, spapr, vfio};
use dmaspace_core::PageSize;
use dmaspace_core::door::{Argument, Attached, Command, Errno, Handle};
use dmaspace_core::sync::{Mutex, Rank};

use crate::calls::CallCounts;
use crate::dialect::Pid;
use crate::fault::{FaultMode, Faults};
use crate::kernel::{Kernel, Reply};
use crate::profile::{BadProfile, Profile};

/// The part of a host that all of its processes share. Its lock is [`Rank::Door`] in the order of all locks
/// ([`dmaspace_core::sync`]).
pub(crate) struct Machine {
    profile: Profile,
    page: PageSize,
    state: Mutex<State>,
}

/// The state behind the lock.
pub(crate) struct State {
    pub(crate) kernel: Kernel,
    pub(crate) calls: CallCounts,
    pub(crate) faults: Faults,
}

impl Machine {
    pub(crate) fn boot(profile: Profile) -> Result<Self, BadProfile> {
        let kernel = Kernel::boot(&profile)?;
        let page = kernel.system.page();
        let state = Mutex::new(Rank::Door, State { kernel, calls: CallCounts::default(), faults: Faults::default() });
        Ok(Self { profile, page, state })
    }

    pub(crate) fn profile(&self) -> &Profile {
        &self.profile
    }

    pub(crate) fn page(&self) -> PageSize {
        self.page
    }

    /// Runs `work` under the lock, and drops the memory that the kernel released after the lock: code of its owner runs
    /// then.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let result = work(&mut state);
        let released = std::mem::take(&mut state.kernel.system.released);
        drop(state);
        drop(released);
        result
    }
}

impl State {
    /// The kernel's reply, or the fault that replaces or alters it.
    pub(crate) fn answer(&mut self, by: Pid, on: Handle, command: &mut Command<'_>) -> Result<Reply, Errno> {
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
                self.kernel.system.cut = Some(plan.errno);
                let reply = self.kernel.ioctl(by, on, command);
                self.kernel.system.cut = None;
                reply.and(Err(plan.errno))
            }
            FaultMode::FailBefore
            | FaultMode::Positive(_)
            | FaultMode::ZeroWithoutEffect
            | FaultMode::PartialEffect => Err(plan.errno),
        }
    }

    /// Makes the call and then takes back the bytes it wrote.
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
        for attachment in command.attachments.iter_mut() {
            if let Attached::Opened { handle, .. } = &mut attachment.what {
                if let Some(opened) = handle.take() {
                    self.kernel.close(by, opened.id())?;
                }
            }
        }
        Ok(())
    }

    /// Makes the call and then reduces the size it wrote back by a page.
    fn answer_short(&mut self, by: Pid, on: Handle, command: &mut Command<'_>) -> Result<Reply, Errno> {
        let reply = self.kernel.ioctl(by, on, command)?;
        let page = self.kernel.system.page();
        if let Some(size) = short_size_of(command) {
            let short = u64::from_ne_bytes(*size).saturating_sub(page.bytes());
            *size = short.to_ne_bytes();
        }
        Ok(reply)
    }
}

/// Requests that real kernels may carry out in part.
const DONE_IN_PARTS: [&str; 4] =
    [vfio::MAP_DMA.name, vfio::UNMAP_DMA.name, iommufd::IOAS_UNMAP.name, spapr::TCE_CREATE.name];

/// The size that an unmap writes back.
fn short_size_of<'c>(command: &'c mut Command<'_>) -> Option<&'c mut [u8; 8]> {
    let offset = match command.request.name {
        name if name == vfio::UNMAP_DMA.name => std::mem::offset_of!(vfio::UnmapDma, size),
        name if name == iommufd::IOAS_UNMAP.name => std::mem::offset_of!(iommufd::IoasUnmap, length),
        _ => return None,
    };
    let Argument::Bytes(bytes) = &mut command.argument else { return None };
    bytes.get_mut(offset..offset + 8)?.try_into().ok()
}
