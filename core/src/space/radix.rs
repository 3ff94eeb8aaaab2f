//! A table of 64-bit words by index, for tables that are dense in some places and empty in most: a radix tree.
//!
//! A leaf has 64 words, a branch has 64 children, and there are as many levels as the greatest index needs. A word
//! costs 8 bytes and a quarter of a byte more where its neighbours are in use, and a look-up one step for each level:
//! four for 64 GiB of pages of 4 KiB. A leaf that was found once is found again by its number ([`LeafHint`]).
//!
//! Invariants: no branch is empty, and no leaf but one, which is `idle`: the leaf that lost its only word last stays in
//! its place for the next word. A bit of `live` is set exactly where a word is not zero, or a child is there; a child
//! that is not there is [`NONE`], the number of no leaf or branch; `base` of a leaf in the tree is the first index of
//! it, of any other [`UNUSED`]; leaves and branches that are not in use are kept for the next insertion, but for those
//! of an empty table.

/// The words of a leaf and the children of a branch: as many as `live` has bits.
const FANOUT: usize = 64;
const SHIFT: u32 = 6;
/// The most levels that a table of 2^64 words would have.
const LEVELS: usize = 11;
/// The number of unused leaves that an empty table keeps.
const SPARE: usize = 4;
/// No first index of a leaf.
const UNUSED: u64 = u64::MAX;
/// The number of no leaf and no branch: a vector of so many would not fit into memory.
const NONE: u32 = u32::MAX;

/// Words by index. A word that is zero is not there.
#[derive(Debug)]
pub(super) struct Words {
    // A box each, since a vector that grows copies all it has.
    #[expect(clippy::vec_box, reason = "leaves stay where they are while the list of them grows")]
    leaves: Vec<Box<Leaf>>,
    branches: Vec<Branch>,
    unused_leaves: Vec<u32>,
    unused_branches: Vec<u32>,
    /// A leaf if there is one level, a branch if there are more.
    root: u32,
    /// 0 without any leaf; the root is [`NONE`] then.
    levels: u32,
    /// The shift of an index to its place in the root.
    root_shift: u32,
    /// The greatest index that so many levels reach.
    reach: u64,
    count: u64,
    /// The leaf without a word that is in the tree, if there is one: the one of this number, if it has none.
    idle: u32,
}

/// The number of the leaf that an index was found in. It is checked where it is used, so it may be out of date.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeafHint(u32);

#[derive(Debug)]
struct Leaf {
    base: u64,
    live: u64,
    words: [u64; FANOUT],
}

#[derive(Debug)]
struct Branch {
    live: u64,
    children: [u32; FANOUT],
}

/// The words of a range of indices, ascending.
pub(super) struct Ascending<'a> {
    table: &'a Words,
    /// The leaf at `base`, whose bits in `live` are still to come.
    leaf: Option<&'a Leaf>,
    base: u64,
    live: u64,
    last: u64,
}

impl LeafHint {
    /// The hint that leads to no leaf.
    pub(super) const NOWHERE: Self = Self(NONE);
}

impl Leaf {
    const EMPTY: Self = Self { base: UNUSED, live: 0, words: [0; FANOUT] };
}

impl Branch {
    const EMPTY: Self = Self { live: 0, children: [NONE; FANOUT] };
}

impl Default for Words {
    fn default() -> Self {
        Self {
            leaves: Vec::new(),
            branches: Vec::new(),
            unused_leaves: Vec::new(),
            unused_branches: Vec::new(),
            root: NONE,
            levels: 0,
            root_shift: 0,
            reach: 0,
            count: 0,
            idle: NONE,
        }
    }
}

impl Words {
    /// Returns `true` if there is no word.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The word at `index`; zero where there is none.
    pub(super) fn get(&self, index: u64) -> u64 {
        self.leaf(index).and_then(|leaf| leaf.words.get(place(index))).copied().unwrap_or(0)
    }

    /// The word at `index`, or zero, and a hint for the next access to it.
    // Not in the verbs themselves: its registers would be missing there.
    #[inline(never)]
    pub(super) fn find(&self, index: u64) -> (u64, LeafHint) {
        let number = self.leaf_of(index);
        let leaf = self.leaves.get(number as usize);
        (leaf.and_then(|leaf| leaf.words.get(place(index))).copied().unwrap_or(0), LeafHint(number))
    }

