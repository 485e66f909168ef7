#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace gsa::cpu {

// y = x / sqrt(mean(x^2) + eps) * weight (RMSNorm); weight may be null.
void rms_norm(const float* x, const float* weight, double eps, int64_t n, float* y);

// x = x / (1 + exp(-x))
void silu(float* x, int64_t n);

// x = max(x, 0)
void relu(float* x, int64_t n);

// x = silu(x) * up
void silu_multiply(const float* up, int64_t n, float* x);

// The gates of one token: keep[i] = sigmoid(f[i])^(1/normalizer), write[i] = 1 - keep[i], the
// latter by expm1, since keep is close to one. keep may be f.
void gates(const float* f, double normalizer, int64_t n, float* keep, float* write);

// x = exp(x - max x) / sum of the same
void softmax(float* x, int64_t n);

// n stored elements (f32, f16 or bf16), beginning at element `begin`, as floats.
void widen(const TensorView& stored, int64_t begin, int64_t n, float* out);

}  // namespace gsa::cpu
