//! The list of operators: one line a file. Each file holds one operator or one family of the same shape.

use std::sync::Arc;

use crate::op::{OpDef, Reader};
use crate::{Op, Result};

pub mod attention;
pub mod batch_norm;
pub mod binary;
pub mod call;
pub mod cast;
pub mod conv;
pub mod conv_grad;
pub mod conv_transpose;
pub mod deform_conv;
pub mod fuse;
pub mod gemm;
pub mod global_pool;
pub mod group_norm;
pub mod identity;
pub mod layer_norm;
pub mod layer_norm_grad;
pub mod matmul;
pub mod max_unpool;
pub mod opaque;
pub mod other_norm;
pub mod pool;
pub mod pool_grad;
pub mod rotary;
pub mod sum_to;
pub mod unary;
pub mod window;

mod broadcast;
mod halves;
mod heads;
mod number;

#[cfg(test)]
mod every_op;

/// All families of operators.
static FAMILIES: &[&[OpDef]] = &[
    attention::DEFS,
    batch_norm::DEFS,
    binary::DEFS,
    call::DEFS,
    cast::DEFS,
    conv::DEFS,
    conv_grad::DEFS,
    conv_transpose::DEFS,
    deform_conv::DEFS,
    gemm::DEFS,
    global_pool::DEFS,
    group_norm::DEFS,
    identity::DEFS,
    layer_norm::DEFS,
    layer_norm_grad::DEFS,
    matmul::DEFS,
    max_unpool::DEFS,
    other_norm::DEFS,
    pool::DEFS,
    pool_grad::DEFS,
    rotary::DEFS,
    sum_to::DEFS,
    unary::DEFS,
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
