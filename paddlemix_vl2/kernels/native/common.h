// What all kernels share: types, oneDNN's engine, buffers, conversions to bfloat16.
#pragma once

#include <immintrin.h>
#include <cstdlib>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "dnnl.hpp"

using dnnl::memory;
using Bf16 = uint16_t;
using DataType = memory::data_type;

namespace vl2 {

inline dnnl::engine& engine() {
  static dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

inline dnnl::stream& stream() {
  static dnnl::stream instance(engine());
  return instance;
}

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Grows and never shrinks: buffers that calls of one kind share.
template <typename T>
class Scratch {
 public:
  T* reserve(size_t count) {
    if (count > size_) {
      data_.reset(static_cast<T*>(std::aligned_alloc(64, round_up(count * sizeof(T), 4096))));
      size_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

// ---- conversions ----

inline __m256i to_bf16(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

// Of the 16 lanes of a register those that still hold numbers, where `count` are left.
inline __mmask16 first_lanes(int64_t count) { return count >= 16 ? 0xffff : (1u << count) - 1; }

inline void to_bf16(const float* source, Bf16* target, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm256_storeu_si256((__m256i*)(target + i), to_bf16(_mm512_loadu_ps(source + i)));
  if (i < count) {
    const __mmask16 rest = first_lanes(count - i);
    _mm256_mask_storeu_epi16(target + i, rest, to_bf16(_mm512_maskz_loadu_ps(rest, source + i)));
  }
}

inline void rows_to_bf16(const float* source, Bf16* target, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; ++row) to_bf16(source + row * width, target + row * width, width);
}

// e^x to about 2e-7 of it: 2^n times a polynomial (Taylor's, of the rest in +-ln(2)/2). Below -87 as there; NaN remains.
inline __m512 exp(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-87.f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);  // ln(2) in two parts
  rest = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), rest);
  __m512 sum = _mm512_set1_ps(1.f / 720);
  for (float factor : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factor));
  return _mm512_scalef_ps(sum, n);
}

}  // namespace vl2
