//! What an operator is: the trait, its entry in the list, its samples.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use kernel::Cpu;

use crate::ops::opaque::Opaque;
use crate::run::Program;
use crate::{Attrs, Axes, DType, Datum, Dim, Error, Fact, Graph, Result, Tensor, TurnCx, Turned, ValueId};

/// An operator with its attributes: what a node does.
pub trait Op: Debug + Send + Sync {
    /// Its entry in the list of operators.
    fn def(&self) -> &'static OpDef;

    /// Its name. Only operators that a model defines itself have another than the one in the list.
    fn name(&self) -> &str {
        self.def().name
    }

    /// Its domain, likewise.
    fn domain(&self) -> &str {
        self.def().domain
    }

    /// Tells functions of one name and domain apart; empty for all others.
    fn overload(&self) -> &str {
        ""
    }

    /// Its attributes, for every writer. Reading them again gives the same operator.
    fn attrs(&self) -> Attrs;

    /// What is known of the outputs when so much is known of the inputs.
    ///
    /// # Errors
    /// When the inputs are certain not to fit.
    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>>;

    /// Computes the outputs. All operators but those on sequences and optionals implement this one.
    ///
    /// # Errors
    /// When the inputs do not fit.
    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let _ = (cx, inputs);
        Err(Error::unsupported("this operator cannot be run"))
    }

    /// Computes the outputs, which need not be tensors.
    ///
    /// # Errors
    /// When the inputs do not fit.
    fn run_data(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Datum>> {
        Ok(self.run(cx, inputs)?.into_iter().map(Datum::Tensor).collect())
    }

    /// Prepares constant inputs once, before the first run: packs weights, plans bodies.
    ///
    /// # Errors
    /// When a constant does not fit.
    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        let _ = cx;
        Ok(None)
    }

    /// Adds the nodes that compute the gradient of each input, given those of the outputs, to the graph. `None`
    /// for an input that gets none.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the operator has no gradient.
    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let _ = cx;
        Err(Error::unsupported(format!("{} has no gradient", self.name())))
    }

    /// Which input is a weight that shrinkers may touch, and how it is laid out.
    fn weight(&self) -> Option<WeightUse> {
        None
    }

    /// What its weight (of this shape) is multiplied with, given the input beside it: hands over rows of inputs, one
    /// row after the other, with the number of the group of outputs that read them. The order of a row is that of
    /// the weight's elements for one output.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when this cannot be said; when the input does not fit.
    fn weight_rows(&self, x: &Tensor, weight: &[usize], emit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let _ = (x, weight, emit);
        Err(Error::unsupported(format!("the inputs of the weight of {}", self.name())))
    }

    /// Multiply-adds of one run, when the shapes are known.
    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let _ = (inputs, outputs);
        0
    }

    /// Which axes of its inputs and outputs move together, for who takes channels away; `None` when it cannot be
    /// said: then nothing that it reads or makes can change its size.
    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        let _ = (inputs, outputs);
        None
    }

    /// The same computation on inputs with their axes in another order, when it can make its outputs with theirs in
    /// that order as well, or as they were. Outputs that are turned have the rank of the order.
    fn turn(&self, cx: &TurnCx) -> Option<Turned> {
        let _ = cx;
        None
    }

    /// The graphs inside it (bodies of `If`, `Loop`, `Scan`, functions), in the order of their captured values.
    fn bodies(&self) -> Vec<&Arc<Graph>> {
        Vec::new()
    }

    /// The same operator with these bodies in place of its own.
    ///
    /// # Errors
    /// When it has none.
    fn with_bodies(&self, bodies: Vec<Arc<Graph>>) -> Result<Arc<dyn Op>> {
        let _ = bodies;
        Err(Error::invalid(format!("{} has no bodies", self.name())))
    }

    /// True when equal inputs always give equal outputs, so that it can be computed ahead.
    fn is_pure(&self) -> bool {
        true
    }

    /// The concrete type, for passes that look for an operator with certain attributes.
    fn as_any(&self) -> &dyn Any;
}

