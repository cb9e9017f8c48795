//! A size or a small integer that may be known only by name.

use std::fmt;
use std::sync::Arc;

/// One size of a shape, or one integer that shapes are computed from.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Dim {
    /// A known number. Sizes are not negative; integers that shapes are computed from (a -1 for `Reshape`) may be.
    Is(i64),
    /// A number that is known when the model runs, the same wherever the name stands (`batch`, `sequence`).
    Named(Arc<str>),
    /// Nothing is known.
    #[default]
    Unknown,
}

impl Dim {
    /// A size known by name.
    pub fn named(name: &str) -> Dim {
        Dim::Named(name.into())
    }

    /// The number, when it is known and not negative.
    pub fn size(&self) -> Option<usize> {
        match self {
            Dim::Is(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The number, when it is known.
    pub fn int(&self) -> Option<i64> {
        match self {
            Dim::Is(n) => Some(*n),
            _ => None,
        }
    }

    /// True when both are certain to be the same number.
    pub fn same(&self, other: &Dim) -> bool {
        *self != Dim::Unknown && self == other
    }

    fn with(&self, other: &Dim, f: impl Fn(i64, i64) -> Option<i64>) -> Dim {
        match (self, other) {
            (Dim::Is(a), Dim::Is(b)) => f(*a, *b).map_or(Dim::Unknown, Dim::Is),
            _ => Dim::Unknown,
        }
    }

    /// Sum.
    pub fn plus(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Is(0), d) | (d, Dim::Is(0)) => d.clone(),
            _ => self.with(other, i64::checked_add),
        }
    }

    /// Difference.
    pub fn minus(&self, other: &Dim) -> Dim {
        match (self, other) {
            (d, Dim::Is(0)) => d.clone(),
            (a, b) if a.same(b) => Dim::Is(0),
            _ => self.with(other, i64::checked_sub),
        }
    }

    /// Product.
    pub fn times(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Is(1), d) | (d, Dim::Is(1)) => d.clone(),
            (Dim::Is(0), _) | (_, Dim::Is(0)) => Dim::Is(0),
            _ => self.with(other, i64::checked_mul),
        }
    }

    /// Quotient, rounded down; unknown when divided by zero.
    pub fn over(&self, other: &Dim) -> Dim {
        match (self, other) {
            (d, Dim::Is(1)) => d.clone(),
            (a, b) if a.same(b) && *a != Dim::Is(0) => Dim::Is(1),
            _ => self.with(other, i64::checked_div_euclid),
        }
    }

    /// Product of all.
    pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
        dims.into_iter().fold(Dim::Is(1), |all, d| all.times(d))
    }

    /// What two sizes that meet in a broadcast become; `None` when they cannot.
    pub fn broadcast(&self, other: &Dim) -> Option<Dim> {
        match (self, other) {
            (Dim::Is(1), d) | (d, Dim::Is(1)) => Some(d.clone()),
            (Dim::Is(a), Dim::Is(b)) => (a == b).then_some(Dim::Is(*a)),
            (Dim::Is(a), _) | (_, Dim::Is(a)) => Some(Dim::Is(*a)),
            (a, b) if a == b => Some(a.clone()),
            _ => Some(Dim::Unknown),
        }
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Dim {
        i64::try_from(size).map_or(Dim::Unknown, Dim::Is)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Is(n) => write!(f, "{n}"),
            Dim::Named(name) => f.write_str(name),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_keeps_names_where_it_can() {
        let n = Dim::named("n");
        assert_eq!(n.times(&Dim::Is(1)), n);
        assert_eq!(n.minus(&n), Dim::Is(0));
        assert_eq!(n.times(&Dim::Is(2)), Dim::Unknown);
        assert_eq!(Dim::Is(7).over(&Dim::Is(2)), Dim::Is(3));
        assert_eq!(Dim::Is(7).over(&Dim::Is(0)), Dim::Unknown);
        assert_eq!(n.broadcast(&Dim::Is(1)), Some(n.clone()));
        assert_eq!(Dim::Is(2).broadcast(&Dim::Is(3)), None);
        assert_eq!(Dim::Is(i64::MAX).plus(&Dim::Is(1)), Dim::Unknown);
    }
}
