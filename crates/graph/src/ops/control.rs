//! Operators that run graphs: `If`, `Loop`. <https://onnx.ai/onnx/operators/onnx__Loop.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, RunCx, Sample, pack_bodies, ramp};
use crate::ops::concat::concat;
use crate::{Attr, Attrs, DType, Datum, Dim, Error, Fact, Graph, Op, Result, Tensor, Type};

/// `If`: one of two graphs.
#[derive(Debug)]
pub struct If {
    attrs: Attrs,
    /// In the order of the attributes.
    bodies: Vec<Arc<Graph>>,
    /// Which of them is for true.
    then: usize,
}

/// `Loop`: a graph run again and again, on what it gave back before.
#[derive(Debug)]
pub struct Loop {
    attrs: Attrs,
    body: Arc<Graph>,
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "If",
        1,
        |r| {
            let branches = ["then_branch", "else_branch"];
            let named: Vec<&str> = r.attrs.iter().map(|(n, _)| n).filter(|n| branches.contains(n)).collect();
            let bodies = named.iter().map(|n| r.attrs.need_graph(n)).collect::<Result<Vec<_>>>()?;
            match named.into_iter().position(|n| n == "then_branch") {
                Some(then) if bodies.len() == 2 => Ok(Arc::new(If { attrs: r.attrs.clone(), bodies, then })),
                _ => Err(Error::invalid("If needs then_branch and else_branch")),
            }
        },
        || {
            let branch = |x: Tensor| {
                let mut body = Graph::new("branch");
                let x = body.add_constant("x", x);
                body.outputs.push(x);
                Attr::Graph(Arc::new(body))
            };
            let attrs = Attrs::new()
                .with("else_branch", branch(ramp(&[3, 1])))
                .with("then_branch", branch(ramp(&[3, 2])));
            let of = |yes: bool| {
                let condition = Tensor::bools(&[], &[yes]).unwrap_or(Tensor::scalar(0u8));
                Sample::read(&DEFS[0], attrs.clone(), vec![condition])
            };
            vec![of(true), of(false)]
        },
    ),
    OpDef::onnx(
        "Loop",
        1,
        |r| Ok(Arc::new(Loop { attrs: r.attrs.clone(), body: r.attrs.need_graph("body")? })),
        || {
            let mut body = Graph::new("body");
            let step = body.add_free("i", Fact::tensor(DType::I64, vec![]));
            let go_on = body.add_free("go_on", Fact::tensor(DType::Bool, vec![]));
            let state = body.add_free("state", Fact::tensor(DType::F32, vec![Dim::Is(2)]));
            body.inputs = vec![step, go_on, state];
            body.outputs = vec![go_on, state, step, state];
            let attrs = Attrs::new().with("body", Attr::Graph(Arc::new(body)));
            let inputs = |n| vec![Some(Tensor::scalar(n).into()), None, Some(ramp(&[2]).into())];
            [3i64, 0].map(|n| Sample::of_data(&DEFS[1], attrs.clone(), inputs(n)).outputs(3)).into()
        },
    ),
];

/// The same attributes, with these graphs in place of their own, in order.
pub(crate) fn with_graphs(attrs: &Attrs, bodies: Vec<Arc<Graph>>) -> Result<Attrs> {
    let mut bodies = bodies.into_iter();
    let mut replaced = Attrs::new();
    for (name, attr) in attrs.iter() {
        let attr = match attr {
            Attr::Graph(_) => Attr::Graph(bodies.next().ok_or_else(|| Error::invalid("bodies are missing"))?),
            other => other.clone(),
        };
        replaced.set(name, attr);
    }
    Ok(replaced)
}

/// What both types have in common.
fn common(a: &Type, b: &Type) -> Type {
    match (a, b) {
        (Type::Tensor(d1, s1), Type::Tensor(d2, s2)) => {
            let shape = match (s1, s2) {
                (Some(x), Some(y)) if x.len() == y.len() => {
                    let same = |(x, y): (&Dim, &Dim)| if x == y { x.clone() } else { Dim::Unknown };
                    Some(x.iter().zip(y).map(same).collect())
                }
                _ => None,
            };
            Type::Tensor(d1.filter(|_| d1 == d2), shape)
        }
        (Type::Sequence(a), Type::Sequence(b)) => Type::Sequence(Box::new(common(a, b))),
        (Type::Optional(a), Type::Optional(b)) => Type::Optional(Box::new(common(a, b))),
        (a, b) if a == b => a.clone(),
        _ => Type::Unknown,
    }
}

/// Names of sizes inside a body may mean others than outside.
pub(crate) fn nameless(ty: &Type) -> Type {
    match ty {
        Type::Tensor(d, Some(shape)) => {
            let plain = |d: &Dim| d.int().map_or(Dim::Unknown, Dim::Is);
            Type::Tensor(*d, Some(shape.iter().map(plain).collect()))
        }
        Type::Sequence(t) => Type::Sequence(Box::new(nameless(t))),
        Type::Optional(t) => Type::Optional(Box::new(nameless(t))),
        other => other.clone(),
    }
}

