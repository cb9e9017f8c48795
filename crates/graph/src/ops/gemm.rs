//! `Gemm`: `alpha A B + beta C`, and `com.microsoft.FusedGemm` with an activation after it.
//! <https://onnx.ai/onnx/operators/onnx__Gemm.html>

use std::any::Any;
use std::sync::Arc;

use kernel::Act;
use kernel::f32::{Add, PackedB, Post, Right, matmul};
use kernel::matmul::{Bias, View};

use crate::axes::Port::{Input, Output};
use crate::op::{
    Facts, GradCx, Inputs, OpDef, PackCx, Packed, Reader, RunCx, Sample, WeightKind, WeightUse, ramp,
};
use crate::ops::binary::Binary;
use crate::ops::broadcast::Walk;
use crate::ops::fuse;
use crate::ops::halves::{in_f32, widen};
use crate::ops::number::{Number, by_type};
use crate::ops::sum_to::SumTo;
use crate::{Attr, Attrs, Axes, DType, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// Product of two matrices, plus a third one that is broadcast.
#[derive(Clone, Debug)]
pub struct Gemm {
    fused: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the third input.
    pub beta: f32,
    /// Which operands are transposed.
    pub transposed: [bool; 2],
    /// Applied to the result.
    pub act: Act,
}

impl Gemm {
    /// The plain product.
    pub fn new(transposed: [bool; 2], alpha: f32) -> Gemm {
        Gemm { fused: false, alpha, beta: 1.0, transposed, act: Act::Identity }
    }

    /// The same, followed by an activation.
    pub fn then(&self, act: Act) -> Gemm {
        Gemm { fused: true, act, ..self.clone() }
    }

    fn read(fused: bool, r: &Reader) -> Result<Gemm> {
        Ok(Gemm {
            fused,
            alpha: r.attrs.float_or("alpha", 1.0)?,
            beta: r.attrs.float_or("beta", 1.0)?,
            transposed: [r.attrs.flag_or("transA", false)?, r.attrs.flag_or("transB", false)?],
            act: if fused { fuse::read_greek(r.attrs)? } else { Act::Identity },
        })
    }
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "Gemm",
        domain: "",
        since: 1,
        read: |r| Ok(Arc::new(Gemm::read(false, r)?)),
        samples: || {
            let gemm = |t, alpha, beta| Gemm { beta, ..Gemm::new(t, alpha) };
            let doubles = |s: &[usize]| crate::ops::cast::cast(ramp(s), DType::F64, true);
            let mut samples = vec![
                Sample::new(gemm([false, false], 1.0, 1.0), vec![ramp(&[3, 5]), ramp(&[5, 4]), ramp(&[4])])
                    .grads(&[0, 1, 2]),
                Sample::new(gemm([true, true], 0.5, 2.0), vec![ramp(&[5, 3]), ramp(&[4, 5]), ramp(&[3, 1])])
                    .grads(&[0, 1, 2]),
                Sample::new(gemm([true, false], 1.0, 0.5), vec![ramp(&[5, 3]), ramp(&[5, 4]), ramp(&[3, 4])])
                    .grads(&[0, 1]),
                Sample::new(gemm([false, true], 1.0, 3.0), vec![ramp(&[3, 5]), ramp(&[4, 5]), ramp(&[])]),
                Sample::new(gemm([false, true], 2.0, 1.0), vec![ramp(&[3, 5]), ramp(&[4, 5])]).grads(&[0, 1]),
            ];
            if let (Ok(a), Ok(b), Ok(c)) = (doubles(&[2, 3]), doubles(&[3, 2]), doubles(&[1, 2])) {
                samples.push(Sample::new(gemm([false, false], 0.5, 2.0), vec![a, b, c]));
            }
            samples
        },
    },
    OpDef {
        name: "FusedGemm",
        domain: "com.microsoft",
        since: 1,
        read: |r| Ok(Arc::new(Gemm::read(true, r)?)),
        samples: || {
            let inputs = || vec![ramp(&[3, 5]), ramp(&[4, 5]), ramp(&[4])];
            let gemm = Gemm::new([false, true], 1.0);
            [Act::Relu, Act::LeakyRelu(0.1), Act::HardSigmoid { alpha: 0.3, beta: 0.4 }]
                .map(|act| Sample::new(gemm.then(act), inputs()))
                .into()
        },
    },
];

/// Rows and columns of an operand.
fn sizes(t: &Tensor, transposed: bool) -> Result<[usize; 2]> {
    match *t.shape() {
        [r, c] => Ok(if transposed { [c, r] } else { [r, c] }),
        ref other => Err(Error::invalid(format!("Gemm multiplies matrices, got shape {other:?}"))),
    }
}

