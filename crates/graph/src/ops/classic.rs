//! Operators of ONNX's domain for classical models that scale, fill in, and weigh features: `Scaler`, `Normalizer`,
//! `Binarizer`, `Imputer`, `LinearRegressor`, `LinearClassifier`, `ArrayFeatureExtractor`.
//! <https://github.com/onnx/onnx/blob/main/docs/Operators-ml.md>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::cells::{Cell, build, by_cell};
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// An operator on rows of features.
#[derive(Debug)]
pub struct Classic {
    line: usize,
    attrs: Attrs,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Scale {
        offset: Vec<f32>,
        scale: Vec<f32>,
    },
    Normalize(Norm),
    /// Greater than the threshold?
    Binarize(f32),
    /// In place of this number stand these, one in all or one a feature.
    Impute {
        missing: f32,
        values: Vec<f32>,
    },
    Regress(Linear),
    Classify(Linear, Labels),
    /// The features with these numbers.
    Extract,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Norm {
    Max,
    L1,
    L2,
}

/// Weighted sums of the features, one for each target.
#[derive(Debug)]
struct Linear {
    weights: Vec<f32>,
    shifts: Vec<f32>,
    targets: usize,
    after: After,
}

/// What is made of the sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    Softmax,
    /// Sums that are zero stay so.
    SoftmaxOfOthers,
    Logistic,
}

#[derive(Debug)]
enum Labels {
    Ints(Vec<i64>),
    Texts(Vec<String>),
}

const DOMAIN: &str = "ai.onnx.ml";

const fn line(
    name: &'static str,
    read: fn(&Reader) -> Result<Arc<dyn Op>>,
    samples: fn() -> Vec<Sample>,
) -> OpDef {
    OpDef { name, domain: DOMAIN, since: 1, read, samples }
}

fn on_rows(line: usize, attrs: Attrs) -> Vec<Sample> {
    vec![Sample::read(&DEFS[line], attrs, vec![ramp(&[4, 3])])]
}

fn floats(values: &[f32]) -> Attr {
    Attr::Floats(values.to_vec())
}

pub(crate) static DEFS: &[OpDef] = &[
    line(
        "Scaler",
        |r| {
            let list = |name| Ok(r.attrs.opt_floats(name)?.unwrap_or_default());
            op(0, r, Step::Scale { offset: list("offset")?, scale: list("scale")? })
        },
        || on_rows(0, Attrs::new().with("offset", floats(&[0.5, 1.0, 0.0])).with("scale", floats(&[2.0]))),
    ),
    line(
        "Normalizer",
        |r| {
            let norm = match r.attrs.text_or("norm", "MAX")? {
                "MAX" => Norm::Max,
                "L1" => Norm::L1,
                "L2" => Norm::L2,
                other => return Err(Error::invalid(format!("there is no norm {other:?}"))),
            };
            op(1, r, Step::Normalize(norm))
        },
        || {
            ["MAX", "L1", "L2"]
                .map(|n| on_rows(1, Attrs::new().text("norm", n)))
                .into_iter()
                .flatten()
                .collect()
        },
    ),
    line(
        "Binarizer",
        |r| op(2, r, Step::Binarize(r.attrs.float_or("threshold", 0.0)?)),
        || on_rows(2, Attrs::new().float("threshold", 0.25)),
    ),
    line(
        "Imputer",
        |r| {
            let Some(values) = r.attrs.opt_floats("imputed_value_floats")?.filter(|v| !v.is_empty()) else {
                return Err(Error::unsupported("Imputer without imputed_value_floats"));
            };
            op(3, r, Step::Impute { missing: r.attrs.float_or("replaced_value_float", 0.0)?, values })
        },
        || on_rows(3, Attrs::new().with("imputed_value_floats", floats(&[7.0, 8.0, 9.0]))),
    ),
    line(
        "LinearRegressor",
        |r| {
            let targets = r.attrs.int_or("targets", 1)?;
            op(4, r, Step::Regress(Linear::read(r, usize::try_from(targets).unwrap_or_default())?))
        },
        || on_rows(4, Attrs::new().with("coefficients", floats(&[1.0, -2.0, 0.5]))),
    ),
    line(
        "LinearClassifier",
        |r| {
            let labels = match r.attrs.opt_ints("classlabels_ints")?.filter(|l| !l.is_empty()) {
                Some(list) => Labels::Ints(list),
                None => Labels::Texts(r.attrs.opt_texts("classlabels_strings")?.unwrap_or_default()),
            };
            // Two classes may share one sum.
            let shifts = r.attrs.opt_floats("intercepts")?.map_or(labels.len(), |list| list.len());
            if labels.len() != shifts && (labels.len(), shifts) != (2, 1) {
                return Err(Error::invalid(format!("{shifts} intercepts for {} classes", labels.len())));
            }
            op(5, r, Step::Classify(Linear::read(r, shifts)?, labels))
        },
        || {
            let ints = Attrs::new().ints("classlabels_ints", &[3, 5]).text("post_transform", "SOFTMAX");
            let ints = ints.with("coefficients", floats(&[1.0, -2.0, 0.5, 2.0, 0.25, -1.0]));
            let texts = vec![b"no".to_vec().into(), b"yes".to_vec().into()];
            let texts = Attrs::new()
                .with("classlabels_strings", Attr::Texts(texts))
                .text("post_transform", "LOGISTIC");
            let texts =
                texts.with("coefficients", floats(&[1.0, -2.0, 0.5])).with("intercepts", floats(&[0.1]));
            let samples = [ints, texts].map(|attrs| on_rows(5, attrs)).into_iter().flatten();
            samples.map(|s| s.outputs(2)).collect()
        },
    ),
    line(
        "ArrayFeatureExtractor",
        |r| op(6, r, Step::Extract),
        || vec![Sample::read(&DEFS[6], Attrs::new(), vec![ramp(&[2, 4]), Tensor::vector(&[3i64, 0])])],
    ),
];

