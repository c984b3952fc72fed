//! Draws crates and modules as text, and as input of Graphviz.

use super::crates::Crate;
use super::graph::Graph;
use std::fmt::Write;
use std::path::Path;

/// Longest line of a drawing.
const WIDTH: usize = 120;

/// Most circles that are drawn of one knot: in a large one there are too many to read, and without the short ones the
/// others are gone as well.
const MAX_CIRCLES: usize = 20;

/// Draws the crates, the top floor first.
pub(crate) fn crates(crates: &[Crate]) -> String {
    let mut text = String::from("The crates by floor. A crate knows crates of lower floors only.\n\n");
    let width = crates.iter().map(|member| member.name.len()).max().unwrap_or(0);
    for member in crates.iter().rev() {
        let needs = if member.needs.is_empty() { "none".into() } else { member.needs.join(", ") };
        let _ = writeln!(text, "  {}  {:width$}  {}", member.floor, member.name, member.role);
        wrap(&mut text, &format!("     {:width$}    knows ", ""), &needs);
    }
    text
}

/// Draws a crate's modules, the top layer first.
pub(crate) fn modules(name: &str, graph: &Graph) -> String {
    let mut text = String::new();
    let layers = graph.layers();
    let knots = graph.knots();
    let mut files: Vec<usize> = (0..graph.nodes.len()).filter(|file| is_shown(graph, *file)).collect();
    files.sort_by_key(|file| (std::cmp::Reverse(layers[*file]), &graph.nodes[*file].name));
    let width = files.iter().map(|file| graph.nodes[*file].name.len()).max().unwrap_or(0);
    let _ = writeln!(text, "{name}: {} modules in layers. A module knows modules of lower layers only.\n", files.len());
    for file in files {
        let known: Vec<&str> = graph.known_by(file).map(|known| graph.nodes[known].name.as_str()).collect();
        let mark = if knots.iter().any(|knot| knot.contains(&file)) { '!' } else { ' ' };
        let lead = format!(" {mark}{:2}  {:width$}  ", layers[file], graph.nodes[file].name);
        wrap(&mut text, &lead, &known.join(", "));
    }
    text
}

/// Draws a crate's circles; nothing if there are none. Paths are given relative to the project.
pub(crate) fn circles(name: &str, graph: &Graph, project: &Path) -> String {
    let mut text = String::new();
    for knot in graph.knots() {
        let names: Vec<&str> = knot.iter().map(|file| graph.nodes[*file].name.as_str()).collect();
        wrap(&mut text, &format!("{name}: {} modules in circles: ", knot.len()), &names.join(", "));
        let circles = graph.circles(&knot);
        for circle in circles.iter().take(MAX_CIRCLES) {
            text.push_str(&draw_circle(graph, circle, project));
        }
        if circles.len() > MAX_CIRCLES {
            let _ = writeln!(text, "\n    and {} longer ones", circles.len() - MAX_CIRCLES);
        }
        text.push('\n');
    }
    text
}

/// Draws one circle, with a place and the names for each of its uses.
fn draw_circle(graph: &Graph, circle: &[usize], project: &Path) -> String {
    let node = |index: usize| &graph.nodes[circle[index % circle.len()]];
    let names: Vec<&str> = (0..=circle.len()).map(|index| node(index).name.as_str()).collect();
    let mut text = format!("\n    {}\n", names.join(" -> "));
    for index in 0..circle.len() {
        let Some(uses) = graph.edges.get(&(circle[index], circle[(index + 1) % circle.len()])) else { continue };
        let Some(first) = uses.first() else { continue };
        let path = node(index).path.strip_prefix(project).unwrap_or(&node(index).path);
        let names: Vec<&str> = uses.iter().map(|used| used.name.as_str()).collect();
        let lead =
            format!("      {} -> {}  {}:{}  ", node(index).name, node(index + 1).name, path.display(), first.line);
        wrap(&mut text, &lead, &names.join(", "));
    }
    text
}

/// Appends words behind a lead, in lines of at most [`WIDTH`]; the words of further lines stand below each other.
fn wrap(text: &mut String, lead: &str, words: &str) {
    let indent = lead.chars().count().min(WIDTH / 2);
    let mut line = lead.to_owned();
    for word in words.split_inclusive(' ') {
        if line.chars().count() + word.trim_end().chars().count() > WIDTH && line.chars().count() > indent {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(indent);
        }
        line.push_str(word);
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Returns `false` for a file that only declares modules and re-exports.
fn is_shown(graph: &Graph, file: usize) -> bool {
    graph.nodes[file].has_code || graph.edges.keys().any(|(from, to)| *from == file || *to == file)
}

/// Draws crates and modules for Graphviz. A use that is in a circle is red.
pub(crate) fn dot(crates: &[Crate], modules: &[(String, Graph)]) -> String {
    let mut text = String::from("digraph efa {\n  rankdir = BT;\n  node [shape = box];\n");
    for member in crates {
        let _ = writeln!(text, "  {:?} [tooltip = {:?}];", member.name, member.role);
        for needed in &member.needs {
            let _ = writeln!(text, "  {:?} -> {needed:?};", member.name);
        }
    }
    for floor in crates.chunk_by(|one, other| one.floor == other.floor) {
        let names: Vec<String> = floor.iter().map(|member| format!("{:?}", member.name)).collect();
        let _ = writeln!(text, "  {{ rank = same; {} }}", names.join("; "));
    }
    for (index, (name, graph)) in modules.iter().enumerate() {
        let knots = graph.knots();
        let id = |file: usize| format!("\"{name}::{}\"", graph.nodes[file].name);
        let _ = writeln!(text, "  subgraph cluster_{index} {{\n    label = {name:?};");
        for file in (0..graph.nodes.len()).filter(|file| is_shown(graph, *file)) {
            let _ = writeln!(text, "    {} [label = {:?}];", id(file), graph.nodes[file].name);
        }
        for (from, to) in graph.edges.keys() {
            let is_circular = knots.iter().any(|knot| knot.contains(from) && knot.contains(to));
            let color = if is_circular { " [color = red]" } else { "" };
            let _ = writeln!(text, "    {} -> {}{color};", id(*from), id(*to));
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}
