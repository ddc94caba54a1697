#include "leap.h"

#include <algorithm>
#include <cmath>

namespace fastft::cpu {

void advance(const Leaps& a, double shrink, double lr) {
  const double t = static_cast<double>(a.before + a.count);
  const double size = lr / (1 - std::pow(a.beta1, t)), back = 1 / std::sqrt(a.beta2);
  const double log_beta1 = math::log_of(a.beta1), log_beta2 = math::log_of(a.beta2);
  math::Departure& now = a.departures[a.count];
  now.decay = a.departures[a.count - 1].decay + math::log_of(shrink);
  double z = std::sqrt(1 - std::pow(a.beta2, t)), beta1 = 1;  // of j = 0
  double next = std::pow(a.beta2, t + 1);                     // beta2 to the number of the step after s
  for (int64_t j = 0; j <= std::min(a.reach, a.count); ++j) {
    const int64_t s = a.count - j;
    math::Departure& d = a.departures[s];
    double q = j ? z * beta1 * size / math::decay_between(d, now) : 0;
    for (double& moment : a.moments[s]) moment += q, q *= z;
    const double first = std::sqrt(1 - next) * back;
    math::set_nodes(d, a.moments[s], first, j ? z : first);
    d.log_beta1 = static_cast<double>(s) * log_beta1, d.log_beta2 = static_cast<double>(s) * log_beta2;
    z *= back, beta1 *= a.beta1, next /= a.beta2;
  }
}

}  // namespace fastft::cpu