fn op(line: usize, r: &Reader, step: Step) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Classic { line, attrs: r.attrs.clone(), step }))
}

impl Labels {
    fn len(&self) -> usize {
        match self {
            Labels::Ints(list) => list.len(),
            Labels::Texts(list) => list.len(),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Labels::Ints(_) => DType::I64,
            Labels::Texts(_) => DType::String,
        }
    }

    /// The labels of these classes.
    fn of(&self, classes: &[usize]) -> Result<Tensor> {
        match self {
            Labels::Ints(list) => Ok(Tensor::vector(
                &classes.iter().filter_map(|&c| list.get(c).copied()).collect::<Vec<i64>>(),
            )),
            Labels::Texts(list) => Tensor::strings(
                &[classes.len()],
                classes.iter().filter_map(|&c| list.get(c).cloned()).collect(),
            ),
        }
    }
}

impl Linear {
    fn read(r: &Reader, targets: usize) -> Result<Linear> {
        let after = match r.attrs.text_or("post_transform", "NONE")? {
            "NONE" => After::Nothing,
            "SOFTMAX" => After::Softmax,
            "SOFTMAX_ZERO" => After::SoftmaxOfOthers,
            "LOGISTIC" => After::Logistic,
            other => return Err(Error::unsupported(format!("post_transform {other:?}"))),
        };
        let weights = r.attrs.opt_floats("coefficients")?.unwrap_or_default();
        let shifts = r.attrs.opt_floats("intercepts")?.unwrap_or_default();
        if targets == 0 || !shifts.is_empty() && shifts.len() != targets {
            return Err(Error::invalid(format!("{} intercepts for {targets} targets", shifts.len())));
        }
        Ok(Linear { weights, shifts, targets, after })
    }

    /// The sums of rows of `width` features.
    fn sums(&self, x: &[f32], rows: usize, width: usize) -> Result<Tensor> {
        if Some(self.weights.len()) != width.checked_mul(self.targets) {
            let count = self.weights.len();
            return Err(Error::invalid(format!(
                "{count} coefficients for {} times {width} features",
                self.targets
            )));
        }
        Tensor::build(&[rows, self.targets], |to: &mut [f32]| {
            for (i, to) in to.iter_mut().enumerate() {
                let (row, target) = (i / self.targets, i % self.targets);
                let weights = &self.weights[target * width..(target + 1) * width];
                let sum: f32 =
                    x[row * width..(row + 1) * width].iter().zip(weights).map(|(x, w)| x * w).sum();
                *to = sum + self.shifts.get(target).unwrap_or(&0.0);
            }
            Ok(())
        })
    }
}

