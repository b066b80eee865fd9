"""surrogate.json: the last fit of an algorithm that fits one, for `evomerge ask`.

Derived data: replaying the journal gives the same file again.
"""

from __future__ import annotations

import json

from evomerge.algorithms.algorithm import HasSurrogate, search_algorithms
from evomerge.config.results import RunResults
from evomerge.core.pareto_surrogate import ParetoSurrogate
from evomerge.errors import RunError
from evomerge.search.loop import SearchLoop
from evomerge.storage.atomic import write_atomically
from evomerge.storage.run_store import RunFolder, explained


def save_surrogate(folder: RunFolder, loop: SearchLoop) -> None:
    """Write surrogate.json if the loop's algorithm has a surrogate; whole or not at all.

    Raises:
        RunError: The file cannot be written.
    """
    algorithm = getattr(loop.algorithm, "inner", loop.algorithm)  # in a race
    surrogate = algorithm.surrogate() if isinstance(algorithm, HasSurrogate) else None
    if surrogate is not None:
        body = {"scored": len(loop.population), **surrogate.to_json()}
        with explained(folder.surrogate):
            write_atomically(folder.surrogate, json.dumps(body).encode())


def load_surrogate(results: RunResults) -> tuple[ParetoSurrogate, int]:
    """Return a run's surrogate, and how many scored candidates are newer than it.

    Raises:
        RunError: There is none, or it is damaged; says what to do.
    """
    file = results.folder.surrogate
    if not file.is_file():
        name = str(results.config.algorithm["name"])
        if hasattr(search_algorithms.get(name), "surrogate"):
            remedy = f"evomerge resume {results.folder.path} writes it once candidates are scored"
        else:
            remedy = f"algorithm {name!r} fits none; search with amortized_pareto"
        raise RunError(f"{file}: there is no surrogate to ask; {remedy}")
    try:
        body = json.loads(file.read_bytes())
        n_scored = int(body["scored"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RunError(
            f"{file}: cannot be read: {error}. `evomerge resume RUN` writes it anew"
        ) from None
    surrogate = ParetoSurrogate.from_json(body, where=str(file))
    return surrogate, len(results.scored) - n_scored
