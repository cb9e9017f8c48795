#![expect(clippy::needless_range_loop, reason = "the indices are those of the formula")]

use super::*;
use proptest::prelude::*;

fn bytes_from(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // A third of the bytes are extremes.
            match (state >> 33) % 9 {
                0 => 0,
                1 => 255,
                2 => 128,
                _ => (state >> 40) as u8,
            }
        })
        .collect()
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..6, 1usize..40, Just(97), Just(130)]
}

fn layout(data: &[u8], rows: usize, cols: usize, kind: u8) -> View<'_, u8> {
    match kind % 3 {
        0 => View::new(data, rows, cols),
        1 => View::new(data, cols, rows).t(),
        _ => View::strided(data, rows, cols, 2 * cols + 1, 2),
    }
}

fn value(bytes: &Bytes, i: usize, j: usize) -> i32 {
    let byte = bytes.view.data[i * bytes.view.row_stride + j * bytes.view.col_stride];
    if bytes.signed { i32::from(byte as i8) } else { i32::from(byte) }
}

fn per<'a, T: Copy>(each: &'a [T], kind: bool, all: T) -> Per<'a, T> {
    if kind { Per::Each(each) } else { Per::All(all) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_instruction_set_gives_the_very_sums(
        (m, n, k) in (size(), size(), size()),
        (a_kind, b_kind, a_signed, b_signed) in (0u8..4, 0u8..5, any::<bool>(), any::<bool>()),
        (each, bias_kind, pad) in (any::<[bool; 4]>(), 0u8..3, 0usize..3),
        (zero, seed) in (any::<u8>(), any::<u64>()),
    ) {
        let stride = n + pad;
        let a_data = bytes_from(seed, (2 * k + 1) * m + 2 * k);
        let b_data = bytes_from(seed ^ 1, (2 * n + 1) * k + 2 * n);
        let a = Bytes { view: layout(&a_data, m, k, a_kind), signed: a_signed };
        let b = Bytes { view: layout(&b_data, k, n, b_kind), signed: b_signed };
        let ints = |seed, len| bytes_from(seed, len).into_iter().map(|x| i32::from(x) - 100).collect::<Vec<_>>();
        let (a_zeros, b_zeros) = (ints(seed ^ 2, m), ints(seed ^ 3, n));
        let scales = |len| ints(seed ^ 4, len).iter().map(|&x| 1e-3 + x.abs() as f32 * 1e-5).collect::<Vec<f32>>();
        let (a_scales, b_scales) = (scales(m), scales(n));
        let grid = Grid {
            a_zero: per(&a_zeros, each[0], 3),
            b_zero: per(&b_zeros, each[1], 0),
            a_scale: per(&a_scales, each[2], 0.5),
            b_scale: per(&b_scales, each[3], 1.0),
        };
        let (rows, cols) = (ints(seed ^ 5, m), ints(seed ^ 6, n));
        let (rows_f, cols_f): (Vec<f32>, Vec<f32>) =
            (rows.iter().map(|&x| x as f32 / 8.0).collect(), cols.iter().map(|&x| x as f32 / 8.0).collect());
        let bias = [Bias::None, Bias::Col(&cols[..]), Bias::Row(&rows[..])][bias_kind as usize];
        let bias_f = [Bias::None, Bias::Col(&cols_f[..]), Bias::Row(&rows_f[..])][bias_kind as usize];
        let made = |range: Range<usize>, panel: &mut [u8], width: usize| {
            for p in 0..k {
                for j in range.clone() {
                    panel[p * width + j - range.start] = value(&b, p, j) as u8;
                }
            }
        };
        let mut want = vec![0i32; m * stride];
        let mut want_f = vec![0f32; m * stride];
        let mut want_u = vec![0u8; m * stride];
        let mut want_i = vec![0i8; m * stride];
        for i in 0..m {
            for j in 0..n {
                let sum: i32 = (0..k)
                    .map(|p| (value(&a, i, p) - grid.a_zero.at(i)) * (value(&b, p, j) - grid.b_zero.at(j)))
                    .sum();
                let scale = grid.a_scale.at(i) * grid.b_scale.at(j);
                let add = [0, cols[j], rows[i]][bias_kind as usize];
                let at = i * stride + j;
                want[at] = sum;
                want_f[at] = (sum as f32 * scale + add as f32 / 8.0).max(-4.0);
                let scaled = f64::from((sum + add) as f32 * scale).round_ties_even();
                want_u[at] = (scaled + f64::from(zero)).clamp(3.0, 250.0) as u8;
                want_i[at] = (scaled + f64::from(zero as i8)).clamp(-128.0, 127.0) as i8;
            }
        }
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let cpu = Cpu::with_isa(isa, threads).unwrap();
                let (packed_a, packed_b) = (PackedA::new(&cpu, a), PackedB::new(&cpu, b));
                let left = if a_kind == 3 { Left::Packed(&packed_a) } else { Left::Bytes(a) };
                let right = match b_kind {
                    3 => Right::Packed(&packed_b),
                    4 => Right::Made(Made { rows: k, cols: n, signed: b_signed, fill: &made }),
                    _ => Right::Bytes(b),
                };
                let (mut out, mut out_f) = (vec![0i32; m * stride], vec![0f32; m * stride]);
                let (mut out_u, mut out_i) = (vec![0u8; m * stride], vec![0i8; m * stride]);
                matmul(&cpu, left, right, &grid, Out::I32(&mut out), stride);
                prop_assert_eq!(&out, &want, "{}", isa);
                let act = Act::Clip { lo: -4.0, hi: f32::INFINITY };
                matmul(&cpu, left, right, &grid, Out::F32 { out: &mut out_f, bias: bias_f, act }, stride);
                prop_assert_eq!(&out_f, &want_f, "{}", isa);
                let bytes = Out::U8 { out: &mut out_u, bias, zero, lo: 3, hi: 250 };
                matmul(&cpu, left, right, &grid, bytes, stride);
                prop_assert_eq!(&out_u, &want_u, "{}", isa);
                let bytes = Out::I8 { out: &mut out_i, bias, zero: zero as i8, lo: -128, hi: 127 };
                matmul(&cpu, left, right, &grid, bytes, stride);
                prop_assert_eq!(&out_i, &want_i, "{}", isa);
            }
        }
    }
}

