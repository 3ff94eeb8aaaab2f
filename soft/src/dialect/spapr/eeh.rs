//! Recovering PEs (linux: arch/powerpc/kernel/eeh.c). A PE is a group here. Errors happen on a test's request only
//! ([`crate::SoftDevice::freeze`]); a stray DMA fails without one.

use dmaspace_abi::spapr::{self, EehPeOp};
use dmaspace_core::door::Errno;

use crate::dialect::call::Call;
use crate::dialect::spapr::{Spapr, tce_of};
use crate::dialect::{System, require};

/// The state of a PE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pe {
    in_reset: bool,
    mmio_frozen: bool,
    dma_frozen: bool,
}

impl Pe {
    /// The state after an error.
    pub(crate) const FROZEN: Self = Self { in_reset: false, mmio_frozen: true, dma_frozen: true };

    /// Returns whether the state keeps devices from memory.
    pub(crate) fn stops_dma(self) -> bool {
        self.in_reset || self.dma_frozen
    }

    /// eeh_pe_get_state.
    fn state(self) -> i32 {
        match (self.in_reset, self.dma_frozen, self.mmio_frozen) {
            (true, ..) => 1,
            (false, false, false) => 0,
            (false, true, true) => 2,
            (false, true, false) => 4,
            (false, false, true) => 5,
        }
    }
}

impl Spapr {
    /// VFIO_EEH_PE_OP: applied to each group, newest first, until one returns a result or an error.
    pub(super) fn pe_op(&self, system: &mut System, call: &Call<'_, '_>) -> Result<i32, Errno> {
        require(tce_of(system)?.eeh, Errno::ENODEV)?;
        let op: EehPeOp = call.read()?;
        require(op.argsz >= EehPeOp::SIZE && op.flags == 0, Errno::EINVAL)?;
        for group in &self.groups {
            let answer = operate(system.pe(*group), op.op)?;
            if answer != 0 {
                return Ok(answer);
            }
        }
        Ok(0)
    }
}

/// vfio_spapr_ioctl_eeh_pe_op.
fn operate(pe: &mut Pe, op: u32) -> Result<i32, Errno> {
    match op {
        spapr::EEH_DISABLE | spapr::EEH_CONFIGURE => {}
        // eeh_pe_change_owner: a frozen PE is thawed for its new owner.
        spapr::EEH_ENABLE => *pe = Pe::default(),
        spapr::EEH_UNFREEZE_IO => pe.mmio_frozen = false,
        spapr::EEH_UNFREEZE_DMA => pe.dma_frozen = false,
        spapr::EEH_GET_STATE => return Ok(pe.state()),
        spapr::EEH_RESET_HOT | spapr::EEH_RESET_FUNDAMENTAL => pe.in_reset = true,
        spapr::EEH_RESET_DEACTIVATE => *pe = Pe::default(),
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}
