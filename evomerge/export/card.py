"""The model card (README.md) of an exported model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import evomerge
from evomerge.core.arrays import FloatArray
from evomerge.core.grouping import assign_groups
from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.export.adapter_card import AdapterFacts
from evomerge.export.card_scores import ScoreRow, score_section
from evomerge.export.licences import MergedLicence, merged_licence, stated_licence
from evomerge.export.stacked import Computed

_MAX_RECIPE_LINES = 120
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[^/]+)/?$")


@dataclass(frozen=True, kw_only=True)
class ParentModel:
    """One source of the merge.

    Attributes:
        id: Name in recipes.
        model: What the user gave: a path or Hub id.
        path: The folder it was read from, for its licence; None when it is not at hand.
        revision: Hub revision, if one was given.
        lora: Path or Hub id of the adapter applied to it, if any.
        lora_path: The adapter's folder.
        digest: Content digest of its weights.
    """

    id: str
    model: str
    path: Path | None = None
    revision: str | None = None
    lora: str | None = None
    lora_path: Path | None = None
    digest: str = ""

    @property
    def reference(self) -> str:
        """What mergekit opens: `model[@revision][+lora]`; a hub cache's path becomes its hub id."""
        own = _hub_reference(self.model)
        if "@" not in own and self.revision:
            own += f"@{self.revision}"
        return own if self.lora is None else f"{own}+{_hub_reference(self.lora)}"

    @property
    def public_names(self) -> tuple[str, ...]:
        """Hub id of the model (and of its adapter); for a local folder its bare name."""
        names = [_public_name(self.model)]
        return (*names, _public_name(self.lora)) if self.lora else tuple(names)


