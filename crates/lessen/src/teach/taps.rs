//! How deep in a model features are taken. What lies between its blocks often tells more of another task than what it ends
//! with, and costs less (Evci et al., *Head2Toe: utilizing intermediate representations for better transfer learning*, 2022):
//! ridge heads on some examples say where.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use kernel::Cpu;
use learn::data::{Dataset, Target};
use learn::head::{Method, Problem, hardly_worse, surely_near};
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
/// Fewer examples say nothing of where, or of how: by them the best place is found by chance, and the deepest does well.
pub(super) const FEWEST: usize = 100;
/// Another place may be worse than the deepest by this part of its loss, and no more even when a standard error is added.
const MARGIN: f64 = 0.02;

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

/// Features, and what they were taken of.
pub(crate) struct Chosen<'a> {
    pub backbone: Backbone,
    pub learnt: Learnt,
    /// Seconds that such features of an example take, about; none when they were kept from before.
    pub each: Option<f64>,
    /// What was tried, by its cost; nothing where there was no choice.
    pub tried: Vec<Tapped>,
    /// What heads are fitted to, when choosing has made it of all examples.
    pub problem: Option<Problem<'a>>,
}

impl<'a> Chosen<'a> {
    /// The features of the named value, or of the model's end.
    ///
    /// # Errors
    /// When there are none, or no example can be read.
    pub fn fixed(model: &Model, wanted: &Wanted, cpu: &Cpu, progress: &dyn Fn(&str)) -> Result<Chosen<'a>> {
        Chosen::at(backbone(model, wanted.node)?, wanted, cpu, progress)
    }

    fn at(backbone: Backbone, wanted: &Wanted, cpu: &Cpu, progress: &dyn Fn(&str)) -> Result<Chosen<'a>> {
        let (learnt, each) = timed(&backbone, wanted, None, cpu, progress)?;
        Ok(Chosen { backbone, learnt, each, tried: Vec::new(), problem: None })
    }
}

/// Features, and seconds for each when none were kept from before.
fn timed(
    backbone: &Backbone,
    wanted: &Wanted,
    some: Option<&[usize]>,
    cpu: &Cpu,
    progress: &dyn Fn(&str),
) -> Result<(Learnt, Option<f64>)> {
    let start = Instant::now();
    let learnt = learn(backbone, wanted, some, cpu, progress)?;
    let each = start.elapsed().as_secs_f64() / learnt.rows.len().max(1) as f64;
    let each = (!learnt.cached).then_some(each);
    Ok((learnt, each))
}

/// How a ridge head on some taps does.
struct Trial<'a> {
    /// Which taps.
    set: Vec<usize>,
    /// The part of the multiply-adds that they take.
    share: f64,
    /// The loss of each example, as heads are compared by.
    losses: Vec<f64>,
    loss: f64,
    value: Number,
    /// Of all examples; nothing when others follow.
    problem: Option<Problem<'a>>,
}

/// Which of these trials, which are in the order of their cost, is taken: what does best, or hardly worse and costs the
/// least, of all that surely do about as well as the deepest; of some that cost the same the widest when more examples
/// follow, which make use of more numbers.
fn best(trials: &[Trial], deepest: usize, more: bool) -> Option<usize> {
    let sum = |at: usize| trials[at].losses.iter().sum::<f64>();
    let least = |all: &[usize]| all.iter().copied().min_by(|&a, &b| sum(a).total_cmp(&sum(b)));
    let reference = trials.iter().find(|trial| trial.set == [deepest]);
    let sound = |at: &usize| {
        reference.is_none_or(|deepest| {
            trials[*at].set == deepest.set || surely_near(&trials[*at].losses, &deepest.losses, MARGIN)
        })
    };
    let sound: Vec<usize> = (0..trials.len()).filter(sound).collect();
    let best = least(&sound)?;
    let good = |at: &usize| hardly_worse(&trials[*at].losses, &trials[best].losses);
    let good: Vec<usize> = sound.into_iter().filter(good).collect();
    let cost = trials[*good.first()?].share;
    let mut cheap: Vec<usize> = good.into_iter().filter(|&at| trials[at].share <= cost).collect();
    if more {
        let widest = cheap.iter().map(|&at| trials[at].set.len()).max()?;
        cheap.retain(|&at| trials[at].set.len() == widest);
    }
    least(&cheap)
}

