"""`evomerge ask`: what a run's surrogate expects, without evaluating."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evomerge.config.ask_run import Answer, ask_run, export_answer
from evomerge.config.locate import locate
from evomerge.config.results import RunResults
from evomerge.core.recipe import Recipe


def ask_command(run: Path, *, weights: str, out: Path | None, as_json: bool) -> None:
    """Print what is expected to be best for the weights, and export it if asked to."""
    folder = locate(run)
    answer = ask_run(RunResults(folder), weights)
    result = None if out is None else export_answer(folder, answer, weights, out)
    if as_json:
        body = answer.to_json()
        if result is not None:
            body |= {"folder": str(result.folder), "weights_digest": result.weights_digest}
        print(json.dumps(body))
        return
    _print(answer)
    if result is not None:
        print(f"not scored -> {result.folder}  ({result.weights_digest})")


def _print(answer: Answer) -> None:
    print(f"recipe {answer.recipe.digest()}, expected from {answer.n_scored} scored candidates")
    print(f"{'objective':<16}{'expected':>10}{'±':>10}{'nearest':>10}{'error':>10}")
    for name, value in answer.predicted.items():
        error = answer.error[name]
        shown = error["fit"] if error["predicted"] is None else error["predicted"]
        print(
            f"{name:<16}{value:>10.4f}{answer.std[name]:>10.4f}"
            f"{answer.nearest_values[name]:>10.4f}{shown:>10.4f}"
        )
    if answer.n_estimated:
        print(
            f"{answer.n_estimated} of the {answer.n_scored} were left behind by a race: what they "
            "would score on the rest of the examples is its estimate"
        )
    first = next(iter(answer.error.values()))
    kind = f"of {first['n']} predictions, once scored" if first["n"] else "of the fit"
    print(f"error: root mean square {kind}")
    print(f"nearest: candidate {answer.nearest} at distance {answer.distance:.3f}")
    for line in _coefficients(answer.recipe):
        print(line)
    if answer.n_newer > 0:
        print(
            f"{answer.n_newer} scored candidates are newer than the surrogate; it is fitted anew "
            "when the search stops",
            file=sys.stderr,
        )


def _coefficients(recipe: Recipe) -> list[str]:
    """Return one line per parameter and group."""
    lines = []
    for name, rows in recipe.params.items():
        for group, row in enumerate(rows.reshape(len(rows), -1)):
            where = name if len(rows) == 1 else f"{name}[{group}]"
            sources = recipe.sources[-len(row) :] if rows.ndim == 2 else ("",)
            pairs = zip(sources, row, strict=True)
            parts = [f"{source} {value:.4f}".strip() for source, value in pairs]
            lines.append(f"{where}: " + ", ".join(parts))
    return lines
