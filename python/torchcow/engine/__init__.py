# SPDX-License-Identifier: Apache-2.0
"""The verbs of the engine: clone, patch, materialize, reading and reshare. ``names`` finds names for its messages."""
