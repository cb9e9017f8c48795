//! Less and better data: what is there twice goes, and labels that are probably wrong; of the rest the share stays that
//! serves best. Tables of texts are streamed; features of a model are made where meaning, difficulty or labels count.

mod choose;
mod examples;
mod table;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use kernel::Cpu;
use learn::Input;
use learn::data::rows::Rows;
use learn::data::{self, Dataset};
use learn::head::Truth;
pub use learn::pick::Near;
use learn::pick::{Coreset, meaning};
use meter::energy::{Meter, SENSORS, processor};
use meter::{Energy, Machine};
use serde::Serialize;

use crate::features::{Subset, Wanted};
use crate::receipt::Number;
use crate::teach::taps::{self, Chosen, Tapped};
use crate::teach::truth;
use crate::{Error, Model, Result};
use choose::{Chooser, Looked};
pub use choose::{Random, Tried};

/// How much stays.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// This share of all examples.
    Share(f64),
    /// So many examples.
    Count(usize),
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Keep, String> {
        let wrong = || format!("{text:?} is neither a share, such as 30%, nor a number of examples");
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
            let sound = percent > 0.0 && percent <= 100.0;
            return if sound { Ok(Keep::Share(percent / 100.0)) } else { Err(wrong()) };
        }
        match text.parse() {
            Ok(0) | Err(_) => Err(wrong()),
            Ok(count) => Ok(Keep::Count(count)),
        }
    }
}

/// How those are chosen that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// At random.
    Random,
    /// Texts that resemble those of a target: see [`learn::pick::resemblance`].
    Target,
    /// The hardest: see [`learn::pick::Difficulty::error`].
    Hard,
    /// The easiest.
    Easy,
    /// Neither the hardest nor the easiest.
    Moderate,
    /// Those that are forgotten the most often.
    Forgotten,
    /// Those that heads are least sure of.
    Margin,
    /// Those whose labels heads that have not seen them are surest of.
    Sure,
    /// Those whose labels such heads are least sure of.
    Unsure,
    /// Those that stand for the others.
    #[serde(untagged)]
    Coreset(Coreset),
}

impl By {
    /// All of them.
    pub const ALL: [By; 12] = [
        By::Random,
        By::Target,
        By::Coreset(Coreset::KCenter),
        By::Coreset(Coreset::Herding),
        By::Coreset(Coreset::Facility),
        By::Hard,
        By::Easy,
        By::Moderate,
        By::Forgotten,
        By::Margin,
        By::Sure,
        By::Unsure,
    ];

    /// Does it need features?
    pub fn needs_features(self) -> bool {
        !matches!(self, By::Random | By::Target)
    }

    /// Does it need classes?
    pub fn needs_classes(self) -> bool {
        self.needs_features() && !matches!(self, By::Coreset(_))
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            By::Random => "random",
            By::Target => "target",
            By::Coreset(coreset) => return coreset.fmt(f),
            By::Hard => "hard",
            By::Easy => "easy",
            By::Moderate => "moderate",
            By::Forgotten => "forgotten",
            By::Margin => "margin",
            By::Sure => "sure",
            By::Unsure => "unsure",
        })
    }
}

impl FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<By, String> {
        By::ALL.into_iter().find(|by| by.to_string() == text).ok_or_else(|| {
            let names: Vec<String> = By::ALL.iter().map(By::to_string).collect();
            format!("{text:?} is no way to choose examples; they are {}", names.join(", "))
        })
    }
}

