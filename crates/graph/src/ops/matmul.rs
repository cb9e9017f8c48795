//! `MatMul`, with `com.microsoft.FusedMatMul` (transposed operands and a factor) and `lessen.Linear` (also a bias, a
//! residual and an activation). <https://onnx.ai/onnx/operators/onnx__MatMul.html>
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.FusedMatMul>

use std::any::Any;
use std::sync::Arc;

use kernel::f32::{Add, PackedB, Post, Right, matmul, matmul_batch};
use kernel::matmul::{Batch, Bias, View};
use kernel::{Act, Cpu};

use crate::axes::Port::{Input, Output};
use crate::infer;
use crate::op::{
    Facts, GradCx, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, WeightKind, WeightUse, ramp,
};
use crate::ops::broadcast::Walk;
use crate::ops::fuse;
use crate::ops::halves::{in_f32, widen};
use crate::ops::number::{Number, by_type};
use crate::ops::sum_to::SumTo;
use crate::{Attr, Attrs, Axes, DType, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// Matrix product over the last two axes; the axes before are broadcast.
#[derive(Clone, Debug)]
pub struct MatMul {
    form: Form,
    /// Factor of the product.
    pub alpha: f32,
    /// Which operands are transposed in their last two axes.
    pub transposed: [bool; 2],
    /// Which operands have their first axis moved to the place before the last.
    batch_inside: [bool; 2],
    /// Applied to the result, after bias (input 2, `[n]`) and residual (input 3, of the output's shape).
    pub act: Act,
}

/// The operator that it is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Fused,
    Linear,
}

impl MatMul {
    /// The plain product.
    pub fn new() -> MatMul {
        MatMul {
            form: Form::Plain,
            alpha: 1.0,
            transposed: [false; 2],
            batch_inside: [false; 2],
            act: Act::Identity,
        }
    }

    /// The product of operands that are transposed first, times `alpha`.
    pub fn transposed(transposed: [bool; 2], alpha: f32) -> MatMul {
        MatMul { form: Form::Fused, alpha, transposed, ..MatMul::new() }
    }

    /// The same product with a bias (input 2) and a residual (input 3), if they are there, then `act`.
    pub fn linear(&self, act: Act) -> MatMul {
        MatMul { form: Form::Linear, act, ..self.clone() }
    }

    fn read(form: Form, r: &Reader) -> Result<MatMul> {
        let flag = |name: &str| r.attrs.flag_or(name, false);
        Ok(MatMul {
            form,
            alpha: r.attrs.float_or("alpha", 1.0)?,
            transposed: [flag("transA")?, flag("transB")?],
            batch_inside: [flag("transBatchA")?, flag("transBatchB")?],
            act: if form == Form::Linear { fuse::read(r.attrs)? } else { Act::Identity },
        })
    }
}

impl Default for MatMul {
    fn default() -> MatMul {
        MatMul::new()
    }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "MatMul",
        domain: "",
        since: 1,
        read: |_| Ok(Arc::new(MatMul::new())),
        samples: || {
            let f = |a: &[usize], b: &[usize]| Sample::new(MatMul::new(), vec![ramp(a), ramp(b)]);
            let ints = |t: Tensor| Tensor::new(t.shape(), &[3i32, -1, 2, 7, 5, -4]);
            let halves = |s: &[usize]| crate::ops::cast::cast(ramp(s), DType::F16, true);
            let mut samples = vec![
                f(&[3, 5], &[5, 4]).grads(&[0, 1]),
                f(&[2, 3, 5], &[5, 4]).grads(&[0, 1]),
                f(&[2, 1, 3, 5], &[3, 5, 2]).grads(&[0, 1]),
                f(&[5], &[5, 4]),
                f(&[2, 3, 5], &[5]),
                f(&[5], &[5]),
                f(&[3, 0], &[0, 2]),
            ];
            if let (Ok(a), Ok(b)) = (ints(ramp(&[2, 3])), ints(ramp(&[3, 2]))) {
                samples.push(Sample::new(MatMul::new(), vec![a, b]));
            }
            if let (Ok(a), Ok(b)) = (halves(&[2, 2, 3]), halves(&[3, 2])) {
                samples.push(Sample::new(MatMul::new(), vec![a, b]).tolerance(2e-3));
            }
            samples
        },
    },
    OpDef {
        name: "FusedMatMul",
        domain: "com.microsoft",
        since: 1,
        read: |r| Ok(Arc::new(MatMul::read(Form::Fused, r)?)),
        samples: || {
            let t = MatMul::transposed;
            let moved = |batch_inside| MatMul { batch_inside, ..t([false, true], 1.0) };
            vec![
                Sample::new(t([true, false], 0.5), vec![ramp(&[5, 3]), ramp(&[5, 4])]).grads(&[0, 1]),
                Sample::new(t([false, true], 2.0), vec![ramp(&[2, 3, 5]), ramp(&[4, 5])]).grads(&[0, 1]),
                Sample::new(t([true, true], 1.0), vec![ramp(&[2, 5, 3]), ramp(&[2, 4, 5])]).grads(&[0, 1]),
                Sample::new(moved([true, false]), vec![ramp(&[3, 2, 5]), ramp(&[2, 4, 5])]),
                Sample::new(moved([true, true]), vec![ramp(&[3, 2, 5]), ramp(&[4, 2, 5])]),
            ]
        },
    },
    OpDef {
        name: "Linear",
        domain: "lessen",
        since: 1,
        read: |r| Ok(Arc::new(MatMul::read(Form::Linear, r)?)),
        samples: || {
            let inputs = || vec![ramp(&[2, 3, 5]), ramp(&[5, 4]), ramp(&[4])];
            let all = vec![ramp(&[2, 3, 5]), ramp(&[5, 4]), ramp(&[4]), ramp(&[2, 3, 4])];
            let batched = vec![ramp(&[2, 3, 5]), ramp(&[2, 5, 4]), ramp(&[4]), ramp(&[2, 3, 4])];
            vec![
                Sample::new(MatMul::new().linear(Act::Relu), inputs()),
                Sample::new(MatMul::new().linear(Act::Gelu), all),
                Sample::new(MatMul::new().linear(Act::Clip { lo: -0.5, hi: 0.5 }), batched),
            ]
        },
    },
];

