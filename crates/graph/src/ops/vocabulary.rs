//! Look-ups in lists that a model carries: `LabelEncoder` of ai.onnx.ml, `TfIdfVectorizer`.
//! <https://onnx.ai/onnx/operators/onnx_aionnxml_LabelEncoder.html>
//! <https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html>

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample};
use crate::ops::cells::filled;
use crate::ops::concat::concat;
use crate::ops::gather::gather;
use crate::ops::shape::sizes;
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// An element as it is looked up. Numbers are equal when their values are; NaN equals itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Text(String),
    Int(i64),
    Float(u64),
}

fn keys(x: &Tensor) -> Result<Vec<Key>> {
    let float = |v: f64| Key::Float(if v.is_nan() { f64::NAN.to_bits() } else { (v + 0.0).to_bits() });
    Ok(match x.dtype() {
        DType::String => x.as_strings()?.iter().cloned().map(Key::Text).collect(),
        DType::F64 => x.values::<f64>()?.iter().map(|&v| float(v)).collect(),
        d if d.is_float() => x.to_f32()?.iter().map(|&v| float(v.into())).collect(),
        _ => x.to_ints()?.into_iter().map(Key::Int).collect(),
    })
}

/// `LabelEncoder`: each element replaced by the one that stands for it.
#[derive(Debug)]
pub struct LabelEncoder {
    line: usize,
    attrs: Attrs,
    /// What each key stands for: a place in the values. The last value is for all others.
    places: Vec<(Key, usize)>,
    /// In version 1 both ways are possible: strings to integers, and back.
    values: Tensor,
    names: Option<Tensor>,
}

/// `TfIdfVectorizer`: how often each n-gram of a list occurs, weighted.
#[derive(Debug)]
pub struct TfIdf {
    attrs: Attrs,
    mode: Mode,
    grams: std::ops::RangeInclusive<usize>,
    skips: usize,
    /// The n-grams, in the order of their weights, and their place in the output.
    pool: Vec<(Vec<Key>, usize)>,
    weights: Option<Vec<f32>>,
    width: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Count,
    Weight,
    Both,
}

fn strings(list: Vec<String>) -> Result<Tensor> {
    Tensor::strings(&[list.len()], list)
}

/// The list that one of these attributes holds: `{stem}_int64s`, `_floats`, `_strings` or `_tensor`.
fn typed(attrs: &Attrs, stem: &str) -> Result<Option<Tensor>> {
    if let Some(tensor) = attrs.opt_tensor(&format!("{stem}_tensor"))? {
        return Ok(Some(tensor.clone().aligned().reshaped(&[tensor.len()])?));
    }
    if let Some(list) = attrs.opt_ints(&format!("{stem}_int64s"))? {
        return Ok(Some(Tensor::vector(&list)));
    }
    if let Some(list) = attrs.opt_floats(&format!("{stem}_floats"))? {
        return Ok(Some(Tensor::vector(&list)));
    }
    attrs.opt_texts(&format!("{stem}_strings"))?.map(strings).transpose()
}

/// What stands for elements that are not listed, as a tensor of one element.
fn default(attrs: &Attrs, dtype: DType) -> Result<Tensor> {
    if let Some(tensor) = attrs.opt_tensor("default_tensor")? {
        return tensor.clone().aligned().reshaped(&[1]);
    }
    match dtype {
        DType::String => strings(vec![attrs.text_or("default_string", "_Unused")?.into()]),
        d if d.is_float() => {
            let value = attrs.float_or("default_float", -0.0)?;
            crate::ops::cast::cast(Tensor::vector(&[value]), d, true)
        }
        d => crate::ops::cast::cast(Tensor::vector(&[attrs.int_or("default_int64", -1)?]), d, true),
    }
}

