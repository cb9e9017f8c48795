//! What shrinking took in energy, and after how many runs of the smaller model it is won back.

use meter::energy::Processor;
use meter::{Energy, Machine};
use serde::Serialize;

use crate::receipt::Number;
use crate::shrink::Speed;

/// Energy that was spent once, and what each run takes before and after.
#[derive(Clone, Debug, Serialize)]
pub struct Payback {
    /// What shrinking took.
    pub spent: Number,
    /// What one run of the original takes: the power of its threads and of the memory for the time of a run; `None` when that
    /// was not measured.
    pub before: Option<Number>,
    /// The same of the smaller model.
    pub after: Option<Number>,
    /// After so many runs it is won back; `None` when a run saves nothing or is not known.
    pub runs: Option<Number>,
    /// Where the energy comes from, for people.
    pub source: String,
}

impl Payback {
    pub(crate) fn new(spent: &Energy, speed: Option<&Speed>) -> Payback {
        let processor = meter::energy::processor(&Machine::this());
        Payback::with(spent, speed, &processor)
    }

    fn with(spent: &Energy, speed: Option<&Speed>, processor: &Processor) -> Payback {
        let joules = |run: &Number, threads: usize| {
            let seconds = run.value / 1e3;
            let threads = threads.min(processor.threads);
            let whole = Processor { threads, ..processor.clone() };
            Number::estimated(meter::energy::estimate(&whole, seconds, None).joules, "J")
        };
        let before = speed.map(|s| joules(&s.before, s.threads));
        let after = speed.map(|s| joules(&s.after, s.threads));
        let runs = before.zip(after).and_then(|(b, a)| meter::payback::runs(spent.joules, b.value, a.value));
        Payback {
            spent: match spent.measured {
                true => Number::measured(spent.joules, "J"),
                false => Number::estimated(spent.joules, "J"),
            },
            before,
            after,
            runs: runs.map(|runs| Number::estimated(runs.ceil(), "runs")),
            source: spent.source.clone(),
        }
    }

    /// In a line.
    pub fn words(&self) -> String {
        let how = |n: &Number| if n.how == crate::receipt::How::Measured { "measured" } else { "estimated" };
        let mut text = format!("{:.0} ({})", self.spent, how(&self.spent));
        if let (Some(before), Some(after)) = (&self.before, &self.after) {
            text += &format!("; a run takes about {before:.4} before, {after:.4} after");
        }
        text + &match &self.runs {
            Some(runs) => format!(": won back after about {:.0} runs", runs.value),
            None if self.before.is_some() => ": a run saves nothing here".into(),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_once_is_won_back_by_runs() {
        let processor = Processor { name: "Any".into(), watts_each: 5.0, basis: "", threads: 4, memory: 0.0 };
        let spent = Energy {
            joules: 1000.0,
            idle: None,
            seconds: 50.0,
            measured: true,
            source: "RAPL".into(),
            parts: Vec::new(),
        };
        let speed = |after: f64| Speed {
            before: Number::measured(20.0, "ms"),
            after: Number::measured(after, "ms"),
            faster: Number::measured(20.0 / after, "x"),
            threads: 2,
        };
        // Two threads of 5 W: 0.2 J before, 0.1 J after.
        let found = Payback::with(&spent, Some(&speed(10.0)), &processor);
        assert!((found.before.unwrap().value - 0.2).abs() < 1e-12);
        assert_eq!(found.runs.unwrap().value, 10_000.0);
        assert!(
            found.words().contains("measured") && found.words().contains("10000 runs"),
            "{}",
            found.words()
        );
        let found = Payback::with(&spent, Some(&speed(30.0)), &processor);
        assert!(found.runs.is_none() && found.words().contains("saves nothing"));
        assert!(Payback::with(&spent, None, &processor).runs.is_none());
    }
}