/// An operator's line in the list.
pub struct OpDef {
    /// Its name, as in ONNX.
    pub name: &'static str,
    /// Its domain; "" is ONNX's own.
    pub domain: &'static str,
    /// The first version of the domain that this definition reads.
    pub since: i64,
    /// Makes it from its attributes.
    pub read: fn(&Reader) -> Result<Arc<dyn Op>>,
    /// Examples, on which the tests that hold for every operator are run.
    pub samples: fn() -> Vec<Sample>,
}

impl OpDef {
    /// A line for an operator of ONNX's own domain.
    pub const fn onnx(
        name: &'static str,
        since: i64,
        read: fn(&Reader) -> Result<Arc<dyn Op>>,
        samples: fn() -> Vec<Sample>,
    ) -> OpDef {
        OpDef { name, domain: "", since, read, samples }
    }
}

impl Debug for OpDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}{}", self.domain, if self.domain.is_empty() { "" } else { "." }, self.name)
    }
}

/// What an operator is made from.
pub struct Reader<'a> {
    /// Its attributes.
    pub attrs: &'a Attrs,
    /// The version of its domain that the model names.
    pub version: i64,
    /// Number of inputs, absent ones in the middle included.
    pub inputs: usize,
    /// Number of outputs, absent ones in the middle included.
    pub outputs: usize,
}

/// An example of an operator at work.
pub struct Sample {
    /// The operator.
    pub op: Arc<dyn Op>,
    /// The inputs.
    pub inputs: Vec<Option<Datum>>,
    /// Number of outputs asked for.
    pub outputs: usize,
    /// Inputs whose gradient is compared with finite differences.
    pub grads: Vec<usize>,
    /// How far other instruction sets may be from the scalar one, relative to the greatest element.
    pub tolerance: f32,
}

impl Sample {
    /// A sample with these tensors as inputs and one output.
    pub fn new(op: impl Op + 'static, inputs: Vec<Tensor>) -> Sample {
        let inputs = inputs.into_iter().map(|t| Some(Datum::Tensor(t))).collect();
        Sample { op: Arc::new(op), inputs, outputs: 1, grads: Vec::new(), tolerance: 1e-5 }
    }

    /// A sample of an operator as it is read from a model that has these attributes. When they are wrong, the sample
    /// is an operator that cannot be run.
    pub fn read(def: &OpDef, attrs: Attrs, inputs: Vec<Tensor>) -> Sample {
        let inputs = inputs.into_iter().map(|t| Some(Datum::Tensor(t))).collect();
        Sample::of_data(def, attrs, inputs)
    }

    /// The same with any data as inputs, some of them perhaps absent.
    pub fn of_data(def: &OpDef, attrs: Attrs, inputs: Vec<Option<Datum>>) -> Sample {
        let reader = Reader { attrs: &attrs, version: def.since, inputs: inputs.len(), outputs: 1 };
        let op = (def.read)(&reader).unwrap_or_else(|_| Arc::new(Opaque::new(def.domain, def.name, attrs)));
        Sample { op, inputs, outputs: 1, grads: Vec::new(), tolerance: 1e-5 }
    }

    /// The same, with this many outputs.
    pub fn outputs(self, outputs: usize) -> Sample {
        Sample { outputs, ..self }
    }

    /// The same; the gradients of these inputs are compared with finite differences.
    pub fn grads(self, grads: &[usize]) -> Sample {
        Sample { grads: grads.to_vec(), ..self }
    }

    /// The same, with this tolerance between instruction sets.
    pub fn tolerance(self, tolerance: f32) -> Sample {
        Sample { tolerance, ..self }
    }
}

/// Test numbers: a tensor of this shape with values in (-1, 1), always the same ones, no two alike nearby.
pub fn ramp(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 101) as f32 / 50.5 - 0.995).collect();
    Tensor::vector(&values).reshaped(shape).unwrap_or_else(|_| Tensor::vector(&values))
}

/// The facts of a node's inputs; absent inputs are `None`.
pub struct Facts<'a> {
    facts: &'a [Option<&'a Fact>],
    /// Number of outputs of the node.
    pub outputs: usize,
}

