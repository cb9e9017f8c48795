//! The parts of the page that say what comes of it all: verdict, numbers, frontier, bytes. Each is empty when the receipt
//! has nothing for it.

use std::fmt::Write as _;

use lessen::receipt::{How, Number, bytes, count};
use lessen::shrink::{Asked, Receipt};
use lessen::storage::Storage;

use super::draw::{self, Dot};
use super::{escape, plain, shown};

/// A loss in the metric's own unit as the page says it.
fn loss(receipt: &Receipt, value: f64) -> String {
    let points = receipt.quality.as_ref().is_some_and(|q| q.lost.unit == "points");
    let words = if points { format!("{:.2} points", 100.0 * value) } else { format!("{value:.4}") };
    words.replace('-', "−")
}

/// What can be said for certain, and what was missed.
pub fn verdict(receipt: &Receipt) -> String {
    let mut lines = Vec::new();
    let mut class = "";
    match (&receipt.proof, &receipt.quality) {
        (Some(proof), Some(_)) => {
            let (bound, most) = (loss(receipt, proof.bound), loss(receipt, proof.at_most));
            if proof.holds {
                class = " met";
                lines.push(format!("<strong>Proven: loses at most {bound}.</strong>"));
                lines.push(format!("The upper end of the 95 % interval of the loss is {most}."));
            } else {
                lines.push(format!("<strong>Not proven that it loses at most {bound}.</strong>"));
                let more = match proof.examples_more {
                    Some(more) => format!(
                        "About {} more examples to verify on would settle it, if the loss stays what it is.",
                        count(more as u64)
                    ),
                    None => "The loss that was measured is greater already.".into(),
                };
                lines.push(format!("The loss may be up to {most} (95 %). {more}"));
            }
            if let Some(p) = proof.probability {
                lines.push(format!("Probability that the loss is within {bound}: {}.", probability(p)));
            }
        }
        (None, Some(quality)) => {
            let most = loss(receipt, quality.lost.high.unwrap_or(quality.lost.value) / points(receipt));
            lines.push(format!("<strong>Loses at most {most}, with 95 % confidence.</strong>"));
        }
        _ => lines.push("<strong>Nothing is proven: there were no data to measure on.</strong>".into()),
    }
    let Asked { smaller, size, faster, lose } = receipt.asked;
    let asked = smaller.is_some() || size.is_some() || faster.is_some() || lose.is_some();
    if receipt.met && asked {
        lines.push("All that was asked for holds on the measured examples.".into());
    }
    if !receipt.met {
        class = " missed";
        let missed = receipt.missed.iter().map(|m| format!("<strong>Missed: {}.</strong>", escape(m)));
        lines.splice(0..0, missed);
    }
    let lines: String = lines.iter().map(|l| format!("<p>{l}</p>")).collect();
    let caveats: String = receipt.caveats.iter().map(|c| format!("<li>{}</li>", escape(c))).collect();
    let caveats = match caveats.is_empty() {
        true => String::new(),
        false => format!("<ul class=\"caveats\">{caveats}</ul>\n"),
    };
    format!("<div class=\"verdict{class}\">{lines}</div>\n{caveats}")
}

/// How many of the unit of the loss are one of the metric.
fn points(receipt: &Receipt) -> f64 {
    if receipt.quality.as_ref().is_some_and(|q| q.lost.unit == "points") { 100.0 } else { 1.0 }
}

fn probability(p: f64) -> String {
    match p {
        p if p > 0.9995 => "more than 99.9 %".into(),
        p if p < 0.0005 => "less than 0.1 %".into(),
        p => format!("{:.1} %", 100.0 * p),
    }
}

/// The numbers that matter most.
pub fn tiles(receipt: &Receipt) -> String {
    let mut html = String::from("<div class=\"tiles\">");
    let mut tile = |big: String, what: &str, below: String| {
        let _ = write!(html, "<div class=\"tile\"><span>{what}</span><b>{big}</b><span>{below}</span></div>");
    };
    let arrow = |a: &Number, b: &Number| format!("{} → {}", plain(a), plain(b)).replace('-', "−");
    tile(
        format!("{:.2}×", receipt.smaller.value),
        "smaller",
        arrow(&receipt.bytes_before, &receipt.bytes_after),
    );
    if let Some(q) = &receipt.quality {
        tile(
            plain(&q.lost).replace('-', "−"),
            &format!("lost, {}", escape(&q.metric)),
            arrow(&q.before, &q.after),
        );
    }
    if let Some(s) = &receipt.speed {
        let (ratio, word) = match s.faster.value {
            r if r > 0.0 && r < 1.0 => (1.0 / r, "slower"),
            r => (r, "faster"),
        };
        tile(format!("{ratio:.2}×"), word, arrow(&s.before, &s.after));
    }
    if let Some(m) = &receipt.memory {
        let (ratio, word) = less(m.before.value / m.after.value.max(1.0));
        let how = if m.after.how == How::Estimated { ", estimated" } else { "" };
        tile(format!("{ratio:.2}×"), &format!("{word} memory for a run{how}"), arrow(&m.before, &m.after));
    }
    html + "</div>\n"
}

/// A ratio as it reads best: how many times less, or more.
fn less(ratio: f64) -> (f64, &'static str) {
    if ratio > 0.0 && ratio < 1.0 { (1.0 / ratio, "more") } else { (ratio, "less") }
}

fn known(how: How) -> &'static str {
    match how {
        How::Exact => "exact",
        How::Measured => "measured",
        How::Estimated => "estimated",
    }
}

