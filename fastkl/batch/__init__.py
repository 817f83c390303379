"""Batch scoring: files of logits that may be larger than memory, read in chunks of rows.

``readers`` and ``tables`` open files and vouch for them, ``writers`` keeps results from ever being half-written,
``shards`` finds files, ``scoring`` scores one of them, ``totals`` adds up, ``manifest`` remembers, ``run`` is all of
that together, ``cluster`` the same on many machines, ``command`` is the command line on top of it (``fastkl score``),
``report`` the page that it may write.
"""

from fastkl.batch.readers import InputError
from fastkl.batch.run import Run, score_files
from fastkl.batch.totals import Summary

__all__ = ["InputError", "Run", "Summary", "score_files"]
