//! `lessen shrink`: a smaller model that still does its job, with a receipt.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use lessen::answer::Task;
use lessen::data::{self, Dataset};
use lessen::measure::Measure;
use lessen::receipt::{Number, bytes};
use lessen::shrink::{
    Allocation, Choice, Lose, Pattern, Preparations, Quality, Ranges, Receipt, Request, Rounding, Rule,
    Shares, Sparse, Tuning, shrink,
};

use super::{Done, table};
use crate::flags::{Columns, Common, Costs, Opening, Showing, keep_tokenizer};
use crate::page;
use crate::parse::{allocation, duration, positive, ranges, rounding, rule, share, size};

/// Exit code when a goal is missed.
const MISSED: u8 = 2;
/// The example that is shrunk when no model is named.
const EXAMPLE: [&str; 2] = ["examples/digits/digits.onnx", "examples/digits/test.npz"];

/// Make a model smaller: 8 bits, or as few bits for each weight as the size asks for; measured on data held aside.
#[derive(Debug, Args)]
#[command(after_help = "Without a model, the example in examples/digits is shrunk.

The data are shared out three ways: calibration, search, and the examples that the receipt's numbers are from. When
more is lost than --lose allows, weights are given back to f32, the most harmful first, until it holds. When 8 bits do
not make the file small enough for --smaller, each weight gets 2 to 8 bits by the harm that they do, and activations
stay f32. When a goal cannot be met the exit code is 2, the weights that hurt are named, and nothing is written unless
--force is given. Beside the model lie its receipt (.html, .json) and its plan (.toml), which `lessen apply` repeats.

Examples:
  lessen shrink
  lessen shrink resnet.onnx --data images/ --lose 1% -o small.onnx
  lessen shrink minilm/ --data sts.csv.gz --smaller 3.5 --lose 0.5 -o minilm-int8.onnx
  lessen shrink resnet.onnx --data images/ --smaller 7 -o tiny.onnx
  lessen shrink model.onnx --self-made -o small.onnx  (no data: calibrated on made-up examples, nothing is proven)
  lessen shrink model.onnx -o small.onnx              (no data: only what needs none, nothing is proven)")]
