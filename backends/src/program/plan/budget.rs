//! The budget of a guest: its claims on a host's limits, all containers together, beside these limits.

use dmaspace::PageSizes;
use dmaspace_soft::Profile;
use serde::Serialize;

use super::tables::{self, PageTables};
use crate::program::cause::Cause;
use crate::program::counting::TceTable;
use crate::program::outcome::{AddressesOf, Judged};
use crate::program::replay::Replay;
use dmaspace::listener::Fate;

/// The budget of a guest on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Budget {
    /// Locked memory.
    pub(crate) locked_memory: LockedMemory,
    /// Mappings, where the host limits them.
    pub(crate) mappings: Option<Mappings>,
    /// TCE tables, where the host has them.
    pub(crate) tce_tables: Option<TceTables>,
    /// The page tables of an IOMMU with fixed windows, for memory in pages of each size.
    pub(crate) page_tables: Vec<PageTables>,
}

/// Locked memory, of all containers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LockedMemory {
    /// The bytes that will be locked, TCE tables included.
    pub(crate) needed: u64,
    /// The bytes that one container would lock by itself.
    pub(crate) one_container: u64,
    /// The bytes that may be locked; nothing where no limit is set.
    pub(crate) limit: Option<u64>,
    /// `true` if that is enough.
    pub(crate) fits: bool,
    /// The account: that of the VMM's process, or that of its user.
    pub(crate) charged_to: Payer,
}

/// The account of locked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Payer {
    /// The process of the VMM.
    Process,
    /// The user of the VMM, with all processes.
    User,
}

/// Mappings of each container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mappings {
    /// The mappings that will be made.
    pub(crate) needed: u64,
    /// The mappings that a container accepts.
    pub(crate) limit: u64,
    /// `true` if these are enough.
    pub(crate) fits: bool,
}

/// TCE tables of all containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct TceTables {
    /// The bytes of all of them, which count as locked memory.
    pub(crate) bytes: u64,
    /// The tables of one container, in the order in which they are created.
    pub(crate) each: Vec<TceTable>,
}

impl Budget {
    /// The budget for a replay in so many containers on a host without limits, and for one in one container, beside
    /// the limits of `host`.
    pub(crate) fn of(replay: &Replay, alone: &Replay, containers: u32, host: &Profile) -> Self {
        let (claims, backend) = (&replay.claims, replay.outcome.backend);
        let locked = claims.locked;
        let limit = host.limits.memlock;
        let of_user = matches!(backend, "iommufd" | "type1-on-iommufd");
        let in_one = claims.tables.len() / usize::try_from(containers).unwrap_or(1).max(1);
        let each = claims.tables.get(..in_one).unwrap_or_default().to_vec();
        let bytes = replay.outcome.bytes.tables.saturating_mul(containers.into());
        Self {
            locked_memory: LockedMemory {
                needed: locked,
                one_container: alone.claims.locked,
                limit,
                fits: limit.is_none_or(|limit| locked <= limit),
                charged_to: if of_user { Payer::User } else { Payer::Process },
            },
            mappings: claims.mappings.map(|needed| Mappings::of(needed, host.limits.dma_entries.into())),
            tce_tables: backend.starts_with("spapr").then_some(TceTables { bytes, each }),
            page_tables: page_tables(&replay.outcome.sections, containers, host),
        }
    }

    /// Returns whether everything fits.
    pub(crate) fn fits(&self) -> bool {
        self.locked_memory.fits && self.mappings.is_none_or(|mappings| mappings.fits)
    }

    /// The causes for which something does not.
    pub(crate) fn causes(&self) -> impl Iterator<Item = Cause> {
        let LockedMemory { needed, limit, fits, .. } = self.locked_memory;
        let locked = limit.filter(|_| !fits).map(|limit| Cause::LockedMemory { needed, limit });
        let over = self.mappings.filter(|mappings| !mappings.fits);
        let mappings = over.map(|Mappings { needed, limit, .. }| Cause::Mappings { needed, left: limit });
        locked.into_iter().chain(mappings)
    }
}

impl Mappings {
    fn of(needed: u64, limit: u64) -> Self {
        Self { needed, limit, fits: needed <= limit }
    }
}

/// The page tables for everything that is mapped, in every container.
fn page_tables(sections: &[Judged], containers: u32, host: &Profile) -> Vec<PageTables> {
    let Some(fixed) = &host.fixed else { return Vec::new() };
    let Some(sizes) = PageSizes::from_mask(fixed.page_sizes) else { return Vec::new() };
    let mapped: Vec<_> = sections.iter().filter_map(mapped_part).collect();
    let mut tables = tables::estimate(&mapped, sizes, fixed.last);
    for tables in &mut tables {
        tables.bytes = tables.bytes.saturating_mul(containers.into());
    }
    tables
}

/// The first address and the last of the part of a section that is mapped, if any is.
fn mapped_part(judged: &Judged) -> Option<(u64, u64)> {
    let is_mapped = judged.space == AddressesOf::Pci && judged.fate == Fate::Mapped;
    let first = judged.first.0.checked_add(judged.lost_head).filter(|_| is_mapped)?;
    let last = judged.last.0.checked_sub(judged.lost_tail)?;
    (first <= last).then_some((first, last))
}
