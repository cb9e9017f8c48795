//! Sub-graph patterns, written as expressions.
//!
//! ```
//! use lessen_graph::tidy::pattern::{any, number, op};
//! // x * sigmoid(x)
//! let silu = op("Mul", [any("x"), op("Sigmoid", [any("x")])]);
//! // 0.5 * y, in either order
//! let half = op("Mul", [number(0.5), any("y")]);
//! # let _ = (silu, half);
//! ```

use crate::{Graph, Node, NodeId, Tensor, ValueId};

/// What a value must look like.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Any value; the same one wherever the name stands.
    Any(&'static str),
    /// A constant; the same one wherever the name stands.
    Constant(&'static str),
    /// A floating-point constant of which every element is this number (within 1e-4 of it).
    Number(f32),
    /// What a node of this operator makes (its first output) of such inputs. `Add` and `Mul` match in either order;
    /// inputs after those listed must be absent or constant.
    Op(&'static str, Vec<Pattern>),
    /// As the pattern says, and the node is remembered under this name.
    Named(&'static str, Box<Pattern>),
    /// As one of the patterns says; the first that does.
    Either(Vec<Pattern>),
}

/// Any value.
pub fn any(name: &'static str) -> Pattern {
    Pattern::Any(name)
}

/// A constant.
pub fn constant(name: &'static str) -> Pattern {
    Pattern::Constant(name)
}

/// A constant of this number.
pub fn number(n: f32) -> Pattern {
    Pattern::Number(n)
}

/// A node of this operator.
pub fn op(name: &'static str, inputs: impl IntoIterator<Item = Pattern>) -> Pattern {
    Pattern::Op(name, inputs.into_iter().collect())
}

/// One of these patterns.
pub fn either(patterns: impl IntoIterator<Item = Pattern>) -> Pattern {
    Pattern::Either(patterns.into_iter().collect())
}

impl Pattern {
    /// The same pattern; its node is remembered under this name.
    pub fn named(self, name: &'static str) -> Pattern {
        Pattern::Named(name, Box::new(self))
    }

    /// Matches the pattern against what `node` makes. All nodes but this one must be read by nodes of the match
    /// only, so that they can go.
    pub fn find(&self, graph: &Graph, node: NodeId, readers: &[Vec<NodeId>]) -> Option<Match> {
        let value = graph.node(node)?.output(0)?;
        let found = self.value(graph, value, Match::default())?;
        let inside = |id: &NodeId| found.nodes.contains(id);
        let closed = found.nodes.iter().filter(|&&id| id != node).all(|&id| {
            graph.node(id).is_some_and(|n| {
                n.outputs
                    .iter()
                    .flatten()
                    .all(|v| readers[v.index()].iter().all(inside) && !graph.outputs.contains(v))
            })
        });
        closed.then_some(found)
    }

    fn value(&self, graph: &Graph, value: ValueId, found: Match) -> Option<Match> {
        match self {
            Pattern::Any(name) => found.bind(name, value),
            Pattern::Constant(name) => graph.constant(value).and_then(|_| found.bind(name, value)),
            Pattern::Number(n) => is_number(graph.constant(value)?, *n).then_some(found),
            Pattern::Either(patterns) => patterns.iter().find_map(|p| p.value(graph, value, found.clone())),
            Pattern::Named(name, inner) => {
                let (id, _) = graph.producer(value)?;
                let mut found = inner.value(graph, value, found)?;
                found.named.push((name, id));
                Some(found)
            }
            Pattern::Op(kind, inputs) => {
                let (id, node) = graph.producer(value)?;
                if node.kind() != *kind || node.output(0) != Some(value) {
                    return None;
                }
                let mut found = found;
                if !found.nodes.contains(&id) {
                    found.nodes.push(id);
                }
                match (*kind, inputs.as_slice()) {
                    ("Add" | "Mul", [a, b]) => {
                        pair(graph, node, a, b, found.clone()).or_else(|| pair(graph, node, b, a, found))
                    }
                    _ => {
                        let rest = node.inputs.iter().skip(inputs.len()).flatten();
                        if !rest.into_iter().all(|&v| graph.constant(v).is_some()) {
                            return None;
                        }
                        inputs
                            .iter()
                            .enumerate()
                            .try_fold(found, |f, (i, p)| p.value(graph, node.input(i)?, f))
                    }
                }
            }
        }
    }
}

fn pair(graph: &Graph, node: &Node, a: &Pattern, b: &Pattern, found: Match) -> Option<Match> {
    let found = a.value(graph, node.input(0)?, found)?;
    b.value(graph, node.input(1)?, found)
}

fn is_number(t: &Tensor, n: f32) -> bool {
    let near = |v: &f32| (v - n).abs() <= 1e-4 * n.abs().max(1e-3);
    t.dtype().is_float()
        && t.len() <= 1 << 16
        && !t.is_empty()
        && t.to_f32().is_ok_and(|v| v.iter().all(near))
}

/// What a pattern was found to stand for.
#[derive(Clone, Debug, Default)]
pub struct Match {
    values: Vec<(&'static str, ValueId)>,
    named: Vec<(&'static str, NodeId)>,
    /// All nodes of the match.
    pub nodes: Vec<NodeId>,
}

impl Match {
    fn bind(mut self, name: &'static str, value: ValueId) -> Option<Match> {
        match self.get(name) {
            Some(bound) => (bound == value).then_some(self),
            None => {
                self.values.push((name, value));
                Some(self)
            }
        }
    }

    /// The value that a name stands for.
    pub fn get(&self, name: &str) -> Option<ValueId> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    /// The node that a name stands for.
    pub fn node(&self, name: &str) -> Option<NodeId> {
        self.named.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }
}

/// Puts one node in the place of a match: it makes what `root` made. The other nodes of the match are left to be
/// removed as dead.
///
/// # Errors
/// When the graph does not hold `root`.
pub fn replace(graph: &mut Graph, root: NodeId, mut node: Node) -> crate::Result<()> {
    let old = graph.node(root).ok_or_else(|| crate::Error::invalid("the node to replace is gone"))?;
    let (outputs, name) = (old.outputs.clone(), old.name.clone());
    if node.name.is_empty() {
        node.name = name;
    }
    node.outputs = outputs.clone();
    // The new node takes the old one's place in the order.
    for i in 0..outputs.len() {
        graph.set_output(root, i, None)?;
    }
    graph.add_node_before(root, node)?;
    graph.remove_node(root);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::binary::Binary;
    use crate::ops::unary::Unary;
    use crate::{DType, Dim, Fact};

    #[test]
    fn patterns_match_in_either_order_and_only_closed_groups() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::Is(3)])).unwrap();
        let half = g.add_constant("half", Tensor::scalar(0.5f32));
        let e = g.add_op("e", Unary::named("Exp").unwrap(), &[x]).unwrap();
        let p = g.add_op("p", Binary::named("Mul").unwrap(), &[e, half]).unwrap();
        let y = g.add_op("y", Binary::named("Mul").unwrap(), &[p, x]).unwrap();
        g.outputs.push(y);
        let pattern = op("Mul", [any("x"), op("Mul", [number(0.5), op("Exp", [any("x")])])]);
        let root = g.producer(y).unwrap().0;
        let found = pattern.find(&g, root, &g.readers()).unwrap();
        assert_eq!((found.get("x"), found.nodes.len()), (Some(x), 3));
        assert!(op("Mul", [any("x"), op("Neg", [any("x")])]).find(&g, root, &g.readers()).is_none());
        g.outputs.push(e);
        assert!(pattern.find(&g, root, &g.readers()).is_none(), "an inner value is an output");
    }
}