pub struct Shrink {
    /// The model: an ONNX file, or a folder with config.json and model.safetensors.
    model: Option<PathBuf>,
    /// Labelled or unlabelled examples: a folder of images by class, .npz, CSV/TSV/JSONL (perhaps .gz), Parquet, or
    /// IDX.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Without data: calibrate and decide on examples that lessen makes itself: pictures, sentences, token ids or
    /// numbers, by what the model takes. They prove nothing.
    #[arg(long, conflicts_with = "data")]
    self_made: bool,
    /// The file to write [default: MODEL-int8.onnx in the current folder]. The receipt goes beside it, as .html and .json, and a
    /// tokenizer, unless one is there.
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// The file must become at least this many times smaller.
    #[arg(long, value_name = "TIMES", value_parser = positive)]
    smaller: Option<f64>,
    /// The file may have at most so many bytes: 25MB, 800kB.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    size: Option<usize>,
    /// A run must be at least this many times faster, measured on this machine.
    #[arg(long, value_name = "TIMES", value_parser = positive)]
    faster: Option<f64>,
    /// At most this much may be lost: 0.5 is half a point of accuracy (0.005 of a correlation), 1% a hundredth of
    /// the original's metric.
    #[arg(long, value_name = "LOSS")]
    lose: Option<Lose>,
    /// What --lose is a loss of, and the search looks at: usual (that of the task), macro-f1, balanced-accuracy, or
    /// recall=CLASS, so that a class of few examples does not pay for the others.
    #[arg(long, value_name = "METRIC", default_value_t)]
    metric: Measure,
    /// Look for the smallest file within --lose, though its arithmetic be slower than that of 8 bits.
    #[arg(long, requires = "lose")]
    smallest: bool,
    /// Measure files of many sizes: the curve of size, quality and speed.
    #[arg(long)]
    frontier: bool,
    /// Cut channels, neurons and heads until there are so many times fewer multiply-adds.
    #[arg(long, value_name = "TIMES", value_parser = positive)]
    fewer: Option<f64>,
    /// Leave out so many blocks, those without which the model does best; a linear map stands in their place.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    without: usize,
    /// Put zeros into the weights of all products: this share of them, such as 50%.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    zeros: Option<f64>,
    /// Calibrate on these examples, all of them, and not on a share of --data; those of --data that are among them are not
    /// measured on. `lessen pick` chooses such.
    #[arg(long, value_name = "PATH", requires = "data", conflicts_with = "self_made")]
    calibrate_on: Option<PathBuf>,
    /// The shape that zeros have: anywhere, rows (as many in each), 2:4, 4x1.
    #[arg(long, value_name = "PATTERN", default_value = "rows", requires = "zeros")]
    pattern: Pattern,
    /// Which elements become 0; magnitude is for comparison.
    #[arg(long, value_name = "RULE", default_value = "best", requires = "zeros", value_parser = rule)]
    rule: Rule,
    /// Do not refit what stays beside zeros; for comparison.
    #[arg(long, requires = "zeros")]
    no_refit: bool,
    /// How zeros are shared out among weights: by the harm that is measured, by outliers (OWL; faster), or even.
    #[arg(long, value_name = "WAY", default_value = "harm", requires = "zeros", value_parser = allocation)]
    allocation: Allocation,
    /// Train the weights to answer as the original does, after all else that changes the graph; labels are not needed.
    /// Part of the data are trained on, and no others are measured on.
    #[arg(long)]
    tune: bool,
    /// Train on these examples instead; images, texts or arrays such as the model takes.
    #[arg(long, value_name = "PATH", requires = "tune")]
    tune_data: Option<PathBuf>,
    /// Times that each example is seen, at most [default: 10].
    #[arg(long, value_name = "COUNT", requires = "tune", value_parser = clap::value_parser!(u32).range(1..100_000))]
    epochs: Option<u32>,
    /// The greatest step of the training, as a part of a weight's size [default: 0.015 for convolutions, 0.001 for others].
    #[arg(long, value_name = "RATE", requires = "tune", value_parser = positive)]
    rate: Option<f64>,
    /// Train only what is added to products, and the factors of norms.
    #[arg(long, requires = "tune")]
    small: bool,
    /// Move numbers from one weight to the next so that few bits do less harm: equalize, smooth, awq, rotate, or several
    /// with commas between; measured tries each in the bits that weights would have without, keeps those that bring the
    /// answers nearer, and holds the whole file against one without. The model computes the same.
    #[arg(long, value_name = "NAME[,NAME...]")]
    prepare: Option<Preparations>,
    /// Time that the search may take: 90s, 10m, 2h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    time: Option<Duration>,
    /// Keep what calibration carries from weight to weight in files of this folder in the place of memory, which is then
    /// that of one batch. The files have no names and nothing of them stays.
    #[arg(long, value_name = "FOLDER")]
    spill: Option<PathBuf>,
    /// Write the model even when a goal is missed.
    #[arg(long)]
    force: bool,
    /// What the model is for: classify, multilabel, similarity or agree [default: what the data are for].
    #[arg(long, value_name = "TASK")]
    task: Option<Task>,
    /// How weights of few bits go to their codes: sweep; learned, which takes longer; nearest, or gptq as it was
    /// published, for comparison.
    #[arg(long, value_name = "HOW", default_value = "sweep", value_parser = rounding)]
    rounding: Rounding,
    /// How the scales of weights of few bits are found; min-max is for comparison.
    #[arg(long, value_name = "HOW", default_value = "searched", value_parser = ranges)]
    ranges: Ranges,
    #[command(flatten)]
    columns: Columns,
    #[command(flatten)]
    opening: Opening,
    #[command(flatten)]
    showing: Showing,
    #[command(flatten)]
    costs: Costs,
}

