//! Permutation of the axes of a tensor, by bytes.

use crate::Cpu;
use crate::lanes::{Parts, split};

/// Rows and columns of a block of an inner transpose.
const BLOCK: usize = 16;

/// An axis of the output: its length, and the steps in elements along it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    len: usize,
    source: usize,
    target: usize,
}

/// Copies `input` of shape `dims` to `output` of shape `dims[perm[0]], dims[perm[1]], ..`; elements have `size` bytes.
///
/// # Panics
/// When `size` is not 1, 2, 4, 8 or 16, `perm` is not a permutation of the axes, or a length does not fit.
pub fn transpose(cpu: &Cpu, size: usize, input: &[u8], dims: &[usize], perm: &[usize], output: &mut [u8]) {
    let mut seen = vec![false; dims.len()];
    assert_eq!(dims.len(), perm.len());
    for &p in perm {
        assert!(!std::mem::replace(&mut seen[p], true), "an axis is named twice");
    }
    let count = dims.iter().try_fold(1usize, |count, &len| count.checked_mul(len));
    assert_eq!(count.and_then(|count| count.checked_mul(size)), Some(input.len()));
    assert_eq!(input.len(), output.len());
    if input.is_empty() {
        return;
    }
    let axes = merge(dims, perm);
    match size {
        1 => typed::<1>(cpu, input, &axes, output),
        2 => typed::<2>(cpu, input, &axes, output),
        4 => typed::<4>(cpu, input, &axes, output),
        8 => typed::<8>(cpu, input, &axes, output),
        16 => typed::<16>(cpu, input, &axes, output),
        _ => panic!("elements of {size} bytes"),
    }
}

/// The axes of the output without those of length 1, neighbours in both tensors made one.
fn merge(dims: &[usize], perm: &[usize]) -> Vec<Axis> {
    let step = |axis: usize| dims[axis + 1..].iter().product::<usize>();
    let mut axes: Vec<Axis> = Vec::with_capacity(dims.len());
    for &p in perm {
        let axis = Axis { len: dims[p], source: step(p), target: 0 };
        match axes.last_mut() {
            _ if axis.len == 1 => {}
            Some(last) if last.source == axis.source * axis.len => {
                *last = Axis { len: last.len * axis.len, ..axis };
            }
            _ => axes.push(axis),
        }
    }
    let mut target = 1;
    for axis in axes.iter_mut().rev() {
        axis.target = target;
        target *= axis.len;
    }
    axes
}

fn typed<const N: usize>(cpu: &Cpu, input: &[u8], axes: &[Axis], output: &mut [u8]) {
    let (input, output) = (input.as_chunks::<N>().0, output.as_chunks_mut::<N>().0);
    let Some((&last, outer)) = axes.split_last() else {
        return output.copy_from_slice(input);
    };
    if last.source == 1 {
        return runs(cpu, input, outer, last.len, output);
    }
    // The axis along which the input is contiguous; it is not the last one of the output.
    let at = outer.iter().position(|axis| axis.source == 1).unwrap_or(0);
    let middle = outer[at];
    let inner = middle.len * middle.target;
    let (before, between) = (&outer[..at], &outer[at + 1..]);
    let planes: usize = before.iter().map(|axis| axis.len).product();
    let bands = middle.len.div_ceil(BLOCK);
    let parts = Parts::new(output);
    split(cpu, planes * bands, BLOCK * middle.target, |items| {
        for item in items {
            let (plane, band) = (item / bands, item % bands);
            let rows = band * BLOCK..middle.len.min((band + 1) * BLOCK);
            let start = plane * inner + rows.start * middle.target;
            // SAFETY: each item is one band of rows of one plane of the output.
            let output = unsafe { parts.part(start..plane * inner + rows.end * middle.target) };
            let source = offset(before, plane) + rows.start;
            let count = middle.target / last.len;
            for i in 0..count {
                let from = source + offset(between, i);
                block(&input[from..], last, rows.len(), &mut output[i * last.len..], middle.target);
            }
        }
    });
}

