compiler: str
openmp: bool
avx2: bool
avx512: bool

def max_threads() -> int: ...
