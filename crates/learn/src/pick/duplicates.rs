//! Texts that are there more than once, exactly or nearly: MinHash (Broder, *On the resemblance and containment of
//! documents*, 1997) with bands finds who may be alike, and the true Jaccard similarity of their shingles decides.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use kernel::Cpu;
use unicode_normalization::UnicodeNormalization;

use crate::random::Random;
use crate::{Error, Result};

/// Texts that are made ready at once.
const PART: usize = 4096;
/// Rows that share a band and are not alike, to which others that share it are compared: of a phrase that many texts have,
/// not all pairs are looked at.
const RIVALS: usize = 16;
/// What stands between two texts that belong together.
pub const JOINT: char = '\u{1}';

/// What counts as nearly the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// Words of a shingle; texts that are shorter are one shingle.
    pub words: usize,
    /// The least Jaccard similarity of the sets of shingles.
    pub similarity: f64,
    /// Bands; two texts may be alike when all numbers of one of their bands are the same.
    pub bands: usize,
    /// Numbers of a band. Texts of similarity s share a band with a probability of `1 - (1 - s^rows)^bands`.
    pub rows: usize,
    /// What the numbers are drawn from.
    pub seed: u64,
}

impl Near {
    /// Only texts that are the same.
    pub const EXACT: Near = Near { words: 1, similarity: 1.0, bands: 0, rows: 1, seed: 0 };
}

impl Default for Near {
    /// Finds 99.4 % of the pairs with a similarity of 0.7, and all but one in 50,000 of those with 0.8.
    fn default() -> Near {
        Near { words: 5, similarity: 0.7, bands: 28, rows: 5, seed: 1 }
    }
}

/// What becomes of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// It stays.
    Kept,
    /// It is the same as this earlier one, but for case, spaces and forms of letters.
    Same(usize),
    /// It is nearly the same as this earlier one that stays; the similarity.
    Alike(usize, f64),
}

/// Texts that were seen, and what is needed to find those that are alike: some 10 bytes a word, and 4 a band.
pub struct Duplicates {
    near: Near,
    /// Factor and addend of each number.
    numbers: Vec<(u32, u32)>,
    /// Where each distinct text was first seen, by its hash.
    first: HashMap<u128, u32>,
    /// Which earlier text each is the same as; itself when none.
    same: Vec<u32>,
    /// Rows that have shingles: the first of each distinct text.
    distinct: Vec<u32>,
    /// Hashes of the shingles of these, in order, none twice.
    shingles: Vec<u32>,
    /// Where those of each end.
    ends: Vec<u64>,
    /// The bands of each.
    bands: Vec<u32>,
}

impl Duplicates {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// When what counts as near makes no sense.
    pub fn new(near: Near) -> Result<Duplicates> {
        let sound = near.words > 0 && near.bands > 0 && near.rows > 0 || near == Near::EXACT;
        if !(sound && near.similarity > 0.0 && near.similarity <= 1.0) {
            return Err(Error::input(format!(
                "near duplicates take a similarity from 0 to 1, and at least one word, band and row, not {near:?}"
            )));
        }
        let mut random = Random::new(near.seed);
        // Odd factors, so that no two shingles become one.
        let numbers = (0..near.bands * near.rows).map(|_| (random.bits() as u32 | 1, random.bits() as u32));
        Ok(Duplicates {
            near,
            numbers: numbers.collect(),
            first: HashMap::new(),
            same: Vec::new(),
            distinct: Vec::new(),
            shingles: Vec::new(),
            ends: Vec::new(),
            bands: Vec::new(),
        })
    }

    /// Number of texts that were seen.
    pub fn len(&self) -> usize {
        self.same.len()
    }

    /// True when none was.
    pub fn is_empty(&self) -> bool {
        self.same.is_empty()
    }

    /// Sees more texts.
    ///
    /// # Errors
    /// When there are more than 2^32.
    pub fn add<T: AsRef<str> + Sync>(&mut self, texts: &[T], cpu: &Cpu) -> Result<()> {
        texts.chunks(PART).try_for_each(|part| self.take(self.sketches(part, cpu)))
    }

    /// What is made of texts before they are compared, which is most of the work.
    pub fn sketches<T: AsRef<str> + Sync>(&self, texts: &[T], cpu: &Cpu) -> Sketches {
        Sketches(cpu.pool().map(texts.len(), |i| self.sketch(texts[i].as_ref())))
    }

