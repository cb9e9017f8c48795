//! Linear models of ai.onnx.ml: `LinearClassifier`, `LinearRegressor`.
//! <https://onnx.ai/onnx/operators/onnx_aionnxml_LinearClassifier.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::gather::gather;
use crate::ops::scores::{Post, best, infer, labels, rows};
use crate::{Attr, Attrs, DType, Error, Fact, Op, Result, Tensor};

/// A score for each class or target: a weighted sum of the features.
#[derive(Debug)]
pub struct LinearModel {
    line: usize,
    attrs: Attrs,
    /// `[targets, features]`.
    weights: Vec<f64>,
    intercepts: Vec<f64>,
    post: Post,
    /// The labels of a classifier.
    labels: Option<Tensor>,
}

fn read(attrs: &Attrs, line: usize) -> Result<Arc<dyn Op>> {
    let wide = |list: Option<Vec<f32>>| -> Vec<f64> {
        list.unwrap_or_default().into_iter().map(f64::from).collect()
    };
    let weights = wide(attrs.opt_floats("coefficients")?);
    let labels = (line == 0).then(|| labels(attrs, "ints")).transpose()?;
    let targets = match &labels {
        Some(labels) => labels.len(),
        None => usize::try_from(attrs.int_or("targets", 1)?).unwrap_or(0),
    };
    let mut intercepts = wide(attrs.opt_floats("intercepts")?);
    if intercepts.len() == 1 && targets == 2 {
        return Err(Error::unsupported("a classifier with one score for two classes"));
    }
    if intercepts.is_empty() {
        // No more than there are weights.
        intercepts.resize(targets.min(weights.len()), 0.0);
    }
    if targets == 0 || intercepts.len() != targets || weights.len() % targets != 0 {
        return Err(Error::invalid(format!(
            "{} coefficients and {} intercepts do not fit {targets} scores",
            weights.len(),
            intercepts.len()
        )));
    }
    let post = Post::read(attrs)?;
    Ok(Arc::new(LinearModel { line, attrs: attrs.clone(), weights, intercepts, post, labels }))
}

const WEIGHTS: [f32; 6] = [0.5, -1.0, 2.0, 0.25, 1.5, -0.75];

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "LinearClassifier",
        domain: "ai.onnx.ml",
        since: 1,
        read: |r| read(r.attrs, 0),
        samples: || {
            let attrs = Attrs::new()
                .with("coefficients", Attr::Floats(WEIGHTS.to_vec()))
                .with("intercepts", Attr::Floats(vec![0.1, -0.2]));
            let texts = Attr::Texts(vec!["no".into(), "yes".into()]);
            let attrs = [
                attrs.clone().ints("classlabels_ints", &[7, 3]).text("post_transform", "SOFTMAX"),
                attrs.with("classlabels_strings", texts).text("post_transform", "LOGISTIC"),
            ];
            attrs.map(|a| Sample::read(&DEFS[0], a, vec![ramp(&[4, 3])]).outputs(2)).into()
        },
    },
    OpDef {
        name: "LinearRegressor",
        domain: "ai.onnx.ml",
        since: 1,
        read: |r| read(r.attrs, 1),
        samples: || {
            let attrs = Attrs::new().with("coefficients", Attr::Floats(WEIGHTS.to_vec()));
            let two = attrs.clone().int("targets", 2);
            let one = attrs.with("intercepts", Attr::Floats(vec![0.5]));
            vec![
                Sample::read(&DEFS[1], two, vec![ramp(&[4, 3])]),
                Sample::read(&DEFS[1], one, vec![ramp(&[4, 6])]),
            ]
        },
    },
];

impl Op for LinearModel {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.line]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        Ok(infer(inputs, Some(DType::F32), self.intercepts.len(), self.labels.as_ref()))
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (x, n, width) = rows(inputs.need(0)?)?;
        let targets = self.intercepts.len();
        if width * targets != self.weights.len() {
            let features = self.weights.len() / targets;
            return Err(Error::invalid(format!("{width} features for a model of {features}")));
        }
        let mut places = Vec::with_capacity(n);
        let mut scores = vec![0f64; targets];
        let out = Tensor::build(&[n, targets], |out: &mut [f32]| {
            for (i, out) in out.chunks_exact_mut(targets).enumerate() {
                let x = &x[i * width..][..width];
                for (t, score) in scores.iter_mut().enumerate() {
                    let w = &self.weights[t * width..][..width];
                    *score = self.intercepts[t] + x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                }
                places.push(best(&scores) as i64);
                self.post.apply(&mut scores);
                out.iter_mut().zip(&scores).for_each(|(out, s)| *out = *s as f32);
            }
            Ok(())
        })?;
        Ok(match &self.labels {
            None => vec![out],
            Some(labels) => vec![gather(labels.clone(), &Tensor::vector(&places), 0)?, out],
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
