//! A door for unit tests that writes down what it is asked and answers from a script. Hosts that behave live in the soft host.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Argument, Command, Door, Errno, Handle, HandleKind, Lease, OwnedHandle};
use dmaspace_core::{Access, HostMemory, PageSize};

/// What it was asked: the name of the call, the argument, the offsets at which something was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    pub(crate) attached: Vec<usize>,
}

/// What it does to the argument and answers.
pub(crate) type Answer = fn(&mut [u8]) -> Result<i32, Errno>;

#[derive(Debug, Default)]
pub(crate) struct Scripted {
    calls: Mutex<Vec<Call>>,
    /// What to answer, in order; then 0.
    script: Mutex<VecDeque<Answer>>,
    runs: ProcessRegistrations,
}

impl Scripted {
    pub(crate) fn new(script: &[Answer]) -> Arc<Self> {
        Arc::new(Self { script: Mutex::new(script.iter().copied().collect()), ..Self::default() })
    }

    /// What it was asked since the last time.
    pub(crate) fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().expect("no panic elsewhere"))
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.take().iter().map(|call| call.name).collect()
    }
}

/// An open container behind the door.
pub(crate) fn container(door: &Arc<Scripted>) -> OwnedHandle {
    OwnedHandle::simulated(door.clone(), Handle::new(1, HandleKind::Container)).expect("the door is not real")
}

/// A lease of memory that is not there.
pub(crate) fn lease(memory: &HostMemory) -> Lease<'_> {
    Lease::of_unbacked(memory).expect("there is no memory behind it")
}

// SAFETY: no device is behind it.
#[expect(unsafe_code, reason = "UNSAFETY: a door without devices")]
unsafe impl Door for Scripted {
    fn ioctl(&self, _: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        let bytes = match &mut command.argument {
            Argument::Bytes(bytes) => &mut **bytes,
            Argument::Value(_) | Argument::None => &mut [],
        };
        let attached = command.attachments.iter().map(|attachment| attachment.offset).collect();
        let call = Call { name: command.request.name, bytes: bytes.to_vec(), attached };
        self.calls.lock().expect("no panic elsewhere").push(call);
        let answer = self.script.lock().expect("no panic elsewhere").pop_front();
        answer.map_or(Ok(0), |answer| answer(bytes))
    }

    fn close(&self, _: Handle) -> Result<(), Errno> {
        let call = Call { name: "close", bytes: Vec::new(), attached: Vec::new() };
        self.calls.lock().expect("no panic elsewhere").push(call);
        Ok(())
    }

    fn host_page(&self) -> PageSize {
        PageSize::K64
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.runs
    }

    fn is_real(&self) -> bool {
        false
    }

    fn open(&self, _: &Path, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::ENOENT)
    }

    fn adopt(&self, _: OwnedFd, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::EBADF)
    }

    fn ioctl_opening(&self, _: Handle, _: &mut Command<'_>, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::ENOTTY)
    }

    fn pread(&self, _: Handle, _: u64, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn pwrite(&self, _: Handle, _: u64, _: &[u8]) -> Result<usize, Errno> {
        Err(Errno::EINVAL)
    }

    fn mmap(&self, _: Handle, _: u64, _: NonZeroU64, _: Access) -> Result<HostMemory, Errno> {
        Err(Errno::ENODEV)
    }
}
