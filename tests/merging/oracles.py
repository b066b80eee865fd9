"""Slow references of every merge method in NumPy's float64, written from the formulas alone.

They call nothing of the package. Shape letters: E experts, `shape` of one tensor, n its elements.
`base` is (shape), `deltas` (E, shape): float64 copies of the float32 task vectors, because which
elements are trimmed is decided on those.

Source: the papers named in the operators' docstrings; mergekit 0.1.5 for modes called mergekit.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np


def _column(weights, like):
    """Return (E, 1, …) weights that broadcast over (E, shape)."""
    return np.array(weights, dtype=np.float64).reshape(-1, *[1] * (like.ndim - 1))


def _length(x):
    return math.sqrt(math.fsum(np.square(x).reshape(-1)))


# Linear in the sources ---------------------------------------------------------------------------


def linear(sources, weights, *, normalize=True):
    total = math.fsum(weights) if normalize else 1.0
    return sum(w / total * source for w, source in zip(weights, sources, strict=True))


def task_arithmetic(base, deltas, weights, lambda_=1.0, *, normalize=False):
    total = math.fsum(weights) if normalize else 1.0
    return base + lambda_ / total * (_column(weights, deltas) * deltas).sum(0)


def passthrough(expert, scale):
    return scale * expert


def layer_scale(base, merged_delta, *, alpha, beta, layer, n_layers):
    """LiNeS: a merged task vector scaled by its depth; `layer` None outside the blocks."""
    depth = 0.0 if layer is None or n_layers == 1 else layer / (n_layers - 1)
    return base + (alpha + beta * depth) * merged_delta


def layer_swap_shares(n_layers, *, bottom, top, bottom_blend, top_blend):
    """Return (n_layers,) the second model's share of each layer; counts of layers."""
    shares = [1.0] * n_layers
    for k in range(bottom, bottom + bottom_blend):
        shares[k] = 0.5
    for k in range(n_layers - top - top_blend, n_layers - top):
        shares[k] = 0.5
    for k in (*range(bottom), *range(n_layers - top, n_layers)):
        shares[k] = 0.0
    return shares


# On the sphere -----------------------------------------------------------------------------------


def slerp(a, b, t):
    """Return the point of the arc between two tensors, each seen as one vector."""
    return slerp_rows(a.reshape(-1), b.reshape(-1), t, 0).reshape(a.shape)


def slerp_rows(a, b, t, axis):
    """Return the SLERP of each pair of vectors along `axis`; plain lerp where sin(angle) <= 1e-6."""
    lengths = [np.sqrt(np.square(x).sum(axis, keepdims=True)) for x in (a, b)]
    u, v = (x / np.where(n > 0.0, n, 1.0) for x, n in zip((a, b), lengths, strict=True))
    gap, sum_ = (np.sqrt(np.square(x).sum(axis, keepdims=True)) for x in (u - v, u + v))
    # Kahan: the angle from both diagonals keeps its digits everywhere.
    omega = 2.0 * np.arctan2(gap, sum_)
    is_lerp = (np.sin(omega) <= 1e-6) | (lengths[0] == 0.0) | (lengths[1] == 0.0)
    sine = np.where(is_lerp, 1.0, np.sin(omega))
    on_a = np.where(is_lerp, 1.0 - t, np.sin((1.0 - t) * omega) / sine)
    on_b = np.where(is_lerp, t, np.sin(t * omega) / sine)
    return on_a * a + on_b * b


def slerp_mergekit(a, b, t):
    """mergekit's SLERP: vectors up to 1e-8 long are not normalised, lerp where |cos| > 0.9995."""
    lengths = [n if n > 1e-8 else 1.0 for n in (_length(a), _length(b))]
    cosine = float((a / lengths[0] * b / lengths[1]).sum())
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    omega = math.acos(cosine)
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


