//! From texts to token ids, with the `tokenizers` crate: Hugging Face's `tokenizer.json`, or BERT's `vocab.txt`.

use std::path::{Path, PathBuf};

use graph::Tensor;
use serde_json::{Map, Value, json};
use tokenizers::{EncodeInput, PaddingDirection, PaddingParams, PostProcessor, TruncationParams};

use crate::data::load;
use crate::{Error, Input, Result};

/// No file of a tokenizer is bigger, in bytes.
const MAX_FILE: u64 = 256 << 20;

/// Makes token ids of texts.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What the file says of padding and cutting.
    own: (Option<PaddingParams>, Option<TruncationParams>),
    pad: i64,
    pad_type: i64,
    pad_left: bool,
}

/// The tokens of a text or a pair of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    ids: Vec<u32>,
    types: Vec<u32>,
}

impl Encoded {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// A batch of texts for a model: three i64 tensors of shape `[texts, tokens]`, padded to the longest text.
#[derive(Clone, Debug, PartialEq)]
pub struct Tokens {
    /// The token ids.
    pub input_ids: Tensor,
    /// 1 for tokens, 0 for padding.
    pub attention_mask: Tensor,
    /// 0 for the first text of a pair, 1 for the second.
    pub token_type_ids: Tensor,
}

impl Tokenizer {
    /// Opens `tokenizer.json`, `vocab.txt`, or a folder with one of them. A text longer than `max_len` tokens, the
    /// special ones included, is cut; of a pair the longer text first. Without `max_len` the limit in
    /// `tokenizer.json` holds, if it has one.
    ///
    /// A `vocab.txt` is read as BERT's: texts are lower-cased if `do_lower_case` of the `tokenizer_config.json`
    /// beside it says so or, without that, if no token has an upper-case letter.
    ///
    /// # Errors
    /// When there is no such file, it is no tokenizer, or `max_len` leaves no room for a token.
    pub fn open(path: &Path, max_len: Option<usize>) -> Result<Tokenizer> {
        let file = match path.is_dir() {
            false => path.to_path_buf(),
            true => ["tokenizer.json", "vocab.txt"]
                .map(|name| path.join(name))
                .into_iter()
                .find(|file| file.is_file())
                .ok_or_else(|| Error::file(path, "holds neither tokenizer.json nor vocab.txt"))?,
        };
        let mut bytes = load(&file, MAX_FILE)?;
        if file.extension().is_some_and(|e| e == "txt") {
            bytes = bert(&file, &bytes)?;
        }
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::file(&file, format!("is not a tokenizer: {e}")))?;
        Tokenizer::new(file, inner, max_len)
    }

    fn new(file: PathBuf, mut inner: tokenizers::Tokenizer, max_len: Option<usize>) -> Result<Tokenizer> {
        let own = inner.get_truncation().cloned();
        let written = (inner.get_padding().cloned(), own.clone());
        let special = inner.get_post_processor().map_or(0, |p| p.added_tokens(true));
        let truncation = match max_len.or(own.as_ref().map(|own| own.max_length)) {
            Some(max_length) if max_length <= special => {
                let what = format!("{max_length} tokens leave no room beside {special} special ones");
                return Err(Error::file(&file, what));
            }
            Some(max_length) => {
                let direction = own.map(|own| own.direction).unwrap_or_default();
                Some(TruncationParams { max_length, direction, ..TruncationParams::default() })
            }
            None => None,
        };
        inner.with_truncation(truncation).map_err(|e| Error::file(&file, e.to_string()))?;
        let named = ["[PAD]", "<pad>", "<|endoftext|>"].iter().find_map(|token| inner.token_to_id(token));
        let (pad, pad_type, pad_left) = match inner.get_padding() {
            Some(own) => (own.pad_id, own.pad_type_id, matches!(own.direction, PaddingDirection::Left)),
            None => (named.unwrap_or(0), 0, false),
        };
        inner.with_padding(None);
        Ok(Tokenizer { inner, own: written, pad: pad.into(), pad_type: pad_type.into(), pad_left })
    }

