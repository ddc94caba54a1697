#pragma once
// CUDA's built-ins for g++, so that csrc/cuda runs on the CPU, unchanged. A CUDA thread is a fiber that runs
// until it has to wait for others; the fibers of a cluster take turns, clusters run one after the other. What
// a kernel may not rely on varies or fails:
//
// * threads run in ascending or descending order; background copies happen at once or as late as they may,
//   and what they will overwrite is NaN until then;
// * shared memory starts as NaN, and the bytes around it must not change;
// * a barrier or a shuffle that not all threads reach, a block that reaches into one that may not have
//   started or has ended, and copies never waited for, end the launch with a message.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define __device__
#define __global__
#define __host__
#define __launch_bounds__(...)

using std::min;

namespace shim {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 128 << 10, kGuard = 64;
constexpr unsigned char kPoison = 0xff, kGuardByte = 0xa5;  // 0xff...: a NaN in every floating type

struct Schedule {
  bool descending, late_copies;
};

// Threads wait until `expected` of them have arrived.
struct Barrier {
  unsigned expected = kWarp, arrived = 0, phase = 0;

  unsigned arrive() {
    const unsigned mine = phase;
    if (++arrived == expected) arrived = 0, ++phase;
    return mine;
  }
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Warp {
  Barrier barrier;
  uint32_t words[2][kWarp];  // of shuffles, in turns
};

struct Block {
  unsigned index, rank, running;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<unsigned char> memory;  // guard, shared memory, guard
  unsigned char* shared;
};

struct Thread {
  unsigned index;
  Block* block;
  ucontext_t start;  // on its own stack
  jmp_buf paused;
  bool started = false, done = false;
  const Barrier* waits_for = nullptr;
  unsigned phase = 0;        // of that barrier
  unsigned shuffles = 0;     // so far
  int cluster_arrival = -1;  // phase of the cluster's barrier where it arrived and has not waited
  std::vector<std::vector<Copy>> copies{1};  // in groups; the last one is open
};

struct Launch {
  unsigned blocks, threads, cluster;
  size_t shared_bytes;
  Schedule schedule;
  std::function<void()> body;
  Barrier cluster_barrier;
  std::vector<Block> cluster_blocks;
  std::vector<std::unique_ptr<Thread>> fibers;
  jmp_buf scheduler;
  std::string error;
};

inline Launch* launch = nullptr;
inline Thread* current = nullptr;

// Back to the scheduler, and from it to a thread. Contexts only start threads: unlike a jump, changing
// between them is a system call.
inline void pause() {
  if (_setjmp(current->paused) == 0) _longjmp(launch->scheduler, 1);
}
inline void resume(Thread& thread) {
  current = &thread;
  if (_setjmp(launch->scheduler) != 0) return;
  if (thread.started) _longjmp(thread.paused, 1);
  thread.started = true;
  setcontext(&thread.start);
}

[[noreturn]] inline void fail(const std::string& why) {
  launch->error = "block " + std::to_string(current->block->index) + ", thread " +
                  std::to_string(current->index) + " " + why;
  pause();
  std::abort();  // it is not resumed
}

inline void wait(const Barrier& barrier, unsigned phase) {
  if (barrier.phase != phase) return;
  current->waits_for = &barrier, current->phase = phase;
  pause();
  current->waits_for = nullptr;
}

inline void arrive_and_wait(Barrier& barrier) { wait(barrier, barrier.arrive()); }

inline unsigned lane() { return current->index % kWarp; }
inline Warp& warp() { return current->block->warps[current->index / kWarp]; }

// The words that the lanes of this warp give.
inline const uint32_t* exchange(unsigned mask, uint32_t word) {
  if (mask != 0xffffffffu) fail("shuffles with a part of its warp");
  uint32_t* words = warp().words[current->shuffles++ % 2];
  words[lane()] = word;
  arrive_and_wait(warp().barrier);
  return words;
}

inline void run_copies(std::vector<Copy>& group) {
  for (const Copy& copy : group) std::memcpy(copy.to, copy.from, copy.bytes);
  group.clear();
}

inline void run_thread() {
  launch->body();
  if (current->cluster_arrival >= 0) fail("arrived at the cluster's barrier and did not wait there");
  for (const auto& group : current->copies) {
    if (!group.empty()) fail("did not wait for its copies");
  }
  --current->block->running;
  current->done = true;
  pause();
}

inline void add_block(unsigned index, unsigned rank, std::vector<std::vector<char>>& stacks) {
  Block& block = launch->cluster_blocks[rank];
  const unsigned threads = launch->threads;
  block.index = index, block.rank = rank, block.running = block.barrier.expected = threads;
  block.warps.resize(threads / kWarp);
  block.memory.assign(launch->shared_bytes + 2 * kGuard + 16, kGuardByte);
  block.shared = block.memory.data() + kGuard;
  block.shared += (16 - reinterpret_cast<uintptr_t>(block.shared) % 16) % 16;
  std::memset(block.shared, kPoison, launch->shared_bytes);
  for (unsigned i = 0; i < threads; ++i) {
    launch->fibers.push_back(std::make_unique<Thread>());
    Thread& thread = *launch->fibers.back();
    thread.index = i, thread.block = &block;
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = stacks[rank * threads + i].data();
    thread.start.uc_stack.ss_size = kStack;
    makecontext(&thread.start, run_thread, 0);
  }
}

inline bool guards_hold(const Block& block) {
  const unsigned char *begin = block.memory.data(), *end = begin + block.memory.size();
  const auto holds = [](unsigned char byte) { return byte == kGuardByte; };
  return std::all_of(begin, static_cast<const unsigned char*>(block.shared), holds) &&
         std::all_of(static_cast<const unsigned char*>(block.shared) + launch->shared_bytes, end, holds);
}

inline std::string run_cluster() {
  const size_t count = launch->fibers.size();
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t i = 0; i < count; ++i) {
      Thread& thread = *launch->fibers[launch->schedule.descending ? count - 1 - i : i];
      if (thread.done || (thread.waits_for && thread.waits_for->phase == thread.phase)) continue;
      progress = true;
      resume(thread);
      if (!launch->error.empty()) return launch->error;
    }
  }
  for (const Block& block : launch->cluster_blocks) {
    if (block.running > 0) return "not all threads reached a barrier or a shuffle";
    if (!guards_hold(block)) return "a write outside of shared memory";
  }
  return "";
}

