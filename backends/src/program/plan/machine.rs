//! QEMU's memory maps, as the flat views that QEMU would show of them.
//!
//! Only what matters to devices is there: RAM, ROM, BARs, windows and interrupts. The maps are those of a guest that
//! has not yet begun to run, which has the firmware in place of what it will put there.

use std::sync::Arc;

use dmaspace::PageSize;

use super::arguments::{AmdHole, Machine};
use crate::program::mtree::{AddressSpace, FlatView, FlatViews, Kind, Range, What};

const K4: u64 = 1 << 12;
const M1: u64 = 1 << 20;
const G1: u64 = 1 << 30;
const G4: u64 = 1 << 32;
const T1: u64 = 1 << 40;

/// A guest, as far as its memory map depends on it.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The machine.
    pub(crate) machine: Machine,
    /// The bytes of memory at the start.
    pub(crate) memory: u64,
    /// The bytes of memory that may be plugged in.
    pub(crate) plugged: u64,
    /// The slots for memory.
    pub(crate) slots: u32,
    /// The sizes of the devices' BARs.
    pub(crate) bars: Vec<u64>,
    /// The address bits of the guest's processors, if BARs are put at their upper end.
    pub(crate) phys_bits: Option<u32>,
    /// The place of RAM that would reach into AMD's hole.
    pub(crate) amd_hole: AmdHole,
}

/// The reason for which there is no such guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoShape {
    /// Firmware needs some memory.
    #[error("expected --memory of 2M or more, in whole MiB")]
    Memory,
    /// Memory that is plugged in comes on top.
    #[error("expected --maxmem above --memory, in whole MiB")]
    Plugged,
    /// The machine takes none.
    #[error("expected a machine other than microvm with --maxmem: it has no room for memory that is plugged in")]
    NoRoom,
    /// BARs have sizes that are powers of two.
    #[error("expected a power of two for --bar: the sizes of BARs are")]
    Bar,
    /// The map does not end below 2^63.
    #[error("expected memory and BARs that fit below 2^52")]
    TooLarge,
}

impl Shape {
    /// The views of its memory map.
    ///
    /// # Errors
    /// When QEMU would not make such a guest.
    pub(crate) fn views(&self) -> Result<FlatViews, NoShape> {
        self.check()?;
        let mut map = Map::default();
        let bars_from = match self.machine {
            Machine::Q35 | Machine::Pc => self.pc(&mut map),
            Machine::Microvm => self.microvm(&mut map),
            Machine::Virt => self.virt(&mut map),
            Machine::Pseries => return Ok(self.pseries(map)),
        };
        let end = map.bars(&self.bars, bars_from).ok_or(NoShape::TooLarge)?;
        if end > HIGHEST {
            return Err(NoShape::TooLarge);
        }
        Ok(FlatViews { views: vec![map.view("memory", "system", 0)], passed_over: 0 })
    }

    fn check(&self) -> Result<(), NoShape> {
        const LEAST: u64 = 2 * M1;
        let refusals = [
            (self.memory < LEAST || self.memory % M1 != 0, NoShape::Memory),
            (self.plugged % M1 != 0, NoShape::Plugged),
            (self.plugged > 0 && self.machine == Machine::Microvm, NoShape::NoRoom),
            (self.bars.iter().any(|bar| !bar.is_power_of_two()), NoShape::Bar),
            (self.memory.saturating_add(self.plugged) > HIGHEST, NoShape::TooLarge),
        ];
        refusals.into_iter().find(|(is_so, _)| *is_so).map_or(Ok(()), |(_, refusal)| Err(refusal))
    }

    /// qemu: hw/i386/pc.c, pc_memory_init; the ROMs are SeaBIOS's at reset. Returns the place for BARs.
    fn pc(&self, map: &mut Map) -> u64 {
        let low = self.memory.min(self.below_4g());
        let high = self.memory - low;
        let above = if self.is_relocated(high) { T1 } else { G4 };
        map.add(0, 0xc_0000, What::Ram, "pc.ram", 0);
        map.add(0xc_0000, 0x2_0000, What::Rom, "pc.rom", 0);
        map.add(0xe_0000, 0x2_0000, What::Rom, "pc.bios", 0x2_0000);
        map.add(M1, low - M1, What::Ram, "pc.ram", M1);
        map.add(0xfee0_0000, M1, What::Io, "apic-msi", 0);
        map.add(0xfffc_0000, 0x4_0000, What::Rom, "pc.bios", 0);
        map.add(above, high, What::Ram, "pc.ram", low);
        let hole = self.hotplug(map, above + high);
        self.phys_bits.map_or(hole, |bits| upper_end(bits, 3).max(hole))
    }

