//! Examples made by rule, for calibration where there are no data: pictures and sentences whose statistics are those of
//! natural ones as far as a few rules go. The same seed and index give the same example everywhere. They have no right
//! answers and prove nothing.

mod picture;
mod sentence;

pub use picture::picture;
pub use sentence::{Odd, sentences};

use crate::random::Random;

/// The generator of example `index`: neighbours share nothing.
pub fn random(seed: u64, index: usize) -> Random {
    let [mut a, mut b] = [seed, index as u64].map(Random::new);
    Random::new(a.bits() ^ b.bits().rotate_left(32))
}
