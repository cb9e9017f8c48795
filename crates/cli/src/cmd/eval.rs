//! `lessen eval`: how good a model is on data whose answers are known.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lessen::answer::Answerer;
use lessen::eval::eval;

use super::{Done, table};
use crate::flags::{Common, Data, Opening, Showing};

/// Judge a model on data whose answers are known: accuracy for labels, correlation for scores.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lessen eval examples/digits/digits.onnx --data examples/digits/test.npz
  lessen eval resnet.onnx --data images/ --preprocess resize=256,crop=224x224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225
  lessen eval minilm/ --data sts.csv.gz --task similarity --json")]
pub struct Eval {
    /// The model.
    model: PathBuf,
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    showing: Showing,
}

impl Eval {
    pub fn run(self, common: &Common) -> Result<Done> {
        let model = self.opening.open(&self.model)?;
        let (data, task) = self.data.open(&model)?;
        let answerer = Answerer::new(&model, &common.cpu()?, task, &self.showing.options())?;
        let bar = common.progress(data.len());
        let found = eval(&answerer, data.as_ref(), |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();

        let digits = if found.value.unit == "%" { 2 } else { 4 };
        let mut text = format!("{}: {}\n", self.model.display(), found.data);
        text += &format!("{} {:.digits$}, {} examples", found.metric, found.value, found.examples);
        text += &format!(", {:.1} (intervals are of 95 %)\n", found.time);
        const MOST: usize = 20;
        let rows: Vec<Vec<String>> = found
            .classes
            .iter()
            .take(MOST)
            .map(|c| {
                let name = c.name.clone().unwrap_or_else(|| c.class.to_string());
                vec![name, c.examples.to_string(), c.recall.to_string()]
            })
            .collect();
        if !rows.is_empty() {
            text += &format!("\nclass, examples, answered right\n{}", table(&rows));
        }
        if found.classes.len() > MOST {
            text += &format!("  .. and {} more; see --json\n", found.classes.len() - MOST);
        }
        Done::new(text, found)
    }
}
