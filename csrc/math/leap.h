#pragma once
#include <cmath>
#include <cstdint>

#include "adamw.h"

// What any number of AdamW steps with a zero gradient do, from each step after which a row may have been
// left; fastft/optim/leap.py has the formulas.
namespace fastft::math {

// What is known of such a step s: logs of products up to s; and of the steps since, the rule's two weights
// (without the weight decay up to the last of them) and nodes, half of how far z has gone, and its first.
struct Departure {
  double decay, log_beta1, log_beta2;
  double weight1, weight2, node1, node2, half, first;
};

constexpr double kTiny = 2.2250738585072014e-308;
constexpr double kSingle = 1e-12;  // of the mean squared: less variance is one node

// Of a beta or a weight decay's factor; finite for a beta of 0.
FT_HD double log_of(double x) { return log(x > kTiny ? x : kTiny); }

// The two-point Gauss rule of the moments 0 to 3 of z from `first` to `last`; two nodes of weight 0 where
// nothing is missed.
FT_HD void set_nodes(Departure& d, const double (&moments)[4], double first, double last) {
  const double size = moments[0] > kTiny ? moments[0] : kTiny;
  const double mean = moments[0] > 0 ? moments[1] / size : first, spread = moments[2] / size - mean * mean;
  const double variance = spread > 0 ? spread : 0;
  const double third = moments[3] / size - 3 * mean * moments[2] / size + 2 * mean * mean * mean;
  const bool single = variance <= kSingle * mean * mean;
  const double skew = single ? 0 : third / (2 * variance), root = sqrt(skew * skew + variance);
  const double share = single ? 0.5 : (skew + root) / (2 * root);
  d.weight1 = moments[0] * share, d.weight2 = moments[0] * (1 - share);
  d.node1 = mean + skew - root, d.node2 = mean + skew + root;
  d.half = (last - first) / 2, d.first = first;
}

// The product of weight decays.
FT_HD double decay_between(const Departure& left, const Departure& now) {
  return exp(now.decay - left.decay);
}

FT_HD AdamWLeap leap_between(const Departure& left, const Departure& now) {
  const double product = decay_between(left, now);
  return {static_cast<float>(product),
          static_cast<float>(left.weight1 * product),
          static_cast<float>(left.weight2 * product),
          static_cast<float>(left.node1),
          static_cast<float>(left.node2),
          static_cast<float>(left.half),
          static_cast<float>(left.first),
          static_cast<float>(exp(now.log_beta1 - left.log_beta1)),
          static_cast<float>(exp(now.log_beta2 - left.log_beta2))};
}

}  // namespace fastft::math
