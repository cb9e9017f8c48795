//! `lessen teach` as a user calls it: the example model, which tells digits, learns to tell those with a loop.

mod here;

use here::{Place, example, lessen};
use lessen::Tensor;
use lessen::data::npz;

/// Pictures of digits from the example's data, and which digits they are.
fn pictures() -> (Tensor, Vec<i64>) {
    let arrays = npz::read(example("test.npz").as_ref(), 1 << 24).unwrap();
    let find = |name: &str| arrays.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let labels = find("label").to_ints().unwrap();
    (find("image").to_f32().map(|v| Tensor::new(&[v.len() / 64, 1, 8, 8], &v).unwrap()).unwrap(), labels)
}

/// Some of them with new labels.
fn part(place: &Place, name: &str, rows: std::ops::Range<usize>, label: impl Fn(i64) -> i64) -> String {
    let (images, labels) = pictures();
    let values = images.to_f32().unwrap();
    let image = Tensor::new(&[rows.len(), 1, 8, 8], &values[rows.start * 64..rows.end * 64]).unwrap();
    let label: Vec<i64> = rows.map(|i| label(labels[i])).collect();
    let label = Tensor::new(&[label.len()], &label).unwrap();
    place.npz(name, &[("image", image), ("label", label)])
}

fn has_loop(digit: i64) -> i64 {
    i64::from([0, 4, 6, 8, 9].contains(&digit))
}

fn teach(place: &Place, data: &str, more: &[&str]) -> here::Answer {
    let (model, out) = (example("digits.onnx"), place.path("taught.onnx"));
    let mut args = vec!["teach", &model, "--data", data, "-o", &out, "--json"];
    args.extend(more);
    lessen(&args)
}

#[test]
fn a_new_task_is_learnt_from_100_examples() {
    let place = Place::new();
    let (data, test) = (part(&place, "a.npz", 0..100, has_loop), part(&place, "b.npz", 100..899, has_loop));
    let report = teach(&place, &data, &["--test", &test]).json();
    assert_eq!(report["examples"], 100);
    assert_eq!(report["features"], 48);
    assert_eq!(report["heads"].as_array().unwrap().len(), 4);
    let losses: Vec<f64> =
        report["heads"].as_array().unwrap().iter().map(|h| h["loss"].as_f64().unwrap()).collect();
    assert!(
        losses[1..].windows(2).all(|w| w[0] <= w[1]),
        "the first is taken, the others are sorted: {losses:?}"
    );
    assert!(losses[0] < losses[1] + 0.1, "it is hardly worse than the best: {losses:?}");
    let value = |eval: &serde_json::Value| eval["value"]["value"].as_f64().unwrap();
    assert!(value(&report["test"]) > 90.0, "{}", report["test"]);
    // What is said of unseen examples is what comes on others.
    let low = report["unseen"]["value"]["low"].as_f64().unwrap();
    let high = report["unseen"]["value"]["high"].as_f64().unwrap();
    assert!(low - 3.0 < value(&report["test"]) && value(&report["test"]) < high + 3.0);
    assert_eq!(report["leaked"], 0);
    let (energy, payback) = (&report["energy"], &report["payback"]);
    let joules = energy["joules"].as_f64().unwrap();
    assert!(joules > 0.0 && payback["spent"]["value"] == energy["joules"], "{payback}");
    let run = payback["after"]["value"].as_f64().unwrap();
    assert!(run > 0.0 && payback["runs"].is_null(), "nothing is saved without another model: {payback}");
    assert!((payback["parity"]["value"].as_f64().unwrap() - (joules / run).ceil()).abs() < 1.0, "{payback}");

    // The file is a model like any other: it is judged, run and shrunk.
    let out = place.path("taught.onnx");
    let again = lessen(&["eval", &out, "--data", &test, "--json"]).json();
    assert_eq!(value(&again), value(&report["test"]));
    let seen = lessen(&["inspect", &out]);
    let said = seen.text();
    assert!(
        said.contains("output \"logits\": float[N, 2]") && said.contains("output \"probabilities\""),
        "{said}"
    );
    let small = place.path("small.onnx");
    let receipt = lessen(&["shrink", &out, "--data", &test, "-o", &small, "--json", "--lose", "2"]).json();
    assert!(receipt["smaller"]["value"].as_f64().unwrap() > 3.0);
}

#[test]
fn features_are_kept_and_a_damaged_file_of_them_is_made_anew() {
    let place = Place::new();
    let data = part(&place, "a.npz", 0..60, has_loop);
    let cache = place.path("cache");
    let mut models = Vec::new();
    let mut run = |cached: bool| {
        let report = teach(&place, &data, &["--cache", &cache]).json();
        assert_eq!(report["cached"], cached);
        models.push(std::fs::read(place.path("taught.onnx")).unwrap());
    };
    run(false);
    run(true);
    let file = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    run(false);
    std::fs::write(&file, &bytes[..50]).unwrap();
    run(false);
    assert!(models.windows(2).all(|w| w[0] == w[1]), "the same model each time");
}

#[test]
fn features_are_those_of_the_examples_whatever_their_answers_and_their_file() {
    let place = Place::new();
    let cache = place.path("cache");
    let cached = |data: &str| teach(&place, data, &["--cache", &cache]).json()["cached"].as_bool().unwrap();
    let images = || 0..60;
    assert!(!cached(&part(&place, "a.npz", images(), has_loop)));
    assert!(cached(&part(&place, "b.npz", images(), |digit| digit % 2)), "the same pictures, other answers");
    assert!(!cached(&part(&place, "b.npz", 1..61, has_loop)), "other pictures");
}

/// A model whose tokens are looked up in a table, and texts that it can tell apart.
fn words(place: &Place, texts: &str) -> (String, String) {
    encoder(place, texts, false, true)
}

