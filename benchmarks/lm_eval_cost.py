"""What scoring a model on a task of lm-evaluation-harness costs beside the model itself.

python benchmarks/lm_eval_cost.py [--documents 100] [--evaluations 10] [--smoke]

The same random Llama on the same local multiple-choice task: the evaluator `lm_eval` against the
harness's `simple_evaluate` with its Hugging Face engine, one process each. `simple_evaluate` is
called twice over: as its documentation shows it, and with a task index of the one folder made
beforehand. Scores must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = ("the", "a", "cat", "dog", "house", "tree", "runs", "slowly", "under", "blue", "and")
SIDES = ("ours", "simple_evaluate", "simple_evaluate_indexed")


def write_task(folder: Path, n_documents: int) -> None:
    """Write `n_documents` questions of about 60 words with four options."""
    import yaml

    docs = []
    for i in range(n_documents):
        words = [WORDS[(i * 7 + k * (3 + i % 5)) % len(WORDS)] for k in range(50 + i % 20)]
        options = [" ".join(words[k : k + 3]) for k in range(4)]
        docs.append({"text": " ".join(words), "options": options, "gold": i % 4})
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": "cost",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "docs.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_target": "gold",
        "doc_to_choice": "options",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "cost.yaml").write_text(yaml.safe_dump(task))


def save_model(folder: Path, hidden: int) -> None:
    """Write a random Llama with a byte tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.evaluation.tiny_models import byte_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=262,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


def measure(side: str, folder: Path, evaluations: int) -> dict[str, Any]:
    """Return seconds and scores of one side; the model is loaded before the clock starts."""
    from evomerge.evaluation.subject import Subject

    subject = Subject.load(folder / "model", auto_class="AutoModelForCausalLM")
    spent = [0.0]
    began = [0.0]

    def before(*_: object) -> None:
        began[0] = time.perf_counter()

    def after(*_: object) -> None:
        spent[0] += time.perf_counter() - began[0]

    subject.model.register_forward_pre_hook(before)
    subject.model.register_forward_hook(after)
    started, cpu = time.perf_counter(), time.process_time()
    score = ours(subject, folder) if side == "ours" else harness(side, subject, folder)
    wall, scores = [], []
    for _ in range(evaluations):
        scores = score()
        wall.append(time.perf_counter() - started)
    return {
        "seconds_to_first": wall[0],
        "seconds": wall[-1],
        "cpu_seconds": time.process_time() - cpu,
        "seconds_in_model": spent[0],
        "seconds_each_later": (wall[-1] - wall[0]) / max(evaluations - 1, 1),
        "scores": scores,
    }


def ours(subject: Any, folder: Path) -> Callable[[], list[float]]:
    """Return a function that scores with the evaluator of a run."""
    from evomerge.evaluation.harness import LmEval

    evaluator = LmEval(task="cost", include_path=folder)
    return lambda: [float(score) for score in evaluator.evaluate(subject)]


def harness(side: str, subject: Any, folder: Path) -> Callable[[], list[float]]:
    """Return a function that scores with `simple_evaluate` and the same model object."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=16)
    indexed = TaskManager(include_path=folder, include_defaults=False)

    def score() -> list[float]:
        manager = indexed if side.endswith("indexed") else TaskManager(include_path=folder)
        found = lm_eval.simple_evaluate(
            model, tasks=["cost"], task_manager=manager, bootstrap_iters=0
        )
        return [float(sample["acc"]) for sample in found["samples"]["cost"]]

    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--smoke", action="store_true", help="a few documents, two evaluations")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.documents, args.evaluations, args.hidden = 5, 2, 16
    if args.side is not None:
        print(json.dumps(measure(args.side, args.folder, args.evaluations)))
        return
    figures: dict[str, Any] = {"documents": args.documents, "evaluations": args.evaluations}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_task(folder, args.documents)
        save_model(folder / "model", args.hidden)
        scores = {}
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--folder", name]
            command += ["--evaluations", str(args.evaluations)]
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.getcwd()}
            done = subprocess.run(command, check=True, capture_output=True, env=environment)
            found = json.loads(done.stdout.splitlines()[-1])
            scores[side] = found.pop("scores")
            found["share_in_model"] = found["seconds_in_model"] / found["seconds"]
            figures[side] = {key: round(value, 4) for key, value in found.items()}
            print(side, figures[side], file=sys.stderr)
    if len({tuple(found) for found in scores.values()}) != 1:
        sys.exit("the sides give different scores")
    for side in SIDES[1:]:
        for key in ("seconds_to_first", "seconds_each_later", "seconds"):
            figures[f"{side}_over_ours_{key}"] = round(figures[side][key] / figures["ours"][key], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
