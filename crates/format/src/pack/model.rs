//! Where the weights of an ONNX file lie, found by walking its protobuf messages. What is found only guides how the
//! file is coded: a file that is no ONNX, or a broken one, is found to have other pieces, and is packed all the same.

use std::ops::Range;

/// What the bytes of a piece are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Nothing is known about them.
    Unknown,
    /// Elements of one byte or less.
    Bytes,
    /// Whole numbers of this many bytes, little-endian.
    Whole(u8),
    /// Floating-point numbers of this many bytes, little-endian.
    Float(u8),
}

/// A stretch of a file whose bytes are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub range: Range<usize>,
    pub class: Class,
}

/// Pieces are at least this long: shorter ones cost more to tell than they save.
const SHORTEST: usize = 64;
/// Longer ones are cut, so that each has its own frequencies. A multiple of every element's size.
const LONGEST: usize = 1 << 22;
/// A file without pieces is cut into some from this length on: it may be weights without a model.
const PLAIN: usize = 1 << 16;
/// How deep messages are followed. A body in a body in a body takes 3 each.
const DEPTH: usize = 64;

/// The pieces of a file in their order, disjoint.
pub(super) fn pieces(file: &[u8]) -> Vec<Piece> {
    let mut found = Vec::new();
    walk(file, 0..file.len(), Message::Model, DEPTH, &mut found);
    if found.is_empty() && file.len() >= PLAIN {
        found.push(Piece { range: 0..file.len(), class: Class::Unknown });
    }
    found.iter().flat_map(cut).collect()
}

fn cut(piece: &Piece) -> impl Iterator<Item = Piece> {
    let Piece { range, class } = piece.clone();
    let end = range.end;
    range.step_by(LONGEST).filter_map(move |start| {
        let range = start..end.min(start + LONGEST);
        (range.len() >= SHORTEST).then_some(Piece { range, class })
    })
}

/// The messages of `onnx.proto` on the way to the tensors.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Function,
    Graph,
    Node,
    Attribute,
    Sparse,
    Tensor,
}

impl Message {
    /// The message in a field, when tensors may be in it.
    fn child(self, field: u64) -> Option<Message> {
        use Message::*;
        Some(match (self, field) {
            (Model, 7) | (Attribute, 6 | 11) => Graph,
            (Model, 25) => Function,
            (Function, 7) | (Graph, 1) => Node,
            (Node, 5) => Attribute,
            (Graph, 15) | (Attribute, 22 | 23) => Sparse,
            (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
            _ => return None,
        })
    }
}

/// The class of `raw_data` for a `TensorProto.DataType`.
fn class(data_type: u64) -> Class {
    match data_type {
        10 | 16 => Class::Float(2),
        1 | 14 => Class::Float(4),
        11 | 15 => Class::Float(8),
        4 | 5 => Class::Whole(2),
        6 | 12 => Class::Whole(4),
        7 | 13 => Class::Whole(8),
        _ => Class::Bytes,
    }
}

/// Follows the fields of a message until its end, or until they make no sense. A field that is longer than what is
/// there ends with it.
fn walk(file: &[u8], range: Range<usize>, message: Message, depth: usize, found: &mut Vec<Piece>) {
    let first = found.len();
    let mut data_type = 0;
    let mut rest = range;
    while let Some((field, value)) = field(file, &mut rest) {
        match (message, value) {
            (Message::Tensor, Value::Number(n)) if field == 2 => data_type = n,
            (Message::Tensor, Value::Bytes(range)) => match field {
                4 => found.push(Piece { range, class: Class::Float(4) }),
                10 => found.push(Piece { range, class: Class::Float(8) }),
                // raw_data: the type may come after it.
                9 => found.push(Piece { range, class: Class::Unknown }),
                _ => {}
            },
            (_, Value::Bytes(range)) if depth > 0 => {
                if let Some(child) = message.child(field) {
                    walk(file, range, child, depth - 1, found);
                }
            }
            _ => {}
        }
    }
    for piece in &mut found[first..] {
        if piece.class == Class::Unknown {
            piece.class = class(data_type);
        }
    }
}

enum Value {
    Number(u64),
    Bytes(Range<usize>),
    /// Of four or eight bytes.
    Fixed,
}

/// Reads a field at the start of `rest`, and moves the start behind it.
fn field(file: &[u8], rest: &mut Range<usize>) -> Option<(u64, Value)> {
    let key = varint(file, rest)?;
    let value = match key & 7 {
        0 => Value::Number(varint(file, rest)?),
        2 => {
            let n = varint(file, rest)?;
            Value::Bytes(take(rest, n))
        }
        kind @ (1 | 5) => {
            take(rest, if kind == 1 { 8 } else { 4 });
            Value::Fixed
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

/// The next `n` bytes, or as many as there are.
fn take(rest: &mut Range<usize>, n: u64) -> Range<usize> {
    let start = rest.start;
    rest.start += usize::try_from(n).map_or(rest.len(), |n| n.min(rest.len()));
    start..rest.start
}

fn varint(file: &[u8], rest: &mut Range<usize>) -> Option<u64> {
    let (value, len) = super::varint(file.get(rest.clone())?)?;
    rest.start += len;
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

    fn tensor(data_type: i32, bytes: Vec<u8>) -> TensorProto {
        TensorProto { data_type: Some(data_type), raw_data: Some(bytes.into()), ..Default::default() }
    }

    /// A model with weights at the top, in a body and in an attribute.
    fn model() -> Vec<u8> {
        let graph = |initializer| GraphProto { initializer, ..Default::default() };
        let body = graph(vec![tensor(10, vec![3; 100])]);
        let node = NodeProto {
            attribute: vec![
                AttributeProto { g: Some(body), ..Default::default() },
                AttributeProto { t: Some(tensor(7, vec![4; 80])), ..Default::default() },
            ],
            ..Default::default()
        };
        let mut top = graph(vec![tensor(1, vec![1; 400]), tensor(22, vec![2; 64]), tensor(3, vec![5; 10])]);
        top.node.push(node);
        ModelProto { graph: Some(top), ir_version: Some(8), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn the_weights_are_found_wherever_they_are() {
        let file = model();
        let found: Vec<_> =
            pieces(&file).iter().map(|p| (p.class, p.range.len(), file[p.range.start])).collect();
        let wanted = [
            (Class::Float(2), 100, 3),
            (Class::Whole(8), 80, 4),
            (Class::Float(4), 400, 1),
            (Class::Bytes, 64, 2),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_truncated_file_has_disjoint_pieces_within_it() {
        let file = model();
        for len in 0..file.len() {
            sound(&file[..len]);
        }
    }

    #[test]
    fn a_large_file_of_no_known_kind_is_cut() {
        let file = vec![0xff; LONGEST + 100];
        assert_eq!(
            pieces(&file).iter().map(|p| p.range.clone()).collect::<Vec<_>>(),
            [0..LONGEST, LONGEST..LONGEST + 100]
        );
    }

    fn sound(file: &[u8]) {
        let mut end = 0;
        for piece in pieces(file) {
            assert!(piece.range.start >= end && piece.range.end <= file.len() && !piece.range.is_empty());
            end = piece.range.end;
        }
    }

    proptest! {
        #[test]
        fn garbage_has_disjoint_pieces_within_it(mut file in prop::collection::vec(any::<u8>(), 0..400), at in 0..700_usize, with in any::<u8>()) {
            sound(&file);
            file = model();
            let at = at % file.len();
            file[at] = with;
            sound(&file);
        }
    }
}
