//! An open device: its registers and its configuration space, as far as DMA needs them.
//!
//! Enough to bring a device up, to talk to it and to reach its BARs. Interrupts, migration and the rest are a VMM's own affair: it
//! borrows the descriptor ([`crate::linux::LinuxDoor::with_descriptor`]).

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use dmaspace_abi::chain::{self, ChainError};
use dmaspace_abi::device::{
    DEVICE_FEATURE, DEVICE_GET_REGION_INFO, DEVICE_RESET, ExportRange, FEATURE_EXPORT, REGION_CAP_SPARSE_MMAP,
    REGION_CONFIG, REGION_HAS_CAPABILITIES, REGION_MMAP, REGION_READ, REGION_WRITE, RegionInfo, SparseArea, SparseMmap,
};
use dmaspace_core::door::{Answer, Command, Door, Errno, Failure, Handle, HandleKind, Kernel, OwnedHandle};
use dmaspace_core::{Access, HostMemory, MemoryFile, PciAddressSpace};
use dmaspace_iommufd::Cdev;
use zerocopy::{FromBytes, IntoBytes};

use crate::group::VfioGroup;
use crate::registry::Entry;

/// An open device.
///
/// One that was opened through its group is closed when this is dropped, and must be before the group can be detached. One with a
/// node of its own is what is attached to the space: it is closed when this is dropped and it is detached.
///
/// Closing a device resets it, which can take seconds.
pub struct Device {
    door: Arc<dyn Door>,
    handle: Handle,
    name: String,
    way: Way,
    /// What its DMA goes through, which is to last as long as it does.
    space: Option<Arc<dyn PciAddressSpace>>,
}

/// How a device was opened.
enum Way {
    /// Through its group, which stays open for as long as it is. `None` once the device is closed.
    Group(Option<OwnedHandle>, Arc<VfioGroup>),
    /// By its node. The entry goes first, while the descriptor still exists.
    Node { _entry: Option<Entry>, cdev: Arc<Cdev> },
}

/// One of a device's regions: a BAR, its ROM, its configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its number: 0 to 5 are the BARs.
    pub index: u32,
    /// Its size in bytes; 0: it is not there.
    pub size: u64,
    /// What the process may do with it.
    pub access: Access,
    /// The parts of it that can be mapped, ascending.
    pub mappable: Vec<Area>,
    /// Where it begins in the device's descriptor.
    offset: u64,
}

/// A part of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Where it begins in the region.
    pub offset: u64,
    /// Its size in bytes.
    pub len: NonZeroU64,
}

/// Something could not be done with a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {action}: {problem}")]
pub struct DeviceError {
    /// Which device.
    pub device: String,
    /// What was to be done.
    pub action: Action,
    /// What was wrong.
    pub problem: DeviceProblem,
}

/// What was to be done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Learn about a region.
    Describe(u32),
    /// Read of a region.
    Read(u32),
    /// Write to a region.
    Write(u32),
    /// Map a part of a region.
    Map(u32),
    /// Export a part of a region.
    Export(u32),
    /// Reset it.
    Reset,
}

/// What was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceProblem {
    /// The kernel said no to a call.
    #[error("{0}")]
    Refused(#[from] Failure),
    /// The kernel said no to a read, a write or a mapping.
    #[error("{0}")]
    Failed(#[from] Errno),
    /// The bytes do not all lie in the region.
    #[error("{len} bytes at {offset:#x} do not lie inside its {size:#x}")]
    Outside {
        /// Where they begin.
        offset: u64,
        /// How many.
        len: u64,
        /// The size of the region.
        size: u64,
    },
    /// Only some of the bytes were moved.
    #[error("only {0} bytes were moved")]
    Short(usize),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Describe(index) => write!(f, "describe {}", RegionName(*index)),
            Self::Read(index) => write!(f, "read {}", RegionName(*index)),
            Self::Write(index) => write!(f, "write {}", RegionName(*index)),
            Self::Map(index) => write!(f, "map {}", RegionName(*index)),
            Self::Export(index) => write!(f, "export {}", RegionName(*index)),
            Self::Reset => f.write_str("reset"),
        }
    }
}

/// A region as people call it.
struct RegionName(u32);

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bar @ 0..=5 => write!(f, "BAR {bar}"),
            REGION_CONFIG => f.write_str("configuration space"),
            other => write!(f, "region {other}"),
        }
    }
}