    /// The hint for `index`, where `known` is the one for the index `near`.
    #[inline]
    pub(super) fn hint_near(&self, (near, known): (u64, LeafHint), index: u64) -> LeafHint {
        if leaf_base(near) == leaf_base(index) && known.0 != NONE { known } else { self.find(index).1 }
    }

    /// [`Words::insert`]. Returns `true` if `word` is `step` more than the word below it, or less than the word above.
    #[inline(always)]
    pub(super) fn insert_near(&mut self, hint: LeafHint, index: u64, word: u64, step: u64) -> bool {
        let place = place(index);
        let Some(leaf) = leaf_near(&mut self.leaves, hint, index, false) else {
            return self.insert_and_compare(index, word, step);
        };
        leaf.live |= 1 << place;
        self.count += 1;
        if let Some(slot) = leaf.words.get_mut(place) {
            *slot = word;
        }
        match leaf.words.get(place.wrapping_sub(1)..place + 2) {
            Some([below, _, above]) => below.wrapping_add(step) == word || word.wrapping_add(step) == *above,
            _ => self.continues(index, word, step),
        }
    }

    #[inline(never)]
    fn insert_and_compare(&mut self, index: u64, word: u64, step: u64) -> bool {
        self.insert(index, word);
        self.continues(index, word, step)
    }

    #[inline(never)]
    fn continues(&self, index: u64, word: u64, step: u64) -> bool {
        let (below, above) = self.neighbours(index);
        below.wrapping_add(step) == word || word.wrapping_add(step) == above
    }

    /// The word at `index`, and `true` if it is `step` more than the word below it, or less than the word above.
    pub(super) fn word_near(&self, index: u64, step: u64) -> (u64, bool) {
        let place = place(index);
        let Some(leaf) = self.leaf(index) else { return (0, false) };
        match leaf.words.get(place.wrapping_sub(1)..place + 2) {
            Some([below, word, above]) => {
                (*word, below.wrapping_add(step) == *word || word.wrapping_add(step) == *above)
            }
            _ => {
                let word = leaf.words.get(place).copied().unwrap_or(0);
                (word, self.continues(index, word, step))
            }
        }
    }

    /// Takes the word at `index` out; zero where there is none.
    #[inline(always)]
    pub(super) fn remove_near(&mut self, hint: LeafHint, index: u64) -> u64 {
        let Some(leaf) = leaf_near(&mut self.leaves, hint, index, true) else { return self.remove_one(index) };
        leaf.live &= !(1 << place(index));
        let word = leaf.words.get_mut(place(index)).map_or(0, std::mem::take);
        self.count -= 1;
        if leaf.live == 0 && self.idle != hint.0 {
            self.leave_idle(hint);
        }
        word
    }

    #[inline(never)]
    fn remove_one(&mut self, index: u64) -> u64 {
        let mut taken = 0;
        self.remove(index, index, |word| taken = word);
        taken
    }

    /// Leaves a leaf that has lost its only word in its place, in place of the one before.
    #[inline(never)]
    fn leave_idle(&mut self, hint: LeafHint) {
        self.cut_idle();
        self.idle = hint.0;
    }

    /// Takes the leaf without a word out of the tree, if there is one.
    pub(super) fn cut_idle(&mut self) {
        let idle = std::mem::replace(&mut self.idle, NONE);
        let base = self.leaves.get(idle as usize).filter(|leaf| leaf.live == 0).map(|leaf| leaf.base);
        if let Some(base) = base.filter(|base| *base != UNUSED) {
            self.remove_in_leaf(base, 0, &mut |_| {});
        }
    }

    /// Puts `word`, which is not zero, at `index`, where there is none.
    pub(super) fn insert(&mut self, index: u64, word: u64) {
        debug_assert!(word != 0 && self.get(index) == 0, "a word is put where one is");
        self.grow_to(index);
        let mut node = self.root;
        for level in (1..self.levels).rev() {
            node = self.child_to_fill(node, level, index);
        }
        if let Some(leaf) = self.leaves.get_mut(node as usize) {
            leaf.live |= 1 << place(index);
            if let Some(place) = leaf.words.get_mut(place(index)) {
                *place = word;
                self.count += 1;
            }
        }
    }

