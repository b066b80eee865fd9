"""Which recipe to try next.

Every built-in algorithm is listed here by hand; importing this package registers them.
"""

from evomerge.algorithms import (  # noqa: F401  (importing registers them)
    amortized_pareto,
    auto,
    basis_refresh,
    cycle_qd,
    evo_merging,
    frank_wolfe,
    ga,
    genome,
    genome_plus,
    greedy_soup,
    m2n2,
    map_elites,
    model_swarms,
    nevergrad_adapter,
    optuna_adapter,
    pso_merging,
    random_search,
    ribs_adapter,
)
