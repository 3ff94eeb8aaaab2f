//! Reasons to refuse a hypercall, and the return codes that the guest gets for them.

use dmaspace_core::error::Kind;
use dmaspace_core::{Iova, PageSize, SystemAddress};
use dmaspace_listener::EntryError;

use crate::entry::Tce;
use crate::table::{NoRoom, OutsideTable};

/// The return code of a hypercall, in R3 (LoPAR: ch_lpar_option.xml, "hcall() Return Code Values"; linux:
/// arch/powerpc/include/asm/hvcall.h).
///
/// The four calls return no other codes. KVM's `H_TOO_HARD` is no answer for a guest: by it KVM passes the call to the
/// VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReturnCode {
    /// `H_Success`.
    Success,
    /// `H_Hardware`: the host failed.
    Hardware,
    /// `H_Function`: the option is not offered.
    Function,
    /// `H_Parameter`: an argument is out of range.
    Parameter,
    /// `H_NOT_ENOUGH_RESOURCES`: the host can map no more, or the tables may take no more memory (LoPAR:
    /// ch_lpar_option.xml, return codes with the CMO option). A Linux guest fails a mapping for this code alone; it
    /// logs other codes, and its driver goes on (linux: arch/powerpc/platforms/pseries/iommu.c, tce_build_pSeriesLP,
    /// tce_buildmulti_pSeriesLP).
    NotEnoughResources,
    /// `H_P4`: the fourth argument is wrong.
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

    /// The code for the result of a hypercall.
    pub fn of<T>(result: &Result<T, Refusal>) -> Self {
        result.as_ref().map_or_else(Refusal::code, |_| Self::Success)
    }
}

/// The reason to refuse a hypercall. Table and host are as they were before it, except for entries that a host could
/// not bring back (see [`Refusal::Host`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The guest has no such table. The number is the guest's register.
    #[error("there is no TCE table with LIOBN {0:#x}")]
    NoSuchTable(u64),
    /// A negative LIOBN means several tables at once: the MTT option, which is not offered.
    #[error("LIOBN {0} means several TCE tables at once, which is not offered")]
    SeveralTables(i64),
    /// The bus address lies inside a page.
    #[error("the bus address {0} is no multiple of the window's {1} pages")]
    MisalignedAddress(Iova, PageSize),
    /// Not all entries lie in the table.
    #[error(transparent)]
    OutsideTable(#[from] OutsideTable),
    /// H_PUT_TCE_INDIRECT takes 512 entries at most.
    #[error("a list of {0} entries is longer than 512")]
    LongList(u64),
    /// H_STUFF_TCE takes 512 entries at most, unless it clears.
    #[error("{0} entries at once are more than 512")]
    LongStuff(u64),
    /// The list does not begin on a multiple of 4 KiB.
    #[error("the list at {0} does not begin on a multiple of 4K")]
    MisalignedList(SystemAddress),
    /// The list is not in the guest's memory.
    #[error("the guest has no memory for the list at {0}")]
    NoList(SystemAddress),
    /// An entry's address is no multiple of the window's page.
    #[error("the address in {0:?} is no multiple of the window's {1} pages")]
    MisalignedEntry(Tce, PageSize),
    /// An entry points outside the guest's memory.
    #[error("{0:?} points to no memory of the guest")]
    NotMemory(Tce),
    /// The entries would take more memory than the VMM allows to the guest's tables
    /// ([`TceTables::with_most_bytes`](crate::TceTables::with_most_bytes)).
    #[error("the guest's TCE tables may take {0} bytes, and the entries would take more")]
    NoRoom(u64),
    /// KVM fills the table, and passed this call to the VMM: the memory that its entries point to is not registered, or
    /// is in no memory slot of KVM.
    #[error("KVM fills the table and refused the call: its memory is not registered, or in no memory slot")]
    LeftToKernel,
    /// The host refused a change. The changes made before it were undone. Where undoing failed, too, the table shows
    /// the entries that devices may still use; ranges that the error names as fenced are in an unknown state and refuse
    /// every change from then on.
    #[error(transparent)]
    Host(#[from] EntryError),
}

impl From<NoRoom> for Refusal {
    fn from(NoRoom(most): NoRoom) -> Self {
        Self::NoRoom(most)
    }
}

impl Refusal {
    /// The code for the guest.
    pub fn code(&self) -> ReturnCode {
        match self {
            Self::SeveralTables(_) => ReturnCode::Function,
            Self::LongStuff(_) => ReturnCode::P4,
            Self::LeftToKernel => ReturnCode::Hardware,
            Self::NoRoom(_) => ReturnCode::NotEnoughResources,
            Self::Host(error) => host_code(error),
            _ => ReturnCode::Parameter,
        }
    }
}

fn host_code(error: &EntryError) -> ReturnCode {
    let EntryError::Space(error) = error else {
        return if matches!(error, EntryError::NotRam(_)) { ReturnCode::Parameter } else { ReturnCode::Hardware };
    };
    match error.kind() {
        // Write access to ROM is the guest's mistake.
        Kind::HostReadOnly(_) => ReturnCode::Parameter,
        // A limit of the host's: on mappings, on locked memory, on how far its windows reach.
        Kind::PinLimit(_) | Kind::NoMappingSlot | Kind::OutsideWindows(_) => ReturnCode::NotEnoughResources,
        _ => ReturnCode::Hardware,
    }
}
