"""How fast the packed towers are, beside the peers' and beside the machine: `python -m benchmarks.peers`."""
