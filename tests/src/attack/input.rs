//! Choices that are made by the bytes of an input.

/// The bytes of an input, which are used up one after the other. Behind the last one all are zero.
#[derive(Clone, Debug)]
pub(super) struct Input {
    bytes: Vec<u8>,
    at: usize,
}

impl Input {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), at: 0 }
    }

    /// Divides the rest: the bytes at even and at odd places.
    pub(super) fn halves(&self) -> (Self, Self) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (even, odd) = (rest.iter().step_by(2), rest.iter().skip(1).step_by(2));
        (Self { bytes: even.copied().collect(), at: 0 }, Self { bytes: odd.copied().collect(), at: 0 })
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or_default();
        self.at += 1;
        byte
    }

    /// A number below `end`, which is at most 256.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        u64::from(self.byte()) % end.max(1)
    }

    /// A place in a list of `len` items.
    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("a byte")
    }

    pub(super) fn choose<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.index(items.len())]
    }

    /// True once in `n` times, for bytes that are drawn evenly.
    pub(super) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == n - 1
    }

    /// Eight bytes of the input.
    pub(super) fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// A number that a reader of numbers may get wrong: a power of two and its neighbours, a small number, or any.
    pub(super) fn edge(&mut self) -> u64 {
        let power = 1u64 << (self.byte() % 64);
        match self.below(8) {
            0 => power,
            1 => power.wrapping_sub(1),
            2 => power.wrapping_neg(),
            3 => 0,
            4 => u64::MAX,
            5 => power | 0x1000,
            6 => u64::from(self.byte()),
            _ => self.word(),
        }
    }
}

/// The bytes of a generated input: the same for a seed each time (SplitMix64).
pub fn generated(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
