"""Maths of one row of cross-entropy for Triton kernels; csrc/math has the same for C++ and CUDA.

What a pass over the classes other than the target knows of their softmax is five numbers, or vectors of
them with an element per lane or per part of the row, which `combined` joins:

    top     max of z                             LOWEST where there is none
    total   sum of exp(z - top)
    moment  sum of exp(z - top) (z - top)
    dot     sum of q z, or of z where q is None
    left    max of z before the target           -inf where there is none

The target is kept apart, so that p = 1 costs no precision. Differences are taken before log2(e) is multiplied in:
z - top is exact where p is large.

Options are None where they do nothing (`scale` 1, no `softcap`, uniform `Q`), which costs no instruction.
"""

# mypy: disable-error-code="import-untyped, import-not-found, no-untyped-def, untyped-decorator"
import triton
import triton.language as tl

LOWEST = tl.constexpr(-3.4028234663852886e38)  # a finite "no maximum": a difference from it is never NaN
FAR = tl.constexpr(-200.0)  # its exp is 0 in fp32
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    return tl.exp2(x * LOG2_E)  # one instruction on NVIDIA, unlike tl.exp, which takes care of subnormal results


@triton.jit
def reciprocal(x):
    """1 / x of an x in [1, 2], in fewer instructions than a division that minds the range."""
    root = tl.rsqrt(x)
    r = root * root
    return r + r * (1.0 - x * r)


@triton.jit
def transformed(x, scale, softcap):
    """z = cap(scale x) in fp32, cap(u) = softcap tanh(u / softcap), and dz/dx."""
    u = x.to(tl.float32)
    slope = 1.0
    if scale is not None:
        u *= scale
        slope = scale
    if softcap is None:
        return u, slope
    else:
        inverse = 1.0 / softcap
        t = u * inverse
        t += tl.fma(-t, softcap, u) * inverse  # a division's rounding, without its care for the range
        small = tl.abs(t) < 0.625
        s = t * t
        p = -5.70498872745e-3 * s + 2.06390887954e-2  # Cephes' tanhf
        p = p * s - 5.37397155531e-2
        p = p * s + 1.33314422036e-1
        p = p * s - 3.33332819422e-1
        # Elsewhere with e = exp(-2 |t|): tanh |t| = 1 - 2 e / (1 + e), and its slope is 4 e / (1 + e)^2.
        e = tl.exp2(tl.abs(t) * (-2.0 * LOG2_E))
        r = reciprocal(1.0 + e)
        large = 1.0 - 2.0 * (e * r)
        tanh = tl.where(small, p * s * t + t, tl.where(t < 0.0, -large, large))
        return softcap * tanh, slope * tl.where(small, 1.0 - tanh * tanh, 4.0 * (e * r) * r)


@triton.jit
def log1p(x):
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.log(u) * (x / (u - 1.0)))  # the quotient undoes the rounding of u


@triton.jit
def extended(top, total, moment, z, top_z):
    """`top`, `total` and `moment` (LANES,) with z (LANES, VEC) added, whose maximum is `top_z` (LANES,)."""
    new = tl.maximum(top, top_z)
    shift = tl.maximum(top - new, FAR)
    factor = exp(shift)
    d = z - new[:, None]
    e = exp(d)
    moment = factor * (moment + shift * total) + tl.sum(e * tl.maximum(d, FAR), 1)  # 0 * -inf is NaN
    return new, factor * total + tl.sum(e, 1), moment


@triton.jit
def combined(vectors):
    """The five numbers from vectors of them."""
    top, total, moment, dot, left = vectors
    peak = tl.max(top, 0)
    shift = tl.maximum(top - peak, FAR)
    factor = exp(shift)
    moment = tl.sum(factor * (moment + shift * total), 0)
    return peak, tl.sum(factor * total, 0), moment, tl.sum(dot, 0), tl.max(left, 0)


@triton.jit
def finish(Coefficients, Q, vocab, target, y, z_y, others):
    """(nll, lse, q.z, entropy, correct) of a row, and its gradient: (peak, weight, smooth), dz_y.

    For every class v but y, dz_v = weight exp(z_v - peak) - smooth q_v; where Q is None, 1/V is in smooth.
    """
    top, total, moment, dot, left = others
    peak = tl.maximum(top, z_y)
    shift = tl.maximum(top - peak, FAR)
    others_part, own = exp(shift) * total, exp(z_y - peak)
    sum = others_part + own
    lse = peak + tl.log(sum)
    # From the odds against the target, which keeps a small loss; from lse where the target's own exp underflows.
    odds = total * exp(top - z_y)
    nll = tl.where(odds < 1e30, log1p(odds), lse - z_y)
    nll = tl.where(target < vocab, nll, float("nan"))
    moment = exp(shift) * (moment + shift * total) + own * tl.maximum(z_y - peak, FAR)
    if Q is None:
        q_unit = 1.0 / vocab  # of one class, a constant: Triton compiles 1 in
        q_y = q_unit
        q_dot_z = (dot + z_y) * q_unit
    else:
        q_unit = 1.0
        q_y = tl.load(Q + y)
        q_dot_z = dot + q_y * z_y
    correct = (z_y > left) & (z_y >= top) & (target < vocab)
    label, smooth = tl.load(Coefficients), tl.load(Coefficients + 1)
    square = 2.0 * tl.load(Coefficients + 2) * lse
    dz_y = smooth * (1.0 - q_y) + (square * own - (label + smooth) * others_part) / sum
    stats = nll, lse, q_dot_z, tl.log(sum) - moment / sum, correct.to(tl.float32)
    return stats, (peak, (label + smooth + square) / sum, smooth * q_unit), dz_y