impl Shrink {
    pub fn run(self, common: &Common) -> Result<Done> {
        let (model_path, data_path) = match &self.model {
            Some(model) => (model.clone(), self.data.clone()),
            None if self.self_made => (example(None)?.0, None),
            None => example(self.data.as_deref())?,
        };
        let output = self.output.clone().unwrap_or_else(|| default_output(&model_path));
        let request = Request {
            self_made: self.self_made,
            spill: self.spill.as_deref(),
            smaller: self.smaller,
            size: self.size,
            faster: self.faster,
            lose: self.lose,
            measure: self.metric,
            smallest: self.smallest,
            frontier: self.frontier,
            fewer: self.fewer,
            without: self.without,
            zeros: self.zeros.map(|share| Sparse {
                pattern: self.pattern,
                share,
                rule: self.rule,
                refit: !self.no_refit,
                allocation: self.allocation,
            }),
            tune: self.tune.then_some(Tuning {
                data: None,
                epochs: self.epochs.map(|n| n as usize),
                rate: self.rate.map(|r| r as f32),
                small: self.small,
            }),
            prepare: self.prepare.clone().unwrap_or_default(),
            time: self.time,
            rounding: self.rounding,
            ranges: self.ranges,
            task: self.task,
            options: self.showing.options(),
            place: self.costs.place()?,
            ..Request::default()
        };
        let source = Source {
            model: &model_path,
            data: data_path.as_deref(),
            tune_data: self.tune_data.as_deref(),
            calibrate_on: self.calibrate_on.as_deref(),
            columns: &self.columns,
        };
        make(common, &source, &self.opening, request, &output, self.force)
    }
}

/// Where a model and its data are.
pub(super) struct Source<'a> {
    pub model: &'a Path,
    pub data: Option<&'a Path>,
    /// Examples to train on.
    pub tune_data: Option<&'a Path>,
    /// Examples to calibrate on.
    pub calibrate_on: Option<&'a Path>,
    pub columns: &'a Columns,
}

/// Makes the smaller model; writes it, its plan and its receipt.
pub(super) fn make(
    common: &Common,
    source: &Source,
    opening: &Opening,
    request: Request,
    output: &Path,
    force: bool,
) -> Result<Done> {
    if same_file(source.model, output) {
        bail!("{} is the model itself; name another file with -o", output.display());
    }
    if output.is_dir() {
        bail!("{} is a folder; name a file with -o", output.display());
    }
    lessen::check_name(output)?;
    let beside = Beside::of(output, source)?;
    let model = opening.open(source.model)?;
    let open =
        |path: Option<&Path>| path.map(|path| data::open(path, &source.columns.options(&model))).transpose();
    let (data, lessons, calibration) =
        (open(source.data)?, open(source.tune_data)?, open(source.calibrate_on)?);
    let lessons = lessons.as_deref().map(|d| d as &dyn Dataset);
    let bar = common.spinner();
    let tell = |what: &str| bar.set_message(what.to_owned());
    let tune = match (request.tune, lessons) {
        (tune, None) => tune,
        (tune, data) => Some(Tuning { data, ..tune.unwrap_or_default() }),
    };
    let dataset = data.as_deref().map(|d| d as &dyn Dataset);
    let (data_path, tune_path) = (source.data, source.tune_data);
    let request = Request {
        data: dataset,
        data_path,
        tune_path,
        tune,
        calibrate_on: calibration.as_deref().map(|d| d as &dyn Dataset),
        calibration_path: source.calibrate_on,
        work: beside.work.as_deref(),
        ..request
    };
    let (small, mut receipt) = shrink(&model, &request, &common.cpu()?, &tell)?;
    bar.finish_and_clear();

    let written = receipt.met || force;
    if written {
        small.save(output).context("the model cannot be written")?;
        keep_tokenizer(&small, output, common)?;
        receipt.seal(output).context("the model cannot be read again")?;
        if let Some(memory) = super::bench::memory(common, source.model, output) {
            receipt.memory = Some(memory);
            receipt.caveats.push("Memory was measured with made-up inputs.".into());
        }
    }
    let mut json = serde_json::to_value(&receipt)?;
    json["output"] =
        written.then_some(output).map_or(serde_json::Value::Null, |p| p.display().to_string().into());
    json["weights_that_hurt"] = hurting(&receipt).into();
    if written {
        let plan = receipt.plan.write()?;
        lessen::write_file(&beside.plan, plan.as_bytes()).context("the plan cannot be written")?;
        let text = serde_json::to_string_pretty(&json)? + "\n";
        lessen::write_file(&beside.json, text.as_bytes()).context("the receipt cannot be written")?;
        page::write(&receipt, &beside.page).context("the receipt cannot be written")?;
    }
    if let Some(work) = &beside.work {
        lessen::kept::discard(work)?;
    }
    let mut text = words(&receipt);
    for missed in &receipt.missed {
        text += &format!("goal missed: {missed}\n");
    }
    match written {
        true => {
            let [model, plan] = [output, &beside.plan].map(Path::display);
            let [page, json] = [&beside.page, &beside.json].map(|p| p.display());
            text += &format!("written: {model}, plan: {plan}, receipt: {page} and {json}\n");
        }
        false => {
            text += &format!("weights that hurt: {}\n", hurting(&receipt).join(", "));
            text += "nothing was written; --force writes the model all the same\n";
        }
    }
    let code = if receipt.met { 0 } else { MISSED };
    Ok(Done { text, json, code })
}

