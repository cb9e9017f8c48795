//! Flags that several commands share.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lessen::answer::{self, Task};
use lessen::data::{self, Dataset, Several};
use lessen::features::Wanted;
use lessen::image::Preprocess;
use lessen::meter::Place;
use lessen::{Cpu, Error, Model};

/// Flags of every command.
#[derive(Clone, Copy, Debug, Args)]
pub struct Common {
    /// Number of threads; 0 means one for each core.
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object.
    #[arg(long, global = true)]
    pub json: bool,
    /// Print no warnings and no progress.
    #[arg(long, global = true)]
    pub quiet: bool,
}

impl Common {
    /// The processor to run on.
    pub fn cpu(&self) -> Result<Cpu> {
        Ok(Cpu::new(self.threads).map_err(Error::Input)?)
    }

    /// A progress bar over `total` steps; it is shown on terminals only.
    pub fn progress(&self, total: usize) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len}  {elapsed} of about {duration}");
        let bar = ProgressBar::new(total as u64);
        style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)
    }
}

impl Common {
    /// A line that says what is being done; it is shown on terminals only.
    pub fn spinner(&self) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        style.map(|style| bar.clone().with_style(style)).unwrap_or(bar)
    }
}

/// Where the machine stands, and what it costs there.
#[derive(Clone, Debug, Args)]
pub struct Costs {
    /// The country that the machine stands in, for the carbon of its electricity: its code of three letters, or its name.
    #[arg(long, value_name = "CODE", default_value = "")]
    country: String,
    /// The part of the country: a province of CAN, such as QC, or a subregion of the grid of the USA (eGRID), such as CAMX.
    #[arg(long, value_name = "CODE", default_value = "")]
    region: String,
    /// Grams of CO2 equivalent a kilowatt-hour [default: the region's, the country's, or 475, the world's].
    #[arg(long, value_name = "GRAMS", allow_negative_numbers = true)]
    intensity: Option<f64>,
    /// Energy that the building takes for each that its machines take, such as 1.58 in a data centre.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, allow_negative_numbers = true)]
    pue: f64,
    /// Money a kilowatt-hour.
    #[arg(long, value_name = "PRICE", default_value_t = 0.0, allow_negative_numbers = true)]
    per_kwh: f64,
    /// Money an hour of the machine.
    #[arg(long, value_name = "PRICE", default_value_t = 0.0, allow_negative_numbers = true)]
    per_hour: f64,
}

impl Costs {
    /// Whether anything was said.
    pub fn any(&self) -> bool {
        let Costs { country, region, intensity, pue, per_kwh, per_hour } = self;
        let said = !country.is_empty() || !region.is_empty() || intensity.is_some();
        said || *pue != 1.0 || *per_kwh != 0.0 || *per_hour != 0.0
    }

    /// The place.
    ///
    /// # Errors
    /// When a number makes no sense, or the country or its part is not known.
    pub fn place(&self) -> Result<Place> {
        least("--pue", self.pue, 1.0)?;
        least("--per-kwh", self.per_kwh, 0.0)?;
        least("--per-hour", self.per_hour, 0.0)?;
        let place = match self.intensity {
            Some(intensity) => {
                least("--intensity", intensity, 0.0)?;
                Place::given(&self.country, &self.region, intensity, "given".into())
            }
            None => Place::of(&self.country, &self.region).map_err(anyhow::Error::msg)?,
        };
        Ok(Place { pue: self.pue, per_kwh: self.per_kwh, per_hour: self.per_hour, ..place })
    }
}

/// Whether what a flag says is a number from `least`.
pub fn least(flag: &str, value: f64, least: f64) -> Result<()> {
    ensure!(value.is_finite() && value >= least, "{flag} {value}: it must be a number from {least}");
    Ok(())
}

/// How a model is opened.
#[derive(Clone, Debug, Args)]
pub struct Opening {
    /// The tokenizer: tokenizer.json, vocab.txt, or a folder with one of them [default: beside the model].
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Cut texts to this many tokens.
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// How images are prepared, such as
    /// resize=256,crop=224x224,color=rgb,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=nchw
    /// [default: what the model's metadata say].
    #[arg(long, value_name = "STEPS", value_parser = Preprocess::from_str)]
    pub preprocess: Option<Preprocess>,
    /// Which task, of a model that was taught several: the name that `teach --add` gave it [default: the first].
    #[arg(long = "for", value_name = "NAME")]
    pub task_name: Option<String>,
}

impl Opening {
    /// Opens a model.
    pub fn open(&self, path: &std::path::Path) -> Result<Model> {
        let mut model = Model::open(path)?;
        match &self.tokenizer {
            Some(tokenizer) => model.set_tokenizer(tokenizer, self.max_tokens)?,
            None if self.max_tokens.is_some() => model.limit_tokens(self.max_tokens)?,
            None => {}
        }
        if let Some(preprocess) = &self.preprocess {
            model.set_preprocess(preprocess.clone())?;
        }
        match &self.task_name {
            Some(name) => Ok(model.only(name)?),
            None => Ok(model),
        }
    }
}

