// The library as llama.cpp has it: loaded into a process with ggml, its device before the CPU in ggml's scheduler.

#include <dlfcn.h>

#include <cmath>
#include <vector>

#include "embellama_compute.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include "check.h"

template <typename Function> static Function *find(void *library, const char *name) {
    void *function = dlsym(library, name);
    check(function, "%s is missing", name);
    return reinterpret_cast<Function *>(function);
}
#define FIND(name) find<decltype(name)>(library, #name)

constexpr int64_t N = 48, N_ROWS = 20;

/// Compute a chain, and a product of the result's transpose that only the CPU may compute.
static std::vector<float> compute(std::vector<ggml_backend_t> backends, ggml_backend_buffer_type_t weights_type) {
    ggml_context *weights = ggml_init({ggml_tensor_overhead() * 8, nullptr, true});
    ggml_context *context = ggml_init({ggml_tensor_overhead() * 64 + ggml_graph_overhead(), nullptr, true});
    ggml_tensor *matrix = ggml_new_tensor_2d(weights, GGML_TYPE_F32, N, N);
    ggml_tensor *x = ggml_new_tensor_2d(context, GGML_TYPE_F32, N, N_ROWS);
    ggml_set_input(x);
    ggml_tensor *t = ggml_add(context, ggml_gelu(context, ggml_mul_mat(context, matrix, x)), x);
    t = ggml_rms_norm(context, ggml_tanh(context, t), 1e-5f);
    t = ggml_mul_mat(context, t, ggml_mul_mat(context, matrix, t));
    ggml_set_output(t);
    ggml_cgraph *graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, t);

    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(weights, weights_type);
    if (!ggml_backend_buft_is_host(weights_type)) { // packed weights are for products alone
        ggml_tensor *rows = ggml_new_tensor_1d(context, GGML_TYPE_I32, 3);
        ggml_tensor *part = ggml_view_2d(context, matrix, N, 16, N * sizeof(float), 0);
        for (ggml_tensor *op : {ggml_get_rows(context, matrix, rows), ggml_mul_mat(context, x, matrix), part,
                                ggml_cont(context, matrix), ggml_mul_mat(context, part, x), ggml_mul_mat(context, x, part)})
            check(!ggml_backend_supports_op(backends[0], op), "%s of packed weights is claimed", ggml_op_desc(op));
    }
    std::vector<ggml_backend_buffer_type_t> types;
    for (ggml_backend_t backend : backends) types.push_back(ggml_backend_get_default_buffer_type(backend));
    ggml_backend_sched_t scheduler =
        ggml_backend_sched_new(backends.data(), types.data(), int(backends.size()), 64, false, true);
    std::vector<float> result(ggml_nelements(t));
    for (int run = 0; run < 2; run++) {
        check(ggml_backend_sched_alloc_graph(scheduler, graph), "the graph can't be allocated");
        Random random{3};
        for (ggml_tensor *input : {matrix, x}) {
            std::vector<float> numbers(ggml_nelements(input));
            for (float &number : numbers) number = random.uniform();
            if (input == x || run == 0) ggml_backend_tensor_set(input, numbers.data(), 0, ggml_nbytes(input));
        }
        check(ggml_backend_sched_graph_compute(scheduler, graph) == GGML_STATUS_SUCCESS, "the graph fails");
        check(backends.size() == 1 || ggml_backend_sched_get_n_splits(scheduler) == 1, "the graph is split");
        ggml_backend_tensor_get(t, result.data(), 0, ggml_nbytes(t));
        ggml_backend_sched_reset(scheduler);
    }
    ggml_backend_sched_free(scheduler);
    ggml_backend_buffer_free(buffer);
    ggml_free(context), ggml_free(weights);
    return result;
}

int main(int, char **arguments) {
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    check(library, "%s", dlerror());
    check(strstr(FIND(embellama_compute_built_for)(), ggml_version()), "it is built for %s, not ggml %s",
          FIND(embellama_compute_built_for)(), ggml_version());
    check(strstr(FIND(embellama_compute_instruction_sets)(), "avx2"), "it can't use AVX2");
    check(!FIND(embellama_compute_device)("none") && !FIND(embellama_compute_weights)("none"), "there is a device \"none\"");
    for (size_t i = 0; i < ggml_backend_dev_count(); i++)
        check(strcmp(ggml_backend_dev_name(ggml_backend_dev_get(i)), "avx2") != 0, "the device is registered");

    ggml_backend_dev_t device = FIND(embellama_compute_device)("avx2");
    ggml_backend_buffer_type_t weights = FIND(embellama_compute_weights)("avx2");
    ggml_backend_t ours = ggml_backend_dev_init(device, nullptr);
    ggml_backend_t cpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    ggml_backend_cpu_set_n_threads(cpu, 1);
    auto *set_n_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
    check(set_n_threads, "its threads can't be set");

    const auto want = compute({cpu}, ggml_backend_cpu_buffer_type());
    for (int n_threads : {1, 3}) {
        set_n_threads(ours, n_threads);
        for (ggml_backend_buffer_type_t type : {weights, ggml_backend_cpu_buffer_type()}) {
            const auto got = compute({ours, cpu}, type);
            for (size_t i = 0; i < want.size(); i++)
                check(std::fabs(got[i] - want[i]) < 1e-2 * (3 + std::fabs(want[i])), "%g, not %g", got[i], want[i]);
        }
    }
    embellama_compute_counts counts;
    FIND(embellama_compute_count)(&counts);
    check(counts.products == 8, "%d products, not 8", int(counts.products)); // 2 graphs of 2, run twice
    ggml_backend_free(ours), ggml_backend_free(cpu);
    puts("the device computes");
}
