//! What kernels answer, as a table: one row a rule, each a few requests with their expected answers.
//!
//! The table knows no soft host. A [`Site`] is any door with a fresh context behind it and a little memory, so the same
//! rows are played on the soft host and on real kernels, and a difference is a mistake in one of the two. Rows clean up
//! after themselves, except for those that say they [`leave`](Row::leaves) something no call can take away.

pub mod raw;
mod rows;

use std::fmt;

use dmaspace_abi::{iommufd, type1};
use dmaspace_core::door::{Door, Errno, Handle};
use dmaspace_core::{Access, HostMemory, Iova};

use crate::profile::{KernelVersion, Platform};
use raw::Context;
pub use rows::ROWS;

/// A rule and how it shows.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The rule, in a few words.
    pub name: &'static str,
    /// The context it is about.
    pub dialect: Dialect,
    /// Where it holds.
    pub only: Only,
    /// The requests.
    pub steps: &'static [Step],
    /// What it leaves behind that no call takes away.
    pub leaves: Leaves,
}

/// The kinds of context rows are about. Each is fresh: a group is in it (or a device attached), and nothing was asked
/// of it.
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

/// Where a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Only {
    /// On every host that has the dialect.
    Anywhere,
    /// On hosts of this platform.
    On(Platform),
    /// Where a device can be made to write.
    WithDevice,
}

/// What a row leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leaves {
    /// Nothing.
    Nothing,
    /// Locked memory, and registrations that stand in the way of others; perhaps a warning in the kernel's log when the
    /// process ends.
    LockedMemory,
    /// A warning in the kernel's log.
    Warning,
    /// The same, on kernels since 7.2; nothing on earlier ones.
    WarningSince72,
}

/// A request and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What is done.
    pub act: Act,
    /// What must come of it.
    pub answer: Answer,
}

/// A request. Lengths are in pages of the host.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Map memory at a place.
    Map(Place, Memory, Access),
    /// Map what the memory's file holds.
    MapFile(Place, Memory, Access),
    /// Unmap so many pages and bytes.
    Unmap(Place, Length),
    /// Unmap everything; on sPAPR, remove the window at 0.
    UnmapAll,
    /// Map at the second place, in the same address space, so much of what the first shows.
    Copy(Place, Place, Length, Access),
    /// Have this process charged for all that is mapped, with a request of so many bytes.
    ChangeProcess(u32),
    /// Ask what the IOMMU in front of a device can do: the address space, which is none.
    HwInfo,
    /// Make a page table that logs for a device: the address space, which is none.
    MakePageTable,
    /// Have a page table log: the address space's, which is none.
    SetLogging,
    /// Ask, with these flags, what was written through a page table: the address space, which is none.
    GetWritten(u32),
    /// Begin or end logging in a type1 container, or what else such flags mean.
    Log(u32),
    /// Ask a type1 container what was written in so many pages. What is written back is how many bits are set.
    Written(Place, Length),
    /// Unmap so many pages of a type1 container, and ask what was written there.
    UnmapWritten(Place, Length),
    /// Let go of the addresses of a container's mappings.
    LetGo(Place, Length),
    /// Let go of all of them.
    LetGoOfAll,
    /// Give the address of memory to a container's mapping, with rights that belong to none.
    Give(Place, Memory, Access),
    /// Register memory.
    Register(Memory),
    /// Unregister memory.
    Unregister(Memory),
    /// Create a window: page shift, bytes, levels.
    Create(u32, u64, u32),
    /// Remove the window that holds an address.
    Remove(u64),
    /// Allow maps in a v1 container.
    Enable,
    /// The opposite.
    Disable,
    /// Let the device write at a place.
    Store(Place),
}

/// A bus address.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// This page, counted from 1 MiB.
    Page(u64),
    /// So many bytes into this page.
    Inside(u64, u64),
    /// So many pages below 2^64.
    BelowTop(u64),
    /// This address.
    Address(u64),
}

/// A number of bytes.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    /// So many pages.
    Pages(u64),
    /// So many bytes.
    Bytes(u64),
}

/// Memory of the site's.
#[derive(Clone, Copy, Debug)]
pub enum Memory {
    /// The first or second page.
    Page(u64),
    /// Both.
    Both,
    /// The first page, of which no byte is asked for.
    Empty,
    /// So many bytes of the first page, from so many on.
    Part(u64, u64),
    /// A page nobody has.
    Absent,
    /// Two pages, of which nobody has the second.
    Holed,
    /// A page this process may only read.
    ReadOnly,
}

/// What an act must come to.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// The result 0.
    Done,
    /// The result 0, and this many pages written back as the size.
    Pages(u64),
    /// The result 0, and this many bits set.
    Bits(u64),
    /// The result 0, and a size field as it was.
    SizeUntouched,
    /// The result 0, and a window that begins there.
    WindowAt(u64),
    /// This result.
    Result(i32),
    /// This errno.
    Fails(Errno),
    /// What the device wrote is in this page of the site's memory, and nowhere else.
    Arrives(u64),
    /// What the device wrote is nowhere.
    Vanishes,
    /// Kernels before 7.2 say the first, later ones the second.
    Since72(&'static Answer, &'static Answer),
    /// Bare metal says the first, partitions the second.
    Platforms(&'static Answer, &'static Answer),
}

