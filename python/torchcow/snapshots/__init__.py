"""Prototypes: snapshots that clones are made from, and stand-ins for components that cannot be cloned."""
