//! Measures the public API and the modules of the workspace's libraries. Fails if one of these rules is broken:
//!
//! - no two public types have one name, except for those of [`NAMED_BY_OTHERS`];
//! - a public enum, or a struct whose fields are all public, is `#[non_exhaustive]` or says in its documentation why it
//!   is exhaustive, except for the kernel's structs in `dmaspace-abi`;
//! - there are no import circles but [`KEPT`].
//!
//! ```text
//! cargo run -p emulated-host --example structure                    # the table, and each breach
//! cargo run -p emulated-host --example structure -- --list [ROOT]   # each public item, also of another checkout
//! ```

mod circles;
mod names;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use names::{Target, Workspace};
use source::{Crate, Item, ItemKind};

/// The circles that stay, each by its files: a kernel calls its subsystems, which are parts of it.
const KEPT: [&[&str]; 2] = [
    &["dialect/cdev.rs", "dialect/vfio.rs", "kernel.rs"],
    &["dialect/iommufd/ioas.rs", "dialect/iommufd/page_table.rs"],
];

/// The crate of the kernel's structs, which are exhaustive because the kernel's ABI is.
const KERNEL_STRUCTS: &str = "dmaspace_abi";

/// The crate that has the names of another project's public API, in that one's place.
const NAMED_BY_OTHERS: &str = "dmaspace_vfio_ioctls";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("structure: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns `true` if no rule is broken.
fn run(arguments: Vec<String>) -> Result<bool> {
    let path = arguments.iter().find(|argument| !argument.starts_with("--"));
    let root = path.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from);
    let workspace = read(&root)?;
    let crates = workspace.crates.values().filter(|of| of.is_library);
    let libraries: Vec<Library<'_>> = crates.map(|of| Library::of(&workspace, &of.name)).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        list(&libraries);
        return Ok(true);
    }
    println!("{HEADING}");
    for library in &libraries {
        library.print();
    }
    let mut breaches = same_names(&libraries);
    breaches.extend(libraries.iter().flat_map(Library::undecided));
    breaches.extend(all_circles(&workspace));
    println!("\n{}", if breaches.is_empty() { "no breach".to_owned() } else { breaches.join("\n") });
    Ok(breaches.is_empty())
}

fn read(root: &Path) -> Result<Workspace> {
    let manifest = std::fs::read_to_string(root.join("Cargo.toml"))?;
    let list = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']')).context("no members")?;
    let mut crates = BTreeMap::new();
    for member in list.0.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty()) {
        for read in Crate::read_package(&root.join(member)).with_context(|| member.to_owned())? {
            crates.insert(read.name.clone(), read);
        }
    }
    Ok(Workspace { crates })
}

/// A library, and the items it defines that code outside of it can name.
struct Library<'a> {
    name: &'a str,
    items: Vec<(String, &'a Item)>,
}

const HEADING: &str =
    "library               types  functions  methods | of traits | non_exhaustive  exhaustive  closed";

impl<'a> Library<'a> {
    fn of(workspace: &'a Workspace, name: &'a str) -> Self {
        let mut items = Vec::new();
        for target in workspace.reachable(name) {
            let Target::Item(place, item) = target else { continue };
            if place.of == name {
                let module = place.module.join("::");
                items.extend(workspace.items(&place, &item).into_iter().map(|item| (module.clone(), item)));
            }
        }
        Self { name, items }
    }

    fn types(&self) -> impl Iterator<Item = &(String, &'a Item)> {
        self.items.iter().filter(|(_, item)| item.kind.is_type())
    }

    fn count(&self, counts: impl Fn(&Item) -> bool) -> usize {
        self.items.iter().filter(|(_, item)| counts(item)).count()
    }

    fn methods(&self, of_traits: bool) -> usize {
        let owners = self.items.iter().filter(|(_, item)| (item.kind == ItemKind::Trait) == of_traits);
        owners.map(|(_, item)| item.methods.len()).sum()
    }

    fn print(&self) {
        let growing = self.count(|item| item.is_non_exhaustive);
        let exhaustive = self.count(|item| item.is_open && !item.is_non_exhaustive);
        println!(
            "{:<21}{:>6}{:>11}{:>9} |{:>10} |{:>15}{:>12}{:>8}",
            self.name,
            self.types().count(),
            self.count(|item| item.kind == ItemKind::Function),
            self.methods(false),
            self.methods(true),
            growing,
            exhaustive,
            self.count(|item| item.kind == ItemKind::Struct) - self.count(is_open_struct),
        );
    }

    /// The types whose parts code outside can list, without a word on whether they may grow.
    fn undecided(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (module, item) in self.types().filter(|_| self.name != KERNEL_STRUCTS) {
            if item.is_open && !item.is_non_exhaustive && !item.says_exhaustive {
                found.push(format!(
                    "{}::{module}::{}: neither #[non_exhaustive] nor documented as exhaustive",
                    self.name, item.name
                ));
            }
        }
        found
    }
}

fn is_open_struct(item: &Item) -> bool {
    item.kind == ItemKind::Struct && item.is_open
}

/// Prints each public item on a line of its own, without its module: a diff of two lists shows changes for callers.
fn list(libraries: &[Library<'_>]) {
    for library in libraries {
        let mut lines = BTreeSet::new();
        for (_, item) in &library.items {
            lines.insert(format!("{:?} {}", item.kind, item.name));
            lines.extend(item.methods.iter().map(|method| format!("{:?} {}::{method}", item.kind, item.name)));
        }
        for line in lines {
            println!("{} {line}", library.name);
        }
    }
}

/// The names that more than one public type has.
fn same_names(libraries: &[Library<'_>]) -> Vec<String> {
    let mut places: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for library in libraries.iter().filter(|library| library.name != NAMED_BY_OTHERS) {
        for (module, item) in library.types() {
            places.entry(&item.name).or_default().insert(format!("{}::{module}", library.name));
        }
    }
    let twice = places.into_iter().filter(|(_, places)| places.len() > 1);
    twice.map(|(name, places)| format!("{name} is the name of several public types: {places:?}")).collect()
}

/// The circles of all crates, but for those that stay.
fn all_circles(workspace: &Workspace) -> Vec<String> {
    let mut found = Vec::new();
    for name in workspace.crates.keys() {
        for circle in circles::circles(workspace, name) {
            let files: Vec<String> = circle.iter().map(|file| file.display().to_string()).collect();
            if !KEPT.iter().any(|kept| files == *kept) {
                let arrows: Vec<String> = circles::arrows(workspace, name, &circle).into_iter().collect();
                found.push(format!("{name}: import circle of {}\n    {}", files.join(", "), arrows.join("\n    ")));
            }
        }
    }
    found
}
