# SPDX-License-Identifier: Apache-2.0
"""Prototypes: snapshots that clones are made from, and stand-ins for components that cannot be cloned."""
