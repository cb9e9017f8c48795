//! Weights in few bits as vLLM and transformers load them: the `pack-quantized` form of compressed-tensors.
//! <https://github.com/neuralmagic/compressed-tensors>
//!
//! Of a weight `X.weight` `[N, K]` there are `X.weight_packed` i32 `[N, ceil(K b / 32)]`, codes from the lowest bits up
//! along each row; `X.weight_scale` `[N, groups]` in the type of the model; `X.weight_shape` i64 `[2]`; and, only with
//! zero points, `X.weight_zero_point` i32 `[ceil(N b / 32), groups]`, packed down each column. Codes and zero points are
//! stored without sign, from 0.

use std::path::Path;

use ::safetensors::Dtype;
use graph::Tensor;
use half::{bf16, f16};
use serde_json::{Value, json};

use super::Tensors;
use super::shard::Piece;
use crate::{Error, Result};

/// How weights are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of a code: 1 to 8.
    pub bits: u32,
    /// Neighbours in a row that share a scale; rows are a multiple of it.
    pub group: usize,
    /// There are no zero points: the code of 0 is `2^(bits - 1)`.
    pub symmetric: bool,
}

impl Scheme {
    /// What `config.json` says under `quantization_config`. Modules of `ignore` are not coded; `version` is that of the
    /// writer.
    pub fn config(&self, ignore: &[String], version: &str) -> Value {
        json!({
            "quant_method": "compressed-tensors",
            "version": version,
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "global_compression_ratio": null,
            "kv_cache_scheme": null,
            "ignore": ignore,
            "sparsity_config": {},
            "transform_config": {},
            "config_groups": { "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "strategy": "group",
                    "group_size": self.group, "dynamic": false, "actorder": null, "block_structure": null,
                    "observer": "minmax", "observer_kwargs": {},
                },
                "input_activations": null,
                "output_activations": null,
            } },
        })
    }

    /// The scheme of a `quantization_config`.
    ///
    /// # Errors
    /// A sentence when it is not this form.
    pub fn read(config: &Value) -> std::result::Result<Scheme, String> {
        let method = config["quant_method"].as_str().unwrap_or("nothing");
        let format = config["format"].as_str().unwrap_or("nothing");
        if (method, format) != ("compressed-tensors", "pack-quantized") {
            return Err(format!("weights coded by {method:?} as {format:?} cannot be read"));
        }
        let groups: Vec<&Value> =
            config["config_groups"].as_object().into_iter().flat_map(|g| g.values()).collect();
        let [one] = groups.as_slice() else {
            return Err(format!(
                "{} groups of settings for weights instead of one cannot be read",
                groups.len()
            ));
        };
        let weights = &one["weights"];
        let bits = weights["num_bits"].as_u64().filter(|b| (1..=8).contains(b));
        let group = match weights["strategy"].as_str() {
            Some("group") => weights["group_size"].as_u64().filter(|g| (1..=1 << 20).contains(g)),
            Some("channel") => Some(0),
            _ => None,
        };
        match (bits, group, weights["symmetric"].as_bool().unwrap_or(true)) {
            (Some(bits), Some(group), symmetric) => {
                Ok(Scheme { bits: bits as u32, group: group as usize, symmetric })
            }
            _ => Err("its bits or groups are not known".into()),
        }
    }

    /// The tensors that a weight of a module, `rows x cols`, becomes: codes, scales, shape, and zero points if there are
    /// any. `scale` is the type of the scales.
    pub fn pieces(&self, module: &str, rows: usize, cols: usize, scale: Dtype) -> Vec<Piece> {
        let groups = cols.div_ceil(self.group.max(1));
        let piece = |name: &str, dtype, shape: &[usize]| Piece {
            name: format!("{module}.weight_{name}"),
            dtype,
            shape: shape.to_vec(),
        };
        let mut pieces = vec![
            piece("packed", Dtype::I32, &[rows, words(cols, self.bits)]),
            piece("scale", scale, &[rows, groups]),
            piece("shape", Dtype::I64, &[2]),
        ];
        if !self.symmetric {
            pieces.push(piece("zero_point", Dtype::I32, &[words(rows, self.bits), groups]));
        }
        pieces
    }
}

/// Words of 32 bits that so many codes take.
pub fn words(codes: usize, bits: u32) -> usize {
    (codes * bits as usize).div_ceil(32)
}

/// Appends a line of codes as a stream of bits, lowest first, filled up with zeros to words of 32 bits.
fn pack(codes: impl Iterator<Item = u8>, bits: u32, out: &mut Vec<u8>) {
    let (mut word, mut filled) = (0u64, 0);
    for code in codes {
        word |= u64::from(code) << filled;
        filled += bits;
        if filled >= 32 {
            out.extend_from_slice(&(word as u32).to_le_bytes());
            word >>= 32;
            filled -= 32;
        }
    }
    if filled > 0 {
        out.extend_from_slice(&(word as u32).to_le_bytes());
    }
}

