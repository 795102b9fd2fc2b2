// bf16 activations to 8 bits, for inputs that no other kernel quantises on its way out. A row is one item.
#include "quantize.h"

KERNEL(quantize, QuantizeArgs) {
    team->share(step->num_tokens * args->rows_per_token, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const bf16* x = args->x + row * args->size;
            quantize_row([&](int64_t k) { return load_bf16(x + k); }, row, args->size, args->group, args->out);
        }
    });
}
