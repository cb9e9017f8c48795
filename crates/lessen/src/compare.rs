//! How far two models are apart on the same examples: what changed, for which examples, and by how much.

use std::collections::BinaryHeap;

use learn::data::{Dataset, Target};
use learn::score::{self, Interval};
use serde::Serialize;

use crate::answer::{Answer, Answerer, Task, cosine, part_size};
use crate::eval::{Judged, SEED, name_of, number, percent};
use crate::receipt::Number;
use crate::{Error, Result};

/// How far two models are apart.
#[derive(Clone, Debug, Serialize)]
pub struct Compare {
    /// What the models were asked to do.
    pub task: Task,
    /// What the data are.
    pub data: String,
    /// Number of examples.
    pub examples: usize,
    /// Share of examples of which both models name the same class, for answers that are classes.
    pub agreement: Option<Number>,
    /// What became of each example's class.
    pub flips: Option<Flips>,
    /// The metric of both models, when the data say what is right.
    pub metric: Option<Metric>,
    /// How far the outputs are apart; `None` when their sizes differ in every example.
    pub distance: Option<Distance>,
    /// Examples for which the two models give outputs of different sizes. They are left out of the distance.
    pub size_differs: usize,
    /// The examples with the greatest distance, the worst first.
    pub worst: Vec<Worst>,
}

/// Examples by what became of their class.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Flips {
    /// Both models name another class.
    pub changed: usize,
    /// The first model was right, the second is wrong.
    pub lost: Option<usize>,
    /// The first model was wrong, the second is right.
    pub won: Option<usize>,
    /// How likely a difference as great as that of `lost` and `won` is by chance: McNemar's exact test.
    pub p: Option<f64>,
}

impl From<score::Flips> for Flips {
    fn from(flips: score::Flips) -> Flips {
        Flips { changed: flips.changed, lost: Some(flips.lost), won: Some(flips.won), p: Some(flips.p) }
    }
}

/// The metric of both models.
#[derive(Clone, Debug, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Of the first model.
    pub a: Number,
    /// Of the second model.
    pub b: Number,
    /// Of the second less that of the first, over the same examples.
    pub difference: Number,
}

/// How far outputs are apart. The outputs of the first model are taken as right.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Distance {
    /// The greatest difference of two numbers.
    pub max_abs: Number,
    /// The mean difference of two numbers.
    pub mean_abs: Number,
    /// The mean over the examples of the length of the difference relative to the length of the output.
    pub relative: Number,
    /// The greatest of these.
    pub max_relative: Number,
    /// The mean over the examples of the cosine between both outputs.
    pub cosine: Number,
    /// The least of these.
    pub min_cosine: Number,
}

/// An example for which the models are far apart.
#[derive(Clone, Debug, Serialize)]
pub struct Worst {
    /// Its index in the data.
    pub index: usize,
    /// Its name.
    pub id: String,
    /// Length of the difference of the outputs relative to the length of the first model's.
    pub relative: f64,
    /// The class that the first model names.
    pub class_a: Option<usize>,
    /// The class that the second model names.
    pub class_b: Option<usize>,
    /// The class it is of.
    pub label: Option<usize>,
    /// The first model's score.
    pub score_a: Option<f64>,
    /// The second model's score.
    pub score_b: Option<f64>,
}

/// Ordered by distance.
struct Far(f64, Worst);

