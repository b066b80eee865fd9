"""Write a merged model as a Hugging Face folder, all or nothing."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, nearest
from evomerge.export.adapter_card import AdapterFacts
from evomerge.export.card import CardFacts, render_card
from evomerge.export.folder import check_vacant, new_folder, write_json
from evomerge.export.record import check_parents, recipe_record
from evomerge.export.stacked import Stacked
from evomerge.merging.derived import Derived
from evomerge.merging.fused import FLOAT16_LIMIT
from evomerge.merging.manifest import manifest_of
from evomerge.merging.materialize import DTYPES as TENSOR_DTYPES
from evomerge.merging.materialize import materialize
from evomerge.merging.mergekit_rules import write_mergekit
from evomerge.merging.source import TensorSource
from evomerge.merging.weights_digest import WeightsDigest
from evomerge.storage.model_folder import CONFIG_FILE, ModelFolder
from evomerge.storage.tensor_writer import ShardedWriter
from evomerge.storage.untrusted_files import contained_file, read_json_object

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
# What transformers reads beside config.json and weights; code and pickles are never copied.
DONOR_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_CODE_KEYS = ("auto_map", "custom_pipelines")
_DTYPE_KEYS = ("dtype", "torch_dtype")
_MAX_CONFIG_BYTES = 16_000_000


@dataclass(frozen=True)
class ExportResult:
    """An exported model.

    Attributes:
        folder: Where it is.
        weights_digest: Digest of its tensors, comparable with `Evaluation.weights_digest`.
        no_mergekit_reason: Why there is no mergekit_config.yml; "" when there is one.
        adapter: What was written, when it is a LoRA adapter; the digest is then that of the full
            merge.
    """

    folder: Path
    weights_digest: str
    no_mergekit_reason: str = ""
    adapter: AdapterFacts | None = None


def export_candidate(
    out: Path,
    *,
    recipe: Recipe,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    derived: Derived | None,
    donor: Path,
    card: CardFacts,
    config: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    max_shard_bytes: int = 5_000_000_000,
) -> ExportResult:
    """Merge a recipe into the folder `out`, which appears complete or not at all.

    Written: safetensors shards, config.json, the donor's tokenizer and processor files,
    recipe.json, manifest.json, README.md, and mergekit_config.yml when mergekit can compute the
    recipe.

    Args:
        out: New or empty folder.
        recipe: What to compute.
        space: The aligned models.
        sources: Source id -> model.
        derived: What `derive_for` computed; None computes it here.
        donor: Folder of the first source, for config and tokenizer; may be a .safetensors file,
            which has neither.
        card: Facts for README.md and recipe.json.
        config: What config.json is made of instead of the donor's.
        dtype: float32, float16, bfloat16 or float64 for all float tensors; None keeps the donor's.
        device: Where to compute; the scores' device gives the scores' weights bit for bit.
        max_shard_bytes: Size of a shard.

    Raises:
        ConfigError: `out` holds something, the dtype is unknown or the recipe does not fit.
        PreflightError: The disk is too small, or a file of the donor is malformed.
        RunError: The folder cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(
            f"dtype {dtype!r} is unknown.{nearest(dtype, DTYPES)} Known: {', '.join(DTYPES)}."
        )
    check_parents(card, space)
    check_vacant(out)
    files = _read_donor(donor, config, untied=space.untied)
    with new_folder(out, _n_bytes(space, dtype)) as partial:
        weights = _write_weights(
            partial, recipe, space, sources, derived, dtype, device, max_shard_bytes
        )
        _write_donor(files, partial, weights.dtype)
        reason = _write_papers(partial, recipe, space, sources, card, weights, files.notes, dtype)
    return ExportResult(out, weights.digest, reason)


def verify_digest(folder: Path) -> str:
    """Return the digest of an exported folder's tensors, read back from its files.

    Raises:
        SourceError: A file is missing or broken.
    """
    digest = WeightsDigest()
    if (folder / CONFIG_FILE).exists():
        parts = [ModelFolder("exported", folder)]
    else:
        parts = [ModelFolder("exported", path) for path in sorted(folder.glob("*.safetensors"))]
    for part in parts:
        for name in part.specs:
            digest.add(name, part.read(name))
    return digest.hexdigest()


@dataclass(frozen=True)
class _Weights:
    digest: str
    dtype: str  # torch name of the dtype most elements have
    at_limit: Mapping[str, int]  # float16 tensor -> elements that its largest number stands for

    @property
    def notes(self) -> list[str]:
        """What the card says about them."""
        if not self.at_limit:
            return []
        n_elements, limit = sum(self.at_limit.values()), int(FLOAT16_LIMIT)
        return [
            f"{n_elements} elements of {len(self.at_limit)} tensors are at the limit of float16, "
            f"±{limit}, which stands for all that lies beyond it; manifest.json names the tensors."
        ]


