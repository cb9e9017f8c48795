//! Operators that are not in the list: kept as they were read, so that a model can be inspected, changed elsewhere
//! and written again; running one is an error.

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx};
use crate::{Attr, Attrs, Error, Fact, Graph, Op, Result, Tensor};

/// An operator that nobody here knows.
#[derive(Debug)]
pub struct Opaque {
    domain: String,
    name: String,
    attrs: Attrs,
}

impl Opaque {
    /// An operator of this domain and name.
    pub fn new(domain: &str, name: &str, attrs: Attrs) -> Opaque {
        Opaque { domain: domain.into(), name: name.into(), attrs }
    }
}

static DEF: OpDef = OpDef {
    name: "Opaque",
    domain: "lessen",
    since: 1,
    read: |r| Ok(Arc::new(Opaque::new("lessen", "Opaque", r.attrs.clone()))),
    samples: Vec::new,
};

impl Op for Opaque {
    fn def(&self) -> &'static OpDef {
        &DEF
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn domain(&self) -> &str {
        &self.domain
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        Ok(vec![Fact::default(); inputs.outputs])
    }

    fn run(&self, _: &RunCx, _: Inputs) -> Result<Vec<Tensor>> {
        let dot = if self.domain.is_empty() { "" } else { "." };
        Err(Error::unsupported(format!("operator {}{dot}{}", self.domain, self.name)))
    }

    fn bodies(&self) -> Vec<&Arc<Graph>> {
        let graphs = self.attrs.iter().map(|(_, attr)| match attr {
            Attr::Graph(g) => std::slice::from_ref(g),
            Attr::Graphs(all) => all.as_slice(),
            _ => &[],
        });
        graphs.flatten().collect()
    }

    fn with_bodies(&self, bodies: Vec<Arc<Graph>>) -> Result<Arc<dyn Op>> {
        if bodies.len() != self.bodies().len() {
            return Err(Error::invalid(format!("{} has another number of bodies", self.name)));
        }
        let mut bodies = bodies.into_iter();
        let mut new = Attrs::new();
        for (name, attr) in self.attrs.iter() {
            let attr = match attr {
                Attr::Graph(g) => Attr::Graph(bodies.next().unwrap_or_else(|| g.clone())),
                Attr::Graphs(all) => Attr::Graphs(bodies.by_ref().take(all.len()).collect()),
                other => other.clone(),
            };
            new.set(name, attr);
        }
        Ok(Arc::new(Opaque::new(&self.domain, &self.name, new)))
    }

    fn is_pure(&self) -> bool {
        false
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
