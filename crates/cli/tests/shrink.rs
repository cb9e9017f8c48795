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
    for other in ["small.gguf", "small.safetensors"] {
        let other = place.path(other);
        lessen(&["shrink", &model, "--data", &data, "-o", &other]).fails(&["ONNX", ".onnx", "quantize"]);
        assert!(!std::path::Path::new(&other).exists());
    }
    lessen(&["shrink", &place.path("none.onnx"), "--data", &data]).fails(&["none.onnx"]);
    lessen(&["shrink", &model, "--data", &place.path("none.npz")]).fails(&["none.npz"]);
    for bad in [["--lose", "-1"], ["--lose", "much"], ["--smaller", "0"], ["--smaller", "nan"]] {
        assert_eq!(lessen(&["shrink", &model, bad[0], bad[1]]).code, 1, "{bad:?}");
    }
}

/// Digits made seven times smaller.
fn seven(place: &Place, more: &[&str]) -> here::Answer {
    digits(place, &[&["--smaller", "6", "--lose", "2"], more].concat())
}

#[test]
fn few_bits_go_where_they_do_least_harm_and_a_plan_repeats_them_byte_by_byte() {
    let place = Place::new();
    let receipt = seven(&place, &[]).json();
    assert_eq!(receipt["met"], true, "{receipt}");
    assert!(receipt["smaller"]["value"].as_f64().unwrap() >= 6.0);
    assert!(receipt["quality"]["after"]["value"].as_f64().unwrap() > 97.0);
    assert!(receipt["proof"]["holds"].is_boolean());
    let choices: std::collections::HashSet<&str> =
        receipt["plan"]["steps"].as_array().unwrap().iter().map(|s| s["choice"].as_str().unwrap()).collect();
    assert!(choices.len() > 1 && choices.iter().all(|c| c.starts_with(['w', 'k'])), "{choices:?}");
    let (plan, again) = (place.path("small.toml"), place.path("again.onnx"));
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    let threads = |n| ["apply", &model, &plan, "--data", &data, "-o", &again, "--json", "--threads", n];
    for n in ["1", "2"] {
        lessen(&threads(n)).json();
        let bytes = |path: String| std::fs::read(path).unwrap();
        assert!(bytes(place.path("small.onnx")) == bytes(again.clone()), "{n} threads");
    }
    // Edited: all weights but the first are kept.
    let text = std::fs::read_to_string(&plan).unwrap();
    let end = text.match_indices("[[steps]]").nth(1).unwrap().0;
    std::fs::write(place.path("edited.toml"), &text[..end]).unwrap();
    let edited = place.path("edited.toml");
    let receipt = lessen(&["apply", &model, &edited, "--data", &data, "-o", &again, "--json"]).json();
    let kept = receipt["plan"]["steps"].as_array().unwrap().iter().filter(|s| s["choice"] == "keep").count();
    assert_eq!(kept + 1, receipt["plan"]["steps"].as_array().unwrap().len());
}

#[test]
fn rounding_by_sweeping_beats_the_nearest_code_at_the_same_bytes() {
    let place = Place::new();
    let of = |receipt: serde_json::Value| {
        (receipt["bytes_after"]["value"].as_f64().unwrap(), receipt["quality"]["distance"].as_f64().unwrap())
    };
    let (bytes, distance) = of(seven(&place, &["--force"]).json());
    let plan = std::fs::read_to_string(place.path("small.toml")).unwrap();
    let plain = plan.replacen("rounding = \"sweep\"", "rounding = \"nearest\"", 1);
    let plain = plain.replacen("ranges = \"searched\"", "ranges = \"min-max\"", 1);
    assert!(plain.contains("nearest") && plain.contains("min-max"));
    let (path, out) = (place.path("plain.toml"), place.path("plain.onnx"));
    std::fs::write(&path, plain).unwrap();
    let data = example("test.npz");
    let apply = ["apply", &example("digits.onnx"), &path, "--data", &data, "-o", &out, "--json", "--force"];
    let (same, further) = of(lessen(&apply).json());
    assert_eq!(bytes, same);
    assert!(distance < 0.5 * further, "{distance} {further}");
    let published = of(seven(&place, &["--force", "--rounding", "gptq", "--ranges", "min-max"]).json()).1;
    assert!(distance < published && published < further, "{distance} {published} {further}");
    lessen(&["shrink", &example("digits.onnx"), "--rounding", "up"])
        .fails(&["sweep, learned, gptq or nearest"]);
}

