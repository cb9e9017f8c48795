//! Integer arithmetic for graphs whose numbers lie on 8-bit grids. Such a graph says with `DequantizeLinear` and
//! `QuantizeLinear` where the grids are, and computes between them with ordinary operators; or it quantises as it
//! runs, with `DynamicQuantizeLinear` and `MatMulInteger`. Both become operators that read and write the codes.
//! Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
//! 2018; the forms are those of onnxruntime's quantiser.

use std::sync::Arc;

use kernel::Cpu;

use super::pattern::replace;
use crate::ops::identity::Identity;
use crate::ops::quantized::concat::QConcat;
use crate::ops::quantized::conv::QConv;
use crate::ops::quantized::dequantize::DequantizeLinear;
use crate::ops::quantized::matmul::QMatMul;
use crate::ops::quantized::pair::QPair;
use crate::ops::quantized::pool::QAverage;
use crate::ops::quantized::slots::Bounds;
use crate::{Attr, DType, Graph, Node, NodeId, Op, Result, Tensor, ValueId};

/// Operators that only move elements of their first input, or choose among them. `Pad` adds one number more, and
/// `Resize` and `Upsample` choose when they take the nearest.
const MOVES: &[&str] = &[
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "MaxPool",
    "Pad",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Upsample",
];

/// Puts integer operators in the place of what is computed between grids; says how many. What is left over still
/// computes in floating point, with the same meaning.
///
/// # Errors
/// When the graph breaks a rule.
pub fn quantized(graph: &mut Graph, _: &Cpu) -> Result<usize> {
    graph.infer()?;
    let mut count = 0;
    let mut readers = graph.readers();
    for id in graph.node_ids() {
        let Some(node) = graph.node(id) else { continue };
        let scene = Scene { graph, readers: &readers };
        if let Some((from, inputs)) = scene.moved(node) {
            move_codes(graph, id, from, inputs)?;
            readers = graph.readers();
            count += 1;
            continue;
        }
        let plan = match node.kind() {
            "Conv" | "MatMul" | "Gemm" => scene.product(id, node),
            "ConvInteger" | "MatMulInteger" => scene.dynamic(node),
            "QuantizeLinear" => scene.between(id, node),
            _ => None,
        };
        let Some(plan) = plan else { continue };
        let node = Node::new(plan.op, plan.inputs.into_iter().map(|input| input.add(graph)).collect());
        replace(graph, plan.root, node)?;
        readers = graph.readers();
        count += 1;
    }
    Ok(count)
}

/// A node to be put in the place of another.
struct Plan {
    /// The node whose output the new one makes.
    root: NodeId,
    op: Arc<dyn Op>,
    inputs: Vec<Input>,
}

enum Input {
    None,
    Value(ValueId),
    /// A constant to be added under a name like this.
    New(String, Tensor),
}

impl Input {
    fn add(self, graph: &mut Graph) -> Option<ValueId> {
        match self {
            Input::None => None,
            Input::Value(value) => Some(value),
            Input::New(name, tensor) => Some(graph.add_constant(&name, tensor)),
        }
    }
}

/// Makes a node move codes, which are decoded behind it.
fn move_codes(graph: &mut Graph, id: NodeId, from: Codes, inputs: Vec<Input>) -> Result<()> {
    let Some(node) = graph.node(id).cloned() else { return Ok(()) };
    let inputs = inputs.into_iter().map(|input| input.add(graph)).collect();
    let moving = Node { inputs, outputs: Vec::new(), ..node.clone() };
    let name = format!("{}.codes", node.name);
    let (_, codes) = graph.add_with_outputs(&name, moving, node.outputs.len(), Some(id))?;
    for (at, (codes, output)) in codes.into_iter().zip(node.outputs).enumerate() {
        let Some(output) = output else { continue };
        graph.set_output(id, at, None)?;
        let inputs = vec![Some(codes), Some(from.scale), from.zero];
        let mut decode = Node::new(Arc::new(DequantizeLinear::along(from.axis)), inputs);
        decode.name = format!("{}.decoded", node.name);
        decode.outputs = vec![Some(output)];
        graph.add_node_before(id, decode)?;
    }
    graph.remove_node(id);
    Ok(())
}

