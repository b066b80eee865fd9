"""Values and pure functions: recipes, model space, search space, objectives, Pareto fronts.

NumPy only: nothing here imports torch, Ray or the CLI.
"""
