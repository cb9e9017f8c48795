//! Pictures as inline SVG. Places are in per cent and texts in pixels, so that a picture is as wide as the page and its
//! texts stay readable on narrow screens.

use std::fmt::Write as _;

use lessen::receipt::bytes;
use lessen::storage::Storage;

use super::escape;

/// Height of the frontier in pixels.
const HEIGHT: f64 = 260.0;

/// A model in the picture of metric by size.
#[derive(Clone, Debug)]
pub struct Dot {
    /// What it is.
    pub name: String,
    /// Bytes of its file.
    pub bytes: f64,
    /// The metric, and the ends of its interval.
    pub value: [f64; 3],
    /// Time of one run in ms, when it was measured.
    pub ms: Option<f64>,
    /// True for the result.
    pub chosen: bool,
}

/// The span that an axis shows.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// All these numbers with a margin on each side, as a part of the span.
    fn around(numbers: impl Iterator<Item = f64>, margin: f64) -> Option<Axis> {
        let finite: Vec<f64> = numbers.filter(|n| n.is_finite()).collect();
        let low = finite.iter().copied().reduce(f64::min)?;
        let high = finite.iter().copied().reduce(f64::max)?;
        let span = if high > low { high - low } else { high.abs().max(1.0) * 0.1 };
        Some(Axis { low: low - margin * span, high: high + margin * span })
    }

    /// Where a number is, from 0 to 1.
    fn at(self, number: f64) -> f64 {
        ((number - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Round numbers, about `count` of them.
    fn ticks(self, count: f64) -> Vec<f64> {
        let raw = (self.high - self.low) / count;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw).unwrap_or(raw);
        let first = (self.low / step).ceil();
        (0..20).map(|i| (first + f64::from(i)) * step).take_while(|t| *t <= self.high).collect()
    }
}

/// 1, 2 and 5 times powers of ten between these; 1 only when they are far apart.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let steps: &[f64] = if high / low > 200.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let from = low.log10().floor() as i32;
    let all = (from..from + 16).flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e)));
    all.filter(|t| (low..=high).contains(t)).collect()
}

