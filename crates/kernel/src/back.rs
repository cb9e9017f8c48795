//! Gradients of functions of single numbers, of softmax and of normalisations.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::Cpu;
use crate::act::Act;
use crate::lanes::{Body, Parts, Set, run, split};
use crate::math::{erf, exp, fma, sigmoid, tanh};
use crate::norm::Kind;
use crate::reduce::{Plus, Reduce, fold, lanes, reduce};

/// Multiplies each `dy` by the derivative of `act` at `x`; where there is a step, by 0. Says false, and does nothing,
/// for the functions whose derivative is not here.
///
/// # Panics
/// When the lengths differ.
pub fn act(cpu: &Cpu, act: Act, x: &[f32], dy: &mut [f32]) -> bool {
    assert_eq!(x.len(), dy.len());
    let known = matches!(
        act,
        Act::Identity
            | Act::Relu
            | Act::LeakyRelu(_)
            | Act::Clip { .. }
            | Act::Gelu
            | Act::GeluTanh
            | Act::Silu
            | Act::HardSwish
            | Act::Sigmoid
            | Act::Tanh
            | Act::Erf
            | Act::Exp
    );
    let parts = Parts::new(dy);
    split(cpu, if known { x.len() } else { 0 }, 1, |range| {
        // SAFETY: `split` hands out disjoint ranges.
        let dy = unsafe { parts.part(range.clone()) };
        run(cpu, Slope { act, x: &x[range], dy });
    });
    known
}

struct Slope<'a> {
    act: Act,
    x: &'a [f32],
    dy: &'a mut [f32],
}

impl Slope<'_> {
    #[inline(always)]
    fn each(self, f: impl Fn(f32) -> f32) {
        for (d, &x) in self.dy.iter_mut().zip(self.x) {
            *d *= f(x);
        }
    }
}

impl Body for Slope<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        match self.act {
            Act::Relu => self.each(|x| if x > 0.0 { 1.0 } else { 0.0 }),
            Act::LeakyRelu(alpha) => self.each(|x| if x < 0.0 { alpha } else { 1.0 }),
            Act::Clip { lo, hi } => self.each(|x| if x > lo && x < hi { 1.0 } else { 0.0 }),
            Act::Gelu => self.each(|x| {
                let half = 0.5 * erf::<S>(x * FRAC_1_SQRT_2) + 0.5;
                let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * exp::<S>(-0.5 * x * x);
                fma::<S>(x, density, half)
            }),
            Act::GeluTanh => self.each(|x| {
                const C: f32 = 0.797_884_6;
                let t = tanh::<S>(x * fma::<S>(C * 0.044_715, x * x, C));
                let inner = fma::<S>(3.0 * C * 0.044_715, x * x, C);
                0.5 * fma::<S>(x * (1.0 - t * t), inner, 1.0 + t)
            }),
            Act::Silu => self.each(|x| {
                let s = sigmoid::<S>(x);
                s * fma::<S>(x, 1.0 - s, 1.0)
            }),
            Act::HardSwish => self.each(|x| {
                let inner = fma::<S>(x, 1.0 / 3.0, 0.5);
                let low = if x < -3.0 { 0.0 } else { inner };
                if x > 3.0 { 1.0 } else { low }
            }),
            Act::Sigmoid => self.each(|x| {
                let s = sigmoid::<S>(x);
                s * (1.0 - s)
            }),
            Act::Tanh => self.each(|x| {
                let t = tanh::<S>(x);
                1.0 - t * t
            }),
            Act::Erf => self.each(|x| FRAC_2_SQRT_PI * exp::<S>(-x * x)),
            Act::Exp => self.each(|x| exp::<S>(x)),
            _ => {}
        }
    }
}

/// The gradient of softmax, or of its logarithm, over rows of `n`: from the output `y` and its gradient `dy`, which
/// becomes that of the input.
///
/// # Panics
/// When the lengths differ, or are no multiple of `n`.
pub fn softmax(cpu: &Cpu, y: &[f32], dy: &mut [f32], n: usize, log: bool) {
    assert_eq!(y.len(), dy.len());
    if y.is_empty() {
        return;
    }
    assert!(n > 0 && y.len().is_multiple_of(n));
    let (rows, parts) = (y.len() / n, Parts::new(dy));
    split(cpu, rows, n, |items| {
        for r in items {
            let at = r * n..(r + 1) * n;
            // SAFETY: each item is one row.
            let dy = unsafe { parts.part(at.clone()) };
            run(cpu, Shares { y: &y[at], dy, log });
        }
    });
}

struct Shares<'a> {
    y: &'a [f32],
    dy: &'a mut [f32],
    log: bool,
}

impl Body for Shares<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        if self.log {
            let sum = fold::<Plus>(self.dy, |d| d) as f32;
            for (d, &y) in self.dy.iter_mut().zip(self.y) {
                *d -= exp::<S>(y) * sum;
            }
        } else {
            let sum = dot(self.y, self.dy) as f32;
            for (d, &y) in self.dy.iter_mut().zip(self.y) {
                *d = y * (*d - sum);
            }
        }
    }
}

