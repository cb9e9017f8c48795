//! Which elements of an axis make up one element of the resized axis, and with which weights.
//! <https://onnx.ai/onnx/operators/onnx__Resize.html>; the cubic kernel after R. Keys, "Cubic convolution
//! interpolation for digital image processing" (1981).

use crate::tensor::count;
use crate::{Error, Result};

/// How places of the output are mapped to places of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coordinate {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfHalfPixel,
    Crop,
}

/// Which neighbour is the nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nearest {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
    /// Before version 11: the one below when growing, the one above when shrinking.
    Inward,
}

/// What is made of the neighbours.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kernel {
    Nearest(Nearest),
    Linear,
    Cubic(f32),
}

/// All that determines the weights, but the sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Filter {
    pub kernel: Kernel,
    pub coordinate: Coordinate,
    pub antialias: bool,
    pub exclude_outside: bool,
    pub extrapolation: f32,
}

/// The taps of each element of the resized axis, one range of `list` each.
pub(super) struct Taps {
    ends: Vec<usize>,
    list: Vec<(usize, f64)>,
    /// Elements that lie outside, and what they are.
    outside: Vec<bool>,
    fill: f32,
}

impl Coordinate {
    pub fn named(name: &str) -> Result<Coordinate> {
        Ok(match name {
            "half_pixel" => Coordinate::HalfPixel,
            "half_pixel_symmetric" => Coordinate::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinate::PytorchHalfPixel,
            "align_corners" => Coordinate::AlignCorners,
            "asymmetric" => Coordinate::Asymmetric,
            "tf_half_pixel_for_nn" => Coordinate::TfHalfPixel,
            "tf_crop_and_resize" => Coordinate::Crop,
            other => {
                return Err(Error::invalid(format!("there is no coordinate_transformation_mode {other:?}")));
            }
        })
    }

    /// The place in the input, between its elements, of element `i` of the output. In f32, as other engines do it:
    /// which element is the nearest hangs on the last bit.
    fn place(self, i: usize, old: usize, new: usize, scale: f32, region: (f32, f32)) -> f32 {
        let (x, old, new) = (i as f32, old as f32, new as f32);
        let exact = scale * old;
        let length = if (exact - exact.round()).abs() < 1e-4 { exact.round() } else { exact };
        match self {
            Coordinate::HalfPixel => (x + 0.5) / scale - 0.5,
            Coordinate::HalfPixelSymmetric => {
                // The output is centred on the input, also when its size was rounded.
                let offset = old / 2.0 * (1.0 - new / exact);
                (f64::from(offset) + (f64::from(x) + 0.5) / f64::from(scale) - 0.5) as f32
            }
            Coordinate::PytorchHalfPixel if new > 1.0 => (x + 0.5) / scale - 0.5,
            Coordinate::PytorchHalfPixel => 0.0,
            // The length is the one before it was rounded down to `new`.
            Coordinate::AlignCorners if length > 1.0 => x * (old - 1.0) / (length - 1.0),
            Coordinate::AlignCorners => 0.0,
            Coordinate::Asymmetric => x / scale,
            Coordinate::TfHalfPixel => (x + 0.5) / scale,
            Coordinate::Crop if new > 1.0 => {
                region.0 * (old - 1.0) + x * (region.1 - region.0) * (old - 1.0) / (new - 1.0)
            }
            Coordinate::Crop => 0.5 * (region.0 + region.1) * (old - 1.0),
        }
    }
}

impl Nearest {
    pub fn named(name: &str) -> Result<Nearest> {
        Ok(match name {
            "round_prefer_floor" => Nearest::RoundPreferFloor,
            "round_prefer_ceil" => Nearest::RoundPreferCeil,
            "floor" => Nearest::Floor,
            "ceil" => Nearest::Ceil,
            other => return Err(Error::invalid(format!("there is no nearest_mode {other:?}"))),
        })
    }

