//! The functions of the gates of recurrent networks. <https://onnx.ai/onnx/operators/onnx__RNN.html>

use kernel::{Act, Cpu};

use crate::{Error, Result};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Gate {
    /// One that the kernels have.
    Act(Act),
    /// `a x + b`
    Affine(f32, f32),
    /// `a tanh(b x)`
    ScaledTanh(f32, f32),
    /// `x` when `x > a`, else 0
    Thresholded(f32),
    /// `x / (1 + |x|)`
    Softsign,
}

/// The functions of these names. Parameters are used up in order, by the functions that have any.
///
/// # Errors
/// [`Error::Unsupported`] for other names.
pub(crate) fn read_gates(names: &[&str], alpha: Option<&[f32]>, beta: Option<&[f32]>) -> Result<Vec<Gate>> {
    let mut alpha = alpha.unwrap_or_default().iter().copied();
    let mut beta = beta.unwrap_or_default().iter().copied();
    let one = |name: &&str| {
        let mut a = |default: f32| alpha.next().unwrap_or(default);
        let mut b = |default: f32| beta.next().unwrap_or(default);
        Ok(match name.to_ascii_lowercase().as_str() {
            "relu" => Gate::Act(Act::Relu),
            "tanh" => Gate::Act(Act::Tanh),
            "sigmoid" => Gate::Act(Act::Sigmoid),
            "softplus" => Gate::Act(Act::Softplus),
            "softsign" => Gate::Softsign,
            "leakyrelu" => Gate::Act(Act::LeakyRelu(a(0.01))),
            "elu" => Gate::Act(Act::Elu(a(1.0))),
            "thresholdedrelu" => Gate::Thresholded(a(1.0)),
            "hardsigmoid" => Gate::Act(Act::HardSigmoid { alpha: a(0.2), beta: b(0.5) }),
            "affine" => Gate::Affine(a(1.0), b(0.0)),
            "scaledtanh" => Gate::ScaledTanh(a(1.0), b(1.0)),
            _ => return Err(Error::unsupported(format!("activation {name:?} in a recurrent network"))),
        })
    };
    names.iter().map(one).collect()
}

impl Gate {
    /// Replaces each element.
    pub fn apply(self, cpu: &Cpu, data: &mut [f32]) {
        let mut each = |f: &dyn Fn(f32) -> f32| data.iter_mut().for_each(|v| *v = f(*v));
        match self {
            Gate::Act(act) => act.tile(cpu, data),
            Gate::Affine(a, b) => each(&|v| a * v + b),
            Gate::ScaledTanh(a, b) => each(&|v| a * (b * v).tanh()),
            Gate::Thresholded(a) => each(&|v| if v > a { v } else { 0.0 }),
            Gate::Softsign => each(&|v| v / (1.0 + v.abs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_used_up_by_those_that_have_any() {
        let gates = read_gates(&["Sigmoid", "LeakyRelu", "Affine"], Some(&[0.5, 2.0]), Some(&[3.0])).unwrap();
        assert_eq!(gates, [Gate::Act(Act::Sigmoid), Gate::Act(Act::LeakyRelu(0.5)), Gate::Affine(2.0, 3.0)]);
        assert!(read_gates(&["Sinus"], None, None).is_err());
    }
}