#[test]
fn codes_that_are_learnt_together_are_nearer_and_a_plan_learns_them_again() {
    let place = Place::new();
    let distance = |receipt: serde_json::Value| receipt["quality"]["distance"].as_f64().unwrap();
    // Few bits, so that there is something to win.
    let ten = ["--smaller", "10", "--force"];
    let swept = distance(digits(&place, &ten).json());
    let learnt = distance(digits(&place, &[&ten[..], &["--rounding", "learned"]].concat()).json());
    assert!(learnt < 0.9 * swept, "{learnt} {swept}");
    let (model, data, plan) = (example("digits.onnx"), example("test.npz"), place.path("small.toml"));
    assert!(std::fs::read_to_string(&plan).unwrap().contains("rounding = \"learned\""));
    let again = place.path("again.onnx");
    for n in ["1", "2"] {
        let args =
            ["apply", &model, &plan, "--data", &data, "-o", &again, "--json", "--force", "--threads", n];
        lessen(&args).json();
        let bytes = |path: String| std::fs::read(path).unwrap();
        assert!(bytes(place.path("small.onnx")) == bytes(again.clone()), "{n} threads");
    }
    let blind = lessen(&["apply", &model, &plan, "-o", &place.path("blind.onnx")]);
    blind.fails(&["rounding cannot be learnt without examples", "--data"]);
    assert!(!std::path::Path::new(&place.path("blind.onnx")).exists());
}

#[test]
fn plans_that_do_not_fit_are_refused_with_the_reason() {
    let place = Place::new();
    let (model, data, out) = (example("digits.onnx"), example("test.npz"), place.path("small.onnx"));
    let refused = |plan: &str, what: &str| {
        let path = place.path("plan.toml");
        std::fs::write(&path, plan).unwrap();
        let answer = lessen(&["apply", &model, &path, "--data", &data, "-o", &out]);
        assert!(answer.code == 1 && answer.err.contains(what), "{}", answer.err);
        assert!(!std::path::Path::new(&out).exists());
    };
    refused("[[steps]]\nnode = 'no'\nweight = 'no'\nchoice = 'w4'\n", "no weight");
    refused("[[steps]]\nnode = 'no'\nweight = 'no'\nchoice = 'w44'\n", "w44");
    refused("steps = [", "line 1");
    let missing = place.path("missing.toml");
    assert!(lessen(&["apply", &model, &missing, "-o", &out]).err.contains("missing.toml"));
}

#[test]
fn weights_can_have_the_values_of_a_table() {
    let place = Place::new();
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    seven(&place, &["--force"]).json();
    let text = std::fs::read_to_string(place.path("small.toml")).unwrap();
    let (head, steps) = text.split_at(text.find("[[steps]]").unwrap());
    let depthwise = "depthwise.conv";
    let nearest = head.replace("\"sweep\"", "\"nearest\"");
    assert!(nearest != head);
    let with = |head: &str, choice: &str, everywhere: bool| {
        let each = steps.split("[[steps]]").skip(1).map(|step| {
            let keep = !everywhere && step.contains(depthwise);
            let line = |l: &str| match l.starts_with("choice") {
                true => format!("choice = \"{}\"\n", if keep { "keep" } else { choice }),
                false => format!("{l}\n"),
            };
            format!("[[steps]]\n{}", step.trim_start().lines().map(line).collect::<String>())
        });
        let path = place.path("table.toml");
        std::fs::write(&path, format!("{head}{}", each.collect::<String>())).unwrap();
        path
    };
    let out = place.path("table.onnx");
    let apply = |plan: &str, threads: &str| {
        lessen(&[
            "apply",
            &model,
            plan,
            "--data",
            &data,
            "-o",
            &out,
            "--json",
            "--force",
            "--threads",
            threads,
        ])
    };
    let distance = |(head, choice): (&str, &str)| {
        let plan = with(head, choice, false);
        let receipt = apply(&plan, "1").json();
        let bytes = std::fs::read(&out).unwrap();
        apply(&plan, "2").json();
        assert!(bytes == std::fs::read(&out).unwrap(), "{choice}");
        // What was written is what was measured.
        let eval = lessen(&["eval", &out, "--data", &data, "--json"]).json();
        assert!(eval["value"].as_f64().unwrap_or(100.0) > 50.0, "{eval}");
        receipt["quality"]["distance"].as_f64().unwrap()
    };
    // Values where the weights are beat even steps, and more values beat fewer.
    let [k2, k3, k4] = ["k2", "k3", "k4-rows"].map(|choice| distance((head, choice)));
    assert!(k4 < k3 && k3 < k2, "{k4} {k3} {k2}");
    let [k3, w3] = ["k3", "w3"].map(|choice| distance((&nearest, choice)));
    assert!(k3 < w3, "{k3} {w3}");
    for fixed in ["nf4", "iq4"] {
        assert!(distance((head, fixed)) < k2, "{fixed}");
    }
    let refused = apply(&with(head, "k3", true), "1");
    assert!(refused.code == 1 && refused.err.contains("tables of their own"), "{}", refused.err);
}