/// The same, with a product behind the table or not, and with a mask or not.
fn encoder(place: &Place, texts: &str, product: bool, mask: bool) -> (String, String) {
    let mut graph = graph::Graph::new("words");
    let shape = || vec![graph::Dim::named("n"), graph::Dim::named("t")];
    let ids = graph.add_input("input_ids", graph::Fact::tensor(graph::DType::I64, shape())).unwrap();
    if mask {
        graph.add_input("attention_mask", graph::Fact::tensor(graph::DType::I64, shape())).unwrap();
    }
    let rows: Vec<f32> = (0..8 * 3).map(|i| ((i * 7 + i * i) % 11) as f32).collect();
    let table = graph.add_constant("table", Tensor::new(&[8, 3], &rows).unwrap());
    let mut hidden = graph.append("hidden", "Gather", 13, &graph::Attrs::new(), &[table, ids]).unwrap();
    if product {
        let weight = Tensor::new(&[3, 3], &[0.9f32, 0.1, 0., 0.2, 1., 0., 0., 0.3, 1.1]).unwrap();
        let weight = graph.add_constant("weight", weight);
        hidden = graph.append("turned", "MatMul", 13, &graph::Attrs::new(), &[hidden, weight]).unwrap();
    }
    graph.outputs.push(hidden);
    let mut model = graph::Model { graph, ir_version: 8, ..graph::Model::default() };
    model.opsets.insert(String::new(), 17);
    let path = place.path("words/words.onnx");
    place.file("words/vocab.txt", VOCABULARY);
    format::save(&model, path.as_ref()).unwrap();
    (path, place.file("texts.csv", texts.as_bytes()))
}

const VOCABULARY: &[u8] = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\ngood\nbad\nfilm\nbook\n";

/// Teaches such a model; what it writes has a folder of its own, where its tokenizer goes.
fn teach_words(place: &Place, model: &str, data: &str, more: &[&str]) -> here::Answer {
    let (vocabulary, out) = (place.path("words/vocab.txt"), place.path("new/taught.onnx"));
    std::fs::create_dir_all(place.path("new")).unwrap();
    let args = ["teach", model, "--tokenizer", &vocabulary, "--data", data, "-o", &out, "--json"];
    lessen(&[&args[..], more].concat())
}

#[test]
fn texts_are_learnt_and_the_tokenizer_comes_along() {
    let place = Place::new();
    let lines =
        ["good film,1", "bad film,0", "good book,1", "bad book,0", "good good film,1", "bad bad book,0"];
    let texts = format!("text,label,other\n{}\n", lines.map(|line| format!("{line},film")).join("\n"));
    let (model, data) = words(&place, &texts);
    let (out, cache) = (place.path("new/taught.onnx"), place.path("cache"));
    let teach =
        |more: &[&str]| teach_words(&place, &model, &data, &[&["--cache", &cache][..], more].concat());
    assert_eq!(teach(&[]).json()["examples"], 6);
    // The new model finds it beside itself.
    let again = lessen(&["eval", &out, "--data", &data, "--json"]).json();
    assert_eq!(again["value"]["value"], 100.0);
    // So do those that are made of it.
    for (command, more) in [("convert", &[][..]), ("shrink", &["--self-made", "--force", "-o"])] {
        let folder = place.path(command);
        std::fs::create_dir_all(&folder).unwrap();
        let made = format!("{folder}/made.onnx");
        lessen(&[&[command, &out][..], more, &[&made, "--json"]].concat()).json();
        let again = lessen(&["eval", &made, "--data", &data, "--json"]).json();
        assert_eq!(again["value"]["value"], 100.0, "{command}");
    }
    // Where texts are cut goes with the model, and not into the tokenizer.
    let cut = teach(&["--max-tokens", "4"]);
    assert!(cut.code == 0 && !cut.err.contains("another tokenizer"), "{}", cut.err);
    assert_eq!(format::open(out.as_ref()).unwrap().metadata("lessen.max_tokens"), Some("4"));
    // Another column of the same file has other features.
    let report = teach(&["--text-column", "other"]);
    assert!(report.code == 1 && report.err.contains("the same"), "{}", report.err);
    // Another model's tokenizer is not replaced, and it is said.
    assert!(!teach(&[]).err.contains("another tokenizer"), "it is the same");
    place.file("new/tokenizer.json", b"{}");
    assert!(teach(&[]).err.contains("another tokenizer.json lies beside"));
    assert_eq!(std::fs::read(place.path("new/tokenizer.json")).unwrap(), b"{}");
}

#[test]
fn numbers_are_learnt_too() {
    let place = Place::new();
    let (images, labels) = pictures();
    let rows = 0..400;
    let image = Tensor::new(&[rows.len(), 1, 8, 8], &images.to_f32().unwrap()[..rows.len() * 64]).unwrap();
    let score: Vec<f32> = rows.map(|i| 10.0 + 3.0 * has_loop(labels[i]) as f32).collect();
    let score = Tensor::new(&[score.len()], &score).unwrap();
    let data = place.npz("scores.npz", &[("image", image), ("score", score)]);
    let report = teach(&place, &data, &[]).json();
    assert_eq!(report["heads"][0]["method"], "ridge");
    assert!(report["unseen"]["value"]["value"].as_f64().unwrap() > 0.8, "{}", report["unseen"]);
    let seen = lessen(&["inspect", &place.path("taught.onnx")]);
    assert!(seen.text().contains("output \"score\": float[N, 1]"));
}

#[test]
fn examples_to_judge_by_that_were_learnt_from_are_counted() {
    let place = Place::new();
    let (data, test) = (part(&place, "a.npz", 0..100, has_loop), part(&place, "b.npz", 90..200, has_loop));
    let answer = teach(&place, &data, &["--test", &test]);
    assert!(answer.err.contains("of the examples of --test 10 are among"), "{}", answer.err);
    let report = answer.json();
    assert_eq!((&report["leaked"], &report["leaks"][0]["similarity"]), (&10.into(), &1.0.into()));

    // A word changed does not make another text.
    let long = |film: &str| {
        format!("a good {film} is a good book and a bad {film} is a bad book and that is all there is")
    };
    let lines = ["good film,1", "bad film,0", "good book,1", "bad book,0"].join("\n");
    let (model, data) = words(&place, &format!("text,label\n{lines}\n{},1\n", long("film")));
    let test = place.file("near.csv", format!("text,label\nbook,0\n{} now,1\n", long("film")).as_bytes());
    let answer = teach_words(&place, &model, &data, &["--test", &test]);
    assert!(answer.err.contains("of the examples of --test 1 are among those of --data"), "{}", answer.err);
    let report = answer.json();
    let leak = &report["leaks"][0];
    assert_eq!((&leak["example"], &leak["of"]), (&"line 3".into(), &"line 6".into()));
    assert!(report["leaked"] == 1 && leak["similarity"].as_f64().unwrap() < 1.0, "{leak}");
}

