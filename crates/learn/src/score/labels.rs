//! Answers that are sets of labels: each example has any number of them.

use super::{ClassCount, same_length};

/// The counts of each label; whether a label holds stands at its index.
pub fn by_label(answers: &[&[bool]], truth: &[&[bool]]) -> Vec<ClassCount> {
    let labels = answers.iter().chain(truth).map(|row| row.len()).max().unwrap_or(0);
    let mut counts = vec![ClassCount::default(); labels];
    for (answer, truth) in answers.iter().zip(truth) {
        for ((count, answer), truth) in counts.iter_mut().zip(answer.iter()).zip(truth.iter()) {
            count.answered += usize::from(*answer);
            count.truth += usize::from(*truth);
            count.right += usize::from(*answer && *truth);
        }
    }
    counts
}

/// F1 of all labels of all examples together; `None` when none holds and none is named.
pub fn micro_f1(answers: &[&[bool]], truth: &[&[bool]]) -> Option<f64> {
    same_length(answers, truth).ok()?;
    let mut all = ClassCount::default();
    for count in by_label(answers, truth) {
        all.answered += count.answered;
        all.truth += count.truth;
        all.right += count.right;
    }
    all.f1()
}

/// The mean of F1 over the labels that hold or are named for an example.
pub fn label_macro_f1(answers: &[&[bool]], truth: &[&[bool]]) -> Option<f64> {
    same_length(answers, truth).ok()?;
    let found: Vec<f64> = by_label(answers, truth).iter().filter_map(ClassCount::f1).collect();
    (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f1_of_all_labels_and_of_each() {
        let truth: [&[bool]; 3] = [&[true, false, false], &[true, true, false], &[false, false, false]];
        let answers: [&[bool]; 3] = [&[true, true, false], &[true, false, false], &[false, false, false]];
        // Two of three that are named are right, two of three that hold are named.
        assert!((micro_f1(&answers, &truth).unwrap() - 2.0 / 3.0).abs() < 1e-12);
        // 1 and 0; the third neither holds nor is named.
        assert_eq!(label_macro_f1(&answers, &truth), Some(0.5));
        assert_eq!(micro_f1(&truth, &truth), Some(1.0));
        let none: [&[bool]; 1] = [&[false, false]];
        assert_eq!((micro_f1(&none, &none), label_macro_f1(&none, &none)), (None, None));
        assert_eq!(micro_f1(&[], &[]), None);
    }
}
