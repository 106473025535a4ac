"""KVCache and attention_with_kvcache against the oracle over the whole sequence."""

import fastmha as fm
import numpy as np
import pytest
from conftest import Random, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import assert_attention

BATCH, KV_HEADS, HEADS, DIM = 3, 2, 4, 16


def snapshot(cache):
    """What the cache holds: lengths, and the rows before them (those behind them mean nothing)."""
    lengths = cache.lengths.copy()
    held = [
        (cache.key[n, :, :length].copy(), cache.value[n, :, :length].copy())
        for n, length in enumerate(lengths)
    ]
    return lengths, held


def assert_unchanged(cache, before):
    np.testing.assert_array_equal(cache.lengths, before[0])
    for now, then in zip(snapshot(cache)[1], before[1], strict=True):
        np.testing.assert_array_equal(now[0], then[0])
        np.testing.assert_array_equal(now[1], then[1])


def test_append_reset(random):
    cache = fm.KVCache(BATCH, KV_HEADS, 10, DIM, value_head_dim=5)
    key, value = random.normal(BATCH, KV_HEADS, 10, DIM), random.normal(BATCH, KV_HEADS, 10, 5)
    np.testing.assert_array_equal(cache.lengths, [0, 0, 0])
    done = 0
    for count in (1, 3, 0, 6):
        new = slice(done, done + count)
        cache.append(key[:, :, new], value[:, :, new])
        done += count
        np.testing.assert_array_equal(cache.lengths, [done] * BATCH)
        np.testing.assert_array_equal(cache.key[:, :, :done], key[:, :, :done])
        np.testing.assert_array_equal(cache.value[:, :, :done], value[:, :, :done])
    before = snapshot(cache)
    with pytest.raises(ValueError, match="capacity"):
        cache.append(key[:, :, :1], value[:, :, :1])
    assert_unchanged(cache, before)
    cache.reset()
    np.testing.assert_array_equal(cache.lengths, [0, 0, 0])
    cache.append(value=value[:, :, 5:7], key=key[:, :, 5:7])
    np.testing.assert_array_equal(cache.key[:, :, :2], key[:, :, 5:7])
    np.testing.assert_array_equal(cache.value[:, :, :2], value[:, :, 5:7])


def test_append_of_different_lengths(random):
    """`lengths` says how many of the passed rows count for each sequence; the others are never read
    later.
    """
    cache = fm.KVCache(BATCH, KV_HEADS, 9, DIM)
    key, value = random.normal(BATCH, KV_HEADS, 5, DIM), random.normal(BATCH, KV_HEADS, 5, DIM)
    lengths = np.array([5, 0, 2])
    for n, length in enumerate(lengths):
        key[n, :, length:], value[n, :, length:] = np.nan, np.nan
    cache.append(key, value, lengths=lengths)
    np.testing.assert_array_equal(cache.lengths, lengths)
    new = random.normal(BATCH, KV_HEADS, 1, DIM)
    query = random.normal(BATCH, HEADS, 1, DIM)
    out = fm.attention_with_kvcache(query, cache, new, new)
    for n, length in enumerate(lengths):
        held = [np.concatenate([a[n, :, :length], new[n]], 1) for a in (key, value)]
        assert_attention(out[n], query[n], *held)
    before = snapshot(cache)
    for wrong in ([1, 1], [1, 1, 2], [-1, 0, 0], [4, 0, 0]):
        with pytest.raises(ValueError, match=r"length|capacity"):
            cache.append(new, new, lengths=wrong)
        assert_unchanged(cache, before)
    with pytest.raises(ValueError, match="capacity"):
        cache.append(key[:, :, :4], value[:, :, :4], lengths=[4, 0, 0])
    assert_unchanged(cache, before)


def test_nobody_is_left(random):
    """A loop whose last sequence is done goes on with none: the core said "null pointer"."""
    cache = fm.KVCache(4, 6, 9, 16)
    cache.select([])
    nothing = np.empty((0, 6, 1, 16), np.float32)
    cache.append(nothing, nothing)
    assert fm.attention_with_kvcache(nothing, cache).shape == (0, 6, 1, 16)
    assert fm.attention_with_kvcache(nothing, cache, nothing, nothing).shape == (0, 6, 1, 16)
    assert len(cache.lengths) == 0