impl After {
    fn apply(self, row: &mut [f32]) {
        let others = self == After::SoftmaxOfOthers;
        match self {
            After::Nothing => {}
            After::Logistic => row.iter_mut().for_each(|v| *v = logistic(*v)),
            After::Softmax | After::SoftmaxOfOthers => {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let zero = |v: f32| others && v.abs() < 1e-7;
                row.iter_mut().for_each(|v| *v = if zero(*v) { 0.0 } else { (*v - most).exp() });
                let sum: f32 = row.iter().sum();
                if sum > 0.0 {
                    row.iter_mut().for_each(|v| *v /= sum);
                }
            }
        }
    }
}

fn logistic(v: f32) -> f32 {
    1.0 / (1.0 + (-v).exp())
}

impl Norm {
    fn apply(self, row: &mut [f32]) {
        let size = match self {
            Norm::Max => row.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            Norm::L1 => row.iter().map(|v| v.abs()).sum(),
            Norm::L2 => row.iter().map(|v| v * v).sum::<f32>().sqrt(),
        };
        if size != 0.0 {
            row.iter_mut().for_each(|v| *v /= size);
        }
    }
}

/// The number of this feature in a list of one for all, or one for each.
fn of_feature(list: &[f32], feature: usize, width: usize) -> Result<f32> {
    match list.len() {
        1 => Ok(list[0]),
        n if n == width => Ok(list[feature]),
        n => Err(Error::invalid(format!("{n} numbers for {width} features"))),
    }
}

