//! A graph of a target's files: its layers and its circles.

use petgraph::algo::{condensation, tarjan_scc, toposort};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;

/// Files, and which uses which.
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
    /// What the first file uses of the second.
    pub(crate) edges: BTreeMap<(usize, usize), Vec<Use>>,
}

/// A file.
pub(crate) struct Node {
    /// Its module's path.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// `false` for a file that only declares modules and re-exports their items.
    pub(crate) has_code: bool,
}

/// A use of one file's item by another, where it stands first.
pub(crate) struct Use {
    pub(crate) line: usize,
    pub(crate) name: String,
}

impl Graph {
    /// Returns the files that a file uses.
    pub(crate) fn known_by(&self, file: usize) -> impl Iterator<Item = usize> {
        self.edges.range((file, 0)..(file + 1, 0)).map(|((_, to), _)| *to)
    }

    /// Returns each file's layer: one more than the highest layer that it uses. Files of one circle share a layer.
    pub(crate) fn layers(&self) -> Vec<usize> {
        let groups = condensation(self.petgraph(), true);
        let mut layers = vec![0; self.nodes.len()];
        for group in toposort(&groups, None).unwrap_or_default().into_iter().rev() {
            let below = groups.neighbors(group).flat_map(|group| groups[group].first()).map(|file| layers[*file] + 1);
            let layer = below.max().unwrap_or(0);
            groups[group].iter().for_each(|file| layers[*file] = layer);
        }
        layers
    }

    /// Returns sets of files that all use each other, directly or through others.
    pub(crate) fn knots(&self) -> Vec<Vec<usize>> {
        let groups = tarjan_scc(&self.petgraph()).into_iter().filter(|group| group.len() > 1);
        let mut knots: Vec<Vec<usize>> =
            groups.map(|group| group.into_iter().map(NodeIndex::index).collect()).collect();
        knots.iter_mut().for_each(|knot| knot.sort());
        knots.sort();
        knots
    }

    /// Returns the circles of a knot, short ones first, so many that each use within it is in one. The first file of a
    /// circle is not repeated at its end.
    pub(crate) fn circles(&self, knot: &[usize]) -> Vec<Vec<usize>> {
        let inside = |(from, to): &&(usize, usize)| knot.contains(from) && knot.contains(to);
        let mut circles: Vec<Vec<usize>> =
            self.edges.keys().filter(inside).filter_map(|(from, to)| self.way(*to, *from, knot)).collect();
        circles.sort_by_key(Vec::len);
        let mut covered = HashSet::new();
        circles.retain(|circle| {
            let uses = (0..circle.len()).map(|index| (circle[index], circle[(index + 1) % circle.len()]));
            let is_new = uses.clone().any(|used| !covered.contains(&used));
            covered.extend(uses);
            is_new
        });
        circles
    }

    /// Returns a shortest way from one file to another within a knot.
    fn way(&self, from: usize, to: usize, knot: &[usize]) -> Option<Vec<usize>> {
        let mut before = BTreeMap::from([(from, from)]);
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            for next in self.known_by(at).filter(|next| knot.contains(next)) {
                if let std::collections::btree_map::Entry::Vacant(entry) = before.entry(next) {
                    entry.insert(at);
                    queue.push_back(next);
                }
            }
        }
        let mut way = vec![to];
        while *way.last()? != from {
            way.push(*before.get(way.last()?)?);
        }
        way.reverse();
        Some(way)
    }

    fn petgraph(&self) -> DiGraph<usize, ()> {
        let mut graph = DiGraph::new();
        let nodes: Vec<NodeIndex> = (0..self.nodes.len()).map(|file| graph.add_node(file)).collect();
        graph.extend_with_edges(self.edges.keys().map(|(from, to)| (nodes[*from], nodes[*to])));
        graph
    }
}
