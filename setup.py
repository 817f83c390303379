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
# Never -ffast-math: it sets flush-to-zero for the whole process. -fschedule-insns interleaves chains of instructions
# that do not wait for one another. The second line keeps loops over lanes vectorised, and zeros from `rep stos`.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fschedule-insns", "-fsched-pressure"]
FLAGS += ["-fno-loop-interchange", "-fno-loop-unroll-and-jam", "-fno-tree-loop-distribute-patterns"]


class BuildWithOpenMP(build_ext):
    def build_extensions(self):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "openmp.c").write_text("#include <omp.h>\nint main(void) { return omp_get_max_threads(); }\n")
            try:
                objects = self.compiler.compile([f"{folder}/openmp.c"], folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(objects, "openmp", folder, extra_postargs=["-fopenmp"])
                openmp = [] if os.environ.get("FASTKL_NO_OPENMP") else ["-fopenmp"]
            except Exception:
                openmp = []  # serial
        for extension in self.extensions:
            extension.extra_compile_args, extension.extra_link_args = FLAGS + openmp, openmp
        super().build_extensions()


api = {"include_dirs": [numpy.get_include()], "define_macros": [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]}
included = sorted(map(str, [*HERE.glob("*.px[id]"), *HERE.glob("*.h")]))
names = ["cpu", "count", "mapped", *TIERS]
modules = [Extension(f"fastkl._kernels.{n}", [f"{HERE}/{n}.pyx"], depends=included, **api) for n in names]
options = {"build_ext": {"parallel": os.cpu_count()}}
setup(cmdclass={"build_ext": BuildWithOpenMP}, ext_modules=modules, options=options)
