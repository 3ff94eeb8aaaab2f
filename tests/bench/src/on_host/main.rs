//! The costs of dmaspace beside those of the kernel: a loop of raw calls and the same work through the library, in
//! turns, in an emulated host, whose time advances by 8 ns with each instruction (`-icount`). `ci/bench hosts` runs it.
//!
//! It prints a line for each comparison: `cost`, the work, and the instructions of one repetition, of the raw calls and
//! of the library, separated by tabs.

#[cfg(target_arch = "x86_64")]
mod boot;
mod compare;
#[cfg(target_arch = "powerpc64")]
mod entries;
mod late;
#[cfg(target_arch = "x86_64")]
mod mappings;
mod raw;

use std::process::ExitCode;
use std::sync::Arc;

use dmaspace::{BackendKind, Facts, Host, LinuxDoor, OpenRequest, Opened};
use dmaspace_core::HostMemory;
use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap};

use crate::compare::Tried;
use crate::raw::Raw;

/// The guest's memory.
const RAM: u64 = 64 << 20;
const PAGE: u64 = 0x1000;

/// A space with a device on this host, the raw calls on its descriptor, and memory for both.
pub(crate) struct Bench {
    pub(crate) opened: Opened,
    pub(crate) raw: Raw,
    pub(crate) ram: HostMemory,
    pub(crate) address: u64,
}

impl Bench {
    /// Opens the host's device number `device`, each of which is in a group of its own.
    fn open(backend: BackendKind, device: usize) -> Tried<Self> {
        let door = Arc::new(LinuxDoor::new());
        let facts = Facts::of_this_host(&*door)?;
        let devices = std::env::var("EMULATED_DEVICES")?;
        let device = devices.split_whitespace().nth(device).ok_or("the host names no such device")?;
        let request = OpenRequest::device(device.parse()?).with_backend(backend);
        let opened = Host::new(door.clone(), facts).open(&request)?;
        let raw = Raw::of(opened.space.descriptor()?, backend)?;
        let region: GuestRegionMmap<()> = GuestRegionMmap::from_range(GuestAddress(0), usize::try_from(RAM)?, None)?;
        let ram = HostMemory::of_region(&region).ok_or("the region is empty")?;
        let address = region.get_host_address(vm_memory::MemoryRegionAddress(0))?.addr() as u64;
        Ok(Self { opened, raw, ram, address })
    }

    /// The host address of the page for repetition `n`; two in a row never continue each other.
    pub(crate) fn page(&self, n: u64) -> u64 {
        self.address + offset(n)
    }

    /// The same page as memory of the library.
    pub(crate) fn memory(&self, n: u64) -> Tried<HostMemory> {
        Ok(self.ram.slice(offset(n), PAGE).ok_or("inside the RAM")?)
    }
}

/// The offset in the RAM of the page for repetition `n`.
pub(crate) fn offset(n: u64) -> u64 {
    (n * 5 * PAGE) % RAM
}

fn main() -> ExitCode {
    let done = measure();
    if let Err(error) = &done {
        eprintln!("dmaspace-bench-on-host: {error}");
    }
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(target_arch = "x86_64")]
fn measure() -> Tried {
    measure_mappings(BackendKind::Type1)?;
    if std::path::Path::new("/dev/iommu").exists() {
        measure_mappings(BackendKind::Iommufd)?;
    }
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn measure_mappings(backend: BackendKind) -> Tried {
    let bench = Bench::open(backend, 0)?;
    mappings::measure(&bench)?;
    boot::measure(&bench)?;
    late::measure(&Bench::open(backend, 1)?, &bench)
}

#[cfg(target_arch = "powerpc64")]
fn measure() -> Tried {
    let bench = Bench::open(BackendKind::Spapr, 0)?;
    entries::measure(&bench)?;
    late::measure(&Bench::open(BackendKind::Spapr, 1)?, &bench)
}
