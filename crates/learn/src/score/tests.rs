use super::*;

fn near(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} is not {b}");
}

const X: [f64; 10] = [1.0, 2.0, 2.0, 3.0, 5.0, 8.0, 8.0, 8.0, 9.0, 0.5];
const Y: [f64; 10] = [2.0, 1.0, 4.0, 3.0, 3.0, 9.0, 7.0, 9.0, 8.0, 2.0];

/// The numbers of scipy 1.x and scikit-learn for the same input.
#[test]
fn known_answers() {
    near(spearman(&X, &Y).unwrap(), 0.8323141916249217);
    near(pearson(&X, &Y).unwrap(), 0.9166023254705032);
    near(mcnemar(3, 12), 0.03515625);
    near(mcnemar(80, 40), 0.00033040001839131815);
    near(mcnemar(5, 5), 1.0);
    near(mcnemar(0, 0), 1.0);
    assert!(mcnemar(5000, 6000) < 1e-20 && mcnemar(0, 5000) == 0.0);
    let share = wilson(894, 899);
    near(share.low, 0.9870469150425024);
    near(share.high, 0.9976220889277249);
    near(wilson(0, 10).high, 0.27753279986288926);
    assert_eq!((wilson(0, 10).low, wilson(10, 10).high), (0.0, 1.0));
    let (truth, answers) = ([0, 0, 1, 1, 2, 2, 2, 3], [0, 1, 1, 1, 2, 0, 2, 2]);
    near(macro_f1(&answers, &truth).unwrap(), 0.4916666666666667);
    let recall: Vec<_> = by_class(&answers, &truth).iter().map(|c| c.1.recall().unwrap()).collect();
    assert_eq!(recall, [0.5, 1.0, 2.0 / 3.0, 0.0]);
    near(accuracy(&answers, &truth).unwrap(), 0.625);
}

#[test]
fn no_value() {
    assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), None);
    assert_eq!(pearson(&[0.1; 3], &[1.0, 2.0, 4.0]), None);
    assert_eq!(spearman(&[f64::NAN, 1.0], &[1.0, 2.0]), None);
    assert_eq!(spearman(&[1.0], &[1.0, 2.0]), None);
    assert_eq!(accuracy(&[], &[]), None);
    assert!(accuracy_interval(&[1], &[]).is_err());
    assert!(with_interval(pearson, &[1.0; 5], &X[..5], 1).is_err());
    assert!(with_interval(pearson, &[], &[], 1).is_err());
    assert!(bootstrap(0, 1, |_| Some(1.0)).is_err());
}

#[test]
fn bootstrap_is_seeded_and_covers() {
    let one = with_interval(spearman, &X, &Y, 1).unwrap();
    assert_eq!(one, with_interval(spearman, &X, &Y, 1).unwrap());
    assert_ne!(one, with_interval(spearman, &X, &Y, 2).unwrap());
    assert!(one.low < one.value && one.value <= one.high && one.high <= 1.0);
    // The share of 300 in 400: the bootstrap and Wilson agree to about a hundredth.
    let truth = vec![1; 400];
    let answers: Vec<usize> = (0..400).map(|i| usize::from(i % 4 != 0)).collect();
    let (a, b) = (with_interval(accuracy, &answers, &truth, 3).unwrap(), wilson(300, 400));
    assert!((a.low - b.low).abs() < 0.01 && (a.high - b.high).abs() < 0.01, "{a:?} {b:?}");
}

/// Answers of two models with these counts: both right, lost, won, neither.
fn answers([both, lost, won, neither]: [usize; 4]) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
    let column = |a, b, n| std::iter::repeat_n((a, b), n);
    let pairs =
        column(1, 1, both).chain(column(1, 2, lost)).chain(column(3, 1, won)).chain(column(4, 5, neither));
    let (a, b): (Vec<_>, Vec<_>) = pairs.unzip();
    let truth = vec![1; a.len()];
    (a, b, truth)
}

