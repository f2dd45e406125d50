"""How fast itmkit is, against other ways and against the machine: ``python -m benchmarks``."""
