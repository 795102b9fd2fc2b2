// Copies of whole blocks within one layer's cache: what a shared block becomes before one of its owners writes to it.
#include "kernels.h"

KERNEL(copy_blocks, CopyBlocksArgs) {
    char* data = static_cast<char*>(args->data);
    team->share(args->num_pairs, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t source = args->pairs[2 * i], destination = args->pairs[2 * i + 1];
            memcpy(data + destination * args->block_bytes, data + source * args->block_bytes, args->block_bytes);
        }
    });
}
