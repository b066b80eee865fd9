"""The score of one document under a metric of lm-evaluation-harness, higher is better.

A search needs scores per example whose mean is the metric, or moves with it. Metrics that exist
for a whole data set only are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from numbers import Real
from typing import Any

from evomerge.errors import ConfigError, EvaluationError, nearest


@dataclass(frozen=True)
class Metric:
    """A metric of a task after one of its filters.

    Attributes:
        name: As in the task's `metric_list`.
        filter: As in its `filter_list`; "none" without one.
    """

    name: str
    filter: str

    def __str__(self) -> str:
        return f"{self.name},{self.filter}"

    def score(self, task: Any, values: Mapping[str, Any]) -> float:
        """Return the score of one document.

        Args:
            task: The harness's task.
            values: Metric -> value, from `task.process_results`.

        Raises:
            ConfigError: The metric is no mean over documents.
            EvaluationError: There is no such value, or it is not what the metric needs.
        """
        if self.name not in values:
            raise EvaluationError(
                f"the task gives no {self.name!r}.{nearest(self.name, values)} It gives: "
                f"{', '.join(values)}; correct `metric:`."
            )
        value, per_document = values[self.name], self.per_document(task)
        try:
            return per_document(value)
        except (TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise EvaluationError(
                f"the value {value!r:.80} of {self.name!r} gives no score ({error})"
            ) from error

    def per_document(self, task: Any) -> Callable[[Any], float]:
        """Return the function from one document's value to its score.

        Raises:
            ConfigError: The metric is no mean over documents, or nobody says whether higher is
                better.

        Source: lm-evaluation-harness 0.4.13, `api/metrics.py`.
        """
        from lm_eval.api import metrics

        aggregation = task.aggregation().get(self.name)
        if aggregation is metrics.mean:
            better = task.higher_is_better().get(self.name)
            if better is None:
                raise ConfigError(
                    f"lm_eval: the task does not say whether a higher {self.name!r} is better; "
                    "put `higher_is_better:` into its `metric_list`."
                )
            return _number if better else _negated
        known: dict[Any, Callable[[Any], float]] = {
            metrics.perplexity: _number,  # of a document: its log-likelihood
            metrics.weighted_perplexity: _per_unit,
            metrics.bits_per_byte: _per_bit,
            metrics.brier_score: _brier,
        }
        if aggregation not in known:
            kind = getattr(aggregation, "__name__", str(aggregation))
            raise ConfigError(
                f"lm_eval: {self.name!r} is computed from all documents together ({kind}), so no "
                "document has a score of its own; choose a metric that is a mean over documents."
            )
        return known[aggregation]


def choose_metric(task: Any, wanted: str | None, filters: Sequence[str]) -> Metric:
    """Return the metric that `metric:` means.

    Args:
        task: The harness's task.
        wanted: "metric,filter"; the filter may be left out where there is one, all of it where
            the task has one metric.
        filters: Names of the task's filters.

    Raises:
        ConfigError: It is not a metric of the task, or not clear which; lists the known ones.
    """
    known = [f"{name},{item}" for item in filters for name in task.aggregation()]
    listed = ", ".join(known)
    if wanted is None and len(known) != 1:
        raise ConfigError(f"lm_eval: give `metric:`, one of {listed}.")
    name, comma, chosen = (known[0] if wanted is None else wanted).rpartition(",")
    if not comma:
        name, chosen = chosen, filters[0]
        if len(filters) > 1:
            raise ConfigError(
                f"lm_eval: metric {wanted!r} leaves open which filter; write one of {listed}."
            )
    metric = Metric(name.strip(), chosen.strip())
    if str(metric) in known:
        metric.per_document(task)
    elif metric.filter not in filters or not _expands(task):
        raise ConfigError(
            f"lm_eval: {wanted!r} is not a metric of the task.{nearest(str(metric), known)} "
            f"Known: {listed}."
        )
    return metric


def _expands(task: Any) -> bool:
    """Return whether a metric of the task names its values itself, such as pass@1 of pass_at_k."""
    listed = getattr(task.config, "metric_list", None) or ()
    return any(callable(item.get("metric")) for item in listed)


def _number(value: Any) -> float:
    if not isinstance(value, Real) and not hasattr(value, "item"):
        raise TypeError("expected a number")
    return float(value)


def _negated(value: Any) -> float:
    return -_number(value)


def _per_unit(value: tuple[float, int]) -> float:
    """Return minus the log of the perplexity of one document."""
    return value[0] / value[1]


def _per_bit(value: tuple[float, int]) -> float:
    """Return minus the bits per byte of one document."""
    return _per_unit(value) / log(2)


def _brier(value: tuple[int, Any]) -> float:
    """Return minus the Brier score of one document: the metric is the mean of these."""
    from lm_eval.api.metrics import brier_score

    return -float(brier_score([value]))
