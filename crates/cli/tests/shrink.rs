//! `lessen shrink` as a user calls it, on the example model.

mod here;

use here::{Place, example, lessen};

fn digits(place: &Place, more: &[&str]) -> here::Answer {
    let (model, data, out) = (example("digits.onnx"), example("test.npz"), place.path("small.onnx"));
    let mut args = vec!["shrink", &model, "--data", &data, "-o", &out, "--json"];
    args.extend(more);
    lessen(&args)
}

#[test]
fn the_example_becomes_smaller_and_stays_right() {
    let place = Place::new();
    let receipt = digits(&place, &["--lose", "1%", "--smaller", "3.5"]).json();
    assert_eq!(receipt["met"], true);
    assert!(receipt["smaller"]["value"].as_f64().unwrap() >= 3.5);
    let quality = &receipt["quality"];
    assert_eq!(quality["metric"], "top-1 accuracy");
    assert!(quality["after"]["value"].as_f64().unwrap() > 98.0);
    let (low, high) = (quality["lost"]["low"].as_f64().unwrap(), quality["lost"]["high"].as_f64().unwrap());
    assert!(low < high, "the loss has an interval");
    // No example is used twice.
    let share = |name: &str| receipt["data"][name].as_u64().unwrap();
    assert_eq!(share("calibration") + share("search") + share("verify"), 899);
    let size = std::fs::metadata(place.path("small.onnx")).unwrap().len();
    assert_eq!(size as f64, receipt["bytes_after"]["value"].as_f64().unwrap());
    // What was written is judged as the receipt says, in integers.
    let (small, data) = (place.path("small.onnx"), example("test.npz"));
    let again = lessen(&["eval", &small, "--data", &data, "--json"]).json();
    assert!(again["value"]["value"].as_f64().unwrap() > 98.5);
    let page = std::fs::read_to_string(place.path("small.html")).unwrap();
    assert!(
        page.starts_with("<!doctype html>")
            && page.contains("times smaller")
            && page.contains("class=\"static\"")
    );
    assert!(!page.contains("http"), "the page needs nothing else");
}

#[test]
fn the_same_bytes_come_out_for_any_number_of_threads() {
    let (one, two) = (Place::new(), Place::new());
    digits(&one, &["--threads", "1"]).json();
    digits(&two, &["--threads", "2"]).json();
    assert!(std::fs::read(one.path("small.onnx")).unwrap() == std::fs::read(two.path("small.onnx")).unwrap());
}

#[test]
fn a_goal_that_cannot_be_met_is_exit_code_2_and_writes_nothing() {
    let place = Place::new();
    let answer = digits(&place, &["--smaller", "100"]);
    assert_eq!(answer.code, 2, "{}", answer.err);
    let receipt: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(receipt["met"], false);
    assert!(!receipt["weights_that_hurt"].as_array().unwrap().is_empty());
    assert!(receipt["missed"][0].as_str().unwrap().contains("times smaller"));
    assert!(!std::path::Path::new(&place.path("small.onnx")).exists());
    assert!(!std::path::Path::new(&place.path("small.html")).exists());
    // Unless it is forced.
    assert_eq!(digits(&place, &["--smaller", "100", "--force"]).code, 2);
    assert!(std::path::Path::new(&place.path("small.onnx")).exists());
}

#[test]
fn without_data_nothing_is_proven() {
    let place = Place::new();
    let (model, out) = (example("digits.onnx"), place.path("small.onnx"));
    let receipt = lessen(&["shrink", &model, "-o", &out, "--json"]).json();
    assert!(receipt["quality"].is_null() && receipt["data"].is_null());
    let answer = lessen(&["shrink", &model, "-o", &out, "--lose", "1%", "--json"]);
    assert_eq!(answer.code, 2);
    assert!(answer.out.contains("--data"));
}

#[test]
fn wrong_calls_fail_in_one_line() {
    let place = Place::new();
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    lessen(&["shrink", &model, "--data", &data, "-o", &model]).fails(&["the model itself"]);
    lessen(&["shrink", &model, "--data", &data, "-o", &place.path("no/such/folder.onnx")])
        .fails(&["no/such"]);
    lessen(&["shrink", &place.path("none.onnx"), "--data", &data]).fails(&["none.onnx"]);
    lessen(&["shrink", &model, "--data", &place.path("none.npz")]).fails(&["none.npz"]);
    for bad in [["--lose", "-1"], ["--lose", "much"], ["--smaller", "0"], ["--smaller", "nan"]] {
        assert_eq!(lessen(&["shrink", &model, bad[0], bad[1]]).code, 1, "{bad:?}");
    }
}
