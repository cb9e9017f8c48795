//! Operators that are not in the list: kept as they were read, so that a model can be inspected, changed elsewhere
//! and written again; running one is an error.

use std::any::Any;

use crate::op::{Facts, Inputs, OpDef, RunCx};
use crate::{Attrs, Error, Fact, Op, Result, Tensor};

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
    read: |r| Ok(std::sync::Arc::new(Opaque::new("lessen", "Opaque", r.attrs.clone()))),
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

    fn is_pure(&self) -> bool {
        false
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
