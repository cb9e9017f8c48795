//! Text encoders after BERT (<https://arxiv.org/abs/1810.04805>): tables, blocks of attention and feed-forward with
//! layer normalisation after each, and a head.

use graph::{Attrs, DType, Dim, Error, Fact, Model, Result, ValueId};
use serde_json::Value;

use super::Pooling;
use super::build::{Builder, OPSET};
use super::spec::{Family, Start};
use crate::safetensors::Tensors;

struct Shape {
    width: usize,
    heads: usize,
    blocks: usize,
    epsilon: f32,
}

/// Most blocks of a model: more is a damaged file.
const MAX_BLOCKS: usize = 1024;

/// Builds the graph of an encoder. Inputs `input_ids`, `attention_mask` and, if the family has token types,
/// `token_type_ids`, all int64 [batch, sequence]. Outputs `last_hidden_state` [batch, sequence, width], with
/// `pooling` also `sentence_embedding` [batch, width], with a classifying head only `logits` [batch, classes].
pub(super) fn build(
    family: &Family,
    config: &Value,
    tensors: Tensors,
    pooling: Option<(Pooling, bool)>,
) -> Result<Model> {
    let size = |key: &str| {
        let stated = config[key].as_u64().and_then(|v| usize::try_from(v).ok()).filter(|&v| v > 0);
        stated.ok_or_else(|| Error::invalid(format!("config.json has no size {key:?}")))
    };
    let [width, heads, blocks, activation] = family.keys;
    let shape = Shape {
        width: size(width)?,
        heads: size(heads)?,
        blocks: size(blocks)?,
        epsilon: config["layer_norm_eps"].as_f64().unwrap_or(1e-12) as f32,
    };
    if !shape.width.is_multiple_of(shape.heads) || shape.blocks > MAX_BLOCKS {
        return Err(Error::invalid(format!(
            "config.json asks for {} blocks, {} heads of {} in all",
            shape.blocks, shape.heads, shape.width
        )));
    }
    let activation = config[activation].as_str().unwrap_or("gelu");
    if let Some(kind) = config["position_embedding_type"].as_str().filter(|&k| k != "absolute") {
        return Err(Error::unsupported(format!("position_embedding_type {kind:?}")));
    }
    let mut b = Builder::new(family.model_types[0], tensors, family.prefixes)?;
    let ids = || Fact::tensor(DType::I64, vec![Dim::named("batch"), Dim::named("sequence")]);
    let tokens = b.input("input_ids", ids())?;
    let mask = b.input("attention_mask", ids())?;
    let types = family.types.map(|_| b.input("token_type_ids", ids())).transpose()?;
    let mut x = embed(&mut b, family, config, &shape, tokens, types)?;
    let bias = mask_bias(&mut b, mask)?;
    for block in 0..shape.blocks {
        x = attention(&mut b, family, &shape, block, x, bias)?;
        x = feed(&mut b, family, &shape, block, x, activation)?;
    }
    finish(&mut b, family, &shape, x, mask, pooling)?;
    let mut graph = b.graph;
    graph.infer()?;
    Ok(Model {
        graph,
        opsets: [(String::new(), OPSET)].into(),
        ir_version: 8,
        producer: ("lessen".into(), env!("CARGO_PKG_VERSION").into()),
        ..Model::default()
    })
}

fn none() -> Attrs {
    Attrs::new()
}

