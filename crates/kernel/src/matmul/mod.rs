//! Matrix times matrix: what the number formats share. The products themselves are in [`crate::f32`] and
//! [`crate::q8`].
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008), and
//! BLIS: both operands are packed into panels, a small tile of the output stays in registers.

pub(crate) mod tile;

/// A matrix inside a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Debug)]
pub struct View<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'a, T> View<'a, T> {
    /// A dense row-major matrix.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * cols`.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> View<'a, T> {
        View::strided(data, rows, cols, cols, 1)
    }

    /// A matrix with any strides, in elements.
    ///
    /// # Panics
    /// When an element lies outside `data`.
    pub fn strided(
        data: &'a [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> View<'a, T> {
        let extent = extent(&[(rows, row_stride), (cols, col_stride)]);
        assert!(extent.is_some_and(|n| n <= data.len()), "a {rows} x {cols} matrix does not fit its slice");
        View { data, rows, cols, row_stride, col_stride }
    }

    /// The transposed matrix; nothing is copied.
    pub fn t(self) -> View<'a, T> {
        View {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }
}

/// The number of elements from the first to the last of a strided array, 0 when it is empty; `None` when that
/// overflows.
pub(crate) fn extent(dims: &[(usize, usize)]) -> Option<usize> {
    if dims.iter().any(|&(len, _)| len == 0) {
        return Some(0);
    }
    dims.iter().try_fold(1usize, |sum, &(len, stride)| sum.checked_add((len - 1).checked_mul(stride)?))
}

/// True when no two index tuples of a strided array can share an element (sufficient, not necessary: each
/// stride has to step over all that lies within).
pub(crate) fn is_disjoint(dims: &[(usize, usize)]) -> bool {
    if dims.iter().any(|&(len, _)| len == 0) {
        return true;
    }
    let mut dims: Vec<_> = dims.iter().copied().filter(|&(len, _)| len > 1).collect();
    dims.sort_by_key(|&(_, stride)| stride);
    (0..dims.len()).all(|i| extent(&dims[..i]).is_some_and(|n| n <= dims[i].1))
}

/// What is added to every element of a product before the activation.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bias<'a, T = f32> {
    /// Nothing.
    #[default]
    None,
    /// One value a column (a linear layer).
    Col(&'a [T]),
    /// One value a row (a convolution whose weights are the left operand).
    Row(&'a [T]),
}

/// An activation simple enough to be applied in registers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Act {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, lo), hi)`.
    Clip {
        /// The least value.
        lo: f32,
        /// The greatest value.
        hi: f32,
    },
}

impl Act {
    /// The activation as a range to clamp to.
    pub fn range(self) -> (f32, f32) {
        match self {
            Act::None => (f32::NEG_INFINITY, f32::INFINITY),
            Act::Relu => (0.0, f32::INFINITY),
            Act::Clip { lo, hi } => (lo, hi),
        }
    }
}

/// Many products of the same shape in one call: two nested counts, as sequences and heads, and how far apart
/// the items are in each slice, in elements. A stride of 0 uses the same operand for all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch {
    /// How many items in the outer and the inner dimension.
    pub counts: [usize; 2],
    /// Steps in the slice of the left operand.
    pub a: [usize; 2],
    /// Steps in the slice of the right operand.
    pub b: [usize; 2],
    /// Steps in the output.
    pub out: [usize; 2],
}

impl Batch {
    /// `count` items that lie densely one after another.
    pub fn dense(count: usize, m: usize, k: usize, n: usize) -> Batch {
        Batch { counts: [1, count], a: [0, m * k], b: [0, k * n], out: [0, m * n] }
    }

    pub(crate) fn offset(&self, item: usize, strides: [usize; 2]) -> usize {
        let inner = self.counts[1].max(1);
        item / inner * strides[0] + item % inner * strides[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_outputs_are_found() {
        assert!(is_disjoint(&[(2, 12), (3, 4), (4, 1)]));
        assert!(is_disjoint(&[(3, 2), (2, 6), (2, 1), (1, 0)]));
        assert!(!is_disjoint(&[(2, 11), (3, 4), (4, 1)]));
        assert!(!is_disjoint(&[(2, 0), (4, 1)]));
        assert!(!is_disjoint(&[(4, usize::MAX / 2), (2, usize::MAX)]));
        assert_eq!(extent(&[(0, 5), (usize::MAX, usize::MAX)]), Some(0));
        assert_eq!(extent(&[(3, usize::MAX)]), None);
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_view_checks_its_slice() {
        View::strided(&[0f32; 11], 3, 4, 4, 1);
    }
}
