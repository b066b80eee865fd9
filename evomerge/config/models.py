"""Open the models a config names, align them, and record or check what they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.config.cache import open_cache
from evomerge.config.layer_sequence import is_layer_sequence
from evomerge.config.schema import ModelConfig, RunConfig, TransformConfig
from evomerge.config.transforms import VirtualGroup, open_transforms, resolve_transforms
from evomerge.core.model_space import ModelSpace, align
from evomerge.errors import SourceError
from evomerge.merging.cache import TensorCache
from evomerge.merging.source import TensorSource
from evomerge.storage.hub import resolve_model
from evomerge.storage.lora_source import LoraSource
from evomerge.storage.model_folder import ModelFolder
from evomerge.storage.open_source import open_source
from evomerge.storage.renamed import line_up_names
from evomerge.storage.source_like import SourceLike
from evomerge.storage.stacked_source import StackedSource
from evomerge.storage.vocabulary import map_vocabulary, read_vocabulary

if TYPE_CHECKING:
    from evomerge.config.layer_models import LayerModels

# Below this many bytes of weights a resume hashes everything again; above it, files whose size
# and modification time are unchanged are trusted.
REHASH_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class OpenModels:
    """The sources of one run.

    Attributes:
        space: Aligned tensors.
        sources: Source id -> model, in the order of `space.sources`.
        donor: Folder whose config and tokenizer the merged model gets: the first source's.
        record: Content of sources.json.
        trust_remote_code: Whether the donor may run code of its own.
        virtual: The sources that transforms make, also in `sources`, after the models.
        stacks: The sources that are stacks of the models' layers; all of `sources`, if any.
        config: config.json of the merged model where it is not the donor's: stacks are of
            another depth.
        layers: Of a search over layer sequences, what those are made of; `space` is then that of
            the start model, with the ids of all models whose layers are searched.
    """

    space: ModelSpace
    sources: Mapping[str, TensorSource]
    donor: Path
    record: list[dict[str, Any]]
    trust_remote_code: bool
    virtual: tuple[VirtualGroup, ...] = ()
    stacks: tuple[StackedSource, ...] = ()
    config: Mapping[str, Any] | None = None
    layers: LayerModels | None = None


def resolve_models(config: RunConfig, base_dir: Path) -> RunConfig:
    """Return the config with every model as an absolute path and with a unique name.

    Raises:
        SourceError: A model is neither a local path nor reachable on the Hub.
        ConfigError: The transforms do not fit the models.
    """
    base, models = resolve_model_configs(config.base_model, config.models, base_dir)
    transforms = resolve_transforms(config.transforms, base, models, base_dir)
    changes = {"base_model": base, "models": models, "transforms": transforms}
    return config.model_copy(update=changes)


def resolve_model_configs(
    base_model: ModelConfig | None, models: list[ModelConfig], base_dir: Path
) -> tuple[ModelConfig | None, list[ModelConfig]]:
    """Return base and models with absolute paths and unique names; see `resolve_models`."""
    base_dir = base_dir.absolute()  # exports record the paths, to be read from another folder

    def resolve(model: ModelConfig) -> ModelConfig:
        path = resolve_model(model.model, model.revision, base_dir)
        lora = None
        if model.lora is not None:
            lora = str(resolve_model(model.lora, None, base_dir))
        return model.model_copy(update={"model": str(path), "lora": lora})

    base, others = name_models(base_model, models)
    return None if base is None else resolve(base), [resolve(model) for model in others]


def name_models(
    base_model: ModelConfig | None, models: list[ModelConfig]
) -> tuple[ModelConfig | None, list[ModelConfig]]:
    """Return base and models with unique names; nothing is looked up."""
    taken: set[str] = set()

    def named(model: ModelConfig, fallback: str) -> ModelConfig:
        name = model.name or fallback or _short_name(model.lora or model.model)
        while name in taken:
            name += "-2"
        taken.add(name)
        return model.model_copy(update={"name": name})

    base = None if base_model is None else named(base_model, "base")
    return base, [named(model, "") for model in models]


def _short_name(reference: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(reference).name) or "model"


def open_models(
    config: RunConfig,
    *,
    known: list[dict[str, Any]] | None = None,
    check: bool = True,
    cache: TensorCache | None = None,
) -> OpenModels:
    """Open and align the models of a resolved config.

    Args:
        config: Names and absolute paths from `resolve_models`.
        known: Content of the run's sources.json, if the run exists already.
        check: Hash small models again even where their files look unchanged; a worker need not,
            its driver has.
        cache: Where the transforms' results are kept; None: the config's.

    Raises:
        SourceError: A file is broken or unsafe, or differs from `known`.
        ModelSpaceError: The models cannot be merged.
    """
    if is_layer_sequence(config.merge):
        # Not at the top: it stacks the models that this module opens.
        from evomerge.config.layer_models import open_layer_models

        return open_layer_models(config, known=known, check=check)
    return open_sources(
        config.base_model,
        config.models,
        transforms=config.transforms,
        cache=cache or open_cache(config.runtime.cache),
        known=known,
        check=check,
    )


def open_sources(
    base_model: ModelConfig | None,
    models: list[ModelConfig],
    *,
    transforms: Sequence[TransformConfig] = (),
    cache: TensorCache | None = None,
    known: list[dict[str, Any]] | None = None,
    check: bool = True,
) -> OpenModels:
    """Open and align models given apart from a config; see `open_models`.

    Args:
        base_model: The base, if there is one.
        models: The experts.
        transforms: From `resolve_transforms`.
        cache: Where the transforms' results are kept; None: the user's cache folder.
        known: See `open_models`.
        check: See `open_models`.
    """
    refs = [*([base_model] if base_model else []), *models]
    opened = open_recorded(refs, known=known, check=check)
    record = [record_of(source, ref) for source, ref in zip(opened, refs, strict=True)]
    donor = opened[0] if isinstance(opened[0], ModelFolder) else opened[0].base
    sources: dict[str, TensorSource] = {source.id: source for source in line_up(opened)}
    virtual: tuple[VirtualGroup, ...] = ()
    if transforms:
        cache = cache or open_cache(None)
        virtual = open_transforms(transforms, sources, cache=cache, config=donor.config)
    for group in virtual:
        record += group.records()
    if known is not None:  # also in a worker: files may be replaced before a second one starts
        compare_records(record, known)
    left_out = {name for g in virtual if not g.config.keep_parents for name in g.experts}
    sources = {name: source for name, source in sources.items() if name not in left_out}
    sources |= {source.id: source for group in virtual for source in group.sources}
    space = align([source.header() for source in sources.values()], has_base=base_model is not None)
    trust = refs[0].trust_remote_code
    return OpenModels(space, sources, donor.path, record, trust, virtual)


def open_recorded(
    refs: Sequence[ModelConfig], *, known: list[dict[str, Any]] | None, check: bool
) -> list[ModelFolder | LoraSource]:
    """Open models one by one; digests in `known` of files that are unchanged are used again."""
    records = {str(record["id"]): record for record in known or []}
    opened = open_each(refs)
    for source in opened:
        if source.id in records:
            _reuse_digests(source, records[source.id], trust=not check)
    return opened


def open_each(refs: Sequence[ModelConfig]) -> list[ModelFolder | LoraSource]:
    """Open models one by one; adapters without a model of their own are on the first.

    Raises:
        SourceError: A file is missing, broken or unsafe.
    """
    base: ModelFolder | None = None
    opened: list[ModelFolder | LoraSource] = []
    for ref in refs:
        source = open_source(
            str(ref.name),
            Path(ref.model),
            lora=None if ref.lora is None else Path(ref.lora),
            base=base,
            trust_remote_code=ref.trust_remote_code,
        )
        if not opened and isinstance(source, ModelFolder):
            base = source  # only the first source is what adapters were trained on
        opened.append(source)
    return opened


def _reuse_digests(
    source: ModelFolder | LoraSource, record: Mapping[str, Any], *, trust: bool
) -> None:
    same = source.stat_signature() == record.get("files")
    n_bytes = sum(int(row[1]) for row in source.stat_signature())
    if same and (trust or n_bytes > REHASH_BYTES):
        source.restore_fingerprint(record["tensors"])


def record_of(source: ModelFolder | LoraSource, ref: ModelConfig) -> dict[str, Any]:
    """Return a model's entry in sources.json."""
    header = source.header()
    return {
        "id": source.id,
        "model": ref.model,
        "lora": ref.lora,
        "revision": ref.revision,
        "digest": source.digest,
        "files": source.stat_signature(),
        "tensors": dict(header.digests),
    }


