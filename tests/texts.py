"""Texts as MiniLM's inputs, and what it answers to them in onnxruntime: for tests and benches."""

import numpy as np


def batches(tokenizer, texts):
    """Different texts by their tokens, 32 at once, with the inputs that they make; `tokenizer` is the path of
    tokenizer.json."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer))
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    texts = sorted(set(texts))
    codes = tokenizer.encode_batch(texts)
    order = sorted(range(len(texts)), key=lambda at: len(codes[at].ids))
    texts, all_codes = [texts[at] for at in order], [codes[at] for at in order]
    for i in range(0, len(texts), 32):
        codes = all_codes[i:i + 32]
        width = len(codes[-1].ids)
        pad = lambda ids: np.array([v + [0] * (width - len(v)) for v in ids], np.int64)
        ids, mask = pad([c.ids for c in codes]), pad([c.attention_mask for c in codes])
        yield texts[i:i + 32], {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def answers(session, tokenizer, texts, output):
    """What a session answers to each text."""
    found = {}
    for part, feeds in batches(tokenizer, texts):
        found.update(zip(part, session.run([output], feeds)[0]))
    return found