#[test]
fn extremes_do_not_saturate_and_large_matrices_work() {
    let (m, k, n) = (150, 5003, 203);
    let (a, b) = (vec![255u8; m * k], vec![-128i8; k * n]);
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, 2).unwrap();
        let mut out = vec![0; m * n];
        matmul(&cpu, View::new(&a, m, k), View::new(&b, k, n), &Grid::default(), Out::I32(&mut out), n);
        assert!(out.iter().all(|&sum| sum == 255 * -128 * k as i32), "{isa}");
    }
    let (m, k, n) = (1500, 4000, 1300);
    let (a, b) = (bytes_from(1, m * k), bytes_from(2, k * n));
    let cpu = Cpu::new(2).unwrap();
    let mut out = vec![0; m * n];
    matmul(&cpu, View::new(&a, m, k), View::new(&b, k, n), &Grid::default(), Out::I32(&mut out), n);
    for (i, j) in (0..m).step_by(37).chain([m - 1]).flat_map(|i| [(i, 0), (i, i % n), (i, n - 1)]) {
        let sum: i32 = (0..k).map(|p| i32::from(a[i * k + p]) * i32::from(b[p * n + j])).sum();
        assert_eq!(out[i * n + j], sum);
    }
}

#[test]
fn sums_wrap_around() {
    let k = 70_000;
    let (a, b) = (vec![255u8; k], vec![255u8; k]);
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, 1).unwrap();
        let mut out = [0];
        matmul(&cpu, View::new(&a, 1, k), View::new(&b, k, 1), &Grid::default(), Out::I32(&mut out), 1);
        assert_eq!(out[0], (255u64 * 255 * k as u64) as i32);
    }
}

#[test]
fn halves_go_to_the_even_number_and_nan_to_the_least() {
    for (value, want) in
        [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (126.5, 126), (1e9, 127), (-1e9, -128)]
    {
        assert_eq!(tile::round(value, -128.0, 127.0), want);
    }
    assert_eq!(tile::round(f32::NAN, -128.0, 127.0), -128);
}
