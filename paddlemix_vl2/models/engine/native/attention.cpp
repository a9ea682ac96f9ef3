// Softmax attention of many queries, and norms: what a prompt and the tiles of a picture need besides products
// with weights. Float32 in and out, bfloat16 operands, float32 sums and softmax.

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "common.h"

using namespace vl2;

namespace {

struct BatchProduct {
  dnnl::matmul primitive;
  memory::desc source, weights, target;
};

// [heads, m, k] x [heads, k, n] -> float32 [heads, m, n] with any strides.
BatchProduct& batch_product(const memory::dims& m_k_n, const memory::dims& source, const memory::dims& weights,
                            const memory::dims& target, int64_t heads) {
  using Key = std::tuple<memory::dims, memory::dims, memory::dims, memory::dims, int64_t>;
  static std::map<Key, BatchProduct> known;
  Key key{m_k_n, source, weights, target, heads};
  auto found = known.find(key);
  if (found != known.end()) return found->second;
  if (known.size() > 500) known.clear();
  int64_t m = m_k_n[0], k = m_k_n[1], n = m_k_n[2];
  memory::desc a({heads, m, k}, DataType::bf16, source), b({heads, k, n}, DataType::bf16, weights);
  memory::desc c({heads, m, n}, DataType::f32, target);
  BatchProduct made{dnnl::matmul(dnnl::matmul::primitive_desc(engine(), a, b, c)), a, b, c};
  return known.emplace(key, made).first->second;
}

void run(BatchProduct& it, const Bf16* source, const Bf16* weights, float* target) {
  it.primitive.execute(stream(), {{DNNL_ARG_SRC, memory(it.source, engine(), (void*)source)},
                                  {DNNL_ARG_WEIGHTS, memory(it.weights, engine(), (void*)weights)},
                                  {DNNL_ARG_DST, memory(it.target, engine(), target)}});
}

// [positions, heads, width] with `stride` floats between positions -> bfloat16 [heads, positions, width].
void heads_first(const float* source, int64_t stride, int64_t positions, int64_t heads, int64_t width,
                 Bf16* target) {
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t position = 0; position < positions; ++position)
      to_bf16(source + position * stride + head * width, target + (head * positions + position) * width, width);
}

// Softmax of the first `seen` scores times `scale`; zero behind them.
void softmax_row(float* scores, int64_t seen, int64_t width, float scale, Bf16* target) {
  float largest = scores[0], total = 0.f;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < seen; ++i) largest = std::max(largest, scores[i]);
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < seen; ++i) {
    scores[i] = std::exp((scores[i] - largest) * scale);
    total += scores[i];
  }
  const float factor = 1.f / total;
#pragma omp simd
  for (int64_t i = 0; i < seen; ++i) scores[i] *= factor;
  to_bf16(scores, target, seen);
  std::memset(target + seen, 0, (width - seen) * sizeof(Bf16));
}

}  // namespace

extern "C" {

// One sequence: queries [T, N, D], keys [S, N, D], values [S, N, Dv] with `*_stride` floats between positions
// -> target [T, N, Dv]. start < 0: every query sees all keys; else query t sees the keys up to start + t.
// Queries go in blocks, whose last one says which keys are read; heads_at_once bounds the scores at one time.
void vl2_attention(const float* queries, int64_t query_stride, const float* keys, int64_t key_stride,
                   const float* values, int64_t value_stride, int64_t num_queries, int64_t num_keys,
                   int64_t num_heads, int64_t width, int64_t value_width, float scale, int64_t start,
                   int64_t block, int64_t heads_at_once, float* target) {
  static Scratch<Bf16> query_scratch, key_scratch, value_scratch, weight_scratch;
  static Scratch<float> score_scratch;
  for (int64_t first_head = 0; first_head < num_heads; first_head += heads_at_once) {
    const int64_t heads = std::min(heads_at_once, num_heads - first_head);
    Bf16* q = query_scratch.reserve(heads * num_queries * width);
    Bf16* k = key_scratch.reserve(heads * num_keys * width);
    Bf16* v = value_scratch.reserve(heads * num_keys * value_width);
    float* scores = score_scratch.reserve(heads * block * num_keys);
    Bf16* weights = weight_scratch.reserve(heads * block * num_keys);
    heads_first(queries + first_head * width, query_stride, num_queries, heads, width, q);
    heads_first(keys + first_head * width, key_stride, num_keys, heads, width, k);
    heads_first(values + first_head * value_width, value_stride, num_keys, heads, value_width, v);
    for (int64_t first = 0; first < num_queries; first += block) {
      const int64_t rows = std::min(block, num_queries - first);
      const int64_t seen = start < 0 ? num_keys : start + first + rows;
      run(batch_product({rows, width, seen}, {num_queries * width, width, 1}, {num_keys * width, 1, width},
                        {rows * seen, seen, 1}, heads),
          q + first * width, k, scores);
#pragma omp parallel for schedule(static)
      for (int64_t row = 0; row < heads * rows; ++row) {
        const int64_t visible = start < 0 ? num_keys : start + first + row % rows + 1;
        softmax_row(scores + row * seen, visible, seen, scale, weights + row * seen);
      }
      run(batch_product({rows, seen, value_width}, {rows * seen, seen, 1},
                        {num_keys * value_width, value_width, 1},
                        {value_width, num_heads * value_width, 1}, heads),
          weights, v, target + (first * num_heads + first_head) * value_width);
    }
  }
}

// target = source / rms(source) * weight, row by row.
void vl2_rms_norm(const float* source, int64_t rows, int64_t width, const float* weight, float epsilon,
                  float* target) {
#pragma omp parallel for schedule(static) if (rows > 4)
  for (int64_t row = 0; row < rows; ++row) {
    const float* in = source + row * width;
    float* out = target + row * width;
    float squares = 0.f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += in[i] * in[i];
    const float factor = 1.f / std::sqrt(squares / width + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] = in[i] * factor * weight[i];
  }
}

// target = (source - mean) / standard deviation * weight + bias, row by row.
void vl2_layer_norm(const float* source, int64_t rows, int64_t width, const float* weight, const float* bias,
                    float epsilon, float* target) {
#pragma omp parallel for schedule(static) if (rows > 4)
  for (int64_t row = 0; row < rows; ++row) {
    const float* in = source + row * width;
    float* out = target + row * width;
    float sum = 0.f, squares = 0.f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += in[i];
    const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; ++i) squares += (in[i] - mean) * (in[i] - mean);
    const float factor = 1.f / std::sqrt(squares / width + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] = (in[i] - mean) * factor * weight[i] + bias[i];
  }
}

}  // extern "C"
