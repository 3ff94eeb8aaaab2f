//! The program, run as people and scripts run it.
#![allow(
    dead_code,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "the helpers are tests too, and no test uses all of them"
)]

pub(crate) mod recorded;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The directory of the test data.
pub(crate) const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// `dmaspace` with these arguments, in the directory of the test data.
pub(crate) fn run(arguments: &[&str]) -> Output {
    run_in(DATA, arguments)
}

/// `dmaspace` with these arguments, in a directory.
pub(crate) fn run_in(directory: &str, arguments: &[&str]) -> Output {
    command_in(directory, arguments).output().expect("the program is there")
}

/// The command `dmaspace` with these arguments, in a directory.
pub(crate) fn command_in(directory: &str, arguments: &[&str]) -> Command {
    let (first, rest) = program().split_first().expect("never empty");
    let mut command = Command::new(first);
    command.args(rest).args(arguments).current_dir(directory);
    command
}

/// The outcome of a command whose standard input is `text`.
pub(crate) fn fed(mut command: Command, text: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program is there");
    child.stdin.take().expect("piped").write_all(text).expect("it reads everything");
    child.wait_with_output().expect("it ends")
}

/// The program, with an emulator before it where this test itself runs in one: the kernel knows nothing of that.
pub(crate) fn program() -> &'static [&'static str] {
    const DIRECTLY: &[&str] = &[env!("CARGO_BIN_EXE_dmaspace")];
    const EMULATED: [&[&str]; 2] =
        [&["qemu-ppc64le", env!("CARGO_BIN_EXE_dmaspace")], &["qemu-ppc64le-static", env!("CARGO_BIN_EXE_dmaspace")]];
    static PROGRAM: OnceLock<&[&str]> = OnceLock::new();
    PROGRAM.get_or_init(|| [DIRECTLY].into_iter().chain(EMULATED).find(|words| runs(words)).unwrap_or(DIRECTLY))
}

fn runs(words: &[&str]) -> bool {
    let (first, rest) = words.split_first().expect("never empty");
    let output = Command::new(first).args(rest).arg("--version").output();
    output.is_ok_and(|output| output.stdout.starts_with(b"dmaspace"))
}

/// The exit status.
pub(crate) fn status(output: &Output) -> i32 {
    output.status.code().expect("it ends by itself")
}

/// The standard output.
pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("text")
}

/// The standard error.
pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

/// The JSON object that was printed.
pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_str(stdout(output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// The names of the files in a directory of the test data, ascending.
pub(crate) fn files_in(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(format!("{DATA}/{directory}")).expect("test data").flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let mut names: Vec<_> = files.map(|entry| entry.file_name().into_string().expect("text")).collect();
    names.retain(|name| name != "README.md");
    names.sort();
    names
}