    fn of(self, x: f64, scale: f32) -> f64 {
        match self {
            Nearest::RoundPreferFloor => (x - 0.5).ceil(),
            Nearest::RoundPreferCeil => (x + 0.5).floor(),
            Nearest::Floor => x.floor(),
            Nearest::Ceil => x.ceil(),
            Nearest::Inward if scale < 1.0 => x.ceil(),
            Nearest::Inward => x.floor(),
        }
    }
}

impl Kernel {
    /// How far it reaches.
    fn reach(self) -> f64 {
        match self {
            Kernel::Nearest(_) => 0.5,
            Kernel::Linear => 1.0,
            Kernel::Cubic(_) => 2.0,
        }
    }

    /// The weight of an element at this distance.
    fn weight(self, distance: f64) -> f64 {
        let d = distance.abs();
        match self {
            Kernel::Nearest(_) => 1.0,
            Kernel::Linear => (1.0 - d).max(0.0),
            Kernel::Cubic(a) => {
                let a = f64::from(a);
                if d <= 1.0 {
                    ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
                } else if d < 2.0 {
                    ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
                } else {
                    0.0
                }
            }
        }
    }
}

impl Filter {
    /// The taps for an axis of `old` > 0 elements made into one of `new`. `region` is the part of the axis that
    /// [`Coordinate::Crop`] takes.
    pub fn taps(&self, old: usize, new: usize, scale: f32, region: (f32, f32)) -> Taps {
        let last = old as i64 - 1;
        let mut taps = Taps {
            ends: Vec::with_capacity(new),
            list: Vec::new(),
            outside: vec![false; new],
            fill: self.extrapolation,
        };
        // With antialias the kernel is as wide as an element of the output.
        let shrink = if self.antialias { f64::from(scale).min(1.0) } else { 1.0 };
        for i in 0..new {
            let x = f64::from(self.coordinate.place(i, old, new, scale, region));
            if self.coordinate == Coordinate::Crop && !(0.0..=last as f64).contains(&x) {
                taps.outside[i] = true;
            }
            let start = taps.list.len();
            if let Kernel::Nearest(nearest) = self.kernel {
                taps.list.push(((nearest.of(x, scale) as i64).clamp(0, last) as usize, 1.0));
                taps.ends.push(taps.list.len());
                continue;
            }
            // A kernel wider than the axis and its repeated borders adds nothing new.
            let reach = (self.kernel.reach() / shrink).min(2.0 * old as f64 + 4.0);
            let x = x.clamp(-4.0 - old as f64, 2.0 * old as f64 + 4.0);
            let (from, to) = ((x - reach).floor() as i64 + 1, (x + reach).ceil() as i64 - 1);
            let mut sum = 0.0;
            for j in from..=to {
                let inside = (0..=last).contains(&j);
                let weight = self.kernel.weight((j as f64 - x) * shrink);
                if weight == 0.0 || (self.exclude_outside && !inside) {
                    continue;
                }
                sum += weight;
                taps.list.push((j.clamp(0, last) as usize, weight));
            }
            if taps.list.len() == start {
                taps.list.push(((x.round() as i64).clamp(0, last) as usize, 1.0));
            } else if self.exclude_outside || self.antialias {
                taps.list[start..].iter_mut().for_each(|t| t.1 /= sum);
            }
            taps.ends.push(taps.list.len());
        }
        taps
    }
}

impl Taps {
    /// Number of elements of the resized axis.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The first tap of each element.
    pub fn firsts(&self) -> impl Iterator<Item = usize> {
        self.each().map(|(taps, _)| taps.first().map_or(0, |t| t.0))
    }

    fn each(&self) -> impl Iterator<Item = (&[(usize, f64)], Option<f32>)> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let fill = |out: &bool| out.then_some(self.fill);
        starts.zip(&self.ends).zip(&self.outside).map(move |((a, &b), out)| (&self.list[a..b], fill(out)))
    }
}

