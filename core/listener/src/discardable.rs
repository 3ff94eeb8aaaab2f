//! Discardable sections: RAM whose blocks become populated and discarded while the section stays, as virtio-mem has it.
//!
//! The populated blocks are known here, not in the spaces: a space that is attached late, or lost everything with its
//! last device, gets them again. The changes of one section follow each other, and none happens while a commit is under
//! way. After a change devices reach a block in every space, or in none.
//!
//! # Hosts that register
//! sPAPR pins at registration, and a registration can only be removed as one piece (linux:
//! arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_get, mm_iommu_put). QEMU registers RAM whole and therefore forbids
//! discards there (qemu: hw/vfio/container.c, vfio_ram_block_discard_disable). Here each populated block is a
//! registration of its own: a discard unregisters it everywhere, and disturbs nothing else. Many blocks make entries
//! slower, and the report of a commit warns of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crate::apply::apply_all;
use crate::journal::Journal;
use crate::plan::{Plan, Step};
use crate::range_set::RangeSet;
use crate::section::{self, Backing, Need, Section};
use dmaspace_core::contract::{Mapping, MappingModel, PciAddressSpace, Unit};
use dmaspace_core::door::Errno;
use dmaspace_core::error::{Error, Kind, Operation};
use dmaspace_core::sync::{Mutex, MutexGuard, Rank, RwLock};
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;

/// The reason why blocks were not populated or discarded. Everything is as before, except for ranges that
/// [`BlockError::Space`] names as fenced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The section was removed.
    #[error("the section is gone")]
    NoSuchSection,
    /// The range does not lie inside the section.
    #[error("{0} does not lie inside the section {1}")]
    OutsideSection(IovaRange, IovaRange),
    /// The range does not begin and end with blocks.
    #[error("{0} is not made of blocks of {1}")]
    Misaligned(IovaRange, PageSize),
    /// A host's kernel would not take so many mappings. No call was made.
    #[error(
        "{needed} more mappings are needed, the kernel of {backend} has {left} left; populate less, or use larger \
         blocks"
    )]
    NoMappingSlots {
        /// The backend's name.
        backend: &'static str,
        /// The mappings needed: one for each block that is not populated yet.
        needed: u64,
        /// The mappings that the kernel still takes.
        left: u64,
    },
    /// The memory is part of a larger registration that was made without the listener: it cannot be unregistered by
    /// itself, and a device would not necessarily reach the pages that this process sees. No call was made.
    #[error("{memory} is registered with {backend} as one piece, which is no block; unregister it first")]
    RegisteredAround {
        /// The backend's name.
        backend: &'static str,
        /// The registration.
        memory: HostMemory,
    },
    /// A host refused.
    #[error(transparent)]
    Space(#[from] Error),
}

impl BlockError {
    /// The errno of the failed call; for a refusal before the kernel was asked, the errno with which kernels refuse the
    /// same ([`Error::as_errno`]).
    pub fn as_errno(&self) -> Errno {
        match self {
            Self::NoSuchSection => Errno::ENODEV,
            Self::OutsideSection(..) | Self::Misaligned(..) => Errno::EINVAL,
            Self::NoMappingSlots { .. } => Errno::ENOSPC,
            Self::RegisteredAround { .. } => Errno::EBUSY,
            Self::Space(error) => error.as_errno(),
        }
    }
}

/// Has the [kind](std::io::ErrorKind) of [`BlockError::as_errno`] and the text of the [`BlockError`].
impl From<BlockError> for std::io::Error {
    fn from(error: BlockError) -> Self {
        error.as_errno().with_text_of(error)
    }
}

/// A discardable section in force. Cheap to clone; holds the section weakly: once it is removed, every verb answers
/// [`BlockError::NoSuchSection`].
#[derive(Clone, Debug)]
pub struct DiscardableRam {
    shared: Weak<Shared>,
}

/// The spaces a section is kept in force on; `None` once the section is gone.
pub(super) type Serving = Option<Vec<Arc<dyn PciAddressSpace>>>;

/// The discardable sections in force, by first byte.
pub(super) type Discardables = BTreeMap<Iova, Arc<Shared>>;

/// The changes of discardable sections, paused until this is dropped: the spaces of each section, by first byte.
pub(super) type PausedBlocks<'a> = BTreeMap<Iova, MutexGuard<'a, Serving>>;

/// Waits for changes of discardable sections under way, and lets none begin until the result is dropped.
pub(super) fn pause_all(discardables: &Discardables) -> PausedBlocks<'_> {
    discardables.iter().map(|(first, section)| (*first, section.pause())).collect()
}

/// The section itself, owned by the listener.
///
/// Its locks ([`dmaspace_core::sync`]): `serving` ([`Rank::Discardable`]; of several sections, the lower one first) is
/// held while anything changes, kernel calls included; `populated` ([`Rank::Populated`]) for moments only.
#[derive(Debug)]
pub(super) struct Shared {
    range: IovaRange,
    memory: HostMemory,
    access: Access,
    granule: PageSize,
    serving: Mutex<Serving>,
    populated: RwLock<RangeSet>,
}

