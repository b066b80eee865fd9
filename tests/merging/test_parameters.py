import math

import pytest

from evomerge.errors import ConfigError
from evomerge.merging.dare import DareLinear
from evomerge.merging.linear import Linear
from evomerge.merging.nuslerp import NuSlerp
from evomerge.merging.parameters import check_names, require_fields
from evomerge.merging.slerp import Slerp


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(weights=(1.0, math.nan)), "weights must hold finite numbers, has nan"),
        (lambda: Linear(weights=("1",)), "finite numbers, has '1'"),
        (
            lambda: Linear(weights=(1.0,), normalize="yes"),
            "normalize is 'yes', must be of type bool",
        ),
        (lambda: DareLinear(weights=(1.0,), seed=1.5), "seed is 1.5, must be of type int"),
        (lambda: DareLinear(weights=(1.0,), seed=True), "seed is True, must be of type int"),
        (lambda: Slerp(t=1.5), "t is 1.5, must be at most 1"),
        (lambda: Slerp(compat="mergkit"), "Did you mean 'mergekit'"),
        (lambda: Slerp(space=3), "space is 3, must be one of 'auto', 'raw', 'delta'"),
        (lambda: NuSlerp(weights=(1.0, 1.0), axis="0"), "axis is '0', must be of type int"),
    ],
)
def test_wrong_fields_are_refused_with_what_is_allowed(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_unknown_settings_and_parameters_name_the_nearest():
    with pytest.raises(ConfigError, match=r"settings.normalise is not a setting .*'normalize'"):
        check_names(Linear, ["normalise"], where="settings")
    with pytest.raises(ConfigError, match="weights is a parameter, not a setting"):
        check_names(Linear, ["weights"], where="settings")
    with pytest.raises(ConfigError, match=r"params.weight is not a parameter .*'weights'"):
        require_fields(Linear, ["weight"], where="params")
    with pytest.raises(ConfigError, match="seed is a setting, not a parameter"):
        require_fields(DareLinear, ["weights", "seed"], where="params")
    with pytest.raises(ConfigError, match="weights is missing"):
        require_fields(DareLinear, ["density"], where="params")
    require_fields(Slerp, [], where="params")
