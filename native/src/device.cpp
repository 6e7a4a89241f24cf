// The devices that llama.cpp is given: one for each instruction set, all of them the CPU.

#include <cstring>
#include <exception>
#include <string>

#include "embellama_compute.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "graph.h"
#include "weights.h"

namespace embellama {

namespace {

/// In the order in which they are tried: the fastest first.
const Kernels *const all_kernels[] = {&kernels_amx, &kernels_avx512_bf16, &kernels_avx512, &kernels_avx2};

struct Device {
    const Kernels *kernels;
    ggml_backend_device device;
    ggml_backend_buffer_type weights;
};

Device &device_of(ggml_backend_dev_t device) { return *static_cast<Device *>(device->context); }

// ---- one context's

const char *backend_name(ggml_backend_t) { return "embellama"; }

void free_backend(ggml_backend_t backend) {
    delete static_cast<Graph *>(backend->context);
    delete backend;
}

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph *graph) {
    try {
        return static_cast<Graph *>(backend->context)->compute(graph);
    } catch (const std::bad_alloc &) {
        return GGML_STATUS_ALLOC_FAILED;
    } catch (const std::exception &) { // no thread can be started
        return GGML_STATUS_FAILED;
    }
}

void set_n_threads(ggml_backend_t backend, int n_threads) {
    static_cast<Graph *>(backend->context)->set_n_threads(n_threads);
}

// ---- the device

ggml_backend_dev_t cpu() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

const char *device_name(ggml_backend_dev_t device) { return device_of(device).kernels->name; }
const char *device_description(ggml_backend_dev_t) { return "embellama's kernels on the CPU"; }
void device_memory(ggml_backend_dev_t, size_t *free, size_t *total) { ggml_backend_dev_memory(cpu(), free, total); }
enum ggml_backend_dev_type device_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; }

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props *props) {
    ggml_backend_dev_get_props(cpu(), props);
    props->name = device_name(device);
    props->description = device_description(device);
    props->type = device_type(device);
}

ggml_backend_t init_backend(ggml_backend_dev_t device, const char *) {
    static const ggml_backend_i interface = [] {
        ggml_backend_i i{};
        i.get_name = backend_name;
        i.free = free_backend;
        i.graph_compute = graph_compute;
        return i;
    }();
    static ggml_guid guid = {'e', 'm', 'b', 'e', 'l', 'l', 'a', 'm', 'a', ' ', 'c', 'o', 'm', 'p', 'u', 't'};
    try {
        return new ggml_backend{&guid, interface, device, new Graph(*device_of(device).kernels)};
    } catch (const std::exception &) {
        return nullptr;
    }
}

// What is computed lies in ggml's own memory for the CPU, so that ggml may compute it too.
ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t) { return ggml_backend_cpu_buffer_type(); }

/// Packed weights are multiplied here, as a whole, or nowhere; whatever else ggml can compute on the CPU, it is given back to
/// compute.
bool supports_op(ggml_backend_dev_t, const ggml_tensor *op) {
    for (int i = 1; i < GGML_MAX_SRC; i++)
        if (op->src[i] && is_packed(op->src[i])) return false;
    if (op->src[0] && is_packed(op->src[0]))
        return op->op == GGML_OP_MUL_MAT && !op->src[0]->view_src && ggml_is_matrix(op->src[0]) && op->type == GGML_TYPE_F32 &&
               op->src[1]->type == GGML_TYPE_F32 && op->src[1]->nb[0] == 4 && ggml_is_contiguous(op);
    return ggml_backend_dev_supports_op(cpu(), op);
}

bool supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) {
    return type == &device_of(device).weights || ggml_backend_buft_is_host(type);
}

// ---- the registry's entry, which is asked for functions only: nothing is registered

const char *reg_name(ggml_backend_reg_t) { return "embellama"; }
size_t reg_count(ggml_backend_reg_t) { return 0; }
ggml_backend_dev_t reg_device(ggml_backend_reg_t, size_t) { return nullptr; }

void *reg_function(ggml_backend_reg_t, const char *name) {
    return strcmp(name, "ggml_backend_set_n_threads") == 0 ? reinterpret_cast<void *>(set_n_threads) : nullptr;
}

Device *find(const char *instruction_set) {
    static ggml_backend_reg reg = {GGML_BACKEND_API_VERSION, {reg_name, reg_count, reg_device, reg_function}, nullptr};
    constexpr size_t N = sizeof all_kernels / sizeof *all_kernels;
    static Device devices[N];
    static const bool made = [] {
        ggml_backend_device_i interface{};
        interface.get_name = device_name;
        interface.get_description = device_description;
        interface.get_memory = device_memory;
        interface.get_type = device_type;
        interface.get_props = device_props;
        interface.init_backend = init_backend;
        interface.get_buffer_type = buffer_type;
        interface.supports_op = supports_op;
        interface.supports_buft = supports_buft;
        for (size_t i = 0; i < N; i++) {
            devices[i].kernels = all_kernels[i];
            devices[i].device = {interface, &reg, &devices[i]};
            devices[i].weights = make_weights_type(*all_kernels[i], &devices[i].device);
        }
        return true;
    }();
    (void)made;
    for (auto &device : devices)
        if (strcmp(device.kernels->name, instruction_set) == 0 && device.kernels->usable()) return &device;
    return nullptr;
}

} // namespace
} // namespace embellama

using namespace embellama;

const char *embellama_compute_built_for(void) { return EMBELLAMA_BUILT_FOR; }

const char *embellama_compute_instruction_sets(void) {
    static const std::string names = [] {
        std::string names;
        for (const Kernels *kernels : all_kernels)
            if (kernels->usable()) names += (names.empty() ? "" : " ") + std::string(kernels->name);
        return names;
    }();
    return names.c_str();
}

ggml_backend_dev_t embellama_compute_device(const char *instruction_set) {
    Device *device = find(instruction_set);
    return device ? &device->device : nullptr;
}

ggml_backend_buffer_type_t embellama_compute_weights(const char *instruction_set) {
    Device *device = find(instruction_set);
    return device ? &device->weights : nullptr;
}