/// How an operand is read: its batch axes, and its rows and columns within one item.
#[derive(Clone, Debug)]
struct Operand {
    batch: Vec<usize>,
    rows: usize,
    cols: usize,
    steps: [usize; 2],
    /// Elements from one item to the next along the last batch axis.
    batch_step: usize,
}

impl Operand {
    fn new(shape: &[usize], left: bool, transposed: bool, inside: bool) -> Result<Operand> {
        let operand = match *shape {
            [] => return Err(Error::invalid("an operand of a matrix product has no axes")),
            [n] if left => Operand { batch: vec![], rows: 1, cols: n, steps: [n, 1], batch_step: n },
            [n] => Operand { batch: vec![], rows: n, cols: 1, steps: [1, 1], batch_step: n },
            [rows, ref batch @ .., cols] if inside => {
                let step = batch.iter().product::<usize>() * cols;
                Operand { batch: batch.to_vec(), rows, cols, steps: [step, 1], batch_step: cols }
            }
            [ref batch @ .., rows, cols] => {
                Operand { batch: batch.to_vec(), rows, cols, steps: [cols, 1], batch_step: rows * cols }
            }
        };
        Ok(match transposed && shape.len() > 1 {
            true => {
                let [r, c] = operand.steps;
                Operand { rows: operand.cols, cols: operand.rows, steps: [c, r], ..operand }
            }
            false => operand,
        })
    }

    fn view<'a>(&self, data: &'a [f32]) -> View<'a, f32> {
        View::strided(data, self.rows, self.cols, self.steps[0], self.steps[1])
    }
}

/// The product's shape without the axes that operands of rank 1 do not have.
fn out_shape<D: Clone>(batch: &[D], m: D, n: D, vectors: [bool; 2]) -> Vec<D> {
    let mut shape = batch.to_vec();
    if !vectors[0] {
        shape.push(m);
    }
    if !vectors[1] {
        shape.push(n);
    }
    shape
}

/// The constant right operand.
struct Weight {
    packed: PackedB,
    vector: bool,
}

