//! Products of quantised matrices: `MatMulInteger`, `QLinearMatMul`, onnxruntime's `QGemm`, `MatMulIntegerToFloat`
//! and `DynamicQuantizeMatMul`, and `lessen.QMatMul`, to which quantised graphs are rewritten before they run.
//! <https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html>,
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use super::codes::{Code, Rounder, bytes, dynamic_grid, in_range, quantize};
use super::product::Right;
use super::slots::{Bounds, Slot, Slots, place};
use crate::infer::broadcast_sizes;
use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::Walk;
use crate::ops::cast::cast;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor, infer};

/// One of the products of quantised matrices:
/// `y = bounds(alpha * scale_a * scale_b * ((a - zero_a) * (b - zero_b) + bias))`, quantised when it has a scale.
#[derive(Debug)]
pub struct QMatMul {
    form: Form,
    attrs: Attrs,
    alpha: f32,
    turned: [bool; 2],
    bounds: Bounds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Integer,
    Linear,
    Gemm,
    ToFloat,
    Dynamic,
    Own,
}

use Slot::*;

impl Form {
    fn slots(self) -> Slots {
        match self {
            Form::Integer => &[A, B, AZero, BZero],
            Form::Linear => &[A, AScale, AZero, B, BScale, BZero, YScale, YZero],
            Form::Gemm | Form::Own => &[A, AScale, AZero, B, BScale, BZero, Bias, YScale, YZero],
            Form::ToFloat => &[A, B, AScale, BScale, AZero, BZero, Bias],
            Form::Dynamic => &[A, B, BScale, BZero, Bias],
        }
    }
}

const MICROSOFT: &str = "com.microsoft";

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "MatMulInteger",
        domain: "",
        since: 10,
        read: |r| read(r, Form::Integer),
        samples: || samples(Form::Integer),
    },
    OpDef {
        name: "QLinearMatMul",
        domain: "",
        since: 10,
        read: |r| read(r, Form::Linear),
        samples: || samples(Form::Linear),
    },
    OpDef {
        name: "QGemm",
        domain: MICROSOFT,
        since: 1,
        read: |r| read(r, Form::Gemm),
        samples: || samples(Form::Gemm),
    },
    OpDef {
        name: "MatMulIntegerToFloat",
        domain: MICROSOFT,
        since: 1,
        read: |r| read(r, Form::ToFloat),
        samples: || samples(Form::ToFloat),
    },
    OpDef {
        name: "DynamicQuantizeMatMul",
        domain: MICROSOFT,
        since: 1,
        read: |r| read(r, Form::Dynamic),
        samples: || samples(Form::Dynamic),
    },
    OpDef {
        name: "QMatMul",
        domain: "lessen",
        since: 1,
        read: |r| read(r, Form::Own),
        samples: || samples(Form::Own),
    },
];

fn read(r: &Reader, form: Form) -> Result<Arc<dyn Op>> {
    let turned = [r.attrs.flag_or("transA", false)?, r.attrs.flag_or("transB", false)?];
    let lo = r.attrs.float_or("lo", f32::NEG_INFINITY)?;
    let hi = r.attrs.float_or("hi", f32::INFINITY)?;
    Ok(Arc::new(QMatMul {
        form,
        alpha: r.attrs.float_or("alpha", 1.0)?,
        turned,
        bounds: Bounds { lo, hi },
        attrs: r.attrs.clone(),
    }))
}