/// Where rows are played.
pub struct Site<'a> {
    /// The door.
    pub door: &'a dyn Door,
    /// A fresh context.
    pub context: Context,
    /// Whose answers to expect.
    pub kernel: KernelVersion,
    /// The platform, on POWER.
    pub platform: Option<Platform>,
    /// Two pages of the host, there and writable.
    pub memory: HostMemory,
    /// Memory that is not what it should be.
    pub flawed: Flawed,
    /// Makes the device write a few bytes, not all of them zero, at a bus address. Whether they arrive is seen in the
    /// memory.
    pub store: Option<&'a dyn Fn(Iova)>,
}

/// Memory that is not what it should be. Without a span, the address in the request is zero.
#[derive(Clone, Debug)]
pub struct Flawed {
    /// A page that is not there.
    pub absent: Option<HostMemory>,
    /// Two pages, of which the second is not there; or the first alone, for a door that lets a request reach further
    /// than its memory.
    pub holed: HostMemory,
    /// A page that this process may only read.
    pub read_only: HostMemory,
}

/// A row that did not play out as it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{row}, step {step} ({act}): expected {expected}, found {found}")]
pub struct Mismatch {
    /// Which row.
    pub row: &'static str,
    /// Which of its steps, from 1.
    pub step: usize,
    /// What was done.
    pub act: String,
    /// What should have come of it.
    pub expected: String,
    /// What did.
    pub found: String,
}

impl Row {
    /// Whether the row can be played there.
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