    /// All that it does, as text: the same for two that give the same batches.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn describe(&self) -> Result<String> {
        self.json(self.inner.get_truncation().cloned())
    }

    /// A `tokenizer.json` of it, which pads and cuts as its own file says: without a limit that was asked for beside it.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn file(&self) -> Result<String> {
        self.json(self.own.1.clone())
    }

    fn json(&self, truncation: Option<TruncationParams>) -> Result<String> {
        let mut whole = self.inner.clone();
        whole.with_padding(self.own.0.clone());
        let text = whole.with_truncation(truncation).and_then(|whole| whole.to_string(false));
        text.map_err(|e| Error::input(format!("the tokenizer cannot be written as JSON: {e}")))
    }

    /// Most tokens of a text, when there is a limit.
    pub fn limit(&self) -> Option<usize> {
        self.inner.get_truncation().map(|truncation| truncation.max_length)
    }

    /// Number of tokens in the vocabulary, the added ones included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The text of one token, without the marks of a vocabulary; empty when there is none, or for a special one.
    pub fn word(&self, id: usize) -> String {
        let id = u32::try_from(id).unwrap_or(u32::MAX);
        let text = self.inner.decode(&[id], true).unwrap_or_default();
        text.trim().trim_start_matches("##").to_string()
    }

    /// The tokens of a text or a pair of texts, with the special ones that the model expects.
    ///
    /// # Errors
    /// [`Error::Input`] when the input is no text, or the tokenizer fails.
    pub fn encode(&self, input: &Input) -> Result<Encoded> {
        let text = match input {
            Input::Text(text) => EncodeInput::from(text.as_str()),
            Input::Pair(a, b) => EncodeInput::from((a.as_str(), b.as_str())),
            Input::Arrays(_) | Input::Image(_) => {
                return Err(Error::input("the model takes texts; the data are none"));
            }
        };
        let made = self.inner.encode_fast(text, true).map_err(|e| Error::input(format!("tokenizer: {e}")))?;
        Ok(Encoded { ids: made.get_ids().to_vec(), types: made.get_type_ids().to_vec() })
    }

    /// A batch of texts, filled up to the longest.
    ///
    /// # Errors
    /// [`Error::Input`] when there are none.
    pub fn batch(&self, texts: &[&Encoded]) -> Result<Tokens> {
        if texts.is_empty() {
            return Err(Error::input("a batch of no texts"));
        }
        let ones = vec![1; texts.iter().map(|text| text.len()).max().unwrap_or(0)];
        Ok(Tokens {
            input_ids: self.padded(texts, |text| &text.ids, self.pad)?,
            attention_mask: self.padded(texts, |text| &ones[..text.len()], 0)?,
            token_type_ids: self.padded(texts, |text| &text.types, self.pad_type)?,
        })
    }

    fn padded<'a>(
        &self,
        texts: &[&'a Encoded],
        part: impl Fn(&'a Encoded) -> &'a [u32],
        pad: i64,
    ) -> Result<Tensor> {
        let width = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        Ok(Tensor::build(&[texts.len(), width], |out| {
            out.fill(pad);
            for (i, text) in texts.iter().enumerate() {
                let values = part(text);
                let start = i * width + if self.pad_left { width - values.len() } else { 0 };
                out[start..].iter_mut().zip(values).for_each(|(out, &value)| *out = value.into());
            }
            Ok(())
        })?)
    }
}

/// BERT's tokenizer of a vocabulary, one token a line, as a `tokenizer.json`.
fn bert(file: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::file(file, "is not UTF-8 text"))?;
    let tokens: Vec<&str> = text.lines().map(str::trim_end).collect();
    let special = |name: &str| match tokens.iter().position(|token| *token == name) {
        Some(id) => Ok(json!([name, id])),
        None => Err(Error::file(file, format!("lacks {name}; it is not BERT's vocabulary"))),
    };
    let (sep, cls) = (special("[SEP]")?, special("[CLS]")?);
    special("[UNK]")?;
    let is_special = |token: &str| token.starts_with('[') && token.ends_with(']') && token.len() > 2;
    let lowercase = match config_says(&file.with_file_name("tokenizer_config.json"))? {
        Some(said) => said,
        None => !tokens.iter().any(|token| !is_special(token) && token.chars().any(char::is_uppercase)),
    };
    let added: Vec<Value> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .iter()
        .filter_map(|name| Some((name, tokens.iter().position(|token| token == name)?)))
        .map(|(name, id)| {
            json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": lowercase},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": sep, "cls": cls},
        "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    });
    serde_json::to_vec(&tokenizer).map_err(|e| Error::file(file, e.to_string()))
}

