//! Sections: the front end's description of the guest.
//!
//! There are two kinds, in two address types that cannot be mixed: *sections of the PCI address space*, at bus
//! addresses, and *target memory*, the RAM that devices reach only through translated windows, at system addresses. On
//! a PC all RAM is in the PCI address space; on sPAPR none is, and all of it is target memory.

use std::fmt;
use std::sync::Arc;

use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{BadRange, Iova, IovaRange, SystemAddress, SystemRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

/// The content of a range of bus addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backing {
    /// Guest RAM or ROM. Required: a device that cannot reach it is broken.
    Ram {
        /// The memory in this process.
        memory: HostMemory,
        /// The accesses allowed to devices: ROM is read-only.
        access: Access,
    },
    /// RAM whose blocks are populated and discarded while the section stays (virtio-mem). Required as far as it is
    /// populated.
    Discardable {
        /// All of its memory in this process, populated or not.
        memory: HostMemory,
        /// The accesses allowed to devices.
        access: Access,
        /// The size of a block, which is mapped so that it can be unmapped by itself.
        granule: PageSize,
    },
    /// Another device's mmapped BAR. Best effort: without it peer-to-peer is lost and nothing else.
    DeviceMemory {
        /// The memory in this process.
        memory: HostMemory,
        /// The accesses allowed to devices.
        access: Access,
    },
    /// A window whose entries the guest fills: a vIOMMU's range, a TCE window. `page` is the guest's page in it.
    Translated {
        /// The size of one entry.
        page: PageSize,
    },
    /// A range where a write is an interrupt. Never mapped.
    Msi,
    /// Emulated MMIO, and everything else that devices cannot reach.
    Nothing,
}

/// The guest's need for a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Need {
    /// The guest needs the section: if a host cannot provide it, the commit fails as a whole.
    Required,
    /// The guest can live without the section: if a host cannot provide it, it is skipped and reported.
    BestEffort,
}

/// A range of the PCI address space and its content. A clone costs no more than an `Arc`'s, and is found equal at a
/// glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    facts: Arc<SectionFacts>,
}

#[derive(Debug, PartialEq, Eq)]
struct SectionFacts {
    range: IovaRange,
    name: Arc<str>,
    backing: Backing,
}

impl Section {
    fn new(range: IovaRange, name: &str, backing: Backing) -> Self {
        Self { facts: Arc::new(SectionFacts { range, name: name.into(), backing }) }
    }

    /// Returns whether both are clones of one section.
    pub(crate) fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.facts, &other.facts)
    }

    /// RAM or ROM, all of `memory`, at `at`.
    ///
    /// # Errors
    /// [`BadRange::Overflow`] when it would end past 2^64-1.
    pub fn ram(name: &str, at: Iova, memory: HostMemory, access: Access) -> Result<Self, BadRange> {
        let range = IovaRange::with_len(at, memory.len().get())?;
        Ok(Self::new(range, name, Backing::Ram { memory, access }))
    }

    /// RAM whose blocks of `granule` bytes are populated and discarded: nothing is mapped until a block is populated
    /// through [`Listener::discardable`]. Its bounds must be multiples of `granule`, and `granule` of the host's pages,
    /// else the section is refused. No other section or target memory may show the same memory.
    ///
    /// [`Listener::discardable`]: crate::Listener::discardable
    ///
    /// # Errors
    /// [`BadRange::Overflow`] when it would end past 2^64-1.
    pub fn discardable(
        name: &str,
        at: Iova,
        memory: HostMemory,
        access: Access,
        granule: PageSize,
    ) -> Result<Self, BadRange> {
        let range = IovaRange::with_len(at, memory.len().get())?;
        Ok(Self::new(range, name, Backing::Discardable { memory, access, granule }))
    }

    /// Another device's memory, all of `memory`, at `at`. The name should say whose: warnings use it.
    ///
    /// # Errors
    /// [`BadRange::Overflow`] when it would end past 2^64-1.
    pub fn device_memory(name: &str, at: Iova, memory: HostMemory, access: Access) -> Result<Self, BadRange> {
        let range = IovaRange::with_len(at, memory.len().get())?;
        let memory = memory.device_memory();
        Ok(Self::new(range, name, Backing::DeviceMemory { memory, access }))
    }

    /// A window whose entries of `page` bytes the guest fills.
    pub fn translated(name: &str, range: IovaRange, page: PageSize) -> Self {
        Self::new(range, name, Backing::Translated { page })
    }

    /// A range where a write is an interrupt.
    pub fn msi(name: &str, range: IovaRange) -> Self {
        Self::new(range, name, Backing::Msi)
    }

    /// A range that devices cannot reach.
    pub fn nothing(name: &str, range: IovaRange) -> Self {
        Self::new(range, name, Backing::Nothing)
    }

    /// The bus addresses.
    pub fn range(&self) -> IovaRange {
        self.facts.range
    }

    /// The name, for reports and warnings.
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.facts.name.clone()
    }

    /// The content.
    pub fn backing(&self) -> &Backing {
        &self.facts.backing
    }

    /// The guest's need for the section. `None` for sections that are never mapped.
    pub fn need(&self) -> Option<Need> {
        match self.facts.backing {
            Backing::Ram { .. } | Backing::Discardable { .. } | Backing::Translated { .. } => Some(Need::Required),
            Backing::DeviceMemory { .. } => Some(Need::BestEffort),
            Backing::Msi | Backing::Nothing => None,
        }
    }

    /// The memory to map, and the accesses allowed, for sections that are mapped as a whole.
    pub fn direct(&self) -> Option<(&HostMemory, Access)> {
        match &self.facts.backing {
            Backing::Ram { memory, access } | Backing::DeviceMemory { memory, access } => Some((memory, *access)),
            Backing::Discardable { .. } | Backing::Translated { .. } | Backing::Msi | Backing::Nothing => None,
        }
    }

    /// The accesses allowed to devices, for sections with memory.
    pub fn access(&self) -> Option<Access> {
        match &self.facts.backing {
            Backing::Ram { access, .. }
            | Backing::Discardable { access, .. }
            | Backing::DeviceMemory { access, .. } => Some(*access),
            Backing::Translated { .. } | Backing::Msi | Backing::Nothing => None,
        }
    }

    /// The memory devices can reach in it, all at once or block by block.
    pub fn memory(&self) -> Option<&HostMemory> {
        match &self.facts.backing {
            Backing::Ram { memory, .. }
            | Backing::Discardable { memory, .. }
            | Backing::DeviceMemory { memory, .. } => Some(memory),
            Backing::Translated { .. } | Backing::Msi | Backing::Nothing => None,
        }
    }
}

