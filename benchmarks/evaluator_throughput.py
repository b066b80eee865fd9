"""Examples per second of the built-in engine against lm-evaluation-harness's Hugging Face backend.

    python benchmarks/evaluator_throughput.py [--smoke] [--rounds 3]

One random Llama (byte tokenizer), the same prompts, in one process and one run, in turns. Both are
warm: timed is what every further candidate of a search costs. The harness is given its requests
ready-made, so that only its model backend is timed, at the faster of two batch sizes.

- multiple choice: questions with four options, behind five examples that all questions share
  (`multiple_choice`), and behind five that differ (`multiple_choice_apart`). The options are
  numbers that often differ in the last byte only, which the harness's own cache makes use of;
- generation: greedy answers of up to 24 tokens, prompts that share nothing (`generation`) or the
  five examples (`generation_shared`).

`scores_identical`: every example has the same score in both. `overhead_share`: part of the
multiple choice's time that is not spent in the model's forward pass. Times are medians of process
CPU seconds (`…_ratio`), wall seconds stand beside them (`…_wall_ratio`). Without lm-eval only the
overhead is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.evaluation.subject import Subject

BATCH_SIZES = (8, 32)  # of the harness
NEW_TOKENS = 24
SHOTS = 5
NAMES = ("Ada", "Ben", "Chloe", "Dinesh", "Eve", "Farid", "Grace", "Hugo", "Ines", "Jun")
THINGS = ("apples", "books", "coins", "drums", "eggs", "flags", "grapes", "hats")


def save_model(folder: Path, width: int) -> None:
    """Save a random four-layer Llama of `width` and a tokenizer of single bytes."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)} | {"<s>": 256, "</s>": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=1024,
        bos_token_id=256,
        eos_token_id=257,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Spread out, so that no two options are equally likely.
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)


def question(rng: np.random.Generator) -> tuple[str, int]:
    """Return a sum in words, and its answer."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    a, b = (int(n) for n in rng.integers(2, 90, size=2))
    return f"Q: {name} has {a} {thing} and buys {b} more. How many {thing}?\nA:", a + b


def make_rows(n: int, *, shared: bool) -> list[dict[str, Any]]:
    """Return n rows with prompt, options, gold and answer; `shared`: one set of examples."""
    rng = np.random.Generator(np.random.Philox(1))

    def shots() -> str:
        return "".join(f"{text} {value}\n\n" for text, value in (question(rng) for _ in range(5)))

    fixed = shots()
    rows = []
    for _ in range(n):
        text, value = question(rng)
        options = [f" {value + int(d)}" for d in rng.permutation([0, 1, 7, 12])]
        prompt = (fixed if shared else shots()) + text
        gold = options.index(f" {value}")
        rows.append({"prompt": prompt, "options": options, "gold": gold, "answer": str(value)})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL; return the path."""
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@contextmanager
def forward_seconds(model: torch.nn.Module) -> Iterator[list[float]]:
    """Yield a list that the CPU seconds of every forward pass are added to."""
    spent: list[float] = []
    inner = model.forward

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        result = inner(*args, **kwargs)
        spent.append(time.process_time() - started)
        return result

    # The engine looks at the signature for what a model takes.
    timed.__wrapped__ = inner
    model.forward = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        model.forward = inner  # type: ignore[method-assign]


