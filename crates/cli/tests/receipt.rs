//! The receipt of `lessen shrink`: what it says is held against the files and against what other commands find.

mod here;

use here::{Place, example, lessen, shared};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn number(value: &Value) -> f64 {
    value["value"].as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

fn integer(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("no integer: {value}"))
}

fn sha256(path: &str) -> String {
    let digest = Sha256::digest(std::fs::read(path).unwrap());
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// The value lies within its interval.
fn within(value: &Value) {
    let (low, high) = (value["low"].as_f64().unwrap(), value["high"].as_f64().unwrap());
    assert!(low <= number(value) && number(value) <= high && low < high, "{value}");
}

fn sum(storage: &Value, what: impl Fn(&str) -> bool, of: &str) -> i64 {
    let classes = storage.as_array().unwrap().iter();
    classes.filter(|s| what(s["name"].as_str().unwrap())).map(|s| integer(&s[of])).sum()
}

/// Holds a receipt of a classifier with labelled data against its files.
fn audit(receipt: &Value, model: &str, small: &str) {
    // Hashes and sizes are those of the files.
    for (what, path) in [("original", model), ("result", small)] {
        let file = &receipt["provenance"][what][0];
        assert_eq!(file["sha256"], sha256(path).as_str(), "{what}");
        assert_eq!(integer(&file["bytes"]) as u64, std::fs::metadata(path).unwrap().len());
    }
    assert_eq!(receipt["provenance"]["answers_sha256"].as_str().unwrap().len(), 64);
    assert!(integer(&receipt["provenance"]["opset"]) >= 7);

    // Bytes by class add up to the files, elements to the weights.
    let weighed = &receipt["weighed"];
    for (side, path) in [("before", model), ("after", small)] {
        let bytes = sum(&weighed[side], |_| true, "bytes");
        assert_eq!(bytes as u64, std::fs::metadata(path).unwrap().len(), "{side}");
    }
    let steps = receipt["plan"]["steps"].as_array().unwrap();
    let weights: i64 = steps.iter().map(|s| integer(&s["elements"])).sum();
    let floats = sum(&weighed["before"], |n| n == "float", "elements");
    assert!(
        weights > 0 && floats >= weights && 4 * floats == sum(&weighed["before"], |n| n == "float", "bytes")
    );
    let kept: i64 = steps.iter().filter(|s| s["choice"] == "keep").map(|s| integer(&s["elements"])).sum();
    let codes = sum(&weighed["after"], |n| n.starts_with("codes"), "elements");
    assert!((codes - (weights - kept)).abs() < 16, "{codes} codes for {weights} weights less {kept}");

    // The metric, flips and classes tell the same story.
    let (quality, found) = (&receipt["quality"], &receipt["verification"]);
    for value in [&quality["before"], &quality["after"], &quality["lost"]] {
        within(value);
        assert_eq!(value["how"], "measured");
    }
    let examples = integer(&quality["examples"]);
    assert_eq!(examples, integer(&receipt["data"]["verify"]));
    assert_eq!(examples, integer(&found["examples"]));
    let (lost, won) = (integer(&found["flips"]["lost"]), integer(&found["flips"]["won"]));
    let change = (number(&quality["before"]) - number(&quality["after"])) / 100.0 * examples as f64;
    assert!((change - (lost - won) as f64).abs() < 1e-6, "{lost} lost, {won} won, {change}");
    assert!((number(&quality["lost"]) - 100.0 * change / examples as f64).abs() < 1e-9);
    let changed = integer(&found["flips"]["changed"]);
    let differing = (100.0 - number(&found["agreement"])) / 100.0 * examples as f64;
    assert!(changed >= lost + won && (differing - changed as f64).abs() < 1e-6);
    let p = found["flips"]["p"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&p));
    let classes = found["classes"].as_array().unwrap();
    assert_eq!(classes.iter().map(|c| integer(&c["examples"])).sum::<i64>(), examples);
    assert_eq!(classes.iter().map(|c| integer(&c["lost"])).sum::<i64>(), lost);
    assert_eq!(classes.iter().map(|c| integer(&c["won"])).sum::<i64>(), won);
    let right: f64 = classes.iter().map(|c| number(&c["after"]) * integer(&c["examples"]) as f64).sum();
    assert!((right / examples as f64 - number(&quality["after"])).abs() < 1e-6);

    // Divergence and calibration error are of the size that they can be.
    let divergence = &found["divergence"];
    within(&divergence["mean"]);
    assert!(number(&divergence["mean"]) > 0.0 && number(&divergence["mean"]) <= number(&divergence["max"]));
    let calibration = &found["calibration"];
    let (before, after) = (number(&calibration["before"]), number(&calibration["after"]));
    assert!(before > 0.0 && before < 20.0 && after > 0.0 && after < 20.0, "{calibration}");
    assert!((number(&calibration["change"]) - (after - before)).abs() < 1e-9);

    // The proof is what its own numbers say.
    let proof = &receipt["proof"];
    let (bound, most) = (proof["bound"].as_f64().unwrap(), proof["at_most"].as_f64().unwrap());
    assert!((most - quality["lost"]["high"].as_f64().unwrap() / 100.0).abs() < 1e-12);
    assert_eq!(proof["holds"], most <= bound);
    let probability = proof["probability"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&probability) && (most > bound || probability > 0.95), "{proof}");
    let more = &proof["examples_more"];
    let within_bound = number(&quality["lost"]) / 100.0 < bound;
    assert_eq!(more.is_null(), most <= bound || !within_bound, "{proof}");
    if let Some(more) = more.as_i64() {
        assert!(more > 0 && integer(&proof["examples_needed"]) == examples + more);
    }

    // What ran: how each number is known.
    assert_eq!(receipt["bytes_after"]["how"], "exact");
    assert!(number(&receipt["speed"]["before"]) > 0.0 && receipt["speed"]["after"]["how"] == "measured");
    // What was spent, over what a run saves: what the receipt says comes of what it shows.
    let payback = &receipt["payback"];
    let (spent, before, after) =
        (number(&payback["spent"]), number(&payback["before"]), number(&payback["after"]));
    assert!(spent > 0.0 && before > 0.0 && after > 0.0, "{payback}");
    assert!((number(&payback["parity"]) - (spent / after).ceil()).abs() < 1.0, "{payback}");
    match before > after {
        true => {
            assert!((number(&payback["runs"]) - (spent / (before - after)).ceil()).abs() < 1.0, "{payback}")
        }
        false => assert!(payback["runs"].is_null(), "{payback}"),
    }
    assert_eq!(
        (&payback["before"]["how"], &payback["parity"]["how"]),
        (&"estimated".into(), &"estimated".into())
    );
    if payback["spent"]["how"] == "estimated" {
        assert!(number(&payback["above_idle"]) < spent, "{payback}");
    }
    let memory = &receipt["memory"];
    assert!(number(&memory["before"]) > 1e5 && number(&memory["after"]) > 1e5);
    assert!(memory["after"]["how"] == "measured" || memory["after"]["how"] == "estimated");
    let said = receipt["caveats"].as_array().unwrap().iter().any(|c| c.as_str().unwrap().contains("made-up"));
    assert_eq!(said, memory["after"]["how"] == "measured");

    // The worst come first, and those of images have a picture.
    let worst = found["worst"].as_array().unwrap();
    assert!(!worst.is_empty());
    let rank = |w: &Value| match w["flipped"].as_bool().unwrap() {
        true if w["before"] == w["target"] => 0,
        true => 1,
        false => 2,
    };
    let order: Vec<(i32, f64)> = worst.iter().map(|w| (rank(w), -w["change"].as_f64().unwrap())).collect();
    assert!(order.windows(2).all(|w| w[0] <= w[1]), "{order:?}");
    let lost_shown = order.iter().filter(|(rank, _)| *rank == 0).count() as i64;
    assert_eq!(lost_shown, lost.min(worst.len() as i64));
    assert!(worst.iter().all(|w| w["image"].as_str().unwrap().starts_with("data:image/png;base64,")));
}

