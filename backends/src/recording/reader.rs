//! Reading a recording. Another process wrote it, so every line is checked.

use std::collections::BTreeMap;
use std::io::BufRead;

use dmaspace_core::HostMemory;
use dmaspace_listener::Update;
use dmaspace_listener::recording::{self, Asked, BadPiece, Ending, Line, Made, Piece, RecordedSpace, SpaceOf, VERSION};
use dmaspace_listener::section::FrontEnd;
use serde::Deserialize;

/// An event of the recorded listener.
///
/// Exhaustive: a replay must repeat each event.
#[derive(Clone, Debug)]
pub enum Event {
    /// The recording begins. This is the first event, and only the first.
    Begins {
        /// The front end's description of the guest's bus.
        front: FrontEnd,
        /// The sections and target memory in force, as additions to an empty view.
        in_force: Update,
        /// The spaces served.
        spaces: Vec<RecordedSpace>,
    },
    /// An update was committed.
    Commits {
        /// The update. Each removed piece is exactly one that was added before.
        update: Update,
        /// The result. `None` if the recording ends before it.
        outcome: Option<Outcome>,
    },
    /// A space was attached.
    Joins {
        /// The description of the space.
        space: RecordedSpace,
        /// The result. `None` if the recording ends before it.
        outcome: Option<Outcome>,
    },
    /// A space was detached.
    Leaves {
        /// The number of the space among the served spaces, from 0.
        place: usize,
        /// The result. `None` if the recording ends before it.
        outcome: Option<Outcome>,
    },
}

/// An event and its line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Numbered {
    /// The number of the line, from 1.
    pub line: usize,
    /// The event.
    pub event: Event,
}

/// The result of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The line of the result.
    pub line: usize,
    /// The result.
    pub result: Ending,
    /// The reason of a failure, in words.
    pub text: String,
}

/// A line that does not follow the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
#[non_exhaustive]
pub struct BadRecording {
    /// The number of the line, from 1.
    pub line: usize,
    /// The expectation that the line does not meet.
    pub what: String,
}

/// An iterator over the events of a recording.
///
/// A function of the caller makes the memory, once for each piece that is added; the removal of the piece has the same
/// memory. The iterator ends after the first error.
#[derive(Debug)]
pub struct Reader<R, M> {
    lines: Lines<R>,
    make: M,
    in_force: InForce,
    has_begun: bool,
    is_over: bool,
}

impl<R: BufRead, M: FnMut(&Asked) -> Option<HostMemory>> Reader<R, M> {
    /// Reads from `from`. `make` makes memory: [`Asked::unbacked`] serves hosts in software. If `make` returns `None`,
    /// the recording is refused.
    pub fn new(from: R, make: M) -> Self {
        let lines = Lines { from, line: 0 };
        Self { lines, make, in_force: InForce::default(), has_begun: false, is_over: false }
    }

    fn read(&mut self) -> Result<Option<Numbered>, BadRecording> {
        let Some((line, what)) = self.next_line()? else {
            return if self.has_begun { Ok(None) } else { Err(bad(self.lines.line, FIRST)) };
        };
        if !self.has_begun {
            self.has_begun = true;
            let event = self.begin(what).map_err(|what| bad(line, what))?;
            return Ok(Some(Numbered { line, event }));
        }
        let event = match what {
            Line::Begin { .. } => return Err(bad(line, "expected one recording: another one begins here")),
            Line::Ended { .. } => return Err(bad(line, "expected an `update`, `join` or `leave` before an `ended`")),
            Line::Join { space } => Event::Joins { space, outcome: self.outcome(line)? },
            Line::Leave { space } => Event::Leaves { place: space, outcome: self.outcome(line)? },
            Line::Update { removed, added } => {
                let outcome = self.outcome(line)?;
                let failed = outcome.as_ref().is_some_and(|outcome| outcome.result != Ending::Ok);
                let update = self.in_force.change(removed, added, failed, &mut self.make);
                Event::Commits { update: update.map_err(|error| bad(line, error))?, outcome }
            }
        };
        Ok(Some(Numbered { line, event }))
    }

    fn begin(&mut self, line: Line) -> Result<Event, String> {
        let Line::Begin { version: _, shrink, cuts, chunk, in_force, spaces } = line else {
            return Err(FIRST.to_owned());
        };
        let front = recording::front_end(shrink, &cuts, chunk).map_err(|error| error.to_string())?;
        let update = self.in_force.change(Vec::new(), in_force, false, &mut self.make)?;
        Ok(Event::Begins { front, in_force: update, spaces })
    }

    /// The result of the event at `line`.
    fn outcome(&mut self, line: usize) -> Result<Option<Outcome>, BadRecording> {
        match self.next_line()? {
            None => Ok(None),
            Some((line, Line::Ended { result, text })) => {
                Ok(Some(Outcome { line, result, text: text.unwrap_or_default() }))
            }
            Some((here, _)) => Err(bad(here, format!("expected the `ended` of the commit that began at line {line}"))),
        }
    }

    fn next_line(&mut self) -> Result<Option<(usize, Line)>, BadRecording> {
        self.lines.next(self.has_begun)
    }
}

