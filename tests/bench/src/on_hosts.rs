//! The table of `docs/costs-on-hosts.md`, from the lines that `dmaspace-bench-on-host` printed in emulated hosts.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};

const HEAD: &str = "# Costs on real kernels\n\n\
    The library beside a loop of raw calls on the same descriptor, in turns, in the same run of an emulated host: the\n\
    instructions of one repetition, the kernel's included, counted by QEMU (`-icount`). The raw loop fills a struct\n\
    and makes an ioctl for each page, keeps no record and checks nothing. `ci/bench hosts` measures and writes this\n\
    table.\n\n\
    Where one call of the library does the work of many raw ones, the work says so: a range, a list, a window.\n\n\
    | host | work | raw loop | dmaspace | ratio |\n|---|---|---:|---:|---:|\n";

/// Reads the lines `HOST`, work, two counts, and writes the table.
pub(crate) fn write(lines: impl BufRead) -> Result<(), Box<dyn Error>> {
    let mut table = HEAD.to_owned();
    for line in lines.lines() {
        table += &row(&line?)?;
    }
    print!("{table}");
    Ok(fs::write(file(), table)?)
}

fn row(line: &str) -> Result<String, Box<dyn Error>> {
    let [host, work, raw, ours] = line.split('\t').collect::<Vec<_>>()[..] else {
        return Err(format!("{line:?} is no comparison").into());
    };
    let ratio = ours.parse::<f64>()? / raw.parse::<f64>()?;
    let mut row = String::new();
    writeln!(row, "| {host} | {work} | {raw} | {ours} | {ratio:.3} |")?;
    Ok(row)
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/costs-on-hosts.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_becomes_a_row_with_its_ratio() {
        let row = row("vtd\ttype1: a page\t200\t210").expect("a comparison");
        assert_eq!(row, "| vtd | type1: a page | 200 | 210 | 1.050 |\n");
        assert!(super::row("vtd\ttype1").is_err());
    }
}
