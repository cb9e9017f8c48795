//! Products of quantised matrices: `MatMulInteger`, `QLinearMatMul`, onnxruntime's `QGemm`, `MatMulIntegerToFloat`
//! and `DynamicQuantizeMatMul`, and `lessen.QMatMul`, to which quantised graphs are rewritten before they run.
//! <https://onnx.ai/onnx/operators/onnx__QLinearMatMul.html>,
//! <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use kernel::conv::Bytes;
use kernel::matmul::{self, Bias as Added, View};
use kernel::q8::quantize::quantize_dynamic;
use kernel::q8::{self, Bytes as Matrix, Grid, Out, PackedB, Per, Right};
use kernel::{Act, Cpu};

use super::codes::{Code, Rounder, bytes, in_range};
use super::slots::{Bounds, Slot, Slots, place};
use crate::infer::broadcast_sizes;
use crate::op::{Facts, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, ramp};
use crate::ops::broadcast::Walk;
use crate::ops::cast::cast;
use crate::ops::fuse;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor, infer};

/// One of the products of quantised matrices:
/// `y = act(bounds(alpha * scale_a * scale_b * ((a - zero_a) * (b - zero_b) + bias)))`, quantised when it has a
/// scale.
#[derive(Clone, Debug)]
pub struct QMatMul {
    form: Form,
    attrs: Attrs,
    alpha: f32,
    turned: [bool; 2],
    bounds: Bounds,
    /// Applied to a real result.
    act: Act,
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
        act: if form == Form::Own { fuse::read(r.attrs)? } else { Act::Identity },
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
    for (m, k, n) in [(3, 0, 2), (0, 4, 2), (2, 3, 0)] {
        if let (Ok(a), Ok(b)) = (operand(&[m, k]), operand(&[k, n])) {
            found.extend(make(Attrs::new(), &one(a, b, false)));
        }
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
        let after = match form {
            Form::Own => fuse::write(attrs.float("lo", -0.5), Act::Gelu),
            _ => attrs,
        };
        found.extend(make(after, &|slot| find(slot).filter(|_| !matches!(slot, Bias | YScale | YZero))));
    }
    found
}

/// Right operands packed ahead.
struct Ready {
    rights: Vec<PackedB>,
    shape: Vec<usize>,
    dtype: DType,
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

    /// Values for the rows of one matrix of `shape`, repeated when the rows of many matrices are run as one.
    fn rows<T: Copy>(&self, values: Vec<T>, shape: &[usize]) -> Vec<T> {
        let rows = shape.len().checked_sub(2).map_or(1, |i| shape[i]);
        match values.len() == rows && rows > 1 && self.m > rows {
            true => values.iter().copied().cycle().take(self.m).collect(),
            false => values,
        }
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
        match self.of(matrix) {
            Per::All(value) => value,
            Per::Each(values) => values[i],
        }
    }

    /// Those of one matrix.
    fn of(&self, matrix: usize) -> Per<'_, T> {
        match self.values.len() {
            1 => Per::All(self.values[0]),
            n if n == self.len => Per::Each(&self.values),
            _ => Per::Each(&self.values[matrix * self.len..][..self.len]),
        }
    }
}

/// The matrix that begins at an element.
fn matrix(data: Bytes<'_>, start: usize, [rows, cols]: [usize; 2], turned: bool) -> Matrix<'_> {
    let [down, along] = if turned { [1, rows] } else { [cols, 1] };
    match data {
        Bytes::U8(data) => View::strided(&data[start..], rows, cols, down, along).into(),
        Bytes::S8(data) => View::strided(&data[start..], rows, cols, down, along).into(),
    }
}

/// Right operands: packed, or as they lie.
enum Rights<'a> {
    Packed(&'a [PackedB]),
    Plain(Bytes<'a>, bool),
}

/// The products of a plan, and the zero points of their operands.
struct Products<'a> {
    cpu: &'a Cpu,
    plan: &'a Plan,
    a: Bytes<'a>,
    turned: bool,
    b: Rights<'a>,
    a_zero: Line<i32>,
    b_zero: Line<i32>,
}

impl Products<'_> {
    /// One product, with these scales of the rows and columns.
    fn run(&self, (left, right): (usize, usize), a_scale: Per<f32>, b_scale: Per<f32>, out: Out) {
        let Plan { m, k, n, .. } = *self.plan;
        let a = matrix(self.a, left * m * k, [m, k], self.turned);
        let grid = Grid { a_zero: self.a_zero.of(left), b_zero: self.b_zero.of(right), a_scale, b_scale };
        let a = kernel::q8::Left::Bytes(a);
        match self.b {
            Rights::Packed(packed) => q8::matmul(self.cpu, a, &packed[right], &grid, out, n),
            Rights::Plain(data, turned) => {
                let b = Right::Bytes(matrix(data, right * k * n, [k, n], turned));
                q8::matmul(self.cpu, a, b, &grid, out, n);
            }
        }
    }
}