    /// Takes all words from `first` to `last` out, with `taken` called for each of them.
    pub(super) fn remove(&mut self, first: u64, last: u64, mut taken: impl FnMut(u64)) {
        if leaf_base(first) == leaf_base(last) {
            let base = leaf_base(first);
            self.remove_in_leaf(base, bits_from(base, first) & bits_to(base, last), &mut taken);
            return;
        }
        let mut next = Some(first);
        while let Some(base) = next.and_then(|next| self.leaf_from(next)).filter(|base| *base <= last) {
            let bits = bits_from(base, first) & bits_to(base, last);
            self.remove_in_leaf(base, bits, &mut taken);
            next = base.checked_add(FANOUT as u64);
        }
        if self.count == 0 && self.leaves.len() > SPARE {
            *self = Self::default();
        }
    }

    /// The words from `first` to `last`, ascending, with their indices.
    pub(super) fn ascending(&self, first: u64, last: u64) -> Ascending<'_> {
        let mut words = Ascending { table: self, leaf: None, base: 0, live: 0, last };
        words.enter(first);
        words
    }

    /// The first and the last index from `first` to `last` at which there is a word, and the number of words there.
    pub(super) fn extent(&self, first: u64, last: u64) -> Option<(u64, u64, u64)> {
        if first == last {
            return if self.get(first) == 0 { None } else { Some((first, last, 1)) };
        }
        let mut found: Option<(u64, u64, u64)> = None;
        let mut next = Some(first);
        while let Some(base) = next.and_then(|next| self.leaf_from(next)).filter(|base| *base <= last) {
            let live = self.leaf(base).map_or(0, |leaf| leaf.live) & bits_from(base, first) & bits_to(base, last);
            if live != 0 {
                let (from, to) = (base + u64::from(live.trailing_zeros()), base + 63 - u64::from(live.leading_zeros()));
                let (start, _, count) = found.unwrap_or((from, to, 0));
                found = Some((start, to, count + u64::from(live.count_ones())));
            }
            next = base.checked_add(FANOUT as u64);
        }
        found
    }

    /// Returns `true` if the table is no small one and there is no word below `first` or above `last`.
    pub(super) fn are_many_and_all_in(&mut self, first: u64, last: u64) -> bool {
        self.cut_idle();
        self.leaves.len() > SPARE
            && self.end(u64::trailing_zeros).is_some_and(|lowest| lowest >= first)
            && self.end(|live| 63 - live.leading_zeros()).is_some_and(|highest| highest <= last)
    }

    /// The first or the last index with a word: `side` is the place of the outermost bit of a node. No leaf is idle.
    fn end(&self, side: fn(u64) -> u32) -> Option<u64> {
        let mut node = self.root;
        for _ in 1..self.levels {
            let branch = self.branches.get(node as usize)?;
            node = branch.children.get(side(branch.live) as usize).copied()?;
        }
        let leaf = self.leaves.get(node as usize)?;
        Some(leaf.base + u64::from(side(leaf.live)))
    }

    /// Adds levels until the tree reaches `index`.
    fn grow_to(&mut self, index: u64) {
        if self.levels == 0 {
            while !self.reaches(index) || self.levels == 0 {
                self.add_level();
            }
            self.root = if self.levels == 1 { self.unused_leaf(0) } else { self.unused_branch() };
            return;
        }
        while !self.reaches(index) {
            let above = self.unused_branch();
            if let Some(branch) = self.branches.get_mut(above as usize) {
                branch.live = 1;
                branch.children[0] = self.root;
            }
            self.root = above;
            self.add_level();
        }
    }

    fn add_level(&mut self) {
        self.levels += 1;
        self.root_shift = SHIFT * (self.levels - 1);
        self.reach = 1_u64.checked_shl(SHIFT * self.levels).map_or(u64::MAX, |end| end - 1);
    }

    fn reaches(&self, index: u64) -> bool {
        index <= self.reach
    }

    /// The number of the leaf that `index` lies in; [`NONE`] or another number without a leaf where there is none.
    #[inline(always)]
    fn leaf_of(&self, index: u64) -> u32 {
        if index > self.reach {
            return NONE;
        }
        let (mut node, mut shift) = (self.root, self.root_shift);
        while shift > 0 {
            let Some(branch) = self.branches.get(node as usize) else { return NONE };
            node = branch.children.get(place(index >> shift)).copied().unwrap_or(NONE);
            shift -= SHIFT;
        }
        node
    }

    fn leaf(&self, index: u64) -> Option<&Leaf> {
        self.leaves.get(self.leaf_of(index) as usize).map(AsRef::as_ref)
    }

    /// The words right below `index` and right above it; zero where there is none.
    pub(super) fn neighbours(&self, index: u64) -> (u64, u64) {
        let (leaf, place) = (self.leaf(index), place(index));
        let inside = |place: usize| leaf.and_then(|leaf| leaf.words.get(place)).copied().unwrap_or(0);
        let below = match place.checked_sub(1) {
            Some(below) => inside(below),
            None => index.checked_sub(1).map_or(0, |below| self.get(below)),
        };
        let is_last = place + 1 == FANOUT;
        let above = if is_last { index.checked_add(1).map_or(0, |above| self.get(above)) } else { inside(place + 1) };
        (below, above)
    }

    /// The child of a branch on the way to `index`, which is made where there is none.
    fn child_to_fill(&mut self, node: u32, level: u32, index: u64) -> u32 {
        let slot = slot(index, level);
        if let Some(child) = self.branches.get(node as usize).and_then(|branch| branch.child(slot)) {
            return child;
        }
        let child = if level == 1 { self.unused_leaf(leaf_base(index)) } else { self.unused_branch() };
        if let Some(branch) = self.branches.get_mut(node as usize) {
            branch.live |= 1 << slot;
            if let Some(place) = branch.children.get_mut(slot) {
                *place = child;
            }
        }
        child
    }

    /// The first index of the first leaf that has indices from `from` on.
    fn leaf_from(&self, from: u64) -> Option<u64> {
        if self.levels == 0 || !self.reaches(from) {
            return None;
        }
        self.leaf_below(self.root, self.levels - 1, from)
    }

    fn leaf_below(&self, node: u32, level: u32, from: u64) -> Option<u64> {
        if level == 0 {
            return Some(leaf_base(from));
        }
        let branch = self.branches.get(node as usize)?;
        let here = slot(from, level);
        if let Some(found) = branch.child(here).and_then(|child| self.leaf_below(child, level - 1, from)) {
            return Some(found);
        }
        let above = branch.live & (u64::MAX << here << 1);
        if above == 0 {
            return None;
        }
        let next = above.trailing_zeros();
        let span = SHIFT * (level + 1);
        let start = from.checked_shr(span).and_then(|high| high.checked_shl(span)).unwrap_or(0);
        self.leaf_below(branch.child(next as usize)?, level - 1, start | (u64::from(next) << (SHIFT * level)))
    }

    /// Takes the words with a bit in `bits` out of the leaf at `base`, and the leaf if that was all of it.
    fn remove_in_leaf(&mut self, base: u64, bits: u64, taken: &mut impl FnMut(u64)) {
        if self.levels == 0 || !self.reaches(base) {
            return;
        }
        let mut path = [0; LEVELS];
        let mut node = self.root;
        for level in (1..self.levels).rev() {
            if let Some(place) = path.get_mut(level as usize) {
                *place = node;
            }
            let Some(child) = self.branches.get(node as usize).and_then(|branch| branch.child(slot(base, level)))
            else {
                return;
            };
            node = child;
        }
        let Some(leaf) = self.leaves.get_mut(node as usize) else { return };
        let mut going = leaf.live & bits;
        leaf.live &= !bits;
        self.count -= u64::from(going.count_ones());
        while going != 0 {
            if let Some(word) = leaf.words.get_mut(going.trailing_zeros() as usize) {
                taken(std::mem::take(word));
            }
            going &= going - 1;
        }
        if leaf.live == 0 {
            leaf.base = UNUSED;
            self.unused_leaves.push(node);
            self.cut(base, &path);
        }
    }

    /// Takes the child towards `base` out of the branches of `path`, up to the first that has another.
    fn cut(&mut self, base: u64, path: &[u32; LEVELS]) {
        for level in 1..self.levels {
            let node = path.get(level as usize).copied().unwrap_or_default();
            let Some(branch) = self.branches.get_mut(node as usize) else { return };
            branch.live &= !(1 << slot(base, level));
            if let Some(child) = branch.children.get_mut(slot(base, level)) {
                *child = NONE;
            }
            if branch.live != 0 {
                return;
            }
            self.unused_branches.push(node);
        }
        (self.root, self.levels, self.root_shift, self.reach) = (NONE, 0, 0, 0);
    }

    fn unused_leaf(&mut self, base: u64) -> u32 {
        let Some(known) = self.unused_leaves.pop() else {
            self.leaves.push(Box::new(Leaf { base, ..Leaf::EMPTY }));
            return number(self.leaves.len() - 1);
        };
        if let Some(leaf) = self.leaves.get_mut(known as usize) {
            leaf.base = base;
        }
        known
    }

    fn unused_branch(&mut self) -> u32 {
        self.unused_branches.pop().unwrap_or_else(|| {
            self.branches.push(Branch::EMPTY);
            number(self.branches.len() - 1)
        })
    }
}