/// The table before/after.
pub fn compared(receipt: &Receipt) -> String {
    let mut rows = String::new();
    let mut row = |what: &str, before: &Number, after: &Number, change: String| {
        let _ = write!(
            rows,
            "<tr><td>{}</td><td data-of=\"before\">{}</td><td data-of=\"after\">{}</td><td data-of=\"change\">{change}</td>\
             <td data-of=\"known as\">{}</td></tr>",
            escape(what),
            shown(before),
            shown(after),
            known(after.how)
        );
    };
    let smaller = format!("{:.2} times smaller", receipt.smaller.value);
    row("Size of the file", &receipt.bytes_before, &receipt.bytes_after, smaller);
    if let Some(q) = &receipt.quality {
        let lost = format!("lost {}", shown(&q.lost));
        row(&capital(&q.metric), &q.before, &q.after, lost);
    }
    if let Some(v) = &receipt.verification {
        let metric = receipt.quality.as_ref().map(|q| q.metric.as_str());
        for c in v.correlations.iter().filter(|c| Some(c.name) != metric) {
            row(c.name, &c.a, &c.b, shown(&c.difference));
        }
        if let Some(c) = &v.calibration {
            row(&format!("Calibration error, {} bins", c.bins), &c.before, &c.after, shown(&c.change));
        }
    }
    if let Some(s) = &receipt.speed {
        row(&format!("Time of one run, {} threads", s.threads), &s.before, &s.after, s.words());
    }
    if let Some(m) = &receipt.memory {
        let (ratio, word) = less(m.before.value / m.after.value.max(1.0));
        row("Memory of one run, at most", &m.before, &m.after, format!("{ratio:.2} times {word}"));
    }
    let note = match &receipt.data {
        Some(shares) if shares.verify > 0 => format!(
            "<p><small>On {} examples that neither calibration ({}) nor search ({}) has seen. Intervals are of 95 %, over \
             the same examples for both models.</small></p>",
            shares.verify, shares.calibration, shares.search
        ),
        _ => String::new(),
    };
    format!(
        "<h2>Before and after</h2>\n<table class=\"wide\"><thead><tr><th></th><th>before</th><th>after</th><th>change</th>\
         <th>known as</th></tr></thead>{rows}</table>\n{note}\n"
    )
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// The models of the picture: those that could be had, the result and the original.
fn dots(receipt: &Receipt) -> Vec<Dot> {
    let dot = |name: &str, bytes: &Number, n: &Number, ms, chosen| Dot {
        name: name.into(),
        bytes: bytes.value,
        value: [n.value, n.low.unwrap_or(n.value), n.high.unwrap_or(n.value)],
        ms,
        chosen,
    };
    let Some(quality) = &receipt.quality else { return Vec::new() };
    let before = receipt.speed.as_ref().map(|s| s.before.value);
    let mut dots: Vec<Dot> = receipt
        .frontier
        .iter()
        .filter(|point| point.bytes.value != receipt.bytes_after.value)
        .filter_map(|point| {
            let ms = before.zip(point.faster.as_ref()).map(|(ms, faster)| ms / faster.value);
            Some(dot(&point.name, &point.bytes, &point.quality.as_ref()?.after, ms, false))
        })
        .collect();
    let after = receipt.speed.as_ref().map(|s| s.after.value);
    dots.push(dot("result", &receipt.bytes_after, &quality.after, after, true));
    dots.push(dot("original", &receipt.bytes_before, &quality.before, before, false));
    dots
}

/// The picture of metric by size.
pub fn frontier(receipt: &Receipt) -> String {
    let unit = receipt.quality.as_ref().map_or("", |q| q.before.unit);
    let dots = dots(receipt);
    let svg = draw::frontier(&dots, unit);
    if svg.is_empty() {
        return String::new();
    }
    let times = || dots.iter().filter_map(|d| d.ms);
    let legend = match (times().reduce(f64::min), times().reduce(f64::max)) {
        (Some(least), Some(most)) => {
            format!(" Colour: {least:.3} ms <span class=\"scale\"></span> {most:.3} ms for one run.")
        }
        _ => String::new(),
    };
    let metric = receipt.quality.as_ref().map_or_else(String::new, |q| escape(&capital(&q.metric)));
    format!(
        "<h2>What size costs</h2>\n<figure class=\"plot\">{svg}<figcaption>{metric} by size of the file, with its 95 % \
         interval; the ring is the result.{legend}</figcaption></figure>\n"
    )
}

/// Where the bytes are: a bar for each file, and a table.
pub fn weighed(receipt: &Receipt) -> String {
    let (before, after) = (&receipt.weighed.before, &receipt.weighed.after);
    if after.is_empty() {
        return String::new();
    }
    let total = |parts: &[Storage]| parts.iter().map(|p| p.bytes).sum::<u64>();
    let most = total(before).max(total(after));
    let mut html = String::from("<h2>Where the bytes are</h2>\n");
    for (parts, what) in [(before, "before"), (after, "after")] {
        if !parts.is_empty() {
            let _ = write!(
                html,
                "<div class=\"stack\"><small>{what}: {}</small>{}</div>",
                bytes(total(parts)),
                draw::stack(parts, most, what)
            );
        }
    }
    html += "<table class=\"dense\"><thead><tr><th>after</th><th>elements</th><th>bytes</th><th>share</th></tr></thead>";
    for part in after.iter().filter(|p| p.bytes > 0) {
        let elements = if part.elements > 0 { count(part.elements) } else { String::new() };
        let share = 100.0 * part.bytes as f64 / total(after).max(1) as f64;
        let _ = write!(
            html,
            "<tr><td><span class=\"key\" style=\"background:{}\"></span>{}</td><td>{elements}</td><td>{}</td><td>{share:.1} \
             %</td></tr>",
            draw::colour(part),
            escape(&part.name),
            bytes(part.bytes)
        );
    }
    html + "</table>\n"
}
