//! `dmaspace doctor`: the reasons why a device cannot be passed through, or would fail later, with the commands
//! to type.

mod device;
mod group;
mod kernel;
mod limits;
mod own;
mod remark;
mod report;

use std::path::PathBuf;

use clap::Args;
use dmaspace::pci::PciAddress;

use crate::program::explain::Code;
use crate::program::failure::{Failure, Status};
use crate::program::machine::{Machine, Unseen};
use crate::program::root::Root;
use remark::{Remark, Remarks, Weight};

/// Say why a device cannot be passed through, or why it would fail later, and name the commands that help.
///
/// It looks at the device, its IOMMU group and its neighbours there, reserved and firmware's ranges, drivers, modules,
/// nodes and the right to open them, limits, BARs, KVM and the kernel's parameters, and changes nothing. Any user may
/// run it; the things that only root can see are named at the end.
#[derive(Debug, Args)]
#[command(after_long_help = AFTER)]
pub(crate) struct Doctor {
    /// The device, as lspci -D names it: 0000:01:00.0.
    #[arg(value_name = "BDF")]
    pub(crate) device: PciAddress,

    /// Another machine's files: a folder, or a tar of its /sys and /proc (and /dev); `-` for a tar on the standard
    /// input.
    #[arg(long, value_name = "DIR|TAR")]
    pub(crate) root: Option<PathBuf>,

    /// The memory of the guest that is to have the device: 16G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  Can this graphics card be given to a guest of 16 GiB?
      dmaspace doctor 0000:01:00.0 --memory 16G
  Why not? On a machine whose files were sent in:
      dmaspace doctor 0000:01:00.0 --root host.tar
  What does the word in brackets mean?
      dmaspace explain group-shared

Exit status: 0 if the device can be passed through, 1 if something stands in the way, 2 for bad input.";

/// A diagnosis.
pub(crate) struct Diagnosis {
    pub(crate) device: PciAddress,
    pub(crate) remarks: Vec<Remark>,
    pub(crate) unseen: Vec<Unseen>,
}

impl Diagnosis {
    /// Returns whether nothing stands in the way.
    fn is_good(&self) -> bool {
        self.remarks.iter().all(|remark| remark.weight != Weight::No)
    }
}

/// Diagnoses, and returns the text for the standard output.
///
/// # Errors
/// Files that cannot be read.
pub(crate) fn run(arguments: &Doctor) -> Result<(String, Status), Failure> {
    let machine = Machine::of(Root::of(arguments.root.as_deref())?)?;
    let diagnosis = diagnose(&machine, arguments.device, arguments.memory);
    let status = if diagnosis.is_good() { Status::Good } else { Status::Refused };
    let text = if arguments.json { report::json(&machine, &diagnosis)? } else { report::text(&machine, &diagnosis) };
    Ok((text, status))
}

/// Examines a device for a guest with so much memory.
pub(crate) fn diagnose(machine: &Machine, device: PciAddress, memory: Option<u64>) -> Diagnosis {
    let mut remarks = Remarks::default();
    let mut unseen = machine.unseen.clone();
    match machine.facts.devices.get(&device) {
        Some(found) if device::is_bridge(machine, found) => {
            let said = "The device is a bridge. VFIO hands out endpoints only; name the device behind it.";
            remarks.no(Code::Bridge, said, ["lspci -tv".to_owned()]);
        }
        Some(found) => {
            kernel::examine(machine, found, &mut remarks);
            group::examine(machine, found, &mut remarks);
            own::examine(machine, found, &mut remarks);
            device::examine(machine, found, &mut remarks, &mut unseen);
            limits::examine(machine, found, memory, &mut remarks);
        }
        None => no_device(machine, device, &mut remarks),
    }
    Diagnosis { device, remarks: remarks.in_order(), unseen }
}

fn no_device(machine: &Machine, device: PciAddress, remarks: &mut Remarks) {
    let distance = |other: &&PciAddress| strsim::damerau_levenshtein(&other.to_string(), &device.to_string());
    let nearest = machine.facts.devices.keys().min_by_key(distance);
    let meant = nearest.map_or_else(String::new, |nearest| format!(" The nearest address is {nearest}."));
    remarks.no(Code::NoDevice, format!("There is no PCI device {device}.{meant}"), ["lspci -D".to_owned()]);
}

/// `4096`, `512M`, `16G`, `1T`.
fn size(text: &str) -> Result<u64, String> {
    let amount = text.trim_end_matches("iB").trim_end_matches('B');
    let shift = match amount.chars().next_back() {
        Some('K' | 'k') => 10,
        Some('M' | 'm') => 20,
        Some('G' | 'g') => 30,
        Some('T' | 't') => 40,
        _ => 0,
    };
    let digits = if shift > 0 { amount.trim_end_matches(|unit: char| !unit.is_ascii_digit()) } else { amount };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| "expected a size, such as 512M or 16G".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        let read = |text: &str| size(text).ok();
        assert_eq!(["4096", "4K", "16G", "16GiB", "1T"].map(read), [4096, 4096, 16 << 30, 16 << 30, 1 << 40].map(Some));
        assert_eq!(["", "G", "-1G", "0", "1.5G", "99999999999T"].map(read), [None; 6]);
    }
}
