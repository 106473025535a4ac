"""Attention and the row-wise operations as functions of NumPy arrays.

Every function checks its arguments in the compiled core, releases the GIL while it computes, runs
on up to :func:`fastmha.get_num_threads` threads and returns new arrays (or fills `out`). Arrays are
float32 and are read where they lie: any strides, no copy as long as the last axis is contiguous. A
wrong dtype is a TypeError that names the cast, a wrong shape or value a ValueError; nothing is ever
cast silently, and nothing is changed when a call fails.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, overload

from fastmha import _core
from fastmha._types import Bool, Float32, Integers
from fastmha.cache import KVCache

__all__ = [
    "attention_with_kvcache",
    "gelu",
    "layer_norm",
    "relu",
    "rms_norm",
    "scaled_dot_product_attention",
    "silu",
    "softmax",
    "varlen_attention",
]

Lengths: TypeAlias = Integers | Sequence[int]
Offset: TypeAlias = int | Integers | Sequence[int]
Window: TypeAlias = tuple[int | None, int | None]


@overload
def scaled_dot_product_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    attn_mask: Bool | Float32 | None = ...,
    *,
    is_causal: bool = ...,
    scale: float | None = ...,
    key_lengths: Lengths | None = ...,
    query_offset: Offset = ...,
    window: Window | None = ...,
    alibi_slopes: Float32 | None = ...,
    relative_bias: Float32 | None = ...,
    softcap: float = ...,
    return_weights: Literal[False] = ...,
    return_lse: Literal[False] = ...,
    out: Float32 | None = ...,
) -> Float32: ...
@overload
def scaled_dot_product_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    attn_mask: Bool | Float32 | None = ...,
    *,
    is_causal: bool = ...,
    scale: float | None = ...,
    key_lengths: Lengths | None = ...,
    query_offset: Offset = ...,
    window: Window | None = ...,
    alibi_slopes: Float32 | None = ...,
    relative_bias: Float32 | None = ...,
    softcap: float = ...,
    return_weights: bool = ...,
    return_lse: bool = ...,
    out: Float32 | None = ...,
) -> Any: ...
def scaled_dot_product_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    attn_mask: Bool | Float32 | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    key_lengths: Lengths | None = None,
    query_offset: Offset = 0,
    window: Window | None = None,
    alibi_slopes: Float32 | None = None,
    relative_bias: Float32 | None = None,
    softcap: float = 0.0,
    return_weights: bool = False,
    return_lse: bool = False,
    out: Float32 | None = None,
) -> Any:
    r"""Attend with every query to the keys that it may see, and mix their values.

    .. math:: \mathrm{out}_i = \sum_j p_{ij} v_j, \qquad
              p_{ij} = \mathrm{softmax}_j(\mathrm{scale} \; q_i \cdot k_j + \ldots)

    No (L, S) buffer is built: masks by rule (`is_causal`, `key_lengths`, `window`) are skipped, not
    computed. What a key holds that a query may not see, NaN or garbage, cannot reach the result; a
    query that sees no key gives zeros (weights 0, log-sum-exp -inf). The result for one sequence is
    bit for bit the same whatever else is in the batch.

    Parameters
    ----------
    query : ndarray of float32, (B, Hq, L, E)
        Also (Hq, L, E) or (L, E), with key and value of as many axes.
    key : ndarray of float32, (B, Hkv, S, E)
        Hq is a multiple of Hkv: query head h reads key and value head h // (Hq / Hkv) (GQA, MQA).
    value : ndarray of float32, (B, Hkv, S, Ev)
    attn_mask : ndarray of bool or float32, optional
        Broadcastable to (B, Hq, L, S). bool: True = may attend. float32: added to the scaled,
        soft-capped scores.
    is_causal : bool, default False
        Key j is visible to query i when ``j <= i + query_offset``. For L = 2, S = 5, query_offset =
        3::

            1 1 1 1 0
            1 1 1 1 1
    scale : float, optional
        1 / sqrt(E) when not given.
    key_lengths : sequence of int, (B,), optional
        Keys at or past the length do not exist.
    query_offset : int or sequence of int (B,), default 0
        Query i stands at position ``i + query_offset`` of the key axis: 0 is PyTorch's rule, S - L
        aligns the ends.
    window : (left, right), optional
        Key j is visible when ``i + query_offset - left <= j <= i + query_offset + right``. None or
        -1 leaves a side open.
    alibi_slopes : ndarray of float32, (Hq,) or (B, Hq), optional
        Adds ``-slope * |i + query_offset - j|`` to the scores.
    relative_bias : ndarray of float32, (Hq, 2 R + 1), optional
        Adds ``relative_bias[h, R + clip(j - (i + query_offset), -R, R)]`` to the soft-capped
        scores: T5's bias by distance, of which the middle is the key at the query's own position.
        Finite.
    softcap : float, default 0
        When above 0: scores become ``softcap * tanh(score / softcap)``, before any mask.
    return_weights, return_lse : bool, default False
        Also return the probabilities, the log-sum-exp of the scores.
    out : ndarray of float32, (B, Hq, L, Ev), optional
        Where to write the result; any strides whose last axis is contiguous.

    Returns
    -------
    out : ndarray of float32, (B, Hq, L, Ev)
    weights : ndarray of float32, (B, Hq, L, S)
        Only with `return_weights`.
    lse : ndarray of float32, (B, Hq, L)
        Only with `return_lse`.

    Raises
    ------
    TypeError
        A dtype other than float32 (mask: bool or float32).
    ValueError
        Shapes that do not fit together, lengths outside 0 .. S, a window or softcap below 0.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", section 3.2.1, https://arxiv.org/abs/1706.03762.
    The running softmax: Milakov and Gimelshein, https://arxiv.org/abs/1805.02867. ALiBi: Press et
    al., https://arxiv.org/abs/2108.12409. Relative bias: Raffel et al.,
    https://arxiv.org/abs/1910.10683.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> x = np.random.default_rng(0).standard_normal((2, 8, 5, 64), dtype=np.float32)
    >>> fm.scaled_dot_product_attention(x, x, x, is_causal=True).shape
    (2, 8, 5, 64)
    >>> near = -np.abs(np.arange(-4, 5)) * np.ones((8, 1))  # the farther a key, the less it counts
    >>> fm.scaled_dot_product_attention(x, x, x, relative_bias=near.astype(np.float32)).shape
    (2, 8, 5, 64)
    >>> out, weights = fm.scaled_dot_product_attention(
    ...     x, x, x, key_lengths=[5, 3], return_weights=True
    ... )
    >>> bool(np.all(weights[1, :, :, 3:] == 0))
    True
    """
    return _core.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask,
        is_causal,
        scale,
        key_lengths,
        query_offset,
        window,
        alibi_slopes,
        relative_bias,
        softcap,
        return_weights,
        return_lse,
        out,
    )


@overload
def varlen_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    cu_seqlens_q: Lengths,
    cu_seqlens_k: Lengths | None = ...,
    *,
    is_causal: bool = ...,
    scale: float | None = ...,
    query_offset: Offset = ...,
    window: Window | None = ...,
    alibi_slopes: Float32 | None = ...,
    relative_bias: Float32 | None = ...,
    softcap: float = ...,
    return_weights: Literal[False] = ...,
    return_lse: Literal[False] = ...,
    out: Float32 | None = ...,
) -> Float32: ...
@overload
def varlen_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    cu_seqlens_q: Lengths,
    cu_seqlens_k: Lengths | None = ...,
    *,
    is_causal: bool = ...,
    scale: float | None = ...,
    query_offset: Offset = ...,
    window: Window | None = ...,
    alibi_slopes: Float32 | None = ...,
    relative_bias: Float32 | None = ...,
    softcap: float = ...,
    return_weights: bool = ...,
    return_lse: bool = ...,
    out: Float32 | None = ...,
) -> Any: ...
def varlen_attention(
    query: Float32,
    key: Float32,
    value: Float32,
    cu_seqlens_q: Lengths,
    cu_seqlens_k: Lengths | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    query_offset: Offset = 0,
    window: Window | None = None,
    alibi_slopes: Float32 | None = None,
    relative_bias: Float32 | None = None,
    softcap: float = 0.0,
    return_weights: bool = False,
    return_lse: bool = False,
    out: Float32 | None = None,
) -> Any:
    """Attention over sequences of different lengths that lie end to end, without padding.

    Sequence n owns the query rows ``cu_seqlens_q[n]:cu_seqlens_q[n + 1]`` and the key rows
    ``cu_seqlens_k[n]:cu_seqlens_k[n + 1]`` and sees nothing else. Each comes out bit for bit as
    :func:`scaled_dot_product_attention` gives it.

    Parameters
    ----------
    query : ndarray of float32, (Tq, Hq, E)
    key : ndarray of float32, (Tk, Hkv, E)
    value : ndarray of float32, (Tk, Hkv, Ev)
    cu_seqlens_q : sequence of int, (N + 1,)
        Cumulative lengths: starts at 0, never falls, ends at Tq.
    cu_seqlens_k : sequence of int, (N + 1,), optional
        The same for keys and values; `cu_seqlens_q` when not given.
    is_causal, scale, query_offset, window, alibi_slopes, relative_bias, softcap
        As in :func:`scaled_dot_product_attention`, within each sequence; `query_offset` may be
        (N,), `alibi_slopes` (N, Hq).
    return_weights, return_lse : bool, default False
        Also return the probabilities, the log-sum-exp of the scores.
    out : ndarray of float32, (Tq, Hq, Ev), optional
        Where to write the result.

    Returns
    -------
    out : ndarray of float32, (Tq, Hq, Ev)
    weights : list of N ndarrays of float32, (Hq, L_n, S_n)
        Only with `return_weights`.
    lse : ndarray of float32, (Tq, Hq)
        Only with `return_lse`.

    Raises
    ------
    TypeError
        A dtype other than float32, offsets that are not integers.
    ValueError
        Shapes that do not fit together; cumulative lengths that fall, do not start at 0 or do not
        end at the row count.

    References
    ----------
    The form of ``flash_attn_varlen_func``, Dao, https://arxiv.org/abs/2307.08691.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((7, 8, 64), dtype=np.float32)  # lengths 5 and 2
    >>> together = fm.varlen_attention(x, x, x, [0, 5, 7])
    >>> alone = fm.varlen_attention(x[5:], x[5:], x[5:], [0, 2])
    >>> bool(np.array_equal(together[5:], alone))
    True
    """
    return _core.varlen_attention(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        is_causal,
        scale,
        query_offset,
        window,
        alibi_slopes,
        relative_bias,
        softcap,
        return_weights,
        return_lse,
        out,
    )


def attention_with_kvcache(
    query: Float32,
    cache: KVCache,
    key: Float32 | None = None,
    value: Float32 | None = None,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    window: Window | None = None,
    alibi_slopes: Float32 | None = None,
    relative_bias: Float32 | None = None,
    softcap: float = 0.0,
    out: Float32 | None = None,
) -> Float32:
    """Append `key` and `value` to `cache`, then let `query` attend to all that it holds.

    The queries are the last L positions of each sequence: query i of sequence b stands at
    ``cache.lengths[b] - L + i``. A single query is shared out over blocks of keys, so that all
    cores work even for one sequence.

    Parameters
    ----------
    query : ndarray of float32, (B, Hq, L, E)
    cache : KVCache
        Of batch B, with Hkv heads of width E and values of width Ev.
    key, value : ndarray of float32, (B, Hkv, T, E) and (B, Hkv, T, Ev), optional
        Both or neither; without them nothing is appended.
    is_causal : bool, default True
    scale, window, alibi_slopes, relative_bias, softcap
        As in :func:`scaled_dot_product_attention`.
    out : ndarray of float32, (B, Hq, L, Ev), optional
        Where to write the result.

    Returns
    -------
    ndarray of float32, (B, Hq, L, Ev)

    Raises
    ------
    TypeError
        A dtype other than float32.
    ValueError
        Shapes that do not fit the cache, or no room left in it. The cache is as it was before.

    References
    ----------
    The form of ``flash_attn_with_kvcache``, Dao, https://arxiv.org/abs/2307.08691.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 8, 5, 64), dtype=np.float32)
    >>> cache = fm.KVCache(batch=1, num_kv_heads=8, capacity=5, head_dim=64)
    >>> steps = []
    >>> for i in range(5):
    ...     q_i, k_i, v_i = (x[:, :, i : i + 1] for x in (q, k, v))
    ...     steps.append(fm.attention_with_kvcache(q_i, cache, k_i, v_i))
    >>> at_once = fm.scaled_dot_product_attention(q, k, v, is_causal=True)
    >>> bool(np.allclose(np.concatenate(steps, axis=2), at_once, atol=1e-6))
    True
    """
    if not isinstance(cache, KVCache):
        raise TypeError(
            f"attention_with_kvcache: cache must be a KVCache, got {type(cache).__name__}; "
            "make one: fm.KVCache(batch, num_kv_heads, capacity, head_dim)"
        )
    return _core.attention_with_kvcache(
        query,
        cache._key,
        cache._value,
        cache._lengths,
        key,
        value,
        is_causal,
        scale,
        window,
        alibi_slopes,
        relative_bias,
        softcap,
        out,
    )


def layer_norm(
    x: Float32,
    weight: Float32,
    bias: Float32 | None = None,
    eps: float = 1e-5,
    *,
    residual: Float32 | None = None,
    out: Float32 | None = None,
) -> Float32:
    r"""Normalise each row to mean 0 and variance 1, then scale and shift it.

    .. math:: y = \frac{x - \mathrm{mean}(x)}{\sqrt{\mathrm{var}(x) + \mathrm{eps}}} \cdot
    \mathrm{weight} + \mathrm{bias}

    with x + residual in place of x when `residual` is given. The variance is computed in a second
    pass.

    Parameters
    ----------
    x : ndarray of float32, (..., D)
    weight : ndarray of float32, (D,)
    bias : ndarray of float32, (D,), optional
    eps : float, default 1e-5
    residual : ndarray of float32, of x's shape, optional
    out : ndarray of float32, of x's shape, optional

    Returns
    -------
    ndarray of float32, of x's shape

    Raises
    ------
    TypeError
        A dtype other than float32.
    ValueError
        Shapes that do not fit.

    References
    ----------
    Ba, Kiros and Hinton, https://arxiv.org/abs/1607.06450.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.layer_norm(np.array([[1, 3]], np.float32), np.ones(2, np.float32), eps=0.0)
    array([[-1.,  1.]], dtype=float32)
    """
    return _core.layer_norm(x, weight, bias, eps, residual, out)


def rms_norm(
    x: Float32,
    weight: Float32,
    eps: float = 1e-6,
    *,
    residual: Float32 | None = None,
    out: Float32 | None = None,
) -> Float32:
    r"""Divide each row by its root mean square, then scale it.

    .. math:: y = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \mathrm{eps}}} \cdot \mathrm{weight}

    with x + residual in place of x when `residual` is given.

    Parameters
    ----------
    x : ndarray of float32, (..., D)
    weight : ndarray of float32, (D,)
    eps : float, default 1e-6
    residual : ndarray of float32, of x's shape, optional
    out : ndarray of float32, of x's shape, optional

    Returns
    -------
    ndarray of float32, of x's shape

    Raises
    ------
    TypeError
        A dtype other than float32.
    ValueError
        Shapes that do not fit.

    References
    ----------
    Zhang and Sennrich, https://arxiv.org/abs/1910.07467.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.rms_norm(np.array([[2, -2]], np.float32), np.ones(2, np.float32), eps=0.0)
    array([[ 1., -1.]], dtype=float32)
    """
    return _core.rms_norm(x, weight, eps, residual, out)


def softmax(x: Float32, *, out: Float32 | None = None) -> Float32:
    r"""Turn each row into probabilities: :math:`y_j = e^{x_j - m} / \sum_k e^{x_k - m}` with m the
    row's maximum.

    Parameters
    ----------
    x : ndarray of float32, (..., D)
    out : ndarray of float32, of x's shape, optional

    Returns
    -------
    ndarray of float32, of x's shape

    Raises
    ------
    TypeError
        A dtype other than float32.
    ValueError
        An `out` of another shape.

    References
    ----------
    ``torch.nn.functional.softmax(x, dim=-1)``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.softmax(np.zeros((1, 4), np.float32))
    array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    return _core.softmax(x, out)


