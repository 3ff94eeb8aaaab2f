//! Where mappings are cut although they could be one, so that later changes disturb little: a kernel can only unmap whole mappings.

use crate::section::Cuts;
use dmaspace_core::words::address::{Iova, IovaRange};
use dmaspace_core::words::page::PageSize;

/// Where mappings are cut although they could be one, so that later changes disturb little.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Cutting<'a> {
    /// Where the front end expects changes.
    pub(super) hints: &'a [Cuts],
    /// Elsewhere.
    pub(super) chunk: Option<PageSize>,
}

impl Cutting<'_> {
    /// A part of a run, in pieces.
    pub(super) fn pieces(self, part: IovaRange, granule: PageSize) -> Vec<IovaRange> {
        let chunks = self.chunk.map(|chunk| Cuts { range: part, step: chunk.max(granule).max(bound_of_chunks(part)) });
        // Nothing smaller than a page of the window can change.
        let coarsened =
            |cuts: &Cuts| Some(Cuts { range: cuts.range.trimmed_to(granule)?, step: cuts.step.max(granule) });
        let hints = self.hints.iter().filter_map(coarsened);
        let cut_all = |parts: Vec<_>, cuts: Cuts| parts.into_iter().flat_map(|part| cut(part, cuts)).collect();
        hints.chain(chunks).fold(vec![part], cut_all)
    }
}

/// The smallest chunk that cuts a run into no more than about a thousand pieces, so that not even a hostile one takes for ever.
fn bound_of_chunks(run: IovaRange) -> PageSize {
    const MOST_PIECES_SHIFT: u32 = 10;
    let shift = u128::BITS - (run.bytes() - 1).leading_zeros();
    PageSize::from_shift(shift.saturating_sub(MOST_PIECES_SHIFT)).unwrap_or(PageSize::K4)
}

/// `part` cut at the two ends of the hint and at every step between.
fn cut(part: IovaRange, cuts: Cuts) -> Vec<IovaRange> {
    let Some(shared) = part.intersection(cuts.range) else { return vec![part] };
    let (below, above) = part.without(shared);
    let mut out: Vec<_> = below.into_iter().collect();
    let mut rest = shared;
    while let Some((step, more)) = cuts
        .step
        .round_down(rest.first().get())
        .checked_add(cuts.step.bytes())
        .and_then(|at| rest.split_before(Iova::new(at)))
    {
        out.push(step);
        rest = more;
    }
    out.push(rest);
    out.extend(above);
    out
}
