//! Examples to judge by that were learnt from, exactly or nearly: what they say of a model is too good.

use std::collections::HashMap;

use kernel::Cpu;
use learn::Input;
use learn::data::Dataset;
use learn::pick::duplicates::{Duplicates, Near, joined, similarity};
use learn::pick::nearest;
use learn::pick::pictures::{self, sketch};
use serde::Serialize;

use crate::Result;
use crate::eval::name_of;
use crate::features::print;

/// Examples that are looked at before what is known of them goes on.
const PART: usize = 1024;
/// Leaks that are named.
const NAMED: usize = 20;

/// Examples to judge by that are among those that were learnt from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Leaks {
    pub count: usize,
    /// The first of them.
    pub first: Vec<Leak>,
}

/// An example to judge by that is one of those that were learnt from, or nearly.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leak {
    /// Its name.
    pub example: String,
    /// The one that was learnt from.
    pub of: String,
    /// How similar they are: 1 when they are the same; of texts the part of their shingles that both have, of pictures the
    /// cosine of small grey ones of them.
    pub similarity: f64,
}

/// What leaks of these rows of the data into the test. Texts are compared as [`learn::pick::duplicates`] does, of pairs both,
/// and pictures as [`learn::pick::pictures`], all else as it is. What is kept in memory is of the test alone.
///
/// # Errors
/// When there are too many texts.
pub(crate) fn between(data: &dyn Dataset, rows: &[usize], test: &dyn Dataset, cpu: &Cpu) -> Result<Leaks> {
    let all: Vec<usize> = (0..test.len()).collect();
    let mut asked = Looks::default();
    all.chunks(PART).for_each(|part| asked.add(test, part, cpu));
    let mut prints: HashMap<[u8; 32], Option<usize>> =
        asked.prints.iter().map(|(_, print)| (*print, None)).collect();
    let mut texts = Duplicates::new(Near::default())?;
    texts.add(&asked.texts, cpu)?;
    let mut texts = texts.against();
    let mut with_text = Vec::new();
    let mut pictured = vec![(0, f32::NEG_INFINITY); asked.pictures.len()];
    for part in rows.chunks(PART) {
        let mut known = Looks::default();
        known.add(data, part, cpu);
        for (row, print) in known.prints {
            if let Some(first) = prints.get_mut(&print) {
                first.get_or_insert(row);
            }
        }
        texts.add(&known.texts, cpu);
        with_text.extend(known.with_text);
        let found = nearest(&asked.sketches, &known.sketches, pictures::NUMBERS, cpu);
        for (best, (at, cosine)) in pictured.iter_mut().zip(found) {
            if cosine > best.1 {
                *best = (known.pictures[at], cosine);
            }
        }
    }

    let mut found: HashMap<usize, (usize, f64)> = HashMap::new();
    for (example, print) in &asked.prints {
        if let Some(row) = prints[print] {
            found.insert(*example, (row, 1.0));
        }
    }
    for (&example, like) in asked.with_text.iter().zip(texts.found()) {
        if let Some((at, similarity)) = like
            && !found.contains_key(&example)
            && let Some(similarity) = of_both(data, with_text[at], test, example, similarity)
        {
            found.insert(example, (with_text[at], similarity));
        }
    }
    for (&example, (row, cosine)) in asked.pictures.iter().zip(pictured) {
        if !found.contains_key(&example) && cosine >= pictures::ALIKE && same(data, row, test, example) {
            found.insert(example, (row, f64::from(cosine).min(1.0)));
        }
    }
    let mut found: Vec<(usize, (usize, f64))> = found.into_iter().collect();
    found.sort_by_key(|(example, _)| *example);
    let named = found.iter().take(NAMED).map(|&(example, (row, similarity))| Leak {
        example: name_of(test, example),
        of: name_of(data, row),
        similarity,
    });
    Ok(Leaks { count: found.len(), first: named.collect() })
}

/// How similar two examples are, whose texts together are so similar: of pairs both texts must be, for many questions can be
/// asked of one long text.
fn of_both(data: &dyn Dataset, row: usize, test: &dyn Dataset, example: usize, together: f64) -> Option<f64> {
    let Near { words, similarity: least, .. } = Near::default();
    let both = match (data.get(row).ok()?.input, test.get(example).ok()?.input) {
        (Input::Pair(a, b), Input::Pair(c, d)) => similarity(&a, &c, words).min(similarity(&b, &d, words)),
        _ => together,
    };
    Some(both).filter(|both| *both >= least)
}

/// Do two examples show the same picture?
fn same(data: &dyn Dataset, row: usize, test: &dyn Dataset, example: usize) -> bool {
    let pictures = (data.get(row).map(|e| e.input), test.get(example).map(|e| e.input));
    matches!(pictures, (Ok(Input::Image(a)), Ok(Input::Image(b))) if pictures::same(&a, &b))
}

/// What is kept of examples to tell whether they are the same; those that cannot be read are left out.
#[derive(Default)]
struct Looks {
    prints: Vec<(usize, [u8; 32])>,
    texts: Vec<String>,
    /// Which examples the texts are of.
    with_text: Vec<usize>,
    sketches: Vec<f32>,
    /// Which examples the sketches are of.
    pictures: Vec<usize>,
}

