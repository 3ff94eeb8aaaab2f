//! Folding: many ranges with one reason in a few lines.

use std::collections::BTreeMap;

/// As many ranges with one reason are told one by one.
const ONE_BY_ONE: usize = 3;

/// The part of a reason that ranges share: a place that would do for one would not for another.
pub(crate) fn shared(reason: &str) -> &str {
    reason.split("; 0x").next().unwrap_or(reason)
}

/// The lines of `told`, each a reason and a line: of many with one reason the first ones, with the number of the rest.
pub(crate) fn told(told: impl Iterator<Item = (impl AsRef<str>, String)>) -> Vec<String> {
    let mut groups: BTreeMap<String, usize> = BTreeMap::new();
    let mut lines: Vec<(String, String)> = Vec::new();
    for (reason, line) in told {
        let reason = shared(reason.as_ref()).to_owned();
        let met = groups.entry(reason.clone()).or_insert(0);
        *met += 1;
        if *met <= ONE_BY_ONE {
            lines.push((reason, line));
        }
    }
    let mut out = Vec::new();
    for (n, (reason, line)) in lines.iter().enumerate() {
        out.push(line.clone());
        let is_last = !lines.iter().skip(n + 1).any(|(other, _)| other == reason);
        let more = groups.get(reason).map_or(0, |met| met.saturating_sub(ONE_BY_ONE));
        if is_last && more > 0 {
            out.push(format!("and {more} more ranges: {reason}"));
        }
    }
    out
}

/// A row of a table, or a number of rows that are like those before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Row<T> {
    /// A row.
    One(T),
    /// So many rows.
    Alike(usize),
}

/// Rows in a run longer than this are folded.
const LONGEST_RUN: usize = 64;
/// As many rows of a folded run are shown at its beginning.
const SHOWN: usize = 4;

/// The rows of a table with long runs of alike rows folded: their first ones stay, and the last.
pub(crate) fn rows<T>(rows: Vec<T>, are_alike: impl Fn(&T, &T) -> bool) -> Vec<Row<T>> {
    let mut out = Vec::new();
    let mut run: Vec<T> = Vec::new();
    for row in rows {
        if run.last().is_some_and(|last| !are_alike(last, &row)) {
            close(std::mem::take(&mut run), &mut out);
        }
        run.push(row);
    }
    close(run, &mut out);
    out
}

fn close<T>(run: Vec<T>, out: &mut Vec<Row<T>>) {
    let len = run.len();
    let hidden = if len > LONGEST_RUN { SHOWN..len - 1 } else { len..len };
    for (n, row) in run.into_iter().enumerate() {
        if n == hidden.start && !hidden.is_empty() {
            out.push(Row::Alike(hidden.len()));
        }
        if !hidden.contains(&n) {
            out.push(Row::One(row));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_with_one_reason_are_a_few_lines() {
        let lines = |n: u32| (0..n).map(|n| ("above; 0x1..=0x2 would do", format!("{n}: above")));
        assert_eq!(told(lines(3)), ["0: above", "1: above", "2: above"]);
        let other = std::iter::once(("below", "x: below".to_owned()));
        let folded = told(lines(2).chain(other).chain(lines(100_000)));
        assert_eq!(folded, ["0: above", "1: above", "x: below", "0: above", "and 99999 more ranges: above"]);
    }

    #[test]
    fn long_runs_of_rows_are_folded_and_short_ones_are_not() {
        let folded = rows((0..200).collect(), |_, _| true);
        let ends = [0, 1, 2, 3].map(Row::One).into_iter().chain([Row::Alike(195), Row::One(199)]);
        assert_eq!(folded, ends.collect::<Vec<_>>());
        assert_eq!(rows((0..64).collect(), |_, _| true).len(), 64);
        assert_eq!(rows((0..200).collect(), |a, b| a / 50 == b / 50).len(), 200);
    }
}
