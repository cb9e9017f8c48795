//! What follows a product or a convolution goes into it: a bias, a residual, an activation.

use std::sync::Arc;

use kernel::{Act, Cpu};

use crate::ops::conv::Conv;
use crate::ops::fuse::is_fusable;
use crate::ops::gemm::Gemm;
use crate::ops::matmul::MatMul;
use crate::ops::quantized::matmul::QMatMul;
use crate::{DType, Graph, Node, NodeId, Op, Result, Tensor, ValueId};

/// The activation that a node applies to its first input.
pub(in crate::tidy) fn act_of(graph: &Graph, node: &Node) -> Option<Act> {
    let attrs = node.op.attrs();
    let float = |name: &str, default: f32| attrs.float_or(name, default).ok();
    let act = match (node.op.domain(), node.kind()) {
        ("", "Relu") => Act::Relu,
        ("", "Sigmoid") => Act::Sigmoid,
        ("", "Tanh") => Act::Tanh,
        ("", "HardSwish") => Act::HardSwish,
        ("", "Mish") => Act::Mish,
        ("", "Softplus") => Act::Softplus,
        ("", "LeakyRelu") => Act::LeakyRelu(float("alpha", 0.01)?),
        ("", "Elu") => Act::Elu(float("alpha", 1.0)?),
        ("", "Swish") => match float("alpha", 1.0)? {
            1.0 => Act::Silu,
            alpha => Act::Swish(alpha),
        },
        ("", "HardSigmoid") => Act::HardSigmoid { alpha: float("alpha", 0.2)?, beta: float("beta", 0.5)? },
        ("" | "com.microsoft", "Gelu") => match attrs.text_or("approximate", "none").ok()? {
            "tanh" => Act::GeluTanh,
            _ => Act::Gelu,
        },
        ("", "Clip") => {
            let bound = |i: usize, name: &str, default: f32| match node.input(i) {
                Some(v) => graph.constant(v)?.item::<f32>().ok(),
                None => float(name, default),
            };
            let (lo, hi) = (bound(1, "min", f32::MIN)?, bound(2, "max", f32::MAX)?);
            (lo <= hi).then_some(Act::Clip { lo, hi })?
        }
        _ => return None,
    };
    is_fusable(act).then_some(act)
}

/// An operator that can take an epilogue.
enum Host {
    Conv(Conv),
    Linear(MatMul),
    Gemm(Gemm),
    /// With a real result; takes an activation only.
    Quantized(QMatMul),
}

impl Host {
    fn of(graph: &Graph, node: &Node) -> Option<Host> {
        let any = node.op.as_any();
        if let Some(product) = any.downcast_ref::<QMatMul>() {
            let real = node.input(product.y_scale()).is_none();
            return (real && product.then(Act::Identity).is_some()).then(|| Host::Quantized(product.clone()));
        }
        let is_f32 = |i: usize| node.input(i).and_then(|v| graph.value(v).fact.dtype()) == Some(DType::F32);
        let fixed = node.input(1).is_some_and(|w| graph.constant(w).is_some());
        if !is_f32(0) || !is_f32(1) {
            return None;
        }
        if let Some(conv) = any.downcast_ref::<Conv>() {
            return (fixed && conv.act == Act::Identity).then(|| Host::Conv(conv.clone()));
        }
        if let Some(product) = any.downcast_ref::<MatMul>() {
            let flat = node.input(1).is_some_and(|w| graph.value(w).fact.rank() == Some(2));
            return (fixed && flat && product.act == Act::Identity).then(|| Host::Linear(product.clone()));
        }
        let gemm = any.downcast_ref::<Gemm>()?;
        (gemm.act == Act::Identity).then(|| Host::Gemm(gemm.clone()))
    }

    fn then(&self, act: Act) -> Option<Arc<dyn Op>> {
        Some(match self {
            Host::Conv(conv) => Arc::new(conv.then(act)),
            Host::Linear(product) => Arc::new(product.linear(act)),
            Host::Gemm(gemm) => Arc::new(gemm.then(act)),
            Host::Quantized(product) => Arc::new(product.then(act)?),
        })
    }

    /// The length of a bias, and the axis (counted from the end) that it lies along.
    fn channels(&self, graph: &Graph, node: &Node) -> Option<(usize, usize)> {
        let weight = graph.value(node.input(1)?).fact.sizes()?;
        match self {
            Host::Conv(_) => Some((weight[0], weight.len().checked_sub(2)?)),
            Host::Linear(product) => Some((weight[usize::from(!product.transposed[1])], 0)),
            Host::Gemm(_) | Host::Quantized(_) => None,
        }
    }
}