    /// The most RAM below 4 GiB, of which a guest that does not fit there has less, so that the rest begins at
    /// whole GiB (qemu: hw/i386/pc_q35.c, pc_q35_init; hw/i386/pc_piix.c, pc_init1; hw/i386/microvm.c,
    /// microvm_memory_init).
    fn below_4g(&self) -> u64 {
        let (most, split) = match self.machine {
            Machine::Q35 => (0xb000_0000, 0x8000_0000),
            Machine::Pc => (0xe000_0000, 0xc000_0000),
            _ => (0xc000_0000, 0xc000_0000),
        };
        if self.memory < most { most } else { split }
    }

    /// Returns whether RAM above 4 GiB, `high` bytes of it, is at 1 TiB: its room and the 64-bit PCI hole behind that
    /// would reach into AMD's hole (qemu: hw/i386/pc.c, pc_max_used_gpa and pc_memory_init, from machines 7.1 on).
    fn is_relocated(&self, high: u64) -> bool {
        /// qemu: hw/pci-host/q35.c, Q35_PCI_HOST_HOLE64_SIZE_DEFAULT; hw/pci-host/i440fx.c.
        const HOLE_OF_Q35: u64 = 1 << 35;
        const HOLE_OF_PC: u64 = 1 << 31;
        const AMD_HOLE: u64 = 0xfd_0000_0000;
        let hole = if self.machine == Machine::Q35 { HOLE_OF_Q35 } else { HOLE_OF_PC };
        let last_used = self.end_of_room(G4 + high) + hole - 1;
        self.amd_hole == AmdHole::Relocate && last_used >= AMD_HOLE
    }

    /// The end of the room for memory that is plugged in behind `end`, in whole GiB. Each slot has one GiB for its
    /// alignment (qemu: hw/i386/pc.c, pc_get_device_memory_range and pc_pci_hole64_start).
    fn end_of_room(&self, end: u64) -> u64 {
        let room = if self.plugged > 0 { self.plugged + u64::from(self.slots) * G1 } else { 0 };
        round_up(round_up(end, G1) + room, G1)
    }

    /// Memory that is plugged in behind `end`. Returns the end of its room.
    fn hotplug(&self, map: &mut Map, end: u64) -> u64 {
        map.add(round_up(end, G1), self.plugged, What::Ram, PLUGGED, 0);
        self.end_of_room(end)
    }

    /// qemu: hw/i386/microvm.c, microvm_memory_init and microvm_devices_init: BARs are in the upper quarter.
    fn microvm(&self, map: &mut Map) -> u64 {
        /// Those of QEMU's own processors (qemu: target/i386/cpu.h, TCG_PHYS_ADDR_BITS).
        const BITS: u32 = 40;
        let low = self.memory.min(self.below_4g());
        map.add(0, 0xe_0000, What::Ram, "microvm.ram", 0);
        map.add(0xe_0000, 0x2_0000, What::Ram, "pc.bios", 0);
        map.add(M1, low - M1, What::Ram, "microvm.ram", M1);
        map.add(0xfee0_0000, M1, What::Io, "apic-msi", 0);
        map.add(0xfffe_0000, 0x2_0000, What::Ram, "pc.bios", 0);
        map.add(G4, self.memory - low, What::Ram, "microvm.ram", low);
        upper_end(self.phys_bits.unwrap_or(BITS), 2).max(round_up(G4 + self.memory - low, G1))
    }

