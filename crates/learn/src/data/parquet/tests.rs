use std::io::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::column::page::{Page, PageReader};
use parquet::data_type::{ByteArray, FixedLenByteArray};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::properties::{WriterPropertiesBuilder, WriterVersion};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedRowGroupWriter;
use parquet::record::Row;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::SchemaDescriptor;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::rows::{Rows, copy as copy_rows};
use super::super::{Input, Target, open};
use super::*;

const SCHEMA: &str = "message m {
    optional group tags (LIST) { repeated group list { optional binary element (STRING); } }
    optional binary text (STRING);
    required int64 label;
    optional double weight;
}";

/// A row of that schema.
type Example = (Option<Vec<Option<String>>>, Option<String>, i64, Option<f64>);

fn place() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn put(place: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = place.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

type Fill<'a> = &'a dyn Fn(&mut SerializedRowGroupWriter<'_, &mut Vec<u8>>);

/// A file of these groups.
fn file(schema: &str, properties: WriterPropertiesBuilder, groups: &[Fill]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties.build())).unwrap();
    for fill in groups {
        let mut group = writer.next_row_group().unwrap();
        fill(&mut group);
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>,
    values: &[T::T],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) {
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<T>().write_batch(values, defined, repeated).unwrap();
    column.close().unwrap();
}

fn defined<T>(values: &[Option<T>]) -> Vec<i16> {
    values.iter().map(|v| i16::from(v.is_some())).collect()
}

fn examples(groups: &[Vec<Example>], properties: WriterPropertiesBuilder) -> Vec<u8> {
    let fill = |rows: &[Example], group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>| {
        let (mut tags, mut def, mut rep) = (Vec::new(), Vec::new(), Vec::new());
        for (list, ..) in rows {
            match list.as_deref() {
                None | Some([]) => {
                    def.push(i16::from(list.is_some()));
                    rep.push(0);
                }
                Some(list) => list.iter().enumerate().for_each(|(i, tag)| {
                    def.push(if tag.is_some() { 3 } else { 2 });
                    rep.push(i16::from(i > 0));
                    tags.extend(tag.as_deref().map(ByteArray::from));
                }),
            }
        }
        column::<ByteArrayType>(group, &tags, Some(&def), Some(&rep));
        let texts: Vec<_> = rows.iter().map(|row| row.1.clone()).collect();
        let there: Vec<_> = texts.iter().flatten().map(|v| ByteArray::from(v.as_str())).collect();
        column::<ByteArrayType>(group, &there, Some(&defined(&texts)), None);
        column::<Int64Type>(group, &rows.iter().map(|row| row.2).collect::<Vec<_>>(), None, None);
        let weights: Vec<_> = rows.iter().map(|row| row.3).collect();
        let there: Vec<_> = weights.iter().copied().flatten().collect();
        column::<DoubleType>(group, &there, Some(&defined(&weights)), None);
    };
    let fills: Vec<_> = groups
        .iter()
        .map(|rows| move |group: &mut SerializedRowGroupWriter<'_, &mut Vec<u8>>| fill(rows, group))
        .collect();
    file(SCHEMA, properties, &fills.iter().map(|fill| fill as Fill).collect::<Vec<_>>())
}

/// All rows, as the `parquet` crate reads them.
fn rows_of(bytes: Vec<u8>) -> Vec<Row> {
    let reader = SerializedFileReader::new(Bytes::from(bytes)).unwrap();
    reader.get_row_iter(None).unwrap().map(|row| row.unwrap()).collect()
}

fn cells_of(path: &Path, options: &Options) -> Result<Vec<(String, Option<String>)>> {
    let mut rows = Rows::open(path, options)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next_row()? {
        assert_eq!((row.place, row.start), (Place::Row(all.len() as u64), all.len() as u64));
        all.push((row.text, row.answer));
        assert_eq!(rows.end(), all.len() as u64);
    }
    Ok(all)
}

/// What is kept of a file of so many rows.
fn copied(path: &Path, rows: usize, keep: &dyn Fn(usize) -> bool) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    copy_rows(path, &(0..=rows as u64).collect::<Vec<_>>(), keep, &mut out)?;
    Ok(out)
}

fn failure(path: &Path) -> String {
    cells_of(path, &Options::default()).unwrap_err().to_string()
}

fn packings() -> [Compression; 6] {
    let (gzip, brotli, zstd) = (GzipLevel::default(), BrotliLevel::default(), ZstdLevel::default());
    [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(gzip),
        Compression::BROTLI(brotli),
        Compression::ZSTD(zstd),
        Compression::LZ4_RAW,
    ]
}

fn properties() -> impl Strategy<Value = WriterPropertiesBuilder> {
    let texts = [Encoding::PLAIN, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::DELTA_BYTE_ARRAY];
    let integers = [Encoding::PLAIN, Encoding::DELTA_BINARY_PACKED, Encoding::BYTE_STREAM_SPLIT];
    let doubles = [Encoding::PLAIN, Encoding::BYTE_STREAM_SPLIT];
    (0..packings().len(), any::<bool>(), any::<bool>(), 0..3usize, 0..3usize, 0..2usize, 1..200usize)
        .prop_map(move |(packing, dictionary, second, text, integer, double, page)| {
            WriterProperties::builder()
                .set_compression(packings()[packing])
                .set_dictionary_enabled(dictionary)
                .set_writer_version(if second {
                    WriterVersion::PARQUET_2_0
                } else {
                    WriterVersion::PARQUET_1_0
                })
                .set_column_encoding("text".into(), texts[text])
                .set_column_encoding(
                    vec!["tags", "list", "element"].into_iter().map(String::from).collect::<Vec<_>>().into(),
                    texts[text],
                )
                .set_column_encoding("label".into(), integers[integer])
                .set_column_encoding("weight".into(), doubles[double])
                .set_data_page_row_count_limit(page)
                .set_write_batch_size(page.min(7))
        })
}

fn groups() -> impl Strategy<Value = Vec<Vec<Example>>> {
    let text = || "[a-dß]{0,9}";
    let example = (
        option::of(vec(option::of(text()), 0..4)),
        option::of(text()),
        any::<i64>(),
        option::of(any::<f64>().prop_filter("NaN is never the same", |v| !v.is_nan())),
    );
    vec(vec(example, 0..60), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_written_is_read_and_what_is_kept_is_all_of_a_row(
        groups in groups(), properties in properties(), seed in any::<u64>()
    ) {
        let place = place();
        let bytes = examples(&groups, properties);
        let path = put(&place, "a.parquet", &bytes);
        let all: Vec<&Example> = groups.iter().flatten().collect();
        let cells: Vec<_> =
            all.iter().map(|row| (row.1.clone().unwrap_or_default(), Some(row.2.to_string()))).collect();
        prop_assert_eq!(cells_of(&path, &Options::default()).unwrap(), cells);
        let scores: Vec<_> = all
            .iter()
            .map(|row| (row.1.clone().unwrap_or_default(), Some(row.3.map_or(String::new(), |w| format!("{w:?}")))))
            .collect();
        let options = Options { score: Some("weight".into()), ..Options::default() };
        prop_assert_eq!(cells_of(&path, &options).unwrap(), scores);

        let keep = |row: usize| !(seed >> (row % 64)).is_multiple_of(2);
        let kept = copied(&path, all.len(), &keep).unwrap();
        let mut at = 0;
        let mut wanted = rows_of(bytes.clone());
        wanted.retain(|_| { at += 1; keep(at - 1) });
        let (before, after) = (Bytes::from(bytes), Bytes::from(kept.clone()));
        prop_assert_eq!(rows_of(kept), wanted);
        let about = |bytes: Bytes| SerializedFileReader::new(bytes).unwrap().metadata().clone();
        let (before, after) = (about(before), about(after));
        prop_assert_eq!(before.file_metadata().schema(), after.file_metadata().schema());
        prop_assert!(after.num_row_groups() <= before.num_row_groups());
        for (a, b) in before.row_groups().iter().zip(after.row_groups()) {
            prop_assert_eq!(a.column(1).compression(), b.column(1).compression());
        }
    }
}

#[test]
fn texts_and_numbers_are_written_as_in_a_table_of_lines() {
    let place = place();
    let cell = |column_of: &str, fill: Fill| {
        let schema = format!("message m {{ required binary text (STRING); {column_of} }}");
        let bytes = file(
            &schema,
            WriterProperties::builder(),
            &[&|group| {
                column::<ByteArrayType>(group, &["a", "b"].map(ByteArray::from), None, None);
                fill(group);
            }],
        );
        let path = put(&place, "a.parquet", &bytes);
        let cells = cells_of(&path, &Options { score: Some("x".into()), ..Options::default() })?;
        Ok::<_, Error>(cells.into_iter().map(|(_, x)| x.unwrap()).collect::<Vec<_>>())
    };
    let x = |kind: &str, fill: Fill| cell(&format!("required {kind};"), fill).unwrap();
    assert_eq!(x("boolean x", &|g| column::<BoolType>(g, &[true, false], None, None)), ["true", "false"]);
    assert_eq!(x("int32 x", &|g| column::<Int32Type>(g, &[-1, 7], None, None)), ["-1", "7"]);
    assert_eq!(
        x("int32 x (INTEGER(8,true))", &|g| column::<Int32Type>(g, &[-1, 7], None, None)),
        ["-1", "7"]
    );
    assert_eq!(
        x("int32 x (UINT_32)", &|g| column::<Int32Type>(g, &[-1, 7], None, None)),
        ["4294967295", "7"]
    );
    assert_eq!(
        x("int64 x (INTEGER(64,false))", &|g| column::<Int64Type>(g, &[-1, 7], None, None)),
        ["18446744073709551615", "7"]
    );
    assert_eq!(x("float x", &|g| column::<FloatType>(g, &[0.1, 5.0], None, None)), ["0.1", "5.0"]);
    assert_eq!(x("double x", &|g| column::<DoubleType>(g, &[0.1, f64::NAN], None, None)), ["0.1", "NaN"]);
    let halves = [[0, 0x3c], [0, 0xc0]].map(|bytes| FixedLenByteArray::from(bytes.to_vec()));
    assert_eq!(
        x("fixed_len_byte_array(2) x (FLOAT16)", &|g| column::<FixedLenByteArrayType>(
            g, &halves, None, None
        )),
        ["1.0", "-2.0"]
    );
    let words = ["é", ""].map(ByteArray::from);
    for kind in ["binary x", "binary x (ENUM)", "binary x (JSON)"] {
        assert_eq!(x(kind, &|g| column::<ByteArrayType>(g, &words, None, None)), ["é", ""]);
    }
    assert_eq!(
        cell("optional boolean x;", &|g| column::<BoolType>(g, &[true], Some(&[0, 1]), None)).unwrap(),
        ["", "true"]
    );
    // What is no cell is told when it is asked for.
    let refused = |kind: &str, fill: Fill| {
        let what = cell(kind, fill).unwrap_err().to_string();
        assert!(what.contains("\"x\" is neither texts nor numbers"), "{what}");
    };
    refused("required int32 x (DATE);", &|g| column::<Int32Type>(g, &[1, 2], None, None));
    refused("required int64 x (TIMESTAMP(MILLIS,true));", &|g| column::<Int64Type>(g, &[1, 2], None, None));
    refused("required binary x (BSON);", &|g| column::<ByteArrayType>(g, &words, None, None));
    refused("repeated int32 x;", &|g| column::<Int32Type>(g, &[1, 2], Some(&[1, 1]), Some(&[0, 0])));
    refused("required group x { required int32 y; }", &|g| column::<Int32Type>(g, &[1, 2], None, None));
}

#[test]
fn a_data_set_in_parquet() {
    let place = place();
    let row = |text: &str, label| (None, Some(text.to_owned()), label, Some(0.5));
    let bytes = examples(&[vec![row("a", 2)], vec![], vec![row("b", 0)]], WriterProperties::builder());
    let path = put(&place, "a.parquet", &bytes);
    let data = open(&path, &Options::default()).unwrap();
    let example = data.get(1).unwrap();
    assert_eq!((example.id.as_str(), example.target, data.len()), ("row 1", Target::Class(0), 2));
    assert!(matches!(example.input, Input::Text(text) if text == "b"));
    // By its first bytes, whatever its name; but lines that begin as Parquet does are lines.
    assert_eq!(open(&put(&place, "a", &bytes), &Options::default()).unwrap().len(), 2);
    let lines = put(&place, "a.csv", b"PAR1,text\n1,a\n");
    assert_eq!(cells_of(&lines.with_extension("parquet"), &Options::default()).unwrap().len(), 2);
    assert_eq!(open(&lines, &Options::default()).unwrap().len(), 1);
    let options = Options { limit: 4, ..Options::default() };
    assert!(open(&path, &options).err().unwrap().to_string().contains("limit of 4 bytes"));
    let options = Options { score: Some("weight".into()), ..Options::default() };
    assert_eq!(open(&path, &options).unwrap().target(0), Target::Score(0.5));
    let missing = examples(&[vec![(None, None, 1, None)]], WriterProperties::builder());
    let missing = put(&place, "b.parquet", &missing);
    let what = open(&missing, &options).err().unwrap().to_string();
    assert!(what.contains("row 0: the label or score is empty"), "{what}");
    // Without a text, all but the answer are numbers.
    let numbers = file(
        "message m { required float a; required int32 label; optional int64 b; }",
        WriterProperties::builder(),
        &[&|group| {
            column::<FloatType>(group, &[0.5, 1.0], None, None);
            column::<Int32Type>(group, &[1, 0], None, None);
            column::<Int64Type>(group, &[7], Some(&[1, 0]), None);
        }],
    );
    let what = open(&put(&place, "n.parquet", &numbers), &Options::default()).err().unwrap().to_string();
    assert!(what.contains("row 1: column \"b\": is empty"), "{what}");
    let options = Options { text: Some("body".into()), ..Options::default() };
    let what = open(&path, &options).err().unwrap().to_string();
    assert!(what.contains("no column \"body\" among tags, text, label, weight"), "{what}");
    let options = Options { text: Some("tags".into()), ..Options::default() };
    assert!(open(&path, &options).err().unwrap().to_string().contains("nested"));
    let none = put(&place, "c.parquet", &examples(&[vec![]], WriterProperties::builder()));
    assert!(open(&none, &Options::default()).err().unwrap().to_string().contains("holds no examples"));
}

#[test]
fn groups_of_few_rows_become_one_and_what_is_known_of_the_file_stays() {
    let place = place();
    let group = |from: i64| (from..from + 100).map(|i| (None, Some(format!("text {i}")), i, None)).collect();
    let key = parquet::file::metadata::KeyValue::new("ARROW:schema".into(), "x".to_string());
    let properties = WriterProperties::builder().set_key_value_metadata(Some(vec![key.clone()]));
    let bytes = examples(&[group(0), group(100), group(200), group(300)], properties);
    let path = put(&place, "a.parquet", &bytes);
    let kept = copied(&path, 400, &|row| row % 4 == 0 || row >= 300).unwrap();
    let about = SerializedFileReader::new(Bytes::from(kept)).unwrap().metadata().clone();
    let sizes: Vec<i64> = about.row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(sizes, [75, 100]);
    assert_eq!(about.file_metadata().key_value_metadata().unwrap(), &vec![key]);
    assert!(copied(&path, 399, &|_| true).unwrap_err().to_string().contains("changed while it was read"));
    let none = copied(&path, 400, &|_| false).unwrap();
    assert_eq!(rows_of(none).len(), 0);
}

/// Reads and copies what is there of it; what is wrong, unless nothing is.
fn tried(path: &Path) -> Option<String> {
    let cells = cells_of(path, &Options::default());
    let read = cells.as_ref().map_or(0, Vec::len);
    let copy = copied(path, read, &|row| row % 3 > 0);
    cells.err().or(copy.err()).map(|e| e.to_string())
}

#[test]
fn damaged_files_are_refused() {
    let place = place();
    let rows: Vec<Example> = (0..40)
        .map(|i| {
            (Some(vec![Some("t".into()); i % 4]), Some(format!("text {}", i % 7)), i as i64, Some(i as f64))
        })
        .collect();
    for (i, packing) in packings().into_iter().enumerate() {
        let version = [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0][i % 2];
        let properties = || WriterProperties::builder().set_compression(packing).set_writer_version(version);
        let bytes = examples(std::slice::from_ref(&rows), properties().set_dictionary_enabled(i % 3 > 0));
        let whole = put(&place, "a.parquet", &bytes);
        assert_eq!(tried(&whole), None);
        for len in (i % 3..bytes.len()).step_by(3) {
            let what = tried(&put(&place, "a.parquet", &bytes[..len])).expect("an error");
            assert!(what.contains("a.parquet: "), "{what}");
        }
        let mut wrong = 0;
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= [0x01, 0xff][at % 2];
            wrong += usize::from(tried(&put(&place, "a.parquet", &bytes)).is_some());
        }
        assert!(wrong > bytes.len() / 4, "{wrong} of {}", bytes.len());
    }
}

#[test]
fn what_is_no_parquet_is_refused() {
    let place = place();
    for bytes in [&b""[..], b"PAR1", b"PAR1PAR1", b"text,label\na,1\nb,2\n", b"PAR1\x01\0\0\0PAR1"] {
        let what = failure(&put(&place, "a.parquet", bytes));
        assert!(what.contains("no Parquet") || what.contains("footer"), "{what}");
    }
    assert!(failure(&put(&place, "a.parquet", b"PAR1....PARE....PARE")).contains("encrypted"));
    assert!(failure(&put(&place, "a.parquet", b"PAR1\xff\xff\xff\x7fPAR1")).contains("claims a footer"));
    assert!(failure(&place.path().join("nowhere.parquet")).contains("nowhere.parquet"));
    let odd = file(
        "message m { required binary text; }",
        WriterProperties::builder(),
        &[&|group| {
            column::<ByteArrayType>(group, &["a".into(), ByteArray::from(&b"\xff"[..])], None, None);
        }],
    );
    let what = failure(&put(&place, "a.parquet", &odd));
    assert!(what.contains("column \"text\": row 1: is not UTF-8"), "{what}");
}

/// Thrift as writers make it: a struct of integers, and one in it.
fn thrift(numbers: &[(u8, i64)], own: Option<(u8, &[(u8, i64)])>) -> Vec<u8> {
    fn integer(value: i64, out: &mut Vec<u8>) {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        while rest > 0x7f {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
    let (mut out, mut last) = (Vec::new(), 0);
    for (id, value) in numbers {
        out.push((id - last) << 4 | 5);
        integer(*value, &mut out);
        last = *id;
    }
    if let Some((id, own)) = own {
        out.push((id - last) << 4 | 12);
        out.extend(thrift(own, None));
    }
    out.push(0);
    out
}

/// The pages of a column whose bytes are these.
fn pages(schema: &str, packing: Compression, bytes: &[u8]) -> Told<Vec<Page>> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let schema = SchemaDescriptor::new(Arc::new(parse_message_type(schema).unwrap()));
    let about = ColumnChunkMetaData::builder(schema.column(0))
        .set_compression(packing)
        .set_data_page_offset(0)
        .set_total_compressed_size(bytes.len() as i64)
        .build()
        .unwrap();
    let mut pages = Pages::new(&Arc::new(file), &about, &Arc::default())?;
    let mut all = Vec::new();
    while let Some(page) = pages.get_next_page().map_err(|e| e.to_string())? {
        all.push(page);
    }
    Ok(all)
}

#[test]
fn absurd_claims_take_no_memory() {
    const TEXT: &str = "message m { required binary text; }";
    const LIST: &str = "message m { repeated int32 x; }";
    let page = |schema: &str, packing, unpacked: i64, own: (u8, &[(u8, i64)]), body: &[u8]| {
        let kind = [(5, 0), (7, 2), (8, 3)].iter().find(|(field, _)| *field == own.0).unwrap().1;
        let numbers = [(1, kind), (2, unpacked), (3, body.len() as i64)];
        pages(schema, packing, &[thrift(&numbers, Some(own)), body.to_vec()].concat())
    };
    let fails = |pages: Told<Vec<Page>>, said: &str| {
        let what = pages.map(|pages| pages.len()).unwrap_err();
        assert!(what.contains(said), "{what}");
    };
    let plain = Compression::UNCOMPRESSED;
    let data: (u8, &[(u8, i64)]) = (5, &[(1, 1), (2, 0), (3, 3), (4, 3)]);
    assert_eq!(page(TEXT, plain, 5, data, b"\x01\0\0\0a").unwrap().len(), 1);
    for packing in packings() {
        fails(page(TEXT, packing, i32::MAX.into(), data, b"abcde"), "claims 2147483647 bytes once unpacked");
    }
    for packing in [Compression::SNAPPY, Compression::LZ4_RAW] {
        fails(page(TEXT, packing, 1 << 28, data, b"abcde"), "more than 5 packed ones can hold");
    }
    // Much more than the page claims.
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 1 << 28), &mut bomb).unwrap();
    let bomb = bomb.finish().unwrap();
    fails(page(TEXT, Compression::ZSTD(ZstdLevel::default()), 1024, data, &bomb), "and has 1025");
    let mut bomb = Vec::new();
    let mut zeros = std::io::Read::take(std::io::repeat(0), 1 << 28);
    let quick = brotli::enc::BrotliEncoderParams { quality: 1, ..Default::default() };
    brotli::BrotliCompress(&mut zeros, &mut bomb, &quick).unwrap();
    fails(page(TEXT, Compression::BROTLI(BrotliLevel::default()), 1024, data, &bomb), "and has 1025");
    fails(page(TEXT, plain, -1, data, b"abcde"), "does not say");
    fails(page(TEXT, plain, 4, data, b"abcde"), "claims 4 bytes once unpacked, and has 5");
    fails(page(TEXT, plain, 5, (7, &[(1, i32::MAX.into()), (2, 0)]), b"abcde"), "claims 2147483647 values");
    fails(page(TEXT, plain, 5, (5, &[(1, -1), (2, 0), (3, 3), (4, 3)]), b"abcde"), "lacks a number");
    fails(page(TEXT, plain, 5, (5, &[(1, 1), (2, 8), (3, 3), (4, 3)]), b"abcde"), "needs a dictionary");
    fails(page(TEXT, plain, 5, (5, &[(1, 1), (2, 77), (3, 3), (4, 3)]), b"abcde"), "has encoding 77");
    let second: (u8, &[(u8, i64)]) = (8, &[(1, 1), (2, 0), (3, 1), (4, 0), (5, 1 << 30), (6, 1 << 30)]);
    fails(page(TEXT, plain, 5, second, b"abcde"), "bytes of levels");
    fails(page(LIST, plain, 5, (5, &[(1, 1 << 30), (2, 0), (3, 3), (4, 3)]), b"abcde"), "smaller pages");
    // Lengths that differ by 0: 2^31 - 1 texts of 5 bytes in a few.
    let many = b"\x80\x01\x04\xff\xff\xff\xff\x07\x0a\0\0\0\0\0";
    for encoding in [6, 7] {
        let own: &[(u8, i64)] = &[(1, i32::MAX.into()), (2, encoding), (3, 3), (4, 3)];
        fails(page(TEXT, plain, many.len() as i64, (5, own), many), "lengths");
    }
    let longer = [&thrift(&[(1, 0), (2, 5), (3, 99)], Some(data))[..], b"abcde"].concat();
    fails(pages(TEXT, plain, &longer), "claims 99 bytes, but its column ends before");
    fails(pages(TEXT, plain, b"\x15\0"), "ends too early");
    fails(pages(TEXT, plain, &[0x1c; 4096]), "deep");
}

