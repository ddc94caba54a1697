// Loops over csrc/math with C names, for the tests beside this file. An array of SoftmaxSum is (n, 4) floats.
#include <cstdint>

#include "adamw.h"
#include "half.h"
#include "leap.h"
#include "logit.h"
#include "online_softmax.h"
#include "row.h"

using namespace fastft::math;

static_assert(sizeof(SoftmaxSum) == 4 * sizeof(float), "the tests see max, sum, moment, dot_q");
static_assert(sizeof(RowCoefficients) == 3 * sizeof(float), "the tests see label, smooth, lse_square");
static_assert(sizeof(Departure) == 9 * sizeof(double), "the tests see logs, weights, nodes, half, first");
static_assert(sizeof(bf16) == 2 && sizeof(fp16) == 2, "the tests see bit patterns");

extern "C" {

void exponentials(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = exp_nonpositive(x[i]);
}

void hyperbolic_tangents(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = hyperbolic_tangent(x[i]);
}

void from_fp16(const fp16* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = to_float(x[i]);
}

void from_bf16(const bf16* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = to_float(x[i]);
}

void to_fp16(const float* x, fp16* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = from_float<fp16>(x[i]);
}

void to_bf16(const float* x, bf16* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = from_float<bf16>(x[i]);
}

void transforms(const float* x, float* z, float* slope, int64_t n, float scale, float softcap) {
  const LogitTransform f{scale, softcap};
  for (int64_t i = 0; i < n; ++i) {
    z[i] = softcap != 0.0f ? f.apply<true>(x[i]) : f.apply<false>(x[i]);
    slope[i] = softcap != 0.0f ? f.slope<true>(x[i]) : f.slope<false>(x[i]);
  }
}

void identities(SoftmaxSum* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = SoftmaxSum{};
}

void combinations(const SoftmaxSum* a, const SoftmaxSum* b, SoftmaxSum* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = combine(a[i], b[i]);
}

void lses(const SoftmaxSum* s, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = lse(s[i]);
}

void entropies(const SoftmaxSum* s, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = entropy(s[i]);
}

void likelihoods(const SoftmaxSum* others, const float* z, const float* row_lse, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = negative_log_likelihood(others[i], z[i], row_lse[i]);
}

void lse_weights(const RowCoefficients* c, const float* row_lse, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = lse_weight(c[i], row_lse[i]);
}

void target_gradients(const RowCoefficients* c, const float* q, const float* row_lse, const float* p,
                      const float* p_others, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = target_gradient(c[i], q[i], row_lse[i], p[i], p_others[i]);
}

// In place over n elements; one step each, then `idle` steps with g = 0.
void adamw_steps(const AdamWStep* s, const AdamWConstants* c, const float* g, float* p, float* m, float* v,
                 int64_t idle, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    adamw_step(p[i], m[i], v[i], g[i], s[0], *c);
    for (int64_t j = 1; j <= idle; ++j) adamw_step(p[i], m[i], v[i], 0.0f, s[j], *c);
  }
}

void adamw_leaps(const AdamWLeap* l, const AdamWConstants* c, float* p, float* m, float* v, float* close,
                 int64_t n) {
  for (int64_t i = 0; i < n; ++i) close[i] = adamw_leap(p[i], m[i], v[i], *l, *c);
}

void nodes(const double (*moments)[4], const double* first, const double* last, Departure* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) set_nodes(out[i], moments[i], first[i], last[i]);
}

void leaps_between(const Departure* left, const Departure* now, AdamWLeap* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = leap_between(left[i], now[i]);
}

}  // extern "C"