impl PartialEq for Far {
    fn eq(&self, other: &Far) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Far {}

impl PartialOrd for Far {
    fn partial_cmp(&self, other: &Far) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Far {
    /// The nearest is the greatest, so that a heap gives it up first; of equals the later one.
    fn cmp(&self, other: &Far) -> std::cmp::Ordering {
        other.0.total_cmp(&self.0).then(self.1.index.cmp(&other.1.index))
    }
}

/// How far the answers to several examples are apart.
#[derive(Default)]
pub(crate) struct Sums {
    max_abs: f64,
    mean_abs: Vec<f64>,
    relative: Vec<f64>,
    cosine: Vec<f64>,
}

/// Shows all examples of a data set to both models and compares their answers. `worst` examples are named.
/// `progress` is told how many examples are done.
///
/// # Errors
/// When the models have different tasks, an example cannot be read or does not fit a model, or a model fails.
pub fn compare(
    a: &Answerer,
    b: &Answerer,
    data: &dyn Dataset,
    worst: usize,
    mut progress: impl FnMut(usize),
) -> Result<Compare> {
    let task = a.task();
    let mut judged = match (task, data.target(0)) {
        (Task::Agree, _) | (_, Target::None) => None,
        _ => Some((Judged::new(task)?, Judged::new(task)?)),
    };
    let mut classes: Option<(Vec<usize>, Vec<usize>)> = Some(Default::default());
    let mut sums = Sums::default();
    let mut size_differs = 0;
    let mut far: BinaryHeap<Far> = BinaryHeap::new();

    let all: Vec<usize> = (0..data.len()).collect();
    let mut done = 0;
    for part in all.chunks(part_size(data, &all)?) {
        let inputs = part.iter().map(|&i| Ok(data.get(i)?.input)).collect::<Result<Vec<_>>>()?;
        for ((&i, of_a), of_b) in part.iter().zip(a.answers(&inputs)?).zip(b.answers(&inputs)?) {
            let target = data.target(i);
            if let Some((judged_a, judged_b)) = &mut judged {
                judged_a.add(|| name_of(data, i), &of_a, target.clone())?;
                judged_b.add(|| name_of(data, i), &of_b, target.clone())?;
            }
            let pair = of_a.class().zip(of_b.class()).filter(|_| task.is_class());
            classes = classes.zip(pair).map(|((mut of_a, mut of_b), (a, b))| {
                of_a.push(a);
                of_b.push(b);
                (of_a, of_b)
            });
            match sums.add(&of_a, &of_b) {
                Some(relative) => {
                    far.push(Far(relative, example(i, relative, pair, &of_a, &of_b, target)));
                    if far.len() > worst {
                        far.pop();
                    }
                }
                None => size_differs += 1,
            }
        }
        done += part.len();
        progress(done);
    }

    let mut flips = None;
    let mut agreement = None;
    if let Some((of_a, of_b)) = classes.filter(|(a, _)| !a.is_empty()) {
        agreement = Some(percent(score::agreement(&of_a, &of_b)?));
        let changed = of_a.iter().zip(&of_b).filter(|(a, b)| a != b).count();
        flips = Some(match &judged {
            Some((Judged::Classes(_, truths), _)) => score::flips(&of_a, &of_b, truths)?.into(),
            _ => Flips { changed, lost: None, won: None, p: None },
        });
    }
    let metric = judged
        .map(|(a, b)| {
            let (name, of_a) = a.metric()?;
            Ok::<_, Error>(Metric { name, a: of_a, b: b.metric()?.1, difference: b.difference(&a)? })
        })
        .transpose()?;
    let mut worst: Vec<Far> = far.into_vec();
    worst.sort();
    worst.retain(|far| far.0 > 0.0);
    let worst = worst.into_iter().map(|Far(_, w)| Worst { id: name_of(data, w.index), ..w }).collect();
    Ok(Compare {
        task,
        data: data.describe(),
        examples: data.len(),
        agreement,
        flips,
        metric,
        distance: sums.distance()?,
        size_differs,
        worst,
    })
}

fn example(
    index: usize,
    relative: f64,
    classes: Option<(usize, usize)>,
    a: &Answer,
    b: &Answer,
    target: Target,
) -> Worst {
    Worst {
        index,
        id: String::new(),
        relative,
        class_a: classes.map(|c| c.0),
        class_b: classes.map(|c| c.1),
        label: match target {
            Target::Class(class) => Some(class),
            _ => None,
        },
        score_a: a.score,
        score_b: b.score,
    }
}

impl Sums {
    /// Adds the answers to one example; their relative distance, or `None` when their sizes differ.
    pub(crate) fn add(&mut self, a: &Answer, b: &Answer) -> Option<f64> {
        let sizes = |x: &Answer| x.outputs.iter().map(Vec::len).collect::<Vec<_>>();
        if sizes(a) != sizes(b) {
            return None;
        }
        let (a, b) = (a.outputs.concat(), b.outputs.concat());
        let (mut most, mut sum, mut squares, mut norm) = (0f64, 0f64, 0f64, 0f64);
        for (x, y) in a.iter().zip(&b) {
            // Equal infinities are no distance apart.
            let d = if x == y { 0.0 } else { f64::from(*y) - f64::from(*x) };
            most = most.max(d.abs());
            sum += d.abs();
            squares += d * d;
            norm += f64::from(*x) * f64::from(*x);
        }
        let relative = if squares == 0.0 { 0.0 } else { (squares / norm.max(f64::MIN_POSITIVE)).sqrt() };
        self.max_abs = self.max_abs.max(most);
        self.mean_abs.push(sum / a.len().max(1) as f64);
        self.relative.push(relative);
        self.cosine.push(if squares == 0.0 { 1.0 } else { cosine(&a, &b) });
        Some(relative)
    }

    pub(crate) fn distance(&self) -> Result<Option<Distance>> {
        if self.relative.is_empty() {
            return Ok(None);
        }
        let greatest = self.relative.iter().copied().fold(0.0, f64::max);
        let least = self.cosine.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(Some(Distance {
            max_abs: Number::measured(self.max_abs, ""),
            mean_abs: number(mean(&self.mean_abs)?, ""),
            relative: number(mean(&self.relative)?, ""),
            max_relative: Number::measured(greatest, ""),
            cosine: number(mean(&self.cosine)?, ""),
            min_cosine: Number::measured(least, ""),
        }))
    }
}

/// The mean with its bootstrap interval.
fn mean(values: &[f64]) -> Result<Interval> {
    Ok(score::bootstrap(values.len(), SEED, |sample| {
        Some(sample.iter().map(|&i| values[i]).sum::<f64>() / sample.len() as f64)
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(values: &[f32]) -> Answer {
        Answer { outputs: vec![values.to_vec()], score: None, is_row: true, bar: 0.0 }
    }

    #[test]
    fn distances_of_answers() {
        let mut sums = Sums::default();
        assert_eq!(sums.add(&answer(&[3.0, 4.0]), &answer(&[3.0, 4.0])), Some(0.0));
        assert_eq!(sums.add(&answer(&[3.0, 4.0]), &answer(&[3.0, 9.0])), Some(1.0));
        assert_eq!(sums.add(&answer(&[3.0, 4.0]), &answer(&[3.0])), None);
        let distance = sums.distance().unwrap().unwrap();
        assert_eq!(distance.max_abs.value, 5.0);
        assert_eq!(distance.mean_abs.value, 1.25);
        assert_eq!(distance.relative.value, 0.5);
        assert!(Sums::default().distance().unwrap().is_none());
    }

    #[test]
    fn the_worst_are_kept() {
        let mut heap = BinaryHeap::new();
        for (i, d) in [0.1, 0.5, 0.3, 0.4].into_iter().enumerate() {
            heap.push(Far(d, example(i, d, None, &answer(&[]), &answer(&[]), Target::None)));
            if heap.len() > 2 {
                heap.pop();
            }
        }
        let mut kept = heap.into_vec();
        kept.sort();
        assert_eq!(kept.iter().map(|far| far.0).collect::<Vec<_>>(), [0.5, 0.4]);
    }
}
