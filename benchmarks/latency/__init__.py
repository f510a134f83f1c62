"""`toprovar bench`: latency of one image on a GPU, scale by scale, eager beside compiled beside pruned."""