/// What is asked for.
pub struct Request<'a> {
    /// Where the examples are.
    pub path: &'a Path,
    /// How they are read.
    pub options: &'a data::Options,
    /// The model whose features are looked at, and of what examples: those at `path`; of numbers one that gives them as
    /// they are.
    pub model: Option<(&'a Model, Wanted<'a>)>,
    /// Are these features numbers of any scale, so that each column is to count the same?
    pub numbers: bool,
    /// How much stays at most; all that is worth keeping when not given.
    pub keep: Option<Keep>,
    /// How those are chosen; when not given, what serves best on examples that were held out.
    pub by: Option<By>,
    /// What counts as nearly the same text; those that are exactly the same go in any case.
    pub near: Option<Near>,
    /// The least cosine of features that mean the same.
    pub alike: Option<f64>,
    /// Do examples go whose labels are probably wrong?
    pub labels: bool,
    /// Texts that those which stay shall resemble.
    pub target: Option<&'a Path>,
    /// Does each class count the same, and get the same share, as far as there are examples?
    pub balanced: bool,
    /// What is drawn at random is drawn from this.
    pub seed: u64,
    /// A folder where it is kept what rows of tables are compared by, for the next time and for a run that was killed.
    pub cache: Option<&'a Path>,
    /// Told what is being done, in a few words.
    pub progress: &'a dyn Fn(&str),
}

/// What becomes of an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It stays.
    Kept,
    /// It cannot be read.
    Unreadable,
    /// It is the same as this one, which stays, but for case and spaces.
    Same(u32),
    /// It is nearly the same text as this one; the similarity.
    Near(u32, f32),
    /// It means the same as this one; the cosine.
    Meaning(u32, f32),
    /// Its label is probably wrong: it is likely of this class; by how much.
    Label(u32, f32),
    /// Others serve better.
    Left,
}

/// Why examples go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// It cannot be read.
    Unreadable,
    /// It is there before.
    Same,
    /// Nearly the same is there before.
    Near,
    /// One that means the same stays.
    Meaning,
    /// Its label is probably wrong.
    Label,
    /// Others serve better.
    Left,
}

impl Verdict {
    /// Why the example goes, the other example and the number that is the reason.
    pub fn why(self) -> Option<(Why, Option<u32>, Option<f32>)> {
        Some(match self {
            Verdict::Kept => return None,
            Verdict::Unreadable => (Why::Unreadable, None, None),
            Verdict::Same(of) => (Why::Same, Some(of), None),
            Verdict::Near(of, similarity) => (Why::Near, Some(of), Some(similarity)),
            Verdict::Meaning(of, cosine) => (Why::Meaning, Some(of), Some(cosine)),
            Verdict::Label(_, margin) => (Why::Label, None, Some(margin)),
            Verdict::Left => (Why::Left, None, None),
        })
    }
}

/// An example that goes, as people see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// What it is called: its line or file.
    pub example: String,
    /// What it says, when it is a text.
    pub text: Option<String>,
    /// The one that stays for it.
    pub of: Option<String>,
    /// What that says.
    pub of_text: Option<String>,
    /// How similar they are, or by how much another label is more probable.
    pub number: Option<f32>,
    /// The label it has, and the one it should have.
    pub label: Option<(String, String)>,
}

/// Examples that go for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dropped {
    /// The reason.
    pub why: Why,
    /// How many.
    pub count: usize,
    /// Some of them.
    pub examples: Vec<Shown>,
}

/// What was done and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What the data are.
    pub data: String,
    /// Number of examples.
    pub examples: usize,
    /// How many stay.
    pub kept: usize,
    /// What goes, and why.
    pub dropped: Vec<Dropped>,
    /// Examples that are there twice with different labels.
    pub contradictions: usize,
    /// How those that stay were chosen; `None` when all do that are worth it.
    pub by: Option<By>,
    /// What was tried on examples that were held out, the best first.
    pub tried: Vec<Tried>,
    /// What random choices do there.
    pub random: Option<Random>,
    /// The values of the model that the features are of; none without a model.
    pub nodes: Vec<String>,
    /// What features could be taken of, by their cost; nothing when there was no choice.
    pub taps: Vec<Tapped>,
    /// Seconds that all of it took.
    pub time: Number,
    /// Energy that all of it took.
    pub energy: Energy,
}

