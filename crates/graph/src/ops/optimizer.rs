//! Steps of training: `Adagrad`, `Adam`, `Momentum` of ai.onnx.preview.training.
//! <https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Adam.html>

use std::any::Any;
use std::sync::Arc;

use crate::op::{Facts, Inputs, OpDef, Reader, RunCx, Sample, ramp};
use crate::ops::family::family;
use crate::ops::number::{Number, by_type};
use crate::{Attrs, Error, Fact, Op, Result, Tensor};

/// One step. Inputs: the rate, the count of steps, then all weights, all gradients, and all states of each kind;
/// outputs: the new weights, and the new states of each kind.
#[derive(Debug)]
pub struct Optimizer {
    rule: &'static Rule,
    numbers: Vec<f32>,
    /// The momentum looks ahead.
    nesterov: bool,
}

/// One kind of optimizer.
#[derive(Debug)]
struct Rule {
    /// Names and defaults of its numbers.
    numbers: &'static [(&'static str, Option<f32>)],
    /// Kinds of states.
    states: usize,
}

/// In the order of [`DEFS`].
static RULES: [Rule; 3] = [
    Rule {
        numbers: &[("norm_coefficient", Some(0.0)), ("decay_factor", Some(0.0)), ("epsilon", Some(1e-6))],
        states: 1,
    },
    Rule {
        numbers: &[
            ("norm_coefficient", Some(0.0)),
            ("alpha", Some(0.9)),
            ("beta", Some(0.999)),
            ("epsilon", Some(1e-6)),
            ("norm_coefficient_post", Some(0.0)),
        ],
        states: 2,
    },
    Rule { numbers: &[("norm_coefficient", None), ("alpha", None), ("beta", None)], states: 1 },
];

pub(crate) static DEFS: &[OpDef] =
    family!("ai.onnx.preview.training", read, samples; "Adagrad" 1, "Adam" 1, "Momentum" 1);

fn rule(name: &str) -> &'static Rule {
    &RULES[DEFS.iter().position(|d| d.name == name).unwrap_or(0)]
}

fn read(r: &Reader, name: &str) -> Result<Arc<dyn Op>> {
    let rule = rule(name);
    let number = |&(name, default): &(&str, Option<f32>)| match r.attrs.opt_float(name)?.or(default) {
        Some(number) => Ok(number),
        None => Err(Error::invalid(format!("attribute {name:?} (a number) is missing"))),
    };
    let numbers = rule.numbers.iter().map(number).collect::<Result<_>>()?;
    let nesterov = match (name, r.attrs.text_or("mode", "")?) {
        ("Momentum", "nesterov") => true,
        ("Momentum", "standard") | ("Adagrad" | "Adam", _) => false,
        (_, other) => {
            return Err(Error::invalid(format!("mode is {other:?}, neither standard nor nesterov")));
        }
    };
    Ok(Arc::new(Optimizer { rule, numbers, nesterov }))
}

fn samples(name: &str) -> Vec<Sample> {
    let rule = rule(name);
    let op = |nesterov| Optimizer {
        rule,
        numbers: rule.numbers.iter().map(|n| n.1.unwrap_or(0.5) + 0.01).collect(),
        nesterov,
    };
    let states = (0..rule.states).flat_map(|_| [Tensor::vector(&[0.5f32, 2.0]), Tensor::vector(&[0.3f32])]);
    let mut inputs =
        vec![Tensor::scalar(0.1f32), Tensor::scalar(2i64), ramp(&[2]), ramp(&[1]), ramp(&[2]), ramp(&[1])];
    inputs.extend(states);
    let modes: &[bool] = if name == "Momentum" { &[false, true] } else { &[false] };
    let sample = |&nesterov: &bool| Sample::new(op(nesterov), inputs.clone()).outputs(2 + 2 * rule.states);
    modes.iter().map(sample).collect()
}

