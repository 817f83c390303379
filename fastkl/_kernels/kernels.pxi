# One mathematics for all instruction sets: avx512.pyx, avx2.pyx and base.pyx include this and differ in their target.

include "lanes.pxi"
include "plan.pxi"
include "logspace.pxi"
include "divergence.pxi"
include "pointwise.pxi"
include "labels.pxi"
include "drive.pxi"
include "entry.pxi"
include "order.pxi"
include "pair.pxi"
include "score.pxi"
include "probe.pxi"
