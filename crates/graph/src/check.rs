//! The verifier: what must hold of every graph. Run after reading and around every pass.

use crate::{Error, Graph, Result};

impl Graph {
    /// Checks that each value is made once, before it is read; that outputs are made at all; that bodies get what
    /// they capture. Cheap: linear in the size of the graph.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the value and the node.
    pub fn check(&self) -> Result<()> {
        let mut ready = vec![false; self.value_count()];
        for (id, value) in self.values() {
            ready[id.index()] = value.constant.is_some();
        }
        for id in self.inputs.iter().chain(self.captures.iter().map(|(_, id)| id)) {
            ready[id.index()] = true;
        }
        for (id, node) in self.nodes() {
            let fail = |what: String| Err(Error::invalid(what).at(&node.name, node.kind()));
            for value in node.reads() {
                if !ready[value.index()] {
                    return fail(format!(
                        "reads {:?}, which nothing makes before it",
                        self.value(value).name
                    ));
                }
            }
            for &value in node.outputs.iter().flatten() {
                if ready[value.index()] || self.value(value).producer() != Some(id) {
                    return fail(format!("makes {:?}, which is made elsewhere", self.value(value).name));
                }
                ready[value.index()] = true;
            }
            let wanted: usize = node.op.bodies().iter().map(|b| b.captures.len()).sum();
            if wanted != node.captures.len() {
                return fail(format!(
                    "its bodies capture {wanted} values, the node gives {}",
                    node.captures.len()
                ));
            }
            for body in node.op.bodies() {
                body.check().map_err(|e| e.at(&node.name, node.kind()))?;
            }
        }
        match self.outputs.iter().find(|id| !ready[id.index()]) {
            Some(&id) => Err(Error::invalid(format!("output {:?} is made by nothing", self.value(id).name))),
            None => Ok(()),
        }
    }
}
