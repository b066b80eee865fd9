"""How weights combine: merge operators and the streaming pass that applies them.

Every built-in merge method is listed here by hand; importing this package registers them.
"""

from evomerge.merging import (  # noqa: F401  (importing registers them)
    arcee_fusion,
    breadcrumbs,
    consensus,
    dare,
    della,
    evo_merging,
    karcher,
    layer_swap,
    linear,
    localize_and_stitch,
    magmax,
    model_stock,
    nearswap,
    nlerp,
    norm_share,
    nuslerp,
    passthrough,
    ram,
    sce,
    slerp,
    task_arithmetic,
    ties,
    transforms,
)
