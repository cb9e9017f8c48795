//! Sentences of a small grammar over a list of everyday English words.

use super::random;
use crate::random::Random;

/// Things and beings.
const NOUNS: &[&str] = &[
    "dog",
    "cat",
    "horse",
    "bird",
    "child",
    "woman",
    "man",
    "girl",
    "boy",
    "teacher",
    "doctor",
    "farmer",
    "driver",
    "player",
    "writer",
    "guitar",
    "piano",
    "ball",
    "car",
    "train",
    "bus",
    "boat",
    "plane",
    "bicycle",
    "house",
    "door",
    "window",
    "table",
    "chair",
    "book",
    "letter",
    "story",
    "song",
    "film",
    "game",
    "road",
    "bridge",
    "river",
    "field",
    "mountain",
    "tree",
    "flower",
    "garden",
    "cake",
    "onion",
    "bread",
    "meal",
    "coffee",
    "phone",
    "computer",
    "camera",
    "picture",
    "company",
    "market",
    "price",
    "bank",
    "government",
    "president",
    "minister",
    "police",
    "court",
    "law",
    "team",
    "school",
    "hospital",
    "city",
    "village",
    "country",
    "war",
    "storm",
    "fire",
    "accident",
    "report",
    "study",
    "plan",
    "idea",
    "question",
    "answer",
    "problem",
    "reason",
    "service",
    "product",
    "screen",
    "battery",
    "actor",
    "scene",
    "plot",
    "ending",
    "room",
    "hotel",
    "waiter",
    "soup",
];
/// What is done to something.
const DOING: &[&str] = &[
    "sees", "finds", "holds", "carries", "cuts", "paints", "opens", "builds", "sells", "buys", "reads",
    "follows", "rides", "watches", "likes", "wants", "needs", "explains", "changes", "blames", "supports",
    "plays", "cleans", "leaves", "reaches", "attacks", "rejects", "accepts", "reports", "loses",
];
/// What is done without anything.
const BEING: &[&str] = &[
    "sleeps", "runs", "waits", "falls", "sings", "laughs", "works", "swims", "dances", "stops", "arrives",
    "grows", "fails", "burns", "speaks", "sits", "stands", "jumps", "dies", "wins",
];
/// How something is.
const QUALITIES: &[&str] = &[
    "small",
    "large",
    "old",
    "young",
    "red",
    "green",
    "blue",
    "white",
    "black",
    "new",
    "quick",
    "slow",
    "happy",
    "sad",
    "quiet",
    "loud",
    "cold",
    "hot",
    "good",
    "bad",
    "terrible",
    "wonderful",
    "boring",
    "funny",
    "cheap",
    "expensive",
    "dirty",
    "empty",
    "full",
    "strong",
    "weak",
    "strange",
    "important",
    "local",
    "public",
    "wooden",
    "broken",
    "bright",
];
/// How something is done.
const MANNERS: &[&str] = &[
    "slowly",
    "quickly",
    "again",
    "today",
    "yesterday",
    "never",
    "often",
    "carefully",
    "alone",
    "together",
    "still",
    "finally",
    "hardly",
    "almost",
    "really",
    "badly",
];
/// Where and when.
const PLACES: &[&str] = &[
    "on", "in", "near", "under", "behind", "beside", "after", "before", "with", "without", "for", "against",
    "over", "across", "about",
];
/// Names.
const NAMES: &[&str] = &[
    "Anna", "Peter", "Maria", "Ahmed", "Chen", "London", "Paris", "Berlin", "India", "Brazil", "Egypt",
    "Monday", "March", "America", "Tom", "Sara",
];
/// Words that lead into a sentence.
const OPENINGS: &[&str] =
    &["However,", "In the end,", "Then", "Of course", "Because of this", "Sometimes", "Last year"];
/// Words that join sentences.
const JOINTS: &[&str] = &["and", "but", "while", "because", "so", "although", "when"];
/// The share of sentences that hold odd words.
const ODD: f64 = 0.3;

/// Gives a word at random, such as one of a tokenizer's vocabulary; an empty one where there is none.
pub type Odd<'a> = dyn Fn(&mut Random) -> String + 'a;

