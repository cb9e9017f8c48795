//! Time: a stopwatch, and two things measured side by side so that a machine that speeds up or slows down meanwhile
//! touches both alike.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Runs from the moment it is made.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts.
    pub fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// The time since the start or the last lap, which ends now.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now - self.0;
        self.0 = now;
        lap
    }

    /// The seconds since the start or the last lap; it runs on.
    pub fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// Seconds that the threads of this process, and of the processes it has waited for, have worked together, from Linux's
/// `/proc/self/stat` (proc(5)); elsewhere it is not known.
pub fn cpu() -> Option<f64> {
    ticks(&std::fs::read_to_string("/proc/self/stat").ok()?).map(|ticks| ticks as f64 / TICKS)
}

/// Ticks a second: what Linux shows to processes, whatever its own clock does.
const TICKS: f64 = 100.0;

/// User and system time of the process and of its children.
fn ticks(stat: &str) -> Option<u64> {
    // The name of the program, in brackets, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

/// How measured numbers are spread. All fields are NaN when nothing was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// 5 % are below.
    pub p5: f64,
    /// The median.
    pub median: f64,
    /// 5 % are above.
    pub p95: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// The spread of these numbers, in any order; between two of them quantiles are interpolated. NaNs are left out.
    pub fn of(samples: &[f64]) -> Spread {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|x| !x.is_nan()).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let quantile = |q: f64| match sorted.len() {
            0 => f64::NAN,
            n => {
                let at = q * (n - 1) as f64;
                let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
                if low == high { low } else { low + (high - low) * at.fract() }
            }
        };
        Spread {
            min: quantile(0.0),
            p5: quantile(0.05),
            median: quantile(0.5),
            p95: quantile(0.95),
            max: quantile(1.0),
        }
    }
}

/// Two things measured side by side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Race {
    /// How often each was run.
    pub rounds: usize,
    /// Seconds of the first.
    pub a: Spread,
    /// Seconds of the second.
    pub b: Spread,
    /// Seconds of `a` over seconds of `b`, round by round: how many times faster `b` is.
    pub ratio: Spread,
    /// 95 % interval of the median of the ratios.
    pub interval: (f64, f64),
}

/// How long a race goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounds {
    /// At least so many rounds.
    pub least: usize,
    /// No round begins after so long, once there were enough of them.
    pub time: Duration,
    /// It is over when the ends of the interval are within this share of the median.
    pub within: f64,
}

/// Runs `a` and `b` once each to warm up, then in turns, the first of a round being the second of the next; at least one
/// round.
pub fn interleave(rounds: Rounds, mut a: impl FnMut(), mut b: impl FnMut()) -> Race {
    a();
    b();
    let watch = Stopwatch::start();
    let least = rounds.least.max(1);
    let mut times = (Vec::with_capacity(least), Vec::with_capacity(least));
    loop {
        if times.0.len() % 2 == 0 {
            times.0.push(seconds(&mut a));
            times.1.push(seconds(&mut b));
        } else {
            times.1.push(seconds(&mut b));
            times.0.push(seconds(&mut a));
        }
        // The median is looked at now and then: sorting must not take the time of what is timed.
        if times.0.len() < least || times.0.len() % least != 0 {
            continue;
        }
        let race = race(&times.0, &times.1);
        let (low, high) = race.interval;
        let apart = (race.ratio.median - low).max(high - race.ratio.median);
        if apart <= rounds.within * race.ratio.median || watch.seconds() >= rounds.time.as_secs_f64() {
            return race;
        }
    }
}

/// The 95 % interval of the median, between order statistics (no distribution is assumed: normal approximation of the
/// binomial; Conover, Practical Nonparametric Statistics, section 3.2). The whole range for fewer than six numbers.
fn interval_of_median(samples: &[f64]) -> (f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (Some(&first), Some(&last)) = (sorted.first(), sorted.last()) else { return (f64::NAN, f64::NAN) };
    let n = sorted.len() as f64;
    let below = (n / 2.0 - 1.96 * n.sqrt() / 2.0).floor();
    if below < 1.0 {
        return (first, last);
    }
    let below = below as usize;
    (sorted[below - 1], sorted[sorted.len() - below])
}

fn seconds(run: &mut impl FnMut()) -> f64 {
    let watch = Stopwatch::start();
    run();
    watch.seconds()
}

fn race(a: &[f64], b: &[f64]) -> Race {
    // A clock too coarse to see `b` run gives no ratio.
    let ratios: Vec<f64> = a.iter().zip(b).filter(|(_, b)| **b > 0.0).map(|(a, b)| a / b).collect();
    let interval = interval_of_median(&ratios);
    Race { rounds: a.len(), a: Spread::of(a), b: Spread::of(b), ratio: Spread::of(&ratios), interval }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn quantiles() {
        let samples: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(Spread::of(&samples), Spread { min: 0.0, p5: 5.0, median: 50.0, p95: 95.0, max: 100.0 });
        assert_eq!(Spread::of(&[1.0, 2.0]).median, 1.5);
        assert_eq!(Spread::of(&[3.0, f64::NAN]).max, 3.0);
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn turns_alternate() {
        let order = RefCell::new(String::new());
        let rounds = |least| Rounds { least, time: Duration::ZERO, within: f64::INFINITY };
        let race = interleave(rounds(3), || order.borrow_mut().push('a'), || order.borrow_mut().push('b'));
        assert_eq!(order.into_inner(), "ababbaab");
        assert_eq!(race.rounds, 3);
        assert_eq!(interleave(rounds(0), || (), || ()).rounds, 1);
    }

    #[test]
    fn a_race_ends_when_the_ratio_is_known_or_the_time_over() {
        let rest = |ms| move || std::thread::sleep(Duration::from_millis(ms));
        let sure = Rounds { least: 6, time: Duration::from_secs(60), within: 1e6 };
        assert_eq!(interleave(sure, rest(1), rest(1)).rounds, 6);
        let never = Rounds { least: 4, time: Duration::from_millis(60), within: 0.0 };
        let race = interleave(never, rest(2), rest(1));
        assert!(race.rounds >= 8 && race.rounds % 4 == 0, "{race:?}");
        assert!(race.interval.0 <= race.ratio.median && race.ratio.median <= race.interval.1);
    }

    #[test]
    fn medians_lie_within_their_intervals() {
        // Of 100 numbers the 40th and the 61st, as the tables have it.
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(interval_of_median(&samples), (40.0, 61.0));
        assert_eq!(interval_of_median(&[3.0, 1.0, 2.0]), (1.0, 3.0));
        assert!(interval_of_median(&[]).0.is_nan());
    }

    #[test]
    fn ratio_is_by_round() {
        let race = race(&[2.0, 30.0, 6.0], &[1.0, 10.0, 3.0]);
        assert_eq!((race.ratio.min, race.ratio.median, race.ratio.max), (2.0, 2.0, 3.0));
        assert_eq!((race.a.median, race.b.median), (6.0, 3.0));
        assert!(super::race(&[1.0], &[0.0]).ratio.median.is_nan());
    }

    #[test]
    fn ticks_of_a_process_and_its_children() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 200 3 4 11 22 33 44 20 0 1 0 99 1000 5";
        assert_eq!(ticks(stat), Some(110));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn a_stopwatch_goes_forward() {
        let mut watch = Stopwatch::start();
        let first = watch.seconds();
        assert!(watch.seconds() >= first);
        assert!(watch.lap().as_secs_f64() >= first);
    }
}
