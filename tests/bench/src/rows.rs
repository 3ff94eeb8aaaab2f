//! The rows of the table.

use crate::door::Real;
use crate::measure::Work;
use crate::work::scan::{Density, Loops, Scans};
use crate::work::{commits, dirty, guest, kernel, space};

/// A row: one piece of work, and the goal for it.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The instructions that one repetition may take, and for [`Kind::Bytes`] the bytes.
    pub(crate) goal: f64,
    pub(crate) kind: Kind,
    /// The row is one of the gates of `ci/check bench`, which take less than a minute.
    pub(crate) gates: bool,
}

/// The kind of a row's figure.
pub(crate) enum Kind {
    /// The instructions of one repetition, from n and 2n repetitions.
    Slope(u64, fn() -> Box<dyn Work>),
    /// The locked instructions of one repetition, likewise.
    Locked(u64, fn() -> Box<dyn Work>),
    /// The bytes that one live page takes.
    Bytes(fn() -> f64),
}

const fn gate(name: &'static str, goal: f64, n: u64, work: fn() -> Box<dyn Work>) -> Row {
    Row { name, goal, kind: Kind::Slope(n, work), gates: true }
}

const fn large(name: &'static str, goal: f64, n: u64, work: fn() -> Box<dyn Work>) -> Row {
    Row { name, goal, kind: Kind::Slope(n, work), gates: false }
}

const fn bytes(name: &'static str, goal: f64, bytes: fn() -> f64) -> Row {
    Row { name, goal, kind: Kind::Bytes(bytes), gates: true }
}

const fn locked(name: &'static str, goal: f64, n: u64, work: fn() -> Box<dyn Work>) -> Row {
    Row { name, goal, kind: Kind::Locked(n, work), gates: true }
}

const K: u64 = 1_000;
const M: u64 = 1_000_000;

