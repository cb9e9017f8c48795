//! Operators on strings: `StringConcat`, `StringSplit`, `StringNormalizer`, `RegexFullMatch`.
//! <https://onnx.ai/onnx/operators/onnx__StringSplit.html>

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use regex::Regex;

use crate::infer;
use crate::op::{Facts, Inputs, OpDef, RunCx, Sample};
use crate::ops::broadcast::Walk;
use crate::{Attrs, DType, Dim, Error, Fact, Op, Result, Tensor};

/// `StringConcat`: strings joined pairwise, broadcast against each other.
#[derive(Debug)]
pub struct StringConcat;

/// `StringSplit`: each string cut at a delimiter, along a new axis; and the number of parts of each.
#[derive(Debug)]
pub struct StringSplit {
    attrs: Attrs,
    delimiter: Option<String>,
    limit: Option<usize>,
}

/// `StringNormalizer`: upper or lower case, and without stop words.
#[derive(Debug)]
pub struct StringNormalizer {
    attrs: Attrs,
    case: Case,
    sensitive: bool,
    stops: HashSet<String>,
}

/// `RegexFullMatch`: whether the whole of a string matches.
#[derive(Debug)]
pub struct RegexFullMatch {
    attrs: Attrs,
    regex: Regex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
    Keep,
}

fn words(list: &[&str]) -> Tensor {
    let strings = list.iter().map(|s| s.to_string()).collect();
    Tensor::strings(&[list.len()], strings).unwrap_or_else(|_| Tensor::scalar(0u8))
}

pub(crate) static DEFS: &[OpDef] = &[
    OpDef::onnx(
        "StringConcat",
        20,
        |_| Ok(Arc::new(StringConcat)),
        || vec![Sample::new(StringConcat, vec![words(&["a", "b"]), words(&["x"])])],
    ),
    OpDef::onnx(
        "StringSplit",
        20,
        |r| {
            let delimiter = r.attrs.opt_text("delimiter")?.filter(|d| !d.is_empty()).map(str::to_owned);
            // A negative limit is none.
            let limit = r.attrs.opt_int("maxsplit")?.and_then(|n| usize::try_from(n).ok());
            Ok(Arc::new(StringSplit { attrs: r.attrs.clone(), delimiter, limit }))
        },
        || {
            let of = |attrs| Sample::read(&DEFS[1], attrs, vec![words(&[" a  b ", "a,b,c"])]).outputs(2);
            vec![of(Attrs::new()), of(Attrs::new().text("delimiter", ",").int("maxsplit", 1))]
        },
    ),
    OpDef::onnx(
        "StringNormalizer",
        10,
        |r| {
            let case = match r.attrs.text_or("case_change_action", "NONE")? {
                "LOWER" => Case::Lower,
                "UPPER" => Case::Upper,
                "NONE" => Case::Keep,
                other => return Err(Error::invalid(format!("there is no case_change_action {other:?}"))),
            };
            let sensitive = r.attrs.flag_or("is_case_sensitive", false)?;
            let fold = |w: String| if sensitive { w } else { w.to_lowercase() };
            let stops = r.attrs.opt_texts("stopwords")?.unwrap_or_default().into_iter().map(fold).collect();
            Ok(Arc::new(StringNormalizer { attrs: r.attrs.clone(), case, sensitive, stops }))
        },
        || {
            let stops = crate::Attr::Texts(vec!["b".into()]);
            let attrs = Attrs::new().text("case_change_action", "UPPER").with("stopwords", stops);
            vec![Sample::read(&DEFS[2], attrs, vec![words(&["a", "B", "c"])])]
        },
    ),
    OpDef::onnx(
        "RegexFullMatch",
        20,
        |r| {
            let pattern = r.attrs.text_or("pattern", "")?;
            let whole = format!(r"\A(?:{pattern})\z");
            let regex =
                Regex::new(&whole).map_err(|e| Error::invalid(format!("pattern {pattern:?}: {e}")))?;
            Ok(Arc::new(RegexFullMatch { attrs: r.attrs.clone(), regex }))
        },
        || {
            let attrs = Attrs::new().text("pattern", "a|b+");
            vec![Sample::read(&DEFS[3], attrs, vec![words(&["a", "bb", "ab"])])]
        },
    ),
];

