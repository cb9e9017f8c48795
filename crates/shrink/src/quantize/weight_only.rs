//! Weights of 1 to 8 bits in a file that every engine reads: activations stay as they are. Codes of 4 and 8 bits have
//! types of their own in ONNX. All others are cut into planes of 1, 2 and 4 bits that fill bytes; shifts and masks put
//! them together again, one chain of a few nodes for all weights of as many bits, which engines compute once when they
//! read the file. Tables that are looked up by row keep their planes: only the rows that are wanted are put together.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use graph::op::WeightKind;
use graph::{Attrs, DType, Graph, NodeId, Tensor, ValueId};

use super::codebook::{Codebook, Table};
use super::coded::Coded;
use super::{Constants, add, add_many};
use crate::matrix::Layout;
use crate::weights::Weight;
use crate::{Error, Result};

/// The least version of ONNX's operators that has codes of 4 bits, and scales for blocks.
pub const MIN_OPSET: i64 = 21;

/// A weight at a node, and what it becomes.
pub struct Item<'a> {
    /// The weight.
    pub weight: &'a Weight,
    /// How it is seen as a matrix.
    pub layout: &'a Layout,
    /// The codes.
    pub coded: &'a Coded,
}

/// A weight at a node, and what it becomes with a table.
pub struct Book<'a> {
    /// The weight.
    pub weight: &'a Weight,
    /// How it is seen as a matrix.
    pub layout: &'a Layout,
    /// The codes and the table.
    pub book: &'a Codebook,
}

/// Names of what stands between codes and weights: they are many, and their bytes count in small models.
const SHORT: &str = "q";

/// Puts codes in the place of weights.
///
/// # Errors
/// [`Error::Form`] when a form cannot be written; when the graph cannot be changed.
pub fn rewrite(graph: &mut Graph, items: &[Item], version: i64) -> Result<()> {
    let first = graph.nodes().next().map(|(id, _)| id);
    let mut writer = Writer { graph, version, constants: Constants::default(), first };
    let (tables, products): (Vec<&Item>, Vec<&Item>) =
        items.iter().partition(|item| item.weight.used.kind == WeightKind::Embedding);
    // A weight that several nodes use is written once.
    let mut unique: Vec<&Item> = Vec::new();
    for item in &products {
        if !unique.iter().any(|u| u.weight.value == item.weight.value) {
            unique.push(item);
        }
    }
    let mut made: HashMap<ValueId, ValueId> = HashMap::new();
    for bits in 1..=8 {
        let of_bits: Vec<&Item> = unique.iter().copied().filter(|i| i.coded.form.bits == bits).collect();
        let codes = writer.codes(&of_bits, bits, true)?;
        for (item, codes) in of_bits.into_iter().zip(codes) {
            made.insert(item.weight.value, writer.decode(item, codes)?);
        }
    }
    for item in products {
        if let Some(&value) = made.get(&item.weight.value) {
            writer.graph.set_input(item.weight.node, item.weight.used.input, Some(value));
        }
    }
    let mut shared = HashMap::new();
    for item in tables {
        writer.table(item, None, &mut shared)?;
    }
    graph.sort()?;
    Ok(())
}

/// Puts codes and tables in the place of weights: `Gather(table, codes)`, times the scales.
///
/// # Errors
/// As [`rewrite`].
pub fn rewrite_books(graph: &mut Graph, books: &[Book], version: i64) -> Result<()> {
    let first = graph.nodes().next().map(|(id, _)| id);
    let mut writer = Writer { graph, version, constants: Constants::default(), first };
    let is_table = |b: &Book| b.weight.used.kind == WeightKind::Embedding;
    let mut made: HashMap<ValueId, ValueId> = HashMap::new();
    for bits in 1..=8 {
        let mut of_bits: Vec<&Book> = Vec::new();
        for book in books.iter().filter(|b| !is_table(b) && b.book.coded.form.bits == bits) {
            if !of_bits.iter().any(|u| u.weight.value == book.weight.value) {
                of_bits.push(book);
            }
        }
        let items: Vec<Item> = of_bits
            .iter()
            .map(|b| Item { weight: b.weight, layout: b.layout, coded: &b.book.coded })
            .collect();
        let codes = writer.codes(&items.iter().collect::<Vec<_>>(), bits, false)?;
        for (book, codes) in of_bits.into_iter().zip(codes) {
            made.insert(book.weight.value, writer.look_up(book, codes)?);
        }
    }
    let mut shared = HashMap::new();
    for book in books {
        if let Some(&value) = made.get(&book.weight.value) {
            writer.graph.set_input(book.weight.node, book.weight.used.input, Some(value));
        } else {
            let item = Item { weight: book.weight, layout: book.layout, coded: &book.book.coded };
            writer.table(&item, Some(book.book), &mut shared)?;
        }
    }
    graph.sort()?;
    Ok(())
}

