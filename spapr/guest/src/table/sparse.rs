//! Entries by index, for tables of which a guest fills some places and leaves most empty: a radix tree.
//!
//! A leaf has 64 entries, a branch has 64 children, and the tree is as high as the table's last index needs. A leaf and
//! a branch say in a word each which of their places are in use, so that whole stretches are looked at, cleared and
//! skipped at once; what else lies in an unused place has no meaning.
//!
//! Invariants: every leaf has an entry other than [`Tce::NONE`], and every branch a child. A node that loses its last
//! one is freed at once, but for a few that are kept for the next: a guest that fills and clears the same places
//! allocates nothing.

use dmaspace_core::PageSize;

use crate::entry::Tce;
use crate::stretch::{LEAF, Parts, Stretch};

/// The children of a branch: as many as a leaf has entries, and as a word has bits.
const FANOUT: u64 = LEAF;
const PLACES: usize = u64::BITS as usize;
const SHIFT: u32 = FANOUT.ilog2();

/// The bytes of a node.
pub(super) const NODE: u64 = size_of::<Node>() as u64;

/// The leaves that are kept for the next: as many as a list of 512 entries reaches, and one more.
const SPARE_LEAVES: usize = 10;
/// The branches that are kept for the next.
const SPARE_BRANCHES: usize = 2;

/// Entries by index.
#[derive(Clone, Debug)]
pub(super) struct Sparse {
    root: Option<Box<Node>>,
    /// The levels of branches above the leaves.
    height: u32,
    pool: Pool,
}

/// Nodes that are not in the tree, and the number of the nodes in it.
#[derive(Clone, Debug, Default)]
struct Pool {
    // A box each, as in the tree.
    #[expect(clippy::vec_box, reason = "nodes go from the list to the tree and back")]
    leaves: Vec<Box<Node>>,
    #[expect(clippy::vec_box, reason = "nodes go from the list to the tree and back")]
    branches: Vec<Box<Node>>,
    in_use: u64,
}

// A node is in a box, and what is kept for the next is the box: one of another size would be of no use.
#[allow(clippy::large_enum_variant, reason = "the sizes differ by a word")]
#[derive(Clone, Debug)]
enum Node {
    Leaf(Leaf),
    Branch(Branch),
}

/// The entries of 64 consecutive indices.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// The entries other than [`Tce::NONE`].
    used: u64,
    /// The entries with a right.
    live: u64,
    entries: [Tce; PLACES],
}

#[derive(Clone, Debug)]
struct Branch {
    used: u64,
    children: [Option<Box<Node>>; PLACES],
}

impl Sparse {
    /// No entries, with indices up to `last`.
    pub(super) fn up_to(last: u64) -> Self {
        let bits = u64::BITS - last.leading_zeros();
        Self { root: None, height: bits.div_ceil(SHIFT).saturating_sub(1), pool: Pool::default() }
    }

    /// The number of nodes.
    pub(super) fn nodes(&self) -> u64 {
        self.pool.in_use
    }

    /// The entry at `index`.
    pub(super) fn get(&self, index: u64) -> Tce {
        self.leaf(index).map_or(Tce::NONE, |leaf| leaf.get(index))
    }

    /// The leaf of `index`.
    ///
    /// # Errors
    /// The number of nodes that an entry there would add.
    pub(super) fn leaf(&self, index: u64) -> Result<&Leaf, u64> {
        let mut level = self.height;
        let mut next = self.root.as_deref();
        loop {
            match next {
                Some(Node::Leaf(leaf)) => return Ok(leaf),
                Some(Node::Branch(branch)) => next = branch.child(slot(index, level)),
                None => return Err(u64::from(level) + 1),
            }
            level = level.wrapping_sub(1);
        }
    }

    /// Writes entries, in a table of `page`.
    pub(super) fn write(&mut self, parts: Parts<impl Iterator<Item = Stretch>>, page: PageSize) {
        // The leaf of the part before, and its number.
        let mut known: Option<(u64, &mut Leaf)> = None;
        for (index, part) in parts {
            if part.first == Tce::NONE {
                known = None;
                self.clear(index, index + (part.count - 1));
                continue;
            }
            let leaf = match known {
                Some((number, leaf)) if number == index / LEAF => leaf,
                _ => {
                    known = None;
                    let Some(leaf) = self.leaf_to_fill(index) else { continue };
                    leaf
                }
            };
            leaf.write(index, part, page);
            known = Some((index / LEAF, leaf));
        }
    }

