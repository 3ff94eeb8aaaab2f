//! The program: files in, what became of every range out.
//!
//! ```text
//!  mtree ────► guest ────► sections ────► replay ────► outcome ────► JSON, text, drawing
//!  the text    its views   what a VMM     the listener, on a host, through the door that counts
//!                          would say
//! ```
//!
//! It leans on the library as any VMM would: what opens a device here opens it there. Results go to the standard output; whatever
//! explains them, to the standard error.

mod arguments;
mod counting;
mod drawing;
mod failure;
mod guest;
mod host;
mod mtree;
mod outcome;
mod replay;
mod sections;
mod text;

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use failure::{Failure, Status};
use guest::Guest;
use host::Place;
use replay::{Replay, Setting};

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    let Command::Replay(arguments) = Arguments::parse().command;
    replay_all(&arguments).into()
}

/// Replays every file, the ones after a bad one too.
fn replay_all(arguments: &arguments::Replay) -> Status {
    if arguments.svg.is_some() && arguments.files.len() > 1 {
        tell("error", "expected one FILE with --svg: there is one drawing");
        return Status::BadInput;
    }
    let replayed = arguments.files.iter().map(|file| {
        replay_file(file, arguments).unwrap_or_else(|failure| {
            tell("error", &failure);
            Status::from(&failure)
        })
    });
    replayed.max().unwrap_or_default()
}

fn replay_file(path: &Path, arguments: &arguments::Replay) -> Result<Status, Failure> {
    let file = path.display().to_string();
    let text = read(path).map_err(|error| Failure::Input(format!("{file}: expected a file to read: {error}")))?;
    let views = mtree::parse(&text).map_err(|bad| Failure::input(&file, bad.line, &bad))?;
    let guest = Guest::of(&views, arguments.address_space.as_deref(), arguments.guest_page)
        .map_err(|none| Failure::input(&file, none.line, &none))?;
    let replay = replay::replay(&file, &guest, &setting(arguments, &guest)?)?;
    report(&replay, arguments)?;
    Ok(replay.status())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path != Path::new("-") {
        return std::fs::read(path);
    }
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    Ok(text)
}

/// How to replay `guest`: as asked, and otherwise where such a guest belongs.
fn setting(arguments: &arguments::Replay, guest: &Guest<'_>) -> Result<Setting, Failure> {
    let at_home = if guest.has_tce_windows() { "powernv9" } else { "vtd" };
    let place = match arguments.device {
        Some(device) => Place::Here(device),
        None => Place::named(arguments.host.as_deref().unwrap_or(at_home))?,
    };
    Ok(Setting { place, backend: arguments.backend.map(Into::into), hints: !arguments.no_hints })
}

/// The drawing, if it is wanted, then what goes to people, then the result.
fn report(replay: &Replay, arguments: &arguments::Replay) -> Result<(), Failure> {
    if let Some(path) = &arguments.svg {
        svg::save(path, &drawing::of(replay))
            .map_err(|error| Failure::Input(format!("{}: expected a file to write: {error}", path.display())))?;
    }
    replay.warnings.iter().for_each(|warning| tell("warning", warning));
    replay.errors.iter().for_each(|error| tell("error", error));
    let apart = if arguments.files.len() > 1 { "\n" } else { "" };
    let result = if arguments.json { json(replay)? } else { text::replay(replay) + apart };
    match io::stdout().lock().write_all(result.as_bytes()) {
        // Whoever was reading has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Failure::host(&error)),
    }
}

/// On one line, so that the objects of several files can be told apart.
fn json(replay: &Replay) -> Result<String, Failure> {
    let object = serde_json::to_string(&replay.outcome).map_err(|error| Failure::host(&error))?;
    Ok(object + "\n")
}

/// Says something on the standard error; if that is closed, nobody wants to know.
fn tell(what: &str, text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{what}: {text}");
}
