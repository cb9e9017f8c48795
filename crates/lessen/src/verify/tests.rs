use super::*;
use learn::data::Example;

/// Texts with targets.
struct Texts(Vec<(String, Target)>);

impl Dataset for Texts {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, i: usize) -> learn::Result<Example> {
        let (text, target) = self.0[i].clone();
        Ok(Example { id: format!("line {i}"), input: Input::Text(text), target })
    }

    fn target(&self, i: usize) -> Target {
        self.0[i].1.clone()
    }

    fn classes(&self) -> Option<&[String]> {
        None
    }

    fn describe(&self) -> String {
        "texts".into()
    }
}

fn row(values: &[f32]) -> Answer {
    Answer { outputs: vec![values.to_vec()], score: None, is_row: true, bar: 0.0 }
}

fn number_of(score: f64) -> Answer {
    Answer { outputs: vec![vec![score as f32]], score: Some(score), is_row: true, bar: 0.0 }
}

/// What models say before and after, by the usual metric.
fn answers<'a>(
    task: Task,
    data: &'a Texts,
    rows: &'a [usize],
    (before, after): (&'a [Answer], &'a [Answer]),
) -> Answers<'a> {
    Answers { task, data, rows, before, after, names: None, measure: &Measure::Usual }
}

#[test]
fn classes_flip_and_pay() {
    let data =
        Texts((0..8).map(|i| (format!("text  {i}\n{}", "x".repeat(300)), Target::Class(i % 2))).collect());
    let rows: Vec<usize> = (0..8).collect();
    let before: Vec<Answer> =
        rows.iter().map(|i| if i % 2 == 0 { row(&[2.0, 0.0]) } else { row(&[0.0, 2.0]) }).collect();
    let mut after = before.clone();
    after[3] = row(&[2.0, 0.0]);
    after[4] = row(&[1.9, 0.0]);
    let names = ["no".to_string(), "yes".to_string()];
    let answers = Answers { names: Some(&names), ..answers(Task::Classify, &data, &rows, (&before, &after)) };
    let found = answers.verify().unwrap();
    let flips = found.flips.unwrap();
    assert_eq!((flips.changed, flips.lost, flips.won), (1, Some(1), Some(0)));
    assert_eq!(found.agreement.unwrap().value, 87.5);
    let classes: Vec<_> = found.classes.iter().map(|c| (c.name.as_deref(), c.lost)).collect();
    assert_eq!(classes, [(Some("no"), 0), (Some("yes"), 1)]);
    // One of eight moved from (0.119, 0.881) to its mirror image: 0.7616 * 2 nats.
    let divergence = found.divergence.unwrap();
    assert!((divergence.max.value - 1.5232).abs() < 1e-3, "{divergence:?}");
    assert!(divergence.mean.value > divergence.max.value / 8.0 - 1e-9);
    let calibration = found.calibration.unwrap();
    // All right with confidence 0.8808; then seven of that and six right, and one right of 0.8699.
    assert!((calibration.before.value - 11.920).abs() < 1e-3, "{calibration:?}");
    assert!((calibration.after.value - 3.696).abs() < 1e-3, "{calibration:?}");
    let worst: Vec<_> = found.worst.iter().map(|w| (w.index, w.flipped)).collect();
    assert_eq!(worst, [(3, true), (4, false)]);
    // A class that is lost comes before outputs that moved further.
    let mut more = after.clone();
    more[5] = row(&[0.0, 9.0]);
    let moved = Answers { after: &more, ..answers }.verify().unwrap().worst;
    assert_eq!(moved.iter().map(|w| w.index).collect::<Vec<_>>(), [3, 5, 4]);
    let first = &found.worst[0];
    assert_eq!((first.id.as_str(), first.target.as_deref()), ("line 3", Some("yes")));
    assert_eq!((first.before.as_deref(), first.after.as_deref()), (Some("yes"), Some("no")));
    assert!(first.text[0].starts_with("text 3 x") && first.text[0].chars().count() == TEXT + 1);
    let (little, much) = (answers.within(0.01).unwrap().unwrap(), answers.within(0.5).unwrap().unwrap());
    assert!(little < 0.3 && much > 0.9, "{little} {much}");
}

#[test]
fn scores_are_correlated() {
    let data = Texts((0..10).map(|i| (format!("{i}"), Target::Score(f64::from(i)))).collect());
    let rows: Vec<usize> = (0..10).collect();
    let before: Vec<Answer> = (0..10).map(|i| number_of(f64::from(i) / 10.0)).collect();
    let mut after = before.clone();
    after[7] = number_of(0.2);
    let answers = answers(Task::Similarity, &data, &rows, (&before, &after));
    let found = answers.verify().unwrap();
    assert!(found.flips.is_none() && found.classes.is_empty() && found.divergence.is_none());
    assert_eq!(found.correlations.len(), 2);
    let spearman = &found.correlations[0];
    assert!((spearman.a.value - 1.0).abs() < 1e-12 && spearman.difference.value < -0.1);
    assert!((found.score_change.unwrap().value - 0.05).abs() < 1e-12);
    assert_eq!(found.worst.len(), 1);
    assert_eq!((found.worst[0].index, found.worst[0].after.as_deref()), (7, Some("0.2000")));
    assert!(answers.within(1.0).unwrap().unwrap() > 0.99);
    assert!(answers.within(0.0).unwrap().unwrap() < 0.6);
}

#[test]
fn answers_without_truths_agree_or_not() {
    let data = Texts((0..20).map(|i| (format!("{i}"), Target::None)).collect());
    let rows: Vec<usize> = (0..20).collect();
    let before: Vec<Answer> = rows.iter().map(|_| row(&[0.9, 0.1])).collect();
    let mut after = before.clone();
    after[0] = row(&[0.1, 0.9]);
    after[1] = row(&[f32::INFINITY, 0.0]);
    let answers = answers(Task::Agree, &data, &rows, (&before, &after));
    let found = answers.verify().unwrap();
    let flips = found.flips.unwrap();
    assert_eq!((flips.changed, flips.lost, flips.p), (1, None, None));
    assert!(found.divergence.is_none(), "an infinite answer has no probabilities");
    assert!(found.calibration.is_none() && found.classes.is_empty());
    assert_eq!(found.worst.iter().map(|w| w.index).collect::<Vec<_>>(), [0, 1]);
    assert!(answers.within(0.3).unwrap().unwrap() > 0.95);
}
