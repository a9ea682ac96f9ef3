// Softmax attention of many queries, and norms: what a prompt and the tiles of a picture need besides products
// with weights. Float32 in and out, bfloat16 operands, float32 sums and softmax.

#include "attention.h"

#include <cmath>
#include <cstring>

namespace vl2 {

namespace {

// Softmax of the first `seen` scores times `scale`; zero behind them.
void softmax_row(float* scores, int64_t seen, int64_t width, float scale, Bf16* target) {
  const __m512 lowest = _mm512_set1_ps(-INFINITY), scales = _mm512_set1_ps(scale);
  __m512 largest = lowest, total = _mm512_setzero_ps();
  for (int64_t i = 0; i < seen; i += 16)
    largest = _mm512_max_ps(largest, _mm512_mask_loadu_ps(lowest, first_lanes(seen - i), scores + i));
  largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
  for (int64_t i = 0; i < seen; i += 16) {
    __m512 apart = _mm512_sub_ps(_mm512_maskz_loadu_ps(first_lanes(seen - i), scores + i), largest);
    __m512 weight = _mm512_maskz_mov_ps(first_lanes(seen - i), exp(_mm512_mul_ps(apart, scales)));
    _mm512_mask_storeu_ps(scores + i, first_lanes(seen - i), weight);
    total = _mm512_add_ps(total, weight);
  }
  const __m512 factor = _mm512_set1_ps(1.f / _mm512_reduce_add_ps(total));
  for (int64_t i = 0; i < seen; i += 16) {
    __m512 weight = _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(seen - i), scores + i), factor);
    _mm256_mask_storeu_epi16(target + i, first_lanes(seen - i), to_bf16(weight));
  }
  std::memset(target + seen, 0, (width - seen) * sizeof(Bf16));
}

// [positions, heads, width] with `stride` floats between positions -> bfloat16 [heads, positions, width].
Heads heads_first(const float* source, int64_t stride, int64_t positions, int64_t heads, int64_t width,
                  Scratch<Bf16>& scratch) {
  Bf16* target = scratch.reserve(heads * positions * width);
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t position = 0; position < positions; ++position)
      to_bf16(source + position * stride + head * width, target + (head * positions + position) * width, width);
  return {target, positions * width, width};
}

}  // namespace

void attend(Heads queries, Heads keys, Heads values, const Visible& visible, int64_t heads, int64_t width,
            int64_t value_width, float scale, void* target, DataType target_type, int64_t target_head,
            int64_t target_position) {
  static Scratch<Bf16> weight_scratch;
  static Scratch<float> score_scratch;
  float* scores = score_scratch.reserve(heads * visible.block * visible.num_keys);
  Bf16* weights = weight_scratch.reserve(heads * visible.block * visible.num_keys);
  const int64_t number_size = target_type == DataType::f32 ? sizeof(float) : sizeof(Bf16);
  for (int64_t first = 0; first < visible.num_queries; first += visible.block) {
    const int64_t rows = std::min(visible.block, visible.num_queries - first);
    const int64_t seen = visible.start < 0 ? visible.num_keys : visible.start + first + rows;
    const Steps score_steps{rows * seen, seen, 1};
    multiply_heads(queries.data + first * queries.position, {queries.head, queries.position, 1}, keys.data,
                   {keys.head, 1, keys.position}, scores, DataType::f32, score_steps, heads, rows, width, seen);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < heads * rows; ++row) {
      const int64_t own = visible.start < 0 ? seen : visible.start + first + row % rows + 1;
      softmax_row(scores + row * seen, own, seen, scale, weights + row * seen);
    }
    multiply_heads(weights, score_steps, values.data, {values.head, values.position, 1},
                   (char*)target + first * target_position * number_size, target_type,
                   {target_head, target_position, 1}, heads, rows, seen, value_width);
  }
}

void layer_norm_row(const float* source, int64_t width, const float* weight, const float* bias, float epsilon,
                    float* target) {
  float sum = 0.f, squares = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += source[i];
  const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += (source[i] - mean) * (source[i] - mean);
  const float factor = 1.f / std::sqrt(squares / width + epsilon);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) target[i] = (source[i] - mean) * factor * weight[i] + bias[i];
}

void rms_norm_row(const float* source, int64_t width, const float* weight, float epsilon, float* target) {
  float squares = 0.f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += source[i] * source[i];
  const float factor = 1.f / std::sqrt(squares / width + epsilon);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) target[i] = source[i] * factor * weight[i];
}

}  // namespace vl2

using namespace vl2;

extern "C" {

// One sequence: queries [T, N, D], keys [S, N, D], values [S, N, Dv] with `*_stride` floats between positions
// -> target [T, N, Dv]. start and block as in `Visible`; heads_at_once bounds the scores at one time.
void vl2_attention(const float* queries, int64_t query_stride, const float* keys, int64_t key_stride,
                   const float* values, int64_t value_stride, int64_t num_queries, int64_t num_keys,
                   int64_t num_heads, int64_t width, int64_t value_width, float scale, int64_t start,
                   int64_t block, int64_t heads_at_once, float* target) {
  static Scratch<Bf16> query_scratch, key_scratch, value_scratch;
  for (int64_t first = 0; first < num_heads; first += heads_at_once) {
    const int64_t heads = std::min(heads_at_once, num_heads - first);
    Heads q = heads_first(queries + first * width, query_stride, num_queries, heads, width, query_scratch);
    Heads k = heads_first(keys + first * width, key_stride, num_keys, heads, width, key_scratch);
    Heads v = heads_first(values + first * value_width, value_stride, num_keys, heads, value_width, value_scratch);
    attend(q, k, v, {num_queries, num_keys, start, block}, heads, width, value_width, scale,
           target + first * value_width, DataType::f32, value_width, num_heads * value_width);
  }
}

// `rms_norm_row` for every row.
void vl2_rms_norm(const float* source, int64_t rows, int64_t width, const float* weight, float epsilon,
                  float* target) {
#pragma omp parallel for schedule(static) if (rows > 4)
  for (int64_t row = 0; row < rows; ++row)
    rms_norm_row(source + row * width, width, weight, epsilon, target + row * width);
}

// `layer_norm_row` for every row.
void vl2_layer_norm(const float* source, int64_t rows, int64_t width, const float* weight, const float* bias,
                    float epsilon, float* target) {
#pragma omp parallel for schedule(static) if (rows > 4)
  for (int64_t row = 0; row < rows; ++row)
    layer_norm_row(source + row * width, width, weight, bias, epsilon, target + row * width);
}

}  // extern "C"
