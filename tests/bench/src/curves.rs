//! The growth of costs with the number of live mappings and of sections: a table, and drawings of it.

mod drawing;

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::callgrind::figures;
use crate::measure::Work;
use crate::work::{commits, guest, space};

/// Costs that are measured at the same sizes, and drawn together.
pub(crate) struct Family {
    /// The name of the drawing's file.
    file: &'static str,
    /// The things that are counted along the x axis.
    counted: &'static str,
    sizes: &'static [u64],
    curves: &'static [Curve],
}

/// One cost at every size of its family.
pub(crate) struct Curve {
    name: &'static str,
    /// The number of repetitions at a size.
    repetitions: fn(u64) -> u64,
    work: fn(u64) -> Box<dyn Work>,
}

/// One cost at one size.
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) repetitions: u64,
    size: u64,
    work: fn(u64) -> Box<dyn Work>,
}

/// The instructions of one curve, at each size of its family.
struct Measured {
    name: &'static str,
    instructions: Vec<f64>,
}

const fn curve(name: &'static str, repetitions: fn(u64) -> u64, work: fn(u64) -> Box<dyn Work>) -> Curve {
    Curve { name, repetitions, work }
}

const FAMILIES: &[Family] = &[
    Family {
        file: "costs-by-mappings.svg",
        counted: "live mappings",
        sizes: &[1_000, 10_000, 100_000, 1_000_000],
        curves: &[
            curve("unmap + map of a page, scattered", |_| 1_000, |live| space::pairs(live, 2)),
            curve("look-up", |_| 1_000, space::lookups),
            curve("put + clear of an entry", |_| 1_000, guest::puts),
            curve("H_PUT_TCE, twice: an entry and none", |_| 1_000, guest::put_tces),
        ],
    },
    Family {
        file: "costs-by-sections.svg",
        counted: "sections",
        sizes: &[100, 1_000, 10_000, 100_000],
        curves: &[
            curve("section out and in, apart", |_| 20, |count| commits::changes(count, true)),
            curve("section out and in, in one run", |_| 10, |count| commits::changes(count, false)),
            curve("explain of a section less", |_| 10, commits::explain_removal),
            curve("explain of nothing", |_| 10, commits::explain),
            curve("look-up of a section", |_| 1_000, commits::lookups),
            curve("audit, a section", |count| count, commits::audits),
            curve("state, a section", |count| count, commits::states),
            curve("whole list, no change, a section", |count| count, commits::whole_list),
        ],
    },
];

const HEAD: &str = "# Costs by size\n\n\
    The growth of the costs in [costs.md](costs.md): instructions of one repetition, on a host that answers at once.\n\
    `ci/bench --curves` measures and writes this page and its drawings. The last column is the exponent of the growth\n\
    from the smallest size to the largest: 0 for a cost that does not grow, 1 for one that is proportional to it.\n";

impl Point {
    /// The work to be measured.
    pub(crate) fn work(&self) -> Box<dyn Work> {
        (self.work)(self.size)
    }
}

/// Every point of every curve.
pub(crate) fn points() -> impl Iterator<Item = Point> {
    FAMILIES.iter().flat_map(|family| family.curves.iter().flat_map(|curve| family.points(curve)))
}

/// Measures all curves and writes them.
pub(crate) fn write() -> Result<(), Box<dyn Error>> {
    let mut text = HEAD.to_owned();
    for family in FAMILIES {
        let measured = family.measure()?;
        text.push_str(&family.table(&measured)?);
        svg::save(docs().join(family.file), &drawing::of(family, &measured))?;
    }
    print!("{text}");
    Ok(fs::write(docs().join("costs-by-size.md"), text)?)
}

impl Family {
    fn points<'a>(&'a self, curve: &'a Curve) -> impl Iterator<Item = Point> + 'a {
        self.sizes.iter().map(|size| Point {
            name: format!("{}, {size}", curve.name),
            repetitions: (curve.repetitions)(*size),
            size: *size,
            work: curve.work,
        })
    }

    fn measure(&self) -> Result<Vec<Measured>, Box<dyn Error>> {
        let mut all = Vec::new();
        for curve in self.curves {
            let names: Vec<_> = self.points(curve).map(|point| point.name).collect();
            let figures = figures(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
            let instructions = figures.iter().filter_map(|figures| figures.instructions).collect();
            all.push(Measured { name: curve.name, instructions });
        }
        Ok(all)
    }

    fn table(&self, measured: &[Measured]) -> Result<String, Box<dyn Error>> {
        let mut text = format!("\n## By the number of {}\n\n![By the number of {0}]({})\n\n", self.counted, self.file);
        let sizes: Vec<_> = self.sizes.iter().map(|size| format!(" {size} |")).collect();
        writeln!(text, "| work |{} exponent |", sizes.concat())?;
        writeln!(text, "|---|{}---:|", "---:|".repeat(self.sizes.len()))?;
        for Measured { name, instructions } in measured {
            let figures: Vec<_> = instructions.iter().map(|count| format!(" {count:.1} |")).collect();
            writeln!(text, "| {name} |{} {:.2} |", figures.concat(), self.exponent(instructions))?;
        }
        Ok(text)
    }

    /// The exponent of the growth from the smallest size to the largest.
    #[expect(clippy::cast_precision_loss, reason = "sizes are powers of ten")]
    fn exponent(&self, instructions: &[f64]) -> f64 {
        let growth = instructions.last().zip(instructions.first()).map_or(1.0, |(last, first)| last / first);
        let step = self.sizes.last().zip(self.sizes.first()).map_or(1.0, |(last, first)| *last as f64 / *first as f64);
        growth.ln() / step.ln()
    }
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}
