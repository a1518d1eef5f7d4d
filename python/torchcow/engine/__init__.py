"""The verbs of the engine: clone, patch, materialize, reading and reshare. ``names`` finds names for its messages."""