/// The blocks of `granule` bytes that `memory` is made of.
pub(crate) fn blocks_of(memory: &HostMemory, granule: PageSize) -> Vec<HostMemory> {
    let mut blocks = Vec::new();
    let mut offset = 0;
    while let Some(block) = memory.slice(offset, granule.bytes()) {
        blocks.push(block);
        match offset.checked_add(granule.bytes()) {
            Some(next) => offset = next,
            None => break,
        }
    }
    blocks
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.range(), self.name())
    }
}

/// RAM that devices reach only through translated windows. A clone costs no more than an `Arc`'s, and is found equal at
/// a glance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetMemory {
    facts: Arc<TargetFacts>,
}

#[derive(Debug, PartialEq, Eq)]
struct TargetFacts {
    range: SystemRange,
    name: Arc<str>,
    memory: HostMemory,
}

impl TargetMemory {
    /// All of `memory`, which the guest sees at `at`.
    ///
    /// # Errors
    /// [`BadRange::Overflow`] when it would end past 2^64-1.
    pub fn new(name: &str, at: SystemAddress, memory: HostMemory) -> Result<Self, BadRange> {
        let range = SystemRange::with_len(at, memory.len().get())?;
        Ok(Self { facts: Arc::new(TargetFacts { range, name: name.into(), memory }) })
    }

    /// The system addresses at which the guest sees it.
    pub fn range(&self) -> SystemRange {
        self.facts.range
    }

    /// The name, for reports and warnings.
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Returns whether both are clones of one piece.
    pub(crate) fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.facts, &other.facts)
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.facts.name.clone()
    }

    /// The memory in this process.
    pub fn memory(&self) -> &HostMemory {
        &self.facts.memory
    }
}

impl fmt::Display for TargetMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target memory {} ({})", self.range(), self.name())
    }
}

/// The fate of a required section whose ends are not aligned to the window's smallest page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Shrink {
    /// It is refused, and with it the commit.
    #[default]
    Refuse,
    /// It is mapped as far as whole pages of it can be, and the bytes it loses are reported: QEMU's way. A scrap in
    /// which no whole page lies, or whose bus and host addresses lie differently in a page, is skipped.
    Report,
}

/// A range in which a front end expects later changes, so that mappings are cut there now: a kernel can only unmap
/// whole mappings.
///
/// Exhaustive: a range and a step say it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cuts {
    /// The range of expected changes. Its two ends are cuts as well.
    pub range: IovaRange,
    /// The step of the changes.
    pub step: PageSize,
}

/// A front end's facts about the guest's bus, given once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrontEnd {
    /// The fate of required sections that lose bytes.
    pub shrink: Shrink,
    /// The ranges in which later changes are expected.
    pub cuts: Vec<Cuts>,
    /// The bytes that a change of a few pages may disturb elsewhere: long runs are cut at multiples of this, or of a
    /// larger power of two for runs of more than a thousand such chunks, while the kernel's number of mappings is not
    /// half used up. From 1 GiB on, the largest page IOMMUs have, that costs no huge page.
    pub chunk: Option<PageSize>,
}

impl FrontEnd {
    /// The front end of a PC: firmware switches the shadow RAM below 1 MiB between RAM, ROM and nothing in steps of a
    /// few KiB, a graphics card switches its hole below that on and off as a whole, and above 1 MiB a few MiB go here
    /// and there.
    pub fn pc() -> Self {
        let cuts = [Self::vga_hole(), Self::shadow_ram()].into_iter().flatten().collect();
        Self { shrink: Shrink::default(), cuts, chunk: Some(PageSize::G1) }
    }

    /// The cuts around a graphics card's hole, 0xa0000 to 0xbffff, which is RAM while no card decodes it.
    pub fn vga_hole() -> Option<Cuts> {
        const HOLE: u64 = 0x2_0000;
        let range = IovaRange::with_len(Iova::new(0xa_0000), HOLE).ok()?;
        Some(Cuts { range, step: PageSize::from_bytes(HOLE)? })
    }

    /// The cuts of a PC's shadow RAM, 0xc0000 to 0xfffff.
    fn shadow_ram() -> Option<Cuts> {
        let range = IovaRange::with_len(Iova::new(0xc_0000), 0x4_0000).ok()?;
        Some(Cuts { range, step: PageSize::K4 })
    }

    /// This front end, except that sections that lose bytes are mapped without them and reported.
    #[must_use]
    pub fn reporting_shrinks(mut self) -> Self {
        self.shrink = Shrink::Report;
        self
    }
}
