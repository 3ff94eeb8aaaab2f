//! The kernels' answers as a table: one row per rule, each with a few requests and their expected answers.
//!
//! The table does not depend on the soft host. A [`Site`] is any door with a fresh context and a little memory, so the
//! same rows are checked on the soft host and on real kernels, and a difference is a bug in one of the two. Rows clean
//! up after themselves, except for those that [leave](Row::leaves) something that no call removes.

pub mod raw;
mod rows;

use std::fmt;

use dmaspace_abi::{iommufd, type1};
use dmaspace_core::door::{Door, Errno, Handle};
use dmaspace_core::{Access, HostMemory, Iova};

use crate::profile::{KernelVersion, TceManager};
use raw::Context;
pub use rows::ROWS;

/// A rule, and the requests that show it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Row {
    /// The rule, in a few words.
    pub name: &'static str,
    /// The context of the requests.
    pub dialect: Dialect,
    /// The hosts on which the rule holds.
    pub only: Only,
    /// The requests.
    pub steps: &'static [Step],
    /// The things it leaves behind that no call removes.
    pub leaves: Leaves,
}

/// The kinds of context. Each is fresh: a group has joined it (or a device is attached), and no request was made.
///
/// Exhaustive: a runner of rows must know each context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// A type1 v2 container.
    Type1,
    /// A type1 v1 container.
    Type1V1,
    /// An sPAPR v2 container.
    Spapr,
    /// An sPAPR v1 container.
    SpaprV1,
    /// An address space with a device attached.
    Ioas,
    /// An iommufd in the place of a type1 v2 container, with a device open.
    Compat,
    /// An iommufd in the place of a type1 v1 container, with a device open.
    CompatV1,
}

/// The hosts on which a row holds.
///
/// Exhaustive: a runner of rows must know each condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Only {
    /// Every host that has the dialect.
    Anywhere,
    /// Hosts of this platform.
    On(TceManager),
    /// Hosts with a device that can be made to write.
    WithDevice,
}

/// The things a row leaves behind.
///
/// Exhaustive: a runner of rows must know each remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaves {
    /// Nothing.
    Nothing,
    /// Locked memory, and registrations that stand in the way of others; perhaps a warning in the kernel's log when the
    /// process ends.
    LockedMemory,
    /// A warning in the kernel's log.
    Warning,
    /// A warning in the kernel's log since Linux 7.2; nothing before.
    WarningSince72,
}

/// A request and its answer.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Step {
    /// The request.
    pub act: Act,
    /// The expected answer.
    pub answer: ExpectedAnswer,
}

/// A request. Lengths are in pages of the host.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Act {
    /// Map memory at a place.
    Map(BusAddress, Memory, Access),
    /// Map the memory by its file.
    MapFile(BusAddress, Memory, Access),
    /// Unmap a range.
    Unmap(BusAddress, Length),
    /// Unmap everything; on sPAPR, remove the window at 0.
    UnmapAll,
    /// Map, at the second place of the same address space, a range of the memory that the first place has mapped.
    Copy(BusAddress, BusAddress, Length, Access),
    /// Charge this process for everything that is mapped, with a request of this size.
    ChangeProcess(u32),
    /// Query the IOMMU in front of a device, with the id of the address space, which is no device.
    HwInfo,
    /// Allocate a page table that logs, with the id of the address space, which is no device.
    MakePageTable,
    /// Start logging, with the id of the address space, which is no page table.
    SetPageTableLogging,
    /// Read a log with these flags, and with the id of the address space, which is no page table.
    GetPageTableLog(u32),
    /// Start or stop logging in a type1 container, or make its request with other flags.
    DirtyPages(u32),
    /// Read the log of a type1 container. The number written back is that of the bits set.
    GetLog(BusAddress, Length),
    /// Unmap a range of a type1 container, and read its log.
    UnmapAndGetLog(BusAddress, Length),
    /// Invalidate the addresses of a container's mappings.
    InvalidateVaddrs(BusAddress, Length),
    /// Invalidate the addresses of all mappings.
    InvalidateAllVaddrs,
    /// Update the address of a container's mapping, with access, which no update may have.
    UpdateVaddr(BusAddress, Memory, Access),
    /// Register memory.
    Register(Memory),
    /// Unregister memory.
    Unregister(Memory),
    /// Create a window: page shift, bytes, levels.
    Create(u32, u64, u32),
    /// Remove the window that contains an address.
    Remove(u64),
    /// Allow maps in a v1 container.
    Enable,
    /// Disallow maps in a v1 container.
    Disable,
    /// Make the device write at a place.
    Store(BusAddress),
}