impl Branch {
    fn child(&self, slot: usize) -> Option<u32> {
        if self.live & (1 << slot) == 0 { None } else { self.children.get(slot).copied() }
    }
}

impl Ascending<'_> {
    /// Goes to the first leaf that has indices from `from` on.
    fn enter(&mut self, from: u64) {
        let base = self.table.leaf_from(from).filter(|base| *base <= self.last);
        self.leaf = base.and_then(|base| self.table.leaf(base));
        self.base = base.unwrap_or_default();
        let bits = bits_from(self.base, from) & bits_to(self.base, self.last);
        self.live = self.leaf.map_or(0, |leaf| leaf.live & bits);
    }
}

impl Iterator for Ascending<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        while self.live == 0 {
            self.leaf?;
            let Some(next) = self.base.checked_add(FANOUT as u64) else {
                self.leaf = None;
                return None;
            };
            self.enter(next);
        }
        let bit = self.live.trailing_zeros();
        self.live &= self.live - 1;
        let word = self.leaf?.words.get(bit as usize).copied()?;
        Some((self.base + u64::from(bit), word))
    }
}

/// The leaf that `index` lies in, if that is the one of the hint, and it has a word there or has none.
#[inline(always)]
fn leaf_near(leaves: &mut [Box<Leaf>], hint: LeafHint, index: u64, has_word: bool) -> Option<&mut Leaf> {
    let leaf = leaves.get_mut(hint.0 as usize)?.as_mut();
    let is_as_found = leaf.base == leaf_base(index) && (leaf.live & (1 << place(index)) != 0) == has_word;
    if is_as_found { Some(leaf) } else { None }
}