/// How an export is opened.
#[allow(clippy::cast_sign_loss, reason = "flags")]
const OPEN_FLAGS: u32 = (libc::O_RDWR | libc::O_CLOEXEC) as u32;

/// Where the command register is in a PCI device's configuration space.
const PCI_COMMAND: u64 = 0x04;
/// Its bit that makes the BARs answer.
const PCI_COMMAND_MEMORY: u16 = 1 << 1;
/// Its bit that lets the device do DMA.
const PCI_COMMAND_MASTER: u16 = 1 << 2;

impl Device {
    pub(crate) fn of_group(device: OwnedHandle, name: &str, group: Arc<VfioGroup>) -> Self {
        let (door, handle) = (device.door().clone(), device.handle());
        Self { door, handle, name: name.to_owned(), way: Way::Group(Some(device), group), space: None }
    }

    pub(crate) fn of_node(door: Arc<dyn Door>, name: &str, cdev: Arc<Cdev>, entry: Option<Entry>) -> Self {
        Self { door, handle: cdev.device(), name: name.to_owned(), way: Way::Node { _entry: entry, cdev }, space: None }
    }

    /// MappingModel `space` for as long as the device is open.
    pub(crate) fn holding(mut self, space: Arc<dyn PciAddressSpace>) -> Self {
        self.space = Some(space);
        self
    }

    /// The space its DMA goes through, if it was opened into one.
    pub fn space(&self) -> Option<&Arc<dyn PciAddressSpace>> {
        self.space.as_ref()
    }

    /// What it was opened as: its PCI address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its handle.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// The group it was opened through.
    pub fn group(&self) -> Option<&Arc<VfioGroup>> {
        match &self.way {
            Way::Group(_, group) => Some(group),
            Way::Node { .. } => None,
        }
    }

    /// Itself as what is attached, if it has a node of its own.
    pub fn cdev(&self) -> Option<&Arc<Cdev>> {
        match &self.way {
            Way::Group(..) => None,
            Way::Node { cdev, .. } => Some(cdev),
        }
    }

    /// Describes region `index`.
    ///
    /// # Errors
    /// What the kernel says (`EINVAL`: there is no such region), or a description that cannot be true.
    pub fn region(&self, index: u32) -> Result<Region, DeviceError> {
        self.ask_for_region(index).map_err(|failure| self.error(Action::Describe(index), failure))
    }

    /// Reads `into.len()` bytes at `offset` of a region. Aligned runs of 2, 4 or 8 bytes are one access of that width
    /// (linux: drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_core_do_io_rw).
    ///
    /// # Errors
    /// [`DeviceProblem::Outside`], what the kernel says (`EIO`: its memory is disabled), [`DeviceProblem::Short`].
    pub fn read(&self, region: &Region, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let moved = region.at(offset, into.len() as u64).and_then(|at| Ok(self.door.pread(self.handle, at, into)?));
        moved
            .and_then(|moved| all_of(moved, into.len()))
            .map_err(|problem| self.error(Action::Read(region.index), problem))
    }