    /// Writes one entry.
    pub(super) fn set(&mut self, index: u64, tce: Tce) {
        let bit = 1 << place(index);
        match self.leaf_mut(index) {
            Some(leaf) if tce != Tce::NONE => leaf.set(index, tce),
            Some(leaf) if leaf.used & !bit != 0 => {
                leaf.clear(bit);
            }
            _ => self.set_with_nodes(index, tce),
        }
    }

    /// Writes one entry, with the nodes that it needs, or that need not stay without it.
    #[inline(never)]
    fn set_with_nodes(&mut self, index: u64, tce: Tce) {
        if tce == Tce::NONE {
            self.clear(index, index);
        } else if let Some(leaf) = self.leaf_to_fill(index) {
            leaf.set(index, tce);
        }
    }

    /// Clears the entries from `first` to `last`.
    pub(super) fn clear(&mut self, first: u64, last: u64) {
        clear_below(&mut self.root, self.height, (first, last), &mut self.pool);
    }

    /// The first leaf that has indices from `from` on, and its first index.
    pub(super) fn leaf_from(&self, from: u64) -> Option<(u64, &Leaf)> {
        let is_within = from.checked_shr(SHIFT * (self.height + 1)).unwrap_or(0) == 0;
        leaf_below(self.root.as_deref().filter(|_| is_within)?, self.height, from)
    }

    /// Returns true if an entry from `first` to `last` has a right.
    pub(super) fn has_live(&self, first: u64, last: u64) -> bool {
        let mut next = self.leaf_from(first);
        while let Some((base, leaf)) = next.filter(|(base, _)| *base <= last) {
            if leaf.live & bits_within(base, first, last) != 0 {
                return true;
            }
            next = base.checked_add(FANOUT).and_then(|next| self.leaf_from(next));
        }
        false
    }

    /// The entries with a right from `first` to `last`, ascending, with their indices.
    pub(super) fn live(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, Tce)> {
        let mut next = self.leaf_from(first);
        let leaves = std::iter::from_fn(move || {
            let (base, leaf) = next.filter(|(base, _)| *base <= last)?;
            next = base.checked_add(FANOUT).and_then(|next| self.leaf_from(next));
            Some((base, leaf))
        });
        leaves.flat_map(move |(base, leaf)| leaf.live_within(base, bits_within(base, first, last)))
    }

    fn leaf_mut(&mut self, index: u64) -> Option<&mut Leaf> {
        let mut node = self.root.as_deref_mut()?;
        let mut level = self.height;
        loop {
            match node {
                Node::Leaf(leaf) => return Some(leaf),
                Node::Branch(branch) => node = branch.children.get_mut(slot(index, level))?.as_deref_mut()?,
            }
            level -= 1;
        }
    }

    /// The leaf of `index`, which is made where there is none. The caller sets an entry of it.
    fn leaf_to_fill(&mut self, index: u64) -> Option<&mut Leaf> {
        let Self { root, height, pool } = self;
        let mut level = *height;
        let mut node = root.get_or_insert_with(|| pool.take(level));
        loop {
            match &mut **node {
                Node::Leaf(leaf) => return Some(leaf),
                Node::Branch(branch) => {
                    let slot = slot(index, level);
                    level -= 1;
                    branch.used |= 1 << slot;
                    node = branch.children.get_mut(slot)?.get_or_insert_with(|| pool.take(level));
                }
            }
        }
    }
}

/// Clears entries below a node of `level`, and the node if it has none left. The bounds of the range are relative to
/// the node's first index, and may lie behind its last one.
fn clear_below(node: &mut Option<Box<Node>>, level: u32, (first, last): (u64, u64), pool: &mut Pool) {
    let is_empty = match node.as_deref_mut() {
        None => return,
        Some(Node::Leaf(leaf)) => leaf.clear(bits_within(0, first, last)),
        Some(Node::Branch(branch)) => branch.clear(level, (first, last), pool),
    };
    if is_empty {
        pool.put(node.take());
    }
}

/// The first leaf below a node of `level` that has indices from `from` on, and its first index.
fn leaf_below(node: &Node, level: u32, from: u64) -> Option<(u64, &Leaf)> {
    let branch = match node {
        Node::Leaf(leaf) => return Some((from & !(FANOUT - 1), leaf)),
        Node::Branch(branch) => branch,
    };
    let here = slot(from, level);
    if let Some(found) = branch.child(here).and_then(|child| leaf_below(child, level - 1, from)) {
        return Some(found);
    }
    let above = branch.used & (u64::MAX << here << 1);
    if above == 0 {
        return None;
    }
    let next = above.trailing_zeros();
    let span = SHIFT * (level + 1);
    let base = from.checked_shr(span).and_then(|high| high.checked_shl(span)).unwrap_or(0);
    leaf_below(branch.child(next as usize)?, level - 1, base | (u64::from(next) << (SHIFT * level)))
}

