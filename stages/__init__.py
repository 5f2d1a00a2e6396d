"""The pipeline's stages: thin scripts that read top to bottom. The library is in ``dream/``."""
