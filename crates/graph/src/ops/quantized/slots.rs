//! Products of quantised tensors have the same inputs in many operators, each in its own order.

/// What an input of a quantised product is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The left operand of a matrix product; the image of a convolution.
    A,
    AScale,
    AZero,
    /// The right operand; the weights of a convolution.
    B,
    BScale,
    BZero,
    Bias,
    YScale,
    YZero,
}

/// An operator's inputs in order.
pub(crate) type Slots = &'static [Slot];

/// Where an input stands; past the end when the operator has none such.
pub(crate) fn place(slots: Slots, slot: Slot) -> usize {
    slots.iter().position(|&s| s == slot).unwrap_or(usize::MAX)
}

/// Bounds that a fused activation sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The least value.
    pub lo: f32,
    /// The greatest value.
    pub hi: f32,
}

impl Bounds {
    /// No activation.
    pub const NONE: Bounds = Bounds { lo: f32::NEG_INFINITY, hi: f32::INFINITY };
    /// `max(x, 0)`.
    pub const RELU: Bounds = Bounds { lo: 0.0, hi: f32::INFINITY };

    /// The number within the bounds; NaN stays.
    pub fn clamp(&self, x: f32) -> f32 {
        let x = if x < self.lo { self.lo } else { x };
        if x > self.hi { self.hi } else { x }
    }

    /// The bounds as codes on a grid, within `range`.
    pub fn codes(&self, scale: f32, zero: i32, range: (i32, i32)) -> (i32, i32) {
        // The cast saturates.
        let code = |x: f32| ((x / scale).round_ties_even() as i32).saturating_add(zero);
        let lo = code(self.lo).clamp(range.0, range.1);
        (lo, code(self.hi).clamp(lo, range.1))
    }
}