impl Pool {
    fn take(&mut self, level: u32) -> Box<Node> {
        self.in_use += 1;
        if level == 0 {
            self.leaves.pop().unwrap_or_else(|| Box::new(Node::Leaf(Leaf::EMPTY)))
        } else {
            self.branches.pop().unwrap_or_else(|| Box::new(Node::Branch(Branch::EMPTY)))
        }
    }

    /// Keeps a node that has nothing left, or frees it.
    fn put(&mut self, node: Option<Box<Node>>) {
        let Some(node) = node else { return };
        self.in_use -= 1;
        let (list, most) = match *node {
            Node::Leaf(_) => (&mut self.leaves, SPARE_LEAVES),
            Node::Branch(_) => (&mut self.branches, SPARE_BRANCHES),
        };
        if list.len() < most {
            list.push(node);
        }
    }
}

impl Branch {
    const EMPTY: Self = Self { used: 0, children: [const { None }; PLACES] };

    fn child(&self, slot: usize) -> Option<&Node> {
        self.children.get(slot)?.as_deref()
    }

    /// Clears entries below the branch, which is of `level`. Returns true if it has no child left.
    fn clear(&mut self, level: u32, (first, last): (u64, u64), pool: &mut Pool) -> bool {
        let shift = SHIFT * level;
        let mut going = self.used & bits_within(0, first >> shift, last >> shift);
        while going != 0 {
            let slot = going.trailing_zeros();
            going &= going - 1;
            let base = u64::from(slot) << shift;
            let Some(child) = self.children.get_mut(slot as usize) else { break };
            clear_below(child, level - 1, (first.saturating_sub(base), last - base), pool);
            if child.is_none() {
                self.used &= !(1 << slot);
            }
        }
        self.used == 0
    }
}

impl Leaf {
    const EMPTY: Self = Self { used: 0, live: 0, entries: [Tce::NONE; PLACES] };

    pub(super) fn get(&self, index: u64) -> Tce {
        let place = place(index);
        if self.used & (1 << place) == 0 { Tce::NONE } else { self.entries.get(place).copied().unwrap_or_default() }
    }

    /// Returns true if one of `count` entries from `index` on, all of which lie in the leaf, has a right.
    pub(super) fn has_live(&self, index: u64, count: u64) -> bool {
        self.live & bits(place(index), count) != 0
    }

    /// Writes an entry other than [`Tce::NONE`].
    fn set(&mut self, index: u64, tce: Tce) {
        let (place, bit) = (place(index), 1 << place(index));
        if let Some(entry) = self.entries.get_mut(place) {
            *entry = tce;
            self.used |= bit;
            self.live = if tce.is_live() { self.live | bit } else { self.live & !bit };
        }
    }

    /// Writes a stretch of entries other than [`Tce::NONE`] from `index` on.
    fn write(&mut self, index: u64, stretch: Stretch, page: PageSize) {
        if stretch.count == 1 {
            return self.set(index, stretch.first);
        }
        let bits = bits(place(index), stretch.count);
        self.used |= bits;
        self.live = if stretch.first.is_live() { self.live | bits } else { self.live & !bits };
        let (mut raw, step) = (stretch.first.get(), stretch.step(page));
        let places = self.entries.get_mut(place(index)..place(index) + count(stretch)).unwrap_or_default();
        for entry in places {
            *entry = Tce::new(raw);
            raw = raw.wrapping_add(step);
        }
    }

    /// Clears the entries of `bits`. Returns true if none is left.
    fn clear(&mut self, bits: u64) -> bool {
        self.used &= !bits;
        self.live &= !bits;
        self.used == 0
    }

    /// The entries of `bits` with a right, with their indices; the first index of the leaf is `base`.
    fn live_within(&self, base: u64, bits: u64) -> impl Iterator<Item = (u64, Tce)> {
        let mut rest = self.live & bits;
        std::iter::from_fn(move || {
            let place = rest.trailing_zeros();
            let tce = self.entries.get(place as usize)?;
            rest &= rest - 1;
            Some((base + u64::from(place), *tce))
        })
    }
}

/// The place of `index` in its leaf.
fn place(index: u64) -> usize {
    (index % FANOUT) as usize
}

/// The place of the child towards `index` in a branch of `level`.
fn slot(index: u64, level: u32) -> usize {
    place(index >> (SHIFT * level))
}

/// The number of entries of a stretch that lies in one leaf.
fn count(stretch: Stretch) -> usize {
    stretch.count.min(FANOUT) as usize
}

