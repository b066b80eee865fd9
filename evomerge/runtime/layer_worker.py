"""LayerWorker: scores sequences of layers that are all resident, none of them copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.core.layer_plan import LayerPlan
from evomerge.core.layer_sequence import plan_of
from evomerge.core.recipe import Recipe
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.layer_runner import LayerRunner, find_layers, load_layers
from evomerge.evaluation.subject import Subject
from evomerge.merging.weights_digest import WeightsDigest, content_of
from evomerge.runtime.worker import MergeInputs, Worker
from evomerge.storage.source_like import SourceLike
from evomerge.storage.stacked_source import StackedSource, scaled


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """The models whose layers are put in sequence.

    Attributes:
        start: The model that gives embeddings, final norm and head.
        n_layers: Source id -> number of its layers, for every source of recipes.
        sources: Source id -> model, its tensors named as the donor's.
        settings: Plan -> what it changes in the config of the language model.
    """

    start: str
    n_layers: Mapping[str, int]
    sources: Mapping[str, SourceLike]
    settings: Callable[[LayerPlan], Mapping[str, Any]]

    def plan(self, source: str) -> LayerPlan:
        """Return all layers of one model between the ends of the start model."""
        whole = LayerPlan.whole(source, self.n_layers[source])
        return LayerPlan(whole.layers, self.start, self.start)

    def stack(self, plan: LayerPlan) -> StackedSource:
        """Return the tensors of a plan, read from the files."""
        used = {name: self.sources[name] for name in plan.sources}
        return StackedSource("sequence", plan, used)


class LayerWorker(Worker):
    """Puts layers in sequence in resident models and scores them.

    The layers of every model are in memory once per resident model, that is per Auto class of the
    evaluators: usually one.
    """

    def __init__(
        self,
        merge_inputs: MergeInputs,
        subjects: Sequence[Subject],
        evaluators: Mapping[str, tuple[Evaluator, Any]],
        *,
        layers: LayerInputs,
        device: str,
        name: str = "in-process",
    ) -> None:
        """Load the layers.

        Args:
            merge_inputs: See `Worker`.
            subjects: Loaded from the donor of config and tokenizer, as deep as the start model.
            evaluators: See `Worker`.
            layers: The models.
            device: See `Worker`.
            name: See `Worker`.

        Raises:
            SourceError: transformers cannot load a model's layers.
            EvaluationError: The model has no single list of layers.
        """
        super().__init__(merge_inputs, subjects, evaluators, device=device, name=name)
        self._layers = layers
        self._runners = [self._runner(subject) for subject in subjects]
        # Content digest of a tensor, its factor included -> what WeightsDigest says of it.
        self._contents: dict[str, str] = {}

    def install(self, recipe: Recipe) -> str:
        """Put the layers of `recipe` in sequence; return the digest of the model as exported.

        Raises:
            ConfigError: It is no sequence of these models' layers, or their config.json ties
                something to the index of a layer that it breaks.
        """
        plan = plan_of(recipe, self._layers.n_layers)
        settings = self._layers.settings(plan)
        steps = [(slot.source, slot.layer, slot.scale) for slot in plan.layers]
        for runner in self._runners:
            runner.install(steps, settings)
        return self._digest_of(plan)

    def _digest_of(self, plan: LayerPlan) -> str:
        """Return the digest of a plan's tensors; those met before are not read again."""
        stack = self._layers.stack(plan)
        header = stack.header()
        digest = WeightsDigest()
        for name in header.tensors.keys() - header.tied.keys():
            key = header.digests[name]
            if key not in self._contents:
                self._contents[key] = content_of(stack.read(name))
            digest.add_content(name, self._contents[key])
        return digest.hexdigest()

    def _runner(self, subject: Subject) -> LayerRunner:
        inputs = self._layers
        own = inputs.stack(inputs.plan(inputs.start))
        stored = {*own.header().tensors}
        # A head that the start model ties and the resident one stores apart.
        apart = own.header().tied.keys() & subject.destinations().keys()
        subject.install((name, own.read(name)) for name in sorted(stored | apart))
        _, resident = find_layers(subject.model)
        layers = {inputs.start: list(resident)}
        for source in inputs.n_layers:
            if source != inputs.start:
                plan = inputs.plan(source)
                stack = inputs.stack(plan)
                layers[source] = load_layers(
                    subject.model,
                    {name: stack.read(name) for name in stack.header().tensors},
                    inputs.settings(plan),
                    name=source,
                )
        return LayerRunner(subject.model, layers, scale=scaled)
