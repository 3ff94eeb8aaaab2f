//! One range: `00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios @0000000000020000`, and what else QEMU may
//! append.

use super::Kind;

/// The parts of a range's line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RangeText<'a> {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) kind: Kind,
    pub(super) name: &'a str,
    pub(super) offset: u64,
    /// A word behind the offset that is no accelerator known here, and so no part of a name elsewhere either.
    pub(super) mark: Option<&'a str>,
}

/// The reason why a line that looks like a range is none.
pub(super) const RANGE: &str = "a range, `<first>-<last> (prio <number>, <kind>): <name>`, addresses in hexadecimal";

/// Stands between the addresses and everything else.
const PRIORITY: &str = "(prio ";

impl<'a> RangeText<'a> {
    /// The range in a line, behind whatever a log puts first. `None` for a line that is no range.
    pub(super) fn of(line: &'a str) -> Option<Result<Self, &'static str>> {
        let Some((before, after)) = line.split_once(PRIORITY) else {
            return breaks_off(line).then_some(Err(RANGE));
        };
        let addresses = before.split_ascii_whitespace().next_back()?;
        let (first, last) = addresses.split_once('-')?;
        Some(Self::of_parts(first, last, after).ok_or(RANGE))
    }

    fn of_parts(first: &str, last: &str, after: &'a str) -> Option<Self> {
        let (priority, rest) = after.split_once(", ")?;
        let (kind, region) = rest.split_once("):")?;
        priority.parse::<i32>().ok()?;
        let Region { name, offset, mark } = Region::of(region);
        Some(Self { first: hexadecimal(first)?, last: hexadecimal(last)?, kind: Kind::of(kind)?, name, offset, mark })
    }
}

/// Returns whether a line is the beginning of a range, and nothing after it. QEMU writes sixteen digits.
fn breaks_off(line: &str) -> bool {
    const DIGITS: usize = 16;
    let first = line.split(|letter: char| !letter.is_ascii_hexdigit()).next().unwrap_or_default();
    let rest = line.get(first.len()..).unwrap_or_default();
    let end = rest.strip_prefix('-').map(|rest| rest.trim_start_matches(|letter: char| letter.is_ascii_hexdigit()));
    // Nothing but the addresses, or the parenthesis that opens behind them.
    first.len() == DIGITS && end.is_some_and(|end| end.is_empty() || PRIORITY.starts_with(end.trim_start()))
}

/// The text behind a range's kind.
struct Region<'a> {
    name: &'a str,
    offset: u64,
    mark: Option<&'a str>,
}

impl<'a> Region<'a> {
    fn of(text: &'a str) -> Self {
        let text = without_owner(text).trim();
        let Some((name, offset, marks)) = split_at_offset(text) else {
            return Self { name: without_accelerators(text), offset: 0, mark: None };
        };
        let mark = without_accelerators(without_owner(marks).trim());
        let is_one_word = !mark.is_empty() && !mark.contains(' ');
        Self { name: without_accelerators(name.trim()), offset, mark: is_one_word.then_some(mark) }
    }
}

/// The name, the offset behind it and what follows. A name may have an `@` in it, but no blank before that and digits
/// behind.
fn split_at_offset(text: &str) -> Option<(&str, u64, &str)> {
    let mut end = text.len();
    while let Some(at) = text.get(..end)?.rfind('@') {
        let (name, from_sign) = text.split_at_checked(at)?;
        if name.is_empty() || name.ends_with(' ') {
            if let Some((offset, marks)) = offset_in(from_sign.get(1..)?) {
                return Some((name, offset, marks));
            }
        }
        end = at;
    }
    None
}

/// The offset that a text begins with, and what follows.
fn offset_in(text: &str) -> Option<(u64, &str)> {
    /// The digits, and the blank behind them.
    const LONGEST: usize = 17;
    let len = text.bytes().take(LONGEST).position(|byte| byte == b' ').unwrap_or(text.len());
    let (digits, marks) = text.split_at_checked(len)?;
    Some((hexadecimal(digits)?, marks.strip_prefix(' ').unwrap_or(marks)))
}

/// The accelerators whose names QEMU appends to the ranges they know, once for each address space of the view (qemu:
/// system/memory.c, `ac->has_memory`; accel/*/, `ac->name`).
const ACCELERATORS: [&str; 9] = ["kvm", "tcg", "hvf", "whpx", "nvmm", "mshv", "xen", "hax", "qtest"];

/// A text without the accelerators at its end: ` KVM`, ` kvm`, ` kvm:tcg`.
fn without_accelerators(mut text: &str) -> &str {
    while let Some((rest, word)) = text.rsplit_once(' ') {
        if !word.split(':').all(|name| ACCELERATORS.iter().any(|known| known.eq_ignore_ascii_case(name))) {
            break;
        }
        text = rest.trim_end();
    }
    text
}

/// A text without the region's owner: ` owner:{dev id=net0} parent:{obj path=/machine}`, or ` orphan` (`info mtree -f
/// -o`; qemu: system/memory.c, mtree_print_mr_owner).
fn without_owner(text: &str) -> &str {
    let named = without_accelerators(text);
    let mut text = named.strip_suffix(" orphan").unwrap_or(named);
    for label in ["parent:{", "owner:{"] {
        if text.ends_with('}') {
            let before = text.rsplit_once(label).map(|(before, _)| before);
            text = before.filter(|before| before.is_empty() || before.ends_with(' ')).unwrap_or(text).trim_end();
        }
    }
    text
}

/// The number of sixteen digits as QEMU writes them; of fewer as people do.
fn hexadecimal(text: &str) -> Option<u64> {
    let digits = (1..=16).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    if digits { u64::from_str_radix(text, 16).ok() } else { None }
}
