"""Merges with mergekit's Python API in a hot process; needs only mergekit and this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

from benchmarks.side_process import Job, serve


def merge(job: Job) -> Job:
    """Merge `config` into the folder `out`, by the flags that are fastest."""
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    options = MergeOptions(
        copy_tokenizer=False, lazy_unpickle=True, write_model_card=False, quiet=True, random_seed=7
    )
    run_merge(MergeConfiguration.model_validate(job["config"]), str(out), options)
    return {}


if __name__ == "__main__":
    serve(merge)
