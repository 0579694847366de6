// Attention among the tokens of one pixel position, read and written in place on the NHWC map.
//
// Queries lie on the vector lanes: scores are kept transposed, [keys, queries], so that softmax is a reduction over
// rows and head_dim is never a vector dimension (no padding for head_dim 20, 30, 36, ...).
#include "cpu/unfold_attn_fold_kernel.h"

#include "cpu/gemm.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <limits>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kKeyBlock = 256;  // keys whose scores for one panel of queries stay in L1
constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
constexpr double kFlopsPerChunk = 2e6;  // work below which a second thread costs more than it saves

// One (sample, pixel position, head).
struct Task {
  int64_t b, p, head;

  Task(const AttnShape& shape, int64_t index)
      : b(index / (shape.grid.positions() * shape.heads)),
        p(index / shape.heads % shape.grid.positions()),
        head(index % shape.heads) {}
  int64_t stats_offset(const AttnShape& shape) const {
    return ((b * shape.grid.positions() + p) * shape.heads + head) * shape.grid.tokens();
  }
  // part: 0 query, 1 key, 2 value.
  TokenSlice qkv(const AttnShape& shape, const MapView& map, int64_t part) const {
    return {shape.grid, map, b, p, (part * shape.heads + head) * shape.head_dim, shape.head_dim};
  }
  TokenSlice out(const AttnShape& shape, const MapView& map) const {
    return {shape.grid, map, b, p, head * shape.head_dim, shape.head_dim};
  }
};

int64_t task_count(const AttnShape& shape) {
  return shape.grid.batch * shape.grid.positions() * shape.heads;
}

int64_t grain_size(const AttnShape& shape, int64_t products) {
  const double tokens = static_cast<double>(shape.grid.tokens());
  const double flops = 2.0 * products * tokens * tokens * shape.head_dim;
  return std::max<int64_t>(1, static_cast<int64_t>(kFlopsPerChunk / flops));
}

// Softmax of a block of scores [keys, lanes] over the keys, online: replaces the scores by 2**(score - maximum),
// updates maximum and sum, and scales what was accumulated so far (accumulated [head_dim, lanes]).
template <typename A>
void online_softmax(
    int64_t keys, int64_t lanes, A* scores, A* maximum, A* sum, bool first, int64_t head_dim, A* accumulated) {
  constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();
  for (int64_t lane = 0; lane < lanes; lane += Vec<A>::size()) {
    Vec<A> block_maximum(kMinusInfinity);
    for (int64_t k = 0; k < keys; ++k) {
      block_maximum = at::vec::maximum(block_maximum, Vec<A>::loadu(scores + k * kPanel<A> + lane));
    }
    const Vec<A> old_maximum = first ? Vec<A>(kMinusInfinity) : Vec<A>::loadu(maximum + lane);
    Vec<A> new_maximum = at::vec::maximum(old_maximum, block_maximum);
    // A lane without a score above -inf yet must stay at sum 0 rather than turn NaN.
    const Vec<A> origin =
        Vec<A>::blendv(new_maximum, Vec<A>(0), new_maximum == Vec<A>(kMinusInfinity));
    Vec<A> block_sum(0);
    for (int64_t k = 0; k < keys; ++k) {
      A* row = scores + k * kPanel<A> + lane;
      const Vec<A> probability = exp2_nonpositive<A>(Vec<A>::loadu(row) - origin);
      probability.store(row);
      block_sum = block_sum + probability;
    }
    new_maximum.store(maximum + lane);
    if (first) {
      block_sum.store(sum + lane);
      continue;
    }
    const Vec<A> decay = exp2_nonpositive<A>(old_maximum - origin);
    at::vec::fmadd(Vec<A>::loadu(sum + lane), decay, block_sum).store(sum + lane);
    for (int64_t c = 0; c < head_dim; ++c) {
      A* row = accumulated + c * kPanel<A> + lane;
      (Vec<A>::loadu(row) * decay).store(row);
    }
  }
}

template <typename T>
class Forward {
  using A = acc_t<T>;