/// Chooses features, as [`best`] says; of few examples the deepest. With `faster`, only those are looked at that take so many
/// times less than all of the model.
///
/// # Errors
/// When the model has no features, or none that are so much faster, or examples cannot be learnt from.
pub(crate) fn choose<'a>(
    model: &Model,
    wanted: &Wanted,
    balanced: bool,
    faster: Option<f64>,
    cpu: &'a Cpu,
    progress: &dyn Fn(&str),
) -> Result<Chosen<'a>> {
    let mut all = taps(model)?;
    if let Some(faster) = faster {
        let least = all.iter().map(|tap| tap.share).fold(f64::INFINITY, f64::min);
        all.retain(|tap| tap.share * faster < 1.0 + NOTHING);
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
    let deepest = all.len() - 1;
    let at_deepest = || match all[deepest].end {
        true => Chosen::fixed(model, wanted, cpu, progress),
        false => Chosen::at(tapped(model, &[&all[deepest]])?, wanted, cpu, progress),
    };
    if all.len() == 1 || wanted.data.len() < FEWEST {
        return at_deepest();
    }
    let sample = sample(wanted.data);
    let every: Vec<&Tap> = all.iter().collect();
    let (learnt, each) = timed(&tapped(model, &every)?, wanted, sample.as_deref(), cpu, progress)?;
    let (right, _) = truth(wanted.data, &learnt.rows)?;
    let sets = sets(&all);
    progress("how deep features are taken");
    let judge = |i: usize| -> Result<Trial<'a>> {
        let set = sets[i].clone();
        let features = learnt.features.select_columns(&columns(&all, &set));
        let problem = Problem::new(&features, &right, balanced, SEED, cpu)?;
        let fitted = problem.fit(Method::Ridge)?;
        let losses = problem.losses(&fitted);
        let (loss, (_, value)) = (problem.loss(&fitted), judged(&fitted, &right)?.metric()?);
        let problem = Some(problem).filter(|_| sample.is_none());
        Ok(Trial { share: share(&all, &set), set, losses, loss, value, problem })
    };
    // By what they cost, as the sets are; what no head can be fitted to is no choice.
    let mut trials: Vec<Trial> = cpu.pool().map(sets.len(), judge).into_iter().flatten().collect();
    let Some(taken) = best(&trials, deepest, sample.is_some()) else { return at_deepest() };

    let Trial { set, share, problem, .. } = &mut trials[taken];
    let problem = problem.take();
    let chosen: Vec<&Tap> = set.iter().map(|&at| &all[at]).collect();
    let backbone = tapped(model, &chosen)?;
    let own = learnt.features.select_columns(&columns(&all, set));
    // Of those that were tried all taps were computed.
    let part = *share / all.iter().map(|tap| tap.share).fold(f64::MIN_POSITIVE, f64::max);
    let mut each = each.map(|each| each * part);
    let mut learnt = Learnt { features: own, ..learnt };
    let sampled = |row: &usize| sample.as_ref().is_none_or(|sample| sample.binary_search(row).is_ok());
    let others: Vec<usize> = (0..wanted.data.len()).filter(|row| !sampled(row)).collect();
    if !others.is_empty() {
        let (more, seconds) = timed(&backbone, wanted, Some(&others), cpu, progress)?;
        (learnt, each) = (learnt.and(more)?, seconds);
    }
    let tried = trials.into_iter().enumerate().map(|(at, trial)| Tapped {
        nodes: trial.set.iter().map(|&at| all[at].node.clone()).collect(),
        share: trial.share,
        loss: trial.loss,
        value: trial.value,
        taken: at == taken,
    });
    Ok(Chosen { backbone, learnt, each, tried: tried.collect(), problem })
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

    /// So many examples, of which one in five hundred is of class 1.
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

    /// A trial of 200 examples, whose losses go up and down by so much about a mean.
    fn trial(set: &[usize], share: f64, mean: f64, noise: f64) -> Trial<'static> {
        let losses = (0..200).map(|i| mean + noise * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let value = Number::measured(0.0, "%");
        Trial { set: set.to_vec(), share, losses, loss: mean, value, problem: None }
    }

    #[test]
    fn the_cheapest_is_taken_that_surely_does_as_well_as_the_deepest() {
        let taken = |loss: f64, noise: f64| {
            best(&[trial(&[0], 0.1, loss, noise), trial(&[1], 1.0, 1.0, 0.0)], 1, false)
        };
        assert_eq!(taken(0.9, 0.1), Some(0), "cheaper and better");
        assert_eq!(taken(1.0001, 0.1), Some(0), "cheaper and hardly worse");
        assert_eq!(taken(1.1, 0.1), Some(1), "worse");
        assert_eq!(taken(0.98, 2.0), Some(1), "better by chance: the error is 0.14");
        let joined = |more: bool| {
            let trials =
                [trial(&[1], 0.5, 0.8, 0.1), trial(&[0, 1], 0.5, 0.801, -0.1), trial(&[2], 1.0, 0.9, 0.1)];
            best(&trials, 2, more)
        };
        assert_eq!((joined(false), joined(true)), (Some(0), Some(1)), "more examples use more numbers");
        // What no head can be fitted to is not there; then what is there is compared.
        assert_eq!(best(&[trial(&[0], 0.1, 2.0, 0.0), trial(&[1], 0.5, 1.0, 0.0)], 2, false), Some(1));
        assert_eq!(best(&[], 0, false), None);
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
