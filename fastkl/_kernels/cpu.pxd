# What the tiers ask of cpu.pyx: they share one count of threads.

cdef bint on_one_thread(double nbytes) noexcept nogil
cdef int kind_of(int op, bint is_double, Py_ssize_t classes) noexcept nogil
cdef int enter(int kind, int most, bint asked, double nbytes) noexcept nogil
cdef void leave(int kind, int granted, double nbytes) noexcept nogil
