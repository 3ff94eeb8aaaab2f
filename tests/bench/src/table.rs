//! The table of `docs/costs.md`, written and compared.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::callgrind::{Figures, figures};
use crate::rows::{ROWS, Row};

/// The growth of instructions that is not a failure: 1 %.
const TOLERANCE: f64 = 1.01;
/// The growth that is allowed to another compiler or processor than the table's.
const TOLERANCE_ELSEWHERE: f64 = 1.25;

const HEAD: &str = "# Costs\n\n\
    The cost of the library itself, on a host that answers at once: instructions of one repetition (callgrind, as the\n\
    difference between n and 2n repetitions), allocations and the bytes of them. For the rows of live pages the bytes\n\
    are those that stay. `ci/bench` measures and writes this table; `ci/check bench` compares the rows marked with a\n\
    star.\n\n";

/// The reasons for the goals that are not reached, as measured by function.
const NOTES: &str = "\n\
    ## Pairs above their goals\n\n\
    A pair is two verbs with 16 locked instructions. Each verb takes the gate (owner, windows and devices stay,\n\
    and no registration is ended), the turn of its window (changes follow each other, and nothing is mapped\n\
    behind a fence), the index for reading and, after the kernel's call, for writing (a look-up never waits for\n\
    a call, and finds no mapping that the kernel does not have yet). With the code around them these are 190\n\
    instructions. Of the others in a pair beside 1,000 pages, 893 in all, the two searches of the table take\n\
    140, the change of a word 140, the kind of the memory 120 (its owner is compared, counted, and released with\n\
    its last page), the checks of both verbs 250, and the bench itself 54. In an empty space each pair clones\n\
    the owner of the memory and releases it again: 360 more. A real backend adds 270: the struct of the ioctl,\n\
    its attachment, and the call through the door.\n\n\
    A look-up that keeps the memory clones its owner, which is released after it; two locks take 36. An entry of\n\
    a window is put through the handle under three more locks, with an upgrade of the window, which may be gone,\n\
    and a clone of the target memory's owner.\n\n\
    Locked instructions are counted by callgrind's dump of each instruction: those with the prefix `lock`, and\n\
    exchanges with memory.\n";

/// Measures all rows, prints the table and writes it.
pub(crate) fn write() -> ExitCode {
    finish(measured(|_| true).and_then(|figures| {
        let text = format!("{HEAD}Measured with {}.\n\n{}{NOTES}", machine()?, text_of(&figures));
        print!("{text}");
        Ok(fs::write(file(), text)?)
    }))
}

/// Measures the rows with `word` in their names and prints them.
pub(crate) fn print(word: &str) -> ExitCode {
    finish(measured(|row| row.name.contains(word)).map(|figures| print!("{}", text_of(&figures))))
}

/// Measures the gates and prints them.
pub(crate) fn print_gates() -> ExitCode {
    finish(measured(|row| row.gates).map(|figures| print!("{}", text_of(&figures))))
}

/// Measures the gates, prints them and compares them with the table.
pub(crate) fn check() -> ExitCode {
    finish(compare())
}

fn compare() -> Result<(), Box<dyn Error>> {
    let table = fs::read_to_string(file())?;
    let tolerance = if table.contains(&machine()?) { TOLERANCE } else { TOLERANCE_ELSEWHERE };
    let figures = measured(|row| row.gates)?;
    print!("{}", text_of(&figures));
    let committed: Vec<Figures> = table.lines().filter_map(parse).collect();
    let worse: Vec<String> = figures.iter().filter_map(|now| difference(now, &committed, tolerance)).collect();
    if worse.is_empty() {
        return Ok(());
    }
    Err(format!("{}\nIf this is intended, run ci/bench and commit docs/costs.md.", worse.join("\n")).into())
}

/// The reason why a row is no longer as it was.
fn difference(now: &Figures, committed: &[Figures], tolerance: f64) -> Option<String> {
    let name = &now.name;
    let Some(before) = committed.iter().find(|before| before.name == *name) else {
        return Some(format!("{name}: docs/costs.md has no such row"));
    };
    let (is, was) = (now.instructions.unwrap_or_default(), before.instructions.unwrap_or_default());
    if is > was * tolerance + 1.0 {
        return Some(format!("{name}: {is:.1} instructions instead of {was:.1}"));
    }
    let memory = |figures: &Figures| (figures.allocations, figures.bytes);
    let (is, was) = (memory(now), memory(before));
    let more = is.0 > was.0 || is.1 > was.1;
    more.then(|| format!("{name}: {} allocations and {} bytes instead of {} and {}", is.0, is.1, was.0, was.1))
}

fn measured(wanted: impl Fn(&Row) -> bool) -> Result<Vec<Figures>, Box<dyn Error>> {
    let names: Vec<_> = ROWS.iter().filter(|row| wanted(row)).map(|row| row.name).collect();
    figures(&names)
}

fn text_of(figures: &[Figures]) -> String {
    let mut text = String::from("| work | instructions | goal | allocations | bytes |\n|---|---:|---:|---:|---:|\n");
    for Figures { name, instructions, allocations, bytes } in figures {
        let Some(row) = ROWS.iter().find(|row| row.name == name) else { continue };
        let (star, goal) = (if row.gates { "*" } else { "" }, row.goal);
        let line = match instructions {
            Some(count) => format!("| {name}{star} | {count:.1} | {goal} | {allocations:.3} | {bytes:.1} |\n"),
            None => format!("| {name}{star} | | {goal} bytes | | {bytes:.2} |\n"),
        };
        text.push_str(&line);
    }
    text
}

/// The figures of a line of the table.
fn parse(line: &str) -> Option<Figures> {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let [_, name, instructions, _, allocations, bytes, _] = cells[..] else { return None };
    Some(Figures {
        name: name.trim_end_matches('*').to_owned(),
        instructions: instructions.parse().ok(),
        allocations: if allocations.is_empty() { 0.0 } else { allocations.parse().ok()? },
        bytes: bytes.parse().ok()?,
    })
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/costs.md")
}

/// The compiler, and the processor: the C library copies memory with the instructions that it has.
fn machine() -> Result<String, Box<dyn Error>> {
    let output = Command::new("rustc").arg("--version").output()?;
    let compiler = String::from_utf8(output.stdout)?;
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(format!("{} on {}", compiler.trim(), model.map_or("an unknown processor", |(_, name)| name)))
}

/// Prints an error, and returns the exit status.
pub(crate) fn finish(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dmaspace-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