#[test]
fn packed_files_come_back_bit_for_bit_and_broken_ones_are_refused() {
    let place = Place::new();
    seven(&place, &["--force"]).json();
    let (small, packed, back) =
        (place.path("small.onnx"), place.path("small.onnx.lsn"), place.path("back.onnx"));
    let answer = lessen(&["pack", &small, "--json"]).json();
    assert!(answer["smaller"].as_f64().unwrap() > 1.1, "{answer}");
    assert_eq!(std::fs::metadata(&packed).unwrap().len() as f64, answer["bytes_after"].as_f64().unwrap());
    assert_eq!(lessen(&["unpack", &packed, "-o", &back]).code, 0);
    assert!(std::fs::read(&small).unwrap() == std::fs::read(&back).unwrap());
    let mut bytes = std::fs::read(&packed).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 4;
    std::fs::write(&packed, &bytes).unwrap();
    std::fs::remove_file(&back).unwrap();
    for wrong in [&packed, &small, &back] {
        let answer = lessen(&["unpack", wrong, "-o", &back]);
        assert!(answer.code == 1 && answer.err.lines().count() == 1, "{}", answer.err);
        assert!(!std::path::Path::new(&back).exists());
    }
    assert_eq!(lessen(&["pack", &small, "-o", &small]).code, 1);
    assert_eq!(lessen(&["unpack", &small]).code, 1);
}

#[test]
fn zeros_and_channels_go_by_passes_that_plans_repeat() {
    for (flags, pass, left) in [(["--zeros", "50%"], "zeros", 0.55), (["--fewer", "1.3"], "channels", 0.95)] {
        let place = Place::new();
        let receipt = digits(&place, &[&flags[..], &["--size", "50kB", "--lose", "5", "--force"]].concat());
        let receipt: serde_json::Value = serde_json::from_str(&receipt.out).unwrap();
        assert_eq!(receipt["changes"][0]["pass"], pass);
        let elements = |i: usize| receipt["changes"][0]["elements"][i].as_f64().unwrap();
        assert!(elements(1) < left * elements(0), "{pass}: {} of {}", elements(1), elements(0));
        assert!(receipt["quality"]["after"]["value"].as_f64().unwrap() > 90.0, "{receipt}");
        assert!(std::fs::metadata(place.path("small.onnx")).unwrap().len() <= 50_000);
        let (plan, again) = (place.path("small.toml"), place.path("again.onnx"));
        let (model, data) = (example("digits.onnx"), example("test.npz"));
        lessen(&["apply", &model, &plan, "--data", &data, "-o", &again, "--json", "--threads", "2"]).json();
        assert!(std::fs::read(place.path("small.onnx")).unwrap() == std::fs::read(again).unwrap(), "{pass}");
    }
}

#[test]
fn the_curve_of_sizes_is_measured_and_the_smallest_file_within_a_loss_found() {
    let place = Place::new();
    let receipt = digits(&place, &["--lose", "3", "--smallest", "--frontier"]).json();
    let points = receipt["frontier"].as_array().unwrap();
    let bytes: Vec<f64> = points.iter().map(|p| p["bytes"]["value"].as_f64().unwrap()).collect();
    assert!(points.len() > 2 && bytes.windows(2).all(|w| w[0] < w[1]), "{bytes:?}");
    assert!(points.iter().all(|p| p["quality"]["after"]["value"].as_f64().unwrap() > 20.0));
    assert!(points.iter().any(|p| p["name"] == "int8" && p["faster"]["value"].as_f64().unwrap() > 0.0));
    // Smaller than 8 bits make it, and still within the loss.
    assert!(receipt["met"] == true && receipt["smaller"]["value"].as_f64().unwrap() > 5.0, "{receipt}");
}

