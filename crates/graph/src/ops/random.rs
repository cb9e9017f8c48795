//! Random numbers: `RandomNormal`, `RandomUniform`, their `Like` forms, `Bernoulli`, `Multinomial`. With a seed every
//! run gives the same numbers; without one each run of the process gives others, in an order that is always the same.
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
//! <https://onnx.ai/onnx/operators/onnx__RandomNormal.html>

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::infer;
use crate::op::{Facts, GradCx, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::diagonal::dtype;
use crate::ops::family::family;
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor, ValueId};

/// A generator of random numbers.
#[derive(Debug)]
pub struct Random {
    def: &'static OpDef,
    dtype: Option<DType>,
    seed: Option<f32>,
    /// Mean and scale, or low and high.
    numbers: [f32; 2],
    shape: Vec<i64>,
    samples: i64,
}

pub(crate) static DEFS: &[OpDef] = family!("", read, samples;
    "RandomNormal" 1, "RandomNormalLike" 1, "RandomUniform" 1, "RandomUniformLike" 1, "Bernoulli" 15, "Multinomial" 7);

/// Names and defaults of the two numbers of a distribution.
fn numbers(name: &str) -> [(&'static str, f32); 2] {
    if name.starts_with("RandomNormal") {
        [("mean", 0.0), ("scale", 1.0)]
    } else {
        [("low", 0.0), ("high", 1.0)]
    }
}

fn find(name: &str) -> &'static OpDef {
    DEFS.iter().find(|d| d.name == name).unwrap_or(&DEFS[0])
}

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    let [(a, x), (b, y)] = numbers(name);
    let shape = r.attrs.ints_or("shape", &[])?;
    if shape.iter().any(|&n| n < 0) {
        return Err(Error::invalid(format!("shape {shape:?} has a negative size")));
    }
    Ok(Arc::new(Random {
        def: find(name),
        dtype: r.attrs.opt_int("dtype")?.map(dtype).transpose()?,
        seed: r.attrs.opt_float("seed")?,
        numbers: [r.attrs.float_or(a, x)?, r.attrs.float_or(b, y)?],
        shape,
        samples: r.attrs.int_or("sample_size", 1)?,
    }))
}

fn samples(name: &str) -> Vec<Sample> {
    let [(_, x), (_, y)] = numbers(name);
    let shape = if name.ends_with("Like") || !name.starts_with("Random") { vec![] } else { vec![2, 3] };
    let op = |dtype, numbers| Random {
        def: find(name),
        dtype,
        seed: Some(7.0),
        numbers,
        shape: shape.clone(),
        samples: 1,
    };
    match name {
        "RandomNormal" | "RandomUniform" => vec![
            Sample::new(op(None, [x, y]), vec![]),
            Sample::new(op(Some(DType::F64), [-1.0, 2.0]), vec![]),
        ],
        "Bernoulli" => vec![
            Sample::new(op(None, [x, y]), vec![Tensor::vector(&[0f32, 1.0, 0.5])]),
            Sample::new(op(Some(DType::I64), [x, y]), vec![Tensor::vector(&[0.5f32])]),
        ],
        "Multinomial" => vec![Sample::new(Random { samples: 4, ..op(None, [x, y]) }, vec![ramp(&[2, 3])])],
        _ => vec![
            Sample::new(op(None, [-1.0, 2.0]), vec![ramp(&[2, 3])]),
            Sample::new(op(Some(DType::F16), [x, y]), vec![ramp(&[3])]),
        ],
    }
}

/// A stream of random bits.
struct Stream(u64);