/// A bus address.
///
/// Exhaustive: a runner of rows must know each form.
#[derive(Clone, Copy, Debug)]
pub enum BusAddress {
    /// The first byte of this page, counted from 1 MiB.
    Page(u64),
    /// A byte inside this page, by its offset.
    Inside(u64, u64),
    /// The first byte of a page below 2^64, counted from there.
    BelowTop(u64),
    /// This address.
    Address(u64),
    /// The first byte of a page that is reserved on the site.
    Reserved,
    /// The first byte of a page that no page table of the site reaches.
    Unreached,
}

/// A number of bytes.
///
/// Exhaustive: a runner of rows must know each form.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// A number of pages.
    Pages(u64),
    /// A number of bytes.
    Bytes(u64),
}

/// Memory of the site.
///
/// Exhaustive: a runner of rows must know each memory.
#[derive(Clone, Copy, Debug)]
pub enum Memory {
    /// The first or second page.
    Page(u64),
    /// The first and the second page.
    Both,
    /// The first page, with a length of zero.
    Empty,
    /// A part of the first page: length and offset.
    Part(u64, u64),
    /// A page that does not exist.
    Absent,
    /// Two pages, of which the second does not exist.
    Holed,
    /// A page this process may only read.
    ReadOnly,
}

/// The expected outcome of a request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ExpectedAnswer {
    /// The result 0.
    Done,
    /// The result 0, and this many pages written back as the size.
    Pages(u64),
    /// The result 0, and this many bits set.
    Bits(u64),
    /// The result 0, and an untouched size field.
    SizeUntouched,
    /// The result 0, and a window that begins there.
    WindowAt(u64),
    /// This result.
    Result(i32),
    /// This errno.
    Fails(Errno),
    /// The bytes that the device wrote are in this page of the site's memory, and nowhere else.
    Arrives(u64),
    /// The bytes that the device wrote are nowhere.
    Vanishes,
    /// The first answer before Linux 7.2, the second since.
    Since72(&'static ExpectedAnswer, &'static ExpectedAnswer),
    /// The first answer on bare metal, the second in partitions.
    Platforms(&'static ExpectedAnswer, &'static ExpectedAnswer),
}

/// A place to check rows on.
///
/// Exhaustive: a runner of rows must provide each part.
pub struct Site<'a> {
    /// The door.
    pub door: &'a dyn Door,
    /// A fresh context.
    pub context: Context,
    /// The kernel whose answers are expected.
    pub kernel: KernelVersion,
    /// The platform, on POWER.
    pub platform: Option<TceManager>,
    /// A page's address that is reserved there.
    pub reserved: u64,
    /// A page's address that no page table reaches there; where they reach everything, a reserved one.
    pub unreached: u64,
    /// Two pages of the host that exist and are writable.
    pub memory: HostMemory,
    /// Memory with faults.
    pub flawed: Flawed,
    /// Makes the device write a few bytes, not all of them zero, at a bus address. The memory shows whether they
    /// arrive.
    pub store: Option<&'a dyn Fn(Iova)>,
}

/// Memory with faults. Where it is `None`, the address in the request is zero.
///
/// Exhaustive: a runner of rows must provide each.
#[derive(Clone, Debug)]
pub struct Flawed {
    /// A page that does not exist.
    pub absent: Option<HostMemory>,
    /// Two pages, of which the second does not exist; or the first alone, for a door that accepts requests that reach
    /// beyond their memory.
    pub holed: HostMemory,
    /// A page that this process may only read.
    pub read_only: HostMemory,
}

/// A row whose answers are not as expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{row}, step {step} ({act}): expected {expected}, found {found}")]
#[non_exhaustive]
pub struct Mismatch {
    /// The name of the row.
    pub row: &'static str,
    /// The number of the step, from 1.
    pub step: usize,
    /// The request.
    pub act: String,
    /// The expected outcome.
    pub expected: String,
    /// The outcome.
    pub found: String,
}

impl Row {
    /// Returns whether the row can be checked on the site.
    pub fn applies_to(&self, site: &Site<'_>) -> bool {
        let dialect = matches!(
            (self.dialect, site.context),
            (Dialect::Type1 | Dialect::Type1V1, Context::Type1(_))
                | (Dialect::Compat | Dialect::CompatV1, Context::Compat(_))
                | (Dialect::Spapr | Dialect::SpaprV1, Context::Spapr(_))
                | (Dialect::Ioas, Context::Ioas { .. })
        );
        dialect
            && match self.only {
                Only::Anywhere => true,
                Only::On(platform) => site.platform == Some(platform),
                Only::WithDevice => site.store.is_some(),
            }
    }

