//! The modules of one target (a library or a program), parsed, with the names that each declares.
//!
//! Files are found as rustc finds them: from the target's root along its `mod` declarations. What exists only in tests
//! is left out; every other `cfg` is taken as on.

use anyhow::{Context, Result};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use syn::{Attribute, Item, UseTree};

/// All modules of a target.
pub(crate) struct Tree {
    /// Every file, the root first.
    pub(crate) files: Vec<File>,
    /// Every module, inline ones too, the root first.
    pub(crate) modules: Vec<Module>,
}

/// A file: a node of the graph.
pub(crate) struct File {
    /// Its module's path, such as `send::shared`; `crate` for the root.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The index of its module.
    pub(crate) module: usize,
    pub(crate) syntax: syn::File,
}

/// A module with a file of its own, or an inline one.
pub(crate) struct Module {
    pub(crate) parent: Option<usize>,
    /// The index of the file that it is in.
    pub(crate) file: usize,
    /// Child modules. Two share a name if each has a `cfg` of its own.
    pub(crate) children: HashMap<String, Vec<usize>>,
    pub(crate) scope: Scope,
}

/// The names that a module or a block declares.
#[derive(Default)]
pub(crate) struct Scope {
    /// Items. A macro's name ends in `!`.
    pub(crate) items: HashSet<String>,
    /// Every identifier in calls of macros that may declare items.
    pub(crate) maybe: HashSet<String>,
    pub(crate) imports: Vec<Import>,
}

/// One name, or one glob, of a `use`.
#[derive(Clone)]
pub(crate) struct Import {
    /// The name that it declares: nothing for a glob, `_` for a trait without a name.
    pub(crate) name: Option<String>,
    /// The path behind `use`.
    pub(crate) path: Vec<String>,
    /// Where the last word of the path stands.
    pub(crate) line: usize,
}

impl Tree {
    /// Parses the target with this root file. `read` gives a file's text, or nothing if there is no such file.
    pub(crate) fn parse(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Result<Self> {
        let mut tree = Self { files: Vec::new(), modules: Vec::new() };
        let folder = root.parent().unwrap_or(Path::new("")).to_owned();
        tree.add_file(None, "crate".into(), root.to_owned(), folder, read)?;
        Ok(tree)
    }

    /// Parses a file and all below it. `folder` is where its child modules are.
    fn add_file(
        &mut self,
        parent: Option<usize>,
        name: String,
        path: PathBuf,
        folder: PathBuf,
        read: &dyn Fn(&Path) -> Option<String>,
    ) -> Result<usize> {
        let text = read(&path).with_context(|| format!("{} is not there", path.display()))?;
        let syntax = syn::parse_file(&text).with_context(|| format!("parsing {}", path.display()))?;
        let (file, module) = (self.files.len(), self.modules.len());
        let items = syntax.items.clone();
        self.files.push(File { name: name.clone(), path: path.clone(), module, syntax });
        self.add_module(parent, file, &items, &name, &folder, read)?;
        Ok(module)
    }

    fn add_module(
        &mut self,
        parent: Option<usize>,
        file: usize,
        items: &[Item],
        name: &str,
        folder: &Path,
        read: &dyn Fn(&Path) -> Option<String>,
    ) -> Result<usize> {
        let module = self.modules.len();
        self.modules.push(Module { parent, file, children: HashMap::new(), scope: Scope::of(items) });
        for item in items {
            let Item::Mod(declared) = item else { continue };
            if is_test(&declared.attrs) {
                continue;
            }
            let short = declared.ident.to_string();
            let name = if name == "crate" { short.clone() } else { format!("{name}::{short}") };
            let below = folder.join(&short);
            let child = match &declared.content {
                Some((_, items)) => self.add_module(Some(module), file, items, &name, &below, read)?,
                None => {
                    let (path, below) = match path_attribute(&declared.attrs) {
                        Some(path) => {
                            let path = self.files[file].path.parent().unwrap_or(Path::new("")).join(path);
                            let below = path.parent().unwrap_or(Path::new("")).to_owned();
                            (path, below)
                        }
                        None if read(&folder.join(format!("{short}.rs"))).is_some() => {
                            (folder.join(format!("{short}.rs")), below)
                        }
                        None => (below.join("mod.rs"), below),
                    };
                    self.add_file(Some(module), name, path, below, read)?
                }
            };
            self.modules[module].children.entry(short).or_default().push(child);
        }
        Ok(module)
    }
}

impl File {
    /// Returns `true` if it declares anything but modules and imports.
    pub(crate) fn has_code(&self) -> bool {
        self.syntax.items.iter().any(|item| match item {
            Item::Use(_) | Item::ExternCrate(_) => false,
            Item::Mod(module) => module.content.is_some() && !is_test(&module.attrs),
            item => !is_test(attributes(item)),
        })
    }
}

impl Scope {
    /// The names that these items declare.
    pub(crate) fn of<'a>(items: impl IntoIterator<Item = &'a Item>) -> Self {
        let mut scope = Self::default();
        for item in items {
            if is_test(attributes(item)) {
                continue;
            }
            let name = match item {
                Item::Const(item) => &item.ident,
                Item::Enum(item) => &item.ident,
                Item::Fn(item) => &item.sig.ident,
                Item::Static(item) => &item.ident,
                Item::Struct(item) => &item.ident,
                Item::Trait(item) => &item.ident,
                Item::TraitAlias(item) => &item.ident,
                Item::Type(item) => &item.ident,
                Item::Union(item) => &item.ident,
                Item::Use(item) => {
                    scope.imports.extend(imports(item));
                    continue;
                }
                Item::ForeignMod(block) => {
                    scope.items.extend(block.items.iter().filter_map(|item| match item {
                        syn::ForeignItem::Fn(item) => Some(item.sig.ident.to_string()),
                        syn::ForeignItem::Static(item) => Some(item.ident.to_string()),
                        syn::ForeignItem::Type(item) => Some(item.ident.to_string()),
                        _ => None,
                    }));
                    continue;
                }
                Item::Macro(item) => {
                    match &item.ident {
                        Some(name) => drop(scope.items.insert(format!("{name}!"))),
                        None => identifiers(item.mac.tokens.clone(), &mut scope.maybe),
                    }
                    continue;
                }
                _ => continue,
            };
            scope.items.insert(name.to_string());
        }
        scope
    }
}

