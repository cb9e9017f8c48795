//! What the models of ai.onnx.ml do with their scores at the end: `post_transform`, and labels of classes.
//! <https://onnx.ai/onnx/operators/index_ai_onnx_ml.html>

use crate::op::Facts;
use crate::{Attrs, DType, Dim, Error, Fact, Result, Tensor};

/// How scores become what is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Post {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl Post {
    /// By its name.
    pub fn read(attrs: &Attrs) -> Result<Post> {
        Ok(match attrs.text_or("post_transform", "NONE")? {
            "NONE" => Post::None,
            "SOFTMAX" => Post::Softmax,
            "LOGISTIC" => Post::Logistic,
            "SOFTMAX_ZERO" => Post::SoftmaxZero,
            "PROBIT" => Post::Probit,
            other => return Err(Error::unsupported(format!("post_transform {other:?}"))),
        })
    }

    /// By its number.
    pub fn numbered(number: i64) -> Result<Post> {
        let all = [Post::None, Post::Softmax, Post::Logistic, Post::SoftmaxZero, Post::Probit];
        let found = usize::try_from(number).ok().and_then(|n| all.get(n));
        found.copied().ok_or_else(|| Error::invalid(format!("post_transform {number}")))
    }

    /// Changes the scores of one example.
    pub fn apply(self, scores: &mut [f64]) {
        match self {
            Post::None => {}
            Post::Logistic => scores.iter_mut().for_each(|s| *s = logistic(*s)),
            Post::Probit => scores.iter_mut().for_each(|s| *s = probit(*s)),
            Post::Softmax | Post::SoftmaxZero => {
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                for s in scores.iter_mut() {
                    // A score of 0 is none at all then.
                    let none = self == Post::SoftmaxZero && s.abs() <= 1e-7;
                    *s = if none { *s * (-most).exp() } else { (*s - most).exp() };
                }
                let sum: f64 = scores.iter().sum();
                scores.iter_mut().for_each(|s| *s /= sum);
            }
        }
    }
}

/// What a model of `[examples, features]` makes: scores `[examples, targets]`, after the label of each example where
/// there are labels.
pub(crate) fn infer(
    inputs: &Facts,
    dtype: Option<DType>,
    targets: usize,
    labels: Option<&Tensor>,
) -> Vec<Fact> {
    let n = match inputs.shape(0) {
        Some([n, _]) => n.clone(),
        Some([_]) => Dim::Is(1),
        _ => Dim::Unknown,
    };
    let scores = Fact::maybe(dtype, Some(vec![n.clone(), targets.into()]));
    match labels {
        None => vec![scores],
        Some(labels) => {
            let facts = [Fact::tensor(labels.dtype(), vec![n]), scores];
            facts.into_iter().take(inputs.outputs.max(1)).collect()
        }
    }
}

pub(crate) fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The quantile of the normal distribution; as onnxruntime has it, by an approximation of the error function's inverse
/// (Winitzki, 2008).
fn probit(x: f64) -> f64 {
    let y = 2.0 * x - 1.0;
    let log = ((1.0 - y) * (1.0 + y)).ln();
    let v = 2.0 / (std::f64::consts::PI * 0.147) + 0.5 * log;
    std::f64::consts::SQRT_2 * y.signum() * ((v * v - log / 0.147).sqrt() - v).sqrt()
}

/// The labels of the classes, `classlabels_STEM` or `classlabels_strings`: integers or texts.
pub(crate) fn labels(attrs: &Attrs, stem: &str) -> Result<Tensor> {
    let ints = attrs.opt_ints(&format!("classlabels_{stem}"))?.filter(|list| !list.is_empty());
    let texts = attrs.opt_texts("classlabels_strings")?.filter(|list| !list.is_empty());
    match (ints, texts) {
        (Some(list), None) => Ok(Tensor::vector(&list)),
        (None, Some(list)) => Tensor::strings(&[list.len()], list),
        _ => Err(Error::invalid("a classifier needs labels of its classes, either numbers or texts")),
    }
}

/// The place of the greatest score; of equal ones the first.
pub(crate) fn best(scores: &[f64]) -> usize {
    let better = |best: usize, (i, s): (usize, &f64)| if *s > scores[best] { i } else { best };
    scores.iter().enumerate().fold(0, better)
}

/// The rows of a matrix of numbers; a vector is one row.
pub(crate) fn rows(x: &Tensor) -> Result<(Vec<f64>, usize, usize)> {
    let (n, width) = match *x.shape() {
        [width] => (1, width),
        [n, width] => (n, width),
        ref other => return Err(Error::invalid(format!("examples must be rows, not of shape {other:?}"))),
    };
    let values = match x.dtype() {
        DType::F64 => x.values::<f64>()?.into_owned(),
        d if d.is_float() => x.to_f32()?.iter().map(|&v| v.into()).collect(),
        _ => x.to_ints()?.into_iter().map(|v| v as f64).collect(),
    };
    Ok((values, n, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_transformed() {
        let of = |post: Post, scores: &[f64]| {
            let mut scores = scores.to_vec();
            post.apply(&mut scores);
            scores
        };
        assert_eq!(of(Post::Logistic, &[0.0]), [0.5]);
        assert!((of(Post::Probit, &[0.975])[0] - 1.96).abs() < 0.01);
        assert!((of(Post::Probit, &[0.025])[0] + 1.96).abs() < 0.01);
        assert_eq!(of(Post::Softmax, &[7.0, 7.0]), [0.5, 0.5]);
        assert_eq!(of(Post::SoftmaxZero, &[0.0, 3.0, 3.0]), [0.0, 0.5, 0.5]);
        assert_eq!(best(&[1.0, 2.0, 2.0]), 1);
    }
}