fn view(t: &Tensor, transposed: bool) -> Result<View<'_, f32>> {
    let [r, c] = sizes(t, false)?;
    let view = View::new(t.as_slice()?, r, c);
    Ok(if transposed { view.t() } else { view })
}

fn fit(k: usize, rows: usize) -> Result<()> {
    if k != rows {
        return Err(Error::invalid(format!("cannot multiply {k} columns with {rows} rows")));
    }
    Ok(())
}

/// The third input against the output: one-way broadcast.
fn third(shape: &[usize], m: usize, n: usize) -> Result<Walk> {
    let walk = Walk::new(&[m, n], shape)?;
    if walk.shape != [m, n] {
        return Err(Error::invalid(format!("C of shape {shape:?} does not broadcast to [{m}, {n}]")));
    }
    Ok(walk)
}

fn plain<T: Number>(op: &Gemm, a: &Tensor, b: &Tensor, c: Option<&Tensor>) -> Result<Tensor> {
    let ([m, k], [rows, n]) = (sizes(a, op.transposed[0])?, sizes(b, op.transposed[1])?);
    fit(k, rows)?;
    let (x, y) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
    let steps = |t: bool, r: usize, c: usize| if t { [1, r] } else { [c, 1] };
    let (sa, sb) = (steps(op.transposed[0], m, k), steps(op.transposed[1], k, n));
    let scaled = |v: T, by: f32| if by == 1.0 { v } else { T::from_f64(v.to_f64() * f64::from(by)) };
    let product = Tensor::build(&[m, n], |out: &mut [T]| {
        for (i, out) in out.iter_mut().enumerate() {
            let (r, c) = (i / n, i % n);
            let at = |p: usize| x[r * sa[0] + p * sa[1]].times(y[p * sb[0] + c * sb[1]]);
            *out = scaled((0..k).fold(T::default(), |sum, p| sum.plus(at(p))), op.alpha);
        }
        Ok(())
    })?;
    let Some(c) = c else { return Ok(product) };
    let walk = third(c.shape(), m, n)?;
    Tensor::build(&[m, n], |out: &mut [T]| {
        walk.apply(product.as_slice::<T>()?, c.as_slice::<T>()?, out, |p, c| p.plus(scaled(c, op.beta)));
        Ok(())
    })
}

impl Gemm {
    fn run_f32(&self, cx: &RunCx, inputs: &Inputs) -> Result<Tensor> {
        let a = view(inputs.need(0)?, self.transposed[0])?;
        let b: Right = match cx.packed::<PackedB>() {
            Some(packed) => packed.into(),
            None => view(inputs.need(1)?, self.transposed[1])?.into(),
        };
        let (rows, n) = match b {
            Right::Packed(p) => (p.rows(), p.cols()),
            Right::View(v) => (v.rows(), v.cols()),
            Right::Made(m) => (m.rows, m.cols),
        };
        fit(a.cols(), rows)?;
        let m = a.rows();
        let c = inputs.get(2)?.filter(|_| self.beta != 0.0);
        let spread: Vec<f32>;
        let mut bias = Bias::None;
        let mut add = Add::None;
        if let Some(c) = c {
            let walk = third(c.shape(), m, n)?;
            let data = c.as_slice::<f32>()?;
            let exact = self.beta == 1.0;
            match (c.len(), c.shape()) {
                // As many numbers as the output, a row or a column are read where they lie.
                (len, _) if len == m * n && exact => add = Add::Rows(data, n),
                (len, [.., last]) if len == n && *last == n => {
                    spread = data.iter().map(|v| v * self.beta).collect();
                    bias = Bias::Col(&spread);
                }
                (len, [_, 1]) if len == m => {
                    spread = data.iter().map(|v| v * self.beta).collect();
                    bias = Bias::Row(&spread);
                }
                _ => {
                    let mut sum = vec![0f32; m * n];
                    let ones = vec![self.beta; m * n];
                    walk.apply(&ones, data, &mut sum, |beta, v| beta * v);
                    spread = sum;
                    add = Add::Rows(&spread, n);
                }
            }
        }
        let tile = |part: &mut [f32]| self.act.tile(cx.cpu, part);
        let act = fuse::in_product(self.act);
        let post = Post {
            alpha: self.alpha,
            add,
            bias,
            act: act.unwrap_or_default(),
            after: if act.is_some() { None } else { Some(&tile) },
        };
        Tensor::fill(&[m, n], |out| {
            matmul(cx.cpu, a, b, out, n, &post);
            Ok(())
        })
    }
}

