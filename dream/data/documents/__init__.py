"""Documents without questions: files or a table of texts → passages, grouped by document.

``files``     which files are read, and how each becomes a title and sections
``tables``    .jsonl, .parquet and .csv: a row is a document
``sections``  Markdown and HTML → sections under their headings
``cut``       sections → passages of so many words
``clean``     lines and texts that stand in many documents
``read``      all of it, once: the passages are kept under ``.dream``
"""

from dream.data.documents.files import check
from dream.data.documents.read import READS, passages

__all__ = ["READS", "check", "passages"]
