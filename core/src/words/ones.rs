//! Bitmaps as kernels fill them: bit n is bit n % 64 of word n / 64.

use std::ops::Range;

/// The number of words that are compared at once.
const AT_ONCE: usize = 32;

/// The number of clean or full words that end a stretch of words that are neither: fewer go along with the stretch.
const WORTH_A_BREAK: usize = 8;

/// The runs of ones among the bits `within`, ascending. Words that are zero cost next to nothing, and no word outside
/// of `within` is read: a bitmap is as long as the longest mapping.
pub(crate) fn ones(words: &[u64], within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let end = usize::try_from(within.end.div_ceil(64)).unwrap_or(usize::MAX);
    let inside = words.get(..end.min(words.len())).unwrap_or_default();
    let mut next = within.start;
    std::iter::from_fn(move || {
        let first = find(inside, next, 0).filter(|first| *first < within.end)?;
        next = find(inside, first, u64::MAX).unwrap_or(u64::MAX).min(within.end);
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

/// The number of words that are zero before the first that is not: many at a time, as one comparison.
pub(crate) fn clean_words(words: &[u64]) -> usize {
    equal_words(words, 0)
}

/// Zeroes the words that are not zero. Most of a bitmap is, most of the time: reading it is cheaper than writing it.
pub(crate) fn clean(words: &mut [u64]) {
    let mut parts = words.chunks_exact_mut(AT_ONCE);
    for part in &mut parts {
        if clean_words(part) < AT_ONCE {
            part.fill(0);
        }
    }
    parts.into_remainder().fill(0);
}

/// The number of words that equal `skipped` before the first that does not. Inlined, so that the comparison with a
/// constant costs nothing.
#[inline(always)]
fn equal_words(words: &[u64], skipped: u64) -> usize {
    let mut equal = 0;
    let mut rest = words;
    while let Some((some, behind)) = rest.split_first_chunk::<AT_ONCE>() {
        if some.iter().fold(0, |differing, word| differing | (word ^ skipped)) != 0 {
            break;
        }
        (equal, rest) = (equal + AT_ONCE, behind);
    }
    equal + rest.iter().take_while(|word| **word == skipped).count()
}

/// A part of a bitmap, in words of its own: bit 0 of word 0 is the first bit of the part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits<'a> {
    /// The words in which the part lies.
    words: &'a [u64],
    /// The place of the part's first bit in the first word.
    shift: u32,
    /// The number of bits.
    len: u64,
}

impl<'a> Bits<'a> {
    /// The bits `within` of a bitmap, as far as it reaches.
    pub(crate) fn of(words: &'a [u64], within: Range<u64>) -> Self {
        let first = usize::try_from(within.start / 64).unwrap_or(usize::MAX);
        let end = usize::try_from(within.end.div_ceil(64)).unwrap_or(usize::MAX).min(words.len());
        let words = words.get(first..end).unwrap_or_default();
        let shift = u32::try_from(within.start % 64).unwrap_or_default();
        Self { words, shift, len: within.end.saturating_sub(within.start) }
    }

    /// The number of the first word from `next` on that is not zero.
    pub(crate) fn next_dirty(&self, mut next: usize) -> Option<usize> {
        loop {
            let rest = self.words.get(next..)?;
            // With a shift, a word is made of two: one that is zero can have a neighbour that is not.
            next += clean_words(rest).saturating_sub(usize::from(self.shift > 0));
            if self.word(next)? != 0 {
                return Some(next);
            }
            next += 1;
        }
    }

    /// The number of words from `next` on of which each bit is set.
    pub(crate) fn full_from(&self, next: usize) -> usize {
        if self.word(next) != Some(u64::MAX) {
            return 0;
        }
        let mut full = equal_words(self.as_they_are(next), u64::MAX);
        while self.word(next + full) == Some(u64::MAX) {
            full += 1;
        }
        full
    }

    /// Copies words from `next` on to the end of `into`, up to a stretch that is worth a break: all clean or all full.
    /// Word `next` itself is neither. Returns the number of words.
    pub(crate) fn copy_mixed(&self, next: usize, into: &mut Vec<u64>) -> usize {
        let mut count = 0;
        let whole = self.as_they_are(next);
        for some in whole.chunks(WORTH_A_BREAK).take_while(|some| !is_clean_or_full(some)) {
            count += some.len();
        }
        into.extend_from_slice(whole.get(..count).unwrap_or_default());
        while let Some(word) = self.word(next + count).filter(|word| !matches!(*word, 0 | u64::MAX)) {
            into.push(word);
            count += 1;
        }
        count
    }

    /// The words from `next` on that are words of the bitmap as they are: none if each is made of two, and not the last
    /// if it is cut.
    fn as_they_are(&self, next: usize) -> &'a [u64] {
        let whole = usize::try_from(self.len / 64).unwrap_or(usize::MAX).min(self.words.len());
        let end = if self.shift == 0 { whole } else { 0 };
        self.words.get(next..end).unwrap_or_default()
    }

    /// Word `number` of the part; `None` behind its end.
    #[inline]
    pub(crate) fn word(&self, number: usize) -> Option<u64> {
        let left = self.len.checked_sub(number as u64 * 64).filter(|left| *left > 0)?;
        let mut word = self.words.get(number).copied().unwrap_or(0);
        if self.shift > 0 {
            let above = self.words.get(number + 1).copied().unwrap_or(0);
            word = (word >> self.shift) | (above << (64 - self.shift));
        }
        Some(if left < 64 { word & ((1 << left) - 1) } else { word })
    }
}

/// Returns whether all `words` are zero, or each bit of them is set.
fn is_clean_or_full(words: &[u64]) -> bool {
    let first = words.first().copied().unwrap_or_default();
    matches!(first, 0 | u64::MAX) && words.iter().all(|word| *word == first)
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

    #[test]
    fn cleaning_leaves_no_bit() {
        for len in [0, 1, AT_ONCE, 3 * AT_ONCE + 5] {
            for dirty in 0..len {
                let mut words = vec![0; len];
                words[dirty] = 1 << (dirty % 64);
                clean(&mut words);
                assert_eq!(clean_words(&words), len);
            }
        }
    }

    #[test]
    fn mixed_words_are_copied_up_to_a_stretch_that_is_worth_a_break() {
        let mut words = vec![5; 20];
        words[3..6].fill(0);
        words[7] = u64::MAX;
        let mut long = words.clone();
        long.extend([0; 2 * WORTH_A_BREAK]);
        long.push(9);
        for (start, end, expected) in [(0, 20 * 64, 20), (0, 19 * 64 + 3, 20), (4, 3 * 64, 2), (0, 37 * 64, 24)] {
            let mut copied = Vec::new();
            let count = Bits::of(&long, start..end).copy_mixed(0, &mut copied);
            assert_eq!((count, copied.len()), (expected, expected), "bits {start}..{end}");
        }
    }

    #[test]
    fn bits_of_a_part_are_those_of_the_bitmap() {
        let words = [0xf0f0_0000_0000_0001, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 << 63, u64::MAX];
        let step = if cfg!(miri) { 97 } else { 1 };
        let all = words.len() as u64 * 64;
        for start in (0..all).step_by(step) {
            for len in [1, 5, 64, 100, 700].map(|len| len.min(all - start)) {
                let bits = Bits::of(&words, start..start + len);
                let mut found = Vec::new();
                let mut next = bits.next_dirty(0);
                while let Some(number) = next {
                    let word = bits.word(number).expect("inside");
                    let mut copied = vec![u64::MAX; bits.full_from(number)];
                    assert_eq!(!copied.is_empty(), word == u64::MAX);
                    if copied.is_empty() {
                        assert!(bits.copy_mixed(number, &mut copied) > 0);
                    }
                    next = bits.next_dirty(number + copied.len());
                    let copied = ones(&copied, 0..copied.len() as u64 * 64).flatten();
                    found.extend(copied.map(|bit| number as u64 * 64 + bit));
                }
                let expected: Vec<u64> = ones(&words, start..start + len).flatten().map(|bit| bit - start).collect();
                assert_eq!(found, expected, "{len} bits from {start} on");
            }
        }
    }
}
