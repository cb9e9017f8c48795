//! How scales and zero points lie over a tensor: one for all, one for each slice of an axis, or one for each block
//! along an axis.

use std::ops::Range;

use crate::{Error, Result, infer};

/// Which parameter belongs to which element.
#[derive(Debug)]
pub(crate) struct Grid {
    outer: usize,
    axis: usize,
    inner: usize,
    /// Positions along the axis that share a parameter.
    block: usize,
    /// Each place outside the axis has parameters of its own.
    separate: bool,
    /// Number of parameters.
    pub len: usize,
}

/// The parameters of a run of elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Params {
    /// All have this one.
    One(usize),
    /// The first has this one, the next the next.
    From(usize),
}

impl Grid {
    /// Parameters of shape `scale` over a tensor of shape `shape`. `block` is 0 unless they are blocked.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn new(shape: &[usize], scale: &[usize], axis: i64, block: i64) -> Result<Grid> {
        let len = crate::tensor::count(scale)?;
        let unfit =
            || Error::invalid(format!("scales of shape {scale:?} do not fit a tensor of shape {shape:?}"));
        if len == 1 {
            let all = crate::tensor::count(shape)?;
            return Ok(Grid { outer: 1, axis: 1, inner: all, block: 1, separate: false, len });
        }
        let at = infer::axis(axis, shape.len())?;
        let size = shape[at];
        let (outer, inner) = (shape[..at].iter().product(), shape[at + 1..].iter().product());
        match usize::try_from(block) {
            Ok(0) if scale == [size] => Ok(Grid { outer, axis: size, inner, block: 1, separate: false, len }),
            Ok(block @ 1..) => {
                let fits = scale.len() == shape.len()
                    && (0..shape.len()).all(|i| match i == at {
                        true => scale[i] == shape[i].div_ceil(block),
                        false => scale[i] == shape[i],
                    });
                if !fits {
                    return Err(unfit());
                }
                Ok(Grid { outer, axis: size, inner, block, separate: true, len })
            }
            Err(_) => Err(Error::invalid(format!("block_size {block} is negative"))),
            _ => Err(unfit()),
        }
    }

    /// Calls `run` for runs of elements that together are all elements in order.
    pub fn runs(&self, mut run: impl FnMut(Range<usize>, Params)) {
        let blocks = self.axis.div_ceil(self.block);
        for outer in 0..self.outer {
            let base = outer * self.axis * self.inner;
            let first = if self.separate { outer * blocks * self.inner } else { 0 };
            if self.inner == 1 && self.block == 1 {
                run(base..base + self.axis, Params::From(first));
                continue;
            }
            let step = if self.inner == 1 { self.block } else { 1 };
            for at in (0..self.axis).step_by(step) {
                let block = at / self.block;
                let elements =
                    base + at * self.inner..base + at.saturating_add(step).min(self.axis) * self.inner;
                match self.separate && self.inner > 1 {
                    true => run(elements, Params::From(first + block * self.inner)),
                    false => run(elements, Params::One(first + block)),
                }
            }
        }
    }

    /// True when one parameter serves all elements.
    pub fn is_single(&self) -> bool {
        self.len == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(shape: &[usize], scale: &[usize], axis: i64, block: i64) -> Vec<usize> {
        let mut found = Vec::new();
        Grid::new(shape, scale, axis, block).unwrap().runs(|elements, params| {
            assert_eq!(elements.start, found.len());
            found.extend((0..elements.len()).map(|i| match params {
                Params::One(p) => p,
                Params::From(p) => p + i,
            }));
        });
        found
    }

    #[test]
    fn elements_find_their_parameters() {
        assert_eq!(places(&[2, 2], &[], 1, 0), [0, 0, 0, 0]);
        assert_eq!(places(&[2, 3], &[3], -1, 0), [0, 1, 2, 0, 1, 2]);
        assert_eq!(places(&[2, 3], &[2], 0, 0), [0, 0, 0, 1, 1, 1]);
        assert_eq!(places(&[2, 3], &[2, 2], 1, 2), [0, 0, 1, 2, 2, 3]);
        assert_eq!(places(&[3, 2], &[2, 2], 0, 2), [0, 1, 0, 1, 2, 3]);
        assert_eq!(places(&[2, 2, 2], &[2, 1, 2], 1, 2), [0, 1, 0, 1, 2, 3, 2, 3]);
        assert_eq!(places(&[2, 2], &[2, 1], 1, i64::MAX), [0, 0, 1, 1]);
        assert!(Grid::new(&[2, 3], &[2], 1, 0).is_err());
        assert!(Grid::new(&[2, 3], &[2, 3], 1, 2).is_err());
        assert!(Grid::new(&[2, 3], &[2, 2], 5, 2).is_err());
        assert!(Grid::new(&[2, 3], &[2, 2], 1, -1).is_err());
    }
}