impl Step {
    /// Changes rows of `width` features in place.
    fn apply(&self, x: &mut [f32], width: usize) -> Result<()> {
        for row in x.chunks_exact_mut(width.max(1)) {
            match self {
                Step::Normalize(norm) => norm.apply(row),
                Step::Binarize(threshold) => {
                    row.iter_mut().for_each(|v| *v = f32::from(u8::from(*v > *threshold)))
                }
                _ => {}
            }
            for (i, v) in row.iter_mut().enumerate() {
                match self {
                    Step::Scale { offset, scale } => {
                        *v = (*v - of_feature(offset, i, width)?) * of_feature(scale, i, width)?;
                    }
                    Step::Impute { missing, values } if *v == *missing || v.is_nan() && missing.is_nan() => {
                        *v = of_feature(values, i, width)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn classify(sums: Tensor, after: After, labels: &Labels) -> Result<Vec<Tensor>> {
    let (rows, targets) = (sums.shape()[0], sums.shape()[1]);
    let from = sums.as_slice::<f32>()?;
    let mut classes = Vec::with_capacity(rows);
    let columns = labels.len();
    let scores = Tensor::build(&[rows, columns], |to: &mut [f32]| {
        for (from, to) in from.chunks_exact(targets).zip(to.chunks_exact_mut(columns)) {
            if let ([sum], [no, yes]) = (from, &mut *to) {
                classes.push(usize::from(*sum > 0.0));
                (*no, *yes) = match after {
                    After::Logistic => (logistic(-*sum), logistic(*sum)),
                    _ => (1.0 - *sum, *sum),
                };
                continue;
            }
            let best = from.iter().enumerate().fold(0, |best, (i, v)| if *v > from[best] { i } else { best });
            classes.push(best);
            to.copy_from_slice(from);
            after.apply(to);
        }
        Ok(())
    })?;
    Ok(vec![labels.of(&classes)?, scores])
}

/// The elements of the last axis with these numbers.
fn extract<T: Cell>(x: &Tensor, picked: &[i64]) -> Result<Tensor> {
    let mut shape = x.shape().to_vec();
    let width = shape.pop().unwrap_or(1);
    if shape.is_empty() {
        shape.push(1);
    }
    shape.push(picked.len());
    let from = T::of(x)?;
    build(x.dtype(), &shape, |to: &mut [T]| {
        for (i, to) in to.iter_mut().enumerate() {
            let at = picked[i % picked.len()];
            let at = usize::try_from(at).ok().filter(|&at| at < width);
            let at = at.ok_or_else(|| {
                Error::invalid(format!("no feature {} of {width}", picked[i % picked.len()]))
            })?;
            *to = from[i / picked.len() * width + at].clone();
        }
        Ok(())
    })
}

impl Op for Classic {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.line]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let x = inputs.need(0)?;
        let rows = match x.shape() {
            Some([rows, _]) => rows.clone(),
            Some([_]) => 1.into(),
            _ => Dim::Unknown,
        };
        let table = |columns: usize| Fact::tensor(DType::F32, vec![rows.clone(), columns.into()]);
        Ok(match &self.step {
            Step::Extract => {
                let mut shape = x.shape().map(<[Dim]>::to_vec);
                if let Some(shape) = &mut shape {
                    shape.pop();
                    if shape.is_empty() {
                        shape.push(1.into());
                    }
                    shape.push(inputs.get(1).and_then(Fact::count).map_or(Dim::Unknown, Dim::from));
                }
                vec![Fact::maybe(x.dtype(), shape)]
            }
            Step::Regress(linear) => vec![table(linear.targets)],
            Step::Classify(_, labels) => {
                vec![Fact::tensor(labels.dtype(), vec![rows.clone()]), table(labels.len())]
            }
            _ => vec![Fact::maybe(Some(DType::F32), x.shape().map(<[Dim]>::to_vec))],
        })
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        if let Step::Extract = self.step {
            let picked = inputs.need(1)?.to_ints()?;
            return Ok(vec![by_cell!(x.dtype(), extract(x, &picked))?]);
        }
        let (rows, width) = match *x.shape() {
            [rows, width] => (rows, width),
            [width] => (1, width),
            _ => {
                return Err(Error::invalid(format!(
                    "rows of features are needed, not shape {:?}",
                    x.shape()
                )));
            }
        };
        if matches!(self.step, Step::Impute { .. }) && x.dtype() != DType::F32 {
            return Err(Error::unsupported(format!("Imputer on {}", x.dtype())));
        }
        let mut values = x.to_f32()?.into_owned();
        match &self.step {
            Step::Regress(linear) => {
                let mut sums = linear.sums(&values, rows, width)?;
                sums.as_mut_slice::<f32>()?
                    .chunks_exact_mut(linear.targets)
                    .for_each(|row| linear.after.apply(row));
                Ok(vec![sums])
            }
            Step::Classify(linear, labels) => {
                classify(linear.sums(&values, rows, width)?, linear.after, labels)
            }
            step => {
                step.apply(&mut values, width)?;
                Ok(vec![Tensor::new(x.shape(), &values)?])
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against onnxruntime.
    #[test]
    fn scores_of_two_classes() -> Result<()> {
        let labels = Labels::Ints(vec![3, 4]);
        let one = Tensor::new(&[3, 1], &[2.0f32, -0.6, 0.0])?;
        let found = classify(one.clone(), After::Nothing, &labels)?;
        assert_eq!(found[0].to_ints()?, [4, 3, 3]);
        assert_eq!(*found[1].to_f32()?, [-1.0, 2.0, 1.6, -0.6, 1.0, 0.0]);
        let found = classify(one, After::Logistic, &labels)?[1].to_f32()?.into_owned();
        assert!((found[0] - 0.119_203).abs() < 1e-6 && (found[1] - 0.880_797).abs() < 1e-6);
        let two = Tensor::new(&[2, 2], &[2.1f32, -0.75, 0.1, 0.0])?;
        let found = classify(two, After::SoftmaxOfOthers, &labels)?;
        assert_eq!(found[0].to_ints()?, [3, 3]);
        let scores = found[1].to_f32()?.into_owned();
        assert!((scores[0] - 0.945_318_7).abs() < 1e-6);
        assert_eq!(scores[2..], [1.0, 0.0]);
        Ok(())
    }

    #[test]
    fn missing_numbers_are_filled_in() -> Result<()> {
        let step = Step::Impute { missing: f32::NAN, values: vec![5.0, 6.0] };
        let mut x = [f32::NAN, 1.0, 2.0, f32::NAN];
        step.apply(&mut x, 2)?;
        assert_eq!(x, [5.0, 1.0, 2.0, 6.0]);
        assert!(step.apply(&mut [f32::NAN; 3], 3).is_err());
        Ok(())
    }
}