impl From<Option<ValueId>> for Input {
    fn from(value: Option<ValueId>) -> Input {
        value.map_or(Input::None, Input::Value)
    }
}

/// Codes and their grid.
#[derive(Clone, Copy)]
struct Codes {
    codes: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    /// Along which scales differ.
    axis: i64,
}

impl Codes {
    fn inputs(&self) -> [Input; 3] {
        [Input::Value(self.codes), Input::Value(self.scale), self.zero.into()]
    }
}

/// What follows a product.
struct Tail {
    root: NodeId,
    bias: Option<ValueId>,
    bounds: Bounds,
    /// The grid of the result, when it is quantised.
    grid: Option<Codes>,
}

struct Scene<'a> {
    graph: &'a Graph,
    readers: &'a [Vec<NodeId>],
}

impl Scene<'_> {
    /// A constant that no input can override.
    fn fixed(&self, value: ValueId) -> Option<&Tensor> {
        self.graph.constant(value).filter(|_| !self.graph.inputs.contains(&value))
    }

    fn numbers(&self, value: ValueId) -> Option<Vec<f32>> {
        self.fixed(value)
            .filter(|t| t.dtype() == DType::F32)
            .and_then(|t| Some(t.to_f32().ok()?.into_owned()))
    }

    /// A constant of one number.
    fn number(&self, value: ValueId) -> Option<f32> {
        match self.numbers(value)?.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    fn dtype(&self, value: ValueId) -> Option<DType> {
        self.graph.value(value).fact.dtype()
    }

    fn is_bytes(&self, value: ValueId) -> bool {
        matches!(self.dtype(value), Some(DType::U8 | DType::I8))
    }

    /// The only node that reads a value, if the value is no output.
    fn only_reader(&self, value: ValueId) -> Option<(NodeId, &Node)> {
        match self.readers[value.index()].as_slice() {
            [one] if !self.graph.outputs.contains(&value) => Some((*one, self.graph.node(*one)?)),
            _ => None,
        }
    }

    /// The codes that a value is decoded from, with constant scales that are not blocked.
    fn decoded(&self, value: ValueId) -> Option<Codes> {
        let (_, node) = self.graph.producer(value)?;
        let op = node.op.as_any().downcast_ref::<DequantizeLinear>()?;
        let codes =
            Codes { codes: node.input(0)?, scale: node.input(1)?, zero: node.input(2), axis: op.axis() };
        let plain = op.block_size() == 0
            && self.dtype(value) == Some(DType::F32)
            && codes.zero.is_none_or(|z| self.fixed(z).is_some());
        self.numbers(codes.scale).filter(|_| plain).map(|_| codes)
    }

    /// Bytes on one grid.
    fn bytes(&self, value: ValueId) -> Option<Codes> {
        self.decoded(value).filter(|c| self.is_bytes(c.codes) && self.number(c.scale).is_some())
    }

    /// The grid of bytes that a node quantises to.
    fn target(&self, node: &Node) -> Option<Codes> {
        let (codes, scale, zero) = (node.output(0)?, node.input(1)?, node.input(2));
        let grid = Codes { codes, scale, zero, axis: 1 };
        let plain = node.kind() == "QuantizeLinear"
            && self.is_bytes(codes)
            && zero.is_none_or(|z| self.fixed(z).is_some())
            && node.op.attrs().get("precision").is_none();
        self.number(scale).filter(|s| plain && *s > 0.0).map(|_| grid)
    }

    /// The zero point of a grid; one that is left out is 0.
    fn zero(&self, grid: &Codes) -> Input {
        match (grid.zero, self.dtype(grid.codes)) {
            (Some(zero), _) => Input::Value(zero),
            (None, Some(DType::I8)) => Input::New("zero".into(), Tensor::scalar(0i8)),
            (None, _) => Input::New("zero".into(), Tensor::scalar(0u8)),
        }
    }

    /// Follows what a node makes through a bias, an activation with bounds, and quantising.
    fn tail(&self, root: NodeId, bias: bool) -> Option<Tail> {
        let mut tail = Tail { root, bias: None, bounds: Bounds::NONE, grid: None };
        let mut value = self.graph.node(root)?.output(0)?;
        let mut may_add = bias;
        while let Some((id, node)) = self.only_reader(value) {
            match node.kind() {
                "Add" if may_add => {
                    let other = if node.input(0) == Some(value) { node.input(1) } else { node.input(0) };
                    let fits = |&v: &ValueId| self.real(v).is_some() && self.is_row(v, value);
                    let Some(bias) = other.filter(fits) else { break };
                    tail.bias = Some(bias);
                }
                "Relu" | "Clip" if tail.bounds == Bounds::NONE => match self.bounds(node) {
                    Some(bounds) => tail.bounds = bounds,
                    None => break,
                },
                "QuantizeLinear" => {
                    let Some(grid) = self.target(node).filter(|_| node.input(0) == Some(value)) else {
                        break;
                    };
                    tail.grid = Some(grid);
                    tail.root = id;
                    break;
                }
                _ => break,
            }
            may_add = false;
            tail.root = id;
            let Some(next) = node.output(0) else { break };
            value = next;
        }
        Some(tail)
    }

    /// Does a constant differ only along the last axis of another value, and leave its rank?
    fn is_row(&self, row: ValueId, of: ValueId) -> bool {
        let rank = self.graph.value(of).fact.rank();
        let shape = self.graph.value(row).fact.sizes();
        rank.zip(shape).is_some_and(|(rank, s)| s.len() <= rank && is_along(&s, 0))
    }

    fn bounds(&self, node: &Node) -> Option<Bounds> {
        if node.kind() == "Relu" {
            return Some(Bounds::RELU);
        }
        let attrs = node.op.attrs();
        let bound = |at: usize, name: &str, none: f32| match node.input(at) {
            Some(value) => self.number(value),
            None => attrs.float_or(name, none).ok(),
        };
        let bounds = Bounds { lo: bound(1, "min", f32::NEG_INFINITY)?, hi: bound(2, "max", f32::INFINITY)? };
        (bounds.lo <= bounds.hi).then_some(bounds)
    }

    /// The real numbers of a constant, perhaps one that is decoded from 32-bit codes.
    fn real(&self, value: ValueId) -> Option<Vec<f32>> {
        if let Some(numbers) = self.numbers(value) {
            return Some(numbers);
        }
        let from = self.decoded(value)?;
        let codes = self.fixed(from.codes)?.to_ints().ok()?;
        let scales = self.numbers(from.scale)?;
        let zero = from.zero.map_or(Some(0), |z| {
            let zeros = self.fixed(z)?.to_ints().ok()?;
            zeros.iter().all(|z| *z == 0).then_some(0)
        })?;
        let at = |i: usize| if scales.len() == 1 { Some(scales[0]) } else { scales.get(i).copied() };
        codes.iter().enumerate().map(|(i, &c)| Some((c - zero) as f32 * at(i)?)).collect()
    }

    /// A bias for `units` (the product of the operands' scales), one for each of `n` channels: as 32-bit sums when
    /// the result is quantised and they fit, else as real numbers, which only convolutions add to quantised results.
    fn bias(&self, value: ValueId, n: usize, units: &[f32], sums: bool, conv: bool) -> Option<Input> {
        let real = match self.real(value)? {
            one if one.len() == 1 => vec![one[0]; n],
            many => many,
        };
        if real.len() != n {
            return None;
        }
        let name = self.graph.value(value).name.clone();
        if !sums {
            return Some(Input::New(name, Tensor::vector(&real)));
        }
        let unit = |i: usize| f64::from(if units.len() == 1 { units[0] } else { units[i] });
        let codes: Vec<f64> =
            real.iter().enumerate().map(|(i, &b)| (f64::from(b) / unit(i)).round_ties_even()).collect();
        let fits = codes.iter().all(|c| c.abs() < f64::from(1 << 30));
        let codes: Vec<i32> = codes.into_iter().map(|c| c as i32).collect();
        match fits {
            true => Some(Input::New(name, Tensor::vector(&codes))),
            false => conv.then(|| Input::New(name, Tensor::vector(&real))),
        }
    }

    /// `Conv`, `MatMul` or `Gemm` of decoded bytes, and what follows it.
    fn product(&self, id: NodeId, node: &Node) -> Option<Plan> {
        if !node.op.domain().is_empty() {
            return None;
        }
        let attrs = node.op.attrs();
        let (x, w) = (self.bytes(node.input(0)?)?, self.decoded(node.input(1)?)?);
        if !self.is_bytes(w.codes) {
            return None;
        }
        let flag = |name: &str| attrs.int_or(name, 0).map(|v| v != 0).ok();
        let (conv, gemm) = (node.kind() == "Conv", node.kind() == "Gemm");
        let turned = if gemm { [flag("transA")?, flag("transB")?] } else { [false; 2] };
        let alpha = if gemm { attrs.float_or("alpha", 1.0).ok()? } else { 1.0 };
        if gemm && node.input(2).is_some() && attrs.float_or("beta", 1.0).ok() != Some(1.0) {
            return None;
        }
        let scales = self.numbers(w.scale)?;
        let weight = self.fixed(w.codes).map(|t| t.shape().to_vec());
        let channel = match (&weight, conv, turned[1]) {
            (Some(shape), true, _) if (3..=4).contains(&shape.len()) => Some(0),
            (Some(shape), false, true) if shape.len() == 2 => Some(0),
            (Some(shape), false, false) if shape.len() == 2 => Some(1),
            // Without a constant weight of a known form there is one scale and no bias.
            (None, false, _) if scales.len() == 1 => None,
            _ => return None,
        };
        if let (Some(shape), Some(channel)) = (&weight, channel)
            && scales.len() > 1
        {
            let axis = crate::infer::axis(w.axis, shape.len()).ok()?;
            if axis != channel || scales.len() != shape[channel] {
                return None;
            }
        }
        let own = node.input(2);
        let tail = self.tail(id, own.is_none() && !conv && channel.is_some())?;
        if own.is_some_and(|c| gemm && !self.graph.value(c).fact.sizes().is_some_and(|s| is_along(&s, 0))) {
            return None;
        }
        let bias = match own.or(tail.bias) {
            None => Input::None,
            Some(value) => {
                let n = weight.as_ref()?.get(channel?).copied()?;
                let units: Vec<f32> =
                    scales.iter().map(|w| alpha * (self.number(x.scale).unwrap_or(0.0) * w)).collect();
                self.bias(value, n, &units, tail.grid.is_some(), conv)?
            }
        };
        let op: Arc<dyn Op> = match conv {
            true => Arc::new(QConv::own(&attrs, tail.bounds).ok()?),
            false => Arc::new(QMatMul::own(alpha, turned, tail.bounds)),
        };
        let mut inputs = Vec::from(x.inputs());
        inputs.extend(w.inputs());
        inputs.push(bias);
        if let Some(grid) = tail.grid {
            inputs.extend([Input::Value(grid.scale), self.zero(&grid)]);
        }
        Some(Plan { root: tail.root, op, inputs })
    }

    /// `MatMulInteger` or `ConvInteger`, cast to floating point and multiplied by the operands' scales.
    fn dynamic(&self, node: &Node) -> Option<Plan> {
        let (_, cast) = self.only_reader(node.output(0)?)?;
        if cast.kind() != "Cast" || !matches!(cast.op.attrs().get("to"), Some(Attr::Int(1))) {
            return None;
        }
        let sums = cast.output(0)?;
        let (root, product) = self.only_reader(sums)?;
        let factor = if product.input(0) == Some(sums) { product.input(1)? } else { product.input(0)? };
        if product.kind() != "Mul" || factor == sums {
            return None;
        }
        let (_, factors) = self.graph.producer(factor).filter(|(_, n)| n.kind() == "Mul")?;
        let (a, b) = (factors.input(0)?, factors.input(1)?);
        let (a_scale, b_scale) = if self.fixed(b).is_some() { (a, b) } else { (b, a) };
        let conv = node.kind() == "ConvInteger";
        let shape = self.fixed(node.input(1)?)?.shape().to_vec();
        let channels = if conv { *shape.first()? } else { *shape.last()? };
        if conv && !(3..=4).contains(&shape.len()) || !conv && shape.len() != 2 {
            return None;
        }
        let rank = self.graph.value(sums).fact.rank()?;
        let keeps = |value: ValueId| self.graph.value(value).fact.rank() == Some(rank);
        if self.graph.value(a_scale).fact.count() != Some(1) || !keeps(product.output(0)?) {
            return None;
        }
        let scales = self.numbers(b_scale)?;
        let after = if conv { shape.len() - 2 } else { 0 };
        let along = |at: &ValueId| self.graph.value(*at).fact.sizes().is_some_and(|s| is_along(&s, after));
        let b_scale = match scales.len() {
            1 => Input::Value(b_scale),
            n if n == channels && along(&b_scale) => {
                Input::New(self.graph.value(b_scale).name.clone(), Tensor::vector(&scales))
            }
            _ => return None,
        };
        let mut root = root;
        let mut bias = Input::None;
        let mut value = product.output(0)?;
        if let Some((next, add)) = self.only_reader(value).filter(|(_, n)| n.kind() == "Add") {
            let other = if add.input(0) == Some(value) { add.input(1)? } else { add.input(0)? };
            let found = self.numbers(other).filter(|b| b.len() == channels && along(&other));
            let found = found.filter(|_| add.output(0).is_some_and(keeps));
            if let Some(found) = found {
                bias = Input::New(self.graph.value(other).name.clone(), Tensor::vector(&found));
                root = next;
                value = add.output(0)?;
            }
        }
        let mut bounds = Bounds::NONE;
        if let Some((next, found)) = self.only_reader(value).and_then(|(id, n)| {
            matches!(n.kind(), "Relu" | "Clip").then(|| self.bounds(n).map(|b| (id, b)))?
        }) {
            (root, bounds) = (next, found);
        }
        let op: Arc<dyn Op> = match conv {
            true => Arc::new(QConv::own(&node.op.attrs(), bounds).ok()?),
            false => Arc::new(QMatMul::own(1.0, [false; 2], bounds)),
        };
        let inputs = vec![
            Input::Value(node.input(0)?),
            Input::Value(a_scale),
            node.input(2).into(),
            Input::Value(node.input(1)?),
            b_scale,
            node.input(3).into(),
            bias,
        ];
        Some(Plan { root, op, inputs })
    }

    /// The codes that a node moves, and what it reads in the place of its inputs when it moves them before they are
    /// decoded.
    fn moved(&self, node: &Node) -> Option<(Codes, Vec<Input>)> {
        if !MOVES.contains(&node.kind()) || !node.op.domain().is_empty() {
            return None;
        }
        let from = self.bytes(node.input(0)?)?;
        self.number(from.scale).filter(|s| *s > 0.0)?;
        let mut inputs: Vec<Input> = node.inputs.iter().map(|&v| v.into()).collect();
        inputs[0] = Input::Value(from.codes);
        let attrs = node.op.attrs();
        match node.kind() {
            "MaxPool" if node.outputs.len() > 1 => return None,
            "Resize" | "Upsample" => {
                let crops = attrs.text_or("coordinate_transformation_mode", "").ok()? == "tf_crop_and_resize";
                if crops || attrs.text_or("mode", "nearest").ok()? != "nearest" {
                    return None;
                }
            }
            "Pad" => {
                let value = match node.input(2) {
                    Some(value) => self.number(value)?,
                    None => attrs.float_or("value", 0.0).ok()?,
                };
                // What is added must lie on the grid: zero does.
                if value != 0.0 {
                    return None;
                }
                inputs.resize_with(inputs.len().max(3), || Input::None);
                inputs[2] = self.zero(&from);
            }
            _ => {}
        }
        Some((from, inputs))
    }

    fn zero_code(&self, grid: &Codes) -> Option<i64> {
        grid.zero.map_or(Some(0), |z| self.fixed(z)?.to_ints().ok()?.first().copied())
    }

    /// Bytes that are decoded and quantised again: as they are, or moved to the other grid.
    fn again(&self, id: NodeId, to: &Codes, from: &Codes) -> Option<Plan> {
        if self.number(from.scale) == self.number(to.scale) && self.zero_code(from)? == self.zero_code(to)? {
            return Some(Plan { root: id, op: Arc::new(Identity), inputs: vec![Input::Value(from.codes)] });
        }
        let rank = self.graph.value(from.codes).fact.rank()?;
        let grid = [Input::Value(to.scale), self.zero(to)];
        let inputs = grid.into_iter().chain(from.inputs()).collect();
        (rank > 0).then(|| Plan { root: id, op: Arc::new(QConcat::along(0)), inputs })
    }

    /// Other operators between decoded bytes and this node, which quantises what they make.
    fn between(&self, id: NodeId, node: &Node) -> Option<Plan> {
        let to = self.target(node)?;
        let dtype = self.dtype(to.codes);
        let mut value = node.input(0)?;
        if let Some(from) = self.bytes(value) {
            return self.again(id, &to, &from).filter(|_| self.dtype(from.codes) == dtype);
        }
        let (_, mut maker) = self.graph.producer(value)?;
        self.only_reader(value)?;
        let mut bounds = Bounds::NONE;
        if matches!(maker.kind(), "Relu" | "Clip") {
            bounds = self.bounds(maker)?;
            value = maker.input(0)?;
            maker = self.graph.producer(value)?.1;
            self.only_reader(value)?;
        }
        if !maker.op.domain().is_empty() {
            return None;
        }
        let source = |at: usize| self.bytes(maker.input(at)?).filter(|c| self.dtype(c.codes) == dtype);
        let grid = [Input::Value(to.scale), self.zero(&to)];
        if maker.kind() == "Add" {
            let inputs = source(0)?.inputs().into_iter().chain(source(1)?.inputs()).chain(grid).collect();
            return Some(Plan { root: id, op: Arc::new(QPair::add(bounds)), inputs });
        }
        if bounds != Bounds::NONE || maker.outputs.iter().flatten().count() != 1 {
            return None;
        }
        let attrs = maker.op.attrs();
        let op: Arc<dyn Op> = match maker.kind() {
            "GlobalAveragePool" => Arc::new(QAverage::global()),
            "AveragePool" => Arc::new(QAverage::windowed(&attrs).ok()?),
            "Concat" => {
                let mut inputs = Vec::from(grid);
                for at in 0..maker.inputs.len() {
                    inputs.extend(source(at)?.inputs());
                }
                return Some(Plan {
                    root: id,
                    op: Arc::new(QConcat::along(attrs.need_int("axis").ok()?)),
                    inputs,
                });
            }
            _ => return None,
        };
        let inputs = source(0)?.inputs().into_iter().chain(grid).collect();
        Some(Plan { root: id, op, inputs })
    }
}