 public:
  explicit Forward(const AttnForward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        workspace_(workspace_size()),
        keys_(workspace_.take(tokens_ * dim_)),
        values_(workspace_.take(tokens_ * dim_)),
        scores_(workspace_.take(key_block() * kPanel<A>)),
        query_(workspace_.take(dim_ * kPanel<A>)),
        result_(workspace_.take(dim_ * kPanel<A>)),
        rows_(workspace_.take(dim_ * kPanel<A>)),
        maximum_(workspace_.take(kPanel<A>)),
        sum_(workspace_.take(kPanel<A>)) {}

  void run(const Task& task) {
    load_tokens<T>(task.qkv(args_.shape, args_.qkv, 1), 0, tokens_, keys_, dim_);
    load_tokens<T>(task.qkv(args_.shape, args_.qkv, 2), 0, tokens_, values_, dim_);
    for (int64_t first = 0; first < tokens_; first += kPanel<A>) {
      attend(task, first, std::min(kPanel<A>, tokens_ - first));
    }
  }

 private:
  int64_t key_block() const { return std::min(tokens_, kKeyBlock); }

  int64_t workspace_size() const {
    const auto padded = Workspace<A>::padded;
    return 2 * padded(tokens_ * dim_) + padded(key_block() * kPanel<A>) + 3 * padded(dim_ * kPanel<A>) +
        2 * padded(kPanel<A>);
  }

  // Queries [first, first + count) against all keys.
  void attend(const Task& task, int64_t first, int64_t count) {
    const int64_t lanes = round_up(count, Vec<A>::size());
    load_tokens<T>(task.qkv(args_.shape, args_.qkv, 0), first, count, rows_, dim_);
    rows_to_lanes(rows_, dim_, count, dim_, query_, kPanel<A>, static_cast<A>(args_.shape.scale * kLog2E));
    for (int64_t key = 0; key < tokens_; key += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, tokens_ - key);
      const StridedMatrix<A> key_rows{keys_ + key * dim_, dim_, 1};  // [keys, head_dim]
      gemm(keys, lanes, dim_, key_rows, query_, kPanel<A>, scores_, kPanel<A>, Overwrite());
      online_softmax(keys, lanes, scores_, maximum_, sum_, key == 0, dim_, result_);
      const StridedMatrix<A> value_columns{values_ + key * dim_, 1, dim_};  // [head_dim, keys]
      if (key == 0) {
        gemm(dim_, lanes, keys, value_columns, scores_, kPanel<A>, result_, kPanel<A>, Overwrite());
      } else {
        gemm(dim_, lanes, keys, value_columns, scores_, kPanel<A>, result_, kPanel<A>, Accumulate());
      }
    }
    finish(task, first, count, lanes);
  }

  // Divides by the sums, stores the output rows and the logsumexp.
  void finish(const Task& task, int64_t first, int64_t count, int64_t lanes) {
    A* logsumexp = static_cast<A*>(args_.logsumexp) + task.stats_offset(args_.shape) + first;
    for (int64_t lane = 0; lane < lanes; lane += Vec<A>::size()) {
      const Vec<A> sum = Vec<A>::loadu(sum_ + lane);
      const Vec<A> inverse = Vec<A>(1) / sum;
      for (int64_t c = 0; c < dim_; ++c) {
        A* row = result_ + c * kPanel<A> + lane;
        (Vec<A>::loadu(row) * inverse).store(row);
      }
      const Vec<A> log2_total = Vec<A>::loadu(maximum_ + lane) + sum.log2();
      const int stored = static_cast<int>(std::min<int64_t>(Vec<A>::size(), count - lane));
      (log2_total * Vec<A>(static_cast<A>(kLn2))).store(logsumexp + lane, stored);
    }
    transpose(result_, kPanel<A>, rows_, dim_, dim_, count);
    store_tokens<T>(task.out(args_.shape, args_.out), first, count, rows_, dim_);
  }

  const AttnForward& args_;
  int64_t tokens_, dim_;
  Workspace<A> workspace_;
  A *keys_, *values_;    // [tokens, head_dim]
  A* scores_;            // [key block, panel]
  A *query_, *result_;   // [head_dim, panel]
  A* rows_;              // [panel, head_dim]
  A *maximum_, *sum_;    // [panel], of the scores in units of log 2
};

template <typename T>
class Backward {
  using A = acc_t<T>;

