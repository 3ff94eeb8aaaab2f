//! Recovering a PE (linux: drivers/vfio/vfio_iommu_spapr_tce.c, vfio_spapr_ioctl_eeh_pe_op).

use dmaspace_abi::spapr::{self, EehPeOp};
use dmaspace_abi::vfio;
use dmaspace_core::backend::EehCalls;
use dmaspace_core::contract::eeh::{PeOperation, Reset, Thaw};
use dmaspace_core::door::{Cause, Command, Failure, OwnedHandle};
use zerocopy::IntoBytes;

use crate::Spapr;

/// Returns true if the kernel recovers PEs. A kernel that fails the question does not.
pub(crate) fn is_available(container: &OwnedHandle) -> bool {
    let question = Command::with_value(vfio::CHECK_EXTENSION, vfio::Extension::EEH.0);
    container.ask(question).is_ok_and(|answer| answer > 0)
}

/// Makes one call. A positive result is a state for [`PeOperation::State`], and a failure otherwise.
pub(crate) fn operate(container: &OwnedHandle, operation: PeOperation) -> Result<i32, Failure> {
    let mut op = EehPeOp { argsz: EehPeOp::SIZE, flags: 0, op: number_of(operation)? };
    let command = Command::with_bytes(spapr::EEH_PE_OP, op.as_mut_bytes());
    if operation == PeOperation::State { container.ask(command) } else { container.call(command).map(|()| 0) }
}

fn number_of(operation: PeOperation) -> Result<u32, Failure> {
    Ok(match operation {
        PeOperation::Enable => spapr::EEH_ENABLE,
        PeOperation::Disable => spapr::EEH_DISABLE,
        PeOperation::State => spapr::EEH_GET_STATE,
        PeOperation::Thaw(Thaw::Mmio) => spapr::EEH_UNFREEZE_IO,
        PeOperation::Thaw(Thaw::Dma) => spapr::EEH_UNFREEZE_DMA,
        PeOperation::Reset(Reset::Hot) => spapr::EEH_RESET_HOT,
        PeOperation::Reset(Reset::Fundamental) => spapr::EEH_RESET_FUNDAMENTAL,
        PeOperation::Reset(Reset::Deactivate) => spapr::EEH_RESET_DEACTIVATE,
        PeOperation::Configure => spapr::EEH_CONFIGURE,
        _ => return Err(Failure::refused(spapr::EEH_PE_OP.name, Cause::Other, "this backend has no such operation")),
    })
}

impl EehCalls for Spapr {
    fn is_available(&self) -> bool {
        *self.eeh.get_or_init(|| is_available(&self.container))
    }

    fn operate(&self, operation: PeOperation) -> Result<i32, Failure> {
        operate(&self.container, operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmaspace_core::door::Errno;
    use dmaspace_soft::ScriptedDoor;
    use zerocopy::FromBytes;

    #[test]
    fn the_extension_is_checked_once() {
        for (answer, can) in [((|_: &mut [u8]| Ok(1)) as dmaspace_soft::Reply, true), (|_| Ok(0), false)] {
            let door = ScriptedDoor::new(&[answer]);
            let container = Spapr::new(crate::fixture::container(&door));
            assert_eq!([EehCalls::is_available(&container), EehCalls::is_available(&container)], [can; 2]);
            assert_eq!(door.names(), ["VFIO_CHECK_EXTENSION"]);
        }
    }

    #[test]
    fn a_state_is_a_result_and_an_errno_is_a_failure() {
        let door = ScriptedDoor::new(&[|_| Ok(4), |_| Err(Errno::EIO), |_| Ok(1)]);
        let container = Spapr::new(crate::fixture::container(&door));
        assert_eq!(container.operate(PeOperation::State), Ok(4));
        let failure = container.operate(PeOperation::Reset(Reset::Hot)).expect_err("the platform says no");
        assert_eq!(failure.errno(), Some(Errno::EIO));
        container.operate(PeOperation::Configure).expect_err("a positive result is no yes");
        let asked = door.take();
        assert_eq!(EehPeOp::read_from_bytes(&asked[0].bytes), Ok(EehPeOp { argsz: 12, flags: 0, op: 4 }));
        assert_eq!(EehPeOp::read_from_bytes(&asked[1].bytes), Ok(EehPeOp { argsz: 12, flags: 0, op: 6 }));
    }
}
