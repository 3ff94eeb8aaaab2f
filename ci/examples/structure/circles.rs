//! The import circles of a crate: files that name each other's definitions, directly or through more files.
//!
//! A file leads to another if its code or a `use` names a definition there, unless the other is of a module around it.
//! A re-export (`pub use`) is no dependence by itself, and a name is followed to its definition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::names::{Place, Target, Workspace};

type Graph = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

/// The circles of a crate, each a list of its files.
pub(crate) fn circles(workspace: &Workspace, name: &str) -> Vec<Vec<PathBuf>> {
    let graph = graph_of(workspace, name);
    let mut found: BTreeSet<Vec<PathBuf>> = BTreeSet::new();
    let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> =
        graph.keys().map(|file| (file, reach(&graph, file))).collect();
    for (file, there) in &reached {
        let back = |other: &&PathBuf| reached.get(other).is_some_and(|from| from.contains(*file));
        let circle: Vec<PathBuf> = there.iter().copied().filter(back).cloned().collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// The arrows between two files of a circle, with the names that make them.
pub(crate) fn arrows(workspace: &Workspace, name: &str, circle: &[PathBuf]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (from, to, named) in uses(workspace, name) {
        if circle.contains(&from) && circle.contains(&to) && from != to {
            found.insert(format!("{} -> {}: {named}", from.display(), to.display()));
        }
    }
    found
}

fn graph_of(workspace: &Workspace, name: &str) -> Graph {
    let mut graph = Graph::new();
    for (from, to, _) in uses(workspace, name) {
        if from != to {
            graph.entry(from).or_default().insert(to);
        }
    }
    graph
}

fn uses(workspace: &Workspace, name: &str) -> Vec<(PathBuf, PathBuf, String)> {
    let mut found = Vec::new();
    let Some(read) = workspace.crates.get(name) else { return found };
    for (path, module) in &read.modules {
        let from = Place { of: name.to_owned(), module: path.clone() };
        let imports = module.imports.iter().filter(|import| !import.is_re_export).map(|import| &import.path);
        for path in imports.chain(&module.paths) {
            for target in workspace.resolve(&from, path) {
                let (Target::Module(place) | Target::Item(place, _)) = target;
                if let (true, Some(to)) =
                    (place.of == name && !from.module.starts_with(&place.module), workspace.module(&place))
                {
                    found.push((module.file.clone(), to.file.clone(), path.join("::")));
                }
            }
        }
    }
    found
}

/// The files that a file leads to.
fn reach<'a>(graph: &'a Graph, file: &'a PathBuf) -> BTreeSet<&'a PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![file];
    while let Some(next) = open.pop() {
        open.extend(graph.get(next).into_iter().flatten().filter(|there| found.insert(*there)));
    }
    found
}
