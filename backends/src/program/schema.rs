//! The form of every JSON object the program prints: its name and version, and its schema.
//!
//! A version is raised when a field goes or changes its meaning; a new field leaves it.

use clap::{Args, ValueEnum};
use dmaspace_soft::Profile;
use serde::Serialize;

use crate::program::failure::Failure;
use crate::program::{print, printable};

/// Print the JSON Schema of the objects that a command prints with --json.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
pub(crate) struct Schema {
    /// The command.
    command: Form,
}

const AFTER: &str = "\
Examples:
  All fields of a plan, with their meanings:
      dmaspace schema plan | jq -r '.properties | to_entries[] | \"\\(.key): \\(.value.description)\"'
  Is this output of that form?
      dmaspace schema replay > replay.schema.json && check-jsonschema --schemafile replay.schema.json out.json

Each object names its form in \"schema\" and the form's version in \"version\". A version is raised
when a field goes or changes its meaning; a new field leaves it.";

/// The forms of objects, one for each command that prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// The fates of a guest's ranges.
    Replay,
    /// A guest on every host.
    Survey,
    /// A guest's fates and budget.
    Plan,
    /// The findings on a device.
    Doctor,
    /// A host, as a host file.
    Probe,
    /// The pages of findings.
    Explain,
}

impl Form {
    fn name(self) -> &'static str {
        match self {
            Self::Replay => "dmaspace/replay",
            Self::Survey => "dmaspace/survey",
            Self::Plan => "dmaspace/plan",
            Self::Doctor => "dmaspace/doctor",
            Self::Probe => Profile::SCHEMA,
            Self::Explain => "dmaspace/explain",
        }
    }

    fn version(self) -> u32 {
        match self {
            Self::Replay | Self::Survey | Self::Plan | Self::Doctor | Self::Explain => 1,
            Self::Probe => Profile::VERSION,
        }
    }

    fn schema(self) -> &'static str {
        match self {
            Self::Replay => include_str!("schemas/replay.json"),
            Self::Survey => include_str!("schemas/survey.json"),
            Self::Plan => include_str!("schemas/plan.json"),
            Self::Doctor => include_str!("schemas/doctor.json"),
            Self::Probe => include_str!("schemas/probe.json"),
            Self::Explain => include_str!("schemas/explain.json"),
        }
    }

    /// A result as an object of this form, on one line, so that the objects of several files can be told apart.
    ///
    /// # Errors
    /// When the result cannot be written as JSON.
    pub(crate) fn line(self, result: &impl Serialize) -> Result<String, Failure> {
        let line = serde_json::to_string(&self.versioned(result)).map_err(|error| Failure::host(&error))?;
        Ok(printable::shown_json(&line) + "\n")
    }

    /// A result as an object of this form, on many lines, for a file that a person edits.
    ///
    /// # Errors
    /// When the result cannot be written as JSON.
    pub(crate) fn page(self, result: &impl Serialize) -> Result<String, Failure> {
        let page = serde_json::to_string_pretty(&self.versioned(result)).map_err(|error| Failure::host(&error))?;
        Ok(page + "\n")
    }

    fn versioned<T>(self, result: &T) -> Versioned<'_, T> {
        Versioned { schema: self.name(), version: self.version(), result }
    }
}

/// A result that says of which form it is.
#[derive(Serialize)]
struct Versioned<'a, T> {
    schema: &'static str,
    version: u32,
    #[serde(flatten)]
    result: &'a T,
}

/// Prints a schema.
///
/// # Errors
/// When the standard output takes nothing.
pub(crate) fn show(arguments: &Schema) -> Result<(), Failure> {
    print(arguments.command.schema())
}
