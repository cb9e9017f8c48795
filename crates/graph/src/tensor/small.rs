//! Floating-point numbers of 8 and 4 bits, by their definitions in the ONNX documents (float8, float4, MX).

use crate::DType;

struct Layout {
    mantissa: u32,
    bias: i32,
}

fn layout(dtype: DType) -> Layout {
    match dtype {
        DType::F8E4M3FN => Layout { mantissa: 3, bias: 7 },
        DType::F8E4M3FNUZ => Layout { mantissa: 3, bias: 8 },
        DType::F8E5M2 => Layout { mantissa: 2, bias: 15 },
        DType::F8E5M2FNUZ => Layout { mantissa: 2, bias: 16 },
        _ => Layout { mantissa: 1, bias: 1 },
    }
}

/// The value of a code without sign, ignoring codes that mean NaN or infinity.
fn magnitude(layout: &Layout, code: u32) -> f32 {
    let fraction = (code & ((1 << layout.mantissa) - 1)) as f32 / (1 << layout.mantissa) as f32;
    match (code >> layout.mantissa) as i32 {
        0 => fraction * 2f32.powi(1 - layout.bias),
        e => (1.0 + fraction) * 2f32.powi(e - layout.bias),
    }
}

/// The code of the greatest finite magnitude.
fn top(dtype: DType) -> u32 {
    match dtype {
        DType::F8E4M3FN => 0x7e,
        DType::F8E5M2 => 0x7b,
        DType::F4E2M1 => 7,
        _ => 0x7f,
    }
}

/// The value of an 8-bit float (`dtype` is one of the five such types).
pub fn decode_f8(dtype: DType, code: u8) -> f32 {
    match (dtype, code) {
        (DType::F8E8M0, 0xff) => f32::NAN,
        (DType::F8E8M0, e) => 2f64.powi(i32::from(e) - 127) as f32,
        (DType::F8E4M3FN, 0x7f | 0xff) => f32::NAN,
        (DType::F8E4M3FNUZ | DType::F8E5M2FNUZ, 0x80) => f32::NAN,
        (DType::F8E5M2, 0x7c) => f32::INFINITY,
        (DType::F8E5M2, 0xfc) => f32::NEG_INFINITY,
        (DType::F8E5M2, c) if c & 0x7f > 0x7c => f32::NAN,
        (_, c) => {
            let value = magnitude(&layout(dtype), u32::from(c & 0x7f));
            if c & 0x80 != 0 { -value } else { value }
        }
    }
}

/// The value of a 4-bit float E2M1 (the low four bits of `code`).
pub fn decode_f4(code: u8) -> f32 {
    let value = magnitude(&layout(DType::F4E2M1), u32::from(code & 7));
    if code & 8 != 0 { -value } else { value }
}

/// The code, without sign, whose value is nearest to `x` >= 0; ties go to the even code. Not above `top`, unless
/// `x` lies at least half a step beyond it: then `top + 1`.
fn nearest(dtype: DType, x: f32) -> u32 {
    let layout = layout(dtype);
    let top = top(dtype);
    // Codes of one sign are ordered as their values are, so the nearest is found by bisection.
    let (mut low, mut high) = (0, top + 1);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if magnitude(&layout, middle) <= x { low = middle } else { high = middle }
    }
    let (below, above) = (f64::from(magnitude(&layout, low)), f64::from(magnitude(&layout, high)));
    let (to_low, to_high) = (f64::from(x) - below, above - f64::from(x));
    if to_low < to_high || (to_low == to_high && low % 2 == 0) { low } else { high }
}

