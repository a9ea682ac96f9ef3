#include "products.h"

#include <map>
#include <tuple>
#include <unordered_map>

namespace vl2 {

namespace {

constexpr size_t kMostKnown = 2000;

struct Product {
  dnnl::matmul primitive;
  memory::desc source, weights, target, bias, factor;
};

struct HeadsProduct {
  dnnl::matmul primitive;
  memory::desc source, weights, target;
};

dnnl::primitive_attr attributes(const After& after, const memory::desc& factor) {
  dnnl::post_ops operations;
  if (after.activation == kGeluTanh)
    operations.append_eltwise(dnnl::algorithm::eltwise_gelu_tanh, 0.f, 0.f);
  if (after.activation == kSilu) operations.append_eltwise(dnnl::algorithm::eltwise_swish, 1.f, 0.f);
  if (after.factor) operations.append_binary(dnnl::algorithm::binary_mul, factor);
  if (after.add) operations.append_sum(1.f);
  dnnl::primitive_attr result;
  result.set_post_ops(operations);
  return result;
}

Product make_product(DataType target_type, int64_t m, int64_t k, int64_t n, const After& after) {
  memory::desc source({m, k}, DataType::bf16, memory::format_tag::ab);
  memory::desc weights({k, n}, DataType::bf16, memory::format_tag::BA16a64b2a);
  memory::desc target({m, n}, target_type, memory::format_tag::ab);
  memory::desc bias({1, n}, DataType::f32, memory::format_tag::ab);
  memory::desc factor({m, n}, DataType::f32, memory::format_tag::ab);
  auto attr = attributes(after, factor);
  auto description =
      after.bias ? dnnl::matmul::primitive_desc(engine(), source, weights, bias, target, attr)
                 : dnnl::matmul::primitive_desc(engine(), source, weights, target, attr);
  return {dnnl::matmul(description), source, weights, target, bias, factor};
}

// The one of `key`, made where it is not known yet.
template <typename Key, typename Value, typename Make>
Value& known_or_made(std::map<Key, Value>& known, const Key& key, Make make) {
  auto found = known.find(key);
  if (found != known.end()) return found->second;
  if (known.size() > kMostKnown) known.clear();
  return known.emplace(key, make()).first->second;
}

}  // namespace

void multiply(const Bf16* source, const Bf16* weights, void* target, DataType target_type, int64_t m, int64_t k,
              int64_t n, const After& after) {
  using Key = std::tuple<int64_t, int64_t, int64_t, int, int, bool, bool, bool>;
  static std::map<Key, Product> known;
  Key key{m, k, n, (int)target_type, after.activation, after.bias != nullptr, after.factor != nullptr, after.add};
  Product& it = known_or_made(known, key, [&] { return make_product(target_type, m, k, n, after); });
  std::unordered_map<int, memory> arguments{
      {DNNL_ARG_SRC, memory(it.source, engine(), (void*)source)},
      {DNNL_ARG_WEIGHTS, memory(it.weights, engine(), (void*)weights)},
      {DNNL_ARG_DST, memory(it.target, engine(), target)},
  };
  if (after.bias) arguments.emplace(DNNL_ARG_BIAS, memory(it.bias, engine(), (void*)after.bias));
  if (after.factor) {
    int place = DNNL_ARG_ATTR_MULTIPLE_POST_OP(after.activation == kNone ? 0 : 1) | DNNL_ARG_SRC_1;
    arguments.emplace(place, memory(it.factor, engine(), (void*)after.factor));
  }
  it.primitive.execute(stream(), arguments);
}

void multiply_heads(const Bf16* source, Steps source_steps, const Bf16* weights, Steps weight_steps, void* target,
                    DataType target_type, Steps target_steps, int64_t heads, int64_t m, int64_t k, int64_t n) {
  auto dims = [](Steps steps) { return memory::dims{steps.head, steps.row, steps.column}; };
  using Key = std::tuple<memory::dims, memory::dims, memory::dims, memory::dims, int>;
  static std::map<Key, HeadsProduct> known;
  Key key{{heads, m, k, n}, dims(source_steps), dims(weight_steps), dims(target_steps), (int)target_type};
  HeadsProduct& it = known_or_made(known, key, [&] {
    memory::desc a({heads, m, k}, DataType::bf16, dims(source_steps));
    memory::desc b({heads, k, n}, DataType::bf16, dims(weight_steps));
    memory::desc c({heads, m, n}, target_type, dims(target_steps));
    return HeadsProduct{dnnl::matmul(dnnl::matmul::primitive_desc(engine(), a, b, c)), a, b, c};
  });
  it.primitive.execute(stream(), {{DNNL_ARG_SRC, memory(it.source, engine(), (void*)source)},
                                  {DNNL_ARG_WEIGHTS, memory(it.weights, engine(), (void*)weights)},
                                  {DNNL_ARG_DST, memory(it.target, engine(), target)}});
}

}  // namespace vl2