impl Stream {
    fn new(seed: Option<f32>) -> Stream {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        match seed {
            Some(seed) => Stream(u64::from(seed.to_bits())),
            None => Stream((1 << 32) + (RUNS.fetch_add(1, Ordering::Relaxed) << 20)),
        }
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// In [0, 1).
    fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Normally distributed, after Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

/// For each row of unnormalised logarithms of probabilities, `count` classes drawn from it.
fn draw(x: &Tensor, count: i64, stream: &mut Stream) -> Result<Tensor> {
    let (&[rows, classes], Ok(count)) = (x.shape(), usize::try_from(count)) else {
        return Err(Error::invalid("Multinomial takes a matrix and a sample_size that is not negative"));
    };
    if classes == 0 {
        return Err(Error::invalid("Multinomial has no classes to draw from"));
    }
    let logs = x.to_f32()?;
    Tensor::build(&[rows, count], |out: &mut [i64]| {
        for (row, out) in logs.chunks_exact(classes).zip(out.chunks_exact_mut(count.max(1))) {
            let top = row.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
            let shares: Vec<f64> = row.iter().map(|&v| f64::from(v - top).exp()).collect();
            let total: f64 = shares.iter().sum();
            for o in out {
                let mut left = stream.uniform() * total;
                let hit = shares.iter().position(|share| {
                    left -= share;
                    left < 0.0
                });
                *o = hit.unwrap_or(classes - 1) as i64;
            }
        }
        Ok(())
    })
}

impl Op for Random {
    fn def(&self) -> &'static OpDef {
        self.def
    }

    fn attrs(&self) -> Attrs {
        let name = self.def.name;
        let mut attrs = Attrs::new().maybe("dtype", self.dtype.map(|d| Attr::Int(d.to_onnx().into())));
        attrs = attrs.maybe("seed", self.seed.map(Attr::Float));
        for ((key, default), value) in numbers(name).into_iter().zip(self.numbers) {
            attrs = attrs.maybe(key, (default != value).then_some(Attr::Float(value)));
        }
        if matches!(name, "RandomNormal" | "RandomUniform") {
            attrs = attrs.ints("shape", &self.shape);
        }
        attrs.maybe("sample_size", (self.samples != 1).then_some(Attr::Int(self.samples)))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        match self.def.name {
            "RandomNormal" | "RandomUniform" => {
                let shape = self.shape.iter().map(|&n| Dim::Is(n)).collect();
                Ok(vec![Fact::tensor(self.dtype.unwrap_or(DType::F32), shape)])
            }
            "Multinomial" => {
                let rows = inputs.shape(0).and_then(|s| s.first().cloned()).unwrap_or_default();
                Ok(vec![Fact::tensor(self.dtype.unwrap_or(DType::I32), vec![rows, Dim::Is(self.samples)])])
            }
            _ => infer::like_as(inputs, 0, self.dtype.or(inputs.dtype(0))),
        }
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let mut stream = Stream::new(self.seed);
        let like = inputs.get(0)?;
        let shape: Vec<usize> = match like {
            Some(x) => x.shape().to_vec(),
            None => self.shape.iter().map(|&n| n as usize).collect(),
        };
        let [a, b] = self.numbers.map(f64::from);
        let fill = |next: &mut dyn FnMut() -> f64| {
            Tensor::build(&shape, |out: &mut [f64]| {
                out.iter_mut().for_each(|o| *o = next());
                Ok(())
            })
        };
        let default = like.map_or(DType::F32, Tensor::dtype);
        let (out, default) = match self.def.name {
            "RandomNormal" | "RandomNormalLike" => (fill(&mut || a + b * stream.normal())?, default),
            "RandomUniform" | "RandomUniformLike" => (fill(&mut || a + (b - a) * stream.uniform())?, default),
            "Bernoulli" => {
                let chances = inputs.need(0)?.to_f32()?.into_owned();
                let mut chances = chances.into_iter();
                let mut one = || f64::from(stream.uniform() < chances.next().unwrap_or(0.0).into());
                (fill(&mut one)?, default)
            }
            _ => (draw(inputs.need(0)?, self.samples, &mut stream)?, DType::I32),
        };
        Ok(vec![cast(out, self.dtype.unwrap_or(default), true)?])
    }

    fn grad(&self, _: &mut GradCx) -> Result<Vec<Option<ValueId>>> {
        Ok(vec![None])
    }

    fn is_pure(&self) -> bool {
        false
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let mut stream = Stream::new(Some(3.0));
        let n = 20000;
        let normal: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let mean = normal.iter().sum::<f64>() / n as f64;
        let variance = normal.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.04, "{mean} {variance}");
        let x = Tensor::new(&[1, 3], &[0f32, f32::NEG_INFINITY, 1.0]).unwrap();
        let drawn = draw(&x, 9000, &mut stream).unwrap();
        let share = drawn.to_ints().unwrap().iter().filter(|&&k| k == 2).count() as f64 / 9000.0;
        assert!((share - 0.731).abs() < 0.02, "{share}");
        assert!(drawn.to_ints().unwrap().iter().all(|&k| k != 1));
    }
}