    /// qemu: hw/arm/virt.c, base_memmap, extended_memmap and virt_set_memmap. Returns the 64-bit PCI window.
    fn virt(&self, map: &mut Map) -> u64 {
        const FIXED_END: u64 = 256 * G1;
        const REDISTRIBUTORS: u64 = 64 * M1;
        const ECAM: u64 = 256 * M1;
        const WINDOW: u64 = 512 * G1;
        map.add(0x802_0000, K4, What::Io, "gicv2m", 0);
        map.add(G1, self.memory, What::Ram, "mach-virt.ram", 0);
        let end = self.hotplug(map, G1 + self.memory).max(FIXED_END);
        let ecam = round_up(round_up(end, REDISTRIBUTORS) + REDISTRIBUTORS, ECAM);
        round_up(ecam + ECAM, WINDOW)
    }

    /// A default DMA window of 1 GiB, and the one that Linux then asks for: it covers all memory there may ever be, in
    /// pages of 64 KiB (qemu: hw/ppc/spapr_pci.c, spapr_phb_properties; linux: arch/powerpc/platforms/pseries/iommu.c,
    /// enable_ddw).
    fn pseries(&self, mut map: Map) -> FlatViews {
        const INTERRUPTS: u64 = 1 << 42;
        const DYNAMIC: u64 = 1 << 59;
        let all = self.memory + self.plugged;
        map.add(0, self.memory, What::Ram, "ppc_spapr.ram", 0);
        map.add(round_up(self.memory, G1), self.plugged, What::Ram, PLUGGED, 0);
        let mut bridge = Map::default();
        bridge.add(0, G1, What::Io, "tce-iommu-80000000", 0);
        bridge.add(INTERRUPTS, K4, What::Io, "msi", 0);
        bridge.add(DYNAMIC, all.next_power_of_two(), What::Io, "tce-iommu-80000001", 0);
        let name = "pci@800000020000000";
        let views = vec![map.view("memory", "system", 0), bridge.view(name, &format!("{name}.iommu-root"), FIRST_LINE)];
        FlatViews { views, passed_over: 0 }
    }
}

/// The end of all addresses that processors have.
const HIGHEST: u64 = 1 << 52;

/// The name for memory that is plugged in, before it has one.
const PLUGGED: &str = "plugged memory";

/// No view of a plan has so many ranges.
const FIRST_LINE: usize = 10_000;

/// The beginning of the upper 2^-`part` of an address space of so many bits. Firmware for PCs takes the upper eighth
/// for BARs (edk2: OvmfPkg/Library/PlatformInitLib/MemDetect.c, PlatformDynamicMmioWindow; seabios: src/fw/pciinit.c,
/// pci_bios_init_root_regions_mem).
fn upper_end(bits: u32, part: u32) -> u64 {
    let end = 1_u64 << bits;
    end - (end >> part)
}

fn round_up(address: u64, unit: u64) -> u64 {
    debug_assert!(unit.is_power_of_two(), "{unit:#x}");
    // Addresses stay far below 2^63: sizes are at most 2^50.
    address.saturating_add(unit - 1) & !(unit - 1)
}

/// A memory map in the making.
#[derive(Debug, Default)]
struct Map {
    ranges: Vec<Range>,
}

impl Map {
    /// A range; none if it is empty.
    fn add(&mut self, first: u64, len: u64, what: What, name: &str, offset: u64) {
        if let Some(more) = len.checked_sub(1) {
            let name = Arc::from(name);
            let last = first.saturating_add(more);
            self.ranges.push(Range { line: 0, first, last, kind: Kind::volatile(what), name, offset });
        }
    }

    /// BARs from `from` on, the largest first, as firmware places them. Returns their end.
    fn bars(&mut self, sizes: &[u64], from: u64) -> Option<u64> {
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let mut end = from;
        for (n, size) in sizes.into_iter().enumerate() {
            let size = size.max(PageSize::K4.bytes());
            let first = end.checked_next_multiple_of(size)?;
            self.add(first, size, What::RamDevice, &format!("BAR {n}"), 0);
            end = first.checked_add(size)?;
        }
        Some(end)
    }

    /// The view of it, whose ranges are on the lines from `line` on.
    fn view(mut self, name: &str, root: &str, line: usize) -> FlatView {
        self.ranges.sort_unstable_by_key(|range| range.first);
        for (range, line) in self.ranges.iter_mut().zip(line + 1..) {
            range.line = line;
        }
        let spaces = vec![AddressSpace { name: name.to_owned(), root: root.to_owned() }];
        FlatView { line, spaces, is_empty: self.ranges.is_empty(), ranges: self.ranges }
    }
}
