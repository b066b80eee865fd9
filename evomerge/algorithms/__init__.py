"""Which recipe to try next.

Every built-in algorithm is listed here by hand; importing this package registers them.
"""

from evomerge.algorithms import (  # noqa: F401  (importing registers them)
    m2n2,
    nevergrad_adapter,
    optuna_adapter,
    random_search,
)
