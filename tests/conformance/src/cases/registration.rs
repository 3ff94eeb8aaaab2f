//! Registering memory before it is mapped.

use dmaspace_core::Access;
use dmaspace_core::contract::MemoryRegistration;
use dmaspace_core::error::Kind;

use crate::bench::{Bench, ROOM, WHOLE};
use crate::hooks::Call;

/// The registration of a space in which nothing is registered.
fn empty(bench: &Bench) -> &dyn MemoryRegistration {
    let registration = registered(bench);
    registration.unregister(&bench.ram(0, ROOM)).expect("nothing is mapped");
    registration
}

fn registered(bench: &Bench) -> &dyn MemoryRegistration {
    bench.registration().expect("the case needs registration")
}

pub(super) fn unregistered_memory_is_refused(bench: &mut Bench) {
    empty(bench);
    bench.refuses(&Kind::NotRegistered, || bench.map(0, &bench.ram(4, 1), bench.pages()));
    bench.refuses(&Kind::NotRegistered, || bench.map(0, &bench.ram(4, 1), WHOLE));
}

pub(super) fn partly_registered_memory_is_refused(bench: &mut Bench) {
    empty(bench).register(&bench.ram(4, 4)).expect("nothing is registered");
    for (from, pages) in [(3, 2), (7, 2), (0, 16)] {
        bench.refuses(&Kind::NotRegistered, || bench.map(0, &bench.ram(from, pages), bench.pages()));
    }
    bench.must_map(0, 4, 4, bench.pages());
}

pub(super) fn neighbouring_registrations_serve_one_map(bench: &mut Bench) {
    let registration = empty(bench);
    registration.register(&bench.ram(0, 4)).expect("nothing is registered");
    registration.register(&bench.ram(4, 4)).expect("touching is not overlapping");
    bench.must_map(0, 3, 2, bench.pages());
}

pub(super) fn memory_is_registered_once(bench: &mut Bench) {
    let registration = empty(bench);
    registration.register(&bench.ram(4, 4)).expect("nothing is registered");
    for (from, pages) in [(4, 4), (3, 2), (7, 2), (5, 1), (0, 16)] {
        bench.refuses(&Kind::AlreadyRegistered, || registration.register(&bench.ram(from, pages)));
    }
}

pub(super) fn registered_memory_stays_while_it_is_mapped(bench: &mut Bench) {
    let (registration, all) = (registered(bench), bench.ram(0, ROOM));
    bench.must_map(0, 3, 2, bench.pages());
    bench.refuses(&Kind::InUse(bench.range(0, 2)), || registration.unregister(&all));
    bench.unmap(0, 2).expect("the units are whole");
    registration.unregister(&all).expect("nothing is mapped");
    assert_eq!(registration.registered(), []);
}

pub(super) fn a_registration_ends_exactly_as_it_began(bench: &mut Bench) {
    let registration = registered(bench);
    for (from, pages) in [(0, 1), (8, 1), (1, ROOM - 1)] {
        bench.refuses(&Kind::NotRegistered, || registration.unregister(&bench.ram(from, pages)));
    }
}

pub(super) fn registrations_are_listed_in_ascending_order(bench: &mut Bench) {
    let registration = empty(bench);
    for from in [8, 2, 5] {
        registration.register(&bench.ram(from, 1)).expect("the memory is not registered");
    }
    assert_eq!(registration.registered(), [2, 5, 8].map(|from| bench.ram(from, 1)));
}

pub(super) fn misaligned_memory_is_not_registered(bench: &mut Bench) {
    let registration = empty(bench);
    let page = bench.capabilities().host_page;
    for (offset, len) in [(page.bytes() / 2, page.bytes()), (0, page.bytes() / 2)] {
        bench.refuses(&Kind::Misaligned(page), || registration.register(&bench.ram_bytes(offset, len)));
    }
}

pub(super) fn device_memory_is_not_registered(bench: &mut Bench) {
    let registration = empty(bench);
    bench.refuses(&Kind::DeviceMemory, || registration.register(&bench.ram(0, 1).device_memory()));
}

pub(super) fn memory_that_is_only_readable_is_not_registered(bench: &mut Bench) {
    let registration = empty(bench);
    let refused = Kind::HostReadOnly(Access::READ_WRITE);
    bench.refuses(&refused, || registration.register(&bench.ram(0, 1).host_read_only()));
}

pub(super) fn unbacked_memory_is_not_registered(bench: &mut Bench) {
    let registration = registered(bench);
    bench.refuses(&Kind::Unbacked, || registration.register(&bench.unbacked()));
}

pub(super) fn a_registration_that_fails_changes_nothing(bench: &mut Bench) {
    let registration = empty(bench);
    bench.fail_next(Call::Register);
    bench.fails(|| registration.register(&bench.ram(0, 4)));
    registration.register(&bench.ram(0, 4)).expect("the call succeeds again");
    registration.unregister(&bench.ram(0, 4)).expect("nothing is mapped");
}

pub(super) fn spaces_of_one_process_share_a_registration(bench: &mut Bench) {
    let all = bench.ram(0, ROOM);
    let second = bench.second_space();
    let theirs = second.powers().registration.expect("both spaces are of one sort");
    theirs.register(&all).expect("the same run can be registered again");
    let runs = registered(bench).runs().expect("the process keeps a list");
    assert_eq!((runs.all(), runs.users(&all)), (vec![all.clone()], 2));
    theirs.unregister(&all).expect("nothing is mapped there");
    assert_eq!(runs.users(&all), 1);
    bench.must_map(0, 0, 1, WHOLE);
}

pub(super) fn spaces_of_one_process_cut_memory_alike(bench: &mut Bench) {
    let second = bench.second_space();
    let theirs = second.powers().registration.expect("both spaces are of one sort");
    let error = theirs.register(&bench.ram(1, 4)).expect_err("the memory is part of another run");
    assert_eq!((error.kind().clone(), error.failure()), (Kind::AlreadyRegistered, None));
    assert_eq!(theirs.registered(), []);
}
