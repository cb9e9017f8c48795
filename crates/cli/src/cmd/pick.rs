//! `lessen pick`: less and better data.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use lessen::data;
use lessen::features::plain;
use lessen::pick::{By, Keep, Near, Report, Request, Shown, Verdict, Why, numbers, pick};

use super::{Done, table};
use crate::flags::{Common, Learning};

/// Pick the examples that are worth keeping: no duplicates, no wrong labels, and those that serve best
#[derive(Debug, Args)]
#[command(
    after_help = "Texts or numbers in tables (CSV, TSV, JSON lines, plain lines, perhaps .gz; Parquet) are streamed, and rows are
written as they were; those of Parquet to Parquet, with all columns.
Images go to a folder, arrays to .npz. What is there twice goes in any case, whatever its case and spaces. With --cache a
run that was killed goes on where it was.

With --keep and --model (numbers need none), ways to choose are tried on examples that are held out, and the best is taken if it
does more than random choices do. The ways: random, target, k-center, herding, facility, hard, easy, moderate,
forgotten, margin, sure, unsure.

Examples:
  lessen pick reviews.csv -o fewer.csv
  lessen pick reviews.csv --model minilm/ --labels --keep 30% -o best.csv
  lessen pick web.jsonl.gz --target my-texts.txt --keep 512 -o calibration.jsonl
  lessen pick train.parquet --text-column body --keep 10% -o some.parquet
  lessen pick photos/ --model mobilenet.onnx --alike 0.95 -o different/"
)]
pub struct Pick {
    /// The examples: a table of texts or numbers, a folder of images by class, .npz, or IDX.
    data: PathBuf,
    /// The file or folder to write.
    #[arg(short, long, value_name = "PATH")]
    output: PathBuf,
    /// How much stays at most: a share, such as 30%, or a number of examples [default: all that is worth it].
    #[arg(long, value_name = "SHARE", value_parser = Keep::from_str)]
    keep: Option<Keep>,
    /// How those that stay are chosen [default: what serves best on examples that are held out].
    #[arg(long, value_name = "WAY", value_parser = By::from_str)]
    by: Option<By>,
    /// The model whose features tell what examples mean: an ONNX file, or a folder with model.safetensors. Numbers are their
    /// own features without one.
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The node or value of the model that makes the features [default: the one that tells the classes best, where they
    /// count, as `lessen teach` chooses it; else what the model ends with].
    #[arg(long, value_name = "NAME", requires = "model")]
    features: Option<String>,
    /// The least similarity of texts that are nearly the same (Jaccard, of runs of five words); 1 for those that are the
    /// same only.
    #[arg(long, value_name = "SIMILARITY", default_value_t = 0.7)]
    near: f64,
    /// Words of a run that similarity is counted by.
    #[arg(long, value_name = "N", default_value_t = 5)]
    words: usize,
    /// Let go what means the same: the least cosine of features, such as 0.95.
    #[arg(long, value_name = "COSINE")]
    alike: Option<f64>,
    /// Let go examples whose labels are probably wrong.
    #[arg(long)]
    labels: bool,
    /// Texts that those which stay shall resemble.
    #[arg(long, value_name = "PATH")]
    target: Option<PathBuf>,
    /// A CSV file to write, of every example that goes: why, for which, by what number.
    #[arg(long, value_name = "PATH")]
    dropped: Option<PathBuf>,
    /// What random choices are drawn from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    learning: Learning,
}

impl Pick {
    pub fn run(self, common: &Common) -> Result<Done> {
        if !(self.near > 0.0 && self.near <= 1.0) {
            bail!("--near {} is no similarity; it is above 0 and at most 1", self.near);
        }
        if let Some(alike) = self.alike.filter(|alike| !(-1.0..=1.0).contains(alike)) {
            bail!("--alike {alike} is no cosine; it is from -1 to 1");
        }
        let options = self.learning.columns.with_classes(None);
        let spinner = common.spinner();
        spinner.set_message("reading");
        let unnamed =
            data::is_table(&self.data)? && self.keep.is_some() && self.by.is_none() && self.target.is_none();
        let features =
            self.labels || self.alike.is_some() || unnamed || self.by.is_some_and(By::needs_features);
        let examples = match &self.model {
            Some(_) => Some(data::open(&self.data, &options).map_err(lessen::Error::from)),
            None if features => numbers(&self.data, &options).transpose(),
            None => None,
        };
        let examples = examples.transpose().context("the data cannot be used")?;
        let model = match (&self.model, &examples) {
            (Some(path), _) => Some(self.learning.opening.open(path)?),
            (None, Some(numbers)) => Some(plain(numbers.as_ref())?),
            (None, None) => None,
        };
        let wanted = examples.as_deref().map(|data| self.learning.wanted(data, self.features.as_deref()));
        let near = Near { words: self.words, similarity: self.near, ..Near::default() };
        let request = Request {
            path: &self.data,
            options: &options,
            model: model.as_ref().zip(wanted),
            numbers: self.model.is_none(),
            keep: self.keep,
            by: self.by,
            near: (self.near < 1.0).then_some(near),
            alike: self.alike,
            labels: self.labels,
            target: self.target.as_deref(),
            balanced: self.learning.balanced,
            seed: self.seed,
            cache: self.learning.cache.as_deref(),
            progress: &|what| spinner.set_message(what.to_owned()),
        };
        let (report, verdicts) = pick(&request, &self.output, &common.cpu()?)?;
        if let Some(path) = &self.dropped {
            write_dropped(path, &verdicts).context("the list of what goes cannot be written")?;
        }
        spinner.finish_and_clear();
        Done::new(told(&report, &self.output.display().to_string()), &report)
    }
}

/// Every example that goes, one a line; examples are counted from 0.
fn write_dropped(path: &std::path::Path, verdicts: &[Verdict]) -> Result<()> {
    lessen::write_file_with(path, |out| {
        writeln!(out, "example,why,for,number")?;
        for (row, verdict) in verdicts.iter().enumerate() {
            let Some((why, of, number)) = verdict.why() else { continue };
            let of = of.map_or_else(String::new, |of| of.to_string());
            let number = number.map_or_else(String::new, |number| number.to_string());
            writeln!(out, "{row},{},{of},{number}", word(why))?;
        }
        Ok(())
    })?;
    Ok(())
}

fn word(why: Why) -> &'static str {
    match why {
        Why::Unreadable => "unreadable",
        Why::Same => "same",
        Why::Near => "near",
        Why::Meaning => "meaning",
        Why::Label => "label",
        Why::Left => "left",
    }
}

