//! Between numbers and bytes: `QuantizeLinear`, `DequantizeLinear` and `DynamicQuantizeLinear` of ONNX.
//!
//! The loops are plain Rust, compiled once for each instruction set; every operation is rounded by itself, so all
//! give the same bits.

use super::tile::round;
use crate::pool::Shares;
use crate::{Cpu, Isa};

/// Numbers that are worth a task.
const GRAIN: usize = 1 << 14;

/// The loops of one instruction set.
struct Loops {
    range: unsafe fn(&[f32]) -> (f32, f32),
    quantize: unsafe fn(&[f32], f32, Target, &mut [u8]),
    dequantize: unsafe fn(&[u8], u8, f32, i32, &mut [f32]),
}

/// Zero point, least and greatest value, as numbers.
#[derive(Clone, Copy)]
struct Target {
    zero: i32,
    lo: i32,
    hi: i32,
}

impl Target {
    fn unsigned(zero: u8) -> Target {
        Target { zero: zero.into(), lo: 0, hi: 255 }
    }
}

#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    const LANES: usize = 32;
    let (mut lo, mut hi) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lo[i] = if chunk[i] < lo[i] { chunk[i] } else { lo[i] };
            hi[i] = if chunk[i] > hi[i] { chunk[i] } else { hi[i] };
        }
    }
    for &value in rest {
        lo[0] = if value < lo[0] { value } else { lo[0] };
        hi[0] = if value > hi[0] { value } else { hi[0] };
    }
    for i in 1..LANES {
        lo[0] = if lo[i] < lo[0] { lo[i] } else { lo[0] };
        hi[0] = if hi[i] > hi[0] { hi[i] } else { hi[0] };
    }
    (lo[0], hi[0])
}

#[inline(always)]
fn quantize(x: &[f32], scale: f32, target: Target, out: &mut [u8]) {
    let Target { zero, lo, hi } = target;
    let (least, most) = ((lo - zero) as f32, (hi - zero) as f32);
    for (out, &value) in out.iter_mut().zip(x) {
        *out = (round(value / scale, least, most) + zero) as u8;
    }
}

/// `flip` turns the bytes into unsigned ones; `zero` is the zero point of these.
#[inline(always)]
fn dequantize(x: &[u8], flip: u8, scale: f32, zero: i32, out: &mut [f32]) {
    for (out, &byte) in out.iter_mut().zip(x) {
        *out = (i32::from(byte ^ flip) - zero) as f32 * scale;
    }
}

/// The loops compiled with these features.
macro_rules! loops {
    ($(#[$features:meta])?) => {{
        $(#[$features])? fn min_max(x: &[f32]) -> (f32, f32) { range(x) }
        $(#[$features])? fn down(x: &[f32], s: f32, t: Target, out: &mut [u8]) { quantize(x, s, t, out) }
        $(#[$features])? fn up(x: &[u8], f: u8, s: f32, z: i32, out: &mut [f32]) { dequantize(x, f, s, z, out) }
        &Loops { range: min_max, quantize: down, dequantize: up }
    }};
}

fn loops(isa: Isa) -> &'static Loops {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Sse41 => loops!(#[target_feature(enable = "sse4.1")]),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => loops!(#[target_feature(enable = "avx2,fma")]),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni => {
            loops!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")])
        }
        _ => loops!(),
    }
}

/// The least and the greatest number of `x`, NaN left out; `(inf, -inf)` when there is none.
pub fn min_max(cpu: &Cpu, x: &[f32]) -> (f32, f32) {
    let loops = loops(cpu.isa());
    let parts = cpu.pool().map(x.len().div_ceil(GRAIN), |i| {
        // SAFETY: `cpu` has the instruction set.
        unsafe { (loops.range)(&x[i * GRAIN..x.len().min((i + 1) * GRAIN)]) }
    });
    let start = (f32::INFINITY, f32::NEG_INFINITY);
    let (lo, hi) = parts.iter().fold(start, |(lo, hi), part| (part.0.min(lo), part.1.max(hi)));
    // Which of the two zeros was found first depends on the instruction set.
    (lo + 0.0, hi + 0.0)
}

