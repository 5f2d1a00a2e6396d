"""The configuration: ``sections`` (typed settings), ``resolve`` (params.yaml → one size and recipe), ``check`` (names),
``stages`` (what each stage may read).

The library itself takes plain arguments; only the stages, the builders of objectives and systems, and the report read this.
"""

from dream.config.resolve import load, resolve
from dream.config.sections import Config, Model

__all__ = ["Config", "Model", "load", "resolve"]
