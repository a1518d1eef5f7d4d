# SPDX-License-Identifier: Apache-2.0
"""From stored results to Markdown and charts: one module per question, each with ``section(result) -> str``."""