impl<'a> Facts<'a> {
    /// Facts of inputs, for a node with so many outputs.
    pub fn new(facts: &'a [Option<&'a Fact>], outputs: usize) -> Facts<'a> {
        Facts { facts, outputs }
    }

    /// Number of inputs, absent ones included.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// True when there are no inputs.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// The fact of an input, if it is there.
    pub fn get(&self, i: usize) -> Option<&'a Fact> {
        self.facts.get(i).copied().flatten()
    }

    /// The fact of an input that must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not.
    pub fn need(&self, i: usize) -> Result<&'a Fact> {
        self.get(i).ok_or_else(|| Error::invalid(format!("input {i} is missing")))
    }

    /// The element type of an input, if it is known.
    pub fn dtype(&self, i: usize) -> Option<DType> {
        self.get(i)?.dtype()
    }

    /// The shape of an input, if its rank is known.
    pub fn shape(&self, i: usize) -> Option<&'a [Dim]> {
        self.get(i)?.shape()
    }

    /// The rank of an input, if it is known.
    pub fn rank(&self, i: usize) -> Option<usize> {
        self.get(i)?.rank()
    }

    /// The numbers of an integer input, if all are known.
    pub fn ints(&self, i: usize) -> Option<Vec<i64>> {
        self.get(i)?.ints.as_ref()?.iter().map(Dim::int).collect()
    }

    /// All inputs that are there.
    pub fn iter(&self) -> impl Iterator<Item = Option<&'a Fact>> {
        self.facts.iter().copied()
    }
}

/// The inputs of one run of a node. The executor gives up a value with its last reader, so an operator that
/// [takes](Inputs::take) an input can often write into it without a copy.
#[derive(Default)]
pub struct Inputs(Vec<Option<Datum>>);

impl Inputs {
    /// These inputs.
    pub fn new(data: Vec<Option<Datum>>) -> Inputs {
        Inputs(data)
    }

    /// Number of inputs, absent ones included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there are no inputs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The tensor of an input, if it is there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not a tensor.
    pub fn get(&self, i: usize) -> Result<Option<&Tensor>> {
        self.0.get(i).and_then(Option::as_ref).map(Datum::tensor).transpose()
    }

    /// The tensor of an input that must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not.
    pub fn need(&self, i: usize) -> Result<&Tensor> {
        self.get(i)?.ok_or_else(|| Error::invalid(format!("input {i} is missing")))
    }

    /// The elements of an input that must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not, or has another type.
    pub fn f32(&self, i: usize) -> Result<&[f32]> {
        self.need(i)?.as_slice()
    }

    /// Takes the tensor of an input that must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not.
    pub fn take(&mut self, i: usize) -> Result<Tensor> {
        self.take_data(i).ok_or_else(|| Error::invalid(format!("input {i} is missing")))?.into_tensor()
    }

    /// Any datum of an input, if it is there.
    pub fn data(&self, i: usize) -> Option<&Datum> {
        self.0.get(i).and_then(Option::as_ref)
    }

    /// Takes any datum of an input, if it is there.
    pub fn take_data(&mut self, i: usize) -> Option<Datum> {
        self.0.get_mut(i).and_then(Option::take)
    }

    /// The numbers of an integer input, if it is there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it does not hold integers.
    pub fn ints(&self, i: usize) -> Result<Option<Vec<i64>>> {
        self.get(i)?.map(Tensor::to_ints).transpose()
    }
}

/// What surrounds a run of a node.
pub struct RunCx<'a> {
    /// Instruction set and threads.
    pub cpu: &'a Cpu,
    /// Number of outputs of the node.
    pub outputs: usize,
    /// What [`Op::prepack`] made.
    pub packed: Option<&'a Packed>,
    /// Values of the surrounding graph that bodies use, in the order of [`Op::bodies`] and their captures.
    pub captures: Vec<Datum>,
}

