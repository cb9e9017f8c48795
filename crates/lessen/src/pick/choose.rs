//! Which examples stay when not all may: by one of many ways, or by the one that serves best on examples held out.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};

use kernel::Cpu;
use learn::data::split;
use learn::head::{Features, Method, Problem, Truth};
use learn::pick::difficulty::{Difficulty, difficulty};
use learn::pick::{Coreset, labels, resemblance};
use learn::random;
use learn::score;
use serde::Serialize;

use super::{By, Request};
use crate::receipt::Number;
use crate::{Error, Result};

/// Times that examples are held out, others each time.
const ROUNDS: usize = 3;
/// Share that is held out.
const HELD_OUT: f64 = 0.2;
/// Most examples that are held out.
const MOST: usize = 4_000;
/// Random choices that the others are held against.
const DRAWS: usize = 10;
/// Of one more draw beside ten the deviation is `sqrt(1 + 1/10)` times that of the ten, and Student's t of 95 % with nine
/// degrees of freedom is 2.262.
const WIDE: f64 = 2.262 * 1.0488;

/// How a head does that was fitted to the examples of one way to choose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// The way.
    pub by: By,
    /// The metric on examples that were held out, the mean of some rounds.
    pub value: Number,
    /// Is that more than random choices do?
    pub beats_random: bool,
}

/// What heads do that are fitted to random choices of the same size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Random {
    /// How many choices.
    pub draws: usize,
    /// The metric.
    pub metric: &'static str,
    /// Its mean, and where 95 % of such choices lie.
    pub value: Number,
    /// What a head does that was fitted to all examples.
    pub all: Number,
}

/// So many of these rows, in ascending order, where there are no features to look at.
pub(super) fn without_features(
    by: By,
    rows: &[usize],
    answers: &[u32],
    weights: &[f64],
    wanted: usize,
    request: &Request,
) -> Vec<usize> {
    let groups = match request.balanced {
        true => grouped(rows.iter().map(|&row| answers[row])),
        false => vec![(0..rows.len()).collect()],
    };
    let mut stay = match by {
        By::Target => resembling(&groups, weights, wanted, request.seed),
        _ => drawn(&groups, wanted, request.balanced, request.seed),
    };
    stay.iter_mut().for_each(|at| *at = rows[*at]);
    stay
}

/// Of each group the same share, as far as there are so many, drawn by their weights; in ascending order.
fn resembling(groups: &[Vec<usize>], weights: &[f64], wanted: usize, seed: u64) -> Vec<usize> {
    let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    let each = groups.iter().zip(quotas(&sizes, wanted, true));
    let mut stay: Vec<usize> = each
        .flat_map(|(group, count)| {
            let of: Vec<f64> = group.iter().map(|&at| weights[at]).collect();
            resemblance::draw(&of, count, seed).into_iter().map(|at| group[at])
        })
        .collect();
    stay.sort_unstable();
    stay
}

/// Positions of the same label.
fn grouped<T: Ord + Copy>(labels: impl Iterator<Item = T>) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<T, Vec<usize>> = BTreeMap::new();
    labels.enumerate().for_each(|(at, label)| groups.entry(label).or_default().push(at));
    groups.into_values().collect()
}

/// At random of each group, in ascending order.
fn drawn(groups: &[Vec<usize>], wanted: usize, balanced: bool, seed: u64) -> Vec<usize> {
    let mut random = random::Random::new(seed);
    let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    let mut stay: Vec<usize> = Vec::with_capacity(wanted);
    for (group, count) in groups.iter().zip(quotas(&sizes, wanted, balanced)) {
        let mut group = group.clone();
        random.shuffle(&mut group);
        stay.extend(&group[..count]);
    }
    stay.sort_unstable();
    stay
}

