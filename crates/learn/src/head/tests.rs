use super::*;
use crate::linear::Cholesky;
use crate::random::Random;

pub(super) fn cpu() -> Cpu {
    Cpu::new(2).unwrap()
}

/// Examples of classes around means that lie `apart`, in coordinates of unequal spread.
pub(super) fn clouds(
    rows: usize,
    columns: usize,
    count: usize,
    apart: f64,
    seed: u64,
) -> (Features, Vec<usize>) {
    let mut random = Random::new(seed);
    let means: Vec<f64> = (0..count * columns).map(|_| apart * random.normal()).collect();
    let of: Vec<usize> = (0..rows).map(|i| i % count).collect();
    let mut values = Vec::new();
    for class in &of {
        let shared = random.normal();
        for j in 0..columns {
            let spread = 0.5 + j as f64 / columns as f64;
            values.push((3.0 + means[class * columns + j] + spread * random.normal() + 0.7 * shared) as f32);
        }
    }
    (Features::new(columns, values).unwrap(), of)
}

fn right(scores: &[f32], of: &[usize], count: usize) -> f64 {
    let best = |row: &[f32]| (0..count).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    let right = scores.chunks(count).zip(of).filter(|(row, class)| best(row) == **class).count();
    right as f64 / of.len() as f64
}

/// Weights on the coordinates and a bias that is not penalised, by the normal equations, without example `out`.
fn least_squares(problem: &Problem, out: usize, penalty: f64) -> Vec<Vec<f64>> {
    let (size, outputs) = (problem.basis.size(), problem.truth.outputs());
    let n = size + 1;
    let targets = problem.truth.targets();
    let mut matrix = vec![0f64; n * n];
    let mut rows = vec![0f64; outputs * n];
    for i in (0..problem.rows()).filter(|&i| i != out) {
        let z: Vec<f64> = problem.basis.row(i).iter().map(|&z| f64::from(z)).chain([1.0]).collect();
        for a in 0..n {
            for b in 0..n {
                matrix[a * n + b] += problem.masses[i] * z[a] * z[b];
            }
            for k in 0..outputs {
                rows[k * n + a] += problem.masses[i] * z[a] * f64::from(targets[i * outputs + k]);
            }
        }
    }
    (0..size).for_each(|j| matrix[j * n + j] += penalty * problem.rows() as f64);
    Cholesky::new(&matrix, n).unwrap().solve(&mut rows);
    rows.chunks(n).map(<[f64]>::to_vec).collect()
}

#[test]
fn losses_are_compared_example_by_example() {
    let others: Vec<f64> = (0..50).map(|i| f64::from(i % 7)).collect();
    let moved = |by: f64, noise: f64| -> Vec<f64> {
        others.iter().enumerate().map(|(i, x)| x + by + noise * if i % 2 == 0 { 1.0 } else { -1.0 }).collect()
    };
    // The mean is about 3, the error of what noise of 1 adds 0.14.
    assert!(hardly_worse(&moved(0.05, 1.0), &others) && !hardly_worse(&moved(0.1, 1.0), &others));
    assert!(!hardly_worse(&moved(0.1, 0.1), &others) && hardly_worse(&moved(-9.0, 0.0), &others));
    assert!(
        surely_near(&moved(0.05, 0.01), &others, 0.02) && !surely_near(&moved(0.07, 0.01), &others, 0.02)
    );
    assert!(!surely_near(&moved(0.0, 1.0), &others, 0.02), "it may be worse");
    assert!(surely_near(&moved(-0.2, 1.0), &others, 0.0) && surely_near(&others, &others, 0.0));
}

