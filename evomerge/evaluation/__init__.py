"""How good a merged model is: evaluators and the resident model they score.

Every built-in evaluator is listed here by hand; importing this package registers them.
"""

from evomerge.evaluation import (  # noqa: F401  (importing registers them)
    classification,
    code_execution,
    embedding,
    endpoint,
    exact_match,
    harness,
    judge,
    multiple_choice,
    perplexity,
    python_function,
)
