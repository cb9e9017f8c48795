//! The parts of the page that say what changed: answers, classes, examples, passes, weights, and what all was made from.
//! Each is empty when the receipt has nothing for it.

use std::fmt::Write as _;

use lessen::provenance::Content;
use lessen::receipt::{Number, bytes, count};
use lessen::shrink::{Choice, Form, Receipt};
use lessen::verify::Changed;

use super::{draw, escape, plain, shown};

/// Most classes that are listed.
const CLASSES: usize = 20;

/// What changed, for how many.
pub fn answers(receipt: &Receipt) -> String {
    let Some(v) = &receipt.verification else { return String::new() };
    let mut rows = String::new();
    let mut row = |what: &str, value: String, note: &str| {
        let _ = write!(
            rows,
            "<tr><td>{what}</td><td data-of=\"measured\">{value}</td><td class=\"word\" data-of=\"meaning\">{note}</td></tr>"
        );
    };
    if let Some(agreement) = &v.agreement {
        row(
            "Same class",
            shown(agreement),
            "examples to which both models give the same class, right or wrong",
        );
    }
    if let Some(flips) = &v.flips {
        let of = format!("of {}", v.examples);
        row("Changed", format!("{} {of}", flips.changed), "examples whose class is another one");
        if let (Some(lost), Some(won), Some(p)) = (flips.lost, flips.won, flips.p) {
            let note = format!("so uneven a split is chance with probability {p:.3} (McNemar's exact test)");
            row("Right → wrong, wrong → right", format!("{lost}, {won}"), &note);
        }
    }
    if let Some(d) = &v.divergence {
        let note = format!(
            "mean divergence (Kullback-Leibler) of the probabilities; 95 % of examples are below {:.4}, the greatest is {:.4}",
            d.p95.value, d.max.value
        );
        row("Probabilities moved", shown(&d.mean), &note);
    }
    if let Some(change) = &v.score_change {
        row("Scores moved", shown(change), "mean change of a score, without its sign");
    }
    if let Some(d) = &v.distance {
        let note = format!(
            "length of the change relative to the output; the greatest is {:.4}, the least cosine {:.5}",
            d.max_relative.value, d.min_cosine.value
        );
        row("Outputs moved", shown(&d.relative), &note);
    }
    format!(
        "<h2>What changed in the answers</h2>\n<table class=\"wide\"><thead><tr><th></th><th>measured</th><th \
         class=\"word\">meaning</th></tr></thead>{rows}</table>\n"
    )
}

/// What became of each class, those that lost most first.
pub fn classes(receipt: &Receipt) -> String {
    let Some(v) = receipt.verification.as_ref().filter(|v| !v.classes.is_empty()) else {
        return String::new();
    };
    let mut classes: Vec<_> = v.classes.iter().collect();
    classes.sort_by(|a, b| a.change.value.total_cmp(&b.change.value).then(a.class.cmp(&b.class)));
    let ends = |n: &Number| (n.low.unwrap_or(n.value), n.high.unwrap_or(n.value));
    let shown = &classes[..classes.len().min(CLASSES)];
    let most = shown.iter().map(|c| ends(&c.change)).fold(0.0f64, |m, (l, h)| m.max(l.abs()).max(h.abs()));
    let mut html = format!(
        "<h2>What it means for each class</h2>\n<p><small>Share of right answers, and its change with a 95 % interval from \
         −{most:.0} to {most:.0} points, those that lost most first{}. Red: worse for certain. p is corrected for the \
         number of classes.</small></p>\n<table class=\"dense\"><thead><tr><th>class</th><th class=\"less\">examples</th>\
         <th>before</th><th>after</th><th class=\"change\">change</th><th class=\"less\">lost, won</th><th>p</th></tr></thead>",
        if classes.len() > CLASSES { format!(" ({CLASSES} of {})", classes.len()) } else { String::new() }
    );
    for c in shown {
        let name = c.name.as_deref().map_or_else(|| c.class.to_string(), escape);
        let (low, high) = ends(&c.change);
        let _ = write!(
            html,
            "<tr><td>{name}</td><td class=\"less\">{}</td><td>{:.1} %</td><td>{:.1} %</td><td class=\"change\">{}</td><td \
             class=\"less\">{}, {}</td><td>{:.2}</td></tr>",
            c.examples,
            c.before.value,
            c.after.value,
            draw::change(c.change.value, low, high, most),
            c.lost,
            c.won,
            c.p
        );
    }
    html + "</table>\n"
}

