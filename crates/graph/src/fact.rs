//! What is known of a value before the graph runs: its type, its shape, and sometimes its numbers.

use std::fmt;

use crate::{DType, Datum, Dim, Error, Result, Tensor};

/// The type of a value, after ONNX `TypeProto`.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Type {
    /// Nothing is known.
    #[default]
    Unknown,
    /// A tensor; element type and shape as far as they are known.
    Tensor(Option<DType>, Option<Vec<Dim>>),
    /// A sequence of values of one type.
    Sequence(Box<Type>),
    /// A value or nothing.
    Optional(Box<Type>),
    /// A type that this graph only passes on (maps, sparse tensors, opaque types), with its encoded `TypeProto`.
    Other(bytes::Bytes),
}

/// What is known of a value: its type and, for small integer tensors that shapes are computed from, its numbers.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Fact {
    /// The type.
    pub ty: Type,
    /// The elements of an integer tensor of rank 0 or 1, as far as they are known.
    pub ints: Option<Vec<Dim>>,
}

/// Longest vector whose numbers are followed through shape inference.
const MAX_INTS: usize = 64;

impl Fact {
    /// A tensor of which type and shape are known.
    pub fn tensor(dtype: DType, shape: Vec<Dim>) -> Fact {
        Fact { ty: Type::Tensor(Some(dtype), Some(shape)), ints: None }
    }

    /// A tensor of which perhaps the type, perhaps the shape is known.
    pub fn maybe(dtype: Option<DType>, shape: Option<Vec<Dim>>) -> Fact {
        Fact { ty: Type::Tensor(dtype, shape), ints: None }
    }

    /// The fact of a tensor at hand, with its numbers when it is a short integer vector.
    pub fn of(tensor: &Tensor) -> Fact {
        let shape = tensor.shape().iter().map(|&d| d.into()).collect();
        let small = matches!(tensor.dtype(), DType::I64 | DType::I32)
            && tensor.rank() <= 1
            && tensor.len() <= MAX_INTS;
        let ints =
            small.then(|| tensor.to_ints().ok().map(|v| v.into_iter().map(Dim::Is).collect())).flatten();
        Fact { ty: Type::Tensor(Some(tensor.dtype()), Some(shape)), ints }
    }

    /// The fact of a datum at hand.
    pub fn of_datum(datum: &Datum) -> Fact {
        fn ty(datum: &Datum) -> Type {
            match datum {
                Datum::Tensor(t) => Fact::of(t).ty,
                Datum::Sequence(items) => Type::Sequence(Box::new(match items.as_slice() {
                    [one] => ty(one),
                    _ => items.first().map_or(Type::Unknown, |t| match ty(t) {
                        Type::Tensor(d, _) => Type::Tensor(d, None),
                        other => other,
                    }),
                })),
                Datum::Optional(inner) => {
                    Type::Optional(Box::new(inner.as_deref().map_or(Type::Unknown, ty)))
                }
            }
        }
        match datum {
            Datum::Tensor(t) => Fact::of(t),
            other => Fact { ty: ty(other), ints: None },
        }
    }

    /// The same fact with known numbers; they are dropped when there are too many.
    pub fn with_ints(mut self, ints: Option<Vec<Dim>>) -> Fact {
        self.ints = ints.filter(|v| v.len() <= MAX_INTS);
        self
    }

    /// The element type of a tensor, when it is known.
    pub fn dtype(&self) -> Option<DType> {
        match &self.ty {
            Type::Tensor(dtype, _) => *dtype,
            _ => None,
        }
    }

    /// The shape of a tensor, when its rank is known.
    pub fn shape(&self) -> Option<&[Dim]> {
        match &self.ty {
            Type::Tensor(_, shape) => shape.as_deref(),
            _ => None,
        }
    }

    /// The rank of a tensor, when it is known.
    pub fn rank(&self) -> Option<usize> {
        self.shape().map(<[Dim]>::len)
    }

    /// The shape, when all its sizes are known.
    pub fn sizes(&self) -> Option<Vec<usize>> {
        self.shape()?.iter().map(Dim::size).collect()
    }

    /// Number of elements, when all sizes are known.
    pub fn count(&self) -> Option<usize> {
        self.sizes()?.into_iter().try_fold(1usize, usize::checked_mul)
    }

    /// Size in bytes, when type and shape are known.
    pub fn bytes(&self) -> Option<usize> {
        self.dtype()?.bytes_for(self.count()?)
    }

    /// Does this datum fit the fact? Named sizes fit any size.
    ///
    /// # Errors
    /// Says what was expected and what came.
    pub fn admits(&self, datum: &Datum) -> Result<()> {
        let wrong = || Err(Error::Input(format!("expected {self}, got {}", Fact::of_datum(datum))));
        match (&self.ty, datum) {
            (Type::Unknown | Type::Other(_), _) => Ok(()),
            (Type::Tensor(dtype, shape), Datum::Tensor(t)) => {
                let fits = dtype.is_none_or(|d| d == t.dtype())
                    && shape.as_ref().is_none_or(|dims| {
                        dims.len() == t.rank()
                            && dims.iter().zip(t.shape()).all(|(d, &n)| d.size().is_none_or(|m| m == n))
                    });
                if fits { Ok(()) } else { wrong() }
            }
            (Type::Sequence(_), Datum::Sequence(_)) | (Type::Optional(_), _) => Ok(()),
            _ => wrong(),
        }
    }

    /// What both facts say together; where they disagree, `self` is believed.
    pub fn refine(&self, other: &Fact) -> Fact {
        Fact { ty: self.ty.refine(&other.ty), ints: self.ints.clone().or_else(|| other.ints.clone()) }
    }
}

impl Type {
    /// What both types say together; where they disagree, `self` is believed.
    pub fn refine(&self, other: &Type) -> Type {
        match (self, other) {
            (Type::Unknown, t) => t.clone(),
            (Type::Sequence(a), Type::Sequence(b)) => Type::Sequence(Box::new(a.refine(b))),
            (Type::Optional(a), Type::Optional(b)) => Type::Optional(Box::new(a.refine(b))),
            (Type::Tensor(d1, s1), Type::Tensor(d2, s2)) => {
                let shape = match (s1, s2) {
                    (Some(a), Some(b)) if a.len() == b.len() => Some(
                        a.iter()
                            .zip(b)
                            .map(|(x, y)| match (x, y) {
                                (Dim::Unknown, y) => y.clone(),
                                (Dim::Named(_), Dim::Is(_)) => y.clone(),
                                (x, _) => x.clone(),
                            })
                            .collect(),
                    ),
                    (Some(a), _) => Some(a.clone()),
                    (None, b) => b.clone(),
                };
                Type::Tensor(d1.or(*d2), shape)
            }
            (t, _) => t.clone(),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Unknown => f.write_str("?"),
            Type::Tensor(dtype, shape) => {
                match dtype {
                    Some(d) => write!(f, "{d}")?,
                    None => f.write_str("?")?,
                }
                match shape {
                    None => f.write_str("[..]"),
                    Some(dims) => {
                        let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                        write!(f, "[{}]", dims.join(", "))
                    }
                }
            }
            Type::Sequence(t) => write!(f, "sequence({t})"),
            Type::Optional(t) => write!(f, "optional({t})"),
            Type::Other(_) => f.write_str("other"),
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ty.fmt(f)
    }
}