/// The codes of a line of `count`.
fn unpack(bytes: &[u8], count: usize, bits: u32) -> impl Iterator<Item = u8> {
    let mask = (0xffu32 >> (8 - bits)) as u8;
    (0..count).map(move |i| {
        let at = i * bits as usize;
        let byte = |k: usize| u16::from(bytes.get(at / 8 + k).copied().unwrap_or(0));
        ((byte(0) | byte(1) << 8) >> (at % 8)) as u8 & mask
    })
}

/// The bytes of `weight_packed` of rows of codes; those of more rows can follow.
pub fn pack_rows(codes: &[u8], cols: usize, bits: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(codes.len().checked_div(cols).unwrap_or(0) * words(cols, bits) * 4);
    codes.chunks_exact(cols.max(1)).for_each(|row| pack(row.iter().copied(), bits, &mut out));
    out
}

/// The bytes of `weight_zero_point`, of zero points row by row.
pub fn pack_columns(zeros: &[u8], groups: usize, bits: u32) -> Vec<u8> {
    let rows = zeros.len().checked_div(groups).unwrap_or(0);
    let height = words(rows, bits);
    let mut out = vec![0u8; height * groups * 4];
    for g in 0..groups {
        let mut column = Vec::with_capacity(height * 4);
        pack(zeros.iter().skip(g).step_by(groups).copied(), bits, &mut column);
        for (i, word) in column.chunks_exact(4).enumerate() {
            out[(i * groups + g) * 4..][..4].copy_from_slice(word);
        }
    }
    out
}

/// The bytes of scales in a type: F32, F16 or BF16.
pub fn pack_scales(scales: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => scales.iter().flat_map(|&s| f16::from_f32(s).to_le_bytes()).collect(),
        Dtype::BF16 => scales.iter().flat_map(|&s| bf16::from_f32(s).to_le_bytes()).collect(),
        _ => scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
    }
}

/// Puts weights in f32 in the place of their codes. `config` is what `config.json` says; `path` is for errors. Without a
/// `quantization_config` nothing changes.
///
/// # Errors
/// When weights are coded in another form, or parts of one are missing or have other sizes.
pub fn decode(path: &Path, config: &Value, mut tensors: Tensors) -> Result<Tensors> {
    let Some(quantized) = config.get("quantization_config").filter(|q| !q.is_null()) else {
        return Ok(tensors);
    };
    let scheme = Scheme::read(quantized).map_err(|what| Error::broken(path, what))?;
    let modules: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix(".weight_packed")).map(str::to_owned).collect();
    for module in modules {
        let mut take = |name: &str| tensors.remove(&format!("{module}.weight_{name}"));
        let parts = [take("packed"), take("scale"), take("shape"), take("zero_point")];
        let weight = weight(&scheme, &parts)
            .map_err(|what| Error::broken(path, format!("weight {module:?}: {what}")))?;
        tensors.insert(format!("{module}.weight"), weight);
    }
    Ok(tensors)
}

