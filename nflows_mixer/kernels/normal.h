// Elementary functions without branches and calls in float, so that loops over them can be
// vectorised.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace nflows_mixer {

template <typename To, typename From>
inline To bits(From value) {
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// e^x for x from -87 to 88, where it is a normal number; within an ulp or two.
inline float bounded_exponential(float exponent) {
  // Adding 1.5 * 2^23 rounds to an integer, which then lies in the lowest bits.
  const float shifted = exponent * 1.44269504f + 12582912.0f;
  const float whole = shifted - 12582912.0f;
  const float f = (exponent - whole * 0.693359375f) + whole * 2.12194440e-4f;
  const float series = 0.49999232f + f * (0.16667114f + f * (0.04189011f + f * 0.00831253f));
  const float power = 1.0f + f + f * f * series;
  return bits<float>(bits<uint32_t>(power) + (bits<uint32_t>(shifted) << 23));
}

inline double exponential(double x) { return std::exp(x); }
inline float exponential(float x) {
  // The square of that of x / 2, so that it is infinite, subnormal or 0 where e^x is.
  const float root = bounded_exponential(std::min(std::max(0.5f * x, -87.0f), 88.0f));
  return root * root;
}

// Distribution function and density of the standard normal.
inline void normal(double z, double& cdf, double& density) {
  cdf = 0.5 * std::erfc(-z * 0.70710678118654752);
  density = 0.39894228040143268 * std::exp(-0.5 * z * z);
}

// One exponential serves both: 1 - erf(x) is exp(-x^2) times a polynomial in 1 / (1 + p x), which
// is equation 7.1.26 of Abramowitz and Stegun, within 1.5e-7.
inline void normal(float z, float& cdf, float& density) {
  const float e = bounded_exponential(std::max(-0.5f * z * z, -87.0f));
  const float t = 1.0f / (1.0f + 0.23164189f * std::abs(z));
  const float polynomial =
      t * (0.127414796f +
           t * (-0.142248368f + t * (0.710706871f + t * (-0.726576014f + t * 0.530702715f))));
  const float tail = polynomial * e;
  cdf = z > 0.0f ? 1.0f - tail : tail;
  density = 0.398942280f * e;
}

// log(1 + e^x).
inline double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

// log(1 + e) = 2 artanh(t) with t = e / (2 + e), which is at most 1/3.
inline float softplus(float x) {
  const float e = exponential(-std::abs(x)), t = e / (2.0f + e), s = t * t;
  const float series =
      1.0f + s * (0.333333333f + s * (0.2f + s * (0.142857143f + s * (0.111111111f + s * (
      0.0909090909f + s * 0.0769230769f)))));
  return std::max(x, 0.0f) + 2.0f * t * series;
}

}  // namespace nflows_mixer
