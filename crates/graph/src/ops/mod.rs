//! The list of operators: one line a file. Each file holds one operator or one family of the same shape.

use std::sync::Arc;

use crate::op::{OpDef, Reader};
use crate::{Op, Result};

pub mod binary;
pub mod call;
pub mod cast;
pub mod identity;
pub mod opaque;
pub mod sum_to;
pub mod unary;

mod broadcast;
mod number;

#[cfg(test)]
mod every_op;

/// All families of operators.
static FAMILIES: &[&[OpDef]] =
    &[binary::DEFS, call::DEFS, cast::DEFS, identity::DEFS, sum_to::DEFS, unary::DEFS];

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
