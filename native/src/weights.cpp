#include "weights.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "embellama_compute.h"
#include "ggml-backend-impl.h"

// How long to wait for another process to load the weights that are shared, before they are packed once more for this one.
#ifndef EMBELLAMA_PATIENCE_MS
#define EMBELLAMA_PATIENCE_MS 60000
#endif

namespace embellama {

namespace {

// Panels start at cache lines.
constexpr size_t ALIGNMENT = 64;

// What precedes the weights in shared memory: a page, so that they stay aligned.
constexpr size_t HEADER_BYTES = 4096;

/// Memory of packed weights. Shared memory is written by the first process that loads the model, which holds its lock until
/// all is written (or it dies), and read by the others.
struct Memory {
    char *base;
    size_t size; // of the mapping
    size_t offset;
    int fd; // locked while it is being written; or -1
    bool filled;
};

/// The start of shared memory; zeros until the weights are complete.
struct Header {
    uint64_t size, key;
};

// What `embellama_compute_share` was told on this thread, and the memory that is being written since.
thread_local int shared_fd = -1;
thread_local uint64_t shared_key = 0;
thread_local Memory *writing = nullptr;

char *base_of(ggml_backend_buffer_t buffer) {
    auto *memory = static_cast<Memory *>(buffer->context);
    return memory->base + memory->offset;
}

void free_buffer(ggml_backend_buffer_t buffer) {
    auto *memory = static_cast<Memory *>(buffer->context);
    if (memory == writing) writing = nullptr; // loading failed
    munmap(memory->base, memory->size);
    if (memory->fd >= 0) close(memory->fd); // which also gives up its lock
    delete memory;
}

void *get_base(ggml_backend_buffer_t buffer) { return base_of(buffer); }

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor *tensor, const void *data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor));
    if (static_cast<Memory *>(buffer->context)->filled) return;
    Format format;
    GGML_ASSERT(format_of(tensor->type, format));
    auto *kernels = static_cast<const Kernels *>(buffer->buft->context);
    kernels->pack(format, data, tensor->ne[0], ggml_nrows(tensor), tensor->data);
}

void memset_tensor(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {
    GGML_ABORT("packed weights are written as a whole");
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t) {
    GGML_ABORT("packed weights are not read back");
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    if (!static_cast<Memory *>(buffer->context)->filled) memset(base_of(buffer), value, buffer->size);
}

const char *type_name(ggml_backend_buffer_type_t type) {
    return static_cast<const Kernels *>(type->context)->name;
}

size_t alignment(ggml_backend_buffer_type_t) { return ALIGNMENT; }

size_t alloc_size(ggml_backend_buffer_type_t type, const ggml_tensor *tensor) {
    Format format;
    if (!format_of(tensor->type, format)) return ggml_nbytes(tensor);
    auto *kernels = static_cast<const Kernels *>(type->context);
    return kernels->packed_bytes(format, tensor->ne[0], ggml_nrows(tensor));
}

/// Wait for the process that writes shared memory; false if it takes so long that it may be stopped.
bool lock(int fd) {
    constexpr int STEP_MS = 10;
    for (int waited = 0; flock(fd, LOCK_EX | LOCK_NB) != 0; waited += STEP_MS) {
        if (errno != EWOULDBLOCK || waited >= EMBELLAMA_PATIENCE_MS) return false;
        usleep(STEP_MS * 1000);
    }
    return true;
}

/// Map memory that several processes share, or return null where that can't be had.
Memory *map_shared(int shared, size_t size) {
    // A description of its own, so that its lock is its own too.
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", shared);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return nullptr;
    if (!lock(fd) || (lseek(fd, 0, SEEK_END) < off_t(size) && ftruncate(fd, size) != 0)) {
        close(fd);
        return nullptr;
    }
    void *base = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        close(fd);
        return nullptr;
    }
    auto *header = static_cast<const Header *>(base);
    const bool filled = header->size != 0;
    if (filled && (header->size != size || header->key != shared_key)) { // another file's
        munmap(base, size);
        close(fd);
        return nullptr;
    }
    if (filled) {
        mprotect(base, size, PROT_READ);
        flock(fd, LOCK_UN);
    }
    return new Memory{static_cast<char *>(base), size, HEADER_BYTES, fd, filled};
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    static const ggml_backend_buffer_i interface = {
        free_buffer,   get_base, nullptr, memset_tensor, set_tensor, get_tensor,
        /* set_tensor_2d */ nullptr, /* get_tensor_2d */ nullptr, /* cpy_tensor */ nullptr, clear, /* reset */ nullptr,
    };
    Memory *memory = shared_fd < 0 ? nullptr : map_shared(shared_fd, HEADER_BYTES + size);
    if (!memory) {
        const size_t whole = size ? size : 1;
        void *base = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) return nullptr;
        madvise(base, whole, MADV_HUGEPAGE); // fewer misses of the address cache; a kernel without them says no
        memory = new Memory{static_cast<char *>(base), whole, 0, -1, false};
    }
    ggml_backend_buffer_t buffer = ggml_backend_buffer_init(type, interface, memory, size);
    if (memory->fd >= 0) {
        shared_fd = -1; // one buffer for each shared memory
        if (!memory->filled) writing = memory;
    }
    return buffer;
}

} // namespace

bool format_of(ggml_type type, Format &format) {
    switch (type) {
        case GGML_TYPE_F32: format = Format::f32; return true;
        case GGML_TYPE_F16: format = Format::f16; return true;
        case GGML_TYPE_BF16: format = Format::bf16; return true;
        default: return false;
    }
}

ggml_backend_buffer_type make_weights_type(const Kernels &kernels, ggml_backend_dev_t device) {
    return {{type_name, alloc_buffer, alignment, nullptr, alloc_size, nullptr}, device, const_cast<Kernels *>(&kernels)};
}

bool is_packed(const ggml_tensor *tensor) {
    const ggml_backend_buffer_t buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    return buffer && buffer->buft->iface.alloc_buffer == alloc_buffer;
}

} // namespace embellama

void embellama_compute_share(int fd, uint64_t key) {
    using namespace embellama;
    if (fd < 0 && writing) {
        *reinterpret_cast<Header *>(writing->base) = {writing->size, shared_key};
        flock(writing->fd, LOCK_UN);
        writing = nullptr;
    }
    shared_fd = fd;
    shared_key = key;
}