/// Models by size (logarithmic, to the right) and metric (up), with the interval of each and its time as colour; the
/// chosen one has a ring. Empty for less than two points, or numbers that cannot be drawn.
pub fn frontier(dots: &[Dot], unit: &str) -> String {
    let mut drawn: Vec<&Dot> =
        dots.iter().filter(|d| d.bytes >= 1.0 && d.value.iter().all(|v| v.is_finite())).collect();
    drawn.sort_by(|a, b| a.bytes.total_cmp(&b.bytes));
    if drawn.len() < 2 {
        return String::new();
    }
    let size = |d: &Dot| d.bytes.log10();
    let ends = drawn.iter().flat_map(|d| d.value);
    let (Some(x), Some(y)) = (Axis::around(drawn.iter().map(|d| size(d)), 0.06), Axis::around(ends, 0.08))
    else {
        return String::new();
    };
    let across = |v: f64| format!("{:.2}%", 100.0 * x.at(v));
    let up = |v: f64| format!("{:.1}", HEIGHT * (1.0 - y.at(v)));
    let mut svg = format!(
        "<svg width=\"100%\" height=\"{HEIGHT}\" role=\"img\" aria-label=\"metric by size of the file\">"
    );
    for tick in y.ticks(5.0) {
        let (at, digits) = (up(tick), if y.high - y.low > 5.0 { 0 } else { 3 });
        let label = format!("{tick:.digits$}");
        let label = if digits > 0 { label.trim_end_matches('0').trim_end_matches('.') } else { &label };
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"0\" x2=\"100%\" y1=\"{at}\" y2=\"{at}\"/><text x=\"-8\" y=\"{at}\" dy=\".35em\" \
             text-anchor=\"end\">{label}{}</text>",
            if unit == "%" { " %" } else { "" }
        );
    }
    for tick in log_ticks(10f64.powf(x.low), 10f64.powf(x.high)) {
        let at = across(tick.log10());
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{at}\" x2=\"{at}\" y1=\"0\" y2=\"{HEIGHT}\"/><text x=\"{at}\" y=\"{}\" \
             text-anchor=\"middle\">{}</text>",
            HEIGHT + 18.0,
            bytes(tick as u64)
        );
    }
    for pair in drawn.windows(2) {
        let _ = write!(
            svg,
            "<line class=\"way\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"/>",
            across(size(pair[0])),
            up(pair[0].value[0]),
            across(size(pair[1])),
            up(pair[1].value[0])
        );
    }
    let times = Axis::around(drawn.iter().filter_map(|d| d.ms), 0.0);
    let few = drawn.len() <= 4;
    for d in &drawn {
        let [value, low, high] = d.value;
        let (cx, cy, name) = (across(size(d)), up(value), escape(&d.name));
        let colour = match (d.ms, times) {
            (Some(ms), Some(times)) => {
                let slow = 100.0 * times.at(ms);
                format!("color-mix(in oklab,var(--slow) {slow:.0}%,var(--fast))")
            }
            _ => "var(--accent)".into(),
        };
        let time = d.ms.map(|ms| format!(", {ms:.3} ms")).unwrap_or_default();
        let _ = write!(
            svg,
            "<g style=\"color:{colour}\"><title>{name}: {}, {value:.4} ({low:.4} to {high:.4}){time}</title><line class=\"span\" \
             x1=\"{cx}\" x2=\"{cx}\" y1=\"{}\" y2=\"{}\"/><circle class=\"dot\" cx=\"{cx}\" cy=\"{cy}\" r=\"5\"/>",
            bytes(d.bytes as u64),
            up(low),
            up(high)
        );
        if d.chosen {
            let _ = write!(svg, "<circle class=\"chosen\" cx=\"{cx}\" cy=\"{cy}\" r=\"9\"/>");
        }
        if d.chosen || few {
            let (dx, anchor) = if x.at(size(d)) > 0.6 { (-14, "end") } else { (14, "start") };
            let _ = write!(
                svg,
                "<text class=\"label\" x=\"{cx}\" y=\"{cy}\" dx=\"{dx}\" dy=\"-.6em\" text-anchor=\"{anchor}\">{name}</text>"
            );
        }
        svg += "</g>";
    }
    svg + "</svg>"
}

/// The colour of a class of bytes, by its name and width.
pub fn colour(part: &Storage) -> &'static str {
    match (part.name.as_str(), part.bits) {
        (name, _) if name.starts_with("float") => "var(--float)",
        (name, _) if name.starts_with("tables") => "var(--tables)",
        (name, _) if name.starts_with("scales") => "var(--scales)",
        (name, _) if name.starts_with("graph") => "var(--rest)",
        (name, Some(bits)) if name.starts_with("codes") => match bits {
            7.. => "var(--b8)",
            5..7 => "var(--b6)",
            4 => "var(--b4)",
            3 => "var(--b3)",
            _ => "var(--b2)",
        },
        _ => "var(--whole)",
    }
}

/// One bar: the parts of a file, whose whole length is `most` bytes.
pub fn stack(parts: &[Storage], most: u64, label: &str) -> String {
    let mut svg = format!(
        "<svg width=\"100%\" height=\"26\" role=\"img\" aria-label=\"{}\">",
        escape(&format!("bytes of {label}"))
    );
    let mut x = 0.0;
    for part in parts {
        let width = 100.0 * part.bytes as f64 / most.max(1) as f64;
        let _ = write!(
            svg,
            "<rect x=\"{x:.3}%\" y=\"0\" width=\"{width:.3}%\" height=\"26\" style=\"fill:{}\"><title>{}: {}</title></rect>",
            colour(part),
            escape(&part.name),
            bytes(part.bytes)
        );
        x += width;
    }
    svg + "</svg>"
}

