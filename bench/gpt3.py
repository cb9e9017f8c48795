"""Writes a synthetic checkpoint of the shape of GPT-3 (or of another size), and samples of inputs for its weights.

    python3 bench/gpt3.py FOLDER [--blocks 2] [--width 12288] [--tokens 256] [--vocabulary 512] [--seed 1]

FOLDER becomes a checkpoint of OPT's names, F16, in shards of 2 GB; FOLDER.stats.safetensors has `NAME.sample`
[tokens, inputs] for each weight. Weights are normal, with rows and columns of different scales and a few outliers, as
in trained models; inputs hang together (64 hidden numbers), some columns much greater than others. With 2 blocks of
width 12288 that is 7.2 GB, a 48th of GPT-3's 350 GB. Then:

    target/release/lessen quantize FOLDER -o OUT --project 96
    target/release/lessen quantize FOLDER -o OUT2 --stats FOLDER.stats.safetensors --project 96

Needs numpy. The numbers depend on the seed alone.
"""

import argparse
import json
import pathlib

import numpy as np

SHARD = 2_000_000_000


def header(tensors):
    at, entries = 0, {"__metadata__": {"format": "pt"}}
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def weight(file, rng, shape):
    if len(shape) == 1:
        file.write((0.02 * rng.standard_normal(shape, dtype=np.float32)).astype(np.float16).tobytes())
        return
    rows, cols = shape
    columns = np.exp(0.3 * rng.standard_normal(cols, dtype=np.float32)) / np.sqrt(np.float32(cols))
    for start in range(0, rows, 1024):
        count = min(1024, rows - start)
        part = rng.standard_normal((count, cols), dtype=np.float32)
        part *= np.exp(0.3 * rng.standard_normal((count, 1), dtype=np.float32)) * columns
        part[np.arange(count), rng.integers(0, cols, count)] *= 6
        file.write(part.astype(np.float16).tobytes())


def inputs(file, rng, shape):
    tokens, cols = shape
    columns = np.exp(0.5 * rng.standard_normal(cols, dtype=np.float32))
    columns[rng.integers(0, cols, max(cols // 500, 1))] *= 20
    mix = rng.standard_normal((64, cols), dtype=np.float32) / 8
    x = rng.standard_normal((tokens, 64), dtype=np.float32) @ mix
    x += 0.5 * rng.standard_normal((tokens, cols), dtype=np.float32)
    file.write((x * columns).astype(np.float16).tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--width", type=int, default=12288)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    d = args.width
    tensors = [("model.decoder.embed_tokens.weight", (args.vocabulary, d))]
    for block in range(args.blocks):
        name = f"model.decoder.layers.{block}."
        for part, shape in [("q_proj", (d, d)), ("k_proj", (d, d)), ("v_proj", (d, d)), ("out_proj", (d, d))]:
            tensors += [(f"{name}self_attn.{part}.weight", shape), (f"{name}self_attn.{part}.bias", shape[:1])]
        tensors += [(f"{name}self_attn_layer_norm.{part}", (d,)) for part in ("weight", "bias")]
        tensors += [(f"{name}final_layer_norm.{part}", (d,)) for part in ("weight", "bias")]
        for part, shape in [("fc1", (4 * d, d)), ("fc2", (d, 4 * d))]:
            tensors += [(f"{name}{part}.weight", shape), (f"{name}{part}.bias", shape[:1])]
    shards, filled = [[]], 0
    for tensor in tensors:
        size = 2 * int(np.prod(tensor[1]))
        if filled and filled + size > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += size
    args.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    weights = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weights |= {tensor: name for tensor, _ in shard}
        with open(args.folder / name, "wb") as file:
            file.write(header(shard))
            for _, shape in shard:
                weight(file, rng, shape)
    total = sum(2 * int(np.prod(shape)) for _, shape in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (args.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "opt", "architectures": ["OPTForCausalLM"], "torch_dtype": "float16", "hidden_size": d,
        "ffn_dim": 4 * d, "word_embed_proj_dim": d, "num_attention_heads": max(d // 128, 1),
        "num_hidden_layers": args.blocks, "vocab_size": args.vocabulary, "max_position_embeddings": 2048,
    }
    (args.folder / "config.json").write_text(json.dumps(config, indent=2))
    samples = [
        (f"{name}.sample", (args.tokens, shape[1]))
        for name, shape in tensors
        if len(shape) == 2 and "embed" not in name
    ]
    with open(args.folder.with_name(args.folder.name + ".stats.safetensors"), "wb") as file:
        file.write(header(samples))
        # Weights that read the same inputs have the same samples.
        state, last = None, None
        for name, shape in samples:
            same = name.split("_proj")[0][:-1]
            if not (last == same and name.split(".")[-3] in ("k_proj", "v_proj")):
                state = rng.bit_generator.state
            rng.bit_generator.state = state
            inputs(file, rng, shape)
            last = same
    print(f"{args.folder}: {len(shards)} shards, {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
