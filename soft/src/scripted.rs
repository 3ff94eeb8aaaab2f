//! A door that records every call and answers from a script, for tests of the calls themselves.
//!
//! The soft host behaves like a kernel; this door only shows the calls, in their order, and can make each of them fail.
//! A [`Script`] answers: [`Replies`] from a list, or a type of the test whose answers depend on earlier calls.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use dmaspace_core::door::registrations::ProcessRegistrations;
use dmaspace_core::door::{Argument, Command, Door, Errno, Handle, HandleKind, OwnedHandle};
use dmaspace_core::sync::{Mutex, Rank};
use dmaspace_core::{Access, HostMemory, PageSize};

/// A reply to one ioctl: changes the argument's bytes and returns the result.
pub type Reply = fn(&mut [u8]) -> Result<i32, Errno>;

/// The answers behind a [`ScriptedDoor`]. It is called under the door's lock and must not call the door.
pub trait Script: Send + fmt::Debug {
    /// Answers an ioctl.
    ///
    /// # Errors
    /// The errno of the call.
    fn ioctl(&mut self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno>;

    /// Answers an open(2).
    ///
    /// # Errors
    /// The errno of the call: `ENOENT` unless the script has nodes.
    fn open(&mut self, path: &Path) -> Result<(), Errno> {
        let _ = path;
        Err(Errno::ENOENT)
    }

    /// Answers an ioctl that opens a descriptor.
    ///
    /// # Errors
    /// The errno of the call: `ENOTTY` unless the script opens descriptors.
    fn ioctl_opening(&mut self, command: &Command<'_>, kind: HandleKind) -> Result<(), Errno> {
        let _ = (command, kind);
        Err(Errno::ENOTTY)
    }

    /// Notes that a handle was closed, which was opened under `name`.
    fn closed(&mut self, handle: Handle, name: &str) {
        let _ = (handle, name);
    }

    /// Answers a pread(2): fills the beginning of `into`, and returns the number of bytes.
    ///
    /// # Errors
    /// The errno of the call: `EINVAL` unless the script has bytes.
    fn pread(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let _ = (offset, into);
        Err(Errno::EINVAL)
    }

    /// Answers a pwrite(2), and returns the number of bytes.
    ///
    /// # Errors
    /// The errno of the call: `EINVAL` unless the script has bytes.
    fn pwrite(&mut self, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        let _ = (offset, from);
        Err(Errno::EINVAL)
    }

    /// Answers an mmap(2).
    ///
    /// # Errors
    /// The errno of the call: `ENODEV` unless the script has memory.
    fn mmap(&mut self, len: NonZeroU64) -> Result<HostMemory, Errno> {
        let _ = len;
        Err(Errno::ENODEV)
    }
}

/// A list of replies, one per ioctl. After the last one every ioctl returns 0.
#[derive(Debug, Default)]
pub struct Replies(VecDeque<Reply>);

impl Script for Replies {
    fn ioctl(&mut self, _: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        let Some(reply) = self.0.pop_front() else { return Ok(0) };
        match &mut command.argument {
            Argument::Bytes(bytes) => reply(bytes),
            Argument::Value(_) | Argument::None => reply(&mut []),
        }
    }
}

/// A call that a [`ScriptedDoor`] recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordedCall {
    /// The name of the request, or "open", "close", "pread", "pwrite", "mmap".
    pub name: &'static str,
    /// The name with the arguments that are not bytes of a struct, such as "open /dev/iommu" or "VFIO_SET_IOMMU 3".
    pub text: String,
    /// The argument's bytes, before the reply.
    pub bytes: Vec<u8>,
    /// The offsets of the attachments.
    pub attached: Vec<usize>,
}

impl RecordedCall {
    fn plain(name: &'static str, text: String) -> Self {
        Self { name, text, bytes: Vec::new(), attached: Vec::new() }
    }

    fn of(command: &Command<'_>) -> Self {
        let name = command.request.name;
        let (text, bytes) = match &command.argument {
            Argument::Bytes(bytes) => (name.to_owned(), bytes.to_vec()),
            Argument::Value(value) => (format!("{name} {value}"), Vec::new()),
            Argument::None => (name.to_owned(), Vec::new()),
        };
        let attached = command.attachments.iter().map(|attachment| attachment.offset).collect();
        Self { name, text, bytes, attached }
    }
}

/// A door that records every call and answers from a script.
///
/// Handles that a test made up, with [`Handle::new`], are accepted like those that the door opened.
#[derive(Debug)]
pub struct ScriptedDoor<S = Replies> {
    state: Mutex<State<S>>,
    registrations: ProcessRegistrations,
    host_page: PageSize,
}

