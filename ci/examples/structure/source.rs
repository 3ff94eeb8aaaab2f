//! The modules of a library crate, read from its sources: items, imports, and the paths that the code names.
//!
//! Items for tests only (`#[cfg(test)]`, `#[cfg(doctest)]`) are left out. All other `cfg`s count as on. The body of a
//! macro call is read as items where it parses as items (`cfg_if!`); otherwise, its `pub struct`s are found by their
//! words (`bitflags!`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Fields, Visibility};

/// The path of a module from its crate's root, or of an item as the code spells it.
pub(crate) type Names = Vec<String>;

/// A library or a program.
pub(crate) struct Crate {
    /// The name in code, with underscores.
    pub(crate) name: String,
    pub(crate) is_library: bool,
    pub(crate) modules: BTreeMap<Names, Module>,
}

#[derive(Default)]
pub(crate) struct Module {
    /// The file, relative to the crate's `src`.
    pub(crate) file: PathBuf,
    pub(crate) items: Vec<Item>,
    pub(crate) imports: Vec<Import>,
    /// The child modules, and whether each is public.
    pub(crate) children: BTreeMap<String, bool>,
    /// The paths of the module's code.
    pub(crate) paths: BTreeSet<Names>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum ItemKind {
    Struct,
    Enum,
    Union,
    Trait,
    Alias,
    Function,
    Constant,
}

pub(crate) struct Item {
    pub(crate) kind: ItemKind,
    pub(crate) name: String,
    pub(crate) is_public: bool,
    pub(crate) is_hidden: bool,
    pub(crate) is_non_exhaustive: bool,
    /// The documentation says that the type is exhaustive on purpose.
    pub(crate) says_exhaustive: bool,
    /// An enum, or a struct with public fields only: code outside of the crate can list its parts.
    pub(crate) is_open: bool,
    /// The methods of a trait, or the public methods of a type.
    pub(crate) methods: Vec<String>,
}

/// One name that a `use` brings into a module. The name `*` is a glob.
pub(crate) struct Import {
    pub(crate) path: Names,
    pub(crate) name: String,
    pub(crate) is_public: bool,
    /// The `use` has a visibility: it is there for other modules.
    pub(crate) is_re_export: bool,
}

impl ItemKind {
    pub(crate) fn is_type(self) -> bool {
        !matches!(self, Self::Function | Self::Constant)
    }
}

impl Crate {
    /// Reads the library and the program in a folder with a Cargo.toml. None of a package that is not published.
    pub(crate) fn read_package(folder: &Path) -> Result<Vec<Self>> {
        let manifest = folder.join("Cargo.toml");
        let manifest = std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
        let package =
            manifest.lines().find_map(|line| line.strip_prefix("name = ")).context("a crate without a name")?;
        let name = package.trim_matches('"').replace('-', "_");
        let mut found = Vec::new();
        for (root, is_library) in [("src/lib.rs", true), ("src/main.rs", false)] {
            let root = folder.join(root);
            if root.exists() && !manifest.contains("publish = false") {
                let name = if is_library { name.clone() } else { format!("{name} (program)") };
                found.push(Self { name, is_library, modules: Reader::read(&folder.join("src"), &root)? });
            }
        }
        Ok(found)
    }
}

/// The state of reading one crate.
struct Reader {
    sources: PathBuf,
    modules: BTreeMap<Names, Module>,
    /// The public methods of `impl` blocks: the type's name, and the method's.
    methods: Vec<(String, String)>,
}

impl Reader {
    fn read(sources: &Path, root: &Path) -> Result<BTreeMap<Names, Module>> {
        let mut reader = Self { sources: sources.to_owned(), modules: BTreeMap::new(), methods: Vec::new() };
        reader.read_file(Vec::new(), root)?;
        reader.assign_methods();
        Ok(reader.modules)
    }

    fn read_file(&mut self, path: Names, file: &Path) -> Result<()> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let parsed = syn::parse_file(&text).with_context(|| file.display().to_string())?;
        let folder = match file.file_stem().and_then(|stem| stem.to_str()) {
            Some("lib" | "main" | "mod") => file.with_file_name(""),
            _ => file.with_extension(""),
        };
        self.read_module(path, file, &folder, &parsed.items)
    }

    fn read_module(&mut self, path: Names, file: &Path, folder: &Path, items: &[syn::Item]) -> Result<()> {
        let relative = file.strip_prefix(&self.sources).unwrap_or(file).to_owned();
        let mut module = Module { file: relative, ..Module::default() };
        let templates = struct_templates(items);
        for item in items.iter().filter(|item| !is_test(attributes_of(item))) {
            self.read_item(&mut module, &templates, item);
            if let syn::Item::Mod(child) = item {
                self.read_child(&path, file, folder, child)?;
            }
        }
        self.modules.insert(path, module);
        Ok(())
    }