impl Optimizer {
    /// The new weight and states of one element.
    fn step(&self, rate: f64, count: f64, x: f64, g: f64, states: [f64; 2]) -> (f64, [f64; 2]) {
        let number = |i: usize| f64::from(self.numbers[i]);
        let g = number(0) * x + g;
        match self.def().name {
            "Adagrad" => {
                let h = states[0] + g * g;
                (x - rate / (1.0 + count * number(1)) * g / (h.sqrt() + number(2)), [h, 0.0])
            }
            "Adam" => {
                let (alpha, beta) = (number(1), number(2));
                let (v, h) = (alpha * states[0] + (1.0 - alpha) * g, beta * states[1] + (1.0 - beta) * g * g);
                let start = (1.0 - beta.powf(count)).sqrt() / (1.0 - alpha.powf(count));
                let rate = if count > 0.0 { rate * start } else { rate };
                ((1.0 - number(4)) * (x - rate * v / (h.sqrt() + number(3))), [v, h])
            }
            _ => {
                let v = number(1) * states[0] + if count > 0.0 { number(2) } else { 1.0 } * g;
                (x - rate * if self.nesterov { g + number(1) * v } else { v }, [v, 0.0])
            }
        }
    }

    /// Number of weights, given that of the inputs.
    fn weights(&self, inputs: usize) -> Result<usize> {
        let each = 2 + self.rule.states;
        match inputs.checked_sub(2) {
            Some(n) if n % each == 0 => Ok(n / each),
            _ => Err(Error::invalid(format!("{inputs} inputs are not 2 and {each} for each weight"))),
        }
    }

    fn run_as<T: Number>(
        &self,
        numbers: (f64, f64),
        x: &mut Tensor,
        g: &Tensor,
        states: &mut [Tensor],
    ) -> Result<()> {
        let g = g.as_slice::<T>()?;
        let mut lists = states.iter_mut().map(|s| s.as_mut_slice::<T>()).collect::<Result<Vec<_>>>()?;
        for (i, x) in x.as_mut_slice::<T>()?.iter_mut().enumerate() {
            let state = |k: usize| lists.get(k).map_or(0.0, |s| s[i].to_f64());
            let (new, states) =
                self.step(numbers.0, numbers.1, x.to_f64(), g[i].to_f64(), [state(0), state(1)]);
            *x = T::from_f64(new);
            lists.iter_mut().zip(states).for_each(|(list, s)| list[i] = T::from_f64(s));
        }
        Ok(())
    }
}

impl Op for Optimizer {
    fn def(&self) -> &'static OpDef {
        &DEFS[RULES.iter().position(|r| std::ptr::eq(r, self.rule)).unwrap_or(0)]
    }

    fn attrs(&self) -> Attrs {
        let numbers = self.rule.numbers.iter().zip(&self.numbers);
        let attrs = numbers.fold(Attrs::new(), |attrs, ((name, _), &value)| attrs.float(name, value));
        let mode = if self.nesterov { "nesterov" } else { "standard" };
        attrs.maybe("mode", (self.def().name == "Momentum").then_some(mode.into()))
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let weights = self.weights(inputs.len())?;
        let from = (2..2 + weights).chain(2 + 2 * weights..inputs.len());
        from.map(|i| Ok(Fact { ty: inputs.need(i)?.ty.clone(), ints: None })).collect()
    }

    fn run(&self, _: &RunCx, mut inputs: Inputs) -> Result<Vec<Tensor>> {
        fn run<T: Number>(
            op: &Optimizer,
            numbers: (f64, f64),
            x: &mut Tensor,
            g: &Tensor,
            states: &mut [Tensor],
        ) -> Result<()> {
            op.run_as::<T>(numbers, x, g, states)
        }
        let weights = self.weights(inputs.len())?;
        let first =
            |i| Ok::<_, Error>(inputs.need(i)?.to_f32()?.first().copied().map_or(f64::NAN, f64::from));
        let numbers = (first(0)?, first(1)?);
        let mut outputs: Vec<Vec<Tensor>> = (0..=self.rule.states).map(|_| Vec::new()).collect();
        for k in 0..weights {
            let (mut x, g) = (inputs.take(2 + k)?, inputs.take(2 + weights + k)?);
            let place = |s: usize| 2 + (2 + s) * weights + k;
            let mut states =
                (0..self.rule.states).map(|s| inputs.take(place(s))).collect::<Result<Vec<_>>>()?;
            if states.iter().chain([&g]).any(|t| t.shape() != x.shape() || t.dtype() != x.dtype()) {
                return Err(Error::invalid(format!("the gradient or a state of weight {k} does not fit it")));
            }
            by_type!(x.dtype(), run(self, numbers, &mut x, &g, &mut states))?;
            outputs[0].push(x);
            outputs[1..].iter_mut().zip(states).for_each(|(list, state)| list.push(state));
        }
        Ok(outputs.into_iter().flatten().collect())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
