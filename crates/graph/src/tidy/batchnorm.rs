//! Batch normalisation after a convolution goes into its weights: `w' = w * s`, `b' = (b - mean) * s + beta` with
//! `s = gamma / sqrt(var + epsilon)`, for each output channel.

use kernel::Cpu;

use crate::{Attrs, Graph, Node, NodeId, Result, Tensor, ValueId};

/// Folds each batch normalisation whose input comes from a convolution that nobody else reads.
pub(super) fn fold(graph: &mut Graph, _: &Cpu) -> Result<usize> {
    let mut count = 0;
    let mut readers = graph.readers();
    for id in graph.node_ids() {
        let Some(plan) = graph.node(id).and_then(|node| plan(graph, node, &readers)) else { continue };
        let Plan { conv, weight, bias, output } = plan;
        let (name, has_bias) = match graph.node(conv) {
            Some(c) => (c.name.clone(), c.input(2)),
            None => continue,
        };
        let weight_name = graph.node(conv).and_then(|c| c.input(1)).map(|w| graph.value(w).name.clone());
        let bias_name = has_bias.map_or_else(|| format!("{name}.bias"), |b| graph.value(b).name.clone());
        let weight = graph.add_constant(&weight_name.unwrap_or_default(), weight);
        let bias = graph.add_constant(&bias_name, bias);
        graph.remove_node(id);
        graph.set_input(conv, 1, Some(weight));
        graph.set_input(conv, 2, Some(bias));
        graph.set_output(conv, 0, Some(output))?;
        readers = graph.readers();
        count += 1;
    }
    Ok(count)
}

struct Plan {
    conv: NodeId,
    weight: Tensor,
    bias: Tensor,
    output: ValueId,
}

fn plan(graph: &Graph, norm: &Node, readers: &[Vec<NodeId>]) -> Option<Plan> {
    if norm.kind() != "BatchNormalization" || norm.outputs.iter().skip(1).any(Option::is_some) {
        return None;
    }
    let attrs: Attrs = norm.op.attrs();
    if attrs.flag_or("training_mode", false).ok()? || attrs.int_or("spatial", 1).ok()? == 0 {
        return None;
    }
    let epsilon = attrs.float_or("epsilon", 1e-5).ok()?;
    let between = norm.input(0)?;
    let (conv_id, conv) = graph.producer(between)?;
    let transposed = match conv.kind() {
        "Conv" => false,
        "ConvTranspose" => true,
        _ => return None,
    };
    let group = usize::try_from(conv.op.attrs().int_or("group", 1).ok()?).ok()?;
    if (transposed && group != 1) || readers[between.index()].len() != 1 || graph.outputs.contains(&between) {
        return None;
    }
    let fixed = |id: Option<ValueId>| graph.constant(id?).and_then(|t| t.values::<f32>().ok());
    let tensor = graph.constant(conv.input(1)?)?;
    let (gamma, beta) = (fixed(norm.input(1))?, fixed(norm.input(2))?);
    let (mean, var) = (fixed(norm.input(3))?, fixed(norm.input(4))?);
    let channels = gamma.len();
    let axis = usize::from(transposed);
    let old_bias = match conv.input(2) {
        Some(bias) => fixed(Some(bias))?.into_owned(),
        None => vec![0.0; channels],
    };
    if tensor.shape().get(axis) != Some(&channels)
        || [beta.len(), mean.len(), var.len(), old_bias.len()] != [channels; 4]
    {
        return None;
    }
    let scale: Vec<f32> = gamma.iter().zip(var.iter()).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    let bias: Vec<f32> = (0..channels).map(|c| (old_bias[c] - mean[c]) * scale[c] + beta[c]).collect();
    if scale.iter().chain(&bias).any(|v| !v.is_finite()) {
        return None;
    }
    let mut weight = Tensor::new(tensor.shape(), &tensor.values::<f32>().ok()?).ok()?;
    let inner: usize = tensor.shape()[axis + 1..].iter().product();
    for (i, block) in weight.as_mut_slice::<f32>().ok()?.chunks_mut(inner.max(1)).enumerate() {
        block.iter_mut().for_each(|w| *w *= scale[i % channels]);
    }
    Some(Plan { conv: conv_id, weight, bias: Tensor::vector(&bias), output: norm.output(0)? })
}
