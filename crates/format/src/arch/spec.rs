//! Families of architectures: one row each. A family of the same shape with other names is one row more.

/// An encoder family: how its tensors are named (`{}` is the number of the block) and where its positions start.
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_types: &'static [&'static str],
    /// Prefixes that all names may carry.
    pub prefixes: &'static [&'static str],
    /// Keys of `config.json`: width, heads, blocks, activation.
    pub keys: [&'static str; 4],
    /// Table of tokens.
    pub tokens: &'static str,
    /// Table of positions.
    pub positions: &'static str,
    /// Table of token types, if there is one.
    pub types: Option<&'static str>,
    /// Layer normalisation after the tables.
    pub first_norm: &'static str,
    /// Query, key, value, output of attention.
    pub attention: [&'static str; 4],
    /// Layer normalisation after attention.
    pub attention_norm: &'static str,
    /// The two products of the feed-forward part.
    pub feed: [&'static str; 2],
    /// Layer normalisation after the feed-forward part.
    pub feed_norm: &'static str,
    /// Heads that classify: products applied to the first token, with the function between them.
    pub heads: &'static [Head],
    /// Where the position of the first token stands in the table.
    pub start: Start,
}

/// Where positions start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At row 0, counted over all tokens.
    Zero,
    /// After the row of the padding token, counted over tokens that are not padding.
    AfterPadding,
}

/// A head that classifies: hidden product, function, final product.
pub struct Head {
    /// The hidden product.
    pub hidden: &'static str,
    /// The function after it, an ONNX operator.
    pub function: &'static str,
    /// The final product, whose outputs are the classes.
    pub last: &'static str,
}

/// All families.
pub static FAMILIES: &[Family] = &[
    Family {
        model_types: &["bert"],
        start: Start::Zero,
        heads: &[Head { hidden: "pooler.dense", function: "Tanh", last: "classifier" }],
        ..BERT
    },
    Family {
        model_types: &["roberta", "xlm-roberta", "camembert"],
        prefixes: &["", "roberta."],
        start: Start::AfterPadding,
        heads: &[Head { hidden: "classifier.dense", function: "Tanh", last: "classifier.out_proj" }],
        ..BERT
    },
    Family {
        model_types: &["distilbert"],
        prefixes: &["", "distilbert."],
        keys: ["dim", "n_heads", "n_layers", "activation"],
        types: None,
        attention: [
            "transformer.layer.{}.attention.q_lin",
            "transformer.layer.{}.attention.k_lin",
            "transformer.layer.{}.attention.v_lin",
            "transformer.layer.{}.attention.out_lin",
        ],
        attention_norm: "transformer.layer.{}.sa_layer_norm",
        feed: ["transformer.layer.{}.ffn.lin1", "transformer.layer.{}.ffn.lin2"],
        feed_norm: "transformer.layer.{}.output_layer_norm",
        heads: &[Head { hidden: "pre_classifier", function: "Relu", last: "classifier" }],
        ..BERT
    },
];

const BERT: Family = Family {
    model_types: &[],
    prefixes: &["", "bert."],
    keys: ["hidden_size", "num_attention_heads", "num_hidden_layers", "hidden_act"],
    tokens: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    types: Some("embeddings.token_type_embeddings"),
    first_norm: "embeddings.LayerNorm",
    attention: [
        "encoder.layer.{}.attention.self.query",
        "encoder.layer.{}.attention.self.key",
        "encoder.layer.{}.attention.self.value",
        "encoder.layer.{}.attention.output.dense",
    ],
    attention_norm: "encoder.layer.{}.attention.output.LayerNorm",
    feed: ["encoder.layer.{}.intermediate.dense", "encoder.layer.{}.output.dense"],
    feed_norm: "encoder.layer.{}.output.LayerNorm",
    heads: &[],
    start: Start::Zero,
};
