//! Finds the module that defines what a path names: along `crate`, `self` and `super`, imports, renames, globs and
//! re-exports.

use super::source::{Scope, Tree};
use std::collections::HashSet;

/// What a path names.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Definition {
    /// A module.
    Module(usize),
    /// An item, or something inside of one, such as a variant: the item's module and name.
    Item(usize, String),
    /// Something of another crate, or a local variable.
    Foreign,
}

/// One search: names that it came through already, since imports may go round in circles.
struct Search<'a> {
    tree: &'a Tree,
    /// Whether to believe that macros declare every identifier that they are called with.
    trusting: bool,
    seen: HashSet<(usize, String, bool)>,
}

/// Returns what a path names that stands in this module and in these blocks, the innermost last. Where `cfg` makes
/// several items of one name, all of them.
pub(crate) fn resolve(tree: &Tree, module: usize, blocks: &[Scope], path: &[String]) -> HashSet<Definition> {
    let search = |trusting| {
        let mut search = Search { tree, trusting, seen: HashSet::new() };
        let found = search.in_blocks(module, blocks, path);
        (found.iter().any(|definition| is_sure(tree, definition)), found)
    };
    let (is_found, found) = search(false);
    if is_found {
        return found;
    }
    let (is_found, trusted) = search(true);
    if is_found { trusted } else { found }
}

/// Returns `false` for what is of another crate, and for an item that is only taken to be in a module since the path
/// leads there.
fn is_sure(tree: &Tree, definition: &Definition) -> bool {
    match definition {
        Definition::Item(module, name) => {
            let scope = &tree.modules[*module].scope;
            scope.items.contains(name) || scope.items.contains(&format!("{name}!")) || scope.maybe.contains(name)
        }
        Definition::Module(_) => true,
        Definition::Foreign => false,
    }
}

/// Returns what a macro's name stands for, called in this module: a macro of it, of a module around it, or an imported
/// one.
pub(crate) fn resolve_macro(tree: &Tree, module: usize, blocks: &[Scope], path: &[String]) -> HashSet<Definition> {
    if let [name] = path {
        let name = format!("{name}!");
        let mut around = Some(module);
        while let Some(module) = around {
            if tree.modules[module].scope.items.contains(&name) {
                return HashSet::from([Definition::Item(module, name)]);
            }
            around = tree.modules[module].parent;
        }
    }
    resolve(tree, module, blocks, path)
}

impl Search<'_> {
    fn in_blocks(&mut self, module: usize, blocks: &[Scope], path: &[String]) -> HashSet<Definition> {
        let Some(first) = path.first() else { return HashSet::new() };
        for block in blocks.iter().rev() {
            if block.items.contains(first) {
                return HashSet::from([Definition::Item(module, first.clone())]);
            }
            for import in &block.imports {
                let path = match &import.name {
                    Some(name) if name == first => [&import.path, &path[1..]].concat(),
                    Some(_) => continue,
                    None => [&import.path, path].concat(),
                };
                // What a glob does not have is looked for further outside. It never has what it is made of.
                if import.name.is_some() || import.path.first() != Some(first) {
                    let found: HashSet<_> =
                        self.path(module, &path).into_iter().filter(|found| is_sure(self.tree, found)).collect();
                    if !found.is_empty() || import.name.is_some() {
                        return found;
                    }
                }
            }
        }
        self.path(module, path)
    }

    /// Returns what a path names that stands in this module.
    fn path(&mut self, module: usize, path: &[String]) -> HashSet<Definition> {
        let mut at = module;
        let mut rest = path;
        // `crate`, `self` and `super` go from module to module.
        while let Some((first, behind)) = rest.split_first() {
            match first.as_str() {
                "crate" => at = 0,
                "super" => at = self.tree.modules[at].parent.unwrap_or(0),
                "self" => {}
                _ => break,
            }
            rest = behind;
        }
        if rest.is_empty() {
            return HashSet::from([Definition::Module(at)]);
        }
        let is_relative = rest.len() == path.len();
        let mut found = HashSet::from([Definition::Module(at)]);
        for (index, name) in rest.iter().enumerate() {
            let is_last = index + 1 == rest.len();
            let mut next = HashSet::new();
            for definition in found {
                let Definition::Module(inside) = definition else {
                    next.insert(definition);
                    continue;
                };
                let named = self.name(inside, name, !is_last);
                if !named.is_empty() {
                    next.extend(named);
                } else if index == 0 && is_relative {
                    next.insert(Definition::Foreign);
                } else {
                    // A macro or a derive makes it; or a re-export of everything that another crate has.
                    next.insert(Definition::Item(inside, name.clone()));
                }
            }
            found = next;
        }
        found
    }

    /// Returns all that a name stands for in a module. `is_prefix`: more of the path follows.
    fn name(&mut self, module: usize, name: &str, is_prefix: bool) -> HashSet<Definition> {
        if !self.seen.insert((module, name.to_owned(), is_prefix)) {
            return HashSet::from([Definition::Foreign]);
        }
        let tree = self.tree;
        let Scope { items, maybe, imports } = &tree.modules[module].scope;
        let mut found = HashSet::new();
        if let Some(children) = tree.modules[module].children.get(name) {
            found.extend(children.iter().map(|child| Definition::Module(*child)));
            if is_prefix {
                return found;
            }
        }
        if items.contains(name) || items.contains(&format!("{name}!")) {
            found.insert(Definition::Item(module, name.to_owned()));
        }
        for import in imports.iter().filter(|import| import.name.as_deref() == Some(name)) {
            found.extend(self.path(module, &import.path));
        }
        if found.is_empty() {
            for import in imports.iter().filter(|import| import.name.is_none()) {
                for target in self.path(module, &import.path) {
                    match target {
                        Definition::Module(target) => found.extend(self.name(target, name, is_prefix)),
                        Definition::Foreign => drop(found.insert(Definition::Foreign)),
                        // The variants of an enum.
                        Definition::Item(..) => {}
                    }
                }
            }
        }
        if found.is_empty() && self.trusting && maybe.contains(name) {
            found.insert(Definition::Item(module, name.to_owned()));
        }
        found
    }
}
