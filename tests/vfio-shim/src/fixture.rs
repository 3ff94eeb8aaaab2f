//! Hosts in software for the tests of the dialects, and arguments as a client passes them.

use std::num::NonZeroUsize;

use dmaspace::soft::{Profile, SoftHost};
use dmaspace::{BackendKind, Facts, Host, HostMemory, OpenRequest, Opened, PageSize, PciAddressSpace};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::answers::Answer;
use crate::argument::Argument;
use crate::door::ClientMemory;

/// A host, its first device opened.
pub(crate) struct Fixture {
    opened: Opened,
    /// Memory of the client's.
    pub(crate) memory: HostMemory,
}

impl Fixture {
    pub(crate) fn new(profile: Profile, backend: BackendKind) -> Self {
        let machine = SoftHost::new(profile).expect("a preset");
        let host = Host::new(machine.clone(), Facts::of_soft(machine.profile()));
        let device = *host.facts().devices.keys().next().expect("a preset has a device");
        let opened = host.open(&OpenRequest::device(device).with_backend(backend)).expect("nothing fails");
        let len = NonZeroUsize::new(1 << 20).expect("not zero");
        Self { opened, memory: HostMemory::zeroed(len, PageSize::K64).expect("1 MiB") }
    }

    pub(crate) fn space(&self) -> &dyn PciAddressSpace {
        &**self.opened.space.space()
    }

    /// The address of the client's memory.
    pub(crate) fn vaddr(&self) -> u64 {
        self.memory.address().get()
    }
}

/// Makes a call with a struct and returns the answer and the struct after it.
pub(crate) fn with<T: FromBytes + IntoBytes + Immutable>(
    value: T,
    call: impl FnOnce(Argument<'_>) -> Answer,
) -> (Answer, T) {
    let mut bytes = value.as_bytes().to_vec();
    let answer = call(Argument::new(ClientMemory::of(&mut bytes)));
    (answer, T::read_from_bytes(&bytes).expect("the same length"))
}
