//! Heads of attention: what makes the values and what reads the attended ones, through reshapes and transpositions.
//! Between them numbers of a head are only mixed across positions, so a head's channels may be scaled or turned.

use std::collections::HashSet;

use graph::{Attr, Graph, Node, NodeId, ValueId};

use super::channels::{Class, End, classes};

/// The path from values to the product after attention.
#[derive(Clone, Debug)]
pub struct Heads {
    /// The channels: those of all heads, one head after the other.
    pub class: Class,
    /// Number of heads.
    pub count: usize,
    /// Channels of a head.
    pub width: usize,
}

/// Finds all of them, in the order of the nodes: the plain form of exporters, with as many heads of values as of
/// queries.
pub fn heads(graph: &Graph) -> Vec<Heads> {
    let readers = graph.readers();
    let outputs: HashSet<ValueId> = graph.outputs.iter().copied().collect();
    let alone = |v: ValueId| readers[v.index()].len() == 1 && !outputs.contains(&v);
    let made = |v: ValueId, kind: &str| -> Option<(NodeId, &Node)> {
        graph.producer(v).filter(|(_, n)| n.kind() == kind && n.op.domain().is_empty() && alone(v))
    };
    let weight = |node: &Node| {
        let value = node.input(1).filter(|&w| alone(w) && !graph.inputs.contains(&w))?;
        let shape = graph.constant(value)?.shape();
        (shape.len() == 2 && node.op.weight().is_some_and(|w| w.input == 1)).then(|| (shape[0], shape[1]))
    };
    let swaps =
        |node: &Node| matches!(node.op.attrs().get("perm"), Some(Attr::Ints(p)) if *p == [0, 2, 1, 3]);
    let path = |id: NodeId, node: &Node| -> Option<Heads> {
        if node.kind() != "MatMul" {
            return None;
        }
        let (len, _) = weight(node)?;
        let joined = made(node.input(0)?, "Reshape")?.1;
        let turned = made(joined.input(0)?, "Transpose").filter(|(_, n)| swaps(n))?.1;
        let mixed = made(turned.input(0)?, "MatMul")
            .filter(|(_, n)| n.input(1).is_some_and(|v| graph.constant(v).is_none()))?
            .1;
        let back = made(mixed.input(1)?, "Transpose").filter(|(_, n)| swaps(n))?.1;
        let split = back.input(0)?;
        let sizes = graph.value(split).fact.shape()?;
        let (count, width) = match sizes {
            [_, _, count, width] => (count.size()?, width.size()?),
            _ => return None,
        };
        let flat = made(split, "Reshape")?.1.input(0).filter(|&v| alone(v))?;
        let rank = graph.value(flat).fact.rank()?;
        let (last, node) = graph.producer(flat)?;
        let mut makers = Vec::new();
        let product = if node.kind() == "Add" && node.op.domain().is_empty() {
            let term = (0..2).find(|&i| node.input(i).is_some_and(|v| graph.constant(v).is_some()))?;
            let value = node.input(term).filter(|v| !graph.inputs.contains(v))?;
            if graph.constant(value)?.shape() != [len] {
                return None;
            }
            makers.push(End { node: last, input: term });
            made(node.input(1 - term)?, "MatMul")?
        } else {
            (last, node)
        };
        let fits =
            product.1.kind() == "MatMul" && weight(product.1)?.1 == len && count * width == len && rank == 3;
        makers.insert(0, End { node: product.0, input: 1 });
        let readers = vec![End { node: id, input: 1 }];
        let class = Class { values: vec![flat], len, makers, readers, clipped: Vec::new() };
        fits.then_some(Heads { class, count, width })
    };
    graph.nodes().filter_map(|(id, node)| path(id, node)).collect()
}

/// All sets of channels that can be scaled freely: a `Clip` bounds nothing in them.
pub fn sets(graph: &Graph) -> Vec<Class> {
    let heads = heads(graph).into_iter().map(|h| h.class);
    classes(graph).into_iter().filter(|c| c.clipped.is_empty()).chain(heads).collect()
}
