"""Array type names shared by the numeric modules.

Shape letters used everywhere: K sources (base first), E = K - 1 experts, G groups,
S segments, P members, N examples, M objectives, D dimensions of the search vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ScoreArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
