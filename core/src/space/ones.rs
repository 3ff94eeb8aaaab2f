//! Bitmaps as kernels fill them: bit n is bit n % 64 of word n / 64.

use std::ops::Range;

/// The runs of ones among the bits `within`, ascending. Words that are zero cost next to nothing.
pub(super) fn ones(words: &[u64], within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut next = within.start;
    std::iter::from_fn(move || {
        let first = find(words, next, 0).filter(|first| *first < within.end)?;
        next = find(words, first, u64::MAX).unwrap_or(u64::MAX).min(within.end);
        Some(first..next)
    })
}

/// The first bit from `from` on that is not as in `skipped`.
fn find(words: &[u64], from: u64, skipped: u64) -> Option<u64> {
    let mut word = usize::try_from(from / 64).ok()?;
    let mut bits = (words.get(word)? ^ skipped) & (u64::MAX << (from % 64));
    while bits == 0 {
        word += 1;
        bits = words.get(word)? ^ skipped;
    }
    Some(word as u64 * 64 + u64::from(bits.trailing_zeros()))
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
