"""Schedule to engines: one subgraph a scale, one copy of the weights, one manifest."""