#[derive(Debug)]
struct State<S> {
    script: S,
    calls: Vec<RecordedCall>,
    last_handle: u64,
    /// The open handles, and the names they were opened under.
    open: BTreeMap<u64, String>,
    closed: BTreeSet<u64>,
    /// Things beside handles that count as open.
    held: BTreeSet<String>,
    /// The errnos of calls with these texts, in place of the script's answers.
    refusals: BTreeMap<String, Errno>,
    /// The call that fails with `EIO`, counted from 0 since the calls were taken.
    failing: Option<usize>,
}

impl ScriptedDoor {
    /// A door that gives these replies, one per ioctl, on a host with pages of 64 KiB.
    pub fn new(replies: &[Reply]) -> Arc<Self> {
        Self::with_script(Replies(replies.iter().copied().collect()), PageSize::K64)
    }

    /// The names of the calls since they were last taken, which they are by this.
    pub fn names(&self) -> Vec<&'static str> {
        self.take().iter().map(|call| call.name).collect()
    }
}

impl<S: Script> ScriptedDoor<S> {
    /// A door that answers from `script`.
    pub fn with_script(script: S, host_page: PageSize) -> Arc<Self> {
        let state = State {
            script,
            calls: Vec::new(),
            last_handle: 0,
            open: BTreeMap::new(),
            closed: BTreeSet::new(),
            held: BTreeSet::new(),
            refusals: BTreeMap::new(),
            failing: None,
        };
        let state = Mutex::new(Rank::DoorWrapper, state);
        Arc::new(Self { state, registrations: ProcessRegistrations::default(), host_page })
    }

    /// Takes over a handle that the test made up.
    pub fn own(self: &Arc<Self>, handle: Handle) -> Option<OwnedHandle>
    where
        S: 'static,
    {
        OwnedHandle::simulated(self.clone(), handle)
    }

    /// Makes call `n` fail with `EIO`, counted from 0 since the calls were last taken.
    pub fn fail_at(&self, n: usize) {
        self.state.lock().failing = Some(n);
    }

    /// Makes every call with this text fail.
    pub fn refuse(&self, text: &str, errno: Errno) {
        self.state.lock().refusals.insert(text.to_owned(), errno);
    }

    /// Changes the script.
    pub fn change_script(&self, change: impl FnOnce(&mut S)) {
        change(&mut self.state.lock().script);
    }

    /// The calls since they were last taken.
    pub fn take(&self) -> Vec<RecordedCall> {
        std::mem::take(&mut self.state.lock().calls)
    }

    /// The texts of the calls since they were last taken, which they are by this.
    pub fn texts(&self) -> Vec<String> {
        self.take().into_iter().map(|call| call.text).collect()
    }

    /// The names of open handles, in the order in which they were opened, and of everything that is held.
    pub fn open_names(&self) -> Vec<String> {
        let state = self.state.lock();
        state.open.values().chain(&state.held).cloned().collect()
    }

    /// The name that an open handle was opened under.
    pub fn name_of(&self, handle: Handle) -> Option<String> {
        self.state.lock().open.get(&handle.id()).cloned()
    }

    /// Records a call that goes to the kernel by another way than the door, and returns the errno it must fail with.
    ///
    /// # Errors
    /// The errno of [`ScriptedDoor::refuse`] or [`ScriptedDoor::fail_at`].
    pub fn record(&self, name: &'static str, text: String) -> Result<(), Errno> {
        self.state.lock().record(RecordedCall::plain(name, text))
    }

    /// Counts `name` among the open names until it is released.
    pub fn hold(&self, name: &str) {
        self.state.lock().held.insert(name.to_owned());
    }

    /// Ends a [`ScriptedDoor::hold`].
    pub fn release(&self, name: &str) {
        self.state.lock().held.remove(name);
    }
}

impl<S> State<S> {
    fn record(&mut self, call: RecordedCall) -> Result<(), Errno> {
        let number = self.calls.len();
        let refusal = self.refusals.get(&call.text).copied();
        self.calls.push(call);
        match refusal {
            Some(errno) => Err(errno),
            None if self.failing == Some(number) => Err(Errno::EIO),
            None => Ok(()),
        }
    }

    fn install(&mut self, name: String, kind: HandleKind) -> Handle {
        self.last_handle += 1;
        self.open.insert(self.last_handle, name);
        Handle::new(self.last_handle, kind)
    }
}

