// Products of float32 activations with bfloat16 or int8 weights on x86 CPUs, for inference.
//
// Several rows go through oneDNN (bfloat16 operands, float32 sums; AMX or AVX512-BF16 where the processor has
// them); one to four rows, as in a decode step, through loops that read every weight once.
//
// Weights of a layer [K, N] are stored in blocks of 32 x 64, one column of blocks after the other: inside a
// block 16 pairs of rows, of each pair 64 columns, of each column the pair side by side. That is oneDNN's
// BA16a64b2a, which both ways read. int8 weights lie column block by column block as [K, 64], with one scale
// per column.
//
// All pointers are to dense row-major arrays. Calls are not made from several threads at once.

#include <cmath>
#include <cstring>
#include <vector>

#include "products.h"

using namespace vl2;

namespace {

constexpr int64_t kColumns = 64, kRows = 32, kFewRows = 4;

// ---- packing ----

// Rows and columns in the order in which a matrix with `row_step` from row to row lies in memory.
template <typename Function>
inline void for_each(int64_t rows, int64_t columns, int64_t row_step, Function function) {
  if (row_step == 1) {
    for (int64_t column = 0; column < columns; ++column)
      for (int64_t row = 0; row < rows; ++row) function(row, column);
  } else {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t column = 0; column < columns; ++column) function(row, column);
  }
}

float to_float(Bf16 narrow) {
  uint32_t bits = (uint32_t)narrow << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// ---- products of few rows ----

float silu(float x) { return x / (1.f + std::exp(-x)); }

// 64 columns of `rows` x [K] in bfloat16, in pairs, times one column of blocks.
template <int rows>
void bf16_columns(const Bf16* source, int64_t stride, const Bf16* block, int64_t k, float* sums) {
  __m512 total[rows][4];
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < 4; ++i) total[r][i] = _mm512_setzero_ps();
  const int64_t pairs = k / 2;
  for (int64_t pair = 0; pair < pairs; ++pair, block += 2 * kColumns) {
    __m512bh w[4];
    for (int i = 0; i < 4; ++i) w[i] = (__m512bh)_mm512_loadu_si512(block + 32 * i);
    for (int r = 0; r < rows; ++r) {
      int32_t two;
      std::memcpy(&two, source + r * stride + 2 * pair, 4);
      __m512bh x = (__m512bh)_mm512_set1_epi32(two);
      for (int i = 0; i < 4; ++i) total[r][i] = _mm512_dpbf16_ps(total[r][i], x, w[i]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(sums + r * kColumns + 16 * i, total[r][i]);
}

// The same of float32 [K] and int8 weights [K, 64], before the scales.
template <int rows>
void int8_columns(const float* source, int64_t stride, const int8_t* block, int64_t k, float* sums) {
  __m512 total[rows][4];
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < 4; ++i) total[r][i] = _mm512_setzero_ps();
  for (int64_t row = 0; row < k; ++row, block += kColumns) {
    __m512 w[4];
    for (int i = 0; i < 4; ++i)
      w[i] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(block + 16 * i))));
    for (int r = 0; r < rows; ++r) {
      __m512 x = _mm512_set1_ps(source[r * stride + row]);
      for (int i = 0; i < 4; ++i) total[r][i] = _mm512_fmadd_ps(x, w[i], total[r][i]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < 4; ++i) _mm512_storeu_ps(sums + r * kColumns + 16 * i, total[r][i]);
}

// A layer's weights as Python passes them: bfloat16 blocks, or int8 with scales.
struct Weights {
  const void* data;
  const float* scales;  // null: bfloat16
};

void columns(int rows, const float* source, const Bf16* narrow, int64_t k, const Weights& weights,
             int64_t block, float* sums) {
  int64_t wide = round_up(k, kRows);
  if (weights.scales) {
    auto data = (const int8_t*)weights.data + block * k * kColumns;
    if (rows == 1) int8_columns<1>(source, k, data, k, sums);
    if (rows == 2) int8_columns<2>(source, k, data, k, sums);
    if (rows == 3) int8_columns<3>(source, k, data, k, sums);
    if (rows == 4) int8_columns<4>(source, k, data, k, sums);
    for (int r = 0; r < rows; ++r)
      for (int64_t i = 0; i < kColumns; ++i) sums[r * kColumns + i] *= weights.scales[block * kColumns + i];
    return;
  }
  auto data = (const Bf16*)weights.data + block * wide * kColumns;
  if (rows == 1) bf16_columns<1>(narrow, wide, data, wide, sums);
  if (rows == 2) bf16_columns<2>(narrow, wide, data, wide, sums);
  if (rows == 3) bf16_columns<3>(narrow, wide, data, wide, sums);
  if (rows == 4) bf16_columns<4>(narrow, wide, data, wide, sums);
}

// float32 [rows, k] -> bfloat16 [rows, k rounded up to 32], zero behind the end.
void narrow_rows(const float* source, Bf16* target, int64_t rows, int64_t k) {
  int64_t wide = round_up(k, kRows);
  for (int64_t r = 0; r < rows; ++r) {
    to_bf16(source + r * k, target + r * wide, k);
    std::memset(target + r * wide + k, 0, (wide - k) * sizeof(Bf16));
  }
}

// int8 columns -> the blocks that oneDNN reads.
const Bf16* widen(const Weights& weights, int64_t k, int64_t n) {
  static Scratch<Bf16> scratch;
  int64_t wide = round_up(k, kRows), blocks = round_up(n, kColumns) / kColumns;
  Bf16* target = scratch.reserve(wide * blocks * kColumns);
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    auto source = (const int8_t*)weights.data + block * k * kColumns;
    Bf16* out = target + block * wide * kColumns;
    __m512 scale[4];
    for (int i = 0; i < 4; ++i) scale[i] = _mm512_loadu_ps(weights.scales + block * kColumns + 16 * i);
    auto load = [&](int64_t row, int i) {
      if (row >= k) return _mm512_setzero_si512();
      auto values = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(source + row * kColumns + 16 * i)));
      __m256i narrow = to_bf16(_mm512_mul_ps(_mm512_cvtepi32_ps(values), scale[i]));
      return _mm512_cvtepu16_epi32(narrow);
    };
    for (int64_t row = 0; row < wide; row += 2)
      for (int i = 0; i < 4; ++i)
        _mm512_storeu_si512(out + row * kColumns + 32 * i,
                            _mm512_or_si512(load(row, i), _mm512_slli_epi32(load(row + 1, i), 16)));
  }
  return target;
}

