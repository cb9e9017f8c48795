//! Labels that are probably wrong: confident learning (Northcutt, Jiang and Chuang, *Confident Learning: Estimating
//! Uncertainty in Dataset Labels*, 2021), pruned both by noise rate and by class.

use std::collections::HashSet;

use crate::{Error, Result};

/// An example whose label is probably wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Issue {
    /// Which example.
    pub row: usize,
    /// The class it is labelled with.
    pub given: usize,
    /// The class it probably is of.
    pub likely: usize,
    /// By how much that is more probable.
    pub margin: f64,
}

/// Finds examples whose labels are probably wrong, the surest first, by the probabilities of `count` classes that heads
/// give them which have not seen them, row by row. How many there are of each class that pass for each other is estimated.
/// So many with the widest margin are taken, and as many of each class as pass for any other, whose own class is the least
/// probable: issues are those that are both. No class loses all its examples.
///
/// # Errors
/// When there are not as many rows of probabilities as classes, or a class is none of `count`.
pub fn issues(of: &[usize], probabilities: &[f64], count: usize) -> Result<Vec<Issue>> {
    if count < 2 || probabilities.len() != of.len() * count || of.iter().any(|class| *class >= count) {
        return Err(Error::input(format!(
            "{} probabilities do not tell about {} labels of {count} classes",
            probabilities.len(),
            of.len()
        )));
    }
    let rows: Vec<&[f64]> = probabilities.chunks_exact(count).collect();
    let sizes = sizes(of, count);
    let noise = noise(of, &rows, &sizes, &thresholds(of, &rows, &sizes));
    let mut all = Vec::new();
    for given in 0..count {
        // As many of each kind as there are estimated to be, and one of the class stays at least.
        let wanted: Vec<usize> =
            (0..count).map(|likely| noise[given * count + likely].round() as usize).collect();
        let most = sizes[given].saturating_sub(1);
        let total: usize = (0..count).filter(|likely| *likely != given).map(|likely| wanted[likely]).sum();
        let share = if total > most { most as f64 / total as f64 } else { 1.0 };
        let mut least: Vec<(f64, usize)> =
            (0..of.len()).filter(|&row| of[row] == given).map(|row| (rows[row][given], row)).collect();
        least.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let least: HashSet<usize> = least.into_iter().take(total.min(most)).map(|(_, row)| row).collect();
        for likely in (0..count).filter(|likely| *likely != given) {
            let mut found: Vec<Issue> = (0..of.len())
                .filter(|&row| of[row] == given)
                .map(|row| Issue { row, given, likely, margin: rows[row][likely] - rows[row][given] })
                .collect();
            found.sort_by(|a, b| b.margin.total_cmp(&a.margin).then(a.row.cmp(&b.row)));
            found.truncate((wanted[likely] as f64 * share) as usize);
            all.extend(found.into_iter().filter(|issue| least.contains(&issue.row)));
        }
    }
    // A label that is the most probable is no issue; one issue a row.
    all.retain(|issue| issue.margin > 0.0);
    all.sort_by(|a, b| a.row.cmp(&b.row).then(b.margin.total_cmp(&a.margin)));
    all.dedup_by_key(|issue| issue.row);
    all.sort_by(|a, b| b.margin.total_cmp(&a.margin).then(a.row.cmp(&b.row)));
    Ok(all)
}

fn sizes(of: &[usize], count: usize) -> Vec<usize> {
    let mut sizes = vec![0; count];
    of.iter().for_each(|&class| sizes[class] += 1);
    sizes
}

/// How sure heads are of a class, on average, for examples with its label; never reached for classes without any.
fn thresholds(of: &[usize], rows: &[&[f64]], sizes: &[usize]) -> Vec<f64> {
    let mut sums = vec![0f64; sizes.len()];
    of.iter().zip(rows).for_each(|(&class, row)| sums[class] += row[class]);
    let mean = |(sum, &size): (f64, &usize)| if size == 0 { f64::INFINITY } else { sum / size as f64 };
    sums.into_iter().zip(sizes).map(mean).collect()
}

