//! `lessen compare`: how far two models are apart.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lessen::answer::{Answerer, Task};
use lessen::compare::{Compare as Found, compare};

use super::{Done, table};
use crate::flags::{Common, Data, Opening, Showing};

/// How many of the worst examples are named, unless it is said.
pub(super) const WORST: usize = 5;

/// Show the same examples to two models and compare their answers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lessen compare big.onnx small.onnx --data test.npz
  lessen compare minilm/ small.onnx --data sts.csv.gz --tokenizer minilm/ --json")]
pub struct Compare {
    /// The model that is taken as right.
    pub(super) a: PathBuf,
    /// The model that is compared with it.
    pub(super) b: PathBuf,
    #[command(flatten)]
    pub(super) data: Data,
    #[command(flatten)]
    pub(super) opening: Opening,
    #[command(flatten)]
    pub(super) showing: Showing,
    /// How many of the examples to name for which the models are the farthest apart.
    #[arg(long, value_name = "N", default_value_t = WORST)]
    pub(super) worst: usize,
}

impl Compare {
    pub fn run(self, common: &Common) -> Result<Done> {
        let (a, mut b) = (self.opening.open(&self.a)?, self.opening.open(&self.b)?);
        // A shrunken model may lie apart from the tokenizer of the original.
        b.take_from(&a);
        let (data, task) = self.data.open(&a)?;
        let (cpu, options) = (common.cpu()?, self.showing.options());
        let answerer = |model| Answerer::new(model, &cpu, task, &options);
        let bar = common.progress(data.len());
        let progress = |done| bar.set_position(done as u64);
        let found = compare(&answerer(&a)?, &answerer(&b)?, data.as_ref(), self.worst, progress)?;
        bar.finish_and_clear();
        Done::new(self.text(&found), found)
    }

    fn text(&self, found: &Found) -> String {
        let mut text = format!("a: {}\nb: {}\n{}\n\n", self.a.display(), self.b.display(), found.data);
        if let Some(metric) = &found.metric {
            let digits = if metric.a.unit == "%" { 2 } else { 4 };
            text += &format!("{} of a {:.digits$}\n", metric.name, metric.a);
            text += &format!("{} of b {:.digits$}\n", metric.name, metric.b);
            text += &format!("difference {:.digits$}\n", metric.difference);
        }
        if let Some(agreement) = found.agreement {
            text += &format!("agreement {agreement}\n");
        }
        if let Some(flips) = found.flips {
            text += &format!("{} of {} examples change their class", flips.changed, found.examples);
            if let (Some(lost), Some(won), Some(p)) = (flips.lost, flips.won, flips.p) {
                text += &format!(": {lost} from right to wrong, {won} from wrong to right (p = {p:.3})");
            }
            text += "\n";
        }
        if let Some(d) = found.distance {
            text += &format!("greatest difference of two numbers {:.3e}\n", d.max_abs.value);
            text += &format!("mean difference of two numbers {:.3e}\n", d.mean_abs.value);
            text +=
                &format!("relative distance of outputs {:.5}, at most {:.5}\n", d.relative, d.max_relative);
            text += &format!("cosine of outputs {:.5}, at least {:.5}\n", d.cosine, d.min_cosine);
        }
        if found.size_differs > 0 {
            let n = found.size_differs;
            text += &format!("for {n} examples the outputs have different sizes\n");
        }
        let rows: Vec<Vec<String>> = found
            .worst
            .iter()
            .map(|w| {
                let show = |x: Option<usize>| x.map_or("-".into(), |x| x.to_string());
                let score = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.4}"));
                let mut row = vec![w.id.clone(), format!("{:.5}", w.relative)];
                match found.task {
                    Task::Similarity => row.extend([score(w.score_a), score(w.score_b)]),
                    _ => row.extend([show(w.class_a), show(w.class_b), show(w.label)]),
                }
                row
            })
            .collect();
        if !rows.is_empty() {
            let columns = match found.task {
                Task::Similarity => "example, distance, score of a, score of b",
                _ => "example, distance, class of a, class of b, right class",
            };
            text += &format!("\nthe farthest apart: {columns}\n{}", table(&rows));
        }
        text + "\nintervals are of 95 %\n"
    }
}
