//! The configuration space that the guest sees of a device: the device's own, with a few bits replaced.
//!
//! VFIO virtualises most registers already: the guest may write to BARs and to the command register, and reads the
//! values that it wrote (linux: drivers/vfio/pci/vfio_pci_config.c). The VMM replaces the rest:
//! - The guest has MSI-X only. MSI is removed from the list of capabilities, and the interrupt pin is 0.
//! - The bits that enable and mask MSI-X are the VMM's, since VFIO enables it when it is given eventfds.
//! - The device has no ROM.

/// The bytes of a configuration space that configuration mechanism #1 reaches.
pub(crate) const SIZE: usize = 256;

/// The offsets of registers (linux: include/uapi/linux/pci_regs.h).
pub(crate) const COMMAND: usize = 0x04;
pub(crate) const BARS: usize = 0x10;
const ROM: usize = 0x30;
const CAPABILITIES: usize = 0x34;
const PIN: usize = 0x3d;

/// The numbers of capabilities.
const MSI: u8 = 0x05;
const MSIX: u8 = 0x11;

/// The bits of MSI-X's control register, in its second byte.
const MSIX_ENABLE: u8 = 1 << 7;
const MSIX_MASK: u8 = 1 << 6;

/// The MSI-X capability of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Msix {
    /// The number of vectors.
    pub(crate) vectors: u16,
    /// The BAR with the table.
    pub(crate) bar: u32,
    /// The offset of the table in its BAR.
    pub(crate) table: u64,
    /// The offset of the byte that enables it.
    control: usize,
}

/// The bits of a configuration space that are the VMM's.
#[derive(Debug)]
pub(crate) struct View {
    ours: [u8; SIZE],
    values: [u8; SIZE],
    msix: Option<Msix>,
}

impl View {
    /// The view of a device with this configuration space.
    pub(crate) fn of(device: &[u8; SIZE]) -> Self {
        let mut view = Self { ours: [0; SIZE], values: [0; SIZE], msix: None };
        view.replace(PIN, 0xff, 0);
        for byte in ROM..ROM + 4 {
            view.replace(byte, 0xff, 0);
        }
        let mut link = CAPABILITIES;
        let mut at = usize::from(byte(device, link) & !3);
        // No more capabilities fit, should the list be a circle.
        for _ in 0..SIZE / 4 {
            if at < 0x40 {
                break;
            }
            let next = byte(device, at + 1) & !3;
            match byte(device, at) {
                MSI => view.replace(link, 0xff, next),
                id => {
                    if id == MSIX {
                        view.add_msix(device, at);
                    }
                    link = at + 1;
                }
            }
            at = next.into();
        }
        view
    }

    fn add_msix(&mut self, device: &[u8; SIZE], at: usize) {
        let control = u16::from_le_bytes([byte(device, at + 2), byte(device, at + 3)]);
        let table = u32::from_le_bytes([4, 5, 6, 7].map(|offset| byte(device, at + offset)));
        self.replace(at + 3, MSIX_ENABLE | MSIX_MASK, 0);
        let (bar, table) = (table & 7, (table & !7).into());
        self.msix = Some(Msix { vectors: (control & 0x7ff) + 1, bar, table, control: at + 3 });
    }

    /// Makes bits of a byte the VMM's.
    fn replace(&mut self, at: usize, bits: u8, value: u8) {
        if let (Some(ours), Some(old)) = (self.ours.get_mut(at), self.values.get_mut(at)) {
            *ours |= bits;
            *old = value;
        }
    }

    /// The MSI-X capability, if the device has one.
    pub(crate) fn msix(&self) -> Option<Msix> {
        self.msix
    }

    /// Returns whether the guest wants interrupts delivered by MSI-X.
    pub(crate) fn is_msix_enabled(&self) -> bool {
        self.msix.is_some_and(|msix| byte(&self.values, msix.control) & MSIX_ENABLE != 0)
    }

    /// Returns whether the guest has masked all vectors at once.
    pub(crate) fn is_msix_masked(&self) -> bool {
        self.msix.is_some_and(|msix| byte(&self.values, msix.control) & MSIX_MASK != 0)
    }

    /// Replaces the VMM's bits in bytes that were read from the device at `offset`.
    pub(crate) fn show(&self, offset: usize, bytes: &mut [u8]) {
        let ours = self.ours.iter().zip(&self.values).skip(offset);
        for (byte, (ours, value)) in bytes.iter_mut().zip(ours) {
            *byte = (*byte & !ours) | (value & ours);
        }
    }

    /// Keeps the VMM's bits of a write by the guest. Returns `false` if the write has none of them.
    pub(crate) fn keep(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if let Some(msix) = self.msix {
            let written = msix.control.checked_sub(offset).and_then(|index| bytes.get(index));
            if let Some(written) = written {
                self.replace(msix.control, 0, written & (MSIX_ENABLE | MSIX_MASK));
            }
        }
        self.ours.iter().skip(offset).take(bytes.len()).any(|ours| *ours != 0)
    }
}

fn byte(bytes: &[u8; SIZE], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device with a pin and three capabilities: power management, MSI and an MSI-X of 65 vectors, whose table is at
    /// 0x2000 of BAR 0.
    fn device() -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[PIN] = 1;
        bytes[ROM] = 1;
        bytes[CAPABILITIES] = 0x60;
        bytes[0x60..0x62].copy_from_slice(&[0x01, 0x50]);
        bytes[0x50..0x52].copy_from_slice(&[MSI, 0x40]);
        bytes[0x40..0x48].copy_from_slice(&[MSIX, 0, 64, 0x80, 0, 0x20, 0, 0]);
        bytes
    }

    fn shown(view: &View) -> [u8; SIZE] {
        let mut bytes = device();
        view.show(0, &mut bytes);
        bytes
    }

    #[test]
    fn a_guest_sees_no_pin_no_rom_and_no_msi() {
        let seen = shown(&View::of(&device()));
        assert_eq!((seen[PIN], seen[ROM], seen[CAPABILITIES]), (0, 0, 0x60));
        assert_eq!(seen[0x61], 0x40);
    }

    #[test]
    fn msi_at_the_head_of_the_list_is_removed_too() {
        let mut device = device();
        device[CAPABILITIES] = 0x50;
        let view = View::of(&device);
        let mut pointer = [0x50];
        view.show(CAPABILITIES, &mut pointer);
        assert_eq!(pointer, [0x40]);
    }

    #[test]
    fn a_circle_of_capabilities_ends() {
        let mut device = device();
        device[0x41] = 0x60;
        assert!(View::of(&device).msix().is_some());
    }

    #[test]
    fn msix_is_enabled_and_masked_by_the_guest_alone() {
        let mut view = View::of(&device());
        let msix = view.msix().expect("it has MSI-X");
        assert_eq!((msix.vectors, msix.bar, msix.table), (65, 0, 0x2000));
        assert!(!view.is_msix_enabled(), "VFIO has enabled it, the guest has not");

        assert!(view.keep(0x42, &[64, 0xc0]));
        assert!(view.is_msix_enabled() && view.is_msix_masked());
        assert_eq!(shown(&view)[0x42..0x44], [64, 0xc0]);
        assert!(view.keep(0x40, &[0, 0, 0, 0x80]));
        assert!(view.is_msix_enabled() && !view.is_msix_masked());
    }

    #[test]
    fn writes_to_other_registers_are_the_devices() {
        let mut view = View::of(&device());
        assert!(!view.keep(COMMAND, &[6, 0]));
        assert!(!view.keep(BARS, &[0; 8]));
        assert!(view.keep(ROM, &[0xff; 4]));
    }
}
