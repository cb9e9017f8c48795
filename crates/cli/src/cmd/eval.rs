//! `lessen eval`: how good a model is on data whose answers are known.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use lessen::answer::{Answerer, Task};
use lessen::eval::eval;

use super::compare::{Compare, WORST};
use super::{Done, table};
use crate::flags::{Common, Data, Opening, Showing};

/// Judge a model on data whose answers are known, or by another model: accuracy for labels, correlation for scores,
/// agreement with the other model.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lessen eval examples/digits/digits.onnx --data examples/digits/test.npz
  lessen eval resnet.onnx --data images/ --preprocess resize=256,crop=224x224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225
  lessen eval minilm/ --data sts.csv.gz --task similarity --json
  lessen eval small.onnx --data photos/ --task agree --against big.onnx")]
pub struct Eval {
    /// The model.
    model: PathBuf,
    /// The model whose answers are taken as right, for the task agree; no labels are needed then.
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    #[command(flatten)]
    data: Data,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    showing: Showing,
}

impl Eval {
    pub fn run(self, common: &Common) -> Result<Done> {
        if let Some(against) = self.against {
            if let Some(task) = self.data.task.filter(|task| *task != Task::Agree) {
                bail!(
                    "--against is for --task agree, not {task}; to judge two models by what is right: lessen compare A B"
                );
            }
            let data = Data { task: Some(Task::Agree), ..self.data };
            let Eval { model, opening, showing, .. } = self;
            return Compare { a: against, b: model, data, opening, showing, worst: WORST }.run(common);
        }
        let model = self.opening.open(&self.model)?;
        let (data, task) = self.data.open(&model)?;
        if task == Task::Agree {
            let why = match self.data.task {
                Some(_) => "--task agree needs",
                None => "the data have neither labels nor scores to judge by, so it takes",
            };
            bail!(
                "{why} a model to agree with: --against MODEL, such as the one that this one was made from"
            );
        }
        let answerer = Answerer::new(&model, &common.cpu()?, task, &self.showing.options())?;
        let bar = common.progress(data.len());
        let found = eval(&answerer, data.as_ref(), |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();

        let digits = if found.value.unit == "%" { 2 } else { 4 };
        let mut text = format!("{}: {}\n", self.model.display(), found.data);
        text += &format!("{} {:.digits$}, {} examples", found.metric, found.value, found.examples);
        text += &format!(", {:.1} (intervals are of 95 %)\n", found.time);
        text += &by_class(&found);
        Done::new(text, found)
    }
}

/// What became of each class, and the mean of F1 over all; nothing for tasks without classes.
pub(super) fn by_class(eval: &lessen::eval::Eval) -> String {
    const MOST: usize = 20;
    let rows = eval.classes.iter().take(MOST).map(|c| {
        let name = c.name.clone().unwrap_or_else(|| c.class.to_string());
        vec![name, c.examples.to_string(), c.recall.to_string()]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    let mut text = String::new();
    if let Some(f1) = &eval.macro_f1 {
        text += &format!("macro F1 {f1:.2}\n");
    }
    if !rows.is_empty() {
        text += &format!("\nclass, examples, answered right\n{}", table(&rows));
    }
    if eval.classes.len() > MOST {
        text += &format!("  .. and {} more; see --json\n", eval.classes.len() - MOST);
    }
    text
}
