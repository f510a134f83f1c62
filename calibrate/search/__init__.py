"""The `auto` policy: measure what every action costs in fidelity, predict combinations, check them, choose."""