#[test]
fn features_are_taken_where_they_teach_the_most() {
    let place = Place::new();
    // Twice, so that some of them say where and the others follow; what is theirs must stay theirs.
    let (images, labels) = pictures();
    let rows = 700;
    let values = images.to_f32().unwrap()[..rows * 64].repeat(2);
    let label: Vec<i64> = labels[..rows].iter().map(|l| has_loop(*l)).collect::<Vec<_>>().repeat(2);
    let image = Tensor::new(&[2 * rows, 1, 8, 8], &values).unwrap();
    let label = Tensor::new(&[label.len()], &label).unwrap();
    let data = place.npz("twice.npz", &[("image", image), ("label", label)]);
    let test = part(&place, "test.npz", rows..899, has_loop);
    let size = || std::fs::metadata(place.path("taught.onnx")).unwrap().len();
    let taught = |more: &[&str]| teach(&place, &data, &[&["--test", &test], more].concat());
    let checked = |report: &serde_json::Value, most: f64| {
        let taps = report["taps"].as_array().unwrap();
        let share = |tap: &serde_json::Value| tap["share"].as_f64().unwrap();
        assert!(taps.windows(2).all(|w| share(&w[0]) <= share(&w[1])) && share(&taps[0]) < most, "{taps:?}");
        let taken: Vec<_> = taps.iter().filter(|tap| tap["taken"] == true).collect();
        assert!(
            taken.len() == 1 && share(taken[0]) <= most && taken[0]["nodes"] == report["nodes"],
            "{taps:?}"
        );
        assert_eq!(report["examples"], 2 * rows);
        report["test"]["value"]["value"].as_f64().unwrap()
    };
    let report = taught(&[]).json();
    assert!(checked(&report, 1.0) > 90.0, "{}", report["test"]);
    let whole = size();
    // What lies behind is left out of the file.
    let report = taught(&["--faster", "2"]).json();
    assert!(checked(&report, 0.5) > 75.0, "{}", report["test"]);
    assert!(size() < whole, "{} {whole}", size());
    let seen = lessen(&["eval", &place.path("taught.onnx"), "--data", &test, "--json"]).json();
    assert_eq!(seen["value"]["value"], report["test"]["value"]["value"]);

    // Few examples say nothing of where: what the model ends with is taken, or the deepest that is fast enough.
    let few = part(&place, "few.npz", 0..90, has_loop);
    let report = teach(&place, &few, &[]).json();
    assert!(report["taps"].as_array().unwrap().is_empty() && report["features"] == 48, "{}", report["nodes"]);
    let faster = teach(&place, &few, &["--faster", "2"]).json();
    assert!(faster["taps"].as_array().unwrap().is_empty() && faster["nodes"] != report["nodes"]);

    taught(&["--faster", "0.5"]).fails(&["--faster 0.5 is not faster"]);
    taught(&["--faster", "1e9"])
        .fails(&["nothing that features can be taken of is 1000000000 times as fast"]);
    taught(&["--faster", "2", "--tune", "all"]).fails(&["--faster chooses the features", "leave one away"]);
    taught(&["--faster", "2", "--add", "loop"]).fails(&["--add lets tasks share them"]);
}

#[test]
fn other_features_can_be_named() {
    let place = Place::new();
    let data = part(&place, "a.npz", 0..60, has_loop);
    let graph = lessen::Model::open(example("digits.onnx")).unwrap();
    let graph = &graph.inner().graph;
    let add = graph.nodes().find(|(_, node)| node.kind() == "Add").unwrap().1;
    let name = graph.value(add.output(0).unwrap()).name.clone();
    let report = teach(&place, &data, &["--features", &name, "--head", "ridge"]).json();
    assert_eq!(report["nodes"], serde_json::json!([name]));
    assert_eq!(report["features"], 48);
    assert_eq!(report["heads"].as_array().unwrap().len(), 1);
    teach(&place, &data, &["--features", "nothing"]).fails(&["no node or value \"nothing\"", "last nodes"]);
}

#[test]
fn what_cannot_be_learnt_is_said() {
    let place = Place::new();
    let one = part(&place, "one.npz", 0..20, |_| 1);
    teach(&place, &one, &[]).fails(&["all 20 examples are of class 1"]);
    let (images, _) = pictures();
    let bare = place.npz("bare.npz", &[("image", images)]);
    teach(&place, &bare, &[]).fails(&["no class", "to learn from"]);
    let gap = part(&place, "gap.npz", 0..20, |digit| digit % 2 * 2);
    teach(&place, &gap, &[]).fails(&["class 1 of 3"]);
    let text = place.file("t.csv", b"text,label\nhello,0\nworld,1\n");
    teach(&place, &text, &[]).fails(&["tokenizer"]);
    let data = part(&place, "a.npz", 0..60, has_loop);
    teach(&place, &data, &["--head", "magic"]).fails(&["ridge, discriminant, logistic, centroid"]);
    assert!(!std::path::Path::new(&place.path("taught.onnx")).exists(), "nothing is written");
}

#[test]
fn pictures_that_cannot_be_read_are_left_out_and_listed() {
    let place = Place::new();
    let model = place.model("m.onnx", "GlobalAveragePool", sizes(), &[]);
    for i in 0..6 {
        place.picture(&format!("data/{}/{i}.bmp", ["a", "b"][i % 2]));
    }
    // Differences, so that there is something to learn.
    for name in ["data/a/0.bmp", "data/a/2.bmp", "data/b/1.bmp"] {
        let mut bytes = std::fs::read(place.path(name)).unwrap();
        bytes[54] = bytes[54].wrapping_mul(7).wrapping_add(name.len() as u8 + name.as_bytes()[7]);
        std::fs::write(place.path(name), bytes).unwrap();
    }
    place.file("data/a/broken.bmp", b"BM, and then nothing");
    let (data, out) = (place.path("data"), place.path("taught.onnx"));
    let answer =
        lessen(&["teach", &model, "--data", &data, "-o", &out, "--preprocess", "layout=nchw", "--json"]);
    let report = answer.json();
    assert_eq!(report["examples"], 6);
    assert_eq!(report["skipped"].as_array().unwrap().len(), 1);
    assert!(report["skipped"][0]["why"].as_str().unwrap().contains("broken.bmp"), "{}", report["skipped"]);
    assert_eq!(report["unseen"]["classes"][0]["name"], "a");
}

