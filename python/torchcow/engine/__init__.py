"""The verbs of the engine: clone, patch, materialize, reading and reshare; and the names that it asks for."""
