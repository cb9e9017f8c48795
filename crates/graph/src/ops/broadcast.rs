//! Broadcasting after numpy's rules: how two tensors of different shapes meet element by element.

use kernel::Cpu;
use kernel::vec::{self, Right};

use crate::infer::broadcast_sizes;
use crate::op::Facts;
use crate::{Dim, Element, Fact, Result, Tensor};

/// How the elements of two operands are walked to fill an output, with as few and as long runs as can be.
pub(crate) struct Walk {
    /// Shape of the output.
    pub shape: Vec<usize>,
    /// Sizes of the merged axes, and the step of each operand along them (in elements; 0 repeats).
    axes: Vec<(usize, usize, usize)>,
}

impl Walk {
    /// # Errors
    /// When the shapes cannot meet.
    pub fn new(a: &[usize], b: &[usize]) -> Result<Walk> {
        let shape = broadcast_sizes(a, b)?;
        let steps = |s: &[usize]| -> Vec<usize> {
            let mut steps = vec![0; shape.len()];
            let mut step = 1;
            for (i, &size) in s.iter().enumerate().rev() {
                steps[i + shape.len() - s.len()] = if size == 1 { 0 } else { step };
                step *= size;
            }
            steps
        };
        let (sa, sb) = (steps(a), steps(b));
        let mut axes: Vec<(usize, usize, usize)> = Vec::new();
        for i in 0..shape.len() {
            if shape[i] == 1 {
                continue;
            }
            match axes.last_mut() {
                Some((n, pa, pb)) if *pa == sa[i] * shape[i] && *pb == sb[i] * shape[i] => {
                    (*n, *pa, *pb) = (*n * shape[i], sa[i], sb[i]);
                }
                _ => axes.push((shape[i], sa[i], sb[i])),
            }
        }
        if axes.is_empty() {
            axes.push((1, 0, 0));
        }
        Ok(Walk { shape, axes })
    }

    /// How `b` lies along `a`, when `a` has the output's shape and a kernel knows the pattern.
    pub fn right<'a>(&self, b: &'a [f32]) -> Option<Right<'a>> {
        match self.axes[..] {
            [(_, 1, 1)] => Some(Right::Same(b)),
            [(_, 1, 0)] | [(1, 0, 0)] => b.first().map(|&b| Right::Scalar(b)),
            [(_, n, 0), (m, 1, 1)] if n == m => Some(Right::Row(b)),
            [(_, n, 1), (m, 1, 0)] if n == m => Some(Right::Channel(b, m)),
            [(_, all, 0), (c, n, 1), (m, 1, 0)] if n == m && all == c * m => Some(Right::Channel(b, m)),
            _ => None,
        }
    }

    /// The merged axes, outermost first: size, and the step of each operand (in elements; 0 repeats).
    pub fn axes(&self) -> &[(usize, usize, usize)] {
        &self.axes
    }

    /// Calls `run(output offset, a's offset, b's offset)` for each run along the last axis.
    fn runs(&self, mut run: impl FnMut(usize, usize, usize)) {
        let Some(((n, ..), outer)) = self.axes.split_last() else { return };
        let total: usize = outer.iter().map(|a| a.0).product();
        let mut index = vec![0usize; outer.len()];
        let (mut pa, mut pb) = (0, 0);
        for i in 0..if *n == 0 { 0 } else { total } {
            run(i * n, pa, pb);
            for (k, &(size, sa, sb)) in outer.iter().enumerate().rev() {
                index[k] += 1;
                (pa, pb) = (pa + sa, pb + sb);
                if index[k] < size {
                    break;
                }
                index[k] = 0;
                (pa, pb) = (pa - size * sa, pb - size * sb);
            }
        }
    }

    /// Fills `out` with `f` of the operands' elements.
    pub fn apply<A: Copy, B: Copy, C>(&self, a: &[A], b: &[B], out: &mut [C], f: impl Fn(A, B) -> C) {
        let &(n, sa, sb) = &self.axes[self.axes.len() - 1];
        self.runs(|po, pa, pb| {
            let out = &mut out[po..po + n];
            match (sa, sb) {
                (1, 1) => {
                    for ((o, &x), &y) in out.iter_mut().zip(&a[pa..pa + n]).zip(&b[pb..pb + n]) {
                        *o = f(x, y);
                    }
                }
                (1, 0) => {
                    let y = b[pb];
                    for (o, &x) in out.iter_mut().zip(&a[pa..pa + n]) {
                        *o = f(x, y);
                    }
                }
                (0, 1) => {
                    let x = a[pa];
                    for (o, &y) in out.iter_mut().zip(&b[pb..pb + n]) {
                        *o = f(x, y);
                    }
                }
                _ => {
                    for (i, o) in out.iter_mut().enumerate() {
                        *o = f(a[pa + i * sa], b[pb + i * sb]);
                    }
                }
            }
        });
    }
}