fn sizes() -> Vec<graph::Dim> {
    vec![graph::Dim::named("n"), graph::Dim::Is(3), graph::Dim::Is(2), graph::Dim::Is(2)]
}

#[test]
fn the_model_that_suits_is_the_first() {
    let place = Place::new();
    let data = part(&place, "a.npz", 0..100, has_loop);
    let sizes = vec![graph::Dim::named("n"), graph::Dim::Is(1), graph::Dim::Is(8), graph::Dim::Is(8)];
    // The mean of all pixels says little.
    let poor = place.model("poor.onnx", "GlobalAveragePool", sizes, &[]);
    let (good, odd) = (example("digits.onnx"), place.file("odd.onnx", b"nothing"));
    let found = lessen(&["suit", &poor, &odd, &good, "--data", &data, "--json"]).json();
    let models: Vec<&str> =
        found["models"].as_array().unwrap().iter().map(|m| m["model"].as_str().unwrap()).collect();
    assert_eq!(models, [good.as_str(), &poor, &odd]);
    let of = |i: usize, key: &str| found["models"][i][key].as_f64().unwrap();
    assert!(of(0, "evidence") > of(1, "evidence"));
    assert_eq!((of(0, "features"), of(1, "features")), (48.0, 1.0));
    assert!(found["models"][2]["error"].as_str().unwrap().contains("odd.onnx"));
    lessen(&["suit", &odd, "--data", &data]).fails(&["odd.onnx"]);
}

#[test]
fn weights_before_the_head_learn_too_and_those_held_out_are_answered_better() {
    let place = Place::new();
    // Weights that nobody trained have features that tell little; which digits go together is drawn by lot.
    let odd = |digit: i64| [2, 0, 1, 1, 2, 0, 0, 2, 1, 0][digit as usize];
    let (model, out) = (layers(&place), place.path("taught.onnx"));
    let teach = |data: &str, more: &[&str]| {
        lessen(&[&["teach", &model, "--data", data, "-o", &out, "--json"], more].concat())
    };
    let (data, test) = (part(&place, "a.npz", 0..500, odd), part(&place, "b.npz", 500..899, odd));
    let value = |eval: &serde_json::Value| eval["value"]["value"].as_f64().unwrap();
    let head = teach(&data, &["--test", &test]).json();
    assert!(head["tuned"].is_null() && head["held_out"].is_null());
    let tuned = |more: &[&str]| {
        let args = [&["--test", &test, "--epochs", "8", "--rate", "0.005"], more].concat();
        let report = teach(&data, &args).json();
        let tuned = report["tuned"].clone();
        assert_eq!((tuned["examples"].as_u64(), tuned["held_out"].as_u64()), (Some(450), Some(50)));
        assert!(tuned["after"].as_f64() <= tuned["before"].as_f64(), "{tuned}");
        assert_eq!(report["held_out"]["examples"], 50);
        let bytes = std::fs::read(place.path("taught.onnx")).unwrap();
        (report["test"].clone(), tuned["weights"].as_u64().unwrap(), bytes)
    };
    let (all, weights, bytes) = tuned(&["--tune", "all"]);
    assert!(value(&all) >= value(&head["test"]) + 5.0, "{all} {}", head["test"]);
    assert!(
        tuned(&["--tune", "all", "--threads", "1"]).2 == bytes,
        "the same bytes for any number of threads"
    );
    let (_, last, _) = tuned(&["--tune", "60%"]);
    let (_, small, _) = tuned(&["--tune", "small"]);
    assert!(small < last && last < weights, "{small} {last} {weights}");
    // The file is a model like any other.
    let again = lessen(&["eval", &out, "--data", &test, "--json"]).json();
    assert!(value(&again) > 60.0);

    teach(&data, &["--tune", "all", "--rate", "0"]).fails(&["--rate 0"]);
    let few = part(&place, "c.npz", 0..12, has_loop);
    teach(&few, &["--tune", "all"]).fails(&["too few for --tune"]);
}

#[test]
fn ways_of_learning_are_compared_and_the_best_is_taken() {
    let place = Place::new();
    // As above, the head alone knows little.
    let odd = |digit: i64| [2, 0, 1, 1, 2, 0, 0, 2, 1, 0][digit as usize];
    let (model, out) = (layers(&place), place.path("taught.onnx"));
    let (data, test) = (part(&place, "a.npz", 0..500, odd), part(&place, "b.npz", 500..899, odd));
    let args = ["teach", &model, "--data", &data, "--test", &test, "-o", &out, "--json"];
    let value = |report: &serde_json::Value| report["test"]["value"]["value"].as_f64().unwrap();
    let head = lessen(&args).json();
    let more = ["--tune", "best", "--epochs", "8", "--rate", "0.005"];
    let report = lessen(&[&args[..], &more].concat()).json();
    let ways = report["ways"].as_array().unwrap();
    assert_eq!(ways.len(), 5, "{ways:?}");
    let taken: Vec<_> = ways.iter().filter(|way| way["taken"] == true).collect();
    assert!(taken.len() == 1 && taken[0]["tune"] == report["tuned"]["depth"], "{ways:?}");
    let of = |way: &serde_json::Value| way["value"]["value"].as_f64().unwrap_or(0.0);
    assert!(of(taken[0]) > of(&ways[0]), "{ways:?}");
    assert!(value(&report) >= value(&head) + 5.0, "{} {}", value(&report), value(&head));
    // What needs no training is left as it is: these features tell all, and few examples are compared in turns.
    let easy = part(&place, "c.npz", 0..120, |digit| i64::from(digit > 4));
    let report = teach(&place, &easy, &["--tune", "best", "--epochs", "1"]).json();
    let ways = report["ways"].as_array().unwrap();
    assert_eq!((ways.len(), &ways[0]["contrast"], &ways[1]["contrast"]), (2, &false.into(), &true.into()));
    assert!(ways.iter().all(|way| way["value"]["value"].is_number()), "{ways:?}");
    let told = lessen(&[
        "teach",
        &example("digits.onnx"),
        "--data",
        &easy,
        "-o",
        &out,
        "--tune",
        "best",
        "--epochs",
        "1",
    ]);
    assert!(told.text().contains("the head alone"), "{}", told.out);
    for (more, word) in [
        (["--contrast", "--quiet"], "--contrast"),
        (["--add", "x"], "--add"),
        (["--faster", "2"], "--faster"),
    ] {
        teach(&place, &data, &[&["--tune", "best"][..], &more].concat()).fails(&[word]);
    }
    teach(&place, &data, &["--tune", "best", "--teacher", &example("digits.onnx")]).fails(&["teacher"]);
    let same = part(&place, "d.npz", 0..60, |_| 1);
    teach(&place, &same, &["--tune", "best"]).fails(&["class 1", "at least two"]);
    // By the fewest the best would be found by chance.
    let few = part(&place, "e.npz", 0..40, |digit| digit % 2);
    let report = teach(&place, &few, &["--tune", "best"]).json();
    assert!(
        report["ways"].as_array().unwrap().len() == 1
            && report["ways"][0]["taken"] == true
            && report["tuned"].is_null()
    );
}

