// The operations of `relu_nets.py` for a CPU, one thread. Rows are taken ROWS at a time and packed as columns, a
// vector of rows an instruction: inputs and the mask of active units then stay in the first two caches, and nothing
// of size R H N is written to memory. NaN is handed on as torch hands it on.

#include <algorithm>
#include <cstdint>
#include <vector>

using Int = std::int64_t;

namespace {

constexpr Int ROWS = 256;  // of a block
constexpr Int UNITS = 10;  // hidden units at a time: a load of inputs serves them all, and no sum waits for another

template <class T>
struct Lanes {
  typedef T Vec __attribute__((vector_size(64)));
  static constexpr Int COUNT = 64 / sizeof(T);
};

Int up(Int n, Int step) { return (n + step - 1) / step * step; }

template <class T>
T total(typename Lanes<T>::Vec v) {
  for (Int half = Lanes<T>::COUNT / 2; half; half /= 2)
    for (Int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// Sizes: R nets, H hidden units, D inputs with the 1 among them, N rows.
template <class T>
class Nets {
  using Vec = typename Lanes<T>::Vec;
  static constexpr Int WIDTH = Lanes<T>::COUNT;
  static constexpr Int VECTORS = ROWS / WIDTH;

 public:
  Nets(const T* x, Int r, Int h, Int d, Int n)
      : R(r), H(h), D(d), N(n), hp(up(h, UNITS)), dp(up(d, 2)), columns((n + ROWS - 1) / ROWS * d * VECTORS),
        mask(hp * VECTORS), weighted(dp * VECTORS), out(VECTORS), lanes(hp * dp), w(hp * d), z(hp * d), v(hp) {
    for (Int a = 0; a < N; a += ROWS)
      for (Int k = 0; k < D; ++k)
        std::copy_n(x + k * N + a, std::min(ROWS, N - a), reinterpret_cast<T*>(block(a)) + k * ROWS);
  }

  void losses(const T* first, const T* second, const T* bias, const T* y, T* loss) {
    for (Int r = 0; r < R; ++r) {
      Vec all = {};
      pack(first + r * H * D, w);
      std::copy_n(second + r * H, H, v.begin());
      for (Int a = 0; a < N; a += ROWS) {
        errors(a, bias[r], y);
        for (Vec& e : out) all += e * e;
      }
      loss[r] = total<T>(all) / N;
    }
  }

  void sums(const T* first, const T* second, const T* bias, const T* y, T* g, T* s) {
    for (Int r = 0; r < R; ++r) {
      pack(first + r * H * D, w);
      std::copy_n(second + r * H, H, v.begin());
      std::fill(lanes.begin(), lanes.end(), Vec{});
      Vec all = {};
      for (Int a = 0; a < N; a += ROWS) {
        errors(a, bias[r], y);
        gather(a, all);
      }
      unpack(g + r * H * D);
      s[r] = total<T>(all);
    }
  }

  void sums_backward(const T* first, const T* direction, const T* shift, T* g, T* s) {
    for (Int r = 0; r < R; ++r) {
      pack(first + r * H * D, w);
      pack(direction + r * H * D, z);
      std::fill(lanes.begin(), lanes.end(), Vec{});
      Vec all = {};
      for (Int a = 0; a < N; a += ROWS) {
        changes(a, shift[r]);
        gather(a, all);
      }
      unpack(g + r * H * D);
      s[r] = total<T>(all);
    }
  }

 private:
  const Int R, H, D, N, hp, dp;
  std::vector<Vec> columns, mask, weighted, out, lanes;  // lanes: G, before those of each entry are added up
  std::vector<T> w, z, v;

  Vec* block(Int a) { return columns.data() + a / ROWS * D * VECTORS; }

  // Weights in the order in which `activations` reads them.
  void pack(const T* from, std::vector<T>& to) {
    for (Int h = 0; h < H; ++h)
      for (Int k = 0; k < D; ++k) to[(h / UNITS * D + k) * UNITS + h % UNITS] = from[h * D + k];
  }

  // c of the padding rows is 0, so that they add nothing.
  void cut(Int a) {
    T* c = reinterpret_cast<T*>(out.data());
    if (N - a < ROWS) std::fill(c + (N - a), c + ROWS, T(0));
  }

  // `pre[i]` of UNITS units from h on, for one vector of rows.
  static void activations(const T* weights, const Vec* x, Int inputs, Vec* pre) {
#pragma GCC unroll 16
    for (Int i = 0; i < UNITS; ++i) pre[i] = Vec{};
    for (Int k = 0; k < inputs; ++k, weights += UNITS, x += VECTORS)
#pragma GCC unroll 16
      for (Int i = 0; i < UNITS; ++i) pre[i] += weights[i] * *x;
  }

  // `active` is 1, 0, or NaN.
  static void rectify(Vec& pre, Vec& active) {
    const Vec zero = {}, one = zero + T(1);
    pre = pre < zero ? zero : pre;
    active = pre > zero ? one : pre;
  }

  // out = o - y; leaves the mask.
  void errors(Int a, T bias, const T* y) {
    T* e = reinterpret_cast<T*>(out.data());
    for (Int n = 0; n < std::min(ROWS, N - a); ++n) e[n] = bias - y[a + n];
    const Vec* x = block(a);
    for (Int h = 0; h < hp; h += UNITS)
      for (Int n = 0; n < VECTORS; ++n) {
        Vec pre[UNITS], sum = out[n];
        activations(w.data() + h * D, x + n, D, pre);
#pragma GCC unroll 16
        for (Int i = 0; i < UNITS; ++i) {
          rectify(pre[i], mask[(h + i) * VECTORS + n]);
          sum += v[h + i] * pre[i];
        }
        out[n] = sum;
      }
    cut(a);
  }

  // out = <z x, M> + shift; leaves the mask.
  void changes(Int a, T shift) {
    for (Vec& e : out) e = Vec{} + shift;
    const Vec* x = block(a);
    for (Int h = 0; h < hp; h += UNITS)
      for (Int n = 0; n < VECTORS; ++n) {
        Vec pre[UNITS], along[UNITS], sum = out[n];
        activations(w.data() + h * D, x + n, D, pre);
        activations(z.data() + h * D, x + n, D, along);
#pragma GCC unroll 16
        for (Int i = 0; i < UNITS; ++i) {
          Vec active;
          rectify(pre[i], active);
          sum += active * along[i];
          mask[(h + i) * VECTORS + n] = active;
        }
        out[n] = sum;
      }
    cut(a);
  }

  // Adds the block's part of G to `lanes` and that of S to `all`, with c = 2 out / N.
  void gather(Int a, Vec& all) {
    const Vec* x = block(a);
    for (Int n = 0; n < VECTORS; ++n) {
      const Vec c = out[n] * (T(2) / N);
      all += c;
      for (Int k = 0; k < D; ++k) weighted[k * VECTORS + n] = c * x[k * VECTORS + n];
    }
    for (Int h = 0; h < hp; h += UNITS)
      for (Int k = 0; k < dp; k += 2) {
        Vec acc[UNITS][2] = {};
        const Vec *m = mask.data() + h * VECTORS, *c = weighted.data() + k * VECTORS;
        for (Int n = 0; n < VECTORS; ++n)
#pragma GCC unroll 16
          for (Int i = 0; i < UNITS; ++i)
#pragma GCC unroll 2
            for (Int j = 0; j < 2; ++j) acc[i][j] += m[i * VECTORS + n] * c[j * VECTORS + n];
        for (Int i = 0; i < UNITS; ++i)
          for (Int j = 0; j < 2; ++j) lanes[(h + i) * dp + k + j] += acc[i][j];
      }
  }

  void unpack(T* g) const {
    for (Int h = 0; h < H; ++h)
      for (Int k = 0; k < D; ++k) g[h * D + k] = total<T>(lanes[h * dp + k]);
  }
};

}  // namespace

// As the operations of the same names; the results come before the sizes.
#define EXPORT(T, NAME)                                                                                             \
  extern "C" void loss_##NAME(const T* first, const T* second, const T* bias, const T* x, const T* y, T* loss,      \
                              Int R, Int H, Int D, Int N) {                                                         \
    Nets<T>(x, R, H, D, N).losses(first, second, bias, y, loss);                                                    \
  }                                                                                                                 \
  extern "C" void sums_##NAME(const T* first, const T* second, const T* bias, const T* x, const T* y, T* g, T* s,   \
                              Int R, Int H, Int D, Int N) {                                                         \
    Nets<T>(x, R, H, D, N).sums(first, second, bias, y, g, s);                                                      \
  }                                                                                                                 \
  extern "C" void sums_backward_##NAME(const T* first, const T* z, const T* z_s, const T* x, T* g, T* s,            \
                                       Int R, Int H, Int D, Int N) {                                                \
    Nets<T>(x, R, H, D, N).sums_backward(first, z, z_s, g, s);                                                      \
  }

EXPORT(float, float32)
EXPORT(double, float64)
