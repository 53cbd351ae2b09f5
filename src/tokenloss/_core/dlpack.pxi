# Buffers over the memory of DLPack capsules: https://dmlc.github.io/dlpack/latest/c_api.html

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef struct DLTensor:
    void *data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t code
    uint8_t bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

cdef struct DLManagedTensor:
    DLTensor tensor
    void *manager
    void (*deleter)(DLManagedTensor *) noexcept

cdef struct DLManagedTensorVersioned:
    uint32_t major
    uint32_t minor
    void *manager
    void (*deleter)(DLManagedTensorVersioned *) noexcept
    uint64_t flags
    DLTensor tensor


@cython.final
cdef class DLPackBuffer:
    """A buffer over the tensor in a DLPack capsule, kept alive as long as the buffer is.

    bfloat16, for which buffers have no format, is exported as uint16.
    """

    cdef DLManagedTensor *plain
    cdef DLManagedTensorVersioned *versioned
    cdef Py_ssize_t shape[64]
    cdef Py_ssize_t strides[64]
    cdef Py_ssize_t size
    cdef bytes format
    cdef bint is_readonly
    cdef readonly str dtype
    cdef readonly tuple device

    def __cinit__(self, capsule):
        cdef DLManagedTensor *plain = NULL
        cdef DLManagedTensorVersioned *versioned = NULL
        cdef DLTensor *tensor
        cdef Py_ssize_t stride
        cdef int k
        if PyCapsule_IsValid(capsule, "dltensor_versioned"):
            versioned = <DLManagedTensorVersioned *> PyCapsule_GetPointer(capsule, "dltensor_versioned")
            if versioned.major > 1:
                raise BufferError(f"version {versioned.major} of DLPack")
            tensor = &versioned.tensor
            self.is_readonly = versioned.flags & 1
        else:
            plain = <DLManagedTensor *> PyCapsule_GetPointer(capsule, "dltensor")
            tensor = &plain.tensor
            self.is_readonly = True  # older producers do not say whether it is
        kind = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}.get(tensor.code)
        if kind is None:
            self.dtype = f"number {tensor.code} of DLPack ({tensor.bits} bits)"
        else:
            self.dtype = "bool" if kind == "bool" and tensor.bits == 8 else f"{kind}{tensor.bits}"
        if tensor.lanes != 1:
            self.dtype += f"x{tensor.lanes}"
        self.format = FORMATS.get(self.dtype, b"")
        self.device = (tensor.device_type, tensor.device_id)
        if not 0 <= tensor.ndim <= 64:
            raise BufferError(f"it has {tensor.ndim} dimensions")
        self.size = stride = max(1, tensor.bits // 8)
        for k in range(tensor.ndim - 1, -1, -1):
            self.shape[k] = tensor.shape[k]
            if self.shape[k] < 0:
                raise BufferError(f"its shape holds {self.shape[k]}")
            if self.shape[k] > 0 and self.size > PY_SSIZE_T_MAX // self.shape[k]:
                raise BufferError("its shape has more elements than memory can hold")
            self.size *= self.shape[k]
            self.strides[k] = tensor.strides[k] * (tensor.bits // 8) if tensor.strides != NULL else stride
            stride *= max(1, self.shape[k])
        if tensor.data == NULL and self.size > 0:
            raise BufferError("it has no memory: its data pointer is NULL")
        # from here on the tensor is ours to delete
        self.versioned, self.plain = versioned, plain
        if versioned != NULL:
            PyCapsule_SetName(capsule, "used_dltensor_versioned")
        else:
            PyCapsule_SetName(capsule, "used_dltensor")

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        cdef DLTensor *tensor = &self.plain.tensor if self.plain != NULL else &self.versioned.tensor
        buffer.buf = <char *> tensor.data + tensor.byte_offset
        buffer.obj = self
        buffer.itemsize = tensor.bits // 8
        buffer.len = self.size
        if not self.format:
            raise BufferError(self.dtype)
        if flags & PyBUF_WRITABLE and self.is_readonly:
            raise BufferError("read-only")
        buffer.readonly = self.is_readonly
        buffer.ndim = tensor.ndim
        buffer.format = self.format
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __dealloc__(self):
        if self.plain != NULL and self.plain.deleter != NULL:
            self.plain.deleter(self.plain)
        if self.versioned != NULL and self.versioned.deleter != NULL:
            self.versioned.deleter(self.versioned)
