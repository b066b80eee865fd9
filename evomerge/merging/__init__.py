"""How weights combine: merge operators and the streaming pass that applies them.

Every built-in merge method is listed here by hand; importing this package registers them.
"""

from evomerge.merging import (  # noqa: F401  (importing registers them)
    arcee_fusion,
    breadcrumbs,
    consensus,
    dare,
    della,
    linear,
    localize_and_stitch,
    magmax,
    nearswap,
    nuslerp,
    ram,
    sce,
    slerp,
    task_arithmetic,
    ties,
)
