//! Writes each block of Rust of the README and of the pages in docs/ as a function, which this crate compiles.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The page whose code is a crate of its own, with the suite as another dependency (`tests/conformance/examples`).
const OF_BACKENDS: &str = "writing-a-backend.md";

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../..");
    println!("cargo::rerun-if-changed={}", root.join("docs").display());
    let mut pages = vec![root.join("README.md")];
    for page in fs::read_dir(root.join("docs"))? {
        let page = page?.path();
        if page.extension().is_some_and(|ending| ending == "md") && !page.ends_with(OF_BACKENDS) {
            pages.push(page);
        }
    }
    pages.sort();
    let mut code = String::new();
    for page in pages {
        println!("cargo::rerun-if-changed={}", page.display());
        for (line, block) in blocks(&page)? {
            write_function(&mut code, &page, line, &block)?;
        }
    }
    if code.is_empty() {
        return Err("no page has a block of Rust".into());
    }
    fs::write(Path::new(&std::env::var("OUT_DIR")?).join("pages.rs"), code)?;
    Ok(())
}

/// The blocks of Rust in a page that rustdoc would compile, with the numbers of their first lines.
fn blocks(page: &PathBuf) -> Result<Vec<(usize, String)>, Box<dyn Error>> {
    let text = fs::read_to_string(page)?;
    let (mut found, mut open): (Vec<(usize, String)>, Option<bool>) = (Vec::new(), None);
    for (number, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(_), Some(_)) => open = None,
            (Some(words), None) => {
                let is_rust = words.split(',').any(|word| word == "rust") && !words.contains("ignore");
                open = Some(is_rust);
                if is_rust {
                    found.push((number + 2, String::new()));
                }
            }
            (None, Some(true)) => {
                if let Some((_, block)) = found.last_mut() {
                    // A line that rustdoc hides.
                    writeln!(block, "{}", line.strip_prefix("# ").unwrap_or(line))?;
                }
            }
            (None, _) => {}
        }
    }
    Ok(found)
}

fn write_function(code: &mut String, page: &Path, line: usize, block: &str) -> Result<(), Box<dyn Error>> {
    let stem = page.file_stem().unwrap_or_default().to_string_lossy().to_lowercase().replace(['-', '.'], "_");
    writeln!(code, "/// {}, line {line}.", page.display())?;
    writeln!(code, "pub fn {stem}_{line}() -> Result<(), Box<dyn std::error::Error>> {{\n{block}\nOk(())\n}}")?;
    Ok(())
}
