//! The program: files in, the fate of every range out.
//!
//! ```text
//!            ┌► mtree ────► guest ────► sections ────► replay ──────┐
//!            │  the text    its views   as a VMM      one commit    ├─► outcome ────► JSON, text, drawing
//! surround-  │                          says them                   │
//! ings ──────┼► trace ──────► course ───────────────► stepwise ─────┤
//!            │  events        its steps               each a commit │
//!            └► error lines ► findings ─────────────► answer ───────┘
//! ```
//!
//! A recording is a course, too. All commit on a stage: the listener, on a host, through the door that counts.
//!
//! The program uses the library as any VMM would: the code that opens a device here opens it there. Results go to the
//! standard output; remarks, warnings and errors, to the standard error. No text of a file reaches a terminal as it
//! is ([`printable`]).

mod answer;
mod arguments;
#[cfg(test)]
mod bounds;
mod cause;
mod commit;
mod costs;
mod counting;
mod course;
mod doctor;
mod drawing;
mod explain;
mod failure;
mod finding;
mod folding;
mod guest;
mod host;
mod machine;
mod mtree;
mod outcome;
mod plan;
mod printable;
mod probe;
mod progress;
mod replay;
mod root;
mod schema;
mod sections;
mod shell;
mod stage;
mod stepwise;
mod surroundings;
mod survey;
mod text;
mod trace;
mod translating;
#[cfg(any(test, fuzzing))]
pub(crate) mod trials;
mod units;
mod values;

use std::fmt;
use std::io::{self, Read, Write};
use std::num::NonZeroU32;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use dmaspace::PageSize;

use arguments::{Arguments, Command};
use course::Course;
use failure::{Failure, Status};
use finding::Finding;
use guest::Guest;
use host::Place;
use mtree::FlatViews;
use progress::Progress;
use replay::Replay;
use schema::Form;
use stage::Setting;
use surroundings::{Line, Text};
use survey::Surveyed;
use trace::Traced;

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    match Arguments::parse().command {
        Command::Replay(arguments) => replay_all(&arguments),
        Command::Plan(arguments) => status_of(plan::run(&arguments)),
        Command::Survey(arguments) => status_of(survey_all(&arguments)),
        Command::Schema(arguments) => status_of(schema::show(&arguments)),
        Command::Completions(arguments) => status_of(shell::completions(&arguments)),
        Command::Man(arguments) => status_of(shell::man(&arguments)),
        Command::Probe(arguments) => status_of(probe::run(&arguments).and_then(printed)),
        Command::Doctor(arguments) => status_of(doctor::run(&arguments).and_then(printed)),
        Command::Explain(arguments) => status_of(explain::run(&arguments).and_then(printed)),
    }
    .into()
}

/// Prints the text of a command.
fn printed((text, status): (String, Status)) -> Result<Status, Failure> {
    print(&text).map(|()| status)
}

/// The status of a command that came to its end; an error is told.
fn status_of(result: Result<impl Into<Status>, Failure>) -> Status {
    match result {
        Ok(status) => status.into(),
        Err(failure) => {
            tell("error", &failure);
            Status::from(&failure)
        }
    }
}

/// Every file on every host.
fn survey_all(arguments: &arguments::Survey) -> Result<(), Failure> {
    let files = &arguments.files;
    let progress = Progress::of("replaying", (files.len() * survey::hosts().count()) as u64);
    let surveyed = files.iter().map(|file| survey_file(file, &progress)).collect::<Result<Vec<_>, _>>();
    drop(progress);
    let text = match arguments.json {
        true => surveyed?.iter().map(|surveyed| Form::Survey.line(surveyed)).collect::<Result<String, _>>()?,
        false => survey::HEADING.to_owned() + &surveyed?.iter().map(survey::table).collect::<String>(),
    };
    print(&text)
}

