//! Writing a recording.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};

use dmaspace_core::contract::PciAddressSpace;
use dmaspace_core::words::memory::UnplugUnit;
use dmaspace_core::{HostMemory, PageSize};
use dmaspace_listener::recording::{Ending, Line, Piece, RecordedCuts, RecordedShrink, RecordedSpace, VERSION};
use dmaspace_listener::section::{FrontEnd, Section, TargetMemory};
use dmaspace_listener::{CommitError, Recorder, Update};

/// Writes a listener's input as JSON lines, each line at once and as a whole.
///
/// If a line cannot be written, a warning is logged and nothing more is written: the beginning of a recording can be
/// replayed, a recording with a gap cannot.
pub struct JsonLines<W> {
    out: W,
    /// The numbers of unplug units, in the order of their first use.
    units: HashMap<UnplugUnit, u64>,
    error: Option<io::Error>,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, units: HashMap::new(), error: None }
    }

    /// The writer.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// The error that ended the recording, if there was one.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    fn write(&mut self, line: &Line) {
        if self.error.is_some() {
            return;
        }
        let written = serde_json::to_vec(line).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            self.out.write_all(&text)?;
            self.out.flush()
        });
        if let Err(error) = written {
            log::warn!("the recording ends here: {error}");
            self.error = Some(error);
        }
    }

    fn pieces(&mut self, sections: &[Section], targets: &[TargetMemory]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for section in sections {
            pieces.push(Piece::of_section(section, |memory| number(&mut self.units, memory)));
        }
        for target in targets {
            pieces.push(Piece::of_target(target, |memory| number(&mut self.units, memory)));
        }
        pieces
    }
}

fn number(units: &mut HashMap<UnplugUnit, u64>, memory: &HostMemory) -> u64 {
    let next = units.len() as u64;
    *units.entry(memory.unit()).or_insert(next)
}

impl<W: Write + Send> Recorder for JsonLines<W> {
    fn begins(&mut self, front: &FrontEnd, in_force: &Update, spaces: &[&dyn PciAddressSpace]) {
        let in_force = self.pieces(in_force.added(), in_force.added_targets());
        self.write(&Line::Begin {
            version: VERSION,
            shrink: RecordedShrink::of(front.shrink),
            cuts: front.cuts.iter().map(RecordedCuts::of).collect(),
            chunk: front.chunk.map(PageSize::bytes),
            in_force,
            spaces: spaces.iter().map(|space| RecordedSpace::of(*space)).collect(),
        });
    }

    fn commits(&mut self, update: &Update) {
        let removed = self.pieces(update.removed(), update.removed_targets());
        let added = self.pieces(update.added(), update.added_targets());
        self.write(&Line::Update { removed, added });
    }

    fn joins(&mut self, space: &dyn PciAddressSpace) {
        self.write(&Line::Join { space: RecordedSpace::of(space) });
    }

    fn leaves(&mut self, place: usize) {
        self.write(&Line::Leave { space: place });
    }

    fn ended(&mut self, failure: Option<&CommitError>) {
        self.write(&Line::Ended { result: Ending::of(failure), text: failure.map(ToString::to_string) });
    }
}

impl<W> fmt::Debug for JsonLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines")
            .field("units", &self.units.len())
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}
