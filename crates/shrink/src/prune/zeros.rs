//! Zeros in weights, in one walk through the model: which elements go, and what is left refitted on the inputs that
//! the pruned weights before it make.

use std::collections::HashMap;

use graph::{Graph, ValueId};
use kernel::Cpu;
use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use super::refit::refit;
use super::{magnitude, wanda};
use crate::gram::{DAMP, Gram};
use crate::job::{Key, kept};
use crate::matrix::{Layout, Matrix};
use crate::obs::{self, sweep};
use crate::pass::Context;
use crate::walk::walk;
use crate::weights::{Weight, weights};
use crate::{Error, Result};

/// How the elements that go are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The smallest.
    Magnitude,
    /// The smallest, each times the size of its input: Wanda.
    Wanda,
    /// Those whose loss the others make up for best, column by column: SparseGPT.
    Surgeon,
    /// Wanda or SparseGPT, whichever leaves the smaller error in a weight.
    #[default]
    Best,
}

/// Zeros for these weights. As a pass of a plan it names each of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zeros {
    /// Which elements go.
    #[serde(default)]
    pub rule: Rule,
    /// Are the others refitted by least squares?
    #[serde(default = "yes")]
    pub refit: bool,
    /// Where.
    pub weights: Vec<Spot>,
}

fn yes() -> bool {
    true
}

/// Zeros in one weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spot {
    /// The first node that uses the weight.
    pub node: String,
    /// The weight.
    pub weight: String,
    /// The shape that the zeros have.
    pub pattern: Pattern,
    /// The share of its elements that become 0; patterns such as 2:4 have their own.
    #[serde(default)]
    pub share: f64,
}

/// Makes the zeros. Gives the mean over the weights of the relative squared error of what they make.
///
/// # Errors
/// [`Error::Plan`] when the model has no such weight; when the model cannot be run on the examples.
pub fn apply(graph: &mut Graph, zeros: &Zeros, cx: &Context) -> Result<f64> {
    let all = weights(graph)?;
    let mut spots: HashMap<ValueId, &Spot> = HashMap::new();
    let mut wanted: Vec<&Weight> = Vec::new();
    for spot in &zeros.weights {
        let same = |w: &&Weight| w.name == spot.node && graph.value(w.value).name == spot.weight;
        let weight = all.iter().find(same);
        let weight = weight.filter(|w| Layout::of(graph, w).is_some()).ok_or_else(|| {
            Error::Plan(format!(
                "there is no weight {:?} at node {:?} to put zeros in",
                spot.weight, spot.node
            ))
        })?;
        spots.insert(weight.value, spot);
        wanted.push(weight);
    }
    let mut errors: HashMap<ValueId, f64> = HashMap::new();
    let examples = match zeros.rule {
        Rule::Magnitude if !zeros.refit => Vec::new(),
        _ => cx.examples()?,
    };
    if !examples.is_empty() {
        *graph = walk(graph, &wanted, examples, cx.cpu, &mut |stop| {
            cx.progress(&format!("pruning weight {} of {}", errors.len() + 1, wanted.len()));
            let spot = spots[&stop.weight.value];
            let (mut new, mut harm, mut energy) = (Vec::new(), 0.0, 0.0);
            for (group, gram) in stop.grams.iter().enumerate() {
                let old = stop.layout.part(&stop.matrix, group);
                let pruned = pruned(cx, &old, gram, spot, zeros)?;
                let (h, e) = gram.harm(cx.cpu, &old, &pruned);
                (harm, energy) = (harm + h, energy + e);
                new.extend(pruned.data);
            }
            errors.insert(stop.weight.value, if energy > 0.0 { harm / energy } else { harm });
            Ok(Some(Matrix { data: new, ..stop.matrix }))
        })?;
    }
    // What no example reached goes by size alone.
    for weight in wanted {
        if let (false, Some(layout)) = (errors.contains_key(&weight.value), Layout::of(graph, weight))
            && let Some(tensor) = graph.constant(weight.value)
        {
            let (old, spot) = (layout.read(tensor)?, spots[&weight.value]);
            let pruned = masked(&old, &spot.pattern.mask(&magnitude(&old), spot.share));
            errors.insert(weight.value, old.distance(&pruned));
            graph.set_constant(weight.value, layout.write(&pruned)?);
        }
    }
    let count = errors.len().max(1) as f64;
    Ok(errors.into_values().sum::<f64>() / count)
}

/// The matrix with zeros where the mask is false.
pub fn masked(w: &Matrix, mask: &[bool]) -> Matrix {
    let data = w.data.iter().zip(mask).map(|(&x, &keep)| if keep { x } else { 0.0 });
    Matrix::new(w.rows, w.cols, data.collect())
}

