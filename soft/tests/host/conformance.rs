//! The conformance table on every preset: each row on a fresh context, and nothing left behind.

use crate::common::{Opened, dialects, memory, platform};
use dmaspace_core::{Iova, MemoryFile};
use dmaspace_soft::Profile;
use dmaspace_soft::conformance::{Dialect, Flawed, Leaves, ROWS, Row, Site};
use dmaspace_soft::profile::KernelVersion;

/// Checks one row, and returns whether it applied.
fn play(profile: &Profile, row: &Row) -> bool {
    let opened = Opened::new(profile.clone(), row.dialect);
    let page = profile.host_page;
    let device = opened.device();
    // A device faults where nothing is mapped: the bytes are nowhere, as the row expects.
    let store = |at: Iova| {
        let _ = device.dma_write(at, &[0x5a; 16]);
    };
    // The bytes of the files that this process has mapped.
    let file = |number, bytes| memory(bytes).in_file(MemoryFile::unbacked(number), number * page);
    let site = Site {
        door: &*opened.host,
        context: opened.context,
        kernel: profile.kernel,
        platform: platform(profile),
        memory: file(1, 2 * page),
        flawed: Flawed { absent: None, holed: file(2, page), read_only: file(3, page).host_read_only() },
        store: Some(&store),
    };
    let applies = row.applies_to(&site);
    if applies {
        row.play(&site).unwrap_or_else(|mismatch| panic!("{}: {mismatch}", profile.name));
        let ledger = opened.host.ledger();
        assert_eq!(ledger.mappings, 0, "{}: {}", profile.name, row.name);
    }
    opened.close();
    let clear = opened.host.ledger().is_clear();
    assert!(clear || row.leaves == Leaves::LockedMemory, "{}: {}", profile.name, row.name);
    applies
}

fn play_all(profile: &Profile) -> usize {
    let dialects = dialects(profile);
    ROWS.iter().filter(|row| dialects.contains(&row.dialect)).filter(|row| play(profile, row)).count()
}

#[test]
fn every_preset_answers_every_row_of_its_dialects() {
    for name in Profile::PRESETS {
        let played = play_all(&Profile::preset(name).expect("a preset"));
        assert!(played >= 20, "{name}: only {played} rows");
    }
}

#[test]
fn a_later_kernel_gives_its_own_answers() {
    for name in Profile::PRESETS {
        let profile = Profile::preset(name).expect("a preset");
        play_all(&Profile { kernel: KernelVersion::V7_2, ..profile });
    }
}

#[test]
fn rows_are_told_apart_by_dialect_and_name() {
    for (n, row) in ROWS.iter().enumerate() {
        let same = |other: &&Row| other.name == row.name && other.dialect == row.dialect;
        assert_eq!(ROWS.iter().skip(n).filter(same).count(), 1, "{}", row.name);
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