/// The JSON beside the model is what the command printed, and the page has all of its parts.
fn beside(place: &Place, receipt: &Value) {
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(place.path("small.json")).unwrap()).unwrap();
    assert_eq!(&json, receipt);
    let page = std::fs::read_to_string(place.path("small.html")).unwrap();
    for part in [
        "Before and after",
        "What size costs",
        "Where the bytes are",
        "What changed in the answers",
        "What it means for each class",
        "The examples that changed most",
        "Weights",
        "Made from",
    ] {
        assert!(page.contains(&format!("<h2>{part}</h2>")), "{part}");
    }
    assert!(page.contains(receipt["provenance"]["result"][0]["sha256"].as_str().unwrap()));
    assert!(!page.contains("http") && !page.contains("<script"));
}

#[test]
fn every_number_of_the_example_is_what_the_files_say() {
    let place = Place::new();
    let (model, data, small) = (example("digits.onnx"), example("test.npz"), place.path("small.onnx"));
    for goal in [&["--lose", "1%"][..], &["--smaller", "6", "--lose", "0.1", "--force"]] {
        let answer = lessen(&[&["shrink", &model, "--data", &data, "-o", &small, "--json"], goal].concat());
        let receipt: Value = serde_json::from_str(&answer.out).unwrap();
        audit(&receipt, &model, &small);
        assert_eq!(receipt["provenance"]["data"]["sha256"], sha256(&data).as_str());
        beside(&place, &receipt);
    }
}