fn samples(form: Form) -> Vec<Sample> {
    let operand = |shape: &[usize]| cast(ramp(shape), DType::F32, true).and_then(|x| scaled(&x));
    fn scaled(x: &Tensor) -> Result<Tensor> {
        let codes: Vec<i8> = x.as_slice::<f32>()?.iter().map(|v| (v * 127.0) as i8).collect();
        Tensor::new(x.shape(), &codes)
    }
    let make = |attrs: Attrs, find: &dyn Fn(Slot) -> Option<Tensor>| {
        let reader = Reader { attrs: &attrs, version: 28, inputs: 0, outputs: 1 };
        let op = read(&reader, form).ok()?;
        let inputs = form.slots().iter().map(|&s| find(s).map(Into::into)).collect();
        Some(Sample { op, inputs, outputs: 1, grads: Vec::new(), tolerance: 1e-5 })
    };
    let dynamic = matches!(form, Form::Dynamic);
    let one = |a: Tensor, b: Tensor, wide: bool| {
        let columns = b.shape().last().copied().unwrap_or(1);
        move |slot: Slot| match slot {
            A if dynamic => Some(ramp(a.shape())),
            A => a.clone().reinterpreted(DType::U8).ok(),
            B => Some(b.clone()),
            AScale | YScale => Some(Tensor::scalar(0.02f32)),
            BScale if wide => Some(ramp(&[columns])),
            BScale => Some(Tensor::scalar(0.01f32)),
            AZero | YZero => Some(Tensor::scalar(130u8)),
            BZero if wide => Some(Tensor::vector(&vec![3i8; columns])),
            Bias if form == Form::Gemm => Some(Tensor::vector(&vec![77i32; columns])),
            Bias => Some(ramp(&[columns])),
            BZero => None,
        }
    };
    let mut found = Vec::new();
    if let (Ok(a), Ok(b)) = (operand(&[3, 5]), operand(&[5, 4])) {
        found.extend(make(Attrs::new(), &one(a.clone(), b.clone(), false)));
        found.extend(make(Attrs::new(), &one(a, b, true)));
    }
    if let (Ok(a), Ok(b)) = (operand(&[2, 3, 5]), operand(&[5, 4]))
        && form != Form::Gemm
    {
        found.extend(make(Attrs::new(), &one(a, b, true)));
    }
    if let (Ok(a), Ok(b)) = (operand(&[2, 1, 3, 5]), operand(&[3, 5, 4]))
        && matches!(form, Form::Integer | Form::Linear | Form::Own)
    {
        found.extend(make(Attrs::new(), &one(a, b, false)));
    }
    if let (Ok(a), Ok(b)) = (operand(&[5, 3]), operand(&[4, 5]))
        && matches!(form, Form::Gemm | Form::Own)
    {
        let attrs = Attrs::new().int("transA", 1).int("transB", 1).float("alpha", 0.5);
        let find = one(a, b, false);
        found.extend(make(attrs.clone(), &|slot| find(slot).filter(|_| !matches!(slot, Bias))));
        let bounded = if form == Form::Own { attrs.float("lo", 0.0) } else { attrs };
        found.extend(make(bounded, &|slot| find(slot).filter(|_| !matches!(slot, Bias | YScale | YZero))));
    }
    found
}

/// Right operands packed ahead.
struct Ready {
    rights: Vec<Right>,
    shape: Vec<usize>,
}

/// The sizes of a product.
struct Plan {
    /// Sizes of the output.
    shape: Vec<usize>,
    m: usize,
    k: usize,
    n: usize,
    /// For each product: the left and the right matrix.
    pairs: Vec<(usize, usize)>,
}

fn last_two(shape: &[usize], turned: bool) -> (&[usize], [usize; 2]) {
    let (batch, matrix) = shape.split_at(shape.len().saturating_sub(2));
    match matrix {
        [a, b] if turned => (batch, [*b, *a]),
        [a, b] => (batch, [*a, *b]),
        _ => (batch, [1, 1]),
    }
}

impl Plan {
    fn new(a: &[usize], b: &[usize], turned: [bool; 2]) -> Result<Plan> {
        let unfit = || Error::invalid(format!("matrices of shapes {a:?} and {b:?} cannot be multiplied"));
        if a.is_empty() || b.is_empty() {
            return Err(unfit());
        }
        let (row, column) = (a.len() == 1, b.len() == 1);
        let wide_a = if row { vec![1, a[0]] } else { a.to_vec() };
        let wide_b = if column { vec![b[0], 1] } else { b.to_vec() };
        let (batch_a, [mut m, k]) = last_two(&wide_a, turned[0]);
        let (batch_b, [depth, n]) = last_two(&wide_b, turned[1]);
        if k != depth {
            return Err(unfit());
        }
        let mut shape = broadcast_sizes(batch_a, batch_b)?;
        if !row {
            shape.push(m);
        }
        if !column {
            shape.push(n);
        }
        crate::tensor::count(&shape)?;
        let pairs = if batch_b.is_empty() && !turned[0] {
            m *= batch_a.iter().product::<usize>();
            vec![(0, 0)]
        } else {
            let walk = Walk::new(batch_a, batch_b)?;
            let count = |s: &[usize]| (0..s.iter().product()).collect::<Vec<usize>>();
            let mut pairs = vec![(0, 0); crate::tensor::count(&walk.shape)?];
            walk.apply(&count(batch_a), &count(batch_b), &mut pairs, |a, b| (a, b));
            pairs
        };
        Ok(Plan { shape, m, k, n, pairs })
    }
}

/// A scale or zero point: one for all, one for each line of a matrix, or one for each line of all matrices.
struct Line<T> {
    values: Vec<T>,
    len: usize,
}