fn read_labels(attrs: &Attrs, line: usize) -> Result<Arc<dyn Op>> {
    let (from, values, names) = if line == 0 {
        let names = attrs.opt_texts("classes_strings")?.unwrap_or_default();
        let numbers: Vec<i64> = (0..names.len() as i64).collect();
        let names = strings(names)?;
        let all = concat(vec![names.clone(), default(attrs, DType::String)?], 0)?;
        (names, Tensor::vector(&numbers), Some(all))
    } else {
        let missing = |what| Error::invalid(format!("LabelEncoder has no {what}"));
        let from = typed(attrs, "keys")?.ok_or_else(|| missing("keys"))?;
        (from, typed(attrs, "values")?.ok_or_else(|| missing("values"))?, None)
    };
    let found = keys(&from)?;
    if found.len() != values.len() {
        return Err(Error::invalid(format!("{} keys for {} values", found.len(), values.len())));
    }
    let places = found.into_iter().zip(0..).collect();
    let other = default(attrs, values.dtype())?;
    let values = concat(vec![values, other], 0)?;
    Ok(Arc::new(LabelEncoder { line, attrs: attrs.clone(), places, values, names }))
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef {
        name: "LabelEncoder",
        domain: "ai.onnx.ml",
        since: 1,
        read: |r| read_labels(r.attrs, 0),
        samples: || {
            let attrs = Attrs::new().with("classes_strings", Attr::Texts(vec!["a".into(), "b".into()]));
            let words = strings(vec!["b".into(), "x".into()]).into_iter();
            let inputs = words.chain([Tensor::vector(&[1i64, 0])]);
            inputs.map(|x| Sample::read(&DEFS[0], attrs.clone(), vec![x])).collect()
        },
    },
    OpDef {
        name: "LabelEncoder",
        domain: "ai.onnx.ml",
        since: 2,
        read: |r| read_labels(r.attrs, 1),
        samples: || {
            let attrs = Attrs::new()
                .with("keys_floats", Attr::Floats(vec![1.5, f32::NAN]))
                .with("values_strings", Attr::Texts(vec!["a".into(), "b".into()]));
            vec![Sample::read(&DEFS[1], attrs, vec![Tensor::vector(&[f32::NAN, 0.0, 1.5])])]
        },
    },
    OpDef::onnx(
        "TfIdfVectorizer",
        9,
        |r| Ok(Arc::new(read_grams(r.attrs)?)),
        || {
            let attrs = Attrs::new()
                .text("mode", "TFIDF")
                .int("min_gram_length", 1)
                .int("max_gram_length", 2)
                .int("max_skip_count", 1)
                .ints("ngram_counts", &[0, 2])
                .ints("ngram_indexes", &[0, 1, 2])
                .ints("pool_int64s", &[2, 3, 2, 3])
                .with("weights", Attr::Floats(vec![1.0, 2.0, 0.5]));
            vec![Sample::read(&DEFS[2], attrs, vec![Tensor::vector(&[2i64, 2, 3])])]
        },
    ),
];