#[test]
fn the_receipt_of_a_real_model_is_what_the_files_say() {
    let (Some(model), Some(data)) = (shared("models/resnet20.onnx"), shared("data/cifar10-test")) else {
        return;
    };
    let place = Place::new();
    let small = place.path("small.onnx");
    let preprocess = "mean=0.485:0.456:0.406,std=0.229:0.224:0.225";
    let args = ["shrink", &model, "--data", &data, "--preprocess", preprocess, "--lose", "1%", "-o", &small];
    let receipt = lessen(&[&args[..], &["--json"]].concat()).json();
    audit(&receipt, &model, &small);
    beside(&place, &receipt);
    assert!(number(&receipt["smaller"]) > 3.5 && number(&receipt["quality"]["after"]) > 90.0);
    assert!(integer(&receipt["data"]["verify"]) > 4000);
    // The folder's hash is that of the sorted list that sha256sum writes.
    let mut names: Vec<String> = std::fs::read_dir(&data)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let list: String = names.iter().map(|n| format!("{}  {n}\n", sha256(&format!("{data}/{n}")))).collect();
    let list = place.file("list", list.as_bytes());
    assert_eq!(receipt["provenance"]["data"]["sha256"], sha256(&list).as_str());
}

#[test]
fn what_was_decided_without_data_is_said() {
    let place = Place::new();
    let (model, small) = (example("digits.onnx"), place.path("small.onnx"));
    let answer = lessen(&["shrink", &model, "--zeros", "50%", "-o", &small]);
    assert!(answer.text().contains("by size alone"), "{}", answer.out);
    let receipt: Value =
        serde_json::from_str(&std::fs::read_to_string(place.path("small.json")).unwrap()).unwrap();
    assert_eq!(receipt["changes"][0]["pass"], "zeros");
    assert!(receipt["proof"].is_null() && receipt["verification"].is_null());
    let page = std::fs::read_to_string(place.path("small.html")).unwrap();
    for words in ["by size alone", "There were no data", "Nothing is proven", "<h2>Passes</h2>"] {
        assert!(page.contains(words), "{words}");
    }
    // With data none of that is said.
    let data = example("test.npz");
    let receipt =
        lessen(&["shrink", &model, "--data", &data, "--zeros", "30%", "-o", &small, "--json"]).json();
    assert!(!receipt["caveats"].to_string().contains("alone"), "{}", receipt["caveats"]);
}

#[test]
fn names_from_files_cannot_become_markup() {
    let place = Place::new();
    let evil = "<img src=x onerror=alert(1)>&\"'";
    let model = place.path(&format!("{evil}.onnx"));
    std::fs::copy(example("digits.onnx"), &model).unwrap();
    let (data, small) = (example("test.npz"), place.path("small.onnx"));
    lessen(&["shrink", &model, "--data", &data, "-o", &small, "--json"]).json();
    let page = std::fs::read_to_string(place.path("small.html")).unwrap();
    assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;&amp;&quot;&#39;.onnx"));
    assert!(!page.contains("<img src=x"));
}

#[test]
fn receipts_do_not_take_the_place_of_what_is_read() {
    let place = Place::new();
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    let own = place.path("data.json");
    std::fs::copy(&data, &own).unwrap();
    lessen(&["shrink", &model, "--data", &own, "-o", &place.path("data.onnx")]).fails(&["data.json", "-o"]);
    assert!(std::fs::read(&own).unwrap() == std::fs::read(&data).unwrap());
    lessen(&["shrink", &model, "--data", &data, "-o", &place.path("small.html")]).fails(&["small.html"]);
}