impl Op for Gemm {
    fn def(&self) -> &'static OpDef {
        &DEFS[usize::from(self.fused)]
    }

    fn attrs(&self) -> Attrs {
        let flag = |on: bool| on.then_some(Attr::Int(1));
        let attrs = Attrs::new()
            .float("alpha", self.alpha)
            .float("beta", self.beta)
            .maybe("transA", flag(self.transposed[0]))
            .maybe("transB", flag(self.transposed[1]));
        if self.fused { fuse::write_greek(attrs, self.act) } else { attrs }
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        let side = |fact: &Fact, axis: usize| match fact.shape() {
            Some([r, c]) => Ok([r, c][axis].clone()),
            Some(_) => Err(Error::invalid("Gemm multiplies matrices")),
            None => Ok(Dim::Unknown),
        };
        let [ta, tb] = self.transposed.map(usize::from);
        if let (Dim::Is(k), Dim::Is(rows)) = (side(a, 1 - ta)?, side(b, tb)?)
            && k != rows
        {
            return Err(Error::invalid(format!("cannot multiply {k} columns with {rows} rows")));
        }
        Ok(vec![Fact::maybe(a.dtype().or(b.dtype()), Some(vec![side(a, ta)?, side(b, 1 - tb)?]))])
    }

    fn run(&self, cx: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let dtype = inputs.need(0)?.dtype();
        in_f32(dtype, inputs, |inputs| match inputs.need(0)?.dtype() {
            DType::F32 => Ok(vec![self.run_f32(cx, &inputs)?]),
            _ if self.fused => Err(Error::unsupported(format!("FusedGemm of {dtype}"))),
            other => {
                let (a, b, c) = (inputs.need(0)?, inputs.need(1)?, inputs.get(2)?);
                Ok(vec![by_type!(other, plain(self, a, b, c))?])
            }
        })
    }

    fn prepack(&self, cx: &PackCx) -> Result<Option<Packed>> {
        let Some(b) = cx.constant(1) else { return Ok(None) };
        let b = widen(b.clone())?;
        if b.dtype() != DType::F32 {
            return Ok(None);
        }
        Ok(Some(Packed::new(PackedB::new(cx.cpu, view(&b, self.transposed[1])?), &[1])))
    }

    fn grad(&self, cx: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        if self.fused {
            return Err(Error::unsupported("the gradient of FusedGemm"));
        }
        let (a, b, dy) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
        let [ta, tb] = self.transposed;
        let mut product = |x, y, tx, ty| cx.graph.add_op("grad", Gemm::new([tx, ty], self.alpha), &[x, y]);
        let da = if ta { product(b, dy, tb, true)? } else { product(dy, b, false, !tb)? };
        let db = if tb { product(dy, a, true, ta)? } else { product(a, dy, !ta, false)? };
        let mut grads = vec![Some(da), Some(db)];
        if let Some(c) = cx.inputs.get(2).copied().flatten() {
            let mut dc = cx.graph.add_op("grad", SumTo, &[dy, c])?;
            if self.beta != 1.0 {
                let beta = cx.graph.add_constant("beta", Tensor::scalar(self.beta));
                dc = cx.graph.add_op("grad", Binary::named("Mul")?, &[dc, beta])?;
            }
            grads.push(Some(dc));
        }
        Ok(grads)
    }

    fn weight(&self) -> Option<WeightUse> {
        let out_axis = if self.transposed[1] { 0 } else { 1 };
        Some(WeightUse { input: 1, out_axis, kind: WeightKind::MatMul })
    }

    fn weight_rows(&self, x: &Tensor, weight: &[usize], emit: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let inner = weight.get(usize::from(self.transposed[1])).copied();
        if self.transposed[0] || weight.len() != 2 || x.shape().last().copied() != inner {
            return Err(Error::unsupported(format!("the inputs of a weight of shape {weight:?}")));
        }
        emit(0, x.as_slice()?);
        Ok(())
    }

    fn mul_adds(&self, inputs: &Facts, outputs: &[Fact]) -> u64 {
        let k = inputs.shape(0).and_then(|s| s.get(usize::from(!self.transposed[0]))?.size()).unwrap_or(0);
        (outputs.first().and_then(Fact::count).unwrap_or(0) as u64).saturating_mul(k as u64)
    }

    fn axes(&self, inputs: &Facts, _: &[Fact]) -> Option<Axes> {
        let [a, b] = self.transposed.map(usize::from);
        let mut axes = Axes::new();
        axes.along([(a, 0)]).tie((Input(0), 1 - a), (Input(1), b)).tie((Input(1), 1 - b), (Output(0), 1));
        if inputs.get(2).is_some() {
            let rank = inputs.rank(2)?;
            (0..rank).for_each(|i| _ = axes.tie((Input(2), i), (Output(0), i + 2 - rank.min(2))));
        }
        Some(axes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
