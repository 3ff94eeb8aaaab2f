//! The definitions that names mean, across modules, re-exports and crates.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Crate, Item, Module, Names};

/// The crates of the workspace, by their names in code.
pub(crate) struct Workspace {
    pub(crate) crates: BTreeMap<String, Crate>,
}

/// The module that a name leads to, or the item and the module that defines it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Target {
    Module(Place),
    Item(Place, String),
}

/// A module of a crate.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Place {
    pub(crate) of: String,
    pub(crate) module: Names,
}

/// The longest chain of re-exports that is followed: a `use` may name itself.
const DEEPEST: usize = 16;

impl Place {
    fn below(&self, name: &str) -> Self {
        Self { of: self.of.clone(), module: self.module.iter().cloned().chain([name.to_owned()]).collect() }
    }

    fn above(&self) -> Self {
        let kept = self.module.len().saturating_sub(1);
        Self { of: self.of.clone(), module: self.module.iter().take(kept).cloned().collect() }
    }
}

impl Workspace {
    pub(crate) fn module(&self, place: &Place) -> Option<&Module> {
        self.crates.get(&place.of)?.modules.get(&place.module)
    }

    /// The definitions that a path means in a module, one for each namespace. Empty for paths to crates from elsewhere.
    pub(crate) fn resolve(&self, from: &Place, path: &[String]) -> BTreeSet<Target> {
        self.resolve_within(from, path, DEEPEST)
    }

    fn resolve_within(&self, from: &Place, path: &[String], depth: usize) -> BTreeSet<Target> {
        let Some((first, rest)) = path.split_first() else { return BTreeSet::new() };
        let root = Place { of: from.of.clone(), module: Vec::new() };
        let start: BTreeSet<Target> = match first.as_str() {
            "crate" => [Target::Module(root)].into(),
            "self" => [Target::Module(from.clone())].into(),
            "super" => [Target::Module(from.above())].into(),
            name => self.named(from, name, depth),
        };
        rest.iter().fold(start, |targets, name| self.step(targets, name, depth))
    }

    fn step(&self, targets: BTreeSet<Target>, name: &str, depth: usize) -> BTreeSet<Target> {
        let mut found = BTreeSet::new();
        for target in targets {
            match target {
                Target::Module(place) if name == "super" => found.extend([Target::Module(place.above())]),
                Target::Module(place) => found.extend(self.defined(&place, name, depth)),
                // A variant or an associated item.
                Target::Item(..) => found.extend([target]),
            }
        }
        found
    }

    /// A name in a module, or the name of a crate.
    fn named(&self, from: &Place, name: &str, depth: usize) -> BTreeSet<Target> {
        let found = self.defined(from, name, depth);
        if found.is_empty() && self.crates.contains_key(name) {
            return [Target::Module(Place { of: name.to_owned(), module: Vec::new() })].into();
        }
        found
    }

    fn defined(&self, place: &Place, name: &str, depth: usize) -> BTreeSet<Target> {
        let mut found = BTreeSet::new();
        let (Some(module), Some(depth)) = (self.module(place), depth.checked_sub(1)) else { return found };
        if module.children.contains_key(name) {
            found.insert(Target::Module(place.below(name)));
        }
        if module.items.iter().any(|item| item.name == name) {
            found.insert(Target::Item(place.clone(), name.to_owned()));
        }
        for import in module.imports.iter().filter(|import| import.name == name) {
            found.extend(self.resolve_within(place, &import.path, depth));
        }
        if found.is_empty() {
            for glob in module.imports.iter().filter(|import| import.name == "*") {
                let globbed = self.resolve_within(place, &glob.path, depth);
                found.extend(self.step(globbed, name, depth));
            }
        }
        found
    }

    /// The items of a crate that code outside of it can name, in this crate or another of the workspace.
    pub(crate) fn reachable(&self, name: &str) -> BTreeSet<Target> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open = vec![Place { of: name.to_owned(), module: Vec::new() }];
        while let Some(place) = open.pop() {
            if !seen.insert(place.clone()) {
                continue;
            }
            for target in self.public_names(&place) {
                match target {
                    Target::Module(below) => open.push(below),
                    Target::Item(..) => found.extend([target]),
                }
            }
        }
        found
    }

    fn public_names(&self, place: &Place) -> BTreeSet<Target> {
        let Some(module) = self.module(place) else { return BTreeSet::new() };
        let children = module.children.iter().filter(|(_, is_public)| **is_public);
        let mut found: BTreeSet<Target> = children.map(|(name, _)| Target::Module(place.below(name))).collect();
        let items = module.items.iter().filter(|item| item.is_public && !item.is_hidden);
        found.extend(items.map(|item| Target::Item(place.clone(), item.name.clone())));
        for import in module.imports.iter().filter(|import| import.is_public) {
            // A module that defines a name and imports it has one definition for each architecture.
            let is_alternative = module.items.iter().any(|item| item.is_public && item.name == import.name);
            if !is_alternative {
                found.extend(self.resolve(place, &import.path));
            }
        }
        found
    }

    /// The items of a name in a module: a type and a function may share one.
    pub(crate) fn items(&self, place: &Place, name: &str) -> Vec<&Item> {
        let items = self.module(place).into_iter().flat_map(|module| &module.items);
        items.filter(|item| item.name == name).collect()
    }
}
