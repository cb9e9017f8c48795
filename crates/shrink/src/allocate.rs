//! How many bytes each weight gets: the least harm within a number of bytes, when the harms of weights add up.
//! Everett's Lagrange multipliers: at a price for bytes each weight takes what is best for it alone; the price is
//! found by bisection, and what is left over is given out one step at a time.

/// What can be done to a weight, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Bytes of the weight.
    pub bytes: usize,
    /// Harm that it does; any unit, the same for all weights.
    pub harm: f64,
}

/// Chooses an offer for each weight so that the bytes are at most `budget` and the harm is least, nearly. Each list
/// has at least one offer. `None` when the smallest offers of all take more.
pub fn allocate(weights: &[Vec<Offer>], budget: usize) -> Option<Vec<usize>> {
    let least = |offers: &Vec<Offer>| (0..offers.len()).min_by_key(|&i| offers[i].bytes);
    let smallest: Vec<usize> = weights.iter().map(least).collect::<Option<_>>()?;
    let bytes = |chosen: &[usize]| weights.iter().zip(chosen).map(|(w, &i)| w[i].bytes).sum::<usize>();
    if bytes(&smallest) > budget {
        return None;
    }
    let at = |price: f64| -> Vec<usize> {
        let cost = |o: &Offer| o.harm + price * o.bytes as f64;
        let best = |offers: &Vec<Offer>| {
            let better = |&a: &usize, &b: &usize| {
                cost(&offers[a]).total_cmp(&cost(&offers[b])).then(offers[a].bytes.cmp(&offers[b].bytes))
            };
            (0..offers.len()).min_by(better).unwrap_or(0)
        };
        weights.iter().map(best).collect()
    };
    // Prices over many orders of magnitude: bisect their logarithms.
    let (mut low, mut high) = (-120f64, 60f64);
    let mut chosen = smallest;
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        let here = at(middle.exp2());
        if bytes(&here) <= budget {
            (chosen, high) = (here, middle);
        } else {
            low = middle;
        }
    }
    // The steps that do most good for their bytes, as long as they fit.
    loop {
        let left = budget - bytes(&chosen);
        let mut best: Option<(f64, usize, usize)> = None;
        for (w, offers) in weights.iter().enumerate() {
            let now = offers[chosen[w]];
            for (i, offer) in offers.iter().enumerate() {
                let more = offer.bytes.saturating_sub(now.bytes);
                let gain = (now.harm - offer.harm) / more.max(1) as f64;
                if more <= left && gain > 0.0 && best.is_none_or(|b| gain > b.0) {
                    best = Some((gain, w, i));
                }
            }
        }
        match best {
            Some((_, w, i)) => chosen[w] = i,
            None => return Some(chosen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seed: u64, weights: usize) -> Vec<Vec<Offer>> {
        let mut seed = seed;
        let mut next = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f64 / (1u64 << 24) as f64
        };
        let one = |next: &mut dyn FnMut() -> f64| {
            let (size, harm) = (1.0 + 20.0 * next(), next().powi(3));
            (1..=4)
                .map(|b| Offer { bytes: (size * f64::from(b)) as usize, harm: harm * 0.25f64.powi(b) })
                .collect()
        };
        (0..weights).map(|_| one(&mut next)).collect()
    }

    #[test]
    fn the_choice_is_nearly_the_best_there_is() {
        for seed in 0..20 {
            let weights = sample(seed, 6);
            let budget = weights.iter().map(|w| w[1].bytes).sum::<usize>() + 3;
            let of = |c: &[usize]| weights.iter().zip(c).map(|(w, &i)| w[i].harm).sum::<f64>();
            let bytes = |c: &[usize]| weights.iter().zip(c).map(|(w, &i)| w[i].bytes).sum::<usize>();
            let chosen = allocate(&weights, budget).unwrap();
            assert!(bytes(&chosen) <= budget);
            let all = (0..4usize.pow(6)).map(|k| (0..6).map(|w| k / 4usize.pow(w) % 4).collect::<Vec<_>>());
            let best = all.filter(|c| bytes(c) <= budget).map(|c| of(&c)).fold(f64::INFINITY, f64::min);
            assert!(of(&chosen) <= 1.35 * best + 1e-12, "{} {best}", of(&chosen));
            let even = of(&[1; 6]);
            assert!(of(&chosen) < even);
        }
    }

    #[test]
    fn the_ends_are_reached() {
        let weights = sample(3, 5);
        let all: usize = weights.iter().map(|w| w[3].bytes).sum();
        let least: usize = weights.iter().map(|w| w[0].bytes).sum();
        assert_eq!(allocate(&weights, all).unwrap(), [3; 5]);
        assert_eq!(allocate(&weights, least).unwrap(), [0; 5]);
        assert_eq!(allocate(&weights, least - 1), None);
    }
}
