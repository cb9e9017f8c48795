//! What ai.onnx.ml does with features before a model: `ArrayFeatureExtractor`, `Binarizer`, `Imputer`, `Normalizer`,
//! `Scaler`. <https://onnx.ai/onnx/operators/index_ai_onnx_ml.html>

use std::any::Any;
use std::sync::Arc;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample, ramp};
use crate::ops::cast::cast;
use crate::ops::gather::gather;
use crate::{Attr, Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// An operator on features.
#[derive(Debug)]
pub struct Features {
    what: What,
    attrs: Attrs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Extract,
    Binarize,
    Impute,
    Normalize,
    Scale,
}

const fn def(
    name: &'static str,
    read: fn(&crate::op::Reader) -> Result<Arc<dyn Op>>,
    samples: fn() -> Vec<Sample>,
) -> OpDef {
    OpDef { name, domain: "ai.onnx.ml", since: 1, read, samples }
}

fn read(attrs: &Attrs, what: What) -> Result<Arc<dyn Op>> {
    Ok(Arc::new(Features { what, attrs: attrs.clone() }))
}

pub(crate) static DEFS: &[OpDef] = &[
    def(
        "ArrayFeatureExtractor",
        |r| read(r.attrs, What::Extract),
        || {
            let of =
                |x, places: &[i64]| Sample::read(&DEFS[0], Attrs::new(), vec![x, Tensor::vector(places)]);
            vec![of(ramp(&[3, 4]), &[3, 1]), of(ramp(&[2, 3, 4]), &[0, 0]), of(ramp(&[5]), &[4, 0])]
        },
    ),
    def(
        "Binarizer",
        |r| read(r.attrs, What::Binarize),
        || vec![Sample::read(&DEFS[1], Attrs::new().float("threshold", 0.3), vec![ramp(&[3, 4])])],
    ),
    def(
        "Imputer",
        |r| read(r.attrs, What::Impute),
        || {
            let each = Attrs::new()
                .with("imputed_value_floats", Attr::Floats(vec![1.0, 2.0, 3.0]))
                .float("replaced_value_float", f32::NAN);
            let all = Attrs::new().ints("imputed_value_int64s", &[9]).int("replaced_value_int64", -1);
            let holes = Tensor::new(&[2, 3], &[f32::NAN, 5.0, f32::NAN, 0.5, f32::NAN, 1.5]);
            let ints = Tensor::new(&[2, 2], &[-1i64, 4, 0, -1]);
            let holes = holes.map(|x| Sample::read(&DEFS[2], each, vec![x]));
            let ints = ints.map(|x| Sample::read(&DEFS[2], all, vec![x]));
            holes.into_iter().chain(ints).collect()
        },
    ),
    def(
        "Normalizer",
        |r| read(r.attrs, What::Normalize),
        || {
            let of = |norm: &str| Attrs::new().text("norm", norm);
            let kinds = ["MAX", "L1", "L2"].map(|norm| Sample::read(&DEFS[3], of(norm), vec![ramp(&[3, 4])]));
            kinds.into()
        },
    ),
    def(
        "Scaler",
        |r| read(r.attrs, What::Scale),
        || {
            let of = |offset: &[f32], scale: &[f32]| {
                let attrs = Attrs::new().with("offset", Attr::Floats(offset.to_vec()));
                Sample::read(&DEFS[4], attrs.with("scale", Attr::Floats(scale.to_vec())), vec![ramp(&[2, 3])])
            };
            vec![of(&[0.5], &[2.0]), of(&[0.1, 0.2, 0.3], &[1.0, 2.0, 3.0])]
        },
    ),
];

/// One number for all features, or one for each.
fn each<T: Copy>(list: &[T], width: usize, what: &str) -> Result<Vec<T>> {
    match list {
        [one] => Ok(vec![*one; width]),
        list if list.len() == width => Ok(list.to_vec()),
        _ => Err(Error::invalid(format!("{} numbers of {what} for {width} features", list.len()))),
    }
}

impl Features {
    /// The type of what is made of features of this one.
    fn dtype(&self, of: DType) -> DType {
        match self.what {
            What::Extract | What::Binarize => of,
            What::Impute if !of.is_float() => DType::I64,
            What::Impute | What::Normalize | What::Scale => DType::F32,
        }
    }

    fn impute(&self, x: Tensor, width: usize) -> Result<Tensor> {
        let shape = x.shape().to_vec();
        let missing = |name: &str| Error::invalid(format!("Imputer has no {name}"));
        if x.dtype().is_float() {
            let by = self.attrs.opt_floats("imputed_value_floats")?;
            let by =
                each(&by.ok_or_else(|| missing("imputed_value_floats"))?, width, "imputed_value_floats")?;
            let hole = self.attrs.float_or("replaced_value_float", 0.0)?;
            let is_hole = |v: f32| v == hole || v.is_nan() && hole.is_nan();
            let values = x.to_f32()?;
            let fill = values.iter().enumerate().map(|(i, &v)| if is_hole(v) { by[i % width] } else { v });
            return Tensor::new(&shape, &fill.collect::<Vec<f32>>());
        }
        let by = self.attrs.opt_ints("imputed_value_int64s")?;
        let by = each(&by.ok_or_else(|| missing("imputed_value_int64s"))?, width, "imputed_value_int64s")?;
        let hole = self.attrs.int_or("replaced_value_int64", 0)?;
        let values = x.to_ints()?.into_iter().enumerate();
        Tensor::new(
            &shape,
            &values.map(|(i, v)| if v == hole { by[i % width] } else { v }).collect::<Vec<i64>>(),
        )
    }

    fn normalize(&self, x: Tensor, width: usize) -> Result<Tensor> {
        let norm: fn(&[f32]) -> f32 = match self.attrs.text_or("norm", "MAX")? {
            "MAX" => |row| row.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            "L1" => |row| row.iter().map(|v| v.abs()).sum(),
            "L2" => |row| row.iter().map(|v| v * v).sum::<f32>().sqrt(),
            other => return Err(Error::unsupported(format!("norm {other:?}"))),
        };
        let shape = x.shape().to_vec();
        let mut values = x.to_f32()?.into_owned();
        for row in values.chunks_mut(width) {
            let length = norm(row);
            if length != 0.0 {
                row.iter_mut().for_each(|v| *v /= length);
            }
        }
        Tensor::new(&shape, &values)
    }

    fn scale(&self, x: Tensor, width: usize) -> Result<Tensor> {
        let list = |name: &str| {
            let list = self.attrs.opt_floats(name)?;
            each(&list.ok_or_else(|| Error::invalid(format!("Scaler has no {name}")))?, width, name)
        };
        let (offset, scale) = (list("offset")?, list("scale")?);
        let values = x.to_f32()?;
        let scaled = values.iter().enumerate().map(|(i, v)| (v - offset[i % width]) * scale[i % width]);
        Tensor::new(x.shape(), &scaled.collect::<Vec<f32>>())
    }
}

impl Op for Features {
    fn def(&self) -> &'static OpDef {
        &DEFS[self.what as usize]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dtype = inputs.dtype(0);
        match self.what {
            What::Extract => {
                let count = inputs.need(1)?.shape().map_or(Dim::Unknown, Dim::product);
                let shape = inputs.shape(0).map(|x| match x {
                    [] | [_] => vec![Dim::Is(1), count],
                    [outer @ .., _] => [outer, &[count]].concat(),
                });
                Ok(vec![Fact::maybe(dtype, shape)])
            }
            _ => infer::like_as(inputs, 0, dtype.map(|d| self.dtype(d))),
        }
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.take(0)?;
        let width = *x.shape().last().ok_or_else(|| Error::invalid("a number has no features"))?;
        if x.is_empty() && self.what != What::Extract {
            let dtype = self.dtype(x.dtype());
            return Ok(vec![cast(x, dtype, true)?]);
        }
        Ok(vec![match self.what {
            What::Extract => {
                let places = inputs.need(1)?;
                let places = places.clone().reshaped(&[places.len()])?;
                let (rank, count) = (x.rank(), places.len());
                let taken = gather(x, &places, rank - 1)?;
                if rank == 1 { taken.reshaped(&[1, count])? } else { taken }
            }
            What::Binarize => {
                let (dtype, shape) = (x.dtype(), x.shape().to_vec());
                let threshold = self.attrs.float_or("threshold", 0.0)?;
                let over = cast(x, DType::F64, true)?;
                let over = over.values::<f64>()?;
                let bits: Vec<f32> = over.iter().map(|&v| f32::from(v > f64::from(threshold))).collect();
                cast(Tensor::new(&shape, &bits)?, dtype, true)?
            }
            What::Impute => self.impute(x, width)?,
            What::Normalize => self.normalize(numbers(x)?, width)?,
            What::Scale => self.scale(numbers(x)?, width)?,
        }])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn numbers(x: Tensor) -> Result<Tensor> {
    cast(x, DType::F32, true)
}
