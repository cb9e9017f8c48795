use super::*;
use crate::{Cpu, Isa};
use proptest::prelude::*;

pub(super) fn random(seed: u64, len: usize) -> impl Iterator<Item = u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len).map(move |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as u32
    })
}

pub(super) fn reals(seed: u64, len: usize) -> Vec<f32> {
    random(seed, len).map(|x| x as f32 / (1 << 23) as f32 - 1.0).collect()
}

pub(super) fn nd(shape: &ConvShape) -> ConvNd {
    ConvNd {
        batch: shape.batch,
        in_channels: shape.in_channels,
        in_size: shape.in_size.to_vec(),
        out_channels: shape.out_channels,
        kernel: shape.kernel.to_vec(),
        stride: shape.stride.to_vec(),
        pad_begin: shape.pad_begin.to_vec(),
        pad_end: shape.pad_end.to_vec(),
        dilation: shape.dilation.to_vec(),
        groups: shape.groups,
    }
}

pub(super) fn shapes() -> impl Strategy<Value = ConvShape> {
    let pair = |range: std::ops::RangeInclusive<usize>| [range.clone(), range];
    let channels = (1usize..=4, 1usize..=9, prop_oneof![1usize..=5, Just(17), Just(33)]);
    let grid = (pair(0..=13), pair(1..=5), pair(1..=3), pair(0..=4), pair(0..=4), pair(1..=3));
    (0usize..=2, channels, grid, 0..4).prop_filter_map("fits", |(batch, channels, grid, kind)| {
        let (mut groups, mut units, mut outputs) = channels;
        let (in_size, kernel, stride, pad_begin, pad_end, dilation) = grid;
        match kind {
            0 => (groups, units) = (1, units * 6),
            1 => (groups, units, outputs) = (groups * 5, 1, 1 + outputs % 2),
            _ => {}
        }
        let one = kind == 3;
        let shape = ConvShape {
            batch,
            in_channels: groups * units,
            in_size: if one { [in_size[0], in_size[1] * 11] } else { in_size },
            out_channels: groups * outputs,
            kernel: if one { [1, 1] } else { kernel },
            stride: if one { [1, 1] } else { stride },
            pad_begin,
            pad_end,
            dilation,
            groups,
        };
        shape.out_size().map(|_| shape)
    })
}

fn shape(channels: [usize; 2], size: usize, kernel: usize, stride: usize, groups: usize) -> ConvShape {
    ConvShape {
        batch: 1,
        in_channels: channels[0],
        in_size: [size; 2],
        out_channels: channels[1],
        kernel: [kernel; 2],
        stride: [stride; 2],
        pad_begin: [kernel / 2; 2],
        pad_end: [kernel / 2; 2],
        dilation: [1; 2],
        groups,
    }
}

fn check_real(shape: &ConvShape, epilogue_kind: usize) {
    let input = reals(1, shape.in_len());
    let weights = reals(2, shape.weight_len());
    let bias = reals(3, shape.out_channels);
    let residual = reals(4, shape.out_len());
    let then = |out: &mut [f32]| out.iter_mut().for_each(|x| *x = 2.0 * *x + 1.0);
    let epilogue = Epilogue {
        bias: (epilogue_kind & 1 > 0).then_some(&bias),
        residual: (epilogue_kind & 2 > 0).then_some(&residual),
        activation: [Activation::None, Activation::Relu, Activation::Clip { lo: -0.5, hi: 1.5 }]
            [epilogue_kind % 3],
        then: (epilogue_kind & 8 > 0).then_some(&then),
    };
    let scalar = Cpu::with_isa(Isa::Scalar, 1).unwrap();
    let mut want = vec![0.0; shape.out_len()];
    conv_nd(&scalar, &nd(shape), &input, &weights, epilogue.bias, &mut want);
    for (want, residual) in want.iter_mut().zip(&residual) {
        *want += if epilogue.residual.is_some() { *residual } else { 0.0 };
        *want = epilogue.activation.bounds().map_or(*want, |b| bounded(*want, b));
    }
    if epilogue.then.is_some() {
        then(&mut want);
    }
    let terms = (shape.in_channels / shape.groups * shape.kernel[0] * shape.kernel[1] + 2) as f32;
    for isa in Isa::available() {
        let runs = [1, 2].map(|threads| {
            let cpu = Cpu::with_isa(isa, threads).unwrap();
            let mut out = vec![f32::NAN; shape.out_len()];
            PackedConv::new(&cpu, shape, &weights).run(&cpu, shape, &input, &mut out, &epilogue);
            out
        });
        for (i, (got, want)) in runs[0].iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= 1e-6 * terms, "{isa}: {got}, not {want}, at {i} of {shape:?}");
        }
        let bits = |run: &[f32]| run.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&runs[0]), bits(&runs[1]), "{isa}: one thread and two");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn real_convolutions_agree_with_the_plain_loops(shape in shapes(), epilogue in 0usize..16) {
        check_real(&shape, epilogue);
    }
}