    /// Sees more texts, of which this was made by the same measure.
    ///
    /// # Errors
    /// When there are more than 2^32.
    pub fn take(&mut self, sketches: Sketches) -> Result<()> {
        for Sketch { hash, shingles, bands } in sketches.0 {
            let row = u32::try_from(self.same.len())
                .map_err(|_| Error::input("more than 4,294,967,296 texts are not compared at once"))?;
            let first = *self.first.entry(hash).or_insert(row);
            self.same.push(first);
            if first == row {
                self.distinct.push(row);
                self.shingles.extend(shingles);
                self.ends.push(self.shingles.len() as u64);
                self.bands.extend(bands);
            }
        }
        Ok(())
    }

    fn sketch(&self, text: &str) -> Sketch {
        let text = normal(text);
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, &text).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        let hash = half(1) << 64 | half(2);
        if self.near.bands == 0 {
            return Sketch { hash, shingles: Vec::new(), bands: Vec::new() };
        }
        let shingles = shingles(&text, self.near.words);
        let mut least = vec![u32::MAX; self.numbers.len()];
        for &shingle in &shingles {
            for (least, (factor, addend)) in least.iter_mut().zip(&self.numbers) {
                *least = (*least).min(shingle.wrapping_mul(*factor).wrapping_add(*addend));
            }
        }
        let bands = least.chunks_exact(self.near.rows).map(|rows| {
            let mut hasher = DefaultHasher::new();
            rows.hash(&mut hasher);
            hasher.finish() as u32
        });
        Sketch { hash, bands: bands.collect(), shingles }
    }

    fn shingles(&self, at: usize) -> &[u32] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.shingles[start as usize..self.ends[at] as usize]
    }

    /// The similarity of two distinct texts.
    fn similarity(&self, a: usize, b: usize) -> f64 {
        self.similarity_to(a, self.shingles(b))
    }

    /// The similarity of a distinct text to one of these shingles.
    fn similarity_to(&self, a: usize, b: &[u32]) -> f64 {
        let a = self.shingles(a);
        // Sets of such unequal sizes cannot be as similar.
        let (less, more) = (a.len().min(b.len()), a.len().max(b.len()));
        if (less as f64) < self.near.similarity * more as f64 { 0.0 } else { jaccard(a, b) }
    }

    /// What each distinct text has for this band, and which one that is, in order.
    fn keys(&self, band: usize) -> Vec<(u32, u32)> {
        let bands = self.bands.iter().skip(band).step_by(self.near.bands);
        let mut keys: Vec<(u32, u32)> = bands.copied().zip(0..).collect();
        keys.sort_unstable();
        keys
    }

    /// These texts, ready to be held against others.
    pub fn against(&self) -> Against<'_> {
        let keys = (0..self.near.bands).map(|band| self.keys(band)).collect();
        Against { texts: self, keys, found: vec![None; self.distinct.len()], seen: 0 }
    }

    /// What becomes of each text: of those that are alike the first stays. A text goes only for one that stays.
    pub fn fates(&self, cpu: &Cpu) -> Vec<Fate> {
        let count = self.distinct.len();
        let found = cpu.pool().map(self.near.bands, |band| {
            let mut pairs = Vec::new();
            for run in self.keys(band).chunk_by(|a, b| a.0 == b.0).filter(|run| run.len() > 1) {
                let mut rivals: Vec<u32> = Vec::new();
                for &(_, at) in run {
                    let like = rivals
                        .iter()
                        .copied()
                        .find(|&rival| self.similarity(rival as usize, at as usize) >= self.near.similarity);
                    match like {
                        Some(rival) => pairs.push((at, rival)),
                        None if rivals.len() < RIVALS => rivals.push(at),
                        None => {}
                    }
                }
            }
            pairs
        });
        // The later text of a pair, and the earlier one.
        let mut pairs: Vec<(u32, u32)> = found.into_iter().flatten().collect();
        pairs.sort_unstable();
        pairs.dedup();
        let mut kept_for: Vec<(u32, f64)> = (0..count).map(|at| (at as u32, 1.0)).collect();
        for of in pairs.chunk_by(|a, b| a.0 == b.0) {
            let at = of[0].0;
            // Who stands for the other one is who stays.
            let all = of.iter().map(|&(_, other)| kept_for[other as usize].0);
            let best = all
                .map(|other| (other, self.similarity(other as usize, at as usize)))
                .filter(|(_, similarity)| *similarity >= self.near.similarity)
                .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
            if let Some(best) = best {
                kept_for[at as usize] = best;
            }
        }
        let mut fates: Vec<Fate> = self
            .same
            .iter()
            .enumerate()
            .map(|(row, &first)| if first as usize == row { Fate::Kept } else { Fate::Same(first as usize) })
            .collect();
        for (at, &(other, similarity)) in kept_for.iter().enumerate() {
            if other as usize != at {
                fates[self.distinct[at] as usize] =
                    Fate::Alike(self.distinct[other as usize] as usize, similarity);
            }
        }
        fates
    }
}

