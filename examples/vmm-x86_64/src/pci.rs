//! The PCI bus: configuration mechanism #1, a host bridge in slot 0 and the device in slot 1.

use crate::Result;
use crate::assigned::Assigned;
use crate::layout::{CONFIG_ADDRESS, CONFIG_DATA};

/// The start of the host bridge's configuration space: QEMU's numbers of a generic bridge (1b36:0008), and its class.
const BRIDGE: [u8; 12] = [0x36, 0x1b, 0x08, 0x00, 0, 0, 0, 0, 0, 0x00, 0x00, 0x06];

/// The bus.
#[derive(Debug)]
pub(crate) struct Bus {
    /// The address register.
    address: u32,
    device: Option<Assigned>,
}

/// A place in the configuration space of a function.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    slot: u32,
    offset: usize,
}

impl Bus {
    pub(crate) fn new(device: Option<Assigned>) -> Self {
        Self { address: 0, device }
    }

    /// The device, for accesses to its BARs.
    pub(crate) fn device(&mut self) -> Option<&mut Assigned> {
        self.device.as_mut()
    }

    /// The device, which leaves the bus.
    pub(crate) fn take_device(&mut self) -> Option<Assigned> {
        self.device.take()
    }

    /// Reads one of the mechanism's ports.
    pub(crate) fn read(&self, port: u16, into: &mut [u8]) -> Result<()> {
        into.fill(0xff);
        if port == CONFIG_ADDRESS {
            copy(&self.address.to_le_bytes(), into);
        }
        match (place(self.address, port), &self.device) {
            (Some(Place { slot: 0, offset }), _) => {
                into.fill(0);
                copy(BRIDGE.get(offset..).unwrap_or_default(), into);
            }
            (Some(Place { slot: 1, offset }), Some(device)) => device.read_configuration(offset, into)?,
            _ => {}
        }
        Ok(())
    }

    /// Writes to one of the mechanism's ports.
    pub(crate) fn write(&mut self, port: u16, from: &[u8]) -> Result<()> {
        if port == CONFIG_ADDRESS {
            // Only accesses of 32 bits reach the register.
            self.address = from.try_into().map_or(self.address, u32::from_le_bytes);
            return Ok(());
        }
        match (place(self.address, port), &mut self.device) {
            (Some(Place { slot: 1, offset }), Some(device)) => device.write_configuration(offset, from),
            _ => Ok(()),
        }
    }
}

/// The place that the address register and a port of the data register select. `None` for other buses and functions.
fn place(address: u32, port: u16) -> Option<Place> {
    let byte = port.checked_sub(CONFIG_DATA).filter(|byte| *byte < 4)?;
    let (is_enabled, others) = (address >> 31 == 1, address & 0x7fff_0700);
    if !is_enabled || others != 0 {
        return None;
    }
    Some(Place { slot: address >> 11 & 0x1f, offset: (address & 0xfc) as usize + usize::from(byte) })
}

fn copy(from: &[u8], into: &mut [u8]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bus: &mut Bus, address: u32, port: u16) -> u32 {
        bus.write(CONFIG_ADDRESS, &address.to_le_bytes()).expect("no device can fail");
        let mut bytes = [0; 4];
        bus.read(port, &mut bytes).expect("no device can fail");
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_kernel_recognises_the_mechanism_and_the_bridge() {
        let mut bus = Bus::new(None);
        assert_eq!(read(&mut bus, 0x8000_0000, CONFIG_ADDRESS), 0x8000_0000);
        bus.write(CONFIG_ADDRESS + 3, &[1]).expect("ignored");
        assert_eq!(bus.address, 0x8000_0000);
        assert_eq!(read(&mut bus, 0x8000_0000, CONFIG_DATA), 0x0008_1b36);
        assert_eq!(read(&mut bus, 0x8000_0008, CONFIG_DATA) >> 16, 0x0600);
        assert_eq!(read(&mut bus, 0x8000_0010, CONFIG_DATA), 0);
    }

    #[test]
    fn empty_slots_read_as_ones() {
        let mut bus = Bus::new(None);
        for address in [0, 0x8000_0800, 0x8000_1000, 0x8001_0000, 0x8000_0100] {
            assert_eq!(read(&mut bus, address, CONFIG_DATA), 0xffff_ffff, "{address:#x}");
        }
    }

    #[test]
    fn a_place_is_a_slot_and_a_byte() {
        assert_eq!(place(0x8000_0804, CONFIG_DATA + 2), Some(Place { slot: 1, offset: 6 }));
        assert_eq!(place(0x8000_0804, CONFIG_DATA + 4), None);
    }
}