#[test]
fn leave_one_out_errors_are_those_of_leaving_out() {
    let cpu = cpu();
    // More examples than features, and fewer; penalties all together, some at a time, one by one.
    for (rows, columns, count) in [(40, 6, 2), (14, 30, 2), (40, 6, 7), (140, 6, 70)] {
        let (features, mut of) = clouds(rows, columns, count, 0.3, 1);
        of[3] = 0;
        of[rows - 2] = 3 % count;
        let truth = Truth::Classes { of, count };
        let problem = Problem::new(&features, &truth, true, 0, &cpu).unwrap();
        let ridge = ridge::fit(&problem).unwrap();
        let penalty = ridge.penalty.unwrap();
        for i in [0, 3, rows - 1] {
            let weights = least_squares(&problem, i, penalty);
            for (k, weights) in weights.iter().enumerate() {
                let z = problem.basis.row(i).iter().map(|&z| f64::from(z)).chain([1.0]);
                let want: f64 = z.zip(weights).map(|(z, w)| z * w).sum();
                let found = f64::from(ridge.unseen.scores[count * i + k]);
                assert!((found - want).abs() < 2e-4, "{rows} {i}: {found} {want}");
            }
        }
        // The head is that of all examples, in the features' own terms.
        let weights = least_squares(&problem, rows, penalty);
        let scores = ridge.head.scores(&cpu, &features);
        for i in 0..rows {
            let z = problem.basis.row(i).iter().map(|&z| f64::from(z)).chain([1.0]);
            let want: f64 = z.zip(&weights[0]).map(|(z, w)| z * w).sum();
            assert!((f64::from(scores[count * i]) - want).abs() < 2e-4);
        }
    }
}

#[test]
fn products_of_columns_are_those_of_each_two() {
    // More columns than a panel, more rows than a block.
    for (rows, columns) in [(7, 450), (4_100, 3), (0, 2)] {
        let x: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 + i / 11) % 19) as f32 / 19.0 - 0.4).collect();
        let found = basis::products(&x, columns, 0.5, &cpu());
        for (i, j) in [
            (0, 0),
            (0, columns - 1),
            (columns - 1, 0),
            (columns / 2, columns / 3),
            (columns - 1, columns - 1),
        ] {
            let pairs = x.chunks_exact(columns).map(|row| f64::from(row[i]) * f64::from(row[j]));
            let want = 0.5 * pairs.sum::<f64>();
            assert!((found[i * columns + j] - want).abs() < 1e-4 * want.abs().max(1.0), "{i} {j}");
        }
    }
}

#[test]
fn the_logistic_head_of_all_examples_is_at_the_least_loss() {
    let cpu = cpu();
    let (features, of) = clouds(200, 5, 3, 0.8, 4);
    let problem =
        Problem::new(&features, &Truth::Classes { of: of.clone(), count: 3 }, false, 0, &cpu).unwrap();
    let fitted = logistic::fit(&problem).unwrap();
    let truth = Truth::Classes { of, count: 3 };
    let loss = |head: &Linear| {
        let scores = head.scores(&cpu, &features);
        let each = scores
            .chunks_exact(3)
            .enumerate()
            .map(|(i, row)| log_loss(&truth, i, &row.iter().map(|&s| f64::from(s)).collect::<Vec<_>>()));
        each.sum::<f64>() / 200.0
    };
    // No penalty is on biases: none of them is better elsewhere.
    let least = loss(&fitted.head);
    for (k, by) in (0..3).flat_map(|k| [(k, 0.02), (k, -0.02)]) {
        let mut head = fitted.head.clone();
        head.bias[k] += by;
        assert!(loss(&head) > least - 1e-6, "bias {k}");
    }
}

#[test]
fn every_method_tells_clouds_apart_and_says_how_well() {
    let cpu = cpu();
    let (features, of) = clouds(300, 12, 3, 0.8, 3);
    let (seen, unseen): (Vec<usize>, Vec<usize>) = (0..300).partition(|i| i % 2 == 0);
    let truth = Truth::Classes { of, count: 3 };
    let (train, test) = (truth.select(&seen), truth.select(&unseen));
    let problem_features = features.select(&seen);
    let problem = Problem::new(&problem_features, &train, false, 0, &cpu).unwrap();
    let Truth::Classes { of: test, .. } = test else { unreachable!() };
    let Truth::Classes { of: train_of, .. } = &train else { unreachable!() };
    for method in Method::ALL {
        let fitted = problem.fit(method).unwrap();
        let scores = fitted.head.scores(&cpu, &features.select(&unseen));
        let (said, true_share) = (right(&fitted.unseen.scores, train_of, 3), right(&scores, &test, 3));
        assert!(true_share > 0.9, "{method}: {true_share}");
        assert!((said - true_share).abs() < 0.08, "{method} says {said}, it is {true_share}");
        // Probabilities are neither too sharp nor too flat.
        let loss = problem.loss(&fitted);
        assert!(loss < 0.3, "{method}: {loss}");
    }
    let best = problem.best(&Method::ALL).unwrap();
    assert_eq!(best.len(), 4);
    assert!(problem.loss(&best[0]) <= problem.loss(&best[3]));
}

