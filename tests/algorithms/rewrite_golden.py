"""Rewrite golden/*.json: `python -m tests.algorithms.rewrite_golden [NAME …]`.

Never run by pytest. A change here is a change of every journal's replay: say so in the changelog.
"""

from __future__ import annotations

import sys

from tests.algorithms.golden_runs import RUNS, write

if __name__ == "__main__":
    for stem in sys.argv[1:] or RUNS:
        write(stem)
        print(stem)