def gelu(
    x: Float32,
    approximate: Literal["none", "tanh"] = "none",
    *,
    out: Float32 | None = None,
) -> Float32:
    r"""The Gaussian error linear unit, :math:`x \, \Phi(x) = \frac{x}{2} (1 + \mathrm{erf}(x /
    \sqrt 2))`.

    Parameters
    ----------
    x : ndarray of float32, any shape
    approximate : {"none", "tanh"}, default "none"
        "tanh" computes :math:`\frac{x}{2} (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3)))` instead.
    out : ndarray of float32, of x's shape, optional

    Returns
    -------
    ndarray of float32, of x's shape

    Raises
    ------
    TypeError
        A dtype other than float32.
    ValueError
        An unknown `approximate`, an `out` of another shape.

    References
    ----------
    Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415; ``torch.nn.functional.gelu``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.gelu(np.array([-1, 0, 1], np.float32)).round(4)
    array([-0.1587,  0.    ,  0.8413], dtype=float32)
    """
    if approximate == "none":
        return _core.activation("gelu", x, out)
    if approximate == "tanh":
        return _core.activation("gelu_tanh", x, out)
    raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


def relu(x: Float32, *, out: Float32 | None = None) -> Float32:
    """The rectified linear unit, max(x, 0). NaN stays NaN.

    Parameters
    ----------
    x : ndarray of float32, any shape
    out : ndarray of float32, of x's shape, optional

    Returns
    -------
    ndarray of float32, of x's shape

    Raises
    ------
    TypeError
        A dtype other than float32.
    ValueError
        An `out` of another shape.

    References
    ----------
    Nair and Hinton, ICML 2010; ``torch.nn.functional.relu``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.relu(np.array([-1, 0, 1], np.float32))
    array([0., 0., 1.], dtype=float32)
    """
    return _core.activation("relu", x, out)


def silu(x: Float32, *, out: Float32 | None = None) -> Float32:
    r"""The sigmoid linear unit, :math:`x / (1 + e^{-x})`, also called swish.

    Parameters
    ----------
    x : ndarray of float32, any shape
    out : ndarray of float32, of x's shape, optional

    Returns
    -------
    ndarray of float32, of x's shape

    Raises
    ------
    TypeError
        A dtype other than float32.
    ValueError
        An `out` of another shape.

    References
    ----------
    Elfwing, Uchibe and Doya, https://arxiv.org/abs/1702.03118; ``torch.nn.functional.silu``.

    Examples
    --------
    >>> import numpy as np, fastmha as fm
    >>> fm.silu(np.array([-1, 0, 1], np.float32)).round(4)
    array([-0.2689,  0.    ,  0.7311], dtype=float32)
    """
    return _core.activation("silu", x, out)