impl<R: BufRead, M: FnMut(&Asked) -> Option<HostMemory>> Iterator for Reader<R, M> {
    type Item = Result<Numbered, BadRecording>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let read = self.read().transpose();
        self.is_over = !matches!(read, Some(Ok(_)));
        read
    }
}

const FIRST: &str = "expected a recording, which begins with a line `{\"event\":\"begin\",\"version\":1,…}`";

fn bad(line: usize, what: impl ToString) -> BadRecording {
    BadRecording { line, what: what.to_string() }
}

/// The lines, parsed one by one.
#[derive(Debug)]
struct Lines<R> {
    from: R,
    /// The number of the last line that was read.
    line: usize,
}

/// The fields that the first line has in every version.
#[derive(Deserialize)]
struct Head {
    event: String,
    version: u64,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self, has_begun: bool) -> Result<Option<(usize, Line)>, BadRecording> {
        let mut text = Vec::new();
        while text.trim_ascii().is_empty() {
            text.clear();
            let read = self.from.read_until(b'\n', &mut text);
            if read.map_err(|error| bad(self.line + 1, format!("expected a line to read: {error}")))? == 0 {
                return Ok(None);
            }
            self.line += 1;
        }
        if !has_begun {
            check_head(&text).map_err(|what| bad(self.line, what))?;
        }
        let line = serde_json::from_slice(&text).map_err(|error| self.unparsable(&error))?;
        Ok(Some((self.line, line)))
    }

    /// The error of the last line, with serde's words but not its line number, which is always 1.
    fn unparsable(&self, error: &serde_json::Error) -> BadRecording {
        let text = error.to_string();
        let words = text.split(" at line ").next().unwrap_or_default();
        bad(self.line, format!("expected a line of a recording: {words} (column {})", error.column()))
    }
}

fn check_head(text: &[u8]) -> Result<(), String> {
    match serde_json::from_slice::<Head>(text) {
        Ok(Head { event, version }) if event == "begin" && version != u64::from(VERSION) => {
            Err(format!("expected a recording of version {VERSION}, found version {version}"))
        }
        Ok(Head { event, .. }) if event == "begin" => Ok(()),
        _ => Err(FIRST.to_owned()),
    }
}

/// The pieces in force after the events that were read.
#[derive(Clone, Debug, Default)]
struct InForce {
    pieces: BTreeMap<(SpaceOf, u64), (Piece, Made)>,
}

impl InForce {
    /// Applies a change, and returns the same change as an update. A change that failed when it was recorded is not
    /// kept, and may be invalid: that may be why it failed.
    fn change(
        &mut self,
        removed: Vec<Piece>,
        added: Vec<Piece>,
        failed: bool,
        make: &mut dyn FnMut(&Asked) -> Option<HostMemory>,
    ) -> Result<Update, String> {
        let before = if failed { Some(self.clone()) } else { None };
        let mut update = Update::new();
        for piece in removed {
            update = match self.leaving(&piece, failed, make)? {
                Made::Section(section) => update.removing(section),
                Made::Target(target) => update.removing_target(target),
            };
        }
        for piece in added {
            update = match self.coming(piece, failed, make)? {
                Made::Section(section) => update.adding(section),
                Made::Target(target) => update.adding_target(target),
            };
        }
        if let Some(before) = before {
            *self = before;
        }
        Ok(update)
    }

    /// Takes out a piece that a change removes. One of a change that failed may never have been in force.
    fn leaving(
        &mut self,
        piece: &Piece,
        failed: bool,
        make: &mut dyn FnMut(&Asked) -> Option<HostMemory>,
    ) -> Result<Made, String> {
        match self.take(piece) {
            Some(made) => Ok(made),
            None if failed => piece.make(make).map_err(|error| invalid(&error, piece)),
            None => Err(format!("expected {} to be in force as it is removed", words(piece))),
        }
    }

    /// Puts in a piece that a change adds. One of a change that failed may overlap another.
    fn coming(
        &mut self,
        piece: Piece,
        failed: bool,
        make: &mut dyn FnMut(&Asked) -> Option<HostMemory>,
    ) -> Result<Made, String> {
        let made = piece.make(make).map_err(|error| invalid(&error, &piece))?;
        match self.overlapping(&piece) {
            Some(other) if !failed => {
                return Err(format!("expected {} not to overlap {}", words(&piece), words(other)));
            }
            _ => {}
        }
        self.pieces.insert((piece.space, piece.first.0), (piece, made.clone()));
        Ok(made)
    }

    fn take(&mut self, piece: &Piece) -> Option<Made> {
        let place = (piece.space, piece.first.0);
        self.pieces.get(&place).filter(|(there, _)| there == piece)?;
        self.pieces.remove(&place).map(|(_, made)| made)
    }

    fn overlapping(&self, piece: &Piece) -> Option<&Piece> {
        let below = self.pieces.range((piece.space, 0)..=(piece.space, piece.last.0)).next_back();
        below.map(|(_, (there, _))| there).filter(|there| there.last >= piece.first)
    }
}

fn words(piece: &Piece) -> String {
    format!("{}..={} ({:?})", piece.first, piece.last, piece.name)
}

fn invalid(error: &BadPiece, piece: &Piece) -> String {
    format!("{error} (of {:?} at {})", piece.name, piece.first)
}