impl Op for StringConcat {
    fn def(&self) -> &'static OpDef {
        &DEFS[0]
    }

    fn attrs(&self) -> Attrs {
        Attrs::new()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let shape = infer::broadcast(inputs.need(0)?.shape(), inputs.need(1)?.shape())?;
        Ok(vec![Fact::maybe(Some(DType::String), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let (a, b) = (inputs.need(0)?, inputs.need(1)?);
        let walk = Walk::new(a.shape(), b.shape())?;
        let mut y = Tensor::zeros(DType::String, &walk.shape)?;
        let refs = |t: &'_ Tensor| -> Result<Vec<usize>> { Ok((0..t.as_strings()?.len()).collect()) };
        let (i, j) = (refs(a)?, refs(b)?);
        let (a, b) = (a.as_strings()?, b.as_strings()?);
        walk.apply(&i, &j, y.as_strings_mut()?, |i, j| format!("{}{}", a[i], b[j]));
        Ok(vec![y])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl StringSplit {
    fn split<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let limit = self.limit.unwrap_or(usize::MAX);
        if let Some(delimiter) = &self.delimiter {
            return text.splitn(limit.saturating_add(1), delimiter.as_str()).collect();
        }
        let (mut parts, mut rest) = (Vec::new(), text.trim_start());
        while !rest.is_empty() {
            match rest.find(char::is_whitespace).filter(|_| parts.len() < limit) {
                Some(at) => {
                    parts.push(&rest[..at]);
                    rest = rest[at..].trim_start();
                }
                None => {
                    parts.push(rest);
                    break;
                }
            }
        }
        parts
    }
}

impl Op for StringSplit {
    fn def(&self) -> &'static OpDef {
        &DEFS[1]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let dims = inputs.need(0)?.shape();
        let parts = dims.map(|d| [d, &[Dim::Unknown]].concat());
        Ok(vec![
            Fact::maybe(Some(DType::String), parts),
            Fact::maybe(Some(DType::I64), dims.map(<[Dim]>::to_vec)),
        ])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let parts: Vec<Vec<&str>> = x.as_strings()?.iter().map(|s| self.split(s)).collect();
        let most = parts.iter().map(Vec::len).max().unwrap_or(0);
        let counts: Vec<i64> = parts.iter().map(|p| p.len() as i64).collect();
        let shape = [x.shape(), &[most]].concat();
        let mut y = Tensor::zeros(DType::String, &shape)?;
        if most > 0 {
            for (row, parts) in y.as_strings_mut()?.chunks_exact_mut(most).zip(&parts) {
                row.iter_mut().zip(parts).for_each(|(y, part)| *y = part.to_string());
            }
        }
        Ok(vec![y, Tensor::new(x.shape(), &counts)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for StringNormalizer {
    fn def(&self) -> &'static OpDef {
        &DEFS[2]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        let shape = match inputs.rank(0) {
            Some(1) => Some(vec![Dim::Unknown]),
            Some(2) => Some(vec![Dim::Is(1), Dim::Unknown]),
            Some(rank) => return Err(Error::invalid(format!("expected a list of strings, got rank {rank}"))),
            None => None,
        };
        Ok(vec![Fact::maybe(Some(DType::String), shape)])
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        if !matches!(x.shape(), [_] | [1, _]) {
            return Err(Error::invalid(format!("expected a list of strings, got shape {:?}", x.shape())));
        }
        let stops = |w: &&String| {
            let word = if self.sensitive { w.to_string() } else { w.to_lowercase() };
            self.stops.contains(&word)
        };
        let kept = x.as_strings()?.iter().filter(|w| !stops(w));
        let mut kept: Vec<String> = kept
            .map(|w| match self.case {
                Case::Lower => w.to_lowercase(),
                Case::Upper => w.to_uppercase(),
                Case::Keep => w.clone(),
            })
            .collect();
        if kept.is_empty() {
            kept.push(String::new());
        }
        let shape = if x.rank() == 1 { vec![kept.len()] } else { vec![1, kept.len()] };
        Ok(vec![Tensor::strings(&shape, kept)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Op for RegexFullMatch {
    fn def(&self) -> &'static OpDef {
        &DEFS[3]
    }

    fn attrs(&self) -> Attrs {
        self.attrs.clone()
    }

    fn infer(&self, inputs: &Facts) -> Result<Vec<Fact>> {
        infer::like_as(inputs, 0, Some(DType::Bool))
    }

    fn run(&self, _: &RunCx, inputs: Inputs) -> Result<Vec<Tensor>> {
        let x = inputs.need(0)?;
        let found: Vec<bool> = x.as_strings()?.iter().map(|s| self.regex.is_match(s)).collect();
        Ok(vec![Tensor::bools(x.shape(), &found)?])
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_is_pythons() {
        let split = |delimiter: Option<&str>, limit, text: &'static str| {
            StringSplit { attrs: Attrs::new(), delimiter: delimiter.map(str::to_owned), limit }.split(text)
        };
        assert_eq!(split(None, None, "  a b  c "), ["a", "b", "c"]);
        assert_eq!(split(None, Some(1), " a  b c "), ["a", "b c "]);
        assert_eq!(split(Some(","), None, ",a,"), ["", "a", ""]);
        assert!(split(None, None, "  ").is_empty());
    }
}