fn told(report: &Report, output: &str) -> String {
    let share = 100.0 * report.kept as f64 / report.examples.max(1) as f64;
    let mut text =
        format!("{}\n{} of {} examples stay ({share:.1} %)", report.data, report.kept, report.examples);
    if let Some(by) = report.by {
        text += &format!(", chosen by \"{by}\"");
    }
    text += "\n";
    if let Some(tap) = report.taps.iter().find(|tap| tap.taken) {
        let nodes = tap.nodes.join(" + ");
        text += &format!("features of {nodes}, {:.0} % of the model's work\n", 100.0 * tap.share);
    }
    for dropped in &report.dropped {
        let what = match dropped.why {
            Why::Unreadable => "cannot be read",
            Why::Same => "are there before",
            Why::Near => "are nearly the same as one before",
            Why::Meaning => "mean the same as one that stays",
            Why::Label => "have a label that is probably wrong",
            Why::Left => "serve less than others",
        };
        text += &format!("{} {what}\n", dropped.count);
        if dropped.why != Why::Left {
            dropped.examples.iter().for_each(|shown| text += &told_example(shown));
        }
    }
    if report.contradictions > 0 {
        text += &format!("{} are there before with another label\n", report.contradictions);
    }
    if let Some(random) = &report.random {
        let mut rows = vec![["chosen by", random.metric, ""].map(str::to_owned).to_vec()];
        rows.push(vec!["(all)".into(), format!("{:.2}", random.all), String::new()]);
        for tried in &report.tried {
            let beats = if tried.beats_random { "more than random" } else { "" };
            rows.push(vec![tried.by.to_string(), format!("{:.2}", tried.value), beats.into()]);
        }
        rows.push(vec![
            format!("random, {} draws", random.draws),
            format!("{:.2}", random.value),
            String::new(),
        ]);
        text +=
            &format!("on examples that were held out (of random choices 95 % lie within):\n{}", table(&rows));
        if !report.tried.iter().any(|tried| tried.beats_random) {
            text += "none does more than random choices do\n";
        }
    }
    text += &format!("{:.1}, {}\nwritten: {output}\n", report.time, report.energy.words());
    text
}

fn told_example(shown: &Shown) -> String {
    let quoted = |name: &str, text: &Option<String>| match text {
        Some(text) => format!("{name}: {text:?}"),
        None => name.to_owned(),
    };
    let mut line = format!("  {}", quoted(&shown.example, &shown.text));
    if let Some((given, likely)) = &shown.label {
        line += &format!(" is labelled {given}, rather {likely}");
    }
    if let Some(of) = &shown.of {
        line += &format!("\n    stays: {}", quoted(of, &shown.of_text));
    }
    if let Some(number) = shown.number {
        line += &format!(" ({number:.2})");
    }
    line + "\n"
}
