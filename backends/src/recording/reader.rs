//! Reading a recording. What it says was written by somebody else, and is believed only as far as it makes sense.

use std::collections::BTreeMap;
use std::io::BufRead;

use dmaspace_core::HostMemory;
use dmaspace_listener::Update;
use dmaspace_listener::recording::{self, Asked, BadPiece, Ending, Line, Made, Piece, Space, SpaceOf, VERSION};
use dmaspace_listener::section::FrontEnd;
use serde::Deserialize;

/// Something that happened to the listener that was recorded.
#[derive(Clone, Debug)]
pub enum Event {
    /// The recording begins: always the first event, and only the first.
    Begins {
        /// What the front end said of the guest's bus.
        front: FrontEnd,
        /// What was in force, as additions to nothing.
        in_force: Update,
        /// The spaces served.
        spaces: Vec<Space>,
    },
    /// An update was to be made true.
    Commits {
        /// What went and came. What goes is exactly what had come.
        update: Update,
        /// How it ended there.
        outcome: Option<Outcome>,
    },
    /// A space was to join.
    Joins {
        /// Which.
        space: Space,
        /// How it ended there.
        outcome: Option<Outcome>,
    },
    /// A space was to leave.
    Leaves {
        /// Which, by its number among those served, from 0.
        place: usize,
        /// How it ended there.
        outcome: Option<Outcome>,
    },
}

/// An event, and where it is.
#[derive(Clone, Debug)]
pub struct Numbered {
    /// Its line, from 1.
    pub line: usize,
    /// What happened.
    pub event: Event,
}

/// How something ended there. Where there is none, the recording ends before it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The line that says so.
    pub line: usize,
    /// How.
    pub result: Ending,
    /// Why it failed, in words.
    pub text: String,
}

/// A line that is not what it has to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadRecording {
    /// Its number, from 1.
    pub line: usize,
    /// What was expected.
    pub what: String,
}

/// The events of a recording.
///
/// Memory is made by the function it is given, once for each piece that comes: the same memory goes with the piece.
/// Nothing is read any more after the first error.
#[derive(Debug)]
pub struct Reader<R, M> {
    lines: Lines<R>,
    make: M,
    in_force: InForce,
    has_begun: bool,
    is_over: bool,
}

impl<R: BufRead, M: FnMut(&Asked) -> Option<HostMemory>> Reader<R, M> {
    /// Reads from `from`. `make` makes memory: [`Asked::unbacked`] does for hosts in software; `None` refuses the
    /// recording.
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
            return self.begin(what).map_err(|what| bad(line, what)).map(|event| Some(Numbered { line, event }));
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
        let in_force = self.in_force.change(Vec::new(), in_force, false, &mut self.make);
        Ok(Event::Begins { front, in_force: in_force.map_err(|error| error.to_string())?, spaces })
    }

    /// How the event at `line` ended.
    fn outcome(&mut self, line: usize) -> Result<Option<Outcome>, BadRecording> {
        match self.next_line()? {
            None => Ok(None),
            Some((line, Line::Ended { result, text })) => {
                Ok(Some(Outcome { line, result, text: text.unwrap_or_default() }))
            }
            Some((here, _)) => Err(bad(here, format!("expected an `ended` for what began at line {line}"))),
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

/// The lines as they stand.
#[derive(Debug)]
struct Lines<R> {
    from: R,
    /// The number of the last line that was read.
    line: usize,
}

/// The first line as any version has it.
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
        let line = serde_json::from_slice(&text).map_err(|error| {
            let (what, column) = (error.to_string(), error.column());
            let what = what.split(" at line ").next().unwrap_or_default();
            bad(self.line, format!("expected a line of a recording: {what} (column {column})"))
        })?;
        Ok(Some((self.line, line)))
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

/// What was in force after everything that was read.
#[derive(Clone, Debug, Default)]
struct InForce {
    pieces: BTreeMap<(SpaceOf, u64), (Piece, Made)>,
}

impl InForce {
    /// Makes a change, and the update that is that change. What failed when it was recorded changes nothing, and may
    /// make no sense: it may have failed because of that.
    fn change(
        &mut self,
        removed: Vec<Piece>,
        added: Vec<Piece>,
        failed: bool,
        make: &mut dyn FnMut(&Asked) -> Option<HostMemory>,
    ) -> Result<Update, String> {
        let as_it_was = failed.then(|| self.clone());
        let text = |error: BadPiece, piece: &Piece| format!("{error} (of {:?} at {})", piece.name, piece.first);
        let mut update = Update::new();
        for piece in removed {
            let made = match self.take(&piece) {
                Some(made) => made,
                None if failed => piece.make(make).map_err(|error| text(error, &piece))?,
                None => return Err(format!("expected {} to be in force as it is removed", words(&piece))),
            };
            update = match made {
                Made::Section(section) => update.removing(section),
                Made::Target(target) => update.removing_target(target),
            };
        }
        for piece in added {
            let made = piece.make(make).map_err(|error| text(error, &piece))?;
            if let Some(other) = self.overlapping(&piece).filter(|_| !failed) {
                return Err(format!("expected {} not to overlap {}", words(&piece), words(other)));
            }
            update = match made.clone() {
                Made::Section(section) => update.adding(section),
                Made::Target(target) => update.adding_target(target),
            };
            self.pieces.insert((piece.space, piece.first.0), (piece, made));
        }
        if let Some(as_it_was) = as_it_was {
            *self = as_it_was;
        }
        Ok(update)
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
