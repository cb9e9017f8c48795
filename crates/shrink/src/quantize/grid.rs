//! Affine grids of 8 bits: `x ~ scale * (code - zero)`. <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html>

/// Which codes a grid has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 0..=255 with a zero point: activations.
    U8,
    /// -127..=127, the zero point is 0: weights.
    S8,
}

/// A grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// Distance of two neighbours; above zero.
    pub scale: f32,
    /// The code of 0.
    pub zero: i32,
    kind: Kind,
}

impl Grid {
    /// The grid over a range, which is widened to hold 0, so that 0 stays exact.
    pub fn from_range(low: f32, high: f32, kind: Kind) -> Grid {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let usable = |scale: f32| if scale.is_normal() { scale } else { 1.0 };
        match kind {
            Kind::S8 => Grid { scale: usable(high.max(-low) / 127.0), zero: 0, kind },
            Kind::U8 => {
                let scale = usable((high - low) / 255.0);
                let zero = (-low / scale).round_ties_even().clamp(0.0, 255.0) as i32;
                Grid { scale, zero, kind }
            }
        }
    }

    /// The code of a number: the nearest, ties to the even one; saturated.
    pub fn code(&self, x: f32) -> i32 {
        let (low, high) = match self.kind {
            Kind::U8 => (0, 255),
            Kind::S8 => (-127, 127),
        };
        ((x / self.scale).round_ties_even() as i32).saturating_add(self.zero).clamp(low, high)
    }

    /// The number nearest to `x` on the grid.
    pub fn round(&self, x: f32) -> f32 {
        (self.code(x) - self.zero) as f32 * self.scale
    }
}

/// The symmetric grid for a slice of weights that minimises the squared error, among ranges clipped by up to a
/// third. Weights must be finite.
pub fn search_s8<'a>(weights: impl Iterator<Item = &'a f32> + Clone) -> Grid {
    let top = weights.clone().fold(0f32, |m, w| m.max(w.abs()));
    let harm = |grid: &Grid| -> f64 { weights.clone().map(|&w| f64::from(w - grid.round(w)).powi(2)).sum() };
    let full = Grid::from_range(-top, top, Kind::S8);
    let mut best = (harm(&full), full);
    for step in 1..=16 {
        let clip = top * (1.0 - 0.02 * step as f32);
        let grid = Grid::from_range(-clip, clip, Kind::S8);
        let h = harm(&grid);
        if h < best.0 {
            best = (h, grid);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_exact_and_the_ends_saturate() {
        for (low, high) in [(-1.0, 3.0), (0.5, 3.0), (-3.0, -1.0), (0.0, 0.0)] {
            for kind in [Kind::U8, Kind::S8] {
                let grid = Grid::from_range(low, high, kind);
                assert_eq!(grid.round(0.0), 0.0);
                assert!(grid.scale > 0.0);
                assert!((grid.round(low) - low).abs() <= grid.scale, "{low} {high} {kind:?}");
            }
        }
        let grid = Grid::from_range(-1.0, 1.0, Kind::U8);
        assert_eq!((grid.code(9.0), grid.code(-9.0)), (255, 0));
        assert_eq!(Grid::from_range(-1.0, 1.0, Kind::S8).code(-9.0), -127);
    }

    #[test]
    fn ties_go_to_the_even_code() {
        let grid = Grid::from_range(-127.0, 127.0, Kind::S8);
        assert_eq!([0.5f32, 1.5, 2.5, -0.5].map(|x| grid.code(x)), [0, 2, 2, 0]);
    }

    #[test]
    fn clipping_an_outlier_pays_only_when_it_lowers_the_error() {
        let mut weights: Vec<f32> = (0..4096).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let plain = search_s8(weights.iter());
        assert!(plain.scale > 0.95 / 127.0);
        weights.push(1.3);
        assert!(search_s8(weights.iter()).scale < 1.3 / 127.0);
    }
}
