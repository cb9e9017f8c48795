//! Speed of the convolutions on the layers of well-known networks, as a share of the core's peak.
//!
//! `cargo run --release -p lessen-kernel --example conv [name]` prints the best of several runs on one thread.

use lessen_kernel::Cpu;
use lessen_kernel::conv::{ByteOutput, Bytes, ConvShape, Epilogue, PackedByteConv, PackedConv, Requant};
use std::time::Instant;

/// Name, input channels, output channels, input size, kernel, stride, groups.
type Layer = (&'static str, usize, usize, usize, usize, usize, usize);

const LAYERS: &[Layer] = &[
    ("ResNet-56 16x32x32 3x3", 16, 16, 32, 3, 1, 1),
    ("ResNet-56 16x32x32 3x3 s2 -> 32", 16, 32, 32, 3, 2, 1),
    ("ResNet-56 32x16x16 3x3", 32, 32, 16, 3, 1, 1),
    ("ResNet-56 32x16x16 3x3 s2 -> 64", 32, 64, 16, 3, 2, 1),
    ("ResNet-56 64x8x8 3x3", 64, 64, 8, 3, 1, 1),
    ("ResNet-50 3x224x224 7x7 s2 -> 64", 3, 64, 224, 7, 2, 1),
    ("ResNet-50 64x56x56 3x3", 64, 64, 56, 3, 1, 1),
    ("ResNet-50 64x56x56 1x1 -> 256", 64, 256, 56, 1, 1, 1),
    ("ResNet-50 128x56x56 3x3 s2", 128, 128, 56, 3, 2, 1),
    ("ResNet-50 128x28x28 3x3", 128, 128, 28, 3, 1, 1),
    ("ResNet-50 256x14x14 3x3", 256, 256, 14, 3, 1, 1),
    ("ResNet-50 1024x14x14 1x1 -> 256", 1024, 256, 14, 1, 1, 1),
    ("ResNet-50 512x7x7 3x3", 512, 512, 7, 3, 1, 1),
    ("ResNet-50 2048x7x7 1x1 -> 512", 2048, 512, 7, 1, 1, 1),
    ("ResNeXt-50 128x56x56 3x3 32 groups", 128, 128, 56, 3, 1, 32),
    ("EfficientNet-Lite0 3x224x224 3x3 s2 -> 32", 3, 32, 224, 3, 2, 1),
    ("EfficientNet-Lite0 32x112x112 3x3 depthwise", 32, 32, 112, 3, 1, 32),
    ("EfficientNet-Lite0 16x112x112 1x1 -> 96", 16, 96, 112, 1, 1, 1),
    ("EfficientNet-Lite0 96x112x112 3x3 s2 depthwise", 96, 96, 112, 3, 2, 96),
    ("EfficientNet-Lite0 96x56x56 1x1 -> 24", 96, 24, 56, 1, 1, 1),
    ("EfficientNet-Lite0 144x56x56 5x5 s2 depthwise", 144, 144, 56, 5, 2, 144),
    ("EfficientNet-Lite0 240x28x28 1x1 -> 40", 240, 40, 28, 1, 1, 1),
    ("EfficientNet-Lite0 480x14x14 5x5 depthwise", 480, 480, 14, 5, 1, 480),
    ("EfficientNet-Lite0 112x14x14 1x1 -> 672", 112, 672, 14, 1, 1, 1),
    ("EfficientNet-Lite0 672x14x14 1x1 -> 112", 672, 112, 14, 1, 1, 1),
    ("EfficientNet-Lite0 1152x7x7 5x5 depthwise", 1152, 1152, 7, 5, 1, 1152),
    ("EfficientNet-Lite0 1152x7x7 1x1 -> 320", 1152, 320, 7, 1, 1, 1),
    ("EfficientNet-Lite0 320x7x7 1x1 -> 1280", 320, 1280, 7, 1, 1, 1),
];

fn main() -> Result<(), String> {
    let only = std::env::args().nth(1).unwrap_or_default();
    let cpu = Cpu::new(1)?;
    let peak = peak();
    println!("{}: f32 peak {peak:.0} GFLOP/s", cpu.isa());
    println!(
        "{:52} {:>7} {:>8} {:>6} {:>8} {:>7}",
        "layer", "MFLOP", "GFLOP/s", "share", "GOP/s", "int8/f32"
    );
    for &(name, inputs, outputs, size, kernel, stride, groups) in
        LAYERS.iter().filter(|l| l.0.contains(&only))
    {
        let shape = ConvShape {
            batch: 1,
            in_channels: inputs,
            in_size: [size; 2],
            out_channels: outputs,
            kernel: [kernel; 2],
            stride: [stride; 2],
            pad_begin: [kernel / 2; 2],
            pad_end: [kernel / 2; 2],
            dilation: [1; 2],
            groups,
        };
        let flop = 2.0 * shape.out_len() as f64 * (inputs / groups * kernel * kernel) as f64;
        let input: Vec<f32> = (0..shape.in_len()).map(|i| (i % 17) as f32 - 8.0).collect();
        let weights: Vec<f32> = (0..shape.weight_len()).map(|i| (i % 13) as f32 - 6.0).collect();
        let mut out = vec![0.0; shape.out_len()];
        let packed = PackedConv::new(&cpu, &shape, &weights);
        let real = flop / best(|| packed.run(&cpu, &shape, &input, &mut out, &Epilogue::default())) / 1e9;

        let input: Vec<u8> = (0..shape.in_len()).map(|i| (i % 251) as u8).collect();
        let weights: Vec<i8> = (0..shape.weight_len()).map(|i| (i % 255) as i8).collect();
        let mut out = vec![0; shape.out_len()];
        let packed = PackedByteConv::new(&cpu, &shape, Bytes::S8(&weights), &[]);
        let requant = Requant { bias: None, multiplier: &[1e-3], offset: None, zero: 128, lo: 0, hi: 255 };
        let run = || packed.run(&cpu, &shape, Bytes::U8(&input), 128, ByteOutput::U8(&mut out, requant));
        let bytes = flop / best(run) / 1e9;
        let (share, ratio) = (100.0 * real / peak, bytes / real);
        println!("{name:52} {:7.1} {real:8.1} {share:5.0}% {bytes:8.1} {ratio:7.1}x", flop / 1e6);
    }
    Ok(())
}

/// Seconds of the fastest of many calls within a third of a second.
fn best(mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::MAX;
    while begin.elapsed().as_secs_f64() < 0.3 {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// GFLOP/s of fused multiply-adds on registers.
fn peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
        const ROUNDS: usize = 100_000;
        #[target_feature(enable = "avx512f")]
        fn wide() {
            let one = _mm512_set1_ps(std::hint::black_box(1.0));
            let mut sums = [one; 16];
            for _ in 0..ROUNDS {
                sums.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(*s, one, one));
            }
            std::hint::black_box(sums);
        }
        #[target_feature(enable = "avx2,fma")]
        fn narrow() {
            let one = _mm256_set1_ps(std::hint::black_box(1.0));
            let mut sums = [one; 12];
            for _ in 0..ROUNDS {
                sums.iter_mut().for_each(|s| *s = _mm256_fmadd_ps(*s, one, one));
            }
            std::hint::black_box(sums);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512 F.
            return (ROUNDS * 16 * 32) as f64 / best(|| unsafe { wide() }) / 1e9;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return (ROUNDS * 12 * 16) as f64 / best(|| unsafe { narrow() }) / 1e9;
        }
    }
    f64::NAN
}
