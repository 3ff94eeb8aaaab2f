//! Bitmaps as kernels fill them: bit n is bit n % 64 of word n / 64.

use std::ops::Range;

/// The runs of ones among the bits `within`, ascending. Words that are zero cost next to nothing, and no word outside
/// of `within` is read: a bitmap is as long as the longest mapping.
pub(super) fn ones(words: &[u64], within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let end = usize::try_from(within.end.div_ceil(64)).unwrap_or(usize::MAX);
    let words = words.get(..end.min(words.len())).unwrap_or_default();
    let mut next = within.start;
    std::iter::from_fn(move || {
        let first = find(words, next, 0).filter(|first| *first < within.end)?;
        next = find(words, first, u64::MAX).unwrap_or(u64::MAX).min(within.end);
        Some(first..next)
    })
}

/// The first bit from `from` on that is not as in `skipped`.
fn find(words: &[u64], from: u64, skipped: u64) -> Option<u64> {
    let first = usize::try_from(from / 64).ok()?;
    let bits = (words.get(first)? ^ skipped) & (u64::MAX << (from % 64));
    if bits != 0 {
        return Some(first as u64 * 64 + u64::from(bits.trailing_zeros()));
    }
    let after = first + 1;
    let rest = words.get(after..)?;
    let equal = equal_words(rest, skipped);
    let bits = rest.get(equal)? ^ skipped;
    Some((after + equal) as u64 * 64 + u64::from(bits.trailing_zeros()))
}

/// The number of words that equal `skipped` before the first that does not: eight at a time, as one comparison.
fn equal_words(words: &[u64], skipped: u64) -> usize {
    let eights = words.chunks_exact(8);
    let whole = eights.take_while(|eight| eight.iter().fold(0, |any, word| any | (word ^ skipped)) == 0);
    let equal = whole.count() * 8;
    let rest = words.get(equal..).unwrap_or_default();
    equal + rest.iter().take_while(|word| **word == skipped).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &[u64], within: Range<u64>) -> Vec<(u64, u64)> {
        ones(words, within).map(|run| (run.start, run.end)).collect()
    }

    #[test]
    fn runs_are_found_within_and_across_words() {
        assert_eq!(found(&[0b0110], 0..64), [(1, 3)]);
        assert_eq!(found(&[1 << 63, 1, 0, u64::MAX], 0..256), [(63, 65), (192, 256)]);
    }

    #[test]
    fn bits_outside_the_range_are_cut_off() {
        assert_eq!(found(&[u64::MAX, u64::MAX], 3..70), [(3, 70)]);
        assert_eq!(found(&[u64::MAX, 0], 64..128), []);
        assert_eq!(found(&[0b1], 1..64), []);
    }

    #[test]
    fn a_bitmap_that_is_too_short_ends_where_it_ends() {
        assert_eq!(found(&[], 0..64), []);
        assert_eq!(found(&[1 << 63], 0..1000), [(63, 1000)]);
        assert_eq!(found(&[0], 5..u64::MAX), []);
    }

    #[test]
    fn every_pattern_of_a_few_bits_is_told_as_it_is() {
        // Miri runs 34 of the 1,024 patterns, each bit set in some of them and clear in others.
        let step = if cfg!(miri) { 31 } else { 1 };
        for pattern in (0_u64..1 << 10).step_by(step) {
            // Across a border of words.
            let words = [pattern << 59, pattern >> 5];
            let told: Vec<u64> = ones(&words, 59..69).flatten().collect();
            let set: Vec<u64> = (0..10).filter(|bit| (pattern >> bit) & 1 == 1).map(|bit| bit + 59).collect();
            assert_eq!(told, set);
        }
    }
}