fn quantize_all(cpu: &Cpu, x: &[f32], scale: f32, target: Target, out: &mut [u8]) {
    assert_eq!(x.len(), out.len(), "one byte a number");
    let loops = loops(cpu.isa());
    cpu.pool().for_chunks_mut(out, GRAIN, |i, out| {
        // SAFETY: `cpu` has the instruction set.
        unsafe { (loops.quantize)(&x[i * GRAIN..][..out.len()], scale, target, out) };
    });
}

/// `out = clamp(round(x / scale) + zero, 0, 255)`, halves rounded to even; a NaN gives 0.
///
/// # Panics
/// When the lengths differ, as all functions here.
pub fn quantize_u8(cpu: &Cpu, x: &[f32], scale: f32, zero: u8, out: &mut [u8]) {
    quantize_all(cpu, x, scale, Target::unsigned(zero), out);
}

/// `out = clamp(round(x / scale) + zero, -128, 127)`, halves rounded to even; a NaN gives -128.
///
/// # Panics
/// When the lengths differ.
pub fn quantize_s8(cpu: &Cpu, x: &[f32], scale: f32, zero: i8, out: &mut [i8]) {
    // SAFETY: the same bytes, seen as unsigned.
    let bytes = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) };
    quantize_all(cpu, x, scale, Target { zero: zero.into(), lo: -128, hi: 127 }, bytes);
}

fn dequantize_all(cpu: &Cpu, x: &[u8], flip: u8, scale: f32, zero: i32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "one number a byte");
    let loops = loops(cpu.isa());
    cpu.pool().for_chunks_mut(out, GRAIN, |i, out| {
        // SAFETY: `cpu` has the instruction set.
        unsafe { (loops.dequantize)(&x[i * GRAIN..][..out.len()], flip, scale, zero, out) };
    });
}

/// `out = (x - zero) * scale`.
///
/// # Panics
/// When the lengths differ.
pub fn dequantize_u8(cpu: &Cpu, x: &[u8], scale: f32, zero: u8, out: &mut [f32]) {
    dequantize_all(cpu, x, 0, scale, zero.into(), out);
}

/// `out = (x - zero) * scale`.
///
/// # Panics
/// When the lengths differ.
pub fn dequantize_s8(cpu: &Cpu, x: &[i8], scale: f32, zero: i8, out: &mut [f32]) {
    // SAFETY: the same bytes, seen as unsigned.
    let bytes = unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) };
    dequantize_all(cpu, bytes, 0x80, scale, i32::from(zero) + 128, out);
}

/// Scale and zero point of unsigned bytes for numbers from `lo` to `hi`, as ONNX `DynamicQuantizeLinear` defines
/// them: the range is widened to hold 0. The scale is 1 when there is nothing but 0.
pub fn dynamic_grid(lo: f32, hi: f32) -> (f32, u8) {
    let (lo, hi) = (lo.min(0.0), hi.max(0.0));
    let scale = if lo == hi { 1.0 } else { (hi - lo) / 255.0 };
    (scale, round(0.0 - lo / scale, 0.0, 255.0) as u8)
}

/// ONNX `DynamicQuantizeLinear`: quantises `x` with one scale and zero point, and returns these.
///
/// # Panics
/// When the lengths differ.
pub fn quantize_dynamic(cpu: &Cpu, x: &[f32], out: &mut [u8]) -> (f32, u8) {
    let (lo, hi) = min_max(cpu, x);
    let (scale, zero) = dynamic_grid(lo, hi);
    quantize_u8(cpu, x, scale, zero, out);
    (scale, zero)
}