impl MatMul {
    fn operand(&self, shape: &[usize], i: usize) -> Result<Operand> {
        Operand::new(shape, i == 0, self.transposed[i], self.batch_inside[i])
    }

    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Tensor> {
        let left = inputs.need(0)?;
        let a = self.operand(left.shape(), 0)?;
        let data = left.as_slice::<f32>()?;
        let weight = cx.packed::<Weight>();
        let (n, vector, right) = match weight {
            Some(w) => {
                if w.packed.rows() != a.cols {
                    return Err(mismatch(left.shape(), a.cols, w.packed.rows()));
                }
                (w.packed.cols(), w.vector, None)
            }
            None => {
                let right = inputs.need(1)?;
                let b = self.operand(right.shape(), 1)?;
                if b.rows != a.cols {
                    return Err(mismatch(left.shape(), a.cols, b.rows));
                }
                (b.cols, right.rank() == 1, Some((b, right.as_slice::<f32>()?)))
            }
        };
        let no_batch = Vec::new();
        let b_batch = right.as_ref().map_or(&no_batch, |(b, _)| &b.batch);
        let walk = Walk::new(&a.batch, b_batch)?;
        let shape = out_shape(&walk.shape, a.rows, n, [left.rank() == 1, vector]);
        let count = crate::tensor::count(&shape)?;
        let bias = inputs.get(2)?.map(|t| t.as_slice::<f32>()).transpose()?;
        if bias.is_some_and(|b| b.len() != n) {
            return Err(Error::invalid(format!("the bias must have {n} elements")));
        }
        let residual = inputs.get(3)?.map(|t| t.as_slice::<f32>()).transpose()?;
        if residual.is_some_and(|r| r.len() != count) {
            return Err(Error::invalid(format!("the residual must have shape {shape:?}")));
        }
        let tile = |part: &mut [f32]| self.act.tile(cx.cpu, part);
        let post = Post {
            alpha: self.alpha,
            add: residual.map_or(Add::None, |r| Add::Rows(r, n)),
            bias: bias.map_or(Bias::None, Bias::Col),
            act: fuse::in_product(self.act).unwrap_or_default(),
            after: if fuse::in_product(self.act).is_some() { None } else { Some(&tile) },
        };
        Tensor::fill(&shape, |out: &mut [f32]| {
            let single: Option<Right> = match (&weight, &right) {
                (Some(w), _) => Some((&w.packed).into()),
                (None, Some((b, data))) if b.batch.iter().product::<usize>() == 1 => {
                    Some(b.view(data).into())
                }
                _ => None,
            };
            // One right operand for all items: the items' rows are the rows of one tall matrix.
            let tall = a.steps[1] == 1 && a.steps[0] == a.cols && a.batch_step == a.rows * a.cols;
            match (single, right) {
                (Some(right), _) if tall => {
                    let rows = count.checked_div(n).unwrap_or(0);
                    matmul(cx.cpu, View::new(data, rows, a.cols), right, out, n, &post);
                }
                (Some(right), _) => {
                    for (i, out) in out.chunks_mut((a.rows * n).max(1)).enumerate() {
                        let a_part = &data[(i * a.batch_step).min(data.len())..];
                        let post = Post { add: part(post.add, i * a.rows * n), ..post };
                        matmul(cx.cpu, a.view(a_part), right, out, n, &post);
                    }
                }
                (None, Some((b, b_data))) => batched(cx.cpu, &walk, (&a, data), (&b, b_data), out, &post),
                (None, None) => return Err(Error::invalid("input 1 is missing")),
            }
            Ok(())
        })
    }
}

/// The rows that are added, from an element on.
fn part(add: Add, at: usize) -> Add {
    match add {
        Add::Rows(rows, stride) => Add::Rows(&rows[at.min(rows.len())..], stride),
        other => other,
    }
}

/// Products of many items, the innermost two batch axes in one call.
fn batched(
    cpu: &Cpu,
    walk: &Walk,
    (a, a_data): (&Operand, &[f32]),
    (b, b_data): (&Operand, &[f32]),
    out: &mut [f32],
    post: &Post,
) {
    let item = a.rows * b.cols;
    let pair = walk.axes().len().saturating_sub(2);
    let (outer, inner) = walk.axes().split_at(pair);
    let at = |i: usize| inner.get(i).copied().unwrap_or((1, 0, 0));
    let (first, second) = if inner.len() == 2 { (at(0), at(1)) } else { ((1, 0, 0), at(0)) };
    let batch = Batch {
        counts: [first.0, second.0],
        a: [first.1 * a.batch_step, second.1 * a.batch_step],
        b: [first.2 * b.batch_step, second.2 * b.batch_step],
        out: [second.0 * item, item],
    };
    let mut index = vec![0; outer.len()];
    let sizes: Vec<usize> = outer.iter().map(|o| o.0).collect();
    let chunk = (first.0 * second.0 * item).max(1);
    for (i, out) in out.chunks_mut(chunk).enumerate() {
        let offset = |step: fn(&(usize, usize, usize)) -> usize| -> usize {
            index.iter().zip(outer).map(|(i, o)| i * step(o)).sum()
        };
        let a_data = &a_data[(offset(|o| o.1) * a.batch_step).min(a_data.len())..];
        let b_data = &b_data[(offset(|o| o.2) * b.batch_step).min(b_data.len())..];
        let post = Post { add: part(post.add, i * chunk), ..*post };
        matmul_batch(cpu, &batch, a.view(a_data), b.view(b_data), out, b.cols, &post, batch.out);
        super::window::advance(&mut index, &sizes);
    }
}

