// Attention of one new position per sequence: rotation, the write into the cache, and attention over what is
// filled of it. Caches and absorbed weights are bfloat16; queries, scores, softmax and sums are float32.

#include <cmath>
#include <vector>

#include "attention.h"

using namespace vl2;

namespace {

// Cosines and sines [rotated / 2] of a sequence's new position.
struct Rotation {
  const float *cos, *sin;
};

inline __m512 widen(__m256i narrow) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16);
}

inline __m512 load_bf16(const Bf16* source, int64_t count) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(count), source));
}

// Rotated pairs, halves of a head (i, i + width / 2) or neighbours (2 i, 2 i + 1); halves side by side come out.
void rotate(const float* source, Rotation rotation, int64_t width, bool neighbours, float* target) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = source[neighbours ? 2 * i : i], b = source[neighbours ? 2 * i + 1 : i + half];
    target[i] = a * rotation.cos[i] - b * rotation.sin[i];
    target[i + half] = b * rotation.cos[i] + a * rotation.sin[i];
  }
}

float dot(const float* a, const Bf16* b, int64_t width) {
  __m512 sums = _mm512_setzero_ps();
  for (int64_t i = 0; i < width; i += 16)
    sums = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(first_lanes(width - i), a + i), load_bf16(b + i, width - i), sums);
  return _mm512_reduce_add_ps(sums);
}

// target [width] += factor * row
void add_scaled(const Bf16* row, float factor, int64_t width, float* target) {
  const __m512 factors = _mm512_set1_ps(factor);
  for (int64_t i = 0; i < width; i += 16) {
    const __mmask16 lanes = first_lanes(width - i);
    __m512 sum = _mm512_fmadd_ps(load_bf16(row + i, width - i), factors, _mm512_maskz_loadu_ps(lanes, target + i));
    _mm512_mask_storeu_ps(target + i, lanes, sum);
  }
}

// source [rows] x weights [rows, columns] -> target [columns].
void multiply(const float* source, const Bf16* weights, int64_t rows, int64_t columns, float* target) {
  constexpr int64_t kWide = 128;
  for (int64_t first = 0; first < columns; first += kWide) {
    __m512 sums[kWide / 16];
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    const int64_t count = std::min(kWide, columns - first);
    for (int64_t row = 0; row < rows; ++row) {
      const __m512 x = _mm512_set1_ps(source[row]);
      const Bf16* line = weights + row * columns + first;
      for (int64_t i = 0; 16 * i < count; ++i)
        sums[i] = _mm512_fmadd_ps(load_bf16(line + 16 * i, count - 16 * i), x, sums[i]);
    }
    for (int64_t i = 0; 16 * i < count; ++i)
      _mm512_mask_storeu_ps(target + first + 16 * i, first_lanes(count - 16 * i), sums[i]);
  }
}

// Weights of the positions that the sequence has, 0 for its padding (mask: null where there is none); all 0 where
// it has none yet.
void softmax(float* scores, const bool* mask, int64_t count, float scale) {
  float largest = -INFINITY, total = 0.f;
  for (int64_t i = 0; i < count; ++i) {
    scores[i] = mask && !mask[i] ? -INFINITY : scores[i] * scale;
    largest = std::max(largest, scores[i]);
  }
  if (largest == -INFINITY) {
    std::fill_n(scores, count, 0.f);
    return;
  }
  for (int64_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = first_lanes(count - i);
    __m512 apart = _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, scores + i), _mm512_set1_ps(largest));
    // A score of -inf is padding, which the smallest exponent would not make 0.
    const __mmask16 seen = lanes & _mm512_cmp_ps_mask(apart, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
    __m512 weights = _mm512_maskz_mov_ps(seen, exp(apart));
    _mm512_mask_storeu_ps(scores + i, lanes, weights);
    total += _mm512_reduce_add_ps(weights);
  }
  for (int64_t i = 0; i < count; ++i) scores[i] /= total;
}

}  // namespace

