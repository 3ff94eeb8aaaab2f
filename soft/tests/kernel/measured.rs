//! Measurements on real kernels (Linux 6.12.95 in emulated hosts), call by call, with `VmLck` in KiB after each.

use crate::setting::{GIB, HIGH, Opened, memory};
use dmaspace_core::Access;
use dmaspace_core::door::Errno;
use dmaspace_soft::Profile;
use dmaspace_soft::conformance::Dialect;
use dmaspace_soft::conformance::raw;

/// A call, in the words it is printed with.
enum Call {
    Create(u32, u64, u32),
    Remove(u64),
}

use Call::{Create, Remove};

/// The result or the first address of a new window, then `VmLck`.
type Seen = (Result<u64, Errno>, u64);

fn replay(profile: Profile, calls: &[(Call, Seen)]) {
    let opened = Opened::new(profile, Dialect::Spapr);
    let (host, container) = (&*opened.host, opened.handle());
    raw::remove(host, container, 0).expect("the default window was not made yet");
    for (n, (call, seen)) in calls.iter().enumerate() {
        let result = match *call {
            Create(shift, size, levels) => raw::create(host, container, shift, size, levels),
            Remove(at) => raw::remove(host, container, at).map(|result| (result, 0)),
        };
        let result = result.map(|(result, start)| {
            assert_eq!(result, 0, "call {n}");
            start
        });
        assert_eq!((result, host.ledger().locked / 1024), *seen, "call {n}");
    }
}

const EINVAL: Result<u64, Errno> = Err(Errno::EINVAL);
const ENODEV: Result<u64, Errno> = Err(Errno::ENODEV);
const ENOSPC: Result<u64, Errno> = Err(Errno::ENOSPC);

#[test]
fn a_partition_leaks_the_charge_of_a_refused_window() {
    replay(
        Profile::pseries(),
        &[
            (Create(12, 64 * GIB, 1), (Ok(HIGH), 131_072)),
            (Create(16, 64 * GIB, 2), (EINVAL, 4_325_372)),
            (Remove(0), (EINVAL, 4_325_372)),
            (Remove(HIGH), (Ok(0), 4_194_300)),
            (Create(16, 0, 1), (EINVAL, 4_194_300)),
            (Create(16, 3 * GIB, 1), (EINVAL, 4_194_684)),
            (Create(16, 0x1000, 1), (EINVAL, 4_194_684)),
            (Create(16, GIB, 0), (Ok(HIGH), 4_194_812)),
            (Create(16, GIB, 6), (EINVAL, 8_389_112)),
        ],
    );
}

#[test]
fn a_partition_makes_one_window_and_gives_up_after_failing_to_make_two() {
    replay(
        Profile::pseries(),
        &[
            (Create(16, 4 * GIB, 1), (Ok(HIGH), 512)),
            (Remove(HIGH), (Ok(0), 0)),
            (Create(16, 4 * GIB, 1), (Ok(HIGH), 512)),
            (Create(16, 4 * GIB, 1), (ENODEV, 1024)),
            (Create(12, GIB, 1), (ENODEV, 3072)),
            (Remove(HIGH), (Ok(0), 2560)),
            (Create(16, 4 * GIB, 1), (ENODEV, 3072)),
            (Create(12, GIB, 1), (ENODEV, 5120)),
        ],
    );
}

#[test]
fn bare_metal_leaks_only_tables_it_has_no_memory_for() {
    let sequence = |table: u64| {
        [
            (Create(12, 64 * GIB, 1), (Err(Errno::ENOMEM), 262_144)),
            (Create(16, 64 * GIB, 2), (Ok(0), 262_144 + table)),
            (Remove(0), (Ok(0), 262_144)),
            (Remove(HIGH), (EINVAL, 262_144)),
            (Create(16, 0, 1), (EINVAL, 262_144)),
            (Create(16, 3 * GIB, 1), (EINVAL, 262_144)),
            (Create(16, 0x1000, 1), (EINVAL, 262_144)),
            (Create(16, GIB, 0), (EINVAL, 262_144)),
            (Create(16, GIB, 6), (EINVAL, 262_144)),
        ]
    };
    replay(Profile::powernv9(), &sequence(16_400));
    replay(Profile::powernv9_64k(), &sequence(16_512));
}

#[test]
fn bare_metal_makes_two_windows_by_slot() {
    let sequence = [
        (Create(16, 4 * GIB, 1), (Ok(0), 1024)),
        (Remove(HIGH), (EINVAL, 1024)),
        (Create(16, 4 * GIB, 1), (Ok(HIGH), 2048)),
        (Create(16, 4 * GIB, 1), (ENOSPC, 2048)),
        (Create(12, GIB, 1), (ENOSPC, 2048)),
        (Remove(HIGH), (Ok(0), 1024)),
        (Create(16, 4 * GIB, 1), (Ok(HIGH), 2048)),
    ];
    replay(Profile::powernv9(), &sequence);
    replay(Profile::powernv9_64k(), &sequence);
}

#[test]
fn unregistering_under_an_entry_gives_nothing_back() {
    for (profile, kib) in
        [(Profile::pseries(), [8, 2056]), (Profile::powernv9(), [8, 8200]), (Profile::powernv9_64k(), [128, 8320])]
    {
        let page = profile.host_page;
        let window = profile.tce.as_ref().expect("it has one").default_window;
        let opened = Opened::new(profile, Dialect::Spapr);
        let (host, container, ram) = (&*opened.host, opened.handle(), memory(2 * page));
        raw::register(host, container, Some(&ram), 2 * page).expect("registered");
        assert_eq!(host.ledger().locked / 1024, kib[0]);
        raw::map(host, opened.context, window - page, page, Some(&ram), Access::READ_WRITE).expect("mapped");
        assert_eq!(host.ledger().locked / 1024, kib[1]);
        raw::unmap(host, opened.context, window - page, 2 * page).expect("past the end, and no complaint");
    }
}

#[test]
fn the_first_version_charges_its_window_and_a_table() {
    for (profile, kib) in
        [(Profile::pseries(), 1_050_624), (Profile::powernv9(), 2_105_344), (Profile::powernv9_64k(), 2_105_344)]
    {
        let opened = Opened::new(profile, Dialect::SpaprV1);
        let (host, container) = (&*opened.host, opened.handle());
        raw::enable(host, container).expect("a group is there");
        raw::unmap(host, opened.context, 0, 0x1000).expect("nothing was mapped");
        assert_eq!(host.ledger().locked / 1024, kib);
    }
}
