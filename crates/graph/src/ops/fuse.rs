//! Activations that are applied while the results of a product or a convolution are still in the cache: their names
//! and parameters as attributes, and how the kernels take them.

use kernel::conv::Activation;
use kernel::{Act, matmul};

use crate::{Attr, Attrs, Error, Result};

/// The activation of this name, as `com.microsoft.FusedConv` and `FusedGemm` have it; "" is none.
///
/// # Errors
/// [`Error::Unsupported`] for other names.
pub(crate) fn act(name: &str, params: &[f32]) -> Result<Act> {
    let param = |i: usize, default: f32| params.get(i).copied().unwrap_or(default);
    Ok(match name {
        "" => Act::Identity,
        "Relu" => Act::Relu,
        "Tanh" => Act::Tanh,
        "Sigmoid" => Act::Sigmoid,
        "HardSwish" => Act::HardSwish,
        "Gelu" => Act::Gelu,
        "GeluTanh" => Act::GeluTanh,
        "Silu" => Act::Silu,
        "Mish" => Act::Mish,
        "Softplus" => Act::Softplus,
        "LeakyRelu" => Act::LeakyRelu(param(0, 0.01)),
        "Elu" => Act::Elu(param(0, 1.0)),
        "Swish" => Act::Swish(param(0, 1.0)),
        "Clip" => Act::Clip { lo: param(0, f32::MIN), hi: param(1, f32::MAX) },
        "HardSigmoid" => Act::HardSigmoid { alpha: param(0, 0.2), beta: param(1, 0.5) },
        other => return Err(Error::unsupported(format!("activation {other:?} fused into another operator"))),
    })
}

/// The name and the parameters of an activation that [`act`] knows.
fn parts(act: Act) -> (&'static str, Vec<f32>) {
    match act {
        Act::Relu => ("Relu", vec![]),
        Act::Tanh => ("Tanh", vec![]),
        Act::Sigmoid => ("Sigmoid", vec![]),
        Act::HardSwish => ("HardSwish", vec![]),
        Act::Gelu => ("Gelu", vec![]),
        Act::GeluTanh => ("GeluTanh", vec![]),
        Act::Silu => ("Silu", vec![]),
        Act::Mish => ("Mish", vec![]),
        Act::Softplus => ("Softplus", vec![]),
        Act::LeakyRelu(alpha) => ("LeakyRelu", vec![alpha]),
        Act::Elu(alpha) => ("Elu", vec![alpha]),
        Act::Swish(alpha) => ("Swish", vec![alpha]),
        Act::Clip { lo, hi } => ("Clip", vec![lo, hi]),
        Act::HardSigmoid { alpha, beta } => ("HardSigmoid", vec![alpha, beta]),
        _ => ("", vec![]),
    }
}

/// Can this activation be fused into a product or a convolution?
pub fn is_fusable(act: Act) -> bool {
    act == Act::Identity || !parts(act).0.is_empty()
}

/// Reads `activation` and `activation_params`.
///
/// # Errors
/// As [`act`].
pub(crate) fn read(attrs: &Attrs) -> Result<Act> {
    act(attrs.text_or("activation", "")?, &attrs.opt_floats("activation_params")?.unwrap_or_default())
}

/// Reads `activation`, `activation_alpha` and `activation_beta`.
///
/// # Errors
/// As [`act`].
pub(crate) fn read_greek(attrs: &Attrs) -> Result<Act> {
    let params = [attrs.opt_float("activation_alpha")?, attrs.opt_float("activation_beta")?];
    act(attrs.text_or("activation", "")?, &params.into_iter().flatten().collect::<Vec<_>>())
}

/// Writes what [`read`] reads.
pub(crate) fn write(attrs: Attrs, act: Act) -> Attrs {
    let (name, params) = parts(act);
    let attrs = attrs.maybe("activation", (!name.is_empty()).then(|| Attr::from(name)));
    attrs.maybe("activation_params", (!params.is_empty()).then_some(Attr::Floats(params)))
}

/// Writes what [`read_greek`] reads.
pub(crate) fn write_greek(attrs: Attrs, act: Act) -> Attrs {
    let (name, params) = parts(act);
    let attrs = attrs.maybe("activation", (!name.is_empty()).then(|| Attr::from(name)));
    let attrs = attrs.maybe("activation_alpha", params.first().map(|&v| Attr::Float(v)));
    attrs.maybe("activation_beta", params.get(1).map(|&v| Attr::Float(v)))
}

/// The activation as the matrix product takes it; `None` when it has to be applied afterwards.
pub(crate) fn in_product(act: Act) -> Option<matmul::Act> {
    match act {
        Act::Identity => Some(matmul::Act::None),
        Act::Relu => Some(matmul::Act::Relu),
        Act::Clip { lo, hi } => Some(matmul::Act::Clip { lo, hi }),
        _ => None,
    }
}

/// The activation as the convolution takes it; `None` when it has to be applied afterwards.
pub(crate) fn in_conv(act: Act) -> Option<Activation> {
    match act {
        Act::Identity => Some(Activation::None),
        Act::Relu => Some(Activation::Relu),
        Act::Clip { lo, hi } => Some(Activation::Clip { lo, hi }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_parameters_survive() {
        let clip = Act::Clip { lo: -1.0, hi: 6.0 };
        for act in [Act::Identity, Act::Relu, clip, Act::LeakyRelu(0.3), Act::Gelu] {
            assert_eq!(read(&write(Attrs::new(), act)).unwrap(), act);
            assert_eq!(read_greek(&write_greek(Attrs::new(), act)).unwrap(), act);
        }
        assert!(act("Sinus", &[]).is_err());
    }
}
