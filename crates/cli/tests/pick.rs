//! `lessen pick` as a user calls it: tables of texts, images, and the example's digits.

mod here;

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use here::{Place, example, lessen};
use lessen::Tensor;
use lessen::data::npz;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::Row;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;

fn why<'a>(report: &'a Value, why: &str) -> Option<&'a Value> {
    report["dropped"].as_array().unwrap().iter().find(|dropped| dropped["why"] == why)
}

fn text(place: &Place, name: &str) -> String {
    std::fs::read_to_string(place.path(name)).unwrap()
}

const LONG: &str =
    "the quick brown fox jumps over the lazy dog and runs into the dark and quiet wood behind the old mill";

#[test]
fn rows_that_stay_are_as_they_were() {
    let place = Place::new();
    let near = LONG.replace("mill", "house");
    let table = format!(
        "id,text,label\r\n1,\"{LONG}, \"\"he\"\"\nsaid\",pos\r\n\r\n2,other words,neg\r\n3,OTHER  words,pos\r\n4,\"{near}, \
         \"\"he\"\" said\",pos\r\n5,last,neg"
    );
    let data = place.file("a.csv", table.as_bytes());
    let (out, gone) = (place.path("b.csv"), place.path("gone.csv"));
    let report = lessen(&["pick", &data, "-o", &out, "--dropped", &gone, "--json"]).json();
    assert_eq!((report["examples"].as_u64(), report["kept"].as_u64()), (Some(5), Some(3)));
    let dropped: String =
        table.split_inclusive("\r\n").filter(|line| !line.starts_with(['3', '4'])).collect();
    // The row that is nearly the same goes on after its quote.
    assert_eq!(text(&place, "b.csv"), dropped.replace(" \"\"he\"\" said\",pos\r\n5", "5"));
    let same = why(&report, "same").unwrap();
    assert_eq!((&same["count"], &same["examples"][0]["of"]), (&1.into(), &"line 5".into()));
    let near = &why(&report, "near").unwrap()["examples"][0];
    assert!(near["example"] == "line 7" && near["number"].as_f64().unwrap() > 0.7, "{near}");
    assert_eq!(report["contradictions"], 1);
    let gone = text(&place, "gone.csv");
    assert!(gone.starts_with("example,why,for,number\n2,same,1,\n3,near,0,0."), "{gone}");
    // Only what is the same goes, when that is asked for.
    let report = lessen(&["pick", &data, "-o", &out, "--near", "1", "--json"]).json();
    assert!(why(&report, "near").is_none() && report["kept"] == 4);
    // For people.
    let told = lessen(&["pick", &data, "-o", &out]);
    assert!(told.text().contains("3 of 5 examples stay") && told.text().contains("are nearly the same"));
}

#[test]
fn a_table_that_was_left_half_read_is_not_compared_anew() {
    let place = Place::new();
    // Four parts; every tenth row is there before, a word changed.
    let rows: String = (0..50_000)
        .map(|i| {
            let of = if i % 10 == 9 { i - 9 } else { i };
            let words: String = (0..15).map(|w| format!(" w{}", (of * 31 + w * w * 17) % 9973)).collect();
            format!("{i} {words}\n")
        })
        .collect();
    let (data, out, cache) = (place.file("a.txt", rows.as_bytes()), place.path("b.txt"), place.path("kept"));
    let plain = ["pick", &data, "-o", &out, "--json"];
    let args = [&plain[..], &["--cache", &cache]].concat();
    let dropped = |report: &Value| why(report, "near").unwrap()["count"].clone();
    let gone = dropped(&lessen(&plain).json());
    assert!(gone.as_u64().unwrap() > 4_000, "{gone}");
    let right = text(&place, "b.txt");
    std::fs::remove_file(&out).unwrap();

    let parts = || -> Vec<(std::path::PathBuf, std::time::SystemTime)> {
        let files = std::fs::read_dir(&cache).into_iter().flatten().flatten().map(|file| file.path());
        let unfinished = |path: &std::path::Path| path.to_string_lossy().contains("/.unfinished");
        let parts = files.filter(|path| path.extension().is_some_and(|e| e == "part") && !unfinished(path));
        let mut parts: Vec<_> =
            parts.filter_map(|path| Some((path.clone(), path.metadata().ok()?.modified().ok()?))).collect();
        parts.sort();
        parts
    };
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_lessen"))
        .args(&args)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while parts().is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = parts();
    assert!(!before.is_empty());
    assert_eq!(dropped(&lessen(&args).json()), gone);
    assert_eq!(text(&place, "b.txt"), right);
    let after = parts();
    assert!(after.len() == 4 && before.iter().all(|part| after.contains(part)), "{before:?} {after:?}");

    // Another similarity needs nothing else; other rows, and a part that is damaged, are made anew.
    lessen(&[&args[..], &["--near", "0.9"]].concat()).json();
    assert_eq!(parts(), after);
    std::fs::write(&after[1].0, b"damaged").unwrap();
    assert_eq!(dropped(&lessen(&args).json()), gone);
    let mended = parts();
    assert!(mended.len() == 4 && mended.iter().filter(|part| after.contains(part)).count() == 3);
    place.file("a.txt", rows.replacen("w", "v", 1).as_bytes());
    lessen(&args).json();
    assert_eq!(parts().len(), 5);
    let args = [&plain[..], &["--cache", &data]].concat();
    lessen(&args).fails(&["what rows are compared by cannot be kept", "a.txt", "another folder"]);
}