/// The examples that changed most.
pub fn worst(receipt: &Receipt) -> String {
    let Some(v) = receipt.verification.as_ref().filter(|v| !v.worst.is_empty()) else {
        return String::new();
    };
    let cards: String = v.worst.iter().map(card).collect();
    format!(
        "<h2>The examples that changed most</h2>\n<p><small>{} of {}: first those that were right and are wrong now, then others whose \
         class changed, then those whose output moved furthest.</small></p>\n<div class=\"cards\">{cards}</div>\n",
        v.worst.len(),
        v.examples
    )
}

fn card(example: &Changed) -> String {
    let mut html = String::from("<div class=\"card\">");
    // Only pictures that the page holds itself.
    if let Some(image) = example.image.as_ref().filter(|i| i.starts_with("data:image/png;base64,")) {
        let _ = write!(html, "<img alt=\"{}\" src=\"{}\">", escape(&example.id), escape(image));
    }
    for text in &example.text {
        let _ = write!(html, "<p>{}</p>", escape(text));
    }
    html += "<dl>";
    let mut line = |what: &str, value: &str, class: &str| {
        let _ = write!(html, "<dt>{what}</dt><dd{class}>{}</dd>", escape(value));
    };
    line("example", &example.id, "");
    if let Some(target) = &example.target {
        line("right", target, "");
    }
    if let (Some(before), Some(after)) = (&example.before, &example.after) {
        let class = match &example.target {
            _ if !example.flipped => "",
            Some(target) if target == after => " class=\"met\"",
            Some(target) if target == before => " class=\"missed\"",
            _ => "",
        };
        line("before", before, "");
        line("after", after, class);
    }
    line("moved", &format!("{:.4}", example.change), "");
    html + "</dl></div>"
}

/// What was done to the whole graph.
pub fn changes(receipt: &Receipt) -> String {
    if receipt.changes.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<h2>Passes</h2>\n<p><small>What was done to the whole graph, in order. A bar: the elements of its weights that are \
         not 0, before (grey) and after. Squared errors are relative to what the pass touched.</small></p>\n<table \
         class=\"dense\"><thead><tr><th>pass</th><th class=\"bar\"></th><th>elements before</th><th>after</th><th></th><th>\
         </th></tr></thead>",
    );
    let most = receipt.changes.iter().map(|c| c.elements.0.max(c.elements.1)).max().unwrap_or(0);
    for change in &receipt.changes {
        let (before, after) = change.elements;
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"bar\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&change.pass),
            draw::left(before as f64, after as f64, most as f64),
            count(before as u64),
            count(after as u64),
            change.measure,
            format!("{:.1e}", change.error).replace('-', "−")
        );
    }
    html + "</table>\n"
}

/// A form of few bits in words.
fn bits(form: Form) -> String {
    match form.group {
        0 => format!("{} bits", form.bits),
        group => format!("{} bits, groups of {group}", form.bits),
    }
}

