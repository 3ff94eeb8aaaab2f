//! The sequences, by topic.

mod blocks;
mod bridge;
mod devices;
mod dirty;
mod flat_map;
mod handover;
mod sharing;
mod spaces;
mod translated;
mod verbs;

use dmaspace_tests::faults::Sequence;

/// All of them.
pub(crate) fn all() -> Vec<Sequence> {
    [
        devices::SEQUENCES,
        dirty::SEQUENCES,
        flat_map::SEQUENCES,
        translated::SEQUENCES,
        bridge::SEQUENCES,
        blocks::SEQUENCES,
        spaces::SEQUENCES,
        handover::SEQUENCES,
        sharing::SEQUENCES,
        verbs::SEQUENCES,
    ]
    .concat()
}
