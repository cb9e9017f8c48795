//! Which way of learning does best: a head alone, or weights before it that learn as well. Each way learns from a part of the
//! examples and is judged by the others; few examples are left out in turns. The fewest say nothing: the head alone is taken.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use kernel::Cpu;
use learn::data::split;
use learn::head::Truth;
use meter::energy::{Meter, SENSORS};
use serde::Serialize;

use super::taps::FEWEST;
use super::tune::{FEW, RANK};
use super::{Depth, Request, Taught, Tuning, judge, similar, task_of, teach_metered, truth};
use crate::eval::{Eval, SEED};
use crate::features::{Subset, Wanted};
use crate::receipt::Number;
use crate::{Error, Model, Result};

/// Parts that few examples are left out in.
const TURNS: usize = 5;
/// The share of more examples that is left out, once, and the most of them.
const LEFT_OUT: f64 = 0.2;
const MOST: f64 = 2_000.0;
/// How many standard errors a way may be worse by than the best, and is still taken when it costs less.
const ERRORS: f64 = 0.5;

/// A way of learning, and how it did on examples that it has not seen.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// Which weights before the head were trained; none when not given.
    pub tune: Option<Depth>,
    /// Were they trained before there was a head, until the features told the classes apart?
    pub contrast: bool,
    /// The metric of the task, or the mean F1 of classes that count the same; nothing when it cannot be done.
    pub value: Option<Number>,
    /// Why it cannot be done.
    pub failed: Option<String>,
    /// Seconds that it took.
    pub time: Number,
    /// Was it taken?
    pub taken: bool,
}

impl Way {
    /// What is said to the command to have it.
    pub fn name(&self) -> String {
        match self.tune {
            None => "the head alone".into(),
            Some(depth) => format!("{}--tune {depth}", if self.contrast { "--contrast " } else { "" }),
        }
    }

    fn tuning(&self, epochs: Option<usize>, rate: f32) -> Option<Tuning> {
        self.tune.map(|depth| Tuning { depth, contrast: self.contrast, epochs, rate })
    }
}

/// Teaches a model a new task in the way that does best on examples held out, or hardly worse and costs less: the head alone, or
/// comparing examples where they are few (of the fewest, by which the best would be found by chance, the head alone is taken), or training what is added, factors beside the weights, the last half of them, or all
/// where they are more. `request.tuning` is not looked at; `epochs` and `rate` are those of each [`Tuning`].
///
/// # Errors
/// As [`teach`](super::teach); when the request leaves no choice: pairs for vectors, a teacher, a task beside others, faster
/// features; when there are too few examples to hold some out.
pub fn teach_best(
    model: &Model,
    request: &Request,
    epochs: Option<usize>,
    rate: f32,
    cpu: &Cpu,
) -> Result<Taught> {
    let meter = Meter::start(Path::new(SENSORS), Duration::ZERO);
    let data = request.wanted.data;
    let fixed = [
        (!request.cross && similar::are_pairs(data), "pairs of texts teach vectors"),
        (request.teacher.is_some(), "a teacher answers"),
        (request.add.is_some(), "--add leaves the weights as they are"),
        (request.faster.is_some(), "--faster chooses features of the model as it is"),
    ];
    if let Some((_, why)) = fixed.iter().find(|(is, _)| *is) {
        return Err(Error::input(format!(
            "the best way cannot be looked for: {why}; say which with --tune, or leave it away"
        )));
    }
    // What cannot be read judges nothing; it is listed when all is learnt from.
    let read = cpu.pool().map(data.len(), |i| data.get(i).is_ok());
    let rows: Vec<usize> = (0..data.len()).filter(|&i| read[i]).collect();
    let (all, _) = truth(data, &rows)?;
    let mut ways = ways(&all);
    let turns = if ways.len() > 1 { turns(&all)? } else { Vec::new() };
    for way in ways.iter_mut().filter(|_| !turns.is_empty()) {
        let start = Instant::now();
        (request.progress)(&format!("which way does best: {}", way.name()));
        let tuning = way.tuning(epochs, rate);
        let values: Result<Vec<Eval>> = turns
            .iter()
            .map(|(train, left_out)| {
                let of = |share: &[usize]| share.iter().map(|&at| rows[at]).collect::<Vec<_>>();
                let (train, left_out) = (of(train), of(left_out));
                let some = Subset { data, rows: &train };
                let wanted = Wanted { data: &some, ..request.wanted.clone() };
                let request = Request { wanted, test: None, tuning: tuning.clone(), ..*request };
                let meter = Meter::start(Path::new(SENSORS), Duration::ZERO);
                let taught = teach_metered(model, &request, meter, cpu)?;
                judge(&taught.model, task_of(&all), &Subset { data, rows: &left_out }, &request, cpu)
            })
            .collect();
        match values {
            Ok(values) => way.value = Some(pooled(&values, request.balanced)),
            // What no way can learn from is no question of ways.
            Err(error) if way.tune.is_none() => return Err(error),
            Err(error) => way.failed = Some(error.to_string()),
        }
        way.time = Number::measured(start.elapsed().as_secs_f64(), "s");
    }
    let taken = taken(&ways);
    ways[taken].taken = true;
    let request =
        Request { tuning: ways[taken].tuning(epochs, rate), wanted: request.wanted.clone(), ..*request };
    let mut taught = teach_metered(model, &request, meter, cpu)?;
    taught.report.ways = ways;
    Ok(taught)
}