impl DiscardableRam {
    pub(super) fn of(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::downgrade(shared) }
    }

    fn shared(&self) -> Result<Arc<Shared>, BlockError> {
        self.shared.upgrade().ok_or(BlockError::NoSuchSection)
    }

    /// The bus addresses of the section.
    ///
    /// # Errors
    /// [`BlockError::NoSuchSection`].
    pub fn range(&self) -> Result<IovaRange, BlockError> {
        Ok(self.shared()?.range)
    }

    /// The size of a block.
    ///
    /// # Errors
    /// [`BlockError::NoSuchSection`].
    pub fn granule(&self) -> Result<PageSize, BlockError> {
        Ok(self.shared()?.granule)
    }

    /// The populated ranges, ascending, neighbours joined. Never waits for a kernel call.
    ///
    /// # Errors
    /// [`BlockError::NoSuchSection`].
    pub fn populated(&self) -> Result<Vec<IovaRange>, BlockError> {
        Ok(self.shared()?.populated())
    }

    /// Maps the blocks of `range` on every host: must be called after their memory is there. Blocks that are populated
    /// already stay as they are, without a call. A space without a window for the section gets the blocks when it has
    /// one ([`Listener::sync`]).
    ///
    /// [`Listener::sync`]: crate::Listener::sync
    ///
    /// # Errors
    /// Any [`BlockError`]; no block of `range` became populated then.
    pub fn populate(&self, range: IovaRange) -> Result<(), BlockError> {
        // Dropped after the lock: a journal may hold the last owner of memory.
        let mut spent = Vec::new();
        let shared = self.shared()?;
        let serving = shared.pause();
        let spaces = shared.check(&serving, range)?;
        let missing = shared.read_populated(|blocks| blocks.missing_in(range));
        if missing.is_empty() {
            return Ok(());
        }
        let mut plans = Vec::with_capacity(spaces.len());
        for space in spaces {
            if space.windows().windows.covering(shared.range).is_none() {
                continue;
            }
            shared.check_budget(space.as_ref(), &missing)?;
            plans.push((space, shared.plan_to_populate(space.as_ref(), &missing)?));
        }
        shared.carry_out(plans, &mut spent)?;
        shared.change_populated(|blocks| blocks.insert(range));
        Ok(())
    }

    /// Unmaps the blocks of `range` on every host, in as few calls as the kernel allows. Afterwards no host maps or
    /// pins them, and their memory may be discarded. Blocks that are not populated make no call, unless a failure left
    /// a registration of them.
    ///
    /// # Errors
    /// Any [`BlockError`]; the populated blocks of `range` still are, and must not be discarded: devices may reach
    /// them, even behind a fence, which stays until its space is dropped.
    pub fn discard(&self, range: IovaRange) -> Result<(), BlockError> {
        // Dropped after the lock: a journal may hold the last owner of memory.
        let mut spent = Vec::new();
        let shared = self.shared()?;
        let serving = shared.pause();
        let spaces = shared.check(&serving, range)?;
        let mut plans = Vec::with_capacity(spaces.len());
        for space in spaces {
            plans.push((space, shared.plan_to_discard(space.as_ref(), range)?));
        }
        shared.carry_out(plans, &mut spent)?;
        shared.change_populated(|blocks| blocks.remove(range));
        Ok(())
    }
}

impl Shared {
    /// A section with nothing populated, if it is a discardable one.
    pub(super) fn new(section: &Section, spaces: Vec<Arc<dyn PciAddressSpace>>) -> Option<Arc<Self>> {
        let Backing::Discardable { memory, access, granule } = section.backing() else { return None };
        Some(Arc::new(Self {
            range: section.range(),
            memory: memory.clone(),
            access: *access,
            granule: *granule,
            serving: Mutex::keyed(Rank::Discardable, section.range().first().get(), Some(spaces)),
            populated: RwLock::new(Rank::Populated, RangeSet::default()),
        }))
    }

    /// Waits for a change under way, and lets none begin until the result is dropped.
    fn pause(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock()
    }

    pub(super) fn populated(&self) -> Vec<IovaRange> {
        self.read_populated(|blocks| blocks.within(self.range))
    }

    pub(super) fn range(&self) -> IovaRange {
        self.range
    }

    pub(super) fn granule(&self) -> PageSize {
        self.granule
    }

    fn memory_of(&self, range: IovaRange) -> Option<HostMemory> {
        self.memory.slice(self.range.offset_of(range.first()), range.len()?.get())
    }

