//! Texts that resemble those of a target: importance resampling by hashed words and pairs of words (Xie et al., *Data
//! Selection for Language Models via Importance Resampling*, 2023).

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::random::Random;

/// Buckets that words and pairs of words fall into.
const BUCKETS: usize = 10_000;
/// What each bucket has before anything is counted.
const SMOOTH: f64 = 1.0;

/// How often the words of the target and of the data come.
#[derive(Clone, Debug)]
pub struct Resemblance {
    target: Vec<f64>,
    data: Vec<f64>,
}

impl Default for Resemblance {
    fn default() -> Resemblance {
        Resemblance { target: vec![SMOOTH; BUCKETS], data: vec![SMOOTH; BUCKETS] }
    }
}

impl Resemblance {
    /// Counts a text that the data shall resemble.
    pub fn add_target(&mut self, text: &str) {
        buckets(text, |bucket| self.target[bucket] += 1.0);
    }

    /// Counts a text of the data.
    pub fn add(&mut self, text: &str) {
        buckets(text, |bucket| self.data[bucket] += 1.0);
    }

    /// The logarithm of how much more often each bucket comes in the target.
    pub fn weights(&self) -> Weights {
        let sum = |counts: &[f64]| counts.iter().sum::<f64>();
        let totals = (sum(&self.target) / sum(&self.data)).ln();
        Weights(self.target.iter().zip(&self.data).map(|(t, d)| (t / d).ln() - totals).collect())
    }
}

/// How much more often words come in the target than in the data.
#[derive(Clone, Debug)]
pub struct Weights(Vec<f64>);

impl Weights {
    /// The logarithm of how much more probable the text is among those of the target.
    pub fn of(&self, text: &str) -> f64 {
        let mut sum = 0.0;
        buckets(text, |bucket| sum += self.0[bucket]);
        sum
    }
}

/// The texts that are drawn without replacement by these weights (logarithms), in ascending order: those with the greatest
/// weight plus Gumbel noise.
pub fn draw(weights: &[f64], count: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let noisy = weights.iter().enumerate().map(|(row, weight)| {
        // Never 0, whose logarithm is none.
        let unit = (random.unit() + f64::EPSILON).min(1.0 - f64::EPSILON);
        (weight - (-unit.ln()).ln(), row)
    });
    let mut noisy: Vec<(f64, usize)> = noisy.collect();
    noisy.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut rows: Vec<usize> = noisy.into_iter().take(count).map(|(_, row)| row).collect();
    rows.sort_unstable();
    rows
}

/// The buckets of a text's words, in lower case and without signs, and of its pairs of words.
fn buckets(text: &str, mut each: impl FnMut(usize)) {
    let mut before: Option<u64> = None;
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    for word in words {
        let mut hasher = DefaultHasher::new();
        word.chars().flat_map(char::to_lowercase).for_each(|c| c.hash(&mut hasher));
        let word = hasher.finish();
        each((word % BUCKETS as u64) as usize);
        if let Some(before) = before {
            let mut hasher = DefaultHasher::new();
            (before, word).hash(&mut hasher);
            each((hasher.finish() % BUCKETS as u64) as usize);
        }
        before = Some(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_target_s_kind_are_drawn() {
        let kinds = [["the", "film", "was", "dull"], ["a", "patient", "has", "fever"]];
        let mut random = Random::new(2);
        let mut text =
            |kind: usize| (0..12).map(|_| kinds[kind][random.below(4)]).collect::<Vec<_>>().join(" ");
        let mut resemblance = Resemblance::default();
        (0..50).for_each(|_| resemblance.add_target(&text(1)));
        let texts: Vec<String> = (0..1_000).map(|i| text(usize::from(i % 10 == 0))).collect();
        texts.iter().for_each(|text| resemblance.add(text));
        let weights = resemblance.weights();
        let of: Vec<f64> = texts.iter().map(|text| weights.of(text)).collect();
        let drawn = draw(&of, 100, 5);
        assert_eq!(drawn, (0..1_000).step_by(10).collect::<Vec<_>>());
        assert_eq!(draw(&of, 100, 5), drawn);
        assert!(weights.of("Fever, fever!") > 0.0 && weights.of("dull film") < 0.0);
        assert_eq!(weights.of(""), 0.0);
    }

    #[test]
    fn equal_weights_are_drawn_evenly() {
        let drawn = draw(&vec![-3.0; 10_000], 5_000, 1);
        assert_eq!(drawn.len(), 5_000);
        let low = drawn.iter().filter(|row| **row < 5_000).count();
        assert!((2_350..2_650).contains(&low), "{low}");
        assert_eq!(draw(&[0.0, 1.0], 9, 1), [0, 1]);
    }
}
