//! The conformance table on every preset: each row on a fresh context, and nothing left behind.

use crate::setting::{Opened, dialects, memory, platform};
use dmaspace_core::{HostMemory, Iova, MemoryFile};
use dmaspace_soft::Profile;
use dmaspace_soft::conformance::{Dialect, Flawed, Leaves, ROWS, Row, Site};
use dmaspace_soft::profile::KernelVersion;

/// Pages that this process has mapped from a file.
fn memory_in_file(number: u64, page: u64, pages: u64) -> HostMemory {
    memory(pages * page).in_file(MemoryFile::unbacked(number), number * page)
}

/// An address that is reserved on the host.
fn reserved(profile: &Profile) -> u64 {
    let ranges = profile.fixed.as_ref().map_or(&[][..], |fixed| &fixed.reserved);
    ranges.first().map_or(u64::MAX, |range| range.first)
}

/// The last page, if no page table reaches it, and otherwise a reserved one.
fn unreached(profile: &Profile) -> u64 {
    let last = profile.fixed.as_ref().map_or(0, |fixed| fixed.last);
    if last < u64::MAX { profile.host_page.wrapping_neg() } else { reserved(profile) }
}

/// Checks one row, and returns whether it applied.
#[expect(unsafe_code, reason = "UNSAFETY: the door is not real")]
fn check(profile: &Profile, row: &Row) -> bool {
    let opened = Opened::new(profile.clone(), row.dialect);
    let page = profile.host_page;
    let device = opened.device();
    // A device faults where nothing is mapped: the bytes are nowhere, as the row expects.
    let store = |at: Iova| {
        let _ = device.dma_write(at, &[0x5a; 16]);
    };
    let site = Site {
        door: &*opened.host,
        context: opened.context,
        kernel: profile.kernel,
        platform: platform(profile),
        reserved: reserved(profile),
        unreached: unreached(profile),
        memory: memory_in_file(1, page, 2),
        flawed: Flawed {
            absent: None,
            holed: memory_in_file(2, page, 1),
            read_only: memory_in_file(3, page, 1).host_read_only(),
        },
        store: Some(&store),
    };
    let applies = row.applies_to(&site);
    if applies {
        // SAFETY: the door is not real.
        unsafe { row.check(&site) }.unwrap_or_else(|mismatch| panic!("{}: {mismatch}", profile.name));
        let ledger = opened.host.ledger();
        assert_eq!(ledger.mappings, 0, "{}: {}", profile.name, row.name);
    }
    opened.close();
    let clear = opened.host.ledger().is_clear();
    assert!(clear || row.leaves == Leaves::LockedMemory, "{}: {}", profile.name, row.name);
    applies
}

/// Checks all rows of the profile's dialects, and returns how many applied.
fn check_all(profile: &Profile) -> usize {
    let known = dialects(profile);
    ROWS.iter().filter(|row| known.contains(&row.dialect)).filter(|row| check(profile, row)).count()
}

#[test]
fn every_preset_answers_every_row_of_its_dialects() {
    for name in Profile::PRESETS {
        let checked = check_all(&Profile::preset(name).expect("a preset"));
        assert!(checked >= 20, "{name}: only {checked} rows");
    }
}

#[test]
fn every_preset_with_linux_7_2_answers_every_row_of_its_dialects() {
    for name in Profile::PRESETS {
        let profile = Profile::preset(name).expect("a preset");
        check_all(&profile.with_kernel(KernelVersion::V7_2));
    }
}

#[test]
fn no_two_rows_have_the_same_dialect_and_name() {
    for (n, row) in ROWS.iter().enumerate() {
        let is_repeated = ROWS[n + 1..].iter().any(|other| other.name == row.name && other.dialect == row.dialect);
        assert!(!is_repeated, "{}", row.name);
    }
    let all = [
        Dialect::Type1,
        Dialect::Type1V1,
        Dialect::Spapr,
        Dialect::SpaprV1,
        Dialect::Ioas,
        Dialect::Compat,
        Dialect::CompatV1,
    ];
    for dialect in all {
        assert!(ROWS.iter().any(|row| row.dialect == dialect));
    }
}
