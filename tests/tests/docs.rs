//! The docs name tests: these tests make docs/contract.md of the lists of each host, and look for each test that
//! SECURITY.md names.
//!
//! `UPDATE_DOCS=1 cargo test --package dmaspace-tests --test docs` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use dmaspace::choose::BackendKind;
use dmaspace_conformance::{Abilities, CASES};
use dmaspace_soft::Profile;
use dmaspace_soft::conformance::ROWS;
use dmaspace_tests::{soft, subject, suite};

const HEADING: &str = "\
# What is tested where

Every backend is held to one contract, by the same tests: on the soft host's presets, and on the real kernels of the \
emulated hosts. A
**yes** under a preset is a test that runs there with every `cargo test`; one under a kernel is a test that `ci/check \
hosts` saw pass there,
or it would fail (`ci/tests-on`). Where nothing is said, the backend, the host or its pages have nothing to check.
";

/// By host, what its list names.
type Lists = BTreeMap<String, BTreeSet<String>>;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The tests that pass on each emulated host.
fn lists() -> Lists {
    let files = std::fs::read_dir(repository().join("ci/tests-on")).expect("the lists are there").flatten();
    let list = |path: &Path| {
        let text = std::fs::read_to_string(path).expect("a list is text");
        text.lines().map(str::to_owned).collect()
    };
    let name = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
    files.map(|file| file.path()).map(|path| (name(&path), list(&path))).collect()
}

/// A host in a column: its name, and the tests that run there.
struct Column {
    heading: String,
    tests: BTreeSet<String>,
}

fn columns(backend: BackendKind, lists: &Lists) -> Vec<Column> {
    let mut columns = Vec::new();
    for preset in Profile::PRESETS.into_iter().filter(|preset| soft::backends_of(preset).contains(&backend)) {
        columns.push(Column { heading: format!("soft {preset}"), tests: tests_on_soft(preset, backend) });
    }
    let prefix = format!("{backend}::");
    for (host, list) in lists {
        let tests: BTreeSet<_> = list.iter().filter_map(|test| test.strip_prefix(&prefix)).map(str::to_owned).collect();
        if !tests.is_empty() {
            columns.push(Column { heading: format!("real {host}"), tests });
        }
    }
    columns
}

fn tests_on_soft(preset: &'static str, backend: BackendKind) -> BTreeSet<String> {
    let cases = suite::cases_for(&move || subject::on_soft(preset, backend));
    let scenarios = suite::scenarios_on_soft(preset, backend);
    cases.into_iter().map(suite::name_of).chain(scenarios.iter().map(|scenario| scenario.name.to_owned())).collect()
}

/// The table of one backend: the contract in the order of its cases, then the scenarios.
fn table(backend: BackendKind, lists: &Lists) -> String {
    let columns = columns(backend, lists);
    let all: BTreeSet<&String> = columns.iter().flat_map(|column| &column.tests).collect();
    let cases: Vec<String> = CASES.iter().map(suite::name_of).filter(|name| all.contains(name)).collect();
    let others = all.iter().copied().filter(|name| !cases.contains(name));
    let mut text = format!("\n## {backend}\n\n");
    text += &row([""].into_iter().chain(columns.iter().map(|column| column.heading.as_str())));
    text += &row(std::iter::repeat_n("---", columns.len() + 1));
    for name in cases.iter().chain(others) {
        let words = name.replace("::", ": ").replace('_', " ");
        let cells = columns.iter().map(|column| if column.tests.contains(name) { "yes" } else { "" });
        text += &row([words.as_str()].into_iter().chain(cells));
    }
    text
}

fn row<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

/// The counts of the suite: how many cases there are, and how many apply to each preset and backend.
fn counts() -> String {
    let mut text = format!("\n## How many cases apply\n\nThe suite has {} cases.\n\n", CASES.len());
    text += &row(["soft host", "backend", "cases"].into_iter());
    text += &row(std::iter::repeat_n("---", 3));
    for preset in Profile::PRESETS {
        for backend in soft::backends_of(preset) {
            let cases = suite::cases_for(&move || subject::on_soft(preset, *backend)).len();
            text += &row([preset, &backend.to_string(), &cases.to_string()].into_iter());
        }
    }
    text
}

/// The reasons for which cases do not apply, by the need that is not met.
fn reasons() -> String {
    let mut reasons: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for preset in Profile::PRESETS {
        for backend in soft::backends_of(preset) {
            let abilities = Abilities::of(&move || subject::on_soft(preset, *backend));
            for (need, reason) in abilities.unmet() {
                reasons.entry(format!("{need:?}: {reason}")).or_default().insert(format!("{preset} {backend}"));
            }
        }
    }
    let mut text = "\n## Why cases do not apply\n\n".to_owned();
    text += &row(["need, and the reason against it", "soft hosts"].into_iter());
    text += &row(std::iter::repeat_n("---", 2));
    for (reason, hosts) in reasons {
        text += &row([reason.as_str(), &hosts.into_iter().collect::<Vec<_>>().join(", ")].into_iter());
    }
    text
}

