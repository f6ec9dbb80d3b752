// Inverse of a masked affine autoregressive flow on the CPU: every hidden unit computed once.
//
// Rows come in blocks, whose units stay in the first cache from the first feature to the last: they
// are transposed, so that a unit is a few vectors and all arithmetic runs along the rows. Numbers
// are float or double (T). A block depends on no other, nor on the number of threads.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "normal.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;
using nflows_mixer::exponential;
using nflows_mixer::normal;
using nflows_mixer::softplus;

constexpr int64_t kVectors = 4;  // of 64 bytes, of a unit in a block

// Sums of this type, unlike arrays, stay in registers.
template <typename T>
struct Vector {
  typedef T Type __attribute__((vector_size(64)));
};

template <typename T>
constexpr int64_t kLanes = 64 / sizeof(T);
template <typename T>
constexpr int64_t kRows = kVectors * kLanes<T>;

template <typename T>
struct Product {
  const T* weights;  // [units, columns]
  int64_t columns;   // units of the source
  size_t source;     // 0 for the features, else a stage
};

// Units of a network, sorted by degree.
template <typename T>
struct Stage {
  const T* bias;         // [units, bias_columns]
  int64_t bias_columns;  // 1, or as many as rows
  int64_t begin;         // of its units among all
  const int64_t* below;  // how many have a degree below 0, 1, ..., D
  std::vector<Product<T>> products;
};

