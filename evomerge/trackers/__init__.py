"""Where a search can be watched: TensorBoard, Weights & Biases, MLflow, Optuna's dashboard.

Every built-in tracker is listed here by hand; importing this package registers them. None of them
imports its library before it is used.
"""

from evomerge.trackers import (  # noqa: F401  (importing registers them)
    mlflow_tracker,
    optuna_tracker,
    tensorboard_tracker,
    wandb_tracker,
)