/// What is written beside the model.
struct Beside {
    plan: PathBuf,
    page: PathBuf,
    json: PathBuf,
    /// Where unfinished work is kept; `None` when the model's folder is not there.
    work: Option<PathBuf>,
}

impl Beside {
    /// Fails when one of them would take the place of what is read or of the model that is written.
    fn of(output: &Path, source: &Source) -> Result<Beside> {
        let [plan, page, json] = ["toml", "html", "json"].map(|ending| output.with_extension(ending));
        for path in [&plan, &page, &json] {
            let mut read = [Some(source.model), source.data, source.tune_data, source.calibrate_on]
                .into_iter()
                .flatten();
            if path == output || read.any(|read| same_file(read, path)) {
                bail!(
                    "{} would be overwritten by the receipt or the plan; name another file with -o",
                    path.display()
                );
            }
        }
        let mut work = output.file_name().unwrap_or_default().to_os_string();
        work.push(".partial");
        let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let work = folder.is_dir().then(|| output.with_file_name(work));
        Ok(Beside { plan, page, json, work })
    }
}

/// The example of the repository, when the command runs in it.
fn example(data: Option<&Path>) -> Result<(PathBuf, Option<PathBuf>)> {
    let [model, test] = EXAMPLE.map(PathBuf::from);
    if !model.is_file() {
        bail!("name a model: lessen shrink MODEL --data PATH (the example {} is not here)", model.display());
    }
    Ok((model, Some(data.map_or(test, Path::to_owned))))
}