#[test]
fn larger_convolutions_are_cut_into_several_tiles_and_blocks() {
    for shape in [
        shape([150, 20], 20, 3, 1, 1),
        shape([3, 9], 61, 7, 2, 1),
        shape([300, 40], 9, 1, 1, 1),
        shape([40, 40], 33, 5, 2, 40),
        shape([12, 12], 140, 3, 1, 12),
        ConvShape {
            in_size: [1, 3000],
            kernel: [1, 9],
            pad_begin: [0, 4],
            pad_end: [0, 4],
            ..shape([5, 11], 1, 1, 1, 1)
        },
        ConvShape {
            dilation: [40, 30],
            pad_begin: [40, 30],
            pad_end: [40, 30],
            ..shape([6, 8], 50, 3, 1, 2)
        },
    ] {
        check_real(&shape, 3);
    }
}

#[test]
fn impossible_shapes_have_no_output() {
    let good = shape([4, 6], 5, 3, 1, 2);
    assert_eq!(good.out_size(), Some([5, 5]));
    for bad in [
        ConvShape { groups: 0, ..good },
        ConvShape { groups: 3, ..good },
        ConvShape { stride: [0, 1], ..good },
        ConvShape { dilation: [1, 0], ..good },
        ConvShape { kernel: [0, 3], ..good },
        ConvShape { kernel: [8, 3], ..good },
        ConvShape { pad_begin: [usize::MAX, 0], ..good },
        ConvShape { dilation: [usize::MAX, 1], ..good },
        ConvShape { batch: usize::MAX, ..good },
    ] {
        assert_eq!(bad.out_size(), None, "{bad:?}");
    }
}

/// The meaning of the 8-bit convolution.
fn byte_sums(shape: &ConvShape, input: &[i32], zero: i32, weights: &[i32], zeros: &[i32]) -> Vec<i32> {
    let [height, width] = shape.out_size().unwrap();
    let [kh, kw] = shape.kernel;
    let (units, outputs) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let mut out = Vec::new();
    for i in 0..shape.out_len() {
        let (x, y) = (i % width, i / width % height);
        let (channel, image) =
            (i / width / height % shape.out_channels, i / width / height / shape.out_channels);
        let mut sum = 0;
        for j in 0..units * kh * kw {
            let (kx, ky, unit) = (j % kw, j / kw % kh, j / kw / kh);
            let at = |axis: usize, out: usize, k: usize| {
                (out * shape.stride[axis] + k * shape.dilation[axis])
                    .checked_sub(shape.pad_begin[axis])
                    .filter(|&p| p < shape.in_size[axis])
            };
            if let (Some(y), Some(x)) = (at(0, y, ky), at(1, x, kx)) {
                let plane = image * shape.in_channels + channel / outputs * units + unit;
                let pixel = input[(plane * shape.in_size[0] + y) * shape.in_size[1] + x] - zero;
                sum += pixel * (weights[channel * units * kh * kw + j] - zeros[channel]);
            }
        }
        out.push(sum);
    }
    out
}