 public:
  explicit Backward(const AttnBackward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        padded_dim_(round_up(dim_, Vec<A>::size())),
        workspace_(workspace_size()),
        keys_(workspace_.take(tokens_ * dim_)),
        values_(workspace_.take(tokens_ * dim_)),
        grad_keys_(workspace_.take(tokens_ * padded_dim_)),
        grad_values_(workspace_.take(tokens_ * padded_dim_)),
        probabilities_(workspace_.take(key_block() * kPanel<A>)),
        grad_scores_(workspace_.take(key_block() * kPanel<A>)),
        query_rows_(workspace_.take(kPanel<A> * padded_dim_)),
        grad_out_rows_(workspace_.take(kPanel<A> * padded_dim_)),
        out_rows_(workspace_.take(kPanel<A> * padded_dim_)),
        query_(workspace_.take(dim_ * kPanel<A>)),
        grad_out_(workspace_.take(dim_ * kPanel<A>)),
        grad_query_(workspace_.take(dim_ * kPanel<A>)),
        logsumexp_(workspace_.take(kPanel<A>)),
        delta_(workspace_.take(kPanel<A>)) {
    // The columns past head_dim take part in products: they must be numbers.
    std::fill_n(query_rows_, kPanel<A> * padded_dim_, A(0));
    std::fill_n(grad_out_rows_, kPanel<A> * padded_dim_, A(0));
  }

  void run(const Task& task) {
    load_tokens<T>(task.qkv(args_.shape, args_.qkv, 1), 0, tokens_, keys_, dim_);
    load_tokens<T>(task.qkv(args_.shape, args_.qkv, 2), 0, tokens_, values_, dim_);
    std::fill_n(grad_keys_, tokens_ * padded_dim_, A(0));
    std::fill_n(grad_values_, tokens_ * padded_dim_, A(0));
    for (int64_t first = 0; first < tokens_; first += kPanel<A>) {
      const int64_t count = std::min(kPanel<A>, tokens_ - first);
      load_queries(task, first, count);
      for (int64_t key = 0; key < tokens_; key += kKeyBlock) {
        accumulate(key, std::min(kKeyBlock, tokens_ - key), count);
      }
      store_grad_query(task, first, count);
    }
    store_tokens<T>(task.qkv(args_.shape, args_.grad_qkv, 1), 0, tokens_, grad_keys_, padded_dim_);
    store_tokens<T>(task.qkv(args_.shape, args_.grad_qkv, 2), 0, tokens_, grad_values_, padded_dim_);
  }

 private:
  int64_t key_block() const { return std::min(tokens_, kKeyBlock); }

  int64_t workspace_size() const {
    const auto padded = Workspace<A>::padded;
    return 2 * padded(tokens_ * dim_) + 2 * padded(tokens_ * padded_dim_) +
        2 * padded(key_block() * kPanel<A>) + 3 * padded(kPanel<A> * padded_dim_) +
        3 * padded(dim_ * kPanel<A>) + 2 * padded(kPanel<A>);
  }

  // Queries and output gradients of a panel, both as rows and as lanes, with logsumexp and delta = out . grad_out.
  void load_queries(const Task& task, int64_t first, int64_t count) {
    const AttnShape& shape = args_.shape;
    load_tokens<T>(task.qkv(shape, args_.qkv, 0), first, count, query_rows_, padded_dim_);
    load_tokens<T>(task.out(shape, args_.grad_out), first, count, grad_out_rows_, padded_dim_);
    load_tokens<T>(task.out(shape, args_.out), first, count, out_rows_, padded_dim_);
    rows_to_lanes(
        query_rows_, padded_dim_, count, dim_, query_, kPanel<A>, static_cast<A>(shape.scale * kLog2E));
    rows_to_lanes(grad_out_rows_, padded_dim_, count, dim_, grad_out_, kPanel<A>, A(1));
    std::fill_n(grad_query_, dim_ * kPanel<A>, A(0));
    std::fill_n(logsumexp_, kPanel<A>, A(0));
    std::fill_n(delta_, kPanel<A>, A(0));
    const A* logsumexp = static_cast<const A*>(args_.logsumexp) + task.stats_offset(shape) + first;
    for (int64_t i = 0; i < count; ++i) {
      logsumexp_[i] = logsumexp[i] * static_cast<A>(kLog2E);
      delta_[i] = dot(out_rows_ + i * padded_dim_, grad_out_rows_ + i * padded_dim_, dim_);
    }
  }

  // One block of keys against the loaded panel of queries.
  void accumulate(int64_t key, int64_t keys, int64_t count) {
    const int64_t lanes = round_up(count, Vec<A>::size());
    const StridedMatrix<A> key_rows{keys_ + key * dim_, dim_, 1};      // [keys, head_dim]
    const StridedMatrix<A> value_rows{values_ + key * dim_, dim_, 1};  // [keys, head_dim]
    gemm(keys, lanes, dim_, key_rows, query_, kPanel<A>, probabilities_, kPanel<A>, Overwrite());
    gemm(keys, lanes, dim_, value_rows, grad_out_, kPanel<A>, grad_scores_, kPanel<A>, Overwrite());
    softmax_backward(keys, lanes);
    const StridedMatrix<A> key_columns{keys_ + key * dim_, 1, dim_};  // [head_dim, keys]
    gemm(dim_, lanes, keys, key_columns, grad_scores_, kPanel<A>, grad_query_, kPanel<A>, Accumulate());
    const StridedMatrix<A> probabilities{probabilities_, kPanel<A>, 1};  // [keys, queries]
    const StridedMatrix<A> grad_scores{grad_scores_, kPanel<A>, 1};      // [keys, queries]
    gemm(
        keys, padded_dim_, count, probabilities, grad_out_rows_, padded_dim_, grad_values_ + key * padded_dim_,
        padded_dim_, Accumulate());
    gemm(
        keys, padded_dim_, count, grad_scores, query_rows_, padded_dim_, grad_keys_ + key * padded_dim_,
        padded_dim_, Accumulate());
  }

  // probabilities = 2**(scores - logsumexp); grad_scores = scale * probabilities * (grad_probabilities - delta).
  void softmax_backward(int64_t keys, int64_t lanes) {
    const Vec<A> scale(static_cast<A>(args_.shape.scale));
    for (int64_t lane = 0; lane < lanes; lane += Vec<A>::size()) {
      const Vec<A> logsumexp = Vec<A>::loadu(logsumexp_ + lane), delta = Vec<A>::loadu(delta_ + lane);
      for (int64_t k = 0; k < keys; ++k) {
        A* score = probabilities_ + k * kPanel<A> + lane;
        A* grad = grad_scores_ + k * kPanel<A> + lane;
        const Vec<A> probability = exp2_nonpositive<A>(Vec<A>::loadu(score) - logsumexp);
        probability.store(score);
        (probability * scale * (Vec<A>::loadu(grad) - delta)).store(grad);
      }
    }
  }

  void store_grad_query(const Task& task, int64_t first, int64_t count) {
    transpose(grad_query_, kPanel<A>, out_rows_, dim_, dim_, count);
    store_tokens<T>(task.qkv(args_.shape, args_.grad_qkv, 0), first, count, out_rows_, dim_);
  }

  const AttnBackward& args_;
  int64_t tokens_, dim_, padded_dim_;
  Workspace<A> workspace_;
  A *keys_, *values_;                              // [tokens, head_dim]
  A *grad_keys_, *grad_values_;                    // [tokens, padded_dim]
  A *probabilities_, *grad_scores_;                // [key block, panel]
  A *query_rows_, *grad_out_rows_, *out_rows_;     // [panel, padded_dim]
  A *query_, *grad_out_, *grad_query_;             // [head_dim, panel]
  A *logsumexp_, *delta_;                          // [panel]
};

template <template <typename> class Kernel, typename Arguments>
void for_each_task(const Arguments& args, int64_t products) {
  with_dtype(args.shape.dtype, [&](auto element) {
    at::parallel_for(
        0, task_count(args.shape), grain_size(args.shape, products), [&](int64_t begin, int64_t end) {
          Kernel<decltype(element)> kernel(args);
          for (int64_t index = begin; index < end; ++index) kernel.run(Task(args.shape, index));
        });
  });
}

}  // namespace

void unfold_attn_fold_forward(const AttnForward& args) { for_each_task<Forward>(args, 2); }

void unfold_attn_fold_backward(const AttnBackward& args) { for_each_task<Backward>(args, 5); }

}  // namespace mobilevit::cpu::CPU_CAPABILITY
