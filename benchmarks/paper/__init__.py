"""The published tables, reproduced, and extended to compiled variants: one module per claim over shared cells."""
