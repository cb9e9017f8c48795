//! How deep in a model features are taken. What lies between its blocks often tells more of another task than what it ends
//! with, and costs less (Evci et al., *Head2Toe: utilizing intermediate representations for better transfer learning*, 2022):
//! ridge heads on some examples say where.

use std::collections::HashMap;
use std::ops::Range;

use kernel::Cpu;
use learn::data::{Dataset, Target};
use learn::head::{Method, Problem, hardly_worse};
use learn::random::Random;
use serde::Serialize;

use super::{judged, truth};
use crate::eval::SEED;
use crate::features::{Backbone, Learnt, Tap, Wanted, backbone, learn, tapped, taps};
use crate::receipt::Number;
use crate::{Error, Model, Result};

/// Examples that say where features are taken.
const SAMPLE: usize = 1024;
/// Examples of each class or label among them, at least.
const LEAST: usize = 5;

/// Most taps that are tried.
const MOST: usize = 12;
/// A smaller part of the multiply-adds is nothing.
const NOTHING: f64 = 0.01;

/// What features are taken of, and how a ridge head on them does.
#[derive(Clone, Debug, Serialize)]
pub struct Tapped {
    /// The values of the model.
    pub nodes: Vec<String>,
    /// The part of the model's multiply-adds that they take.
    pub share: f64,
    /// The loss on examples that the head has not seen, as of heads.
    pub loss: f64,
    /// The metric of the task.
    pub value: Number,
    /// Were these taken?
    pub taken: bool,
}

/// The features that do best, or hardly worse and cost the least.
pub(super) struct Chosen {
    pub backbone: Backbone,
    pub learnt: Learnt,
    /// What was tried, by its cost; nothing where there is no choice.
    pub tried: Vec<Tapped>,
}

/// Chooses and computes features. With `faster`, only those are looked at that take so many times less than all of the model.
///
/// # Errors
/// When the model has no features, or none that are so much faster, or examples cannot be learnt from.
pub(super) fn choose(
    model: &Model,
    wanted: &Wanted,
    balanced: bool,
    faster: Option<f64>,
    cpu: &Cpu,
    progress: &dyn Fn(&str),
) -> Result<Chosen> {
    let mut all = taps(model)?;
    if let Some(faster) = faster {
        let least = all.iter().map(|tap| tap.share).fold(f64::INFINITY, f64::min);
        all.retain(|tap| tap.share * faster <= 1.0);
        if all.is_empty() {
            return Err(Error::input(format!(
                "nothing that features can be taken of is {faster} times as fast as all of the model: the first of it \
                 takes {:.0} % of the work; give a smaller --faster",
                100.0 * least
            )));
        }
    }
    if all.len() > MOST {
        let last = all.len() - 1;
        let kept: Vec<usize> = (0..MOST).map(|i| i * last / (MOST - 1)).collect();
        all = kept.into_iter().map(|at| all[at].clone()).collect();
    }
    let plain = |progress| {
        let backbone = backbone(model, None)?;
        let learnt = learn(&backbone, wanted, None, cpu, progress)?;
        Ok(Chosen { backbone, learnt, tried: Vec::new() })
    };
    if all.len() == 1 && all[0].end {
        return plain(progress);
    }
    let sample = sample(wanted.data);
    let every: Vec<&Tap> = all.iter().collect();
    let learnt = learn(&tapped(model, &every)?, wanted, sample.as_deref(), cpu, progress)?;
    let (right, _) = truth(wanted.data, &learnt.rows)?;
    let sets = sets(&all);
    progress("how deep features are taken");
    let judge = |set: &Vec<usize>| -> Result<(Vec<f64>, f64, Number)> {
        let features = learnt.features.select_columns(&columns(&all, set));
        let problem = Problem::new(&features, &right, balanced, SEED, cpu)?;
        let fitted = problem.fit(Method::Ridge)?;
        Ok((problem.losses(&fitted), problem.loss(&fitted), judged(&fitted, &right)?.metric()?.1))
    };
    let judgements = cpu.pool().map(sets.len(), |i| judge(&sets[i]));
    // By what they cost, as the sets are; what a head cannot be fitted to is no choice.
    let found: Vec<_> =
        sets.iter().zip(judgements).filter_map(|(set, found)| Some((set, found.ok()?))).collect();
    let mean = |(_, (losses, ..)): &&(&Vec<usize>, (Vec<f64>, f64, Number))| losses.iter().sum::<f64>();
    let Some((_, (best, ..))) = found.iter().min_by(|a, b| mean(a).total_cmp(&mean(b))) else {
        return plain(progress);
    };
    let good = |(_, (losses, ..)): &&(&Vec<usize>, (Vec<f64>, f64, Number))| hardly_worse(losses, best);
    let least = found.iter().find(good).map_or(1.0, |(set, _)| share(&all, set));
    // More examples than those tried make use of more numbers.
    let more = sample.is_some();
    let rank = |(set, (losses, ..)): &(&Vec<usize>, (Vec<f64>, f64, Number))| {
        if more { -(set.len() as f64) } else { losses.iter().sum() }
    };
    let taken = found.iter().enumerate().filter(|(_, f)| good(f) && share(&all, f.0) <= least);
    let taken = taken.min_by(|a, b| rank(a.1).total_cmp(&rank(b.1))).map_or(0, |(at, _)| at);

    let set = found[taken].0;
    let chosen: Vec<&Tap> = set.iter().map(|&at| &all[at]).collect();
    let backbone = tapped(model, &chosen)?;
    let own = learnt.features.select_columns(&columns(&all, set));
    let mut learnt = Learnt { features: own, ..learnt };
    let sampled = |row: &usize| sample.as_ref().is_none_or(|sample| sample.binary_search(row).is_ok());
    let others: Vec<usize> = (0..wanted.data.len()).filter(|row| !sampled(row)).collect();
    if !others.is_empty() {
        learnt = learnt.and(learn(&backbone, wanted, Some(&others), cpu, progress)?)?;
    }
    let tried = found.into_iter().enumerate().map(|(i, (set, (_, loss, value)))| Tapped {
        nodes: set.iter().map(|&at| all[at].node.clone()).collect(),
        share: share(&all, set),
        loss,
        value,
        taken: i == taken,
    });
    Ok(Chosen { backbone, learnt, tried: tried.collect() })
}