fn mismatch(shape: &[usize], cols: usize, rows: usize) -> Error {
    Error::invalid(format!("cannot multiply {cols} columns (of shape {shape:?}) with {rows} rows"))
}

/// The product in any number type, as plain loops.
fn plain<T: Number>(op: &MatMul, left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (a, b) = (op.operand(left.shape(), 0)?, op.operand(right.shape(), 1)?);
    if a.cols != b.rows {
        return Err(mismatch(left.shape(), a.cols, b.rows));
    }
    let walk = Walk::new(&a.batch, &b.batch)?;
    let shape = out_shape(&walk.shape, a.rows, b.cols, [left.rank() == 1, right.rank() == 1]);
    let (x, y) = (left.as_slice::<T>()?, right.as_slice::<T>()?);
    let items = |o: &Operand| (0..o.batch.iter().product()).collect::<Vec<usize>>();
    let mut pairs = vec![(0, 0); crate::tensor::count(&walk.shape)?];
    walk.apply(&items(&a), &items(&b), &mut pairs, |i, j| (i, j));
    Tensor::build(&shape, |out: &mut [T]| {
        for (out, (i, j)) in out.chunks_mut((a.rows * b.cols).max(1)).zip(pairs) {
            let (x0, y0) = (i * a.batch_step, j * b.batch_step);
            for (r, row) in out.chunks_mut(b.cols.max(1)).enumerate() {
                for (c, out) in row.iter_mut().enumerate() {
                    let at = |p: usize| {
                        let x = x[x0 + r * a.steps[0] + p * a.steps[1]];
                        x.times(y[y0 + p * b.steps[0] + c * b.steps[1]])
                    };
                    let sum = (0..a.cols).fold(T::default(), |sum, p| sum.plus(at(p)));
                    *out = if op.alpha == 1.0 { sum } else { sum.times(T::from_f64(op.alpha.into())) };
                }
            }
        }
        Ok(())
    })
}

/// Batch axes, rows and columns of an operand, as far as they are known.
fn known(shape: &[Dim], left: bool, transposed: bool, inside: bool) -> Option<(Vec<Dim>, Dim, Dim)> {
    let (batch, rows, cols) = match shape {
        [] => return None,
        [n] if left => return Some((vec![], Dim::Is(1), n.clone())),
        [n] => return Some((vec![], n.clone(), Dim::Is(1))),
        [rows, batch @ .., cols] if inside => (batch, rows, cols),
        [batch @ .., rows, cols] => (batch, rows, cols),
    };
    let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
    Some((batch.to_vec(), rows.clone(), cols.clone()))
}