/// The data at `path` when they are numbers, which are their own features: see [`crate::features::plain`].
///
/// # Errors
/// When they cannot be read.
pub fn numbers(path: &Path, options: &data::Options) -> Result<Option<Box<dyn Dataset>>> {
    if data::is_table(path)? && !Rows::open(path, options)?.numbers() {
        return Ok(None);
    }
    let data = data::open(path, options)?;
    let first = (0..data.len()).find_map(|i| data.get(i).ok());
    Ok(first.is_some_and(|example| matches!(example.input, Input::Arrays(_))).then_some(data))
}

/// Examples shown for each reason.
const SHOWN: usize = 3;

/// Picks the examples that are worth keeping and writes them to `out`, which is there as a whole or not at all; tells what
/// becomes of each.
///
/// # Errors
/// When the examples cannot be read or nothing would stay, a way to choose needs what is not given, or `out` cannot be
/// written.
pub fn pick(request: &Request, out: &Path, cpu: &Cpu) -> Result<(Report, Vec<Verdict>)> {
    let meter = Meter::start(Path::new(SENSORS), Duration::ZERO);
    let start = Instant::now();
    fits(request)?;
    // What is no table; tables are streamed.
    let is_table = data::is_table(request.path)?;
    if is_table {
        table::fits(request.path, out)?;
    }
    let opened = match is_table || request.model.is_some() {
        true => None,
        false => Some(data::open(request.path, request.options)?),
    };
    let data = match &request.model {
        _ if is_table => None,
        Some((_, examples)) => Some(examples.data),
        None => opened.as_deref(),
    };
    let mut all = match data {
        None => table::scan(request, cpu)?,
        Some(data) => examples::scan(data, request, cpu),
    };
    let count = all.verdicts.len();
    let wanted = match request.keep {
        None => count,
        Some(Keep::Share(share)) => ((share * count as f64).round() as usize).max(1),
        Some(Keep::Count(count)) => count,
    };
    let mut chosen = Choice::default();
    match &request.model {
        Some((model, examples)) => chosen = by_features(request, model, examples, wanted, &mut all, cpu)?,
        None if all.left().len() > wanted => {
            let by = request.by.unwrap_or(if request.target.is_some() { By::Target } else { By::Random });
            chosen.by = Some(by);
            let rows = all.left();
            let weights = match by {
                By::Target => all.weights(request, &rows)?,
                _ => Vec::new(),
            };
            let stay = choose::without_features(by, &rows, &all.answers, &weights, wanted, request);
            all.leave(&rows, &stay);
        }
        None => {}
    }
    let kept = all.verdicts.iter().filter(|v| **v == Verdict::Kept).count();
    if kept == 0 {
        let unread = all.verdicts.iter().all(|verdict| *verdict == Verdict::Unreadable);
        let what = if unread { "can be read" } else { "is worth keeping" };
        return Err(Error::input(format!(
            "no example of {} {what}; nothing is written",
            request.path.display()
        )));
    }
    (request.progress)("writing");
    match data {
        None => table::copy(request.path, &all, out)?,
        Some(data) => write::examples(data, &all.verdicts, out)?,
    }
    let dropped = shown(request, &all, data)?;
    let report = Report {
        data: all.describe,
        examples: count,
        kept,
        dropped,
        contradictions: all.contradictions,
        by: chosen.by,
        tried: chosen.tried,
        random: chosen.random,
        nodes: chosen.nodes,
        taps: chosen.taps,
        time: Number::measured(start.elapsed().as_secs_f64(), "s"),
        energy: meter.stop(&processor(&Machine::this())),
    };
    Ok((report, all.verdicts))
}

/// Fails when a way to choose needs what is not given.
fn fits(request: &Request) -> Result<()> {
    let needs = |what: &str, flag: &str| Err(Error::input(format!("{what} needs {flag}; give it")));
    if let Some(by) = request.by {
        if by.needs_features() && request.model.is_none() {
            return needs(
                &format!("choosing by {by:?}", by = by.to_string()),
                "features of a model, --model",
            );
        }
        if by == By::Target && request.target.is_none() {
            return needs("choosing by \"target\"", "texts to resemble, --target");
        }
        if request.keep.is_none() {
            return needs("choosing", "how many are to stay, --keep");
        }
    }
    if request.labels && request.model.is_none() {
        return needs("finding labels that are wrong", "features of a model, --model");
    }
    if request.alike.is_some() && request.model.is_none() {
        return needs("finding what means the same", "features of a model, --model");
    }
    Ok(())
}