/// How many of each group stay: its share, or the same of each as far as there are so many. One at least, when that is
/// possible.
fn quotas(sizes: &[usize], wanted: usize, balanced: bool) -> Vec<usize> {
    let all: usize = sizes.iter().sum();
    if wanted >= all {
        return sizes.to_vec();
    }
    let mut quotas: Vec<usize> = match balanced {
        true => vec![0; sizes.len()],
        false => sizes.iter().map(|&size| (size as u128 * wanted as u128 / all as u128) as usize).collect(),
    };
    if wanted >= sizes.len() {
        quotas.iter_mut().zip(sizes).for_each(|(quota, &size)| *quota = (*quota).max(size.min(1)));
    }
    while quotas.iter().sum::<usize>() > wanted {
        // Those that got one though their share is none take it from the greatest.
        if let Some(most) = quotas.iter_mut().max() {
            *most -= 1;
        }
    }
    while quotas.iter().sum::<usize>() < wanted {
        let lacking = |&g: &usize| quotas[g] < sizes[g];
        let next = match balanced {
            true => (0..sizes.len()).filter(lacking).min_by_key(|&g| quotas[g]),
            // The one that is the farthest from its share.
            false => (0..sizes.len()).filter(lacking).max_by(|&a, &b| {
                let short = |g: usize| sizes[g] as f64 * wanted as f64 / all as f64 - quotas[g] as f64;
                short(a).total_cmp(&short(b)).then(b.cmp(&a))
            }),
        };
        let Some(next) = next else { break };
        // Many at once, where groups are far from full.
        let missing = wanted - quotas.iter().sum::<usize>();
        let step = if balanced { (missing / sizes.len()).clamp(1, sizes[next] - quotas[next]) } else { 1 };
        quotas[next] += step;
    }
    quotas
}

/// Chooses by features, and classes when there are any.
pub(super) struct Chooser<'a> {
    pub features: &'a Features,
    pub classes: Option<&'a Truth>,
    /// How much each row resembles the target; empty without one.
    pub weights: &'a [f64],
    pub request: &'a Request<'a>,
    pub cpu: &'a Cpu,
}