def test_select(random):
    """Sequences that are done leave the batch; reset gives their room back."""
    cache = fm.KVCache(BATCH, KV_HEADS, 6, DIM)
    key, value = random.normal(BATCH, KV_HEADS, 4, DIM), random.normal(BATCH, KV_HEADS, 4, DIM)
    cache.append(key, value, lengths=[4, 1, 3])
    cache.select([2, 0])
    np.testing.assert_array_equal(cache.lengths, [3, 4])
    assert cache.batch == 2
    query = random.normal(2, HEADS, 1, DIM)
    out = fm.attention_with_kvcache(query, cache)
    assert_attention(out[0], query[0], key[2, :, :3], value[2, :, :3])
    assert_attention(out[1], query[1], key[0], value[0])
    with pytest.raises(ValueError, match="select"):
        cache.select([0, 1, 1])
    with pytest.raises(ValueError, match="select"):
        cache.select([2])
    cache.reset()
    assert cache.batch == BATCH
    cache.append(key, value)
    np.testing.assert_array_equal(cache.lengths, [4] * BATCH)


def test_append_copies_any_layout(random):
    key = random.normal(BATCH, KV_HEADS, 6, DIM)
    views = [
        np.ascontiguousarray(key.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3),
        key[:, :, ::-1].copy()[:, :, ::-1],
        np.repeat(key, 2, axis=-1)[..., ::2],
        np.asfortranarray(key),
    ]
    for view in views:
        cache = fm.KVCache(BATCH, KV_HEADS, 6, DIM)
        cache.append(view, view)
        np.testing.assert_array_equal(cache.key[:, :, :6], key)
        np.testing.assert_array_equal(cache.value[:, :, :6], key)
    source = key.copy()
    cache = fm.KVCache(BATCH, KV_HEADS, 6, DIM)
    cache.append(source, source)
    source[...] = np.nan  # the cache holds its own copy
    np.testing.assert_array_equal(cache.key[:, :, :6], key)


@pytest.mark.parametrize("beams", [[0, 1, 2], [2, 2, 0], [1, 0, 2], [1, 1, 1]])
@pytest.mark.parametrize("as_type", [list, np.int32, np.int64])
def test_reorder(random, beams, as_type):
    cache = fm.KVCache(BATCH, KV_HEADS, 9, DIM)
    key, value = random.normal(BATCH, KV_HEADS, 4, DIM), random.normal(BATCH, KV_HEADS, 4, DIM)
    cache.append(key, value)
    cache.reorder(beams if as_type is list else np.array(beams, as_type))
    np.testing.assert_array_equal(cache.key[:, :, :4], key[beams])
    np.testing.assert_array_equal(cache.value[:, :, :4], value[beams])
    query = random.normal(BATCH, HEADS, 1, DIM)
    out = fm.attention_with_kvcache(query, cache)
    assert_attention(out, query, key[beams], value[beams])


@pytest.mark.parametrize("beams", [[0, 1, 3], [-1, 0, 1], [0, 1], [0, 1, 2, 2], [2**70, 0, 0]])
def test_reorder_out_of_range_changes_nothing(random, beams):
    cache = fm.KVCache(BATCH, KV_HEADS, 9, DIM)
    key = random.normal(BATCH, KV_HEADS, 4, DIM)
    cache.append(key, key)
    before = snapshot(cache)
    with pytest.raises((ValueError, TypeError), match="reorder"):
        cache.reorder(beams)
    assert_unchanged(cache, before)


class Exhausted(np.ndarray):
    """An array from which nothing can be gathered: there is no memory for it."""

    def __getitem__(self, index):
        raise MemoryError


@pytest.mark.parametrize("move", ["reorder", "select"])
def test_no_memory_to_move_changes_nothing(random, move):
    cache = fm.KVCache(BATCH, KV_HEADS, 10, DIM)
    cache.append(random.normal(BATCH, KV_HEADS, 5, DIM), random.normal(BATCH, KV_HEADS, 5, DIM))
    before, value = snapshot(cache), cache._value
    cache._value = value.view(Exhausted)
    with pytest.raises(MemoryError):
        getattr(cache, move)([2, 0, 1])
    cache._value = value
    assert_unchanged(cache, before)


