//! What shrinking did to the answers, beyond the metric: which flipped, how far probabilities moved, which classes
//! pay for it, whether confidence is still honest, and the examples that changed most.

use std::collections::HashMap;

use learn::Input;
use learn::data::{Dataset, Target};
use learn::score::{self, Kind};
use serde::Serialize;

use crate::answer::{Answer, Task};
use crate::compare::{Distance, Flips, Metric, Sums};
use crate::eval::{Judged, SEED, number, percent};
use crate::measure::Measure;
use crate::receipt::Number;
use crate::{Result, thumbnail};

/// Most examples that are shown.
const WORST: usize = 8;
/// Most characters of a text that are shown.
const TEXT: usize = 160;

/// What became of the answers to the examples that nothing was decided on.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Number of examples.
    pub examples: usize,
    /// Share of examples to which both models answer with the same class, for answers that are classes.
    pub agreement: Option<Number>,
    /// What became of each example's class.
    pub flips: Option<Flips>,
    /// How far the probabilities of the classes moved, for answers that are classes.
    pub divergence: Option<Divergence>,
    /// How honest the confidences are, where it is known which answers are right.
    pub calibration: Option<Calibration>,
    /// What became of each class, where it is known which answers are right.
    pub classes: Vec<ClassDamage>,
    /// The correlations with the truth, for answers that are numbers.
    pub correlations: Vec<Metric>,
    /// The mean change of a score, without its sign, for answers that are numbers.
    pub score_change: Option<Number>,
    /// How far the outputs are apart; `None` when their sizes differ.
    pub distance: Option<Distance>,
    /// The examples whose answers changed most, the worst first: classes that were right and are no more, then others that
    /// changed, then all else; among each by the change of the score for answers that are numbers, else by that of the
    /// output relative to its length.
    pub worst: Vec<Changed>,
}

/// The Kullback-Leibler divergence of the small model's probabilities from the original's, in nats.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Divergence {
    /// The mean over the examples.
    pub mean: Number,
    /// 95 % of the examples are below.
    pub p95: Number,
    /// The greatest.
    pub max: Number,
}

/// The expected calibration error: how far confidence and the share of right answers are apart, in bins of as many
/// examples.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Calibration {
    /// Of the original.
    pub before: Number,
    /// Of the small model.
    pub after: Number,
    /// The second less the first, with its interval over the same examples.
    pub change: Number,
    /// Number of bins.
    pub bins: usize,
}

/// What became of one class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassDamage {
    /// Its index.
    pub class: usize,
    /// Its name.
    pub name: Option<String>,
    /// Number of its examples.
    pub examples: usize,
    /// How many of them the original answers right.
    pub before: Number,
    /// How many of them the small model answers right.
    pub after: Number,
    /// The second less the first, with its interval over the same examples.
    pub change: Number,
    /// Examples that the original answers right and the small model wrong.
    pub lost: usize,
    /// Examples that the original answers wrong and the small model right.
    pub won: usize,
    /// How likely so uneven a change is by chance, in any class (McNemar's exact test, Bonferroni's correction).
    pub p: f64,
}

/// An example whose answer changed.
#[derive(Clone, Debug, Serialize)]
pub struct Changed {
    /// Its index in the data.
    pub index: usize,
    /// Its name.
    pub id: String,
    /// By how much: see [`Verification::worst`].
    pub change: f64,
    /// The right answer, when it is known.
    pub target: Option<String>,
    /// The original's answer, for answers that are classes or numbers.
    pub before: Option<String>,
    /// The small model's answer.
    pub after: Option<String>,
    /// True when the class is another one.
    pub flipped: bool,
    /// A small picture of it as a `data:` address (PNG), for images and arrays that can be seen as one.
    pub image: Option<String>,
    /// Its text, or both texts, shortened.
    pub text: Vec<String>,
}