#[test]
fn plan_looks_ahead_and_writes_nothing() {
    let place = Place::new();
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    let found = lessen(&["plan", &model, "--data", &data, "--smaller", "6", "--json"]).json();
    let sizes: Vec<f64> =
        found["sizes"].as_array().unwrap().iter().map(|s| s["bytes"]["value"].as_f64().unwrap()).collect();
    assert!(sizes.len() == 6 && sizes.windows(2).all(|w| w[0] > w[1]), "{sizes:?}");
    assert!(found["time"]["value"].as_f64().unwrap() > 0.0 && found["goal"].is_string());
    let made = lessen(&["plan", &model, "--self-made", "--json"]).json();
    assert!(made["time"]["value"].as_f64().unwrap() > 0.0);
    let far = lessen(&["plan", &model, "--size", "100", "--json"]).json();
    assert!(far["goal"].as_str().unwrap().contains("out of reach") && far["time"].is_null());
    assert!(std::fs::read_dir(place.path("")).unwrap().next().is_none());
}

#[test]
fn goals_that_are_no_numbers_are_refused() {
    let model = example("digits.onnx");
    for bad in [
        ["--size", "much"],
        ["--size", "0"],
        ["--time", "10 parsecs"],
        ["--zeros", "100%"],
        ["--zeros", "-1"],
        ["--faster", "0"],
        ["--pattern", "4:2"],
    ] {
        assert_eq!(lessen(&["shrink", &model, bad[0], bad[1]]).code, 1, "{bad:?}");
    }
    // Blocks that are not there, and channels without data.
    assert_eq!(lessen(&["shrink", &model, "--without", "50"]).code, 1);
    lessen(&["shrink", &model, "--fewer", "2"]).fails(&["--data"]);
    lessen(&["shrink", &model, "--without", "1"]).fails(&["--data"]);
}

#[test]
fn zeros_outlast_channels_that_go_for_speed() {
    let place = Place::new();
    let answer = digits(&place, &["--zeros", "50%", "--fewer", "2", "--faster", "1000"]);
    assert_eq!(answer.code, 2, "{}", answer.err);
    let receipt: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert!(receipt["missed"][0].as_str().unwrap().contains("times faster"), "{receipt}");
    let changes = receipt["changes"].as_array().unwrap();
    let passes: Vec<&str> = changes.iter().map(|c| c["pass"].as_str().unwrap()).collect();
    // More channels may have gone for speed, where that is more than noise.
    assert!(passes[0] == "channels" && passes.iter().filter(|pass| **pass == "zeros").count() == 1);
    assert_eq!(passes.last(), Some(&"zeros"));
    let elements = |i: usize| changes.last().unwrap()["elements"][i].as_f64().unwrap();
    // The fewer channels, the more of the weights are in rows too short to be pruned.
    assert!(elements(1) < 0.7 * elements(0), "{receipt}");
}

#[test]
fn the_nearest_file_is_offered_when_too_much_is_lost() {
    let place = Place::new();
    let answer = digits(&place, &["--smaller", "100", "--lose", "0.2"]);
    assert_eq!(answer.code, 2, "{}", answer.err);
    let receipt: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    let missed = receipt["missed"].as_array().unwrap();
    assert!(missed.last().unwrap().as_str().unwrap().contains("within the loss"), "{receipt}");
}

#[test]
fn training_wins_back_what_cutting_lost_and_a_plan_repeats_it_byte_by_byte() {
    let place = Place::new();
    let lost = |more: &[&str]| -> f64 {
        let receipt = digits(&place, &[&["--fewer", "4"], more].concat()).json();
        receipt["quality"]["distance"].as_f64().unwrap()
    };
    let (cut, tuned) = (lost(&[]), lost(&["--tune", "--epochs", "12", "--rate", "0.001"]));
    assert!(tuned < 0.85 * cut, "{cut} -> {tuned}");
    let (plan, again) = (place.path("small.toml"), place.path("again.onnx"));
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    for n in ["1", "2"] {
        lessen(&["apply", &model, &plan, "--data", &data, "-o", &again, "--json", "--threads", n]).json();
        let bytes = |path: &str| std::fs::read(path).unwrap();
        assert!(bytes(&place.path("small.onnx")) == bytes(&again), "{n} threads");
    }
    // No example that was trained on is measured on.
    let receipt = digits(&place, &["--tune", "--epochs", "1"]).json();
    let share = |name: &str| receipt["data"][name].as_u64().unwrap();
    assert!(share("training") > 300 && share("training") + share("search") + share("verify") == 899);
    // With other examples all of these are measured on as before.
    let receipt = digits(&place, &["--tune", "--epochs", "1", "--tune-data", &data]).json();
    let share = |name: &str| receipt["data"][name].as_u64().unwrap();
    assert_eq!(share("training"), 899);
    assert!(receipt["data"]["training_data"].as_str().unwrap().contains("test.npz"));
}

