//! Sharing pins between the spaces of one host.

use dmaspace_core::contract::PinSharing;
use dmaspace_core::error::Kind;

use crate::bench::{Bench, ROOM, WHOLE};

fn sharing(bench: &Bench) -> &dyn PinSharing {
    bench.pin_sharing().expect("the case needs pin sharing")
}

/// The sharing of a space in which nothing is shared.
fn empty(bench: &Bench) -> &dyn PinSharing {
    sharing(bench).stop_sharing(&bench.ram(0, ROOM)).expect("nothing is mapped");
    sharing(bench)
}

pub(super) fn shared_memory_is_shared_once(bench: &mut Bench) {
    let sharing = empty(bench);
    sharing.share_pins(&bench.ram(4, 4)).expect("nothing is shared");
    for (from, pages) in [(4, 4), (3, 2), (7, 2), (5, 1), (0, 16)] {
        bench.refuses(&Kind::AlreadyShared, || sharing.share_pins(&bench.ram(from, pages)));
    }
    sharing.share_pins(&bench.ram(8, 1)).expect("touching is not overlapping");
}

pub(super) fn shared_memory_stays_while_it_is_mapped(bench: &mut Bench) {
    let (sharing, all) = (sharing(bench), bench.ram(0, ROOM));
    bench.must_map(0, 3, 2, WHOLE);
    bench.refuses(&Kind::InUse(bench.range(0, 2)), || sharing.stop_sharing(&all));
    bench.unmap(0, 2).expect("the unit is whole");
    sharing.stop_sharing(&all).expect("nothing is mapped");
    assert_eq!(sharing.shared(), []);
}

pub(super) fn sharing_ends_exactly_as_it_began(bench: &mut Bench) {
    for (from, pages) in [(0, 1), (8, 1), (1, ROOM - 1)] {
        bench.refuses(&Kind::NotShared, || sharing(bench).stop_sharing(&bench.ram(from, pages)));
    }
}

pub(super) fn shared_memory_is_listed_in_ascending_order(bench: &mut Bench) {
    let sharing = empty(bench);
    for from in [8, 2, 5] {
        sharing.share_pins(&bench.ram(from, 1)).expect("the memory is not shared");
    }
    assert_eq!(sharing.shared(), [2, 5, 8].map(|from| bench.ram(from, 1)));
}

pub(super) fn misaligned_memory_is_not_shared(bench: &mut Bench) {
    let sharing = empty(bench);
    let page = bench.capabilities().host_page;
    for (offset, len) in [(page.bytes() / 2, page.bytes()), (0, page.bytes() / 2)] {
        bench.refuses(&Kind::Misaligned(page), || sharing.share_pins(&bench.ram_bytes(offset, len)));
    }
}

pub(super) fn device_memory_is_not_shared(bench: &mut Bench) {
    let sharing = empty(bench);
    bench.refuses(&Kind::DeviceMemory, || sharing.share_pins(&bench.ram(0, 1).device_memory()));
}

pub(super) fn unbacked_memory_is_not_shared(bench: &mut Bench) {
    bench.refuses(&Kind::Unbacked, || sharing(bench).share_pins(&bench.unbacked()));
}

pub(super) fn sharers_are_counted(bench: &mut Bench) {
    let (sharing, part) = (sharing(bench), bench.ram(3, 2));
    assert_eq!(sharing.sharers(&part), 1);
    sharing.stop_sharing(&bench.ram(0, ROOM)).expect("nothing is mapped");
    assert_eq!(sharing.sharers(&part), 0);
    sharing.share_pins(&bench.ram(0, 4)).expect("nothing is shared");
    assert_eq!(sharing.sharers(&part), 0, "a byte of it is not shared");
    assert_eq!(sharing.sharers(&bench.ram(1, 2)), 1);
}

pub(super) fn sharers_are_counted_over_spaces(bench: &mut Bench) {
    let second = bench.second_space();
    let theirs = second.powers().pin_sharing.expect("both spaces are of one pool");
    theirs.share_pins(&bench.ram(2, 4)).expect("other spaces are no obstacle");
    assert_eq!(sharing(bench).sharers(&bench.ram(3, 1)), 2);
    assert!(sharing(bench).sharers(&bench.ram(1, 2)) >= 1, "the bench shares all of it");
    bench.must_map(0, 3, 1, WHOLE);
    theirs.stop_sharing(&bench.ram(2, 4)).expect("nothing is mapped there");
    assert_eq!(sharing(bench).sharers(&bench.ram(3, 1)), 1);
}