impl Op for If {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let out = |body: &Graph, i: usize| body.outputs.get(i).map(|&id| nameless(&body.value(id).fact.ty));
        let fact = |i| {
            let ty = match (out(&self.bodies[0], i), out(&self.bodies[1], i)) {
                (Some(a), Some(b)) => common(&a, &b),
                _ => {
                    return Err(Error::invalid(format!(
                        "a branch makes fewer than {} values",
                        inputs.outputs
                    )));
                }
            };
            Ok(Fact { ty, ints: None })
        };
        (0..inputs.outputs).map(fact).collect()
    }

    fn run_data(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Datum>> {
        let yes = truth(inputs.need(0)?)?;
        let branch = if yes { self.then } else { 1 - self.then };
        let programs = cx.programs(self)?;
        let split = self.bodies[0].captures.len();
        let (first, second) =
            cx.captures.split_at_checked(split).ok_or_else(|| missing("captured values"))?;
        let captures = if branch == 0 { first } else { second };
        let program = programs.get(branch).ok_or_else(|| missing("body"))?;
        program.run(Vec::new(), captures.to_vec(), &mut ())
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        pack_bodies(self, cx.cpu)
    }

    fn bodies(&self) -> Vec<&Arc<Graph>> {
        self.bodies.iter().collect()
    }

    fn with_bodies(&self, bodies: Vec<Arc<Graph>>) -> Result<Arc<dyn Op>> {
        let attrs = with_graphs(&self.attrs, bodies.clone())?;
        Ok(Arc::new(If { attrs, bodies, then: self.then }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn missing(what: &str) -> Error {
    Error::invalid(format!("{what} of a body are missing"))
}

/// The one truth value of a tensor.
fn truth(x: &Tensor) -> Result<bool> {
    match x.as_bools()? {
        [one] => Ok(*one != 0),
        _ => Err(Error::invalid(format!("a condition has one element, not shape {:?}", x.shape()))),
    }
}

/// Tensors of one shape as slices of one tensor, along a new axis; of no tensors when there are none, shaped after
/// the fact of those that would have been.
pub(crate) fn stack(slices: Vec<Tensor>, axis: usize, fact: &Fact) -> Result<Tensor> {
    let Some(first) = slices.first() else {
        let inner = fact.shape().unwrap_or(&[]).iter().map(|d| d.size().unwrap_or(0));
        let mut shape: Vec<usize> = inner.collect();
        shape.insert(axis.min(shape.len()), 0);
        return Tensor::zeros(fact.dtype().unwrap_or(DType::F32), &shape);
    };
    if axis > first.rank() {
        return Err(Error::invalid(format!("axis {axis} is out of range for rank {}", first.rank() + 1)));
    }
    let mut shape = first.shape().to_vec();
    shape.insert(axis, 1);
    let slices = slices.into_iter().map(|t| t.reshaped(&shape)).collect::<Result<Vec<_>>>()?;
    concat(slices, axis)
}

impl Loop {
    /// Values carried from one step to the next.
    fn carried(&self) -> Result<usize> {
        let (inputs, outputs) = (self.body.inputs.len(), self.body.outputs.len());
        match inputs.checked_sub(2) {
            Some(carried) if outputs > carried => Ok(carried),
            _ => Err(Error::invalid(format!("a loop's body with {inputs} inputs and {outputs} outputs"))),
        }
    }
}

impl Op for Loop {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let carried = self.carried()?;
        let fact = |(i, &id): (usize, &crate::ValueId)| {
            let ty = nameless(&self.body.value(id).fact.ty);
            let ty = match ty {
                // Without a step, what goes in comes out; in later steps shapes may grow.
                Type::Tensor(dtype, _) if i < carried => Type::Tensor(dtype, None),
                Type::Tensor(dtype, Some(shape)) => Type::Tensor(
                    dtype,
                    Some([&[Dim::Unknown][..], &vec![Dim::Unknown; shape.len()]].concat()),
                ),
                Type::Sequence(_) if i < carried => Type::Unknown,
                other => other,
            };
            Fact { ty, ints: None }
        };
        let facts = self.body.outputs.iter().skip(1).enumerate().map(fact);
        let mut facts: Vec<Fact> = facts.collect();
        for (i, fact) in facts.iter_mut().enumerate().take(carried) {
            // A carried value keeps its shape when the body is certain to keep it.
            let (Some(before), Some(&out)) = (inputs.get(i + 2), self.body.outputs.get(i + 1)) else {
                continue;
            };
            if fact.dtype().is_some() && before.dtype() != fact.dtype() {
                *fact = Fact::default();
            }
            if out == self.body.inputs[i + 2] {
                *fact = Fact { ty: before.ty.clone(), ints: None };
            }
        }
        Ok(facts)
    }

    fn run_data(&self, cx: &RunCx, mut inputs: Inputs) -> Result<Vec<Datum>> {
        let carried = self.carried()?;
        let limit = match inputs.ints(0)?.as_deref() {
            None => i64::MAX,
            Some(&[n]) => n,
            Some(other) => return Err(Error::invalid(format!("{} trip counts", other.len()))),
        };
        let mut go_on = inputs.get(1)?.map(truth).transpose()?.unwrap_or(true);
        let mut state = (0..carried).map(|i| inputs.take_data(i + 2)).collect::<Vec<_>>();
        let mut scans: Vec<Vec<Tensor>> = vec![Vec::new(); self.body.outputs.len() - 1 - carried];
        let programs = cx.programs(self)?;
        let program = programs.first().ok_or_else(|| missing("program"))?;
        let mut step = 0;
        while go_on && step < limit {
            let condition = Tensor::bools(&[], &[go_on])?;
            let given = [Some(Tensor::scalar(step).into()), Some(condition.into())].into_iter();
            let given = given.chain(state.drain(..)).collect();
            let mut made = program.run(given, cx.captures.clone(), &mut ())?.into_iter();
            go_on = truth(made.next().ok_or_else(|| missing("condition"))?.tensor()?)?;
            state.extend(made.by_ref().take(carried).map(Some));
            for (scan, slice) in scans.iter_mut().zip(made) {
                scan.push(slice.into_tensor()?);
            }
            step += 1;
        }
        let mut outputs = Vec::new();
        for datum in state {
            outputs.push(datum.ok_or_else(|| Error::invalid("a carried value is missing"))?);
        }
        for (scan, &id) in scans.into_iter().zip(&self.body.outputs[1 + carried..]) {
            outputs.push(stack(scan, 0, &self.body.value(id).fact)?.into());
        }
        Ok(outputs)
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        pack_bodies(self, cx.cpu)
    }

    fn bodies(&self) -> Vec<&Arc<Graph>> {
        vec![&self.body]
    }

    fn with_bodies(&self, bodies: Vec<Arc<Graph>>) -> Result<Arc<dyn Op>> {
        let attrs = with_graphs(&self.attrs, bodies)?;
        Ok(Arc::new(Loop { body: attrs.need_graph("body")?, attrs }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use kernel::{Cpu, Isa};

    use super::*;
    use crate::op::Reader;
    use crate::ops::binary::Binary;
    use crate::run::Program;
    use crate::{Node, Value};

    /// A loop whose body adds a value of the surrounding graph to what it carries.
    #[test]
    fn bodies_read_what_surrounds_them() {
        let mut body = Graph::new("body");
        let step = body.add_free("i", Fact::tensor(DType::I64, vec![]));
        let go_on = body.add_free("go_on", Fact::tensor(DType::Bool, vec![]));
        let sum = body.add_free("sum", Fact::tensor(DType::F32, vec![]));
        let outer = body.add_free("outer", Fact::tensor(DType::F32, vec![]));
        body.inputs = vec![step, go_on, sum];
        body.captures = vec![("outer".into(), outer)];
        let next = body.add_op("next", Binary::named("Add").unwrap(), &[sum, outer]).unwrap();
        body.outputs = vec![go_on, next, next];
        let attrs = Attrs::new().with("body", Attr::Graph(Arc::new(body)));
        let op = (DEFS[1].read)(&Reader { attrs: &attrs, version: 13, inputs: 3, outputs: 2 }).unwrap();

        let mut graph = Graph::new("main");
        let outer = graph.add_input("outer", Fact::tensor(DType::F32, vec![])).unwrap();
        let trips = graph.add_constant("trips", Tensor::scalar(3i64));
        let zero = graph.add_constant("zero", Tensor::scalar(0f32));
        let mut node = Node::new(op, vec![Some(trips), None, Some(zero)]);
        node.captures = vec![outer];
        for name in ["sum", "sums"] {
            node.outputs.push(Some(graph.add_value(Value::named(name)).unwrap()));
        }
        graph.outputs = node.outputs.iter().flatten().copied().collect();
        graph.add_node(node).unwrap();
        graph.check().unwrap();
        graph.infer().unwrap();
        let program = Program::new(Arc::new(graph), &Cpu::with_isa(Isa::Scalar, 1).unwrap()).unwrap();
        let made = program.run(vec![Some(Tensor::scalar(2f32).into())], vec![], &mut ()).unwrap();
        assert_eq!(made[0].tensor().unwrap().item::<f32>().unwrap(), 6.0);
        assert_eq!(made[1].tensor().unwrap().as_slice::<f32>().unwrap(), [2.0, 4.0, 6.0]);
    }
}
