# SPDX-License-Identifier: Apache-2.0
"""Reports on memory, events, reasons, differences and budgets, and the tables and charts that show them."""
