//! A weight seen as a matrix, `[outputs, inputs]`: each row makes one output, each column is what reads one input.
//! Every algorithm works on this form, whatever the operator; [`Layout`] leads there and back.

use graph::op::WeightKind;
use graph::{Graph, Tensor};

use crate::weights::Weight;
use crate::{Error, Result};

/// A dense row-major matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Number of rows: outputs.
    pub rows: usize,
    /// Number of columns: inputs.
    pub cols: usize,
    /// The elements, row by row.
    pub data: Vec<f32>,
}

impl Matrix {
    /// A matrix of these elements, row by row; missing ones are 0, and those too many are dropped.
    pub fn new(rows: usize, cols: usize, mut data: Vec<f32>) -> Matrix {
        data.resize(rows * cols, 0.0);
        Matrix { rows, cols, data }
    }

    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Matrix {
        Matrix { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// The elements as bytes.
    pub fn write(&self) -> Vec<u8> {
        self.data.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    /// What [`Matrix::write`] wrote of a matrix of this size; `None` when it did not.
    pub fn read(rows: usize, cols: usize, bytes: &[u8]) -> Option<Matrix> {
        let (elements, left) = bytes.as_chunks::<4>();
        let sound = left.is_empty() && rows.checked_mul(cols) == Some(elements.len());
        sound.then(|| Matrix { rows, cols, data: elements.iter().map(|x| f32::from_le_bytes(*x)).collect() })
    }

    /// A row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..][..self.cols]
    }

    /// A row, to be written to.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.cols..][..self.cols]
    }

    /// The rows in order.
    pub fn each_row(&self) -> impl Iterator<Item = &[f32]> {
        (0..self.rows).map(|i| self.row(i))
    }

    /// The matrix with rows and columns exchanged.
    pub fn transposed(&self) -> Matrix {
        let mut out = Matrix::zeros(self.cols, self.rows);
        for (i, row) in self.data.chunks_exact(self.cols.max(1)).enumerate() {
            for (j, &v) in row.iter().enumerate() {
                out.data[j * self.rows + i] = v;
            }
        }
        out
    }

    /// Squared distance of two matrices of one shape, relative to the squared norm of this one (absolute when that
    /// is 0).
    pub fn distance(&self, other: &Matrix) -> f64 {
        let (mut apart, mut norm) = (0f64, 0f64);
        for (&a, &b) in self.data.iter().zip(&other.data) {
            apart += f64::from(a - b).powi(2);
            norm += f64::from(a).powi(2);
        }
        if norm > 0.0 { apart / norm } else { apart }
    }
}

/// How the tensor of a weight is seen as a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    shape: Vec<usize>,
    /// Inputs come before outputs in memory.
    turned: bool,
    /// Number of outputs.
    pub rows: usize,
    /// Number of inputs that an output reads.
    pub cols: usize,
    /// Number of groups: the rows are shared out evenly, and each group reads inputs of its own.
    pub groups: usize,
}

impl Layout {
    /// The layout of a weight; `None` when it is no matrix: stacks of matrices, recurrent weights, and transposed
    /// convolutions.
    pub fn of(graph: &Graph, weight: &Weight) -> Option<Layout> {
        let tensor = graph.constant(weight.value)?;
        let shape = tensor.shape().to_vec();
        let out = graph::infer::axis(weight.used.out_axis, shape.len()).ok()?;
        let (rows, groups) = match weight.used.kind {
            WeightKind::MatMul | WeightKind::Embedding if shape.len() == 2 => (shape[out], 1),
            WeightKind::Conv if out == 0 => {
                let attrs = graph.node(weight.node)?.op.attrs();
                let groups = usize::try_from(attrs.int_or("group", 1).ok()?).ok()?;
                (shape[0], Some(groups).filter(|&g| g > 0 && shape[0].is_multiple_of(g))?)
            }
            _ => return None,
        };
        let cols = tensor.len().checked_div(rows)?;
        Some(Layout { turned: out != 0, shape, rows, cols, groups })
    }

    /// The rows of a matrix of this layout that read the inputs of a group.
    pub fn part(&self, matrix: &Matrix, group: usize) -> Matrix {
        let rows = matrix.rows / self.groups.max(1);
        let data = matrix.data[group * rows * matrix.cols..][..rows * matrix.cols].to_vec();
        Matrix { rows, cols: matrix.cols, data }
    }

    /// The tensor as a matrix.
    ///
    /// # Errors
    /// When it is not f32.
    pub fn read(&self, tensor: &Tensor) -> Result<Matrix> {
        let data = tensor.values::<f32>()?.into_owned();
        if data.len() != self.rows * self.cols {
            return Err(Error::Graph(graph::Error::invalid("a weight has another size than its layout")));
        }
        Ok(match self.turned {
            true => Matrix::new(self.cols, self.rows, data).transposed(),
            false => Matrix::new(self.rows, self.cols, data),
        })
    }

    /// The matrix as a tensor.
    ///
    /// # Errors
    /// When its size is another.
    pub fn write(&self, matrix: &Matrix) -> Result<Tensor> {
        Ok(match self.turned {
            true => Tensor::new(&self.shape, &matrix.transposed().data)?,
            false => Tensor::new(&self.shape, &matrix.data)?,
        })
    }

    /// The shape of the tensor.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// True when inputs come before outputs in memory.
    pub fn is_turned(&self) -> bool {
        self.turned
    }

    /// The group of a row.
    pub fn group_of(&self, row: usize) -> usize {
        row / (self.rows / self.groups).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_lead_there_and_back() {
        let matrix = Matrix::new(2, 3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(matrix.transposed().transposed(), matrix);
        for turned in [false, true] {
            let shape = if turned { vec![3, 2] } else { vec![2, 3] };
            let layout = Layout { shape, turned, rows: 2, cols: 3, groups: 1 };
            assert_eq!(layout.read(&layout.write(&matrix).unwrap()).unwrap(), matrix);
        }
        assert!((matrix.distance(&Matrix::zeros(2, 3)) - 1.0).abs() < 1e-12);
    }
}
