#include "team.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <immintrin.h>

#include <utility>

namespace embellama {

static constexpr int SPINS = 500; // a pause takes some 40 cycles

static void sleep_on(std::atomic<uint32_t> &word, uint32_t value) {
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

static void wake_all(std::atomic<uint32_t> &word) {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}

Team::~Team() {
    ending_ = true;
    call_.fetch_add(1);
    wake_all(call_);
    for (auto &helper : helpers_) {
        if (getpid() == pid_)
            helper.join();
        else
            helper.detach(); // threads are not forked
    }
}

void Team::run(const Work &work) {
    next_.store(0, std::memory_order_relaxed);
    if (n_threads_ == 1) return work(next_);
    while (int(helpers_.size()) < n_threads_ - 1) {
        const int index = helpers_.size();
        helpers_.emplace_back([this, index, seen = call_.load()] { help(index, seen); });
    }
    work_ = &work;
    failed_.clear();
    n_helping_ = n_threads_ - 1;
    busy_.store(int(helpers_.size())); // all of them look at the call, if only to see that it is not theirs
    call_.fetch_add(1);
    if (asleep_.load() > 0) wake_all(call_);
    attempt();
    for (int spins = 0; busy_.load(std::memory_order_acquire) > 0; spins++) {
        if (spins < SPINS)
            _mm_pause();
        else
            std::this_thread::yield();
    }
    if (const std::exception_ptr failure = std::exchange(failure_, nullptr)) std::rethrow_exception(failure);
}

/// Work, and keep the first exception for the calling thread: the others are still working with what it holds.
void Team::attempt() {
    try {
        (*work_)(next_);
    } catch (...) {
        if (!failed_.test_and_set()) failure_ = std::current_exception();
    }
}

void Team::help(int index, uint32_t seen) {
    for (;;) {
        for (int spins = 0; call_.load(std::memory_order_acquire) == seen; spins++) {
            if (spins < SPINS) {
                _mm_pause();
                continue;
            }
            asleep_.fetch_add(1);
            sleep_on(call_, seen); // returns at once if `call_` has changed already
            asleep_.fetch_sub(1);
        }
        seen++;
        if (ending_) return;
        if (index < n_helping_) attempt();
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

} // namespace embellama