/// Fills `to` with the weighted sums of `from` along its first axis, whose elements are rows of `inner` numbers.
pub(super) fn apply(from: &[f32], to: &mut [f32], inner: usize, taps: &Taps) {
    for (row, (taps, fill)) in to.chunks_exact_mut(inner).zip(taps.each()) {
        if let Some(fill) = fill {
            row.fill(fill);
            continue;
        }
        let line = |at: usize| &from[at * inner..(at + 1) * inner];
        match *taps {
            _ if inner == 1 => row[0] = taps.iter().map(|&(at, w)| from[at] * w as f32).sum(),
            [(a, wa), (b, wb)] => {
                let (wa, wb) = (wa as f32, wb as f32);
                for ((t, &x), &y) in row.iter_mut().zip(line(a)).zip(line(b)) {
                    *t = x * wa + y * wb;
                }
            }
            _ => {
                for &(at, w) in taps {
                    let w = w as f32;
                    row.iter_mut().zip(line(at)).for_each(|(t, &x)| *t += x * w);
                }
            }
        }
    }
}

/// Weighted sums along an axis in f64; `shape` becomes the new one.
///
/// # Errors
/// When the result is too big.
pub(super) fn resample(from: &[f64], shape: &mut [usize], axis: usize, taps: &Taps) -> Result<Vec<f64>> {
    let old = shape[axis];
    shape[axis] = taps.len();
    let inner: usize = shape[axis + 1..].iter().product();
    let n = count(shape)?;
    let mut to = Vec::new();
    to.try_reserve_exact(n).map_err(|_| Error::Memory(n.saturating_mul(8)))?;
    for outer in 0..shape[..axis].iter().product() {
        for (taps, fill) in taps.each() {
            for i in 0..inner {
                let sum = || taps.iter().map(|&(at, w)| from[(outer * old + at) * inner + i] * w).sum();
                to.push(fill.map_or_else(sum, f64::from));
            }
        }
    }
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_one() {
        for kernel in [Kernel::Linear, Kernel::Cubic(-0.75), Kernel::Cubic(-0.5)] {
            for antialias in [false, true] {
                let filter = Filter {
                    kernel,
                    coordinate: Coordinate::HalfPixel,
                    antialias,
                    exclude_outside: false,
                    extrapolation: 0.0,
                };
                for (old, new) in [(5, 3), (4, 9), (1, 4), (7, 1)] {
                    for (taps, _) in filter.taps(old, new, new as f32 / old as f32, (0.0, 1.0)).each() {
                        let sum: f64 = taps.iter().map(|t| t.1).sum();
                        assert!((sum - 1.0).abs() < 1e-9, "{kernel:?} {old} {new}: {sum}");
                    }
                }
            }
        }
    }

    #[test]
    fn nearest_ties() {
        assert_eq!(Nearest::RoundPreferFloor.of(1.5, 1.0), 1.0);
        assert_eq!(Nearest::RoundPreferCeil.of(1.5, 1.0), 2.0);
        assert_eq!(Nearest::RoundPreferFloor.of(1.6, 1.0), 2.0);
    }

    /// 4.5 / 1.8 is 2.5 in f32; in f64 the scale that f32 holds gives a little more, and the next element.
    #[test]
    fn places_are_rounded_as_f32() {
        let filter = Filter {
            kernel: Kernel::Nearest(Nearest::Ceil),
            coordinate: Coordinate::HalfPixel,
            antialias: false,
            exclude_outside: false,
            extrapolation: 0.0,
        };
        let picked: Vec<usize> = filter.taps(5, 9, 9.0 / 5.0, (0.0, 1.0)).firsts().collect();
        assert_eq!(picked, [0, 1, 1, 2, 2, 3, 4, 4, 4]);
    }

    #[test]
    fn the_length_is_the_rounded_one() {
        assert_eq!(Coordinate::PytorchHalfPixel.place(0, 3, 1, 0.6, (0.0, 1.0)), 0.0);
        assert_eq!(Coordinate::Crop.place(1, 3, 2, 0.9, (0.0, 1.0)), 2.0);
    }
}