/// Sum of products, in lanes and short blocks as [`fold`].
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 32;
    let mut total = 0f64;
    for (a, b) in a.chunks(LANES * 32).zip(b.chunks(LANES * 32)) {
        let mut sums = [0f32; LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for l in 0..LANES {
                sums[l] += a[l] * b[l];
            }
        }
        for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
            *sum += a * b;
        }
        total += f64::from(lanes::<Plus>(sums));
    }
    total
}

/// Rows whose gradients of scale and shift are summed before they are added to those of others.
const ROWS: usize = 32;

/// The gradients of a normalisation of rows of `n` numbers, [`Kind::Layer`] or [`Kind::Rms`].
#[derive(Debug)]
pub struct NormGrads<'a> {
    /// Gradient of the input.
    pub x: &'a mut [f32],
    /// Gradient of the `n` factors.
    pub gamma: &'a mut [f32],
    /// Gradient of the `n` numbers that are added.
    pub beta: &'a mut [f32],
}

/// From input, scale and the gradient of the output, the gradients of input, scale and shift. Sums over rows are made
/// of blocks of fixed length, so they do not depend on the number of threads.
///
/// # Panics
/// When lengths do not fit; for [`Kind::L2`].
pub fn norm(cpu: &Cpu, kind: Kind, epsilon: f32, x: &[f32], gamma: &[f32], dy: &[f32], to: NormGrads) {
    let n = gamma.len();
    assert!(kind != Kind::L2, "the gradient of the L2 norm");
    assert!(x.len() == dy.len() && x.len() == to.x.len() && to.gamma.len() == n && to.beta.len() == n);
    to.gamma.fill(0.0);
    to.beta.fill(0.0);
    if x.is_empty() {
        return;
    }
    assert!(n > 0 && x.len().is_multiple_of(n));
    let blocks = (x.len() / n).div_ceil(ROWS);
    let (mut gammas, mut betas) = (vec![0f32; blocks * n], vec![0f32; blocks * n]);
    {
        let (dx, gammas, betas) = (Parts::new(to.x), Parts::new(&mut gammas), Parts::new(&mut betas));
        split(cpu, blocks, ROWS * n, |items| {
            for block in items {
                let at = block * ROWS * n..((block + 1) * ROWS * n).min(x.len());
                let own = block * n..(block + 1) * n;
                // SAFETY: each item is one block of rows, and one row of each sum.
                let (dx, dgamma, dbeta) =
                    unsafe { (dx.part(at.clone()), gammas.part(own.clone()), betas.part(own)) };
                let rms = kind == Kind::Rms;
                run(cpu, NormRows { rms, epsilon, x: &x[at.clone()], gamma, dy: &dy[at], dx, dgamma, dbeta });
            }
        });
    }
    reduce(cpu, Reduce::Sum, &gammas, [1, blocks, n], to.gamma);
    reduce(cpu, Reduce::Sum, &betas, [1, blocks, n], to.beta);
}

struct NormRows<'a> {
    rms: bool,
    epsilon: f32,
    x: &'a [f32],
    gamma: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
}