    fn count(&self, ranges: &[IovaRange]) -> u64 {
        let blocks = ranges.iter().map(|range| range.bytes() >> self.granule.shift()).sum::<u128>();
        u64::try_from(blocks).unwrap_or(u64::MAX)
    }

    fn read_populated<T>(&self, look: impl FnOnce(&RangeSet) -> T) -> T {
        look(&self.populated.read())
    }

    fn change_populated(&self, change: impl FnOnce(&mut RangeSet)) {
        change(&mut self.populated.write());
    }

    /// The spaces to work on, if the section is there and `range` is made of its blocks.
    fn check<'a>(&self, serving: &'a Serving, range: IovaRange) -> Result<&'a [Arc<dyn PciAddressSpace>], BlockError> {
        let spaces = serving.as_deref().ok_or(BlockError::NoSuchSection)?;
        if !self.range.covers(range) {
            return Err(BlockError::OutsideSection(range, self.range));
        }
        if !range.is_aligned_to(self.granule) {
            return Err(BlockError::Misaligned(range, self.granule));
        }
        Ok(spaces)
    }

    /// Checks that the kernel takes a mapping for each block, where kernels keep mappings.
    fn check_budget(&self, space: &dyn PciAddressSpace, missing: &[IovaRange]) -> Result<(), BlockError> {
        let needed = match space.describe().capabilities.keeps {
            MappingModel::Mappings => self.count(missing),
            MappingModel::PageEntries => 0,
        };
        match space.powers().mappings_left().filter(|left| *left < needed) {
            Some(left) => Err(BlockError::NoMappingSlots { backend: space.describe().backend, needed, left }),
            None => Ok(()),
        }
    }

    /// Checks that no device may reach the memory behind a fence: such memory must not be discarded, nor registered
    /// anew.
    fn check_fences(
        &self,
        space: &dyn PciAddressSpace,
        range: IovaRange,
        operation: Operation,
    ) -> Result<(), BlockError> {
        let concerns = operation == Operation::Unmap || space.powers().registration.is_some();
        let fence = self.memory_of(range).and_then(|memory| space.fence_onto(&memory));
        match fence.filter(|_| concerns) {
            Some(fence) => Err(Error::new(operation, range, Kind::Fenced(fence)).into()),
            None => Ok(()),
        }
    }

    fn plan_to_populate(&self, space: &dyn PciAddressSpace, missing: &[IovaRange]) -> Result<Plan, BlockError> {
        let mut steps = Vec::new();
        for range in missing {
            self.check_fences(space, *range, Operation::Map)?;
            // A failure may have left these. Pages they pin need not be those the process has now.
            steps.extend(self.registrations_in(space, *range)?.into_iter().map(Step::Unregister));
            if let (Some(_), Some(memory)) = (space.powers().registration, self.memory_of(*range)) {
                steps.extend(section::blocks_of(&memory, self.granule).into_iter().map(Step::Register));
            }
        }
        for range in missing {
            let Some(memory) = self.memory_of(*range) else { continue };
            let unit = Unit::Pages(self.granule);
            let mapping = Mapping::new(*range, memory, self.access, unit);
            steps.push(Step::Map(mapping, Need::Required));
        }
        Ok(Plan::of(steps))
    }

    fn plan_to_discard(&self, space: &dyn PciAddressSpace, range: IovaRange) -> Result<Plan, BlockError> {
        self.check_fences(space, range, Operation::Unmap)?;
        let populated = self.read_populated(|blocks| blocks.within(range)).into_iter().reduce(IovaRange::hull);
        let registered = self.registrations_in(space, range)?;
        let unmap = populated.map(Step::Unmap).into_iter();
        Ok(Plan::of(unmap.chain(registered.into_iter().map(Step::Unregister)).collect()))
    }

    /// The registrations of blocks in `range`: of those that are populated, and of those that a failure left.
    fn registrations_in(&self, space: &dyn PciAddressSpace, range: IovaRange) -> Result<Vec<HostMemory>, BlockError> {
        let (Some(registration), Some(memory)) = (space.powers().registration, self.memory_of(range)) else {
            return Ok(Vec::new());
        };
        let mut registered = registration.registered();
        registered.retain(|known| known.overlaps(&memory));
        let around = registered.iter().find(|known| known.address() < memory.address() || memory.last() < known.last());
        match around {
            Some(known) => {
                Err(BlockError::RegisteredAround { backend: space.describe().backend, memory: known.clone() })
            }
            None => Ok(registered),
        }
    }

    /// Carries out all plans, or none.
    fn carry_out(
        &self,
        plans: Vec<(&Arc<dyn PciAddressSpace>, Plan)>,
        spent: &mut Vec<Journal>,
    ) -> Result<(), BlockError> {
        match apply_all(plans.into_iter().map(|(space, plan)| (space.as_ref(), plan)), spent) {
            Ok(_) => Ok(()),
            Err(failed) => Err(failed.error.fencing(failed.fenced).into()),
        }
    }
}