/// `do_lower_case` of a configuration file, if there is one.
fn config_says(file: &Path) -> Result<Option<bool>> {
    if !file.is_file() {
        return Ok(None);
    }
    let config: Value = serde_json::from_slice(&load(file, MAX_FILE)?)
        .map_err(|e| Error::file(file, format!("is not JSON: {e}")))?;
    Ok(config.get("do_lower_case").and_then(Value::as_bool))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\ncat\n##s\nsat\n.\n";

    fn text(text: &str) -> Input {
        Input::Text(text.into())
    }

    fn pair(a: &str, b: &str) -> Input {
        Input::Pair(a.into(), b.into())
    }

    fn ids(tensor: &Tensor) -> &[i64] {
        tensor.as_slice().unwrap()
    }

    fn batch(tokenizer: &Tokenizer, inputs: &[Input]) -> Tokens {
        let texts: Vec<Encoded> = inputs.iter().map(|input| tokenizer.encode(input).unwrap()).collect();
        tokenizer.batch(&texts.iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn berts_vocabulary() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vocab.txt"), VOCAB).unwrap();
        let tokenizer = Tokenizer::open(dir.path(), None).unwrap();
        assert_eq!(tokenizer.vocabulary(), 9);
        let tokens = batch(&tokenizer, &[text("The cats sat."), pair("cat", "Dog sat")]);
        assert_eq!(tokens.input_ids.shape(), [2, 7]);
        assert_eq!(ids(&tokens.input_ids), [2, 4, 5, 6, 7, 8, 3, 2, 5, 3, 1, 7, 3, 0]);
        assert_eq!(ids(&tokens.attention_mask), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]);
        assert_eq!(ids(&tokens.token_type_ids), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]);
        fs::write(dir.path().join("tokenizer_config.json"), "{\"do_lower_case\": false}").unwrap();
        let cased = Tokenizer::open(dir.path(), None).unwrap();
        assert_eq!(ids(&batch(&cased, &[text("The cat")]).input_ids), [2, 1, 5, 3]);
    }

    #[test]
    fn long_texts_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("vocab.txt"), VOCAB).unwrap();
        let tokenizer = Tokenizer::open(dir.path(), Some(5)).unwrap();
        let tokens = batch(&tokenizer, &[text("the the cat sat sat"), pair("the cat sat", "sat")]);
        assert_eq!(ids(&tokens.input_ids), [2, 4, 4, 5, 3, 2, 4, 3, 7, 3]);
        assert!(Tokenizer::open(dir.path(), Some(3)).is_err());
    }

    #[test]
    fn tokenizer_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let model = "\"model\": {\"type\": \"WordLevel\", \"unk_token\": \"?\", \"vocab\": {\"?\": 0, \"a\": 1, \"b\": 2}}";
        let padding = "\"padding\": {\"strategy\": \"BatchLongest\", \"direction\": \"Left\", \
                       \"pad_to_multiple_of\": null, \"pad_id\": 9, \"pad_type_id\": 0, \"pad_token\": \"p\"}";
        let truncation = "\"truncation\": {\"max_length\": 3, \"strategy\": \"OnlySecond\", \"stride\": 2}";
        let split = "\"pre_tokenizer\": {\"type\": \"Whitespace\"}";
        fs::write(&path, format!("{{{model}, {padding}, {truncation}, {split}}}")).unwrap();
        let tokenizer = Tokenizer::open(dir.path(), None).unwrap();
        let tokens = batch(&tokenizer, &[text("a b a b a"), text("b")]);
        assert_eq!(ids(&tokens.input_ids), [1, 2, 1, 9, 9, 2]);
        assert_eq!(ids(&tokens.attention_mask), [1, 1, 1, 0, 0, 1]);
        let empty = batch(&tokenizer, &[text("")]);
        assert_eq!(empty.input_ids.shape(), [1, 0]);
        // Written again it pads as before, and cuts as its file says, whatever was asked for beside it.
        let cut = Tokenizer::open(dir.path(), Some(2)).unwrap();
        assert_eq!((tokenizer.limit(), cut.limit()), (Some(3), Some(2)));
        assert_eq!(cut.file().unwrap(), tokenizer.file().unwrap());
        assert_ne!(cut.describe().unwrap(), tokenizer.describe().unwrap());
        fs::write(&path, cut.file().unwrap()).unwrap();
        let again = Tokenizer::open(dir.path(), None).unwrap();
        assert_eq!(batch(&again, &[text("a b a b a"), text("b")]), tokens);
        assert_eq!(again.describe().unwrap(), tokenizer.describe().unwrap());
    }

    #[test]
    fn what_is_no_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Tokenizer::open(dir.path(), None).err().unwrap().to_string();
        assert!(open().contains("holds neither"));
        fs::write(dir.path().join("vocab.txt"), "a\nb\n").unwrap();
        assert!(open().contains("lacks [SEP]"));
        fs::write(dir.path().join("tokenizer.json"), "{\"model\": 3}").unwrap();
        assert!(open().contains("is not a tokenizer"));
        fs::write(dir.path().join("tokenizer.json"), b"\xff\xfe").unwrap();
        assert!(open().contains("is not a tokenizer"));
        fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        fs::write(dir.path().join("vocab.txt"), VOCAB).unwrap();
        let tokenizer = Tokenizer::open(dir.path(), None).unwrap();
        assert!(tokenizer.batch(&[]).is_err());
        assert!(tokenizer.encode(&Input::Arrays(vec![])).is_err());
    }

    /// A real BERT tokenizer named by the variable, if any: a folder with `tokenizer.json` and `vocab.txt`.
    #[test]
    fn both_files_of_a_real_model_agree() {
        let Some(root) = std::env::var_os("LESSEN_TOKENIZER").map(PathBuf::from) else {
            eprintln!("skipped: LESSEN_TOKENIZER does not name a folder");
            return;
        };
        let inputs =
            [text("Héllo wörld, it's 3.14 — 東京!"), pair("The unaffable cat", "[MASK] sat."), text("")];
        let both = ["tokenizer.json", "vocab.txt"]
            .map(|name| batch(&Tokenizer::open(&root.join(name), Some(64)).unwrap(), &inputs));
        eprintln!("{:?}", ids(&both[0].input_ids));
        assert_eq!(both[0].attention_mask, both[1].attention_mask);
        assert_eq!(both[0].input_ids, both[1].input_ids);
        assert_eq!(both[0].token_type_ids, both[1].token_type_ids);
    }
}
