//! The device of the host: its configuration space, its BARs and its interrupts, for the guest.

use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace::device::{Device, IrqIndex, Region, RegionArea};
use dmaspace::{Domain, HostMemory};
use kvm_ioctls::VmFd;

use crate::Result;
use crate::memory::Slots;
use crate::msix::{Interrupts, Table};
use crate::view::{self, View};

/// VFIO's number of the configuration space among the regions of a PCI device.
const CONFIGURATION: u32 = 7;
/// The bit of the command register by which the BARs respond.
const MEMORY: u16 = 1 << 1;
/// The smallest piece of a BAR that the guest can reach without the VMM.
const PAGE: u64 = 4096;

/// A device of the host that the guest uses.
#[derive(Debug)]
pub(crate) struct Assigned {
    device: Device,
    configuration: Region,
    view: View,
    bars: Vec<Bar>,
    slots: Arc<Slots>,
    table: Table,
    interrupts: Interrupts,
    /// VFIO delivers the device's interrupts.
    is_delivering: bool,
}

/// A memory BAR.
#[derive(Debug)]
struct Bar {
    region: Region,
    /// Its guest address. `None` while it does not respond.
    at: Option<u64>,
    /// The parts that the guest reaches without the VMM: their offsets and their memory.
    parts: Vec<(u64, HostMemory)>,
    /// The slots of the parts while the BAR responds.
    slots: Vec<u32>,
}

impl Bar {
    /// The offset of a guest address, if the BAR responds to it.
    fn offset_of(&self, at: u64) -> Option<u64> {
        at.checked_sub(self.at?).filter(|offset| *offset < self.region.size)
    }
}

impl Assigned {
    /// Prepares a device that is in the guest's domain.
    pub(crate) fn new(device: Device, vm: Arc<VmFd>, slots: Arc<Slots>) -> Result<Self> {
        let configuration = device.region(CONFIGURATION)?;
        // Neither DMA nor memory until the guest's kernel has placed the BARs.
        device.write(&configuration, view::COMMAND as u64, &[0; 2])?;
        device.write(&configuration, view::BARS as u64, &[0; 24])?;
        let mut bytes = [0; view::SIZE];
        device.read(&configuration, 0, &mut bytes)?;
        let view = View::of(&bytes);
        let vectors = view.msix().map_or(0, |msix| msix.vectors);
        let table = Table::new(vectors);
        let mut bars = Vec::new();
        for index in 0..6 {
            let region = device.region(index)?;
            let trapped = view.msix().filter(|msix| msix.bar == index).map(|msix| (msix.table, table.len()));
            let mut parts = Vec::new();
            for area in parts_without(&region, trapped) {
                parts.push((area.offset, device.map(&region, area)?));
            }
            bars.push(Bar { region, at: None, parts, slots: Vec::new() });
        }
        let interrupts = Interrupts::new(vm, vectors)?;
        Ok(Self { device, configuration, view, bars, slots, table, interrupts, is_delivering: false })
    }

    /// Reads the configuration space.
    pub(crate) fn read_configuration(&self, offset: usize, into: &mut [u8]) -> Result<()> {
        self.device.read(&self.configuration, offset as u64, into)?;
        self.view.show(offset, into);
        Ok(())
    }

    // docs: configuration
    /// Writes to the configuration space.
    pub(crate) fn write_configuration(&mut self, offset: usize, from: &[u8]) -> Result<()> {
        if self.view.keep(offset, from) {
            return self.update_interrupts();
        }
        // The guest must not reach a BAR that does not respond, or that is elsewhere.
        let moves_bars = offset < view::BARS + 24 && offset + from.len() > view::COMMAND;
        if moves_bars {
            self.remove_bars()?;
        }
        self.device.write(&self.configuration, offset as u64, from)?;
        if moves_bars {
            self.place_bars()?;
        }
        Ok(())
    }
    // docs: end

    /// Removes the BARs from the guest's address space.
    fn remove_bars(&mut self) -> Result<()> {
        for bar in &mut self.bars {
            bar.at = None;
            for slot in bar.slots.drain(..) {
                self.slots.remove(slot)?;
            }
        }
        Ok(())
    }

    /// Adds the BARs to the guest's address space, where its kernel has placed them.
    fn place_bars(&mut self) -> Result<()> {
        let mut header = [0; view::BARS + 24];
        self.device.read(&self.configuration, 0, &mut header)?;
        for (bar, at) in self.bars.iter_mut().zip(places(&header)) {
            bar.at = at.filter(|at| *at != 0 && bar.region.size > 0);
            let Some(at) = bar.at else { continue };
            for (offset, memory) in &bar.parts {
                bar.slots.push(self.slots.add(at + offset, memory.clone())?);
            }
        }
        Ok(())
    }

