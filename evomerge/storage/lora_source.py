"""LoraSource: a PEFT LoRA adapter on a base model, as a tensor source.

Satisfies `evomerge.merging.source.TensorSource`. Shapes, with rank r:

    linear      A (r, in)      B (out, r)   delta = scale * B @ A, (out, in)
    Conv1D      A (r, in)      B (out, r)   delta = scale * (B @ A).T, (in, out)
    embedding   A (r, tokens)  B (dim, r)   delta = scale * (B @ A).T, (tokens, dim)
    convolution A (r, in, *k)  B (out, r, 1, …)   delta (out, in, *k)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from evomerge.core.model_space import SourceHeader, TensorSpec
from evomerge.errors import SourceError, nearest
from evomerge.storage.lora_config import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    LoraConfig,
    no_adapter,
    parse_lora_config,
)
from evomerge.storage.model_folder import ModelFolder, combined_digest
from evomerge.storage.safetensors_file import SafetensorsFile
from evomerge.storage.untrusted_files import contained_file, read_json_object

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?:(?P<side>[AB])(?:\.default)?\.weight"
    r"|embedding_(?P<row_side>[AB])(?:\.default)?(?:\.weight)?)"
)
_WRAPPERS = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")


@dataclass(frozen=True)
class _Product:
    """Names of one pair of factors, and what becomes of B @ A."""

    a: str
    b: str
    scale: float
    is_transposed: bool


class LoraSource:
    """A base model with one LoRA adapter applied.

    Touched tensors are float32, `base + delta`. A tensor that the adapter stores whole
    (`modules_to_save`, biases, a resized embedding) replaces the base's. An adapter on one of
    two tied tensors unties them, as it does in PEFT, unless `ensure_weight_tying` is set.

    Attributes:
        id: Name of the source in recipes.
        path: The adapter folder.
        base: The model under it; exact deltas are relative to this model and no other.
    """

    def __init__(self, id: str, path: Path, base: ModelFolder, *, knows_delta: bool = True) -> None:
        """Open the adapter in `path` and match its tensors to those of `base`.

        Args:
            id: Name of the source in recipes.
            path: Folder with adapter_config.json and adapter_model.safetensors.
            base: The model the adapter was trained on.
            knows_delta: False makes `exact_delta` return None; for merges on another base.

        Raises:
            SourceError: The adapter is pickled, not plain LoRA, malformed, or made for
                another base.
        """
        self.id = id
        self.path = path
        self.base = base
        self._knows_delta = knows_delta
        if not (path / ADAPTER_FILE).exists():
            raise SourceError(no_adapter(path))
        config_path = path / ADAPTER_CONFIG_FILE
        raw = read_json_object(contained_file(path, ADAPTER_CONFIG_FILE))
        self._config = parse_lora_config(raw, config_path)
        self._file = SafetensorsFile(
            contained_file(path, ADAPTER_FILE), shown_as=path / ADAPTER_FILE
        )
        self._base_names = {*base.specs, *base.tied}
        self._roots = sorted({name.split(".")[0] for name in base.specs})
        self._products: dict[str, _Product] = {}
        self._replaced: dict[str, str] = {}
        self._match()
        self._tied, self._origins = self._untie()
        self._specs = self._make_specs()
        self._digests: Mapping[str, str] | None = None
        self._digest: str | None = None
        self._last_delta: tuple[str, Tensor] | None = None

    @property
    def config(self) -> LoraConfig:
        """The parsed adapter_config.json."""
        return self._config

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Tensor name -> spec, with the adapter applied."""
        return self._specs

    @property
    def tied(self) -> Mapping[str, str]:
        """Name of a head that is the token embedding -> name of that embedding."""
        return self._tied

    @property
    def digest(self) -> str:
        """Content digest: 32 hex digits over every tensor's name, dtype, shape and content."""
        if self._digest is None:
            self._digest = combined_digest(self._specs, self.fingerprint())
        return self._digest

    def fingerprint(self) -> Mapping[str, str]:
        """Return tensor name -> 32-hex-digit digest; a touched one covers base and factors.

        Raises:
            SourceError: A float tensor of base or adapter holds NaN or infinity.
        """
        if self._digests is None:
            base = self.base.fingerprint()
            digests: dict[str, str] = {}
            for name in self._specs:
                if name in self._replaced:
                    digests[name] = self._file.digest(self._replaced[name])
                else:
                    digests[name] = base[self._origins[name]]
                if name in self._products:
                    product = self._products[name]
                    parts = (
                        digests[name],
                        self._file.digest(product.a),
                        self._file.digest(product.b),
                        repr(product.scale),
                        repr(product.is_transposed),
                    )
                    text = "lora:" + ":".join(parts)
                    digests[name] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            self._digests = digests
        return self._digests

    def restore_fingerprint(self, digests: Mapping[str, str]) -> None:
        """Accept digests that an earlier `fingerprint` of unchanged files returned.

        Raises:
            SourceError: The names are not those of this model's tensors.
        """
        if set(digests) != set(self._specs):
            raise SourceError(
                f"{self.path}: the kept digests name other tensors than the files hold. "
                "Delete the kept digests and run again."
            )
        self._digests, self._digest = dict(digests), None

    def stat_signature(self) -> list[list[str | int]]:
        """Return [file name, size in bytes, mtime in nanoseconds] of base and adapter files."""
        status = (self.path / ADAPTER_CONFIG_FILE).stat()
        return [
            *self.base.stat_signature(),
            [ADAPTER_CONFIG_FILE, status.st_size, status.st_mtime_ns],
            [ADAPTER_FILE, self._file.n_bytes, self._file.mtime_ns],
        ]

    def header(self) -> SourceHeader:
        """Return names, shapes, dtypes (F32 where touched), digests and tying.

        Raises:
            SourceError: A float tensor of base or adapter holds NaN or infinity.
        """
        return SourceHeader(
            self.id, self.base.architecture, self._specs, self.fingerprint(), self._tied
        )

    def read(self, name: str) -> Tensor:
        """Return one tensor: float32 base + delta where touched, else as it is stored.

        Raises:
            SourceError: There is no such tensor.
        """
        stored = self._stored_name(name)
        if stored in self._replaced:
            tensor = self._file.read(self._replaced[stored])
        else:
            tensor = self.base.read(self._origins[stored])
        if stored not in self._products:
            return tensor
        return self._delta(stored).add_(tensor.float())

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,).

        The product of the tensor read last is kept, since ranges come in sequence and a
        product of some rows may round differently from the whole one.

        Raises:
            SourceError: There is no such tensor.
            ValueError: The range does not lie inside the tensor.
        """
        stored = self._stored_name(name)
        if stored in self._replaced:
            tensor = self._file.read_range(self._replaced[stored], start, stop)
        else:
            tensor = self.base.read_range(self._origins[stored], start, stop)
        if stored not in self._products:
            return tensor
        kept = self._last_delta
        if kept is None or kept[0] != stored:
            kept = (stored, self._delta(stored))
            self._last_delta = kept
        return kept[1].flatten()[start:stop] + tensor.float()

    def exact_delta(self, name: str) -> Tensor | None:
        """Return scale * B @ A in float32 and the base's shape; None for other tensors.

        Raises:
            SourceError: There is no such tensor.
        """
        stored = self._known(name)
        return None if stored is None else self._delta(stored)

    def factors(self, name: str) -> tuple[Tensor, Tensor, bool] | None:
        """Return A (r, n), scale * B (m, r), and whether `exact_delta` is (B @ A).T; None like it.

        Raises:
            SourceError: There is no such tensor.
        """
        stored = self._known(name)
        if stored is None:
            return None
        a, b = self._pair(stored)
        return a, b * self._products[stored].scale, self._products[stored].is_transposed

    def _known(self, name: str) -> str | None:
        stored = self._stored_name(name)
        is_known = self._knows_delta and stored in self._products and stored not in self._replaced
        return stored if is_known else None

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        names = self._products[name]
        a, b = (self._file.read(factor).float().flatten(1) for factor in (names.a, names.b))
        return a, b

    def _delta(self, name: str) -> Tensor:
        a, b = self._pair(name)
        delta = torch.matmul(b, a).mul_(self._products[name].scale)
        if self._products[name].is_transposed:
            delta = delta.T.contiguous()
        return delta.reshape(self._specs[name].shape)

    def _stored_name(self, name: str) -> str:
        stored = name if name in self._specs else self._tied.get(name)
        if stored is None:
            raise SourceError(
                f"{self.path}: neither adapter nor base has a tensor {name!r}."
                f"{nearest(name, self._specs)} Check that all models are of one architecture."
            )
        return stored

    def _match(self) -> None:
        """Fill `_products` and `_replaced` from the adapter's tensor names."""
        pairs: dict[tuple[str, bool], dict[str, str]] = {}
        for name in self._file.specs:
            if not name.startswith(_PREFIX):
                raise SourceError(
                    f"{self._file.path}: tensor {name} does not begin with {_PREFIX}. "
                    "Save the adapter with PEFT's save_pretrained."
                )
            inner = name.removeprefix(_PREFIX)
            factor = _FACTOR.fullmatch(inner)
            if factor is not None:
                side = factor["side"] or factor["row_side"]
                module = _WRAPPERS.sub("", factor["module"])
                pair = pairs.setdefault((module, factor["row_side"] is not None), {})
                if side in pair:
                    raise SourceError(
                        f"{self._file.path}: {pair[side]} and {name} are the same factor. "
                        "Save the adapter with PEFT's save_pretrained."
                    )
                pair[side] = name
            elif ".lora_" in inner:
                raise SourceError(
                    f"{self._file.path}: tensor {name} is not a factor of plain LoRA. "
                    "Merge the adapter into its base with PEFT and give the full model."
                )
            else:
                self._replace(name, _WRAPPERS.sub("", inner))
        for (module, is_embedding), pair in pairs.items():
            self._add_product(module, pair, is_embedding=is_embedding)

    def _replace(self, name: str, target: str) -> None:
        found = self._find(target)
        if found is None and self._config.saves(target.rpartition(".")[0]):
            found = target  # a new head
        if found is None:
            raise self._mismatch(name, target)
        if found in self._replaced:
            raise SourceError(
                f"{self._file.path}: {self._replaced[found]} and {name} both replace {found}. "
                "Save the adapter with PEFT's save_pretrained."
            )
        self._replaced[found] = name

    def _add_product(self, module: str, pair: Mapping[str, str], *, is_embedding: bool) -> None:
        one = next(iter(pair.values()))
        if set(pair) != {"A", "B"}:
            raise SourceError(
                f"{self._file.path}: {one} has no partner factor. Save the adapter again."
            )
        target = self._find(f"{module}.weight")
        if target is None:
            raise self._mismatch(one, f"{module}.weight")
        whole = self._replaced.get(target)
        if target in self._products or (whole is not None and ".base_layer." not in whole):
            raise SourceError(
                f"{self._file.path}: {one} and another tensor both change {target}. "
                "Save the adapter with PEFT's save_pretrained."
            )
        a, b = self._file.specs[pair["A"]], self._file.specs[pair["B"]]
        if whole is None:
            shape = self._base_spec(target).shape
        else:
            # PEFT stores an adapted embedding's own base too, in case it was resized. When it
            # was not, it is the base's tensor, and the product is the exact task vector.
            shape = self._file.specs[whole].shape
            under = self._base_spec(target)
            if (under.dtype, under.shape) == (self._file.specs[whole].dtype, shape) and torch.equal(
                self._file.read(whole), self.base.read(target)
            ):
                del self._replaced[target]
        straight: tuple[int, ...] = ()
        is_product = len(a.shape) >= 2 and len(b.shape) >= 2
        if is_product:
            is_product = a.shape[0] == b.shape[1] > 0 and prod(b.shape[2:]) == 1
            straight = (b.shape[0], *a.shape[1:])
        turned = straight[::-1] if len(straight) == 2 else ()
        may_turn = is_embedding or (self._config.fan_in_fan_out and turned == shape)
        if not is_product or shape != (turned if may_turn else straight):
            hint = " Set fan_in_fan_out in adapter_config.json." if turned == shape else ""
            raise SourceError(
                f"{self._file.path}: factors {a.shape} and {b.shape} of {module} do not fit "
                f"{target} {shape} of {self.base.path}. Use the base it was trained on.{hint}"
            )
        scale = self._config.scale(module, a.shape[0])
        self._products[target] = _Product(pair["A"], pair["B"], scale, may_turn)

    def _base_spec(self, name: str) -> TensorSpec:
        return self.base.specs[name if name in self.base.specs else self.base.tied[name]]

    def _find(self, target: str) -> str | None:
        """Return the base tensor that the module path `target` means, None when there is none.

        Files of a model without head often lack the first component (`transformer.`) that
        modules have, or have one more.
        """
        shorter = target.partition(".")[2]
        for name in (target, shorter, *(f"{root}.{target}" for root in self._roots)):
            if name in self._base_names:
                return name
        return None

    def _mismatch(self, name: str, target: str) -> SourceError:
        return SourceError(
            f"{self._file.path}: tensor {name} matches no tensor of {self.base.path}."
            f"{nearest(target, self._base_names)} Use the base the adapter was trained on."
        )

    def _untie(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return what stays tied, and every base tensor's name -> name to read in the base."""
        tied = dict(self.base.tied)
        origins = {name: name for name in self.base.specs}
        touched = {*self._products, *self._replaced}
        for alias, target in self.base.tied.items():
            follows = self._config.keeps_tying and alias not in touched
            if follows and target in touched:
                origins.pop(alias, None)  # a stored copy of the base's tensor is out of date
            elif alias in touched or target in touched:
                del tied[alias]
                origins.setdefault(alias, target)
        return tied, origins

    def _make_specs(self) -> dict[str, TensorSpec]:
        specs: dict[str, TensorSpec] = {}
        for name, origin in self._origins.items():
            stored = self.base.specs[origin]
            dtype = "F32" if name in self._products else stored.dtype
            specs[name] = TensorSpec(name, dtype, stored.shape)
        for name, own in self._replaced.items():
            stored = self._file.specs[own]
            dtype = "F32" if name in self._products else stored.dtype
            specs[name] = TensorSpec(name, dtype, stored.shape)
        return specs