    /// Makes the row's requests and compares the answers.
    ///
    /// # Errors
    /// The first step with another outcome.
    ///
    /// # Safety
    /// If the site's door is real, its context has no mappings but those of rows.
    #[expect(unsafe_code, reason = "UNSAFETY: a row may copy a mapping, and nothing names its memory")]
    pub unsafe fn check(&self, site: &Site<'_>) -> Result<(), Mismatch> {
        for (n, step) in self.steps.iter().enumerate() {
            let expected = site.resolve(step.answer);
            let found = site.request(step.act);
            if !expected.matches(&found) {
                return Err(Mismatch {
                    row: self.name,
                    step: n + 1,
                    act: format!("{:?}", step.act),
                    expected: format!("{expected:?}"),
                    found: format!("{found:?}"),
                });
            }
        }
        Ok(())
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Found {
    result: Result<i32, Errno>,
    /// The size or address the kernel wrote back, or the page that changed.
    written: Option<u64>,
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.result, self.written) {
            (Err(errno), _) => write!(f, "{errno}"),
            (Ok(result), Some(written)) => write!(f, "result {result} and {written:#x}"),
            (Ok(result), None) => write!(f, "result {result}"),
        }
    }
}

/// An expected answer on a given site.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Result(i32),
    Written(u64),
    Fails(Errno),
    Nowhere,
}

impl Expected {
    fn matches(self, found: &Found) -> bool {
        match self {
            Self::Result(result) => found.result == Ok(result),
            Self::Written(value) => found.result == Ok(0) && found.written == Some(value),
            Self::Fails(errno) => found.result == Err(errno),
            Self::Nowhere => found.result == Ok(0) && found.written.is_none(),
        }
    }
}

