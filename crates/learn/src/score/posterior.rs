//! How likely a loss of accuracy is within a bound, given what flipped.

use super::paired::Flips;
use crate::random::Random;
use crate::{Error, Result};

/// How many times the posterior is drawn from.
const ROUNDS: usize = 20_000;

/// The probability that the accuracy lost is at most `bound` (0.01 is one point), on all examples there could be: the
/// share of 20 000 draws from the posterior of the shares of examples that are lost, won and unmoved, a Dirichlet
/// distribution with Jeffreys' prior of half an example each. Where many examples flip it is what the paired bootstrap
/// finds; where none does, the bootstrap is certain of having lost nothing and this is not.
///
/// # Errors
/// [`Error::Input`] when there are no examples, or the bound is not a number.
pub fn loss_within(flips: &Flips, bound: f64, seed: u64) -> Result<f64> {
    let unmoved = flips.both + flips.neither;
    if unmoved + flips.lost + flips.won == 0 || bound.is_nan() {
        return Err(Error::input(format!("no examples, or no bound ({bound}), to judge a loss by")));
    }
    let mut random = Random::new(seed);
    let mut within = 0usize;
    for _ in 0..ROUNDS {
        let [lost, won, unmoved] =
            [flips.lost, flips.won, unmoved].map(|count| gamma(&mut random, count as f64 + 0.5));
        within += usize::from(lost - won <= bound * (lost + won + unmoved));
    }
    Ok(within as f64 / ROUNDS as f64)
}

/// The probability that a share is at most `bound` when it was found in `hits` of `n` examples: as [`loss_within`], of
/// two shares.
///
/// # Errors
/// [`Error::Input`] when there are no examples, fewer than hits, or the bound is not a number.
pub fn share_within(hits: usize, n: usize, bound: f64, seed: u64) -> Result<f64> {
    let Some(rest) = n.checked_sub(hits).filter(|_| n > 0 && !bound.is_nan()) else {
        return Err(Error::input(format!(
            "{hits} of {n} examples, or no bound ({bound}), to judge a share by"
        )));
    };
    let mut random = Random::new(seed);
    let mut within = 0usize;
    for _ in 0..ROUNDS {
        let [hits, rest] = [hits, rest].map(|count| gamma(&mut random, count as f64 + 0.5));
        within += usize::from(hits <= bound * (hits + rest));
    }
    Ok(within as f64 / ROUNDS as f64)
}

/// Evenly distributed between 0 and 1, both left out.
fn unit(random: &mut Random) -> f64 {
    ((random.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Normally distributed (G. E. P. Box and M. E. Muller, 1958).
fn normal(random: &mut Random) -> f64 {
    let (u, v) = (unit(random), unit(random));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Gamma-distributed with this shape and scale 1 (G. Marsaglia and W. W. Tsang, *A simple method for generating gamma
/// variables*, 2000).
fn gamma(random: &mut Random, shape: f64) -> f64 {
    if shape < 1.0 {
        let power = unit(random).powf(1.0 / shape);
        return gamma(random, shape + 1.0) * power;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(random);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && unit(random).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::{accuracy, difference_samples};

    fn flips(lost: usize, won: usize, both: usize) -> Flips {
        Flips { both, lost, won, ..Flips::default() }
    }

    /// P(Gamma(4.5) <= Gamma(13.5)) is the regularised incomplete beta function I_1/2(4.5, 13.5).
    #[test]
    fn known_answers() {
        let within = |f: &Flips, bound| loss_within(f, bound, 1).unwrap();
        assert!((within(&flips(4, 13, 200), 0.0) - INCOMPLETE_BETA).abs() < 0.003);
        assert!((within(&flips(7, 7, 100), 0.0) - 0.5).abs() < 0.01);
        // No flip in 100 leaves room for a loss of half a point; with 10 000 it is all but excluded.
        let few = within(&flips(0, 0, 100), 0.005);
        assert!(few > 0.6 && few < 0.95, "{few}");
        assert!(within(&flips(0, 0, 10_000), 0.005) > 0.999);
        assert_eq!(within(&flips(50, 0, 50), 0.01), 0.0);
        assert_eq!(within(&flips(3, 3, 50), 1.0), 1.0);
        // Half of the posterior of 50 in 100 lies below a half; that of 0 in 20 below 0.05 is I_0.05(0.5, 20.5).
        assert!((share_within(50, 100, 0.5, 1).unwrap() - 0.5).abs() < 0.01);
        assert!((share_within(0, 20, 0.05, 1).unwrap() - NONE_OF_TWENTY).abs() < 0.01);
    }

    const INCOMPLETE_BETA: f64 = 0.987_028_365_9;

    const NONE_OF_TWENTY: f64 = 0.850529;

    #[test]
    fn it_is_the_bootstraps_share_where_many_flip() {
        let truth = vec![0usize; 2000];
        let a: Vec<usize> = (0..2000).map(|i| usize::from(i % 10 == 0)).collect();
        let b: Vec<usize> = (0..2000).map(|i| usize::from(i % 9 == 0)).collect();
        let found = crate::score::flips(&a, &b, &truth).unwrap();
        let samples = difference_samples(accuracy, &a, &b, &truth, 3).unwrap();
        for bound in [0.0, 0.01, 0.02, 0.03] {
            let (here, there) = (loss_within(&found, bound, 4).unwrap(), samples.share_at_least(-bound));
            assert!((here - there).abs() < 0.03, "{bound}: {here} {there}");
        }
    }

    #[test]
    fn nothing_to_judge_by_is_an_error() {
        assert!(loss_within(&Flips::default(), 0.01, 1).is_err());
        assert!(loss_within(&flips(1, 1, 1), f64::NAN, 1).is_err());
        assert!(share_within(0, 0, 0.1, 1).is_err() && share_within(2, 1, 0.1, 1).is_err());
    }
}