/// What is known of all examples.
struct All {
    describe: String,
    verdicts: Vec<Verdict>,
    /// The number of each one's label among the labels; `u32::MAX` without.
    answers: Vec<u32>,
    names: Vec<String>,
    contradictions: usize,
    /// Where rows start, and the last one ends; of tables only.
    starts: Vec<u64>,
}

impl All {
    /// The examples that are still there.
    fn left(&self) -> Vec<usize> {
        (0..self.verdicts.len()).filter(|&row| self.verdicts[row] == Verdict::Kept).collect()
    }

    /// Of these rows only those stay, which are among them; both in ascending order.
    fn leave(&mut self, rows: &[usize], stay: &[usize]) {
        let mut stay = stay.iter().peekable();
        for row in rows {
            if stay.next_if_eq(&row).is_none() {
                self.verdicts[*row] = Verdict::Left;
            }
        }
    }

    /// How much each row resembles the target.
    fn weights(&self, request: &Request, rows: &[usize]) -> Result<Vec<f64>> {
        let Some(target) = request.target else { return Err(Error::input("there is no target to resemble")) };
        table::weights(request, target, rows)
    }
}

/// How those that stay were chosen.
#[derive(Default)]
struct Choice {
    by: Option<By>,
    tried: Vec<Tried>,
    random: Option<Random>,
    nodes: Vec<String>,
    taps: Vec<Tapped>,
}

/// Is it by what the examples are labelled with that they stay or go? What means the same, and what stands for others, the
/// model's end tells.
fn looks_at_classes(request: &Request) -> bool {
    let by = match request.by {
        Some(by) => by.needs_classes(),
        None => request.keep.is_some(),
    };
    !request.numbers && request.alike.is_none() && (request.labels || by)
}

