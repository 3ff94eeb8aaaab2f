//! The command line of `plan`.

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use dmaspace::PageSize;

use crate::program::values::{Backend, page_size};

/// Tell a guest's need of a host, and the fate of every range of its memory map, before anything exists.
///
/// The guest is described by its machine and its size, whose memory map is QEMU's, or by FILE, which is read as
/// `dmaspace replay` reads it. Its map goes through the listener and the backends of this project on the host in
/// software, so the fates are those that a VMM would meet, and the budget is the host's own count.
#[derive(Debug, Default, Args)]
#[command(after_long_help = AFTER)]
pub(crate) struct Plan {
    /// A flat view, a trace or a recording of a guest, in the place of a machine and a size; `-` is the standard input.
    #[arg(value_name = "FILE", conflicts_with_all = ["machine", "memory", "maxmem", "bar", "phys_bits", "amd_hole"])]
    pub(crate) file: Option<PathBuf>,

    /// QEMU's machine.
    #[arg(long, default_value = "q35")]
    pub(crate) machine: Machine,

    /// The guest's memory, as in -m: 8G, 8192M.
    #[arg(long, value_name = "SIZE", value_parser = size, required_unless_present = "file")]
    pub(crate) memory: Option<u64>,

    /// The most memory that may be plugged in, as in -m maxmem=; the plan counts it as plugged.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) maxmem: Option<u64>,

    /// The slots for memory, as in -m slots=, each of which takes room for alignment.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "maxmem")]
    pub(crate) slots: u32,

    /// A BAR of each device, which the other devices should reach; may be repeated.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) bar: Vec<u64>,

    /// The address bits of the guest's processors. Newer firmware puts large BARs at their upper end; without this
    /// option BARs are right above the memory, where older firmware puts them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(36..=52))]
    pub(crate) phys_bits: Option<u32>,

    /// QEMU's way around AMD's hole below 1 TiB [default: relocate on a host that has the hole].
    #[arg(long)]
    pub(crate) amd_hole: Option<AmdHole>,

    /// The devices to pass through.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) devices: u32,

    /// Their containers, or address spaces under iommufd [default: one, and on POWER or with --viommu one for each
    /// device].
    #[arg(long, value_name = "N", value_parser = containers)]
    pub(crate) containers: Option<NonZeroU32>,

    /// The guest has an emulated IOMMU: each device has an address space of its own, in which the guest may map all of
    /// its memory.
    #[arg(long, conflicts_with = "containers")]
    pub(crate) viommu: bool,

    /// The host: a preset, as for `dmaspace replay`; a file that describes one; or `here`, this machine as
    /// `dmaspace probe` sees it [default: a preset of the machine's kind].
    #[arg(long, value_name = "PRESET|FILE|here")]
    pub(crate) host: Option<String>,

    /// The way to the host's IOMMU [default: the best that the host has].
    #[arg(long)]
    pub(crate) backend: Option<Backend>,

    /// The guest's page in translated windows [default: 4K in a default TCE window and behind an emulated IOMMU, 64K in
    /// other TCE windows].
    #[arg(long, value_name = "SIZE", value_parser = page_size)]
    pub(crate) guest_page: Option<PageSize>,

    /// Do not cut mappings where changes are expected, as `dmaspace replay` explains.
    #[arg(long)]
    pub(crate) no_hints: bool,

    /// Print one JSON object for each guest.
    #[arg(long)]
    pub(crate) json: bool,

    /// Draw the guest's memory map and the host's windows side by side into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

const AFTER: &str = "\
Examples:
  What must RLIMIT_MEMLOCK be for a guest of 64 GiB with two GPUs?
      dmaspace plan --memory 64G --devices 2
  And with an emulated IOMMU in the guest?
      dmaspace plan --memory 64G --devices 2 --viommu --backend type1
  Does a guest of more than 1 TiB fit an AMD host?
      dmaspace plan --memory 1100G --host amd
  Will BARs of 16 GiB be reachable, on a desktop whose IOMMU has 39 bits?
      dmaspace plan --memory 32G --devices 2 --bar 16G --phys-bits 46 --host vtd-39bit
  What do the TCE tables of a POWER guest take?
      dmaspace plan --machine pseries --memory 512G --maxmem 1T --devices 4
  Would a guest of 64 GiB fit this machine?
      dmaspace plan --memory 64G --host here
  For a script: the limit in KiB, as `ulimit -l` takes it
      dmaspace plan --memory 64G --json | jq '.budget.locked_memory.needed / 1024'

Exit status: 0 when the guest fits, 1 when it does not, 2 for bad input.";

/// QEMU's machines that devices are passed through to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Machine {
    /// A PC with PCI Express.
    #[default]
    Q35,
    /// A PC with PCI.
    Pc,
    /// A small PC, with pcie=on.
    Microvm,
    /// An Arm machine.
    Virt,
    /// A POWER partition.
    Pseries,
}

impl Machine {
    /// QEMU's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
            Self::Microvm => "microvm",
            Self::Virt => "virt",
            Self::Pseries => "pseries",
        }
    }

    /// The presets on which such a guest is at home, the best first.
    pub(crate) fn home(self) -> &'static [&'static str] {
        match self {
            Self::Q35 | Self::Pc | Self::Microvm => &["vtd"],
            Self::Virt => &["arm64-4k", "vtd"],
            Self::Pseries => &["powernv9-64k"],
        }
    }
}

/// The place of RAM that would reach into AMD's hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AmdHole {
    /// All RAM above 4 GiB is at 1 TiB: machines of QEMU 7.1 and newer, if the guest's processor is AMD's.
    Relocate,
    /// RAM goes on through the hole: older machines, and processors of others.
    Ignore,
}

fn containers(text: &str) -> Result<NonZeroU32, String> {
    const MOST: u32 = 256;
    let number = text.parse().ok().filter(|number: &NonZeroU32| number.get() <= MOST);
    number.ok_or_else(|| format!("expected a number from 1 to {MOST}"))
}

/// `8G`, `8192M`, `1T`, as bytes: whole pages of 4 KiB.
fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];
    let unit = text.chars().next_back().map(|unit| unit.to_ascii_uppercase());
    let shift = UNITS.iter().find(|(known, _)| unit == Some(*known)).map(|(_, shift)| *shift);
    let number = text.get(..text.len().saturating_sub(1)).and_then(|digits| digits.parse::<u64>().ok());
    let bytes = number.zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
    let whole = bytes.filter(|bytes| *bytes > 0 && PageSize::K4.divides(*bytes) && *bytes <= LARGEST);
    whole.ok_or_else(|| "expected a size with its unit, from 4K to 1024T, such as 512M, 8G or 1T".to_owned())
}

/// No machine of QEMU's has more memory.
const LARGEST: u64 = 1 << 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        let read = |text: &str| size(text).ok();
        assert_eq!(["4K", "512m", "8G", "1T"].map(read), [1 << 12, 512 << 20, 8 << 30, 1 << 40].map(Some));
        assert_eq!(["", "8", "G", "0G", "1K", "8GiB", "-1G", "1.5G", "2048T", "ü"].map(read), [None; 10]);
    }
}
