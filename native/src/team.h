// Threads that compute one operation together.

#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

namespace embellama {

/// The calling thread and its helpers, which sleep between calls.
///
/// A helper spins for about 20 microseconds before it sleeps: the operations of a layer follow each other faster than that,
/// and a helper that spun longer would take the place of somebody who has work.
class Team {
  public:
    using Work = std::function<void(std::atomic<int64_t> &next)>;

    Team() = default;
    Team(const Team &) = delete;
    ~Team();

    /// Set how many threads, the calling one included, take part in `run`.
    void resize(int n_threads) { n_threads_ = n_threads < 1 ? 1 : n_threads; }
    int size() const { return n_threads_; }

    /// Call `work` on each thread, with a counter that all of them share; return when every call has.
    /// An exception of one of them is thrown again then.
    void run(const Work &work);

  private:
    void help(int index, uint32_t seen);
    void attempt();

    int n_threads_ = 1;
    const pid_t pid_ = getpid();
    std::vector<std::thread> helpers_;
    const Work *work_ = nullptr;
    int n_helping_ = 0;
    bool ending_ = false;
    std::atomic_flag failed_ = ATOMIC_FLAG_INIT;
    std::exception_ptr failure_; // read when nobody works any more
    alignas(64) std::atomic<uint32_t> call_{0}; // counts calls of `run`; helpers sleep on it
    alignas(64) std::atomic<int> busy_{0};
    alignas(64) std::atomic<int> asleep_{0};
    alignas(64) std::atomic<int64_t> next_{0};
};

} // namespace embellama
