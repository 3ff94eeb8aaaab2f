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
    The figures are instructions by function, as callgrind has them. A pair is two verbs with 16 locked instructions.\n\
    Each verb takes the gate (owner, windows and devices stay, and no registration is ended), the turn of its window\n\
    (changes follow each other, and nothing is mapped behind a fence), the index for reading and, after the kernel's\n\
    call, for writing (a look-up never waits for a call, and finds no mapping that the kernel does not have yet).\n\
    Taken and released, these four locks are 57 instructions. So a pair beside 1,000 pages, 702 in all, is made of:\n\
    the locks 114; two searches of the table 120; the change of a word, with the comparison with both neighbours that\n\
    keeps runs together, and the count of its owner's pages 189; the checks of both verbs, the call and the\n\
    registers of two functions 224; the bench itself 55. An empty space has one step less in each search, but each\n\
    pair gives the index the owner of the memory and takes it out again, since the last page releases it: 220.\n\
    A real backend adds 160 to 200: the struct of the ioctl, its attachment, and the call through the door.\n\n\
    A look-up that keeps the memory, 241, takes two locks (36), searches the table with both neighbours of the page\n\
    (70), clones the owner, which the caller releases (50), and writes a mapping of 96 bytes (30); the rest is\n\
    registers, and the bench itself (22). The host address alone, 151, needs neither the neighbours nor the owner.\n\n\
    A put and a clear of an entry, 1,098, are a pair in the space (648 with the check of the registration) and\n\
    above it: the look-up of the target memory under its lock, and a clone of that with its owner, since no lock\n\
    of target memory is held during a call (162); the upgrade of the window, which may be gone (26), and the\n\
    window's gate (36), both twice; the checks of both runs, the request and the registers of four functions (186);\n\
    the bench itself 40.\n\n\
    H_PUT_TCE, an entry and none, is the same (1,056) and 797 of its own: the look-up of the table's name and a count\n\
    of its users (112); the connection's lock, and the entries' for reading and, after the host agreed, for writing\n\
    (80); two searches of the guest's tree of four levels for each call (240), since it is not locked during\n\
    the host's call; the checks of PAPR and the change for devices (310); the bench itself 54.\n\n\
    H_PUT_TCE_INDIRECT and H_STUFF_TCE of 512 scattered entries, 572 an entry, walk the list in passes, as nothing\n\
    may be written before all of it is checked, nor recorded before the kernel agreed. In the first eight calls,\n\
    593 an entry: the list is read, cut and checked (72), compared with the table, made the host's list, and\n\
    written (185), made a batch (113), checked and mapped by the space (62), recorded (119), and cleared (30). Of\n\
    512 contiguous entries, 27, the list's words are copied (3), compared with the one expected (6) and written (8);\n\
    the calls of the host are 5.\n\n\
    Locked instructions are counted by callgrind's dump of each instruction: those with the prefix `lock`, and\n\
    exchanges with memory.\n\n\
    ## Scans beside a plain loop\n\n\
    The rows of a scan into a bitmap and those of a plain loop have one log, of random pages, and one bitmap of a\n\
    VMM, whose words are changed by an atomic or. Both have the copy of the log in them that the kernel makes: 8 of\n\
    the instructions, as callgrind counts a copy byte by byte. Without it, a clean word takes 1.3 where the loop\n\
    takes 4.5; a word with dirty pages takes 26 where the loop takes 6 to 7, and a full one 12 where the loop takes\n\
    7. Pages are found under the locks of the space, and the sink is called without them, so words that are neither\n\
    clean nor full are copied once more.\n\n\
    `ci/bench --scan` takes the time of a log of 1 TiB, 32 MiB long, without the copy that the kernel makes: the\n\
    best of nine rounds, in turns. Other work on the machine spoils these times. On two processors, three runs had\n\
    the time of the plain loop at 0.8 to 1.7 of the time of a clean scan (1.0 to 1.7 ms), at 0.6 to 0.7 of a scan\n\
    with 1 % of the pages (23 ms), at 0.6 to 0.8 with 50 % (19 to 23 ms), and at 0.9 to 1.5 of a full one (12 ms).\n\
    With a sink that does nothing, a clean scan was 2.5 to 5.0 times as fast as a copy of the log, and a full one\n\
    1.5 to 1.6 times; with 1 % or 50 % of the pages, a scan took 2 to 3 times as long as a copy.\n\n\
    ## Start-up\n\n\
    `ci/bench --prefault` makes 1 GiB present, in turns on one thread and on all processors: the best of five\n\
    rounds. It takes 16 calls, of 64 MiB each, and each byte is in one of them. On two processors with nothing else\n\
    to do, two threads were 1.96, 1.97 and 2.05 times as fast as one (336 to 368 ms and 163 to 188 ms). Three runs\n\
    while other programs used a processor had 0.99, 1.00 and 1.49 times.\n";

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
