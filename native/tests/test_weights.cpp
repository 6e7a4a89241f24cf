// Weights in memory that processes share: who writes, who waits, who reads, and what is given back.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "embellama_compute.h"
#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml.h"

#include "../src/weights.h"
#include "check.h"

using namespace embellama;

static ggml_backend_buffer_type weights_type = make_weights_type(kernels_avx2, nullptr);

/// Two matrices as a process loads them.
struct Weights {
    ggml_context *context;
    ggml_tensor *first, *second;
    ggml_backend_buffer_t buffer;

    explicit Weights(int64_t n_outputs = 40) {
        context = ggml_init({ggml_tensor_overhead() * 2, nullptr, true});
        first = ggml_new_tensor_2d(context, GGML_TYPE_F32, 33, n_outputs);
        second = ggml_new_tensor_2d(context, GGML_TYPE_BF16, 70, 5);
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, &weights_type);
        check(buffer, "no memory for weights");
        check(is_packed(first) && is_packed(second), "weights lie elsewhere");
    }
    ~Weights() {
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }
    void load_first(float value) {
        const std::vector<float> numbers(ggml_nelements(first), value);
        ggml_backend_tensor_set(first, numbers.data(), 0, ggml_nbytes(first));
    }
    void load_second(float value) {
        const std::vector<uint16_t> halves(ggml_nelements(second), to_bf16(value));
        ggml_backend_tensor_set(second, halves.data(), 0, ggml_nbytes(second));
    }
    void load(float value) { load_first(value), load_second(value); }
    /// Whether they are what `load` would have packed.
    bool are(float value) const {
        auto *numbers = static_cast<const float *>(first->data);
        auto *halves = static_cast<const uint16_t *>(second->data);
        return numbers[0] == value && numbers[32 * PANEL + 7] == value && halves[0] == to_bf16(value) &&
               halves[70 * PANEL - PANEL + 4] == to_bf16(value) && halves[70 * PANEL - PANEL + 5] == 0;
    }
};

static int make_memory() {
    const int fd = memfd_create("weights", MFD_CLOEXEC);
    check(fd >= 0, "no memfd");
    return fd;
}

/// What stands for the model's file.
constexpr uint64_t KEY = 1;

/// Load as the library's callers do.
static void load(int fd, Weights *&weights, float value, int64_t n_outputs = 40, uint64_t key = KEY) {
    embellama_compute_share(fd, key);
    weights = new Weights(n_outputs);
    weights->load(value);
    embellama_compute_share(-1, 0);
}

/// Run something in another process, which must end well.
template <typename Body> static void in_another_process(Body body) {
    const pid_t child = fork();
    if (child == 0) {
        body();
        _exit(0);
    }
    int status;
    check(waitpid(child, &status, 0) == child && status == 0, "the other process ends with %d", status);
}

static int count_lines(const char *what) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4096];
    int n = 0;
    while (fgets(line, sizeof line, maps)) n += strstr(line, what) != nullptr;
    fclose(maps);
    return n;
}