/// A weight from codes, scales, shape and zero points.
fn weight(scheme: &Scheme, parts: &[Option<Tensor>; 4]) -> std::result::Result<Tensor, String> {
    let [Some(packed), Some(scale), Some(shape), zeros] = parts else {
        return Err("scales or shape are missing".into());
    };
    let shape: Vec<usize> = shape
        .to_ints()
        .map_err(|e| e.to_string())?
        .iter()
        .filter_map(|&n| usize::try_from(n).ok().filter(|n| *n < 1 << 31))
        .collect();
    let &[rows, cols] = shape.as_slice() else { return Err(format!("its shape is {shape:?}")) };
    let bits = scheme.bits;
    let group = if scheme.group == 0 { cols.max(1) } else { scheme.group };
    let groups = cols.div_ceil(group);
    let (wide, high) = (words(cols, bits), words(rows, bits));
    if packed.bytes().len() != rows * wide * 4 || scale.len() != rows * groups {
        return Err(format!("codes or scales do not have the size of {rows} x {cols}"));
    }
    let zeros = match zeros {
        Some(zeros) if zeros.bytes().len() == high * groups * 4 => {
            let column = |g: usize| -> Vec<u8> {
                let words = (0..high).flat_map(|i| zeros.bytes()[(i * groups + g) * 4..][..4].to_vec());
                unpack(&words.collect::<Vec<u8>>(), rows, bits).collect()
            };
            (0..groups).map(column).collect()
        }
        None if scheme.symmetric => vec![vec![1 << (bits - 1); rows]; groups],
        _ => return Err("zero points are missing or have another size".into()),
    };
    let scales = scale.to_f32().map_err(|e| e.to_string())?;
    Tensor::build(&[rows, cols], |out: &mut [f32]| {
        for (row, out) in out.chunks_exact_mut(cols.max(1)).enumerate() {
            let codes = unpack(&packed.bytes()[row * wide * 4..][..wide * 4], cols, bits);
            for ((x, code), j) in out.iter_mut().zip(codes).zip(0..) {
                let g = j / group;
                *x = (f32::from(code) - f32::from(zeros[g][row])) * scales[row * groups + g];
            }
        }
        Ok(())
    })
    .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ints(bytes: &[u8]) -> Vec<u32> {
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn words_are_those_of_its_own_packer() {
        let codes: Vec<u8> = (-8i8..8).map(|q| (q + 8) as u8).collect();
        assert_eq!(ints(&pack_rows(&codes, 16, 4)), [0x7654_3210, 0xfedc_ba98]);
        let codes: Vec<u8> = (-4i8..4).chain(-4..4).map(|q| (q + 4) as u8).collect();
        assert_eq!(ints(&pack_rows(&codes, 16, 3)), [0x88fa_c688, 0x0000_fac6]);
        let zeros: Vec<u8> = [-8i8, -1, 0, 7, 3, -2, 1, 2, 5].iter().map(|z| (z + 8) as u8).collect();
        assert_eq!(ints(&pack_columns(&zeros, 1, 4)), [0xa96b_f870, 0x0000_000d]);
    }

    fn sample(scheme: Scheme, rows: usize, cols: usize) -> (Tensors, Vec<f32>) {
        let groups = cols.div_ceil(scheme.group);
        let mask = (1u32 << scheme.bits) - 1;
        let codes: Vec<u8> = (0..rows * cols).map(|k| ((k * 7919 % 1013) as u32 & mask) as u8).collect();
        let middle = 1 << (scheme.bits - 1);
        let zeros: Vec<u8> = (0..rows * groups)
            .map(|k| if scheme.symmetric { middle } else { ((k * 31) as u32 & mask) as u8 })
            .collect();
        let scales: Vec<f32> = (0..rows * groups).map(|k| 0.25 * (k + 1) as f32).collect();
        let value = |k: usize| {
            let g = k / cols * groups + k % cols / scheme.group;
            (f32::from(codes[k]) - f32::from(zeros[g])) * scales[g]
        };
        let want = (0..rows * cols).map(value).collect();
        let mut tensors = Tensors::new();
        for piece in scheme.pieces("m", rows, cols, Dtype::F16) {
            let (dtype, bytes) = match piece.name.as_str() {
                "m.weight_packed" => (graph::DType::I32, pack_rows(&codes, cols, scheme.bits)),
                "m.weight_scale" => (graph::DType::F16, pack_scales(&scales, Dtype::F16)),
                "m.weight_shape" => {
                    (graph::DType::I64, [rows as u64, cols as u64].map(u64::to_le_bytes).concat())
                }
                _ => (graph::DType::I32, pack_columns(&zeros, groups, scheme.bits)),
            };
            assert_eq!(bytes.len() as u64, piece.bytes(), "{}", piece.name);
            tensors.insert(piece.name, Tensor::from_bytes(dtype, &piece.shape, bytes.into()).unwrap());
        }
        (tensors, want)
    }

    fn config(scheme: Scheme) -> Value {
        json!({ "quantization_config": scheme.config(&["lm_head".into()], "0.1.0") })
    }

    #[test]
    fn weights_come_back_in_all_widths_and_ragged_sizes() {
        for bits in 1..=8 {
            for symmetric in [false, true] {
                for (rows, cols) in [(1, 8), (5, 40), (33, 24)] {
                    let scheme = Scheme { bits, group: 8, symmetric };
                    let (tensors, want) = sample(scheme, rows, cols);
                    assert_eq!(tensors.len(), if symmetric { 3 } else { 4 });
                    let read = decode(Path::new("x"), &config(scheme), tensors).unwrap();
                    assert_eq!(read.len(), 1);
                    assert_eq!(read["m.weight"].values::<f32>().unwrap().as_ref(), want, "{scheme:?}");
                    assert_eq!(Scheme::read(&config(scheme)["quantization_config"]), Ok(scheme));
                }
            }
        }
    }

    #[test]
    fn what_is_missing_or_of_another_size_is_refused() {
        let scheme = Scheme { bits: 4, group: 8, symmetric: false };
        let path = Path::new("x");
        for name in ["scale", "shape", "zero_point"] {
            let (mut tensors, _) = sample(scheme, 5, 40);
            tensors.remove(&format!("m.weight_{name}"));
            assert!(decode(path, &config(scheme), tensors).is_err(), "{name}");
        }
        for shape in [[5i64, 41], [6, 40], [-5, 40], [i64::MAX, 40], [1 << 30, 1 << 30]] {
            let (mut tensors, _) = sample(scheme, 5, 40);
            tensors.insert("m.weight_shape".into(), Tensor::vector(&shape));
            assert!(decode(path, &config(scheme), tensors).is_err(), "{shape:?}");
        }
        let (tensors, _) = sample(scheme, 5, 40);
        let mut other = config(scheme);
        other["quantization_config"]["format"] = "marlin-24".into();
        assert!(decode(path, &other, tensors.clone()).is_err());
        other["quantization_config"] = Value::Null;
        assert_eq!(decode(path, &other, tensors).unwrap().len(), 4);
    }
}