/// Puts the tokenizer of a model that was written to `output` beside it, so that it need not be named; warns when another one
/// is there.
pub fn keep_tokenizer(model: &Model, output: &std::path::Path, common: &Common) -> Result<()> {
    let beside = model.save_tokenizer(output).context("the tokenizer cannot be written beside the model")?;
    if !beside && !common.quiet {
        let output = output.display();
        eprintln!(
            "warning: another tokenizer.json lies beside {output}: give the model's own with --tokenizer"
        );
    }
    Ok(())
}

/// How examples are shown to a model.
#[derive(Clone, Debug, Args)]
pub struct Showing {
    /// Most examples at once, where the model leaves that open.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub batch: usize,
    /// The output that is the answer [default: chosen by the task].
    #[arg(long, value_name = "NAME")]
    pub output_name: Option<String>,
    /// Let NaN and infinity in the input through.
    #[arg(long)]
    pub allow_nan: bool,
}

impl Showing {
    /// The same as options of the library.
    pub fn options(&self) -> answer::Options {
        let mut options = answer::Options { output: self.output_name.clone(), ..Default::default() };
        options.feed.batch = self.batch;
        options.feed.allow_nan = self.allow_nan;
        options
    }
}

/// The data to judge by.
#[derive(Clone, Debug, Args)]
pub struct Data {
    /// A folder of images by class, .npz, CSV/TSV/JSONL (perhaps .gz), Parquet, or IDX.
    #[arg(long = "data", value_name = "PATH")]
    pub path: PathBuf,
    #[command(flatten)]
    pub columns: Columns,
    /// What the model is for: classify, multilabel, similarity or agree [default: what the data are for].
    #[arg(long, value_name = "TASK")]
    pub task: Option<Task>,
}

/// How features of examples are made, and what they count.
#[derive(Clone, Debug, Args)]
pub struct Learning {
    /// Let each class count the same, however many examples it has.
    #[arg(long)]
    pub balanced: bool,
    /// Keep features in this folder (and what `pick` compares texts by), and take them from there the next time.
    #[arg(long, value_name = "FOLDER")]
    pub cache: Option<PathBuf>,
    /// Most examples at once, where the model leaves that open.
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub batch: usize,
    #[command(flatten)]
    pub columns: Columns,
    #[command(flatten)]
    pub opening: Opening,
}

impl Learning {
    /// The features of these examples that a node makes.
    pub fn wanted<'a>(&'a self, data: &'a dyn Dataset, node: Option<&'a str>) -> Wanted<'a> {
        let feed = lessen::feed::Options { batch: self.batch, ..Default::default() };
        Wanted { data, node, feed, cache: self.cache.as_deref() }
    }
}

/// Where the parts of an example stand.
#[derive(Clone, Debug, Default, Args)]
pub struct Columns {
    /// The column of the text, or of the first text of a pair.
    #[arg(long, value_name = "NAME")]
    pub text_column: Option<String>,
    /// The column of the second text of a pair.
    #[arg(long, value_name = "NAME")]
    pub text_b_column: Option<String>,
    /// The column or array of the class.
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
    /// The column or array of the score.
    #[arg(long, value_name = "NAME")]
    pub score_column: Option<String>,
    /// Where an example can have several labels: the columns that hold 0 or 1, one for each label.
    #[arg(long, value_name = "NAME,NAME..", value_delimiter = ',', conflicts_with_all = ["label_column", "score_column"])]
    pub label_columns: Vec<String>,
    /// Where an example can have several labels: the column that lists them with ; or | between, or an array of 0 and 1 of
    /// shape [examples, labels].
    #[arg(long, value_name = "NAME", conflicts_with_all = ["label_column", "score_column", "label_columns"])]
    pub labels_column: Option<String>,
}

impl Columns {
    /// The same as options of the reader. The model's names of the classes put folders in its order.
    pub fn options(&self, model: &Model) -> data::Options {
        self.with_classes(model.classes())
    }

    fn several(&self) -> Option<Several> {
        let listed = self.labels_column.clone().map(Several::Listed);
        listed.or_else(|| {
            (!self.label_columns.is_empty()).then(|| Several::Columns(self.label_columns.clone()))
        })
    }

    /// The same as options of the reader, with names of the classes in their order.
    pub fn with_classes(&self, classes: Option<Vec<String>>) -> data::Options {
        data::Options {
            text: self.text_column.clone(),
            text_b: self.text_b_column.clone(),
            label: self.label_column.clone(),
            score: self.score_column.clone(),
            several: self.several(),
            classes,
            ..Default::default()
        }
    }
}

impl Data {
    /// Opens the data for this model, and finds the task.
    pub fn open(&self, model: &Model) -> Result<(Box<dyn Dataset>, Task)> {
        let data = data::open(&self.path, &self.columns.options(model)).context("the data cannot be used")?;
        let task = self.task.unwrap_or_else(|| Task::guess(model, data.as_ref()));
        Ok((data, task))
    }
}