    /// Writes bytes at `offset` of a region, as [`Device::read`] reads them.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn write(&self, region: &Region, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        let moved = region.at(offset, from.len() as u64).and_then(|at| Ok(self.door.pwrite(self.handle, at, from)?));
        moved
            .and_then(|moved| all_of(moved, from.len()))
            .map_err(|problem| self.error(Action::Write(region.index), problem))
    }

    /// Lets the BARs answer and the device do DMA: what a driver does first. Attach the device to its space before.
    ///
    /// # Errors
    /// What the kernel says to reading and writing the command register.
    pub fn enable(&self) -> Result<(), DeviceError> {
        let config = self.region(REGION_CONFIG)?;
        let mut command = [0; 2];
        self.read(&config, PCI_COMMAND, &mut command)?;
        let enabled = u16::from_le_bytes(command) | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
        self.write(&config, PCI_COMMAND, &enabled.to_le_bytes())
    }

    /// Maps a part of a region into this process, for a guest to reach or for another device's DMA. [`Region::mappable`] says which
    /// parts can be. Registers are better read with [`Device::read`]: a [`HostMemory`] copies byte by byte, and a device that does not
    /// know accesses of one byte answers nonsense or, on POWER, with a machine check.
    ///
    /// The kernel keeps the device open for as long as a part of it is mapped; its group can leave its container only after that.
    ///
    /// # Errors
    /// [`DeviceProblem::Outside`], what the kernel says (`EINVAL`: that part cannot be mapped).
    pub fn map(&self, region: &Region, area: Area) -> Result<HostMemory, DeviceError> {
        let at = region.at(area.offset, area.len.get());
        let mapped = at.and_then(|at| Ok(self.door.mmap(self.handle, at, area.len, region.access)?));
        mapped.map_err(|problem| self.error(Action::Map(region.index), problem))
    }

    /// Maps a part of a BAR as [`Device::map`] does, for other devices' DMA: exported ([`Device::export`]) where the kernel can, so that iommufd
    /// can map it too. type1 needs no export.
    ///
    /// # Errors
    /// As [`Device::map`] and [`Device::export`], but that a kernel that exports nothing is no error.
    pub fn map_exported(&self, region: &Region, area: Area) -> Result<HostMemory, DeviceError> {
        let memory = self.map(region, area)?;
        match self.export(region, area) {
            Ok(file) => Ok(memory.in_file(file, 0)),
            Err(error) if says(&error, Errno::ENOTTY) || says(&error, Errno::EOPNOTSUPP) => Ok(memory),
            Err(error) => Err(error),
        }
    }

    /// Exports a part of a BAR as a file of its own, for [`HostMemory::in_file`]: what is mapped of it begins at 0 there. Linux can since 6.19,
    /// on hosts with peer-to-peer DMA (linux: drivers/vfio/pci/Kconfig, VFIO_PCI_DMABUF).
    ///
    /// The kernel takes an export back whenever the BAR stops answering: the device's memory is disabled ([`Device::enable`] is the opposite),
    /// it is reset, put to sleep or closed. Address spaces that have it mapped show nothing there from then on, for ever, and say so to nobody; the
    /// mapping itself stays until it is unmapped (linux: drivers/iommu/iommufd/pages.c, iopt_revoke_notify). So whoever sees a
    /// guest disable a device's memory takes the BAR's sections away, and adds them again when it is enabled, as guests
    /// move BARs anyway.
    ///
    /// # Errors
    /// [`DeviceProblem::Outside`], what the kernel says: `ENOTTY` when it exports nothing, `EOPNOTSUPP` when the device does not, `EINVAL` for
    /// parts of pages, `ENODEV` for a region that is no BAR of memory.
    pub fn export(&self, region: &Region, area: Area) -> Result<MemoryFile, DeviceError> {
        region.at(area.offset, area.len.get()).map_err(|problem| self.error(Action::Export(region.index), problem))?;
        let mut export = ExportRange {
            argsz: ExportRange::SIZE,
            flags: FEATURE_EXPORT,
            region_index: region.index,
            open_flags: OPEN_FLAGS,
            reserved: 0,
            nr_ranges: 1,
            offset: area.offset,
            length: area.len.get(),
        };
        let mut command = Command::with_bytes(DEVICE_FEATURE, export.as_mut_bytes());
        let door = self.door.clone();
        let export = OwnedHandle::opened_by(door, self.handle, &mut command, HandleKind::Export).map_err(|errno| {
            let refused = Failure { call: DEVICE_FEATURE.name, answer: Answer::Errno(errno) };
            self.error(Action::Export(region.index), refused)
        })?;
        Ok(MemoryFile::exported(export))
    }

    /// Resets the device.
    ///
    /// # Errors
    /// What the kernel says: `EINVAL` for a device that cannot be reset by itself.
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.door.call(self.handle, Command::bare(DEVICE_RESET)).map_err(|failure| self.error(Action::Reset, failure))
    }

    fn error(&self, action: Action, problem: impl Into<DeviceProblem>) -> DeviceError {
        DeviceError { device: self.name.clone(), action, problem: problem.into() }
    }

    /// Asks with growing buffers, until the capabilities fit.
    fn ask_for_region(&self, index: u32) -> Result<Region, Failure> {
        let mut room = RegionInfo::SIZE;
        for _ in 0..ATTEMPTS {
            let mut reply = question(index, room);
            self.door.call(self.handle, Command::with_bytes(DEVICE_GET_REGION_INFO, &mut reply))?;
            match understand(&reply).map_err(malformed)? {
                Reply::Complete(region) if region.index == index => return Ok(region),
                Reply::Complete(_) => return Err(malformed("it describes another region")),
                Reply::Needs(more) if more > MOST_ROOM => return Err(malformed("it wants an absurdly large buffer")),
                Reply::Needs(more) => room = more,
            }
        }
        Err(malformed("it wants a larger buffer every time"))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A device with a node of its own is closed by who holds it last.
        if let Way::Group(device, group) = &mut self.way {
            drop(device.take());
            group.note_closed();
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({}, {:?})", self.name, self.handle)
    }
}

