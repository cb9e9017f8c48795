//! The one hook at each node: profilers, calibrators, dumps and comparisons look through it.

use crate::{Datum, Node, NodeId};

/// Looks at each node while a program runs. Nodes inside bodies are not shown.
pub trait Watch {
    /// Called before a node runs, with what it reads (absent inputs are `None`).
    fn before(&mut self, id: NodeId, node: &Node, inputs: &[Option<Datum>]) {
        let _ = (id, node, inputs);
    }

    /// Called after a node ran, with what it made.
    fn after(&mut self, id: NodeId, node: &Node, outputs: &[Datum]) {
        let _ = (id, node, outputs);
    }
}

/// Looks at nothing.
impl Watch for () {}