const Bf16* blocks_of(const Weights& weights, int64_t k, int64_t n) {
  return weights.scales ? widen(weights, k, n) : (const Bf16*)weights.data;
}

Scratch<Bf16> narrow_scratch;

void few_rows(const float* source, int64_t rows, int64_t k, int64_t n, const Weights& weights,
              const float* bias, float* target) {
  Bf16* narrow = narrow_scratch.reserve(kFewRows * round_up(k, kRows));
  if (!weights.scales) narrow_rows(source, narrow, rows, k);
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < (n + kColumns - 1) / kColumns; ++block) {
    alignas(64) float sums[kFewRows * kColumns];
    columns(rows, source, narrow, k, weights, block, sums);
    int64_t first = block * kColumns, count = std::min(kColumns, n - first);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < count; ++i)
        target[r * n + first + i] = sums[r * kColumns + i] + (bias ? bias[first + i] : 0.f);
  }
}

}  // namespace

extern "C" {

int vl2_dnnl_version() {
  const dnnl_version_t* version = dnnl_version();
  return version->major * 100 + version->minor;
}

// bfloat16 [K, N], with these steps from row to row and from column to column -> blocks; `target` holds
// round_up(K, 32) * round_up(N, 64).
void vl2_pack_bf16(const Bf16* source, int64_t row_step, int64_t column_step, int64_t k, int64_t n,
                   Bf16* target) {
  int64_t wide = round_up(k, kRows), blocks = round_up(n, kColumns) / kColumns;
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t top = 0; top < wide; top += kRows) {
      Bf16* out = target + (block * wide + top) * kColumns;
      const Bf16* from = source + top * row_step + block * kColumns * column_step;
      const int64_t rows = std::min(kRows, k - top), columns = std::min(kColumns, n - block * kColumns);
      if (rows < kRows || columns < kColumns) std::memset(out, 0, kRows * kColumns * sizeof(Bf16));
      for_each(rows, columns, row_step, [&](int64_t row, int64_t column) {
        out[row / 2 * 2 * kColumns + 2 * column + row % 2] = from[row * row_step + column * column_step];
      });
    }
}

// The same -> int8 [N / 64, K, 64] and a scale per column, [round_up(N, 64)].
void vl2_pack_int8(const Bf16* source, int64_t row_step, int64_t column_step, int64_t k, int64_t n,
                   int8_t* target, float* scales) {
  int64_t blocks = round_up(n, kColumns) / kColumns;
#pragma omp parallel for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    const Bf16* from = source + block * kColumns * column_step;
    const int64_t columns = std::min(kColumns, n - block * kColumns);
    auto value = [&](int64_t row, int64_t column) {
      return to_float(from[row * row_step + column * column_step]);
    };
    float largest[kColumns] = {0};
    for_each(k, columns, row_step, [&](int64_t row, int64_t column) {
      largest[column] = std::max(largest[column], std::fabs(value(row, column)));
    });
    float* scale = scales + block * kColumns;
    for (int64_t i = 0; i < kColumns; ++i) scale[i] = largest[i] > 0 ? largest[i] / 127.f : 1.f;
    for (int64_t top = 0; top < k; top += kRows) {
      int8_t* out = target + (block * k + top) * kColumns;
      const int64_t rows = std::min(kRows, k - top);
      if (columns < kColumns) std::memset(out, 0, rows * kColumns);
      for_each(rows, columns, row_step, [&](int64_t row, int64_t column) {
        out[row * kColumns + column] = (int8_t)std::nearbyint(value(top + row, column) / scale[column]);
      });
    }
  }
}

