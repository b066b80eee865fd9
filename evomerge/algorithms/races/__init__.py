"""Ways to score a candidate on some of the examples and stop when it is out of the race.

Every built-in race is listed here by hand; importing this package registers them.
"""

from evomerge.algorithms.races import (  # noqa: F401  (registers them)
    anchors,
    growing,
    halving,
    lossless,
    paired,
)
