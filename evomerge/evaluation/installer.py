"""Writing a candidate's tensors into the storages of a resident model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from evomerge.core.tensor_names import place
from evomerge.errors import DataError, EvaluationError
from evomerge.evaluation.resident import Loaded, reload_state
from evomerge.evaluation.weight_map import Unit, WeightMap


class Installer:
    """Overwrites one loaded model, candidate after candidate."""

    def __init__(self, loaded: Loaded) -> None:
        """Args: loaded: The model; its parameters keep their storage."""
        self._loaded = loaded
        self._state: dict[str, Tensor] = dict(loaded.model.state_dict())
        self._ever_installed: set[str] = set()

    @cached_property
    def destinations(self) -> Mapping[str, Tensor]:
        """{name in the files: parameter}, where a tensor can be written as it is."""
        weight_map = self._loaded.weight_map
        if weight_map is None:
            return {}
        found: dict[str, Tensor] = {}
        for unit in weight_map.units:
            storage = self._state[unit.target]
            if unit.converter is None and len(self._sharing(unit)) == 1:
                found[unit.names[0]] = storage
        return found

    def complete(self, names: Iterable[str]) -> set[str] | None:
        """Return the tensors that have to come with `names`, these included; None for all.

        Those are the members of one fused parameter, and of tied ones that are stored apart.
        """
        weight_map = self._loaded.weight_map
        if weight_map is None:
            return None
        wanted: set[str] = set()
        for name in names:
            if name in wanted:
                continue
            wanted.add(name)
            unit = weight_map.unit(name)
            if unit is not None:
                wanted.update(*(other.names for other in self._sharing(unit)))
        return wanted

    def _sharing(self, unit: Unit) -> list[Unit]:
        """Return the units whose parameter has the storage of `unit`, itself included."""
        return self._by_storage.get(self._state[unit.target].data_ptr(), [unit])

    @cached_property
    def _by_storage(self) -> dict[int, list[Unit]]:
        shared: dict[int, list[Unit]] = {}
        assert self._loaded.weight_map is not None
        for unit in self._loaded.weight_map.units:
            if self._state[unit.target].numel():
                shared.setdefault(self._state[unit.target].data_ptr(), []).append(unit)
        return shared

    def install(
        self,
        tensors: Iterable[tuple[str, Tensor]],
        subject: str,
        unchanged: Collection[str] = frozenset(),
    ) -> set[str]:
        """Write every tensor; see `Subject.install`.

        Args:
            tensors: (name in the safetensors files, value).
            subject: Name of the model, for messages.
            unchanged: Names whose values from an earlier call stay.

        Returns:
            Names in memory of what was written.
        """
        delivered: set[str] = set()
        run = _Run(self._loaded, self._state, subject)
        try:
            with torch.no_grad():
                stream = _once(tensors, delivered, subject)
                if self._loaded.weight_map is None:
                    run.reload(dict(stream))
                else:
                    run.write_in_place(stream, self._loaded.weight_map)
        finally:
            missing = self._ever_installed - delivered - set(unchanged)
            self._ever_installed |= delivered
        if missing:
            raise EvaluationError(
                f"{subject}: {len(missing)} tensors that an earlier candidate installed are "
                f"missing now, the first is {min(missing)}; install every merged tensor each time."
            )
        return run.written_targets


class _Run:
    """One installation."""

    def __init__(self, loaded: Loaded, state: Mapping[str, Tensor], subject: str) -> None:
        self._loaded, self._state, self._subject = loaded, state, subject
        self._source_of: dict[int, str] = {}  # storage -> file tensor that was written to it
        self.written_targets: set[str] = set()

    def write_in_place(self, tensors: Iterable[tuple[str, Tensor]], weight_map: WeightMap) -> None:
        waiting: dict[str, tuple[Unit, dict[str, Tensor]]] = {}
        for name, tensor in tensors:
            unit = weight_map.unit(name)
            if unit is None:
                # An untied head of a causal model, met by a model of another class.
                is_head = self._loaded.untied and place(name).kind == "head"
                if name not in weight_map.ignored and not is_head:
                    raise EvaluationError(
                        f"{self._subject}: {name} is neither in the files of "
                        f"{self._loaded.folder} nor a parameter of the resident model"
                    )
                continue
            _, have = waiting.setdefault(unit.target, (unit, {}))
            have[name] = tensor
            if len(have) == len(unit.sources):
                del waiting[unit.target]
                self._write(weight_map, unit, have)
        for unit, have in waiting.values():
            rest = {name: self._loaded.read(name) for name in unit.names if name not in have}
            self._write(weight_map, unit, have | rest)

    def reload(self, tensors: Mapping[str, Tensor]) -> None:
        for target, value in reload_state(self._loaded, tensors).items():
            self._copy(target, value, target)

    def _write(self, weight_map: WeightMap, unit: Unit, have: Mapping[str, Tensor]) -> None:
        try:
            made = weight_map.convert(unit, have)
        except (RuntimeError, ValueError, KeyError) as error:
            raise EvaluationError(
                f"{self._subject}: {', '.join(unit.names[:3])} cannot be converted ({error})"
            ) from error
        for target, value in made.items():
            self._copy(target, value, unit.names[0])

    def _copy(self, target: str, value: Tensor, source: str) -> None:
        storage = self._state[target]
        if storage.shape != value.shape:
            raise EvaluationError(
                f"{self._subject}: {source} is {tuple(value.shape)}, the resident model's "
                f"{target} is {tuple(storage.shape)}"
            )
        earlier = self._source_of.get(storage.data_ptr()) if storage.numel() else None
        if earlier is None:
            if not _is_same(storage, value):
                storage.copy_(value)
            self._source_of[storage.data_ptr()] = source
        elif not torch.equal(storage, value.to(device=storage.device, dtype=storage.dtype)):
            raise EvaluationError(
                f"{self._subject}: the model ties {source} to {earlier}, but the candidate gives "
                "them different values; load the subject with untied=True."
            )
        self.written_targets.add(target)


def _is_same(storage: Tensor, value: Tensor) -> bool:
    """Return whether `value` was written into the parameter itself."""
    return (
        storage.data_ptr() == value.data_ptr()
        and storage.dtype == value.dtype
        and storage.is_contiguous()
        and value.is_contiguous()
    )


def _once(
    tensors: Iterable[tuple[str, Tensor]], delivered: set[str], subject: str
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        if name in delivered:
            raise EvaluationError(f"{subject}: tensor {name} came twice")
        delivered.add(name)
        yield name, tensor


def head_parameters(loaded: Loaded, head: Path) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """Return {name in memory: (module, attribute, value)} of a head file.

    Raises:
        DataError: The file is missing, broken, or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(head)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{head}: cannot be read as safetensors ({error}); check `head:`."
        ) from error
    state = loaded.model.state_dict()
    swaps: dict[str, tuple[nn.Module, str, Tensor]] = {}
    for name, tensor in tensors.items():
        unit = loaded.resolve(name)
        if unit is None or unit.converter is not None:
            prefix = loaded.model.base_model_prefix
            known = ", ".join([n for n in state if n.split(".")[0] != prefix][:4])
            raise DataError(
                f"{head}: {name} is not a parameter of {type(loaded.model).__name__}; "
                f"name the head's tensors as in checkpoint files ({known})."
            )
        old = state[unit.target]
        if old.dim() != tensor.dim() or old.shape[1:] != tensor.shape[1:]:
            raise DataError(
                f"{head}: {name} is {tuple(tensor.shape)}, the model has {tuple(old.shape)}; "
                "only the first axis (labels) may differ."
            )
        path, _, leaf = unit.target.rpartition(".")
        value = tensor.to(device=old.device, dtype=old.dtype)
        swaps[unit.target] = (loaded.model.get_submodule(path), leaf, value)
    for target, (module, leaf, _) in swaps.items():
        if isinstance(module, nn.Linear) and module.bias is not None:
            stem = target.removesuffix(leaf)
            rows = [
                swaps[stem + part][2].shape[0] if stem + part in swaps else own.shape[0]
                for part, own in (("weight", module.weight), ("bias", module.bias))
            ]
            if rows[0] != rows[1]:
                raise DataError(
                    f"{head}: {stem}weight would have {rows[0]} rows and {stem}bias {rows[1]}; "
                    "the file needs both."
                )
    return swaps
