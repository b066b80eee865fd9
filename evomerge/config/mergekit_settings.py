"""Flags and constants of a mergekit method -> settings of our merge operator."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.config.mergekit_fields import Rule, parse_constant
from evomerge.core.recipe import Setting
from evomerge.errors import ConfigError
from evomerge.merging.mergekit_rules import Condition


def settings_of(
    method: str, flags: Mapping[str, bool], shared: Mapping[str, Rule]
) -> dict[str, Setting]:
    """Return the settings of our operator; `compat: mergekit` where it has one.

    Args:
        method: mergekit's name of the method.
        flags: Flags the file gives.
        shared: Other parameters it gives for all models.

    Raises:
        ConfigError: A flag has no counterpart here, or a constant depends on the tensor.
    """
    normalize = flags.get("normalize")
    if method == "karcher":
        return {"compat": "mergekit", **_karcher_settings(shared)}
    if method == "linear":
        return {"normalize": normalize is not False}
    if method == "task_arithmetic":
        return {"normalize": bool(normalize)}
    if method in ("slerp", "sce", "nearswap"):
        return {"compat": "mergekit"}
    if method in ("arcee_fusion", "ram", "ramplus_tl", "passthrough"):
        return {}
    if method.startswith("breadcrumbs"):
        if flags.get("rescale"):
            raise ConfigError(f"parameters.rescale: evomerge's {method} does not rescale")
        if method == "breadcrumbs":
            return {"compat": "mergekit", "normalize": bool(normalize)}
        return {"compat": "mergekit", "divisor": "signed_weights" if normalize else "none"}
    if method == "multislerp":
        return {"compat": "mergekit", "normalize": flags.get("normalize_weights", True)}
    if method == "model_stock":
        return {"compat": "mergekit", "filter_wise": flags.get("filter_wise", False)}
    if method == "nuslerp":
        # mergekit's "row wise" normalises along axis 0.
        axis = 0 if flags.get("nuslerp_row_wise") else -1
        return {"flatten": flags.get("nuslerp_flatten", True), "axis": axis}
    if method == "ties":
        return {
            "compat": "mergekit",
            "divisor": "none" if normalize is False else "signed_weights",
            "rescale": "l1" if flags.get("rescale") else "none",
        }
    rescale = {"compat": "mergekit", "rescale": "l1" if flags.get("rescale", True) else "none"}
    if method == "della":
        return {**rescale, "divisor": "none" if normalize is False else "signed_weights"}
    if method in ("dare_linear", "della_linear"):
        return {**rescale, "normalize": bool(normalize)}
    return {**rescale, "divisor": "signed_weights" if normalize else "none"}


def _karcher_settings(shared: Mapping[str, Rule]) -> dict[str, Setting]:
    """Return the end of the iteration, mergekit's defaults where the file has none."""
    n_steps = parse_constant(shared.get("max_iter", (Condition(10.0),)), "max_iter")
    if n_steps != int(n_steps):
        raise ConfigError(f"parameters.max_iter: {n_steps:g} is not a whole number")
    tol = parse_constant(shared.get("tol", (Condition(1e-5),)), "tol")
    return {"max_iter": int(n_steps), "tol": tol}