impl Chooser<'_> {
    fn of(&self) -> Option<(&[usize], usize)> {
        match self.classes {
            Some(Truth::Classes { of, count }) => Some((of, *count)),
            _ => None,
        }
    }

    /// The way that serves best: heads are fitted to what each way chooses of a part of the `candidates`, without those
    /// whose labels are wrong when these go, and judged on some of `all` others. When none does more than random choices of
    /// all, it is those. Both in ascending order.
    ///
    /// # Errors
    /// When heads cannot be fitted.
    pub fn best(
        &self,
        all: &[usize],
        candidates: &[usize],
        wanted: usize,
    ) -> Result<(By, Vec<Tried>, Option<Random>)> {
        let usual = if self.weights.is_empty() { By::Coreset(Coreset::Facility) } else { By::Target };
        let Some((of, _)) = self.of() else { return Ok((usual, Vec::new(), None)) };
        let ways: Vec<By> = By::ALL
            .into_iter()
            .filter(|by| *by != By::Random && (*by != By::Target || !self.weights.is_empty()))
            .collect();
        let mut sums = vec![Some(0f64); ways.len()];
        let (mut draws, mut whole) = (vec![0f64; DRAWS], 0f64);
        let part = 1.0 / ROUNDS as f64;
        let labels: Vec<usize> = all.iter().map(|&row| of[row]).collect();
        let held_out = HELD_OUT.min(MOST as f64 / all.len() as f64);
        for round in 0..ROUNDS as u64 {
            let seed = self.request.seed + 101 * round;
            let mut shares = split(all.len(), &[held_out, 1.0 - held_out], seed, Some(&labels))?.into_iter();
            let mut next = || {
                let share = shares.next().unwrap_or_default();
                let mut share: Vec<usize> = share.into_iter().map(|at| all[at]).collect();
                share.sort_unstable();
                share
            };
            let (judges, others) = (next(), next());
            let judge = Judge { chooser: self, judges: &judges };
            let wanted = (wanted * others.len() / all.len()).max(2);
            // What was found out with the labels of those that judge must not choose.
            let everything = Looked::at(self, &others);
            let wrong: HashSet<usize> = match self.request.labels {
                true => everything.issues()?.iter().map(|issue| issue.row).collect(),
                false => HashSet::new(),
            };
            let stays = |row: &usize| !wrong.contains(row) && candidates.binary_search(row).is_ok();
            let pool: Vec<usize> = others.iter().copied().filter(stays).collect();
            let looked = Looked::at(self, &pool);
            whole += part * judge.score(&others).unwrap_or(0.0);
            for (draw, sum) in draws.iter_mut().enumerate() {
                let chosen = everything.choose(By::Random, wanted, seed + 1 + draw as u64)?;
                *sum += part * judge.score(&chosen).unwrap_or(0.0);
            }
            for (&by, sum) in ways.iter().zip(&mut sums) {
                (self.request.progress)(&format!("round {} of {ROUNDS}: {by}", round + 1));
                let value = judge.score(&looked.choose(by, wanted, seed)?);
                *sum = sum.zip(value).map(|(sum, value)| sum + part * value);
            }
        }
        let mean = draws.iter().sum::<f64>() / DRAWS as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (DRAWS - 1) as f64;
        let wide = WIDE * variance.sqrt();
        let mut tried: Vec<(f64, By)> =
            sums.iter().zip(&ways).filter_map(|(sum, &by)| Some(((*sum)?, by))).collect();
        tried.sort_by(|a, b| b.0.total_cmp(&a.0));
        let best = tried.first().filter(|(value, _)| *value > mean + wide);
        let by = best.map_or(By::Random, |(_, by)| *by);
        let tried = tried.into_iter().map(|(value, by)| Tried {
            by,
            value: Number::measured(100.0 * value, "%"),
            beats_random: value > mean + wide,
        });
        let random = Random {
            draws: DRAWS,
            metric: if self.request.balanced { "macro F1" } else { "top-1 accuracy" },
            value: Number::within(mean, mean - wide, mean + wide, "").scaled(100.0, "%"),
            all: Number::measured(100.0 * whole, "%"),
        };
        Ok((by, tried.collect(), Some(random)))
    }

    /// The answers to these rows, of the classes that are among them; and which classes those are.
    fn truth(&self, rows: &[usize]) -> Result<(Truth, Vec<usize>)> {
        let Some((of, count)) = self.of() else {
            return Err(Error::input(
                "wrong labels and difficulty are told only of examples of two classes or more, each with its class",
            ));
        };
        let mut place = vec![None; count];
        rows.iter().for_each(|&row| place[of[row]] = Some(0));
        let there: Vec<usize> = (0..count).filter(|&class| place[class].is_some()).collect();
        there.iter().enumerate().for_each(|(at, &class)| place[class] = Some(at));
        let of = rows.iter().filter_map(|&row| place[of[row]]).collect();
        Ok((Truth::Classes { of, count: there.len() }, there))
    }
}

/// Some rows of the features, and what is found out about them once it is asked for.
pub(super) struct Looked<'a> {
    chooser: &'a Chooser<'a>,
    /// In ascending order.
    rows: &'a [usize],
    difficulty: OnceCell<Vec<Difficulty>>,
    /// Probabilities of all classes, row by row.
    unseen: OnceCell<Vec<f64>>,
}

