//! A replay as people read it, in a hundred columns.

mod steps;

use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use crate::program::answer::{Answer, Cure};
use crate::program::costs::Bytes;
use crate::program::counting::Calls;
use crate::program::folding::{self, Row};
use crate::program::outcome::{AddressesOf, HostWindow, Input, Judged, Outcome};
use crate::program::printable;
use crate::program::replay::Replay;
use crate::program::units::{bytes, exactly};

const COLUMNS: usize = 100;

/// The whole of it.
pub(crate) fn replay(replay: &Replay) -> String {
    let Outcome { input, backend, windows, sections, .. } = &replay.outcome;
    let heading = format!("{}: {}\non {}, through {backend}\n", input.file, told(input), replay.host);
    // A log of failures has no memory map of its own.
    let is_map = !is_log(&replay.outcome);
    let parts = [
        paragraph("Failures where the log was written", findings(&replay.outcome.findings)),
        paragraph("Step by step", steps::of(&replay.outcome)),
        paragraph("The host's windows", window_table(windows)),
        paragraph("The PCI address space", section_table(sections_of(sections, AddressesOf::Pci))),
        paragraph(
            "System memory, behind the guest's windows",
            section_table(sections_of(sections, AddressesOf::Memory)),
        ),
        paragraph("Kernel calls", is_map.then(|| format!("  {}\n", calls(&replay.outcome.calls)))),
        paragraph("Bytes", if is_map { costs(&replay.outcome) } else { None }),
        paragraph("What to do", cures(&replay.outcome.cures)),
    ];
    heading + &parts.concat() + "\n" + &result(&replay.outcome) + "\n"
}

pub(crate) fn sections_of(sections: &[Judged], space: AddressesOf) -> impl Iterator<Item = &Judged> {
    sections.iter().filter(move |judged| judged.space == space)
}

fn result(outcome: &Outcome) -> String {
    let steps = outcome.steps.as_deref().unwrap_or_default();
    let failed = steps.iter().filter(|step| !step.ok).count();
    let refused = outcome.findings.iter().filter(|answer| answer.is_refused).count();
    match (outcome.ok, failed) {
        (true, _) if is_log(outcome) && outcome.findings.is_empty() => {
            "No line of it says which call failed.".to_owned()
        }
        (true, _) if steps.is_empty() && outcome.findings.iter().any(|answer| answer.call.is_some()) => {
            "This host refuses none of it.".to_owned()
        }
        (true, _) if steps.is_empty() && !outcome.findings.is_empty() => {
            "No line of it names a range that this host could be asked about.".to_owned()
        }
        (true, _) => "Every required section is provided.".to_owned(),
        (false, 0) if refused > 0 => format!("Refused: {refused} of the failures are failures here, too."),
        (false, 0) => "Refused: nothing of it is in force.".to_owned(),
        (false, failed) => format!("Refused: {failed} of {} steps; nothing of them is in force.", steps.len()),
    }
}

fn is_log(outcome: &Outcome) -> bool {
    outcome.input.course.as_ref().is_some_and(|told| told.told_by == "log")
}

/// The kind of the input, in words.
fn told(input: &Input) -> String {
    let space = input.space.as_ref().map_or_else(String::new, |space| format!(" ({space})"));
    match &input.course {
        Some(told) if told.told_by == "log" => format!("a log of failures{}", passed_over(told.ignored)),
        Some(told) => {
            let steps = plural(told.lines.len(), "step");
            format!("a {} of {steps}{space}{}", told.told_by, passed_over(told.ignored))
        }
        None if input.address_space.is_empty() => {
            format!("an address space without a name{}", passed_over(input.passed_over))
        }
        None => format!("{}{}", input.address_space, passed_over(input.passed_over)),
    }
}

fn passed_over(lines: usize) -> String {
    if lines > 0 { format!(", {} passed over", plural(lines, "line")) } else { String::new() }
}

/// The failures of a log, each with its causes and what became of the same here.
fn findings(findings: &[Answer]) -> Option<String> {
    /// A log may repeat itself for hours.
    const MOST: usize = 32;
    if findings.is_empty() {
        return None;
    }
    let shown: String = findings.iter().take(MOST).map(finding).collect();
    let more = findings.len().saturating_sub(MOST);
    Some(if more > 0 { format!("{shown}  … and {more} more\n") } else { shown })
}

