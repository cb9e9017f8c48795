//! The list of operators: one line a file. Each file holds one operator or one family of the same shape.

use std::sync::Arc;

use crate::op::{OpDef, Reader};
use crate::{Op, Result};

pub mod binary;
pub mod bitcast;
pub mod boxes;
pub mod call;
pub mod cast;
pub mod col2im;
pub mod concat;
pub mod constant;
pub mod control;
pub mod crop;
pub mod depth;
pub mod expand;
pub mod gather;
pub mod grid;
pub mod identity;
pub mod opaque;
pub mod optional;
pub mod pad;
pub mod reshape;
pub mod resize;
pub mod reverse;
pub mod scan;
pub mod scatter;
pub mod select;
pub mod sequence;
pub mod shape;
pub mod slice;
pub mod strings;
pub mod sum_to;
pub mod transpose;
pub mod unary;
pub mod vocabulary;

mod broadcast;
mod cells;
mod number;

#[cfg(test)]
mod every_op;

/// All families of operators.
#[rustfmt::skip]
static FAMILIES: &[&[OpDef]] = &[
    binary::DEFS,
    bitcast::DEFS,
    boxes::DEFS,
    call::DEFS,
    cast::DEFS,
    col2im::DEFS,
    concat::DEFS,
    constant::DEFS,
    control::DEFS,
    crop::DEFS,
    depth::DEFS,
    expand::DEFS,
    gather::DEFS,
    grid::DEFS,
    identity::DEFS,
    optional::DEFS,
    pad::DEFS,
    reshape::DEFS,
    resize::DEFS,
    reverse::DEFS,
    scan::DEFS,
    scatter::DEFS,
    select::DEFS,
    sequence::DEFS,
    shape::DEFS,
    slice::DEFS,
    strings::DEFS,
    sum_to::DEFS,
    transpose::DEFS,
    unary::DEFS,
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
