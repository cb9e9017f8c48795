//! Products of matrices of bytes with exact 32-bit sums.

use kernel::Cpu;
use kernel::conv::Bytes;

use super::codes::byte;

/// A right operand `[k, n]`, prepared for many products: its zero points are taken off, its columns are rows.
pub(crate) struct Right {
    rows: Vec<i16>,
    pub k: usize,
    pub n: usize,
}

impl Right {
    /// Prepares the matrix that begins at `data[start]`. `turned` when it lies as `[n, k]`. `zeros` are one for
    /// each column, or one for all.
    pub fn new(data: Bytes, start: usize, [k, n]: [usize; 2], turned: bool, zeros: &[i32]) -> Right {
        let mut rows = Vec::with_capacity(k * n);
        for col in 0..n {
            let zero = zeros.get(col).or(zeros.first()).copied().unwrap_or(0);
            let at = |p: usize| if turned { start + col * k + p } else { start + p * n + col };
            rows.extend((0..k).map(|p| (byte(data, at(p)) - zero) as i16));
        }
        Right { rows, k, n }
    }

    /// The sums `[m, n]` of `(a - zero) * b`, wrapped at 32 bits. Row i of `a` begins at `start + i * step[0]`,
    /// its elements are `step[1]` apart; `zeros` are one for each row, or one for all.
    pub fn sums(
        &self,
        cpu: &Cpu,
        a: Bytes,
        start: usize,
        step: [usize; 2],
        zeros: impl Fn(usize) -> i32 + Sync,
        out: &mut [i32],
    ) {
        if self.n == 0 || out.is_empty() {
            return;
        }
        let (k, n) = (self.k, self.n);
        let line = |row: usize| -> Vec<i16> {
            let zero = zeros(row);
            let first = start + row * step[0];
            match a {
                Bytes::U8(a) if step[1] == 1 => a[first..first + k].iter().map(|&v| i16::from(v) - zero as i16).collect(),
                Bytes::S8(a) if step[1] == 1 => a[first..first + k].iter().map(|&v| i16::from(v) - zero as i16).collect(),
                _ => (0..k).map(|p| (byte(a, first + p * step[1]) - zero) as i16).collect(),
            }
        };
        let dot = |x: &[i16], col: usize| {
            let weights = &self.rows[col * k..][..k];
            x.iter().zip(weights).fold(0i32, |sum, (&x, &w)| sum.wrapping_add(i32::from(x) * i32::from(w)))
        };
        if out.len() == n {
            let x = line(0);
            return cpu.pool().for_chunks_mut(out, 64, |i, out| {
                out.iter_mut().enumerate().for_each(|(j, o)| *o = dot(&x, i * 64 + j));
            });
        }
        cpu.pool().for_chunks_mut(out, n, |row, out| {
            let x = line(row);
            out.iter_mut().enumerate().for_each(|(col, o)| *o = dot(&x, col));
        });
    }
}
