"""Before a run: what a size costs (:mod:`plan`) and what this machine can do (:mod:`doctor`). No results are read."""