fn embed(
    b: &mut Builder,
    family: &Family,
    config: &Value,
    shape: &Shape,
    tokens: ValueId,
    types: Option<ValueId>,
) -> Result<ValueId> {
    let table = b.table(family.tokens, shape.width)?;
    let mut x = b.op("Gather", "tokens", &[table, tokens], none())?;
    if let (Some(types), Some(name)) = (types, family.types) {
        let table = b.table(name, shape.width)?;
        let row = b.op("Gather", "token_types", &[table, types], none())?;
        x = b.op("Add", "tokens_and_types", &[x, row], none())?;
    }
    let places = match family.start {
        Start::Zero => {
            let sizes = b.op("Shape", "sizes", &[tokens], none())?;
            let one = b.graph.add_constant("one", graph::Tensor::scalar(1i64));
            let zero = b.graph.add_constant("zero", graph::Tensor::scalar(0i64));
            let length = b.op("Gather", "length", &[sizes, one], none())?;
            b.op("Range", "places", &[zero, length, one], none())?
        }
        Start::AfterPadding => {
            let padding = config["pad_token_id"].as_i64().unwrap_or(1);
            let padding = b.graph.add_constant("padding", graph::Tensor::scalar(padding));
            let is_padding = b.op("Equal", "is_padding", &[tokens, padding], none())?;
            let real = b.op("Not", "is_token", &[is_padding], none())?;
            let real = b.op("Cast", "is_token_int", &[real], none().int("to", 7))?;
            let axis = b.graph.add_constant("sequence_axis", graph::Tensor::scalar(1i64));
            let count = b.op("CumSum", "count", &[real, axis], none())?;
            let count = b.op("Mul", "count_of_tokens", &[count, real], none())?;
            b.op("Add", "places", &[count, padding], none())?
        }
    };
    let table = b.table(family.positions, shape.width)?;
    let rows = b.op("Gather", "positions", &[table, places], none())?;
    let x = b.op("Add", "embedded", &[x, rows], none())?;
    b.norm(family.first_norm, x, shape.width, shape.epsilon)
}

/// What is added to attention's scores: 0 for tokens, the least number for padding. [batch, 1, 1, sequence]
fn mask_bias(b: &mut Builder, mask: ValueId) -> Result<ValueId> {
    let axes = b.ints("mask_axes", &[1, 2]);
    let mask = b.op("Unsqueeze", "mask_4d", &[mask, axes], none())?;
    let mask = b.op("Cast", "mask_float", &[mask], none().int("to", 1))?;
    let one = b.number("one_float", 1.0);
    let padding = b.op("Sub", "padding_float", &[one, mask], none())?;
    let least = b.number("least", f32::MIN);
    b.op("Mul", "mask_bias", &[padding, least], none())
}

fn attention(
    b: &mut Builder,
    family: &Family,
    shape: &Shape,
    block: usize,
    x: ValueId,
    bias: ValueId,
) -> Result<ValueId> {
    let [query, key, value, output] = family.attention.map(|name| numbered(name, block));
    let per_head = shape.width / shape.heads;
    let split = b.ints(&format!("block{block}.split"), &[0, 0, shape.heads as i64, per_head as i64]);
    let head = |b: &mut Builder, name: &str, perm: [i64; 4]| {
        let y = b.linear(name, x, shape.width, Some(shape.width))?;
        let y = b.op("Reshape", &format!("{name}.heads"), &[y, split], none())?;
        b.op("Transpose", &format!("{name}.turned"), &[y], none().ints("perm", &perm))
    };
    let q = head(b, &query, [0, 2, 1, 3])?;
    let k = head(b, &key, [0, 2, 3, 1])?;
    let v = head(b, &value, [0, 2, 1, 3])?;
    let name = |part: &str| format!("block{block}.{part}");
    let scores = b.op("MatMul", &name("scores"), &[q, k], none())?;
    let root = b.number(&name("root"), (per_head as f32).sqrt());
    let scores = b.op("Div", &name("scaled"), &[scores, root], none())?;
    let scores = b.op("Add", &name("masked"), &[scores, bias], none())?;
    let weights = b.op("Softmax", &name("weights"), &[scores], none().int("axis", -1))?;
    let mixed = b.op("MatMul", &name("mixed"), &[weights, v], none())?;
    let mixed = b.op("Transpose", &name("mixed_rows"), &[mixed], none().ints("perm", &[0, 2, 1, 3]))?;
    let join = b.ints(&name("join"), &[0, 0, shape.width as i64]);
    let mixed = b.op("Reshape", &name("joined"), &[mixed, join], none())?;
    let y = b.linear(&output, mixed, shape.width, Some(shape.width))?;
    let sum = b.op("Add", &name("attention_sum"), &[y, x], none())?;
    b.norm(&numbered(family.attention_norm, block), sum, shape.width, shape.epsilon)
}

