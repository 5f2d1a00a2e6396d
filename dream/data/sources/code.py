"""Docstring → code from the packages of ``dream.data.code.TRAINING``; the group is the module.

Only modules with at least 16 functions are taken, so that every K up to the paper's has its candidates.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dream.data import code
from dream.data.sources.base import Source, Tables
from dream.data.tables import frames

if TYPE_CHECKING:
    from dream.config import Config

SMALLEST_MODULE = 16


def load(config: Config) -> Tables:
    """Functions of the standard library, numpy, scipy, pandas and scikit-learn, one query each."""
    pairs = [pair for package in code.TRAINING for pair in code.pairs(package)]
    modules = Counter(pair.group for pair in pairs)
    return frames("code", (pair for pair in pairs if modules[pair.group] >= SMALLEST_MODULE))


SOURCE = Source(
    name="code",
    natural="same_document",
    description=f"First sentence of the docstring → function: {', '.join(code.TRAINING)}",
    licence="PSF-2.0 (stdlib), BSD-3-Clause (numpy, scipy, pandas, scikit-learn)",
    load=load,
)