/// Both tensors' elements combined by a kernel, written into an operand's memory when it may be. `turned` is the
/// same function with its operands swapped.
///
/// # Errors
/// When the shapes cannot meet or the types are not f32.
pub(crate) fn combine_f32(
    cpu: &Cpu,
    op: vec::Binary,
    turned: vec::Binary,
    a: Tensor,
    b: Tensor,
) -> Result<Tensor> {
    let swap = a.len() < b.len() || (a.shape() == b.shape() && !a.is_unique() && b.is_unique());
    let kept = op;
    let (mut a, b, op) = if swap { (b, a, turned) } else { (a, b, op) };
    let walk = Walk::new(a.shape(), b.shape())?;
    let elements = b.as_slice::<f32>()?;
    match walk.right(elements) {
        Some(right) if walk.shape == a.shape() => {
            if a.is_unique() {
                vec::binary_assign(cpu, op, a.as_mut_slice()?, right);
                return Ok(a);
            }
            Tensor::fill(&walk.shape, |out| {
                vec::binary(cpu, op, a.as_slice()?, right, out);
                Ok(())
            })
        }
        _ => Tensor::fill(&walk.shape, |out: &mut [f32]| {
            let (a, b) = (a.as_slice::<f32>()?, elements);
            let (back, (n, sa, sb)) = (if swap { kept } else { turned }, walk.axes[walk.axes.len() - 1]);
            walk.runs(|po, pa, pb| {
                let out = &mut out[po..po + n];
                match (sa, sb) {
                    (1, 1) => vec::binary(cpu, op, &a[pa..pa + n], Right::Same(&b[pb..pb + n]), out),
                    (0, 1) => vec::binary(cpu, back, &b[pb..pb + n], Right::Scalar(a[pa]), out),
                    (1, _) => vec::binary(cpu, op, &a[pa..pa + n], Right::Scalar(b[pb]), out),
                    _ => vec::binary(cpu, op, &a[pa..pa + 1], Right::Scalar(b[pb]), out),
                }
            });
            Ok(())
        }),
    }
}

/// Both tensors' elements combined by `f`, which may make another type.
///
/// # Errors
/// When the shapes cannot meet or the types differ from `A` and `B`.
pub(crate) fn combine_as<A: Element, B: Element, C: Element>(
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(A, B) -> C,
) -> Result<Tensor> {
    let walk = Walk::new(a.shape(), b.shape())?;
    Tensor::build(&walk.shape, |out: &mut [C]| {
        walk.apply(a.as_slice::<A>()?, b.as_slice::<B>()?, out, f);
        Ok(())
    })
}

/// The small vectors of numbers of two inputs, broadcast and combined.
pub(crate) fn ints(inputs: &Facts, f: impl Fn(&Dim, &Dim) -> Dim) -> Option<Vec<Dim>> {
    let numbers = |i| inputs.get(i).and_then(|f: &Fact| f.ints.as_deref());
    let (x, y) = (numbers(0)?, numbers(1)?);
    match (x, y) {
        _ if x.len() == y.len() => Some(x.iter().zip(y).map(|(x, y)| f(x, y)).collect()),
        (_, [y]) => Some(x.iter().map(|x| f(x, y)).collect()),
        ([x], _) => Some(y.iter().map(|y| f(x, y)).collect()),
        _ => None,
    }
}

/// Both tensors' elements combined by `f`, written into the first operand's memory when it may be.
///
/// # Errors
/// When the shapes cannot meet or the types differ from `T`.
pub(crate) fn combine<T: Element>(mut a: Tensor, b: &Tensor, f: impl Fn(T, T) -> T) -> Result<Tensor> {
    if a.shape() == b.shape() {
        let b = b.as_slice::<T>()?;
        for (x, &y) in a.as_mut_slice::<T>()?.iter_mut().zip(b) {
            *x = f(*x, y);
        }
        return Ok(a);
    }
    let walk = Walk::new(a.shape(), b.shape())?;
    Tensor::build(&walk.shape, |out: &mut [T]| {
        walk.apply(a.as_slice::<T>()?, b.as_slice::<T>()?, out, f);
        Ok(())
    })
}

/// Both tensors' elements compared by `f`, as a boolean tensor.
///
/// # Errors
/// When the shapes cannot meet or the types differ from `T`.
pub(crate) fn compare<T: Element>(a: &Tensor, b: &Tensor, f: impl Fn(T, T) -> bool) -> Result<Tensor> {
    let walk = Walk::new(a.shape(), b.shape())?;
    let mut out = Tensor::zeros(crate::DType::Bool, &walk.shape)?;
    walk.apply(a.as_slice::<T>()?, b.as_slice::<T>()?, out.bytes_mut()?, |x, y| f(x, y) as u8);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_merge_and_repeat() {
        let cases: [(&[usize], &[usize]); 8] = [
            (&[2, 3, 4], &[2, 3, 4]),
            (&[2, 3, 4], &[4]),
            (&[2, 3, 4], &[3, 1]),
            (&[2, 1, 4], &[1, 3, 1]),
            (&[], &[2, 2]),
            (&[1], &[]),
            (&[0, 3], &[3]),
            (&[2, 3, 1, 5], &[1, 3, 4, 1]),
        ];
        for (sa, sb) in cases {
            let a: Vec<usize> = (0..sa.iter().product()).collect();
            let b: Vec<usize> = (0..sb.iter().product::<usize>()).map(|v| v * 1000).collect();
            let walk = Walk::new(sa, sb).unwrap();
            let n: usize = walk.shape.iter().product();
            let mut out = vec![0; n];
            walk.apply(&a, &b, &mut out, |x, y| x + y);
            for (i, &got) in out.iter().enumerate() {
                let at = |s: &[usize]| {
                    let (mut rest, mut offset, mut step) = (i, 0, 1);
                    for (k, &size) in walk.shape.iter().enumerate().rev() {
                        let index = rest % size;
                        rest /= size;
                        if let Some(k) = (k + s.len()).checked_sub(walk.shape.len()) {
                            offset += if s[k] == 1 { 0 } else { index * step };
                            step *= s[k];
                        }
                    }
                    offset
                };
                assert_eq!(got, a[at(sa)] + b[at(sb)], "{sa:?} {sb:?} [{i}]");
            }
        }
        assert!(Walk::new(&[2], &[3]).is_err());
    }
}
