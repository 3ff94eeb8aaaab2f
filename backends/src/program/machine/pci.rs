//! A PCI function in more detail: its BARs, the table of its interrupts, its header.

use dmaspace::pci::PciAddress;

use crate::program::machine::Machine;

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its memory BARs.
    pub(crate) bars: Vec<Bar>,
    /// The table of its interrupts.
    pub(crate) msix: Option<Table>,
    /// `true` if the capabilities could be read, which only root may.
    pub(crate) has_capabilities: bool,
    /// The type in its header: 0 for an endpoint, 1 for a bridge.
    pub(crate) header: u8,
}

/// A BAR in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) index: usize,
    /// Its address on the host.
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// A table of MSI-X.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// The number of the BAR.
    pub(crate) bar: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The BARs of a function. The next lines of `resource` are its ROM and windows of bridges.
const BARS: usize = 6;
/// The flag of a BAR in memory (linux: include/linux/ioport.h, IORESOURCE_MEM).
const MEMORY: u64 = 0x200;
/// The bytes of the configuration space that everyone may read.
const PUBLIC: usize = 64;

impl Machine {
    /// The function at an address.
    pub(crate) fn function(&self, address: PciAddress) -> Function {
        let at = format!("sys/bus/pci/devices/{address}");
        let resource = self.root.text(format!("{at}/resource")).unwrap_or_default();
        let config = self.root.bytes(format!("{at}/config")).unwrap_or_default();
        Function {
            bars: bars(&resource),
            msix: msix(&config),
            has_capabilities: config.len() > PUBLIC,
            header: config.get(0x0e).copied().unwrap_or_default() & 0x7f,
        }
    }
}

fn bars(resource: &str) -> Vec<Bar> {
    let lines = resource.lines().take(BARS).enumerate();
    lines.filter_map(|(index, line)| bar(index, line)).collect()
}

/// A line of `resource`: first address, last address, flags.
fn bar(index: usize, line: &str) -> Option<Bar> {
    let mut numbers = line.split_whitespace().map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let (start, last, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let len = last.checked_sub(start)?.checked_add(1)?;
    let is_memory = flags & MEMORY != 0 && last != 0;
    is_memory.then_some(Bar { index, start, len })
}

/// The table of MSI-X, from the capabilities of the configuration space.
fn msix(config: &[u8]) -> Option<Table> {
    const HAS_CAPABILITIES: u8 = 0x10;
    const MSIX: u8 = 0x11;
    /// As many as fit.
    const MOST: usize = 48;
    let byte = |at: usize| config.get(at).copied();
    if byte(0x06)? & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = usize::from(byte(0x34)? & 0xfc);
    for _ in 0..MOST {
        if at < PUBLIC {
            return None;
        }
        if byte(at)? == MSIX {
            let control = u16::from_le_bytes([byte(at + 2)?, byte(at + 3)?]);
            let table = u32::from_le_bytes([byte(at + 4)?, byte(at + 5)?, byte(at + 6)?, byte(at + 7)?]);
            let entries = u64::from(control & 0x7ff) + 1;
            let bar = usize::try_from(table & 7).ok()?;
            return Some(Table { bar, offset: u64::from(table & !7), len: entries * 16 });
        }
        at = usize::from(byte(at + 1)? & 0xfc);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_read_from_resource() {
        let resource = "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n\
                        0x000000e000000000 0x000000e00fffffff 0x000000000014220c\n\
                        0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                        0x000000000000e000 0x000000000000e07f 0x0000000000040101\n\
                        0x0000000000000000 0xffffffffffffffff 0x0000000000000200\nnonsense\n";
        let found = bars(resource);
        assert_eq!(found.iter().map(|bar| (bar.index, bar.len)).collect::<Vec<_>>(), [(0, 16 << 20), (1, 256 << 20)]);
    }

    #[test]
    fn the_table_of_msix_is_found_and_loops_end() {
        let mut config = vec![0; 256];
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x01, 0x50]);
        config[0x50..0x58].copy_from_slice(&[0x11, 0x00, 0x04, 0x80, 0x03, 0x20, 0x00, 0x00]);
        assert_eq!(msix(&config), Some(Table { bar: 3, offset: 0x2000, len: 80 }));
        config[0x50] = 0x05;
        config[0x51] = 0x40;
        assert_eq!(msix(&config), None);
        assert_eq!(msix(&config[..64]), None);
        assert_eq!(msix(&[]), None);
    }
}
