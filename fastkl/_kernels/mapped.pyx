# cython: language_level=3
"""Memory-mapped files that cannot kill the process by getting shorter; mapped.h says how."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer

cdef extern from "mapped.h":
    int fk_watch(const void* address, size_t size)
    void fk_unwatch(int place)
    bint fk_lost(int place)
    void fk_advise(const char* address, size_t size, int advice) nogil
    int MADV_POPULATE_READ, MADV_DONTNEED


cdef class Watched:
    """The bytes of an mmap.mmap. Arrays made from this keep it, and the mapping under it, alive."""

    cdef Py_buffer view
    cdef int place

    def __cinit__(self, mapping):
        self.place = -1
        PyObject_GetBuffer(mapping, &self.view, PyBUF_SIMPLE)
        self.place = fk_watch(self.view.buf, self.view.len)
        if self.place < 0:
            raise OSError("too many files are mapped at once")

    def __dealloc__(self):
        # Unwatched before it is unmapped: the address may be another mapping's a moment later.
        if self.place >= 0:
            fk_unwatch(self.place)
        PyBuffer_Release(&self.view)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.view.buf, self.view.len, True, flags)

    def fetch(self, Py_ssize_t first, Py_ssize_t last):
        """Map the pages of some bytes at once: a fault for each would cost more than scoring short rows."""
        if 0 <= first < last <= self.view.len:
            with nogil:
                fk_advise(<const char*>self.view.buf + first, last - first, MADV_POPULATE_READ)

    def give_back(self, Py_ssize_t first, Py_ssize_t last):
        """Unmap the pages of some bytes, which stay in the system's cache of the file, but do not count as ours."""
        if 0 <= first < last <= self.view.len:
            with nogil:
                fk_advise(<const char*>self.view.buf + first, last - first, MADV_DONTNEED)

    @property
    def lost(self):
        """Whether some of what was read were zeros in the place of bytes that the file no longer had."""
        return bool(fk_lost(self.place))
