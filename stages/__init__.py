"""The pipeline's stages: thin scripts that read top to bottom. The library is in ``dream/``.

Their logs are short: no bar for work that is done within a second (what a cache had), no deprecation of a library, which is ours
to mend and not the reader's.
"""

import os
import warnings

os.environ.setdefault("TQDM_DELAY", "1")  # tqdm reads it when it is imported
for kind in (FutureWarning, DeprecationWarning):
    warnings.filterwarnings("ignore", category=kind)