/// The text of an ioctl that opens a descriptor: its argument is a name.
fn opened_name(command: &Command<'_>) -> Result<String, Errno> {
    let Argument::Bytes(bytes) = &command.argument else { return Err(Errno::EINVAL) };
    Ok(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
}

#[expect(unsafe_code, reason = "UNSAFETY: a door without devices")]
// SAFETY: no device is behind it, and it says so.
unsafe impl<S: Script> Door for ScriptedDoor<S> {
    fn open(&self, path: &Path, kind: HandleKind) -> Result<Handle, Errno> {
        let mut state = self.state.lock();
        let name = path.display().to_string();
        state.record(RecordedCall::plain("open", format!("open {name}")))?;
        state.script.open(path)?;
        Ok(state.install(name, kind))
    }

    fn adopt(&self, _: OwnedFd, _: HandleKind) -> Result<Handle, Errno> {
        Err(Errno::EBADF)
    }

    fn ioctl(&self, on: Handle, command: &mut Command<'_>) -> Result<i32, Errno> {
        let mut state = self.state.lock();
        debug_assert!(!state.closed.contains(&on.id()), "{} on a closed handle", command.request.name);
        if state.closed.contains(&on.id()) {
            return Err(Errno::EBADF);
        }
        state.record(RecordedCall::of(command))?;
        state.script.ioctl(on, command)
    }

    fn ioctl_opening(&self, _: Handle, command: &mut Command<'_>, kind: HandleKind) -> Result<Handle, Errno> {
        let mut state = self.state.lock();
        let opened = opened_name(command)?;
        let text = format!("{} {opened}", command.request.name);
        state.record(RecordedCall { text, ..RecordedCall::of(command) })?;
        state.script.ioctl_opening(command, kind)?;
        Ok(state.install(opened, kind))
    }

    fn pread(&self, _: Handle, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let mut state = self.state.lock();
        state.record(RecordedCall::plain("pread", format!("pread {offset:#x}")))?;
        state.script.pread(offset, into)
    }

    fn pwrite(&self, _: Handle, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        let mut state = self.state.lock();
        state.record(RecordedCall::plain("pwrite", format!("pwrite {offset:#x} {from:x?}")))?;
        state.script.pwrite(offset, from)
    }

    fn mmap(&self, _: Handle, offset: u64, len: NonZeroU64, access: Access) -> Result<HostMemory, Errno> {
        let mut state = self.state.lock();
        state.record(RecordedCall::plain("mmap", format!("mmap {len:#x} at {offset:#x} {access}")))?;
        state.script.mmap(len)
    }

    /// Closes the handle whatever a refusal says.
    fn close(&self, handle: Handle) -> Result<(), Errno> {
        let mut state = self.state.lock();
        if !state.closed.insert(handle.id()) {
            return Err(Errno::EBADF);
        }
        let name = state.open.remove(&handle.id()).unwrap_or_default();
        let text = if name.is_empty() { "close".to_owned() } else { format!("close {name}") };
        let _refusal = state.record(RecordedCall::plain("close", text));
        state.script.closed(handle, &name);
        Ok(())
    }

    fn host_page(&self) -> PageSize {
        self.host_page
    }

    fn runs(&self) -> &ProcessRegistrations {
        &self.registrations
    }

    fn is_real(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmaspace_core::door::Request;

    const REQUEST: Request = Request::vfio(1, "REQUEST");

    fn ask(door: &ScriptedDoor, bytes: &mut [u8]) -> Result<i32, Errno> {
        door.ioctl(Handle::new(7, HandleKind::Container), &mut Command::with_bytes(REQUEST, bytes))
    }

    #[test]
    fn replies_are_given_in_order_and_zero_after_the_last() {
        let door = ScriptedDoor::new(&[|_| Err(Errno::ENOMEM), |bytes| Ok(i32::from(bytes[0]))]);
        assert_eq!([ask(&door, &mut [5]), ask(&door, &mut [5])], [Err(Errno::ENOMEM), Ok(5)]);
        assert_eq!(ask(&door, &mut [5]), Ok(0));
        assert_eq!(door.names(), ["REQUEST"; 3]);
    }

    #[test]
    fn a_refused_call_is_recorded_and_does_not_use_up_a_reply() {
        let door = ScriptedDoor::new(&[|_| Ok(3)]);
        door.refuse("REQUEST", Errno::EPERM);
        assert_eq!(ask(&door, &mut []), Err(Errno::EPERM));
        door.refuse("REQUEST", Errno::EBUSY);
        assert_eq!(ask(&door, &mut []), Err(Errno::EBUSY));
        assert_eq!(door.take().len(), 2);
    }

    #[test]
    fn fail_at_fails_the_call_of_that_number() {
        let door = ScriptedDoor::new(&[]);
        door.fail_at(1);
        assert_eq!([0, 1, 2].map(|_| ask(&door, &mut [])), [Ok(0), Err(Errno::EIO), Ok(0)]);
    }

    #[test]
    fn a_second_close_of_a_handle_is_refused() {
        let door = ScriptedDoor::new(&[]);
        let handle = Handle::new(7, HandleKind::Container);
        assert_eq!([door.close(handle), door.close(handle)], [Ok(()), Err(Errno::EBADF)]);
        assert_eq!(door.names(), ["close"]);
    }
}