/// Every name and glob that a `use` imports.
pub(crate) fn imports(item: &syn::ItemUse) -> Vec<Import> {
    fn walk(tree: &UseTree, prefix: &[String], found: &mut Vec<Import>) {
        let with = |last: &syn::Ident| {
            let mut path = prefix.to_vec();
            if last != "self" || prefix.is_empty() {
                path.push(last.to_string());
            }
            path
        };
        let line = |ident: &syn::Ident| ident.span().start().line;
        match tree {
            UseTree::Path(next) => walk(&next.tree, &with(&next.ident), found),
            UseTree::Name(name) => {
                let path = with(&name.ident);
                found.push(Import { name: path.last().cloned(), line: line(&name.ident), path });
            }
            UseTree::Rename(rename) => {
                let name = Some(rename.rename.to_string());
                found.push(Import { name, line: line(&rename.ident), path: with(&rename.ident) });
            }
            UseTree::Glob(glob) => {
                let line = glob.star_token.span.start().line;
                found.push(Import { name: None, line, path: prefix.to_vec() });
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| walk(tree, prefix, found)),
        }
    }
    let mut found = Vec::new();
    // A path that begins with `::` is of another crate.
    if item.leading_colon.is_none() {
        walk(&item.tree, &[], &mut found);
    }
    found
}

fn identifiers(tokens: proc_macro2::TokenStream, found: &mut HashSet<String>) {
    for token in tokens {
        match token {
            proc_macro2::TokenTree::Ident(ident) => drop(found.insert(ident.to_string())),
            proc_macro2::TokenTree::Group(group) => identifiers(group.stream(), found),
            _ => {}
        }
    }
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find(|attribute| attribute.path().is_ident("path")).and_then(|attribute| {
        match &attribute.meta.require_name_value().ok()?.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) => Some(path.value()),
            _ => None,
        }
    })
}

/// Returns `true` if the attributes say that something exists in tests only.
pub(crate) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Meta>().is_ok_and(|predicate| !holds_without_tests(&predicate))
    })
}

/// The value of a `cfg` predicate where `test` is off and everything else is as the predicate wants it.
fn holds_without_tests(predicate: &syn::Meta) -> bool {
    let operands = |list: &syn::MetaList| {
        let parser = syn::punctuated::Punctuated::<syn::Meta, syn::Token![,]>::parse_terminated;
        list.parse_args_with(parser).unwrap_or_default()
    };
    match predicate {
        syn::Meta::Path(path) => !path.is_ident("test"),
        syn::Meta::List(list) if list.path.is_ident("all") => operands(list).iter().all(holds_without_tests),
        syn::Meta::List(list) if list.path.is_ident("any") => operands(list).iter().any(holds_without_tests),
        _ => true,
    }
}

/// An item's attributes.
pub(crate) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
