//! When it pays: energy spent once, on training, teaching or shrinking, against energy saved at each run after it.

/// After how many runs it pays: what was spent over what a run saves; `None` when a run saves nothing. Energies are of any
/// one unit.
pub fn runs(spent: f64, before: f64, after: f64) -> Option<f64> {
    let saved = before - after;
    (saved > 0.0 && spent >= 0.0 && spent.is_finite()).then(|| spent / saved)
}

/// After how many runs what was spent on training is equalled by what running takes.
pub fn parity(training: f64, run: f64) -> Option<f64> {
    runs(training, run, 0.0)
}

/// The part of all energy over a model's life that running takes.
pub fn share_of_running(training: f64, run: f64, count: f64) -> f64 {
    let running = run * count;
    if running + training > 0.0 { running / (running + training) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Luccioni, Jernite and Strubell, *Power hungry processing: watts driving the cost of AI deployment?*, 2024: BLOOMz's
    /// training and fine-tuning (kWh), a run (kWh), and the millions of runs that equal them.
    #[test]
    fn what_was_published_comes_out() {
        for (training, tuning, run, millions) in [
            (10_505.0, 543.0, 5.4e-5, 204.6),
            (17_052.0, 1_081.0, 6.2e-5, 292.5),
            (25_634.0, 3_242.0, 7.3e-5, 395.6),
            (51_686.0, 7_571.0, 1.0e-4, 592.6),
        ] {
            let runs = parity(training + tuning, run).unwrap();
            assert!((runs / 1e6 - millions).abs() < 0.1, "{runs} {millions}");
            let share = |count| share_of_running(training + tuning, run, count);
            assert!((share(runs) - 0.5).abs() < 1e-12);
            // The 80 to 90 % that running takes where models are much in use: four to nine times as many runs.
            assert!((share(4.0 * runs) - 0.8).abs() < 1e-12 && (share(9.0 * runs) - 0.9).abs() < 1e-12);
        }
    }

    #[test]
    fn what_saves_nothing_never_pays() {
        assert_eq!(runs(1000.0, 2.0, 1.5), Some(2000.0));
        assert_eq!(runs(1000.0, 1.0, 1.0), None);
        assert_eq!(runs(1000.0, 1.0, 2.0), None);
        assert_eq!(runs(f64::NAN, 2.0, 1.0), None);
        assert_eq!(share_of_running(0.0, 0.0, 10.0), 0.0);
    }
}
