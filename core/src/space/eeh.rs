//! Recovering the PE of the one group that is attached.

use crate::backend::Backend;
use crate::contract::eeh::{Eeh, PeOperation, PeState};
use crate::door::Failure;
use crate::error::{Error, Kind, Operation, Subject};
use crate::space::{Space, lock, read};

impl<B: Backend> Space<B> {
    /// Makes the call on the only group there is.
    fn operate_pe(&self, operation: PeOperation) -> Result<i32, Error> {
        let _gate = read(&self.gate);
        let devices = lock(&self.devices);
        let none = || Error::new(Operation::RecoverPe, Subject::Device("no device".into()), Kind::NotAttached);
        let name = devices.first().ok_or_else(none)?.name();
        let fail = |kind| Error::new(Operation::RecoverPe, Subject::Device(name.clone()), kind);
        if devices.len() > 1 {
            return Err(fail(Kind::Unsupported(
                "several groups share the container, and the kernel would answer for one",
            )));
        }
        let calls = self.backend.eeh_calls();
        let calls =
            calls.ok_or_else(|| fail(Kind::Unsupported("this host does not isolate and recover devices (EEH)")))?;
        calls
            .operate(operation)
            .map_err(|failure| Error::from_kernel(Operation::RecoverPe, Subject::Device(name.clone()), failure))
    }
}

impl<B: Backend> Eeh for Space<B> {
    fn operate(&self, operation: PeOperation) -> Result<(), Error> {
        self.operate_pe(operation).map(drop)
    }

    fn state(&self) -> Result<PeState, Error> {
        match self.operate_pe(PeOperation::State)? {
            0 => Ok(PeState::Normal),
            1 => Ok(PeState::Reset),
            2 => Ok(PeState::Stopped),
            4 => Ok(PeState::StoppedDma),
            5 => Ok(PeState::Unavailable),
            _ => {
                let failure = Failure::malformed("VFIO_EEH_PE_OP", "a state that nobody knows");
                let device = lock(&self.devices).first().map_or_else(String::new, |device| device.name());
                Err(Error::from_kernel(Operation::RecoverPe, Subject::Device(device), failure))
            }
        }
    }
}