#[test]
fn numbers_are_learnt_by_gradients_too() {
    let place = Place::new();
    let (images, labels) = pictures();
    let values = images.to_f32().unwrap();
    let file = |name: &str, rows: std::ops::Range<usize>| {
        let image = Tensor::new(&[rows.len(), 1, 8, 8], &values[rows.start * 64..rows.end * 64]).unwrap();
        let score: Vec<f32> = rows.map(|i| labels[i] as f32 / 9.0).collect();
        place.npz(name, &[("image", image), ("score", Tensor::new(&[score.len()], &score).unwrap())])
    };
    let (data, test) = (file("a.npz", 0..400), file("b.npz", 400..899));
    let (model, out) = (layers(&place), place.path("taught.onnx"));
    let args = ["teach", &model, "--data", &data, "--test", &test, "-o", &out, "--json"];
    let head = lessen(&args).json();
    let report =
        lessen(&[&args[..], &["--tune", "all", "--epochs", "12", "--rate", "0.005"]].concat()).json();
    let tuned = &report["tuned"];
    assert!(tuned["after"].as_f64().unwrap() < 0.8 * tuned["before"].as_f64().unwrap(), "{tuned}");
    let value = |report: &serde_json::Value| report["test"]["value"]["value"].as_f64().unwrap();
    assert!(value(&report) > value(&head) + 0.02, "{} {}", report["test"], head["test"]);
}

