"""Batch scoring: files of logits that may be larger than memory, read in chunks of rows.

``readers`` opens files and vouches for them, ``writers`` keeps results from ever being half-written, ``scoring`` is the
loop between the two, ``command`` is the command line on top of it (``fastkl score``).
"""

from fastkl.batch.readers import InputError
from fastkl.batch.scoring import Summary, score_files

__all__ = ["InputError", "Summary", "score_files"]