fn feed(
    b: &mut Builder,
    family: &Family,
    shape: &Shape,
    block: usize,
    x: ValueId,
    activation: &str,
) -> Result<ValueId> {
    let [up, down] = family.feed.map(|name| numbered(name, block));
    let hidden = b.linear(&up, x, shape.width, None)?;
    let inner = b.graph.value(hidden).fact.shape().and_then(|s| s.last()?.size()).unwrap_or(0);
    let hidden = function(b, &up, hidden, activation)?;
    let y = b.linear(&down, hidden, inner, Some(shape.width))?;
    let sum = b.op("Add", &format!("block{block}.feed_sum"), &[y, x], none())?;
    b.norm(&numbered(family.feed_norm, block), sum, shape.width, shape.epsilon)
}

fn function(b: &mut Builder, name: &str, x: ValueId, activation: &str) -> Result<ValueId> {
    match activation {
        "relu" => b.op("Relu", &format!("{name}.relu"), &[x], none()),
        "gelu" => {
            let root = b.number("root_two", std::f32::consts::SQRT_2);
            let y = b.op("Div", &format!("{name}.scaled"), &[x, root], none())?;
            let y = b.op("Erf", &format!("{name}.erf"), &[y], none())?;
            let one = b.number("gelu_one", 1.0);
            let y = b.op("Add", &format!("{name}.shifted"), &[y, one], none())?;
            let y = b.op("Mul", &format!("{name}.gated"), &[x, y], none())?;
            let half = b.number("gelu_half", 0.5);
            b.op("Mul", &format!("{name}.gelu"), &[y, half], none())
        }
        other => Err(Error::unsupported(format!("the activation {other:?}"))),
    }
}

fn finish(
    b: &mut Builder,
    family: &Family,
    shape: &Shape,
    x: ValueId,
    mask: ValueId,
    pooling: Option<(Pooling, bool)>,
) -> Result<()> {
    let head = family.heads.iter().find(|h| b.has(&format!("{}.weight", h.last)));
    if let Some(head) = head {
        let first = first_token(b, x)?;
        let hidden = b.linear(head.hidden, first, shape.width, Some(shape.width))?;
        let hidden = b.op(head.function, &format!("{}.out", head.hidden), &[hidden], none())?;
        let logits = b.linear(head.last, hidden, shape.width, None)?;
        return output(b, logits, "logits");
    }
    output(b, x, "last_hidden_state")?;
    let Some((pooling, unit)) = pooling else { return Ok(()) };
    let mut pooled = match pooling {
        Pooling::First => first_token(b, x)?,
        Pooling::Mean => {
            let last = b.ints("last_axis", &[-1]);
            let weights = b.op("Cast", "mask_weights", &[mask], none().int("to", 1))?;
            let column = b.op("Unsqueeze", "mask_column", &[weights, last], none())?;
            let kept = b.op("Mul", "kept", &[x, column], none())?;
            let axis = b.ints("token_axis", &[1]);
            let sum = b.op("ReduceSum", "sum_of_tokens", &[kept, axis], none().int("keepdims", 0))?;
            let count = b.op("ReduceSum", "count_of_kept", &[column, axis], none().int("keepdims", 0))?;
            let least = b.number("least_count", 1e-9);
            let count = b.op("Max", "count_or_least", &[count, least], none())?;
            b.op("Div", "mean_of_tokens", &[sum, count], none())?
        }
    };
    if unit {
        let norm = b.op("ReduceL2", "norm", &[pooled], none().ints("axes", &[-1]).int("keepdims", 1))?;
        let least = b.number("least_norm", 1e-12);
        let norm = b.op("Max", "norm_or_least", &[norm, least], none())?;
        pooled = b.op("Div", "unit", &[pooled, norm], none())?;
    }
    output(b, pooled, "sentence_embedding")
}

fn first_token(b: &mut Builder, x: ValueId) -> Result<ValueId> {
    let zero = b.graph.add_constant("first", graph::Tensor::scalar(0i64));
    b.op("Gather", "first_token", &[x, zero], none().int("axis", 1))
}

fn output(b: &mut Builder, x: ValueId, name: &str) -> Result<()> {
    b.graph.rename(x, name)?;
    b.graph.value_mut(x).declared = true;
    b.graph.outputs.push(x);
    Ok(())
}

fn numbered(name: &str, block: usize) -> String {
    name.replace("{}", &block.to_string())
}