template <typename T>
inline auto load(const T* from) {
  typename Vector<T>::Type values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

template <typename T>
void copy_padded(const T* from, int64_t count, T* to) {
  std::copy_n(from, count, to);
  std::fill(to + count, to + kRows<T>, T(0));
}

// What the activation of `Units` units, from `unit` on, is applied to; the first row of the block
// is `row`, and `known` features are there.
template <int Units, typename T>
void sums(const std::vector<Stage<T>>& stages, const Stage<T>& stage, int64_t unit, int64_t known,
          int64_t row, int64_t rows, const T* memory, T* result) {
  using Vec = typename Vector<T>::Type;
  Vec total[Units][kVectors];
  for (int p = 0; p < Units; ++p) {
    const T* bias = stage.bias + (unit + p) * stage.bias_columns;
    if (stage.bias_columns == 1)
      for (int64_t k = 0; k < kVectors; ++k) total[p][k] = Vec{} + bias[0];
    else {
      T padded[kRows<T>];
      copy_padded(bias + row, rows, padded);
      for (int64_t k = 0; k < kVectors; ++k) total[p][k] = load(padded + k * kLanes<T>);
    }
  }
  for (const Product<T>& product : stage.products) {
    const Stage<T>& source = stages[product.source];
    const T* weights = product.weights + unit * product.columns;
    const T* values = memory + source.begin * kRows<T>;
    const int64_t count = product.source == 0 ? known : source.below[known + 1];
    for (int64_t i = 0; i < count; ++i)
      for (int64_t k = 0; k < kVectors; ++k) {
        const Vec value = load(values + i * kRows<T> + k * kLanes<T>);
        for (int p = 0; p < Units; ++p)
          total[p][k] += weights[p * product.columns + i] * value;
      }
  }
  for (int p = 0; p < Units; ++p)
    for (int64_t k = 0; k < kVectors; ++k) {
      const Vec whole = total[p][k];
      std::memcpy(result + p * kRows<T> + k * kLanes<T>, &whole, sizeof(Vec));
    }
}

template <bool Gelu, typename T>
void activate(T* values, int64_t count) {
  for (int64_t r = 0; r < count; ++r) {
    if constexpr (Gelu) {
      T cdf, density;
      normal(values[r], cdf, density);
      values[r] *= cdf;
    } else {
      values[r] = values[r] < T(0) ? T(0) : values[r];
    }
  }
}

// (y - t) / scale(u)
template <bool Softplus, typename T>
void solve(const T* y, const T* u, const T* t, T floor, T* x) {
  for (int64_t r = 0; r < kRows<T>; ++r) {
    if constexpr (Softplus)
      x[r] = (y[r] - t[r]) / (floor + softplus(u[r]));
    else
      x[r] = (y[r] - t[r]) / (floor + exponential(u[r]));
  }
}

template <bool Gelu, bool Softplus, typename T>
void invert(const std::vector<Stage<T>>& stages, const T* latents, T floor, int64_t rows,
            int64_t features, int64_t units, T* outputs, T* parameters) {
  constexpr int64_t size = kRows<T>;
  at::parallel_for(0, (rows + size - 1) / size, 4, [&](int64_t first, int64_t last) {
    Tensor scratch = at::empty({units, size}, c10::CppTypeToScalarType<T>::value);
    T* memory = scratch.mutable_data_ptr<T>();
    for (int64_t row = first * size; row < std::min(last * size, rows); row += size) {
      const int64_t count = std::min(size, rows - row);
      for (int64_t d = 0; d < features; ++d) {
        for (size_t s = 1; s + 1 < stages.size(); ++s) {
          const Stage<T>& stage = stages[s];
          const int64_t begin = stage.below[d], end = stage.below[d + 1];
          T* place = memory + (stage.begin + begin) * size;
          int64_t unit = begin;
          for (; unit + 1 < end; unit += 2)
            sums<2>(stages, stage, unit, d, row, count, memory, place + (unit - begin) * size);
          if (unit < end)
            sums<1>(stages, stage, unit, d, row, count, memory, place + (unit - begin) * size);
          activate<Gelu>(place, (end - begin) * size);
        }
        T found[2][size], y[size] = {};
        sums<2>(stages, stages.back(), 2 * d, d, row, count, memory, found[0]);
        for (int64_t r = 0; r < count; ++r) y[r] = latents[(row + r) * features + d];
        T* x = memory + d * size;
        solve<Softplus>(y, found[0], found[1], floor, x);
        for (int64_t r = 0; r < count; ++r) outputs[(row + r) * features + d] = x[r];
        for (int64_t p = 0; p < 2; ++p)
          std::copy_n(found[p], count, parameters + (2 * d + p) * rows + row);
      }
    }
  });
}

std::tuple<Tensor, Tensor> masked_affine_inverse(
    const Tensor& latents, at::TensorList weights, at::IntArrayRef readers,
    at::IntArrayRef sources, at::TensorList biases, at::IntArrayRef below, bool gelu,
    bool softplus, double floor) {
  const Tensor y = latents.contiguous();
  const int64_t rows = y.size(0), features = y.size(1);
  Tensor outputs = at::empty_like(y), parameters = at::empty({features, 2, rows}, y.options());
  std::vector<Tensor> kept;  // what the stages below point to
  const auto contiguous = [&](const Tensor& tensor) {
    return kept.emplace_back(tensor.contiguous());
  };
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "masked_affine_inverse", [&] {
    std::vector<Stage<scalar_t>> stages(1);
    int64_t units = features;
    for (size_t s = 0; s < biases.size(); ++s) {
      const Tensor bias = contiguous(biases[s]);
      stages.push_back({bias.const_data_ptr<scalar_t>(), bias.size(1), units,
                        below.data() + s * (features + 1), {}});
      units += bias.size(0);
    }
    for (size_t i = 0; i < weights.size(); ++i) {
      const Tensor weight = contiguous(weights[i]);
      stages[readers[i]].products.push_back(
          {weight.const_data_ptr<scalar_t>(), weight.size(1), size_t(sources[i])});
    }
    const auto run = [&](auto is_gelu, auto is_softplus) {
      invert<is_gelu(), is_softplus()>(stages, y.const_data_ptr<scalar_t>(), scalar_t(floor), rows,
                                       features, units, outputs.mutable_data_ptr<scalar_t>(),
                                       parameters.mutable_data_ptr<scalar_t>());
    };
    const std::true_type yes;
    const std::false_type no;
    if (gelu)
      softplus ? run(yes, yes) : run(yes, no);
    else
      softplus ? run(no, yes) : run(no, no);
  });
  return {outputs, parameters};
}

}  // namespace

TORCH_LIBRARY_IMPL(nflows_mixer, CPU, library) {
  library.impl("masked_affine_inverse", masked_affine_inverse);
}