impl Region {
    /// Where `len` bytes at `offset` are in the device's descriptor.
    fn at(&self, offset: u64, len: u64) -> Result<u64, DeviceProblem> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size);
        let at = self.offset.checked_add(offset).filter(|_| inside);
        at.ok_or(DeviceProblem::Outside { offset, len, size: self.size })
    }
}

fn says(error: &DeviceError, errno: Errno) -> bool {
    matches!(&error.problem, DeviceProblem::Refused(failure) if failure.errno() == Some(errno))
}

fn all_of(moved: usize, wanted: usize) -> Result<(), DeviceProblem> {
    if moved == wanted { Ok(()) } else { Err(DeviceProblem::Short(moved)) }
}

/// How often a description that keeps growing is asked for.
const ATTEMPTS: usize = 8;
/// No description of a region is that long: 4,096 areas.
const MOST_ROOM: u32 = 1 << 16;

/// What a reply amounts to.
enum Reply {
    /// Everything is there.
    Complete(Region),
    /// The capabilities did not fit: ask again with this many bytes.
    Needs(u32),
}

fn question(index: u32, room: u32) -> Vec<u8> {
    let info = RegionInfo { argsz: room, index, ..RegionInfo::default() };
    let mut bytes = info.as_bytes().to_vec();
    bytes.resize(room as usize, 0);
    bytes
}

fn understand(reply: &[u8]) -> Result<Reply, &'static str> {
    let (info, _) = RegionInfo::read_from_prefix(reply).map_err(|_| "it is shorter than its struct")?;
    let has_capabilities = info.flags & REGION_HAS_CAPABILITIES != 0;
    if has_capabilities && info.cap_offset == 0 {
        let grew = info.argsz as usize > reply.len();
        return if grew { Ok(Reply::Needs(info.argsz)) } else { Err("its capabilities are nowhere") };
    }
    let first = if has_capabilities { info.cap_offset } else { 0 };
    let chain = chain::capabilities(reply, size_of::<RegionInfo>(), first).map_err(ChainError::reason)?;
    let sparse = chain.iter().find(|capability| capability.header.id == REGION_CAP_SPARSE_MMAP);
    let mappable = match sparse {
        _ if info.flags & REGION_MMAP == 0 => Vec::new(),
        Some(capability) => areas(capability.bytes, info.size)?,
        None => area(0, info.size).into_iter().collect(),
    };
    let RegionInfo { index, size, offset, .. } = info;
    Ok(Reply::Complete(Region { index, size, access: access(info.flags), mappable, offset }))
}

/// The areas of a sparse region of `size` bytes.
fn areas(capability: &[u8], size: u64) -> Result<Vec<Area>, &'static str> {
    let (head, rest) = SparseMmap::read_from_prefix(capability).map_err(|_| "its list of areas is cut off")?;
    let len = (head.nr_areas as usize).checked_mul(size_of::<SparseArea>());
    let list = len.and_then(|len| rest.get(..len)).ok_or("its list of areas is cut off")?;
    let list = list.chunks_exact(size_of::<SparseArea>()).filter_map(|area| SparseArea::read_from_bytes(area).ok());
    let mut found: Vec<_> = list.filter_map(|SparseArea { offset, size }| area(offset, size)).collect();
    found.sort_unstable_by_key(|area| area.offset);
    let inside = |area: &Area| area.offset.checked_add(area.len.get()).is_some_and(|end| end <= size);
    if found.iter().all(inside) { Ok(found) } else { Err("an area reaches past its region") }
}

/// An area, unless it is empty.
fn area(offset: u64, size: u64) -> Option<Area> {
    NonZeroU64::new(size).map(|len| Area { offset, len })
}

fn access(flags: u32) -> Access {
    let mut access = Access::empty();
    access.set(Access::READ, flags & REGION_READ != 0);
    access.set(Access::WRITE, flags & REGION_WRITE != 0);
    access
}

fn malformed(why: &'static str) -> Failure {
    Failure::malformed(DEVICE_GET_REGION_INFO.name, why)
}

