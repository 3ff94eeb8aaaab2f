//! The ACPI tables, by which the guest's kernel finds its interrupt controllers, the PCI bus, the serial console and
//! the memory module. The machine is *hardware-reduced*: it has none of the registers of old PCs.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, IO, If, Interrupt, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Return, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{self, AccessSize, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Result;
use crate::layout::{
    ACPI, CONFIG_ADDRESS, DEVICES, DEVICES_LAST, IO_APIC, LOCAL_APIC, MODULE, MODULE_IRQ, MODULE_STATUS, POWER, SERIAL,
    SERIAL_IRQ,
};

const MAKER: [u8; 6] = *b"DMASPC";
const TABLE: [u8; 8] = *b"VMMX8664";

/// The value of a sleep state that is the same for the machine's only state, "off".
const OFF: u8 = 5;
/// The status of a device that is there and works.
const PRESENT: u8 = 0xf;
/// FADT: the machine has neither VGA nor a clock in CMOS. Nor has it a keyboard controller, whose bit is absent.
const BOOT_ARCHITECTURE: u16 = (1 << 2) | (1 << 5);

/// Writes the tables of a machine with a memory module of `module` bytes, or without one if it is 0.
pub(crate) fn write(memory: &GuestMemoryMmap, module: u64) -> Result<()> {
    // The first table is the only one whose place is fixed, and it must come first: its size is known.
    let mut place = ACPI + Rsdp::len() as u64;
    let mut put = |table: &[u8]| -> Result<u64> {
        let at = place.next_multiple_of(16);
        memory.write_slice(table, GuestAddress(at))?;
        place = at + table.len() as u64;
        Ok(at)
    };
    let definitions = put(&definitions(module))?;
    let fixed = put(&bytes(&fixed(definitions)))?;
    let controllers = put(&bytes(&controllers()))?;
    let mut root = XSDT::new(MAKER, TABLE, 1);
    root.add_entry(fixed);
    root.add_entry(controllers);
    let root = put(&bytes(&root))?;
    memory.write_slice(&bytes(&Rsdp::new(MAKER, root)), GuestAddress(ACPI))?;
    Ok(())
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The FADT: how to switch off and to reset the machine.
fn fixed(definitions: u64) -> impl Aml {
    let power = GAS::new(gas::AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, POWER.into());
    let mut table = FADTBuilder::new(MAKER, TABLE, 1)
        .dsdt_64(definitions)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.sleep_control_reg = power;
    table.sleep_status_reg = power;
    table.reset_reg = power;
    table.reset_value = 1;
    table.finalize()
}

/// The MADT: one processor and one I/O APIC.
fn controllers() -> impl Aml {
    let mut table = MADT::new(MAKER, TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    table.add_structure(ProcessorLocalApic::new(0, 0, EnabledStatus::Enabled));
    table.add_structure(IoApic::new(0, IO_APIC, 0));
    table
}

/// The DSDT: the devices.
fn definitions(module: u64) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, 2, MAKER, TABLE, 1);
    table.append_slice(&bytes(&Name::new(Path::new("_S5_"), &Package::new(vec![&OFF, &OFF]))));
    table.append_slice(&bus());
    table.append_slice(&console());
    if module > 0 {
        table.append_slice(&memory_module(module));
        table.append_slice(&module_event());
    }
    table.as_slice().to_vec()
}

/// The PCI bus. Its kernel places the BARs in its memory range.
fn bus() -> Vec<u8> {
    let last = u32::try_from(DEVICES_LAST).unwrap_or(u32::MAX);
    let first = u32::try_from(DEVICES).unwrap_or(u32::MAX);
    bytes(&Device::new(
        Path::new("_SB_.PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, 0u16),
                    &IO::new(CONFIG_ADDRESS, CONFIG_ADDRESS, 1, 8),
                    &AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None),
                ]),
            ),
        ],
    ))
}

fn console() -> Vec<u8> {
    bytes(&Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![
                    &Interrupt::new(true, true, false, false, SERIAL_IRQ),
                    &IO::new(SERIAL, SERIAL, 1, 8),
                ]),
            ),
        ],
    ))
}

/// The memory module, which is there when its status register reads as 1.
fn memory_module(size: u64) -> Vec<u8> {
    let place: AddressSpace<u64> =
        AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, MODULE, MODULE + size - 1, None);
    bytes(&Device::new(
        Path::new("_SB_.MEM0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C80")),
            &Name::new(Path::new("_UID"), &ZERO),
            &OpRegion::new(Path::new("STAT"), OpRegionSpace::SystemIO, &MODULE_STATUS, &ONE),
            &Field::new(
                Path::new("STAT"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                vec![FieldEntry::Named(*b"PLUG", 8)],
            ),
            &Method::new(
                Path::new("_STA"),
                0,
                false,
                vec![
                    &If::new(&Equal::new(&Path::new("PLUG"), &ONE), vec![&Return::new(&PRESENT)]),
                    &Return::new(&ZERO),
                ],
            ),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&place])),
        ],
    ))
}

/// The device whose interrupt makes the kernel look at the memory module again.
fn module_event() -> Vec<u8> {
    bytes(&Device::new(
        Path::new("_SB_.EVNT"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(
                Path::new("_CRS"),
                &ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, MODULE_IRQ)]),
            ),
            &Method::new(Path::new("_EVT"), 1, true, vec![&Notify::new(&Path::new("\\_SB_.MEM0"), &ONE)]),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_found_from_the_first_and_has_a_right_checksum() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).expect("memory");
        write(&memory, 128 << 20).expect("written");
        let table = |at: u64| {
            let length: u32 = memory.read_obj(GuestAddress(at + 4)).expect("inside");
            let mut bytes = vec![0; length as usize];
            memory.read_slice(&mut bytes, GuestAddress(at)).expect("inside");
            assert_eq!(sum(&bytes), 0);
            bytes
        };
        let pointer = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));

        let mut first = [0; 36];
        memory.read_slice(&mut first, GuestAddress(ACPI)).expect("inside");
        assert_eq!((&first[..8], sum(&first)), (&b"RSD PTR "[..], 0));
        let root = table(pointer(&first, 24));
        let (fixed, controllers) = (table(pointer(&root, 36)), table(pointer(&root, 44)));
        assert_eq!((&root[..4], &fixed[..4], &controllers[..4]), (&b"XSDT"[..], &b"FACP"[..], &b"APIC"[..]));
        let devices = table(pointer(&fixed, 140));
        for name in [b"PCI0", b"COM1", b"MEM0", b"EVNT"] {
            assert!(devices.windows(4).any(|word| word == name), "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn without_a_module_no_table_speaks_of_one() {
        assert!(!definitions(0).windows(4).any(|word| word == b"MEM0"));
    }
}
