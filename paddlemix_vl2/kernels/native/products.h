// Products of bfloat16 matrices through oneDNN (AMX or AVX512-BF16, float32 sums), each prepared once for its sizes.
#pragma once

#include "common.h"

namespace vl2 {

enum Activation { kNone = 0, kGeluTanh = 1, kSilu = 2 };

// What a product does with its result: + bias, activation, * factor (as large as the result), + what the
// target holds already.
struct After {
  const float* bias = nullptr;
  Activation activation = kNone;
  const float* factor = nullptr;
  bool add = false;
};

// source [m, k] x weights [k, n] in blocks -> target [m, n], float32 or bfloat16.
void multiply(const Bf16* source, const Bf16* weights, void* target, DataType target_type, int64_t m, int64_t k,
              int64_t n, const After& after = {});

// One matrix per head: the numbers from a head, a row and a column to the next.
struct Steps {
  int64_t head, row, column;
};

// [heads, m, k] x [heads, k, n] -> [heads, m, n], float32 or bfloat16.
void multiply_heads(const Bf16* source, Steps source_steps, const Bf16* weights, Steps weight_steps, void* target,
                    DataType target_type, Steps target_steps, int64_t heads, int64_t m, int64_t k, int64_t n);

}  // namespace vl2
