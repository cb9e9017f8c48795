//! The patches of images under a convolution, as rows: what each output channel is multiplied with (im2col).

use super::conv::{Sizes, for_taps};

/// Most numbers of a piece that is handed over at a time.
const PIECE: usize = 1 << 22;

/// Hands over, group by group, rows of `channels of the group x taps` numbers, one for each place of the output.
pub(super) fn patches(sizes: &Sizes, x: &[f32], emit: &mut dyn FnMut(usize, &[f32])) {
    let plane: usize = sizes.axes.iter().map(|a| a.size).product();
    let taps: usize = sizes.axes.iter().map(|a| a.kernel).product();
    let places: usize = sizes.axes.iter().map(|a| a.out).product();
    let channels = sizes.in_channels / sizes.groups.max(1);
    let width = channels * taps;
    if width == 0 || places == 0 || sizes.batch == 0 {
        return;
    }
    // (place of the output, tap, place of the input), the same for all images and channels.
    let mut reads: Vec<(usize, usize, usize)> = Vec::new();
    for_taps(&sizes.axes, |place, tap, from| reads.push((place, tap, from)));
    let step = (PIECE / width).clamp(1, places);
    let images = (PIECE / (width * places)).clamp(1, sizes.batch);
    let mut rows = Vec::new();
    for group in 0..sizes.groups {
        for first in (0..places).step_by(step) {
            let count = step.min(places - first);
            let from = reads.partition_point(|r| r.0 < first);
            let to = reads.partition_point(|r| r.0 < first + count);
            for batch in (0..sizes.batch).step_by(images) {
                let batch = batch..(batch + images).min(sizes.batch);
                rows.clear();
                rows.resize(batch.len() * count * width, 0.0);
                for (image, rows) in batch.zip(rows.chunks_exact_mut(count * width)) {
                    let x = &x[(image * sizes.in_channels + group * channels) * plane..][..channels * plane];
                    for &(place, tap, at) in &reads[from..to] {
                        let row = &mut rows[(place - first) * width..][..width];
                        for (cell, x) in
                            row[tap..].iter_mut().step_by(taps).zip(x[at..].iter().step_by(plane))
                        {
                            *cell = *x;
                        }
                    }
                }
                emit(group, &rows);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kernel::{Cpu, Isa};

    use crate::op::{Inputs, RunCx, ramp};
    use crate::ops::conv::Conv;
    use crate::ops::window::{AutoPad, Window};
    use crate::{Datum, Op};

    /// The rows times the weight are the convolution.
    fn check(window: Window, groups: usize, x: &[usize], w: &[usize]) {
        let (x, w) = (ramp(x), ramp(w));
        let op = Conv::new(window, groups);
        let cpu = Cpu::with_isa(Isa::best(), 1).unwrap();
        let data = vec![Some(Datum::Tensor(x.clone())), Some(Datum::Tensor(w.clone()))];
        let y = op.run(&RunCx::new(&cpu, 1), Inputs::new(data)).unwrap().swap_remove(0);
        let out = w.shape()[0];
        let width = w.len() / out;
        let places: usize = y.shape()[2..].iter().product();
        let mut seen = vec![0; groups];
        op.weight_rows(&x, w.shape(), &mut |group, rows| {
            for row in rows.chunks_exact(width) {
                let (image, place) = (seen[group] / places, seen[group] % places);
                for o in group * out / groups..(group + 1) * out / groups {
                    let weights = &w.as_slice::<f32>().unwrap()[o * width..][..width];
                    let dot: f32 = row.iter().zip(weights).map(|(a, b)| a * b).sum();
                    let want = y.as_slice::<f32>().unwrap()[(image * out + o) * places + place];
                    assert!((dot - want).abs() < 1e-4, "{dot} {want}");
                }
                seen[group] += 1;
            }
        })
        .unwrap();
        assert!(seen.iter().all(|&n| n == x.shape()[0] * places));
    }

    #[test]
    fn patches_times_weights_are_the_convolution() {
        let ints = |v: &[usize]| Some(v.to_vec());
        check(Window::default(), 1, &[2, 3, 4, 5], &[4, 3, 1, 1]);
        let window = Window { strides: ints(&[2, 1]), pads: ints(&[1, 0, 1, 2]), ..Window::default() };
        check(window, 1, &[2, 2, 7, 6], &[3, 2, 3, 3]);
        let window =
            Window { dilations: ints(&[2]), auto_pad: Some(AutoPad::SameLower), ..Window::default() };
        check(window, 2, &[3, 4, 9], &[6, 2, 3]);
        let window = Window { pads: ints(&[1; 4]), ..Window::default() };
        check(window, 5, &[1, 5, 6, 6], &[5, 1, 3, 3]);
        check(Window::default(), 1, &[1, 2, 3, 4, 3], &[2, 2, 2, 2, 2]);
    }
}
