//! Progress: shown on a terminal after a second, and nowhere else.
//!
//! `script` of util-linux is the terminal; each Debian has it (bsdutils).
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too"
)]

mod running;

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use running::{DATA, program, run, stderr};

/// A log that a build without optimization reads for more than a second on any machine of today.
fn long_log() -> String {
    // An emulated program takes ten times as long.
    let lines = if program().len() > 1 { 12_000 } else { 120_000 };
    let mut text = String::new();
    for n in 0..lines {
        writeln!(
            text,
            "{{\"level\":\"info\",\"msg\":\"line {n} says \\\"nothing\\\"\",\"other\":\"text of line {n}\"}}"
        )
        .expect("a string");
    }
    text
}

/// The letters that a terminal gets from `dmaspace replay FILE`.
fn on_a_terminal(file: &str) -> String {
    let words: Vec<&str> = program().iter().copied().chain(["replay", file]).collect();
    let mut command = Command::new("script");
    command.args(["--quiet", "--command", &words.join(" "), "/dev/null"]);
    let output = command.current_dir(DATA).env("TERM", "xterm").stdin(Stdio::null()).output();
    String::from_utf8_lossy(&output.expect("script of util-linux").stdout).into_owned()
}

#[test]
fn anything_over_a_second_is_shown_on_a_terminal_and_only_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("long.log");
    std::fs::write(&path, long_log()).expect("written");
    let file = path.to_str().expect("text");
    let silent = run(&["replay", file]);
    assert!(!stderr(&silent).contains("reading") && !stderr(&silent).contains('\u{1b}'), "{}", stderr(&silent));
    let shown = on_a_terminal(file);
    assert!(shown.contains(&format!("reading {file}")), "{shown:?}");
    // The line is cleared before the result.
    let (_, after) = shown.rsplit_once("reading").expect("it is there");
    assert!(after.contains("\u{1b}[2K") && after.contains("expected"), "{after:?}");
}

#[test]
fn nothing_is_shown_of_a_short_run() {
    let start = Instant::now();
    let shown = on_a_terminal("mtree/q35-8g.mtree");
    assert!(shown.contains("Every required section is provided."), "{shown:?}");
    // On a machine that stood still for a second, the run was no short one.
    assert!(
        start.elapsed() > Duration::from_secs(1) || !shown.contains('\u{1b}') && !shown.contains("reading"),
        "{shown:?}"
    );
}
