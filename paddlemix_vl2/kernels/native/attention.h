// Softmax attention of bfloat16 heads, and norms of rows.
#pragma once

#include "products.h"

namespace vl2 {

// Heads [heads, positions, width] that lie anywhere: numbers from a head and from a position to the next.
struct Heads {
  const Bf16* data;
  int64_t head, position;
};

// start < 0: every query sees all keys; else query t sees the keys up to start + t. Queries go in blocks, whose
// last one says which keys are read.
struct Visible {
  int64_t num_queries, num_keys, start, block;
};

// queries [heads, T, width], keys [heads, S, width], values [heads, S, value_width] -> target.
void attend(Heads queries, Heads keys, Heads values, const Visible& visible, int64_t heads, int64_t width,
            int64_t value_width, float scale, void* target, DataType target_type, int64_t target_head,
            int64_t target_position);

// target = (source - mean) / standard deviation * weight + bias.
void layer_norm_row(const float* source, int64_t width, const float* weight, const float* bias, float epsilon,
                    float* target);

// target = source / rms(source) * weight.
void rms_norm_row(const float* source, int64_t width, const float* weight, float epsilon, float* target);

}  // namespace vl2
