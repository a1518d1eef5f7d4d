"""Reports on memory, events, reasons, differences and budgets, and the tables and charts that show them."""
