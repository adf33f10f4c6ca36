// A step of `MetaOptimize` as one pass over the memory of a CPU. Every weight is read and written once, with its
// gradient, its buffers and its trace, and the inner product of gradients and old traces is summed on the way: in
// blocks of a fixed size, whose sums are added in their order, so that no result depends on the number of threads.
// NaN and infinity are handed on as torch hands them on.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

using Int = std::int64_t;

namespace {

constexpr Int BLOCK = 1 << 12;  // weights whose products are added up in their own type; those of blocks are double
constexpr Int LANES = 32;       // sums of products side by side, so that none waits for another
constexpr Int GRAIN = 1 << 15;  // weights that are worth a thread

// A bucket's hyperparameters, in the order in which `fused.py` hands them over.
struct Numbers {
  double lr, keep, decay, sign, first, second, eps;
};

template <class T>
T sign(T x) {
  return T(x > T(0)) - T(x < T(0));  // 0 of NaN, as torch's
}

// `lr weight_decay w`, and 0 without a decay even where w is not finite.
template <class T>
struct Decay {
  const T rate;
  const bool on;
  explicit Decay(const Numbers& n) : rate(n.lr * n.decay), on(n.decay != 0) {}
  T operator()(T w) const {
    const T pull = rate * w;
    return on ? pull : T(0);
  }
};

// What one weight and its buffers become; `plain` is the normalised gradient.
template <class T>
struct Step {
  T change, plain, m, v;
};

// The base optimisers. Each has the numbers of one tensor, `step` being its count, and for one weight updates the
// buffers, and gives the change and the normalised gradient `plain`.

template <class T>
struct SGD {
  static constexpr Int BUFFERS = 0;
  static constexpr bool COUNTED = false;
  const T lr;
  const Decay<T> decay;
  SGD(const Numbers& n, double) : lr(n.lr), decay(n) {}
  Step<T> operator()(T w, T g, T m, T v) const {
    return {-lr * g - decay(w), g, m, v};
  }
};

template <class T>
struct Momentum {
  static constexpr Int BUFFERS = 1;
  static constexpr bool COUNTED = false;
  const T lr, momentum, decay;
  const bool decays;
  Momentum(const Numbers& n, double) : lr(n.lr), momentum(n.first), decay(n.decay), decays(n.decay != 0) {}
  Step<T> operator()(T w, T g, T m, T v) const {
    const T pull = decay * w;
    m = momentum * m + g + (decays ? pull : T(0));
    return {-lr * m, g, m, v};
  }
};

template <class T>
struct RMSprop {
  static constexpr Int BUFFERS = 1;
  static constexpr bool COUNTED = false;
  const T lr, b, rest, eps;
  const Decay<T> decay;
  RMSprop(const Numbers& n, double) : lr(n.lr), b(n.first), rest(1 - n.first), eps(n.eps), decay(n) {}
  Step<T> operator()(T w, T g, T m, T v) const {
    m = b * m + rest * g * g;
    const T plain = g / (std::sqrt(m) + eps);
    return {-lr * plain - decay(w), plain, m, v};
  }
};

template <class T>
struct AdamW {
  static constexpr Int BUFFERS = 2;
  static constexpr bool COUNTED = true;
  const T rate, rest1, b2, rest2, scale, eps;
  const Decay<T> decay;
  AdamW(const Numbers& n, double step)
      : rate(n.lr / (1 - std::pow(n.first, step))), rest1(1 - n.first), b2(n.second), rest2(1 - n.second),
        scale(1 / std::sqrt(1 - std::pow(n.second, step))), eps(n.eps), decay(n) {}
  Step<T> operator()(T w, T g, T m, T v) const {
    m += rest1 * (g - m);
    v = b2 * v + rest2 * g * g;
    const T root = std::sqrt(v) * scale + eps;
    return {-rate * m / root - decay(w), g / root, m, v};
  }
};

template <class T>
struct Lion {
  static constexpr Int BUFFERS = 1;
  static constexpr bool COUNTED = false;
  const T lr, rest1, rest2;
  const Decay<T> decay;
  Lion(const Numbers& n, double) : lr(n.lr), rest1(1 - n.first), rest2(1 - n.second), decay(n) {}
  Step<T> operator()(T w, T g, T m, T v) const {
    const T change = -lr * sign(m + rest1 * (g - m)) - decay(w);
    return {change, sign(g), m + rest2 * (g - m), v};
  }
};

// Where the numbers of some weights lie; buffers that a base does not have lie nowhere.
template <class T>
struct Place {
  T *w, *g, *h, *m, *v;
  Int size;

