//! Moving elements without looking at them: written once over [`Cell`], run for each width of element.

use crate::tensor::count;
use crate::{DType, Error, Result, Tensor};

/// An element that is only moved: as many bytes as it takes, or a string.
pub(crate) trait Cell: Clone + Default + PartialEq + 'static {
    /// The elements of a tensor of this width.
    fn of(x: &Tensor) -> Result<&[Self]>;
    /// The same, to be written to.
    fn of_mut(x: &mut Tensor) -> Result<&mut [Self]>;
}

macro_rules! cells {
    ($($t:ty)*) => { $(impl Cell for $t {
        fn of(x: &Tensor) -> Result<&[$t]> { bytemuck::try_cast_slice(x.bytes()).map_err(|_| misaligned()) }
        fn of_mut(x: &mut Tensor) -> Result<&mut [$t]> {
            bytemuck::try_cast_slice_mut(x.bytes_mut()?).map_err(|_| misaligned())
        }
    })* };
}
cells!(u8 u16 u32 u64 u128);

impl Cell for String {
    fn of(x: &Tensor) -> Result<&[String]> {
        x.as_strings()
    }
    fn of_mut(x: &mut Tensor) -> Result<&mut [String]> {
        x.as_strings_mut()
    }
}

fn misaligned() -> Error {
    Error::invalid("tensor data are not aligned")
}

/// Calls a generic function with the [`Cell`] of an element type: `by_cell!(dtype, f(args))`. Types of less than a
/// byte are [spread](spread) first.
macro_rules! by_cell {
    ($dtype:expr, $f:ident ( $($arg:expr),* )) => { match $dtype.bits() {
        8 => $f::<u8>($($arg),*), 16 => $f::<u16>($($arg),*), 32 => $f::<u32>($($arg),*),
        64 => $f::<u64>($($arg),*), 128 => $f::<u128>($($arg),*), 0 => $f::<String>($($arg),*),
        _ => Err($crate::ops::number::no_type($dtype)),
    } };
}
pub(crate) use by_cell;

/// A tensor of a packed type as one of bytes, with one code each; other tensors as they are.
pub(crate) fn spread(x: Tensor) -> Result<Tensor> {
    if !x.dtype().is_packed() {
        return Ok(x);
    }
    let shape = x.shape().to_vec();
    let x = if x.dtype() == DType::F4E2M1 { x.reinterpreted(DType::U4)? } else { x };
    let codes: Vec<u8> = x.unpack()?.into_iter().map(|c| c as u8).collect();
    Tensor::new(&shape, &codes)
}

/// Undoes [`spread`] for a tensor that was of this type.
pub(crate) fn pack(dtype: DType, x: Tensor) -> Result<Tensor> {
    if !dtype.is_packed() {
        return Ok(x);
    }
    Tensor::pack(dtype, x.shape(), x.bytes())
}

/// A tensor of the type of `x` that `fill` writes.
pub(crate) fn build<T: Cell>(
    dtype: DType,
    shape: &[usize],
    fill: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<Tensor> {
    let mut y = Tensor::zeros(dtype, shape)?;
    fill(T::of_mut(&mut y)?)?;
    Ok(y)
}

/// Applies a function that moves elements to a tensor of any type: packed types are spread before and packed after.
pub(crate) fn moved(x: Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let dtype = x.dtype();
    pack(dtype, f(&spread(x)?)?)
}

/// How far apart neighbours along each axis lie in a dense tensor.
pub(crate) fn steps(shape: &[usize]) -> Vec<usize> {
    let mut steps = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        steps[i - 1] = steps[i] * shape[i];
    }
    steps
}

/// The next index in row-major order; back to zeros after the last.
pub(crate) fn advance(index: &mut [usize], shape: &[usize]) {
    for (i, &size) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < size {
            return;
        }
        *i = 0;
    }
}

/// A part of a dense tensor, seen with steps of its own: what slices, transposes and repeats have in common.
#[derive(Clone, Debug)]
pub(crate) struct Strided {
    /// Where the first element lies.
    pub offset: usize,
    /// The sizes of the part.
    pub shape: Vec<usize>,
    /// How far apart neighbours along each axis lie; 0 repeats, negative goes backwards.
    pub steps: Vec<isize>,
}