/// Both models' answers to the same examples.
pub(crate) struct Answers<'a> {
    pub task: Task,
    pub data: &'a dyn Dataset,
    /// The examples, by their index in the data.
    pub rows: &'a [usize],
    pub before: &'a [Answer],
    pub after: &'a [Answer],
    /// Names of the classes.
    pub names: Option<&'a [String]>,
    /// The metric that what is lost is lost of.
    pub measure: &'a Measure,
}

impl Answers<'_> {
    /// Judges the answers by the truth; `None` when it is not known, or the task is to answer alike.
    fn judged(&self) -> Result<Option<(Judged, Judged)>> {
        if self.task == Task::Agree {
            return Ok(None);
        }
        let of = |answers: &[Answer]| {
            let mut judged = Judged::new(self.task)?;
            for (&i, answer) in self.rows.iter().zip(answers) {
                judged.add(|| format!("example {i}"), answer, self.data.target(i))?;
            }
            Ok::<_, crate::Error>(judged)
        };
        Ok(Some((of(self.before)?, of(self.after)?)))
    }

    /// Classes of both models, when all answers are classes.
    fn classes(&self) -> Option<(Vec<usize>, Vec<usize>)> {
        let of = |answers: &[Answer]| answers.iter().map(Answer::class).collect::<Option<Vec<usize>>>();
        of(self.before).zip(of(self.after)).filter(|(a, _)| self.task.is_class() && !a.is_empty())
    }

    /// The probability that at most `bound` of the metric is lost, by these examples; `None` when it has none.
    pub fn within(&self, bound: f64) -> Result<Option<f64>> {
        if let Some((before, after)) = self.judged()? {
            let [before, after] = [before, after].map(|judged| self.measure.of(judged, self.names));
            return Ok(Some(after?.within(&before?, bound)?));
        }
        let Some((a, b)) = self.classes() else { return Ok(None) };
        let changed = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        Ok(Some(score::share_within(changed, a.len(), bound, SEED)?))
    }

    /// All that is said of these answers.
    pub fn verify(&self) -> Result<Verification> {
        let mut found = Verification {
            examples: self.rows.len(),
            agreement: None,
            flips: None,
            divergence: None,
            calibration: None,
            classes: Vec::new(),
            correlations: Vec::new(),
            score_change: None,
            distance: self.distance()?,
            worst: self.worst(),
        };
        let judged = self.judged()?;
        if let Some((a, b)) = self.classes() {
            found.agreement = Some(percent(score::agreement(&a, &b)?));
            let changed = a.iter().zip(&b).filter(|(a, b)| a != b).count();
            found.flips = Some(Flips { changed, lost: None, won: None, p: None });
            found.divergence = self.divergence()?;
        }
        match &judged {
            Some((Judged::Classes(a, truths), Judged::Classes(b, _))) => {
                found.flips = Some(Flips::from(score::flips(a, b, truths)?));
                found.classes =
                    score::class_changes(a, b, truths)?.into_iter().map(|c| self.damage(c)).collect();
                found.calibration = self.calibration(a, b, truths)?;
            }
            Some((Judged::Scores(a, truths), Judged::Scores(b, _))) => {
                for (name, metric) in [
                    ("Spearman correlation", score::spearman as score::Metric<f64>),
                    ("Pearson correlation", score::pearson),
                ] {
                    let of = |v: &[f64]| score::with_interval(metric, v, truths, SEED);
                    let difference = score::difference(metric, a, b, truths, SEED)?;
                    found.correlations.push(Metric {
                        name,
                        a: number(of(a)?, ""),
                        b: number(of(b)?, ""),
                        difference: number(difference, ""),
                    });
                }
                let changes: Vec<f64> = a.iter().zip(b).map(|(a, b)| (b - a).abs()).collect();
                found.score_change = Some(number(score::mean(&changes, SEED)?, ""));
            }
            Some((Judged::Labels(a, truths), Judged::Labels(b, _))) => {
                found.classes = self.labels(a, b, truths)?;
                let [a, b, truths] = numbered([a, b, truths]);
                found.agreement = Some(percent(score::agreement(&a, &b)?));
                found.flips = Some(Flips::from(score::flips(&a, &b, &truths)?));
            }
            _ => {}
        }
        Ok(found)
    }

    /// What became of the examples that each label holds for.
    fn labels(&self, a: &[Vec<bool>], b: &[Vec<bool>], truths: &[Vec<bool>]) -> Result<Vec<ClassDamage>> {
        let labels = truths.first().map_or(0, Vec::len);
        let mut found = Vec::new();
        for label in 0..labels {
            let held: Vec<usize> = (0..truths.len()).filter(|&i| truths[i][label]).collect();
            let named =
                |sets: &[Vec<bool>]| held.iter().map(|&i| usize::from(sets[i][label])).collect::<Vec<_>>();
            if !held.is_empty() {
                for change in score::class_changes(&named(a), &named(b), &named(truths))? {
                    let p = (change.p * labels as f64).min(1.0);
                    found.push(self.damage(score::ClassChange { class: label, p, ..change }));
                }
            }
        }
        Ok(found)
    }

    fn damage(&self, change: score::ClassChange) -> ClassDamage {
        ClassDamage {
            class: change.class,
            name: self.names.and_then(|names| names.get(change.class)).cloned(),
            examples: change.examples,
            before: percent(change.before),
            after: percent(change.after),
            change: Number { unit: "points", ..percent(change.change) },
            lost: change.lost,
            won: change.won,
            p: change.p,
        }
    }

    fn distance(&self) -> Result<Option<Distance>> {
        let mut sums = Sums::default();
        for (a, b) in self.before.iter().zip(self.after) {
            sums.add(a, b);
        }
        sums.distance()
    }

    /// The probabilities that each model gives to the classes of each example, one example at a time.
    fn probabilities(&self) -> impl Iterator<Item = Option<(Vec<f64>, Vec<f64>)>> {
        fn rows(answers: &[Answer]) -> impl Iterator<Item = &[f32]> {
            answers.iter().map(|a| a.outputs.first().map_or(&[][..], Vec::as_slice))
        }
        let kinds: [Kind; 2] = [self.before, self.after].map(|answers| score::kind_of(rows(answers)));
        rows(self.before)
            .zip(rows(self.after))
            .map(move |(a, b)| score::shares(a, kinds[0]).zip(score::shares(b, kinds[1])))
    }

    /// `None` when an answer has no probabilities, being infinite.
    fn divergence(&self) -> Result<Option<Divergence>> {
        let found: Option<Vec<f64>> =
            self.probabilities().map(|pair| pair.map(|(a, b)| score::divergence(&a, &b))).collect();
        let Some(found) = found else { return Ok(None) };
        let all = score::divergences(&found, SEED)?;
        Ok(Some(Divergence {
            mean: number(all.mean, "nats"),
            p95: Number::measured(all.p95, "nats"),
            max: Number::measured(all.max, "nats"),
        }))
    }

    fn calibration(&self, a: &[usize], b: &[usize], truths: &[usize]) -> Result<Option<Calibration>> {
        let most = |shares: &[f64]| shares.iter().copied().fold(0.0, f64::max);
        let sure: Option<(Vec<f64>, Vec<f64>)> =
            self.probabilities().map(|pair| pair.map(|(a, b)| (most(&a), most(&b)))).collect();
        let Some(sure) = sure else { return Ok(None) };
        let right = |answers: &[usize]| -> Vec<bool> {
            answers.iter().zip(truths).map(|(answer, truth)| answer == truth).collect()
        };
        let found = score::calibration((&sure.0, &right(a)), (&sure.1, &right(b)), SEED)?;
        Ok(Some(Calibration {
            before: Number::measured(found.before, "").scaled(100.0, "%"),
            after: Number::measured(found.after, "").scaled(100.0, "%"),
            change: Number { unit: "points", ..percent(found.change) },
            bins: score::BINS,
        }))
    }

    fn worst(&self) -> Vec<Changed> {
        let mut changes: Vec<(u8, f64, usize)> = (0..self.rows.len().min(self.after.len()))
            .map(|at| (self.harm(at), change(&self.before[at], &self.after[at]), at))
            .filter(|(_, change, _)| *change > 0.0)
            .collect();
        changes.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)).then(a.2.cmp(&b.2)));
        changes.into_iter().take(WORST).map(|(_, change, at)| self.changed(at, change)).collect()
    }

    /// 0 for a class or set of labels that was right and is no more, 1 for another one that changed, 2 for all else.
    fn harm(&self, at: usize) -> u8 {
        let (before, after) = (&self.before[at], &self.after[at]);
        let right = match self.data.target(self.rows[at]) {
            Target::Class(truth) => before.class() == Some(truth),
            Target::Labels(held) => before.labels().is_some_and(|labels| indices(&labels) == *held),
            _ => false,
        };
        match self.flipped(before, after) {
            false => 2,
            true => u8::from(!right),
        }
    }

    /// Is the class another one, or the set of labels?
    fn flipped(&self, before: &Answer, after: &Answer) -> bool {
        match self.task {
            Task::Similarity => false,
            Task::Multilabel => before.labels() != after.labels(),
            Task::Classify | Task::Agree => before.class() != after.class(),
        }
    }

    fn changed(&self, at: usize, change: f64) -> Changed {
        let index = self.rows[at];
        let (before, after) = (&self.before[at], &self.after[at]);
        let class = |class: usize| match self.names.and_then(|names| names.get(class)) {
            Some(name) => name.clone(),
            None => class.to_string(),
        };
        let set = |labels: &[usize]| labels.iter().map(|&label| class(label)).collect::<Vec<_>>().join(", ");
        let words = |answer: &Answer| match self.task {
            Task::Similarity => answer.score.map(|score| format!("{score:.4}")),
            Task::Multilabel => answer.labels().map(|labels| set(&indices(&labels))),
            _ => answer.class().map(class),
        };
        let target = match self.data.target(index) {
            Target::Class(truth) if self.task != Task::Similarity => Some(class(truth)),
            Target::Class(truth) => Some(truth.to_string()),
            Target::Score(truth) => Some(format!("{truth}")),
            Target::Labels(held) => Some(set(&held)),
            Target::None => None,
        };
        let example = self.data.get(index).ok();
        let input = example.as_ref().map(|e| &e.input);
        let text = match input {
            Some(Input::Text(text)) => vec![shortened(text)],
            Some(Input::Pair(a, b)) => vec![shortened(a), shortened(b)],
            _ => Vec::new(),
        };
        Changed {
            index,
            change,
            target,
            before: words(before),
            after: words(after),
            flipped: self.flipped(before, after),
            image: input.and_then(thumbnail::of),
            text,
            id: example.map_or_else(|| format!("example {index}"), |e| e.id),
        }
    }
}

/// The labels that hold.
fn indices(labels: &[bool]) -> Vec<usize> {
    (0..labels.len()).filter(|&label| labels[label]).collect()
}

/// A number for each set of labels, the same for equal ones.
fn numbered<const N: usize>(sets: [&Vec<Vec<bool>>; N]) -> [Vec<usize>; N] {
    let mut known = HashMap::new();
    sets.map(|sets| {
        let number = |set| {
            let next = known.len();
            *known.entry(set).or_insert(next)
        };
        sets.iter().map(number).collect()
    })
}

/// How far an answer moved; infinite where sizes differ or NaN came in.
fn change(before: &Answer, after: &Answer) -> f64 {
    let moved = match (before.score, after.score) {
        (Some(a), Some(b)) => Some((b - a).abs()),
        _ => Sums::default().add(before, after),
    };
    moved.filter(|m| !m.is_nan()).unwrap_or(f64::INFINITY)
}

/// A text in one line of at most [`TEXT`] characters.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