#[test]
fn a_checksum_is_held_against_the_bytes() {
    let body = b"\x01\0\0\0a";
    let mut sum = flate2::Crc::new();
    sum.update(body);
    let of = |sum: u32| {
        let numbers = [(1, 0), (2, 5), (3, 5), (4, i64::from(sum as i32))];
        let header = thrift(&numbers, Some((5, &[(1, 1), (2, 0), (3, 3), (4, 3)])));
        let schema = "message m { required binary text; }";
        pages(schema, Compression::UNCOMPRESSED, &[&header[..], body].concat())
    };
    assert_eq!(of(sum.sum()).unwrap().len(), 1);
    assert!(of(sum.sum() + 1).unwrap_err().contains("checksum"));
}

#[test]
fn footers_that_claim_too_much_are_refused() {
    // Field 2, a list of structs, each with so many children (field 5).
    let schema = |children: &[i64], len: u8| {
        let elements = children.iter().flat_map(|n| thrift(&[(5, *n)], None));
        [0x29, 0xfc, 0x80 | (len & 0x7f), 0x01].into_iter().chain(elements).chain([0]).collect::<Vec<u8>>()
    };
    let of = |children: &[i64]| plausible(&schema(children, children.len() as u8));
    let deep: Vec<i64> = std::iter::repeat_n(1, 129).chain([0]).collect();
    assert!(of(&deep).unwrap_err().contains("deep"));
    let wide = |root: i64| std::iter::once(root).chain(std::iter::repeat_n(0, 129)).collect::<Vec<_>>();
    assert_eq!(of(&wide(129)), Ok(()));
    for root in [130, i32::MAX.into(), i64::MAX, 128, 0, -1] {
        of(&wide(root)).unwrap_err();
    }
    assert!(plausible(b"\x29\xfc\xff\xff\xff\xff\x0f").unwrap_err().contains("too early"));
    assert!(plausible(b"\x49\xfc\xff\xff\xff\xff\x0f").unwrap_err().contains("too early"));
}