#[test]
fn training_leaves_zeros_alone_and_says_what_it_lacks() {
    let place = Place::new();
    let sparse = ["--zeros", "70%", "--no-refit", "--rule", "magnitude"];
    let receipt = |more: &[&str]| digits(&place, &[&sparse, more].concat()).json();
    let (before, after) = (receipt(&[]), receipt(&["--tune", "--epochs", "8", "--rate", "0.01"]));
    let distance = |r: &serde_json::Value| r["quality"]["distance"].as_f64().unwrap();
    assert!(distance(&after) < 0.5 * distance(&before));
    let elements = |r: &serde_json::Value, pass: usize| r["changes"][pass]["elements"][1].as_u64().unwrap();
    let pruned = elements(&before, 0);
    assert!(elements(&after, 1) <= pruned, "zeros stay");
    let (model, out) = (example("digits.onnx"), place.path("none.onnx"));
    lessen(&["shrink", &model, "--tune", "-o", &out])
        .fails(&["examples to tune on are too few", "--tune-data"]);
    for left in [&out, &place.path("none.onnx.partial")] {
        assert!(!std::path::Path::new(left).exists(), "a failed run leaves nothing");
    }
    // Without examples to prove it on there can be some to train on.
    let receipt = lessen(&[
        "shrink",
        &model,
        "--tune",
        "--tune-data",
        &example("test.npz"),
        "--epochs",
        "1",
        "-o",
        &out,
        "--json",
    ])
    .json();
    assert_eq!(receipt["changes"][0]["measure"], "loss left");
    assert!(receipt["quality"].is_null() && !receipt["caveats"].as_array().unwrap().is_empty());
    assert_eq!(lessen(&["shrink", &model, "--epochs", "3"]).code, 1, "--epochs without --tune");
}

/// A `shrink` of the digits that may be killed; it logs as much to stderr.
fn to_kill(out: &str, log: &str, flags: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_lessen"));
    command.args(["shrink", &example("digits.onnx"), "--data", &example("test.npz"), "-o", out]).args(flags);
    command.env("LESSEN_LOG", log).stdout(std::process::Stdio::null());
    command
}

/// How often a log says this.
fn said(log: &[u8], what: &str) -> usize {
    String::from_utf8_lossy(log).matches(what).count()
}

/// Results that lie in a folder of unfinished work.
fn parts(work: &str) -> usize {
    let entries = std::fs::read_dir(work).into_iter().flatten().flatten();
    entries.filter(|e| e.path().extension().is_some_and(|e| e == "part")).count()
}

#[test]
fn a_shrink_that_is_killed_goes_on_to_the_same_bytes() {
    let place = Place::new();
    let run = |out: &str| to_kill(out, "info", &["--tune", "--epochs", "60", "--smaller", "6"]);
    let epochs = |err: &[u8]| said(err, "training epoch");
    let whole = place.path("whole.onnx");
    let all = epochs(&run(&whole).output().unwrap().stderr);
    assert!(all > 5);
    let (out, work) = (place.path("cut.onnx"), place.path("cut.onnx.partial"));
    // Killed once in the training, and once later.
    for least in [1, 3] {
        let mut child = run(&out).stderr(std::process::Stdio::null()).spawn().unwrap();
        while parts(&work) < least && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        if least == 1 {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(!std::path::Path::new(&out).exists() && parts(&work) > 0, "it was killed in the middle");
    let again = run(&out).output().unwrap();
    assert!(epochs(&again.stderr) < all, "finished epochs are not done twice");
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&out).unwrap());
    assert!(!std::path::Path::new(&work).exists(), "nothing is left behind");
    // What is in the way, and is no unfinished work, is left alone.
    std::fs::create_dir(&work).unwrap();
    std::fs::write(place.path("cut.onnx.partial/mine.txt"), "mine").unwrap();
    let refused = run(&out).output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in the way"));
    assert!(std::path::Path::new(&place.path("cut.onnx.partial/mine.txt")).exists());
}

#[test]
fn codes_that_are_learnt_go_on_from_the_epoch_after_which_it_was_killed() {
    use std::io::BufRead;
    let place = Place::new();
    let flags = ["--smaller", "8", "--rounding", "learned", "--lose", "5", "--force"];
    let run = |out: &str| to_kill(out, "info", &flags);
    let epochs = |err: &[u8]| said(err, "training epoch");
    let (whole, out) = (place.path("whole.onnx"), place.path("cut.onnx"));
    let all = epochs(&run(&whole).output().unwrap().stderr);
    assert!(all > 3, "{all}");
    let mut child = run(&out).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let log = std::io::BufReader::new(child.stderr.take().unwrap());
    // What an epoch came to is said before it is kept: the third is said when two are.
    let third = log.lines().map_while(Result::ok).filter(|line| line.contains("training epoch")).nth(2);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(third.is_some() && !std::path::Path::new(&out).exists(), "it was killed in the middle");
    let again = epochs(&run(&out).output().unwrap().stderr);
    assert!(again <= all - 2, "{again} of {all}: finished epochs are not done twice");
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&out).unwrap());
}