/// The widths of the planes of codes of so many bits, the highest bits first.
fn widths(bits: u32) -> impl Iterator<Item = u32> {
    [8, 4, 2, 1].into_iter().filter(move |w| bits & w != 0)
}

/// Bits `shift..shift + width` of each line of codes: place `i` of a plane of `n` bytes has those of codes i, i + n, ..
/// from its lowest bits up. The length of a line must be a multiple of the codes in a byte.
fn plane(codes: &[u8], line: usize, shift: u32, width: u32) -> Vec<u8> {
    let per = (8 / width) as usize;
    let bytes = line / per;
    let mask = (0xffu32 >> (8 - width)) as u8;
    let mut out = Vec::with_capacity(codes.len() / per);
    for line in codes.chunks_exact(line.max(1)) {
        for i in 0..bytes {
            let part = |k: usize| ((line[k * bytes + i] >> shift) & mask) << (k as u32 * width);
            out.push((0..per).map(part).fold(0, |a, b| a | b));
        }
    }
    out
}

fn tensor_of(dtype: DType, shape: &[usize], codes: &[u8]) -> Result<Tensor> {
    Ok(if dtype.is_packed() { Tensor::pack(dtype, shape, codes)? } else { Tensor::new(shape, codes)? })
}

struct Writer<'a> {
    graph: &'a mut Graph,
    version: i64,
    constants: Constants,
    /// The first node of the graph: what makes weights comes before it.
    first: Option<NodeId>,
}