/// What is tried with so many examples, by what it costs; with one way there is nothing to compare.
fn ways(truth: &Truth) -> Vec<Way> {
    let way = |tune, contrast| Way {
        tune,
        contrast,
        value: None,
        failed: None,
        time: Number::measured(0.0, "s"),
        taken: false,
    };
    let mut ways = vec![way(None, false)];
    match truth.rows() {
        ..FEWEST => {}
        FEWEST..FEW if matches!(truth, Truth::Classes { .. }) => ways.push(way(Some(Depth::All), true)),
        FEWEST..FEW => {}
        _ => {
            let depths = [Depth::Small, Depth::Lora(RANK), Depth::Last(0.5), Depth::All];
            ways.extend(depths.map(|depth| way(Some(depth), false)));
        }
    }
    ways
}

/// Positions to learn from and to judge by. Of each class there is something to learn from.
fn turns(truth: &Truth) -> Result<Vec<(Vec<usize>, Vec<usize>)>> {
    let count = truth.rows();
    let classes = match truth {
        Truth::Classes { of, .. } => Some(of.as_slice()),
        _ => None,
    };
    let share = LEFT_OUT.min(MOST / count.max(1) as f64);
    let shares = if count < FEW { vec![1.0 / TURNS as f64; TURNS] } else { vec![share] };
    let parts = split(count, &shares, SEED, classes)?;
    let mut turns = Vec::new();
    for mut left_out in parts {
        let out: HashSet<usize> = left_out.iter().copied().collect();
        let mut train: Vec<usize> = (0..count).filter(|at| !out.contains(at)).collect();
        if let Some(classes) = classes {
            let there: HashSet<usize> = train.iter().map(|&at| classes[at]).collect();
            let (judges, missing) = left_out.iter().partition(|&&at| there.contains(&classes[at]));
            train.extend::<Vec<usize>>(missing);
            left_out = judges;
        }
        train.sort_unstable();
        left_out.sort_unstable();
        if !left_out.is_empty() {
            turns.push((train, left_out));
        }
    }
    match turns.is_empty() {
        true => Err(Error::input(format!(
            "{count} examples are too few to hold some out; leave --tune best away"
        ))),
        false => Ok(turns),
    }
}

