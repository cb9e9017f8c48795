//! How well a trained model suits a task, before it is taught.

use std::path::Path;
use std::time::{Duration, Instant};

use kernel::Cpu;
use learn::head::{Method, Problem};
use meter::energy::{Meter, SENSORS, processor};
use meter::{Energy, Machine};
use serde::Serialize;

use super::{Request, judge, judged, similar, truth};
use crate::answer::Task;
use crate::receipt::Number;
use crate::{Model, Result};

/// How well a model suits a task.
#[derive(Clone, Debug, Serialize)]
pub struct Suit {
    /// The values of the model that the features are of.
    pub nodes: Vec<String>,
    /// Numbers of an example.
    pub features: usize,
    /// The mean loss of a ridge head on examples that it has not seen; of pairs of texts with scores, what the correlation of
    /// their cosines with these lacks to 1.
    pub loss: f64,
    /// The name of the metric.
    pub metric: &'static str,
    /// How that head, or the cosines, do.
    pub value: Number,
    /// The logarithm of the evidence (LogME), the higher the better; none where vectors of texts are compared.
    pub evidence: Option<f64>,
    /// Seconds that all of it took.
    pub time: Number,
    /// Energy that it took.
    pub energy: Energy,
}

/// Says how well a model suits a task, before it is taught.
///
/// # Errors
/// As [`super::teach`].
pub fn suit(model: &Model, request: &Request, cpu: &Cpu) -> Result<Suit> {
    let meter = Meter::start(Path::new(SENSORS), Duration::ZERO);
    let start = Instant::now();
    let data = request.wanted.data;
    let pairs = !request.cross && similar::are_pairs(data);
    let (nodes, features, loss, metric, value, evidence) = if pairs {
        let backbone = similar::encoder(model, request.wanted.node)?;
        let eval = judge(&backbone.model, Task::Similarity, data, request, cpu)?;
        let width = backbone.width();
        (backbone.nodes, width, 1.0 - eval.value.value, eval.metric, eval.value, None)
    } else {
        let super::Chosen { backbone, learnt, .. } = super::features(model, request, &request.wanted, cpu)?;
        let (truth, _) = truth(data, &learnt.rows)?;
        let problem = Problem::new(&learnt.features, &truth, request.balanced, crate::eval::SEED, cpu)?;
        let fitted = problem.fit(Method::Ridge)?;
        let (metric, value) = judged(&fitted, &truth)?.metric()?;
        let width = learnt.features.columns();
        (backbone.nodes, Some(width), problem.loss(&fitted), metric, value, Some(problem.evidence()))
    };
    Ok(Suit {
        nodes,
        features: features.unwrap_or(0),
        loss,
        metric,
        value,
        evidence,
        time: Number::measured(start.elapsed().as_secs_f64(), "s"),
        energy: meter.stop(&processor(&Machine::this())),
    })
}