// target [M, N] = source [M, K] * weights + bias.
void vl2_linear(const float* source, int64_t m, int64_t k, int64_t n, const void* data, const float* scales,
                const float* bias, float* target) {
  Weights weights{data, scales};
  if (m <= kFewRows) {
    few_rows(source, m, k, n, weights, bias, target);
    return;
  }
  Bf16* narrow = narrow_scratch.reserve(m * k);
  rows_to_bf16(source, narrow, m, k);
  multiply(narrow, blocks_of(weights, k, n), target, DataType::f32, m, k, n, {.bias = bias});
}

// The gated MLPs of the chosen experts: target [M, H] += sum of weight * down(silu(gate(x)) * up(x)).
//
// data: 3 * num_experts pointers (gate, up, down of each expert); scales: the same, or null for bfloat16.
// experts: int64 [M, top_k], weights: float32 [M, top_k]; null weights: all 1.
void vl2_experts(const float* source, int64_t m, int64_t hidden, int64_t width, const void** data,
                 const float** scales, int64_t num_experts, const int64_t* experts, const float* weights,
                 int64_t top_k, float* target) {
  auto layer = [&](int64_t expert, int part) {
    return Weights{data[3 * expert + part], scales ? scales[3 * expert + part] : nullptr};
  };
  static Scratch<float> inner_scratch, outer_scratch;
  static Scratch<Bf16> rows_scratch, gated_scratch;
  if (m == 1) {
    // One pass over the first two layers of all experts, one over the third: few large pieces of work.
    int64_t wide = round_up(hidden, kRows), inner_wide = round_up(width, kRows);
    Bf16* narrow = narrow_scratch.reserve(wide);
    bool bf16 = !scales;
    if (bf16) narrow_rows(source, narrow, 1, hidden);
    float* inner = inner_scratch.reserve(top_k * round_up(width, kColumns));
    Bf16* gated = gated_scratch.reserve(top_k * inner_wide);
    int64_t in_blocks = (width + kColumns - 1) / kColumns, out_blocks = (hidden + kColumns - 1) / kColumns;
#pragma omp parallel
    {
#pragma omp for schedule(static)
      for (int64_t piece = 0; piece < top_k * in_blocks; ++piece) {
        int64_t choice = piece / in_blocks, block = piece % in_blocks;
        alignas(64) float gate[kColumns], up[kColumns];
        columns(1, source, narrow, hidden, layer(experts[choice], 0), block, gate);
        columns(1, source, narrow, hidden, layer(experts[choice], 1), block, up);
        int64_t first = block * kColumns, count = std::min(kColumns, width - first);
        for (int64_t i = 0; i < count; ++i)
          inner[choice * width + first + i] = silu(gate[i]) * up[i];
      }
      if (bf16) {
#pragma omp for schedule(static)
        for (int64_t choice = 0; choice < top_k; ++choice)
          narrow_rows(inner + choice * width, gated + choice * inner_wide, 1, width);
      }
#pragma omp for schedule(static)
      for (int64_t block = 0; block < out_blocks; ++block) {
        alignas(64) float sums[kColumns], total[kColumns] = {0};
        for (int64_t choice = 0; choice < top_k; ++choice) {
          columns(1, inner + choice * width, gated + choice * inner_wide, width, layer(experts[choice], 2),
                  block, sums);
          float weight = weights ? weights[choice] : 1.f;
          for (int64_t i = 0; i < kColumns; ++i) total[i] += weight * sums[i];
        }
        int64_t first = block * kColumns, count = std::min(kColumns, hidden - first);
        for (int64_t i = 0; i < count; ++i) target[first + i] += total[i];
      }
    }
    return;
  }
  // The rows of each expert, in the order of the tokens.
  std::vector<std::vector<int64_t>> pairs(num_experts);
  for (int64_t pair = 0; pair < m * top_k; ++pair) pairs[experts[pair]].push_back(pair);
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    int64_t count = pairs[expert].size();
    if (!count) continue;
    // Rounded up, so that few different products have to be prepared.
    int64_t rows = round_up(count, 16);
    Bf16* gathered = rows_scratch.reserve(rows * hidden);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
      if (row < count)
        to_bf16(source + pairs[expert][row] / top_k * hidden, gathered + row * hidden, hidden);
      else
        std::memset(gathered + row * hidden, 0, hidden * sizeof(Bf16));
    }
    float* gate = inner_scratch.reserve(rows * width);
    Bf16* gated = gated_scratch.reserve(rows * width);
    float* outer = outer_scratch.reserve(rows * hidden);
    multiply(gathered, blocks_of(layer(expert, 0), hidden, width), gate, DataType::f32, rows, hidden, width,
             {.activation = kSilu});
    multiply(gathered, blocks_of(layer(expert, 1), hidden, width), gated, DataType::bf16, rows, hidden, width,
             {.factor = gate});
    multiply(gated, blocks_of(layer(expert, 2), width, hidden), outer, DataType::f32, rows, width, hidden);
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < count; ++row) {
      int64_t pair = pairs[expert][row];
      float weight = weights ? weights[pair] : 1.f;
      const float* from = outer + row * hidden;
      float* to = target + pair / top_k * hidden;
      for (int64_t i = 0; i < hidden; ++i) to[i] += weight * from[i];
    }
  }
}

}  // extern "C"
