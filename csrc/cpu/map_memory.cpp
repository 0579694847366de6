#include "cpu/map_memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/accumulate.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <list>
#include <mutex>

namespace mobilevit::cpu {
namespace {

constexpr size_t kPage = size_t(4) << 10, kHugePage = size_t(2) << 20;
constexpr size_t kLargeMap = size_t(1) << 20;  // malloc keeps what is smaller
constexpr size_t kHugeMap = size_t(8) << 20;   // worth huge pages, the last one partly used
constexpr auto kLongIdle = std::chrono::seconds(60);

using Clock = std::chrono::steady_clock;

struct Block {
  void* data;
  size_t bytes;
  Clock::time_point idle_since = {};
};

// The pages go back to the system whatever malloc, which keeps some blocks of tens of megabytes, does with the
// addresses.
void release(const Block& block) {
#ifdef MADV_DONTNEED
  madvise(block.data, block.bytes, MADV_DONTNEED);
#endif
  std::free(block.data);
}

// Idle blocks, the longest idle first. With the blocks in use they are never more than were in use at once. Threads do
// not wait for each other, for one that was lost in a fork would never be done: who finds the list in use does without.
class IdleBlocks {
 public:
  // The smallest that is large enough without being much larger.
  Block take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    auto best = blocks_.end();
    for (auto block = blocks_.begin(); lock && block != blocks_.end(); ++block) {
      const bool fits = block->bytes >= bytes && block->bytes <= bytes + bytes / 2;
      if (fits && (best == blocks_.end() || block->bytes < best->bytes)) best = block;
    }
    if (best == blocks_.end()) return {nullptr, 0};
    const Block result = *best;
    idle_ -= result.bytes;
    used_ += result.bytes;
    blocks_.erase(best);
    return result;
  }

  // Before a new block, which counts as used from here on.
  void make_room(size_t bytes) {
    const size_t used = used_ += bytes;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    most_used_ = std::max(most_used_, used);
    shrink(most_used_ - used);
  }

  // After make_room, where the system had none.
  void forgo(size_t bytes) { used_ -= bytes; }

  void give(Block block) {
    used_ -= block.bytes;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return release(block);
    block.idle_since = Clock::now();
    blocks_.push_back(block);
    idle_ += block.bytes;
    while (block.idle_since - blocks_.front().idle_since > kLongIdle) release_first();
  }

  void release_all() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) shrink(0);
  }

 private:
  void shrink(size_t bytes) {
    while (idle_ > bytes) release_first();
  }
  void release_first() {
    idle_ -= blocks_.front().bytes;
    release(blocks_.front());
    blocks_.pop_front();
  }

  std::mutex mutex_;
  std::list<Block> blocks_;
  size_t idle_ = 0, most_used_ = 0;  // bytes
  std::atomic<size_t> used_ = 0;
};

// Never destroyed: a tensor may outlive every static object.
IdleBlocks& idle_blocks() {
  static auto* blocks = new IdleBlocks();
  return *blocks;
}

Block new_block(size_t bytes) {
  const size_t page = bytes < kHugeMap ? kPage : kHugePage;
  const size_t whole = (bytes + page - 1) / page * page;
  idle_blocks().make_room(whole);
  void* data = std::aligned_alloc(page, whole);
  if (data == nullptr) idle_blocks().forgo(whole);
  TORCH_CHECK_WITH(OutOfMemoryError, data != nullptr, "out of memory: a map of ", bytes, " bytes");
#ifdef MADV_HUGEPAGE
  if (page == kHugePage) madvise(data, whole, MADV_HUGEPAGE);
#endif
  return {data, whole};
}

}  // namespace

at::Tensor empty_map(at::IntArrayRef sizes, const at::TensorOptions& options) {
  const size_t bytes = c10::multiply_integers(sizes) * options.dtype().itemsize();
  if (bytes < kLargeMap) return at::empty(sizes, options.memory_format(at::MemoryFormat::ChannelsLast));
  Block block = idle_blocks().take(bytes);
  if (block.data == nullptr) block = new_block(bytes);
  const auto strides = c10::get_channels_last_strides_2d(sizes);
  return at::from_blob(
      block.data, sizes, strides, [block](void* /*data*/) { idle_blocks().give(block); },
      options.memory_format(std::nullopt));
}

void release_idle_maps() { idle_blocks().release_all(); }

}  // namespace mobilevit::cpu
