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

/// `[batch, channels, pixels]` as `[batch, pixels, channels]`.
pub(super) fn last<T: Copy>(data: &[T], batch: usize, channels: usize) -> Vec<T> {
    let pixels = data.len() / (batch * channels).max(1);
    let at = |i: usize| (i / channels / pixels * channels + i % channels) * pixels + i / channels % pixels;
    (0..data.len()).map(|i| data[at(i)]).collect()
}

fn check_real(shape: &ConvShape, epilogue_kind: usize) {
    let input = reals(1, shape.in_len());
    let weights = reals(2, shape.weight_len());
    let bias = reals(3, shape.out_channels);
    let residual = reals(4, shape.out_len());
    let then = |out: &mut [f32]| out.iter_mut().for_each(|x| *x = 2.0 * *x + 1.0);
    let residual = last(&residual, shape.batch, shape.out_channels);
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
    let mut want = last(&want, shape.batch, shape.out_channels);
    for (want, residual) in want.iter_mut().zip(&residual) {
        *want += if epilogue.residual.is_some() { *residual } else { 0.0 };
        *want = epilogue.activation.bounds().map_or(*want, |b| bounded(*want, b));
    }
    if epilogue.then.is_some() {
        then(&mut want);
    }
    let input = last(&input, shape.batch, shape.in_channels);
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

fn check_bytes(shape: &ConvShape, [signed, kind]: [usize; 2], zero: u8) {
    let input: Vec<u8> = random(5, shape.in_len()).map(|x| x as u8).collect();
    let weights: Vec<u8> = random(6, shape.weight_len()).map(|x| x as u8).collect();
    let signed_bytes = |x: &[u8]| x.iter().map(|&x| x as i8).collect::<Vec<i8>>();
    let zeros: Vec<i32> = match kind % 3 {
        0 => vec![],
        1 => vec![7],
        _ => (0..shape.out_channels as i32).map(|c| c % 100).collect(),
    };
    let value = |x: u8, signed: bool| if signed { i32::from(x as i8) } else { i32::from(x) };
    let is_signed = [signed & 1 > 0, signed & 2 > 0];
    let x_zero = value(zero, is_signed[0]);
    let numbers: Vec<f64> = input.iter().map(|&x| f64::from(value(x, is_signed[0]) - x_zero)).collect();
    let units = shape.weight_len() / shape.out_channels;
    let taps = shape.kernel[0] * shape.kernel[1];
    let inputs = units / taps;
    let [height, width] = shape.out_size().unwrap();
    let mut want = vec![0i32; shape.out_len()];
    for (i, want) in want.iter_mut().enumerate() {
        let (x, y) = (i % width, i / width % height);
        let (channel, image) =
            (i / width / height % shape.out_channels, i / width / height / shape.out_channels);
        let group = channel / (shape.out_channels / shape.groups);
        let zero = zeros.get(channel).or(zeros.first()).copied().unwrap_or(0);
        let mut sum = 0f64;
        for unit in 0..units {
            let (input, tap) = (group * inputs + unit / taps, unit % taps);
            let at = |axis: usize, out: usize, tap: usize| {
                let at = out * shape.stride[axis] + tap * shape.dilation[axis];
                at.checked_sub(shape.pad_begin[axis]).filter(|&at| at < shape.in_size[axis])
            };
            let (Some(y), Some(x)) = (at(0, y, tap / shape.kernel[1]), at(1, x, tap % shape.kernel[1]))
            else {
                continue;
            };
            let weight = value(weights[channel * units + unit], is_signed[1]) - zero;
            let plane = image * shape.in_channels + input;
            sum += numbers[(plane * shape.in_size[0] + y) * shape.in_size[1] + x] * f64::from(weight);
        }
        *want = sum as i32;
    }
    let want = last(&want, shape.batch, shape.out_channels);
    let input = last(&input, shape.batch, shape.in_channels);
    let (signed_input, signed_weights) = (signed_bytes(&input), signed_bytes(&weights));
    let x = if is_signed[0] { Bytes::S8(&signed_input) } else { Bytes::U8(&input) };
    let w = if is_signed[1] { Bytes::S8(&signed_weights) } else { Bytes::U8(&weights) };
    let bias: Vec<i32> = (0..shape.out_channels as i32).map(|c| 31 * c - 50).collect();
    let scale: Vec<f32> = (0..shape.out_channels).map(|c| 0.001 + 0.0003 * (c % 7) as f32).collect();
    let offset: Vec<f32> = (0..shape.out_channels).map(|c| c as f32 * 0.25 - 2.0).collect();
    for isa in Isa::available() {
        for threads in [1, 2] {
            let cpu = Cpu::with_isa(isa, threads).unwrap();
            let packed = PackedByteConv::new(&cpu, shape, w, &zeros);
            let mut sums = vec![-1; shape.out_len()];
            packed.run(&cpu, shape, x, x_zero, ByteOutput::Sums(&mut sums));
            assert_eq!(sums, want, "{isa}, {threads} threads: {shape:?}");
            let mut out = vec![1u8; shape.out_len()];
            let requant = Requant {
                bias: Some(&bias),
                multiplier: &scale,
                offset: Some(&offset),
                zero: 9,
                lo: 3,
                hi: 250,
            };
            packed.run(&cpu, shape, x, x_zero, ByteOutput::U8(&mut out, requant));
            let mut reals = vec![1f32; shape.out_len()];
            let activation = Activation::Clip { lo: -2.0, hi: 3.0 };
            let output = ByteOutput::Real { out: &mut reals, scale: &scale, bias: None, activation };
            packed.run(&cpu, shape, x, x_zero, output);
            for (i, &sum) in want.iter().enumerate() {
                let channel = i % shape.out_channels;
                let byte = (sum + bias[channel]) as f32 * scale[channel] + offset[channel];
                let byte = byte.round_ties_even() + 9.0;
                assert_eq!(f32::from(out[i]), byte.clamp(3.0, 250.0), "{isa}: at {i} of {shape:?}");
                assert_eq!(reals[i], (sum as f32 * scale[channel]).clamp(-2.0, 3.0), "{isa}: at {i}");
            }
        }
    }
}

fn depthwise() -> impl Strategy<Value = ConvShape> {
    let pair = |range: std::ops::RangeInclusive<usize>| [range.clone(), range];
    let size = prop_oneof![8 => 0usize..=17, 1 => 40usize..=70];
    let kernel = prop_oneof![Just(3usize), Just(5)];
    let grid = (pair(1..=2), pair(0..=6), pair(0..=6), prop_oneof![6 => Just(1), 1 => Just(4)]);
    (
        1usize..=2,
        2usize..=70,
        prop_oneof![5 => Just(1usize), 1 => Just(2)],
        [size.clone(), size],
        kernel,
        grid,
    )
        .prop_filter_map(
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
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn depthwise_convolutions_agree_with_the_plain_loops(shape in depthwise(), epilogue in 0usize..16) {
        check_real(&shape, epilogue);
        check_bytes(&shape, [epilogue % 4, epilogue % 3], epilogue as u8);
    }

    #[test]
    fn real_convolutions_agree_with_the_plain_loops(shape in shapes(), epilogue in 0usize..16) {
        check_real(&shape, epilogue);
    }

    #[test]
    fn byte_convolutions_are_exact(shape in shapes(), signed in 0usize..4, kind in 0usize..3, zero in 0u8..100) {
        check_bytes(&shape, [signed, kind], zero);
    }
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

#[test]
fn larger_convolutions_are_cut_into_several_tasks() {
    for shape in [
        shape([150, 20], 20, 3, 1, 1),
        shape([3, 9], 61, 7, 2, 1),
        shape([300, 40], 9, 1, 1, 1),
        shape([512, 70], 5, 1, 1, 1),
        shape([40, 40], 33, 5, 2, 40),
        shape([72, 72], 23, 3, 1, 72),
        shape([12, 12], 140, 3, 1, 12),
        ConvShape {
            in_size: [1, 3000],
            kernel: [1, 9],
            pad_begin: [0, 4],
            pad_end: [0, 4],
            ..shape([5, 11], 1, 1, 1, 1)
        },
        ConvShape { dilation: [4, 3], pad_begin: [4, 3], pad_end: [4, 3], ..shape([8, 11], 31, 3, 1, 1) },
        ConvShape { dilation: [4, 3], pad_begin: [4, 3], pad_end: [4, 3], ..shape([19, 19], 31, 3, 1, 19) },
    ] {
        check_real(&shape, 11);
        check_bytes(&shape, [1, 0], 3);
        check_bytes(&shape, [2, 0], 3);
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
