// Teams of changing sizes, several at once, while ThreadSanitizer watches.

#include <thread>
#include <vector>

#include "../src/team.h"
#include "check.h"

using namespace embellama;

/// Every task is done once, and whoever calls sees what all threads wrote.
static void run_once(Team &team, int64_t n_tasks) {
    std::vector<int> done(n_tasks); // not atomic
    std::atomic<int> n_threads{0};
    team.run([&](std::atomic<int64_t> &next) {
        n_threads++;
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n_tasks;) done[i]++;
    });
    check(n_threads == team.size(), "%d threads take part, not %d", int(n_threads), team.size());
    for (int64_t i = 0; i < n_tasks; i++) check(done[i] == 1, "task %d is done %d times", int(i), done[i]);
}

/// Use teams, some for long, some for one call, with pauses in which helpers fall asleep.
static void use_teams(uint64_t seed) {
    Random random{seed};
    for (int team = 0; team < 15; team++) {
        Team one;
        const int n_runs = random.between(0, 60);
        for (int run = 0; run < n_runs; run++) {
            if (random.between(0, 3) == 0) one.resize(random.between(-1, 5));
            run_once(one, random.between(0, 40));
            if (random.between(0, 9) == 0) std::this_thread::sleep_for(std::chrono::microseconds(random.between(0, 2000)));
        }
        if (random.coin()) std::this_thread::sleep_for(std::chrono::milliseconds(2)); // ends while they sleep
    }
}

int main() {
    use_teams(1);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) threads.emplace_back(use_teams, 100 + i);
    for (auto &thread : threads) thread.join();
    puts("teams end");
}
