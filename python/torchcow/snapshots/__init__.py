"""Prototypes: snapshots that clones are made from, and what stands in for parts that cannot be cloned."""