/// Lengths as DELTA_BINARY_PACKED has them, all in 32 bits.
fn lengths(of: &[u32]) -> Vec<u8> {
    let number = |value: i64| thrift(&[(1, value)], None)[1..].strip_suffix(&[0]).unwrap().to_vec();
    let mut out = vec![0x80, 0x01, 0x04, 0x80 | (of.len() as u8 & 0x7f), (of.len() >> 7) as u8];
    out.extend(number(of[0].into()));
    for block in of.windows(2).map(|w| i64::from(w[1]) - i64::from(w[0])).collect::<Vec<_>>().chunks(128) {
        let least = *block.iter().min().unwrap();
        out.extend(number(least));
        out.extend([32; 4]);
        out.extend(block.iter().flat_map(|d| ((d - least) as u32).to_le_bytes()));
        out.resize(out.len() + 4 * (block.len().next_multiple_of(32) - block.len()), 0);
    }
    out
}

#[test]
fn texts_that_share_much_grow_no_further_than_a_page_may() {
    let (shared, own): (Vec<u32>, Vec<u32>) =
        (0..300).map(|i| (if i == 0 { 0 } else { 60 }, 64 - 60 * u32::from(i > 0))).unzip();
    let text = |i: usize| format!("{}{:04}", "x".repeat(60), i);
    let rest: String = (0..300).map(|i| if i == 0 { text(0) } else { format!("{i:04}") }).collect();
    let bytes = [lengths(&shared), lengths(&own), rest.into_bytes()].concat();
    let plain = |limit, width| delta::plain(Encoding::DELTA_BYTE_ARRAY, &bytes, 300, width, limit);
    let wanted: Vec<u8> = (0..300).flat_map(|i| [&[64, 0, 0, 0], text(i).as_bytes()].concat()).collect();
    assert_eq!(plain(300 * 68, None), Ok(wanted));
    assert_eq!(plain(300 * 68, Some(64)).unwrap().len(), 300 * 64);
    assert!(plain(300 * 68 - 1, None).unwrap_err().contains("more than"));
    assert!(plain(1 << 20, Some(63)).unwrap_err().contains("wrong length"));
    for len in 0..bytes.len() {
        delta::plain(Encoding::DELTA_BYTE_ARRAY, &bytes[..len], 300, None, 1 << 20).unwrap_err();
    }
}