#[test]
fn two_models() {
    let (a, b, truth) = answers([90, 6, 2, 2]);
    let found = flips(&a, &b, &truth).unwrap();
    assert_eq!((found.both, found.lost, found.won, found.neither, found.changed), (90, 6, 2, 2, 10));
    near(found.p, 0.2890625);
    near(agreement(&a, &b).unwrap().value, 0.9);
    let change = difference(accuracy, &a, &b, &truth, 5).unwrap();
    near(change.value, -0.04);
    assert!(change.low < -0.06 && change.high > -0.02 && change.high < 0.05, "{change:?}");
    let exact = accuracy_difference(&a, &b, &truth).unwrap();
    near(exact.value, -0.04);
    assert!((exact.low - change.low).abs() < 0.03 && (exact.high - change.high).abs() < 0.03, "{exact:?}");
    assert!(flips(&a, &b[1..], &truth).is_err());
    assert!(difference(macro_f1, &a[1..], &b, &truth, 1).is_err());
}

/// The example of Newcombe's article: 36 both, 12 and 2 changed, of 50: 0.0569 to 0.3404.
#[test]
fn newcombe() {
    let (a, b, truth) = answers([36, 2, 12, 0]);
    let found = accuracy_difference(&a, &b, &truth).unwrap();
    near(found.value, 0.2);
    assert!((found.low - 0.0569).abs() < 5e-5 && (found.high - 0.3404).abs() < 5e-5, "{found:?}");
    let (a, b, truth) = answers([100, 0, 0, 0]);
    let same = accuracy_difference(&a, &b, &truth).unwrap();
    assert!(same.low < -0.03 && same.high > 0.03, "no change in 100 proves little: {same:?}");
}

#[test]
fn classes_are_told_apart_and_chance_is_discounted() {
    // Class 0: 10 of 10 become 2 of 10. Class 1: nothing moves. Class 2: one of one is won.
    let truth: Vec<usize> = [vec![0; 10], vec![1; 20], vec![2]].concat();
    let a: Vec<usize> = [vec![0; 10], vec![1; 20], vec![0]].concat();
    let b: Vec<usize> = [vec![1; 8], vec![0; 2], vec![1; 20], vec![2]].concat();
    let found = class_changes(&a, &b, &truth).unwrap();
    assert_eq!(found.iter().map(|c| (c.class, c.examples)).collect::<Vec<_>>(), [(0, 10), (1, 20), (2, 1)]);
    let [hurt, same, won] = [found[0], found[1], found[2]];
    assert_eq!((hurt.lost, hurt.won, hurt.before.value, hurt.after.value), (8, 0, 1.0, 0.2));
    near(hurt.p, 3.0 * 2.0 / 256.0);
    assert!(hurt.change.high < -0.3 && hurt.change.low >= -1.0, "{hurt:?}");
    assert_eq!((same.lost, same.won, same.p, same.change.value), (0, 0, 1.0, 0.0));
    assert_eq!((won.lost, won.won, won.p), (0, 1, 1.0));
    assert!(class_changes(&a[1..], &b, &truth).is_err() && class_changes(&[], &[], &[]).is_err());
}

#[test]
fn samples_give_shares_and_quantiles() {
    let samples = difference_samples(spearman, &X, &Y, &Y, 1).unwrap();
    assert_eq!(samples.interval(), difference(spearman, &X, &Y, &Y, 1).unwrap());
    assert_eq!((samples.share_at_least(-2.0), samples.share_at_least(2.0)), (1.0, 0.0));
    assert!(samples.share_at_least(samples.quantile(0.25)) >= 0.75);
    assert!(samples.quantile(0.0) <= samples.quantile(0.5) && samples.quantile(0.5) <= samples.quantile(2.0));
    let found = mean(&[1.0, 2.0, 6.0], 1).unwrap();
    assert!(found.value == 3.0 && found.low < 3.0 && found.high <= 6.0);
    assert!(mean(&[1.0, f64::INFINITY], 1).unwrap_err().to_string().contains("number 1"));
    assert!(mean(&[], 1).is_err());
}
