//! Measures comments and code against the budgets of CONTRIBUTING.md, crate by crate. Fails if one is exceeded.
//!
//! ```text
//! cargo run -p emulated-host --example language                 # the table
//! cargo run -p emulated-host --example language -- core soft    # also each line of these crates that counts
//! ```
//!
//! The budgets of words, names, messages and the width of lines are for all code. The budgets of density (closures,
//! `for_each`, re-bindings) are for code outside of tests: `#[cfg(test)]` items, the files of `#[cfg(test)]` modules,
//! files named `tests.rs` and everything below a folder `tests` have no density.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// Words that hide the actor. At most 0.5 in 1,000 words of comments, and none in a message.
const WHO: [&str; 4] = ["whoever", "somebody", "nobody", "anybody"];
/// Words that make a clause or hide the actor in the name of a function. None.
const NAMES: [&str; 7] = ["what", "who", "whoever", "somebody", "nobody", "anybody", "everybody"];
/// First words of an item's documentation that make it a fragment. At most 2 fragments in 1,000 words of comments.
const FRAGMENTS: [&str; 6] = ["What", "Whether", "Who", "Which", "How", "Where"];
/// Words after "what" that make the two a clause. At most 0.5 clauses in 1,000 words of comments.
const CLAUSES: [&str; 8] = ["is", "it", "was", "are", "were", "they", "a", "the"];
/// The greatest width of a line.
const WIDTH: usize = 120;
/// The greatest length of a function at the 95th percentile of a crate.
const LINES: usize = 30;

fn main() -> ExitCode {
    let listed: Vec<String> = std::env::args().skip(1).collect();
    let measured = members().and_then(|members| members.iter().map(|member| Crate::measure(member)).collect());
    let crates: Vec<Crate> = match measured {
        Ok(crates) => crates,
        Err(error) => {
            eprintln!("language: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    for place in crates.iter().filter(|of| listed.contains(&of.name)).flat_map(|of| &of.places) {
        println!("{place}");
    }
    println!("{HEADING}");
    for measured in &crates {
        println!("{measured}");
    }
    let over: Vec<String> = crates.iter().flat_map(Crate::over).collect();
    println!("\n{}", if over.is_empty() { "within all budgets".to_owned() } else { over.join("\n") });
    if over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The members of the workspace, in its order.
fn members() -> Result<Vec<String>> {
    let manifest = std::fs::read_to_string(repository().join("Cargo.toml"))?;
    let list = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).context("no members")?;
    Ok(list.0.split(',').map(|name| name.trim().trim_matches('"').to_owned()).filter(|name| !name.is_empty()).collect())
}

/// The figures of one crate.
#[derive(Default)]
struct Crate {
    name: String,
    /// The words of all comments.
    words: usize,
    /// The lines of code outside of tests.
    lines: usize,
    /// The length of each function, ascending.
    functions: Vec<usize>,
    places: Vec<Place>,
}

/// A place that counts against a budget.
struct Place {
    file: String,
    line: usize,
    habit: Habit,
    text: String,
}

/// A habit that has a budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Habit {
    Who,
    Fragment,
    Clause,
    Name,
    Message,
    Closure,
    ForEach,
    Rebound,
    Wide,
    Long,
}

/// The amount of text that a budget is for.
#[derive(Clone, Copy)]
enum Per {
    ThousandWords,
    ThousandLines,
    Crate,
}

impl fmt::Display for Per {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ThousandWords => "in 1,000 words of comments",
            Self::ThousandLines => "in 1,000 lines of code",
            Self::Crate => "in the crate",
        })
    }
}

impl Habit {
    /// The habits with a budget, and the budget.
    const BUDGETS: [(Self, f64, Per); 9] = [
        (Self::Who, 0.5, Per::ThousandWords),
        (Self::Fragment, 2.0, Per::ThousandWords),
        (Self::Clause, 0.5, Per::ThousandWords),
        (Self::Name, 0.0, Per::Crate),
        (Self::Message, 0.0, Per::Crate),
        (Self::Closure, 3.0, Per::ThousandLines),
        (Self::ForEach, 1.0, Per::ThousandLines),
        (Self::Rebound, 2.0, Per::ThousandLines),
        (Self::Wide, 0.0, Per::Crate),
    ];
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {:?}: {}", self.file, self.line, self.habit, self.text)
    }
}

