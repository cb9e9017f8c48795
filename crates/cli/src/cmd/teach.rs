//! `lessen teach`: a trained model learns a new task from little data.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use lessen::data;
use lessen::eval::Eval;
use lessen::features::plain;
use lessen::head::Method;
use lessen::teach::{Depth, Report, Request, Taught, Tuning, Way, teach, teach_best};

use super::eval::by_class;
use super::{Done, table};
use crate::flags::{Common, Costs, Learning, keep_tokenizer};

/// Teach a trained model a new task: what it makes of the examples is used again, and only its last layer is new.
#[derive(Debug, Args)]
#[command(
    after_help = "The data are texts, images or numbers with a class, a number or any of several labels each. Heads of several kinds are fitted to what the model
makes of them, and the one that does best on examples it has not seen is taken: ridge, discriminant,
logistic and centroid. The new model answers with logits and probabilities, or with a score. From pairs of texts with a
score each it learns vectors of texts whose cosines say how much they mean the same.

Examples:
  lessen teach minilm/ --data reviews.csv -o reviews.onnx
  lessen teach mobilenet.onnx --data photos/ --test others/ --balanced -o photos.onnx
  lessen teach minilm/ --data reviews.csv --tune all --epochs 2 -o reviews.onnx
  lessen teach minilm/ --data few.csv --contrast -o reviews.onnx
  lessen teach minilm/ --data pairs.csv --tune all -o alike.onnx
  lessen teach small/ --data unlabelled.csv --teacher reviews.onnx --tune all -o small-reviews.onnx
  lessen teach minilm/ --data tweets.csv --text-column tweet --label-column class --head ridge -o tweets.onnx
  lessen teach minilm/ --data comments.csv --label-columns toxic,threat,insult -o comments.onnx
  lessen teach reviews.onnx --data tweets.csv --add hate -o both.onnx
  lessen teach --data cells.csv --label-column malignant -o cells.onnx"
)]
pub struct Teach {
    /// The model: an ONNX file, or a folder with config.json and model.safetensors. Without one, numbers are their own
    /// features.
    model: Option<PathBuf>,
    /// The examples to learn from: a folder of images by class, .npz, CSV/TSV/JSONL (perhaps .gz), Parquet, or IDX.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Other examples, to judge the new model by.
    #[arg(long, value_name = "PATH")]
    test: Option<PathBuf>,
    /// The file to write. A tokenizer goes beside, unless one is there.
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// How the head is fitted: ridge, discriminant, logistic or centroid [default: what does best].
    #[arg(long, value_name = "METHOD", value_parser = Method::from_str)]
    head: Vec<Method>,
    /// The node or value of the model that makes the features [default: those between its blocks or at its end which teach the
    /// most, or hardly less and cost less].
    #[arg(long, value_name = "NAME")]
    features: Option<String>,
    /// Features are to be so many times faster than all of the model: those that teach the most of what lies so early in it.
    #[arg(long, value_name = "N")]
    faster: Option<f64>,
    /// Train weights before the head, too: all, small (what is added, and the factors of norms), the last share of them, such
    /// as 50%, or lora (two small factors beside each; lora=16 for a rank of 16). A tenth of the examples is held out to
    /// say when to stop. Or best: the head alone and ways that suit so many examples (--contrast for few; small, lora, 50%
    /// and all) are compared on examples held out, which takes as long as all of them; of fewer than 100 examples the
    /// head alone is taken, as by them the best would be found by chance.
    #[arg(long, value_name = "WHICH", value_parser = Tune::from_str)]
    tune: Option<Tune>,
    /// Before the head is fitted, train weights until the features tell the classes apart (SetFit): for few examples. Which
    /// weights, --tune says [default: all].
    #[arg(long)]
    contrast: bool,
    /// Show the model both texts of a pair together (a cross-encoder). Else pairs with scores teach it vectors, one for each
    /// text, whose cosines go with the scores.
    #[arg(long)]
    cross: bool,
    /// A model that knows the task: what it answers is taken for right, and the data need no answers. With --tune it is
    /// learnt how sure it is, too.
    #[arg(long, value_name = "MODEL")]
    teacher: Option<PathBuf>,
    /// Leave the model the tasks that it has, and put this one, under this name, beside them; `--for NAME` is then said to
    /// judge, run or shrink it.
    #[arg(long, value_name = "NAME")]
    add: Option<String>,
    /// Times that each example is seen, at most [default: 3; more often for few examples with --contrast].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    epochs: Option<u32>,
    /// The greatest step of the training, as a part of what weights measure [default: 0.001].
    #[arg(long, value_name = "RATE")]
    rate: Option<f32>,
    /// A folder to write the factors of --tune lora to, as PEFT has them; they are in the model, too.
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    learning: Learning,
    #[command(flatten)]
    costs: Costs,
}

