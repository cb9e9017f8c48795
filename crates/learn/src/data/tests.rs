use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn root(&self) -> &Path {
        self.0.path()
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn png(width: u32, height: u32, value: u8) -> Vec<u8> {
    let image = ::image::RgbImage::from_fn(width, height, |x, y| ::image::Rgb([value, x as u8, y as u8]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn usual(path: &Path) -> Result<Box<dyn Dataset>> {
    open(path, &Options::default())
}

fn failure(path: &Path) -> String {
    usual(path).err().expect("an error").to_string()
}

fn texts(data: &dyn Dataset) -> Vec<(String, Target)> {
    let text = |i| {
        let example = data.get(i).unwrap();
        match example.input {
            Input::Text(text) => (text, example.target),
            Input::Pair(a, b) => (format!("{a}|{b}"), example.target),
            other => panic!("{other:?}"),
        }
    };
    (0..data.len()).map(text).collect()
}

fn text(text: &str, target: Target) -> (String, Target) {
    (text.into(), target)
}

#[test]
fn folder_of_classes() {
    let place = Place::new();
    place.put("dog/b.PNG", png(2, 3, 9));
    place.put("cat/a.png", png(1, 1, 7));
    place.put("cat/broken.jpg", b"\xff\xd8\xff\xe0 not a picture");
    place.put("cat/text.png", b"hello");
    place.put("cat/notes.txt", b"x");
    place.put(".hidden/a.png", png(1, 1, 7));
    let data = usual(place.root()).unwrap();
    assert_eq!(data.len(), 4);
    assert_eq!(data.classes().unwrap(), ["cat", "dog"]);
    let example = data.get(3).unwrap();
    assert_eq!((example.id.as_str(), example.target), ("dog/b.PNG", Target::Class(1)));
    let Input::Image(image) = example.input else { panic!() };
    assert_eq!((image.width(), image.height(), image.to_rgb8().get_pixel(1, 2).0), (2, 3, [9, 1, 2]));
    assert!(data.get(1).unwrap_err().to_string().contains("broken.jpg"));
    let check = data.check(1);
    assert_eq!((check.examples, check.unreadable, check.messages.len()), (4, 2, 1));
    assert!(data.check(9).messages[1].contains("text.png: is not an image"));
    assert!(data.get(4).is_err());
    assert!(data.describe().contains("4 images, 2 classes"));

    let classes = Some(vec!["dog".to_string(), "bird".into(), "cat".into()]);
    let data = open(place.root(), &Options { classes, ..Options::default() }).unwrap();
    assert_eq!([data.target(0), data.target(3)], [Target::Class(2), Target::Class(0)]);
    let classes = Some(vec!["dog".to_string()]);
    assert!(open(place.root(), &Options { classes, ..Options::default() }).is_err());

    fs::create_dir(place.root().join("logs")).unwrap();
    assert!(failure(place.root()).contains("logs: holds no images"));
    place.put("loose.png", png(1, 1, 1));
    assert!(failure(place.root()).contains("both itself and in sub-folders"));
}

#[test]
fn flat_folder_and_single_image() {
    let place = Place::new();
    assert!(failure(place.root()).contains("holds no images"));
    let path = place.put("b.png", png(1, 1, 1));
    place.put("a.png", png(1, 1, 1));
    let data = usual(place.root()).unwrap();
    assert_eq!((data.len(), data.target(0), data.get(0).unwrap().id), (2, Target::None, "a.png".into()));
    assert!(data.classes().is_none());
    assert_eq!(usual(&path).unwrap().get(0).unwrap().id, "b.png");
}

#[test]
fn absurd_image_sizes_are_refused() {
    let mut bomb = png(1, 1, 0);
    bomb[16..24].copy_from_slice(&[0, 0, 0x7f, 0xff, 0, 0, 0x7f, 0xff]);
    assert!(decode(&bomb).is_err());
    let whole = png(20, 20, 3);
    assert!(decode(&whole[..whole.len() / 2]).is_err());
}

#[test]
fn arrays_with_labels() {
    let place = Place::new();
    let path = place.root().join("a.npz");
    let image = Tensor::new(&[3, 2], &[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let put = |name: &str, values: Tensor| {
        npz::write(&path, &[("image".into(), image.clone()), (name.into(), values)]).unwrap();
        usual(&path)
    };
    let data = put("label", Tensor::vector(&[0i32, 2, 1])).unwrap();
    let example = data.get(1).unwrap();
    assert_eq!((example.id.as_str(), example.target), ("row 1", Target::Class(2)));
    let Input::Arrays(arrays) = example.input else { panic!() };
    assert_eq!(arrays, [("image".to_string(), Tensor::new(&[1, 2], &[3f32, 4.0]).unwrap())]);
    assert!(data.describe().contains("3 examples, image float[3, 2], classes 0 to 2"));

    assert_eq!(put("score", Tensor::vector(&[0f64, 0.1, 1.0])).unwrap().target(1), Target::Score(0.1));
    assert_eq!(put("mask", Tensor::vector(&[0u8, 1, 1])).unwrap().target(1), Target::None);
    let why = |name, values| put(name, values).err().unwrap().to_string();
    assert!(why("label", Tensor::vector(&[0i32, 2])).contains("does not hold 3 examples"));
    assert!(why("label", Tensor::vector(&[0i32, -2, 0])).contains("row 1: label -2"));
    assert!(why("label", Tensor::vector(&[0f32, 1.0, 0.5])).contains("integers"));
    assert!(why("score", Tensor::vector(&[0f32, f32::NAN, 0.5])).contains("row 1: score NaN"));
    assert!(why("bias", Tensor::scalar(1f32)).contains("does not hold 3 examples"));
    npz::write(&path, &[("label".into(), Tensor::vector(&[1i64]))]).unwrap();
    assert!(failure(&path).contains("no array beside"));
    let options = Options { label: Some("y".into()), ..Options::default() };
    assert!(open(&path, &options).err().unwrap().to_string().contains("no array \"y\", only label"));
}

#[test]
fn the_digits_that_numpy_wrote() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits/test.npz");
    let data = usual(&path).unwrap();
    assert_eq!(data.len(), 899);
    let Input::Arrays(arrays) = data.get(898).unwrap().input else { panic!() };
    assert_eq!((arrays[0].0.as_str(), arrays[0].1.shape()), ("image", &[1, 1, 8, 8][..]));
    let ink: f32 = arrays[0].1.as_slice::<f32>().unwrap().iter().sum();
    assert!((17.9375 - ink).abs() < 1e-4, "{ink}");
    assert_eq!(data.target(898), Target::Class(0));
}

#[test]
fn one_array() {
    let place = Place::new();
    let path = place.root().join("a.npy");
    npy::write(&path, &Tensor::zeros(graph::DType::U8, &[2, 0]).unwrap()).unwrap();
    assert_eq!(usual(&path).unwrap().len(), 2);
    npy::write(&path, &Tensor::zeros(graph::DType::U8, &[0, 2]).unwrap()).unwrap();
    assert!(failure(&path).contains("no examples"));
    npy::write(&path, &Tensor::scalar(1u8)).unwrap();
    assert!(failure(&path).contains("single number"));
    place.put("a.npy", b"PK\x03\x04 no archive");
    assert!(usual(&path).is_err());
}

#[test]
fn batches() {
    let (a, b) = (Tensor::new(&[1, 2], &[1i64, 2]).unwrap(), Tensor::new(&[2, 2], &[3i64, 4, 5, 6]).unwrap());
    assert_eq!(concat(&[&a, &b]).unwrap(), Tensor::new(&[3, 2], &[1i64, 2, 3, 4, 5, 6]).unwrap());
    assert!(concat(&[]).is_err());
    assert!(concat(&[&a, &Tensor::vector(&[1i64])]).is_err());
    assert!(concat(&[&a, &Tensor::new(&[1, 2], &[1f32, 2.0]).unwrap()]).is_err());
    assert!(concat(&[&Tensor::scalar(1f32)]).is_err());
}

#[test]
fn tables_with_header() {
    let place = Place::new();
    let csv = "\u{feff},count,Class,tweet\n0,3,2,\"a, \"\"b\"\"\nc\"\n1,3,0,d\n";
    for bytes in [csv.as_bytes().to_vec(), gzip(csv.as_bytes())] {
        let data = usual(&place.put("a.csv", bytes)).unwrap();
        assert_eq!(texts(&*data), [text("a, \"b\"\nc", Target::Class(2)), text("d", Target::Class(0))]);
        assert_eq!(data.get(1).unwrap().id, "line 4");
        assert!(data.classes().is_none());
    }
    let data = usual(&place.put("b.csv", "sentence1,sentence2,score\na,b,5\nc,d,0\n")).unwrap();
    assert_eq!(texts(&*data), [text("a|b", Target::Score(5.0)), text("c|d", Target::Score(0.0))]);
    assert!(data.describe().contains("2 pairs of texts, with scores"));
    let data = usual(&place.put("c.tsv", "text\tlabel\nsay \"hi\tpos\nb\tneg\n\"\tpos\n")).unwrap();
    assert_eq!(data.classes().unwrap(), ["neg", "pos"]);
    assert_eq!(texts(&*data)[0], text("say \"hi", Target::Class(1)));
    assert_eq!(texts(&*data)[2], text("\"", Target::Class(1)));

    let path = place.put("d.csv", "id,said,kind\n1,x,b\n2,y,a\n");
    assert!(failure(&path).contains("3 columns without known names"));
    assert!(failure(&place.put("e.csv", "said,kind\nx,b\ny,a\nz,b\n")).contains("two columns without known"));
    let options = Options { text: Some("said".into()), label: Some("kind".into()), ..Options::default() };
    assert_eq!(
        texts(&*open(&path, &options).unwrap()),
        [text("x", Target::Class(1)), text("y", Target::Class(0))]
    );
    let options = Options { classes: Some(vec!["b".into(), "a".into()]), ..options };
    assert_eq!(open(&path, &options).unwrap().target(0), Target::Class(0));
    let options = Options { label: Some("mood".into()), ..options };
    assert!(
        open(&path, &options).err().unwrap().to_string().contains("no column \"mood\" among id, said, kind")
    );
}

#[test]
fn tables_without_header() {
    let place = Place::new();
    let data = usual(&place.put("a.csv", "A man.,\"A man, here.\",5.0\nB,C,0.364\n")).unwrap();
    assert_eq!(
        texts(&*data),
        [text("A man.|A man, here.", Target::Score(5.0)), text("B|C", Target::Score(0.364))]
    );
    let data = usual(&place.put("b.tsv", "good\t1\nbad\t0\n\nfine\t1\n")).unwrap();
    assert_eq!(texts(&*data)[2], text("fine", Target::Class(1)));
    assert_eq!(data.get(2).unwrap().id, "line 4");
    let data = usual(&place.put("c.tsv", "1\tgood\n0\tbad\n")).unwrap();
    assert_eq!(texts(&*data)[0], text("good", Target::Class(1)));
    let data = usual(&place.put("d.txt", "one, two\n\nthree\r\n")).unwrap();
    assert_eq!(texts(&*data), [text("one, two", Target::None), text("three", Target::None)]);
    let pairs: String = (0..50).map(|i| format!("question {i}\tanswer {i}\n")).collect();
    assert!(failure(&place.put("e.tsv", pairs)).contains("header row"));
    assert!(failure(&place.put("f.csv", "a,b,c,d\n")).contains("4 columns"));
}

#[test]
fn texts_that_start_like_other_files() {
    let place = Place::new();
    for start in ["BMW drives well", "PK is a code", "GIF"] {
        let data = usual(&place.put("a.tsv", format!("{start}\t1\nb\t0\n"))).unwrap();
        assert_eq!(texts(&*data)[0], text(start, Target::Class(1)));
    }
    let mut bmp = std::io::Cursor::new(Vec::new());
    ::image::RgbImage::new(2, 2).write_to(&mut bmp, ::image::ImageFormat::Bmp).unwrap();
    let data = usual(&place.put("picture", bmp.into_inner())).unwrap();
    assert!(matches!(data.get(0).unwrap().input, Input::Image(_)));
}

#[test]
fn json_lines() {
    let place = Place::new();
    let lines = "{\"premise\":\"a\",\"hypothesis\":\"b\",\"label\":1}\n\n{\"label\":0,\"hypothesis\":\"d\",\"premise\":\"c\",\"x\":[]}\n";
    let data = usual(&place.put("a.jsonl.gz", gzip(lines.as_bytes()))).unwrap();
    assert_eq!(texts(&*data), [text("a|b", Target::Class(1)), text("c|d", Target::Class(0))]);
    assert_eq!(data.get(1).unwrap().id, "line 3");
    let bad = |text: &str| failure(&place.put("b.jsonl", text));
    assert!(bad("{\"text\":\"a\"}\n{\"text\":").contains("line 2: is not a JSON object"));
    assert!(bad("{\"text\":\"a\"}\n{}").contains("line 2: lacks \"text\""));
    assert!(bad("{\"text\":null}").contains("neither"));
    assert!(bad("{\"body\":\"a\"}").contains("none of the columns body"));
    assert!(bad("[{\"text\":\"a\"}]").contains("one JSON object a line"));
    assert!(bad(&format!("{{\"text\":{}", "[".repeat(100_000))).contains("line 1"));
}

#[test]
fn bad_tables() {
    let place = Place::new();
    let bad = |bytes: &[u8]| failure(&place.put("a.csv", bytes));
    assert!(bad(b"").contains("no examples"));
    assert!(bad(b"text,label\n").contains("no examples"));
    assert!(bad(b"text,label\na,1\nb\n").contains("line 3: has 1 fields, the first row has 2"));
    assert!(bad(b"text,label\na,1\nb,1,2\n").contains("line 3: has 3 fields"));
    assert!(bad(b"text,label\na,1\n\xff\xfe,0\n").contains("line 3: is not UTF-8"));
    assert!(bad(b"text,score\na,1\nb,NaN\n").contains("line 3: score \"NaN\""));
    assert!(bad(b"text,score\na,1\nb,inf\n").contains("line 3: score \"inf\""));
    assert!(bad(b"text,label\na,0.5\nb,NaN\n").contains("line 3: score \"NaN\""));
    assert!(bad(b"text,score\na,high\n").contains("line 2: score \"high\""));
    assert!(bad(b"text,label\na,1\nb,\n").contains("line 3: the label or score is empty"));
    assert!(bad(b"text,label\na,1\nb,-1\n").contains("line 3: label -1"));
    let options = Options { classes: Some(vec!["x".into()]), ..Options::default() };
    let path = place.put("b.csv", "text,label\na,0\nb,1\n");
    assert!(open(&path, &options).err().unwrap().to_string().contains("line 3: label 1: only 1 classes"));
    assert!(usual(&place.root().join("none.csv")).is_err());
}

#[test]
fn damaged_gzip_and_bombs() {
    let place = Place::new();
    let packed = gzip("text,label\na,1\n".repeat(1000).as_bytes());
    assert!(usual(&place.put("a.csv.gz", &packed[..packed.len() / 2])).is_err());
    let path = place.put("b.csv.gz", gzip(&vec![b'a'; 20 << 20]));
    let options = Options { limit: 1 << 20, ..Options::default() };
    assert!(open(&path, &options).err().unwrap().to_string().contains("limit of 1048576 bytes"));
    let two = [gzip(b"text,label\na,1\n"), gzip(b"b,0\n")].concat();
    assert_eq!(usual(&place.put("c.csv.gz", two)).unwrap().len(), 2);
}

fn idx(code: u8, sizes: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, code, sizes.len() as u8];
    bytes.extend(sizes.iter().flat_map(|s| s.to_be_bytes()));
    bytes.extend(elements);
    bytes
}

#[test]
fn idx_files() {
    let place = Place::new();
    let images = place.put("t-images-idx3-ubyte.gz", gzip(&idx(8, &[2, 1, 2], &[1, 2, 3, 4])));
    assert_eq!(usual(&images).unwrap().target(0), Target::None);
    let labels = place.put("t-labels-idx1-ubyte", idx(8, &[2], &[9, 3]));
    for path in [&images, place.root()] {
        let data = usual(path).unwrap();
        let example = data.get(1).unwrap();
        assert_eq!(example.target, Target::Class(3));
        let Input::Image(image) = example.input else { panic!() };
        assert_eq!((image.width(), image.height(), image.as_bytes()), (2, 1, &[3u8, 4][..]));
        assert!(data.describe().contains("2 gray images 2x1, classes 0 to 9"));
    }
    place.put("t-labels-idx1-ubyte", idx(8, &[3], &[9, 3, 1]));
    assert!(failure(&images).contains("one label for each of 2"));
    fs::remove_file(labels).unwrap();
    let other = place.put("other", idx(8, &[2], &[1, 0]));
    let options = Options { labels: Some(other), ..Options::default() };
    assert_eq!(open(&images, &options).unwrap().target(0), Target::Class(1));

    let floats = place.put("f.idx", idx(0x0d, &[1, 2], &[0x3f, 0x80, 0, 0, 0x40, 0, 0, 0]));
    let Input::Arrays(arrays) = usual(&floats).unwrap().get(0).unwrap().input else { panic!() };
    assert_eq!(arrays, [("input".to_string(), Tensor::new(&[1, 2], &[1f32, 2.0]).unwrap())]);
    let bad = |bytes: Vec<u8>| failure(&place.put("bad", bytes));
    assert!(bad(idx(8, &[2, 2, 2], &[0; 7])).contains("7 bytes"));
    assert!(bad(idx(8, &[u32::MAX, u32::MAX, u32::MAX], &[0; 7])).contains("too big"));
    assert!(bad(vec![0, 0, 8, 3, 0, 0]).contains("header"));
    assert!(bad(idx(8, &[0, 2, 2], &[])).contains("at least one"));
    place.put("u-images-idx3-ubyte", b"x");
    assert!(failure(place.root()).contains("several IDX files"));
}

#[test]
fn packed_rows() {
    let place = Place::new();
    place.put("test_0.png", png(4, 2, 1));
    place.put("test_10.png", png(4, 1, 3));
    place.put("test_2.png", png(4, 1, 2));
    place.put("labels.u8", [0, 1, 2, 3]);
    let data = usual(place.root()).unwrap();
    let example = data.get(1).unwrap();
    assert_eq!((example.id.as_str(), example.target), ("test_0.png row 1", Target::Class(1)));
    let Input::Image(image) = example.input else { panic!() };
    assert_eq!(image.as_bytes(), [1, 0, 1, 1, 1, 1, 1, 2, 1, 1, 3, 1]);
    assert_eq!(data.get(3).unwrap().id, "test_10.png row 0");
    let options = Options { limit: 40, ..Options::default() };
    assert!(open(place.root(), &options).is_err());
    place.put("labels.u8", [0, 1]);
    assert!(failure(place.root()).contains("2 labels for 4 images"));
    place.put("test_3.png", png(5, 1, 2));
    assert!(failure(place.root()).contains("5 pixels wide"));
}

/// Reads the public data sets named by the variable, if any: a folder that holds `sst2`, `stsb` and the like.
#[test]
fn public_data_sets() {
    let Some(root) = std::env::var_os("LESSEN_DATA").map(PathBuf::from) else {
        eprintln!("skipped: LESSEN_DATA does not name a folder of public data sets");
        return;
    };
    for (name, len) in [
        ("sst2/dev.tsv", 872),
        ("sst2/train.tsv.gz", 6920),
        ("stsb/stsb-en-test.csv.gz", 1379),
        ("stsb/stsb-en-train.csv.gz", 5749),
        ("hate-speech/labeled_data.csv.gz", 24783),
        ("lambada/lambada_test.jsonl.gz", 5153),
        ("cifar10-test", 10000),
        ("mnist", 10000),
    ] {
        let data = usual(&root.join(name)).unwrap();
        eprintln!("{}", data.describe());
        assert_eq!(data.len(), len, "{name}");
        assert_eq!(data.check(9).messages, Vec::<String>::new());
    }
}

fn rows_of_numbers(data: &dyn Dataset) -> Vec<(Vec<f32>, Target)> {
    let row = |i| match data.get(i).unwrap() {
        Example { input: Input::Arrays(arrays), target, .. } => {
            (arrays[0].1.values::<f32>().unwrap().into_owned(), target)
        }
        other => panic!("{other:?}"),
    };
    (0..data.len()).map(row).collect()
}

#[test]
fn tables_of_numbers() {
    let place = Place::new();
    let csv = place.put("cells.csv", "radius, smooth ,label\n1.5,-2,benign\n 3 ,4e-1,malignant\n");
    let data = usual(&csv).unwrap();
    assert_eq!(
        rows_of_numbers(data.as_ref()),
        [(vec![1.5, -2.0], Target::Class(0)), (vec![3.0, 0.4], Target::Class(1))]
    );
    assert!(data.describe().contains("2 rows of 2 numbers, 2 classes"), "{}", data.describe());
    let json = place
        .put("cells.jsonl", "{\"score\": 2, \"a\": 1, \"b\": 0.5}\n{\"b\": 3, \"a\": 2, \"score\": 1}\n");
    assert_eq!(
        rows_of_numbers(usual(&json).unwrap().as_ref()),
        [(vec![1.0, 0.5], Target::Score(2.0)), (vec![2.0, 3.0], Target::Score(1.0))]
    );
    for (rows, what) in [
        ("a,b,label\n1,n/a,0\n", &["line 2", "\"b\"", "n/a"][..]),
        ("a,b,label\n1,2,0\n1,,0\n", &["line 3", "\"b\"", "empty"]),
        ("a,b,label\n1,inf,0\n", &["line 2", "inf"]),
        ("a,a,label\n1,2,0\n", &["two columns", "\"a\""]),
        ("a,body,label\n1,good film,0\n", &["\"body\"", "name it"]),
        ("label\n1\n", &["known to be the text"]),
    ] {
        let error = failure(&place.put("bad.csv", rows));
        assert!(what.iter().all(|w| error.contains(w)), "{error}");
    }
}

#[test]
fn several_labels_an_example() {
    let place = Place::new();
    let several = |several, classes: Option<&[&str]>| Options {
        several: Some(several),
        classes: classes.map(|names| names.iter().map(|s| s.to_string()).collect()),
        ..Options::default()
    };
    let names = |names: &[&str]| Several::Columns(names.iter().map(|s| s.to_string()).collect());
    let held = |held: &[usize]| Target::labels(held.to_vec());
    let csv = place.put("a.csv", "text,rude,kind,threat\nyou,1,0,true\nme,0,0,0\n");
    let options = several(names(&["threat", "rude"]), None);
    let data = open(&csv, &options).unwrap();
    assert_eq!(texts(data.as_ref()), [text("you", held(&[0, 1])), text("me", held(&[]))]);
    assert_eq!(data.classes().unwrap(), ["threat", "rude"]);
    assert!(data.describe().contains("any of 2 labels"), "{}", data.describe());
    // In the order of a model's labels.
    let options = several(names(&["threat", "rude"]), Some(&["kind", "rude", "threat"]));
    assert_eq!(open(&csv, &options).unwrap().target(0), held(&[1, 2]));
    let error = |path: &Path, options: &Options| open(path, options).err().unwrap().to_string();
    assert!(error(&csv, &several(names(&["rude"]), Some(&["kind"]))).contains("rude"));
    assert!(error(&csv, &several(names(&["none"]), None)).contains("no column \"none\""));
    let wrong = place.put("b.csv", "text,rude\nyou,2\n");
    assert!(error(&wrong, &several(names(&["rude"]), None)).contains("0 or 1"));

    let listed =
        place.put("c.jsonl", "{\"text\": \"x\", \"tags\": \"b; a;b\"}\n{\"text\": \"y\", \"tags\": \"\"}\n");
    let options = several(Several::Listed("tags".into()), None);
    let data = open(&listed, &options).unwrap();
    assert_eq!(texts(data.as_ref()), [text("x", held(&[0, 1])), text("y", held(&[]))]);
    assert_eq!(data.classes().unwrap(), ["a", "b"]);
    let unknown = several(Several::Listed("tags".into()), Some(&["a"]));
    assert!(error(&listed, &unknown).contains("\"b\""));

    let arrays = |labels: Tensor| {
        let path = place.root().join("d.npz");
        let x = ("x".to_string(), Tensor::new(&[2, 1], &[1f32, 2.0]).unwrap());
        npz::write(&path, &[x, ("y".into(), labels)]).unwrap();
        path
    };
    let options = several(Several::Listed("y".into()), None);
    let good = arrays(Tensor::new(&[2, 3], &[1i64, 0, 1, 0, 0, 0]).unwrap());
    let data = open(&good, &options).unwrap();
    assert_eq!([data.target(0), data.target(1)], [held(&[0, 2]), held(&[])]);
    assert!(error(&good, &several(names(&["y"]), None)).contains("no columns"));
    let wrong = arrays(Tensor::new(&[2, 2], &[1i64, 0, 3, 0]).unwrap());
    assert!(error(&wrong, &options).contains("row 1"));
    let flat = arrays(Tensor::new(&[2], &[1i64, 0]).unwrap());
    assert!(error(&flat, &options).contains("row of labels"));
}