@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 1], [3, 4, 5], [40, 1, 30, 1], [300, 1, 2]])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": False},
        {"window": (3, 0)},
        {"softcap": 2.0, "scale": 0.3},
        {"alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0], np.float32)},
        {"relative_bias": Random(3).normal(HEADS, 65)},
        {
            "window": (17, None),
            "softcap": 5.0,
            "relative_bias": Random(3).normal(HEADS, 9),
            "alibi_slopes": np.full((BATCH, HEADS), 0.3, np.float32),
        },
    ],
    ids=str,
)
def test_decoding_equals_attention_over_all(random, chunks, options):
    """Appending piece by piece gives what causal attention over the whole sequence gives."""
    total = sum(chunks)
    query, key, value = random.attention(
        BATCH, HEADS, total, total, DIM, kv_heads=KV_HEADS, value_dim=9
    )
    cache = fm.KVCache(BATCH, KV_HEADS, total + 3, DIM, value_head_dim=9)
    done = 0
    for count in chunks:
        new = slice(done, done + count)
        out = fm.attention_with_kvcache(
            query[:, :, new], cache, key[:, :, new], value[:, :, new], **options
        )
        seen = key[:, :, : done + count], value[:, :, : done + count]
        full = {"is_causal": True, **options, "query_offset": done}
        assert_attention(out, query[:, :, new], *seen, **full)
        # The cache is only another way to find the keys: the same bits as a plain call over them.
        assert_same_bits(out, fm.scaled_dot_product_attention(query[:, :, new], *seen, **full))
        done += count
    np.testing.assert_array_equal(cache.lengths, [total] * BATCH)


def test_attend_without_appending(random):
    cache = fm.KVCache(BATCH, KV_HEADS, 20, DIM)
    key, value = random.normal(BATCH, KV_HEADS, 7, DIM), random.normal(BATCH, KV_HEADS, 7, DIM)
    cache.append(key, value)
    for q_len in (1, 3, 7):
        query = random.normal(BATCH, HEADS, q_len, DIM)
        out = fm.attention_with_kvcache(query, cache)
        assert_attention(out, query, key, value, is_causal=True, query_offset=7 - q_len)
        given_out = np.full_like(out, np.nan)
        assert fm.attention_with_kvcache(query, cache, out=given_out) is given_out
        assert_same_bits(given_out, out)
    np.testing.assert_array_equal(cache.lengths, [7] * BATCH)


def test_more_queries_than_keys(random):
    """Queries that stand before the first key see nothing and give zeros."""
    cache = fm.KVCache(BATCH, KV_HEADS, 20, DIM)
    key = random.normal(BATCH, KV_HEADS, 2, DIM)
    cache.append(key, key)
    query = random.normal(BATCH, HEADS, 5, DIM)
    out = fm.attention_with_kvcache(query, cache)
    assert not out[:, :, :3].any()
    assert_attention(out, query, key, key, is_causal=True, query_offset=-3)


def test_empty_cache_gives_zeros(random):
    cache = fm.KVCache(BATCH, KV_HEADS, 5, DIM)
    query = random.normal(BATCH, HEADS, 1, DIM)
    assert not fm.attention_with_kvcache(query, cache).any()


def test_unused_capacity_is_never_read(random):
    cache = fm.KVCache(BATCH, KV_HEADS, 40, DIM)
    cache.key[...] = np.nan
    cache.value[...] = np.nan
    key, value = random.normal(BATCH, KV_HEADS, 7, DIM), random.normal(BATCH, KV_HEADS, 7, DIM)
    for count in (1, 3):
        query = random.normal(BATCH, HEADS, count, DIM)
        cache.reset()
        out = fm.attention_with_kvcache(query, cache, key, value, is_causal=False)
        assert_attention(out, query, key, value)


@pytest.mark.parametrize("count", [1, 3])
def test_full_cache_refuses_and_stays(random, count):
    cache = fm.KVCache(BATCH, KV_HEADS, 4, DIM)
    key = random.normal(BATCH, KV_HEADS, 4, DIM)
    cache.append(key[:, :, : 4 - count + 1], key[:, :, : 4 - count + 1])
    before = snapshot(cache)
    query = random.normal(BATCH, HEADS, count, DIM)
    out = np.full((BATCH, HEADS, count, DIM), 7, np.float32)
    with pytest.raises(ValueError, match="capacity"):
        fm.attention_with_kvcache(query, cache, key[:, :, :count], key[:, :, :count], out=out)
    assert_unchanged(cache, before)
    assert (out == 7).all()