/// As [`quantize_dynamic`] for each row of `cols` numbers by itself. `scales` and `zeros` get one value a row, in
/// the form that [`super::Grid`] takes.
///
/// # Panics
/// When `x` is not `scales.len()` rows of `cols`, or the other lengths differ.
pub fn quantize_rows(
    cpu: &Cpu,
    x: &[f32],
    cols: usize,
    out: &mut [u8],
    scales: &mut [f32],
    zeros: &mut [i32],
) {
    let rows = scales.len();
    assert!(zeros.len() == rows && Some(x.len()) == rows.checked_mul(cols), "one scale and zero point a row");
    assert_eq!(x.len(), out.len(), "one byte a number");
    let loops = loops(cpu.isa());
    let (out, scales, zeros) = (Shares::new(out), Shares::new(scales), Shares::new(zeros));
    cpu.pool().split(rows, (GRAIN / cols.max(1)).max(1), |range| {
        for row in range {
            let x = &x[row * cols..][..cols];
            // SAFETY: `cpu` has the instruction set, and this row is this task's alone; the lengths are checked.
            unsafe {
                let (lo, hi) = (loops.range)(x);
                let (scale, zero) = dynamic_grid(lo, hi);
                let out = std::slice::from_raw_parts_mut(out.at(row * cols), cols);
                (loops.quantize)(x, scale, Target::unsigned(zero), out);
                scales.at(row).write(scale);
                zeros.at(row).write(zero.into());
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(value: f32, scale: f32, zero: i32, lo: i32, hi: i32) -> i32 {
        let value = (value / scale).round_ties_even() + zero as f32;
        if value.is_nan() { lo } else { value.clamp(lo as f32, hi as f32) as i32 }
    }

    proptest! {
        #[test]
        fn every_instruction_set_gives_the_same_bytes(
            x in prop::collection::vec(prop_oneof![-10f32..10.0, -2000f32..2000.0, any::<f32>()], 0..200),
            scale in prop_oneof![Just(0.5f32), 1e-3f32..1.0],
            zero in any::<u8>(),
            cols in 1usize..50,
        ) {
            let finite = x.iter().copied().filter(|v| !v.is_nan());
            let lo = finite.clone().fold(f32::INFINITY, f32::min);
            let hi = finite.fold(f32::NEG_INFINITY, f32::max);
            for isa in Isa::available() {
                let cpu = Cpu::with_isa(isa, 2).unwrap();
                prop_assert_eq!(min_max(&cpu, &x), (lo, hi));
                let (mut bytes, mut signed) = (vec![0u8; x.len()], vec![0i8; x.len()]);
                quantize_u8(&cpu, &x, scale, zero, &mut bytes);
                quantize_s8(&cpu, &x, scale, zero as i8, &mut signed);
                for (i, &value) in x.iter().enumerate() {
                    prop_assert_eq!(i32::from(bytes[i]), spec(value, scale, zero.into(), 0, 255));
                    prop_assert_eq!(i32::from(signed[i]), spec(value, scale, (zero as i8).into(), -128, 127));
                }
                let mut back = vec![0.0; x.len()];
                dequantize_u8(&cpu, &bytes, scale, zero, &mut back);
                prop_assert!(bytes.iter().zip(&back).all(|(&b, &v)| v == (i32::from(b) - i32::from(zero)) as f32 * scale));
                dequantize_s8(&cpu, &signed, scale, zero as i8, &mut back);
                prop_assert!(
                    signed.iter().zip(&back).all(|(&b, &v)| v == (i32::from(b) - i32::from(zero as i8)) as f32 * scale)
                );
                let rows = x.len() / cols;
                let x = &x[..rows * cols];
                let (mut scales, mut zeros) = (vec![0.0; rows], vec![0; rows]);
                let mut all = vec![0; x.len()];
                quantize_rows(&cpu, x, cols, &mut all, &mut scales, &mut zeros);
                for (i, row) in x.chunks(cols).enumerate() {
                    let mut bytes = vec![0; cols];
                    let (scale, zero) = quantize_dynamic(&cpu, row, &mut bytes);
                    prop_assert!(scale.to_bits() == scales[i].to_bits() && i32::from(zero) == zeros[i]);
                    prop_assert_eq!(&bytes[..], &all[i * cols..][..cols]);
                }
            }
        }
    }

    #[test]
    fn the_examples_of_the_onnx_standard() {
        let cpu = Cpu::new(1).unwrap();
        let mut out = [0; 6];
        let (scale, zero) = quantize_dynamic(&cpu, &[0.0, 2.0, -3.0, -2.5, 1.34, 0.5], &mut out);
        assert_eq!((scale, zero), (0.019607844, 153));
        assert_eq!(out, [153, 255, 0, 26, 221, 179]);
        let (scale, zero) = quantize_dynamic(&cpu, &[-1.0, -2.1, -1.3, -2.5, -3.34, -4.0], &mut out);
        assert_eq!((scale, zero), (0.015686275, 255));
        assert_eq!(out, [191, 121, 172, 96, 42, 0]);
        assert_eq!(quantize_dynamic(&cpu, &[0.0; 6], &mut out), (1.0, 0));
        assert_eq!(quantize_dynamic(&cpu, &[], &mut []), (1.0, 0));
    }
}