/// Takes what follows into each host, as far as it goes.
pub(in crate::tidy) fn fuse(graph: &mut Graph, _: &Cpu) -> Result<usize> {
    let mut count = 0;
    let mut readers = graph.readers();
    for id in graph.node_ids() {
        if graph.node(id).is_none_or(|n| Host::of(graph, n).is_none()) {
            continue;
        }
        while step(graph, id, &readers)? {
            readers = graph.readers();
            count += 1;
        }
    }
    Ok(count)
}

/// Takes the one node that reads the host's output into it, if it can.
fn step(graph: &mut Graph, id: NodeId, readers: &[Vec<NodeId>]) -> Result<bool> {
    let Some(node) = graph.node(id) else { return Ok(false) };
    let Some(host) = Host::of(graph, node) else { return Ok(false) };
    let Some(output) = node.output(0).filter(|v| !graph.outputs.contains(v)) else { return Ok(false) };
    let [next_id] = readers[output.index()].as_slice() else { return Ok(false) };
    let next_id = *next_id;
    let Some(next) = graph.node(next_id) else { return Ok(false) };
    let Some(result) = next.output(0) else { return Ok(false) };
    if let Some(act) = act_of(graph, next).filter(|_| next.input(0) == Some(output)) {
        let Some(op) = host.then(act) else { return Ok(false) };
        return take(graph, id, next_id, result, op, None);
    }
    if matches!(host, Host::Quantized(_)) || next.kind() != "Add" || !next.op.domain().is_empty() {
        return Ok(false);
    }
    let other = match (next.input(0), next.input(1)) {
        (Some(a), Some(b)) if a == output && b != output => b,
        (Some(a), Some(b)) if b == output && a != output => a,
        _ => return Ok(false),
    };
    let Some(op) = host.then(Act::Identity) else { return Ok(false) };
    let no_residual = node.input(3).is_none();
    if let Some(bias) = no_residual.then(|| bias(graph, node, &host, other)).flatten() {
        let name = format!("{}.bias", graph.value(output).name);
        let bias = graph.add_constant(&name, bias);
        return take(graph, id, next_id, result, op, Some((2, bias)));
    }
    let fits = !matches!(host, Host::Gemm(_)) && no_residual && same_shape(graph, other, output);
    if fits && graph.value(other).fact.dtype() == Some(DType::F32) {
        return take(graph, id, next_id, result, op, Some((3, other)));
    }
    Ok(false)
}

fn take(
    graph: &mut Graph,
    id: NodeId,
    next: NodeId,
    result: ValueId,
    op: Arc<dyn Op>,
    input: Option<(usize, ValueId)>,
) -> Result<bool> {
    if let Some((i, value)) = input {
        graph.set_input(id, i, Some(value));
    }
    graph.remove_node(next);
    graph.set_output(id, 0, Some(result))?;
    if let Some(node) = graph.node_mut(id) {
        node.op = op;
    }
    Ok(true)
}

fn same_shape(graph: &Graph, a: ValueId, b: ValueId) -> bool {
    match (graph.value(a).fact.shape(), graph.value(b).fact.shape()) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.same(y)),
        _ => false,
    }
}

/// The host's bias with a constant added to it, when the constant is one number for each channel.
fn bias(graph: &Graph, node: &Node, host: &Host, other: ValueId) -> Option<Tensor> {
    let (channels, after) = host.channels(graph, node)?;
    let constant = graph.constant(other)?;
    let shape = constant.shape();
    let at = shape.len().checked_sub(after + 1)?;
    let rank = graph.value(node.output(0)?).fact.rank()?;
    let lies = shape.len() <= rank
        && shape.iter().enumerate().all(|(i, &n)| n == if i == at { channels } else { 1 });
    let more = constant.values::<f32>().ok().filter(|_| lies)?;
    let mut sum = more.into_owned();
    if let Some(old) = node.input(2) {
        let old = graph.constant(old)?;
        let old = old.values::<f32>().ok().filter(|o| o.len() == sum.len())?;
        sum.iter_mut().zip(old.iter()).for_each(|(a, b)| *a += b);
    }
    Some(Tensor::vector(&sum))
}
