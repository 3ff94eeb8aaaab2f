//! The cuts of mappings that could be one, so that later changes disturb little: a kernel can only unmap whole
//! mappings.

use crate::section::Cuts;
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::page::PageSize;

/// The cuts of mappings that could be one.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Cutting<'a> {
    /// The places where the front end expects changes.
    pub(super) hints: &'a [Cuts],
    /// The step of the cuts elsewhere.
    pub(super) chunk: Option<PageSize>,
}

impl Cutting<'_> {
    /// A part of a run, in pieces.
    pub(super) fn pieces(self, part: IovaRange, granule: PageSize) -> Vec<IovaRange> {
        let mut pieces = vec![part];
        for hint in self.hints {
            // Nothing smaller than a page of the window can change.
            if let Some(range) = hint.range.trimmed_to(granule) {
                pieces = cut_all(pieces, Cuts { range, step: hint.step.max(granule) });
            }
        }
        match self.chunk {
            Some(chunk) => {
                let step = chunk.max(granule).max(bound_of_chunks(part));
                cut_all(pieces, Cuts { range: part, step })
            }
            None => pieces,
        }
    }
}

/// The smallest chunk that cuts a run into no more than about a thousand pieces, which bounds the work even for a
/// hostile run.
fn bound_of_chunks(run: IovaRange) -> PageSize {
    const MOST_PIECES_SHIFT: u32 = 10;
    let shift = u128::BITS - (run.bytes() - 1).leading_zeros();
    PageSize::from_shift(shift.saturating_sub(MOST_PIECES_SHIFT)).unwrap_or(PageSize::K4)
}

fn cut_all(parts: Vec<IovaRange>, cuts: Cuts) -> Vec<IovaRange> {
    parts.into_iter().flat_map(|part| cut(part, cuts)).collect()
}

/// `part` cut at the two ends of the hint and at every step between.
fn cut(part: IovaRange, cuts: Cuts) -> Vec<IovaRange> {
    let Some(shared) = part.intersection(cuts.range) else { return vec![part] };
    let (below, above) = part.without(shared);
    let mut out: Vec<_> = below.into_iter().collect();
    let mut rest = shared;
    while let Some((step, more)) = split_at_step(rest, cuts.step) {
        out.push(step);
        rest = more;
    }
    out.push(rest);
    out.extend(above);
    out
}

/// Splits a range at the first multiple of `step` inside.
fn split_at_step(range: IovaRange, step: PageSize) -> Option<(IovaRange, IovaRange)> {
    let at = step.round_down(range.first().get()).checked_add(step.bytes())?;
    range.split_before(Iova::new(at))
}
