//! `lessen suit`: which trained model suits a task best.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use lessen::data;
use lessen::head::Method;
use lessen::meter::Place;
use lessen::teach::{self, Request, suit};
use serde::Serialize;

use super::{Done, table};
use crate::flags::{Common, Learning};

/// Say which trained model suits a task best, before any is taught: the one whose features make the answers most probable,
/// and on which a ridge head does best with examples it has not seen.
#[derive(Debug, Args)]
#[command(after_help = "The best is the first: by the loss of its head on examples that it has not seen.

Examples:
  lessen suit minilm/ paraphrase.onnx --data reviews.csv
  lessen suit mobilenet.onnx resnet.onnx --data photos/ --balanced --json")]
pub struct Suit {
    /// The models.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Examples of the task: a folder of images by class, .npz, CSV/TSV/JSONL (perhaps .gz), Parquet, or IDX.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Show the models both texts of a pair together (cross-encoders), and do not compare vectors of each.
    #[arg(long)]
    cross: bool,
    #[command(flatten)]
    learning: Learning,
}

/// A model, and how it suits.
#[derive(Serialize)]
struct Found {
    model: String,
    /// Why it cannot be taught, when it cannot.
    error: Option<String>,
    #[serde(flatten)]
    suit: Option<teach::Suit>,
}

impl Suit {
    pub fn run(self, common: &Common) -> Result<Done> {
        let data = data::open(&self.data, &self.learning.columns.with_classes(None))
            .context("the data cannot be used")?;
        let cpu = common.cpu()?;
        let spinner = common.spinner();
        let mut all: Vec<Found> = Vec::new();
        for path in &self.models {
            spinner.set_message(path.display().to_string());
            let request = Request {
                wanted: self.learning.wanted(data.as_ref(), None),
                test: None,
                methods: &[Method::Ridge],
                faster: None,
                tuning: None,
                teacher: None,
                add: None,
                cross: self.cross,
                place: &Place::default(),
                balanced: self.learning.balanced,
                progress: &|what| spinner.set_message(what.to_owned()),
            };
            let found = self.learning.opening.open(path).and_then(|model| Ok(suit(&model, &request, &cpu)?));
            let model = path.display().to_string();
            all.push(match found {
                Ok(suit) => Found { model, error: None, suit: Some(suit) },
                Err(e) => Found { model, error: Some(format!("{e:#}")), suit: None },
            });
        }
        spinner.finish_and_clear();
        let measured = all.iter().filter_map(|f| f.suit.as_ref()).all(|s| s.energy.measured);
        let energy = if measured { "energy" } else { "energy, estimated" };
        if let [Found { error: Some(error), .. }] = all.as_slice() {
            bail!("{error}");
        }
        let loss = |found: &Found| found.suit.as_ref().map_or(f64::INFINITY, |s| s.loss);
        all.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
        let metric = all.iter().find_map(|f| f.suit.as_ref()).map_or("metric", |s| s.metric);
        let mut rows = vec![
            ["model", "features", "loss", metric, "evidence", "time", energy].map(str::to_owned).to_vec(),
        ];
        let mut failed = String::new();
        for found in &all {
            match (&found.suit, &found.error) {
                (Some(suit), _) => {
                    let digits = if suit.value.unit == "%" { 2 } else { 4 };
                    rows.push(vec![
                        found.model.clone(),
                        suit.features.to_string(),
                        format!("{:.4}", suit.loss),
                        format!("{:.digits$}", suit.value),
                        suit.evidence.map_or_else(String::new, |evidence| format!("{evidence:.4}")),
                        format!("{:.1}", suit.time),
                        format!("{:.0} J", suit.energy.joules),
                    ]);
                }
                (None, error) => {
                    failed += &format!("{}: {}\n", found.model, error.as_deref().unwrap_or_default())
                }
            }
        }
        let text = format!("{}\n{}{failed}", data.describe(), table(&rows));
        Done::new(text, serde_json::json!({ "data": data.describe(), "models": all }))
    }
}
