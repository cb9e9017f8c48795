//! Static 8-bit quantization, written as `QuantizeLinear`/`DequantizeLinear` pairs around products, the form that
//! every engine reads: u8 activations on a fixed grid, s8 weights with a scale for each channel.

use std::collections::{HashMap, HashSet};

use graph::op::WeightKind;
use graph::{Attrs, DType, Graph, Node, NodeId, Tensor, ValueId};

use super::Constants;
use super::bias;
use super::grid::{Grid, Kind};
use super::int8::{Rounded, Sums, order};
use crate::calibrate::Stats;
use crate::weights::{Channels, Weight};
use crate::{Error, Result};

/// The stem of the names of scales and of what stands between grids: they are many, and their bytes count in small
/// models. A number follows.
const SHORT: &str = "q";

/// Most steps of the grid of the sums that a bias may be: it must fit 32 bits with what is added to it. A channel
/// whose weights are all but zero gets a coarser scale than they need, which its bias drowns out.
const MOST_STEPS: f32 = (1 << 28) as f32;

/// Operators that move or join numbers: what they read on a grid, they give back on a grid.
const CARRIERS: &[&str] = &["Add", "AveragePool", "Concat", "GlobalAveragePool", "MaxPool"];
/// Operators whose output has the very numbers of their input: it stays on the same grid.
const SAME: &[&str] = &["Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"];

/// The values that must lie on a grid when these weights are quantized: what their products read and make, and what
/// passes between them through additions, pools and the like.
pub fn values(graph: &Graph, weights: &[&Weight]) -> HashSet<ValueId> {
    let readers = graph.readers();
    let mut on_grid: HashSet<ValueId> = HashSet::new();
    let chosen: HashSet<NodeId> = weights.iter().map(|w| w.node).collect();
    for (id, node) in graph.nodes() {
        let Some(output) = node.output(0) else { continue };
        let follows = if chosen.contains(&id) {
            on_grid.extend(node.input(0).filter(|&x| is_f32(graph, x)));
            true
        } else if stays(graph, node) {
            node.input(0).is_some_and(|v| on_grid.contains(&v))
        } else if CARRIERS.contains(&node.kind()) {
            let mut moving = node.inputs.iter().flatten().filter(|&&v| is_f32(graph, v));
            moving.all(|v| on_grid.contains(v)) && node.input(0).is_some_and(|v| on_grid.contains(&v))
        } else {
            false
        };
        if follows {
            let value = after_activation(graph, output, &readers);
            if !graph.outputs.contains(&value) && is_f32(graph, value) {
                on_grid.insert(value);
            }
        }
    }
    on_grid
}

/// Does the node give back numbers of its input only, or zeros, which every grid has?
fn stays(graph: &Graph, node: &Node) -> bool {
    let zero =
        |v| graph.constant(v).and_then(|t| t.to_f32().ok()).is_some_and(|t| t.iter().all(|&x| x == 0.0));
    let zeros = node.kind() != "Pad" || node.input(2).is_none_or(zero);
    zeros && SAME.contains(&node.kind()) && node.op.domain().is_empty()
}

fn is_f32(graph: &Graph, id: ValueId) -> bool {
    graph.value(id).fact.dtype() == Some(DType::F32)
}

/// The value after a rectifier that alone reads this one, which a grid of codes from 0 includes.
fn after_activation(graph: &Graph, value: ValueId, readers: &[Vec<NodeId>]) -> ValueId {
    let [reader] = readers[value.index()].as_slice() else { return value };
    match graph.node(*reader) {
        Some(node) if is_rectifier(graph, node) && !graph.outputs.contains(&value) => {
            node.output(0).unwrap_or(value)
        }
        _ => value,
    }
}

fn is_rectifier(graph: &Graph, node: &Node) -> bool {
    match node.kind() {
        "Relu" => true,
        "Clip" => {
            let fixed = node.inputs.iter().skip(1).flatten().all(|&v| graph.constant(v).is_some());
            let low = match node.input(1) {
                Some(low) => graph.constant(low).and_then(|t| t.to_f32().ok()?.first().copied()),
                None => node.op.attrs().opt_float("min").ok().flatten(),
            };
            fixed && low == Some(0.0)
        }
        _ => false,
    }
}

/// A weight's codes and scales.
pub struct Codes {
    /// The codes, s8.
    pub codes: Tensor,
    /// A scale for each channel, f32.
    pub scales: Tensor,
    /// Zero points: zeros, s8, one for each channel.
    pub zeros: Tensor,
    /// The axis of the channels.
    pub axis: usize,
    /// Squared error relative to the squared norm: of the weight, or of its outputs when they are known.
    pub error: f64,
}

impl Rounded {
    /// The same as what [`quantize_weight`] gives for this tensor.
    fn as_codes(&self, tensor: &Tensor, axis: i64) -> Result<Codes> {
        let axis = Channels::new(tensor, axis)?.axis;
        Ok(Codes {
            codes: self.codes.clone(),
            scales: Tensor::vector(&self.scales),
            zeros: Tensor::vector(&vec![0i8; self.scales.len()]),
            axis,
            error: self.error,
        })
    }
}

