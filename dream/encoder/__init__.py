"""The dense encoder: a transformer backbone, its tokenizer and the rules that turn a text into a vector of unit length.

``encoder`` the class; ``texts`` batches and pooling; ``reading`` model folders; ``adapters`` LoRA and adapters of others.
"""

from dream.encoder.adapters import ORIGINS, check_adapter, compare_base
from dream.encoder.encoder import DTYPES, LENGTH, Encoder
from dream.encoder.reading import fits, folder_room, quiet, room, skeleton, split_revision
from dream.encoder.texts import POOLINGS, batches, pool, unique

__all__ = [
    "DTYPES", "LENGTH", "ORIGINS", "POOLINGS", "Encoder", "batches", "check_adapter",
    "compare_base", "fits", "folder_room", "pool", "quiet", "room", "skeleton", "split_revision", "unique",
]  # fmt: skip
