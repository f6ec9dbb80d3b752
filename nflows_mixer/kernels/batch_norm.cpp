// GELU after batch normalisation on the CPU: forward and backward in two passes over memory each.
//
// Rows are float, double or bfloat16 (S below); all else, and arithmetic, is float or double (T).
// Rows come in blocks that stay in the first cache. Sums are taken per block, then over the blocks
// in their order, so that the result does not depend on the number of threads. Inner loops run
// along a row and hold no branch and no call, so that the compiler can vectorise them.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "normal.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;
using nflows_mixer::bits;
using nflows_mixer::normal;

constexpr int64_t kRows = 32;   // of a block
constexpr int64_t kWidth = 32;  // columns whose sums stay in registers

template <typename T>
inline T widened(T value) {
  return value;
}
inline float widened(at::BFloat16 value) { return bits<float>(uint32_t(value.x) << 16); }

template <typename T>
inline void store(T value, T& place) {
  place = value;
}
// The nearest, and of two the even one; c10's own conversion holds a branch.
inline void store(float value, at::BFloat16& place) {
  const uint32_t whole = bits<uint32_t>(value);
  const uint32_t rounded = (whole + 0x7fff + ((whole >> 16) & 1)) >> 16;
  place.x = uint16_t(value == value ? rounded : 0x7fc0);
}

// Call function(first column, width) on pieces of a row; the width of all but the last is a
// compile-time constant, with which sums over rows stay in registers.
template <typename F>
inline void for_pieces(int64_t columns, F function) {
  int64_t c = 0;
  for (; c + kWidth <= columns; c += kWidth)
    function(c, std::integral_constant<int64_t, kWidth>());
  if (c < columns) function(c, columns - c);
}

// Call function(block, its first row, one past its last row), blocks spread over the threads.
template <typename F>
inline void for_blocks(int64_t rows, F function) {
  at::parallel_for(0, (rows + kRows - 1) / kRows, 4, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block)
      function(block, block * kRows, std::min((block + 1) * kRows, rows));
  });
}

// Two numbers per block and column: sums of the block.
template <typename T>
struct Sums {
  Sums(int64_t rows, int64_t columns)
      : columns(columns), first((rows + kRows - 1) / kRows * columns), second(first.size()) {}
  int64_t columns;
  std::vector<T> first, second;

  static std::vector<double> total(const std::vector<T>& parts, int64_t columns) {
    std::vector<double> sums(columns);
    for (size_t start = 0; start < parts.size(); start += columns)
      for (int64_t j = 0; j < columns; ++j) sums[j] += parts[start + j];
    return sums;
  }
};

// Mean and variance; squares are of distances to the mean of the block, so that no large numbers
// are subtracted.
template <typename S, typename T>
void statistics(const S* x, int64_t rows, int64_t columns, T* mean, T* variance) {
  Sums<T> sums(rows, columns);
  for_blocks(rows, [&](int64_t block, int64_t begin, int64_t end) {
    for_pieces(columns, [&](int64_t c, auto width) {
      T sum[kWidth] = {}, centre[kWidth], square[kWidth] = {};
      for (int64_t n = begin; n < end; ++n)
        for (int64_t j = 0; j < width; ++j) sum[j] += widened(x[n * columns + c + j]);
      for (int64_t j = 0; j < width; ++j) centre[j] = sum[j] / T(end - begin);
      for (int64_t n = begin; n < end; ++n)
        for (int64_t j = 0; j < width; ++j) {
          const T d = widened(x[n * columns + c + j]) - centre[j];
          square[j] += d * d;
        }
      std::copy_n(sum, int64_t(width), &sums.first[block * columns + c]);
      std::copy_n(square, int64_t(width), &sums.second[block * columns + c]);
    });
  });
  const auto sum = Sums<T>::total(sums.first, columns);
  auto square = Sums<T>::total(sums.second, columns);
  for (int64_t begin = 0, start = 0; begin < rows; begin += kRows, start += columns) {
    const double count = std::min(kRows, rows - begin);
    for (int64_t j = 0; j < columns; ++j) {
      const double d = sums.first[start + j] / count - sum[j] / rows;
      square[j] += count * d * d;
    }
  }
  for (int64_t j = 0; j < columns; ++j) {
    mean[j] = T(sum[j] / rows);
    variance[j] = T(square[j] / rows);
  }
}

// scale[j] x + shift[j] is the normalised input with weight and bias.
template <typename T>
void affine(int64_t columns, const T* mean, const T* variance, const T* weight, const T* bias,
            double eps, std::vector<T>& scale, std::vector<T>& shift) {
  for (int64_t j = 0; j < columns; ++j) {
    scale[j] = T(weight[j] / std::sqrt(variance[j] + eps));
    shift[j] = T(bias[j] - double(mean[j]) * scale[j]);
  }
}