def source_files(record: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Return the files of the models in a run's record (sources.json)."""
    found: set[Path] = set()
    for model in record:
        for place in filter(None, (model["model"], model["lora"])):
            inside = (Path(place) / str(row[0]) for row in model["files"])
            found.update(path for path in (Path(place), *inside) if path.is_file())
    return sorted(found)


def compare_records(now: list[dict[str, Any]], then: list[dict[str, Any]]) -> None:
    """Raise SourceError if a model is not as it was when `then` was recorded."""
    before = {record["id"]: record for record in then}
    for record in now:
        old = before.get(record["id"])
        if old is None or record["digest"] == old["digest"]:
            continue
        if "transform" in record:
            raise SourceError(
                f"{record['id']}: is computed otherwise since the run began: from "
                f"{old.get('transform')}, now {record['transform']}. Resume with the version of "
                "evomerge it began with, or search anew: evomerge search CONFIG --run NEW"
            )
        changed = sorted(
            name
            for name in {*record["tensors"], *old["tensors"]}
            if record["tensors"].get(name) != old["tensors"].get(name)
        )
        raise SourceError(
            f"{record['lora'] or record['model']}: changed since the run began "
            f"({len(changed)} tensors, first {changed[0] if changed else '?'}). Restore the file, "
            "or search anew with the models as they are: evomerge search CONFIG --run NEW"
        )


def line_up(opened: Sequence[ModelFolder | LoraSource]) -> list[SourceLike]:
    """Give every source the donor's tensor names and the donor's order of tokens."""
    donor = opened[0]
    wanted = _vocabulary(donor)
    lined_up: list[SourceLike] = [donor]
    for source in opened[1:]:
        named = line_up_names(source, donor)
        lined_up.append(map_vocabulary(named, donor, wanted, _vocabulary(source)))
    return lined_up


def _vocabulary(source: ModelFolder | LoraSource) -> dict[str, int] | None:
    """Return token -> row; an adapter may come with a tokenizer of its own, for a resized base."""
    if isinstance(source, ModelFolder):
        return read_vocabulary(source.path)
    own = read_vocabulary(source.path)
    return read_vocabulary(source.base.path) if own is None else own
