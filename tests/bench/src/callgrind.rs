//! Running this program under callgrind.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::locked;
use crate::measure::slope;
use crate::rows::{Kind, ROWS};

/// The figures of one row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) name: String,
    /// The instructions of one repetition, all or the locked ones; `None` for a row of bytes.
    pub(crate) instructions: Option<f64>,
    pub(crate) allocations: f64,
    pub(crate) bytes: f64,
}

/// Measures these rows, in their order.
pub(crate) fn figures(names: &[&str]) -> Result<Vec<Figures>, Box<dyn Error>> {
    let folder = env::temp_dir().join(format!("dmaspace-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let measured = measure_in(&folder, names);
    fs::remove_dir_all(&folder)?;
    measured
}

fn measure_in(folder: &Path, names: &[&str]) -> Result<Vec<Figures>, Box<dyn Error>> {
    let out = folder.join("counts");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet", "--dump-after=dmaspace_bench::measure::measured"]);
    valgrind.arg("--toggle-collect=dmaspace_bench::measure::measured");
    if names.iter().any(|name| is_locked(name)) {
        valgrind.args(["--dump-instr=yes", "--compress-strings=no", "--compress-pos=no"]);
    }
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.arg(env::current_exe()?).arg("--count").args(names);
    let output = valgrind.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("valgrind: {}", output.status).into());
    }
    let mut dumps = (1..).map(|n| PathBuf::from(format!("{}.{n}", out.display())));
    let mut figures = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let [name, n, allocations, bytes] = line.split('\t').collect::<Vec<_>>()[..] else {
            return Err(format!("a line without four figures: {line}").into());
        };
        let n: u64 = n.parse()?;
        let instructions = if n == 0 {
            None
        } else {
            let count = if is_locked(name) { locked::total } else { total };
            let once = count(&dumps.next().ok_or("no dump")?)?;
            let twice = count(&dumps.next().ok_or("no dump")?)?;
            Some(slope(once, twice, n))
        };
        let (allocations, bytes) = (allocations.parse()?, bytes.parse()?);
        figures.push(Figures { name: name.to_owned(), instructions, allocations, bytes });
    }
    Ok(figures)
}

fn is_locked(name: &str) -> bool {
    ROWS.iter().any(|row| row.name == name && matches!(row.kind, Kind::Locked(..)))
}

/// The instructions of one dump.
fn total(dump: &Path) -> Result<u64, Box<dyn Error>> {
    let text = fs::read_to_string(dump).map_err(|error| format!("{}: {error}", dump.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    Ok(line.ok_or("a dump without a total")?.trim().parse()?)
}