def _write_weights(
    folder: Path,
    recipe: Recipe,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    derived: Derived | None,
    dtype: str | None,
    device: str,
    max_shard_bytes: int,
) -> _Weights:
    digest = WeightsDigest()
    wanted = None if dtype is None else DTYPES[dtype]
    stream = materialize(recipe, space, sources, derived, device=device, out_dtype=wanted)
    at_limit: dict[str, int] = {}
    with ShardedWriter(folder, max_shard_bytes=max_shard_bytes) as writer:
        for name, tensor in stream:
            digest.add(name, tensor)
            writer.add(name, tensor)
            if tensor.dtype == torch.float16 and (n := int((tensor.abs() == FLOAT16_LIMIT).sum())):
                at_limit[name] = n
    # The dtype the model was scored in, too.
    most = TENSOR_DTYPES[space.float_dtype] if wanted is None else wanted
    return _Weights(digest.hexdigest(), str(most).removeprefix("torch."), at_limit)


@dataclass(frozen=True)
class _DonorFiles:
    config: dict[str, Any] | None
    rewritten: dict[str, dict[str, Any]]
    copied: dict[str, Path]
    notes: list[str]


def _read_donor(donor: Path, config: Mapping[str, Any] | None, *, untied: bool) -> _DonorFiles:
    """Read and check what will be copied, before the merge takes its time."""
    if not donor.is_dir():
        note = "The first source is a bare weights file: there is no config and no tokenizer."
        return _DonorFiles(None, {}, {}, [note])
    given = read_json_object(contained_file(donor, CONFIG_FILE)) if config is None else config
    config = copy.deepcopy(dict(given))
    config.pop("_name_or_path", None)
    notes = []
    if _drop_code(config):
        notes.append("Code of the base model's repository was not copied (`auto_map` removed).")
    if untied:
        notes.append("The output head is stored apart from the embeddings, which a parent ties.")
        for part in (config, *(value for value in config.values() if isinstance(value, dict))):
            if part is config or "tie_word_embeddings" in part:
                part["tie_word_embeddings"] = False
    rewritten: dict[str, dict[str, Any]] = {}
    copied: dict[str, Path] = {}
    for name in DONOR_FILES:
        if not (donor / name).is_file():
            continue
        source = contained_file(donor, name)
        if name.endswith("_config.json"):
            body = read_json_object(source, max_bytes=_MAX_CONFIG_BYTES)
            if _drop_code(body):
                rewritten[name] = body
                continue
        copied[name] = source
    return _DonorFiles(config, rewritten, copied, notes)


def _write_donor(files: _DonorFiles, folder: Path, dtype: str) -> None:
    if files.config is not None:
        _set_dtype(files.config, dtype)
        write_json(folder / CONFIG_FILE, files.config)
    for name, body in files.rewritten.items():
        write_json(folder / name, body)
    for name, source in files.copied.items():
        shutil.copyfile(source, folder / name)


def _drop_code(body: dict[str, Any]) -> bool:
    found = [key for key in _CODE_KEYS if body.pop(key, None)]
    return bool(found)


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Write the dtype where transformers looks for it: the model and its parts."""
    for part in config.values():
        if isinstance(part, dict) and any(key in part for key in _DTYPE_KEYS):
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    config.pop("torch_dtype", None)
    config["dtype"] = dtype


def _write_papers(
    folder: Path,
    recipe: Recipe,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    card: CardFacts,
    weights: _Weights,
    notes: list[str],
    dtype: str | None,
) -> str:
    """Write what says how the model was made; return why there is no mergekit_config.yml."""
    references = {parent.id: parent.reference for parent in card.parents}
    if any(isinstance(item, Stacked) for item in card.transformed):
        said, reason = None, "its sources are stacks of layers"
    else:
        said, reason = write_mergekit(recipe, space, references, dtype=weights.dtype)
    text = None
    if said is not None:
        text = yaml.safe_dump(said, sort_keys=False, default_flow_style=None, width=96)
        (folder / "mergekit_config.yml").write_text(text, encoding="utf-8")
    record = recipe_record(recipe, space, sources, card, weights_digest=weights.digest, dtype=dtype)
    write_json(folder / "recipe.json", record)
    manifest = manifest_of(recipe, space, sources)
    if weights.at_limit:
        manifest["at_float16_limit"] = dict(weights.at_limit)
    write_json(folder / "manifest.json", manifest)
    readme = render_card(
        card,
        recipe,
        space,
        weights_digest=weights.digest,
        mergekit=text,
        no_mergekit_reason=reason,
        notes=notes + weights.notes,
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return reason


def _n_bytes(space: ModelSpace, dtype: str | None) -> int:
    """Return the size of the merged model."""
    itemsize = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
    wanted = None if dtype is None else DTYPES[dtype].itemsize
    return sum(
        tensor.spec.n_elements * (wanted or itemsize.get(tensor.spec.dtype, 1))
        for tensor in space.tensors
    )
