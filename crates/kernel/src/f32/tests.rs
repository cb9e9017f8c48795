use super::*;
use proptest::prelude::*;

fn numbers_from(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..6, 1usize..40, Just(97), Just(130)]
}

/// A view of a matrix laid out in one of several ways.
fn layout(data: &[f32], rows: usize, cols: usize, kind: u8) -> View<'_, f32> {
    match kind % 3 {
        0 => View::new(data, rows, cols),
        1 => View::new(data, cols, rows).t(),
        _ => View::strided(data, rows, cols, 2 * cols + 1, 2),
    }
}

fn at(view: &View<f32>, i: usize, j: usize) -> f32 {
    view.data[i * view.row_stride + j * view.col_stride]
}

/// The meaning: the sum in double precision, and the size of its terms.
fn spec(a: &View<f32>, b: &View<f32>, i: usize, j: usize) -> (f64, f64) {
    (0..a.cols).fold((0.0, 0.0), |(sum, size), p| {
        let term = f64::from(at(a, i, p)) * f64::from(at(b, p, j));
        (sum + term, size + term.abs())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_instruction_set_agrees_with_the_sum(
        (m, n, k) in (size(), size(), prop_oneof![size(), Just(K_BLOCK + 1), Just(2 * K_BLOCK + 3)]),
        (a_kind, b_kind) in (0u8..4, 0u8..5),
        (bias, add, act) in (0u8..3, 0u8..3, 0u8..3),
        (alpha, pad, after, seed) in (prop_oneof![Just(1.0f32), Just(-0.5)], 0usize..3, any::<bool>(), any::<u64>()),
    ) {
        let row_stride = n + pad;
        let a_data = numbers_from(seed, (2 * k + 1) * m + 2 * k);
        let b_data = numbers_from(seed ^ 1, (2 * n + 1) * k + 2 * n);
        let before = numbers_from(seed ^ 2, m * row_stride);
        let other = numbers_from(seed ^ 3, m * (n + 1));
        let (cols, rows) = (numbers_from(seed ^ 4, n), numbers_from(seed ^ 5, m));
        let (a, b) = (layout(&a_data, m, k, a_kind), layout(&b_data, k, n, b_kind));
        let double = |part: &mut [f32]| part.iter_mut().for_each(|x| *x *= 2.0);
        let post = Post {
            alpha,
            add: [Add::None, Add::Out, Add::Rows(&other, n + 1)][add as usize],
            bias: [Bias::None, Bias::Col(&cols), Bias::Row(&rows)][bias as usize],
            act: [Act::None, Act::Relu, Act::Clip { lo: -0.25, hi: 0.5 }][act as usize],
            after: after.then_some(&double),
        };
        let made = |range: Range<usize>, panel: &mut [f32], width: usize| {
            for p in 0..k {
                for j in range.clone() {
                    panel[p * width + j - range.start] = at(&b, p, j);
                }
            }
        };
        for isa in Isa::available() {
            let mut first: Option<Vec<f32>> = None;
            for threads in [1, 2, 3] {
                let cpu = Cpu::with_isa(isa, threads).unwrap();
                let (packed_a, packed_b) = (PackedA::new(&cpu, a), PackedB::new(&cpu, b));
                let left = if a_kind == 3 { Left::Packed(&packed_a) } else { a.into() };
                let right = match b_kind {
                    3 => Right::Packed(&packed_b),
                    4 => Right::Made(Made { rows: k, cols: n, fill: &made }),
                    _ => b.into(),
                };
                let mut out = before.clone();
                matmul(&cpu, left, right, &mut out, row_stride, &post);
                for i in 0..m {
                    for j in 0..row_stride {
                        let got = out[i * row_stride + j];
                        let old = before[i * row_stride + j];
                        if j >= n {
                            prop_assert_eq!(got, old);
                            continue;
                        }
                        let (sum, size) = spec(&a, &b, i, j);
                        let start = [0.0, old, other[i * (n + 1) + j]][add as usize]
                            + [0.0, cols[j], rows[i]][bias as usize];
                        let (lo, hi) = post.act.range();
                        let want = (f64::from(alpha) * sum + f64::from(start)).clamp(lo.into(), hi.into());
                        let want = if after { 2.0 * want } else { want };
                        prop_assert!(
                            (f64::from(got) - want).abs() <= 1e-6 * (size + 4.0),
                            "{} {:?}: {} not {}", isa, (i, j), got, want
                        );
                    }
                }
                let bits = first.get_or_insert_with(|| out.clone());
                prop_assert!(bits.iter().zip(&out).all(|(x, y)| x.to_bits() == y.to_bits()));
            }
        }
    }

    #[test]
    fn a_batch_is_many_products(
        (outer, heads, m, k, n) in (1usize..3, 1usize..4, 1usize..20, 0usize..20, 1usize..40),
        seed in any::<u64>(),
    ) {
        // As in attention: heads side by side in the rows of both operands and of the output.
        let a = numbers_from(seed, outer * m * heads * k + k);
        let b = numbers_from(seed ^ 1, outer * n * heads * k + k);
        let mask = numbers_from(seed ^ 2, outer * n + n);
        for isa in Isa::available() {
            for threads in [1, 2] {
                let cpu = Cpu::with_isa(isa, threads).unwrap();
                let batch = Batch {
                    counts: [outer, heads],
                    a: [m * heads * k, k],
                    b: [n * heads * k, k],
                    out: [m * heads * n, n],
                };
                let left = View::strided(&a, m, k, heads * k, 1);
                let right = View::strided(&b, n, k, heads * k, 1).t();
                let mut out = vec![7.0; outer * heads * m * n];
                let post = Post { add: Add::Rows(&mask, 0), ..Post::default() };
                matmul_batch(&cpu, &batch, left, right, &mut out, heads * n, &post, [n, 0]);
                for (o, h, i, j) in (0..out.len()).map(|x| {
                    let (rest, j) = (x / n, x % n);
                    let (rest, h) = (rest / heads, rest % heads);
                    (rest / m, h, rest % m, j)
                }) {
                    let sum: f32 = (0..k)
                        .map(|p| a[((o * m + i) * heads + h) * k + p] * b[((o * n + j) * heads + h) * k + p])
                        .sum();
                    let got = out[((o * m + i) * heads + h) * n + j];
                    prop_assert!((got - sum - mask[o * n + j]).abs() < 1e-4);
                }
            }
        }
    }
}

#[test]
fn matrices_larger_than_every_block() {
    let (m, k, n) = (1100, 1500, 1400);
    let (a, b) = (numbers_from(1, m * k), numbers_from(2, k * n));
    let (a, b) = (View::new(&a, m, k), View::new(&b, k, n));
    let cpu = Cpu::new(2).unwrap();
    let mut out = vec![0.0; m * n];
    matmul(&cpu, a, b, &mut out, n, &Post::default());
    for i in (0..m).step_by(13).chain([m - 1]) {
        for j in (0..n).step_by(11).chain([n - 1]) {
            let (sum, size) = spec(&a, &b, i, j);
            assert!((f64::from(out[i * n + j]) - sum).abs() <= 1e-6 * size);
        }
    }
}

#[test]
fn a_nan_stays_and_stale_memory_does_not_matter() {
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa, 1).unwrap();
        let post = Post { act: Act::Relu, ..Post::default() };
        let mut out = [f32::NAN; 2];
        matmul(&cpu, View::new(&[f32::NAN, 1.0], 2, 1), View::new(&[1.0], 1, 1), &mut out, 1, &post);
        assert!(out[0].is_nan() && out[1] == 1.0);
    }
}

#[test]
#[should_panic(expected = "outputs overlap")]
fn overlapping_rows_are_refused() {
    let cpu = Cpu::new(1).unwrap();
    let ones = [1.0; 4];
    matmul(&cpu, View::new(&ones, 2, 2), View::new(&ones, 2, 2), &mut [0.0; 4], 1, &Post::default());
}
