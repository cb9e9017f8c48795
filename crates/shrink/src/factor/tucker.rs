//! Tucker-2 for convolutions: `1 x 1` to fewer channels, the window on those, `1 x 1` to all outputs. Kim et al.,
//! "Compression of deep convolutional neural networks" (2016). The channels are found by alternating eigenvectors
//! (HOOI) on a weight whose input channels are whitened; core and outputs are then the exact best for the inputs.

use faer::{Mat, MatRef};

use super::project::{balance, directions, narrow, product, products, times, wide};
use crate::gram::Gram;
use crate::matrix::Matrix;
use crate::{Error, Result};
use learn::linear::Cholesky;

/// Rounds of alternation.
const ROUNDS: usize = 4;
/// The least energy of an input channel's direction, relative to the greatest.
const LEAST: f64 = 1e-7;

/// The three factors of a convolution.
pub struct Tucker {
    /// `[inner inputs, channels]`.
    pub first: Matrix,
    /// `[inner outputs, inner inputs * window]`.
    pub core: Matrix,
    /// `[outputs, inner outputs]`.
    pub last: Matrix,
}

/// Rows of blocks of `size` numbers, seen with rows and blocks exchanged.
fn unfold(m: MatRef<f64>, size: usize) -> Mat<f64> {
    let size = size.max(1);
    Mat::from_fn(m.ncols() / size, m.nrows() * size, |c, k| m[(k / size, c * size + k % size)])
}

/// The first `rank` directions of the rows of a matrix.
fn leading(m: MatRef<f64>, rank: usize) -> Result<Mat<f64>> {
    let (_, vectors) = directions(times(m, m.transpose()).as_ref())?;
    Ok(vectors.subrows(0, rank).to_owned())
}

impl Tucker {
    /// Factors a weight of `[outputs, channels * window]` to so many inner inputs and outputs.
    ///
    /// # Errors
    /// When the channels do not fit the weight; when the statistics are not finite.
    pub fn new(w: &Matrix, channels: usize, gram: Option<&Gram>, ranks: [usize; 2]) -> Result<Tucker> {
        let window = w.cols.checked_div(channels).filter(|k| *k > 0 && k * channels == w.cols);
        let window = window
            .ok_or_else(|| Error::Form(format!("{} inputs are no windows of {channels} channels", w.cols)))?;
        let ranks = [ranks[0].clamp(1, channels), ranks[1].clamp(1, w.rows.max(1))];
        let w64 = wide(w);
        let h = gram.map(products);
        // The mean products of the channels alone, and their root.
        let (values, vectors) = match &h {
            Some(h) => {
                let at = |c: usize, d: usize| (0..window).map(|p| h[(c * window + p, d * window + p)]).sum();
                directions(Mat::from_fn(channels, channels, |c, d| -> f64 { at(c, d) }).as_ref())?
            }
            None => (vec![1.0; channels], Mat::identity(channels, channels)),
        };
        let greatest = values.first().copied().filter(|v| *v > 0.0).unwrap_or(1.0);
        let root: Vec<f64> = values.iter().map(|v| v.max(greatest * LEAST).sqrt()).collect();
        let whiten = Mat::from_fn(channels, channels, |e, c| vectors[(e, c)] * root[e]);
        // By channels: [channels, outputs * window]; by outputs: [outputs, channels * window].
        let by_channels = times(whiten.as_ref(), unfold(w64.as_ref(), window).as_ref());
        let by_outputs = unfold(by_channels.as_ref(), window);
        let mut inner = leading(by_channels.as_ref(), ranks[0])?;
        for _ in 0..ROUNDS {
            let seen = unfold(times(inner.as_ref(), by_channels.as_ref()).as_ref(), window);
            let outer = leading(seen.as_ref(), ranks[1])?;
            let seen = unfold(times(outer.as_ref(), by_outputs.as_ref()).as_ref(), window);
            inner = leading(seen.as_ref(), ranks[0])?;
        }
        let back = Mat::from_fn(channels, channels, |e, c| vectors[(e, c)] / root[e]);
        let first = times(inner.as_ref(), back.as_ref());
        let (core, last) = best(&w64, &first, window, h.as_ref(), ranks[1])?;
        Ok(balanced(first, &core, last, window))
    }

    /// The weight that the three make together.
    pub fn product(&self) -> Matrix {
        let window = self.core.cols / self.first.rows.max(1);
        let inner = product(&self.last, &self.core);
        let by_channels = unfold(wide(&inner).as_ref(), window);
        let all = times(wide(&self.first).transpose(), by_channels.as_ref());
        narrow(unfold(all.as_ref(), window).as_ref())
    }
}