static int count_files() {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void private_weights_are_packed() {
    Weights *weights;
    load(-1, weights, 3);
    check(weights->are(3), "private weights are wrong");
    check(count_lines("memfd:weights") == 0, "private weights are shared");
    delete weights;
}

static void the_second_process_uses_what_the_first_wrote() {
    const int fd = make_memory(), n_files = count_files();
    Weights *weights;
    load(fd, weights, 3);
    check(weights->are(3), "shared weights are wrong");
    in_another_process([&] {
        Weights *others;
        load(fd, others, 5); // what it would write is not looked at
        check(others->are(3), "the second process does not see what the first wrote");
        delete others;
        check(weights->are(3), "the first's memory is gone with the second's");
    });
    check(count_lines("memfd:weights") == 1, "the memory is mapped %d times", count_lines("memfd:weights"));
    delete weights;
    check(count_lines("memfd:weights") == 0 && count_files() == n_files, "something is not given back");
    load(fd, weights, 7); // the memory outlives its first user
    check(weights->are(3), "a third does not see what the first wrote");
    delete weights;
    close(fd);
}

static void the_second_waits_until_the_first_has_written() {
    const int fd = make_memory();
    int ready[2];
    check(pipe(ready) == 0, "no pipe");
    const pid_t child = fork();
    if (child == 0) {
        embellama_compute_share(fd, KEY);
        Weights weights;
        weights.load_first(3);
        check(write(ready[1], "x", 1) == 1, "no pipe");
        usleep(200000);
        weights.load_second(3);
        embellama_compute_share(-1, 0);
        _exit(0);
    }
    char x;
    check(read(ready[0], &x, 1) == 1, "no pipe");
    Weights *weights;
    load(fd, weights, 5);
    check(weights->are(3), "the second does not wait");
    delete weights;
    int status;
    check(waitpid(child, &status, 0) == child && status == 0, "the first ends with %d", status);
    close(fd), close(ready[0]), close(ready[1]);
}

static void the_second_writes_when_the_first_is_killed_half_way() {
    const int fd = make_memory();
    const pid_t child = fork();
    if (child == 0) {
        embellama_compute_share(fd, KEY);
        Weights weights;
        weights.load_first(3);
        raise(SIGKILL);
    }
    int status;
    check(waitpid(child, &status, 0) == child && WIFSIGNALED(status), "the first is not killed");
    Weights *weights;
    load(fd, weights, 5);
    check(weights->are(5), "the second does not write all");
    in_another_process([&] {
        Weights *others;
        load(fd, others, 7);
        check(others->are(5), "the third does not see what the second wrote");
    });
    delete weights;
    close(fd);
}

static void the_second_does_not_wait_for_a_first_that_is_stopped() {
    const int fd = make_memory();
    const pid_t child = fork();
    if (child == 0) {
        embellama_compute_share(fd, KEY);
        Weights weights;
        weights.load_first(3);
        raise(SIGSTOP);
    }
    int status;
    check(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status), "the first is not stopped");
    Weights *weights;
    load(fd, weights, 5);
    check(weights->are(5), "the second does not write weights of its own");
    delete weights;
    kill(child, SIGKILL);
    check(waitpid(child, &status, 0) == child, "the first is not killed");
    close(fd);
}

static void a_load_that_fails_leaves_the_memory_to_the_next() {
    const int fd = make_memory(), n_files = count_files();
    embellama_compute_share(fd, KEY);
    {
        Weights weights;
        weights.load_first(3);
    }
    embellama_compute_share(-1, 0);
    check(count_files() == n_files, "a file stays open");
    Weights *weights;
    load(fd, weights, 5);
    check(weights->are(5), "what a failed load wrote is used");
    delete weights;
    close(fd);
}

static void another_models_memory_is_not_used() {
    const int fd = make_memory();
    Weights *weights, *others, *larger, *changed;
    load(fd, weights, 3);
    load(fd, others, 5, 8);
    load(fd, larger, 7, 400);
    load(fd, changed, 9, 40, KEY + 1); // the same model, whose file was replaced
    check(weights->are(3) && others->are(5) && larger->are(7) && changed->are(9), "models share weights that differ");
    check(count_lines("memfd:weights") == 1, "the memory is mapped %d times", count_lines("memfd:weights"));
    delete others;
    delete larger, delete changed;
    check(weights->are(3), "the first model's weights change");
    delete weights;
    close(fd);
}

static void what_is_no_memory_is_not_used() {
    int ends[2];
    check(pipe(ends) == 0, "no pipe");
    for (int fd : {ends[0], 255}) {
        Weights *weights;
        load(fd, weights, 3);
        check(weights->are(3), "weights are wrong");
        delete weights;
    }
    close(ends[0]), close(ends[1]);
}

int main() {
    private_weights_are_packed();
    the_second_process_uses_what_the_first_wrote();
    the_second_waits_until_the_first_has_written();
    the_second_writes_when_the_first_is_killed_half_way();
    the_second_does_not_wait_for_a_first_that_is_stopped();
    a_load_that_fails_leaves_the_memory_to_the_next();
    another_models_memory_is_not_used();
    what_is_no_memory_is_not_used();
    puts("weights are shared");
}
