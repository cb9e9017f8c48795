//! 16-bit floats: operators without arithmetic of their own for them compute in f32 and round once at the end.

use crate::op::Inputs;
use crate::ops::cast::cast;
use crate::{DType, Datum, Result, Tensor};

/// True for the 16-bit floating-point types.
pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// A 16-bit floating-point tensor as f32; others as they are.
///
/// # Errors
/// When memory is short.
pub(crate) fn widen(x: Tensor) -> Result<Tensor> {
    match is_half(x.dtype()) {
        true => cast(x, DType::F32, true),
        false => Ok(x),
    }
}

/// Runs `run` with all 16-bit inputs as f32, and gives back its f32 outputs in the type `to`, when that is one of 16
/// bits; otherwise just runs it.
///
/// # Errors
/// What `run` returns.
pub(crate) fn in_f32(
    to: DType,
    mut inputs: Inputs,
    run: impl FnOnce(Inputs) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    if !is_half(to) {
        return run(inputs);
    }
    let wide = (0..inputs.len()).map(|i| match inputs.take_data(i) {
        Some(Datum::Tensor(t)) => Ok(Some(Datum::Tensor(widen(t)?))),
        other => Ok(other),
    });
    let outputs = run(Inputs::new(wide.collect::<Result<_>>()?))?;
    let narrow = |t: Tensor| if t.dtype() == DType::F32 { cast(t, to, true) } else { Ok(t) };
    outputs.into_iter().map(narrow).collect()
}
