"""Extension modules: one source for every instruction set, with OpenMP where the compiler has it."""

import os
import platform
import tempfile
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path("fastkl/_kernels")
TIERS = ["base", "avx2", "avx512"] if platform.machine() in ("x86_64", "AMD64") else ["base"]
# Never -ffast-math, at compile or link time: it would set flush-to-zero for the whole process.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# gcc would jam or interchange some loops over vectors into the loops over lanes, and then vectorise neither.
FLAGS += ["-fno-loop-interchange", "-fno-loop-unroll-and-jam"]
# Zeroing 64 lanes by `rep stos` takes longer than adding them up.
FLAGS += ["-fno-tree-loop-distribute-patterns"]
# Interleave the independent chains of a loop body: their latency is longer than the processor looks ahead.
FLAGS += ["-fschedule-insns", "-fsched-pressure"]


class BuildWithOpenMP(build_ext):
    def build_extensions(self):
        if not os.environ.get("FASTKL_NO_OPENMP") and self.compiler_has_openmp():
            for extension in self.extensions:
                extension.extra_compile_args += ["-fopenmp"]
                extension.extra_link_args += ["-fopenmp"]
        super().build_extensions()

    def compiler_has_openmp(self):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "openmp.c")
            source.write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, "openmp", folder, extra_postargs=["-fopenmp"])
            except Exception:
                return False
        return True


setup(
    cmdclass={"build_ext": BuildWithOpenMP},
    ext_modules=[
        Extension(
            f"fastkl._kernels.{name}", [str(HERE / f"{name}.pyx")], include_dirs=[numpy.get_include(), str(HERE)],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")], extra_compile_args=list(FLAGS),
            depends=[str(path) for pattern in ("*.pxi", "*.h") for path in sorted(HERE.glob(pattern))],
        )
        for name in ["cpu", *TIERS]
    ],
)  # fmt: skip