/// Texts that are held against others, which pass by: nothing is kept of those but which are alike.
pub struct Against<'a> {
    texts: &'a Duplicates,
    /// Of each band: its key in each distinct text, and which one that is, in order.
    keys: Vec<Vec<(u32, u32)>>,
    /// What each distinct text is like, and how much.
    found: Vec<Option<(usize, f64)>>,
    /// The others until now.
    seen: usize,
}

impl Against<'_> {
    /// Holds the texts against more others.
    pub fn add<T: AsRef<str> + Sync>(&mut self, others: &[T], cpu: &Cpu) {
        for part in others.chunks(PART) {
            let alike = cpu.pool().map(part.len(), |i| self.alike(part[i].as_ref()));
            for (i, alike) in alike.into_iter().enumerate() {
                for (at, similarity) in alike {
                    let found = &mut self.found[at];
                    if found.is_none_or(|(_, least)| similarity > least) {
                        *found = Some((self.seen + i, similarity));
                    }
                }
            }
            self.seen += part.len();
        }
    }

    /// Which of the distinct texts of whom nothing is known yet are like this one, and how much.
    fn alike(&self, other: &str) -> Vec<(usize, f64)> {
        let made = self.texts.sketch(other);
        let mut alike = Vec::new();
        if let Some(row) = self.texts.first.get(&made.hash)
            && let Ok(at) = self.texts.distinct.binary_search(row)
        {
            alike.push((at, 1.0));
        }
        for (keys, band) in self.keys.iter().zip(&made.bands) {
            let start = keys.partition_point(|(key, _)| key < band);
            let run = keys[start..].iter().take_while(|(key, _)| key == band);
            let new = run.map(|(_, at)| *at as usize).filter(|at| self.found[*at].is_none());
            for at in new.take(RIVALS) {
                let similarity = self.texts.similarity_to(at, &made.shingles);
                if similarity >= self.texts.near.similarity && !alike.iter().any(|(of, _)| *of == at) {
                    alike.push((at, similarity));
                }
            }
        }
        alike
    }

    /// For each text the other that it is like, counted from the first that was added, and how similar they are.
    pub fn found(&self) -> Vec<Option<(usize, f64)>> {
        let of = |row: &u32| self.texts.distinct.binary_search(row).ok().and_then(|at| self.found[at]);
        self.texts.same.iter().map(of).collect()
    }
}

/// What is made of a text.
struct Sketch {
    hash: u128,
    shingles: Vec<u32>,
    bands: Vec<u32>,
}

/// What is made of texts before they are compared: their hashes, shingles and bands.
pub struct Sketches(Vec<Sketch>);

impl Sketches {
    /// As bytes, which [`Sketches::read`] understands: of each text its hash, the number of its shingles, these, its bands.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Sketch { hash, shingles, bands } in &self.0 {
            bytes.extend(hash.to_le_bytes());
            bytes.extend((shingles.len() as u32).to_le_bytes());
            bytes.extend(shingles.iter().chain(bands).flat_map(|x| x.to_le_bytes()));
        }
        bytes
    }

    /// Those of so many texts, made by this measure; `None` when the bytes are others.
    pub fn read(mut bytes: &[u8], texts: usize, near: Near) -> Option<Sketches> {
        let mut numbers = |count: usize| {
            let (taken, rest) = bytes.split_at_checked(count.checked_mul(4)?)?;
            bytes = rest;
            Some(taken.as_chunks::<4>().0.iter().map(|x| u32::from_le_bytes(*x)).collect::<Vec<u32>>())
        };
        let mut sketches = Vec::new();
        for _ in 0..texts {
            let head = numbers(5)?;
            let hash = head[..4].iter().rev().fold(0, |hash, &x| hash << 32 | u128::from(x));
            let shingles = numbers(head[4] as usize)?;
            if !shingles.is_sorted() || shingles.is_empty() != (near.bands == 0) {
                return None;
            }
            sketches.push(Sketch { hash, shingles, bands: numbers(near.bands)? });
        }
        bytes.is_empty().then_some(Sketches(sketches))
    }
}