impl<T: Copy> Line<T> {
    /// `len` lines in each of `matrices` matrices.
    fn new(values: Vec<T>, len: usize, matrices: usize) -> Result<Line<T>> {
        let count = values.len();
        if count != 1 && count != len && Some(count) != len.checked_mul(matrices) {
            return Err(Error::invalid(format!(
                "{count} scales or zero points for {matrices} matrices of {len} rows or columns"
            )));
        }
        Ok(Line { values, len })
    }

    fn at(&self, matrix: usize, i: usize) -> T {
        match self.values.len() {
            1 => self.values[0],
            n if n == self.len => self.values[i],
            _ => self.values[matrix * self.len + i],
        }
    }
}

fn zeros(tensor: Option<&Tensor>) -> Result<Vec<i32>> {
    match tensor {
        Some(t) => Ok(t.to_ints()?.into_iter().map(|v| v as i32).collect()),
        None => Ok(vec![0]),
    }
}

/// Something that is added to sums: in the units of the sums, or real.
enum Bias2<'a> {
    Sums(Cow<'a, [i32]>),
    Real(Cow<'a, [f32]>),
}

impl QMatMul {
    /// `lessen.QMatMul` with these attributes; its inputs are those of `QGemm`, the bias may be real, the left
    /// operand may be real (it is then quantised as `DynamicQuantizeLinear` does).
    pub fn own(alpha: f32, turned: [bool; 2], bounds: Bounds) -> QMatMul {
        let mut attrs = Attrs::new();
        for (name, on) in ["transA", "transB"].into_iter().zip(turned) {
            attrs = attrs.int(name, on.into());
        }
        let attrs = attrs.float("alpha", alpha).float("lo", bounds.lo).float("hi", bounds.hi);
        QMatMul { form: Form::Own, attrs, alpha, turned, bounds }
    }

    fn place(&self, slot: Slot) -> usize {
        place(self.form.slots(), slot)
    }

    fn get<'a>(&self, inputs: &'a Inputs, slot: Slot) -> Result<Option<&'a Tensor>> {
        inputs.get(self.place(slot))
    }

    fn rights(&self, b: &Tensor, zero: Option<&Tensor>) -> Result<Vec<Right>> {
        let wide = if b.rank() == 1 { vec![b.len(), 1] } else { b.shape().to_vec() };
        let (batch, [k, n]) = last_two(&wide, self.turned[1]);
        let count: usize = batch.iter().product();
        let zeros = Line::new(zeros(zero)?, n, count)?;
        for &zero in &zeros.values {
            in_range(b.dtype(), zero)?;
        }
        let data = bytes(b)?;
        Ok((0..count)
            .map(|i| {
                let zeros: Vec<i32> = (0..n).map(|col| zeros.at(i, col)).collect();
                Right::new(data, i * k * n, [k, n], self.turned[1], &zeros)
            })
            .collect())
    }

    fn out_dtype(&self, a: Option<DType>, a_scale: Option<DType>, y_scale: bool, y_zero: Option<DType>) -> Option<DType> {
        match self.form {
            Form::Integer => Some(DType::I32),
            _ if y_scale => y_zero.or(a.filter(|d| d.bits() == 8)),
            Form::ToFloat => a_scale,
            _ => Some(DType::F32),
        }
    }
}