template <typename S, typename T>
void forward_kernel(const S* x, const T* weight, const T* bias, double eps, int64_t rows,
                    int64_t columns, S* outputs, T* mean, T* variance) {
  statistics(x, rows, columns, mean, variance);
  std::vector<T> scale(columns), shift(columns);
  affine(columns, mean, variance, weight, bias, eps, scale, shift);
  const T *s = scale.data(), *t = shift.data();
  for_blocks(rows, [=](int64_t, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t j = 0; j < columns; ++j) {
        const T z = widened(x[n * columns + j]) * s[j] + t[j];
        T cdf, density;
        normal(z, cdf, density);
        store(z * cdf, outputs[n * columns + j]);
      }
  });
}

template <typename S, typename T>
void backward_kernel(const S* gradient, const S* x, const T* mean, const T* variance,
                     const T* weight, const T* bias, double eps, int64_t rows, int64_t columns,
                     S* d_x, T* d_weight, T* d_bias) {
  std::vector<T> scale(columns), shift(columns);
  affine(columns, mean, variance, weight, bias, eps, scale, shift);
  Sums<T> sums(rows, columns);
  // First pass: the gradient of the normalised input, kept in d_x, and its two sums.
  for_blocks(rows, [&](int64_t block, int64_t begin, int64_t end) {
    for_pieces(columns, [&](int64_t c, auto width) {
      const T *s = &scale[c], *t = &shift[c], *m = mean + c;
      T sum[kWidth] = {}, product[kWidth] = {};
      for (int64_t n = begin; n < end; ++n) {
        const int64_t start = n * columns + c;
        for (int64_t j = 0; j < width; ++j) {
          const T value = widened(x[start + j]), z = value * s[j] + t[j];
          T cdf, density;
          normal(z, cdf, density);
          const T d_z = widened(gradient[start + j]) * (cdf + z * density);
          store(d_z, d_x[start + j]);
          sum[j] += d_z;
          product[j] += d_z * (value - m[j]);
        }
      }
      std::copy_n(sum, int64_t(width), &sums.first[block * columns + c]);
      std::copy_n(product, int64_t(width), &sums.second[block * columns + c]);
    });
  });
  const auto sum = Sums<T>::total(sums.first, columns);
  const auto product = Sums<T>::total(sums.second, columns);
  std::vector<T> slope(columns), constant(columns);
  for (int64_t j = 0; j < columns; ++j) {
    const double inverse = 1 / std::sqrt(variance[j] + eps);
    d_bias[j] = T(sum[j]);
    d_weight[j] = T(product[j] * inverse);
    slope[j] = T(-scale[j] * product[j] * inverse * inverse / rows);
    constant[j] = T(-scale[j] * sum[j] / rows);
  }
  // Second pass, in place: less what the mean and the variance send back.
  const T *s = scale.data(), *a = slope.data(), *b = constant.data();
  for_blocks(rows, [=](int64_t, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t j = 0; j < columns; ++j) {
        const T distance = widened(x[n * columns + j]) - mean[j];
        S& place = d_x[n * columns + j];
        store(widened(place) * s[j] + distance * a[j] + b[j], place);
      }
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& inputs, const Tensor& weight,
                                           const Tensor& bias, double eps) {
  const Tensor x = inputs.contiguous(), w = weight.contiguous(), b = bias.contiguous();
  Tensor outputs = at::empty_like(x), mean = at::empty_like(w), variance = at::empty_like(w);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "gelu_batch_norm", [&] {
    using wide_t = at::opmath_type<scalar_t>;
    forward_kernel(x.const_data_ptr<scalar_t>(), w.const_data_ptr<wide_t>(),
                   b.const_data_ptr<wide_t>(), eps, x.size(0), x.size(1),
                   outputs.mutable_data_ptr<scalar_t>(), mean.mutable_data_ptr<wide_t>(),
                   variance.mutable_data_ptr<wide_t>());
  });
  return {outputs, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& gradient, const Tensor& inputs,
                                            const Tensor& mean, const Tensor& variance,
                                            const Tensor& weight, const Tensor& bias, double eps) {
  const Tensor g = gradient.contiguous(), x = inputs.contiguous();
  const Tensor w = weight.contiguous(), b = bias.contiguous();
  Tensor d_x = at::empty_like(x), d_weight = at::empty_like(w), d_bias = at::empty_like(w);
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "gelu_batch_norm_backward", [&] {
    using wide_t = at::opmath_type<scalar_t>;
    backward_kernel(g.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                    mean.const_data_ptr<wide_t>(), variance.const_data_ptr<wide_t>(),
                    w.const_data_ptr<wide_t>(), b.const_data_ptr<wide_t>(), eps, x.size(0),
                    x.size(1), d_x.mutable_data_ptr<scalar_t>(),
                    d_weight.mutable_data_ptr<wide_t>(), d_bias.mutable_data_ptr<wide_t>());
  });
  return {d_x, d_weight, d_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(nflows_mixer, CPU, library) {
  library.impl("gelu_batch_norm", forward);
  library.impl("gelu_batch_norm_backward", backward);
}
