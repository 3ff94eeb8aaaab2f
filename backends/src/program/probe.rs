//! `dmaspace probe`: everything that a host offers to devices' DMA, for people and as a host file.

mod asked;
mod described;
mod tables;

use std::path::PathBuf;

use clap::Args;
use dmaspace_soft::Profile;

use crate::program::failure::{Failure, Status};
use crate::program::host::Place;
use crate::program::machine::{Machine, Unseen};
use crate::program::root::Root;
use crate::program::schema::Form;
use crate::program::stage;

pub(crate) use described::is_held;

/// Print everything this host offers to devices' DMA: address widths, page sizes, reserved ranges, groups, limits.
///
/// Any user may run it. The things that only root can see are named at the end, with the right they take. For a moment
/// it opens the VFIO groups that no program uses, to ask the kernel for their windows; nothing is changed.
///
/// The same as a file for `dmaspace replay --host FILE`: --json prints it, -o writes it. docs/host-file.md describes
/// it.
#[derive(Debug, Default, Args)]
#[command(after_long_help = AFTER)]
pub(crate) struct Probe {
    /// Another machine's files: a folder, or a tar of its /sys and /proc (and /dev); `-` for a tar on the standard
    /// input. Nothing is unpacked.
    #[arg(long, value_name = "DIR|TAR")]
    pub(crate) root: Option<PathBuf>,

    /// A host that a preset or a file describes, instead of a machine.
    #[arg(long, value_name = "PRESET|FILE", conflicts_with = "root")]
    pub(crate) host: Option<String>,

    /// Print the host file.
    #[arg(long)]
    pub(crate) json: bool,

    /// Write the host file into this file.
    #[arg(short = 'o', long, value_name = "FILE")]
    pub(crate) host_file: Option<PathBuf>,
}

const AFTER: &str = "\
Examples:
  Everything this host offers:
      dmaspace probe
  Would a guest run on that server? There:
      dmaspace probe -o server.json
  And here:
      dmaspace replay guest.mtree --host server.json
  From a machine without this program, with docs/record-host.sh there:
      sh record-host.sh > host.tar
      dmaspace probe --root host.tar
  A file to begin with:
      dmaspace probe --host amd --json > mine.json

Exit status: 0, 1 if the host cannot be read, 2 for bad input.";

/// The result of a probe.
pub(crate) struct Found {
    /// The host file.
    pub(crate) profile: Profile,
    /// The things that could not be seen.
    pub(crate) unseen: Vec<Unseen>,
}

/// Probes, and returns the text for the standard output.
///
/// # Errors
/// Files that cannot be read; a host file that cannot be written.
pub(crate) fn run(arguments: &Probe) -> Result<(String, Status), Failure> {
    if let Some(name) = &arguments.host {
        let Place::Soft(profile) = Place::named(name)? else {
            return Err(Failure::Input(format!("{name}: expected a host's description")));
        };
        return written(arguments, &profile, || tables::of_described(&profile));
    }
    let machine = Machine::of(Root::of(arguments.root.as_deref())?)?;
    let found = probe(&machine);
    written(arguments, &found.profile, || tables::of(&machine, &found))
}

/// The description of the machine that this program runs on.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn this_host() -> Result<Profile, Failure> {
    Ok(probe(&Machine::of(Root::of(None)?)?).profile)
}

/// Everything about a machine.
pub(crate) fn probe(machine: &Machine) -> Found {
    let answers = asked::ask(machine);
    described::describe(machine, &answers)
}

fn written(arguments: &Probe, profile: &Profile, tables: impl FnOnce() -> String) -> Result<(String, Status), Failure> {
    let file = Form::Probe.page(profile)?;
    if let Some(path) = &arguments.host_file {
        std::fs::write(path, &file).map_err(|error| stage::unwritable(path, &error))?;
    }
    let text = match (arguments.json, &arguments.host_file) {
        (true, _) => file,
        (false, Some(_)) => String::new(),
        (false, None) => tables(),
    };
    Ok((text, Status::Good))
}