impl Op for MatMul {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.form as usize]
    }

    fn attrs(&self) -> Attrs {
        if self.form == Form::Plain {
            return Attrs::new();
        }
        let flag = |on: bool| on.then_some(Attr::Int(1));
        let attrs = Attrs::new()
            .float("alpha", self.alpha)
            .maybe("transA", flag(self.transposed[0]))
            .maybe("transB", flag(self.transposed[1]))
            .maybe("transBatchA", flag(self.batch_inside[0]))
            .maybe("transBatchB", flag(self.batch_inside[1]));
        if self.form == Form::Linear { fuse::write(attrs, self.act) } else { attrs }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dtype = inputs.need(0)?.dtype().or(inputs.need(1)?.dtype());
        let known = |i: usize| {
            inputs.shape(i).and_then(|s| known(s, i == 0, self.transposed[i], self.batch_inside[i]))
        };
        let (Some((ab, m, ak)), Some((bb, bk, n))) = (known(0), known(1)) else {
            return Ok(vec![Fact::maybe(dtype, None)]);
        };
        if let (Dim::Is(x), Dim::Is(y)) = (&ak, &bk)
            && x != y
        {
            return Err(Error::invalid(format!("cannot multiply {x} columns with {y} rows")));
        }
        let batch = infer::broadcast(Some(&ab), Some(&bb))?.unwrap_or_default();
        let vectors = [inputs.rank(0) == Some(1), inputs.rank(1) == Some(1)];
        Ok(vec![Fact::maybe(dtype, Some(out_shape(&batch, m, n, vectors)))])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        if cx.packed.is_none() && inputs.need(1)?.dtype() != dtype {
            return Err(Error::invalid("both operands must have the same type"));
        }
        in_f32(dtype, inputs, |inputs| match (inputs.need(0)?.dtype(), self.form) {
            (DType::F32, _) => Ok(vec![self.run_f32(cx, &inputs)?]),
            (_, Form::Linear) => Err(Error::unsupported(format!("Linear of {dtype}"))),
            (other, _) => {
                let (a, b) = (inputs.need(0)?, inputs.need(1)?);
                Ok(vec![by_type!(other, plain(self, a, b))?])
            }
        })
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        let Some(b) = cx.constant(1).filter(|b| b.rank() == 2 || b.rank() == 1) else { return Ok(None) };
        let b = widen(b.clone())?;
        if b.dtype() != DType::F32 {
            return Ok(None);
        }
        let operand = self.operand(b.shape(), 1)?;
        let packed = PackedB::new(cx.cpu, operand.view(b.as_slice()?));
        Ok(Some(Packed::new(Weight { packed, vector: b.rank() == 1 }, &[1])))
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        let (a, b, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let matrix = |v| cx.graph.value(v).fact.rank().is_some_and(|r| r >= 2);
        if self.form == Form::Linear || self.batch_inside != [false; 2] || !matrix(a) || !matrix(b) {
            return Err(Error::unsupported(format!(
                "the gradient of {} other than of two plain matrices of known rank",
                self.name()
            )));
        }
        let [ta, tb] = self.transposed;
        let mut product = |x, y, tx, ty, like| {
            let op = MatMul::transposed([tx, ty], self.alpha);
            let full = cx.graph.add_op("grad", op, &[x, y])?;
            cx.graph.add_op("grad", SumTo, &[full, like])
        };
        let da = if ta { product(b, dy, tb, true, a)? } else { product(dy, b, false, !tb, a)? };
        let db = if tb { product(dy, a, true, ta, b)? } else { product(a, dy, !ta, false, b)? };
        Ok(vec![Some(da), Some(db)])
    }

    fn weight(&self) -> Option<WeightUse> {
        let out_axis = if self.transposed[1] { -2 } else { -1 };
        Some(WeightUse { input: 1, out_axis, kind: WeightKind::MatMul })
    }

    fn weight_rows(&self, x: &Tensor, weight: &[usize], emit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let inner = weight.len().checked_sub(2).map(|at| weight[at + usize::from(self.transposed[1])]);
        if self.transposed[0]
            || self.batch_inside[0]
            || weight.len() != 2
            || x.shape().last().copied() != inner
        {
            return Err(Error::unsupported(format!("the inputs of a weight of shape {weight:?}")));
        }
        emit(0, x.as_slice()?);
        Ok(())
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let k = inputs.shape(0).and_then(|s| known(s, true, self.transposed[0], self.batch_inside[0]));
        let k = k.and_then(|(_, _, k)| k.size()).unwrap_or(0);
        let out = outputs.first().and_then(Fact::count).unwrap_or(0);
        (out as u64).saturating_mul(k as u64)
    }

    fn axes(&self, inputs: &Facts, outputs: &[Fact]) -> Option<Axes> {
        let ranks = [inputs.rank(0)?, inputs.rank(1)?];
        if self.batch_inside != [false; 2] || ranks.contains(&0) {
            return None;
        }
        let [a, b] = [0, 1].map(|i| self.transposed[i] && ranks[i] > 1);
        let rank = outputs.first()?.rank()?;
        let mut axes = Axes::new();
        let [m, k] = [ranks[0].wrapping_sub(2), ranks[0] - 1];
        let (m, k) = if a { (k, m) } else { (m, k) };
        let [j, n] = [ranks[1].saturating_sub(2), ranks[1] - 1];
        let (j, n) = if b { (n, j) } else { (j, n) };
        axes.tie((Input(0), k), (Input(1), j));
        // A vector has no axis in the output.
        let columns = usize::from(ranks[1] > 1);
        if ranks[0] > 1 {
            axes.tie((Input(0), m), (Output(0), rank.checked_sub(1 + columns)?));
        }
        if columns == 1 {
            axes.tie((Input(1), n), (Output(0), rank.checked_sub(1)?));
        }
        let outer = rank.checked_sub(columns + usize::from(ranks[0] > 1))?;
        for (i, own) in ranks.into_iter().enumerate() {
            let batch = own.saturating_sub(2);
            (0..batch)
                .for_each(|at| _ = axes.tie((Input(i), at), (Output(0), at + outer.saturating_sub(batch))));
        }
        for i in 2..inputs.len() {
            let own = inputs.rank(i)?;
            (0..own).for_each(|at| _ = axes.tie((Input(i), at), (Output(0), at + rank.saturating_sub(own))));
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