impl Site<'_> {
    fn page(&self) -> u64 {
        self.door.host_page().bytes()
    }

    fn resolve(&self, answer: ExpectedAnswer) -> Expected {
        match answer {
            ExpectedAnswer::Done => Expected::Result(0),
            ExpectedAnswer::Pages(pages) => Expected::Written(pages * self.page()),
            ExpectedAnswer::Bits(bits) => Expected::Written(bits),
            ExpectedAnswer::SizeUntouched => Expected::Written(UNTOUCHED),
            ExpectedAnswer::WindowAt(start) => Expected::Written(start),
            ExpectedAnswer::Result(result) => Expected::Result(result),
            ExpectedAnswer::Fails(errno) => Expected::Fails(errno),
            ExpectedAnswer::Arrives(page) => Expected::Written(page),
            ExpectedAnswer::Vanishes => Expected::Nowhere,
            ExpectedAnswer::Since72(old, new) => {
                self.resolve(if self.kernel >= KernelVersion::V7_2 { *new } else { *old })
            }
            ExpectedAnswer::Platforms(bare, partition) => {
                self.resolve(if self.platform == Some(TceManager::PowerNv) { *bare } else { *partition })
            }
        }
    }

    /// Makes a request, and returns its outcome.
    fn request(&self, act: Act) -> Found {
        match act {
            Act::Map(at, memory, access) => self.map(at, memory, access),
            Act::MapFile(at, memory, access) => self.map_file(at, memory, access),
            Act::Unmap(at, length) => self.unmap(at, length),
            Act::UnmapAll => sized(raw::unmap_all(self.door, self.context)),
            Act::Copy(from, to, length, access) => self.copy(from, to, length, access),
            Act::ChangeProcess(size) => self.on_ioas(|iommufd, _| raw::change_process(self.door, iommufd, size)),
            Act::HwInfo => self.on_ioas(|iommufd, id| raw::hw_info(self.door, iommufd, id, 0).map(|_| 0)),
            Act::MakePageTable => self.make_page_table(),
            Act::SetPageTableLogging => self.set_page_table_logging(),
            Act::GetPageTableLog(flags) => self.get_page_table_log(flags),
            Act::DirtyPages(flags) => self.on_container(|container| raw::dirty_pages(self.door, container, flags)),
            Act::GetLog(at, length) => self.get_log(at, length),
            Act::UnmapAndGetLog(at, length) => self.unmap_and_get_log(at, length),
            Act::InvalidateVaddrs(at, length) => {
                self.invalidate_vaddrs(type1::UNMAP_VADDR, self.address(at), self.bytes(length))
            }
            Act::InvalidateAllVaddrs => self.invalidate_vaddrs(type1::UNMAP_VADDR | type1::UNMAP_ALL, 0, 0),
            Act::UpdateVaddr(at, memory, access) => self.update_vaddr(at, memory, access),
            Act::Register(memory) => self.register(memory),
            Act::Unregister(memory) => self.unregister(memory),
            Act::Create(shift, size, levels) => self.create(shift, size, levels),
            Act::Remove(at) => self.on_container(|container| raw::remove(self.door, container, at)),
            Act::Enable => self.on_container(|container| raw::enable(self.door, container)),
            Act::Disable => self.on_container(|container| raw::disable(self.door, container)),
            Act::Store(at) => self.store(Iova::new(self.address(at))),
        }
    }

    fn map(&self, at: BusAddress, memory: Memory, access: Access) -> Found {
        let (memory, size) = self.memory(memory);
        plain(raw::map(self.door, self.context, self.address(at), size, memory.as_ref(), access))
    }

    fn map_file(&self, at: BusAddress, memory: Memory, access: Access) -> Found {
        let (memory, size) = self.memory(memory);
        plain(raw::map_file(self.door, self.context, self.address(at), size, memory.as_ref(), access))
    }

    fn unmap(&self, at: BusAddress, length: Length) -> Found {
        let size = self.bytes(length);
        let unmapped = raw::unmap(self.door, self.context, self.address(at), size);
        sized(unmapped.map(|(result, after)| (result, self.as_written(size, after))))
    }

    #[expect(unsafe_code, reason = "UNSAFETY: the promise of `Row::check`")]
    fn copy(&self, from: BusAddress, to: BusAddress, length: Length, access: Access) -> Found {
        let (from, to, size) = (self.address(from), self.address(to), self.bytes(length));
        self.on_ioas(|iommufd, id| {
            // SAFETY: the caller of `Row::check` promised that rows made all mappings of the context, with `raw::map`.
            unsafe { raw::copy(self.door, iommufd, (id, from), (id, to), size, access) }
        })
    }

    fn make_page_table(&self) -> Found {
        let flags = iommufd::HWPT_ALLOC_DIRTY_TRACKING;
        self.on_ioas(|iommufd, id| raw::alloc_page_table(self.door, iommufd, id, id, flags).map(|_| 0))
    }

    fn set_page_table_logging(&self) -> Found {
        self.on_ioas(|iommufd, id| raw::set_dirty_tracking(self.door, iommufd, id, iommufd::DIRTY_TRACKING_ENABLE))
    }

    fn get_page_table_log(&self, flags: u32) -> Found {
        // The door requires the whole page that the bitmap ends in.
        let Ok(room) = usize::try_from(2 * self.page()) else { return plain(Err(Errno::EINVAL)) };
        let (range, page, mut bitmap) = ((0, self.page()), self.page(), vec![0; room]);
        self.on_ioas(|iommufd, id| raw::get_dirty_bitmap(self.door, iommufd, id, flags, range, page, &mut bitmap))
    }

    fn get_log(&self, at: BusAddress, length: Length) -> Found {
        let range = (self.address(at), self.bytes(length));
        self.on_type1(|container| raw::get_log(self.door, container, range, self.page()))
    }

    fn unmap_and_get_log(&self, at: BusAddress, length: Length) -> Found {
        let range = (self.address(at), self.bytes(length));
        self.on_type1(|container| raw::unmap_and_get_log(self.door, container, range, self.page()))
    }

    fn invalidate_vaddrs(&self, flags: u32, at: u64, size: u64) -> Found {
        match self.context {
            Context::Type1(container) | Context::Compat(container) => {
                sized(raw::unmap_type1(self.door, container, flags, at, size))
            }
            Context::Spapr(_) | Context::Ioas { .. } => NOT_MEANT,
        }
    }

    fn update_vaddr(&self, at: BusAddress, memory: Memory, access: Access) -> Found {
        let (Context::Type1(container) | Context::Compat(container)) = self.context else { return NOT_MEANT };
        let (memory, size) = self.memory(memory);
        plain(raw::update_vaddr(self.door, container, (self.address(at), size), memory.as_ref(), access))
    }

    fn register(&self, memory: Memory) -> Found {
        let (memory, size) = self.memory(memory);
        self.on_container(|container| raw::register(self.door, container, memory.as_ref(), size))
    }

    fn unregister(&self, memory: Memory) -> Found {
        let (memory, size) = self.memory(memory);
        self.on_container(|container| raw::unregister(self.door, container, memory.as_ref(), size))
    }

    fn create(&self, shift: u32, size: u64, levels: u32) -> Found {
        let Context::Spapr(container) = self.context else { return NOT_MEANT };
        sized(raw::create(self.door, container, shift, size, levels))
    }

    fn on_container(&self, request: impl FnOnce(Handle) -> Result<i32, Errno>) -> Found {
        match self.context {
            Context::Type1(container) | Context::Spapr(container) => plain(request(container)),
            Context::Compat(_) | Context::Ioas { .. } => NOT_MEANT,
        }
    }

    /// A request about dirty pages.
    fn on_type1(&self, request: impl FnOnce(Handle) -> Result<(i32, u64), Errno>) -> Found {
        match self.context {
            Context::Type1(container) => sized(request(container)),
            Context::Compat(_) | Context::Spapr(_) | Context::Ioas { .. } => NOT_MEANT,
        }
    }

    fn on_ioas(&self, request: impl FnOnce(Handle, u32) -> Result<i32, Errno>) -> Found {
        match self.context {
            Context::Ioas { iommufd, id } => plain(request(iommufd, id)),
            Context::Type1(_) | Context::Compat(_) | Context::Spapr(_) => NOT_MEANT,
        }
    }

    /// Makes the device write, and finds the page that changed.
    fn store(&self, at: Iova) -> Found {
        let Some(store) = self.store else { return NOT_MEANT };
        for page in [0, 1] {
            if self.memory.write(page * self.page(), &ZEROES).is_err() {
                return NOT_MEANT;
            }
        }
        store(at);
        Found { result: Ok(0), written: [0, 1].into_iter().find(|page| self.has_changed(*page)) }
    }

    /// Returns whether a page does not begin with zeroes any more.
    fn has_changed(&self, page: u64) -> bool {
        let mut bytes = ZEROES;
        self.memory.read(page * self.page(), &mut bytes).is_ok() && bytes != ZEROES
    }

    fn address(&self, place: BusAddress) -> u64 {
        const BASE: u64 = 1 << 20;
        match place {
            BusAddress::Page(page) => BASE + page * self.page(),
            BusAddress::Inside(page, offset) => BASE + page * self.page() + offset,
            BusAddress::BelowTop(pages) => (pages * self.page()).wrapping_neg(),
            BusAddress::Address(address) => address,
            BusAddress::Reserved => self.reserved,
            BusAddress::Unreached => self.unreached,
        }
    }

    fn bytes(&self, length: Length) -> u64 {
        match length {
            Length::Pages(pages) => pages * self.page(),
            Length::Bytes(bytes) => bytes,
        }
    }

    /// The size after an unmap, or the mark of an untouched one, which is possible on sPAPR only.
    fn as_written(&self, asked: u64, after: u64) -> u64 {
        if matches!(self.context, Context::Spapr(_)) && asked == after { UNTOUCHED } else { after }
    }

    /// The memory, and the length of the request.
    fn memory(&self, memory: Memory) -> (Option<HostMemory>, u64) {
        let page = self.page();
        match memory {
            Memory::Page(n) => (self.memory.slice(n * page, page), page),
            Memory::Both => (self.memory.slice(0, 2 * page), 2 * page),
            Memory::Empty => (self.memory.slice(0, page), 0),
            Memory::Part(offset, len) => (self.memory.slice(offset, len), len),
            Memory::Absent => (self.flawed.absent.clone(), page),
            Memory::Holed => (Some(self.flawed.holed.clone()), 2 * page),
            Memory::ReadOnly => (Some(self.flawed.read_only.clone()), page),
        }
    }
}

/// The first bytes of a page before the device writes.
const ZEROES: [u8; 64] = [0; 64];

/// The mark of a size field that the kernel did not touch.
const UNTOUCHED: u64 = u64::MAX;

/// The outcome of a row on a site of another dialect.
const NOT_MEANT: Found = Found { result: Err(Errno::EOPNOTSUPP), written: None };

fn plain(result: Result<i32, Errno>) -> Found {
    Found { result, written: None }
}

fn sized(result: Result<(i32, u64), Errno>) -> Found {
    Found { result: result.map(|(result, _)| result), written: result.ok().map(|(_, written)| written) }
}