impl Writer<'_> {
    fn node(
        &mut self,
        kind: &str,
        inputs: &[ValueId],
        attrs: Attrs,
        before: Option<NodeId>,
    ) -> Result<ValueId> {
        add(self.graph, kind, self.version, SHORT, inputs, attrs, before)
    }

    fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.constants.get(self.graph, SHORT, tensor)
    }

    /// Values with the codes of each weight, in its tensor's shape; those of 4 bits in their own type when `four`.
    fn codes(&mut self, items: &[&Item], bits: u32, four: bool) -> Result<Vec<ValueId>> {
        let in_order = |item: &Item| -> Vec<u8> {
            let (rows, cols, codes) = (item.coded.rows, item.coded.cols, &item.coded.codes);
            match item.layout.is_turned() {
                true => (0..rows * cols).map(|k| codes[k % rows * cols + k / rows]).collect(),
                false => codes.clone(),
            }
        };
        let name = |graph: &Graph, item: &Item| format!("{}.c", graph.value(item.weight.value).name);
        if (bits == 4 && four) || bits == 8 {
            let dtype = if bits == 4 { DType::U4 } else { DType::U8 };
            let mut values = Vec::new();
            for item in items {
                let tensor = tensor_of(dtype, item.layout.shape(), &in_order(item))?;
                values.push(self.graph.add_constant(&name(self.graph, item), tensor));
            }
            return Ok(values);
        }
        if items.is_empty() {
            return Ok(Vec::new());
        }
        let mut all: Vec<u8> = Vec::new();
        let mut sizes: Vec<i64> = Vec::new();
        for item in items {
            let codes = in_order(item);
            sizes.push(codes.len() as i64);
            all.extend(codes);
        }
        let padding = all.len().next_multiple_of(8) - all.len();
        all.resize(all.len() + padding, 0);
        if padding > 0 {
            sizes.push(padding as i64);
        }
        let line = all.len();
        let planes: Vec<ValueId> = self.planes(&all, line, bits, |_, bytes| Ok(Tensor::vector(&bytes)))?;
        let codes = self.join(&planes, bits, 0, self.first)?;
        let count = sizes.len();
        let sizes = self.constant(Tensor::vector(&sizes));
        let parts = match count {
            1 => vec![codes],
            _ => {
                let attrs = Attrs::new().int("axis", 0);
                add_many(self.graph, "Split", self.version, SHORT, &[codes, sizes], attrs, self.first, count)?
            }
        };
        let mut values = Vec::new();
        for (item, part) in items.iter().zip(parts) {
            let shape: Vec<i64> = item.layout.shape().iter().map(|&n| n as i64).collect();
            let shape = self.constant(Tensor::vector(&shape));
            values.push(self.node("Reshape", &[part, shape], Attrs::new(), self.first)?);
        }
        Ok(values)
    }

    /// The planes of lines of codes as constants, the highest bits first.
    fn planes(
        &mut self,
        codes: &[u8],
        line: usize,
        bits: u32,
        shape: impl Fn(u32, Vec<u8>) -> Result<Tensor>,
    ) -> Result<Vec<ValueId>> {
        let mut left = bits;
        let mut planes = Vec::new();
        for width in widths(bits) {
            left -= width;
            let tensor = shape(width, plane(codes, line, left, width))?;
            planes.push(self.graph.add_constant(SHORT, tensor));
        }
        Ok(planes)
    }

    /// Codes from planes, along an axis.
    fn join(&mut self, planes: &[ValueId], bits: u32, axis: i64, before: Option<NodeId>) -> Result<ValueId> {
        let mut left = bits;
        let mut codes: Option<ValueId> = None;
        for (&plane, width) in planes.iter().zip(widths(bits)) {
            left -= width;
            let mut parts = Vec::new();
            for shift in (0..8).step_by(width as usize) {
                let mut part = plane;
                if shift > 0 {
                    let by = self.constant(Tensor::scalar(shift as u8));
                    part =
                        self.node("BitShift", &[part, by], Attrs::new().text("direction", "RIGHT"), before)?;
                }
                if shift + width < 8 {
                    let mask = self.constant(Tensor::scalar((0xffu32 >> (8 - width)) as u8));
                    part = self.node("BitwiseAnd", &[part, mask], Attrs::new(), before)?;
                }
                parts.push(part);
            }
            let mut part = match parts.as_slice() {
                &[one] => one,
                many => self.node("Concat", many, Attrs::new().int("axis", axis), before)?,
            };
            if left > 0 {
                let by = self.constant(Tensor::scalar(left as u8));
                part = self.node("BitShift", &[part, by], Attrs::new().text("direction", "LEFT"), before)?;
            }
            codes = Some(match codes {
                Some(high) => self.node("BitwiseOr", &[high, part], Attrs::new(), before)?,
                None => part,
            });
        }
        codes.ok_or_else(|| Error::Form(format!("there are no codes of {bits} bits")))
    }

    /// The weight from its codes.
    fn decode(&mut self, item: &Item, codes: ValueId) -> Result<ValueId> {
        let (coded, layout) = (item.coded, item.layout);
        let groups = coded.form.groups(coded.cols);
        let turned = layout.is_turned();
        let native = coded.form.bits == 4;
        let dtype = if native { DType::U4 } else { DType::U8 };
        let name = self.graph.value(item.weight.value).name.clone();
        let (shape, attrs) = if groups == 1 {
            (vec![coded.rows], Attrs::new().int("axis", i64::from(turned)))
        } else if layout.shape().len() == 2 {
            let shape = if turned { vec![groups, coded.rows] } else { vec![coded.rows, groups] };
            let block = coded.form.group_of(coded.cols) as i64;
            (shape, Attrs::new().int("axis", i64::from(!turned)).int("block_size", block))
        } else {
            let what = format!("weight {name:?}: convolutions have one scale for each channel, no groups");
            return Err(Error::Form(what));
        };
        let at = |k: usize| if turned { k % coded.rows * groups + k / coded.rows } else { k };
        let count = coded.rows * groups;
        let scales: Vec<f32> = (0..count).map(|k| coded.scales[at(k)]).collect();
        let zeros: Vec<u8> = (0..count).map(|k| coded.zeros[at(k)]).collect();
        let scales = self.graph.add_constant(SHORT, Tensor::new(&shape, &scales)?);
        let zeros = self.graph.add_constant(SHORT, tensor_of(dtype, &shape, &zeros)?);
        self.node("DequantizeLinear", &[codes, scales, zeros], attrs, self.first)
    }

    /// The weight from its codes and its table.
    fn look_up(&mut self, book: &Book, codes: ValueId) -> Result<ValueId> {
        let (Codebook { coded, table, values }, layout) = (book.book, book.layout);
        let name = self.graph.value(book.weight.value).name.clone();
        let (rows, cols, turned) = (coded.rows, coded.cols, layout.is_turned());
        let (groups, group) = (coded.form.groups(cols), coded.form.group_of(cols));
        let reshape = |writer: &mut Self, value, shape: &[usize]| -> Result<ValueId> {
            let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            let shape = writer.constant(Tensor::vector(&shape));
            writer.node("Reshape", &[value, shape], Attrs::new(), writer.first)
        };
        let flat = if turned { [cols, rows] } else { [rows, cols] };
        let to = Attrs::new().int("to", i64::from(DType::I32.to_onnx()));
        let codes = self.node("Cast", &[codes], to, self.first)?;
        if *table == Table::Rows {
            let size = 1usize << coded.form.bits;
            let at = |k: usize| if turned { values[k % rows * size + k / rows] } else { values[k] };
            let shape = if turned { [size, rows] } else { [rows, size] };
            let table = Tensor::new(&shape, &(0..rows * size).map(at).collect::<Vec<f32>>())?;
            let table = self.graph.add_constant(SHORT, table);
            let codes = if layout.shape().len() == 2 { codes } else { reshape(self, codes, &flat)? };
            let attrs = Attrs::new().int("axis", i64::from(!turned));
            let weight = self.node("GatherElements", &[table, codes], attrs, self.first)?;
            return if layout.shape().len() == 2 {
                Ok(weight)
            } else {
                reshape(self, weight, layout.shape())
            };
        }
        if group * groups != cols {
            return Err(Error::Form(format!(
                "weight {name:?}: groups of {group} do not fill rows of {cols}"
            )));
        }
        let table = self.constant(Tensor::vector(values));
        let weight = self.node("Gather", &[table, codes], Attrs::new(), self.first)?;
        let (parts, by) = match turned {
            true => ([groups, group, rows], [groups, 1, rows]),
            false => ([rows, groups, group], [rows, groups, 1]),
        };
        let at = |k: usize| if turned { coded.scales[k % rows * groups + k / rows] } else { coded.scales[k] };
        let scales = Tensor::new(&by, &(0..rows * groups).map(at).collect::<Vec<f32>>())?;
        let scales = self.graph.add_constant(SHORT, scales);
        let weight = reshape(self, weight, &parts)?;
        let weight = self.node("Mul", &[weight, scales], Attrs::new(), self.first)?;
        reshape(self, weight, layout.shape())
    }

    /// A lookup in a table of codes, which are affine or have a table of values.
    fn table(
        &mut self,
        item: &Item,
        book: Option<&Codebook>,
        shared: &mut HashMap<ValueId, [Vec<ValueId>; 2]>,
    ) -> Result<()> {
        let coded = item.coded;
        let (bits, groups, group) =
            (coded.form.bits, coded.form.groups(coded.cols), coded.form.group_of(coded.cols));
        let name = self.graph.value(item.weight.value).name.clone();
        let fail = |what: &str| Err(Error::Form(format!("table {name:?}: {what}")));
        if group % 8 != 0 || group * groups != coded.cols {
            return fail(&format!("groups of {group} do not fill rows of {} in whole bytes", coded.cols));
        }
        if book.is_some_and(|b| b.table == Table::Rows) {
            return fail("its rows cannot have values of their own; say one table for all");
        }
        let Some(node) = self.graph.node(item.weight.node).cloned() else { return Ok(()) };
        let (Some(indices), Some(y)) = (node.input(1), node.output(0)) else { return Ok(()) };
        let rank = self.graph.value(indices).fact.rank();
        let shape = |last: usize| match groups {
            1 => vec![coded.rows, last],
            _ => vec![coded.rows, groups, last],
        };
        if let Entry::Vacant(place) = shared.entry(item.weight.value) {
            let planes = self.planes(&coded.codes, group, bits, |width, bytes| {
                Ok(Tensor::new(&shape(group * width as usize / 8), &bytes)?)
            })?;
            let scales = self.graph.add_constant(SHORT, Tensor::new(&shape(1), &coded.scales)?);
            let mut grids = vec![scales];
            if book.is_none() {
                grids.push(self.graph.add_constant(SHORT, Tensor::new(&shape(1), &coded.zeros)?));
            }
            place.insert([planes, grids]);
        }
        let before = Some(item.weight.node);
        let [planes, grids] = shared[&item.weight.value].clone();
        let mut rows = Vec::new();
        for table in planes.iter().chain(&grids) {
            rows.push(self.node("Gather", &[*table, indices], Attrs::new(), before)?);
        }
        let (planes, grids) = rows.split_at(planes.len());
        let codes = self.join(planes, bits, -1, before)?;
        let to = |dtype: DType| Attrs::new().int("to", i64::from(dtype.to_onnx()));
        let steps = match (book, grids) {
            (Some(book), _) => {
                let codes = self.node("Cast", &[codes], to(DType::I32), before)?;
                let table = self.constant(Tensor::vector(&book.values));
                self.node("Gather", &[table, codes], Attrs::new(), before)?
            }
            (None, [_, zeros]) => {
                let codes = self.node("Cast", &[codes], to(DType::F32), before)?;
                let zeros = self.node("Cast", &[*zeros], to(DType::F32), before)?;
                self.node("Sub", &[codes, zeros], Attrs::new(), before)?
            }
            _ => return fail("its zero points are missing"),
        };
        let mut result = self.node("Mul", &[steps, grids[0]], Attrs::new(), before)?;
        if groups > 1 {
            let Some(rank) = rank else { return fail("groups need indices of known rank") };
            let shape: Vec<i64> = std::iter::repeat_n(0, rank).chain([-1]).collect();
            let shape = self.constant(Tensor::vector(&shape));
            result = self.node("Reshape", &[result, shape], Attrs::new(), before)?;
        }
        let Some((last, _)) = self.graph.producer(result) else { return Ok(()) };
        self.graph.remove_node(item.weight.node);
        self.graph.set_output(last, 0, Some(y))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use graph::op::ramp;
    use graph::run::Session;
    use graph::{Datum, Dim, Fact};

    use super::*;
    use crate::gram::tests::cpu;
    use crate::quantize::codebook;
    use crate::quantize::coded::{Form, Ranges, nearest};
    use crate::weights::weights;

    fn node(g: &mut Graph, kind: &str, inputs: &[ValueId], attrs: Attrs) -> ValueId {
        g.append(kind, kind, 21, &attrs, inputs).unwrap()
    }

    /// A table of 24 numbers a row, two products of other layouts with one weight in common, and a convolution.
    fn network() -> Graph {
        let mut g = Graph::new("net");
        let ids = g.add_input("ids", Fact::tensor(DType::I64, vec![Dim::named("n"), Dim::Is(5)])).unwrap();
        let table = g.add_constant("table", ramp(&[11, 24]));
        let rows = node(&mut g, "Gather", &[table, ids], Attrs::new());
        let w = g.add_constant("w", ramp(&[24, 24]));
        let x = node(&mut g, "MatMul", &[rows, w], Attrs::new());
        let x = node(&mut g, "MatMul", &[x, w], Attrs::new());
        let shape = g.add_constant("shape", Tensor::vector(&[-1i64, 24]));
        let x = node(&mut g, "Reshape", &[x, shape], Attrs::new());
        let v = g.add_constant("v", ramp(&[18, 24]));
        let x = node(&mut g, "Gemm", &[x, v], Attrs::new().int("transB", 1));
        let shape = g.add_constant("shape", Tensor::vector(&[-1i64, 2, 3, 3]));
        let x = node(&mut g, "Reshape", &[x, shape], Attrs::new());
        let c = g.add_constant("c", ramp(&[5, 2, 3, 3]));
        let y = node(&mut g, "Conv", &[x, c], Attrs::new());
        g.outputs.push(y);
        g.infer().unwrap();
        g
    }

    fn run(g: &Graph) -> Vec<f32> {
        let ids: Vec<i64> = (0..10).map(|i| i * 3 % 11).collect();
        let ids = Datum::Tensor(Tensor::new(&[2, 5], &ids).unwrap());
        let y = Session::new(g.clone(), &cpu()).unwrap().run(vec![("ids", ids)]).unwrap();
        y[0].tensor().unwrap().as_slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn codes_in_the_graph_are_the_decoded_weights() {
        let g = network();
        let found = weights(&g).unwrap();
        assert_eq!(found.len(), 5);
        for bits in 1..=8 {
            for group in [0, 8] {
                let (mut expected, mut rewritten) = (g.clone(), g.clone());
                let coded: Vec<(Layout, Coded)> = found
                    .iter()
                    .map(|w| {
                        let layout = Layout::of(&g, w).unwrap();
                        let group = if w.used.kind == WeightKind::Conv { 0 } else { group };
                        let matrix = layout.read(g.constant(w.value).unwrap()).unwrap();
                        let coded = nearest(&cpu(), &matrix, &[], Form { bits, group }, Ranges::Searched);
                        expected.set_constant(w.value, layout.write(&coded.decode()).unwrap());
                        (layout, coded)
                    })
                    .collect();
                let items: Vec<Item> = found
                    .iter()
                    .zip(&coded)
                    .map(|(weight, (layout, coded))| Item { weight, layout, coded })
                    .collect();
                rewrite(&mut rewritten, &items, 21).unwrap();
                rewritten.infer().unwrap();
                rewritten.check().unwrap();
                let (want, got) = (run(&expected), run(&rewritten));
                let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                let apart = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(apart <= 1e-5 * scale, "{bits} bits in groups of {group}: {apart} of {scale}");
            }
        }
    }

    #[test]
    fn values_looked_up_in_the_graph_are_the_decoded_weights() {
        let g = network();
        let found = weights(&g).unwrap();
        for form in
            ["k1", "k2-g8", "k3", "k3-g8", "k4", "k5-g24", "k8", "nf4-g8", "iq4", "k2-rows", "k3-rows"]
        {
            let (mut expected, mut rewritten) = (g.clone(), g.clone());
            let coded: Vec<(Layout, Codebook)> = found
                .iter()
                .map(|w| {
                    let layout = Layout::of(&g, w).unwrap();
                    let matrix = layout.read(g.constant(w.value).unwrap()).unwrap();
                    let mut form: codebook::Form = form.parse().unwrap();
                    if w.used.kind == WeightKind::Conv {
                        form.codes.group = 9 * usize::from(form.codes.group > 0);
                    }
                    if w.used.kind == WeightKind::Embedding && form.table == Table::Rows {
                        form.table = Table::Shared;
                    }
                    let book = codebook::nearest(&cpu(), &matrix, &[], form);
                    expected.set_constant(w.value, layout.write(&book.decode()).unwrap());
                    (layout, book)
                })
                .collect();
            let books: Vec<Book> = found
                .iter()
                .zip(&coded)
                .map(|(weight, (layout, book))| Book { weight, layout, book })
                .collect();
            rewrite_books(&mut rewritten, &books, 21).unwrap();
            rewritten.infer().unwrap();
            rewritten.check().unwrap();
            let (want, got) = (run(&expected), run(&rewritten));
            let scale = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            let apart = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(apart <= 1e-5 * scale, "{form}: {apart} of {scale}");
        }
    }

    #[test]
    fn forms_that_the_file_cannot_hold_are_refused() {
        let g = network();
        let found = weights(&g).unwrap();
        let refused = |at: usize, group| {
            let layout = Layout::of(&g, &found[at]).unwrap();
            let matrix = layout.read(g.constant(found[at].value).unwrap()).unwrap();
            let coded = nearest(&cpu(), &matrix, &[], Form { bits: 3, group }, Ranges::MinMax);
            let item = Item { weight: &found[at], layout: &layout, coded: &coded };
            rewrite(&mut g.clone(), &[item], 21).unwrap_err().to_string()
        };
        assert!(refused(4, 4).contains("no groups"));
        assert!(refused(0, 12).contains("whole bytes"));
    }
}