def nlerp(points, weights, *, normalize=True, epsilon=0.0):
    """Return s sum w u / |sum w u|, u = x / |x|, s = sum w |x|; `epsilon` added to |x|."""
    total = math.fsum(weights) if normalize else 1.0
    w = [weight / total for weight in weights]
    lengths = [_length(x) for x in points]
    mean = sum(c / (n + epsilon) * x for c, n, x in zip(w, lengths, points, strict=True) if n > 0.0)
    return np.dot(w, lengths) / _length(mean) * mean


def karcher(points, weights, n_steps=2000):
    """Return the weighted Karcher mean of directions at the mean length, by steps on tensors."""
    w = np.array(weights) / math.fsum(weights)
    size = math.fsum(c * _length(x) for c, x in zip(w, points, strict=True))
    kept = [(c, x / _length(x)) for c, x in zip(w, points, strict=True) if c and _length(x) > 0.0]
    total = math.fsum(c for c, _ in kept)
    at = sum(c * u for c, u in kept)
    at = at / _length(at)
    for _ in range(n_steps):
        step = np.zeros_like(at)
        for c, u in kept:
            aside = u - float((u * at).sum()) * at
            sine = _length(aside)
            if sine > 1e-14:
                step += c / total * math.atan2(sine, float((u * at).sum())) / sine * aside
        if _length(step) < 1e-13:
            break
        at = math.cos(_length(step)) * at + math.sin(_length(step)) / _length(step) * step
        at = at / _length(at)
    return size * at


# Shares from sizes and angles --------------------------------------------------------------------


def model_stock(base, deltas, *, multiplier=1.0, rows=None, is_mergekit=False):
    """Return base + multiplier t mean delta, one t for each run of `rows` elements (or for all)."""
    flat = deltas.reshape(len(deltas), -1, rows or max(base.size, 1))
    shares = np.array([_stock_share(flat[:, r], is_mergekit) for r in range(flat.shape[1])])
    return base + multiplier * (shares[:, None] * flat.mean(0)).reshape(base.shape)


def _stock_share(vectors, is_mergekit):
    cosines = []
    for a, b in combinations(vectors, 2):
        product = _length(a) * _length(b)
        below = max(product, 1e-6) if is_mergekit else product
        cosines.append(min(max(float(a @ b) / below, -1.0), 1.0) if below else 0.0)
    n, c = len(vectors), math.fsum(cosines) / len(cosines)
    if is_mergekit:
        # Unclamped: without a value where the cosines sum to -E / 2.
        below = 1 + (n - 1) * c
        return n * c / below if abs(below) > 1e-9 else math.nan
    return min(n * c / (1 + (n - 1) * c), 1.0) if c > 0.0 else 0.0


def norm_shares(squares, weights, q):
    """Return (E,) pi |delta|^2q over their sum; without a change there is no share, but at q = 0."""
    used = [w if s > 0.0 or q == 0.0 else 0.0 for w, s in zip(weights, squares, strict=True)]
    if not any(used):
        return np.zeros(len(used))
    largest = max(squares) or 1.0
    sizes = [w * (s / largest) ** q if w else 0.0 for w, s in zip(used, squares, strict=True)]
    return np.array(sizes) / math.fsum(sizes)


def norm_share(base, deltas, weights, *, q, lambda_, squares=None):
    """`squares`: (E,) squared lengths over the layer or model, or None for this tensor's."""
    found = [_length(delta) ** 2 for delta in deltas] if squares is None else squares
    return task_arithmetic(base, deltas, norm_shares(found, weights, q), lambda_)


# Which elements stay -----------------------------------------------------------------------------


def n_kept(density, n):
    return min(max(int(density * n), 1), n)


def trim_threshold(magnitudes, density):
    """Return the magnitude of the smallest element that `density` keeps of these."""
    flat = np.sort(np.concatenate([np.abs(m).reshape(-1) for m in magnitudes]))[::-1]
    return float(flat[n_kept(density, flat.size) - 1])


def trim(deltas, thresholds):
    return deltas * (np.abs(deltas) >= _column(thresholds, deltas))


