//! Why a hypercall was refused, and what the guest gets to see of it.

use dmaspace_core::error::Kind;
use dmaspace_core::{Iova, PageSize, SystemAddress};
use dmaspace_listener::EntryError;

use super::entry::Tce;
use super::table::OutsideTable;

/// What a hypercall returns in R3 (LoPAR: ch_lpar_option.xml, "hcall() Return Code Values"; linux:
/// arch/powerpc/include/asm/hvcall.h).
///
/// These are all that the four calls return. KVM's `H_TOO_HARD` is no answer for a guest: it asks the VMM to answer, which is us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReturnCode {
    /// `H_Success`.
    Success,
    /// `H_Hardware`: the host failed.
    Hardware,
    /// `H_Function`: an option that is not there.
    Function,
    /// `H_Parameter`: an argument out of range.
    Parameter,
    /// `H_NOT_ENOUGH_RESOURCES`: the host can map no more (LoPAR: ch_lpar_option.xml, return codes with the CMO option). Of all codes
    /// this is the one a Linux guest fails a mapping for. Others it logs, and its driver goes on (linux:
    /// arch/powerpc/platforms/pseries/iommu.c, tce_build_pSeriesLP, tce_buildmulti_pSeriesLP).
    NotEnoughResources,
    /// `H_P4`: the fourth argument.
    P4,
}

impl ReturnCode {
    /// The number.
    pub const fn get(self) -> i64 {
        match self {
            Self::Success => 0,
            Self::Hardware => -1,
            Self::Function => -2,
            Self::Parameter => -4,
            Self::NotEnoughResources => -44,
            Self::P4 => -57,
        }
    }

    /// The code for what a hypercall came to.
    pub fn of<T>(result: &Result<T, Refusal>) -> Self {
        result.as_ref().map_or_else(Refusal::code, |_| Self::Success)
    }
}

/// Why a hypercall was refused. Table and host are as they were before it, but for what a host could not bring back
/// (see [`Refusal::Host`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The guest has no such table.
    #[error("there is no TCE table with LIOBN {0:#x}")]
    NoSuchTable(u64),
    /// A negative LIOBN means several tables at once: the MTT option, which is not offered.
    #[error("several TCE tables at once (LIOBN {0})")]
    SeveralTables(i64),
    /// The bus address lies inside a page.
    #[error("{0} is no multiple of the window's {1} pages")]
    MisalignedAddress(Iova, PageSize),
    /// Not all entries lie in the table.
    #[error(transparent)]
    OutsideTable(#[from] OutsideTable),
    /// H_PUT_TCE_INDIRECT takes 512.
    #[error("a list of {0} entries")]
    LongList(u64),
    /// H_STUFF_TCE takes 512, unless it clears.
    #[error("{0} entries at once")]
    LongStuff(u64),
    /// The list does not begin on a border of 4 KiB.
    #[error("the list at {0} is no multiple of 4K")]
    MisalignedList(SystemAddress),
    /// The list is not in the guest's memory.
    #[error("there is no memory for the list at {0}")]
    NoList(SystemAddress),
    /// An entry's address is no multiple of the window's page.
    #[error("the address of {0:?} is no multiple of the window's {1} pages")]
    MisalignedEntry(Tce, PageSize),
    /// An entry names what is not the guest's memory.
    #[error("{0:?} points to no memory of the guest")]
    NotMemory(Tce),
    /// The kernel answers hypercalls on this table by itself, and would not answer this one: what its entries point to is not registered, or
    /// in no memory slot of KVM's.
    #[error("the kernel fills the table, and would not")]
    LeftToKernel,
    /// The host said no. What was done before was taken back. Where that failed too, the table says what devices may reach; ranges that
    /// the error names as fenced are in an unknown state, and refuse every change from then on.
    #[error(transparent)]
    Host(#[from] EntryError),
}

impl Refusal {
    /// The code for the guest.
    pub fn code(&self) -> ReturnCode {
        match self {
            Self::SeveralTables(_) => ReturnCode::Function,
            Self::LongStuff(_) => ReturnCode::P4,
            Self::LeftToKernel => ReturnCode::Hardware,
            Self::Host(error) => host_code(error),
            _ => ReturnCode::Parameter,
        }
    }
}

fn host_code(error: &EntryError) -> ReturnCode {
    let EntryError::Space(error) = error else {
        return if matches!(error, EntryError::NotRam(_)) { ReturnCode::Parameter } else { ReturnCode::Hardware };
    };
    match error.kind {
        // Write access to ROM is the guest's mistake.
        Kind::HostReadOnly(_) => ReturnCode::Parameter,
        // A limit of the host's: on mappings, on locked memory, on how far its windows reach.
        Kind::PinLimit(_) | Kind::NoMappingSlot | Kind::OutsideWindows(_) => ReturnCode::NotEnoughResources,
        _ => ReturnCode::Hardware,
    }
}
