//! Finds which file's code uses items of which other file: in `use`, types, expressions, patterns and macros.
//!
//! A re-export of something below is a facade and no use; nor is a module's name by itself. Method calls are not seen.

use super::graph::{Graph, Node, Use};
use super::resolve::{Definition, resolve, resolve_macro};
use super::source::{Scope, Tree, attributes, imports, is_test};
use proc_macro2::{TokenStream, TokenTree};
use std::collections::HashSet;
use syn::visit::{self, Visit};

/// Makes the graph of a target's files.
pub(crate) fn graph(tree: &Tree) -> Graph {
    let node = |file: &super::source::File| Node {
        name: file.name.clone(),
        path: file.path.clone(),
        has_code: file.has_code(),
    };
    let mut graph = Graph { nodes: tree.files.iter().map(node).collect(), edges: Default::default() };
    for file in &tree.files {
        let mut uses = Uses { tree, module: file.module, blocks: Vec::new(), graph: &mut graph };
        uses.visit_file(&file.syntax);
    }
    graph
}

struct Uses<'a> {
    tree: &'a Tree,
    /// The module that the walk is in.
    module: usize,
    /// The blocks that it is in, the innermost last.
    blocks: Vec<Scope>,
    graph: &'a mut Graph,
}

impl Uses<'_> {
    fn note(&mut self, definitions: HashSet<Definition>, line: usize) {
        let from = self.tree.modules[self.module].file;
        for definition in definitions {
            let Definition::Item(module, name) = definition else { continue };
            let to = self.tree.modules[module].file;
            if to != from {
                let uses = self.graph.edges.entry((from, to)).or_default();
                if uses.iter().all(|known| known.name != name) {
                    uses.push(Use { line, name });
                }
            }
        }
    }

    fn path(&mut self, path: &[String], line: usize) {
        self.note(resolve(self.tree, self.module, &self.blocks, path), line);
    }

    /// Returns `true` if a module is this one or below it.
    fn is_below(&self, module: usize) -> bool {
        std::iter::successors(Some(module), |module| self.tree.modules[*module].parent)
            .any(|above| above == self.module)
    }

    /// Looks for paths in what a macro or an attribute is given. With `with_words`, single words count as well.
    fn tokens(&mut self, tokens: TokenStream, with_words: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let punct = |index: usize, wanted: char| match tokens.get(index) {
            Some(TokenTree::Punct(punct)) => punct.as_char() == wanted,
            _ => false,
        };
        let mut index = 0;
        while index < tokens.len() {
            let start = index;
            index += 1;
            let first = match &tokens[start] {
                TokenTree::Ident(first) => first,
                TokenTree::Group(group) => {
                    self.tokens(group.stream(), with_words);
                    continue;
                }
                _ => continue,
            };
            let mut path = vec![first.to_string()];
            let mut line = first.span().start().line;
            while punct(index, ':') && punct(index + 1, ':') {
                let Some(TokenTree::Ident(next)) = tokens.get(index + 2) else { break };
                path.push(next.to_string());
                line = next.span().start().line;
                index += 3;
            }
            let follows = |wanted: &str| {
                wanted.chars().rev().zip(1..).all(|(wanted, back)| start >= back && punct(start - back, wanted))
            };
            // A lifetime, a member, the rest of `<T as Trait>::f`, a metavariable.
            if follows("'")
                || follows(".") && !follows("..")
                || follows("::")
                || follows("$") && first != "crate"
                || start > 0 && matches!(&tokens[start - 1], TokenTree::Ident(word) if word == "fn")
            {
                continue;
            }
            let is_keyword = matches!(path[0].as_str(), "crate" | "super" | "self" | "Self");
            // Named arguments and fields are no items.
            let is_name = punct(index, ':') || punct(index, '=') && !punct(index + 1, '=') && !punct(index + 1, '>');
            let is_word = with_words && !is_keyword && !is_name;
            if punct(index, '!') && !punct(index + 1, '=') {
                self.note(resolve_macro(self.tree, self.module, &self.blocks, &path), line);
            } else if path.len() > 1 || is_word {
                self.path(&path, line);
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let Some((_, items)) = &item.content else { return };
        let outer = self.module;
        let file = self.tree.modules[outer].file;
        let children = self.tree.modules[outer].children.get(&item.ident.to_string());
        let inline = |child: &&usize| self.tree.modules[**child].file == file;
        let Some(&child) = children.and_then(|children| children.iter().find(inline)) else { return };
        let blocks = std::mem::take(&mut self.blocks);
        self.module = child;
        items.iter().for_each(|item| self.visit_item(item));
        self.module = outer;
        self.blocks = blocks;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_export = !matches!(item.vis, syn::Visibility::Inherited);
        for import in imports(item) {
            let mut found = resolve(self.tree, self.module, &self.blocks, &import.path);
            if is_export {
                found.retain(|found| !matches!(found, Definition::Item(module, _) if self.is_below(*module)));
            }
            self.note(found, import.line);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if path.leading_colon.is_none() && names.first().is_some_and(|first| first != "Self") {
            let line = path.segments.last().map_or(0, |last| last.ident.span().start().line);
            self.path(&names, line);
        }
        visit::visit_path(self, path);
    }

    fn visit_block(&mut self, block: &'ast syn::Block) {
        let items = block.stmts.iter().filter_map(|statement| match statement {
            syn::Stmt::Item(item) => Some(item),
            _ => None,
        });
        self.blocks.push(Scope::of(items));
        visit::visit_block(self, block);
        self.blocks.pop();
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let names: Vec<String> = call.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if call.path.leading_colon.is_none() {
            let line = call.path.segments.last().map_or(0, |last| last.ident.span().start().line);
            self.note(resolve_macro(self.tree, self.module, &self.blocks, &names), line);
        }
        self.tokens(call.tokens.clone(), true);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        match &attribute.meta {
            syn::Meta::List(list) => self.tokens(list.tokens.clone(), false),
            syn::Meta::NameValue(pair) => self.visit_expr(&pair.value),
            syn::Meta::Path(_) => {}
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !is_test(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !is_test(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !is_test(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !is_test(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !is_test(&local.attrs) {
            visit::visit_local(self, local);
        }
    }
}