/// What `--tune` says.
#[derive(Clone, Copy, Debug)]
enum Tune {
    /// What does best.
    Best,
    Only(Depth),
}

impl FromStr for Tune {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Tune, String> {
        match text {
            "best" => Ok(Tune::Best),
            _ => text.parse().map(Tune::Only),
        }
    }
}

impl Teach {
    pub fn run(self, common: &Common) -> Result<Done> {
        lessen::check_name(&self.output)?;
        let place = self.costs.place()?;
        let data = data::open(&self.data, &self.learning.columns.with_classes(None))
            .context("the data cannot be used")?;
        let model = match &self.model {
            Some(path) => self.learning.opening.open(path)?,
            None => plain(data.as_ref())?,
        };
        let classes = data.classes().map(<[String]>::to_vec);
        let open = |path| data::open(path, &self.learning.columns.with_classes(classes));
        let test = self.test.as_deref().map(open).transpose().context("the data of --test cannot be used")?;
        let methods = if self.head.is_empty() { Method::ALL.to_vec() } else { self.head };
        if self.adapter.is_some() && !matches!(self.tune, Some(Tune::Only(Depth::Lora(_)))) {
            bail!("--adapter is what --tune lora has trained; give that, too");
        }
        if let Some(faster) = self.faster.filter(|n| !(*n > 1.0 && n.is_finite())) {
            bail!("--faster {faster} is not faster; give a number above 1, such as 3");
        }
        let rate = self.rate.unwrap_or(1e-3);
        if !(rate > 0.0 && rate.is_finite()) {
            bail!("--rate {rate} is no step; give one above 0, such as 0.001");
        }
        let depth = match self.tune {
            Some(Tune::Only(depth)) => Some(depth),
            Some(Tune::Best) if self.contrast => {
                bail!("--tune best compares --contrast with others; leave --contrast away")
            }
            Some(Tune::Best) => None,
            None => self.contrast.then_some(Depth::All),
        };
        let best = matches!(self.tune, Some(Tune::Best));
        if depth.is_none() && !best && (self.epochs.is_some() || self.rate.is_some()) {
            bail!("--epochs and --rate are of --tune and --contrast; give one of them, too");
        }
        let epochs = self.epochs.map(|n| n as usize);
        let tuning = depth.map(|depth| Tuning { depth, contrast: self.contrast, epochs, rate });
        let teacher = self.teacher.as_ref().map(|path| self.learning.opening.open(path)).transpose()?;
        let spinner = common.spinner();
        spinner.set_message("features, then heads");
        let request = Request {
            wanted: self.learning.wanted(data.as_ref(), self.features.as_deref()),
            test: test.as_deref(),
            methods: &methods,
            balanced: self.learning.balanced,
            cross: self.cross,
            faster: self.faster,
            tuning,
            teacher: teacher.as_ref(),
            add: self.add.as_deref(),
            place: &place,
            progress: &|what| spinner.set_message(what.to_owned()),
        };
        let cpu = common.cpu()?;
        let Taught { model: taught, adapter, report } = match best {
            true => teach_best(&model, &request, epochs, rate, &cpu)?,
            false => teach(&model, &request, &cpu)?,
        };
        if let Some((folder, adapter)) = self.adapter.as_ref().zip(adapter) {
            adapter.write(folder).context("the adapter cannot be written")?;
        }
        taught.save(&self.output).context("the model cannot be written")?;
        keep_tokenizer(&taught, &self.output, common)?;
        spinner.finish_and_clear();
        if let Some(leak) = report.leaks.first().filter(|_| !common.quiet) {
            eprintln!(
                "warning: of the examples of --test {} are among those of --data, exactly or nearly: what it says of the model \
                 is too good; the first is {} of --test, whose similarity to {} of --data is {:.2}",
                report.leaked, leak.example, leak.of, leak.similarity
            );
        }
        let from = self.model.as_ref().map_or("numbers".into(), |path| path.display().to_string());
        Done::new(format!("{from} -> {}\n{}", self.output.display(), told(&report)), &report)
    }
}

