"""Every policy over its range on equal terms: one table, one plot, one report."""