#[test]
fn packed_tables_json_and_lines_stay_what_they_are() {
    let place = Place::new();
    let json = "{\"text\": \"a b\", \"x\": [1]}\n{\"text\":\"A  b\",\"x\":[2]}\n\n{\"text\":\"c\",\"x\":[3]}";
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(json.as_bytes()).unwrap();
    let data = place.file("a.jsonl.gz", &packed.finish().unwrap());
    lessen(&["pick", &data, "-o", &place.path("b.jsonl.gz"), "--json"]).json();
    let mut found = String::new();
    let file = std::fs::File::open(place.path("b.jsonl.gz")).unwrap();
    MultiGzDecoder::new(file).read_to_string(&mut found).unwrap();
    assert_eq!(found, "{\"text\": \"a b\", \"x\": [1]}\n{\"text\":\"c\",\"x\":[3]}");

    let data = place.file("a.txt", "\u{feff}one\ntwo\n  \none\nthree\n".as_bytes());
    let report = lessen(&["pick", &data, "-o", &place.path("b.txt"), "--json"]).json();
    assert_eq!(report["kept"], 3);
    assert_eq!(text(&place, "b.txt"), "\u{feff}one\ntwo\n  \nthree\n");

    let data = place.file("a.tsv", b"text_a\ttext_b\tscore\n\"x\ty\t1\n\"x\tz\t2\n\"x\ty\t3\n");
    let report = lessen(&["pick", &data, "-o", &place.path("b.tsv"), "--json"]).json();
    assert_eq!(report["kept"], 2);
    assert_eq!(text(&place, "b.tsv"), "text_a\ttext_b\tscore\n\"x\ty\t1\n\"x\tz\t2\n");
}

#[test]
fn so_many_are_drawn_and_those_that_resemble_a_target() {
    let place = Place::new();
    let rows: String = (0..400)
        .map(|i| match i % 8 {
            0 => format!("the patient number {i} has a fever and a cough\n"),
            _ => format!("the film number {i} was a long and dull affair\n"),
        })
        .collect();
    let data = place.file("a.txt", rows.as_bytes());
    let target = place.file("t.txt", b"a patient with a cough\nfever, and the patient has a cough\n");
    let out = place.path("b.txt");
    let pick = |more: &[&str]| {
        let mut args = vec!["pick", &data, "-o", &out, "--near", "1", "--json"];
        args.extend(more);
        let report = lessen(&args).json();
        (report, text(&place, "b.txt"))
    };
    let (report, found) = pick(&["--keep", "10%"]);
    assert_eq!((report["kept"].as_u64(), &report["by"]), (Some(40), &"random".into()));
    assert_eq!(found, pick(&["--keep", "40", "--threads", "1"]).1, "the same for any number of threads");
    assert_ne!(found, pick(&["--keep", "40", "--seed", "2"]).1);
    let (report, found) = pick(&["--keep", "40", "--target", &target]);
    assert_eq!(report["by"], "target");
    assert!(found.lines().filter(|line| line.contains("patient")).count() >= 39, "{found}");
    // More than there are: all stay.
    assert_eq!(pick(&["--keep", "999"]).0["kept"], 400);

    let labelled: String = (0..100).map(|i| format!("text {i},{}\n", i32::from(i % 10 == 0))).collect();
    let data = place.file("c.csv", format!("text,label\n{labelled}").as_bytes());
    let out = place.path("d.csv");
    for more in [&[][..], &["--target", &target]] {
        let args = ["pick", &data, "-o", &out, "--keep", "16", "--balanced", "--json"];
        lessen(&[&args[..], more].concat()).json();
        assert_eq!(text(&place, "d.csv").lines().filter(|line| line.ends_with(",1")).count(), 8, "{more:?}");
    }
}