impl<'a> Looked<'a> {
    pub fn at(chooser: &'a Chooser<'a>, rows: &'a [usize]) -> Looked<'a> {
        Looked { chooser, rows, difficulty: OnceCell::new(), unseen: OnceCell::new() }
    }

    fn difficulty(&self) -> Result<&[Difficulty]> {
        if self.difficulty.get().is_none() {
            let Chooser { features, request, cpu, .. } = self.chooser;
            let (truth, there) = self.chooser.truth(self.rows)?;
            let Truth::Classes { of, .. } = truth else { return Ok(&[]) };
            let found = difficulty(&features.select(self.rows), &of, there.len(), request.seed, cpu)?;
            _ = self.difficulty.set(found);
        }
        Ok(self.difficulty.get().map_or(&[], Vec::as_slice))
    }

    /// The probabilities that ridge heads give to all classes which have not seen the row.
    fn unseen(&self) -> Result<&[f64]> {
        if self.unseen.get().is_none() {
            let Chooser { features, request, cpu, .. } = self.chooser;
            let (truth, there) = self.chooser.truth(self.rows)?;
            let count = self.chooser.of().map_or(0, |(_, count)| count);
            let features = features.select(self.rows);
            let problem = Problem::new(&features, &truth, request.balanced, request.seed, cpu)?;
            let scores = problem.fit(Method::Ridge)?.unseen.scores;
            let mut shares = vec![0f64; self.rows.len() * count];
            for (scores, shares) in scores.chunks_exact(there.len()).zip(shares.chunks_exact_mut(count)) {
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = scores.iter().map(|s| f64::from(s - most).exp()).sum();
                for (&class, score) in there.iter().zip(scores) {
                    shares[class] = f64::from(score - most).exp() / sum;
                }
            }
            _ = self.unseen.set(shares);
        }
        Ok(self.unseen.get().map_or(&[], Vec::as_slice))
    }

    /// Labels that are probably wrong; rows are those of the features.
    ///
    /// # Errors
    /// When there are no classes, or no head can be fitted.
    pub fn issues(&self) -> Result<Vec<labels::Issue>> {
        let unseen = self.unseen()?;
        let Some((of, count)) = self.chooser.of() else { return Ok(Vec::new()) };
        let of: Vec<usize> = self.rows.iter().map(|&row| of[row]).collect();
        let mut issues = labels::issues(&of, unseen, count)?;
        issues.iter_mut().for_each(|issue| issue.row = self.rows[issue.row]);
        Ok(issues)
    }

    /// So many of the rows, in ascending order.
    ///
    /// # Errors
    /// When the way needs classes and there are none.
    pub fn choose(&self, by: By, wanted: usize, seed: u64) -> Result<Vec<usize>> {
        let Chooser { features, weights, request, cpu, .. } = self.chooser;
        let classes = self.chooser.of();
        let groups = match classes {
            Some((of, _)) => grouped(self.rows.iter().map(|&row| of[row])),
            None => vec![(0..self.rows.len()).collect()],
        };
        let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
        let quotas = quotas(&sizes, wanted, request.balanced);
        let each = || groups.iter().zip(quotas.iter().copied());
        let mut stay: Vec<usize> = match by {
            By::Random => drawn(&groups, wanted, request.balanced, seed),
            By::Target => {
                let weights: Vec<f64> = self.rows.iter().map(|&row| weights[row]).collect();
                // Shares of classes are the target's, unless they are to be the same.
                let whole = vec![(0..self.rows.len()).collect()];
                resembling(if request.balanced { &groups } else { &whole }, &weights, wanted, seed)
            }
            By::Coreset(coreset) => {
                let features = features.select(self.rows);
                each().flat_map(|(group, count)| coreset.choose(&features, group, count, seed, cpu)).collect()
            }
            By::Hard | By::Easy | By::Moderate | By::Forgotten | By::Margin => {
                let difficulty = self.difficulty()?;
                each().flat_map(|(group, count)| by_difficulty(by, group, difficulty, count)).collect()
            }
            By::Sure | By::Unsure => {
                let unseen = self.unseen()?;
                let Some((of, all)) = classes else { return Ok(Vec::new()) };
                let share = |at: usize| unseen[at * all + of[self.rows[at]]];
                let rank = |at: usize| if by == By::Sure { -share(at) } else { share(at) };
                each().flat_map(|(group, count)| least(group, rank, count)).collect()
            }
        };
        stay.sort_unstable();
        stay.iter_mut().for_each(|at| *at = self.rows[*at]);
        Ok(stay)
    }
}

/// Judges choices by the heads that are fitted to them.
struct Judge<'a> {
    chooser: &'a Chooser<'a>,
    /// Rows that nothing is chosen of.
    judges: &'a [usize],
}