/// The similarity of two texts, from 0 to 1: that of the sets of their shingles of so many words.
pub fn similarity(a: &str, b: &str, words: usize) -> f64 {
    jaccard(&shingles(&normal(a), words), &shingles(&normal(b), words))
}

/// Two texts that belong together as one, to be compared with others.
pub fn joined(a: &str, b: &str) -> String {
    format!("{a} {JOINT} {b}")
}

/// Hashes of the shingles of a normal text, in order, none twice.
fn shingles(text: &str, words: usize) -> Vec<u32> {
    let all: Vec<&str> = text.split(' ').collect();
    let of = |words: &[&str]| {
        let mut hasher = DefaultHasher::new();
        words.hash(&mut hasher);
        hasher.finish() as u32
    };
    let mut shingles: Vec<u32> = match all.len() > words {
        true => all.windows(words).map(of).collect(),
        false => vec![of(&all)],
    };
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// The part that both of two sets in order have of all that they have.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        both += usize::from(a[i] == b[j]);
        (i, j) = (i + usize::from(a[i] <= b[j]), j + usize::from(b[j] <= a[i]));
    }
    both as f64 / (a.len() + b.len() - both) as f64
}

/// A text without regard to case, spaces and forms of letters (NFKC).
fn normal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.nfkc().flat_map(char::to_lowercase));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu() -> Cpu {
        Cpu::new(2).unwrap()
    }

    fn fates(texts: &[&str], near: Near) -> Vec<Fate> {
        let mut all = Duplicates::new(near).unwrap();
        all.add(texts, &cpu()).unwrap();
        all.fates(&cpu())
    }

    #[test]
    fn the_same_text_in_other_clothes_is_the_same() {
        let texts = ["One  two", "three", "ONE two ", "one\ttwo", "ｏｎｅ two", "one two!"];
        let found = fates(&texts, Near::default());
        assert_eq!(found[..5], [Fate::Kept, Fate::Kept, Fate::Same(0), Fate::Same(0), Fate::Same(0)]);
        assert_eq!(found[5], Fate::Kept);
        assert!(fates(&[], Near::default()).is_empty());
        assert_eq!(fates(&["", " "], Near::default()), [Fate::Kept, Fate::Same(0)]);
        assert_eq!(fates(&texts, Near::EXACT), found);
    }

    /// Texts of 60 words, some of them others' with a few words changed.
    fn planted(count: usize) -> (Vec<String>, Vec<(usize, usize)>) {
        let mut random = Random::new(3);
        let word = |random: &mut Random| format!("w{}", random.below(5_000));
        let mut texts: Vec<Vec<String>> =
            (0..count).map(|_| (0..60).map(|_| word(&mut random)).collect()).collect();
        let mut pairs = Vec::new();
        for of in (0..count).step_by(4) {
            let mut copy = texts[of].clone();
            // A word changed in the middle changes 5 of 56 shingles.
            let at = 5 + random.below(50);
            copy[at] = word(&mut random);
            pairs.push((of, texts.len()));
            texts.push(copy);
        }
        (texts.into_iter().map(|words| words.join(" ")).collect(), pairs)
    }

    #[test]
    fn near_duplicates_are_found_and_nothing_else() {
        let (texts, pairs) = planted(2_000);
        let mut all = Duplicates::new(Near::default()).unwrap();
        // In several parts, as from a stream.
        texts.chunks(700).for_each(|part| all.add(part, &cpu()).unwrap());
        let found = all.fates(&cpu());
        let right = pairs
            .iter()
            .filter(|(of, copy)| matches!(found[*copy], Fate::Alike(o, s) if o == *of && s > 0.7));
        assert!(right.count() as f64 >= 0.99 * pairs.len() as f64);
        let dropped = found.iter().filter(|f| **f != Fate::Kept).count();
        assert!(dropped <= pairs.len(), "{dropped} of {}", pairs.len());
        // Any number of threads finds the same.
        assert_eq!(all.fates(&Cpu::new(1).unwrap()), found);
    }

    #[test]
    fn a_text_goes_only_for_one_that_stays() {
        // Each is like the next, the first is not like the last.
        let words: Vec<String> = (0..100).map(|i| format!("w{i}")).collect();
        let texts: Vec<String> = (0..4).map(|i| words[i * 12..i * 12 + 60].join(" ")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let near = Near { similarity: 0.6, bands: 60, rows: 3, ..Near::default() };
        let found = fates(&texts, near);
        for (at, fate) in found.iter().enumerate() {
            if let Fate::Alike(other, similarity) = *fate {
                assert!(other < at && similarity >= 0.6 && found[other] == Fate::Kept, "{found:?}");
            }
        }
        assert_eq!(found[0], Fate::Kept);
        assert!(matches!(found[1], Fate::Alike(0, _)), "{found:?}");
        assert_ne!(found[3], Fate::Same(0));
        assert!(!matches!(found[3], Fate::Alike(0, _)), "{found:?}");
    }

    #[test]
    fn what_passes_by_is_held_against_all() {
        let (mut others, pairs) = planted(400);
        let mut texts = others.split_off(400);
        // The same as one of the others, the same as a copy, and like nothing.
        texts.extend([others[7].to_uppercase(), texts[3].clone(), "never seen".into()]);
        let mut all = Duplicates::new(Near::default()).unwrap();
        all.add(&texts, &cpu()).unwrap();
        let mut against = all.against();
        others.chunks(150).for_each(|part| against.add(part, &cpu()));
        let found = against.found();
        assert_eq!(found.len(), pairs.len() + 3);
        let right = pairs.iter().filter(|(of, copy)| {
            matches!(found[copy - 400], Some((o, similarity)) if o == *of && (0.7..1.0).contains(&similarity))
        });
        assert!(right.count() as f64 >= 0.99 * pairs.len() as f64);
        let [same, copy, new] = found[pairs.len()..] else { unreachable!() };
        assert_eq!((same, copy, new), (Some((7, 1.0)), found[3], None));
        assert!(all.against().found().iter().all(Option::is_none), "nothing passed by");

        let mut exact = Duplicates::new(Near::EXACT).unwrap();
        exact.add(&["One two", "three"], &cpu()).unwrap();
        let mut against = exact.against();
        against.add(&["two", "one  TWO"], &cpu());
        assert_eq!(against.found(), [Some((1, 1.0)), None]);
    }

    #[test]
    fn similarity_is_the_part_of_shingles_that_both_have() {
        // Of one to five and two to six: two of four pairs each, two of six in all.
        assert_eq!(similarity("a b c d e", "b c x d E", 2), 2.0 / 6.0);
        assert_eq!(similarity("one  Two", "ONE two", 5), 1.0);
        assert_eq!(similarity("one", "two", 5), 0.0);
        assert_eq!(similarity("", "", 3), 1.0);
        assert_ne!(joined("a b", "c"), joined("a", "b c"));
    }

    #[test]
    fn sketches_are_read_as_they_are_written() {
        let (texts, _) = planted(40);
        for near in [Near::default(), Near::EXACT] {
            let fates = |take: &dyn Fn(&Duplicates) -> Sketches| {
                let mut all = Duplicates::new(near).unwrap();
                all.take(take(&all)).unwrap();
                (all.first.clone(), all.shingles.clone(), all.bands.clone(), all.fates(&cpu()))
            };
            let bytes = Duplicates::new(near).unwrap().sketches(&texts, &cpu()).to_bytes();
            let read = |bytes: &[u8]| Sketches::read(bytes, texts.len(), near);
            let kept = fates(&|_| read(&bytes).unwrap());
            assert_eq!(kept, fates(&|all| all.sketches(&texts, &cpu())));
            for end in [0, 3, 19, bytes.len() - 1] {
                assert!(read(&bytes[..end]).is_none(), "{end}");
            }
            assert!(read(&[&bytes[..], &[0]].concat()).is_none());
            assert!(Sketches::read(&bytes, texts.len() - 1, near).is_none());
        }
        let bytes = Duplicates::new(Near::EXACT).unwrap().sketches(&texts, &cpu()).to_bytes();
        assert!(Sketches::read(&bytes, texts.len(), Near::default()).is_none(), "of another measure");
    }

    #[test]
    fn odd_measures_are_refused() {
        for near in [
            Near { similarity: 0.0, ..Near::default() },
            Near { similarity: f64::NAN, ..Near::default() },
            Near { words: 0, ..Near::default() },
            Near { bands: 0, ..Near::default() },
        ] {
            assert!(Duplicates::new(near).is_err(), "{near:?}");
        }
    }
}