/// The zero points of a tensor of this type.
fn zeros(tensor: Option<&Tensor>, dtype: DType) -> Result<Vec<i32>> {
    let Some(tensor) = tensor else { return Ok(vec![0]) };
    let found: Vec<i32> = tensor.to_ints()?.into_iter().map(|v| v as i32).collect();
    found.iter().try_for_each(|&zero| in_range(dtype, zero).map(|_| ()))?;
    Ok(found)
}

/// Something that is added to sums: in the units of the sums, or real.
enum Addend<'a> {
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
        QMatMul { form: Form::Own, attrs, alpha, turned, bounds, act: Act::Identity }
    }

    /// The same, followed by an activation; `None` when the form has no place for one.
    pub fn then(&self, act: Act) -> Option<QMatMul> {
        let free = self.form == Form::Own && self.act == Act::Identity;
        free.then(|| QMatMul { attrs: fuse::write(self.attrs.clone(), act), act, ..self.clone() })
    }

    /// Where the input with the scale of a quantised result stands.
    pub(crate) fn y_scale(&self) -> usize {
        self.place(YScale)
    }

    fn place(&self, slot: Slot) -> usize {
        place(self.form.slots(), slot)
    }

    fn get<'a>(&self, inputs: &'a Inputs, slot: Slot) -> Result<Option<&'a Tensor>> {
        inputs.get(self.place(slot))
    }

    fn out_dtype(
        &self,
        a: Option<DType>,
        a_scale: Option<DType>,
        y_scale: bool,
        y_zero: Option<DType>,
    ) -> Option<DType> {
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
        let at = self.place(B);
        let Some(b) = cx.constant(at).filter(|b| b.rank() > 0) else { return Ok(None) };
        let wide = if b.rank() == 1 { vec![b.len(), 1] } else { b.shape().to_vec() };
        let (batch, [k, n]) = last_two(&wide, self.turned[1]);
        let data = bytes(b)?;
        let pack = |i| PackedB::new(cx.cpu, matrix(data, i * k * n, [k, n], self.turned[1]));
        let rights = (0..batch.iter().product()).map(pack).collect();
        Ok(Some(Packed::new(Ready { rights, shape: b.shape().to_vec(), dtype: b.dtype() }, &[at])))
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let a = inputs.need(self.place(A))?;
        let (b, b_shape, b_dtype) = match cx.packed::<Ready>() {
            Some(ready) => (Rights::Packed(&ready.rights), ready.shape.as_slice(), ready.dtype),
            None => {
                let b = inputs.need(self.place(B))?;
                (Rights::Plain(bytes(b)?, self.turned[1]), b.shape(), b.dtype())
            }
        };
        let plan = Plan::new(a.shape(), b_shape, self.turned)?;
        let codes;
        let (a_bytes, a_scale, a_zero) = if a.dtype().is_float() {
            let mut grid = (1.0, 0);
            let values = a.to_f32()?;
            codes = Tensor::fill(a.shape(), |out: &mut [u8]| {
                grid = quantize_dynamic(cx.cpu, &values, out);
                Ok(())
            })?;
            (bytes(&codes)?, vec![grid.0], vec![i32::from(grid.1)])
        } else {
            let scale = match self.get(&inputs, AScale)? {
                Some(scale) => scale.to_f32()?.into_owned(),
                None if self.form == Form::Integer => vec![1.0],
                None => return Err(Error::invalid("the left operand's scale is missing")),
            };
            (bytes(a)?, scale, zeros(self.get(&inputs, AZero)?, a.dtype())?)
        };
        let size = plan.m * plan.n;
        let lefts = a.len().checked_div(plan.m * plan.k).unwrap_or(1);
        let rights = crate::tensor::count(b_shape)?.checked_div(plan.k * plan.n).unwrap_or(1);
        let products = Products {
            cpu: cx.cpu,
            plan: &plan,
            a: a_bytes,
            turned: self.turned[0],
            b,
            a_zero: Line::new(plan.rows(a_zero, a.shape()), plan.m, lefts)?,
            b_zero: Line::new(zeros(self.get(&inputs, BZero)?, b_dtype)?, plan.n, rights)?,
        };
        let ones = (Per::All(1.0), Per::All(1.0));
        let sums = || {
            Tensor::fill(&plan.shape, |out: &mut [i32]| {
                for (&pair, out) in plan.pairs.iter().zip(out.chunks_mut(size.max(1))) {
                    products.run(pair, ones.0, ones.1, Out::I32(out));
                }
                Ok(())
            })
        };
        if self.form == Form::Integer {
            return Ok(vec![sums()?]);
        }
        let a_scale = Line::new(plan.rows(a_scale, a.shape()), plan.m, lefts)?;
        let b_scale = inputs.need(self.place(BScale))?.to_f32()?.into_owned();
        let b_scale = Line::new(b_scale, plan.n, rights)?;
        let own = self.get(&inputs, AScale)?.map(Tensor::dtype);
        let (y_scale, y_zero) = (self.get(&inputs, YScale)?, self.get(&inputs, YZero)?);
        let dtype = self.out_dtype(Some(a.dtype()), own, y_scale.is_some(), y_zero.map(Tensor::dtype));
        let dtype = dtype.ok_or_else(|| Error::invalid("the type of the output is not known"))?;
        let added = match self.get(&inputs, Bias)? {
            None => None,
            Some(t) if t.dtype() == DType::I32 => Some((Addend::Sums(t.values()?), t.shape())),
            Some(t) => Some((Addend::Real(t.to_f32()?), t.shape())),
        };
        let finish = Finish { op: self, products: &products, a_scale, b_scale, bias: added };
        let Some(y_scale) = y_scale else {
            let mut y = match finish.real()? {
                Some(y) => y,
                None => finish.slow_real(&sums()?)?,
            };
            kernel::act::apply(cx.cpu, self.act, y.as_mut_slice()?);
            return Ok(vec![cast(y, dtype, true)?]);
        };
        if self.act != Act::Identity {
            return Err(Error::unsupported("an activation by name before quantising; use lo and hi"));
        }
        let y_scale = plan.rows(y_scale.to_f32()?.into_owned(), &plan.shape);
        let y_zero = plan.rows(zeros(y_zero, dtype)?, &plan.shape);
        let y_scale = Line::new(y_scale, plan.m, plan.pairs.len())?;
        let y_zero = Line::new(y_zero, plan.m, plan.pairs.len())?;
        if let Some(y) = finish.bytes(dtype, &y_scale, &y_zero)? {
            return Ok(vec![y]);
        }
        Ok(vec![match dtype {
            DType::U8 => finish.slow_codes::<u8>(&sums()?, &y_scale, &y_zero)?,
            DType::I8 => finish.slow_codes::<i8>(&sums()?, &y_scale, &y_zero)?,
            other => return Err(Error::unsupported(format!("a quantised product of type {other}"))),
        }])
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let depth = inputs.get(self.place(B)).and_then(Fact::sizes).and_then(|s| {
            let at = s.len().saturating_sub(if self.turned[1] { 1 } else { 2 });
            s.get(at).copied()
        });
        let count = outputs.first().and_then(Fact::count);
        depth.zip(count).map_or(0, |(k, n)| k as u64 * n as u64)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// From the sums to the output.
struct Finish<'a> {
    op: &'a QMatMul,
    products: &'a Products<'a>,
    a_scale: Line<f32>,
    b_scale: Line<f32>,
    bias: Option<(Addend<'a>, &'a [usize])>,
}

