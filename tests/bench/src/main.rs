//! The costs of dmaspace itself, beside a host that answers at once: instructions, allocations and bytes.
//!
//! Instructions are counted by callgrind, as the difference between n and 2n repetitions, so that start-up drops out.
//! Allocations are counted by the allocator of this program. `ci/bench` runs it:
//!
//! ```text
//! ci/bench            measures, prints the table, and writes it to docs/costs.md
//! ci/bench --check    measures the gates, and fails where docs/costs.md has other figures
//! ci/bench --curves   measures the growth of the costs, and writes it to docs/costs-by-size.md and drawings
//! ci/bench --scan     compares the time of a dirty scan with a plain loop and with a copy
//! ci/bench --prefault compares the time of a prefault on one thread and on all processors
//! ci/bench hosts      compares the library with raw calls in emulated hosts (dmaspace-bench-on-host)
//! ```

mod callgrind;
mod curves;
mod door;
mod host;
mod kernel;
mod locked;
mod measure;
mod on_hosts;
mod prefault;
mod rows;
mod table;
mod work;

use std::process::ExitCode;

use rows::{Kind, ROWS, Row};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["--count", ..] => count(&words[1..]),
        ["--check"] => table::check(),
        [] => table::write(),
        ["--only", word] => table::print(word),
        ["--scan"] => table::finish(work::scan::print_times()),
        ["--prefault"] => table::finish(prefault::print()),
        ["--curves"] => table::finish(curves::write()),
        ["--gates"] => table::print_gates(),
        ["--hosts"] => table::finish(on_hosts::write(std::io::stdin().lock())),
        _ => {
            eprintln!(
                "dmaspace-bench: only --check, --curves, --gates, --hosts, --only WORD, --prefault and --scan are known"
            );
            ExitCode::FAILURE
        }
    }
}

/// Does the work of the named rows, under callgrind, and prints the counted allocations: a line for each row.
fn count(names: &[&str]) -> ExitCode {
    for row in ROWS.iter().filter(|row| names.contains(&row.name)) {
        let Row { name, kind, .. } = row;
        match kind {
            Kind::Slope(n, work) | Kind::Locked(n, work) => {
                let allocated = measure::run(&mut *work(), *n);
                println!("{name}\t{n}\t{:.3}\t{:.1}", allocated.count, allocated.bytes);
            }
            Kind::Bytes(bytes) => println!("{name}\t0\t0\t{:.2}", bytes()),
        }
    }
    for point in curves::points().filter(|point| names.contains(&point.name.as_str())) {
        let allocated = measure::run(&mut *point.work(), point.repetitions);
        println!("{}\t{}\t{:.3}\t{:.1}", point.name, point.repetitions, allocated.count, allocated.bytes);
    }
    ExitCode::SUCCESS
}
