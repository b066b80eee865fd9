"""Config files and the composition root that turns one into a running search."""