/// The 8-bit float nearest to `x`, as ONNX `Cast` gives it: with `saturate`, what is too great becomes the
/// greatest finite number, else infinity or NaN. For [`DType::F8E8M0`] the sign is dropped, powers of two are
/// rounded to the nearest (see [`encode_e8m0`]).
pub fn encode_f8(dtype: DType, x: f32, saturate: bool) -> u8 {
    let uz = matches!(dtype, DType::F8E4M3FNUZ | DType::F8E5M2FNUZ);
    if dtype == DType::F8E8M0 {
        return encode_e8m0(x, saturate, PowerRounding::Nearest);
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0u8 };
    let nan = match dtype {
        DType::F8E4M3FN | DType::F8E5M2 => 0x7f | sign,
        _ => 0x80,
    };
    if x.is_nan() {
        return nan;
    }
    let top = top(dtype);
    let beyond = match dtype {
        DType::F8E5M2 => 0x7c | sign,
        _ => nan,
    };
    if x.is_infinite() {
        let limit = top as u8 | sign;
        return if saturate { limit } else { beyond };
    }
    match nearest(dtype, x.abs()) {
        code if code > top => {
            if saturate {
                top as u8 | sign
            } else {
                beyond
            }
        }
        0 if uz => 0,
        code => code as u8 | sign,
    }
}

/// How a number between two powers of two is rounded to one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PowerRounding {
    Up,
    Down,
    Nearest,
}

/// The power of two, as [`DType::F8E8M0`], that a number is rounded to; its sign is dropped.
pub fn encode_e8m0(x: f32, saturate: bool, rounding: PowerRounding) -> u8 {
    if x.is_nan() {
        return 0xff;
    }
    let x = f64::from(x.abs());
    if x.is_infinite() {
        return if saturate { 0xfe } else { 0xff };
    }
    if x == 0.0 {
        return 0;
    }
    let mut exponent = x.log2().floor() as i32;
    let up = match rounding {
        PowerRounding::Up => x > 2f64.powi(exponent),
        PowerRounding::Down => false,
        PowerRounding::Nearest => x >= 1.5 * 2f64.powi(exponent),
    };
    exponent += i32::from(up);
    match exponent + 127 {
        e if e > 254 => {
            if saturate {
                0xfe
            } else {
                0xff
            }
        }
        e => e.max(0) as u8,
    }
}

/// The 4-bit float E2M1 nearest to `x`, saturated; NaN, which it cannot hold, becomes -0.
pub fn encode_f4(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 8 } else { 0 };
    if x.is_nan() {
        return 8;
    }
    let code = if x.is_infinite() { 7 } else { nearest(DType::F4E2M1, x.abs()).min(7) };
    code as u8 | sign
}

#[cfg(test)]
mod tests {
    use super::*;
    use DType::*;

    #[test]
    fn every_code_survives() {
        for dtype in [F8E4M3FN, F8E4M3FNUZ, F8E5M2, F8E5M2FNUZ, F8E8M0] {
            for code in 0..=255u8 {
                let x = decode_f8(dtype, code);
                let back = encode_f8(dtype, x, false);
                assert!(
                    back == code || x.is_nan() && decode_f8(dtype, back).is_nan(),
                    "{dtype} {code:#x} {x}"
                );
            }
        }
        assert!((0..16).all(|c| encode_f4(decode_f4(c)) == c));
    }

    #[test]
    fn known_values() {
        assert_eq!(decode_f8(F8E4M3FN, 0x7e), 448.0);
        assert_eq!(decode_f8(F8E4M3FNUZ, 0x7f), 240.0);
        assert_eq!(decode_f8(F8E5M2, 0x7b), 57344.0);
        assert_eq!(decode_f8(F8E5M2FNUZ, 0x7f), 57344.0);
        let e2m1: Vec<f32> = (0..8).map(decode_f4).collect();
        assert_eq!(e2m1, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
        assert_eq!(encode_f8(F8E4M3FN, 1e6, true), 0x7e);
        assert_eq!(encode_f8(F8E4M3FN, 1e6, false), 0x7f);
        assert_eq!(encode_f8(F8E5M2, 1e6, false), 0x7c);
        assert_eq!(encode_f4(2.5), 4);
        assert_eq!(encode_f4(0.25), 0);
    }
}