    fn read_child(&mut self, path: &Names, file: &Path, folder: &Path, child: &syn::ItemMod) -> Result<()> {
        let name = child.ident.to_string();
        let below: Names = path.iter().cloned().chain([name.clone()]).collect();
        if let Some((_, items)) = &child.content {
            return self.read_module(below, file, &folder.join(&name), items);
        }
        let flat = folder.join(format!("{name}.rs"));
        let file = if flat.exists() { flat } else { folder.join(name).join("mod.rs") };
        self.read_file(below, &file)
    }

    fn read_item(&mut self, module: &mut Module, templates: &BTreeSet<String>, item: &syn::Item) {
        match item {
            syn::Item::Use(import) => {
                let is_re_export = !matches!(import.vis, Visibility::Inherited);
                add_imports(&mut module.imports, &import.tree, &Vec::new(), is_public(&import.vis), is_re_export);
            }
            syn::Item::Mod(child) => {
                module.children.insert(child.ident.to_string(), is_public(&child.vis));
            }
            syn::Item::Macro(call) => self.read_call(module, templates, call),
            syn::Item::Impl(block) if block.trait_.is_none() => self.note_methods(block),
            other => module.items.extend(Item::of(other)),
        }
        if !matches!(item, syn::Item::Use(_) | syn::Item::Mod(_)) {
            PathsOf(&mut module.paths).visit_item(item);
        }
    }

    /// The items of a macro call.
    fn read_call(&mut self, module: &mut Module, templates: &BTreeSet<String>, call: &syn::ItemMacro) {
        let name = call.mac.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        if name == "macro_rules" {
            return;
        }
        if templates.contains(&name) {
            let named = call.mac.tokens.clone().into_iter().find_map(|token| match token {
                TokenTree::Ident(name) => Some(name.to_string()),
                _ => None,
            });
            module.items.extend(named.map(Item::closed_struct));
            return;
        }
        self.read_tokens(module, templates, &call.mac.tokens);
    }

    fn read_tokens(&mut self, module: &mut Module, templates: &BTreeSet<String>, tokens: &TokenStream) {
        for token in tokens.clone() {
            let TokenTree::Group(group) = token else { continue };
            if let Ok(file) = syn::parse2::<syn::File>(group.stream()) {
                for item in file.items.iter().filter(|item| !is_test(attributes_of(item))) {
                    self.read_item(module, templates, item);
                }
            }
        }
        module.items.extend(structs_named(tokens).into_iter().map(Item::closed_struct));
    }

    fn note_methods(&mut self, block: &syn::ItemImpl) {
        let syn::Type::Path(of) = &*block.self_ty else { return };
        let Some(owner) = of.path.segments.last() else { return };
        for item in &block.items {
            if let syn::ImplItem::Fn(method) = item {
                if is_public(&method.vis) && !is_test(&method.attrs) && !is_hidden(&method.attrs) {
                    self.methods.push((owner.ident.to_string(), method.sig.ident.to_string()));
                }
            }
        }
    }

    /// Adds each public method to its type. No crate has two types of one name with public methods.
    fn assign_methods(&mut self) {
        let items = self.modules.values_mut().flat_map(|module| &mut module.items);
        for item in items.filter(|item| item.is_public && item.kind.is_type() && item.kind != ItemKind::Trait) {
            let methods = self.methods.iter().filter(|(owner, _)| *owner == item.name);
            item.methods.extend(methods.map(|(_, method)| method.clone()));
        }
    }
}

impl Item {
    fn of(item: &syn::Item) -> Option<Self> {
        let (kind, name, vis, is_open) = match item {
            syn::Item::Struct(of) => (ItemKind::Struct, &of.ident, &of.vis, is_open(&of.fields)),
            syn::Item::Enum(of) => (ItemKind::Enum, &of.ident, &of.vis, true),
            syn::Item::Union(of) => (ItemKind::Union, &of.ident, &of.vis, false),
            syn::Item::Trait(of) => (ItemKind::Trait, &of.ident, &of.vis, false),
            syn::Item::Type(of) => (ItemKind::Alias, &of.ident, &of.vis, false),
            syn::Item::Fn(of) => (ItemKind::Function, &of.sig.ident, &of.vis, false),
            syn::Item::Const(of) => (ItemKind::Constant, &of.ident, &of.vis, false),
            syn::Item::Static(of) => (ItemKind::Constant, &of.ident, &of.vis, false),
            _ => return None,
        };
        let attributes = attributes_of(item);
        Some(Self {
            kind,
            name: name.to_string(),
            is_public: is_public(vis),
            is_hidden: is_hidden(attributes),
            is_non_exhaustive: attributes.iter().any(|attribute| attribute.path().is_ident("non_exhaustive")),
            says_exhaustive: documentation(attributes).to_lowercase().contains("exhaustive"),
            is_open,
            methods: if let syn::Item::Trait(of) = item { trait_methods(of) } else { Vec::new() },
        })
    }