/// The number of rows of the conformance table that each kernel was asked, of all rows of the soft host.
fn conformance(lists: &Lists) -> String {
    let mut dialects: Vec<String> = ROWS.iter().map(|row| format!("{:?}", row.dialect)).collect();
    dialects.dedup();
    let mut text = "\n## What kernels answer\n\nThe soft host is held to every row of the conformance table, and each \
                    kernel to those that a call shows and none leaks by.\n\n"
        .to_owned();
    let hosts: Vec<&str> = lists.keys().map(String::as_str).collect();
    let _ = writeln!(text, "| | soft | real {} |\n|---|---|{}", hosts.join(" | real "), "---|".repeat(hosts.len()));
    for dialect in dialects {
        let prefix = format!("conformance::{dialect}::");
        let rows = ROWS.iter().filter(|row| format!("{:?}", row.dialect) == dialect).count();
        let asked = lists.values().map(|list| list.iter().filter(|test| test.starts_with(&prefix)).count());
        let asked = asked.map(|count| if count == 0 { String::new() } else { count.to_string() });
        let _ = writeln!(text, "| {dialect} | {rows} | {} |", asked.collect::<Vec<_>>().join(" | "));
    }
    text
}

#[test]
fn the_docs_say_which_test_of_the_contract_runs_where() {
    let lists = lists();
    let tables = BackendKind::ALL.map(|backend| table(backend, &lists));
    let text = [HEADING, &counts(), &tables.concat(), &reasons(), &conformance(&lists)].concat();
    let docs = repository().join("docs/contract.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&docs, &text).expect("the docs can be written");
    }
    let known = std::fs::read_to_string(docs).unwrap_or_default();
    let hint = "UPDATE_DOCS=1 cargo test --package dmaspace-tests --test docs";
    assert!(text == known, "docs/contract.md says otherwise; if that is as it should be: {hint}");
}

#[test]
fn the_page_on_writing_a_backend_shows_the_example() {
    let page = repository().join("docs/writing-a-backend.md");
    let example = std::fs::read_to_string(repository().join("tests/conformance/examples/iotlb.rs"));
    let block = format!("```rust\n{}```\n", example.expect("the example is there"));
    let text = std::fs::read_to_string(&page).expect("the page is there");
    let (prose, _) = text.split_once("```rust\n").expect("the page has a block of code");
    let expected = format!("{prose}{block}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&page, &expected).expect("the docs can be written");
    }
    assert!(
        text == expected,
        "docs/writing-a-backend.md shows another example than tests/conformance/examples/iotlb.rs"
    );
}

/// The lines between `// docs: NAME` and `// docs: end` in the files of a folder, without the indent of the last.
fn excerpts(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in std::fs::read_dir(folder).expect("the folder is there") {
        let code = std::fs::read_to_string(file.expect("an entry").path()).expect("text");
        for part in code.split("// docs: ").skip(1).step_by(2) {
            let (lines, indent) = part.rsplit_once('\n').expect("a line for the end");
            let lines = lines.lines().skip(1).map(|line| line.strip_prefix(indent).unwrap_or(line));
            found.insert(lines.flat_map(|line| [line, "\n"]).collect());
        }
    }
    found
}

#[test]
fn the_page_on_writing_a_vmm_shows_the_example() {
    let page = std::fs::read_to_string(repository().join("docs/writing-a-vmm.md")).expect("the page is there");
    let blocks = page.split("```rust,ignore\n").skip(1).filter_map(|rest| rest.split_once("```\n"));
    let shown: BTreeSet<_> = blocks.map(|(block, _)| block.to_owned()).collect();
    assert_eq!(shown, excerpts(&repository().join("examples/vmm-x86_64/src")));
}

#[test]
fn nothing_in_a_list_is_unknown() {
    let known: BTreeSet<String> = BackendKind::ALL.iter().map(ToString::to_string).collect();
    for (host, list) in lists() {
        for test in list {
            let (first, _) = test.split_once("::").expect("a test's name has parts");
            assert!(
                ["conformance", "device", "kvm", "mock", "pool", "power", "program"].contains(&first)
                    || known.contains(first),
                "{host}: {test}"
            );
        }
    }
}

/// The tests that a text names, each with its file: names in backquotes, then their file in parentheses.
fn named_tests(text: &str) -> Vec<(&str, &str)> {
    let (mut named, mut names, mut before) = (Vec::new(), Vec::new(), "");
    for (n, part) in text.split('`').enumerate() {
        let is_quoted = n % 2 == 1;
        if is_quoted && before.ends_with('(') {
            named.extend(names.drain(..).map(|name| (part, name)));
        } else if is_quoted {
            names.push(part);
        } else if part.contains(['|', ';']) {
            names.clear();
        }
        before = part;
    }
    named
}

#[test]
fn every_test_that_the_page_on_security_names_is_there() {
    let text = std::fs::read_to_string(repository().join("SECURITY.md")).expect("the page is there");
    let (_, promises) = text.split_once("| promise | tests |").expect("the page has a table of promises");
    let (promises, _) = promises.split_once("\n\n").expect("the table ends");
    let named = named_tests(promises);
    assert!(named.len() >= 20, "{named:?}");
    for (file, name) in named {
        let code = std::fs::read_to_string(repository().join(file)).unwrap_or_default();
        assert!(code.contains(&format!("fn {name}()")), "SECURITY.md: {file} has no test {name}");
    }
}
