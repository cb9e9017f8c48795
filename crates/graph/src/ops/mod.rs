//! The list of operators: one line a file. Each file holds one operator or one family of the same shape.

use std::sync::Arc;

use crate::op::{OpDef, Reader};
use crate::{Op, Result};

pub mod arg;
pub mod binary;
pub mod bits;
pub mod call;
pub mod cast;
pub mod clip;
pub mod compare;
pub mod cumulative;
pub mod diagonal;
pub mod gelu;
pub mod identity;
pub mod loss;
pub mod modulo;
pub mod opaque;
pub mod optimizer;
pub mod pow;
pub mod predicate;
pub mod prelu;
pub mod random;
pub mod range;
pub mod reduce;
pub mod select;
pub mod softmax;
pub mod sum_to;
pub mod topk;
pub mod unary;
pub mod variadic;

mod broadcast;
mod calculus;
mod family;
mod function;
mod number;

#[cfg(test)]
mod every_op;

/// All families of operators.
#[rustfmt::skip]
static FAMILIES: &[&[OpDef]] = &[
    arg::DEFS,
    binary::DEFS,
    bits::DEFS,
    call::DEFS,
    cast::DEFS,
    clip::DEFS,
    compare::DEFS,
    cumulative::DEFS,
    diagonal::DEFS,
    gelu::CONTRIB,
    gelu::DEFS,
    identity::DEFS,
    loss::DEFS,
    loss::GRAD,
    modulo::DEFS,
    optimizer::DEFS,
    pow::DEFS,
    predicate::DEFS,
    prelu::DEFS,
    random::DEFS,
    range::DEFS,
    reduce::DEFS,
    reduce::SPREAD,
    select::DEFS,
    softmax::DEFS,
    softmax::GRAD,
    sum_to::DEFS,
    topk::DEFS,
    unary::DEFS,
    unary::SLOPE,
    variadic::DEFS,
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