/// The mean over the turns, each as often as it has examples, with its interval.
fn pooled(turns: &[Eval], balanced: bool) -> Number {
    let total: f64 = turns.iter().map(|turn| turn.examples as f64).sum();
    let (mut value, mut variance, mut unit) = (0.0, 0.0, "");
    for turn in turns {
        let number = turn.macro_f1.as_ref().filter(|_| balanced).unwrap_or(&turn.value);
        let part = turn.examples as f64 / total;
        let wide = number.high.zip(number.low).map_or(0.0, |(high, low)| high - low);
        value += part * number.value;
        variance += (part * wide / 2.0).powi(2);
        unit = number.unit;
    }
    Number {
        low: Some(value - variance.sqrt()),
        high: Some(value + variance.sqrt()),
        ..Number::measured(value, unit)
    }
}

/// The first that is hardly worse than the best.
fn taken(ways: &[Way]) -> usize {
    let value = |way: &Way| way.value.as_ref().map_or(f64::NEG_INFINITY, |number| number.value);
    let Some(best) = ways.iter().max_by(|a, b| value(a).total_cmp(&value(b))) else { return 0 };
    let wide = best.value.as_ref().and_then(|number| Some((number.high? - number.low?) / 2.0));
    let error = wide.unwrap_or(0.0) / 1.96;
    ways.iter().position(|way| value(way) >= value(best) - ERRORS * error).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(value: Option<(f64, f64)>) -> Way {
        let value = value.map(|(value, wide)| Number {
            low: Some(value - wide),
            high: Some(value + wide),
            ..Number::measured(value, "%")
        });
        Way { value, ..ways(&Truth::Numbers(vec![0.0; 3])).remove(0) }
    }

    #[test]
    fn a_way_that_costs_more_is_taken_when_it_is_better_by_more_than_chance() {
        // Half of a standard error of 1.96 / 1.96.
        assert_eq!(taken(&[way(Some((80.0, 1.96))), way(Some((80.4, 1.96)))]), 0);
        assert_eq!(taken(&[way(Some((80.0, 1.96))), way(Some((80.6, 1.96)))]), 1);
        assert_eq!(taken(&[way(Some((80.0, 1.96))), way(None), way(Some((85.0, 1.96)))]), 2);
        assert_eq!(taken(&[way(Some((80.0, 1.96))), way(None)]), 0);
    }

    #[test]
    fn few_examples_are_left_out_in_turns_and_a_rare_class_is_always_learnt_from() {
        let few = Truth::Classes { of: (0..41).map(|i| if i == 7 { 2 } else { i % 2 }).collect(), count: 3 };
        let found = turns(&few).unwrap();
        assert_eq!(found.len(), TURNS);
        let mut seen: Vec<usize> = Vec::new();
        for (train, left_out) in &found {
            assert!(train.contains(&7) && !left_out.contains(&7));
            assert_eq!(train.len() + left_out.len(), 41);
            seen.extend(left_out);
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..41).filter(|at| *at != 7).collect::<Vec<_>>());
        let many = Truth::Classes { of: (0..1_000).map(|i| i % 2).collect(), count: 2 };
        let found = turns(&many).unwrap();
        assert_eq!((found.len(), found[0].0.len(), found[0].1.len()), (1, 800, 200));
        assert!(turns(&Truth::Classes { of: vec![0, 1], count: 2 }).is_err());
    }

    #[test]
    fn few_examples_are_compared_and_many_train_weights() {
        let names =
            |truth: &Truth| ways(truth).iter().map(|w| w.tune.map(|d| d.to_string())).collect::<Vec<_>>();
        let of = |count: usize| Truth::Classes { of: (0..count).map(|i| i % 2).collect(), count: 2 };
        assert_eq!(names(&of(FEWEST - 1)), [None]);
        assert_eq!(names(&of(FEW - 1)), [None, Some("all".into())]);
        assert!(ways(&of(FEW - 1))[1].contrast);
        assert_eq!(names(&of(FEW)).len(), 5);
        assert_eq!(names(&Truth::Numbers(vec![0.0; FEW - 1])), [None]);
    }
}
