"""`evomerge quickstart`: specialists trained in seconds, searched, exported, checked."""
