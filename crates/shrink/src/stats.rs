//! What is kept of the activations that calibration sees: a histogram of bounded size, however many there are.

use crate::quantize::grid::{Grid, Kind};

/// Bins of a histogram.
const BINS: usize = 4096;
/// The power of errors that is summed: above 2, so that what is clipped, which is what a network has most to say about,
/// counts for more than noise (Li et al., "BRECQ", 2021).
const NORM: f64 = 2.4;

/// A histogram of numbers over a range that grows as needed: when a number lies outside, the range is doubled and
/// neighbouring bins are joined.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Bins cover [-radius, radius).
    radius: f32,
    bins: Vec<u64>,
    min: f32,
    max: f32,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { radius: 0.0, bins: vec![0; BINS], min: f32::INFINITY, max: f32::NEG_INFINITY, count: 0 }
    }
}

impl Histogram {
    /// Adds numbers. Those that are not finite are counted and returned, not added.
    pub fn add(&mut self, values: &[f32]) -> usize {
        let mut odd = 0;
        let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
        for &v in values {
            if v.is_finite() {
                low = low.min(v);
                high = high.max(v);
            } else {
                odd += 1;
            }
        }
        if low > high {
            return odd;
        }
        self.min = self.min.min(low);
        self.max = self.max.max(high);
        self.grow(low.abs().max(high.abs()));
        let scale = BINS as f32 / (2.0 * self.radius);
        for &v in values {
            if v.is_finite() {
                let at = ((v + self.radius) * scale) as usize;
                self.bins[at.min(BINS - 1)] += 1;
            }
        }
        self.count += (values.len() - odd) as u64;
        odd
    }

    fn grow(&mut self, radius: f32) {
        if self.radius == 0.0 {
            self.radius = (radius * 1.01).max(f32::MIN_POSITIVE * 1e6);
            return;
        }
        while radius >= self.radius {
            let mut wider = vec![0; BINS];
            for (i, &n) in self.bins.iter().enumerate() {
                wider[BINS / 4 + i / 2] += n;
            }
            self.bins = wider;
            self.radius *= 2.0;
        }
    }

    /// The histogram of the same numbers times a factor above 0.
    pub fn scaled(mut self, factor: f32) -> Histogram {
        for bound in [&mut self.radius, &mut self.min, &mut self.max] {
            *bound *= factor;
        }
        self
    }

    /// Number of numbers added.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The least and the greatest number added; `None` before the first.
    pub fn range(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    /// The range of an 8-bit grid that spoils these numbers least: the sum of the errors to the power of [`NORM`] is
    /// minimal among ranges clipped at one side, at the other, or at both.
    pub fn best_range(&self, kind: Kind) -> Option<(f32, f32)> {
        let (min, max) = self.range()?;
        let (min, max) = (min.min(0.0), max.max(0.0));
        let centre = |i: usize| (i as f32 + 0.5) / BINS as f32 * 2.0 * self.radius - self.radius;
        let filled: Vec<(f32, u64)> = self
            .bins
            .iter()
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .map(|(i, &n)| (centre(i).clamp(min, max), n))
            .collect();
        let harm = |low: f32, high: f32| -> f64 {
            let grid = Grid::from_range(low, high, kind);
            filled.iter().map(|&(x, n)| f64::from((x - grid.round(x)).abs()).powf(NORM) * n as f64).sum()
        };
        let clips = (0..=35).map(|i| 1.0 - 0.02 * i as f32);
        let pick = |options: &mut dyn Iterator<Item = (f32, f32)>| {
            let scored = options.map(|(l, h)| (harm(l, h), l, h));
            scored.reduce(|best, next| if next.0 < best.0 { next } else { best })
        };
        let (_, low, high) = pick(&mut clips.clone().map(|c| (min * c, max * c)))?;
        let (_, low, high) =
            pick(&mut std::iter::once((low, high)).chain(clips.clone().map(|c| (min * c, high))))?;
        let (_, low, high) = pick(&mut std::iter::once((low, high)).chain(clips.map(|c| (low, max * c))))?;
        Some((low, high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_histograms_are_those_of_scaled_numbers() {
        let numbers: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 3.0 - 0.5).collect();
        let (mut once, mut twice) = (Histogram::default(), Histogram::default());
        once.add(&numbers);
        twice.add(&numbers.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
        let scaled = once.scaled(2.0);
        assert_eq!((scaled.range(), scaled.count()), (twice.range(), twice.count()));
        assert_eq!(scaled.best_range(Kind::U8), twice.best_range(Kind::U8));
    }

    #[test]
    fn ranges_grow_and_odd_numbers_are_counted() {
        let mut h = Histogram::default();
        assert_eq!(h.range(), None);
        assert_eq!(h.add(&[0.5, f32::NAN, -0.25]), 1);
        assert_eq!(h.add(&[100.0, f32::INFINITY]), 1);
        assert_eq!((h.range(), h.count()), (Some((-0.25, 100.0)), 3));
        assert_eq!(h.bins.iter().sum::<u64>(), 3);
    }

    #[test]
    fn an_outlier_is_clipped_and_a_flat_spread_is_not() {
        let flat: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.0).collect();
        let mut h = Histogram::default();
        h.add(&flat);
        let (_, high) = h.best_range(Kind::U8).unwrap();
        assert!(high > 0.95, "{high}");
        for _ in 0..1000 {
            h.add(&flat);
        }
        h.add(&[4.0]);
        let (_, high) = h.best_range(Kind::U8).unwrap();
        assert!((0.9..3.0).contains(&high), "{high}");
    }

    #[test]
    fn all_zero_has_a_range() {
        let mut h = Histogram::default();
        h.add(&[0.0; 8]);
        assert_eq!(h.best_range(Kind::U8), Some((0.0, 0.0)));
    }
}
