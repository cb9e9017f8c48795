//! Parts of a data set that share no example, such as one half to calibrate with and one to judge by.

use crate::random::Random;
use crate::{Error, Result};

/// Splits the indices `0..n` at random into parts of the sizes `fractions` (their sum is at most 1; what they
/// leave is in no part). With `classes`, the class of each index, every part has its share of every class, to
/// within one or two examples. The parts share no index; each is in random order; the same arguments give the
/// same parts.
///
/// # Errors
/// [`Error::Input`] when a fraction is not in 0..1, their sum is above 1, or the number of classes is not `n`.
pub fn split(n: usize, fractions: &[f64], seed: u64, classes: Option<&[usize]>) -> Result<Vec<Vec<usize>>> {
    let sum: f64 = fractions.iter().sum();
    if !fractions.iter().all(|f| (0.0..=1.0).contains(f)) || sum > 1.0 + 1e-9 {
        return Err(Error::input(format!("{fractions:?} are not fractions of a whole")));
    }
    if let Some(classes) = classes.filter(|classes| classes.len() != n) {
        return Err(Error::input(format!("{} classes are given for {n} examples", classes.len())));
    }
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    random.shuffle(&mut order);
    let class = |&i: &usize| classes.map_or(0, |classes| classes[i]);
    order.sort_by_key(class);

    let mut parts = vec![Vec::new(); fractions.len()];
    // How many examples the parts up to each one should have and have had, over the classes so far: what rounding
    // takes from one class it gives to the next.
    let mut seen = 0;
    let mut given = vec![0; fractions.len()];
    for group in order.chunk_by(|a, b| class(a) == class(b)) {
        seen += group.len();
        let mut cumulative = 0.0;
        let mut start = 0;
        for ((part, fraction), given) in parts.iter_mut().zip(fractions).zip(&mut given) {
            cumulative += fraction;
            let due = (cumulative.min(1.0) * seen as f64).round() as usize;
            let end = due.saturating_sub(*given).clamp(start, group.len());
            part.extend_from_slice(&group[start..end]);
            *given += end;
            start = end;
        }
    }
    parts.iter_mut().for_each(|part| random.shuffle(part));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves() {
        let parts = split(10, &[0.5, 0.5], 7, None).unwrap();
        assert_eq!([parts[0].len(), parts[1].len()], [5, 5]);
        assert_eq!(parts, split(10, &[0.5, 0.5], 7, None).unwrap());
        assert_ne!(parts, split(10, &[0.5, 0.5], 8, None).unwrap());
        assert!(split(10, &[0.7, 0.7], 7, None).is_err());
        assert!(split(10, &[f64::NAN], 7, None).is_err());
        assert!(split(10, &[0.5], 7, Some(&[1])).is_err());
        assert_eq!(split(3, &[0.1, 0.2, 0.7], 1, None).unwrap().iter().map(Vec::len).sum::<usize>(), 3);
    }

    proptest! {
        #[test]
        fn parts_are_disjoint_and_fair(
            classes in prop::collection::vec(0usize..5, 0..200),
            fractions in prop::collection::vec(0.0..0.25f64, 1..5),
            seed: u64,
        ) {
            let parts = split(classes.len(), &fractions, seed, Some(&classes)).unwrap();
            let mut all: Vec<usize> = parts.concat();
            all.sort();
            let before = all.len();
            all.dedup();
            prop_assert_eq!(all.len(), before);
            prop_assert!(all.last().is_none_or(|&i| i < classes.len()));
            for (part, fraction) in parts.iter().zip(&fractions) {
                for class in 0..5 {
                    let has = part.iter().filter(|&&i| classes[i] == class).count() as f64;
                    let due = classes.iter().filter(|&&c| c == class).count() as f64 * fraction;
                    prop_assert!((has - due).abs() <= 2.0, "{} of {}", has, due);
                }
            }
        }
    }
}
