// Attention among the tokens of one pixel position, backward. The probabilities are recomputed from the logsumexp; a
// task owns the keys and values of its head, so that nothing is summed across threads.
#include "cpu/unfold_attn_fold_kernel.h"

#include "cpu/gemm.h"
#include "cpu/token_io.h"
#include "cpu/unfold_attn_fold_task.h"

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

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
    return 2 * padded(tokens_ * dim_) + 2 * padded(tokens_ * padded_dim_) + 2 * padded(key_block() * kPanel<A>) +
        3 * padded(kPanel<A> * padded_dim_) + 3 * padded(dim_ * kPanel<A>) + 2 * padded(kPanel<A>);
  }

  // Queries and output gradients of a panel, both as rows and as lanes, with logsumexp and delta = out . grad_out.
  void load_queries(const Task& task, int64_t first, int64_t count) {
    const AttnShape& shape = args_.shape;
    load_tokens<T>(task.qkv(shape, args_.qkv, 0), first, count, query_rows_, padded_dim_);
    load_tokens<T>(task.out(shape, args_.grad_out), first, count, grad_out_rows_, padded_dim_);
    load_tokens<T>(task.out(shape, args_.out), first, count, out_rows_, padded_dim_);
    rows_to_lanes(query_rows_, padded_dim_, count, dim_, query_, kPanel<A>, static_cast<A>(shape.scale * kLog2E));
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
        keys, padded_dim_, count, grad_scores, query_rows_, padded_dim_, grad_keys_ + key * padded_dim_, padded_dim_,
        Accumulate());
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
  A *keys_, *values_;                           // [tokens, head_dim]
  A *grad_keys_, *grad_values_;                 // [tokens, padded_dim]
  A *probabilities_, *grad_scores_;             // [key block, panel]
  A *query_rows_, *grad_out_rows_, *out_rows_;  // [panel, padded_dim]
  A *query_, *grad_out_, *grad_query_;          // [head_dim, panel]
  A *logsumexp_, *delta_;                       // [panel]
};

}  // namespace

void unfold_attn_fold_backward(const AttnBackward& args) { for_each_task<Backward>(args, 5); }

}  // namespace mobilevit::cpu::CPU_CAPABILITY