/// How much of a bar is left: a grey one behind, of which the whole width is `most`.
pub fn left(before: f64, after: f64, most: f64) -> String {
    let width = |n: f64| format!("{:.2}%", 100.0 * (n / most.max(1.0)).clamp(0.0, 1.0));
    format!(
        "<svg width=\"100%\" height=\"12\" role=\"img\" aria-label=\"{after} of {before} left\"><rect width=\"{}\" \
         height=\"12\" style=\"fill:var(--whole)\"/><rect width=\"{}\" height=\"12\" style=\"fill:var(--accent)\"/></svg>",
        width(before),
        width(after)
    )
}

/// An interval on a line from `-most` to `most`, with zero in the middle.
pub fn change(value: f64, low: f64, high: f64, most: f64) -> String {
    let at = |v: f64| format!("{:.1}%", 50.0 + 50.0 * (v / most.max(f64::MIN_POSITIVE)).clamp(-1.0, 1.0));
    let colour = match () {
        () if high < 0.0 => "var(--bad)",
        () if low > 0.0 => "var(--good)",
        () => "var(--soft)",
    };
    format!(
        "<svg width=\"100%\" height=\"18\" role=\"img\" aria-label=\"change {value:.2}\" style=\"color:{colour}\"><line \
         class=\"zero\" x1=\"50%\" x2=\"50%\" y1=\"0\" y2=\"18\"/><line class=\"span\" x1=\"{}\" x2=\"{}\" y1=\"9\" \
         y2=\"9\"/><circle class=\"dot\" cx=\"{}\" cy=\"9\" r=\"4\"/></svg>",
        at(low),
        at(high),
        at(value)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let ticks = Axis { low: 97.3, high: 100.4 }.ticks(5.0);
        assert_eq!(ticks, [98.0, 99.0, 100.0]);
        assert_eq!(log_ticks(9e4, 3e6), [1e5, 2e5, 5e5, 1e6, 2e6]);
        assert_eq!(log_ticks(1e4, 5e6), [1e4, 1e5, 1e6]);
        let flat = Axis::around([2.0, 2.0].into_iter(), 0.1).unwrap();
        assert!(flat.low < 2.0 && flat.high > 2.0 && flat.at(2.0) == 0.5);
        assert!(Axis::around([f64::NAN].into_iter(), 0.1).is_none());
    }

    fn dot(name: &str, bytes: f64, value: f64, ms: Option<f64>) -> Dot {
        Dot { name: name.into(), bytes, value: [value, value - 1.0, value + 1.0], ms, chosen: bytes == 10.0 }
    }

    #[test]
    fn the_frontier_has_all_points_and_marks_the_chosen_one() {
        let dots: Vec<Dot> = (1..=6)
            .rev()
            .map(f64::from)
            .map(|i| dot(&format!("<{i}>"), i * 10.0, 90.0 + i, Some(i)))
            .collect();
        let svg = frontier(&dots, "%");
        assert_eq!(svg.matches("class=\"dot\"").count(), 6);
        assert_eq!(svg.matches("class=\"way\"").count(), 5);
        assert_eq!(svg.matches("class=\"chosen\"").count(), 1);
        assert!(svg.contains("&lt;1&gt;") && !svg.contains("<1>") && svg.contains("--slow) 100%"));
        // The smallest comes first.
        assert!(svg.find("&lt;1&gt;") < svg.find("&lt;6&gt;"));
        assert_eq!(frontier(&dots[..1], "%"), "");
        assert_eq!(frontier(&[dot("a", 0.0, 1.0, None), dot("b", 1.0, f64::NAN, None)], ""), "");
    }

    #[test]
    fn bars_end_where_the_bytes_do() {
        let part = |bytes| Storage { name: "float".into(), bits: Some(32), elements: 1, bytes };
        let svg = stack(&[part(30), part(20)], 100, "it");
        assert!(svg.contains("x=\"30.000%\" y=\"0\" width=\"20.000%\""), "{svg}");
        let left = left(80.0, 20.0, 160.0);
        assert!(left.contains("width=\"50.00%\"") && left.contains("width=\"12.50%\""), "{left}");
        assert!(
            change(-5.0, -8.0, -2.0, 10.0).contains("--bad")
                && change(1.0, -1.0, 2.0, 0.0).contains("--soft")
        );
    }
}