impl Body for NormRows<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Set>(self) {
        let n = self.gamma.len();
        let mut normal = vec![0f32; n];
        let rows = self.x.chunks_exact(n).zip(self.dy.chunks_exact(n)).zip(self.dx.chunks_exact_mut(n));
        for ((x, dy), dx) in rows {
            let center = if self.rms { 0.0 } else { (fold::<Plus>(x, |x| x) / n as f64) as f32 };
            let square = fold::<Plus>(x, |x| (x - center) * (x - center)) / n as f64;
            let factor = (1.0 / (square + f64::from(self.epsilon)).sqrt()) as f32;
            for (to, x) in normal.iter_mut().zip(x) {
                *to = (x - center) * factor;
            }
            for ((to, dy), gamma) in dx.iter_mut().zip(dy).zip(self.gamma) {
                *to = dy * gamma;
            }
            let along = (dot(dx, &normal) / n as f64) as f32;
            let shift = if self.rms { 0.0 } else { (fold::<Plus>(dx, |d| d) / n as f64) as f32 };
            for (d, z) in dx.iter_mut().zip(&normal) {
                *d = factor * (*d - shift - z * along);
            }
            for ((sum, dy), z) in self.dgamma.iter_mut().zip(dy).zip(&normal) {
                *sum += dy * z;
            }
            for (sum, dy) in self.dbeta.iter_mut().zip(dy) {
                *sum += dy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 53 + 11) % 211) as f32 / 40.0 - 2.6).collect()
    }

    fn cpus() -> impl Iterator<Item = Cpu> {
        Isa::available()
            .into_iter()
            .flat_map(|isa| [1, 3].map(|threads| Cpu::with_isa(isa, threads).unwrap()))
    }

    fn close(got: &[f32], want: &[f64], what: &str) {
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!(
                (f64::from(*got) - want).abs() < 2e-4 * (1.0 + want.abs()),
                "{what}[{i}]: {got}, not {want}"
            );
        }
    }

    #[test]
    fn slopes_are_differences_of_the_function() {
        let acts = [
            Act::Relu,
            Act::LeakyRelu(0.2),
            Act::Clip { lo: -1.0, hi: 1.5 },
            Act::Gelu,
            Act::GeluTanh,
            Act::Silu,
            Act::HardSwish,
            Act::Sigmoid,
            Act::Tanh,
            Act::Erf,
            Act::Exp,
        ];
        let x: Vec<f32> = numbers(997, 3).iter().map(|x| x * 1.7 + 0.003).collect();
        for act in acts {
            let step = 5e-3;
            let slope = |x: f32| f64::from(act.of(x + step) - act.of(x - step)) / f64::from(2.0 * step);
            for cpu in cpus() {
                let mut dy = vec![2.0; x.len()];
                assert!(super::act(&cpu, act, &x, &mut dy));
                for (&x, dy) in x.iter().zip(dy) {
                    let want = 2.0 * slope(x);
                    // Away from steps.
                    let near = [-3.0, -1.0, 0.0, 1.5, 3.0].iter().any(|s| (x - s).abs() < 2.0 * step);
                    assert!(
                        near || (f64::from(dy) - want).abs() < 4e-3 * (1.0 + want.abs()),
                        "{act:?} {x}: {dy} {want}"
                    );
                }
            }
        }
        let mut dy = vec![1.0];
        assert!(!super::act(&Cpu::new(1).unwrap(), Act::Mish, &[0.5], &mut dy) && dy == [1.0]);
    }

    #[test]
    fn softmax_after_its_formula() {
        for (rows, n) in [(3, 5), (700, 67), (2, 2000)] {
            let (y, dy) = (numbers(rows * n, 1), numbers(rows * n, 2));
            for (log, cpu) in [false, true].into_iter().flat_map(|log| cpus().map(move |cpu| (log, cpu))) {
                let mut got = dy.clone();
                softmax(&cpu, &y, &mut got, n, log);
                let mut want = Vec::new();
                for (y, d) in y.chunks(n).zip(dy.chunks(n)) {
                    let sum: f64 =
                        y.iter().zip(d).map(|(y, d)| f64::from(if log { *d } else { y * d })).sum();
                    want.extend(y.iter().zip(d).map(|(&y, &d)| {
                        let (y, d) = (f64::from(y), f64::from(d));
                        if log { d - y.exp() * sum } else { y * (d - sum) }
                    }));
                }
                let scale = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
                let part = |v: &f32| *v / scale as f32;
                let (got, want): (Vec<f32>, Vec<f64>) =
                    (got.iter().map(part).collect(), want.iter().map(|v| v / scale).collect());
                close(&got, &want, "softmax");
            }
        }
    }

    #[test]
    fn norms_after_their_formula_on_any_number_of_threads() {
        for (rows, n) in [(2, 5), (131, 48), (70, 1031)] {
            let (x, dy, gamma) = (numbers(rows * n, 1), numbers(rows * n, 2), numbers(n, 5));
            for kind in [Kind::Layer, Kind::Rms] {
                let mut first: Option<Vec<Vec<f32>>> = None;
                for cpu in cpus() {
                    let mut got = vec![vec![1f32; rows * n], vec![1f32; n], vec![1f32; n]];
                    let [dx, dgamma, dbeta] = got.as_mut_slice() else { panic!() };
                    norm(&cpu, kind, 1e-3, &x, &gamma, &dy, NormGrads { x: dx, gamma: dgamma, beta: dbeta });
                    let mut want = vec![Vec::new(), vec![0f64; n], vec![0f64; n]];
                    for (x, d) in x.chunks(n).zip(dy.chunks(n)) {
                        let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
                        let g: Vec<f64> =
                            d.iter().zip(&gamma).map(|(d, g)| f64::from(*d) * f64::from(*g)).collect();
                        let mean = |v: &mut dyn Iterator<Item = f64>| v.sum::<f64>() / n as f64;
                        let layer = if kind == Kind::Layer { 1.0 } else { 0.0 };
                        let center = layer * mean(&mut x.iter().copied());
                        let factor = 1.0 / (mean(&mut x.iter().map(|x| (x - center).powi(2))) + 1e-3).sqrt();
                        let z: Vec<f64> = x.iter().map(|x| (x - center) * factor).collect();
                        let shift = layer * mean(&mut g.iter().copied());
                        let along = mean(&mut g.iter().zip(&z).map(|(g, z)| g * z));
                        for i in 0..n {
                            want[0].push(factor * (g[i] - shift - z[i] * along));
                            want[1][i] += f64::from(d[i]) * z[i];
                            want[2][i] += f64::from(d[i]);
                        }
                    }
                    for (got, want) in got.iter().zip(&want) {
                        close(got, want, "norm");
                    }
                    if cpu.isa() == Isa::best() {
                        assert_eq!(*first.get_or_insert(got.clone()), got);
                    }
                }
            }
        }
    }
}
