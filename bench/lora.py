"""Training factors (LoRA) beside PyTorch: bench/lora.py [--reviews N].

Prints a table. MiniLM-L6 learns to judge film reviews (SST-2) by factors of rank 8 beside all of its products and a head of
its own, 32 reviews a step, AdamW, one epoch; a tenth is held out and judged before and after. The Python way is
transformers' BertModel with the same weights, peft's LoRA on the same products, and batches padded to their longest
text, in float32 on the same number of threads. Needs what tests/run installs, torch, transformers and peft, the release
build and the shared data. Times are of the training alone, the two in turns.
"""

import argparse
import os
import statistics
import time

from quality import MINILM, lessen, work
from teach import reviews, write

BATCH, RANK, RATE = 32, 8, 1e-3


class Peer:
    """PyTorch, with all imported and read."""

    def __init__(self):
        import peft
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_num_threads(os.cpu_count())
        self.torch = torch
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
        body = transformers.BertModel.from_pretrained(MINILM, add_pooling_layer=False)
        factors = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0,
                                  target_modules=["query", "key", "value", "dense"])
        self.body = peft.get_peft_model(body, factors)
        self.head = torch.nn.Linear(body.config.hidden_size, 2)
        self.body.eval()
        self.versions = f"torch {torch.__version__}, peft {peft.__version__}"

    def loss(self, rows):
        torch = self.torch
        tokens = self.tokenizer([text for text, _ in rows], padding=True, truncation=True, max_length=256,
                                return_tensors="pt")
        mask = tokens["attention_mask"][..., None].float()
        states = self.body(**tokens).last_hidden_state
        vectors = (states * mask).sum(1) / mask.sum(1)
        truth = torch.tensor([int(label) for _, label in rows])
        return torch.nn.functional.cross_entropy(self.head(vectors), truth)

    def judge(self, rows):
        with self.torch.no_grad():
            return sum(float(self.loss(rows[i:i + 64])) for i in range(0, len(rows), 64))

    def epoch(self, train, held):
        torch = self.torch
        trained = [p for p in (*self.body.parameters(), *self.head.parameters()) if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE)
        start = time.time()
        self.judge(held)
        for i in range(0, len(train), BATCH):
            optimizer.zero_grad()
            self.loss(train[i:i + BATCH]).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        self.judge(held)
        return time.time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reviews", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows = reviews()[0][:options.reviews]
    data = work / "train.csv"
    write(rows, data)
    peer = Peer()
    ours, theirs = [], []
    for _ in range(options.rounds):
        report, _, _ = lessen("teach", MINILM, "--data", data, "--head", "ridge", "--tune", f"lora={RANK}", "--epochs", 1,
                              "--cache", work / "cache", "-o", work / "m.onnx")
        tuned = report["tuned"]
        ours.append(tuned["time"]["value"])
        held = tuned["held_out"]
        theirs.append(peer.epoch(rows[held:], rows[:held]))
    steps = -(-tuned["examples"] // BATCH)
    print(f"{tuned['examples']} reviews to train on, {tuned['held_out']} held out, {steps} steps; {peer.versions}\n")
    print("| | seconds | steps a second |\n|---|---|---|")
    for name, times in (("lessen", ours), ("PyTorch", theirs)):
        print(f"| {name} | {statistics.median(times):.1f} | {steps / statistics.median(times):.2f} |")
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    print(f"\nlessen is {statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