fn finding(answer: &Answer) -> String {
    let Answer { line, call, first, last, name, errno, causes, here, .. } = answer;
    let range = first.zip(*last).map_or_else(String::new, |(first, last)| format!(" {first}..={last}"));
    let told_name = name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    let told_call = call.map_or_else(String::new, |call| format!(" {call}"));
    let told_errno = errno.as_ref().map_or_else(String::new, |errno| format!(": {errno}"));
    let heading = format!("  line {line}:{told_call}{range}{told_name}{told_errno}\n");
    let told_here = here.iter().map(|here| format!("here: {here}"));
    let told = causes.iter().cloned().chain(told_here);
    heading + &told.map(|text| below(&text)).collect::<String>()
}

/// One cure for each cause.
pub(crate) fn cures(cures: &[Cure]) -> Option<String> {
    (!cures.is_empty()).then(|| cures.iter().map(one_cure).collect())
}

fn one_cure(Cure { code, cause, count, cure }: &Cure) -> String {
    let times = if *count > 1 { format!("{count} times ") } else { String::new() };
    format!("  {}\n{}", wrapped(&format!("{times}{cause} [{code}]"), COLUMNS - 2).join("\n    "), below(cure))
}

pub(crate) fn below(text: &str) -> String {
    wrapped(text, COLUMNS - BELOW.len()).iter().map(|part| format!("{BELOW}{part}\n")).collect::<Vec<_>>().concat()
}

pub(crate) fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A name as it fits into a table.
fn shown_name(name: &str) -> String {
    const LONGEST: usize = 60;
    printable::cut(name, LONGEST).into_owned()
}

/// A row of a table, with a reason at its end.
struct TableRow<'a, const N: usize> {
    cells: [String; N],
    reason: &'a str,
}

impl<const N: usize> TableRow<'_, N> {
    /// Returns whether another row has the same reason and the same in these columns.
    fn is_like(&self, other: &Self, columns: &[usize]) -> bool {
        let same = columns.iter().all(|column| self.cells.get(*column) == other.cells.get(*column));
        same && folding::shared(self.reason) == folding::shared(other.reason)
    }
}

/// The lines of a table, indented, in which long runs of rows with one reason are folded that are alike in some
/// columns.
fn folded_table<const N: usize, const M: usize>(
    indent: &str,
    heading: Option<[&str; N]>,
    rows: Vec<TableRow<'_, N>>,
    columns: [usize; M],
) -> Vec<String> {
    let rows = folding::rows(rows, |a, b| a.is_like(b, &columns));
    let cells = rows.iter().map(|row| match row {
        Row::One(row) => row.cells.clone(),
        Row::Alike(n) => std::array::from_fn(|column| if column == 1 { format!("… {n} more") } else { String::new() }),
    });
    let mut lines = table(heading.unwrap_or([""; N]), cells).map(|line| format!("{indent}{line}"));
    let first_line = lines.next();
    let first = if heading.is_some() { first_line.map(|line| with_reason(&line, "why")) } else { None };
    let reasons = rows.iter().map(|row| match row {
        Row::One(row) => row.reason,
        Row::Alike(_) => "",
    });
    first.into_iter().chain(lines.zip(reasons).map(|(line, reason)| with_reason(&line, reason))).collect()
}

/// A title and its body; nothing where there is no body.
pub(crate) fn paragraph(title: &str, body: Option<String>) -> String {
    body.map_or_else(String::new, |body| format!("\n{title}\n{body}"))
}

pub(crate) fn window_table(windows: &[HostWindow]) -> Option<String> {
    if windows.is_empty() {
        return Some("  none\n".to_owned());
    }
    let rows = windows
        .iter()
        .map(|window| [window.first.to_string(), window.last.to_string(), page_sizes(&window.page_sizes)]);
    Some(table(["first", "last", "pages"], rows).map(|line| with_reason(&line, "")).collect())
}

