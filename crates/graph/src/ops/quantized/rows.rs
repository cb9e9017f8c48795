//! Products with weights that are decoded row by row when they are used, so that they stay small in memory.

use kernel::Cpu;
use kernel::f32::{Post, matmul};
use kernel::matmul::View;

use crate::{Result, Tensor};

/// Numbers that a task decodes at a time.
const DECODED: usize = 1 << 16;

/// `a` times the transposed weights: `a` is `[m, k]`, the weights are `[n, k]`; `decode(row, out)` writes one row
/// of them. `bias` is `[n]`.
///
/// # Errors
/// When memory runs out.
pub(super) fn times_rows(
    cpu: &Cpu,
    a: &[f32],
    [m, k, n]: [usize; 3],
    bias: Option<&[f32]>,
    decode: impl Fn(usize, &mut [f32]) + Sync,
) -> Result<Tensor> {
    let rows = (DECODED / k.max(1)).clamp(1, 64).min(n.max(1));
    // The product is computed turned: each task writes whole rows of it.
    let mut turned = Tensor::zeros(crate::DType::F32, &[n, m])?;
    if m == 0 || n == 0 {
        return turned.reshaped(&[m, n]);
    }
    let a = View::new(a, m, k).t();
    cpu.pool().for_chunks_mut(turned.as_mut_slice::<f32>()?, rows * m, |task, out| {
        let count = out.len() / m;
        let mut weights = vec![0f32; count * k];
        for i in 0..count {
            decode(task * rows + i, &mut weights[i * k..][..k]);
        }
        matmul(cpu, View::new(&weights, count, k), a, out, m, &Post::default());
        if let Some(bias) = bias {
            for (out, bias) in out.chunks_mut(m).zip(&bias[task * rows..]) {
                out.iter_mut().for_each(|o| *o += bias);
            }
        }
    });
    if m == 1 || n == 1 {
        return turned.reshaped(&[m, n]);
    }
    let from = turned.as_slice::<f32>()?;
    Tensor::build(&[m, n], |out: &mut [f32]| {
        for (i, row) in out.chunks_mut(n).enumerate() {
            for (j, o) in row.iter_mut().enumerate() {
                *o = from[j * m + i];
            }
        }
        Ok(())
    })
}
