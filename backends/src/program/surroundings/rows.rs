//! The rows of a text, one after another and without a copy.

/// The place up to which the rows of a text were read. A row is a line, or a part of one between carriage returns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// The first byte of the next line; nothing after the last line.
    next: Option<usize>,
    /// The part of the line that is left.
    rest: Option<(usize, usize)>,
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row<'t> {
    pub(super) text: &'t str,
    /// `true` for the first row of a line.
    pub(super) begins_line: bool,
}

impl Rows {
    /// Before the first row. An empty text has one.
    pub(super) fn new() -> Self {
        Self { next: Some(0), rest: None }
    }

    /// The next row of `text`, which is always the same text.
    pub(super) fn next<'t>(&mut self, text: &'t str) -> Option<Row<'t>> {
        let begins_line = self.rest.is_none();
        let (first, end) = match self.rest.take() {
            Some(rest) => rest,
            None => self.next_line(text)?,
        };
        if first == end {
            return Some(Row { text: "", begins_line });
        }
        let line = text.get(first..end)?;
        // A file of a system whose lines end with a carriage return, or a terminal's.
        let row = match line.split_once('\r') {
            Some((row, _)) => {
                self.rest = Some((first + row.len() + 1, end));
                row
            }
            None => line,
        };
        Some(Row { text: row, begins_line })
    }

    /// The first byte of the next line, and its end.
    fn next_line(&mut self, text: &str) -> Option<(usize, usize)> {
        let first = self.next?;
        let rest = text.get(first..)?;
        if rest.starts_with('\n') {
            self.next = Some(first + 1);
            return Some((first, first));
        }
        let line = match rest.split_once('\n') {
            Some((line, _)) => {
                self.next = Some(first + line.len() + 1);
                line
            }
            None => {
                self.next = None;
                rest
            }
        };
        Some((first, first + line.trim_end_matches('\r').len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carriage_returns_divide_lines_and_those_at_the_end_do_not() {
        let text = "a\r\n\rb\r\rc\n\nd\r\r";
        let mut rows = Rows::new();
        let found: Vec<_> = std::iter::from_fn(|| rows.next(text)).map(|row| (row.text, row.begins_line)).collect();
        let expected = [("a", true), ("", true), ("b", false), ("", false), ("c", false), ("", true), ("d", true)];
        assert_eq!(found, expected);
        assert_eq!(Rows::new().next("").map(|row| row.text), Some(""));
    }
}
