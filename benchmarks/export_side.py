"""Merges with evomerge from disk to disk in a hot process: open, check, derive, merge, write."""

from __future__ import annotations

import shutil
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.merge_cases import CASES
from benchmarks.side_process import Job, serve
from evomerge.core.model_space import align
from evomerge.export import CardFacts, ParentModel, export_candidate
from evomerge.merging.derived import derive_for
from evomerge.merging.operator import merge_operators
from evomerge.storage.model_folder import ModelFolder


def merge(job: Job) -> Job:
    """Merge the case `case` of the models `folders` into the folder `out`.

    Nothing is kept between jobs: the models are hashed and the statistics derived each time.
    """
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)
    marks = [time.process_time()]
    case, folders = CASES[job["case"]], [Path(folder) for folder in job["folders"]]
    n_experts = len(folders) - 1
    used = set(case.sources(n_experts))
    sources = {path.name: ModelFolder(path.name, path) for path in folders if path.name in used}
    has_base = case.models.startswith("base") or case.models == "all"
    space = align([source.header() for source in sources.values()], has_base=has_base)
    marks.append(time.process_time())
    derived = derive_for(merge_operators.get(case.operator), space, sources)
    marks.append(time.process_time())
    parents = tuple(ParentModel(id=name, model=name) for name in sources)
    export_candidate(
        out,
        recipe=case.recipe(n_experts),
        space=space,
        sources=sources,
        derived=derived,
        donor=next(path for path in folders if path.name in used),
        card=CardFacts(title="benchmark", parents=parents),
        max_shard_bytes=int(job.get("max_shard_bytes", 5_000_000_000)),
    )
    marks.append(time.process_time())
    phases = ("open_seconds", "derive_seconds", "export_seconds")
    return dict(zip(phases, (b - a for a, b in pairwise(marks)), strict=True))


if __name__ == "__main__":
    import evomerge.merging  # noqa: F401  # registers the methods

    serve(merge)