/// A file of two groups: numbers, texts, and lists of as many words as the number says.
fn parquet(place: &Place, name: &str, rows: [&[(i64, &str)]; 2]) -> String {
    let schema = "message m { required int64 id; optional binary text (STRING); \
                  optional group tags (LIST) { repeated group list { optional binary element (STRING); } } }";
    let schema = std::sync::Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(place.path(name)).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    for rows in rows {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let ids: Vec<i64> = rows.iter().map(|row| row.0).collect();
        column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts: Vec<ByteArray> = rows.iter().map(|row| row.1.into()).collect();
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&vec![1; texts.len()]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let repeated: Vec<i16> =
            ids.iter().flat_map(|&id| (0..id.max(1)).map(|i| i16::from(i > 0))).collect();
        let defined: Vec<i16> =
            ids.iter().flat_map(|&id| vec![if id > 0 { 3 } else { 1 }; id.max(1) as usize]).collect();
        let words = vec![ByteArray::from("w"); ids.iter().sum::<i64>() as usize];
        column.typed::<ByteArrayType>().write_batch(&words, Some(&defined), Some(&repeated)).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    place.path(name)
}

fn rows(path: &str) -> Vec<Row> {
    let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
    reader.get_row_iter(None).unwrap().map(|row| row.unwrap()).collect()
}

#[test]
fn parquet_stays_parquet_with_all_its_columns() {
    let place = Place::new();
    let near = LONG.replace("mill", "house");
    let data =
        parquet(&place, "a.parquet", [&[(0, "one"), (1, LONG), (2, "ONE")], &[(3, "two"), (4, &near)]]);
    let (out, gone) = (place.path("b.parquet"), place.path("gone.csv"));
    let report = lessen(&["pick", &data, "-o", &out, "--dropped", &gone, "--json"]).json();
    assert_eq!((report["examples"].as_u64(), report["kept"].as_u64()), (Some(5), Some(3)));
    let same = &why(&report, "same").unwrap()["examples"][0];
    assert_eq!((&same["example"], &same["of"]), (&"row 2".into(), &"row 0".into()));
    assert!(text(&place, "gone.csv").starts_with("example,why,for,number\n2,same,0,\n4,near,1,0."));
    let all = rows(&data);
    assert_eq!(rows(&out), [all[0].clone(), all[1].clone(), all[3].clone()]);

    let target = parquet(&place, "t.parquet", [&[(0, "two and two")], &[]]);
    let args = ["pick", &data, "-o", &out, "--keep", "1", "--target", &target, "--json"];
    assert_eq!(lessen(&args).json()["by"], "target");
    assert_eq!(rows(&out), [all[3].clone()]);

    let lines = place.file("a.csv", b"text\na\n");
    let before = place.names().len();
    lessen(&["pick", &data, "-o", &place.path("b.csv")]).fails(&["b.csv", "ends with .parquet"]);
    lessen(&["pick", &lines, "-o", &place.path("c.parquet")]).fails(&["c.parquet", "not written as Parquet"]);
    lessen(&["pick", &data, "--text-column", "tags", "-o", &place.path("c.parquet")])
        .fails(&["tags", "nested"]);
    let bytes = std::fs::read(&data).unwrap();
    let cut = place.file("cut.parquet", &bytes[..bytes.len() - 9]);
    lessen(&["pick", &cut, "-o", &place.path("c.parquet")]).fails(&["cut.parquet", "cut off"]);
    let mut holed = bytes;
    holed[4..60].fill(0xff);
    let holed = place.file("holed.parquet", &holed);
    lessen(&["pick", &holed, "-o", &place.path("c.parquet")]).fails(&["holed.parquet", "row group 0"]);
    assert_eq!(place.names().len(), before + 2, "nothing is left behind");
}

/// The example's digits, some of them labelled as the next one; which, and the pictures.
fn digits(place: &Place, wrong: usize) -> (String, Vec<usize>, Tensor) {
    let arrays = npz::read(example("test.npz").as_ref(), 1 << 24).unwrap();
    let find = |name: &str| arrays.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let mut labels = find("label").to_ints().unwrap();
    let planted: Vec<usize> = (0..wrong).map(|i| i * labels.len() / wrong).collect();
    planted.iter().for_each(|&row| labels[row] = (labels[row] + 1) % 10);
    let labels = Tensor::new(&[labels.len()], &labels).unwrap();
    let image = find("image");
    (place.npz("a.npz", &[("image", image.clone()), ("label", labels)]), planted, image)
}

#[test]
fn wrong_labels_are_found_and_what_stays_is_judged_on_examples_held_out() {
    let place = Place::new();
    let (data, planted, _) = digits(&place, 60);
    let (model, out, gone) = (example("digits.onnx"), place.path("b.npz"), place.path("gone.csv"));
    let args = ["pick", &data, "--model", &model, "--labels", "-o", &out, "--dropped", &gone, "--json"];
    let report = lessen(&args).json();
    let found: Vec<usize> = text(&place, "gone.csv")
        .lines()
        .filter(|line| line.contains(",label,"))
        .map(|line| line.split(',').next().unwrap().parse().unwrap())
        .collect();
    let right = found.iter().filter(|row| planted.contains(row)).count();
    assert!(right >= 54 && found.len() <= 80, "{right} of {}", found.len());
    assert_eq!(why(&report, "label").unwrap()["count"], found.len());
    // Labels are looked for where the model tells the classes best.
    let taps = report["taps"].as_array().unwrap();
    let taken: Vec<&Value> = taps.iter().filter(|tap| tap["taken"] == true).collect();
    assert!(taken.len() == 1 && report["nodes"] == taken[0]["nodes"], "{taps:?}");
    let told = lessen(&args[..args.len() - 1]);
    let share = 100.0 * taken[0]["share"].as_f64().unwrap();
    assert!(told.text().contains(&format!(", {share:.0} % of the model's work")), "{}", told.out);
    let kept = npz::read(out.as_ref(), 1 << 24).unwrap();
    assert!(kept.iter().all(|(_, t)| t.shape()[0] == report["kept"].as_u64().unwrap() as usize));
    let (before, after) = (lessen(&["eval", &model, "--data", &data, "--json"]).json(), {
        lessen(&["eval", &model, "--data", &out, "--json"]).json()
    });
    let value = |eval: &Value| eval["value"]["value"].as_f64().unwrap();
    assert!(value(&after) > value(&before) + 5.0, "{before} {after}");

    let report = lessen(&[&args[..], &["--keep", "30%"]].concat()).json();
    assert_eq!(report["kept"], (report["examples"].as_f64().unwrap() * 0.3).round() as u64);
    let tried = report["tried"].as_array().unwrap();
    let values: Vec<f64> = tried.iter().map(|t| t["value"]["value"].as_f64().unwrap()).collect();
    assert!(tried.len() == 10 && values.windows(2).all(|w| w[0] >= w[1]), "{values:?}");
    let high = report["random"]["value"]["high"].as_f64().unwrap();
    assert!(tried.iter().zip(&values).all(|(t, v)| t["beats_random"] == (*v > high)), "{report}");
    let best = if values[0] > high { tried[0]["by"].clone() } else { "random".into() };
    assert_eq!(report["by"], best);
}

#[test]
fn each_way_chooses_and_what_means_the_same_goes() {
    let place = Place::new();
    let (data, _, _) = digits(&place, 1);
    let (model, out) = (example("digits.onnx"), place.path("b.npz"));
    let mut seen = Vec::new();
    for by in [
        "k-center",
        "herding",
        "facility",
        "hard",
        "easy",
        "moderate",
        "forgotten",
        "margin",
        "sure",
        "unsure",
    ] {
        let args = ["pick", &data, "--model", &model, "--keep", "50", "--by", by, "-o", &out, "--json"];
        let report = lessen(&args).json();
        assert_eq!((report["kept"].as_u64(), &report["by"]), (Some(50), &by.into()));
        let coreset = ["k-center", "herding", "facility"].contains(&by);
        assert_eq!(report["taps"].as_array().unwrap().is_empty(), coreset, "{by}");
        seen.push(std::fs::read(&out).unwrap());
    }
    seen.sort();
    seen.dedup();
    assert!(seen.len() >= 9, "ways differ");
    let report = lessen(&["pick", &data, "--model", &model, "--alike", "0.97", "-o", &out, "--json"]).json();
    let twins = why(&report, "meaning").unwrap();
    assert!(twins["count"].as_u64().unwrap() > 10 && report["kept"].as_u64().unwrap() > 10, "{report}");
    assert!(twins["examples"][0]["number"].as_f64().unwrap() >= 0.97);
    assert!(report["taps"].as_array().unwrap().is_empty(), "the model's end tells what means the same");
}

#[test]
fn images_go_to_a_folder_of_classes_and_those_that_cannot_be_read_are_counted() {
    let place = Place::new();
    let png = |value: u8| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::GrayImage::from_pixel(4, 4, image::Luma([value]))
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        bytes.into_inner()
    };
    place.file("in/cat/1.png", &png(1));
    place.file("in/cat/2.png", &png(2));
    place.file("in/dog/1.png", &png(1));
    place.file("in/dog/3.png", &png(3)[..20]);
    place.file("in/dog/4.png", &png(4));
    let (data, out) = (place.path("in"), place.path("out"));
    let report = lessen(&["pick", &data, "-o", &out, "--json"]).json();
    assert_eq!(report["kept"], 3);
    assert_eq!(report["contradictions"], 1);
    assert_eq!(why(&report, "unreadable").unwrap()["examples"][0]["example"], "example 3");
    assert_eq!(std::fs::read(place.path("out/cat/0000000-1.png")).unwrap(), png(1));
    assert_eq!(std::fs::read(place.path("out/dog/0000004-4.png")).unwrap(), png(4));
    // Of those that all cannot be read no labels are looked for.
    place.file("bad/cat/1.png", b"no picture");
    place.file("bad/dog/1.png", &png(1)[..20]);
    let (bad, none, model) = (place.path("bad"), place.path("none"), example("digits.onnx"));
    for more in [&[][..], &["--model", &model, "--labels"]] {
        lessen(&[&["pick", &bad, "-o", &none], more].concat()).fails(&["no example of", "can be read"]);
    }
    // Two classes never become one, whatever they are called.
    place.file("odd/a:b/1.png", &png(1));
    place.file("odd/a_b/2.png", &png(2));
    lessen(&["pick", &place.path("odd"), "-o", &place.path("plain"), "--json"]).json();
    let mut names: Vec<String> = std::fs::read_dir(place.path("plain"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["a_b", "a_b_"]);
    // What is there is left alone.
    lessen(&["pick", &data, "-o", &out]).fails(&["is there already"]);
    assert_eq!(place.names().len(), 5, "nothing else is left behind");
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let place = Place::new();
    let data = place.file("a.txt", b"one\ntwo\n");
    let out = place.path("b.txt");
    let fails = |args: &[&str], said: &[&str]| {
        let args = [&["pick", &data, "-o", &out], args].concat();
        lessen(&args).fails(said);
        assert!(!std::path::Path::new(&out).exists());
    };
    fails(&["--keep", "0"], &["30%"]);
    fails(&["--keep", "130%"], &["30%"]);
    fails(&["--keep", "1", "--by", "best"], &["facility"]);
    fails(&["--keep", "1", "--by", "hard"], &["--model"]);
    fails(&["--keep", "1", "--by", "target"], &["--target"]);
    fails(&["--by", "random"], &["--keep"]);
    // Without classes there are no labels that could be wrong, and nothing is hard.
    let (plain, model) = (place.npz("plain.npz", &[("image", digits(&place, 1).2)]), example("digits.onnx"));
    for more in [&["--labels"][..], &["--keep", "9", "--by", "hard"], &["--keep", "9", "--by", "sure"]] {
        let args = [&["pick", &plain, "--model", &model, "-o", &out], more].concat();
        lessen(&args).fails(&["two classes or more"]);
    }
    fails(&["--near", "1.5"], &["--near 1.5"]);
    fails(&["--words", "0"], &["at least one word"]);
    fails(&["--keep", "1", "--target", &place.file("t.txt", b"\n")], &["no texts to resemble"]);
    lessen(&["pick", &place.file("e.txt", b"\n\n"), "-o", &out]).fails(&["no examples"]);
    lessen(&["pick", &place.file("l.csv", b"text,label\na,1\nb\n"), "-o", &out]).fails(&["line 3"]);
    lessen(&["pick", &place.file("u.txt", b"fine\n\xff\n"), "-o", &out]).fails(&["line 2", "UTF-8"]);
    lessen(&["pick", &place.path("nowhere.csv"), "-o", &out]).fails(&["nowhere.csv"]);
    lessen(&["pick", &data, "-o", &place.path("no/b.txt")]).fails(&["no/b.txt"]);
    let (digits, _, _) = digits(&place, 1);
    lessen(&["pick", &digits, "-o", &out]).fails(&[".npz"]);
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn sets_of_labels_stay_with_their_pictures() {
    let place = Place::new();
    let image = Tensor::new(&[3, 1, 2, 1], &[0f32, 1.0, 0.0, 1.0, 9.0, 8.0]).unwrap();
    let labels = Tensor::new(&[3, 2], &[1i64, 0, 1, 0, 0, 1]).unwrap();
    let data = place.npz("sets.npz", &[("image", image), ("tags", labels)]);
    let out = place.path("out.npz");
    lessen(&["pick", &data, "--labels-column", "tags", "-o", &out, "--json"]).json();
    let kept = npz::read(out.as_ref(), 1 << 20).unwrap();
    let labels = &kept.iter().find(|(name, _)| name == "labels").unwrap().1;
    assert_eq!((labels.shape(), labels.to_ints().unwrap()), (&[2, 2][..], vec![1, 0, 0, 1]));
}

/// Two kinds of cells, told apart by their second number; the first is on another scale and says nothing. Every tenth is
/// called the wrong kind.
fn cells(place: &Place) -> String {
    let mut table = String::from("size,shade,kind\n");
    for i in 0..200usize {
        let kind = i % 2;
        let shade = kind as f64 + ((i * 37) % 100) as f64 / 250.0;
        let called = if i % 10 == 0 { 1 - kind } else { kind };
        table += &format!("{}.0,{shade},{}\n", 1000 + (i * 7919) % 500, ["round", "long"][called]);
    }
    place.file("cells.csv", table.as_bytes())
}

#[test]
fn numbers_are_their_own_features() {
    let place = Place::new();
    let (data, out) = (cells(&place), place.path("fewer.csv"));
    let pick = |data: &str, more: &[&str]| {
        let args = [&["pick", data, "-o", &out, "--label-column", "kind"], more].concat();
        (lessen(&[&args[..], &["--json"]].concat()).json(), std::fs::read_to_string(&out).unwrap())
    };
    let lines = std::fs::read_to_string(&data).unwrap();
    let (report, kept) = pick(&data, &[]);
    assert!(report["data"].as_str().unwrap().contains("200 rows of numbers (CSV)"), "{report}");
    assert_eq!(kept, lines, "rows with a number in common are not nearly the same");
    // The same numbers, written in another way.
    let twice = place.file("twice.csv", (lines.clone() + "1000,0.0,round\n 1000.00,0,long\n").as_bytes());
    let (report, kept) = pick(&twice, &[]);
    assert_eq!(why(&report, "same").unwrap()["count"], 2);
    assert_eq!((kept, report["contradictions"].as_u64()), (lines.clone(), Some(1)));
    let (report, kept) = pick(&data, &["--labels"]);
    let wrong = why(&report, "label").unwrap()["count"].as_u64().unwrap();
    assert!((12..=20).contains(&wrong), "{report}");
    let right = lines.lines().skip(1).enumerate().filter(|(i, _)| i % 10 > 0);
    assert!(right.map(|(_, line)| line).all(|line| kept.contains(line)), "no right one goes");
    for more in [&["--by", "k-center"][..], &["--by", "hard"], &[]] {
        let (report, kept) = pick(&data, &[&["--keep", "40"], more].concat());
        assert_eq!((report["kept"].as_u64(), kept.lines().count()), (Some(40), 41));
        assert!(kept.lines().all(|line| lines.contains(line)), "rows are as they were");
        assert_eq!(report["tried"].as_array().unwrap().is_empty(), !more.is_empty());
    }
    let target = place.file("t.txt", b"1000 0\n");
    let args = ["pick", &data, "-o", &out, "--label-column", "kind", "--keep", "9", "--target", &target];
    lessen(&args).fails(&["only texts"]);
}