/// `output[r * step + c] = input[c * last.source + r]`
#[inline(always)]
fn block<const N: usize>(input: &[[u8; N]], last: Axis, rows: usize, output: &mut [[u8; N]], step: usize) {
    for from in (0..last.len).step_by(BLOCK) {
        let to = last.len.min(from + BLOCK);
        if rows == BLOCK && to - from == BLOCK {
            let mut tile = [[[0u8; N]; BLOCK]; BLOCK];
            for (c, column) in tile.iter_mut().enumerate() {
                column.copy_from_slice(&input[(from + c) * last.source..][..BLOCK]);
            }
            for r in 0..BLOCK {
                let row: [[u8; N]; BLOCK] = std::array::from_fn(|c| tile[c][r]);
                output[r * step + from..][..BLOCK].copy_from_slice(&row);
            }
            continue;
        }
        for r in 0..rows {
            for c in from..to {
                output[r * step + c] = input[c * last.source + r];
            }
        }
    }
}

/// Copies runs of `len` elements that are contiguous in both tensors.
fn runs<const N: usize>(cpu: &Cpu, input: &[[u8; N]], outer: &[Axis], len: usize, output: &mut [[u8; N]]) {
    let count = output.len() / len;
    let parts = Parts::new(output);
    split(cpu, count, len, |items| {
        for i in items {
            let from = offset(outer, i);
            // SAFETY: each item is one run of the output.
            unsafe { parts.part(i * len..(i + 1) * len) }.copy_from_slice(&input[from..from + len]);
        }
    });
}

/// Where element `index` of the dense product of `axes` lies in the input.
#[inline(always)]
fn offset(axes: &[Axis], mut index: usize) -> usize {
    let mut at = 0;
    for axis in axes.iter().rev() {
        at += index % axis.len * axis.source;
        index /= axis.len;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    /// Index by index.
    fn spec(size: usize, input: &[u8], dims: &[usize], perm: &[usize]) -> Vec<u8> {
        let shape: Vec<usize> = perm.iter().map(|&p| dims[p]).collect();
        let mut output = Vec::new();
        for i in 0..input.len() / size {
            let mut rest = i;
            let mut index = vec![0; dims.len()];
            for (axis, &len) in shape.iter().enumerate().rev() {
                index[perm[axis]] = rest % len;
                rest /= len;
            }
            let from = index.iter().zip(dims).fold(0, |at, (&i, &len)| at * len + i);
            output.extend_from_slice(&input[from * size..(from + 1) * size]);
        }
        output
    }

    proptest! {
        #[test]
        fn every_permutation_is_the_one_index_by_index(
            (dims, perm) in prop::collection::vec(prop_oneof![0usize..6, Just(1), 14usize..19], 0..=4)
                .prop_flat_map(|dims| {
                    let perm: Vec<usize> = (0..dims.len()).collect();
                    (Just(dims), Just(perm).prop_shuffle())
                }),
            power in 0u32..5,
            threads in 1usize..3,
        ) {
            let size = 1usize << power;
            let count = dims.iter().product::<usize>() * size;
            let input: Vec<u8> = (0..count).map(|i| (i * 7 + i / 251) as u8).collect();
            let cpu = Cpu::with_isa(Isa::Scalar, threads).unwrap();
            let mut output = vec![0; count];
            transpose(&cpu, size, &input, &dims, &perm, &mut output);
            prop_assert_eq!(output, spec(size, &input, &dims, &perm));
        }
    }

    #[test]
    fn neighbouring_axes_are_merged() {
        let axes = merge(&[2, 3, 1, 5, 7], &[3, 4, 0, 1, 2]);
        assert_eq!(axes, [Axis { len: 35, source: 1, target: 6 }, Axis { len: 6, source: 35, target: 1 }]);
    }

    #[test]
    #[should_panic(expected = "named twice")]
    fn a_wrong_permutation_is_refused() {
        let cpu = Cpu::with_isa(Isa::Scalar, 1).unwrap();
        transpose(&cpu, 1, &[1, 2, 3, 4], &[2, 2], &[0, 0], &mut [0; 4]);
    }
}
