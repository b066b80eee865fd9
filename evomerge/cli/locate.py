"""Where the verbs look for runs: `config.locate`, under the name that they import."""

from evomerge.config.locate import POPULATIONS, locate

__all__ = ["POPULATIONS", "locate"]