fn default_output(model: &Path) -> PathBuf {
    let stem = model.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
    PathBuf::from(format!("{stem}-int8.onnx"))
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// The weights that do most harm: those given back, else those with the greatest error.
fn hurting(receipt: &Receipt) -> Vec<String> {
    if !receipt.given_back.is_empty() || receipt.met {
        return receipt.given_back.clone();
    }
    let mut changed: Vec<_> = receipt.plan.changed().collect();
    changed.sort_by(|a, b| b.error.total_cmp(&a.error));
    changed.iter().take(5).map(|s| s.node.clone()).collect()
}

/// The curve of sizes as a table.
fn curve(receipt: &Receipt) -> String {
    let mut rows =
        vec![["", "size", "smaller", "metric", "lost (95 %)", "faster"].map(String::from).to_vec()];
    for point in &receipt.frontier {
        let digits = |q: &Quality| if q.before.unit == "%" { 2 } else { 4 };
        let number = |of: fn(&Quality) -> &Number| {
            point.quality.as_ref().map_or_else(String::new, |q| format!("{:.*}", digits(q), of(q)))
        };
        let value = point.quality.as_ref().map_or_else(String::new, |q| {
            format!("{:.*} {}", digits(q), q.after.value, q.after.unit).trim_end().to_string()
        });
        rows.push(vec![
            point.name.clone(),
            bytes(point.bytes.value as u64),
            format!("{:.2}x", point.smaller.value),
            value,
            number(|q| &q.lost),
            point.faster.as_ref().map_or_else(String::new, |f| format!("{:.2}x", f.value)),
        ]);
    }
    table(&rows)
}

/// How the examples were shared out.
fn shared(shares: &Shares) -> String {
    let Shares { data, calibration, search, verify, .. } = shares;
    let measured = format!("{search} to decide, {verify} for these numbers (intervals are of 95 %)");
    match &shares.calibration_data {
        None => format!("{data}: {calibration} examples to calibrate, {measured}\n"),
        Some(made) if *verify == 0 => format!(
            "{made}: {calibration} examples to calibrate, {search} to decide\nno loss was measured: no data (--data PATH)\n"
        ),
        Some(other) => {
            let seen = match shares.seen {
                0 => String::new(),
                seen => format!(", {seen} left out that calibration has seen"),
            };
            format!("{other}: {calibration} examples to calibrate\n{data}: {measured}{seen}\n")
        }
    }
}

fn words(receipt: &Receipt) -> String {
    let mut rows = vec![vec![String::new(), "before".into(), "after".into(), String::new()]];
    let size = |n: f64| bytes(n as u64);
    rows.push(vec![
        "size of the file".into(),
        size(receipt.bytes_before.value),
        size(receipt.bytes_after.value),
        format!("{:.2} times smaller", receipt.smaller.value),
    ]);
    if let Some(quality) = &receipt.quality {
        let digits = if quality.before.unit == "%" { 2 } else { 4 };
        rows.push(vec![
            quality.metric.clone(),
            format!("{:.digits$}", quality.before),
            format!("{:.digits$}", quality.after),
            format!("lost {:.digits$}", quality.lost),
        ]);
    }
    if let Some(speed) = &receipt.speed {
        rows.push(vec![
            format!("time of one run, {} threads", speed.threads),
            format!("{:.3}", speed.before),
            format!("{:.3}", speed.after),
            speed.words(),
        ]);
    }
    let mut text = table(&rows);
    if !receipt.frontier.is_empty() {
        text += "files that could be had:\n";
        text += &curve(receipt);
    }
    for change in &receipt.changes {
        let (before, after) = change.elements;
        let what = format!("{} of {before} elements of weights stay", after);
        text += &format!("{}: {what}, {} {:.2e}\n", change.pass, change.measure, change.error);
    }
    match &receipt.data {
        Some(shares) => {
            if let Some(data) = &shares.training_data {
                text += &format!("{data}: {} examples to train on\n", shares.training);
            }
            text += &shared(shares);
        }
        None => {
            text +=
                "nothing was measured: no data (--data PATH; --self-made calibrates on made-up examples)\n"
        }
    }
    for caveat in &receipt.caveats {
        text += &format!("note: {caveat}\n");
    }
    let mut kinds: Vec<(Choice, usize)> = Vec::new();
    for step in &receipt.plan.steps {
        match kinds.iter_mut().find(|(choice, _)| *choice == step.choice) {
            Some((_, count)) => *count += 1,
            None => kinds.push((step.choice, 1)),
        }
    }
    let kinds: Vec<String> = kinds.iter().map(|(choice, count)| format!("{count} {choice}")).collect();
    text += &format!("weights: {}\n", kinds.join(", "));
    text += &format!("energy: {}\n", receipt.payback.words());
    if let Some(proof) = &receipt.proof {
        text += &format!("{}\n", proof.words());
    }
    if !receipt.given_back.is_empty() {
        text += &format!("given back to f32, most harmful first: {}\n", receipt.given_back.join(", "));
    }
    text
}