const HEADING: &str =
    "crate             words   who  frag  what  name  text |  lines  clos  each  rebd  wide   p95  max";

impl fmt::Display for Crate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<16}{:>7}", self.name, self.words)?;
        for habit in [Habit::Who, Habit::Fragment, Habit::Clause] {
            write!(f, "{:>6.1}", self.found(habit, Per::ThousandWords))?;
        }
        write!(f, "{:>6}{:>6} |{:>7}", self.count(Habit::Name), self.count(Habit::Message), self.lines)?;
        for habit in [Habit::Closure, Habit::ForEach, Habit::Rebound] {
            write!(f, "{:>6.1}", self.found(habit, Per::ThousandLines))?;
        }
        let longest = self.functions.last().copied().unwrap_or_default();
        write!(f, "{:>6}{:>6}{:>5}", self.count(Habit::Wide), self.p95(), longest)
    }
}

impl Crate {
    fn measure(member: &str) -> Result<Self> {
        let mut measured = Self { name: member.to_owned(), ..Self::default() };
        let root = repository();
        let mut files = Vec::new();
        for path in sources(&root.join(member))? {
            let text = std::fs::read_to_string(&path)?;
            files.push((path.strip_prefix(&root).unwrap_or(&path).to_owned(), text));
        }
        let tests: Vec<PathBuf> = files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
        for (path, text) in &files {
            let is_test = is_test_path(path) || tests.iter().any(|module| path.with_extension("").starts_with(module));
            measured.read(&path.display().to_string(), text, is_test);
        }
        measured.functions.sort_unstable();
        Ok(measured)
    }

    fn read(&mut self, file: &str, text: &str, is_test: bool) {
        let mut source = Source::default();
        let code = blanked(text);
        let tests = test_items(&code);
        for (at, (line, code)) in text.lines().zip(code.lines().chain(std::iter::repeat(""))).enumerate() {
            let (mut habits, words) = source.habits(line);
            self.words += words;
            if source.is_code {
                habits.extend(habits_of_names(line, code));
            }
            if source.is_code && !is_test && !tests.iter().any(|item| item.contains(&at)) {
                self.lines += 1;
                habits.extend(habits_of_code(code.trim_start()));
            }
            for habit in habits {
                self.places.push(Place { file: file.to_owned(), line: at + 1, habit, text: line.trim().to_owned() });
            }
        }
        for (line, length) in functions(text) {
            self.functions.push(length);
            if length > LINES {
                let text = format!("a function of {length} lines");
                self.places.push(Place { file: file.to_owned(), line, habit: Habit::Long, text });
            }
        }
    }