/// Quantizes a weight to 8 bits, a searched scale for each channel along `axis`; `least` has the
/// least scale of each channel, or is empty.
///
/// # Errors
/// When the tensor is not f32 or has no such axis.
pub fn quantize_weight(tensor: &Tensor, axis: i64, least: &[f32], sums: Sums) -> Result<Codes> {
    let data = tensor.values::<f32>()?;
    let channels = Channels::new(tensor, axis)?;
    // Where in the sum an element of a channel comes: engines keep the channels of a tap together.
    let taps = tensor.shape().get(2..).unwrap_or_default().iter().product::<usize>().max(1);
    let (mut harm, mut norm) = (0f64, 0f64);
    let mut codes = vec![0i8; data.len()];
    let mut scales = Vec::with_capacity(channels.count);
    for c in 0..channels.count {
        let mut places: Vec<usize> = channels.indices(data.len(), c).collect();
        if channels.axis == 0 && taps > 1 {
            places = order(places.len(), taps).into_iter().map(|k| places[k]).collect();
        }
        let weights: Vec<f32> = places.iter().map(|&i| data[i]).collect();
        let (grid, found) = sums.search(&weights, least.get(c).copied().unwrap_or(0.0));
        for ((&i, &w), &code) in places.iter().zip(&weights).zip(&found) {
            harm += f64::from(w - f32::from(code) * grid.scale).powi(2);
            norm += f64::from(w).powi(2);
            codes[i] = code;
        }
        scales.push(grid.scale);
    }
    Ok(Codes {
        codes: Tensor::new(tensor.shape(), &codes)?,
        scales: Tensor::vector(&scales),
        zeros: Tensor::vector(&vec![0i8; channels.count]),
        axis: channels.axis,
        error: if norm > 0.0 { harm / norm } else { 0.0 },
    })
}

/// Rewrites the graph: puts the values of [`values`] on grids and these weights in 8 bits: those that are `rounded` as
/// they are there, the others each to its nearest codes.
///
/// # Errors
/// When calibration saw nothing of a value, or the graph cannot be changed.
pub fn rewrite(
    graph: &mut Graph,
    weights: &[&Weight],
    stats: &Stats,
    rounded: &HashMap<ValueId, Rounded>,
    version: i64,
) -> Result<HashMap<NodeId, f64>> {
    let on_grid = values(graph, weights);
    let grids = grids(graph, &on_grid, stats)?;
    let mut writer = Writer { graph, version, grids, rounded, zeros: Constants::default() };
    let mut ordered: Vec<ValueId> = on_grid.into_iter().collect();
    ordered.sort();
    // Products first: they look at what they read before it moves behind its pair.
    let mut errors = HashMap::new();
    for weight in weights {
        errors.insert(weight.node, writer.product(weight)?);
    }
    for value in ordered {
        writer.pair(value)?;
    }
    graph.sort()?;
    Ok(errors)
}

fn grids(graph: &Graph, on_grid: &HashSet<ValueId>, stats: &Stats) -> Result<HashMap<ValueId, Grid>> {
    let mut grids: HashMap<ValueId, Grid> = HashMap::new();
    // In the order of the nodes, so that a value that only moves takes the grid it came from.
    let inputs = graph.inputs.iter().copied();
    let made = graph.nodes().flat_map(|(_, n)| n.outputs.iter().flatten().copied().collect::<Vec<_>>());
    for value in inputs.chain(made).filter(|v| on_grid.contains(v)) {
        let from = graph.producer(value).filter(|(_, n)| stays(graph, n)).and_then(|(_, n)| n.input(0));
        let grid = match from.and_then(|v| grids.get(&v)) {
            Some(&grid) => grid,
            None => {
                let range = stats.get(&value).and_then(|h| h.best_range(Kind::U8));
                let (low, high) = range.ok_or_else(|| {
                    Error::Calibration(format!("no example reached value {:?}", graph.value(value).name))
                })?;
                Grid::from_range(low, high, Kind::U8)
            }
        };
        grids.insert(value, grid);
    }
    Ok(grids)
}

struct Writer<'a> {
    graph: &'a mut Graph,
    version: i64,
    grids: HashMap<ValueId, Grid>,
    rounded: &'a HashMap<ValueId, Rounded>,
    zeros: Constants,
}

