import mmap

from typing_extensions import Buffer

class Watched(Buffer):
    def __init__(self, mapping: mmap.mmap) -> None: ...
    @property
    def lost(self) -> bool: ...
