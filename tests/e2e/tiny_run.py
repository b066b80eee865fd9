"""Tiny real models, configs over them, and the command line in a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

SCORER = '''
"""Scores of a merged model from its weights alone: cheap, deterministic, with two trade-offs."""
import os, time
import numpy as np

def closeness(subject, n, target, pause=0.0):
    time.sleep(pause * float(os.environ.get("TINY_PAUSES", "1")))  # 0 where nobody disturbs
    weights = np.concatenate([p.detach().numpy().ravel() for p in subject.model.parameters()])
    cut = np.array_split(weights, n)
    return [float(np.clip(1 - abs(part.mean() * 20 - target), 0, 1)) for part in cut]

def marked(subject, n, folder):
    """Leave one file per evaluation begun, so that a test can count them."""
    open(os.path.join(folder, f"{time.time_ns()}-{os.getpid()}"), "w").close()
    return closeness(subject, n, 0.1)

def sometimes(subject, n):
    """Fail on the models whose weights say so: the same ones in every process."""
    weights = np.concatenate([p.detach().numpy().ravel() for p in subject.model.parameters()])
    if int(abs(weights.sum()) * 1e4) % 3 == 0:
        raise RuntimeError("this evaluator fails on some models")
    return closeness(subject, n, 0.1)

def fails(subject, n):
    raise RuntimeError("this evaluator always fails")
'''


@dataclass(frozen=True)
class TinyModels:
    folder: Path

    def config(self, **changes) -> dict:
        body = {
            "name": "tiny",
            "seed": 5,
            "base_model": str(self.folder / "base"),
            "models": [
                {"name": "x", "model": str(self.folder / "x")},
                {"name": "y", "model": str(self.folder / "y")},
            ],
            "merge": {"name": "task_arithmetic", "groups": "layer"},
            "algorithm": {"name": "random"},
            "tasks": [self.task("up", 0.1), self.task("down", -0.1)],
            "budget": {"evaluations": 20},
            "search": {"look_ahead": 6},
            "runtime": {"workers": 1, "threads": 1},
        }
        return body | changes

    def task(self, name: str, target: float, pause: float = 0.0, n: int = 12) -> dict:
        return {
            "name": name,
            "evaluator": {
                "name": "python",
                "function": "tiny_scorer:closeness",
                "path": str(self.folder),
                "n": n,
                "arguments": {"n": n, "target": target, "pause": pause},
                "auto_class": "AutoModelForImageClassification",
            },
        }

    def write(self, path: Path, **changes) -> Path:
        path.write_text(yaml.safe_dump(self.config(**changes)))
        return path


def build_tiny_models(folder: Path) -> TinyModels:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    (folder / "tiny_scorer.py").write_text(SCORER)
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=4,
        patch_size=2,
        num_channels=1,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = ViTForImageClassification(config)
        base.save_pretrained(folder / "base")
        for seed, name, shift in ((1, "x", 0.02), (2, "y", -0.02)):
            torch.manual_seed(seed)
            model = ViTForImageClassification(config)
            with torch.no_grad():
                pairs = zip(model.parameters(), base.parameters(), strict=True)
                for parameter, original in pairs:
                    parameter.copy_(original + shift + 0.02 * torch.randn_like(original))
            model.save_pretrained(folder / name)
    return TinyModels(folder)


def evomerge(*arguments, cwd: Path | None = None, timeout: float = 120, env: dict | None = None):
    """Run the command line and return the finished process (text mode)."""
    return subprocess.run(
        [sys.executable, "-m", "evomerge", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )


def start(*arguments, cwd: Path | None = None, log: Path, env: dict | None = None):
    """Start the command line in its own process group; output goes to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "evomerge", *map(str, arguments)],
            cwd=cwd,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )


def journal(run: Path) -> list[dict]:
    return [json.loads(line)["event"] for line in (run / "journal.jsonl").read_text().splitlines()]