#[test]
fn without_data_examples_are_made_when_asked_for_and_a_plan_makes_them_again() {
    let place = Place::new();
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    let [blind, out, again] = ["blind.onnx", "small.onnx", "again.onnx"].map(|name| place.path(name));
    let size = |path: &String| std::fs::metadata(path).unwrap().len();
    lessen(&["shrink", &model, "-o", &blind, "--json"]).json();
    let receipt = lessen(&["shrink", &model, "--self-made", "-o", &out, "--json", "--threads", "1"]).json();
    assert!(size(&out) * 2 < size(&blind), "activations on fixed grids take examples");
    // Nothing of them counts as a proof.
    for none in ["quality", "proof", "verification"] {
        assert!(receipt[none].is_null(), "{none}: {receipt}");
    }
    assert_eq!(receipt["data"]["verify"], 0);
    assert_eq!(receipt["data"]["calibration"], 256);
    let caveats = |receipt: &serde_json::Value| receipt["caveats"].to_string();
    assert!(
        caveats(&receipt).contains("lessen made itself") && caveats(&receipt).contains("nothing is proven")
    );
    let page = std::fs::read_to_string(place.path("small.html")).unwrap();
    assert!(page.contains("made by lessen itself") && page.contains("nothing is proven"));
    // It does its job on real examples all the same.
    let right = lessen(&["eval", &out, "--data", &data, "--json"]).json();
    assert!(right["value"]["value"].as_f64().unwrap() > 98.0, "{right}");
    // The plan says how it came about.
    let plan = place.path("small.toml");
    assert!(std::fs::read_to_string(&plan).unwrap().contains("calibration_data = \"self-made\""));
    let bytes = |path: &String| std::fs::read(path).unwrap();
    lessen(&["apply", &model, &plan, "-o", &again, "--json", "--threads", "2"]).json();
    assert!(bytes(&out) == bytes(&again));
    // With data it is measured, and calibrated as before.
    let receipt = lessen(&["apply", &model, &plan, "--data", &data, "-o", &again, "--json"]).json();
    assert!(bytes(&out) == bytes(&again));
    assert!(receipt["quality"]["after"]["value"].as_f64().unwrap() > 97.0);
    assert!(receipt["data"]["calibration_data"].as_str().unwrap().contains("made by lessen"));
    assert!(caveats(&receipt).contains("of the data it has seen nothing"));
    assert_eq!(
        receipt["data"]["search"].as_u64().unwrap() + receipt["data"]["verify"].as_u64().unwrap(),
        899
    );
}

