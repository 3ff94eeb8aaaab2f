//! EEH: what a host says of a device's PE, and what a guest has done to it.

use dmaspace_core::eeh::{Eeh, PeOperation, PeState, PeWatch, Thaw};
use dmaspace_core::error::Kind;
use dmaspace_core::listener::Update;
use dmaspace_core::section::FrontEnd;
use dmaspace_core::{Access, Iova, Listener, Section};

use crate::stage::Stage;

const MIB: u64 = 1 << 20;

/// The PE is asked after, thawed and configured as a guest's firmware calls do it; the host's entries stay, and the device reaches memory
/// before and after. Hosts without EEH say that they have none.
pub fn pe_is_recovered(stage: &mut Stage, expected: bool) {
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(stage.space.clone()).expect("an empty view fits every host");
    let ram = Section::ram("ram", Iova::new(0), stage.ram.slice(0, MIB), Access::READ_WRITE).expect("a proper range");
    listener.commit(Update::new().adding(ram)).expect("it fits");
    stage.show_results_at(Iova::new(0x1_0000), stage.ram.slice(0x1_0000, 0x1000));
    let spot = stage.ram.slice(0x4_0000, 0x1000);
    stage.assert_readable(Iova::new(0x4_0000), &spot);

    let space = stage.space.clone();
    assert_eq!(space.eeh().is_some(), expected, "whether the host recovers PEs");
    let Some(eeh) = space.eeh() else { return };
    let mut watch = PeWatch::default();
    let is_normal = |watch: &mut PeWatch| assert_eq!(watch.look(eeh).expect("it can be asked"), None);
    eeh.operate(PeOperation::Enable).expect("there is one group");
    is_normal(&mut watch);
    eeh.operate(PeOperation::Configure).expect("bridges are as they were");
    // No reset: a hot reset of QEMU's PHB4 fails now and then, and the kernel gives the device up then.
    for thaw in [Thaw::Mmio, Thaw::Dma] {
        eeh.operate(PeOperation::Thaw(thaw)).expect("what is not frozen can be thawed");
    }
    is_normal(&mut watch);
    assert_eq!(eeh.state().expect("it can be asked"), PeState::Normal);
    stage.assert_readable(Iova::new(0x4_0000), &spot);
    stage.assert_writable(Iova::new(0x4_0000), &spot);
    listener.detach(&space).expect("everything can be taken out");
}

/// A space without a device has no PE.
pub fn nobody_to_recover(eeh: &dyn Eeh) {
    assert_eq!(eeh.state().expect_err("nobody is attached").kind, Kind::NotAttached);
}
