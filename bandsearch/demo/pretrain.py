"""Pre-train the embedded decoder from nothing, as the shipped one was.

    python -m bandsearch.demo.pretrain --out DIR

A llama of 12 layers (d 128, 4 heads of 32, feed-forward 352, tied embeddings: 2.5 M parameters) with its own byte-level
BPE. Muon (arXiv 2502.16982) for matrices, AdamW for the rest; loss weighs 1 on answers and 0.1 on prompts. Two
phases: the whole mixture, then more of the look-ups and strings, which take longest to learn. About 40 minutes on one
thread. Needs a C++ compiler (torch.compile).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bandsearch.demo.corpus import SKILLS, Pair, Skill, pairs

END, PAD = "<|end|>", "<|pad|>"
VOCABULARY = 640
ROWS, LENGTH = 16, 128
PROMPT_WEIGHT = 0.1
WARMUP = 50
# The chat template writes what pre-training wrote: the prompt, a space, the answer, the end.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Phase:
    """`steps` of 16 rows of 128 tokens; the rates fall to a fiftieth over the last `decay` of them."""

    steps: int
    muon_rate: float
    adam_rate: float
    seed: int
    shares: Mapping[str, float]
    decay: float = 0.6


PHASES = (
    Phase(steps=1661, muon_rate=0.02, adam_rate=3e-3, seed=2, shares={}),
    Phase(steps=1056, muon_rate=0.012, adam_rate=2e-3, seed=3, shares={"lookup": 0.45, "strings": 0.16}),
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a token of its own."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD, "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source = pairs(seed=1)
    backend.train_from_iterator(("".join(next(source)) for _ in range(30_000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=12,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.05,
        )
    )


def batches(tokenizer: PreTrainedTokenizerFast, source: Iterator[Pair]) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and loss weights, both (16, 129): as many whole pairs a row as fit, padded behind."""
    while True:
        ids, weights = [], []
        for _ in range(ROWS):
            row: list[int] = []
            row_weights: list[float] = []
            while True:
                prompt, answer = next(source)
                asked = tokenizer(prompt)["input_ids"]
                answered = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
                if len(row) + len(asked) + len(answered) > LENGTH + 1:
                    break
                row += asked + answered
                row_weights += [PROMPT_WEIGHT] * len(asked) + [1.0] * len(answered)
            missing = LENGTH + 1 - len(row)
            ids.append(row + [tokenizer.pad_token_id] * missing)
            weights.append(row_weights + [0.0] * missing)
        yield torch.tensor(ids), torch.tensor(weights)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, phase: Phase) -> int:
    """One phase, in place; returns the tokens seen."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=phase.muon_rate, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=phase.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    skills = {name: replace(skill, share=phase.shares.get(name, skill.share)) for name, skill in SKILLS.items()}
    source = batches(tokenizer, pairs(phase.seed, skills))
    forward: Any = torch.compile(model, dynamic=False)
    model.train()
    tokens, started = 0, time.monotonic()
    for step in range(phase.steps):
        done = step / phase.steps
        factor = min(1.0, (step + 1) / WARMUP) * min(1.0, max(0.02, (1 - done) / phase.decay))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        ids, weights = next(source)
        weights = weights[:, 1:].flatten()
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(ids[:, :-1]).logits
        losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        tokens += int((weights > 0).sum())
        if step % 50 == 0:
            print(f"step {step}/{phase.steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)
    return tokens


def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, skill: Skill) -> float:
    """Exact match of greedy answers on fresh prompts."""
    model.eval()
    source = random.Random(99)
    asked = [skill.write(source) for _ in range(100)]
    tokenizer.padding_side = "left"
    batch = tokenizer([prompt for prompt, _ in asked], return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=16, do_sample=False
        )
    answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    right: list[bool] = [given.strip() == answer.strip() for given, (_, answer) in zip(answers, asked, strict=True)]
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the model and its tokenizer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shorten", type=int, default=1, help="divide all steps by this, for a quick look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    started = time.monotonic()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    phases = [replace(phase, steps=max(1, phase.steps // options.shorten)) for phase in PHASES]
    tokens = sum(train(model, tokenizer, phase) for phase in phases)
    # What is measured is what is shipped: weights rounded to bf16.
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    shipped = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    record = {
        "steps": [phase.steps for phase in phases],
        "tokens": tokens,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "threads": options.threads,
        "torch": torch.__version__,
        "exact_match": {name: accuracy(shipped, tokenizer, skill) for name, skill in SKILLS.items()},
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