    fn count(&self, habit: Habit) -> usize {
        self.places.iter().filter(|place| place.habit == habit).count()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of words and lines")]
    fn found(&self, habit: Habit, per: Per) -> f64 {
        let found = self.count(habit) as f64;
        match per {
            Per::ThousandWords => found * 1000.0 / self.words.max(1) as f64,
            Per::ThousandLines => found * 1000.0 / self.lines.max(1) as f64,
            Per::Crate => found,
        }
    }

    fn p95(&self) -> usize {
        let at = (self.functions.len() * 95).div_ceil(100).saturating_sub(1);
        self.functions.get(at).copied().unwrap_or_default()
    }

    /// The budgets that are exceeded.
    fn over(&self) -> Vec<String> {
        let mut over = Vec::new();
        for (habit, budget, per) in Habit::BUDGETS {
            let found = self.found(habit, per);
            if found > budget {
                over.push(format!("{}: {habit:?} {found:.2} {per}, over {budget}", self.name));
            }
        }
        if self.p95() > LINES {
            over.push(format!(
                "{}: the 95th percentile of its functions has {} lines, over {LINES}",
                self.name,
                self.p95()
            ));
        }
        over
    }
}

/// The Rust files of a crate, without the crates nested in it.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(root).with_context(|| root.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort_unstable();
    for path in paths {
        if path.is_dir() && !path.join("Cargo.toml").exists() && !path.ends_with("target") {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The state of reading a file line by line.
#[derive(Default)]
struct Source {
    /// The last line was code, not a comment and not empty.
    is_code: bool,
    /// The last line was documentation.
    in_documentation: bool,
    /// An earlier comment line opened a fence that is not closed yet.
    in_example: bool,
}

impl Source {
    /// The habits of a line's comment and of its width, one for each time a habit counts, and the comment's words.
    fn habits(&mut self, line: &str) -> (Vec<Habit>, usize) {
        let mut found = Vec::new();
        if line.chars().count() > WIDTH {
            found.push(Habit::Wide);
        }
        let trimmed = line.trim_start();
        let Some(comment) = trimmed.strip_prefix("//") else {
            self.is_code = !trimmed.is_empty();
            // An attribute may open an example, if the example needs a feature.
            (self.in_documentation, self.in_example) = (false, trimmed.contains("doc = \"```"));
            return (found, 0);
        };
        let documentation = comment.strip_prefix(['/', '!']);
        let text = documentation.unwrap_or(comment).trim();
        let begins = documentation.is_some() && !self.in_documentation;
        (self.is_code, self.in_documentation) = (false, documentation.is_some());
        if text.starts_with("```") {
            self.in_example = !self.in_example;
        }
        if self.in_example || text.starts_with("```") {
            return (found, 0);
        }
        found.extend(habits_of_prose(text, begins));
        (found, text.split_whitespace().count())
    }
}

fn habits_of_prose(text: &str, begins: bool) -> Vec<Habit> {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
    let lower: Vec<String> = words.iter().map(|word| word.to_lowercase()).collect();
    let who = lower.iter().filter(|word| WHO.contains(&word.as_str())).map(|_| Habit::Who);
    let clauses = lower
        .windows(2)
        .filter(|pair| matches!(pair, [what, next] if what == "what" && CLAUSES.contains(&next.as_str())));
    let mut found: Vec<Habit> = who.chain(clauses.map(|_| Habit::Clause)).collect();
    let is_fragment = matches!(words[..], [first, ..] if FRAGMENTS.contains(&first)) || text.starts_with("The same");
    if begins && is_fragment {
        found.push(Habit::Fragment);
    }
    found
}

/// The habits of a function's name and of the messages in a line of code; `code` is the line without them.
fn habits_of_names(line: &str, code: &str) -> Vec<Habit> {
    let mut found = Vec::new();
    if let Some((_, rest)) = code.split_once("fn ") {
        let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        if name.split('_').any(|word| NAMES.contains(&word)) {
            found.push(Habit::Name);
        }
    }
    // A literal without a blank is a word, no message.
    let mut literals = line.split('"').skip(1).step_by(2).filter(|literal| literal.contains(' '));
    if literals.any(|literal| literal.split(|c: char| !c.is_alphanumeric()).any(|word| WHO.contains(&word))) {
        found.push(Habit::Message);
    }
    found
}

/// The habits of a line of code whose comments and strings are blanked.
fn habits_of_code(line: &str) -> Vec<Habit> {
    let mut found = Vec::new();
    if line.contains(".for_each(") {
        found.push(Habit::ForEach);
    }
    let Some((pattern, value)) = line.strip_prefix("let ").and_then(|rest| rest.split_once(" = ")) else {
        return found;
    };
    let name = pattern.trim_start_matches("mut ").split(':').next().unwrap_or_default();
    if value.trim_start_matches("move ").starts_with('|') {
        found.push(Habit::Closure);
    }
    let rest = value.trim_start_matches(['&', '*']).strip_prefix(name);
    if !name.is_empty() && rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')) {
        found.push(Habit::Rebound);
    }
    found
}

/// Returns `true` if a file's place shows that it has tests only.
fn is_test_path(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.iter().any(|part| part == "tests")
}

/// The modules for tests only that a file declares and that are files of their own: their paths without `.rs`.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_stem().and_then(|stem| stem.to_str()) {
        Some("lib" | "main" | "mod") => path.with_file_name(""),
        _ => path.with_extension(""),
    };
    let code = blanked(text);
    let items = test_items(&code);
    let lines = code.lines().enumerate().filter(|(at, _)| items.iter().any(|item| item.contains(at)));
    lines
        .filter_map(|(_, line)| line.strip_suffix(';')?.rsplit_once("mod "))
        .map(|(_, name)| folder.join(name))
        .collect()
}

