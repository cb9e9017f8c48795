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