@dataclass(frozen=True)
class LineageStep:
    """A candidate, the candidates it was bred from, and how."""

    candidate_id: int
    parents: tuple[int, ...]
    origin: str


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says beside the recipe.

    Attributes:
        title: Name of the model.
        parents: The models on disk; the card names those that the recipe merges.
        transformed: Sources of the space that are computed from them.
        scores: One row per objective or task.
        candidate_id: Its id in the run; None for a merge without a search.
        lineage: The candidate and its ancestors, itself first.
        n_candidates: How many candidates the search scored; None without a search.
        n_tested: How many of them were ever scored on the test examples.
        algorithm: Name of the search algorithm.
        seed: Seed of the run.
        run: Name of the run.
        scored_digest: Digest of the weights that were scored; "" when unknown.
        notes: More sentences for the reader.
    """

    title: str
    parents: tuple[ParentModel, ...]
    transformed: tuple[Computed, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    candidate_id: int | None = None
    lineage: tuple[LineageStep, ...] = ()
    n_candidates: int | None = None
    n_tested: int = 0
    algorithm: str = ""
    seed: int | None = None
    run: str = ""
    scored_digest: str = ""
    notes: tuple[str, ...] = ()


def render_card(
    facts: CardFacts,
    recipe: Recipe,
    space: ModelSpace,
    *,
    weights_digest: str,
    mergekit: str | None,
    no_mergekit_reason: str = "",
    notes: Sequence[str] = (),
    adapter: AdapterFacts | None = None,
) -> str:
    """Return README.md: front matter and body.

    Args:
        facts: Everything the search knows.
        recipe: What was merged.
        space: The models it was merged from.
        weights_digest: Digest of the exported weights.
        mergekit: The equivalent mergekit config as YAML, or None.
        no_mergekit_reason: Why there is none.
        notes: What the export itself has to say.
        adapter: How the merge became a LoRA adapter, if it did.
    """
    made = [item for item in facts.transformed if item.digests.keys() & set(recipe.sources)]
    merged = {*recipe.sources, *(name for item in made for name in item.of)}
    parents = [parent for parent in facts.parents if parent.id in merged]
    licence = licence_of(parents)
    front: dict[str, Any] = {
        "base_model": list(dict.fromkeys(n for p in parents for n in p.public_names)),
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "mergekit", "evomerge"],
    }
    reproduce = _reproduce(facts, weights_digest, mergekit, no_mergekit_reason)
    if adapter is not None:
        front |= adapter.front()
        reproduce = adapter.reproduce(weights_digest, facts.scored_digest)
    front |= licence.front()
    sections = [
        f"---\n{_yaml(front)}---",
        f"# {_line(facts.title)}",
        f"A merge made with evomerge {evomerge.__version__}, method `{recipe.operator}`.",
        "" if adapter is None else adapter.section(),
        score_section(facts.scores, facts.n_candidates, facts.n_tested),
        _parents(parents, made, licence.sentence()),
        _lineage(facts),
        _coefficients(recipe, space),
        _recipe(recipe),
        reproduce,
        "\n".join(f"- {_line(note)}" for note in (*notes, *facts.notes)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def licence_of(parents: Sequence[ParentModel]) -> MergedLicence:
    """Return what the licences of parents, and of adapters on them, come to."""
    stated: dict[str, str | None] = {}
    for parent in parents:
        stated[parent.id] = stated_licence(parent.path)
        if parent.lora is not None:
            stated[f"{parent.id} (adapter)"] = stated_licence(parent.lora_path)
    return merged_licence(stated)


def hub_name(path: str) -> tuple[str, str | None]:
    """Return (org/name, commit) for a snapshot in the hub cache, else (`path`, None)."""
    found = _SNAPSHOT.search(path)
    return (f"{found['org']}/{found['name']}", found["commit"]) if found else (path, None)


def _hub_reference(path: str) -> str:
    name, commit = hub_name(path)
    return name if commit is None else f"{name}@{commit}"


def _public_name(reference: str) -> str:
    found = _SNAPSHOT.search(reference)
    if found:
        return f"{found['org']}/{found['name']}"
    if _HUB_ID.fullmatch(reference) and not Path(reference).exists():
        return reference
    return re.sub(r"[^\w.-]+", "-", Path(reference).name) or "local-model"


def _parents(parents: Sequence[ParentModel], made: Sequence[Computed], note: str) -> str:
    lines = ["## Parents", "", "| source | model | weights digest |", "|---|---|---|"]
    for parent in parents:
        names = " + ".join(parent.public_names)
        at = f" @ {parent.revision}" if parent.revision else ""
        lines.append(f"| {_cell(parent.id)} | {_cell(names + at)} | `{parent.digest or '?'}` |")
    lines += [row for item in made for row in item.rows()]
    return "\n".join([*lines, "", note])


def _lineage(facts: CardFacts) -> str:
    if facts.candidate_id is None:
        return ""
    how = ", ".join(
        text
        for text in (
            f"run `{facts.run}`" if facts.run else "",
            f"algorithm `{facts.algorithm}`" if facts.algorithm else "",
            f"seed {facts.seed}" if facts.seed is not None else "",
            f"{facts.n_candidates} candidates scored" if facts.n_candidates else "",
        )
        if text
    )
    lines = ["## Lineage", "", f"Candidate {facts.candidate_id}{f' of {how}' if how else ''}."]
    if facts.lineage:
        lines.append("")
    for step in facts.lineage:
        bred = ", ".join(str(parent) for parent in step.parents) or "the sources"
        origin = f" ({_line(step.origin)})" if step.origin else ""
        lines.append(f"- {step.candidate_id} from {bred}{origin}")
    return "\n".join(lines)


def _coefficients(recipe: Recipe, space: ModelSpace) -> str:
    """Return mean and range of every parameter, groups weighted by their elements."""
    if not recipe.params:
        return ""
    share = _group_sizes(recipe, space)
    share = share / share.sum()
    n_groups = len(share)
    lines = ["## Coefficients", ""]
    lines.append(
        f"Over {n_groups} groups of tensors (grouping `{recipe.grouping}`), weighted by size."
        if n_groups > 1
        else "One set of values for the whole model."
    )
    lines += ["", "| parameter | source | mean | lowest | highest |", "|---|---|---|---|---|"]
    for name, value in recipe.params.items():
        columns = value if value.ndim == 2 else value[:, None]
        sources: Sequence[str] = recipe.sources[len(recipe.sources) - columns.shape[1] :]
        for index in range(columns.shape[1]):
            column = columns[:, index]
            source = _cell(sources[index]) if value.ndim == 2 else "all"
            lines.append(
                f"| {_cell(name)} | {source} | {float(share @ column):.4g} "
                f"| {column.min():.4g} | {column.max():.4g} |"
            )
    return "\n".join(lines)


def _group_sizes(recipe: Recipe, space: ModelSpace) -> FloatArray:
    if recipe.breaks is not None:
        return np.diff(recipe.breaks).astype(np.float64)
    merged = space.merged
    labels, groups = assign_groups(recipe.grouping, [tensor.spec.name for tensor in merged])
    sizes = np.zeros(len(labels))
    for tensor, group in zip(merged, groups, strict=True):
        sizes[group] += tensor.spec.n_elements
    return sizes


def _recipe(recipe: Recipe) -> str:
    text = yaml.safe_dump(recipe.body(), sort_keys=False, default_flow_style=None, width=96)
    shown = f"```yaml\n{text}```"
    if text.count("\n") > _MAX_RECIPE_LINES:
        shown = "Too long to print here; see `recipe.json`."
    if recipe.named:
        shown += (
            "\n\n`ancestor:` and a recipe's digest is the model of an earlier candidate of the "
            f"search, in float32; `recipe.json` has the recipes of all {len(recipe.closure())}."
        )
    return f"## Recipe\n\n{shown}"


def _reproduce(facts: CardFacts, digest: str, mergekit: str | None, reason: str) -> str:
    lines = [
        "## Reproduce",
        "",
        "```",
        "evomerge merge recipe.json --out OUT",
        "```",
        "",
        f"Weights digest: `{digest}`.",
    ]
    if facts.scored_digest == digest:
        lines[-1] += " These are bit for bit the weights that were scored."
    elif facts.scored_digest:
        lines[-1] += (
            f" The weights that were scored have `{facts.scored_digest}`: the same recipe, in "
            "another dtype or computed on another device."
        )
    lines.append("")
    if mergekit is None:
        lines.append(f"mergekit has no config for this recipe: {reason}.")
    else:
        lines += [
            "The same recipe for mergekit (equal up to rounding):",
            "",
            "```",
            "mergekit-yaml mergekit_config.yml OUT",
            "```",
        ]
    return "\n".join(lines)


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
