//! What counts as a use, on small crates made of text.

use super::graph::Graph;
use super::source::Tree;
use super::{draw, uses};
use std::path::Path;

/// The graph of a crate of these files; the first is its root.
fn graph(files: &[(&str, &str)]) -> Graph {
    let read = |path: &Path| files.iter().find(|(name, _)| path == Path::new(name)).map(|(_, text)| (*text).to_owned());
    uses::graph(&Tree::parse(Path::new(files[0].0), &read).unwrap())
}

/// Each use of a crate of these files, as `from -> to: names`.
fn known(files: &[(&str, &str)]) -> Vec<String> {
    let graph = graph(files);
    let name = |file: usize| graph.nodes[file].name.as_str();
    let names = |uses: &[super::graph::Use]| uses.iter().map(|used| used.name.as_str()).collect::<Vec<_>>().join(", ");
    graph.edges.iter().map(|((from, to), uses)| format!("{} -> {}: {}", name(*from), name(*to), names(uses))).collect()
}

/// The circles of a crate of these files.
fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
    let graph = graph(files);
    let circles = graph.knots().into_iter().flat_map(|knot| graph.circles(&knot));
    circles.map(|circle| circle.into_iter().map(|file| graph.nodes[file].name.clone()).collect()).collect()
}

#[test]
fn a_circle_through_a_re_export_is_one() {
    let files = [
        ("lib.rs", "mod a; mod b; pub use a::A; pub use b::B;"),
        ("a.rs", "pub struct A(crate::B);"),
        ("b.rs", "use crate::A;\npub struct B;\nimpl From<A> for B {}"),
    ];
    assert_eq!(known(&files), ["a -> b: B", "b -> a: A"]);
    assert_eq!(circles(&files), [["b", "a"]]);
}

#[test]
fn a_circle_through_super_is_one() {
    let files = [
        ("lib.rs", "mod outer;"),
        ("outer/mod.rs", "mod a; mod b;"),
        ("outer/a.rs", "use super::b; pub fn one() { b::two() }"),
        ("outer/b.rs", "pub fn two() { super::a::one() }"),
    ];
    assert_eq!(circles(&files), [["outer::b", "outer::a"]]);
}

#[test]
fn a_facade_is_no_use_and_is_seen_through() {
    let files = [
        ("lib.rs", "mod inner; mod user; pub use inner::{Thing, deep::*};"),
        ("inner/mod.rs", "pub mod deep; mod thing; pub use thing::Original as Thing;"),
        ("inner/deep.rs", "pub struct Deep;"),
        ("inner/thing.rs", "pub struct Original;"),
        ("user.rs", "use crate::{Deep, Thing}; pub struct User(Deep, Thing);"),
    ];
    assert_eq!(known(&files), ["user -> inner::deep: Deep", "user -> inner::thing: Original"]);
    assert_eq!(circles(&files), [[""; 0]; 0]);
}

#[test]
fn a_re_export_of_what_is_not_below_is_a_use() {
    let files = [("lib.rs", "mod a; mod b;"), ("a.rs", "pub use crate::b::B;"), ("b.rs", "pub struct B;")];
    assert_eq!(known(&files), ["a -> b: B"]);
    let files = [("lib.rs", "mod a; use a::A as _;"), ("a.rs", "pub trait A {}")];
    assert_eq!(known(&files), ["crate -> a: A"], "this is no re-export");
}

#[test]
fn a_module_and_a_function_may_share_a_name() {
    let files = [
        ("lib.rs", "mod a; mod b; mod user; pub use a::b;"),
        ("a.rs", "pub fn b() {}"),
        ("b.rs", "pub struct B;"),
        ("user.rs", "fn f(_: crate::b::B) {}"),
    ];
    assert_eq!(known(&files), ["user -> b: B"]);
}

