//! The program: files in, what became of every range out.
//!
//! ```text
//!  mtree ────► guest ────► sections ────► replay ──────┐
//!  the text    its views   what a VMM     one commit    ├─► outcome ────► JSON, text, drawing
//!                          would say                    │
//!  trace, recording ────► course ───────► stepwise ─────┘
//!  lines                  its steps       commit by commit
//! ```
//!
//! Both commit on a stage: the listener, on a host, through the door that counts.
//!
//! It leans on the library as any VMM would: what opens a device here opens it there. Results go to the standard output; whatever
//! explains them, to the standard error.

mod arguments;
mod commit;
mod counting;
mod course;
mod drawing;
mod failure;
mod guest;
mod host;
mod mtree;
mod outcome;
mod replay;
mod sections;
mod stage;
mod stepwise;
mod survey;
mod text;
mod trace;

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use course::Course;
use failure::{Failure, Status};
use guest::Guest;
use host::Place;
use replay::Replay;
use stage::Setting;

/// ProcessRegistrations the program.
pub(crate) fn run() -> ExitCode {
    match Arguments::parse().command {
        Command::Replay(arguments) => replay_all(&arguments),
        Command::Survey { files } => survey_all(&files),
    }
    .into()
}

/// Every file on every host.
fn survey_all(files: &[PathBuf]) -> Status {
    let surveyed = files.iter().map(|file| survey_file(file)).collect::<Result<String, _>>();
    surveyed.and_then(|tables| print(&(survey::HEADING.to_owned() + &tables))).map_or_else(
        |failure| {
            tell("error", &failure);
            Status::from(&failure)
        },
        |()| Status::Good,
    )
}

fn survey_file(path: &Path) -> Result<String, Failure> {
    let (file, text) = read(path)?;
    let on = |(host, backend): (&'static str, _)| {
        let arguments = arguments::Replay { host: Some(host.to_owned()), backend: Some(backend), ..Default::default() };
        replay_text(&file, &text, &arguments).map(|replay| (host, replay.outcome))
    };
    let rows = survey::hosts().map(|(host, backend)| on((host, backend.into()))).collect::<Result<Vec<_>, _>>()?;
    let name = path.file_name().map_or_else(|| file.clone(), |name| name.to_string_lossy().into_owned());
    Ok(survey::table(&name, &rows))
}

/// Replays every file, the ones after a bad one too.
fn replay_all(arguments: &arguments::Replay) -> Status {
    for (is_given, what) in [
        (arguments.svg.is_some(), "--svg: there is one drawing"),
        (arguments.record.is_some(), "--record: there is one recording"),
    ] {
        if is_given && arguments.files.len() > 1 {
            tell("error", format_args!("expected one FILE with {what}"));
            return Status::BadInput;
        }
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
    let (file, text) = read(path)?;
    let replay = replay_text(&file, &text, arguments)?;
    report(&replay, arguments)?;
    Ok(replay.status())
}

fn replay_text(file: &str, text: &[u8], arguments: &arguments::Replay) -> Result<Replay, Failure> {
    match Kind::of(text) {
        Kind::FlatViews => replay_views(file, text, arguments),
        Kind::Trace => {
            let course =
                trace::parse(text, arguments.guest_page).map_err(|bad| Failure::input(file, bad.line, &bad))?;
            replay_course(file, &course, arguments)
        }
        Kind::Recording => {
            let course = Course::recorded(text).map_err(|bad| Failure::input(file, bad.line, &bad.what))?;
            replay_course(file, &course, arguments)
        }
    }
}

/// What a file can be.
enum Kind {
    FlatViews,
    Trace,
    Recording,
}

impl Kind {
    /// By the first line that can be told. A log may hold a trace and what the monitor said; what comes first is meant.
    fn of(text: &[u8]) -> Self {
        if text.trim_ascii_start().starts_with(b"{") {
            return Self::Recording;
        }
        let lines = text.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
        let mut kinds = lines.filter_map(|line| match line.trim() {
            line if line.starts_with("FlatView #") => Some(Self::FlatViews),
            line if trace::is_line(line) => Some(Self::Trace),
            _ => None,
        });
        kinds.next().unwrap_or(Self::FlatViews)
    }
}

fn replay_views(file: &str, text: &[u8], arguments: &arguments::Replay) -> Result<Replay, Failure> {
    let views = mtree::parse(text).map_err(|bad| Failure::input(file, bad.line, &bad))?;
    let guest = Guest::of(&views, arguments.address_space.as_deref(), arguments.guest_page)
        .map_err(|none| Failure::input(file, none.line, &none))?;
    replay::replay(file, &guest, &setting(arguments, guest.has_tce_windows())?)
}

fn replay_course(file: &str, course: &Course, arguments: &arguments::Replay) -> Result<Replay, Failure> {
    let (told_by, is_told) = (course.told_by, course.front.is_some());
    let unfit = [
        (arguments.address_space.is_some(), "--address-space", "has one address space"),
        (arguments.device.is_some(), "--device", "has addresses and no memory"),
        (arguments.guest_page.is_some() && is_told, "--guest-page", "tells the page"),
    ];
    if let Some((_, option, why)) = unfit.into_iter().find(|(is_given, ..)| *is_given) {
        return Err(Failure::Input(format!("{file}: expected a flat view with {option}; a {told_by} {why}")));
    }
    stepwise::replay(file, course, &setting(arguments, course.has_tce_windows())?)
}

/// A file, and what to call it.
fn read(path: &Path) -> Result<(String, Vec<u8>), Failure> {
    let file = path.display().to_string();
    match bytes_of(path) {
        Ok(text) => Ok((file, text)),
        Err(error) => Err(Failure::Input(format!("{file}: expected a file to read: {error}"))),
    }
}

fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    if path != Path::new("-") {
        return std::fs::read(path);
    }
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    Ok(text)
}

/// How to replay a guest: as asked, and otherwise where such a guest belongs.
fn setting(arguments: &arguments::Replay, has_tce_windows: bool) -> Result<Setting, Failure> {
    let at_home = if has_tce_windows { "powernv9" } else { "vtd" };
    let place = match arguments.device {
        Some(device) => Place::Here(device),
        None => Place::named(arguments.host.as_deref().unwrap_or(at_home))?,
    };
    let (backend, record) = (arguments.backend.map(Into::into), arguments.record.clone());
    Ok(Setting { place, backend, hints: !arguments.no_hints, record })
}

/// The drawing, if it is wanted, then what goes to people, then the result.
fn report(replay: &Replay, arguments: &arguments::Replay) -> Result<(), Failure> {
    if let Some(path) = &arguments.svg {
        svg::save(path, &drawing::of(replay)).map_err(|error| stage::unwritable(path, &error))?;
    }
    replay.warnings.iter().for_each(|warning| tell("warning", warning));
    replay.errors.iter().for_each(|error| tell("error", error));
    let apart = if arguments.files.len() > 1 { "\n" } else { "" };
    let result = if arguments.json { json(replay)? } else { text::replay(replay) + apart };
    print(&result)
}

fn print(result: &str) -> Result<(), Failure> {
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