impl<'a> RunCx<'a> {
    /// A bare surrounding for a node with so many outputs.
    pub fn new(cpu: &'a Cpu, outputs: usize) -> RunCx<'a> {
        RunCx { cpu, outputs, packed: None, captures: Vec::new() }
    }

    /// What [`Op::prepack`] made, when it is of this type.
    pub fn packed<T: 'static>(&self) -> Option<&'a T> {
        self.packed?.data.downcast_ref()
    }

    /// The programs of the node's bodies: those that were planned ahead, else planned now.
    ///
    /// # Errors
    /// When a body cannot be planned.
    pub fn programs(&self, op: &dyn Op) -> Result<Arc<Vec<Program>>> {
        match self.packed::<Arc<Vec<Program>>>() {
            Some(programs) => Ok(programs.clone()),
            None => Ok(Arc::new(plan_bodies(op, self.cpu)?)),
        }
    }
}

/// What surrounds [`Op::prepack`].
pub struct PackCx<'a> {
    /// Instruction set and threads.
    pub cpu: &'a Cpu,
    /// The constant inputs, aligned; `None` for those that are absent or not constant.
    pub constants: Vec<Option<Tensor>>,
    /// What is known of the inputs.
    pub facts: Facts<'a>,
}

impl PackCx<'_> {
    /// A constant input.
    pub fn constant(&self, i: usize) -> Option<&Tensor> {
        self.constants.get(i).and_then(Option::as_ref)
    }
}

/// What [`Op::prepack`] made.
pub struct Packed {
    /// The prepared data, found again with [`RunCx::packed`].
    pub data: Box<dyn Any + Send + Sync>,
    /// Inputs that are not needed any more when the node runs: they are absent then, and their memory is given
    /// back when nobody else reads them.
    pub replaces: Vec<usize>,
}

impl Packed {
    /// Prepared data that stand for these inputs.
    pub fn new(data: impl Any + Send + Sync, replaces: &[usize]) -> Packed {
        Packed { data: Box::new(data), replaces: replaces.to_vec() }
    }
}

/// Plans the bodies of an operator: the [`Op::prepack`] of operators with bodies.
///
/// # Errors
/// When a body cannot be planned.
pub fn pack_bodies(op: &dyn Op, cpu: &Cpu) -> Result<Option<Packed>> {
    Ok(Some(Packed::new(Arc::new(plan_bodies(op, cpu)?), &[])))
}

fn plan_bodies(op: &dyn Op, cpu: &Cpu) -> Result<Vec<Program>> {
    op.bodies().into_iter().map(|body| Program::new(body.clone(), cpu)).collect()
}

/// What surrounds [`Op::grad`].
pub struct GradCx<'a> {
    /// The graph that the gradient's nodes are added to.
    pub graph: &'a mut Graph,
    /// The node's inputs.
    pub inputs: &'a [Option<ValueId>],
    /// The node's outputs.
    pub outputs: &'a [Option<ValueId>],
    /// The gradients of the outputs; `None` for outputs that do not matter.
    pub grads: &'a [Option<ValueId>],
}

impl GradCx<'_> {
    /// An input that must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not.
    pub fn input(&self, i: usize) -> Result<ValueId> {
        self.inputs.get(i).copied().flatten().ok_or_else(|| Error::invalid(format!("input {i} is missing")))
    }

    /// An output that must be there.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not.
    pub fn output(&self, i: usize) -> Result<ValueId> {
        self.outputs.get(i).copied().flatten().ok_or_else(|| Error::invalid(format!("output {i} is missing")))
    }

    /// The gradient of the first output.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is none.
    pub fn grad(&self) -> Result<ValueId> {
        self.grads.first().copied().flatten().ok_or_else(|| Error::invalid("the output has no gradient"))
    }
}

/// Which input of an operator is a weight, and how it is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightUse {
    /// The input that is the weight.
    pub input: usize,
    /// The axis of the weight along which each slice makes one output channel: the axis with a scale each. May be
    /// negative: counted from the end.
    pub out_axis: i64,
    /// What multiplies the weight.
    pub kind: WeightKind,
}

/// What an operator does with its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum WeightKind {
    MatMul,
    Conv,
    ConvTranspose,
    Embedding,
    Recurrent,
}
