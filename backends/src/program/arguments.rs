//! The command line.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use dmaspace::PageSize;
use dmaspace::pci::PciAddress;

use crate::program::doctor::Doctor;
use crate::program::explain::Explain;
use crate::program::host::Place;
use crate::program::plan::Plan;
use crate::program::probe::Probe;
use crate::program::schema::Schema;
use crate::program::values::{Backend, page_size};

/// DMA windows for passed-through PCI devices, on every IOMMU.
///
/// Why does a device not get its memory, would a guest run on that host, and what will it need there? The program
/// answers from the text that QEMU prints, on hosts in software.
#[derive(Debug, Parser)]
#[command(name = "dmaspace", version, about, max_term_width = 100, after_long_help = AFTER_ALL)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Replay(Replay),
    Probe(Probe),
    Doctor(Doctor),
    Explain(Explain),
    Plan(Plan),
    Survey(Survey),
    Schema(Schema),
    Completions(Completions),
    Man(Man),
}

/// Replay guests on every soft host, through every backend it has, and print a table for each.
///
/// It is Markdown: on which hosts the guest could live, and what it would lose there.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_SURVEY)]
pub(crate) struct Survey {
    /// Flat views, traces, logs and recordings, as `dmaspace replay` reads them.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// Print one JSON object for each file.
    #[arg(long)]
    pub(crate) json: bool,
}

const AFTER_SURVEY: &str = "\
Examples:
  On which hosts could this guest live?
      dmaspace survey guest.mtree
  Only the names of these hosts:
      dmaspace survey guest.mtree --json | jq -r '.hosts[] | select(.ok) | .host'

Exit status: 0, and 2 for bad input.";

/// Replay a guest's memory map onto a host, and see what becomes of every range.
///
/// FILE is one of four, told apart by their content; `-` is the standard input. Prompts, time stamps, JSON, mail
/// quotes and the like around it are passed over and counted.
///
/// The text of QEMU's `info mtree -f`. The PCI address space in it is that of a POWER guest's PCI host bridge, with
/// `memory` behind its windows, and else `memory`; where there are several, the program says so.
///
/// A log of QEMU with the trace of its VFIO events (-trace 'vfio_*'): replayed step by step, each the sections that
/// went and then came. A trace does not tell ROM from RAM. Events that failed there become findings.
///
/// Error lines of QEMU or of the kernel alone, such as `vfio_dma_map(…) = -22`: each is asked of the host, and the
/// answer names the cause and a cure.
///
/// A recording, which a VMM built on this project writes, and --record: replayed step by step.
///
/// The content of FILE goes through the same listener and the same backends that a VMM uses, on a host in software,
/// which needs neither a device nor the guest's memory; or with --device on this host, for real.
#[derive(Debug, Default, Args)]
#[command(after_long_help = AFTER)]
pub(crate) struct Replay {
    /// Flat views, traces, recordings; each is replayed by itself.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// The soft host: vtd, vtd-39bit, vtd-64k, vtd-ssads, amd, arm64-4k, arm64-64k, powernv9, powernv9-64k, pseries, or
    /// a file that describes one, as `dmaspace probe` writes it
    /// [default: powernv9 for a guest with TCE windows, vtd for others].
    #[arg(long, value_name = "PRESET|FILE")]
    pub(crate) host: Option<String>,

    /// The way to the host's IOMMU [default: the best that the host has].
    #[arg(long)]
    pub(crate) backend: Option<Backend>,

    /// Replay on this host, with this device, which must be bound to vfio-pci. The guest's RAM is allocated and pinned.
    #[arg(long, value_name = "BDF", conflicts_with = "host")]
    pub(crate) device: Option<PciAddress>,

    /// The address space that is the PCI address space.
    #[arg(long, value_name = "NAME")]
    pub(crate) address_space: Option<String>,

    /// The guest's page in translated windows, which the text does not tell [default: 4K in a default TCE window and
    /// behind an emulated IOMMU, 64K in other TCE windows].
    #[arg(long, value_name = "SIZE", value_parser = page_size)]
    pub(crate) guest_page: Option<PageSize>,

    /// Do not cut mappings to keep later changes small: into 4 KiB pieces below 1 MiB, where a PC's firmware will
    /// change them, and at every GiB above; or where a recording says.
    #[arg(long)]
    pub(crate) no_hints: bool,

    /// Print one JSON object for each file, with its steps if it has any.
    #[arg(long)]
    pub(crate) json: bool,

    /// Record what is replayed into this file, from which it can be replayed again.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// Draw what the guest sees and what the host offers side by side into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// A place other than the one that --host and --device name: for a plan.
    #[arg(skip)]
    pub(crate) place: Option<Place>,

    /// The number of spaces, each with a device: for a plan.
    #[arg(skip)]
    pub(crate) spaces: Option<NonZeroU32>,
}

const AFTER_ALL: &str = "\
Examples:
  What becomes of every range of this guest, and why?
      virsh qemu-monitor-command guest --hmp 'info mtree -f' | dmaspace replay -
  What does this error line mean?
      journalctl -b | dmaspace replay -
  What will a guest of 64 GiB with two devices need?
      dmaspace plan --memory 64G --devices 2
  Every command has examples of its own:
      dmaspace help plan";

const AFTER: &str = "\
Examples:
  Why does my device not see the other one's BAR? Under iommufd:
      dmaspace replay guest.mtree --host vtd --backend iommufd
  Would this POWER guest run on that PC?
      dmaspace replay pseries.mtree --host vtd
  From a running QEMU:
      virsh qemu-monitor-command guest --hmp 'info mtree -f' | dmaspace replay -
  For a script:
      dmaspace replay guest.mtree --json | jq '.sections[] | select(.fate != \"mapped\")'
  How often would this boot pin its memory?
      dmaspace replay boot.trace --backend type1
  On this machine's own IOMMU:
      dmaspace replay guest.mtree --device 0000:03:00.0

Exit status: 0 when everything required is provided, 1 when something required is refused or a
kernel call fails, in whichever step, 2 for bad input.";

/// Print the completions for a shell.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_COMPLETIONS)]
pub(crate) struct Completions {
    /// The shell.
    pub(crate) shell: Shell,
}

const AFTER_COMPLETIONS: &str = "\
Examples:
  For this session of bash, or in ~/.bashrc:
      source <(dmaspace completions bash)
  For zsh, in a directory of $fpath:
      dmaspace completions zsh > ~/.zfunc/_dmaspace
  For fish:
      dmaspace completions fish > ~/.config/fish/completions/dmaspace.fish";

/// Write the man pages of the program and of each command into a directory.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER_MAN)]
pub(crate) struct Man {
    /// The directory, which must exist.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

const AFTER_MAN: &str = "\
Examples:
  For all users of this machine:
      dmaspace man /usr/local/share/man/man1
  To look at one:
      dmaspace man /tmp && man /tmp/dmaspace-plan.1";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_makes_sense() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_preset() {
        let mut command = Arguments::command();
        let help = command.find_subcommand_mut("replay").expect("it is there").render_long_help().to_string();
        for preset in dmaspace_soft::Profile::PRESETS {
            assert!(help.contains(&format!("{preset},")), "{preset}");
        }
    }
}
