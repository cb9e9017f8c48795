//! Calls of functions that a model defines itself. <https://github.com/onnx/onnx/blob/main/docs/IR.md#functions>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, RunCx, Sample, pack_bodies, ramp};
use crate::{Attrs, Datum, Error, Fact, Function, Graph, Op, Result};

/// A call of a function.
#[derive(Debug)]
pub struct Call {
    function: Arc<Function>,
    attrs: Attrs,
    body: Arc<Graph>,
}

impl Call {
    /// A call with these attributes; `body` is the function's body with the attributes put in.
    pub fn new(function: Arc<Function>, attrs: Attrs, body: Arc<Graph>) -> Call {
        Call { function, attrs, body }
    }

    /// The function's body with the attributes of this call put in.
    pub fn body(&self) -> &Arc<Graph> {
        &self.body
    }
}

pub(crate) static DEFS: &[OpDef] = &[OpDef {
    name: "Call",
    domain: "lessen",
    since: 1,
    read: |r| {
        let body = r.attrs.need_graph("body")?;
        let function = Function { domain: "lessen".into(), name: "Call".into(), ..Function::default() };
        Ok(Arc::new(Call::new(Arc::new(function), r.attrs.clone(), body)))
    },
    samples: || {
        let mut body = Graph::new("body");
        let x = body.add_free("x", Fact::of(&ramp(&[2, 3])));
        body.inputs.push(x);
        body.outputs.push(x);
        let body = Arc::new(body);
        let attrs = Attrs::new().with("body", crate::Attr::Graph(body.clone()));
        let function = Function { domain: "lessen".into(), name: "Call".into(), ..Function::default() };
        vec![Sample::new(Call::new(Arc::new(function), attrs, body), vec![ramp(&[2, 3])])]
    },
}];

impl Op for Call {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn name(&self) -> &str {
        &self.function.name
    }

    fn domain(&self) -> &str {
        &self.function.domain
    }

    fn overload(&self) -> &str {
        &self.function.overload
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let mut body = Graph::clone(&self.body);
        for (i, id) in body.inputs.clone().into_iter().enumerate() {
            if let Some(fact) = inputs.get(i) {
                body.value_mut(id).fact = fact.clone();
            }
        }
        body.reinfer()?;
        Ok(body.outputs.iter().map(|&id| body.value(id).fact.clone()).collect())
    }

    fn run_data(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Datum>> {
        let programs = cx.programs(self)?;
        let program = programs.first().ok_or_else(|| Error::invalid("the function has no body"))?;
        let data = (0..inputs.len()).map(|i| inputs.take_data(i)).collect();
        program.run(data, Vec::new(), &mut ())
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        pack_bodies(self, cx.cpu)
    }

    fn bodies(&self) -> Vec<&Arc<Graph>> {
        vec![&self.body]
    }

    fn with_bodies(&self, bodies: Vec<Arc<Graph>>) -> Result<Arc<dyn Op>> {
        match <[Arc<Graph>; 1]>::try_from(bodies) {
            Ok([body]) => {
                Ok(Arc::new(Call { function: self.function.clone(), attrs: self.attrs.clone(), body }))
            }
            Err(_) => Err(Error::invalid("a call has one body")),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