impl Looks {
    fn add(&mut self, data: &dyn Dataset, rows: &[usize], cpu: &Cpu) {
        let looked = cpu.pool().map(rows.len(), |i| {
            let input = data.get(rows[i]).ok()?.input;
            let print = print(&input);
            let sketch = match &input {
                Input::Image(image) => sketch(image),
                _ => None,
            };
            let text = match input {
                Input::Text(text) => Some(text),
                Input::Pair(a, b) => Some(joined(&a, &b)),
                _ => None,
            };
            Some((print, text, sketch))
        });
        for (&row, looked) in rows.iter().zip(looked) {
            let Some((print, text, sketch)) = looked else { continue };
            self.prints.push((row, print));
            if let Some(text) = text {
                self.texts.push(text);
                self.with_text.push(row);
            }
            if let Some(sketch) = sketch {
                self.sketches.extend(sketch);
                self.pictures.push(row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use learn::data::Target;
    use learn::{Error, Example};

    use super::*;

    /// Examples, some of which cannot be read.
    struct These(Vec<Option<Input>>);

    impl Dataset for These {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn get(&self, i: usize) -> learn::Result<Example> {
            let input = self.0[i].clone().ok_or_else(|| Error::input(format!("row {i} is broken")))?;
            Ok(Example { id: format!("row {i}"), input, target: Target::None })
        }

        fn target(&self, _: usize) -> Target {
            Target::None
        }

        fn classes(&self) -> Option<&[String]> {
            None
        }

        fn describe(&self) -> String {
            "these".into()
        }
    }

    fn found(data: &These, rows: &[usize], test: &These) -> Vec<(String, String, f64)> {
        let leaks = between(data, rows, test, &Cpu::new(2).unwrap()).unwrap();
        assert_eq!(leaks.count, leaks.first.len());
        leaks.first.into_iter().map(|leak| (leak.example, leak.of, leak.similarity)).collect()
    }

    #[test]
    fn texts_that_are_nearly_the_same_leak() {
        let text = |text: &str| Some(Input::Text(text.into()));
        let long =
            "the film begins as a quiet tale of two brothers who keep a ferry and ends in a storm of wit";
        let data = These(vec![text("a good film"), None, text(long), text("another")]);
        let near = text(&long.replace("storm", "stew"));
        let test = These(vec![text("A  good FILM"), near, text("a bad film"), None]);
        let leaked = found(&data, &[0, 1, 2, 3], &test);
        assert_eq!(leaked.len(), 2, "{leaked:?}");
        assert_eq!(leaked[0], ("row 0".into(), "row 0".into(), 1.0));
        assert_eq!((&*leaked[1].0, &*leaked[1].1), ("row 1", "row 2"));
        assert!(leaked[1].2 >= Near::default().similarity && leaked[1].2 < 1.0, "{leaked:?}");
        // What was not learnt from does not leak.
        assert!(found(&data, &[3], &test).is_empty());

        let pair = |a: &str, b: &str| Some(Input::Pair(a.into(), b.into()));
        let data = These(vec![pair("one", "two"), pair(long, long)]);
        let leaked = found(&data, &[0, 1], &These(vec![pair("two", "one"), pair("one", "Two")]));
        assert_eq!(leaked, [("row 1".into(), "row 0".into(), 1.0)]);
        // Another question about a text is another example; the same one about a text with a word changed is not.
        let near = long.replace("storm", "stew");
        let test = These(vec![pair(long, "what is it about"), pair(&near, long), pair(&near, "short")]);
        let leaked = found(&These(vec![pair(long, "how does it end"), pair(long, long)]), &[0, 1], &test);
        assert_eq!(leaked.len(), 1, "{leaked:?}");
        assert!((&*leaked[0].0, &*leaked[0].1) == ("row 1", "row 1") && leaked[0].2 < 1.0, "{leaked:?}");
    }

    #[test]
    fn of_many_leaks_some_are_named() {
        let texts = These((0..100).map(|i| Some(Input::Text(format!("text {i}")))).collect());
        let rows: Vec<usize> = (0..90).collect();
        let leaks = between(&texts, &rows, &texts, &Cpu::new(1).unwrap()).unwrap();
        assert_eq!((leaks.count, leaks.first.len()), (90, NAMED));
        assert_eq!(leaks.first[3], Leak { example: "row 3".into(), of: "row 3".into(), similarity: 1.0 });
    }

    #[test]
    fn pictures_that_show_the_same_leak() {
        let picture =
            |index: usize, side: u32| Some(Input::Image(learn::made::picture(8, index, side, side)));
        let white = |side: u32| {
            Some(Input::Image(image::GrayImage::from_pixel(side, side, image::Luma([255])).into()))
        };
        let mut all: Vec<Option<Input>> = (0..PART + 10).map(|index| picture(index, 32)).collect();
        all.push(white(8));
        let data = These(all);
        let brighter = learn::made::picture(8, PART + 3, 32, 32).brighten(5);
        let test =
            These(vec![picture(9_000, 32), Some(Input::Image(brighter)), white(8), white(9), picture(2, 32)]);
        let rows: Vec<usize> = (0..data.len()).collect();
        let leaked = found(&data, &rows, &test);
        let names: Vec<(&str, &str)> = leaked.iter().map(|(example, of, _)| (&**example, &**of)).collect();
        let (late, last) = (format!("row {}", PART + 3), format!("row {}", PART + 10));
        assert_eq!(names, [("row 1", &*late), ("row 2", &*last), ("row 4", "row 2")]);
        assert!(
            leaked[0].2 > f64::from(pictures::ALIKE) && leaked[0].2 <= 1.0 && leaked[2].2 == 1.0,
            "{leaked:?}"
        );
    }
}