#[test]
fn the_evidence_is_the_probability_of_the_answers() {
    let cpu = cpu();
    for (rows, columns) in [(30, 4), (12, 20)] {
        let (features, of) = clouds(rows, columns, 2, 0.3, 11);
        let truth = Truth::Classes { of: of.clone(), count: 2 };
        let problem = Problem::new(&features, &truth, false, 0, &cpu).unwrap();
        let found = problem.evidences()[1];
        // The answers are normal, with this covariance.
        let mut covariance = vec![0f64; rows * rows];
        for a in 0..rows {
            for b in 0..rows {
                let (x, y) = (problem.basis.row(a), problem.basis.row(b));
                let dot: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                covariance[a * rows + b] = dot / found.weights + if a == b { 1.0 / found.noise } else { 0.0 };
            }
        }
        let mean = of.iter().sum::<usize>() as f64 / rows as f64;
        let y: Vec<f64> = of.iter().map(|&class| class as f64 - mean).collect();
        let mut solved = y.clone();
        Cholesky::new(&covariance, rows).unwrap().solve(&mut solved);
        let distance: f64 = y.iter().zip(&solved).map(|(a, b)| a * b).sum();
        let (values, _) = crate::linear::eigen(&covariance, rows).unwrap();
        let volume: f64 = values.iter().map(|v| v.ln()).sum();
        let log = -0.5 * (distance + volume + rows as f64 * (2.0 * std::f64::consts::PI).ln());
        assert!((log / rows as f64 - found.value).abs() < 1e-3, "{} {}", log / rows as f64, found.value);
    }
    // Features that say more make the answers more probable.
    let value = |apart| {
        let (features, of) = clouds(100, 8, 2, apart, 12);
        Problem::new(&features, &Truth::Classes { of, count: 2 }, false, 0, &cpu).unwrap().evidence()
    };
    assert!(value(0.1) < value(0.3) && value(0.3) < value(1.0));
}

#[test]
fn means_leave_their_own_example_out() {
    let cpu = cpu();
    let (features, of) = clouds(9, 4, 3, 1.0, 4);
    let truth = Truth::Classes { of: of.clone(), count: 3 };
    let problem = Problem::new(&features, &truth, false, 0, &cpu).unwrap();
    let fitted = centroid::fit(&problem).unwrap();
    let size = problem.basis.size();
    for i in 0..9 {
        for class in 0..3 {
            let members: Vec<usize> = (0..9).filter(|&k| of[k] == class && k != i).collect();
            let mean = |j| {
                let sum: f64 = members.iter().map(|&k| f64::from(problem.basis.row(k)[j])).sum();
                sum / members.len() as f64
            };
            let want: f64 =
                (0..size).map(|j| f64::from(problem.basis.row(i)[j]) * mean(j) - mean(j).powi(2) / 2.0).sum();
            assert!((f64::from(fitted.unseen.scores[3 * i + class]) - want).abs() < 1e-4);
        }
    }
}

#[test]
fn numbers_are_learnt_from_numbers() {
    let cpu = cpu();
    let (features, _) = clouds(80, 5, 2, 0.1, 5);
    let numbers: Vec<f64> =
        (0..80).map(|i| 2.0 * f64::from(features.row(i)[1]) - f64::from(features.row(i)[4]) + 7.0).collect();
    let truth = Truth::Numbers(numbers.clone());
    let problem = Problem::new(&features, &truth, false, 0, &cpu).unwrap();
    let fitted = problem.fit(Method::Ridge).unwrap();
    for (found, want) in fitted.head.scores(&cpu, &features).iter().zip(&numbers) {
        assert!((f64::from(*found) - want).abs() < 1e-2);
    }
    assert!(problem.fit(Method::Discriminant).unwrap_err().to_string().contains("ridge do"));
}

#[test]
fn rare_classes_count_as_much_when_balanced() {
    let cpu = cpu();
    let (all, of) = clouds(600, 6, 2, 0.25, 6);
    let rows: Vec<usize> = (0..600).filter(|i| of[*i] == 0 || i % 20 == 1).collect();
    let (features, of) = (all.select(&rows), rows.iter().map(|&i| of[i]).collect::<Vec<_>>());
    let truth = Truth::Classes { of: of.clone(), count: 2 };
    let recall = |balanced, method| {
        let problem = Problem::new(&features, &truth, balanced, 0, &cpu).unwrap();
        let scores = problem.fit(method).unwrap().unseen.scores;
        let rare: Vec<usize> = (0..of.len()).filter(|&i| of[i] == 1).collect();
        rare.iter().filter(|&&i| scores[2 * i + 1] > scores[2 * i]).count() as f64 / rare.len() as f64
    };
    for method in [Method::Ridge, Method::Discriminant, Method::Logistic] {
        let (plain, balanced) = (recall(false, method), recall(true, method));
        assert!(balanced > plain + 0.1, "{method}: {plain} {balanced}");
    }
}