#[test]
fn an_adapter_is_written_and_added_to_the_model_it_was_trained_beside() {
    let place = Place::new();
    let data = part(&place, "a.npz", 0..400, |digit| digit % 2);
    let (adapter, model, out) = (place.path("adapter"), layers(&place), place.path("taught.onnx"));
    let teach = |model: &str, more: &[&str]| {
        lessen(&[&["teach", model, "--data", &data, "-o", &out, "--json"], more].concat())
    };
    let args =
        ["--tune", "lora=2", "--epochs", "4", "--rate", "0.01", "--adapter", &adapter, "--head", "ridge"];
    let report = teach(&model, &args).json();
    assert!(report["tuned"]["after"].as_f64() < report["tuned"]["before"].as_f64(), "{report}");
    let text = std::fs::read_to_string(place.path("adapter/adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&config["peft_type"], config["r"].as_u64()), (&"LORA".into(), Some(2)));
    // The weights of the old model with the adapter are those of the new one.
    let added = place.path("added.onnx");
    let told = lessen(&["convert", &model, &added, "--adapter", &adapter]);
    assert!(told.text().contains("1 of ") && !told.out.contains("are the same"), "{}", told.out);
    assert_eq!(config["target_modules"], serde_json::json!(["first", "second"]));
    let weights = |file: &str| {
        let model = lessen::Model::open(std::path::Path::new(file)).unwrap();
        let graph = &model.inner().graph;
        let all =
            ["first.weight", "second.weight"].map(|name| graph.constant(graph.find(name).unwrap()).unwrap());
        all.map(|tensor| tensor.to_f32().unwrap().into_owned()).concat()
    };
    let (new, old) = (weights(&out), weights(&model));
    assert_eq!(weights(&added), new);
    assert_ne!(new, old);
    // Taken away again, it is the old one, nearly.
    let back = place.path("back.onnx");
    lessen(&["convert", &added, &back, "--adapter", &format!("{adapter}=-1")]).text();
    assert!(weights(&back).iter().zip(&old).all(|(a, b)| (a - b).abs() < 1e-5));
    lessen(&["convert", &added, &back, "--adapter", &format!("{adapter}=much")]).fails(&["much"]);
    lessen(&["convert", &added, &back, "--adapter", &place.path("nowhere")]).fails(&["adapter_config.json"]);
    teach(&model, &["--adapter", &adapter]).fails(&["--tune lora"]);
    // A model of convolutions has no place for factors.
    teach(&example("digits.onnx"), &["--tune", "lora"]).fails(&["--tune all"]);
}

/// Pictures, flat, through two products with weights and a last one that is cut away.
fn layers(place: &Place) -> String {
    let mut graph = graph::Graph::new("layers");
    let shape = [1, 8, 8].map(graph::Dim::Is);
    let shape = [&[graph::Dim::named("n")], &shape[..]].concat();
    let image = graph.add_input("image", graph::Fact::tensor(graph::DType::F32, shape)).unwrap();
    let mut x = graph.append("flat", "Flatten", 13, &graph::Attrs::new(), &[image]).unwrap();
    for (name, rows, cols) in [("first", 64, 24), ("second", 24, 16), ("last", 16, 4)] {
        let scale = 1.0 / (rows as f32).sqrt();
        let values: Vec<f32> =
            (0..rows * cols).map(|i| scale * (((i * 37 + i * i) % 29) as f32 / 14.0 - 1.0)).collect();
        let weight =
            graph.add_constant(&format!("{name}.weight"), Tensor::new(&[rows, cols], &values).unwrap());
        x = graph.append(name, "MatMul", 13, &graph::Attrs::new(), &[x, weight]).unwrap();
        if name != "last" {
            x = graph.append(name, "Relu", 14, &graph::Attrs::new(), &[x]).unwrap();
        }
    }
    graph.outputs.push(x);
    let mut model = graph::Model { graph, ir_version: 8, ..graph::Model::default() };
    model.opsets.insert(String::new(), 17);
    let path = place.path("layers.onnx");
    format::save(&model, path.as_ref()).unwrap();
    path
}

/// Pictures of digits as a table of their 64 numbers, with more columns behind.
fn numbers(
    place: &Place,
    name: &str,
    rows: std::ops::Range<usize>,
    more: &[(&str, &dyn Fn(i64) -> String)],
) -> String {
    let (images, labels) = pictures();
    let values = images.to_f32().unwrap();
    let mut text: String = (0..64).map(|i| format!("p{i},")).collect();
    text += &more.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(",");
    for row in rows {
        text += "\n";
        text += &values[row * 64..][..64].iter().map(|v| format!("{v},")).collect::<String>();
        text += &more.iter().map(|(_, of)| of(labels[row])).collect::<Vec<_>>().join(",");
    }
    let path = place.path(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn numbers_are_their_own_features() {
    let place = Place::new();
    let digit: &[(&str, &dyn Fn(i64) -> String)] = &[("label", &|digit| format!("d{digit}"))];
    let (data, test) = (numbers(&place, "a.csv", 0..500, digit), numbers(&place, "b.csv", 500..899, digit));
    let out = place.path("digits.onnx");
    let report = lessen(&["teach", "--data", &data, "--test", &test, "-o", &out, "--json"]).json();
    assert_eq!(report["features"], 64);
    let value = |eval: &serde_json::Value| eval["value"]["value"].as_f64().unwrap();
    assert!(value(&report["test"]) > 90.0, "{}", report["test"]);
    let again = lessen(&["eval", &out, "--data", &test, "--json"]).json();
    assert_eq!(value(&again), value(&report["test"]));
    assert_eq!(again["classes"][3]["name"], "d3");
    // Arrays of numbers, too; texts need a model.
    let loops = part(&place, "c.npz", 0..200, has_loop);
    let report = lessen(&["teach", "--data", &loops, "-o", &out, "--json"]).json();
    assert!(value(&report["unseen"]) > 80.0, "{}", report["unseen"]);
    let texts = place.path("texts.csv");
    std::fs::write(&texts, "text,label\ngood,1\nbad,0\nfine,1\n").unwrap();
    lessen(&["teach", "--data", &texts, "-o", &out]).fails(&["without a model", "text", "name a model"]);
    // Sensors that send no numbers are named.
    let broken = std::fs::read_to_string(&data).unwrap().replacen("\n0,", "\nn/a,", 1);
    std::fs::write(place.path("broken.csv"), broken).unwrap();
    lessen(&["teach", "--data", &place.path("broken.csv"), "-o", &out]).fails(&["\"p0\"", "n/a", "line"]);
}

#[test]
fn an_example_can_have_several_labels() {
    let place = Place::new();
    let yes = |holds: bool| u8::from(holds).to_string();
    let labels: &[(&str, &dyn Fn(i64) -> String)] =
        &[("loop", &|d| yes(has_loop(d) == 1)), ("even", &|d| yes(d % 2 == 0)), ("great", &|d| yes(d > 4))];
    let (data, test) = (numbers(&place, "a.csv", 0..500, labels), numbers(&place, "b.csv", 500..899, labels));
    let out = place.path("labels.onnx");
    let columns = ["--label-columns", "loop,even,great"];
    let value = |eval: &serde_json::Value| eval["value"]["value"].as_f64().unwrap();
    for head in ["ridge", "logistic"] {
        let args = ["teach", "--data", &data, "--test", &test, "-o", &out, "--json", "--head", head];
        let report = lessen(&[&args[..], &columns].concat()).json();
        assert_eq!(report["test"]["metric"], "micro F1");
        assert!(value(&report["test"]) > 85.0, "{head}: {}", report["test"]);
        assert!((value(&report["test"]) - value(&report["unseen"])).abs() < 5.0, "{head}");
        let again = lessen(&[&["eval", &out, "--data", &test, "--json"][..], &columns].concat()).json();
        assert_eq!(value(&again), value(&report["test"]));
        let names: Vec<&str> =
            again["classes"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["loop", "even", "great"]);
    }
    let discriminant = ["teach", "--data", &data, "-o", &out, "--head", "discriminant"];
    lessen(&[&discriminant[..], &columns].concat()).fails(&["no method"]);
    // Labels in one column, and a smaller model whose receipt counts them.
    let listed: &[(&str, &dyn Fn(i64) -> String)] = &[("tags", &|d| {
        [("loop", has_loop(d) == 1), ("even", d % 2 == 0)]
            .iter()
            .filter(|t| t.1)
            .map(|t| t.0)
            .collect::<Vec<_>>()
            .join("; ")
    })];
    let (data, test) = (numbers(&place, "c.csv", 0..500, listed), numbers(&place, "d.csv", 500..899, listed));
    let tags = ["--labels-column", "tags"];
    lessen(&[&["teach", "--data", &data, "-o", &out, "--json"][..], &tags].concat()).json();
    let small = place.path("small.onnx");
    let receipt = lessen(
        &[&["shrink", &out, "--data", &test, "--lose", "3", "-o", &small, "--json"][..], &tags].concat(),
    );
    let receipt = receipt.json();
    assert_eq!(receipt["quality"]["metric"], "micro F1");
    assert_eq!(receipt["verification"]["classes"].as_array().unwrap().len(), 2);
    assert!(receipt["verification"]["flips"]["lost"].is_number(), "{}", receipt["verification"]["flips"]);
}

#[test]
fn several_labels_are_tuned_too() {
    let place = Place::new();
    let (images, _) = pictures();
    let values = &images.to_f32().unwrap()[..600 * 64];
    let image = Tensor::new(&[600, 1, 8, 8], values).unwrap();
    // Where the ink is, which the model was not made to tell.
    let inks = |image: &[f32]| {
        let ink = |of: &dyn Fn(usize) -> bool| (0..64).filter(|&i| of(i)).map(|i| image[i]).sum::<f32>();
        let of = [ink(&|i| i % 8 < 4) > ink(&|i| i % 8 >= 4), ink(&|i| i < 32) > ink(&|i| i >= 32)];
        of.map(i64::from)
    };
    let labels: Vec<i64> = values.chunks_exact(64).flat_map(inks).collect();
    let data = place.npz("a.npz", &[("image", image), ("y", Tensor::new(&[600, 2], &labels).unwrap())]);
    let more = ["--labels-column", "y", "--tune", "all", "--epochs", "8", "--rate", "0.003"];
    let tuned = &teach(&place, &data, &more).json()["tuned"];
    assert!(tuned["after"].as_f64().unwrap() < 0.9 * tuned["before"].as_f64().unwrap(), "{tuned}");
}

#[test]
fn few_examples_are_compared_with_each_other() {
    let place = Place::new();
    let (data, test) = (part(&place, "a.npz", 0..24, has_loop), part(&place, "b.npz", 100..899, has_loop));
    let value = |report: &serde_json::Value| report["test"]["value"]["value"].as_f64().unwrap();
    let plain = value(&teach(&place, &data, &["--test", &test]).json());
    let report = teach(&place, &data, &["--test", &test, "--contrast"]).json();
    let tuned = &report["tuned"];
    assert_eq!((&tuned["contrast"], &tuned["held_out"]), (&true.into(), &0.into()));
    assert!(tuned["after"].as_f64().unwrap() < 0.7 * tuned["before"].as_f64().unwrap(), "{tuned}");
    assert!(value(&report) > plain - 3.0, "{plain} {}", value(&report));
    // Of many, some are held out, and say how it went.
    let many = part(&place, "c.npz", 0..220, has_loop);
    let report = teach(&place, &many, &["--contrast", "--epochs", "2"]).json();
    assert_eq!(report["tuned"]["held_out"], 22);
    assert_eq!(report["held_out"]["examples"], 22);
    let (images, digits) = pictures();
    let score = Tensor::new(&[20], &digits[..20].iter().map(|d| *d as f32).collect::<Vec<_>>()).unwrap();
    let image = Tensor::new(&[20, 1, 8, 8], &images.to_f32().unwrap()[..20 * 64]).unwrap();
    let numbers = place.npz("d.npz", &[("image", image), ("score", score)]);
    teach(&place, &numbers, &["--contrast"]).fails(&["--contrast", "classes"]);
    teach(&place, &numbers, &["--balanced"]).fails(&["--balanced", "classes"]);
    for alone in [["--epochs", "2"], ["--rate", "0.1"]] {
        assert!(teach(&place, &data, &alone).err.contains("--tune"), "{alone:?}");
    }
}

#[test]
fn a_teacher_answers_in_the_place_of_labels() {
    let place = Place::new();
    let (model, teacher) = (example("digits.onnx"), place.path("teacher.onnx"));
    let labelled = part(&place, "a.npz", 0..300, has_loop);
    lessen(&["teach", &model, "--data", &labelled, "-o", &teacher, "--json"]).json();
    // Without labels, and with wrong ones, which are not looked at.
    let (images, _) = pictures();
    let image = Tensor::new(&[300, 1, 8, 8], &images.to_f32().unwrap()[300 * 64..600 * 64]).unwrap();
    let unlabelled = place.npz("b.npz", &[("image", image)]);
    let wrong = part(&place, "c.npz", 300..600, |_| 1);
    let test = part(&place, "d.npz", 600..899, has_loop);
    let value = |report: &serde_json::Value| report["test"]["value"]["value"].as_f64().unwrap();
    let more = ["--teacher", &teacher, "--test", &test];
    let one = teach(&place, &unlabelled, &more).json();
    let other = teach(&place, &wrong, &more).json();
    assert!(value(&one) > 90.0 && value(&one) == value(&other), "{} {}", value(&one), value(&other));
    assert!(one["data"].as_str().unwrap().contains("teacher"));
    let tuned = teach(&place, &unlabelled, &[&more[..], &["--tune", "all", "--epochs", "3"]].concat()).json();
    assert!(tuned["tuned"]["after"].as_f64().unwrap() < tuned["tuned"]["before"].as_f64().unwrap());
    assert!(value(&tuned) > 90.0);
    teach(&place, &unlabelled, &["--teacher", &place.path("none.onnx")]).fails(&["none.onnx"]);
    // A teacher of ten digits is shown but small ones.
    let (_, digits) = pictures();
    let small: Vec<usize> = (0..300).filter(|&i| digits[i] < 3).collect();
    let values = images.to_f32().unwrap();
    let some: Vec<f32> = small.iter().flat_map(|&i| &values[i * 64..][..64]).copied().collect();
    let few = place.npz("e.npz", &[("image", Tensor::new(&[small.len(), 1, 8, 8], &some).unwrap())]);
    let (ten, tens) = (part(&place, "f.npz", 0..300, |digit| digit), place.path("tens.onnx"));
    lessen(&["teach", &model, "--data", &ten, "-o", &tens, "--json"]).json();
    teach(&place, &few, &["--teacher", &tens, "--tune", "all"]).fails(&["teacher", "10 classes"]);
}

#[test]
fn one_model_learns_several_tasks_beside_each_other() {
    let place = Place::new();
    let even = |digit: i64| (digit + 1) % 2;
    let (loops, evens) = (part(&place, "a.npz", 0..300, has_loop), part(&place, "b.npz", 0..300, even));
    let (judge_loops, judge_evens) =
        (part(&place, "c.npz", 300..899, has_loop), part(&place, "d.npz", 300..899, even));
    let value = |eval: &serde_json::Value| eval["value"]["value"].as_f64().unwrap();
    let alone = value(&teach(&place, &loops, &["--test", &judge_loops]).json()["test"]);
    let (one, both) = (place.path("taught.onnx"), place.path("both.onnx"));
    let add = |more: &[&str]| {
        lessen(&[&["teach", &one, "--data", &evens, "--add", "even", "-o", &both, "--json"], more].concat())
    };
    let report = add(&["--test", &judge_evens]).json();
    let eval = |model: &str, data: &str, more: &[&str]| {
        value(&lessen(&[&["eval", model, "--data", data, "--json"], more].concat()).json())
    };
    assert_eq!(eval(&both, &judge_loops, &[]), alone, "the first task is as it was");
    assert_eq!(eval(&both, &judge_evens, &["--for", "even"]), value(&report["test"]));
    assert!(value(&report["test"]) > 80.0, "{}", report["test"]);
    let outputs = lessen(&["inspect", &both]);
    for name in ["\"logits\"", "\"probabilities\"", "\"even.logits\"", "\"even.probabilities\""] {
        assert!(outputs.text().contains(name), "{name}");
    }
    // The features are there once.
    let size = |path: &str| std::fs::metadata(path).unwrap().len();
    assert!(size(&both) < size(&one) + 2_000, "{} {}", size(&both), size(&one));
    let small = place.path("small.onnx");
    lessen(&[
        "shrink",
        &both,
        "--for",
        "even",
        "--data",
        &judge_evens,
        "--lose",
        "3",
        "-o",
        &small,
        "--json",
    ])
    .json();
    assert!(eval(&small, &judge_evens, &[]) > 80.0);

    lessen(&["eval", &both, "--data", &judge_evens, "--for", "odd"]).fails(&["\"odd\"", "even"]);
    lessen(&["teach", &both, "--data", &evens, "--add", "even", "-o", &one]).fails(&["\"even\" already"]);
    lessen(&["teach", &one, "--data", &evens, "--add", "a.b", "-o", &both]).fails(&["no name of a task"]);
    add(&["--tune", "all"]).fails(&["--add", "weights"]);
}

/// Pairs of which those with the same first word mean the same, whatever the second.
fn pairs() -> String {
    let texts = ["good film", "bad film", "good book", "bad book"];
    let score = |a: &str, b: &str| if a.split(' ').next() == b.split(' ').next() { 5 } else { 0 };
    let all = texts.iter().flat_map(|a| texts.map(|b| format!("{a},{b},{}\n", score(a, b))));
    let all: String = all.collect();
    format!("text_a,text_b,score\n{}", all.repeat(20))
}

#[test]
fn vectors_of_texts_learn_what_means_the_same() {
    let place = Place::new();
    let (out, vocabulary) = (place.path("new/taught.onnx"), place.path("words/vocab.txt"));
    let value = |eval: &serde_json::Value| eval["value"]["value"].as_f64().unwrap();
    let tune = ["--tune", "all", "--epochs", "20", "--rate", "0.05"];
    for (product, more) in [(false, &[][..]), (true, &tune)] {
        let (model, data) = encoder(&place, &pairs(), product, true);
        let report = teach_words(&place, &model, &data, &[&["--test", &data], more].concat()).json();
        assert_eq!(report["tuned"]["weights"], 9, "those of the map, or of the product");
        let (before, after) = (value(&report["before"]), value(&report["held_out"]));
        assert!(before < 0.7 && after > 0.85, "{before} -> {after}, {}", report["tuned"]);
        assert_eq!(report["leaked"], 320, "they are the same");
        let suits = ["suit", &model, "--data", &data, "--tokenizer", &vocabulary, "--json"];
        let suits = value(&lessen(&suits).json()["models"][0]);
        // The new model is judged by its vectors like any other, as it was told.
        let eval = lessen(&["eval", &out, "--data", &data, "--json"]).json();
        assert_eq!(eval["metric"], "Spearman correlation");
        assert!((value(&eval) - value(&report["test"])).abs() < 1e-6 && value(&eval) > suits);
        let said = lessen(&["inspect", &out]);
        assert!(said.text().contains("output \"sentence_embedding\": float[n, 3]"), "{}", said.text());
    }

    // What one model has learnt another learns without scores.
    let teacher = place.path("teacher.onnx");
    std::fs::rename(&out, &teacher).unwrap();
    place.file("vocab.txt", VOCABULARY);
    let (model, _) = words(&place, "");
    let unscored: Vec<String> = pairs().lines().map(|l| l.rsplit_once(',').unwrap().0.to_owned()).collect();
    let unscored = place.file("unscored.csv", unscored.join("\n").as_bytes());
    let report = teach_words(&place, &model, &unscored, &["--teacher", &teacher]).json();
    assert!(value(&report["held_out"]) > 0.85 && value(&report["before"]) < 0.7, "{report}");
}

#[test]
fn pairs_of_texts_can_go_in_together_and_what_vectors_cannot_learn_is_said() {
    let place = Place::new();
    let (model, data) = words(&place, &pairs());
    let report = teach_words(&place, &model, &data, &["--cross"]).json();
    assert!(report["before"].is_null() && !report["heads"].as_array().unwrap().is_empty());
    let said = lessen(&["inspect", &place.path("new/taught.onnx")]);
    assert!(said.text().contains("output \"score\""), "{}", said.text());
    for flags in [&["--balanced"][..], &["--contrast"], &["--add", "x"], &["--head", "ridge"]] {
        teach_words(&place, &model, &data, flags).fails(&[flags[0], "--cross"]);
    }
    let same = place.file("same.csv", pairs().replace(",0\n", ",5\n").as_bytes());
    teach_words(&place, &model, &same, &[]).fails(&["all 320 pairs have the score 5"]);
    // Texts of unequal length cannot be in one batch without a mask.
    let uneven = pairs().replace("bad film", "bad bad bad film");
    let (model, data) = encoder(&place, &uneven, true, false);
    teach_words(&place, &model, &data, &["--tune", "all"]).fails(&["one by one", "mask"]);
}

#[test]
fn what_teaching_took_is_told_in_carbon_where_the_machine_stands() {
    let place = Place::new();
    let data = part(&place, "a.npz", 0..60, has_loop);
    let payback = |more: &[&str]| teach(&place, &data, more).json()["payback"].clone();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    let france = payback(&["--country", "FRA", "--per-hour", "36"]);
    assert_eq!(france["place"]["country"], "FRA");
    let kwh = number(&france["spent"]["value"]) / 3.6e6;
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{france}");
    near(number(&france["cost"]["kwh"]), kwh);
    near(number(&france["cost"]["co2"]), kwh * number(&france["place"]["intensity"]) / 1e3);
    assert!(number(&france["cost"]["money"]) > 0.0);
    assert_eq!(payback(&[])["place"]["intensity"], 475.0);
    teach(&place, &data, &["--country", "Atlantis"]).fails(&["Atlantis", "DEU"]);
}