impl Strided {
    /// Calls `run(place in the part, place in the tensor)` for the first element of each run along the last of the
    /// merged axes, whose size and step are given back.
    fn runs(&self, mut run: impl FnMut(usize, usize, usize, isize)) -> Result<()> {
        if count(&self.shape)? == 0 {
            return Ok(());
        }
        let mut axes: Vec<(usize, isize)> = Vec::new();
        for (&n, &step) in self.shape.iter().zip(&self.steps).filter(|(n, _)| **n != 1) {
            match axes.last_mut() {
                Some((m, outer)) if *outer == step * n as isize => (*m, *outer) = (*m * n, step),
                _ => axes.push((n, step)),
            }
        }
        let (n, step) = axes.pop().unwrap_or((1, 1));
        let total: usize = axes.iter().map(|a| a.0).product();
        let mut index = vec![0usize; axes.len()];
        let mut at = self.offset as isize;
        for i in 0..total {
            run(i * n, at as usize, n, step);
            for (k, &(size, step)) in axes.iter().enumerate().rev() {
                index[k] += 1;
                at += step;
                if index[k] < size {
                    break;
                }
                index[k] = 0;
                at -= size as isize * step;
            }
        }
        Ok(())
    }

    /// The part as a tensor of its own.
    ///
    /// # Errors
    /// When it cannot be had in memory. The part must lie within `x`.
    pub fn read(&self, x: Tensor) -> Result<Tensor> {
        fn read<T: Cell>(part: &Strided, x: &Tensor) -> Result<Tensor> {
            let from = T::of(x)?;
            build(x.dtype(), &part.shape, |to: &mut [T]| {
                part.runs(|dense, at, n, step| {
                    let to = &mut to[dense..dense + n];
                    match step {
                        1 => to.clone_from_slice(&from[at..at + n]),
                        0 => to.fill(from[at].clone()),
                        _ => {
                            for (i, t) in to.iter_mut().enumerate() {
                                *t = from[(at as isize + i as isize * step) as usize].clone();
                            }
                        }
                    }
                })
            })
        }
        moved(x, |x| by_cell!(x.dtype(), read(self, x)))
    }

    /// Writes `x`, which has the part's shape, into the part of `into`. Both have the same type.
    ///
    /// # Errors
    /// When shape or type differ. The part must lie within `into`.
    pub fn write(&self, into: Tensor, x: Tensor) -> Result<Tensor> {
        fn write<T: Cell>(part: &Strided, into: &mut Tensor, x: &Tensor) -> Result<()> {
            let from = T::of(x)?;
            let to = T::of_mut(into)?;
            part.runs(|dense, at, n, step| {
                let from = &from[dense..dense + n];
                if step == 1 {
                    return to[at..at + n].clone_from_slice(from);
                }
                for (i, v) in from.iter().enumerate() {
                    to[(at as isize + i as isize * step) as usize] = v.clone();
                }
            })
        }
        if x.dtype() != into.dtype() || x.shape() != self.shape {
            return Err(Error::invalid(format!("{x:?} does not fill a part of shape {:?}", self.shape)));
        }
        let dtype = into.dtype();
        let (mut into, x) = (spread(into)?, spread(x)?);
        by_cell!(x.dtype(), write(self, &mut into, &x))?;
        pack(dtype, into)
    }
}

/// The first element of a tensor, as a tensor of rank 0; the zero of the type when there is none.
pub(crate) fn filled(dtype: DType, shape: &[usize], with: Option<&Tensor>) -> Result<Tensor> {
    match with {
        Some(value) if !value.is_empty() => {
            let part = Strided { offset: 0, shape: shape.to_vec(), steps: vec![0; shape.len()] };
            part.read(value.clone().aligned())
        }
        _ => Tensor::zeros(dtype, shape),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_and_written() {
        let x = Tensor::vector(&[0i64, 1, 2, 3, 4, 5]);
        let part = Strided { offset: 4, shape: vec![3, 2], steps: vec![-2, 1] };
        let y = part.read(x.clone()).unwrap();
        assert_eq!(y.as_slice::<i64>().unwrap(), [4, 5, 2, 3, 0, 1]);
        assert_eq!(part.write(Tensor::zeros(DType::I64, &[6]).unwrap(), y).unwrap(), x);
        let packed = Tensor::pack(DType::I4, &[3], &[1, 2, 3]).unwrap();
        let turned = Strided { offset: 2, shape: vec![3], steps: vec![-1] }.read(packed).unwrap();
        assert_eq!(turned.unpack().unwrap(), [3, 2, 1]);
        let words = Tensor::strings(&[2], vec!["a".into(), "b".into()]).unwrap();
        let twice = Strided { offset: 0, shape: vec![2, 2], steps: vec![0, 1] }.read(words).unwrap();
        assert_eq!(twice.as_strings().unwrap(), ["a", "b", "a", "b"]);
    }
}