// Runs body() as every thread of the grid; gives what went wrong, or "".
inline std::string run(unsigned blocks, unsigned threads, unsigned cluster, size_t shared_bytes,
                       Schedule schedule, const std::function<void()>& body) {
  if (blocks % cluster != 0 || threads % kWarp != 0)
    return "blocks not in whole clusters, threads not in warps";
  static std::vector<std::vector<char>> stacks;
  while (stacks.size() < cluster * threads) stacks.emplace_back(kStack);
  for (unsigned first = 0; first < blocks; first += cluster) {
    Launch mine{blocks, threads, cluster, shared_bytes, schedule, body, {}, {}, {}, {}, {}};
    launch = &mine;
    mine.cluster_barrier.expected = cluster * threads;
    mine.cluster_blocks.resize(cluster);
    for (unsigned rank = 0; rank < cluster; ++rank) add_block(first + rank, rank, stacks);
    const std::string error = run_cluster();
    if (!error.empty()) return error;
  }
  return "";
}

// A built-in variable: its x is read wherever it is used.
template <unsigned (*get)()>
struct BuiltIn {
  struct {
    operator unsigned() const { return get(); }
  } x;
};

inline unsigned thread_index() { return current->index; }
inline unsigned block_index() { return current->block->index; }
inline unsigned threads() { return launch->threads; }
inline unsigned blocks() { return launch->blocks; }

}  // namespace shim

constexpr shim::BuiltIn<shim::thread_index> threadIdx{};
constexpr shim::BuiltIn<shim::block_index> blockIdx{};
constexpr shim::BuiltIn<shim::threads> blockDim{};
constexpr shim::BuiltIn<shim::blocks> gridDim{};

inline void* __dynamic_shared_memory() { return shim::current->block->shared; }

inline void __syncthreads() { shim::arrive_and_wait(shim::current->block->barrier); }
inline void __syncwarp() { shim::arrive_and_wait(shim::warp().barrier); }

inline uint32_t __shfl_xor_sync(unsigned mask, uint32_t word, int lanes) {
  return shim::exchange(mask, word)[shim::lane() ^ static_cast<unsigned>(lanes)];
}
inline uint32_t __shfl_up_sync(unsigned mask, uint32_t word, unsigned distance) {
  return shim::exchange(mask, word)[shim::lane() < distance ? shim::lane() : shim::lane() - distance];
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint32_t* words = shim::exchange(mask, predicate);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < shim::kWarp; ++lane) ballot |= words[lane] << lane;
  return ballot;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline float __fdividef(float a, float b) { return a / b; }

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes)
    shim::fail("copies misaligned");
  std::memset(to, shim::kPoison, bytes);
  auto& group = shim::current->copies.back();
  group.push_back({to, from, bytes});
  if (!shim::launch->schedule.late_copies) shim::run_copies(group);
}
inline void __pipeline_commit() { shim::current->copies.emplace_back(); }
inline void __pipeline_wait_prior(size_t pending) {
  auto& groups = shim::current->copies;
  for (size_t i = 0; i + pending + 1 < groups.size(); ++i) shim::run_copies(groups[i]);
}

inline unsigned __clusterSizeInBlocks() { return shim::launch->cluster; }
inline unsigned __clusterRelativeBlockRank() { return shim::current->block->rank; }
inline auto __clusterIdx() {
  struct {
    unsigned x;
  } index{shim::current->block->index / shim::launch->cluster};
  return index;
}
inline void __cluster_barrier_arrive() {
  if (shim::current->cluster_arrival >= 0) shim::fail("arrived at the cluster's barrier twice");
  shim::current->cluster_arrival = static_cast<int>(shim::launch->cluster_barrier.arrive());
}
inline void __cluster_barrier_arrive_relaxed() { __cluster_barrier_arrive(); }
inline void __cluster_barrier_wait() {
  if (shim::current->cluster_arrival < 0) shim::fail("waits at the cluster's barrier without having arrived");
  shim::wait(shim::launch->cluster_barrier, static_cast<unsigned>(shim::current->cluster_arrival));
  shim::current->cluster_arrival = -1;
}
inline void* __cluster_map_shared_rank(const void* shared, unsigned rank) {
  const shim::Block& other = shim::launch->cluster_blocks.at(rank);
  if (shim::launch->cluster_barrier.phase == 0) shim::fail("reaches into a block that may not have started");
  if (other.running == 0) shim::fail("reaches into a block that may have ended");
  return other.shared + (static_cast<const unsigned char*>(shared) - shim::current->block->shared);
}
