//! Building a graph from ONNX operators.

use graph::op::Reader;
use graph::{Attrs, DType, Error, Fact, Graph, Node, Result, Tensor, ValueId};
use kernel::{Cpu, transpose::transpose};

use crate::safetensors::Tensors;

/// Version of ONNX's operators that graphs are built with.
pub const OPSET: i64 = 17;

/// A graph being built, and the tensors it is built from.
pub struct Builder {
    pub graph: Graph,
    tensors: Tensors,
    prefixes: &'static [&'static str],
    cpu: Cpu,
}

impl Builder {
    pub fn new(name: &str, tensors: Tensors, prefixes: &'static [&'static str]) -> Result<Builder> {
        let cpu = Cpu::new(1).map_err(Error::Input)?;
        Ok(Builder { graph: Graph::new(name), tensors, prefixes, cpu })
    }

    pub fn input(&mut self, name: &str, fact: Fact) -> Result<ValueId> {
        self.graph.add_input(name, fact)
    }

    /// Adds an operator with one output of this name.
    pub fn op(&mut self, kind: &str, name: &str, inputs: &[ValueId], attrs: Attrs) -> Result<ValueId> {
        let reader = Reader { attrs: &attrs, version: OPSET, inputs: inputs.len(), outputs: 1 };
        let op = graph::ops::read("", kind, &reader)?;
        let node = Node::new(op, inputs.iter().copied().map(Some).collect());
        let (_, outputs) = self.graph.add_with_outputs(name, node, 1, None)?;
        Ok(outputs[0])
    }

    pub fn ints(&mut self, name: &str, values: &[i64]) -> ValueId {
        self.graph.add_constant(name, Tensor::vector(values))
    }

    pub fn number(&mut self, name: &str, value: f32) -> ValueId {
        self.graph.add_constant(name, Tensor::scalar(value))
    }

    pub fn has(&self, name: &str) -> bool {
        self.prefixes.iter().any(|p| self.tensors.contains_key(&format!("{p}{name}")))
    }

    /// The tensor of this name as f32, of this rank.
    fn tensor(&mut self, name: &str, rank: usize) -> Result<Tensor> {
        let found = self.prefixes.iter().find_map(|p| self.tensors.get(&format!("{p}{name}")));
        let tensor = found.cloned().ok_or_else(|| Error::invalid(format!("tensor {name:?} is missing")))?;
        if tensor.rank() != rank {
            return Err(Error::invalid(format!(
                "tensor {name:?} has shape {:?}, rank {rank} is expected",
                tensor.shape()
            )));
        }
        match tensor.dtype() {
            DType::F32 => Ok(tensor),
            DType::F16 | DType::BF16 | DType::F64 => Tensor::new(tensor.shape(), &tensor.to_f32()?),
            other => Err(Error::invalid(format!(
                "tensor {name:?} holds {other}, floating-point numbers are expected"
            ))),
        }
    }

    /// A vector as a constant, checked to have this length.
    pub fn vector(&mut self, name: &str, length: usize) -> Result<ValueId> {
        let tensor = self.tensor(name, 1)?;
        self.expect(name, tensor.shape(), &[length])?;
        Ok(self.graph.add_constant(name, tensor))
    }

    /// A table as a constant: rows of this width.
    pub fn table(&mut self, name: &str, width: usize) -> Result<ValueId> {
        let name = format!("{name}.weight");
        let tensor = self.tensor(&name, 2)?;
        let rows = tensor.shape()[0];
        self.expect(&name, tensor.shape(), &[rows, width])?;
        Ok(self.graph.add_constant(&name, tensor))
    }

    fn expect(&self, name: &str, shape: &[usize], want: &[usize]) -> Result<()> {
        match shape == want {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "tensor {name:?} has shape {shape:?}, config.json asks for {want:?}"
            ))),
        }
    }

    /// `x W^T + b` for a stored weight [out, in]; `outputs` is checked when it is given.
    pub fn linear(
        &mut self,
        name: &str,
        x: ValueId,
        inputs: usize,
        outputs: Option<usize>,
    ) -> Result<ValueId> {
        let weight_name = format!("{name}.weight");
        let weight = self.tensor(&weight_name, 2)?;
        let outputs = outputs.unwrap_or(weight.shape()[0]);
        self.expect(&weight_name, weight.shape(), &[outputs, inputs])?;
        let weight = self.graph.add_constant(&weight_name, transposed(&weight, &self.cpu)?);
        let product = self.op("MatMul", &format!("{name}.product"), &[x, weight], Attrs::new())?;
        let bias = format!("{name}.bias");
        if !self.has(&bias) {
            return Ok(product);
        }
        let bias = self.vector(&bias, outputs)?;
        self.op("Add", &format!("{name}.sum"), &[product, bias], Attrs::new())
    }

    /// Layer normalisation over the last axis.
    pub fn norm(&mut self, name: &str, x: ValueId, width: usize, epsilon: f32) -> Result<ValueId> {
        let gamma = self.vector(&format!("{name}.weight"), width)?;
        let beta = self.vector(&format!("{name}.bias"), width)?;
        let attrs = Attrs::new().int("axis", -1).float("epsilon", epsilon);
        self.op("LayerNormalization", name, &[x, gamma, beta], attrs)
    }
}

/// A matrix of f32 as MatMul takes it.
fn transposed(tensor: &Tensor, cpu: &Cpu) -> Result<Tensor> {
    let shape = tensor.shape();
    Tensor::build(&[shape[1], shape[0]], |out: &mut [f32]| {
        transpose(cpu, size_of::<f32>(), tensor.bytes(), shape, &[1, 0], bytemuck::cast_slice_mut(out));
        Ok(())
    })
}