/// What is tried: each tap alone, and with the first one where that is what examples say in so many words, before any weights
/// are multiplied with it (embeddings); by what they cost.
fn sets(all: &[Tap]) -> Vec<Vec<usize>> {
    let alone = (0..all.len()).map(|at| vec![at]);
    let said = all.first().is_some_and(|tap| tap.share < NOTHING);
    let joined = (1..all.len()).filter(|_| said).map(|at| vec![0, at]);
    let mut sets: Vec<Vec<usize>> = alone.chain(joined).collect();
    sets.sort_by(|a, b| share(all, a).total_cmp(&share(all, b)).then(a.len().cmp(&b.len())));
    sets
}

fn share(all: &[Tap], set: &[usize]) -> f64 {
    set.iter().map(|&at| all[at].share).fold(0.0, f64::max)
}

/// Where the features of a set stand among those of all taps.
fn columns(all: &[Tap], set: &[usize]) -> Vec<Range<usize>> {
    let start = |at: usize| all[..at].iter().map(|tap| tap.columns).sum::<usize>();
    set.iter().map(|&at| start(at)..start(at) + all[at].columns).collect()
}

/// Some examples, in ascending order, with some of each class or label; none when all are few enough.
fn sample(data: &dyn Dataset) -> Option<Vec<usize>> {
    if data.len() <= SAMPLE {
        return None;
    }
    let mut order: Vec<usize> = (0..data.len()).collect();
    Random::new(SEED).shuffle(&mut order);
    let mut seen: HashMap<usize, usize> = HashMap::new();
    let mut few = |row: usize| {
        let kinds = match data.target(row) {
            Target::Class(class) => vec![class],
            Target::Labels(held) => held.to_vec(),
            _ => Vec::new(),
        };
        let mut few = false;
        for kind in kinds {
            let seen = seen.entry(kind).or_default();
            *seen += 1;
            few |= *seen <= LEAST;
        }
        few
    };
    let mut taken: Vec<usize> = order
        .iter()
        .enumerate()
        .filter(|&(at, &row)| few(row) | (at < SAMPLE))
        .map(|(_, &row)| row)
        .collect();
    taken.sort_unstable();
    Some(taken)
}

#[cfg(test)]
mod tests {
    use learn::Example;

    use super::*;

    /// So many examples, each hundredth of class 1.
    struct Rare(usize);

    impl Dataset for Rare {
        fn len(&self) -> usize {
            self.0
        }

        fn get(&self, i: usize) -> learn::Result<Example> {
            Err(learn::Error::input(format!("example {i} is not read")))
        }

        fn target(&self, i: usize) -> Target {
            Target::Class(usize::from(i % 500 == 1))
        }

        fn classes(&self) -> Option<&[String]> {
            None
        }

        fn describe(&self) -> String {
            "rare".into()
        }
    }

    #[test]
    fn a_sample_has_some_of_each_class() {
        assert!(sample(&Rare(SAMPLE)).is_none(), "so few are all looked at");
        let some = sample(&Rare(5_000)).unwrap();
        assert!((SAMPLE..SAMPLE + LEAST + 1).contains(&some.len()), "{}", some.len());
        assert!(some.windows(2).all(|w| w[0] < w[1]) && some.iter().all(|row| *row < 5_000));
        let rare = some.iter().filter(|row| *row % 500 == 1).count();
        assert!(rare >= LEAST, "{rare}");
    }

    #[test]
    fn what_examples_say_goes_with_what_lies_deeper() {
        let tap = |share: f64, columns| Tap { node: format!("{share}"), end: share == 1.0, share, columns };
        let text = [tap(0.0, 2), tap(0.5, 3), tap(1.0, 4)];
        assert_eq!(sets(&text), [vec![0], vec![1], vec![0, 1], vec![2], vec![0, 2]]);
        assert_eq!(columns(&text, &[0, 2]), [0..2, 5..9]);
        // Of images the first is no more than the others.
        let image = [tap(0.1, 2), tap(0.5, 3), tap(1.0, 4)];
        assert_eq!(sets(&image), [vec![0], vec![1], vec![2]]);
    }
}