    /// Reads at a guest address outside of RAM. Returns `false` if no BAR is there.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> Result<bool> {
        let Some((bar, offset)) = self.bar_at(at) else { return Ok(false) };
        match self.place_in_table(bar, offset) {
            Some(place) => self.table.read(place, into),
            None => self.device.read(&bar.region, offset, into)?,
        }
        Ok(true)
    }

    /// Writes at a guest address outside of RAM. Returns `false` if no BAR is there.
    pub(crate) fn write(&mut self, at: u64, from: &[u8]) -> Result<bool> {
        let Some((bar, offset)) = self.bar_at(at) else { return Ok(false) };
        match self.place_in_table(bar, offset) {
            Some(place) => {
                self.table.write(place, from);
                self.update_interrupts()?;
            }
            None => self.device.write(&bar.region, offset, from)?,
        }
        Ok(true)
    }

    fn bar_at(&self, at: u64) -> Option<(&Bar, u64)> {
        self.bars.iter().find_map(|bar| Some((bar, bar.offset_of(at)?)))
    }

    /// The place of an offset of a BAR in the MSI-X table.
    fn place_in_table(&self, bar: &Bar, offset: u64) -> Option<usize> {
        let msix = self.view.msix().filter(|msix| msix.bar == bar.region.index)?;
        let place = offset.checked_sub(msix.table).filter(|place| *place < self.table.len())?;
        usize::try_from(place).ok()
    }

    // docs: enabling
    /// Brings VFIO and KVM up to date with the guest's MSI-X capability and table.
    fn update_interrupts(&mut self) -> Result<()> {
        let is_enabled = self.view.is_msix_enabled();
        if is_enabled && !self.is_delivering {
            self.device.deliver_irqs(IrqIndex::MSIX, 0, &self.interrupts.eventfds())?;
        } else if !is_enabled && self.is_delivering {
            self.device.disable_irqs(IrqIndex::MSIX)?;
        }
        self.is_delivering = is_enabled;
        let mut messages = self.table.messages();
        if !is_enabled || self.view.is_msix_masked() {
            messages.fill(None);
        }
        self.interrupts.route(messages)
    }
    // docs: end

    /// Returns the device to the host.
    pub(crate) fn remove(mut self, domain: &Domain) -> Result<()> {
        self.remove_bars()?;
        // A device cannot leave while a part of it is mapped.
        self.bars.clear();
        domain.remove(self.device)?;
        Ok(())
    }
}

/// The places of the six BARs in a configuration header. `None` for a BAR of ports, the upper half of another BAR, and
/// all of them while the device's memory is disabled.
fn places(header: &[u8; view::BARS + 24]) -> [Option<u64>; 6] {
    let mut places = [None; 6];
    if word(header, view::COMMAND) & u32::from(MEMORY) == 0 {
        return places;
    }
    let mut is_upper_half = false;
    for (index, place) in places.iter_mut().enumerate() {
        let low = word(header, view::BARS + 4 * index);
        let is_64_bits = low & 0b111 == 0b100;
        if is_upper_half {
            is_upper_half = false;
        } else if low & 1 == 0 {
            let high = if is_64_bits { word(header, view::BARS + 4 * index + 4) } else { 0 };
            *place = Some((u64::from(high) << 32) | u64::from(low & !0xf));
            is_upper_half = is_64_bits;
        }
    }
    places
}

/// The word at an offset of a configuration header.
fn word(header: &[u8], at: usize) -> u32 {
    let bytes = header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}

/// The whole pages of a region that can be mapped and have no byte of `trapped`, which is an offset and a length.
fn parts_without(region: &Region, trapped: Option<(u64, u64)>) -> Vec<RegionArea> {
    let (first, end) = trapped.map_or((u64::MAX, u64::MAX), |(offset, len)| (offset, offset.saturating_add(len)));
    let mut parts = Vec::new();
    for area in &region.mappable {
        let area_end = area.offset + area.len.get();
        parts.extend(whole_pages(area.offset, area_end.min(first)));
        parts.extend(whole_pages(area.offset.max(end), area_end));
    }
    parts
}

/// The whole pages between two offsets.
fn whole_pages(first: u64, end: u64) -> Option<RegionArea> {
    let offset = first.checked_next_multiple_of(PAGE)?;
    let len = NonZeroU64::new((end / PAGE * PAGE).checked_sub(offset)?)?;
    Some(RegionArea { offset, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u16, bars: [u32; 6]) -> [u8; view::BARS + 24] {
        let mut header = [0; view::BARS + 24];
        header[view::COMMAND..view::COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        for (index, bar) in bars.into_iter().enumerate() {
            header[view::BARS + 4 * index..][..4].copy_from_slice(&bar.to_le_bytes());
        }
        header
    }

    #[test]
    fn bars_of_64_bits_take_two_registers() {
        let header = header(MEMORY, [0xc000_0004, 0x1, 0xe001, 0xd000_0008, 0, 0]);
        assert_eq!(places(&header), [Some(0x1_c000_0000), None, None, Some(0xd000_0000), Some(0), Some(0)]);
    }

    #[test]
    fn no_bar_responds_while_the_memory_is_disabled() {
        assert_eq!(places(&header(4, [0xc000_0000; 6])), [None; 6]);
    }

    fn pages(first: u64, end: u64) -> Option<(u64, u64)> {
        whole_pages(first, end).map(|area| (area.offset, area.len.get()))
    }

    #[test]
    fn parts_are_whole_pages() {
        assert_eq!(pages(0, 0x2010), Some((0, 0x2000)));
        assert_eq!(pages(0x2410, 0x4000), Some((0x3000, 0x1000)));
        assert_eq!(pages(0x2410, 0x3000), None);
        assert_eq!(pages(u64::MAX, 0x4000), None);
    }
}