/// Does a tensor of this shape differ only along the axis with so many axes after it?
fn is_along(shape: &[usize], after: usize) -> bool {
    shape.iter().rev().enumerate().all(|(i, &d)| i == after || d == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Reader, ramp};
    use crate::ops::binary::Binary;
    use crate::ops::matmul::MatMul;
    use crate::ops::quantized::quantize::QuantizeLinear;
    use crate::run::Session;
    use crate::{Attrs, Dim, Fact};

    /// Quantise, decode, multiply by decoded weights, add a bias, quantise; the last two nodes' values.
    fn net(bias: &[usize]) -> (Graph, [ValueId; 2]) {
        let mut g = Graph::new("g");
        let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::Is(4), Dim::Is(3)])).unwrap();
        let scale = g.add_constant("scale", Tensor::scalar(0.02f32));
        let zero = g.add_constant("zero", Tensor::scalar(100u8));
        let codes: Vec<i8> = (0..12).map(|i| (i * 37 + 11) as i8).collect();
        let w = g.add_constant("w", Tensor::new(&[3, 4], &codes).unwrap());
        let w_scale = g.add_constant("w_scale", Tensor::vector(&[0.01f32, 0.02, 0.005, 0.03]));
        let bias = g.add_constant("bias", ramp(bias));
        let q = g.add_op("q", QuantizeLinear::along(1), &[x, scale, zero]).unwrap();
        let d = g.add_op("d", DequantizeLinear::along(1), &[q, scale, zero]).unwrap();
        let wd = g.add_op("wd", DequantizeLinear::along(1), &[w, w_scale]).unwrap();
        let m = g.add_op("m", MatMul::new(), &[d, wd]).unwrap();
        let a = g.add_op("a", Binary::named("Add").unwrap(), &[m, bias]).unwrap();
        let y = g.add_op("y", QuantizeLinear::along(1), &[a, scale, zero]).unwrap();
        g.outputs.push(y);
        (g, [m, a])
    }

    fn kinds(graph: &Graph) -> Vec<String> {
        graph.nodes().map(|(_, n)| n.kind().to_owned()).collect()
    }

    /// The graph after the passes, which must compute the same but for one step.
    fn tidied(graph: Graph) -> Vec<String> {
        let cpu = Cpu::new(1).unwrap();
        let mut after = graph.clone();
        super::super::run(&mut after, super::super::RUN, &cpu).unwrap();
        let kinds = kinds(&after);
        let run = |g| Session::new(g, &cpu).unwrap().run(vec![("x", ramp(&[4, 3]).into())]).unwrap();
        for (a, b) in run(after).iter().zip(&run(graph)) {
            let (a, b) = (a.tensor().unwrap().to_f32().unwrap(), b.tensor().unwrap().to_f32().unwrap());
            assert!(a.iter().zip(b.iter()).all(|(a, b)| (a - b).abs() <= 1.0));
        }
        kinds
    }

    #[test]
    fn a_product_takes_bias_and_quantising_with_it() {
        assert_eq!(tidied(net(&[4]).0), ["QuantizeLinear", "QMatMul"]);
    }

    #[test]
    fn a_bias_by_row_and_values_read_elsewhere_stay() {
        assert_eq!(tidied(net(&[4, 1]).0), ["QuantizeLinear", "QMatMul", "Add", "QuantizeLinear"]);
        let (mut g, [m, _]) = net(&[4]);
        g.outputs.push(m);
        assert_eq!(tidied(g), ["QuantizeLinear", "QMatMul", "Add", "QuantizeLinear"]);
        let (mut g, [_, a]) = net(&[4]);
        g.outputs.push(a);
        assert_eq!(tidied(g), ["QuantizeLinear", "QMatMul", "QuantizeLinear"]);
    }

    #[test]
    fn codes_move_undecoded_through_a_padded_shortcut() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::Is(4), Dim::Is(3)])).unwrap();
        let scale = g.add_constant("scale", Tensor::scalar(0.02f32));
        let zero = g.add_constant("zero", Tensor::scalar(100u8));
        let [start, end, pads] =
            [&[1i64, 0][..], &[4, 3], &[0, 0, 1, 0]].map(|n| g.add_constant("n", Tensor::vector(n)));
        let make = |kind: &str| {
            let reader = Reader { attrs: &Attrs::new(), version: 13, inputs: 1, outputs: 1 };
            crate::ops::read("", kind, &reader).unwrap()
        };
        let q = g.add_op("q", QuantizeLinear::along(1), &[x, scale, zero]).unwrap();
        let d = g.add_op("d", DequantizeLinear::along(1), &[q, scale, zero]).unwrap();
        let mut add = |op, inputs: &[ValueId]| {
            let node = Node::new(op, inputs.iter().copied().map(Some).collect());
            g.add_with_outputs("v", node, 1, None).unwrap().1[0]
        };
        let part = add(make("Slice"), &[d, start, end]);
        let padded = add(make("Pad"), &[part, pads]);
        let sum = add(make("Add"), &[d, padded]);
        let y = g.add_op("y", QuantizeLinear::along(1), &[sum, scale, zero]).unwrap();
        g.outputs.push(y);
        assert_eq!(tidied(g), ["QuantizeLinear", "Slice", "Pad", "QAdd"]);
    }

    #[test]
    fn bytes_quantised_again_stay_or_change_their_grid() {
        for (again, kinds) in
            [(0.02f32, ["QuantizeLinear", "Identity"]), (0.03, ["QuantizeLinear", "QLinearConcat"])]
        {
            let mut g = Graph::new("g");
            let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::Is(4), Dim::Is(3)])).unwrap();
            let [one, two] = [0.02, again].map(|s| g.add_constant("scale", Tensor::scalar(s)));
            let zero = g.add_constant("zero", Tensor::scalar(100u8));
            let q = g.add_op("q", QuantizeLinear::along(1), &[x, one, zero]).unwrap();
            let d = g.add_op("d", DequantizeLinear::along(1), &[q, one, zero]).unwrap();
            let y = g.add_op("y", QuantizeLinear::along(1), &[d, two, zero]).unwrap();
            g.outputs.push(y);
            assert_eq!(tidied(g), kinds);
        }
    }

    #[test]
    fn a_dynamic_product_takes_scales_bias_and_activation_with_it() {
        let mut g = Graph::new("g");
        let x = g.add_input("x", Fact::tensor(DType::F32, vec![Dim::Is(4), Dim::Is(3)])).unwrap();
        let codes: Vec<i8> = (0..12).map(|i| (i * 37 + 11) as i8).collect();
        let w = g.add_constant("w", Tensor::new(&[3, 4], &codes).unwrap());
        let w_scale = g.add_constant("w_scale", Tensor::vector(&[0.01f32, 0.02, 0.005, 0.03]));
        let bias = g.add_constant("bias", ramp(&[4]));
        let mut add = |kind: &str, attrs: Attrs, inputs: &[ValueId], outputs: usize| {
            let reader = Reader { attrs: &attrs, version: 23, inputs: inputs.len(), outputs };
            let op = crate::ops::read("", kind, &reader).unwrap();
            let node = Node::new(op, inputs.iter().copied().map(Some).collect());
            g.add_with_outputs(kind, node, outputs, None).unwrap().1
        };
        let q = add("DynamicQuantizeLinear", Attrs::new(), &[x], 3);
        let m = add("MatMulInteger", Attrs::new(), &[q[0], w, q[2]], 1);
        let c = add("Cast", Attrs::new().int("to", 1), &m, 1);
        let s = add("Mul", Attrs::new(), &[q[1], w_scale], 1);
        let p = add("Mul", Attrs::new(), &[c[0], s[0]], 1);
        let b = add("Add", Attrs::new(), &[p[0], bias], 1);
        let y = add("Gelu", Attrs::new(), &b, 1);
        g.outputs.push(y[0]);
        assert_eq!(tidied(g), ["DynamicQuantizeLinear", "QMatMul"]);
    }
}