def restore_l1(kept, deltas):
    """Return each task vector times the factor that restores its sum of magnitudes."""
    return np.stack([_restored(part, whole) for part, whole in zip(kept, deltas, strict=True)])


def _restored(part, whole):
    left = math.fsum(np.abs(part).reshape(-1))
    return part if left == 0.0 else part * (math.fsum(np.abs(whole).reshape(-1)) / left)


def dropped(deltas, uniforms, probabilities):
    """Return deltas where uniform < probability; a float32 comparison, as uniforms are float32."""
    return deltas * (uniforms.astype(np.float32) < np.asarray(probabilities, dtype=np.float32))


def della_probabilities(delta, density, epsilon):
    """Return density - epsilon + 2 epsilon r, r the rank in its row: 0 smallest, 1 largest."""
    rows = np.abs(delta.reshape(delta.shape[0] if delta.ndim > 1 else 1, -1))
    n = rows.shape[1]
    ranks = np.full(rows.shape, 0.5)
    for row in range(len(rows) if n > 1 else 0):
        ranks[row, np.argsort(rows[row], kind="stable")] = np.arange(n) / (n - 1)
    epsilon = min(epsilon, 0.9 * min(density, 1 - density))
    return (density - epsilon + 2 * epsilon * ranks).reshape(delta.shape)


def band(delta, *, density, gamma, is_mergekit=False):
    """Return delta without its gamma n largest elements and then the smallest; `density` stays."""
    n = delta.size
    n_wanted = int(density * n) if is_mergekit else n_kept(density, n)
    if n_wanted == 0:
        return np.zeros_like(delta)
    n_top = min(int(gamma * n), n - n_wanted)
    stay = np.sort(np.abs(delta).reshape(-1))[::-1][n_top : n_top + n_wanted]
    return delta * ((np.abs(delta) >= stay[-1]) & (np.abs(delta) <= stay[0]))


# What becomes of the elements that stay ----------------------------------------------------------


def votes(deltas, weights, *, is_weighted):
    return deltas * _column(weights, deltas) if is_weighted else deltas


def vote(base, deltas, weights, *, lambda_, is_weighted, divisor):
    """TIES's vote on thinned task vectors: sign of the sum (0 is +), then those that agree."""
    ballots = votes(deltas, weights, is_weighted=is_weighted)
    agrees = np.sign(ballots) == np.where(ballots.sum(0) >= 0.0, 1.0, -1.0)
    return base + lambda_ * _combined(deltas, weights, agrees, divisor)


def without_vote(base, deltas, weights, *, lambda_, divisor):
    """What `vote` becomes where every element of every expert counts: norms and biases."""
    everyone = np.ones(deltas.shape, dtype=bool)
    return base + lambda_ * _combined(deltas, weights, everyone, divisor)


def _combined(deltas, weights, agrees, divisor):
    w = _column(weights, deltas)
    below = {
        "mean": agrees.sum(0).astype(np.float64),
        "weights": (np.abs(w) * agrees).sum(0),
        "signed_weights": (w * agrees).sum(0),
        "none": np.ones(deltas.shape[1:]),
    }[divisor]
    return (w * deltas * agrees).sum(0) / np.where(below == 0.0, 1.0, below)


def variances(deltas):
    """Return each element's variance over the experts, 0 where they agree but for rounding.

    Rounded to float32, so that permuted values tie.
    """
    found = deltas.var(0)
    found = np.where(found > 1e-28 * np.square(deltas).mean(0), found, 0.0)
    with np.errstate(over="ignore", under="ignore"):
        return found.astype(np.float32).astype(np.float64)