impl Finish<'_> {
    /// The real product, when the kernel can finish it.
    fn real(&self) -> Result<Option<Tensor>> {
        let Plan { m, n, shape, pairs, .. } = self.products.plan;
        let bias = match &self.bias {
            None => Added::None,
            Some((Addend::Real(bias), [len])) if len == n => Added::Col(bias),
            _ => return Ok(None),
        };
        if self.op.alpha != 1.0 {
            return Ok(None);
        }
        let act = matmul::Act::Clip { lo: self.op.bounds.lo, hi: self.op.bounds.hi };
        let build = Tensor::fill(shape, |out: &mut [f32]| {
            for (&pair, out) in pairs.iter().zip(out.chunks_mut((m * n).max(1))) {
                let out = Out::F32 { out, bias, act };
                self.products.run(pair, self.a_scale.of(pair.0), self.b_scale.of(pair.1), out);
            }
            Ok(())
        });
        build.map(Some)
    }

    /// The product as bytes, when the kernel can finish it.
    fn bytes(&self, dtype: DType, y_scale: &Line<f32>, y_zero: &Line<i32>) -> Result<Option<Tensor>> {
        let Plan { m, n, shape, pairs, .. } = self.products.plan;
        let bias = match &self.bias {
            None => Added::None,
            Some((Addend::Sums(bias), [len])) if len == n => Added::Col(bias),
            _ => return Ok(None),
        };
        let ([a_scale], [y_scale], [zero]) = (&*self.a_scale.values, &*y_scale.values, &*y_zero.values)
        else {
            return Ok(None);
        };
        let (lo, hi) = self.op.bounds.codes(*y_scale, *zero, in_range(dtype, *zero)?);
        let factor = |b_scale: &f32| self.op.alpha * (a_scale * b_scale) / y_scale;
        let factors = Line { values: self.b_scale.values.iter().map(factor).collect(), len: *n };
        let mut y = Tensor::any(dtype, shape)?;
        for (i, &pair) in pairs.iter().enumerate() {
            let place = i * m * n..(i + 1) * m * n;
            let out = match dtype {
                DType::U8 => Out::U8 {
                    out: &mut y.as_mut_slice()?[place],
                    bias,
                    zero: *zero as u8,
                    lo: lo as u8,
                    hi: hi as u8,
                },
                DType::I8 => Out::I8 {
                    out: &mut y.as_mut_slice()?[place],
                    bias,
                    zero: *zero as i8,
                    lo: lo as i8,
                    hi: hi as i8,
                },
                _ => return Ok(None),
            };
            self.products.run(pair, Per::All(1.0), factors.of(pair.1), out);
        }
        Ok(Some(y))
    }

    /// Calls `put(place, matrix, row, sum, scale, real bias)` for each element.
    fn each(&self, sums: &Tensor, mut put: impl FnMut(usize, usize, usize, f32, f32, f32)) -> Result<()> {
        let Plan { m, n, pairs, .. } = self.products.plan;
        let sums = sums.as_slice::<i32>()?;
        let (rows, cols) = match &self.bias {
            None => (0, 0),
            Some((_, shape)) => {
                let wide = [&[1, 1], *shape].concat();
                let (batch, [rows, cols]) = last_two(&wide, false);
                if batch.iter().any(|&d| d != 1) || ![1, *m].contains(&rows) || ![1, *n].contains(&cols) {
                    return Err(Error::invalid(format!(
                        "a bias of shape {shape:?} does not fit the product"
                    )));
                }
                (if rows == 1 { 0 } else { cols }, usize::from(cols != 1))
            }
        };
        for (matrix, &(left, right)) in pairs.iter().enumerate() {
            for row in 0..*m {
                let first = (matrix * m + row) * n;
                for (col, &sum) in sums[first..first + n].iter().enumerate() {
                    let at = row * rows + col * cols;
                    let (sum, real) = match &self.bias {
                        None => (sum, 0.0),
                        Some((Addend::Sums(bias), _)) => (sum.wrapping_add(bias[at]), 0.0),
                        Some((Addend::Real(bias), _)) => (sum, bias[at]),
                    };
                    let scale = self.op.alpha * (self.a_scale.at(left, row) * self.b_scale.at(right, col));
                    put(first + col, matrix, row, sum as f32, scale, real);
                }
            }
        }
        Ok(())
    }

    fn slow_real(&self, sums: &Tensor) -> Result<Tensor> {
        Tensor::build(&self.products.plan.shape, |out: &mut [f32]| {
            let bounds = self.op.bounds;
            self.each(sums, |at, _, _, sum, scale, bias| out[at] = bounds.clamp(sum * scale + bias))
        })
    }

    fn slow_codes<T: Code>(&self, sums: &Tensor, y_scale: &Line<f32>, y_zero: &Line<i32>) -> Result<Tensor> {
        let range = in_range(T::DTYPE, 0)?;
        Tensor::build(&self.products.plan.shape, |out: &mut [T]| {
            let bounds = self.op.bounds;
            self.each(sums, |at, matrix, row, sum, scale, bias| {
                let (y, zero) = (y_scale.at(matrix, row), y_zero.at(matrix, row));
                let rounder = Rounder::new(bounds.codes(y, zero, range), zero);
                out[at] = T::from_i32(rounder.code(sum * (scale / y) + bias / y));
            })
        })
    }
}