/// The first index of the leaf that `index` lies in.
fn leaf_base(index: u64) -> u64 {
    index & !(FANOUT as u64 - 1)
}

/// The place of `index` in its leaf: below 64, so the cast is exact.
#[expect(clippy::cast_possible_truncation, reason = "below 64")]
fn place(index: u64) -> usize {
    (index % FANOUT as u64) as usize
}

/// The place of the child towards `index` in a branch of `level`.
fn slot(index: u64, level: u32) -> usize {
    place(index >> (SHIFT * level))
}

/// The bits of the leaf at `base` for indices from `first` on.
fn bits_from(base: u64, first: u64) -> u64 {
    if first <= base { u64::MAX } else { u64::MAX.checked_shl(u32::try_from(first - base).unwrap_or(64)).unwrap_or(0) }
}

/// The bits of the leaf at `base` for indices up to `last`.
fn bits_to(base: u64, last: u64) -> u64 {
    let after = last.checked_sub(base).map_or(0, |offset| offset.saturating_add(1));
    1_u64.checked_shl(u32::try_from(after).unwrap_or(64)).map_or(u64::MAX, |end| end - 1)
}

/// The number of a leaf or a branch. A table with more of them would not fit into memory.
fn number(place: usize) -> u32 {
    debug_assert!(u32::try_from(place).is_ok(), "a table of 2 TiB");
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Indices near each other, and far apart.
    fn index() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..200, 4_000_u64..4_200, (0_u64..52).prop_map(|shift| 1 << shift), Just(u64::MAX >> 12)]
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (index(), 1_u64..9).prop_map(|(index, word)| Step::Insert(index, word)),
            1 => (index(), 0_u64..300).prop_map(|(first, more)| Step::Remove(first, first + more)),
            1 => (index(), index()).prop_map(|(a, b)| Step::Remove(a.min(b), a.max(b))),
        ]
    }

    fn base_of(table: &Words, hint: LeafHint) -> Option<u64> {
        table.leaves.get(hint.0 as usize).map(|leaf| leaf.base)
    }

    fn check(table: &Words, model: &BTreeMap<u64, u64>) {
        let all: Vec<_> = model.iter().map(|(index, word)| (*index, *word)).collect();
        assert_eq!(table.ascending(0, u64::MAX).collect::<Vec<_>>(), all);
        let extent = all.first().zip(all.last()).map(|(first, last)| (first.0, last.0, all.len() as u64));
        assert_eq!(table.extent(0, u64::MAX), extent);
        assert_eq!(table.is_empty(), all.is_empty());
        let idle = table.leaves.iter().filter(|leaf| leaf.live == 0 && leaf.base != UNUSED).count();
        assert!(idle <= 1, "{idle} leaves without a word are in the tree");
        if idle > 0 {
            return;
        }
        let ends = table.end(u64::trailing_zeros).zip(table.end(|live| 63 - live.leading_zeros()));
        assert_eq!(ends, all.first().zip(all.last()).map(|(first, last)| (first.0, last.0)));
    }

    /// Miri takes seconds for a step.
    const STEPS: usize = if cfg!(miri) { 8 } else { 60 };

    proptest! {
        #[test]
        fn words_are_those_of_a_map(steps in prop::collection::vec(step(), 1..STEPS), from in index(), to in index()) {
            let (mut table, mut model) = (Words::default(), BTreeMap::new());
            let mut stale = LeafHint(0);
            for step in steps {
                match step {
                    Step::Remove(first, last) if last - first < 100 && model.contains_key(&first) => {
                        let (word, hint) = table.find(first);
                        let hint = if first % 2 == 0 { hint } else { stale };
                        prop_assert_eq!(Some(word), model.remove(&first));
                        prop_assert_eq!(table.remove_near(hint, first), word);
                    }
                    Step::Insert(index, word) if table.get(index) == 0 => {
                        let below = index.checked_sub(1).and_then(|below| model.get(&below)).copied().unwrap_or(0);
                        let above = model.get(&(index + 1)).copied().unwrap_or(0);
                        let continues = below + 1 == word || word + 1 == above;
                        let (nothing, hint) = table.find(index);
                        let near = table.hint_near((index ^ 1, hint), index);
                        prop_assert_eq!(base_of(&table, near), base_of(&table, hint));
                        // A hint out of date is worth nothing, and does no harm.
                        let hint = if word % 2 == 0 { hint } else { stale };
                        prop_assert_eq!(nothing, 0);
                        prop_assert_eq!(table.insert_near(hint, index, word, 1), continues);
                        prop_assert_eq!(table.word_near(index, 1), (word, continues));
                        model.insert(index, word);
                        stale = hint;
                    }
                    Step::Insert(index, _) => prop_assert_eq!(table.get(index), model[&index]),
                    Step::Remove(first, last) => {
                        let mut taken = Vec::new();
                        table.remove(first, last, |word| taken.push(word));
                        let gone: Vec<_> = model.range(first..=last).map(|(index, _)| *index).collect();
                        let words: Vec<_> = gone.iter().filter_map(|index| model.remove(index)).collect();
                        prop_assert_eq!(taken, words);
                    }
                }
                check(&table, &model);
            }
            let (from, to) = (from.min(to), from.max(to));
            let within: Vec<_> = model.range(from..=to).map(|(index, word)| (*index, *word)).collect();
            prop_assert_eq!(table.ascending(from, to).collect::<Vec<_>>(), within);
        }
    }

    #[test]
    fn an_empty_table_gives_its_leaves_back() {
        let mut table = Words::default();
        for index in 0..1_000 {
            table.insert(index * 64, 1);
        }
        table.remove(0, u64::MAX, |_| {});
        assert_eq!((table.leaves.len(), table.branches.len()), (0, 0));
    }
}
