"""evomerge: breed merges of fine-tuned models by evolutionary and black-box search."""

__version__ = "0.1.0"