    /// Plays the row.
    ///
    /// # Errors
    /// The first step that came to something else.
    pub fn play(&self, site: &Site<'_>) -> Result<(), Mismatch> {
        for (n, step) in self.steps.iter().enumerate() {
            let expected = site.resolve(step.answer);
            let found = site.act(step.act);
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

/// What an act came to.
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

/// An answer on a certain site.
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

    fn resolve(&self, answer: Answer) -> Expected {
        match answer {
            Answer::Done => Expected::Result(0),
            Answer::Pages(pages) => Expected::Written(pages * self.page()),
            Answer::Bits(bits) => Expected::Written(bits),
            Answer::SizeUntouched => Expected::Written(UNTOUCHED),
            Answer::WindowAt(start) => Expected::Written(start),
            Answer::Result(result) => Expected::Result(result),
            Answer::Fails(errno) => Expected::Fails(errno),
            Answer::Arrives(page) => Expected::Written(page),
            Answer::Vanishes => Expected::Nowhere,
            Answer::Since72(old, new) => self.resolve(if self.kernel >= KernelVersion::V7_2 { *new } else { *old }),
            Answer::Platforms(bare, partition) => {
                self.resolve(if self.platform == Some(Platform::PowerNv) { *bare } else { *partition })
            }
        }
    }

    fn act(&self, act: Act) -> Found {
        match act {
            Act::Map(at, memory, access) => {
                let (memory, size) = self.memory(memory);
                plain(raw::map(self.door, self.context, self.address(at), size, memory.as_ref(), access))
            }
            Act::MapFile(at, memory, access) => {
                let (memory, size) = self.memory(memory);
                plain(raw::map_file(self.door, self.context, self.address(at), size, memory.as_ref(), access))
            }
            Act::Unmap(at, length) => {
                let size = self.bytes(length);
                let unmapped = raw::unmap(self.door, self.context, self.address(at), size);
                sized(unmapped.map(|(result, after)| (result, self.as_written(size, after))))
            }
            Act::UnmapAll => sized(raw::unmap_all(self.door, self.context)),
            Act::Copy(from, to, length, access) => {
                let Context::Ioas { iommufd, id } = self.context else { return NOT_MEANT };
                let (from, to) = ((id, self.address(from)), (id, self.address(to)));
                plain(raw::copy(self.door, iommufd, from, to, self.bytes(length), access))
            }
            Act::ChangeProcess(size) => self.on_ioas(|iommufd, _| raw::change_process(self.door, iommufd, size)),
            Act::HwInfo => self.on_ioas(|iommufd, id| raw::hw_info(self.door, iommufd, id, 0).map(|_| 0)),
            Act::MakePageTable => self.on_ioas(|iommufd, id| {
                raw::alloc_page_table(self.door, iommufd, id, id, iommufd::HWPT_ALLOC_DIRTY_TRACKING).map(|_| 0)
            }),
            Act::SetLogging => self
                .on_ioas(|iommufd, id| raw::set_dirty_tracking(self.door, iommufd, id, iommufd::DIRTY_TRACKING_ENABLE)),
            Act::GetWritten(flags) => self.on_ioas(|iommufd, id| {
                // A door wants all of the page that the bitmap ends in.
                let room = usize::try_from(2 * self.page()).map_err(|_| Errno::EINVAL)?;
                let (range, page, mut bitmap) = ((0, self.page()), self.page(), vec![0; room]);
                raw::get_dirty_bitmap(self.door, iommufd, id, flags, range, page, &mut bitmap)
            }),
            Act::Log(flags) => self.on_container(|container| raw::log(self.door, container, flags)),
            Act::Written(at, length) => self.on_type1(|container| {
                let range = (self.address(at), self.bytes(length));
                raw::written(self.door, container, range, self.page())
            }),
            Act::UnmapWritten(at, length) => self.on_type1(|container| {
                let range = (self.address(at), self.bytes(length));
                raw::unmap_written(self.door, container, range, self.page())
            }),
            Act::LetGo(at, length) => self.let_go(type1::UNMAP_VADDR, self.address(at), self.bytes(length)),
            Act::LetGoOfAll => self.let_go(type1::UNMAP_VADDR | type1::UNMAP_ALL, 0, 0),
            Act::Give(at, memory, access) => {
                let (memory, size) = self.memory(memory);
                let (Context::Type1(container) | Context::Compat(container)) = self.context else { return NOT_MEANT };
                plain(raw::give(self.door, container, (self.address(at), size), memory.as_ref(), access))
            }
            Act::Register(memory) => {
                let (memory, size) = self.memory(memory);
                self.on_container(|container| raw::register(self.door, container, memory.as_ref(), size))
            }
            Act::Unregister(memory) => {
                let (memory, size) = self.memory(memory);
                self.on_container(|container| raw::unregister(self.door, container, memory.as_ref(), size))
            }
            Act::Create(shift, size, levels) => {
                let Context::Spapr(container) = self.context else { return NOT_MEANT };
                sized(raw::create(self.door, container, shift, size, levels))
            }
            Act::Remove(at) => self.on_container(|container| raw::remove(self.door, container, at)),
            Act::Enable => self.on_container(|container| raw::enable(self.door, container)),
            Act::Disable => self.on_container(|container| raw::disable(self.door, container)),
            Act::Store(at) => self.store(Iova::new(self.address(at))),
        }
    }

    fn let_go(&self, flags: u32, at: u64, size: u64) -> Found {
        match self.context {
            Context::Type1(container) | Context::Compat(container) => {
                sized(raw::unmap_type1(self.door, container, flags, at, size))
            }
            Context::Spapr(_) | Context::Ioas { .. } => NOT_MEANT,
        }
    }

    fn on_container(&self, request: impl FnOnce(Handle) -> Result<i32, Errno>) -> Found {
        match self.context {
            Context::Type1(container) | Context::Spapr(container) => plain(request(container)),
            Context::Compat(_) | Context::Ioas { .. } => NOT_MEANT,
        }
    }

    /// A question about written pages.
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

    /// Lets the device write, and looks which page it reached.
    fn store(&self, at: Iova) -> Found {
        let Some(store) = self.store else { return NOT_MEANT };
        let zeroes = [0; 64];
        for page in [0, 1] {
            if self.memory.write(page * self.page(), &zeroes).is_err() {
                return NOT_MEANT;
            }
        }
        store(at);
        let reached = |page: &u64| {
            let mut bytes = [0; 64];
            self.memory.read(page * self.page(), &mut bytes).is_ok() && bytes != zeroes
        };
        Found { result: Ok(0), written: [0, 1].into_iter().find(reached) }
    }

    fn address(&self, place: Place) -> u64 {
        const BASE: u64 = 1 << 20;
        match place {
            Place::Page(page) => BASE + page * self.page(),
            Place::Inside(page, offset) => BASE + page * self.page() + offset,
            Place::BelowTop(pages) => (pages * self.page()).wrapping_neg(),
            Place::Address(address) => address,
        }
    }

    fn bytes(&self, length: Length) -> u64 {
        match length {
            Length::Pages(pages) => pages * self.page(),
            Length::Bytes(bytes) => bytes,
        }
    }

    /// The size after an unmap, or that it was left alone: on sPAPR only, where it never is anything else.
    fn as_written(&self, asked: u64, after: u64) -> u64 {
        if matches!(self.context, Context::Spapr(_)) && asked == after { UNTOUCHED } else { after }
    }

    /// The memory, and how many bytes of it are asked for.
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

/// Stands for a size field that was left alone.
const UNTOUCHED: u64 = u64::MAX;

/// The row and the site do not go together.
const NOT_MEANT: Found = Found { result: Err(Errno::EOPNOTSUPP), written: None };

fn plain(result: Result<i32, Errno>) -> Found {
    Found { result, written: None }
}

fn sized(result: Result<(i32, u64), Errno>) -> Found {
    Found { result: result.map(|(result, _)| result), written: result.ok().map(|(_, written)| written) }
}