    /// A public struct that a macro makes, with private fields.
    fn closed_struct(name: String) -> Self {
        Self {
            kind: ItemKind::Struct,
            name,
            is_public: true,
            is_hidden: false,
            is_non_exhaustive: false,
            says_exhaustive: false,
            is_open: false,
            methods: Vec::new(),
        }
    }
}

/// Collects the paths of code.
struct PathsOf<'a>(&'a mut BTreeSet<Names>);

impl<'ast> Visit<'ast> for PathsOf<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attributes_of(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        let mut imports = Vec::new();
        add_imports(&mut imports, &import.tree, &Vec::new(), false, false);
        self.0.extend(imports.into_iter().map(|import| import.path));
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.0.insert(names);
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

fn add_imports(imports: &mut Vec<Import>, tree: &syn::UseTree, before: &Names, is_public: bool, is_re_export: bool) {
    let below = |name: &syn::Ident| before.iter().cloned().chain([name.to_string()]).collect::<Names>();
    let (path, name) = match tree {
        syn::UseTree::Path(path) => {
            return add_imports(imports, &path.tree, &below(&path.ident), is_public, is_re_export);
        }
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                add_imports(imports, tree, before, is_public, is_re_export);
            }
            return;
        }
        syn::UseTree::Name(name) if name.ident == "self" => {
            (before.clone(), before.last().cloned().unwrap_or_default())
        }
        syn::UseTree::Rename(name) if name.ident == "self" => (before.clone(), name.rename.to_string()),
        syn::UseTree::Name(name) => (below(&name.ident), name.ident.to_string()),
        syn::UseTree::Rename(name) => (below(&name.ident), name.rename.to_string()),
        syn::UseTree::Glob(_) => (before.clone(), "*".to_owned()),
    };
    imports.push(Import { path, name, is_public, is_re_export });
}

/// The macros of a file that make one public struct, whose name is the first word of a call.
fn struct_templates(items: &[syn::Item]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for item in items {
        if let syn::Item::Macro(syn::ItemMacro { ident: Some(name), mac, .. }) = item {
            if mac.tokens.to_string().contains("pub struct $") {
                found.insert(name.to_string());
            }
        }
    }
    found
}

/// The names after the words `pub struct`.
fn structs_named(tokens: &TokenStream) -> Vec<String> {
    let words: Vec<String> = tokens.clone().into_iter().map(|token| token.to_string()).collect();
    let named = words.windows(3).filter_map(|words| match words {
        [first, second, name] if first == "pub" && second == "struct" => Some(name.clone()),
        _ => None,
    });
    named.collect()
}

fn trait_methods(of: &syn::ItemTrait) -> Vec<String> {
    let functions = of.items.iter().filter_map(|item| match item {
        syn::TraitItem::Fn(method) => Some(method.sig.ident.to_string()),
        _ => None,
    });
    functions.collect()
}

fn is_open(fields: &Fields) -> bool {
    !fields.is_empty() && fields.iter().all(|field| is_public(&field.vis))
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| meta(attribute).is_some_and(|words| words == "doc(hidden)"))
}

/// Returns `true` for an item of tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    let words = attributes.iter().filter_map(meta).collect::<Vec<_>>();
    words.iter().any(|words| words == "cfg(test)" || words == "cfg(doctest)" || words.starts_with("cfg(all(test,"))
}

/// The words of a `#[name(…)]`, without spaces.
fn meta(attribute: &Attribute) -> Option<String> {
    let syn::Meta::List(list) = &attribute.meta else { return None };
    let name = list.path.get_ident()?;
    Some(format!("{name}({})", list.tokens.to_string().replace(' ', "")))
}

fn documentation(attributes: &[Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes {
        if let syn::Meta::NameValue(pair) = &attribute.meta {
            if let (true, syn::Expr::Lit(value)) = (pair.path.is_ident("doc"), &pair.value) {
                if let syn::Lit::Str(line) = &value.lit {
                    text.push_str(&line.value());
                    text.push('\n');
                }
            }
        }
    }
    text
}

fn attributes_of(item: &syn::Item) -> &[Attribute] {
    match item {
        syn::Item::Const(of) => &of.attrs,
        syn::Item::Enum(of) => &of.attrs,
        syn::Item::Fn(of) => &of.attrs,
        syn::Item::Impl(of) => &of.attrs,
        syn::Item::Macro(of) => &of.attrs,
        syn::Item::Mod(of) => &of.attrs,
        syn::Item::Static(of) => &of.attrs,
        syn::Item::Struct(of) => &of.attrs,
        syn::Item::Trait(of) => &of.attrs,
        syn::Item::Type(of) => &of.attrs,
        syn::Item::Union(of) => &of.attrs,
        syn::Item::Use(of) => &of.attrs,
        _ => &[],
    }
}
