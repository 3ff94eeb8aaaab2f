//! The table of `docs/costs-on-hosts.md`, from the lines that `dmaspace-bench-on-host` printed in emulated hosts.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};

const HEAD: &str = "# Costs on real kernels\n\n\
    The library beside a loop of raw calls on the same descriptor, in turns, in the same run of an emulated host: the\n\
    instructions of one repetition, the kernel's included, counted by QEMU (`-icount`). The raw loop fills a struct\n\
    and makes an ioctl for each page, keeps no record and checks nothing. The library maps pages in units of\n\
    a page, as a guest's IOMMU does. `ci/bench hosts` measures and writes this table.\n\n\
    Where one call of the library does the work of many raw ones, the work says so: a range, a list, a window.\n\n\
    | host | work | raw loop | dmaspace | ratio |\n|---|---|---:|---:|---:|\n";

/// The reasons for the goals that are not reached.
const NOTES: &str = "\n\
    ## Above the goals\n\n\
    The goal of a pair of calls for one page is 1.04 of the raw loop on type1 and iommufd and 1.03 on sPAPR. The\n\
    library's own work in a pair, 1,100 to 1,500 instructions, is alike on all hosts; its share is the larger the\n\
    less the kernel has to do. The Linux door and a backend take about 250 of them: the kernel's struct is filled\n\
    in, and the descriptor is the handle's own (docs/costs.md, the rows through the Linux door). The others are the\n\
    space's: its locks, its checks and its index.\n\n\
    A hypercall passes the guest's table and the window's handle as well, with their locks. The boot of a q35 is\n\
    seven commits, each of which judges the sections around the change and writes a report. A space that joins late\n\
    gets one call for each entry, as the raw loop makes.\n";

/// Reads the lines `HOST`, work, two counts, and writes the table.
pub(crate) fn write(lines: impl BufRead) -> Result<(), Box<dyn Error>> {
    let mut table = HEAD.to_owned();
    for line in lines.lines() {
        table += &row(&line?)?;
    }
    table += NOTES;
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
