"""Licences, chat templates, dtypes, tying and vocabularies: what an export will ship."""

from __future__ import annotations

from pathlib import Path

from evomerge.config.findings.finding import Finding, bad, good, quoted, warn
from evomerge.config.models import OpenModels
from evomerge.config.parents import parents_of
from evomerge.core.model_space import FLOAT_DTYPES, SourceHeader
from evomerge.export import MergedLicence, licence_of
from evomerge.storage.chat_template import read_chat_template
from evomerge.storage.vocabulary import VocabularyMapped

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def licence_findings(models: OpenModels) -> tuple[Finding, MergedLicence]:
    """Return what the models' licences come to for a merge of all of them."""
    licence = licence_of(parents_of(models.record))
    if licence.verdict == "ok":
        return good(
            "licence", f"{licence.text} A reading of model cards, no legal advice."
        ), licence
    make = bad if licence.verdict == "bad" else warn
    remedy = "Read the licences before you share a merge; the card of an export says the same"
    return make("licence", licence.text, remedy), licence


def chat_template_finding(models: OpenModels) -> Finding | None:
    """Return how the chat templates differ; None where no model has a tokenizer.

    Raises:
        SourceError: A tokenizer's file is malformed.
    """
    folders = {str(item["id"]): _tokenizer_folder(item) for item in models.record}
    if not any(map(_has_tokens, folders.values())):
        return None
    donor, *others = folders
    templates = {
        name: read_chat_template(models.donor if name == donor else folder)
        for name, folder in folders.items()
    }
    own = templates[donor]
    have = [name for name in others if templates[name] is not None]
    if own is None and not have:
        return good("chat template", "no model has one, so an export has none")
    if own is None:
        return warn(
            "chat template",
            f"{donor!r}, whose tokenizer an export ships, has none; {quoted(have)} "
            f"{'has' if len(have) == 1 else 'have'}",
            "Put the chat_template.jinja you want into the exported folder, and score with it: "
            "`chat_template: true` and `chat_template_file:` of the evaluator",
        )
    different = [name for name in have if templates[name] != own]
    if different:
        return warn(
            "chat template",
            f"{quoted(different)} {'has' if len(different) == 1 else 'have'} another one than "
            f"{donor!r}, which an export ships",
            "Look whether the merge answers in that format, or score and ship another one "
            "(`chat_template_file:`)",
        )
    return good("chat template", f"that of {donor!r} is exported; no other model has another one")


def _tokenizer_folder(item: dict[str, object]) -> Path:
    """Return where a model's tokenizer is: an adapter may bring its own."""
    if item["lora"] is not None:
        adapter = Path(str(item["lora"]))
        if (adapter / "tokenizer_config.json").exists():
            return adapter
    return Path(str(item["model"]))


def dtype_finding(models: OpenModels) -> Finding:
    """Return in which dtypes the models are stored, and in which one the merge will be."""
    found = {name: _dtypes(source.header()) for name, source in models.sources.items()}
    merged = models.space.float_dtype
    kinds = set(found.values())
    if len(kinds) == 1:
        return good("dtype", f"{kinds.pop()} in all models")
    listed = "; ".join(f"{name} {text}" for name, text in found.items())
    narrow = "F16" in str(kinds) and merged == "F16"
    risk = "; values above 65,504 become infinite in F16" if narrow else ""
    # Adapters and computed sources are float32 whatever the base is.
    is_plain = {text for text in kinds if text != "F32"} <= {merged}
    if is_plain:
        return good("dtype", f"the merge is {merged} ({listed})")
    return warn(
        "dtype",
        f"the models differ ({listed}); the merge is {merged}, as the first one{risk}",
        "Nothing is lost while merging, which is done in float32; to keep more bits, convert the "
        "first model to the wider dtype",
    )


def _dtypes(header: SourceHeader) -> str:
    """Return the float dtype most elements of a model have."""
    counts = dict.fromkeys(FLOAT_DTYPES, 0)
    for spec in header.tensors.values():
        if spec.dtype in counts:
            counts[spec.dtype] += spec.n_elements
    return max(counts, key=counts.__getitem__)


def token_findings(models: OpenModels) -> list[Finding]:
    """Return what is said of vocabularies and of heads that are tied to the embeddings."""
    found = []
    mapped = [n for n, s in models.sources.items() if isinstance(s, VocabularyMapped)]
    first = models.space.sources[0]
    headers = [source.header() for source in models.sources.values()]
    if mapped:
        found.append(
            warn(
                "vocabulary",
                f"{quoted(mapped)} {'has' if len(mapped) == 1 else 'have'} other token rows than "
                f"{first!r}; rows are lined up by token",
                f"The merge speaks the vocabulary of {first!r}: tokens that only others know are "
                "dropped. Put the model whose tokens you need first, or accept it",
            )
        )
    elif _has_tokens(models.donor):
        found.append(good("vocabulary", "the same tokens in the same rows"))
    if models.space.untied:
        ties = [header.id for header in headers if header.tied]
        found.append(
            warn(
                "tying",
                f"{quoted(ties)} {'ties its' if len(ties) == 1 else 'tie their'} output head to "
                "the embeddings, others do not; the merge stores a head of its own",
                "Expect a larger file than that of a tied model (tie_word_embeddings: false)",
            )
        )
    elif any(header.tied for header in headers):
        found.append(good("tying", "the output head is the embedding in every model"))
    return found


def _has_tokens(folder: Path) -> bool:
    return any((folder / name).exists() for name in _TOKENIZER)