/// How many examples with each label (row) are of each class (column): the confident joint, calibrated to the number of
/// labels of each class.
fn noise(of: &[usize], rows: &[&[f64]], sizes: &[usize], thresholds: &[f64]) -> Vec<f64> {
    /// Rounding must not decide who is confident.
    const SLACK: f64 = 1e-6;
    let count = sizes.len();
    let mut joint = vec![0f64; count * count];
    for (&given, row) in of.iter().zip(rows) {
        let confident = (0..count).filter(|&class| row[class] >= thresholds[class] - SLACK);
        // The first of the most probable, as ties have to be broken.
        if let Some(likely) =
            confident.reduce(|best, class| if row[class] > row[best] { class } else { best })
        {
            joint[given * count + likely] += 1.0;
        }
    }
    for (given, &size) in sizes.iter().enumerate() {
        let row = &mut joint[given * count..][..count];
        let sum: f64 = row.iter().sum();
        match sum > 0.0 {
            true => row.iter_mut().for_each(|n| *n *= size as f64 / sum),
            false => row[given] = size as f64,
        }
    }
    joint
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn what_is_planted_is_found() {
        // Three classes, told apart with 90 % on average; a tenth of the labels is moved to the next class.
        let mut random = Random::new(11);
        let (mut of, mut probabilities, mut planted) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..3_000 {
            let class = row % 3;
            let sure = 0.8 + 0.19 * random.unit();
            probabilities.extend((0..3).map(|c| if c == class { sure } else { (1.0 - sure) / 2.0 }));
            let wrong = random.unit() < 0.1;
            of.push(if wrong { (class + 1) % 3 } else { class });
            if wrong {
                planted.push(row);
            }
        }
        let found = issues(&of, &probabilities, 3).unwrap();
        let mut rows: Vec<usize> = found.iter().map(|issue| issue.row).collect();
        rows.sort_unstable();
        // Not all are, as classes that are told apart less surely do not reach their thresholds.
        let right = rows.iter().filter(|row| planted.binary_search(row).is_ok()).count();
        assert!(
            right == rows.len() && right as f64 > 0.9 * planted.len() as f64,
            "{right} {}",
            planted.len()
        );
        assert!(found.iter().all(|issue| issue.given == (issue.likely + 1) % 3));
        assert!(found.windows(2).all(|w| w[0].margin >= w[1].margin));
    }

    #[test]
    fn the_joint_of_a_small_example() {
        // Worked out by hand: thresholds 0.6 and 0.65; rows 0, 1 are confident of 0, rows 2, 4 of 1, row 3 and 5 of none.
        let of = [0, 0, 0, 1, 1, 1];
        let first = [0.9, 0.8, 0.1, 0.45, 0.2, 0.4];
        let probabilities: Vec<f64> = first.iter().flat_map(|p| [*p, 1.0 - p]).collect();
        let rows: Vec<&[f64]> = probabilities.chunks_exact(2).collect();
        let sizes = sizes(&of, 2);
        let thresholds = thresholds(&of, &rows, &sizes);
        assert!((thresholds[0] - 0.6).abs() < 1e-12 && (thresholds[1] - 0.65).abs() < 1e-12);
        assert_eq!(noise(&of, &rows, &sizes, &thresholds), [2.0, 1.0, 0.0, 3.0]);
        let found = issues(&of, &probabilities, 2).unwrap();
        assert_eq!(found.iter().map(|i| (i.row, i.given, i.likely)).collect::<Vec<_>>(), [(2, 0, 1)]);
    }

    #[test]
    fn right_labels_are_left_alone_and_odd_ones_refused() {
        let probabilities = [0.9, 0.1, 0.2, 0.8, 0.7, 0.3, 0.4, 0.6];
        assert_eq!(issues(&[0, 1, 0, 1], &probabilities, 2).unwrap(), []);
        assert!(issues(&[0, 1, 0, 2], &probabilities, 2).is_err());
        assert!(issues(&[0, 1, 0], &probabilities, 2).is_err());
        // The only example of a class stays, however wrong it looks.
        assert_eq!(issues(&[0, 1], &[0.1, 0.9, 0.1, 0.9], 2).unwrap(), []);
    }
}