class Harness:
    """lm-evaluation-harness's backend around the very model in memory."""

    def __init__(self, subject: Subject, rows: list[dict[str, Any]]) -> None:
        """Make its requests once per batch size."""
        import logging

        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self.rows = rows
        self.backends = [
            HFLM(
                pretrained=subject.model,
                tokenizer=subject.tokenizer,
                batch_size=size,
                device="cpu",
                max_length=1024,
            )
            for size in BATCH_SIZES
        ]
        self.choices = [
            Instance("loglikelihood", row, (row["prompt"], option), i)
            for i, row in enumerate(rows)
            for option in row["options"]
        ]
        settings = {"until": ["\n\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
        self.questions = [
            Instance("generate_until", row, (row["prompt"], settings), i)
            for i, row in enumerate(rows)
        ]

    def multiple_choice(self, backend: Any) -> list[float]:
        """Return 0 or 1 per row, by the harness's `acc`."""
        found = np.array([value for value, _ in backend.loglikelihood(self.choices, True)])
        best = found.reshape(len(self.rows), -1).argmax(axis=1)
        return [float(b == row["gold"]) for b, row in zip(best, self.rows, strict=True)]

    def generation(self, backend: Any) -> list[str]:
        """Return the answer of every row."""
        return [str(text) for text in backend.generate_until(self.questions, True)]


def timed(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return median (CPU, wall) seconds of every call, made in turns after one to warm up."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            if turn:
                spent[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: tuple(np.median(times, axis=0)) for name, times in spent.items()}


def overhead(call: Callable[[], object], model: torch.nn.Module, rounds: int) -> float:
    """Return the median part of a call's CPU time that is not the model's forward pass."""
    shares = []
    for _ in range(rounds):
        with forward_seconds(model) as spent:
            started = time.process_time()
            call()
            total = time.process_time() - started
        shares.append(1 - sum(spent) / total)
    return float(np.median(shares))


def compare(subject: Subject, folder: Path, n: int, rounds: int) -> dict[str, Any]:
    """Return every figure; ratios only where lm-eval is installed."""
    has_harness = importlib.util.find_spec("lm_eval") is not None
    figures: dict[str, Any] = {"examples": n, "torch_threads": torch.get_num_threads()}
    identical = []
    for shared in (True, False):
        rows = make_rows(n, shared=shared)
        path = write(folder / f"rows_{shared}.jsonl", rows)
        choice = MultipleChoice(examples=path)
        match = ExactMatch(examples=path, max_new_tokens=NEW_TOKENS, stop=("\n\n",))
        if has_harness:
            # References that are right for half of the rows, as the random model knows none.
            harness = Harness(subject, rows)
            made = harness.generation(harness.backends[0])
            for row, text in list(zip(rows, made, strict=True))[::2]:
                row["answer"] = text.strip() or "nothing"
            write(path, rows)
        ours: dict[str, Callable[[], Any]] = {
            "multiple_choice": lambda choice=choice: choice.evaluate(subject),
            "generation": lambda match=match: match.evaluate(subject),
        }
        name_of = {
            "multiple_choice": "multiple_choice" if shared else "multiple_choice_apart",
            "generation": "generation_shared" if shared else "generation",
        }
        for kind, call in ours.items():
            name = name_of[kind]
            scores = call()
            figures[f"{name}_overhead_share"] = round(overhead(call, subject.model, rounds), 4)
            if not has_harness:
                continue
            calls: dict[str, Callable[[], Any]] = {"ours": call}
            for size, backend in zip(BATCH_SIZES, harness.backends, strict=True):
                ask = getattr(harness, kind)
                calls[str(size)] = lambda ask=ask, backend=backend: ask(backend)
                theirs = calls[str(size)]()
                if kind == "generation":
                    answers = [row["answer"].strip() for row in rows]
                    theirs = [
                        float(text.strip() == answer)
                        for text, answer in zip(theirs, answers, strict=True)
                    ]
                identical.append(scores.tolist() == theirs)
            seconds = timed(calls, rounds)
            best = min((seconds[str(size)] for size in BATCH_SIZES), key=lambda pair: pair[0])
            figures[f"{name}_ratio"] = round(best[0] / seconds["ours"][0], 2)
            figures[f"{name}_wall_ratio"] = round(best[1] / seconds["ours"][1], 2)
            figures[f"{name}_examples_per_cpu_s"] = round(n / seconds["ours"][0], 1)
            figures[f"{name}_harness_examples_per_cpu_s"] = round(n / best[0], 1)
            figures[f"{name}_mean_score"] = round(float(scores.mean()), 3)
    figures["overhead_share"] = figures["multiple_choice_overhead_share"]
    if has_harness:
        figures["scores_identical"] = all(identical)
    return figures


def main() -> None:
    """Print the figures, the last line as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--smoke", action="store_true", help="small model, few examples, one round")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.examples, arguments.rounds, arguments.width = 4, 1, 64
    torch.set_num_threads(1)
    if importlib.util.find_spec("lm_eval") is None:
        print("lm-eval is not installed: no comparison. pip install 'lm-eval>=0.4.13'")
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), arguments.width)
        subject = Subject.load(Path(folder), auto_class="AutoModelForCausalLM")
        figures = compare(subject, Path(folder), arguments.examples, arguments.rounds)
    for key, value in figures.items():
        print(f"{key:45} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