def sce(base, deltas, *, select, q, lambda_, is_mergekit=False, masks_deltas=True, is_exempt=False):
    """Select the largest variances, weigh by mean square ** q, erase the minority sign."""
    selected = deltas
    if select < 1.0 and not is_exempt:
        variance = variances(deltas)
        n_nonzero = np.count_nonzero(variance)
        n_wanted = min(max(int(select * n_nonzero), 0 if is_mergekit else 1), n_nonzero)
        ranked = np.sort(variance.reshape(-1))[::-1]
        edge = ranked[n_wanted - 1] if n_wanted else np.inf
        selected = deltas * (variance >= edge)
    energy = np.array([_length(delta) ** 2 / max(base.size, 1) for delta in selected])
    is_even = energy.max() == 0.0 or (is_mergekit and energy.sum() < 1e-6)
    shares = np.ones(len(deltas)) if is_even else (energy / energy.max()) ** q
    shares = shares / shares.sum()
    if is_exempt:
        return task_arithmetic(base, deltas, shares, lambda_)
    merged = selected if masks_deltas else deltas
    return vote(base, merged, shares, lambda_=lambda_, is_weighted=False, divisor="weights")


def localize_and_stitch(base, deltas, weights, lambda_, thresholds):
    """sum w m delta / sum m on the largest elements; zero elements hold no place."""
    kept = trim(deltas, thresholds)
    return base + lambda_ * _combined(kept, weights, kept != 0.0, "mean")


def consensus(base, deltas, weights, lambda_, *, mask_threshold, agreement):
    """Task arithmetic where at least `agreement` TALL masks hold, base elsewhere."""
    claims = np.abs(deltas) >= mask_threshold * np.abs(deltas.sum(0) - deltas)
    is_kept = claims.sum(0) >= min(agreement, len(deltas))
    return np.where(is_kept, task_arithmetic(base, deltas, weights, lambda_), base)


def magmax(base, deltas, lambda_):
    """The change of largest magnitude; the last expert's where they tie."""
    last_first = deltas[::-1]
    which = np.abs(last_first).argmax(0)[None]
    return base + lambda_ * np.take_along_axis(last_first, which, axis=0)[0]


def ram(base, deltas, lambda_, *, epsilon, r=0.0, alpha=0.0):
    """The mean over touching experts; a lone change times 1 + r min(shared / alone, alpha)."""
    touched = np.abs(deltas) > np.float32(epsilon)
    counts = touched.sum(0)
    merged = np.zeros_like(base)
    for delta, mask in zip(deltas, touched, strict=True):
        alone, shared = mask & (counts == 1), mask & (counts > 1)
        rho = min(shared.sum() / alone.sum(), alpha) if alone.any() else 0.0
        merged = merged + (1 + r * rho) * delta * alone + delta * shared / np.maximum(counts, 1)
    return base + lambda_ * merged


# Pairs -------------------------------------------------------------------------------------------


def nearswap(a, b, t, *, is_mergekit=False):
    """(1 - v) a + v b, v = min(step / |b - a|, 1)."""
    gap = np.abs(b - a)
    step = t if is_mergekit else t * _length(gap) / math.sqrt(max(gap.size, 1))
    v = np.where(gap <= step, 1.0, step / np.where(gap <= step, 1.0, gap))
    return (1 - v) * a + v * b


def arcee_divergences(a, b):
    """Return (rows, 1) KL(softmax(b row) || softmax(a row)), both raised by 1e-8."""
    p, q = _softmax(_rows(b)) + 1e-8, _softmax(_rows(a)) + 1e-8
    return (p * np.log(p / q)).sum(1, keepdims=True)


def arcee_scores(a, b):
    """Return |b - a| times the divergence of its row."""
    return (_rows(np.abs(b - a)) * arcee_divergences(a, b)).reshape(a.shape)


def _rows(x):
    return x.reshape(-1, x.shape[-1] if x.ndim else 1)


def _softmax(rows):
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def arcee_threshold(scores, multiplier):
    """Return median + multiplier (third - first quartile), each the lower element."""
    flat = np.sort(scores.reshape(-1))
    first, median, third = (flat[int(part * (flat.size - 1))] for part in (0.25, 0.5, 0.75))
    return float(median + multiplier * (third - first))


def arcee_fusion(a, b, multiplier):
    scores = arcee_scores(a, b)
    return np.where(scores >= arcee_threshold(scores, multiplier), b, a)