fn survey_file(path: &Path, progress: &Progress) -> Result<Surveyed, Failure> {
    let (file, content) = content_of(path, None)?;
    let mut rows = Vec::new();
    for (host, backend) in survey::hosts() {
        progress.step();
        let (name, backend) = (Some(host.to_owned()), Some(backend));
        let on_host = arguments::Replay { host: name, backend, ..Default::default() };
        let replayed = replay_content(&file, &content, &on_host)?;
        rows.extend(replayed.into_iter().map(|replay| (host, replay.outcome)));
    }
    let name = path.file_name().map_or_else(|| file.clone(), |name| name.to_string_lossy().into_owned());
    Ok(Surveyed::new(name, rows))
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
    let (file, content) = content_of(path, arguments.guest_page)?;
    let replays = replay_content(&file, &content, arguments)?;
    drop(content);
    let is_one_wanted = arguments.svg.is_some() || arguments.record.is_some();
    if is_one_wanted && replays.len() > 1 {
        let n = replays.len();
        return Err(Failure::Input(format!("{file}: expected one address space with --svg or --record, not {n}")));
    }
    let is_one_of_many = arguments.files.len() > 1 || replays.len() > 1;
    for replay in &replays {
        report(replay, arguments, is_one_of_many)?;
    }
    Ok(replays.iter().map(Replay::status).max().unwrap_or_default())
}

/// The name of a file and its content. The text is gone before the replay begins.
fn content_of(path: &Path, guest_page: Option<PageSize>) -> Result<(String, Content), Failure> {
    let (file, text) = read(path)?;
    let content = Content::of(&file, &text, guest_page)?;
    Ok((file, content))
}

/// The content of a file.
#[derive(Debug)]
enum Content {
    FlatViews(FlatViews),
    Trace(Traced),
    Recording(Course),
}

impl Content {
    /// Reads the content of `file` out of its text.
    ///
    /// # Errors
    /// The first line that does not have the expected form.
    fn of(file: &str, bytes: &[u8], guest_page: Option<PageSize>) -> Result<Self, Failure> {
        let _reading = Progress::of(format!("reading {file}"), 0);
        if is_recording(bytes) {
            return recording(file, bytes);
        }
        let text = Text::of(bytes);
        match Kind::of(&text) {
            Some(Kind::Trace) => traced(file, &text, guest_page),
            None if bytes.trim_ascii_start().starts_with(b"{") => recording(file, bytes),
            Some(Kind::FlatViews) | None => flat_views(file, &text),
        }
    }
}

fn recording(file: &str, bytes: &[u8]) -> Result<Content, Failure> {
    Course::recorded(bytes).map(Content::Recording).map_err(|bad| Failure::input(file, bad.line, &bad.what))
}

fn traced(file: &str, text: &Text<'_>, guest_page: Option<PageSize>) -> Result<Content, Failure> {
    trace::parse(text, guest_page).map(Content::Trace).map_err(|bad| Failure::input(file, bad.line, &bad))
}

fn flat_views(file: &str, text: &Text<'_>) -> Result<Content, Failure> {
    mtree::parse(text).map(Content::FlatViews).map_err(|bad| Failure::input(file, bad.line, &bad))
}

/// Returns whether a text begins as the lines of a recording do.
fn is_recording(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"{\"event\":")
}

/// The kinds of texts with surroundings.
enum Kind {
    FlatViews,
    Trace,
}

impl Kind {
    /// The kind of the first line that can be told. A log may hold a trace and a monitor's output; the one that comes
    /// first is meant.
    fn of(text: &Text<'_>) -> Option<Self> {
        text.lines().filter(Line::may_be_known).find_map(|line| match line.text.as_ref() {
            line if mtree::is_heading(line) => Some(Self::FlatViews),
            line if trace::is_known(line) => Some(Self::Trace),
            _ => None,
        })
    }
}

/// Replays the content of `file`: one replay for each address space it tells of.
fn replay_content(file: &str, content: &Content, arguments: &arguments::Replay) -> Result<Vec<Replay>, Failure> {
    match content {
        Content::FlatViews(views) => replay_flat_views(file, views, arguments),
        Content::Recording(course) => Ok(vec![replay_course(file, course, &[], arguments)?]),
        Content::Trace(Traced { courses, findings }) => {
            // The findings are of the log as a whole, and told once.
            let findings = std::iter::once(findings.as_slice()).chain(std::iter::repeat(&[][..]));
            let replays = courses.iter().zip(findings);
            replays.map(|(course, findings)| replay_course(file, course, findings, arguments)).collect()
        }
    }
}

