//! Times the matrix products: `cargo run --release -p lessen-kernel --example matmul`.

use lessen_kernel::f32::{PackedB, Post, matmul};
use lessen_kernel::matmul::{Act, Bias, View};
use lessen_kernel::{Cpu, Isa, q8};
use std::hint::black_box;
use std::time::Instant;

const SHAPES: [(usize, usize, usize); 8] = [
    (1, 384, 1536),
    (4, 384, 1536),
    (16, 384, 1536),
    (128, 384, 384),
    (128, 384, 1536),
    (128, 1536, 384),
    (256, 64, 3136),
    (1024, 1024, 1024),
];

/// The shortest time of one call, in seconds, over about a fifth of a second.
fn time(mut call: impl FnMut()) -> f64 {
    let (begin, mut best) = (Instant::now(), f64::MAX);
    while begin.elapsed().as_secs_f64() < 0.2 {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// What one core can do: independent multiply-adds that stay in registers, in operations a second.
#[cfg(target_arch = "x86_64")]
fn peak(isa: Isa) -> f64 {
    use std::arch::x86_64::*;
    const ROUNDS: usize = 1 << 18;
    #[target_feature(enable = "avx512f")]
    fn wide() -> f32 {
        let mut sums = [_mm512_set1_ps(1.0); 10];
        let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
    }
    #[target_feature(enable = "avx2,fma")]
    fn narrow() -> f32 {
        let mut sums = [_mm256_set1_ps(1.0); 10];
        let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        sums.iter().map(|&sum| _mm256_cvtss_f32(sum)).sum()
    }
    match isa {
        Isa::Avx512 | Isa::Avx512Vnni => {
            (ROUNDS * 10 * 32) as f64
                / time(|| {
                    // SAFETY: the instruction set is available.
                    black_box(unsafe { wide() });
                })
        }
        Isa::Avx2 => {
            (ROUNDS * 10 * 16) as f64
                / time(|| {
                    // SAFETY: as above.
                    black_box(unsafe { narrow() });
                })
        }
        _ => f64::NAN,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn peak(_: Isa) -> f64 {
    f64::NAN
}

fn main() {
    for isa in Isa::available() {
        let peak = peak(isa);
        println!("\n{isa}: one core does {:.1} GFLOP/s in registers", peak / 1e9);
        println!(
            "{:>18} {:>12} {:>8} {:>12} {:>12} {:>12}",
            "m x k x n", "f32 GFLOP/s", "of peak", "2 threads", "int8 GOP/s", "2 threads"
        );
        for (m, k, n) in SHAPES {
            let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; k * n]);
            let mut out = vec![0f32; m * n];
            let mut rate = |threads: usize| {
                let cpu = Cpu::with_isa(isa, threads).expect("available");
                let b = PackedB::new(&cpu, View::new(&b, k, n));
                let seconds = time(|| matmul(&cpu, View::new(&a, m, k), &b, &mut out, n, &Post::default()));
                (2 * m * k * n) as f64 / seconds
            };
            let (one, two) = (rate(1), rate(2));
            let (a8, b8) = (vec![200u8; m * k], vec![-3i8; k * n]);
            let mut rate8 = |threads: usize| {
                let cpu = Cpu::with_isa(isa, threads).expect("available");
                let b = q8::PackedB::new(&cpu, View::new(&b8, k, n));
                let grid = q8::Grid { a_zero: q8::Per::All(7), ..q8::Grid::default() };
                let seconds = time(|| {
                    let out = q8::Out::F32 { out: &mut out, bias: Bias::None, act: Act::None };
                    q8::matmul(&cpu, View::new(&a8, m, k), &b, &grid, out, n);
                });
                (2 * m * k * n) as f64 / seconds
            };
            let (one8, two8) = (rate8(1), rate8(2));
            println!(
                "{:>18} {:>12.1} {:>7.0}% {:>12.1} {:>12.1} {:>12.1}",
                format!("{m}x{k}x{n}"),
                one / 1e9,
                100.0 * one / peak,
                two / 1e9,
                one8 / 1e9,
                two8 / 1e9
            );
        }
    }
}