/// Page sizes as a list, in which a long run of sizes that double is its first and its last.
pub(crate) fn page_sizes(sizes: &[u64]) -> String {
    const LONG: usize = 4;
    let runs = sizes.chunk_by(|a, b| b / 2 == *a);
    let told = runs.flat_map(|run| match (run.first(), run.last()) {
        (Some(first), Some(last)) if run.len() >= LONG => vec![format!("{} to {}", exactly(*first), exactly(*last))],
        _ => run.iter().map(|size| exactly(*size)).collect(),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// One line for each section, with the reason at its end or, where there is no room, below it.
pub(crate) fn section_table<'a>(sections: impl Iterator<Item = &'a Judged>) -> Option<String> {
    let rows: Vec<_> = sections
        .map(|Judged { first, last, kind, name, fate, reason, .. }| TableRow {
            cells: [first.to_string(), last.to_string(), kind.to_string(), shown_name(name), fate.to_string()],
            reason,
        })
        .collect();
    let heading = ["first", "last", "kind", "name", "fate"];
    let lines = folded_table("", Some(heading), rows, [2, 4]);
    (lines.len() > 1).then(|| lines.concat())
}

fn with_reason(line: &str, reason: &str) -> String {
    let together = format!("{line}  {reason}");
    if together.chars().count() <= COLUMNS {
        return format!("{}\n", together.trim_end());
    }
    let below = wrapped(reason, COLUMNS - BELOW.len()).into_iter().map(|part| format!("{BELOW}{part}\n"));
    format!("{}\n{}", line.trim_end(), below.collect::<String>())
}

/// The indentation of a reason that is a line of its own.
const BELOW: &str = "      ";

/// The words of `text` in lines of at most `width` letters, where words allow.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= width) {
            Some(line) => line.extend([" ", word]),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The kinds of calls that were made.
fn calls(calls: &Calls) -> String {
    let kinds = [
        ("map", calls.map),
        ("unmap", calls.unmap),
        ("register", calls.register),
        ("unregister", calls.unregister),
        ("create window", calls.create_window),
        ("remove window", calls.remove_window),
    ];
    let made: Vec<_> = kinds.iter().filter(|(_, n)| *n > 0).map(|(kind, n)| format!("{n} {kind}")).collect();
    if made.is_empty() { "none".to_owned() } else { made.join(", ") }
}

fn costs(outcome: &Outcome) -> Option<String> {
    let Bytes { mapped, pinned, tables, disturbed } = outcome.bytes;
    let pinned_there = outcome.input.course.as_ref().and_then(|told| told.pinned_there);
    let there = pinned_there.map_or_else(String::new, |n| format!("; where it was traced: {}", bytes(n.into())));
    let rows = [cost("mapped", mapped, ""), cost("pinned", pinned, &there), cost("tables", tables, "")];
    Some(rows.concat() + &cost("disturbed", disturbed, ""))
}

fn cost(what: &str, n: u64, more: &str) -> String {
    format!("  {what:<9}  {}{more}\n", bytes(n.into()))
}

/// A table whose columns are as wide as they have to be, without a heading where all of it is empty.
pub(crate) fn lines_of_table<const N: usize>(
    heading: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let has_heading = heading.iter().any(|word| !word.is_empty());
    let lines = table(heading, rows.into_iter()).skip(usize::from(!has_heading));
    lines.flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect()
}

/// The lines of a table whose columns are as wide as they have to be, the heading first.
fn table<const N: usize>(heading: [&str; N], rows: impl Iterator<Item = [String; N]>) -> impl Iterator<Item = String> {
    let mut builder = Builder::default();
    builder.push_record(heading);
    for row in rows {
        builder.push_record(row);
    }
    let table = builder.build().with(Style::empty()).with(Padding::new(2, 0, 0, 0)).to_string();
    table.lines().map(str::to_owned).collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_a_list_or_a_range() {
        assert_eq!(page_sizes(&[4 << 10, 2 << 20, 1 << 30]), "4 KiB, 2 MiB, 1 GiB");
        let all: Vec<_> = (12..64).map(|shift| 1 << shift).collect();
        assert_eq!(page_sizes(&all), "4 KiB to 8 EiB");
        let without_512_gib: Vec<_> = (12..52).filter(|shift| *shift != 39).map(|shift| 1 << shift).collect();
        assert_eq!(page_sizes(&without_512_gib), "4 KiB to 256 GiB, 1 TiB to 2 PiB");
        assert_eq!(page_sizes(&[]), "");
    }

    #[test]
    fn a_reason_without_room_goes_below() {
        assert_eq!(with_reason("  0x0", "because"), "  0x0  because\n");
        let long = "word ".repeat(30);
        let lines: Vec<_> = with_reason("  0x0", &long).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "  0x0");
        assert!(lines.iter().all(|line| line.len() <= COLUMNS));
    }
}