/// As [`prune`], from an earlier run when it is kept.
fn pruned(cx: &Context, w: &Matrix, gram: &Gram, spot: &Spot, zeros: &Zeros) -> Result<Matrix> {
    let Zeros { rule, refit, .. } = zeros;
    let what =
        || format!("zeros {rule:?} {refit} {:?} {} {DAMP} {:?}", spot.pattern, spot.share, cx.cpu.isa());
    kept(
        cx.judge.store(),
        || Key::of(&[what().as_bytes()]).matrix(w, gram),
        |bytes| Matrix::read(w.rows, w.cols, bytes),
        Matrix::write,
        || prune(cx.cpu, w, gram, spot, zeros),
    )
}

fn prune(cpu: &Cpu, w: &Matrix, gram: &Gram, spot: &Spot, zeros: &Zeros) -> Result<Matrix> {
    let of = |rule| -> Result<Matrix> {
        let pruned = match rule {
            Rule::Magnitude => masked(w, &spot.pattern.mask(&magnitude(w), spot.share)),
            Rule::Wanda => masked(w, &spot.pattern.mask(&wanda(w, gram), spot.share)),
            _ => surgeon(cpu, w, gram, spot)?,
        };
        if !zeros.refit {
            return Ok(pruned);
        }
        let mask: Vec<bool> = pruned.data.iter().map(|x| *x != 0.0).collect();
        refit(cpu, w, &mask, gram, DAMP)
    };
    if zeros.rule != Rule::Best {
        return of(zeros.rule);
    }
    let (a, b) = (of(Rule::Wanda)?, of(Rule::Surgeon)?);
    Ok(if gram.harm(cpu, w, &a).0 <= gram.harm(cpu, w, &b).0 { a } else { b })
}

/// SparseGPT's zeros: chosen in the sweep where the pattern allows it, else by what each costs alone.
fn surgeon(cpu: &Cpu, w: &Matrix, gram: &Gram, spot: &Spot) -> Result<Matrix> {
    let natural: Vec<usize> = (0..w.cols).collect();
    let factor = gram.inverse_factor(DAMP, &natural)?;
    let zeros = match spot.pattern {
        Pattern::Anywhere => obs::Zeros::Share(spot.share),
        Pattern::Neighbours { keep, of } => obs::Zeros::Pattern { zeros: of - keep.min(of), of },
        Pattern::Rows | Pattern::Blocks { .. } => {
            // The diagonal of the inverse, from its factor.
            let mut diagonal = vec![0f64; w.cols];
            for line in factor.chunks_exact(w.cols.max(1)) {
                diagonal.iter_mut().zip(line).for_each(|(d, &u)| *d += f64::from(u).powi(2));
            }
            let score = |k: usize, x: f32| (f64::from(x).powi(2) / diagonal[k % w.cols]) as f32;
            let scores = w.data.iter().enumerate().map(|(k, &x)| score(k, x).sqrt()).collect();
            let mask = spot.pattern.mask(&Matrix { data: scores, ..w.clone() }, spot.share);
            return Ok(masked(w, &mask));
        }
    };
    let mut pruned = w.clone();
    sweep(cpu, &mut pruned, &factor, &natural, zeros, &|_, _, x| x);
    Ok(pruned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gram::tests::cpu;
    use crate::quantize::coded::tests::layer;

    fn spot(pattern: &str, share: f64) -> Spot {
        Spot { node: "n".into(), weight: "w".into(), pattern: pattern.parse().unwrap(), share }
    }

    #[test]
    fn the_better_of_two_masks_is_taken_and_the_refit_halves_the_error() {
        let (gram, w) = layer(32, 128, 3000);
        for pattern in ["anywhere", "rows", "2:4", "8:16", "4x1"] {
            let spot = spot(pattern, 0.5);
            let error = |rule, refit| {
                let zeros = Zeros { rule, refit, weights: Vec::new() };
                let pruned = prune(&cpu(), &w, &gram, &spot, &zeros).unwrap();
                let gone = pruned.data.iter().filter(|x| **x == 0.0).count();
                assert_eq!(gone, 16 * 128, "{pattern} {rule:?}");
                gram.harm(&cpu(), &w, &pruned).0
            };
            let best = error(Rule::Best, true);
            assert!(best <= error(Rule::Wanda, true) && best <= error(Rule::Surgeon, true));
            assert!(2.0 * best < error(Rule::Wanda, false), "{pattern}");
            assert!(2.0 * best < error(Rule::Magnitude, false), "{pattern}");
        }
    }

    #[test]
    fn zeros_are_written_as_they_are_read() {
        let zeros = Zeros {
            weights: vec![spot("2:4", 0.0), spot("rows", 0.5)],
            ..Zeros { refit: true, ..Zeros::default() }
        };
        let text = toml::to_string(&zeros).unwrap();
        assert_eq!(toml::from_str::<Zeros>(&text).unwrap(), zeros);
        assert!(toml::from_str::<Zeros>(&text.replace("2:4", "4:2")).is_err());
    }
}
