"""The ask / tell loop, its replay and its ports (`Executor`, `RunLog`). NumPy only."""
