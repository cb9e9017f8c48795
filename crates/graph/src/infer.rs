//! Shape inference over a graph, and the pieces that operators infer with.

use crate::op::Facts;
use crate::{DType, Dim, Error, Fact, Graph, Node, Result, Type};

/// The facts of a node's outputs, given those of its inputs. Bodies are not looked into here.
///
/// # Errors
/// When the inputs are certain not to fit; names the node.
pub fn node_facts(graph: &Graph, node: &Node, outputs: usize) -> Result<Vec<Fact>> {
    let facts: Vec<Option<&Fact>> = node.inputs.iter().map(|v| v.map(|v| &graph.value(v).fact)).collect();
    let mut found = node.op.infer(&Facts::new(&facts, outputs)).map_err(|e| e.at(&node.name, node.kind()))?;
    found.resize(outputs.max(found.len()), Fact::default());
    found.truncate(outputs);
    Ok(found)
}

impl Graph {
    /// Infers the facts of all values from those of inputs and constants. What the file declares of a value is kept
    /// where inference knows less.
    ///
    /// # Errors
    /// When a node's inputs are certain not to fit; names the node.
    pub fn infer(&mut self) -> Result<()> {
        for id in self.node_ids() {
            self.infer_node(id, true)?;
        }
        Ok(())
    }

    /// Infers all facts anew after those of the inputs were changed: what was inferred before is forgotten.
    ///
    /// # Errors
    /// As [`Graph::infer`].
    pub fn reinfer(&mut self) -> Result<()> {
        for id in self.node_ids() {
            self.infer_node(id, false)?;
        }
        Ok(())
    }

    fn infer_node(&mut self, id: crate::NodeId, keep: bool) -> Result<()> {
        let Some(node) = self.node(id) else { return Ok(()) };
        let outputs = node.outputs.clone();
        let found = node_facts(self, node, outputs.len())?;
        for (output, fact) in outputs.into_iter().zip(found) {
            if let Some(output) = output {
                let value = self.value_mut(output);
                value.fact = if keep { fact.refine(&value.fact) } else { fact };
            }
        }
        Ok(())
    }
}

/// Highest rank that the length of a vector can tell of.
const MAX_RANK: usize = 64;

/// A shape of which only the rank is known; `None` when no tensor has such a rank, whatever a file claims.
pub fn unknown(rank: usize) -> Option<Vec<Dim>> {
    (rank <= MAX_RANK).then(|| vec![Dim::Unknown; rank])
}

/// The shape that two shapes broadcast to, after numpy's rules; `None` when a rank is unknown.
///
/// # Errors
/// [`Error::Invalid`] when they cannot meet.
pub fn broadcast(a: Option<&[Dim]>, b: Option<&[Dim]>) -> Result<Option<Vec<Dim>>> {
    let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(Dim::Is(1), |j| s[j].clone());
    (0..rank).map(|i| at(a, i).broadcast(&at(b, i))).collect::<Option<Vec<Dim>>>().map(Some).ok_or_else(
        || {
            let (a, b) = (Type::Tensor(None, Some(a.to_vec())), Type::Tensor(None, Some(b.to_vec())));
            Error::invalid(format!("shapes {a} and {b} cannot be broadcast together"))
        },
    )
}

/// The shape that the shapes at hand broadcast to.
///
/// # Errors
/// [`Error::Invalid`] when they cannot meet.
pub fn broadcast_sizes(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::invalid(format!("shapes {a:?} and {b:?} cannot be broadcast together"))),
        })
        .collect()
}

/// One output like input `i`: the same type and shape.
///
/// # Errors
/// [`Error::Invalid`] when that input is missing.
pub fn like(inputs: &Facts, i: usize) -> Result<Vec<Fact>> {
    let fact = inputs.need(i)?;
    Ok(vec![Fact { ty: fact.ty.clone(), ints: None }])
}

/// One output of the given type with the shape of input `i`.
///
/// # Errors
/// [`Error::Invalid`] when that input is missing.
pub fn like_as(inputs: &Facts, i: usize, dtype: Option<DType>) -> Result<Vec<Fact>> {
    let shape = inputs.need(i)?.shape().map(<[Dim]>::to_vec);
    Ok(vec![Fact::maybe(dtype, shape)])
}

/// An axis counted from the end when negative, as an index below `rank`.
///
/// # Errors
/// [`Error::Invalid`] when there is no such axis.
pub fn axis(axis: i64, rank: usize) -> Result<usize> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(at)
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| Error::invalid(format!("axis {axis} is out of range for rank {rank}")))
}

/// Axes as sorted indices below `rank`.
///
/// # Errors
/// [`Error::Invalid`] when there is no such axis, or it is named twice.
pub fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut found = list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>>>()?;
    found.sort_unstable();
    if found.windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::invalid(format!("axes {list:?} name an axis twice")));
    }
    Ok(found)
}