#[test]
fn examples_made_by_lessen_do_not_go_with_data_and_prove_no_bound() {
    let place = Place::new();
    let (model, data, out) = (example("digits.onnx"), example("test.npz"), place.path("small.onnx"));
    let both = lessen(&["shrink", &model, "--self-made", "--data", &data, "-o", &out]);
    assert!(
        both.code == 1 && both.err.contains("--self-made") && both.err.contains("--data"),
        "{}",
        both.err
    );
    lessen(&["shrink", &model, "--self-made", "--task", "classify", "-o", &out]).fails(&["no right answers"]);
    let bound = lessen(&["shrink", &model, "--self-made", "--lose", "1%", "-o", &out, "--json"]);
    assert!(bound.code == 2 && bound.out.contains("cannot be measured without data"), "{}", bound.out);
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn what_is_carried_in_files_changes_no_byte_and_leaves_none() {
    let (held, filed, files) = (Place::new(), Place::new(), Place::new());
    let spill = files.path("");
    for flags in [&["--smaller", "6"][..], &["--fewer", "1.5"]] {
        digits(&held, flags).json();
        digits(&filed, &[flags, &["--spill", &spill]].concat()).json();
        let bytes = |place: &Place| std::fs::read(place.path("small.onnx")).unwrap();
        assert!(bytes(&held) == bytes(&filed), "{flags:?}");
    }
    assert!(files.names().is_empty(), "{:?}", files.names());
    let (model, data, plan) = (example("digits.onnx"), example("test.npz"), filed.path("small.toml"));
    let again = filed.path("again.onnx");
    lessen(&["apply", &model, &plan, "--data", &data, "-o", &again, "--spill", &spill, "--json"]).json();
    assert!(std::fs::read(again).unwrap() == std::fs::read(filed.path("small.onnx")).unwrap());
    for bad in [files.path("none"), files.file("file", b"x")] {
        let answer = digits(&held, &["--spill", &bad]);
        answer.fails(&["cannot be kept", &bad, "--spill"]);
    }
}

#[test]
fn preparations_are_lines_of_a_plan_that_repeats_them_byte_by_byte() {
    let place = Place::new();
    let receipt = digits(&place, &["--prepare", "equalize,smooth"]).json();
    let passes = receipt["plan"]["passes"].as_array().unwrap();
    let methods: Vec<&str> = passes.iter().map(|p| p["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["equalize", "smooth"]);
    assert_eq!(receipt["changes"][0]["pass"], "equalize");
    assert!(
        receipt["changes"][1]["error"].as_f64().unwrap() < 1e-8,
        "the model computes the same: {receipt}"
    );
    assert!(receipt["quality"]["after"]["value"].as_f64().unwrap() > 98.0);
    let plain = Place::new();
    digits(&plain, &[]).json();
    let bytes = |path: String| std::fs::read(path).unwrap();
    assert!(bytes(plain.path("small.onnx")) != bytes(place.path("small.onnx")));
    let (model, data) = (example("digits.onnx"), example("test.npz"));
    let (plan, again) = (place.path("small.toml"), place.path("again.onnx"));
    for n in ["1", "2"] {
        let args = ["apply", &model, &plan, "--data", &data, "-o", &again, "--json", "--threads", n];
        lessen(&args).json();
        assert!(bytes(place.path("small.onnx")) == bytes(again.clone()), "{n} threads");
    }
}

#[test]
fn preparations_that_cannot_be_fail_in_one_line() {
    let place = Place::new();
    let (model, out) = (example("digits.onnx"), place.path("small.onnx"));
    let unknown = lessen(&["shrink", &model, "--prepare", "sooth"]);
    assert!(unknown.code == 1 && unknown.err.contains("\"sooth\"") && unknown.err.contains("measured"));
    lessen(&["shrink", &model, "-o", &out, "--prepare", "smooth"]).fails(&["smooth", "--data"]);
    lessen(&["shrink", &model, "-o", &out, "--prepare", "measured"]).fails(&["--data"]);
    digits(&place, &["--prepare", "rotate"]).fails(&["residual stream", "no norm"]);
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn passes_that_are_done_are_not_done_again_by_a_run_after_one_that_was_killed() {
    let place = Place::new();
    let flags = ["--force", "--fewer", "1.5", "--zeros", "30%", "--smaller", "6"];
    let run = |out: &str| to_kill(out, "debug", &flags);
    let surveyed = |err: &[u8]| said(err, "DEBUG channels");
    let (whole, out, work) =
        (place.path("whole.onnx"), place.path("cut.onnx"), place.path("cut.onnx.partial"));
    assert!(surveyed(&run(&whole).output().unwrap().stderr) > 3);
    // What is chosen, the model without it, zeros, and weights of 8 bits: killed after each.
    for least in [1, 2, 4, 10] {
        let mut child = run(&out).stderr(std::process::Stdio::null()).spawn().unwrap();
        while parts(&work) < least && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(!std::path::Path::new(&out).exists() && parts(&work) >= 10, "it was killed in the middle");
    let again = run(&out).output().unwrap();
    assert_eq!(surveyed(&again.stderr), 0, "channels are chosen once");
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&out).unwrap());
    assert!(!std::path::Path::new(&work).exists(), "nothing is left behind");
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let place = Place::new();
    let mut model = lessen::Model::open(example("digits.onnx")).unwrap();
    let graph = &mut model.inner_mut().graph;
    let used = graph.nodes().find_map(|(_, node)| node.input(node.op.weight()?.input)).unwrap();
    let (name, mut weight) = (graph.value(used).name.clone(), graph.constant(used).unwrap().clone());
    weight.as_mut_slice::<f32>().unwrap()[3] = f32::NAN;
    graph.set_constant(used, weight);
    let broken = place.path("broken.onnx");
    model.save(&broken).unwrap();
    let (data, out) = (example("test.npz"), place.path("small.onnx"));
    for more in [&["--data", &data][..], &[]] {
        let args = ["shrink", &broken, "-o", &out];
        lessen(&[&args[..], more].concat()).fails(&[&name, "1 of", "not finite"]);
    }
}

#[test]
fn examples_to_calibrate_on_can_be_others_and_are_not_measured_on() {
    let place = Place::new();
    // Some of the data themselves: `pick` chooses a part.
    let (model, data, out) = (example("digits.onnx"), example("test.npz"), place.path("small.onnx"));
    let some = place.path("some.npz");
    let by = ["--model", &model, "--keep", "64", "--by", "k-center", "--near", "1"];
    lessen(&[&["pick", &data, "-o", &some][..], &by].concat()).text();
    let receipt = digits(&place, &["--calibrate-on", &some]).json();
    let share = |name: &str| receipt["data"][name].as_u64().unwrap();
    assert_eq!((share("calibration"), share("seen")), (64, 64));
    assert_eq!(share("search") + share("verify"), 899 - 64);
    assert!(receipt["provenance"]["calibration"]["name"] == "some.npz", "{}", receipt["provenance"]);
    let page = std::fs::read_to_string(place.path("small.html")).unwrap();
    assert!(page.contains("calibration has seen them"));
    // The plan asks for them again, and then gives the same file.
    let (plan, again) = (place.path("small.toml"), place.path("again.onnx"));
    let apply = ["apply", &model, &plan, "--data", &data, "-o", &again];
    lessen(&apply).fails(&["--calibrate-on"]);
    lessen(&[&apply[..], &["--calibrate-on", &some]].concat()).text();
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&again).unwrap());
    let alone = lessen(&["shrink", &model, "--calibrate-on", &some, "-o", &out]);
    assert!(alone.code == 1 && alone.err.contains("--data <PATH>"), "{}", alone.err);
    // Where nothing is left to measure on, it is said.
    lessen(&["shrink", &model, "--data", &some, "--calibrate-on", &data, "-o", &out])
        .fails(&["0 examples are too few", "64 others"]);
}

#[test]
fn what_may_be_lost_can_be_of_one_class_or_of_all_alike() {
    let place = Place::new();
    let receipt = digits(&place, &["--lose", "2", "--metric", "recall=8"]).json();
    let (quality, class) = (&receipt["quality"], &receipt["verification"]["classes"][8]);
    assert_eq!((&quality["metric"], &class["class"]), (&"recall of 8".into(), &8.into()));
    for key in ["before", "after", "examples"] {
        assert_eq!(quality[key], class[key], "{key}");
    }
    assert!(quality["examples"].as_u64().unwrap() < 60, "those of a class alone: {quality}");
    // So few prove little, and it is said how many would prove more.
    assert_eq!(receipt["proof"]["holds"], false);
    for (metric, name) in [("macro-f1", "macro F1"), ("balanced-accuracy", "balanced accuracy")] {
        let receipt = digits(&place, &["--lose", "2", "--metric", metric]).json();
        let quality = &receipt["quality"];
        assert_eq!(quality["metric"], name);
        assert!(quality["after"]["value"].as_f64().unwrap() > 97.0 && quality["lost"]["unit"] == "points");
    }
    digits(&place, &["--metric", "recall=ten"]).fails(&["no class \"ten\""]);
    digits(&place, &["--metric", "recall=10"]).fails(&["none of the examples", "10"]);
    digits(&place, &["--task", "agree", "--metric", "macro-f1"]).fails(&["right answers"]);
    digits(&place, &["--metric", "f1"]).fails(&["is no metric", "recall=CLASS"]);
}

#[test]
fn zeros_are_shared_out_by_harm_by_outliers_or_alike() {
    let place = Place::new();
    let shares = |way: &str| -> Vec<f64> {
        let receipt = digits(&place, &["--zeros", "50%", "--allocation", way]).json();
        let elements = &receipt["changes"][0]["elements"];
        let stay = elements[1].as_f64().unwrap() / elements[0].as_f64().unwrap();
        assert!((0.48..0.56).contains(&stay), "{way}: {stay}");
        let weights = receipt["plan"]["passes"][0]["weights"].as_array().unwrap().clone();
        weights.iter().map(|weight| weight["share"].as_f64().unwrap()).collect()
    };
    let spread = |shares: &[f64]| {
        shares.iter().copied().fold(0.0, f64::max) - shares.iter().copied().fold(1.0, f64::min)
    };
    let (harm, outliers, even) = (shares("harm"), shares("outliers"), shares("even"));
    assert!(harm.len() > 1 && spread(&harm) > 0.0 && spread(&even) == 0.0);
    assert!(spread(&outliers) > 0.0 && spread(&outliers) < 0.161, "{outliers:?}");
    digits(&place, &["--zeros", "50%", "--allocation", "odd"]).fails(&["harm, outliers or even"]);
}