extern "C" {

// queries, keys, values [B, N, D] of position `position`; caches [B, N, S, D]; cos, sin: of sequence b at
// b * rotary_step; mask: [B, S] or null -> target [B, N, D].
void vl2_multi_head_step(const float* queries, const float* keys, const float* values, int64_t batch,
                         int64_t heads, int64_t width, const float* cos, const float* sin, int64_t rotary_step,
                         Bf16* cached_keys, Bf16* cached_values, int64_t capacity, int64_t position,
                         const bool* mask, float scale, float* target) {
  static Scratch<float> score_scratch;
  float* all_scores = score_scratch.reserve(batch * heads * (position + 1));
#pragma omp parallel for schedule(static)
  for (int64_t index = 0; index < batch * heads; ++index) {
    const int64_t sequence = index / heads, from = index * width;
    const Rotation rotation{cos + sequence * rotary_step, sin + sequence * rotary_step};
    Bf16 *key_rows = cached_keys + from * capacity, *value_rows = cached_values + from * capacity;
    std::vector<float> turned(width);
    rotate(keys + from, rotation, width, false, turned.data());
    to_bf16(turned.data(), key_rows + position * width, width);
    to_bf16(values + from, value_rows + position * width, width);
    rotate(queries + from, rotation, width, false, turned.data());
    float* scores = all_scores + index * (position + 1);
    for (int64_t i = 0; i <= position; ++i) scores[i] = dot(turned.data(), key_rows + i * width, width);
    softmax(scores, mask ? mask + sequence * capacity : nullptr, position + 1, scale);
    std::fill_n(target + from, width, 0.f);
    for (int64_t i = 0; i <= position; ++i)
      add_scaled(value_rows + i * width, scores[i], width, target + from);
  }
}

// Multi-head latent attention in its absorbed form.
//
// queries [B, N, Dn + Dr]; latents [B, R + Dr], the latent not normed and the shared key not rotated yet;
// norm [R]; cached [B, S, R + Dr]; key_weights [N, Dn, R], value_weights [N, R, Dv]; cos, sin, mask as above
// -> target [B, N, Dv].
void vl2_latent_step(const float* queries, const float* latents, const float* norm, float epsilon, int64_t batch, int64_t heads, int64_t nope,
                     int64_t rope, int64_t rank, int64_t value_width, const float* cos, const float* sin,
                     int64_t rotary_step, Bf16* cached, int64_t capacity, int64_t position,
                     const Bf16* key_weights, const Bf16* value_weights, const bool* mask, float scale,
                     float* target) {
  static Scratch<float> score_scratch;
  const int64_t width = rank + rope;
  float* all_scores = score_scratch.reserve(batch * heads * (position + 1));
  auto rotation_of = [&](int64_t sequence) {
    return Rotation{cos + sequence * rotary_step, sin + sequence * rotary_step};
  };
  for (int64_t sequence = 0; sequence < batch; ++sequence) {
    const float* latent = latents + sequence * width;
    Bf16* row = cached + (sequence * capacity + position) * width;
    std::vector<float> made(width);
    rms_norm_row(latent, rank, norm, epsilon, made.data());
    rotate(latent + rank, rotation_of(sequence), rope, true, made.data() + rank);
    to_bf16(made.data(), row, width);
  }
#pragma omp parallel for schedule(static)
  for (int64_t index = 0; index < batch * heads; ++index) {
    const int64_t sequence = index / heads, head = index % heads;
    const Bf16* rows = cached + sequence * capacity * width;
    const float* query = queries + index * (nope + rope);
    std::vector<float> absorbed(width), mixed(rank);
    multiply(query, key_weights + head * nope * rank, nope, rank, absorbed.data());
    rotate(query + nope, rotation_of(sequence), rope, true, absorbed.data() + rank);
    float* scores = all_scores + index * (position + 1);
    for (int64_t i = 0; i <= position; ++i) scores[i] = dot(absorbed.data(), rows + i * width, width);
    softmax(scores, mask ? mask + sequence * capacity : nullptr, position + 1, scale);
    for (int64_t i = 0; i <= position; ++i) add_scaled(rows + i * width, scores[i], rank, mixed.data());
    multiply(mixed.data(), value_weights + head * rank * value_width, rank, value_width,
             target + index * value_width);
  }
}

}  // extern "C"
