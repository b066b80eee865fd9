"""LayerRunner: sequences of resident layers, run as one model without copying weights.

A step of a sequence is an alias of a layer: other module objects around the same parameters. So a
layer that occurs twice has its weights in memory once, and each occurrence an index of its own,
which is its place in the KV cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from evomerge.core.tensor_names import block_parts, place
from evomerge.errors import EvaluationError, SourceError, first_line
from evomerge.evaluation.resident import quiet

# A matrix and a factor -> the matrix that is used instead.
Scale = Callable[[Tensor, float], Tensor]


class LayerRunner:
    """Puts sequences of resident layers into one transformers model.

    Attributes:
        prefix: What stands before a layer's index in parameter names.
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, Sequence[nn.Module]], *, scale: Scale
    ) -> None:
        """Take over the layers.

        Args:
            model: Gives everything before and after the layers; on every `install` its layers are
                replaced and its config is changed.
            layers: Source -> its layers, on the model's device and of its architecture.
            scale: How a matrix is scaled. It is computed anew in every forward pass, so that a
                scaled layer needs no memory either, and exactly as a stored one would be.

        Raises:
            EvaluationError: The model has no single list of layers.
        """
        self.prefix, _ = find_layers(model)
        self._model = model
        self._layers = {name: tuple(own) for name, own in layers.items()}
        self._scale = scale
        self._configs = list(_configs(model, self.prefix))

    def install(self, steps: Sequence[tuple[str, int, float]], settings: Mapping[str, Any]) -> None:
        """Make the model run a sequence.

        Args:
            steps: (S,) source, index of the layer in it, and factor of what attention and MLP
                add to the residual stream.
            settings: Keys of config.json that say something of the layers -> value, for this
                sequence; the number of layers among them.

        Raises:
            EvaluationError: A layer cannot be scaled.
        """
        made = nn.ModuleList(
            self._step(self._layers[source][layer], index, factor)
            for index, (source, layer, factor) in enumerate(steps)
        )
        for config in self._configs:
            for key, value in settings.items():
                setattr(config, key, copy.deepcopy(value))
        path, _, leaf = self.prefix.rstrip(".").rpartition(".")
        setattr(self._model.get_submodule(path), leaf, made)

    def _step(self, layer: nn.Module, index: int, factor: float) -> nn.Module:
        step = _alias(layer)
        for module in step.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
        if factor != 1.0:
            self._scale_outputs(step, factor)
        return step

    def _scale_outputs(self, step: nn.Module, factor: float) -> None:
        kinds = set()
        for name, module in step.named_modules():
            own = module._parameters
            kind = place(f"{self.prefix}0.{name}.weight").kind
            if kind in ("attn.o", "mlp.down") and own.get("weight") is not None:
                kinds.add(kind)
                # An attribute of this alias; the module that is called keeps its class's forward.
                module.forward = partial(_scaled_forward, _alias(module), self._scale, factor)
        if kinds != {"attn.o", "mlp.down"}:
            raise EvaluationError(
                f"{type(step).__name__}: the modules at the end of attention and MLP were not "
                "found, so it cannot be scaled; use `scaling: none`"
            )


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return what stands before a layer's index in parameter names, and the list of layers.

    Raises:
        EvaluationError: There is none, or more than one.
    """
    parts = (block_parts(name) for name, _ in model.named_parameters())
    prefixes = sorted({found[0] for found in parts if found is not None})
    lists = [
        (prefix, model.get_submodule(prefix.rstrip("."))) for prefix in prefixes if "." in prefix
    ]
    if len(lists) != 1 or not isinstance(lists[0][1], nn.ModuleList):
        raise EvaluationError(
            f"{type(model).__name__} has no single list of layers (found {prefixes}); its layers "
            "cannot be put in another order"
        )
    return lists[0][0], lists[0][1]


def load_layers(
    model: Any, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], *, name: str
) -> list[nn.Module]:
    """Return the layers of another model, made by transformers as those of `model` were.

    Args:
        model: Gives class, config, dtype and device.
        tensors: Name in the files -> value, of a whole model.
        settings: What the other model's layers change in the config; see `LayerRunner.install`.
        name: For messages.

    Raises:
        SourceError: transformers cannot load the tensors, or some are missing.
    """
    config = copy.deepcopy(model.config)
    for key, value in settings.items():
        setattr(config.get_text_config(), key, value)
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            made, info = type(model).from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=model.dtype,
                attn_implementation=model.config._attn_implementation,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = first_line(error)
        raise SourceError(f"{name}: transformers cannot load its layers ({reason})") from error
    prefix, layers = find_layers(made)
    absent = sorted(key for key in info["missing_keys"] if key.startswith(prefix))
    if absent:
        raise SourceError(f"{name}: its files lack {len(absent)} tensors, first {absent[0]}")
    made.eval().requires_grad_(False)
    return [layer.to(model.device) for layer in layers]


def _configs(model: nn.Module, prefix: str) -> Iterator[Any]:
    """Yield the config objects that what is around the layers looks at, each once."""
    seen: set[int] = set()
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if f"{name}.".startswith(prefix) or type(config) is not type(text):
            continue
        if id(config) not in seen:
            seen.add(id(config))
            yield config


def _alias(module: nn.Module) -> nn.Module:
    """Return other module objects around the same parameters."""
    made = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, dict):
            made.__dict__[key] = copy.copy(value)  # hooks of one occurrence are not the others'
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else _alias(child)
    return made


def _scaled_forward(
    module: nn.Module, scale: Scale, factor: float, *arguments: Any, **options: Any
) -> Any:
    own = {name: scale(value, factor) for name, value in module.named_parameters()}
    return functional_call(module, own, arguments, options)