  Place part(Int a, Int n) const { return {w + a, g + a, h + a, m ? m + a : m, v ? v + a : v, n}; }
};

// Steps weights and returns the product of their gradients and old traces.
template <class T, class Rule, bool PACKAGE>
double move(const Place<T>& at, const Rule& rule, const Numbers& n) {
  T *w = at.w, *g = at.g, *h = at.h, *m = at.m, *v = at.v;
  const T keep = n.keep, lr = n.lr, sign = n.sign;
  const auto one = [=](Int i, T& sum) {
    const T grad = sign * g[i], trace = h[i];
    const Step<T> step = rule(w[i], grad, Rule::BUFFERS > 0 ? m[i] : T(0), Rule::BUFFERS > 1 ? v[i] : T(0));
    if constexpr (Rule::BUFFERS > 0) m[i] = step.m;
    if constexpr (Rule::BUFFERS > 1) v[i] = step.v;
    sum += grad * trace;
    h[i] = keep * trace + (PACKAGE ? -lr * step.plain : step.change);
    w[i] += step.change;
  };
  T sums[LANES] = {};
  Int i = 0;
  for (; i + LANES <= at.size; i += LANES)
#pragma GCC ivdep
    for (Int lane = 0; lane < LANES; ++lane) one(i + lane, sums[lane]);
  for (Int lane = 0; i + lane < at.size; ++lane) one(i + lane, sums[lane]);
  double total = 0;
  for (const T sum : sums) total += sum;
  return total;
}

// `pointers` are those to the weights of each tensor, then the gradients, traces, buffers and counters.
template <class T, template <class> class Rule, bool PACKAGE>
double advance(void* const* pointers, const Int* sizes, Int count, const Numbers& n, Int threads) {
  constexpr Int BUFFERS = Rule<T>::BUFFERS;
  struct Block {
    Place<T> at;
    Int tensor;
  };
  std::vector<Block> blocks;
  std::vector<Rule<T>> rules;
  Int weights = 0;
  for (Int k = 0; k < count; ++k) {
    const auto column = [&](Int c) { return static_cast<T*>(pointers[c * count + k]); };
    const Place<T> all = {column(0), column(1), column(2), BUFFERS > 0 ? column(3) : nullptr,
                          BUFFERS > 1 ? column(4) : nullptr, sizes[k]};
    double step = 0;
    if constexpr (Rule<T>::COUNTED) step = *static_cast<float*>(pointers[(3 + BUFFERS) * count + k]) += 1;
    rules.emplace_back(n, step);
    for (Int a = 0; a < sizes[k]; a += BLOCK) blocks.push_back({all.part(a, std::min(BLOCK, sizes[k] - a)), k});
    weights += sizes[k];
  }
  std::vector<double> sums(blocks.size());
  [[maybe_unused]] const int workers = std::max(Int(1), std::min(threads, weights / GRAIN));
#ifdef _OPENMP
#pragma omp parallel for num_threads(workers) if (workers > 1)
#endif
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    sums[i] = move<T, Rule<T>, PACKAGE>(block.at, rules[block.tensor], n);
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace

#define EXPORT(NAME, RULE, T, TYPE)                                                                               \
  extern "C" double NAME##_##TYPE(void* const* pointers, const Int* sizes, Int count, const double* numbers,      \
                                  Int package, Int threads) {                                                     \
    const Numbers n = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6]};       \
    return package ? advance<T, RULE, true>(pointers, sizes, count, n, threads)                                   \
                   : advance<T, RULE, false>(pointers, sizes, count, n, threads);                                 \
  }
#define EXPORT_BOTH(NAME, RULE) EXPORT(NAME, RULE, float, float32) EXPORT(NAME, RULE, double, float64)

EXPORT_BOTH(sgd, SGD)
EXPORT_BOTH(sgdm, Momentum)
EXPORT_BOTH(rmsprop, RMSprop)
EXPORT_BOTH(adamw, AdamW)
EXPORT_BOTH(lion, Lion)