/// A row with a bar for each weight: as long as its number of elements (a square root, so that small ones are seen).
pub fn weights(receipt: &Receipt) -> String {
    let steps = &receipt.plan.steps;
    let Some(most) = steps.iter().map(|s| s.elements).max() else { return String::new() };
    let mut html = String::from(
        "<h2>Weights</h2>\n<p><small>Length of a bar: number of elements (square root). Error: squared, relative to the \
         weight, or to what comes out of it where the weight was adapted to the calibration data.</small></p>\n<table \
         class=\"dense weights\"><thead><tr><th>node</th><th class=\"bar\"></th><th>elements</th><th>now</th><th>error</th>\
         </tr></thead>",
    );
    for step in steps {
        let length = 100.0 * (step.elements as f64 / most.max(1) as f64).sqrt();
        let (class, what) = match step.choice {
            Choice::Keep => ("f32", "f32".into()),
            Choice::Int8Static => ("static", "int8".into()),
            Choice::Int8Dynamic => ("dynamic", "int8, dynamic".into()),
            Choice::Int8Rows => ("rows", "int8 rows".into()),
            Choice::Bits(form) => ("bits", bits(form)),
            Choice::Table(form) => ("bits", format!("{}, of a table", bits(form.codes))),
        };
        let error = if step.choice == Choice::Keep { String::new() } else { format!("{:.1e}", step.error) };
        let _ = write!(
            html,
            "<tr><td>{}</td><td class=\"bar\"><i class=\"{class}\" style=\"width:{length:.1}%\"></i></td><td>{}</td>\
             <td>{what}</td><td>{}</td></tr>",
            escape(&step.node),
            step.elements,
            error.replace('-', "−")
        );
    }
    html += "</table>\n";
    if !receipt.given_back.is_empty() {
        let names: Vec<String> = receipt.given_back.iter().map(|n| escape(n)).collect();
        let _ = writeln!(
            html,
            "<p><small>Given back to f32, most harmful first: {}.</small></p>",
            names.join(", ")
        );
    }
    html
}

/// What all this was made from.
pub fn provenance(receipt: &Receipt) -> String {
    let p = &receipt.provenance;
    let mut html = String::from("<h2>Made from</h2>\n<dl class=\"facts\">");
    let mut fact = |what: &str, value: String| {
        let _ = write!(html, "<dt>{what}</dt><dd>{value}</dd>");
    };
    let file = |c: &Content| {
        let hash = &c.sha256;
        format!("<div>{}, {}<div class=\"hash\">SHA-256 {hash}</div></div>", escape(&c.name), bytes(c.bytes))
    };
    let files = |list: &[Content]| list.iter().map(file).collect::<String>();
    for (what, list) in [("original", &p.original), ("result", &p.result)] {
        if !list.is_empty() {
            fact(what, files(list));
        }
    }
    if let Some(shares) = &receipt.data {
        let hash = p.data.as_ref().map(file).unwrap_or_default();
        fact("data", format!("{}{hash}", escape(&shares.data)));
        if let Some(made) = shares.calibration_data.as_ref().filter(|made| **made != shares.data) {
            let hash = p.calibration.as_ref().map(file).unwrap_or_default();
            fact("calibrated on", format!("{}{hash}", escape(made)));
        }
        if shares.training > 0 {
            let hash = p.training.as_ref().map(file).unwrap_or_default();
            let what = escape(shares.training_data.as_deref().unwrap_or_default());
            fact("trained on", format!("{} examples of {what}{hash}", shares.training));
        }
        if shares.seen > 0 {
            fact("left out", format!("{} examples of the data: calibration has seen them", shares.seen));
        }
        let answers = p.answers_sha256.as_deref().unwrap_or_default();
        fact(
            "shares",
            format!(
                "{} to calibrate, {} to decide on, {} to verify; none is in two of these. Seed {}.<div class=\"hash\">answers \
                 and shares: SHA-256 {answers}</div>",
                shares.calibration, shares.search, shares.verify, shares.seed
            ),
        );
    }
    fact(
        "versions",
        format!(
            "lessen {}, ONNX operators {}, run with {}; seed of the bootstrap {}",
            escape(receipt.lessen),
            p.opset,
            escape(&p.isa),
            p.seed
        ),
    );
    fact("machine", escape(&receipt.machine.to_string()));
    fact("took", plain(&receipt.took));
    let payback = &receipt.payback;
    fact(
        "energy",
        format!(
            "{}<div class=\"hash\">{}; carbon: {}</div>",
            escape(&payback.words()),
            escape(&payback.source),
            escape(&payback.place.source)
        ),
    );
    html + "</dl>\n"
}