/// All rows, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    gate("map + unmap of a page, space empty", 400.0, K, || space::pairs(0, 2)),
    gate("unmap + map of a page, 1k live, scattered", 500.0, K, || space::pairs(K, 2)),
    large("unmap + map of a page, 1M live, scattered", 500.0, K, || space::pairs(M, 2)),
    large("unmap + map of a page, 1M live, dense", 500.0, K, || space::pairs(M, 1)),
    gate("type1: map + unmap of a page, empty", 536.0, K, || space::real_pairs(Real::Type1, 0)),
    gate("type1: unmap + map of a page, 1k live", 636.0, K, || space::real_pairs(Real::Type1, K)),
    gate("iommufd: map + unmap of a page, empty", 584.0, K, || space::real_pairs(Real::Iommufd, 0)),
    gate("iommufd: unmap + map of a page, 1k live", 684.0, K, || space::real_pairs(Real::Iommufd, K)),
    gate("sPAPR: map + unmap of a page, empty", 216.0, K, || space::real_pairs(Real::Spapr, 0)),
    gate("sPAPR: unmap + map of a page, 1k live", 316.0, K, || space::real_pairs(Real::Spapr, K)),
    gate("Linux door, type1: unmap + map of a page, 1k live", 636.0, K, || space::linux_pairs(Real::Type1, K)),
    gate("Linux door, iommufd: unmap + map of a page, 1k live", 684.0, K, || space::linux_pairs(Real::Iommufd, K)),
    gate("Linux door, sPAPR: unmap + map of a page, 1k live", 316.0, K, || space::linux_pairs(Real::Spapr, K)),
    locked("locked instructions of unmap + map, type1, 1k live", 16.0, K, || space::real_pairs(Real::Type1, K)),
    locked("locked instructions of put + clear of an entry", 32.0, K, || guest::puts(K)),
    gate("look-up, 1k live", 100.0, K, || space::lookups(K)),
    large("look-up, 1M live", 100.0, K, || space::lookups(M)),
    gate("look-up of the host address alone, 1k live", 100.0, K, || space::translations(K)),
    large("look-up of the host address alone, 1M live", 100.0, K, || space::translations(M)),
    bytes("bytes of a live page, scattered", 24.0, || space::bytes_of_a_page(100 * K, 2)),
    bytes("bytes of a live page, dense", 9.0, || space::bytes_of_a_page(100 * K, 1)),
    bytes("bytes of a live page, in runs", 0.2, || space::bytes_of_a_page(100 * K, 0)),
    gate("put + clear of an entry, 1 live", 600.0, K, || guest::puts(1)),
    large("put + clear of an entry, 1M live", 600.0, K, || guest::puts(M)),
    gate("H_PUT_TCE, twice: an entry and none, 1 live", 900.0, K, || guest::put_tces(1)),
    large("H_PUT_TCE, twice: an entry and none, 1M live", 900.0, K, || guest::put_tces(M)),
    gate("H_PUT_TCE, twice: an entry and none, no host", 500.0, K, guest::put_tces_without_a_host),
    gate("H_PUT_TCE of the entry that is there", 300.0, K, guest::same_tces),
    gate("H_PUT_TCE_INDIRECT of 512 + H_STUFF_TCE, scattered, an entry", 300.0, 4 * 512, || guest::lists(true)),
    gate("H_PUT_TCE_INDIRECT of 512 + H_STUFF_TCE, contiguous, an entry", 20.0, 16 * 512, || guest::lists(false)),
    gate("clear of a window, scattered, an entry", 20.0, 10 * K, guest::Clears::work),
    gate("plug + unplug of a DIMM beside 1k entries", 200_000.0, 10, || guest::plugs(K)),
    gate("plug + unplug of a DIMM beside 100k entries", 200_000.0, 2, || guest::plugs(100 * K)),
    gate("window that KVM fills, in and out, 2^20 entries, a place", 8.0, 4 << 20, || kernel::windows(1 << 20)),
    large("window that KVM fills, in and out, 2^24 entries, a place", 8.0, 1 << 24, || kernel::windows(1 << 24)),
    gate("plug + unplug beside a window that KVM fills, 2^20 entries, a place", 8.0, 4 << 20, || {
        kernel::plugs(1 << 20)
    }),
    gate("POWER: emulated section in and out, 16 targets", 90_000.0, 20, || commits::emulated(16)),
    gate("POWER: emulated section in and out, 1k targets", 90_000.0, 4, || commits::emulated(K)),
    large("POWER: emulated section in and out, 16k targets", 90_000.0, 1, || commits::emulated(16_384)),
    gate("POWER: commit of nothing, 16 targets", 2_000.0, 100, || commits::nothing(16)),
    gate("POWER: commit of nothing, 1k targets", 2_000.0, 10, || commits::nothing(K)),
    gate("section out and in, 1k apart", 40_000.0, 20, || commits::changes(K, true)),
    gate("section out and in, in a run of 100", 40_000.0, 10, || commits::changes(100, false)),
    gate("section out and in, in a run of 1k", 40_000.0, 2, || commits::changes(K, false)),
    gate("whole list, no change, a section of 1k", 12.0, 10 * K, || commits::whole_list(K)),
    large("whole list, no change, a section of 10k", 12.0, 20 * K, || commits::whole_list(10 * K)),
    gate("explain of nothing, 1k sections", 30_000.0, 10, || commits::explain(K)),
    large("explain of nothing, 10k sections", 30_000.0, 4, || commits::explain(10 * K)),
    gate("audit, a section of 1k", 900.0, K, || commits::audits(K)),
    large("audit, a section of 10k", 900.0, 10 * K, || commits::audits(10 * K)),
    gate("state, a section of 1k", 900.0, K, || commits::states(K)),
    large("state, a section of 10k", 900.0, 10 * K, || commits::states(10 * K)),
    gate("dirty sync, a clean mapping of many", 330.0, 500, dirty::Scattered::work),
    gate("unmap + map, tracked, beside 1 TiB", 3_000.0, 10, dirty::pairs),
    gate("dirty scan, a clean word", 2.0, 10 * K, || dirty::Words::work(0)),
    gate("dirty scan, a full word", 8.0, 10 * K, || dirty::Words::work(u64::MAX)),
    gate("dirty scan, a word with one bit", 40.0, 10 * K, || dirty::Words::work(1 << 17)),
    gate("dirty scan, a word with every other bit", 60.0, K, || dirty::Words::work(0x5555_5555_5555_5555)),
    gate("dirty scan into a bitmap, clean, a word", 12.5, 32 * K, || Scans::work(Density::Clean)),
    gate("dirty scan into a bitmap, 1 % of the pages, a word", 13.7, 8 * K, || Scans::work(Density::Sparse)),
    gate("dirty scan into a bitmap, 50 % of the pages, a word", 15.0, 8 * K, || Scans::work(Density::Half)),
    gate("dirty scan into a bitmap, full, a word", 15.0, 8 * K, || Scans::work(Density::Full)),
    gate("a plain loop over the same words, clean, a word", 12.5, 32 * K, || Loops::work(Density::Clean)),
    gate("a plain loop over the same words, 1 % of the pages, a word", 13.7, 8 * K, || Loops::work(Density::Sparse)),
    gate("a plain loop over the same words, 50 % of the pages, a word", 15.0, 8 * K, || Loops::work(Density::Half)),
    gate("a plain loop over the same words, full, a word", 15.0, 8 * K, || Loops::work(Density::Full)),
];
