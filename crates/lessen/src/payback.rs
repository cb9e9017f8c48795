//! What shrinking or teaching took in energy, and after how many runs of the model it is won back or equalled.

use meter::energy::Processor;
use meter::{Cost, Energy, Machine, Place};
use serde::Serialize;

use crate::receipt::Number;
use crate::shrink::Speed;

/// Energy that was spent once, and what each run takes before and after.
#[derive(Clone, Debug, Serialize)]
pub struct Payback {
    /// What shrinking or teaching took, with what the machine takes when idle.
    pub spent: Number,
    /// What of it is beyond an idle machine; `None` when it was measured and idling was not: then nothing is taken off.
    pub above_idle: Option<Number>,
    /// What one run of the original takes: the power of its threads and of the memory for the time of a run; `None` when that
    /// was not measured, or there is no original.
    pub before: Option<Number>,
    /// The same of the model that was made.
    pub after: Option<Number>,
    /// After so many runs it is won back; `None` when a run saves nothing or is not known.
    pub runs: Option<Number>,
    /// After so many runs of the model that was made these have taken as much; `None` when a run is not known.
    pub parity: Option<Number>,
    /// Where the energy comes from, for people.
    pub source: String,
    /// What was spent in carbon dioxide and money.
    pub cost: Cost,
    /// Where the machine stands, which that depends on.
    pub place: Place,
}

impl Payback {
    pub(crate) fn new(spent: &Energy, speed: Option<&Speed>, place: &Place) -> Payback {
        let run = |number: &Number| number.value / 1e3;
        let threads = speed.map_or(1, |s| s.threads);
        let (before, after) = (speed.map(|s| run(&s.before)), speed.map(|s| run(&s.after)));
        Payback::with(spent, before, after, threads, &meter::energy::processor(&Machine::this()), place)
    }

    /// Of teaching a model of which an example takes so many seconds on all these threads.
    pub(crate) fn taught(spent: &Energy, seconds: Option<f64>, threads: usize, place: &Place) -> Payback {
        Payback::with(spent, None, seconds, threads, &meter::energy::processor(&Machine::this()), place)
    }

    fn with(
        spent: &Energy,
        before: Option<f64>,
        after: Option<f64>,
        threads: usize,
        processor: &Processor,
        place: &Place,
    ) -> Payback {
        let whole = Processor { threads: threads.min(processor.threads), ..processor.clone() };
        let joules =
            |seconds: f64| Number::estimated(meter::energy::estimate(&whole, seconds, None).joules, "J");
        let (before, after) = (before.map(joules), after.map(joules));
        let runs = before.zip(after).and_then(|(b, a)| meter::payback::runs(spent.joules, b.value, a.value));
        let parity = after.and_then(|after| meter::payback::parity(spent.joules, after.value));
        let whole_runs = |runs: f64| Number::estimated(runs.ceil(), "runs");
        let known = |joules| match spent.measured {
            true => Number::measured(joules, "J"),
            false => Number::estimated(joules, "J"),
        };
        Payback {
            spent: known(spent.joules),
            above_idle: spent.above_idle().map(known),
            before,
            after,
            runs: runs.map(whole_runs),
            parity: parity.map(whole_runs),
            source: spent.source.clone(),
            cost: place.cost(spent),
            place: place.clone(),
        }
    }

    /// In a line.
    pub fn words(&self) -> String {
        let measured = self.spent.how == crate::receipt::How::Measured;
        let above = self.above_idle.map(|above| above.value);
        let mut text = meter::energy::words(self.spent.value, measured, above);
        let Place { intensity, name, per_kwh, per_hour, .. } = &self.place;
        let place = if name.is_empty() { String::new() } else { format!(", {name}") };
        text += &format!("; {:.2} g of CO2 at {intensity} g/kWh{place}", 1e3 * self.cost.co2);
        if *per_kwh > 0.0 || *per_hour > 0.0 {
            text += &format!("; money: {:.6}", self.cost.money);
        }
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => {
                text += &format!("; a run takes about {before:.4} before, {after:.4} after");
            }
            (None, Some(after)) => text += &format!("; a run takes about {after:.4}"),
            _ => {}
        }
        text + &match (&self.runs, &self.parity) {
            (Some(runs), _) => format!(": won back after about {:.0} runs", runs.value),
            (None, _) if self.before.is_some() => ": a run saves nothing here".into(),
            (None, Some(parity)) => format!(": as much after about {:.0} runs", parity.value),
            (None, None) => String::new(),
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
        // Two threads of 5 W: 0.2 J before, 0.1 J after.
        let place = Place { per_kwh: 0.3, per_hour: 0.72, ..Place::of("DEU", "").unwrap() };
        let found = Payback::with(&spent, Some(0.02), Some(0.01), 2, &processor, &place);
        // A 3,600th of a kilowatt-hour, and a 72nd of an hour.
        assert!(
            found.words().contains("; 0.11 g of CO2 at 381 g/kWh, Germany; money: 0.010083"),
            "{}",
            found.words()
        );
        assert!((found.before.unwrap().value - 0.2).abs() < 1e-12);
        assert_eq!((found.runs.unwrap().value, found.parity.unwrap().value), (10_000.0, 10_000.0));
        assert!(
            found.words().contains("measured") && found.words().contains("10000 runs"),
            "{}",
            found.words()
        );
        assert!(found.above_idle.is_none() && found.words().contains("idle machine takes is in it"));
        let found = Payback::with(&spent, Some(0.02), Some(0.03), 2, &processor, &Place::default());
        assert!(found.runs.is_none() && found.words().contains("saves nothing"));
        assert!(Payback::with(&spent, None, None, 2, &processor, &place).parity.is_none());
    }

    #[test]
    fn what_teaching_takes_is_equalled_by_runs() {
        let processor = Processor { name: "Any".into(), watts_each: 5.0, basis: "", threads: 1, memory: 0.0 };
        let spent = meter::energy::estimate(&processor, 10.0, Some(5.0));
        // 10 s of half a watt idle and 5 s of 4.5 W more; a run of 10 ms takes 50 mJ.
        let found = Payback::with(&spent, None, Some(0.01), 8, &processor, &Place::default());
        assert!(
            (found.spent.value - 27.5).abs() < 1e-9 && (found.above_idle.unwrap().value - 22.5).abs() < 1e-9
        );
        assert_eq!((found.runs, found.parity.unwrap().value), (None, 550.0));
        let words = found.words();
        assert!(
            words.contains("(estimated; 22 J of it") && words.contains("as much after about 550 runs"),
            "{words}"
        );
    }
}
