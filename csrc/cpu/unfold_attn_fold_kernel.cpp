#include "cpu/unfold_attn_fold_kernel.h"

#include "cpu/unfold_attn_fold_forward.h"

namespace mobilevit::cpu::CPU_CAPABILITY {

void unfold_attn_fold_forward(const AttnForward& args) { for_each_task<AttentionForward>(args, 2); }

}  // namespace mobilevit::cpu::CPU_CAPABILITY