/// The bits of `count` places from `place` on.
fn bits(place: usize, count: u64) -> u64 {
    let count = u32::try_from(count).unwrap_or(u64::BITS);
    1_u64.checked_shl(count).map_or(u64::MAX, |end| end - 1) << place
}

/// The bits of the leaf at `base` for the indices from `first` to `last`, which is not below `base`.
fn bits_within(base: u64, first: u64, last: u64) -> u64 {
    let (from, to) = (first.saturating_sub(base), last - base);
    let from = if from < FANOUT { u64::MAX << from } else { 0 };
    if to < FANOUT { from & (u64::MAX >> (FANOUT - 1 - to)) } else { from }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const LAST: u64 = u64::MAX >> 12;

    /// Indices near each other, and far apart.
    fn index() -> impl Strategy<Value = u64> {
        prop_oneof![0_u64..200, 4_000_u64..4_200, (0_u64..52).prop_map(|shift| 1 << shift), Just(LAST)]
    }

    /// Entries with rights and without.
    fn stretch() -> impl Strategy<Value = Stretch> {
        let first = prop_oneof![Just(0), Just(0x5000), 1_u64..4, (0_u64..9).prop_map(|page| (page << 12) | 3)];
        let count = prop_oneof![Just(1), 1_u64..200];
        (first, count).prop_map(|(first, count)| Stretch { first: Tce::new(first), count })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Stretch),
        Clear(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (index(), stretch()).prop_map(|(index, stretch)| {
                Step::Write(index, Stretch { count: stretch.count.min(LAST - index + 1), ..stretch })
            }),
            1 => (index(), 0_u64..300).prop_map(|(first, more)| Step::Clear(first, (first + more).min(LAST))),
            1 => (index(), index()).prop_map(|(a, b)| Step::Clear(a.min(b), a.max(b))),
        ]
    }

    fn write(table: &mut Sparse, index: u64, stretch: Stretch) {
        table.write(Parts::of(index, [stretch].into_iter(), PageSize::K4), PageSize::K4);
    }

    fn take_step(table: &mut Sparse, model: &mut BTreeMap<u64, Tce>, step: Step) {
        match step {
            Step::Write(index, stretch) => {
                write(table, index, stretch);
                model.extend((index..).zip(stretch.entries(PageSize::K4)));
            }
            Step::Clear(first, last) => {
                table.clear(first, last);
                model.retain(|index, _| !(first..=last).contains(index));
            }
        }
        model.retain(|_, tce| *tce != Tce::NONE);
    }

    /// The number of leaves and branches that hold the entries of a model.
    fn nodes(table: &Sparse, model: &BTreeMap<u64, Tce>) -> usize {
        let nodes_of = |level| {
            let mut nodes: Vec<_> = model.keys().map(|index| index.checked_shr(6 * (level + 1)).unwrap_or(0)).collect();
            nodes.dedup();
            nodes.len()
        };
        (0..=table.height).map(nodes_of).sum()
    }

    /// Miri takes seconds for a step.
    const STEPS: usize = if cfg!(miri) { 6 } else { 60 };

    proptest! {
        #[test]
        fn entries_are_those_of_a_map(
            steps in prop::collection::vec(step(), 1..STEPS),
            from in index(),
            to in index(),
        ) {
            let (mut table, mut model) = (Sparse::up_to(LAST), BTreeMap::new());
            let (first, last) = (from.min(to), from.max(to));
            for step in steps {
                let missing = table.leaf(from).err().unwrap_or(0);
                let before = table.nodes();
                let mut with_one_more = table.clone();
                write(&mut with_one_more, from, Stretch::one(Tce::new(7)));
                prop_assert_eq!(with_one_more.nodes(), before + missing);
                take_step(&mut table, &mut model, step);
                prop_assert_eq!(table.nodes(), nodes(&table, &model) as u64);
                prop_assert_eq!(table.get(from), model.get(&from).copied().unwrap_or_default());
                let live: Vec<_> = model.range(first..=last).filter(|(_, tce)| tce.is_live()).collect();
                prop_assert_eq!(table.has_live(first, last), !live.is_empty());
                let live: Vec<_> = live.into_iter().map(|(index, tce)| (*index, *tce)).collect();
                prop_assert_eq!(table.live(first, last).collect::<Vec<_>>(), live);
            }
        }
    }

    #[test]
    fn a_table_of_one_entry_is_one_leaf() {
        let mut table = Sparse::up_to(0);
        write(&mut table, 0, Stretch::one(Tce::new(3)));
        assert_eq!((table.nodes(), table.get(0), table.leaf_from(64).is_none()), (1, Tce::new(3), true));
        write(&mut table, 0, Stretch::one(Tce::NONE));
        assert_eq!(table.nodes(), 0);
    }
}