#[test]
fn tests_do_not_count() {
    let a = "
        pub struct A;
        #[cfg(test)] mod tests { use super::super::b::B; fn f() -> B { crate::b::B } }
        #[cfg(all(test, unix))] fn helper(_: crate::b::B) {}
        #[test] fn works() { crate::b::B; }
        #[cfg(test)] impl A { fn b(&self) -> crate::b::B { todo!() } }
        impl A { #[cfg(test)] fn b(&self) -> crate::b::B { todo!() } }
        #[cfg(test)] mod not_there;";
    let b = "use crate::a::A; pub struct B(A);";
    let root = ("lib.rs", "mod a; mod b;");
    assert_eq!(known(&[root, ("a.rs", a), ("b.rs", b)]), ["b -> a: A"]);
    let a = "pub struct A; #[cfg(any(test, unix))] fn f(_: crate::b::B) {} #[cfg(not(test))] fn g() { crate::b::g() }";
    assert_eq!(known(&[root, ("a.rs", a), ("b.rs", b)]), ["a -> b: B, g", "b -> a: A"]);
}

#[test]
fn a_parent_and_a_child_that_use_each_other_are_a_circle() {
    let parent = "mod child; pub struct Parent; fn f() { child::help() }";
    let files = [
        ("lib.rs", "mod parent;"),
        ("parent.rs", parent),
        ("parent/child.rs", "impl super::Parent {} pub fn help() {}"),
    ];
    assert_eq!(circles(&files), [["parent::child", "parent"]]);
    let files = [("lib.rs", "mod parent;"), ("parent.rs", parent), ("parent/child.rs", "pub fn help() {}")];
    assert_eq!(known(&files), ["parent -> parent::child: help"]);
}

#[test]
fn every_way_to_name_an_item_is_a_use() {
    let b = "pub struct B; pub enum E { X } pub const MAX: u8 = 1; pub fn f() {} pub trait T {} pub struct c_t;";
    for a in [
        "use crate::b::B;",
        "use crate::b::{self as other}; type X = other::B;",
        "use crate::b::*; fn g(_: B) {}",
        "use super::b as renamed; fn g() { renamed::f() }",
        "fn g() { use crate::b; b::f() }",
        "fn g() { use crate::b::*; f() }",
        "fn g(e: u8) { match e { crate::b::MAX => {}, _ => {} } }",
        "fn g() { use crate::b::E::*; }",
        "fn g() -> Vec<crate::b::B> { todo!() }",
        "impl crate::b::T for u8 {}",
        "fn g() { println!(\"{}\", crate::b::MAX) }",
        "use super::*; fn g() { assert!(b::MAX == 1) }",
        "use crate::b::*; fn g() { assert_eq!(size_of::<c_t>(), 1) }",
        "use crate::b::*; fn g() { assert!(matches!(1, MAX => true)) }",
        "macro_rules! m { () => { $crate::b::f() } }",
        "#[arg(default = crate::b::MAX)] struct A;",
        "mod inline { use super::super::b::B; }",
        "use crate::b::T as _;",
    ] {
        let known = known(&[("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", b)]);
        assert!(matches!(&known[..], [one] if one.starts_with("a -> b: ")), "{a}: {known:?}");
    }
}

#[test]
fn what_only_looks_like_a_use_is_none() {
    let b = "pub struct B; pub fn f() {} pub fn size() {}";
    for a in [
        "mod b { pub struct B; } fn g(_: b::B) {}",
        "use other::b::B; fn g(_: B) {}",
        "use ::b::B;",
        "use crate::b; pub struct A;",
        "fn g() { let x = y.size(); x.b }",
        "pub(in crate::b) struct A;",
        "fn g() { format!(\"{}\", x.f()) }",
        "use crate::b::*; fn g() { format!(\"{size}\", size = 1) }",
        "use super::*; fn g() { format!(\"{}\", other::<u8>::b::f()) }",
        "// crate::b::B\n/// [`crate::b::B`]\nstruct A;",
        "struct B; fn g() -> B { B }",
    ] {
        assert_eq!(known(&[("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", b)]), [""; 0], "{a}");
    }
}

#[test]
fn macros_are_found_where_they_are_defined() {
    let a = "macro_rules! log { () => {} } pub(crate) use log;";
    let files = [("lib.rs", "mod a; mod b;"), ("a.rs", a), ("b.rs", "use crate::a::log; fn f() { log!() }")];
    assert_eq!(known(&files), ["b -> a: log"]);
    let root = "macro_rules! all { () => {} } mod a;";
    assert_eq!(known(&[("lib.rs", root), ("a.rs", "fn f() { all!() }")]), ["a -> crate: all!"]);
    let root = "mod a; mod b; pub use a::*;";
    let files = [("lib.rs", root), ("a.rs", "table! { struct Made; }"), ("b.rs", "struct B(crate::Made);")];
    assert_eq!(known(&files), ["b -> a: Made"], "a macro made it");
}

#[test]
fn alternatives_by_cfg_are_all_used() {
    let arch = "#[cfg(unix)] mod one; #[cfg(not(unix))] mod two; pub use one::*; pub use two::*;";
    let files = [
        ("lib.rs", "mod arch; mod user;"),
        ("arch/mod.rs", arch),
        ("arch/one.rs", "pub fn load() {}"),
        ("arch/two.rs", "pub fn load() {}"),
        ("user.rs", "fn f() { crate::arch::load() }"),
    ];
    assert_eq!(known(&files), ["user -> arch::one: load", "user -> arch::two: load"]);
}

#[test]
fn files_are_found_where_their_attribute_says() {
    let files = [
        ("src/lib.rs", "mod outer { mod inner; } #[path = \"../made/by.rs\"] mod tool; fn f() { tool::g() }"),
        ("src/outer/inner.rs", "struct A;"),
        ("src/../made/by.rs", "pub fn g() {}"),
    ];
    assert_eq!(known(&files), ["crate -> tool: g"]);
    let missing = Tree::parse(Path::new("lib.rs"), &|path| (path == Path::new("lib.rs")).then(|| "mod a;".into()));
    assert!(missing.is_err_and(|error| error.to_string().contains("a/mod.rs")));
}

#[test]
fn layers_go_up_and_circles_name_places() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", "\nuse crate::c::C;\npub struct B;"),
        ("c.rs", "use crate::d::D; pub struct C; fn f(_: crate::b::B) {}"),
        ("d.rs", "pub struct D;"),
    ];
    let graph = graph(&files);
    assert_eq!(graph.layers()[1..], [2, 1, 1, 0]);
    assert_eq!(graph.layers()[0], 0, "a facade knows nothing");
    let text = draw::modules("example", &graph) + &draw::circles("example", &graph, Path::new(""));
    for part in ["   2  a  b\n", " ! 1  b  c\n", "c -> b -> c\n", "b -> c  b.rs:2  C\n", "c -> b  c.rs:1  B\n"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}