impl Op for QMatMul {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.form as usize]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let at = |slot| inputs.get(self.place(slot));
        let dtype = self.out_dtype(
            inputs.dtype(self.place(A)),
            inputs.dtype(self.place(AScale)),
            at(YScale).is_some(),
            at(YZero).and_then(Fact::dtype),
        );
        let (a, b) = (inputs.need(self.place(A))?, inputs.need(self.place(B))?);
        let (Some(a), Some(b)) = (a.shape(), b.shape()) else { return Ok(vec![Fact::maybe(dtype, None)]) };
        let unfit = || Error::invalid("the matrices cannot be multiplied");
        if a.is_empty() || b.is_empty() {
            return Err(unfit());
        }
        fn split(shape: &[Dim], turned: bool) -> (&[Dim], [Dim; 2]) {
            let (batch, matrix) = shape.split_at(shape.len() - 2);
            let [x, y] = [matrix[0].clone(), matrix[1].clone()];
            (batch, if turned { [y, x] } else { [x, y] })
        }
        let (row, column) = (a.len() == 1, b.len() == 1);
        let wide_a = if row { vec![Dim::Is(1), a[0].clone()] } else { a.to_vec() };
        let wide_b = if column { vec![b[0].clone(), Dim::Is(1)] } else { b.to_vec() };
        let (batch_a, [m, k]) = split(&wide_a, self.turned[0]);
        let (batch_b, [depth, n]) = split(&wide_b, self.turned[1]);
        if k.size().zip(depth.size()).is_some_and(|(a, b)| a != b) {
            return Err(unfit());
        }
        let mut shape = infer::broadcast(Some(batch_a), Some(batch_b))?.unwrap_or_default();
        shape.extend((!row).then_some(m));
        shape.extend((!column).then_some(n));
        Ok(vec![Fact::maybe(dtype, Some(shape))])
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        let (at, zero_at) = (self.place(B), self.place(BZero));
        let Some(b) = cx.constant(at) else { return Ok(None) };
        let zero = cx.constant(zero_at);
        if zero.is_none() && cx.facts.get(zero_at).is_some() || b.rank() == 0 {
            return Ok(None);
        }
        let ready = Ready { rights: self.rights(b, zero)?, shape: b.shape().to_vec() };
        Ok(Some(Packed::new(ready, &[at, zero_at])))
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let a = inputs.need(self.place(A))?;
        let rights;
        let (rights, b_shape) = match cx.packed::<Ready>() {
            Some(ready) => (&ready.rights, ready.shape.as_slice()),
            None => {
                let b = inputs.need(self.place(B))?;
                rights = self.rights(b, self.get(&inputs, BZero)?)?;
                (&rights, b.shape())
            }
        };
        let plan = Plan::new(a.shape(), b_shape, self.turned)?;
        let (codes, a_scale, a_zero);
        let a_bytes = if a.dtype().is_float() {
            let values = a.to_f32()?;
            let grid = dynamic_grid(&values);
            codes = Tensor::build(a.shape(), |out: &mut [u8]| {
                quantize(cx.cpu, &values, grid.scale, Rounder::new((0, 255), grid.zero), out);
                Ok(())
            })?;
            (a_scale, a_zero) = (vec![grid.scale], vec![grid.zero]);
            bytes(&codes)?
        } else {
            a_scale = match self.get(&inputs, AScale)? {
                Some(scale) => scale.to_f32()?.into_owned(),
                None if self.form == Form::Integer => vec![1.0],
                None => return Err(Error::invalid("the left operand's scale is missing")),
            };
            a_zero = zeros(self.get(&inputs, AZero)?)?;
            for &zero in &a_zero {
                in_range(a.dtype(), zero)?;
            }
            bytes(a)?
        };
        let a_count = if plan.m * plan.k == 0 { 0 } else { a.len() / (plan.m * plan.k) };
        // Rows of all products in one: zero points by row repeat from matrix to matrix.
        let a_zero = Line::new(repeated(a_zero, &plan, a.shape()), plan.m, a_count)?;
        let step = if self.turned[0] { [1, plan.m] } else { [plan.k, 1] };
        let size = plan.m * plan.n;
        let mut sums = Tensor::zeros(DType::I32, &plan.shape)?;
        if size > 0 {
            let chunks = sums.as_mut_slice::<i32>()?.chunks_mut(size);
            for (&(left, right), sums) in plan.pairs.iter().zip(chunks) {
                let start = left * plan.m * plan.k;
                rights[right].sums(cx.cpu, a_bytes, start, step, |row| a_zero.at(left, row), sums);
            }
        }
        if self.form == Form::Integer {
            return Ok(vec![sums]);
        }
        let a_scale = Line::new(repeated(a_scale, &plan, a.shape()), plan.m, a_count)?;
        let b_scale = inputs.need(self.place(BScale))?.to_f32()?.into_owned();
        let b_scale = Line::new(b_scale, plan.n, rights.len())?;
        let finish = Finish {
            op: self,
            plan: &plan,
            sums: sums.as_slice()?,
            scale: &|(left, right), row, col| self.alpha * (a_scale.at(left, row) * b_scale.at(right, col)),
            bias: match self.get(&inputs, Bias)? {
                None => None,
                Some(t) if t.dtype() == DType::I32 => Some((Bias2::Sums(t.values()?), t.shape())),
                Some(t) => Some((Bias2::Real(t.to_f32()?), t.shape())),
            },
        };
        let own = self.get(&inputs, AScale)?.map(Tensor::dtype);
        let y_zero = self.get(&inputs, YZero)?;
        let y_scale = self.get(&inputs, YScale)?;
        let dtype = self.out_dtype(Some(a.dtype()), own, y_scale.is_some(), y_zero.map(Tensor::dtype));
        let Some(y_scale) = y_scale else {
            let y = finish.real()?;
            return Ok(vec![cast(y, dtype.unwrap_or(DType::F32), true)?]);
        };
        let y_scale = Line::new(repeated(y_scale.to_f32()?.into_owned(), &plan, &plan.shape), plan.m, plan.pairs.len())?;
        let y_zero = Line::new(repeated(zeros(y_zero)?, &plan, &plan.shape), plan.m, plan.pairs.len())?;
        Ok(vec![match dtype {
            Some(DType::U8) => finish.codes::<u8>(&y_scale, &y_zero)?,
            Some(DType::I8) => finish.codes::<i8>(&y_scale, &y_zero)?,
            _ => return Err(Error::unsupported("a quantised product with an output other than uint8 or int8")),
        }])
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let depth = inputs.get(self.place(B)).and_then(Fact::sizes).and_then(|s| {
            let at = s.len().checked_sub(if self.turned[1] { 1 } else { 2 }).unwrap_or(0);
            s.get(at).copied()
        });
        let count = outputs.first().and_then(Fact::count);
        depth.zip(count).map_or(0, |(k, n)| k as u64 * n as u64)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Values for the rows of one matrix, when the rows of all matrices are run as one matrix.