/// What needs a model: meaning, wrong labels, and the choice.
fn by_features(
    request: &Request,
    model: &Model,
    examples: &Wanted,
    wanted: usize,
    all: &mut All,
    cpu: &Cpu,
) -> Result<Choice> {
    let left = all.left();
    if left.is_empty() {
        return Ok(Choice::default());
    }
    let subset = Subset { data: examples.data, rows: &left };
    let wants = Wanted { data: &subset, ..examples.clone() };
    // Where some have no class, none is looked at.
    let classes = |rows: &[usize]| {
        truth(&subset, rows).ok().map(|(truth, _)| truth).filter(|truth| {
            matches!(truth, Truth::Classes { .. }) && truth.counts().iter().filter(|n| **n > 0).count() > 1
        })
    };
    let all_have = || classes(&(0..left.len()).collect::<Vec<_>>()).is_some();
    let free = examples.node.is_none() && looks_at_classes(request) && all_have();
    let Chosen { backbone, learnt, tried, .. } = match free {
        true => taps::choose(model, &wants, request.balanced, None, cpu, request.progress)?,
        false => Chosen::fixed(model, &wants, cpu, request.progress)?,
    };
    let classes = classes(&learnt.rows);
    let rows: Vec<usize> = learnt.rows.iter().map(|&at| left[at]).collect();
    let mut readable = rows.iter().peekable();
    for row in &left {
        if readable.next_if_eq(&row).is_none() {
            all.verdicts[*row] = Verdict::Unreadable;
        }
    }
    let features = if request.numbers { learnt.features.standardized() } else { learnt.features };
    let weights = match request.target {
        Some(_) => all.weights(request, &rows)?,
        None => Vec::new(),
    };
    let chooser = Chooser { features: &features, classes: classes.as_ref(), weights: &weights, request, cpu };
    let every: Vec<usize> = (0..rows.len()).collect();
    if request.labels {
        (request.progress)("looking for labels that are wrong");
        for issue in Looked::at(&chooser, &every).issues()? {
            all.verdicts[rows[issue.row]] = Verdict::Label(issue.likely as u32, issue.margin as f32);
        }
    }
    if let Some(alike) = request.alike {
        (request.progress)("looking for what means the same");
        let at: Vec<usize> = (0..rows.len()).filter(|&at| all.verdicts[rows[at]] == Verdict::Kept).collect();
        for twin in meaning::twins(&features.select(&at), alike as f32, request.seed, cpu) {
            all.verdicts[rows[at[twin.row]]] = Verdict::Meaning(rows[at[twin.of]] as u32, twin.cosine);
        }
    }
    let mut choice = Choice { nodes: backbone.nodes, taps: tried, ..Choice::default() };
    let at: Vec<usize> = (0..rows.len()).filter(|&at| all.verdicts[rows[at]] == Verdict::Kept).collect();
    if request.keep.is_none() || at.len() <= wanted {
        return Ok(choice);
    }
    let by = match request.by {
        Some(by) => by,
        None => {
            (request.progress)("trying ways to choose on examples that are held out");
            // Which labels are wrong is found out again, without those of the examples that judge.
            let stays = |&at: &usize| matches!(all.verdicts[rows[at]], Verdict::Kept | Verdict::Label(..));
            let candidates: Vec<usize> = every.iter().copied().filter(stays).collect();
            let (by, tried, random) = chooser.best(&every, &candidates, wanted)?;
            (choice.tried, choice.random) = (tried, random);
            by
        }
    };
    (request.progress)("choosing");
    choice.by = Some(by);
    let stay = Looked::at(&chooser, &at).choose(by, wanted, request.seed)?;
    let stay: Vec<usize> = stay.into_iter().map(|at| rows[at]).collect();
    let rows: Vec<usize> = at.into_iter().map(|at| rows[at]).collect();
    all.leave(&rows, &stay);
    Ok(choice)
}

/// What goes, and some of it for people to see.
fn shown(request: &Request, all: &All, data: Option<&dyn Dataset>) -> Result<Vec<Dropped>> {
    let mut by_reason: BTreeMap<Why, (usize, Vec<usize>)> = BTreeMap::new();
    for (row, verdict) in all.verdicts.iter().enumerate() {
        if let Some((why, ..)) = verdict.why() {
            let (count, rows) = by_reason.entry(why).or_default();
            *count += 1;
            if rows.len() < SHOWN {
                rows.push(row);
            }
        }
    }
    let other = |row: &usize| all.verdicts[*row].why().and_then(|(_, of, _)| Some(of? as usize));
    let rows = by_reason.values().flat_map(|(_, rows)| rows);
    let mut seen: Vec<usize> = rows.flat_map(|row| [Some(*row), other(row)]).flatten().collect();
    seen.sort_unstable();
    seen.dedup();
    let told = match data {
        None => table::told(request, &seen)?,
        Some(data) => examples::told(data, &seen),
    };
    let of = |row: usize| {
        let at = seen.binary_search(&row).ok().and_then(|at| told.get(at));
        at.cloned().unwrap_or_else(|| (format!("example {row}"), None))
    };
    let show = |&row: &usize| {
        let (example, text) = of(row);
        let (of, of_text) = other(&row).map(of).map_or((None, None), |(name, text)| (Some(name), text));
        let verdict = all.verdicts[row];
        let name = |i: u32| all.names.get(i as usize).cloned().unwrap_or_else(|| i.to_string());
        let label = match verdict {
            Verdict::Label(likely, _) => Some((name(all.answers[row]), name(likely))),
            _ => None,
        };
        let number = verdict.why().and_then(|(_, _, number)| number);
        Shown { example, text, of, of_text, number, label }
    };
    let each = by_reason.iter();
    Ok(each
        .map(|(&why, (count, rows))| Dropped {
            why,
            count: *count,
            examples: rows.iter().map(show).collect(),
        })
        .collect())
}
