//! An example: a small VMM for PCs. Its guest is Linux with one processor, RAM, a serial console, ACPI tables and one
//! PCI device of the host, which does DMA to the guest's RAM through a [`Domain`](dmaspace::Domain).
//!
//! The parts:
//! - `memory`: RAM and device memory in the guest's address space; RAM in the devices' address space.
//! - `assigned`: the device of the host; `view`: the configuration space that the guest sees of it; `msix`: its
//!   interrupts.
//! - `pci`: the bus with a host bridge and the device.
//! - `boot`, `acpi`: the kernel, its parameters and its tables. `processor`: the registers at the start.
//! - `machine`: all of it together, and the loop that runs the processor. `arguments`: the command line.

#[cfg(target_arch = "x86_64")]
mod acpi;
#[cfg(target_arch = "x86_64")]
mod arguments;
#[cfg(target_arch = "x86_64")]
mod assigned;
#[cfg(target_arch = "x86_64")]
mod boot;
#[cfg(target_arch = "x86_64")]
mod layout;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod memory;
#[cfg(target_arch = "x86_64")]
mod msix;
#[cfg(target_arch = "x86_64")]
mod pci;
#[cfg(target_arch = "x86_64")]
mod processor;
#[cfg(target_arch = "x86_64")]
mod view;

use std::error::Error;
use std::process::ExitCode;

/// The result of anything that ends the VMM if it fails.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm-x86_64: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn run() -> Result<()> {
    match arguments::Arguments::parse(std::env::args().skip(1))? {
        Some(arguments) => machine::Machine::new(&arguments)?.run(),
        None => {
            println!("{}", arguments::USAGE);
            Ok(())
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run() -> Result<()> {
    Err("this VMM is for x86_64".into())
}
