# SPDX-License-Identifier: Apache-2.0
"""Named prototypes with versions, tags and lineage, in memory or in a folder that several processes share."""

from torchcow.registry.proxy import Proxy
from torchcow.registry.prune import PruneReport
from torchcow.registry.registry import Registry
from torchcow.registry.split import Split
from torchcow.registry.version import Promotion, Version

__all__ = ["Promotion", "Proxy", "PruneReport", "Registry", "Split", "Version"]
