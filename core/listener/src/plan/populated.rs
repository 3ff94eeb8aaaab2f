//! Planning discardable sections: populated blocks are mapped so that each can be unmapped by itself; blocks that could
//! become populated are worth a warning if the host could not take them.

use crate::plan::registrations::near;
use crate::plan::{Planner, Run, bytes, overlapping};
use crate::report::{Fate, Verdict, Warning, WarningCause};
use crate::section::{self, Backing, Need, Section, TargetMemory};
use dmaspace_core::contract::MappingModel;
use dmaspace_core::words::access::Access;
use dmaspace_core::words::address::IovaRange;
use dmaspace_core::words::memory::HostMemory;
use dmaspace_core::words::page::PageSize;
use dmaspace_core::words::window::Window;

/// More registrations than these are worth a warning: the kernel walks a list of them for each TCE (linux:
/// arch/powerpc/mm/book3s64/iommu_api.c, mm_iommu_lookup). Measured on an emulated POWER9, a TCE takes 1.2 to 1.4 times
/// as many instructions with 16 as with one, and 4.4 to 7.3 times with 256.
const MANY_REGISTRATIONS: u64 = 64;

impl<'a> Planner<'a> {
    /// Decides the fate of a discardable section and returns its populated ranges, as runs to be mapped.
    pub(super) fn judge_discardable(
        &mut self,
        section: &'a Section,
        memory: &'a HostMemory,
        access: Access,
        granule: PageSize,
    ) -> Vec<Run<'a>> {
        let populated = self.populated_of(section);
        let window = match self.window_for_blocks(section, memory, access, granule, populated) {
            Ok(window) => window,
            Err(reason) => {
                self.plan.sections.push(Verdict::new(section.clone(), Fate::Refused, reason));
                return Vec::new();
            }
        };
        let there: u64 = populated.iter().map(|range| bytes(*range) >> granule.shift()).sum();
        let all = blocks_of(section);
        let reason = format!("{there} of {all} blocks of {granule} populated");
        let verdict = Verdict::new(section.clone(), Fate::Discardable, reason);
        self.plan.sections.push(verdict);
        let mut runs = Vec::with_capacity(populated.len());
        for range in populated.iter().copied() {
            debug_assert!(section.range().covers(range), "populated blocks lie inside their section");
            let address = memory.address().get().wrapping_add(section.range().offset_of(range.first()));
            runs.push(Run { range, address, memory, access, need: Need::Required, window, unit: Some(granule) });
        }
        runs
    }

    /// The window of a discardable section whose blocks can be mapped and unmapped one by one, or the reason why they
    /// cannot.
    fn window_for_blocks(
        &self,
        section: &Section,
        memory: &HostMemory,
        access: Access,
        granule: PageSize,
        populated: &[IovaRange],
    ) -> Result<Window, String> {
        if let Some(reason) = self.windows.refusal(section) {
            return Err(reason.to_owned());
        }
        if let Some(reason) = self.unfit(memory, access) {
            return Err(reason);
        }
        let Some(window) = self.windows.after.covering(section.range()) else {
            return Err(self.outside(section.range()));
        };
        self.check_blocks(section, memory, granule, window)?;
        if let Some(known) = self.registered_with_others(memory) {
            return Err(format!(
                "{known} is registered as one piece, of which a part cannot be unregistered: remove all of it first"
            ));
        }
        let fence = self.host.fences.iter().find(|fence| populated.iter().any(|range| range.overlaps(fence.range)));
        match fence {
            Some(fence) => Err(format!("{} is fenced after an earlier failure", fence.range)),
            None => Ok(*window),
        }
    }

    /// Checks that blocks are made of whole pages, on the bus and in the host.
    fn check_blocks(
        &self,
        section: &Section,
        memory: &HostMemory,
        granule: PageSize,
        window: &Window,
    ) -> Result<(), String> {
        if !section.range().is_aligned_to(granule) {
            return Err(format!("its bounds are no multiples of its blocks of {granule}"));
        }
        // A host with registration pins whole pages of its own, so that blocks must be made of them.
        let page = match self.host.registered {
            Some(_) => window.granule().max(self.host.powers.host_page),
            None => window.granule(),
        };
        if granule < page {
            return Err(format!("its blocks of {granule} are no multiples of the host's {page} pages here"));
        }
        if !page.divides(memory.address().get()) {
            return Err(format!("its bus and host addresses lie differently in pages of {page}"));
        }
        Ok(())
    }

    /// A registration of bytes of `memory` that stays, since plain memory needs it too.
    fn registered_with_others(&self, memory: &HostMemory) -> Option<&'a HostMemory> {
        let plain = |known: &HostMemory| {
            let sections = self.view.sections.iter().filter_map(Section::direct).map(|(memory, _)| memory);
            let mut all = sections.chain(self.view.targets.iter().map(TargetMemory::memory));
            all.any(|plain| plain.overlaps(known))
        };
        near(self.host.registered.as_deref().unwrap_or_default(), memory).iter().find(|known| plain(known))
    }

    /// The populated ranges of a discardable section that was in force before and stays. A section that goes and comes
    /// back in the same update begins without any.
    fn populated_of(&self, section: &Section) -> &'a [IovaRange] {
        let goes = !overlapping(&self.scope.removed, section.range(), |removed| *removed).is_empty();
        let populated = self.populated.get(&section.range().first()).filter(|_| !goes);
        populated.map(Vec::as_slice).unwrap_or_default()
    }

    /// The memory of every populated block, block by block, ascending by host address.
    pub(super) fn populated_blocks(&self) -> Vec<HostMemory> {
        let mut blocks = Vec::new();
        for first in self.populated.keys() {
            let Some(section) = self.view.sections.beginning_at(*first) else { continue };
            for range in self.populated_of(section) {
                blocks.extend(blocks_in(section, *range));
            }
        }
        blocks.sort_by_key(HostMemory::address);
        blocks
    }

    /// Warnings of the discardable sections judged, although they are in force.
    pub(super) fn warnings_of_blocks(&self) -> Vec<Warning> {
        let discardable = self.plan.sections.iter().filter(|verdict| verdict.fate == Fate::Discardable);
        let judged: Vec<_> = discardable.collect();
        let few = if judged.is_empty() { None } else { self.few_mappings() };
        let mut warnings = Vec::new();
        for verdict in judged {
            if let Some(few) = &few {
                warnings.push(warning(verdict, WarningCause::FewMappings, few));
            }
            if self.host.registered.is_some() && blocks_of(&verdict.piece) > MANY_REGISTRATIONS {
                warnings.push(warning(verdict, WarningCause::ManyRegistrations, DEAR));
            }
        }
        warnings
    }

    /// The words for a kernel that does not take all blocks of all discardable sections at once: each takes a mapping
    /// where kernels keep mappings (qemu: hw/vfio/common.c, vfio_register_ram_discard_listener, warns in the same
    /// case).
    fn few_mappings(&self) -> Option<String> {
        if self.host.powers.keeps == MappingModel::PageEntries {
            return None;
        }
        let left = self.host.space.powers().mappings_left()?.saturating_sub(self.plan.more_mappings);
        let mut to_come: u64 = 0;
        for section in self.view.sections.iter() {
            let Some(granule) = granule_of(section) else { continue };
            let populated: u64 = self.populated_of(section).iter().map(|range| bytes(*range) >> granule.shift()).sum();
            to_come = to_come.saturating_add(blocks_of(section).saturating_sub(populated));
        }
        (to_come > left).then(|| {
            format!(
                "{to_come} blocks of all sections are yet to come and take a mapping each, the kernel will have {left} \
                 left: larger blocks, or a higher dma_entry_limit of vfio_iommu_type1, would help"
            )
        })
    }
}

fn warning(verdict: &Verdict<Section>, cause: WarningCause, text: &str) -> Warning {
    Warning { name: verdict.piece.name().into(), cause, text: format!("{verdict}; {text}") }
}

/// The warning of many registrations.
const DEAR: &str = "each populated block is a registration of its own here, so that it can be unregistered, and every \
                    entry put on this host is slower for each of them: larger blocks would help";

/// The number of a section's blocks, populated or not.
fn blocks_of(section: &Section) -> u64 {
    granule_of(section).map_or(0, |granule| bytes(section.range()) >> granule.shift())
}

fn granule_of(section: &Section) -> Option<PageSize> {
    match section.backing() {
        Backing::Discardable { granule, .. } => Some(*granule),
        _ => None,
    }
}

/// The memory of each block of a discardable section in `range`.
fn blocks_in(section: &Section, range: IovaRange) -> Vec<HostMemory> {
    let (Some(granule), Some(memory)) = (granule_of(section), section.memory()) else { return Vec::new() };
    let parts = range.len().and_then(|len| memory.slice(section.range().offset_of(range.first()), len.get()));
    parts.map(|part| section::blocks_of(&part, granule)).unwrap_or_default()
}