fn check_bytes(shape: &ConvShape, kind: usize, seed: u64) {
    let (signed_input, signed_weight, zero_kind) = (kind & 1 > 0, kind & 2 > 0, kind / 4 % 3);
    let bytes = |seed: u64, len: usize| random(seed, len).map(|x| (x >> 8) as u8).collect::<Vec<_>>();
    let signed = |x: &[u8]| x.iter().map(|&b| b as i8).collect::<Vec<_>>();
    let numbers = |x: &[u8], s: bool| {
        x.iter().map(|&b| if s { i32::from(b as i8) } else { i32::from(b) }).collect::<Vec<_>>()
    };
    let input = bytes(seed, shape.in_len());
    let weights = bytes(seed + 1, shape.weight_len());
    let residual = bytes(seed + 2, shape.out_len());
    let zero = numbers(&bytes(seed + 3, 1), signed_input)[0];
    let middle = if signed_weight { 0 } else { 128 };
    let zeros = match zero_kind {
        0 => vec![middle; shape.out_channels],
        1 => numbers(&bytes(seed + 4, shape.out_channels), signed_weight),
        _ => vec![0; shape.out_channels],
    };
    let given = if zero_kind == 2 { &[][..] } else { &zeros[..] };
    let (signed_in, signed_we, signed_res) = (signed(&input), signed(&weights), signed(&residual));
    let in_bytes = if signed_input { Bytes::S8(&signed_in) } else { Bytes::U8(&input) };
    let we_bytes = if signed_weight { Bytes::S8(&signed_we) } else { Bytes::U8(&weights) };
    let sums =
        byte_sums(shape, &numbers(&input, signed_input), zero, &numbers(&weights, signed_weight), &zeros);

    let per_channel = |i: usize| {
        i / (shape.out_len() / shape.out_channels / shape.batch.max(1)).max(1) % shape.out_channels
    };
    let scale: Vec<f32> = reals(seed + 5, shape.out_channels).iter().map(|x| (x + 1.5) * 1e-3).collect();
    let bias: Vec<i32> = random(seed + 6, shape.out_channels).map(|x| x as i32 % 3000 - 1500).collect();
    let real_bias = reals(seed + 7, shape.out_channels);
    let res = ByteResidual {
        values: if signed_weight { Bytes::S8(&signed_res) } else { Bytes::U8(&residual) },
        zero: 3,
        multiplier: 0.37,
    };
    let res_numbers = numbers(&residual, signed_weight);
    let requant = |residual: bool| Requant {
        bias: Some(&bias),
        multiplier: &scale,
        zero: 7,
        lo: -100,
        hi: 120,
        residual: residual.then_some(res),
    };
    let want_byte = |i: usize, residual: bool, lo: i32, hi: i32| {
        let x = (sums[i] + bias[per_channel(i)]) as f32 * scale[per_channel(i)];
        let x = if residual { x + (res_numbers[i] - 3) as f32 * 0.37 } else { x };
        ((x.round_ties_even() as i64 + 7) as i32).clamp(lo, hi)
    };
    for isa in Isa::available() {
        for threads in [1, 2] {
            let cpu = Cpu::with_isa(isa, threads).unwrap();
            let packed = PackedByteConv::new(&cpu, shape, we_bytes, given);
            let mut got = vec![-1; sums.len()];
            packed.run(&cpu, shape, in_bytes, zero, ByteOutput::Sums(&mut got));
            assert_eq!(got, sums, "{isa} {shape:?}");
            let mut got = vec![f32::NAN; sums.len()];
            let activation = Activation::Clip { lo: -2.0, hi: 3.0 };
            let out = ByteOutput::Real { out: &mut got, scale: &scale, bias: Some(&real_bias), activation };
            packed.run(&cpu, shape, in_bytes, zero, out);
            for (i, got) in got.iter().enumerate() {
                let want =
                    (sums[i] as f32 * scale[per_channel(i)] + real_bias[per_channel(i)]).clamp(-2.0, 3.0);
                assert_eq!(*got, want, "{isa} {shape:?}");
            }
            let mut got = vec![0u8; sums.len()];
            packed.run(&cpu, shape, in_bytes, zero, ByteOutput::U8(&mut got, requant(false)));
            for (i, got) in got.iter().enumerate() {
                assert_eq!(i32::from(*got), want_byte(i, false, 0, 120), "{isa} {shape:?}");
            }
            let mut got = vec![0i8; sums.len()];
            packed.run(&cpu, shape, in_bytes, zero, ByteOutput::S8(&mut got, requant(true)));
            for (i, got) in got.iter().enumerate() {
                assert_eq!(i32::from(*got), want_byte(i, true, -100, 120), "{isa} {shape:?}");
            }
        }
    }
}

/// Depthwise convolutions, also of planes smaller than the kernel and larger than a tile.
fn depthwise() -> impl Strategy<Value = ConvShape> {
    let pair = |range: std::ops::RangeInclusive<usize>| [range.clone(), range];
    let size = prop_oneof![4 => 0usize..=17, 1 => 40usize..=150];
    let kernel = prop_oneof![Just(3usize), Just(5)];
    let grid = (pair(1..=2), pair(0..=6), pair(0..=6), prop_oneof![6 => Just(1), 1 => Just(4)]);
    (1usize..=2, 1usize..=5, 1usize..=2, [size.clone(), size], kernel, grid).prop_filter_map(
        "fits",
        |(batch, groups, outputs, in_size, kernel, (stride, pad_begin, pad_end, more))| {
            let shape = ConvShape {
                batch,
                in_channels: groups,
                in_size,
                out_channels: groups * outputs,
                kernel: [kernel; 2],
                stride: [stride[0], stride[1] * more],
                pad_begin,
                pad_end,
                dilation: [1; 2],
                groups,
            };
            shape.out_size().map(|_| shape)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn depthwise_convolutions_agree_with_the_plain_loops(shape in depthwise(), epilogue in 0usize..16) {
        check_real(&shape, epilogue);
    }

    #[test]
    fn depthwise_byte_convolutions_give_the_same_integers(shape in depthwise(), kind in 0usize..12, seed in 0u64..1000) {
        check_bytes(&shape, kind, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn byte_convolutions_give_the_same_integers_everywhere(shape in shapes(), kind in 0usize..12, seed in 0u64..1000) {
        check_bytes(&shape, kind, seed);
    }
}