/// The lines of each item for tests only, from its `#[cfg(test)]` to the brace or semicolon that ends it. Comments and
/// strings of the code are blanked.
fn test_items(code: &str) -> Vec<RangeInclusive<usize>> {
    let mut found = Vec::new();
    let mut first = None;
    let mut depth = 0_i32;
    for (at, line) in code.lines().enumerate() {
        let trimmed = line.trim();
        if first.is_none() && (trimmed.starts_with("#[cfg(test)]") || trimmed.starts_with("#[cfg(all(test,")) {
            (first, depth) = (Some(at), 0);
        }
        let Some(from) = first else { continue };
        for c in trimmed.chars() {
            depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        }
        if depth <= 0 && trimmed.ends_with(['}', ';', ',']) {
            found.push(from..=at);
            first = None;
        }
    }
    found
}

/// The functions of a file: the line each begins on and its length, from its `fn` to the brace that closes it.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut signature = None;
    let mut depth = 0;
    for (at, line) in blanked(text).lines().enumerate() {
        for (column, c) in line.char_indices() {
            match c {
                'f' if signature.is_none() && begins_function(line, column) => signature = Some(at),
                ';' if open.last().is_none_or(|(_, outer)| *outer <= depth) && is_outside_of_brackets(line, column) => {
                    signature = None
                }
                '{' => {
                    depth += 1;
                    if let Some(first) = signature.take() {
                        open.push((first, depth));
                    }
                }
                '}' => {
                    if let Some((first, _)) = open.pop_if_at(depth) {
                        found.push((first + 1, at - first + 1));
                    }
                    depth -= 1;
                }
                _ => {}
            }
        }
    }
    found
}

/// Returns `true` if a `;` at `column` is outside of the brackets of its line: the one of `[u8; 4]` ends no signature.
fn is_outside_of_brackets(line: &str, column: usize) -> bool {
    let before = line.get(..column).unwrap_or_default();
    before.matches('[').count() == before.matches(']').count()
}

fn begins_function(line: &str, column: usize) -> bool {
    let before = line.get(..column).unwrap_or_default();
    let named = line.get(column..).and_then(|rest| rest.strip_prefix("fn ")).is_some();
    named && before.chars().next_back().is_none_or(char::is_whitespace)
}

/// Removal of the last element, if it was opened at a depth.
trait PopIfAt {
    fn pop_if_at(&mut self, depth: usize) -> Option<(usize, usize)>;
}

impl PopIfAt for Vec<(usize, usize)> {
    fn pop_if_at(&mut self, depth: usize) -> Option<(usize, usize)> {
        if self.last().is_some_and(|(_, opened)| *opened == depth) { self.pop() } else { None }
    }
}

/// The text without comments, strings and characters. Its lines are as many as before.
fn blanked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = literal_len(rest);
        let len = skipped.unwrap_or(c.len_utf8());
        let (token, after) = rest.split_at(len);
        match skipped {
            Some(_) => out.extend(token.chars().filter(|c| *c == '\n')),
            None => out.push_str(token),
        }
        rest = after;
        // Letters directly before a quote belong to the literal, unless they are the end of a name.
        if c.is_alphanumeric() || c == '_' {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let (name, after) = rest.split_at(if skipped.is_some() { 0 } else { word });
            out.push_str(name);
            rest = after;
        }
    }
    out
}

/// The length of the comment, string or character that `text` begins with.
fn literal_len(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        return Some(text.find("*/").map_or(text.len(), |end| end + 2));
    }
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|prefix| {
        let rest = text.strip_prefix(*prefix).unwrap_or_default();
        rest.starts_with('"')
            || (prefix.ends_with('r') && rest.trim_start_matches('#').starts_with('"') && rest.starts_with('#'))
    });
    if let Some(prefix) = prefix {
        return Some(string_len(text, prefix));
    }
    character_len(text)
}

fn string_len(text: &str, prefix: &str) -> usize {
    let body = text.get(prefix.len()..).unwrap_or_default();
    if prefix.ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let from = prefix.len() + hashes + 1;
        return text.get(from..).and_then(|rest| rest.find(&end)).map_or(text.len(), |at| from + at + end.len());
    }
    let mut escaped = false;
    for (at, c) in body.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return prefix.len() + at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal; `None` for a lifetime.
fn character_len(text: &str) -> Option<usize> {
    let body = text.strip_prefix('\'')?;
    if body.starts_with('\\') {
        return body.get(2..)?.find('\'').map(|end| end + 4);
    }
    let c = body.chars().next()?;
    body.get(c.len_utf8()..)?.starts_with('\'').then(|| c.len_utf8() + 2)
}
