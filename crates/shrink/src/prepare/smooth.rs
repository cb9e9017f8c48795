//! SmoothQuant (Xiao et al., 2023): scales move what is hard to round from activations to weights, so that the channels
//! of activations become more alike. Channels are scaled between what makes them (a norm, a product, the values of
//! attention) and the products that read them.

use graph::Graph;
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use super::channels::{elements, look, scale};
use super::heads::sets;
use crate::walk::Example;
use crate::{Error, Result};

/// How much goes from the activations to the weights unless a plan says otherwise.
pub const ALPHA: f64 = 0.5;
/// The least scale.
const LEAST: f32 = 1e-5;

/// SmoothQuant, as a plan holds it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Smooth {
    /// How much goes from the activations to the weights: 0 to 1.
    pub alpha: f64,
}

/// Divides channels by `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`. Gives the number of sets of channels.
///
/// # Errors
/// When alpha is not within 0 and 1, the graph cannot be run on the examples, or what it makes is not finite.
pub fn apply(graph: &mut Graph, alpha: f64, examples: &[Example], cpu: &Cpu) -> Result<usize> {
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Error::Plan(format!("the alpha of smooth is {alpha}; it must be within 0 and 1")));
    }
    let alpha = alpha as f32;
    let all = sets(graph);
    let seen = look(graph, &all, examples, cpu)?;
    for class in &all {
        let Some(seen) = class.seen(graph, &seen) else { continue };
        let mut read = vec![0f32; class.len];
        for &end in &class.readers {
            for (_, channel, w) in elements(graph, end)? {
                read[channel] = read[channel].max(w.abs());
            }
        }
        let by = |((high, low), w): ((&f32, &f32), &f32)| {
            let x = high.max(-low);
            let s = (x.powf(alpha) / w.powf(1.0 - alpha)).max(LEAST);
            if s.is_normal() && x > 0.0 { 1.0 / s } else { 1.0 }
        };
        let by: Vec<f32> = seen.high.iter().zip(&seen.low).zip(&read).map(by).collect();
        scale(graph, class, &by)?;
    }
    Ok(all.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gram::tests::cpu;
    use crate::prepare::tests::{apart, block, examples, run};

    #[test]
    fn sets_are_found_and_scaling_them_changes_nothing() {
        for norm in ["LayerNormalization", "RMSNormalization"] {
            let before = block(norm);
            // Norm to queries, keys and values; norm to the wide product; that to the narrow one; values to outputs.
            let found = sets(&before);
            assert_eq!(found.len(), 4, "{norm}: {found:?}");
            assert!(found.iter().any(|c| c.readers.len() == 3));
            let mut after = before.clone();
            assert_eq!(apply(&mut after, ALPHA, &examples(), &cpu()).unwrap(), 4);
            after.check().unwrap();
            assert!(apart(&run(&before), &run(&after)) < 1e-5);
        }
    }

    #[test]
    fn smoothed_activations_and_weights_have_the_formulas_ranges() {
        let before = block("LayerNormalization");
        let mut after = before.clone();
        apply(&mut after, 0.5, &examples(), &cpu()).unwrap();
        let set = sets(&before).into_iter().find(|c| c.readers.len() == 3).unwrap();
        let ranges = |graph: &Graph| -> Vec<f32> {
            let seen = look(graph, std::slice::from_ref(&set), &examples(), &cpu()).unwrap();
            let seen = &seen[&set.values[0]];
            seen.high.iter().zip(&seen.low).map(|(high, low)| high.max(-low)).collect()
        };
        let mut read = vec![0f32; set.len];
        for &end in &set.readers {
            for (_, c, w) in elements(&before, end).unwrap() {
                read[c] = read[c].max(w.abs());
            }
        }
        assert!(ranges(&before).iter().zip(ranges(&after)).any(|(old, new)| (new / old - 1.0).abs() > 0.1));
        // With one half, both sides come to the same range: sqrt(max|X| max|W|).
        for ((old, new), w) in ranges(&before).into_iter().zip(ranges(&after)).zip(read) {
            assert!((new / (old * w).sqrt() - 1.0).abs() < 1e-3, "{old} {new} {w}");
        }
        assert!(apply(&mut after, 1.5, &examples(), &cpu()).unwrap_err().to_string().contains("1.5"));
        assert!(apply(&mut after, f64::NAN, &examples(), &cpu()).is_err());
    }
}