impl Writer<'_> {
    /// Puts a `QuantizeLinear`/`DequantizeLinear` pair behind a value; all its readers read the pair.
    fn pair(&mut self, value: ValueId) -> Result<()> {
        let grid = self.grids[&value];
        let scale = self.graph.add_constant(SHORT, Tensor::scalar(grid.scale));
        let zero = self.zeros.get(self.graph, "zero", Tensor::scalar(grid.zero as u8));
        let readers: Vec<NodeId> = self.graph.readers().swap_remove(value.index());
        let first = readers.first().copied();
        let q = self.node("QuantizeLinear", SHORT, &[value, scale, zero], Attrs::new(), first)?;
        let d = self.node("DequantizeLinear", SHORT, &[q, scale, zero], Attrs::new(), first)?;
        for reader in readers {
            let inputs = self.graph.node(reader).map(|n| n.inputs.clone()).unwrap_or_default();
            for (i, input) in inputs.into_iter().enumerate() {
                if input == Some(value) {
                    self.graph.set_input(reader, i, Some(d));
                }
            }
        }
        Ok(())
    }

    /// Puts the weight of a product in integers. The bias of a convolution stays as it is: engines put it on the
    /// grid of the sums when they read the file, and scales for it would cost as many bytes again.
    fn product(&mut self, weight: &Weight) -> Result<f64> {
        let rounded = self.rounded.get(&weight.value);
        if let Some(rounded) = rounded {
            bias::add(self.graph, weight, &rounded.shift)?;
        }
        let Some(node) = self.graph.node(weight.node) else { return Ok(0.0) };
        let Some(tensor) = self.graph.constant(weight.value).cloned() else { return Ok(0.0) };
        let conv = weight.used.kind == WeightKind::Conv;
        let input = node.input(0).and_then(|x| self.grids.get(&x)).map(|grid| grid.scale);
        let bias = node.input(2).filter(|_| conv).and_then(|b| self.graph.constant(b)).zip(input);
        let least: Vec<f32> = match bias {
            Some((bias, input)) => bias.to_f32()?.iter().map(|b| b.abs() / input / MOST_STEPS).collect(),
            None => Vec::new(),
        };
        let fits = |r: &&Rounded| r.scales.iter().zip(&least).all(|(scale, least)| scale >= least);
        let Codes { codes, scales, zeros, axis, error } = match rounded.filter(fits) {
            Some(rounded) => rounded.as_codes(&tensor, weight.used.out_axis)?,
            None => {
                let sums = Sums::of(self.graph, weight);
                quantize_weight(&tensor, weight.used.out_axis, &least, sums)?
            }
        };
        let name = self.graph.value(weight.value).name.clone();
        let mut ids = vec![
            self.graph.add_constant(&format!("{name}.c"), codes),
            self.graph.add_constant(SHORT, scales.clone()),
        ];
        // Without zero points onnxruntime takes a convolution for one of integers, but not a matrix product.
        if !conv {
            ids.push(self.zeros.get(self.graph, "zeros", zeros));
        }
        let attrs = Attrs::new().int("axis", axis as i64);
        let d = self.node("DequantizeLinear", SHORT, &ids, attrs, Some(weight.node))?;
        self.graph.set_input(weight.node, weight.used.input, Some(d));
        if let Some(input) = input.filter(|_| !conv) {
            self.bias(weight, &scales, input)?;
        }
        Ok(error)
    }

    /// Puts the bias of a `Gemm` in integers: onnxruntime takes it for one of integers only then.
    fn bias(&mut self, weight: &Weight, scales: &Tensor, input_scale: f32) -> Result<()> {
        let Some(node) = self.graph.node(weight.node) else { return Ok(()) };
        let unscaled = |name: &str| node.op.attrs().float_or(name, 1.0).is_ok_and(|v| v == 1.0);
        let holds = node.kind() == "Gemm" && unscaled("alpha") && unscaled("beta");
        let Some(value) = node.input(2).filter(|_| holds) else { return Ok(()) };
        let Some(bias) = self.graph.constant(value).cloned() else { return Ok(()) };
        let (bias, scales) = (bias.values::<f32>()?.into_owned(), scales.values::<f32>()?);
        if bias.len() != scales.len() || self.graph.value(value).fact.rank() != Some(1) {
            return Ok(());
        }
        let steps: Vec<f32> = scales.iter().map(|s| s * input_scale).collect();
        // A channel whose weights are all but zero would need a bias beyond 32 bits: keep the bias as it is then.
        if bias.iter().zip(&steps).any(|(b, s)| !(b / s).is_finite() || (b / s).abs() >= MOST_STEPS) {
            return Ok(());
        }
        let codes: Vec<i32> =
            bias.iter().zip(&steps).map(|(b, s)| (b / s).round_ties_even() as i32).collect();
        let name = self.graph.value(value).name.clone();
        let zeros = Tensor::vector(&vec![0i32; codes.len()]);
        let codes = self.graph.add_constant(&format!("{name}.c"), Tensor::vector(&codes));
        let scale = self.graph.add_constant(SHORT, Tensor::vector(&steps));
        let ids = [codes, scale, self.zeros.get(self.graph, "zeros", zeros)];
        let attrs = Attrs::new().int("axis", 0);
        let d = self.node("DequantizeLinear", SHORT, &ids, attrs, Some(weight.node))?;
        self.graph.set_input(weight.node, 2, Some(d));
        Ok(())
    }

    fn node(
        &mut self,
        kind: &str,
        name: &str,
        inputs: &[ValueId],
        attrs: Attrs,
        before: Option<NodeId>,
    ) -> Result<ValueId> {
        super::add(self.graph, kind, self.version, name, inputs, attrs, before)
    }
}