/// Replays flat views, which `file` has or stands for.
fn replay_flat_views(file: &str, views: &FlatViews, arguments: &arguments::Replay) -> Result<Vec<Replay>, Failure> {
    let guest = Guest::of(views, arguments.address_space.as_deref(), arguments.guest_page)
        .map_err(|none| Failure::input(file, none.line, &none))?;
    let _progress = Progress::of(format!("replaying {file}"), 0);
    Ok(vec![replay::replay(file, &guest, &setting(arguments, guest.has_tce_windows())?)?])
}

fn replay_course(
    file: &str,
    course: &Course,
    findings: &[Finding],
    arguments: &arguments::Replay,
) -> Result<Replay, Failure> {
    let (told_by, is_told) = (course.told_by, course.front.is_some());
    let unfit = [
        (arguments.address_space.is_some(), "--address-space", "has one address space"),
        (arguments.device.is_some(), "--device", "has addresses and no memory"),
        (arguments.guest_page.is_some() && is_told, "--guest-page", "tells the page"),
    ];
    if let Some((_, option, why)) = unfit.into_iter().find(|(is_given, ..)| *is_given) {
        return Err(Failure::Input(format!("{file}: expected a flat view with {option}; a {told_by} {why}")));
    }
    stepwise::replay(file, course, findings, &setting(arguments, course.has_tce_windows())?)
}

/// A file, and its name.
fn read(path: &Path) -> Result<(String, Vec<u8>), Failure> {
    let file = path.display().to_string();
    match bytes_of(path) {
        Ok(text) => Ok((file, text)),
        Err(error) => Err(Failure::Input(format!("{file}: expected a file to read: {error}"))),
    }
}

fn bytes_of(path: &Path) -> io::Result<Vec<u8>> {
    /// No log that a person reads is larger.
    const LARGEST: u64 = 1 << 30;
    let mut text = Vec::new();
    match path == Path::new("-") {
        true => io::stdin().lock().take(LARGEST + 1).read_to_end(&mut text)?,
        false => std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut text)?,
    };
    if text.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("it has more than {LARGEST} bytes")));
    }
    Ok(text)
}

/// The host and the backend that were asked for, and by default the ones where such a guest belongs.
fn setting(arguments: &arguments::Replay, has_tce_windows: bool) -> Result<Setting, Failure> {
    let at_home = if has_tce_windows { "powernv9" } else { "vtd" };
    let place = match (&arguments.place, arguments.device) {
        (Some(place), _) => place.clone(),
        (None, Some(device)) => Place::Here(device),
        (None, None) => Place::named(arguments.host.as_deref().unwrap_or(at_home))?,
    };
    let (backend, record) = (arguments.backend.map(Into::into), arguments.record.clone());
    let spaces = arguments.spaces.unwrap_or(NonZeroU32::MIN);
    Ok(Setting { place, backend, spaces, hints: !arguments.no_hints, record })
}

/// The drawing, if it is wanted, then remarks for people, then the result.
fn report(replay: &Replay, arguments: &arguments::Replay, is_one_of_many: bool) -> Result<(), Failure> {
    if let Some(path) = &arguments.svg {
        svg::save(path, &drawing::of(replay)).map_err(|error| stage::unwritable(path, &error))?;
    }
    tell_remarks(&replay.outcome.notes, replay);
    let apart = if is_one_of_many { "\n" } else { "" };
    let result = if arguments.json { Form::Replay.line(&replay.outcome)? } else { text::replay(replay) + apart };
    print(&result)
}

/// Remarks, warnings and errors, for people.
fn tell_remarks(notes: &[String], replay: &Replay) {
    for note in notes {
        tell("note", note);
    }
    let warnings = replay.warnings.iter().map(|warning| (reason_of(warning), warning.clone()));
    for warning in folding::told(warnings) {
        tell("warning", warning);
    }
    for error in &replay.errors {
        tell("error", error);
    }
}

fn print(result: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(printable::shown(result).as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| Failure::host(&error)),
    }
}

/// The part of a warning behind its range and its fate, which many may share.
fn reason_of(warning: &str) -> &str {
    warning.splitn(3, ": ").nth(2).unwrap_or(warning)
}

/// Says something on the standard error. If that is closed, there is no one to tell.
fn tell(what: &str, said: impl fmt::Display) {
    /// A name may be as long as a file.
    const LONGEST: usize = 2000;
    let text = said.to_string();
    let _ = writeln!(io::stderr(), "{what}: {}", printable::shown(&printable::cut(&text, LONGEST)));
}