#[cfg(test)]
mod tests {
    use dmaspace_abi::vfio::CapabilityHeader;
    use dmaspace_core::door::HandleKind;

    use super::*;
    use crate::scripted::Scripted;

    fn device() -> (Arc<Scripted>, Device) {
        let door = Scripted::new();
        let path = std::path::Path::new("/dev/vfio/devices/vfio0");
        let node = OwnedHandle::open(door.clone(), path, HandleKind::Device).expect("opens");
        let cdev = Arc::new(Cdev::new(node, "0000:00:03.0"));
        let device = Device::of_node(door.clone(), "0000:00:03.0", cdev, None);
        door.calls();
        (door, device)
    }

    /// A description with a sparse list of `areas`, whose head claims `claimed` of them.
    fn sparse(size: u64, areas: &[(u64, u64)], claimed: u32) -> Vec<u8> {
        let flags = REGION_READ | REGION_WRITE | REGION_MMAP | REGION_HAS_CAPABILITIES;
        let info = RegionInfo { argsz: 4096, flags, index: 2, cap_offset: RegionInfo::SIZE, size, offset: 2 << 40 };
        let header = CapabilityHeader { id: REGION_CAP_SPARSE_MMAP, version: 1, next: 0 };
        let head = SparseMmap { header, nr_areas: claimed, reserved: 0 };
        let areas = areas.iter().flat_map(|&(offset, size)| SparseArea { offset, size }.as_bytes().to_vec());
        [info.as_bytes().to_vec(), head.as_bytes().to_vec(), areas.collect()].concat()
    }