impl Judge<'_> {
    /// The metric of a head that is fitted to these rows; `None` when none can be, as where all are of one class.
    fn score(&self, chosen: &[usize]) -> Option<f64> {
        let Chooser { features, request, cpu, .. } = self.chooser;
        let (truth, there) = self.chooser.truth(chosen).ok()?;
        let chosen = features.select(chosen);
        let problem = Problem::new(&chosen, &truth, request.balanced, request.seed, cpu).ok()?;
        let head = problem.fit(Method::Ridge).ok()?.head;
        let outputs = head.bias.len();
        let scores = head.scores(cpu, &features.select(self.judges));
        let best = |row: &[f32]| (1..outputs).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        let answers: Vec<usize> = scores.chunks_exact(outputs).map(|row| there[best(row)]).collect();
        let (of, _) = self.chooser.of()?;
        let right: Vec<usize> = self.judges.iter().map(|&row| of[row]).collect();
        match request.balanced {
            true => score::macro_f1(&answers, &right),
            false => {
                let hits = answers.iter().zip(&right).filter(|(a, b)| a == b).count();
                Some(hits as f64 / right.len().max(1) as f64)
            }
        }
    }
}

/// So many positions of a group, by how hard they are.
fn by_difficulty(by: By, group: &[usize], difficulty: &[Difficulty], count: usize) -> Vec<usize> {
    let mut errors: Vec<f32> = group.iter().map(|&at| difficulty[at].error).collect();
    errors.sort_by(f32::total_cmp);
    let middle = errors.get(errors.len() / 2).copied().unwrap_or(0.0);
    let rank = |at: usize| {
        let Difficulty { error, forgotten, margin } = difficulty[at];
        f64::from(match by {
            By::Hard => -error,
            By::Moderate => (error - middle).abs(),
            By::Forgotten => -forgotten,
            By::Margin => margin.abs(),
            _ => error,
        })
    };
    least(group, rank, count)
}

/// The positions of the least ranks.
fn least(group: &[usize], rank: impl Fn(usize) -> f64, count: usize) -> Vec<usize> {
    let mut order: Vec<(f64, usize)> = group.iter().map(|&at| (rank(at), at)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    order.into_iter().take(count).map(|(_, at)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_gets_its_share_and_one_at_least() {
        assert_eq!(quotas(&[60, 30, 10], 10, false), [6, 3, 1]);
        assert_eq!(quotas(&[98, 1, 1], 10, false), [8, 1, 1]);
        assert_eq!(quotas(&[50, 50], 2, false), [1, 1]);
        assert_eq!(quotas(&[50, 50], 1, false).iter().sum::<usize>(), 1);
        assert_eq!(quotas(&[5, 5], 20, false), [5, 5]);
        assert_eq!(quotas(&[90, 30, 2], 30, true), [14, 14, 2]);
        assert_eq!(quotas(&[1_000, 1_000, 10], 510, true), [250, 250, 10]);
        assert_eq!(quotas(&[7, 0], 3, true), [3, 0]);
        for wanted in 1..100 {
            for balanced in [false, true] {
                let found = quotas(&[61, 3, 35, 1], wanted, balanced);
                assert_eq!(found.iter().sum::<usize>(), wanted);
                assert!(found.iter().zip([61, 3, 35, 1]).all(|(q, size)| *q <= size), "{found:?}");
            }
        }
    }

    #[test]
    fn ranks_are_by_what_they_are_called() {
        let errors = [0.1, 0.9, 0.5, 0.45, 1.3];
        let difficulty: Vec<Difficulty> = errors
            .iter()
            .enumerate()
            .map(|(at, &error)| Difficulty { error, forgotten: at as f32, margin: 2.0 - at as f32 })
            .collect();
        let of = |by| by_difficulty(by, &[0, 1, 2, 3, 4], &difficulty, 2);
        assert_eq!(of(By::Hard), [4, 1]);
        assert_eq!(of(By::Easy), [0, 3]);
        assert_eq!(of(By::Moderate), [2, 3]);
        assert_eq!(of(By::Forgotten), [4, 3]);
        assert_eq!(of(By::Margin), [2, 1]);
    }
}
