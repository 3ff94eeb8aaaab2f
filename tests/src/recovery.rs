//! EEH: the state of a device's PE as its host reports it, and the recovery that a guest asks for.

use dmaspace_core::contract::eeh::{Eeh, PeOperation, PeState, PeWatch, Reset, Thaw};
use dmaspace_core::door::Errno;
use dmaspace_core::error::Kind;
use dmaspace_core::{Access, Iova};
use dmaspace_listener::Update;
use dmaspace_listener::section::FrontEnd;
use dmaspace_listener::{Listener, Section};

use crate::fixture::Fixture;

const MIB: u64 = 1 << 20;

/// The PE is asked after, reset, configured and thawed as a guest's firmware calls do it; the host's entries stay, and
/// the device reaches memory before and after. Hosts without EEH say that they have none.
pub fn pe_is_recovered(fixture: &mut Fixture, expected: bool) {
    let mut listener = Listener::new(FrontEnd::default());
    listener.attach(fixture.space.clone()).expect("an empty view fits every host");
    let ram = Section::ram("ram", Iova::new(0), fixture.ram.slice(0, MIB), Access::READ_WRITE).expect("a proper range");
    listener.commit(Update::new().adding(ram)).expect("it fits");
    fixture.show_results_at(Iova::new(0x1_0000), fixture.ram.slice(0x1_0000, 0x1000));
    let spot = fixture.ram.slice(0x4_0000, 0x1000);
    fixture.assert_readable(Iova::new(0x4_0000), &spot);

    let space = fixture.space.clone();
    let eeh = space.powers().eeh.filter(|eeh| eeh.is_available());
    assert_eq!(eeh.is_some(), expected, "whether the host recovers PEs");
    let Some(eeh) = eeh else { return };
    let mut watch = PeWatch::default();
    let is_normal = |watch: &mut PeWatch| assert_eq!(watch.look(eeh).expect("it can be asked"), None);
    eeh.operate(PeOperation::Enable).expect("there is one group");
    is_normal(&mut watch);
    for reset in [Reset::Hot, Reset::Fundamental] {
        begin(eeh, reset);
        eeh.operate(PeOperation::Reset(Reset::Deactivate)).expect("a reset that was begun can end");
        eeh.operate(PeOperation::Configure).expect("bridges are restored");
        is_normal(&mut watch);
        fixture.device.wake();
        fixture.assert_readable(Iova::new(0x4_0000), &spot);
    }
    for thaw in [Thaw::Mmio, Thaw::Dma] {
        eeh.operate(PeOperation::Thaw(thaw)).expect("a device that is not frozen can be thawed");
    }
    is_normal(&mut watch);
    assert_eq!(eeh.state().expect("it can be asked"), PeState::Normal);
    fixture.assert_readable(Iova::new(0x4_0000), &spot);
    fixture.assert_writable(Iova::new(0x4_0000), &spot);
    listener.detach(&space).expect("everything can be taken out");
}

/// A reset begins, at the third attempt at the latest, as guests do it (linux: arch/powerpc/kernel/eeh.c,
/// eeh_pe_reset_full): the firmware of a powernv host refuses one whose link has not settled since the last, and is
/// ready then for another (skiboot: hw/phb4.c, "Unexpected slot state").
fn begin(eeh: &dyn Eeh, reset: Reset) {
    for _ in 0..2 {
        match eeh.operate(PeOperation::Reset(reset)) {
            Ok(()) => return,
            Err(error) => assert_eq!(error.errno(), Some(Errno::EIO), "{error}"),
        }
    }
    eeh.operate(PeOperation::Reset(reset)).expect("the firmware is ready");
}

/// A space without a device has no PE.
pub fn no_device_to_recover(eeh: &dyn Eeh) {
    assert_eq!(eeh.state().expect_err("no device is attached").kind(), Kind::NotAttached);
}
