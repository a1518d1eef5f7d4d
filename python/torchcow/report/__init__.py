"""Questions and answers: memory, events, reasons, differences and budgets; and the tables that show them."""