/// Core and outputs with the least squared error, when the inputs are seen through `first`: reduced-rank regression.
fn best(
    w: &Mat<f64>,
    first: &Mat<f64>,
    window: usize,
    h: Option<&Mat<f64>>,
    rank: usize,
) -> Result<(Matrix, Matrix)> {
    // `first` on each place of the window, times the mean products.
    let spread = |m: MatRef<f64>| unfold(times(first.as_ref(), unfold(m, window).as_ref()).as_ref(), window);
    let (seen, inner) = match h {
        Some(h) => {
            let half = spread(h.as_ref());
            (times(w.as_ref(), half.as_ref()), spread(half.transpose().to_owned().as_ref()))
        }
        None => {
            let square = times(first.as_ref(), first.transpose());
            let n = first.nrows() * window;
            let at = |i: usize, j: usize| match i % window == j % window {
                true => square[(i / window, j / window)],
                false => 0.0,
            };
            (spread(w.as_ref()), Mat::from_fn(n, n, at))
        }
    };
    let n = inner.nrows();
    let mean = (0..n).map(|i| inner[(i, i)]).sum::<f64>() / n.max(1) as f64;
    let damped = |damp: f64| -> Vec<f64> {
        let own = (damp * mean).max(f64::MIN_POSITIVE);
        (0..n * n).map(|k| inner[(k / n, k % n)] + if k / n == k % n { own } else { 0.0 }).collect()
    };
    let factor = [1e-9, 1e-6, 1e-3, 1.0].iter().find_map(|&damp| Cholesky::new(&damped(damp), n));
    let factor = factor.ok_or_else(|| {
        Error::Calibration("the statistics of a convolution's inputs are singular; check the data".into())
    })?;
    let mut full: Vec<f64> = (0..w.nrows() * n).map(|k| seen[(k / n, k % n)]).collect();
    factor.solve(&mut full);
    let full = Mat::from_fn(w.nrows(), n, |i, j| full[i * n + j]);
    let image = times(times(full.as_ref(), inner.as_ref()).as_ref(), full.transpose());
    let (values, vectors) = directions(image.as_ref())?;
    let outer = vectors.subrows(0, rank);
    let core = times(outer, full.as_ref());
    let (last, core) = balance(outer.transpose().to_owned(), core, &values);
    Ok((core, last))
}

/// The inner inputs scaled so that what reads and what makes each of them are equally great.
fn balanced(first: Mat<f64>, core: &Matrix, last: Matrix, window: usize) -> Tucker {
    let (mut first, mut core) = (narrow(first.as_ref()), core.clone());
    for a in 0..first.rows {
        let made = first.row(a).iter().map(|x| x * x).sum::<f32>() / first.cols.max(1) as f32;
        let places = (0..core.rows).flat_map(|i| (0..window).map(move |p| (i, a * window + p)));
        let read = places.clone().map(|(i, j)| core.row(i)[j].powi(2)).sum::<f32>()
            / (core.rows * window).max(1) as f32;
        let by = (read / made).sqrt().sqrt();
        if by.is_normal() {
            first.row_mut(a).iter_mut().for_each(|x| *x *= by);
            places.for_each(|(i, j)| core.row_mut(i)[j] /= by);
        }
    }
    Tucker { first, core, last }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gram::tests::cpu;
    use crate::quantize::coded::tests::layer;

    fn error(gram: &Gram, w: &Matrix, tucker: &Tucker) -> f64 {
        let (harm, energy) = gram.harm(&cpu(), w, &tucker.product());
        harm / energy
    }

    /// A convolution of 12 channels and a window of 4, that is one of 3 inner inputs and 5 inner outputs.
    fn small() -> Matrix {
        let (_, all) = layer(20 + 5 + 3, 20, 4);
        let last = Matrix::new(20, 5, (0..100).map(|k| all.row(k / 5)[k % 5]).collect());
        let core = Matrix::new(5, 12, (0..60).map(|k| all.row(20 + k / 12)[k % 12]).collect());
        let first = Matrix::new(3, 12, (0..36).map(|k| all.row(25 + k / 12)[k % 12]).collect());
        Tucker { first, core, last }.product()
    }

    #[test]
    fn what_has_few_inner_channels_is_found() {
        let w = small();
        assert_eq!((w.rows, w.cols), (20, 48));
        let (gram, _) = layer(1, 48, 600);
        for gram in [None, Some(&gram)] {
            let found = Tucker::new(&w, 12, gram, [3, 5]).unwrap();
            assert_eq!((found.first.rows, found.core.cols, found.last.cols), (3, 12, 5));
            assert!(w.distance(&found.product()) < 1e-8, "{}", w.distance(&found.product()));
            // One less of either is not enough.
            assert!(w.distance(&Tucker::new(&w, 12, gram, [2, 5]).unwrap().product()) > 1e-3);
            assert!(w.distance(&Tucker::new(&w, 12, gram, [3, 4]).unwrap().product()) > 1e-3);
        }
    }

    #[test]
    fn inputs_make_it_better_and_all_channels_make_it_exact() {
        let (gram, w) = layer(24, 72, 3000);
        let (seeing, blind) =
            (Tucker::new(&w, 8, Some(&gram), [5, 10]).unwrap(), Tucker::new(&w, 8, None, [5, 10]).unwrap());
        let (a, b) = (error(&gram, &w, &seeing), error(&gram, &w, &blind));
        assert!(a < 0.5 * b, "{a} {b}");
        let whole = Tucker::new(&w, 8, Some(&gram), [8, 24]).unwrap();
        assert!(error(&gram, &w, &whole) < 1e-5, "{}", error(&gram, &w, &whole));
        assert!(Tucker::new(&w, 7, None, [2, 2]).is_err());
    }
}