#[test]
fn threads_change_nothing() {
    let (features, of) = clouds(200, 10, 3, 0.4, 7);
    let truth = Truth::Classes { of, count: 3 };
    let heads = [1, 2].map(|threads| {
        let cpu = Cpu::new(threads).unwrap();
        let problem = Problem::new(&features, &truth, false, 0, &cpu).unwrap();
        Method::ALL.map(|method| problem.fit(method).unwrap().head)
    });
    assert_eq!(heads[0], heads[1]);
}

#[test]
fn what_cannot_be_learnt_is_said() {
    let cpu = cpu();
    let (features, of) = clouds(10, 3, 2, 1.0, 8);
    let fails = |truth: Truth| Problem::new(&features, &truth, false, 0, &cpu).err().unwrap().to_string();
    assert!(fails(Truth::Classes { of: vec![1; 10], count: 2 }).contains("all 10 examples are of class 1"));
    assert!(fails(Truth::Classes { of: of.clone(), count: 3 }).contains("class 2 of 3"));
    assert!(fails(Truth::Classes { of: of.clone(), count: 1 }).contains("class 1 of 1"));
    assert!(fails(Truth::Classes { of: of[..4].to_vec(), count: 2 }).contains("4 answers for 10"));
    assert!(
        fails(Truth::Labels { of: [true, false].repeat(10), count: 2 })
            .contains("label 0 of 2 holds for each")
    );
    assert!(fails(Truth::Numbers([vec![1.0; 9], vec![f64::NAN]].concat())).contains("example 9 is NaN"));
    assert!(fails(Truth::Numbers(vec![1.0; 10])).contains("is 1"));
    let same = Features::new(3, vec![1.0; 30]).unwrap();
    let truth = Truth::Classes { of, count: 2 };
    assert!(Problem::new(&same, &truth, false, 0, &cpu).err().unwrap().to_string().contains("the same"));
    assert!(Features::new(3, vec![1.0; 8]).is_err());
    let nan = Features::new(2, vec![1.0, 2.0, 3.0, f32::NAN]).unwrap_err().to_string();
    assert!(nan.contains("feature 1 of example 1"), "{nan}");
}

#[test]
fn features_that_hardly_move_get_no_great_weights() {
    let cpu = cpu();
    let (clouds, of) = clouds(200, 3, 2, 0.5, 9);
    let mut random = Random::new(5);
    let tiny = [1e-33, 1e-8, 1e-3];
    let values = (0..200).flat_map(|i| {
        let small = tiny.map(|size| (size * random.normal()) as f32);
        [clouds.row(i), &small].concat()
    });
    let features = Features::new(6, values.collect()).unwrap();
    let problem = Truth::Classes { of, count: 2 };
    let problem = Problem::new(&features, &problem, false, 0, &cpu).unwrap();
    for method in Method::ALL {
        let mut head = problem.fit(method).unwrap().head;
        let greatest = |column: usize| head.weight[column].abs().max(head.weight[6 + column].abs());
        assert!(greatest(3) < 1.0 && greatest(4) > 1.0, "{method}: {:?}", head.weight);
        let before = head.scores(&cpu, &features);
        head.calm(&features);
        assert!(head.weight[4] == 0.0 && head.weight[10] == 0.0 && head.weight[0] != 0.0);
        assert!(
            before.iter().zip(head.scores(&cpu, &features)).all(|(a, b)| (a - b).abs() < 0.5 * a.abs() + 0.5)
        );
    }
}

#[test]
fn columns_of_any_scale_come_to_variance_1() {
    let features = Features::new(3, vec![1000., 0.1, 7., 3000., 0.3, 7., 2000., 0.2, 7.]).unwrap();
    let (low, high) = (-(1.5f32.sqrt()), 1.5f32.sqrt());
    let want = [low, low, 0., high, high, 0., 0., 0., 0.];
    let found = features.standardized();
    assert!(found.values().iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?}");
}
