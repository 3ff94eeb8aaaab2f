//! Copies into and out of memory that devices and the guest write at any time.
//!
//! A copy is made of atomic accesses, so it is no data race with other copies. By the language's rules accesses of two
//! sizes to one place would be, as accesses that are not atomic are. So a place is always accessed in one size: by
//! whole words of 8 bytes at multiples of 8, and byte by byte only in a word that the owner's memory begins or ends in,
//! and in a device's memory, whose accesses the device sees. A copy that begins or ends inside a word reads all of the
//! word, and exchanges it to write a part of it.
#![expect(unsafe_code, reason = "UNSAFETY: the one place that accesses the bytes behind a vouched-for address")]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::HostMemory;

const WORD: usize = size_of::<u64>();

/// Bytes inside a span that its owner keeps mapped while the memory is borrowed, and that no reference points into.
#[derive(Clone, Copy)]
pub(super) struct Vouched<'m> {
    first: *mut u8,
    len: usize,
    words: Words,
    memory: PhantomData<&'m HostMemory>,
}

/// The words that bytes of a copy lie in and that belong to the owner as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// None: every byte is accessed by itself.
    None,
    /// Those that begin at the first address or above it and end at the last address or below it.
    Within(u64, u64),
}

/// A part of a copy: a whole word, or bytes of one.
struct Piece {
    /// The first byte, counted from the beginning of the copy.
    start: usize,
    len: usize,
    /// The number of bytes of the word before the piece.
    skipped: usize,
}

impl<'m> Vouched<'m> {
    /// `len` bytes of `memory` from `first` on.
    ///
    /// # Safety
    /// The bytes must lie inside of `memory`, and there must be memory behind it; so must all of `words` that one of
    /// them lies in.
    pub(super) unsafe fn of(memory: &'m HostMemory, first: *mut u8, len: usize, words: Words) -> Self {
        let _ = memory;
        Self { first, len, words, memory: PhantomData }
    }

    /// Copies the bytes to `into`, which is as long.
    pub(super) fn read(self, into: &mut [u8]) {
        debug_assert_eq!(into.len(), self.len, "a copy of another length");
        if self.words == Words::None {
            return self.read_bytes(0, into);
        }
        let (head, rest) = into.split_at_mut(self.head());
        self.read_piece(0, head);
        let mut at = head.len();
        let mut words = rest.chunks_exact_mut(WORD);
        for word in &mut words {
            word.copy_from_slice(&self.word(at).load(Ordering::Relaxed).to_ne_bytes());
            at += WORD;
        }
        self.read_piece(at, words.into_remainder());
    }

    /// Copies `from`, which is as long, to the bytes.
    pub(super) fn write(self, from: &[u8]) {
        debug_assert_eq!(from.len(), self.len, "a copy of another length");
        if self.words == Words::None {
            return self.write_bytes(0, from);
        }
        let (head, rest) = from.split_at(self.head());
        self.write_piece(0, head);
        let mut at = head.len();
        let words = rest.chunks_exact(WORD);
        let tail = words.remainder();
        for word in words {
            let word = word.try_into().map_or(0, u64::from_ne_bytes);
            self.word(at).store(word, Ordering::Relaxed);
            at += WORD;
        }
        self.write_piece(at, tail);
    }

    /// The number of bytes before the first whole word.
    fn head(self) -> usize {
        (self.first.addr().wrapping_neg() % WORD).min(self.len)
    }

    /// Reads fewer bytes than a word, all of one word, from `start` on.
    fn read_piece(self, start: usize, into: &mut [u8]) {
        let Some(piece) = self.piece(start, into.len()) else { return self.read_bytes(start, into) };
        let word = self.word_around(&piece).load(Ordering::Relaxed).to_ne_bytes();
        into.copy_from_slice(word.get(piece.skipped..piece.skipped + piece.len).unwrap_or_default());
    }

    /// Writes fewer bytes than a word, all of one word, from `start` on.
    fn write_piece(self, start: usize, from: &[u8]) {
        let Some(piece) = self.piece(start, from.len()) else { return self.write_bytes(start, from) };
        let with_piece = |word: u64| {
            let mut bytes = word.to_ne_bytes();
            if let Some(place) = bytes.get_mut(piece.skipped..piece.skipped + piece.len) {
                place.copy_from_slice(from);
            }
            Some(u64::from_ne_bytes(bytes))
        };
        let word = self.word_around(&piece);
        let written = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_piece);
        debug_assert!(written.is_ok(), "a word is written whatever was there");
    }

    /// The piece of `len` bytes from `start` on; `None` without bytes, and where they are accessed one by one.
    fn piece(self, start: usize, len: usize) -> Option<Piece> {
        let Words::Within(low, high) = self.words else { return None };
        let first = self.first.addr().wrapping_add(start);
        let skipped = first % WORD;
        let word = (first - skipped) as u64;
        let is_whole = low <= word && word.checked_add(WORD as u64 - 1).is_some_and(|last| last <= high);
        if len > 0 && is_whole { Some(Piece { start, len, skipped }) } else { None }
    }

    fn read_bytes(self, start: usize, into: &mut [u8]) {
        for (n, byte) in into.iter_mut().enumerate() {
            *byte = self.byte(start + n).load(Ordering::Relaxed);
        }
    }

    fn write_bytes(self, start: usize, from: &[u8]) {
        for (n, byte) in from.iter().enumerate() {
            self.byte(start + n).store(*byte, Ordering::Relaxed);
        }
    }

    /// The byte at `at`.
    fn byte(&self, at: usize) -> &AtomicU8 {
        debug_assert!(at < self.len, "a byte past the end of the copy");
        // SAFETY: the byte is one of those that the owner keeps mapped. Memory that may only be read is only loaded
        // from, which is allowed for relaxed loads of a byte.
        unsafe { AtomicU8::from_ptr(self.first.wrapping_add(at)) }
    }

    /// The word that begins at `at`, which is a multiple of 8 by address, and lies inside the copy.
    fn word(&self, at: usize) -> &AtomicU64 {
        debug_assert!(at + WORD <= self.len, "a word past the end of the copy");
        // SAFETY: the word is inside, and aligned, as the caller says. Relaxed loads of 8 bytes are allowed from memory
        // that may only be read, as those of a byte are.
        unsafe { self.word_at(self.first.wrapping_add(at)) }
    }

    /// The word that a piece is a part of.
    fn word_around(&self, piece: &Piece) -> &AtomicU64 {
        let first = self.first.wrapping_add(piece.start).wrapping_sub(piece.skipped);
        // SAFETY: the word is aligned, and belongs to the owner as a whole, since the piece is of a whole word.
        unsafe { self.word_at(first) }
    }

    /// # Safety
    /// `first` must be a multiple of 8, and the 8 bytes there must be the owner's.
    unsafe fn word_at(&self, first: *mut u8) -> &AtomicU64 {
        debug_assert!(first.addr() % WORD == 0, "a word at no multiple of 8");
        // The cast is of an aligned address.
        #[expect(clippy::cast_ptr_alignment, reason = "checked by the callers")]
        let word = first.cast::<u64>();
        // SAFETY: mapped and aligned, as the caller promises; every access to it is atomic and of this size.
        unsafe { AtomicU64::from_ptr(word) }
    }
}
