// A block of the vision tower in one call. Activations between products are bfloat16; the residual stream, sums,
// softmax and norms are float32.

#include <cmath>
#include <vector>

#include "attention.h"

using namespace vl2;

namespace {

// float32 rows, normed -> bfloat16.
void norm_to_bf16(const float* source, int64_t rows, int64_t width, const float* weight, const float* bias,
                  float epsilon, Bf16* target) {
#pragma omp parallel
  {
    std::vector<float> normed(width);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      layer_norm_row(source + row * width, width, weight, bias, epsilon, normed.data());
      to_bf16(normed.data(), target + row * width, width);
    }
  }
}

}  // namespace

extern "C" {

// hidden [tiles, patches, width] += attention(norm1(hidden)); hidden += mlp(norm2(hidden)).
//
// matrices: qkv, proj, fc1, fc2 in blocks; vectors: weight and bias of norm1 and norm2, the four biases.
// heads_at_once bounds the scores at one time.
void vl2_vision_block(float* hidden, int64_t tiles, int64_t patches, int64_t width, int64_t num_heads,
                      int64_t mlp_width, const Bf16** matrices, const float** vectors, float epsilon,
                      int64_t heads_at_once) {
  static Scratch<Bf16> narrow_scratch, wide_scratch;
  const int64_t rows = tiles * patches, head_width = width / num_heads, mixed_width = 3 * width;
  Bf16* narrow = narrow_scratch.reserve(rows * width);  // what goes into a product
  Bf16* wide = wide_scratch.reserve(rows * std::max(mixed_width, mlp_width));
  const float scale = 1.f / std::sqrt((float)head_width);

  norm_to_bf16(hidden, rows, width, vectors[0], vectors[1], epsilon, narrow);
  multiply(narrow, matrices[0], wide, DataType::bf16, rows, width, mixed_width, {.bias = vectors[4]});
  for (int64_t tile = 0; tile < tiles; ++tile)
    for (int64_t first = 0; first < num_heads; first += heads_at_once) {
      const int64_t heads = std::min(heads_at_once, num_heads - first);
      const Bf16* mixed = wide + tile * patches * mixed_width + first * head_width;
      auto part = [&](int64_t index) { return Heads{mixed + index * width, head_width, mixed_width}; };
      attend(part(0), part(1), part(2), {patches, patches, -1, patches}, heads, head_width, head_width, scale,
             narrow + tile * patches * width + first * head_width, DataType::bf16, head_width, width);
    }
  multiply(narrow, matrices[1], hidden, DataType::f32, rows, width, width, {.bias = vectors[5], .add = true});

  norm_to_bf16(hidden, rows, width, vectors[2], vectors[3], epsilon, narrow);
  multiply(narrow, matrices[2], wide, DataType::bf16, rows, width, mlp_width,
           {.bias = vectors[6], .activation = kGeluTanh});
  multiply(wide, matrices[3], hidden, DataType::f32, rows, mlp_width, width, {.bias = vectors[7], .add = true});
}

}  // extern "C"
