//! The list of operators: one line a file. Each file holds one operator or one family of the same shape.

use std::sync::Arc;

use crate::op::{OpDef, Reader};
use crate::{Op, Result};

pub mod arg;
pub mod attention;
pub mod batch_norm;
pub mod binary;
pub mod bitcast;
pub mod bits;
pub mod boxes;
pub mod call;
pub mod cast;
pub mod causal_conv;
pub mod choose;
pub mod clip;
pub mod col2im;
pub mod compare;
pub mod concat;
pub mod constant;
pub mod control;
pub mod conv;
pub mod conv_grad;
pub mod conv_transpose;
pub mod crop;
pub mod cumulative;
pub mod deform_conv;
pub mod depth;
pub mod dft;
pub mod diagonal;
pub mod einsum;
pub mod expand;
pub mod features;
pub mod fuse;
pub mod gather;
pub mod gelu;
pub mod gemm;
pub mod global_pool;
pub mod grid;
pub mod group_norm;
pub mod identity;
pub mod layer_norm;
pub mod layer_norm_grad;
pub mod layout;
pub mod linear_attention;
pub mod linear_model;
pub mod loss;
pub mod matmul;
pub mod max_unpool;
pub mod modulo;
pub mod multi_head;
pub mod opaque;
pub mod optimizer;
pub mod optional;
pub mod other_norm;
pub mod pad;
mod patches;
pub mod pool;
pub mod pool_grad;
pub mod pow;
pub mod predicate;
pub mod prelu;
pub mod quantized;
pub mod random;
pub mod range;
pub mod recurrent;
pub mod reduce;
pub mod reshape;
pub mod resize;
pub mod reverse;
pub mod rotary;
pub mod scan;
pub mod scatter;
pub mod select;
pub mod self_attention;
pub mod sequence;
pub mod shape;
pub mod signal;
pub mod slice;
pub mod softmax;
pub mod strings;
pub mod sum_to;
pub mod topk;
pub mod transpose;
pub mod trees;
pub mod unary;
pub mod variadic;
pub mod vocabulary;
pub mod window;

mod broadcast;
mod calculus;
mod cells;
mod family;
mod function;
mod gate;
mod halves;
mod heads;
mod number;
mod scores;

#[cfg(test)]
mod every_op;

/// All families of operators.
#[rustfmt::skip]
static FAMILIES: &[&[OpDef]] = &[
    arg::DEFS,
    attention::DEFS,
    batch_norm::DEFS,
    binary::DEFS,
    bitcast::DEFS,
    bits::DEFS,
    boxes::DEFS,
    call::DEFS,
    cast::DEFS,
    causal_conv::DEFS,
    choose::DEFS,
    clip::DEFS,
    col2im::DEFS,
    compare::DEFS,
    concat::DEFS,
    constant::DEFS,
    control::DEFS,
    conv::DEFS,
    conv_grad::DEFS,
    conv_transpose::DEFS,
    crop::DEFS,
    cumulative::DEFS,
    deform_conv::DEFS,
    depth::DEFS,
    dft::DEFS,
    diagonal::DEFS,
    einsum::DEFS,
    expand::DEFS,
    features::DEFS,
    gather::DEFS,
    gelu::CONTRIB,
    gelu::DEFS,
    gemm::DEFS,
    global_pool::DEFS,
    grid::DEFS,
    group_norm::DEFS,
    identity::DEFS,
    layer_norm::DEFS,
    layer_norm_grad::DEFS,
    linear_attention::DEFS,
    linear_model::DEFS,
    loss::DEFS,
    loss::GRAD,
    matmul::DEFS,
    max_unpool::DEFS,
    modulo::DEFS,
    multi_head::DEFS,
    optimizer::DEFS,
    optional::DEFS,
    other_norm::DEFS,
    pad::DEFS,
    pool::DEFS,
    pool_grad::DEFS,
    pow::DEFS,
    predicate::DEFS,
    prelu::DEFS,
    quantized::concat::DEFS,
    quantized::conv::DEFS,
    quantized::dequantize::DEFS,
    quantized::dynamic::DEFS,
    quantized::gather::DEFS,
    quantized::matmul::DEFS,
    quantized::nbits::DEFS,
    quantized::normal_float::DEFS,
    quantized::pair::DEFS,
    quantized::pool::DEFS,
    quantized::quantize::DEFS,
    quantized::softmax::DEFS,
    quantized::table::DEFS,
    random::DEFS,
    range::DEFS,
    recurrent::DEFS,
    reduce::DEFS,
    reduce::SPREAD,
    reshape::DEFS,
    resize::DEFS,
    reverse::DEFS,
    rotary::DEFS,
    scan::DEFS,
    scatter::DEFS,
    select::DEFS,
    self_attention::DEFS,
    sequence::DEFS,
    shape::DEFS,
    signal::DEFS,
    slice::DEFS,
    softmax::DEFS,
    softmax::GRAD,
    strings::DEFS,
    sum_to::DEFS,
    topk::DEFS,
    transpose::DEFS,
    trees::DEFS,
    unary::DEFS,
    unary::SLOPE,
    variadic::DEFS,
    vocabulary::DEFS,
];

/// All operators, in all versions that are read differently.
pub fn all() -> impl Iterator<Item = &'static OpDef> {
    FAMILIES.iter().copied().flatten()
}

/// The definition of an operator for a version of its domain; "ai.onnx" is "".
pub fn find(domain: &str, name: &str, version: i64) -> Option<&'static OpDef> {
    let domain = if domain == "ai.onnx" { "" } else { domain };
    all().filter(|d| d.name == name && d.domain == domain && d.since <= version).max_by_key(|d| d.since)
}

/// Makes an operator from its attributes. One that is not in the list becomes [`opaque::Opaque`]: it can be kept
/// and written, not run.
///
/// # Errors
/// When the attributes are wrong.
pub fn read(domain: &str, name: &str, reader: &Reader) -> Result<Arc<dyn Op>> {
    match find(domain, name, reader.version) {
        Some(def) => (def.read)(reader),
        None => Ok(Arc::new(opaque::Opaque::new(domain, name, reader.attrs.clone()))),
    }
}