fn told(report: &Report) -> String {
    let cached = if report.cached { ", kept from before" } else { "" };
    let mut text = format!(
        "{}\n{} examples, {} features of {} ({:.1}{cached}), heads {:.1}\n",
        report.data,
        report.examples,
        report.features,
        report.nodes.join(" + "),
        report.feature_time,
        report.head_time
    );
    if !report.skipped.is_empty() {
        text += &format!("{} examples could not be read and were left out:\n", report.skipped.len());
        const MOST: usize = 5;
        report.skipped.iter().take(MOST).for_each(|s| text += &format!("  {}: {}\n", s.example, s.why));
        if report.skipped.len() > MOST {
            text += &format!("  .. and {} more; see --json\n", report.skipped.len() - MOST);
        }
    }
    if !report.ways.is_empty() {
        text += &told_ways(&report.ways);
    }
    if let Some(unseen) = report.unseen.as_ref().filter(|_| !report.taps.is_empty()) {
        text += &told_taps(report, unseen);
    }
    if let Some(tuned) = &report.tuned {
        let on = if tuned.held_out > 0 { format!("{} held out", tuned.held_out) } else { "all".into() };
        text += &format!(
            "tuned: {} numbers ({}), {} examples, {} epochs ({:.1}): loss {:.4} -> {:.4} on {on}\n",
            tuned.weights,
            tuned.depth.map_or("a map of the vectors".into(), |depth| depth.to_string()),
            tuned.examples,
            tuned.epochs.len(),
            tuned.time,
            tuned.before,
            tuned.after,
        );
        if tuned.contrast {
            text +=
                "the features know these examples: what heads get on them is too good; others must judge\n";
        }
    }
    if let Some(unseen) = &report.unseen {
        text += &told_heads(report, unseen);
    }
    if let Some(eval) = &report.before {
        text += &told_eval("the model as it was, on those held out (intervals are of 95 %)", eval);
    }
    if let Some(eval) = &report.held_out {
        text += &told_eval("the new model, on those held out", eval);
    }
    if let Some(test) = &report.test {
        text += &told_eval("the new model, on --test", test);
    }
    text += &format!("energy: {}\n", report.spent.payback.words());
    text
}

/// How ways of learning did.
fn told_ways(ways: &[Way]) -> String {
    let mut rows = vec![["way", "held out", "time", ""].map(str::to_owned).to_vec()];
    for way in ways {
        rows.push(vec![
            way.name(),
            match (&way.value, &way.failed) {
                (Some(value), _) => format!("{value:.2}"),
                (None, failed) => failed.clone().unwrap_or_else(|| "too few examples to compare".into()),
            },
            format!("{:.1}", way.time),
            if way.taken { "taken".into() } else { String::new() },
        ]);
    }
    format!("ways of learning, on examples that were held out:\n{}", table(&rows))
}

/// What features could be taken of.
fn told_taps(report: &Report, unseen: &Eval) -> String {
    let digits = if unseen.value.unit == "%" { 2 } else { 4 };
    let mut rows = vec![["features of", "work", "loss", unseen.metric, ""].map(str::to_owned).to_vec()];
    for tap in &report.taps {
        rows.push(vec![
            tap.nodes.join(" + "),
            format!("{:.0} %", 100.0 * tap.share),
            format!("{:.4}", tap.loss),
            format!("{:.digits$}", tap.value),
            if tap.taken { "taken".into() } else { String::new() },
        ]);
    }
    format!(
        "where features could be taken, by ridge heads on examples that they have not seen:\n{}",
        table(&rows)
    )
}

fn told_heads(report: &Report, unseen: &Eval) -> String {
    let digits = if unseen.value.unit == "%" { 2 } else { 4 };
    let mut rows = vec![["head", "penalty", "loss", unseen.metric].map(str::to_owned).to_vec()];
    for head in &report.heads {
        let penalty = head.penalty.map_or_else(String::new, |p| format!("{p:.1e}"));
        rows.push(vec![
            head.method.to_string(),
            penalty,
            format!("{:.4}", head.loss),
            format!("{:.digits$}", head.value),
        ]);
    }
    let head = format!("on examples that a head has not seen (intervals are of 95 %):\n{}", table(&rows));
    head + &told_eval("the first head, on them", unseen)
}

fn told_eval(what: &str, eval: &Eval) -> String {
    let digits = if eval.value.unit == "%" { 2 } else { 4 };
    let head = format!("{what}: {} {:.digits$}, {} examples\n", eval.metric, eval.value, eval.examples);
    head + &by_class(eval)
}
