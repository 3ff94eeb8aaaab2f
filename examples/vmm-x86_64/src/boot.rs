//! The kernel, its initial RAM disk and its parameters, in the guest's RAM (linux: Documentation/arch/x86/boot.rst).

use std::fs::{self, File};
use std::path::Path;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Result;
use crate::arguments::Arguments;
use crate::layout::{ACPI, COMMAND_LINE, DEVICES, HIGH_RAM, LOW_RAM_END, ZERO_PAGE};

/// The offset of the 64-bit entry in a loaded kernel.
const ENTRY: u64 = 0x200;
/// The type of a loader that has no number of its own.
const OTHER_LOADER: u8 = 0xff;
/// The type of RAM in the kernel's map of the memory.
const RAM: u32 = 1;

/// Loads the files that the command line names. Returns the address at which the processor starts.
pub(crate) fn load(arguments: &Arguments, memory: &GuestMemoryMmap) -> Result<u64> {
    if arguments.memory > DEVICES {
        return Err(format!("at most {} MiB of RAM are supported", DEVICES >> 20).into());
    }
    let mut kernel = named(&arguments.kernel, File::open)?;
    let loaded = BzImage::load(memory, Some(GuestAddress(HIGH_RAM)), &mut kernel, None)?;
    let mut parameters = parameters(arguments.memory);
    parameters.hdr = loaded.setup_header.ok_or("the kernel has no header")?;
    parameters.hdr.type_of_loader = OTHER_LOADER;
    parameters.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE)?;
    memory.write_slice(format!("{}\0", arguments.append).as_bytes(), GuestAddress(COMMAND_LINE))?;
    if let Some(path) = &arguments.initrd {
        let initrd = named(path, fs::read)?;
        let at = place_of_initrd(arguments.memory, initrd.len() as u64).ok_or("the initrd is larger than the RAM")?;
        memory.write_slice(&initrd, GuestAddress(at))?;
        parameters.hdr.ramdisk_image = u32::try_from(at)?;
        parameters.hdr.ramdisk_size = u32::try_from(initrd.len())?;
    }
    memory.write_obj(parameters, GuestAddress(ZERO_PAGE))?;
    Ok(HIGH_RAM + ENTRY)
}

/// The parameters without the kernel's own header: the map of the RAM, and the address of the ACPI tables.
fn parameters(ram: u64) -> boot_params {
    let mut parameters = boot_params { acpi_rsdp_addr: ACPI, e820_entries: 2, ..Default::default() };
    let map = [(0, LOW_RAM_END), (HIGH_RAM, ram.saturating_sub(HIGH_RAM))];
    for (entry, (addr, size)) in parameters.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: RAM };
    }
    parameters
}

/// The last whole pages of the RAM.
fn place_of_initrd(ram: u64, size: u64) -> Option<u64> {
    let at = ram.checked_sub(size)? & !0xfff;
    if at > HIGH_RAM { Some(at) } else { None }
}

/// Does something with a file. The error names it.
fn named<'a, T>(path: &'a Path, act: impl FnOnce(&'a Path) -> std::io::Result<T>) -> Result<T> {
    act(path).map_err(|error| format!("{}: {error}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_of_all_ram_but_the_reserved_area() {
        let parameters = parameters(192 << 20);
        let entries = parameters.e820_table;
        let [low, high] = [entries[0], entries[1]];
        assert_eq!((low.addr, low.size), (0, 0xa_0000));
        assert_eq!((high.addr, high.size), (0x10_0000, (192 << 20) - 0x10_0000));
        assert_eq!(parameters.e820_entries, 2);
    }

    #[test]
    fn an_initrd_ends_within_the_last_page_of_the_ram() {
        assert_eq!(place_of_initrd(64 << 20, 0x1800), Some((64 << 20) - 0x2000));
        assert_eq!(place_of_initrd(64 << 20, 64 << 20), None);
        assert_eq!(place_of_initrd(64 << 20, 65 << 20), None);
    }

    #[test]
    fn a_file_that_is_no_kernel_is_an_error() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)]).expect("memory");
        let line = ["--kernel", "/proc/self/exe", "--memory", "16"].map(str::to_owned);
        let arguments = Arguments::parse(line.into_iter()).expect("right").expect("a kernel");
        assert!(load(&arguments, &memory).is_err());
    }
}