def test_wrong_arguments_change_nothing(random):
    cache = fm.KVCache(BATCH, KV_HEADS, 10, DIM)
    key = random.normal(BATCH, KV_HEADS, 2, DIM)
    cache.append(key, key)
    before = snapshot(cache)
    query = random.normal(BATCH, HEADS, 1, DIM)
    one = key[:, :, :1]
    wrong = [
        (ValueError, lambda: cache.append(key[:2], key[:2])),
        (ValueError, lambda: cache.append(key[:, :1], key[:, :1])),
        (ValueError, lambda: cache.append(key[..., :5], key)),
        (ValueError, lambda: cache.append(key, key[..., :5])),
        (ValueError, lambda: cache.append(key, one)),
        (ValueError, lambda: cache.append(key[0], key[0])),
        (TypeError, lambda: cache.append(key.astype(np.float64), key)),
        (TypeError, lambda: cache.append(key, key.astype(np.float16))),
        (TypeError, lambda: cache.append(None, None)),
        (ValueError, lambda: fm.attention_with_kvcache(query[:, :3], cache, one, one)),
        (ValueError, lambda: fm.attention_with_kvcache(query[:2], cache, one, one)),
        (ValueError, lambda: fm.attention_with_kvcache(query[..., :5], cache, one, one)),
        (TypeError, lambda: fm.attention_with_kvcache(query.astype(np.float64), cache, one, one)),
        (ValueError, lambda: fm.attention_with_kvcache(query, cache, one, one, softcap=-1.0)),
        (ValueError, lambda: fm.attention_with_kvcache(query, cache, one, one, scale=np.nan)),
        (ValueError, lambda: fm.attention_with_kvcache(query, cache, one, one, window=(-2, 0))),
        (
            ValueError,
            lambda: fm.attention_with_kvcache(
                query, cache, one, one, alibi_slopes=query[0, :3, 0, 0]
            ),
        ),
        (
            ValueError,
            lambda: fm.attention_with_kvcache(query, cache, one, one, out=query[..., :3].copy()),
        ),
        (ValueError, lambda: fm.attention_with_kvcache(query, cache, one, one, out=query)),
        ((ValueError, TypeError), lambda: fm.attention_with_kvcache(query, cache, one)),
        ((ValueError, TypeError), lambda: fm.attention_with_kvcache(query, cache, value=one)),
        (TypeError, lambda: fm.attention_with_kvcache(query, key, one, one)),
    ]
    for error, call in wrong:
        with pytest.raises(error):
            call()
        assert_unchanged(cache, before)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ValueError, (-1, 2, 5, 8)),
        (ValueError, (1, -2, 5, 8)),
        (ValueError, (1, 2, -5, 8)),
        (ValueError, (1, 2, 5, -8)),
        (ValueError, (1, 2, 5, 8, -1)),
        (TypeError, (1.5, 2, 5, 8)),
        (TypeError, ("1", 2, 5, 8)),
        ((TypeError, ValueError), (1, 2, 5, 8, None, np.float64)),
        ((TypeError, ValueError), (1, 2, 5, 8, None, "bogus")),
    ],
)
def test_wrong_cache_sizes(error, arguments):
    with pytest.raises(error, match="KVCache"):
        fm.KVCache(*arguments)


@settings(max_examples=150)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_any_history_equals_a_model(data, seed):
    """A sequence of appends, reorders and resets against a plain list of arrays."""
    rng = np.random.default_rng(seed)
    batch, kv_heads, capacity = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)), 12
    cache = fm.KVCache(batch, kv_heads, capacity, 4)
    key = value = np.zeros((batch, kv_heads, 0, 4), np.float32)
    for action in data.draw(
        st.lists(st.sampled_from(["append", "reorder", "reset", "attend"]), max_size=8)
    ):
        if action == "append":
            count = data.draw(st.integers(0, 7))
            k, v = (
                rng.standard_normal((batch, kv_heads, count, 4)).astype(np.float32) for _ in "kv"
            )
            if key.shape[2] + count > capacity:
                with pytest.raises(ValueError, match="capacity"):
                    cache.append(k, v)
            else:
                cache.append(k, v)
                key, value = np.concatenate([key, k], 2), np.concatenate([value, v], 2)
        elif action == "reorder":
            beams = [data.draw(st.integers(0, batch - 1)) for _ in range(batch)]
            cache.reorder(beams)
            key, value = key[beams], value[beams]
        elif action == "reset":
            cache.reset()
            key, value = key[:, :, :0], value[:, :, :0]
        else:
            query = rng.standard_normal(
                (batch, 2 * kv_heads, data.draw(st.integers(1, 3)), 4)
            ).astype(np.float32)
            options = {"is_causal": True, "query_offset": key.shape[2] - query.shape[2]}
            assert_attention(fm.attention_with_kvcache(query, cache), query, key, value, **options)
        np.testing.assert_array_equal(cache.lengths, [key.shape[2]] * batch)
        np.testing.assert_array_equal(cache.key[:, :, : key.shape[2]], key)
        np.testing.assert_array_equal(cache.value[:, :, : key.shape[2]], value)
