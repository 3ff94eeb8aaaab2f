//! The stage of a replay: a host, a space on it with the counter at its door, and the listener, which may be recorded.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use dmaspace::choose::BackendKind;
use dmaspace::contract::PciAddressSpace;
use dmaspace::door::Door;
use dmaspace::listener::Update;
use dmaspace::recording::{JsonLines, RecordedSpace};
use dmaspace::{FrontEnd, Listener};

use crate::program::cause::HostView;
use crate::program::commit::{self, Ended};
use crate::program::costs::Bytes;
use crate::program::counting::{Calls, TceTable};
use crate::program::failure::Failure;
use crate::program::host::{Place, Ready};
use crate::program::outcome::HostWindow;

/// The circumstances of a replay.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// The host.
    pub(crate) place: Place,
    /// The backend; `None` for the best the host has.
    pub(crate) backend: Option<BackendKind>,
    /// The number of spaces, each with a device of its own. Everything but [`Stage::claims`] is of the first.
    pub(crate) spaces: NonZeroU32,
    /// `true` if mappings are cut where the front end expects changes.
    pub(crate) hints: bool,
    /// The file in which to record the updates that the listener gets.
    pub(crate) record: Option<PathBuf>,
}

impl Setting {
    /// This setting without the recording, for a question beside the replay.
    pub(crate) fn without_recording(&self) -> Self {
        Self { record: None, ..self.clone() }
    }
}

/// A space that is served by a listener.
pub(crate) struct Stage {
    ready: Ready,
    listener: Listener,
    recording: Option<Recording>,
    /// The limits before anything was mapped.
    before: Limits,
}

/// The limits that replays count against, as the host tells them.
#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    /// The locked bytes of this process, in both accounts.
    locked: u64,
    /// The mappings that the first space still accepts.
    mappings_left: Option<u64>,
}

/// The claims of a replay on the host's limits, as the host counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The locked bytes of all spaces, with their tables.
    pub(crate) locked: u64,
    /// The mappings of the first space, where the host limits them.
    pub(crate) mappings: Option<u64>,
    /// The TCE tables that were created for all spaces, in order.
    pub(crate) tables: Vec<TceTable>,
}

/// The recording that a listener writes. The listener has the file, and leaves its first error here.
struct Recording {
    path: PathBuf,
    error: Arc<OnceLock<io::Error>>,
}

/// A file whose first error is kept.
struct Kept {
    file: File,
    error: Arc<OnceLock<io::Error>>,
}

impl Kept {
    fn keep<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            // A later error has no news.
            let _ = self.error.set(error);
            kind.into()
        })
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        self.keep(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.file.flush();
        self.keep(flushed)
    }
}

/// The cost of a replay so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// The kernel calls.
    pub(crate) calls: Calls,
    /// The bytes handed to calls that pin.
    pub(crate) pinned: u64,
}

impl Spent {
    /// The part spent since then.
    pub(crate) fn since(self, then: Self) -> Self {
        Self { calls: self.calls.since(then.calls), pinned: self.pinned.saturating_sub(then.pinned) }
    }
}

impl Stage {
    /// Opens a space where `setting` says, for a guest whose bus `front` describes.
    ///
    /// # Errors
    /// When the host cannot be had, or the file to record to.
    pub(crate) fn new(setting: &Setting, front: FrontEnd) -> Result<Self, Failure> {
        let ready = setting.place.open(setting.backend, setting.spaces)?;
        let mut listener = Listener::new(front);
        for opened in ready.all() {
            listener.attach(opened.space.space().clone()).map_err(|error| Failure::host(&error))?;
        }
        let recording = setting.record.as_deref().map(|path| Recording::of(&mut listener, path)).transpose()?;
        let before = Limits::of(&ready);
        Ok(Self { ready, listener, recording, before })
    }

    /// Commits `update`.
    pub(crate) fn commit(&mut self, update: Update) -> Ended {
        commit::commit(&mut self.listener, update)
    }

    /// The listener, which knows the address spaces of the guest's devices.
    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// The host, as far as it decides what can be mapped where.
    pub(crate) fn view(&self) -> HostView<'_> {
        HostView::of(self.space())
    }

    /// The bytes that may be locked; nothing where no limit is set.
    pub(crate) fn lockable(&self) -> Option<u64> {
        self.ready.counter.locked_memory()?.limit
    }

    /// The claims on the host's limits so far.
    pub(crate) fn claims(&self) -> Claims {
        let now = Limits::of(&self.ready);
        Claims {
            locked: now.locked.saturating_sub(self.before.locked),
            mappings: self.before.mappings_left.zip(now.mappings_left).map(|(then, now)| then.saturating_sub(now)),
            tables: self.ready.counter.tables(),
        }
    }

    /// The name of the backend.
    pub(crate) fn backend(&self) -> &'static str {
        self.space().describe().backend
    }

    /// The host's windows.
    pub(crate) fn windows(&self) -> Vec<HostWindow> {
        RecordedSpace::of(self.space()).windows
    }

    /// The calls and bytes spent so far. A host that wants memory registered pins it then; others pin memory when they
    /// map it.
    pub(crate) fn spent(&self) -> Spent {
        let counter = &self.ready.counter;
        let registers = self.space().powers().registration.is_some();
        let pinned = if registers { counter.registered_bytes() } else { counter.mapped_bytes() };
        Spent { calls: counter.calls(), pinned }
    }

    /// The bytes in force at the end, and those counted on the way.
    pub(crate) fn bytes(&self, disturbed: u64) -> Bytes {
        Bytes::of(self.space(), self.spent().pinned, disturbed)
    }

    /// Ends the recording, if there is one.
    ///
    /// # Errors
    /// When not all of it could be written.
    pub(crate) fn close(self) -> Result<(), Failure> {
        self.recording.as_ref().map_or(Ok(()), Recording::check)
    }

    fn space(&self) -> &dyn PciAddressSpace {
        self.ready.first.space.space().as_ref()
    }
}

impl Limits {
    fn of(ready: &Ready) -> Self {
        let locked = ready.counter.locked_memory().map_or(0, |memory| memory.locked.saturating_add(memory.pinned));
        Self { locked, mappings_left: ready.first.space.space().powers().mappings_left() }
    }
}

impl Recording {
    fn of(listener: &mut Listener, path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| unwritable(path, &error))?;
        let error = Arc::new(OnceLock::new());
        listener.record_to(Box::new(JsonLines::new(Kept { file, error: error.clone() })));
        Ok(Self { path: path.to_owned(), error })
    }

    fn check(&self) -> Result<(), Failure> {
        self.error.get().map_or(Ok(()), |error| Err(unwritable(&self.path, error)))
    }
}

/// A file that cannot be written.
pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Input(format!("{}: expected a file to write: {error}", path.display()))
}