impl Op for LabelEncoder {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.line]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let back = match inputs.dtype(0) {
            None if self.names.is_some() => None,
            Some(DType::I64) if self.names.is_some() => Some(DType::String),
            _ => Some(self.values.dtype()),
        };
        infer::like_as(inputs, 0, back)
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let found = keys(x)?;
        let other = self.places.len() as i64;
        if let (Some(names), DType::I64) = (&self.names, x.dtype()) {
            let ids: Vec<i64> =
                x.to_ints()?.into_iter().map(|i| if (0..other).contains(&i) { i } else { other }).collect();
            return Ok(vec![gather(names.clone(), &Tensor::new(x.shape(), &ids)?, 0)?]);
        }
        // The first of equal keys counts.
        let mut table: HashMap<&Key, usize> = HashMap::new();
        for (key, place) in self.places.iter().rev() {
            table.insert(key, *place);
        }
        let ids: Vec<i64> = found.iter().map(|k| table.get(k).map_or(other, |&p| p as i64)).collect();
        Ok(vec![gather(self.values.clone(), &Tensor::new(x.shape(), &ids)?, 0)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn read_grams(attrs: &Attrs) -> Result<TfIdf> {
    let mode = match attrs.text_or("mode", "")? {
        "TF" => Mode::Count,
        "IDF" => Mode::Weight,
        "TFIDF" => Mode::Both,
        other => return Err(Error::invalid(format!("there is no mode {other:?}"))),
    };
    let size = |name| {
        let n = attrs.need_int(name)?;
        usize::try_from(n)
            .ok()
            .filter(|&n| n < 1 << 31)
            .ok_or_else(|| Error::invalid(format!("{name} is {n}")))
    };
    let items = match attrs.opt_ints("pool_int64s")? {
        Some(list) => list.into_iter().map(Key::Int).collect(),
        None => keys(&strings(attrs.opt_texts("pool_strings")?.unwrap_or_default())?)?,
    };
    let starts = sizes(&attrs.ints_or("ngram_counts", &[])?)?;
    let places = sizes(&attrs.ints_or("ngram_indexes", &[])?)?;
    let mut grams = Vec::new();
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(items.len());
        let part = items.get(start..end).filter(|p| p.len() % (i + 1) == 0);
        let part = part.ok_or_else(|| Error::invalid("ngram_counts do not fit the pool"))?;
        grams.extend(part.chunks(i + 1).map(<[Key]>::to_vec));
    }
    let weights = attrs.opt_floats("weights")?;
    if grams.len() != places.len() || weights.as_ref().is_some_and(|w| w.len() != places.len()) {
        return Err(Error::invalid(format!("{} n-grams, {} indexes", grams.len(), places.len())));
    }
    let width = places.iter().max().map_or(0, |&m| m.saturating_add(1));
    Ok(TfIdf {
        attrs: attrs.clone(),
        mode,
        grams: size("min_gram_length")?.max(1)..=size("max_gram_length")?,
        skips: size("max_skip_count")?,
        pool: grams.into_iter().zip(places).collect(),
        weights,
        width,
    })
}

impl TfIdf {
    fn count(&self, row: &[Key], table: &HashMap<&[Key], usize>, out: &mut [f32]) {
        for n in self.grams.clone().take_while(|&n| n <= row.len()) {
            // The words of a gram may lie apart; single words cannot.
            let skips = if n == 1 { 0 } else { self.skips.min(row.len()) };
            for step in 1..=skips + 1 {
                let reach = (n - 1).saturating_mul(step);
                for start in 0..row.len().saturating_sub(reach) {
                    let gram: Vec<Key> = (0..n).map(|k| row[start + k * step].clone()).collect();
                    if let Some(&i) = table.get(gram.as_slice()) {
                        out[self.pool[i].1] += 1.0;
                    }
                }
            }
        }
    }
}

impl Op for TfIdf {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let width = Dim::from(self.width);
        let shape = match inputs.need(0)?.shape() {
            Some([]) | Some([_]) => Some(vec![width]),
            Some([batch, _]) => Some(vec![batch.clone(), width]),
            Some(other) => return Err(Error::invalid(format!("expected a list, got rank {}", other.len()))),
            None => None,
        };
        Ok(vec![Fact::maybe(Some(DType::F32), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let (rows, shape) = match *x.shape() {
            [] | [_] => (1, vec![self.width]),
            [batch, _] => (batch, vec![batch, self.width]),
            _ => return Err(Error::invalid(format!("expected a list, got shape {:?}", x.shape()))),
        };
        let items = keys(x)?;
        let table: HashMap<&[Key], usize> = self.pool.iter().enumerate().map(|(i, g)| (&*g.0, i)).collect();
        let mut y = filled(DType::F32, &shape, None)?;
        let out = y.as_mut_slice::<f32>()?;
        if out.is_empty() {
            return Ok(vec![y]);
        }
        let per = items.len() / rows;
        for (row, out) in out.chunks_exact_mut(self.width).enumerate() {
            self.count(&items[row * per..(row + 1) * per], &table, out);
            let mut weights = vec![1.0; self.width];
            for (i, (_, place)) in self.pool.iter().enumerate() {
                weights[*place] = self.weights.as_ref().map_or(1.0, |w| w[i]);
            }
            for (v, w) in out.iter_mut().zip(weights) {
                *v = match self.mode {
                    Mode::Count => *v,
                    Mode::Weight if *v > 0.0 => w,
                    Mode::Weight => 0.0,
                    Mode::Both => *v * w,
                };
            }
        }
        Ok(vec![y])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