/// Text `index` of this seed: mostly one sentence, now and then a paragraph.
pub fn sentences(seed: u64, index: usize, odd: &Odd) -> String {
    let mut random = random(seed, index);
    let count = match random.below(20) {
        0..12 => 1,
        12..18 => 2 + random.below(2),
        _ => 4 + random.below(8),
    };
    let all: Vec<String> = (0..count).map(|_| sentence(&mut random, odd)).collect();
    all.join(" ")
}

fn pick(random: &mut Random, list: &[&'static str]) -> &'static str {
    list[random.below(list.len())]
}

fn sentence(random: &mut Random, odd: &Odd) -> String {
    let mut words: Vec<String> = Vec::new();
    if random.unit() < 0.2 {
        words.push(pick(random, OPENINGS).into());
    }
    clause(random, &mut words);
    if random.unit() < 0.25 {
        words.push(pick(random, JOINTS).into());
        clause(random, &mut words);
    }
    if random.unit() < ODD {
        for _ in 0..1 + random.below(4) {
            let at = random.below(words.len() + 1);
            words.insert(at, odd(random));
        }
        words.retain(|word| !word.is_empty());
    }
    let mut text = words.join(" ");
    if let Some(first) = text.get(..1).map(str::to_uppercase) {
        text.replace_range(..1, &first);
    }
    text + [".", ".", ".", ".", "!", "?", ""][random.below(7)]
}

fn clause(random: &mut Random, words: &mut Vec<String>) {
    someone(random, words);
    let mut say = |word: &str| words.push(word.into());
    match random.below(6) {
        0 => {
            say(pick(random, &["is", "was", "is not", "seems", "will be"]));
            say(pick(random, &["very", "too", "quite", "not", "so"]));
            say(pick(random, QUALITIES));
        }
        1 | 2 => say(pick(random, BEING)),
        _ => {
            say(pick(random, DOING));
            someone(random, words);
        }
    }
    if random.unit() < 0.5 {
        words.push(pick(random, PLACES).into());
        someone(random, words);
    }
    if random.unit() < 0.25 {
        words.push(pick(random, MANNERS).into());
    }
}

fn someone(random: &mut Random, words: &mut Vec<String>) {
    match random.below(10) {
        0 => return words.push(pick(random, NAMES).into()),
        1 => return words.push(pick(random, &["he", "she", "it", "they", "I", "we", "you"]).into()),
        2 => {
            words.push((2 + random.below(9) * random.below(30)).to_string());
            if random.unit() < 0.4 {
                words.push(pick(random, QUALITIES).into());
            }
            return words.push(format!("{}s", pick(random, NOUNS)));
        }
        _ => words.push(pick(random, &["the", "a", "this", "my", "the", "his", "every", "no"]).into()),
    }
    if random.unit() < 0.4 {
        words.push(pick(random, QUALITIES).into());
    }
    words.push(pick(random, NOUNS).into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_the_same_again_of_many_lengths_and_hold_odd_words() {
        let odd = |random: &mut Random| format!("odd{}", random.below(9));
        let all: Vec<String> = (0..300).map(|i| sentences(1, i, &odd)).collect();
        assert_eq!(all, (0..300).map(|i| sentences(1, i, &odd)).collect::<Vec<_>>());
        assert_ne!(all[0], sentences(2, 0, &odd));
        let mut lengths: Vec<usize> = all.iter().map(|text| text.split(' ').count()).collect();
        lengths.sort_unstable();
        assert!(lengths[0] >= 2 && lengths[0] < 8 && lengths[299] > 40 && lengths[150] < 25, "{lengths:?}");
        let with = all.iter().filter(|text| text.to_lowercase().contains("odd")).count();
        assert!((60..240).contains(&with), "{with}");
        let mut different = all.clone();
        different.sort();
        different.dedup();
        assert!(different.len() > 290);
    }

    #[test]
    fn words_that_are_empty_or_foreign_do_no_harm() {
        for word in ["", "ß", "漢字"] {
            let odd = |_: &mut Random| word.to_string();
            for i in 0..200 {
                assert!(sentences(3, i, &odd).len() > 3);
            }
        }
    }
}