fn repeated<T: Copy>(values: Vec<T>, plan: &Plan, shape: &[usize]) -> Vec<T> {
    let rows = shape.len().checked_sub(2).map_or(1, |i| shape[i]);
    match values.len() == rows && rows > 1 && plan.m > rows {
        true => values.iter().copied().cycle().take(plan.m).collect(),
        false => values,
    }
}

struct Finish<'a> {
    op: &'a QMatMul,
    plan: &'a Plan,
    sums: &'a [i32],
    scale: &'a dyn Fn((usize, usize), usize, usize) -> f32,
    bias: Option<(Bias2<'a>, &'a [usize])>,
}

impl Finish<'_> {
    /// Calls `put(place, matrix, row, sum, scale, real bias)` for each element.
    fn each(&self, mut put: impl FnMut(usize, usize, usize, f32, f32, f32)) -> Result<()> {
        let Plan { m, n, pairs, .. } = self.plan;
        let (rows, cols) = match &self.bias {
            None => (0, 0),
            Some((_, shape)) => {
                let (batch, [rows, cols]) = last_two(shape, false);
                let (rows, cols) = if shape.len() == 1 { (1, shape[0]) } else { (rows, cols) };
                if batch.iter().any(|&d| d != 1) || ![1, *m].contains(&rows) || ![1, *n].contains(&cols) {
                    return Err(Error::invalid(format!("a bias of shape {shape:?} does not fit the product")));
                }
                (if rows == 1 { 0 } else { cols }, usize::from(cols != 1))
            }
        };
        for (matrix, &pair) in pairs.iter().enumerate() {
            for row in 0..*m {
                let first = (matrix * m + row) * n;
                for (col, &sum) in self.sums[first..first + n].iter().enumerate() {
                    let at = row * rows + col * cols;
                    let (sum, real) = match &self.bias {
                        None => (sum, 0.0),
                        Some((Bias2::Sums(bias), _)) => (sum.wrapping_add(bias[at]), 0.0),
                        Some((Bias2::Real(bias), _)) => (sum, bias[at]),
                    };
                    put(first + col, matrix, row, sum as f32, (self.scale)(pair, row, col), real);
                }
            }
        }
        Ok(())
    }

    fn real(&self) -> Result<Tensor> {
        Tensor::build(&self.plan.shape, |out: &mut [f32]| {
            let bounds = self.op.bounds;
            self.each(|at, _, _, sum, scale, bias| out[at] = bounds.clamp(sum * scale + bias))
        })
    }

    fn codes<T: Code>(&self, y_scale: &Line<f32>, y_zero: &Line<i32>) -> Result<Tensor> {
        let range = super::codes::range(T::DTYPE).unwrap_or((0, 0));
        for &zero in &y_zero.values {
            in_range(T::DTYPE, zero)?;
        }
        Tensor::build(&self.plan.shape, |out: &mut [T]| {
            let bounds = self.op.bounds;
            self.each(|at, matrix, row, sum, scale, bias| {
                let (y, zero) = (y_scale.at(matrix, row), y_zero.at(matrix, row));
                let rounder = Rounder::new(bounds.codes(y, zero, range), zero);
                out[at] = T::from_i32(rounder.code(sum * (scale / y) + bias / y));
            })
        })
    }
}