    fn region(reply: &[u8]) -> Result<Region, &'static str> {
        match understand(reply)? {
            Reply::Complete(region) => Ok(region),
            Reply::Needs(_) => Err("more room"),
        }
    }

    fn mappable(reply: &[u8]) -> Result<Vec<(u64, u64)>, &'static str> {
        Ok(region(reply)?.mappable.iter().map(|area| (area.offset, area.len.get())).collect())
    }

    #[test]
    fn enabling_sets_two_bits_and_keeps_the_others() {
        let (door, device) = device();
        let config = device.region(REGION_CONFIG).expect("described");
        device.write(&config, PCI_COMMAND, &[0x40, 0x05]).expect("written");
        door.calls();
        device.enable().expect("nothing refuses");
        assert_eq!(
            door.calls(),
            ["VFIO_DEVICE_GET_REGION_INFO", "pread 0x70000000004", "pwrite 0x70000000004 [46, 5]"]
        );
    }

    #[test]
    fn nothing_outside_a_region_is_reached() {
        let (door, device) = device();
        let bar = device.region(0).expect("described");
        door.calls();
        for (offset, len) in [(0x1000, 1), (0xfff, 2), (u64::MAX, 1)] {
            let error = device.read(&bar, offset, &mut vec![0; len]).expect_err("outside");
            assert_eq!(error.problem, DeviceProblem::Outside { offset, len: len as u64, size: 0x1000 });
        }
        let error = device.write(&bar, 0x1000, &[0]).expect_err("outside");
        assert_eq!(error.to_string(), "0000:00:03.0: write BAR 0: 1 bytes at 0x1000 do not lie inside its 0x1000");
        let beyond = Area { offset: 0, len: NonZeroU64::new(0x1001).expect("not zero") };
        assert!(device.map(&bar, beyond).is_err());
        assert_eq!(door.calls(), Vec::<String>::new());
    }

    #[test]
    fn a_read_that_stops_early_is_an_error() {
        let (_door, device) = device();
        let bar = device.region(0).expect("described");
        let error = device.read(&bar, 60, &mut [0; 8]).expect_err("the door has 64 bytes");
        assert_eq!(error.problem, DeviceProblem::Short(4));
    }

    #[test]
    fn a_whole_bar_is_mapped_with_its_own_access() {
        let (door, device) = device();
        let bar = device.region(1).expect("described");
        assert_eq!(bar.mappable.len(), 1);
        door.calls();
        device.map(&bar, bar.mappable[0]).expect("nothing refuses");
        assert_eq!(door.calls(), ["mmap 0x1000 at 0x10000000000 read-write"]);
    }

    #[test]
    fn a_bar_is_exported_with_what_is_mapped_of_it_and_the_export_closed_with_the_memory() {
        let (door, device) = device();
        let bar = device.region(1).expect("described");
        door.calls();
        let memory = device.map_exported(&bar, bar.mappable[0]).expect("nothing refuses");
        assert_eq!(
            memory.file().map(|(file, offset)| (file.handle().map(Handle::kind), offset)),
            Some((Some(HandleKind::Export), 0))
        );
        let calls = door.calls();
        assert_eq!(calls.iter().map(|call| &call[..4]).collect::<Vec<_>>(), ["mmap", "VFIO"]);
        assert_eq!(door.open_names().len(), 2);
        drop(memory);
        assert_eq!(door.open_names(), ["/dev/vfio/devices/vfio0"]);
    }

    #[test]
    fn a_bar_that_cannot_be_exported_is_mapped_all_the_same() {
        for errno in [Errno::ENOTTY, Errno::EOPNOTSUPP] {
            let (door, device) = device();
            let bar = device.region(1).expect("described");
            door.refuse_to_open(errno);
            assert_eq!(device.map_exported(&bar, bar.mappable[0]).expect("by address").file(), None);
        }
        let (door, device) = device();
        let bar = device.region(1).expect("described");
        door.refuse_to_open(Errno::EMFILE);
        let error = device.map_exported(&bar, bar.mappable[0]).expect_err("refused").to_string();
        assert_eq!(error, "0000:00:03.0: export BAR 1: VFIO_DEVICE_FEATURE: EMFILE");
        let beyond = Area { offset: 0x1000, len: NonZeroU64::new(1).expect("not zero") };
        assert_eq!(device.export(&bar, beyond).expect_err("outside").action, Action::Export(1));
    }

    #[test]
    fn what_the_kernel_says_comes_with_device_and_action() {
        let (door, device) = device();
        door.refuse("VFIO_DEVICE_RESET", Errno::EINVAL);
        assert_eq!(device.reset().expect_err("refused").to_string(), "0000:00:03.0: reset: VFIO_DEVICE_RESET: EINVAL");
        door.refuse("VFIO_DEVICE_GET_REGION_INFO", Errno::EINVAL);
        let error = device.region(REGION_CONFIG).expect_err("refused").to_string();
        assert_eq!(error, "0000:00:03.0: describe configuration space: VFIO_DEVICE_GET_REGION_INFO: EINVAL");
    }

    #[test]
    fn only_the_areas_of_a_sparse_region_can_be_mapped_in_order() {
        assert_eq!(
            mappable(&sparse(0x8000, &[(0x4000, 0x4000), (0, 0x2000)], 2)),
            Ok(vec![(0, 0x2000), (0x4000, 0x4000)])
        );
        assert_eq!(mappable(&sparse(0x8000, &[(0, 0), (0, 0x8000)], 2)), Ok(vec![(0, 0x8000)]));
        assert_eq!(mappable(&sparse(0x8000, &[], 0)), Ok(vec![]));
    }

    #[test]
    fn sparse_lists_that_cannot_be_true_are_refused() {
        assert_eq!(mappable(&sparse(0x8000, &[(0, 0x1000)], 2)), Err("its list of areas is cut off"));
        assert_eq!(mappable(&sparse(0x8000, &[(0, 0x1000)], u32::MAX)), Err("its list of areas is cut off"));
        assert_eq!(mappable(&sparse(0x8000, &[(0x7000, 0x1001)], 1)), Err("an area reaches past its region"));
        assert_eq!(mappable(&sparse(0x8000, &[(u64::MAX, 2)], 1)), Err("an area reaches past its region"));
    }

    #[test]
    fn a_region_that_is_not_mappable_has_no_areas_whatever_its_list_says() {
        let mut reply = sparse(0x8000, &[(0, 0x8000)], 1);
        reply[4] &= !u8::try_from(REGION_MMAP).expect("a low bit");
        assert_eq!(mappable(&reply), Ok(vec![]));
    }

    #[test]
    fn capabilities_without_a_place_want_more_room_or_cannot_be_true() {
        let mut reply = sparse(0x8000, &[], 0);
        reply[12..16].fill(0);
        assert!(matches!(understand(&reply), Ok(Reply::Needs(4096))));
        reply[..4].copy_from_slice(&RegionInfo::SIZE.to_ne_bytes());
        assert_eq!(region(&reply), Err("its capabilities are nowhere"));
        assert_eq!(region(&reply[..31]), Err("it is shorter than its struct"));
    }
}
