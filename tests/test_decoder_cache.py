"""Sources that join and leave while others generate: a hypothesis depends on its own alone."""

import fastmha as fm
import numpy as np
import pytest
from conftest import assert_same_bits
from fastmha import _core
from fastmha.nn import decoder_cache
from test_sublayers import shaken

D = 32


def decoder_of(**settings):
    options = {"norm_first": True, "gated": True, "norm": "rms_norm", "bias": False} | settings
    blocks = [fm.DecoderBlock(D, 4, 48, **options, seed=n) for n in range(2)]
    return fm.Decoder(blocks, fm.RMSNorm(D) if options["norm"] == "rms_norm" else fm.LayerNorm(D))


SETTINGS = {
    "T5": {"head_dim": 12, "scale": 1.0},
    "post-norm": {"norm_first": False, "gated": False, "norm": "layer_norm", "bias": True},
    "plain": {"gated": False, "norm": "layer_norm"},
}


@pytest.mark.parametrize("sources", [1, 4, 5])
def test_a_block_that_normalises_first_behind_one_that_does_not(random, sources):
    """Up to 4 hypotheses the second block's norm overwrote what it was to be added to."""
    decoder = shaken(fm.Decoder([fm.DecoderBlock(D, 4, 48, norm_first=n) for n in (0, 1)]))
    x, memory = random.normal(sources, 3, D), random.normal(sources, 7, D)
    cache = decoder.new_cache(sources, 3)
    steps = [decoder(x[:, i : i + 1], memory, cache=cache) for i in range(3)]
    np.testing.assert_allclose(np.concatenate(steps, 1), decoder(x, memory), atol=1e-5)


class Source:
    """A source with its memory, what its beams read, and what they gave when it was alone."""

    def __init__(self, random, decoder, beam_size, steps, bias):
        self.memory = random.normal(int(random.rng.integers(1, 30)), D)
        self.x = random.normal(steps, beam_size, 1, D)
        self.parents = [random.rng.integers(0, beam_size, beam_size) for _ in range(steps)]
        cache = decoder.new_cache(1, steps, beam_size=beam_size)
        self.given = []
        for x, parents in zip(self.x, self.parents, strict=True):
            memory = self.memory[None] if not cache.has_memory else None
            self.given.append(decoder(x, memory, cache=cache, relative_bias=bias))
            cache.reorder(parents)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("beam_size", [1, 3])
def test_sources_that_join_and_leave_change_nothing_for_the_others(
    random, num_threads, name, beam_size
):
    """Bit for bit, over many steps in which hypotheses stand at different positions."""
    decoder = decoder_of(**SETTINGS[name])
    bias = random.normal(4, 9) if name == "T5" else None
    rng = np.random.default_rng(3)
    random.rng = rng
    most, waiting = 4, 14
    sources = [
        Source(random, decoder, beam_size, int(rng.integers(1, 9)), bias) for _ in range(waiting)
    ]
    cache = decoder.new_cache(most, 8, beam_size=beam_size, empty=True)
    present: list[list] = []  # source, position
    queue = list(sources)
    checked = 0
    while queue or present:
        new = queue[: int(rng.integers(0, most - len(present) + 1))]
        if not present:
            new = new or queue[:1]
        queue = queue[len(new) :]
        if new or rng.random() < 0.2:
            bounds = np.cumsum([0] + [len(source.memory) for source in new])
            memory = np.concatenate([source.memory for source in new] or [np.empty((0, D))])
            decoder.join(cache, memory.astype(np.float32), bounds)
        present += [[source, 0] for source in new]
        assert cache.sources == len(present)
        np.testing.assert_array_equal(
            cache.lengths, np.repeat([position for _, position in present], beam_size)
        )
        num_threads(int(rng.integers(1, 4)))
        x = np.concatenate([source.x[position] for source, position in present])
        out = decoder(x, cache=cache, relative_bias=bias)
        for n, (source, position) in enumerate(present):
            rows = out[n * beam_size : (n + 1) * beam_size]
            assert_same_bits(rows, source.given[position], f"position {position}")
            checked += 1
        order = [n * beam_size + s.parents[p] for n, (s, p) in enumerate(present)]
        cache.reorder(np.concatenate(order))
        for entry in present:
            entry[1] += 1
        stay = [n for n, (s, p) in enumerate(present) if p < len(s.x)]
        if len(stay) < len(present):
            cache.select(stay)
            present = [present[n] for n in stay]
    assert checked == sum(len(source.x) for source in sources)
    out = decoder(np.empty((0, 1, D), np.float32), cache=cache)  # nobody is left
    assert out.shape == (0, 1, D)


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_the_whole_decoder(random, name):
    """One position at a time and several, of different counts, against the call without a cache."""
    decoder = decoder_of(**SETTINGS[name])
    bias = random.normal(4, 21) if name == "T5" else None
    x, memory = random.normal(3, 40, D), random.normal(3, 21, D)
    memory_lengths = [21, 4, 9]
    whole = decoder(x, memory, memory_lengths=memory_lengths, relative_bias=bias)
    cache = decoder.new_cache(3, 40)
    positions = np.zeros(3, int)
    while (positions < 40).any():
        counts = np.minimum(40 - positions, random.rng.integers(0, 9, 3))
        if random.rng.random() < 0.5:
            counts = np.minimum(counts, 1)
        longest = max(1, counts.max())
        new = np.full((3, longest, D), np.nan, np.float32)
        for n, (position, count) in enumerate(zip(positions, counts, strict=True)):
            new[n, :count] = x[n, position : position + count]
        first = {"memory": memory, "memory_lengths": memory_lengths} if not cache.has_memory else {}
        out = decoder(new, **first, cache=cache, key_lengths=counts, relative_bias=bias)
        for n, (position, count) in enumerate(zip(positions, counts, strict=True)):
            expected = whole[n, position : position + count]
            np.testing.assert_allclose(out[n, :count], expected, rtol=1e-4, atol=1e-4)
            assert not out[n, count:].any()
        positions += counts
        np.testing.assert_array_equal(cache.lengths, positions)


def test_several_positions_are_bit_for_bit_those_without_a_cache(random):
    decoder = decoder_of()
    for beam_size in (1, 2):
        x, memory = random.normal(3 * beam_size, 37, D), random.normal(3, 21, D)
        lengths = [21, 4, 9]
        whole = decoder(
            x,
            np.repeat(memory, beam_size, axis=0),
            memory_lengths=np.repeat(lengths, beam_size),
        )
        cache = decoder.new_cache(3, 40, beam_size=beam_size)
        out = decoder(x[:, :20], memory, memory_lengths=lengths, cache=cache)
        assert_same_bits(out, whole[:, :20])
        assert_same_bits(decoder(x[:, 20:], cache=cache), whole[:, 20:])


def test_reorder_moves_nothing_where_hypotheses_are_as_long(random):
    decoder = decoder_of()
    cache = decoder.new_cache(2, 4, beam_size=3)
    decoder(random.normal(6, 1, D), random.normal(2, 5, D), cache=cache)
    before = [(block.key.copy(), block.value.copy()) for block in cache.blocks]
    cache.reorder([2, 0, 1, 3, 5, 4])
    cache.reorder([0, 0, 1, 4, 4, 4])
    for block, (key, value) in zip(cache.blocks, before, strict=True):
        assert_same_bits(block.key, key)
        assert_same_bits(block.value, value)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("longest", [1, 5])
def test_a_hypothesis_goes_on_as_the_one_that_it_continues(random, alike, longest):
    """Bit for bit what a hypothesis gives that has read the same positions by itself, through
    reorders of all kinds, for one and for several new positions."""
    decoder = decoder_of()
    beams, capacity = 4, 24
    memory = random.normal(2, 7, D)
    cache = decoder.new_cache(2, capacity, beam_size=beams)
    read = [np.empty((0, D), np.float32) for _ in range(2 * beams)]

    def alone(rows, source, count):
        """The last `count` of these rows. One at a time, or all at once, as the cache got them."""
        own = decoder.new_cache(1, capacity)
        if longest == 1:
            steps = [(row[None, None], 1) for row in rows]
        else:
            steps = [(np.concatenate([rows, np.zeros((2, D), np.float32)])[None], len(rows))]
        for step, counted in steps:
            given = None if own.has_memory else memory[None, source]
            out = decoder(step, given, cache=own, key_lengths=[counted])
        return out[0, counted - count : counted]

    while max(map(len, read)) + longest <= capacity:
        x = random.normal(2 * beams, longest, D)
        counts = np.full(2 * beams, longest)
        if not alike:
            counts = random.rng.integers(0, longest + 1, 2 * beams)
        given = None if cache.has_memory else memory
        out = decoder(x, given, cache=cache, key_lengths=counts)
        for n, count in enumerate(counts.tolist()):
            read[n] = np.concatenate([read[n], x[n, :count]])
            if count:
                assert_same_bits(out[n, :count], alone(read[n], n // beams, count))
        np.testing.assert_array_equal(cache.lengths, [len(rows) for rows in read])
        parents = random.rng.integers(0, beams, 2 * beams) + np.repeat([0, beams], beams)
        cache.reorder(parents)
        read = [read[parent] for parent in parents]


def test_a_reorder_that_is_interrupted_changes_nothing(random, monkeypatch):
    """Hypotheses of different lengths are copied: one that was half done left wrong keys."""
    decoder = decoder_of()
    memory, x = random.normal(1, 5, D), random.normal(2, 3, D)
    step = random.normal(2, 1, D)

    def started():
        cache = decoder.new_cache(1, 6, beam_size=2)
        decoder(x, memory, cache=cache, key_lengths=[3, 2])
        return cache

    expected = decoder(step, cache=started())
    cache = started()
    zeros = decoder_cache.keys_and_values

    class Interrupting(np.ndarray):
        def __setitem__(self, place, value):
            raise KeyboardInterrupt

    def made(shapes):
        *first, (key, value) = zeros(shapes)
        return [*first, (key, value.view(Interrupting))]

    with monkeypatch.context() as patch:
        patch.setattr(decoder_cache, "keys_and_values", made)
        with pytest.raises(KeyboardInterrupt):
            cache.reorder([1, 0])
    np.testing.assert_array_equal(cache.lengths, [3, 2])
    assert_same_bits(decoder(step, cache=cache), expected)


def test_memory_of_sources_that_left_is_used_again(random):
    """A cache that many sources go through stays as large as those present need."""
    decoder = decoder_of()
    cache = decoder.new_cache(2, 4, empty=True)
    for _ in range(200):
        decoder.join(cache, random.normal(7, D), [0, 7])
        if cache.sources == 2:
            cache.select([1])
    assert cache.blocks[0].memory_key.shape[2] <= 8 * 7


def test_a_failed_join_changes_nothing(random, monkeypatch):
    """Not even when the memory had to move for it."""
    decoder = decoder_of()
    cache = decoder.new_cache(4, 4, empty=True)
    memory, x = random.normal(12, D), random.normal(2, 1, D)
    decoder.join(cache, memory, [0, 4, 8, 12])
    cache.select([0, 2])
    expected = decoder(x, cache=cache)
    cache = decoder.new_cache(4, 4, empty=True)
    decoder.join(cache, memory, [0, 4, 8, 12])
    cache.select([0, 2])
    append = _core.kv_cache_append
    calls = []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        append(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_core, "kv_cache_append", failing)
        with pytest.raises(KeyboardInterrupt):
            decoder.join(cache, random.normal(30, D), [0, 30])
    assert cache.sources == 2
    assert_same_bits(decoder(x, cache=cache), expected)


def test_wrong_calls(random):
    decoder = decoder_of()
    memory = random.normal(8, D)
    cache = decoder.new_cache(2, 3, beam_size=2, empty=True)
    with pytest.raises(ValueError, match=r"x must be \(0, length, 32\), got \(4, 1, 32\)"):
        decoder(random.normal(4, 1, D), memory[None], cache=cache)
    with pytest.raises(ValueError, match=r"Decoder\.join: the cache has room for 2 sources, 0 are"):
        decoder.join(cache, memory, [0, 2, 4, 8])
    with pytest.raises(ValueError, match=r"Decoder\.join: memory_cu_seqlens must .* end at"):
        decoder.join(cache, memory, [0, 2, 7])
    with pytest.raises(TypeError, match=r"Decoder\.join: cache must be a DecoderCache, got int"):
        decoder.join(3, memory, [0, 8])
    with pytest.raises(TypeError, match="float64"):
        decoder.join(cache, memory.astype(np.float64), [0, 8])
    with pytest.raises(ValueError, match=r"new_cache: keys and values of \d+ bytes fit no memory"):
        decoder.new_cache(1, 2**62)
    decoder.join(cache, memory, [0, 2, 8])
    with pytest.raises(ValueError, match="2 are here and 1 more were to join"):
        decoder.join(cache, memory, [0, 8])
    with pytest.raises(ValueError, match=r"reorder: beam_indices must lie in 0 \.\. 3, got 4"):
        cache.reorder([0, 1, 2, 4])
    with pytest.raises(ValueError, match="one hypothesis for each of the 4 here, got 2"):
        cache.reorder([0, 1])
    with pytest.raises(ValueError, match="of its own source, got 2 for hypothesis 0"):
        cache.reorder([2, 1, 2, 3])
    with pytest.raises(TypeError, match="must be integers"):
        cache.reorder([0.5, 1, 2, 3])
    with pytest.raises(ValueError, match=r"select: sources must lie in 0 \.\. 1, got 2"):
        cache.select([0, 2])
    with pytest.raises(ValueError, match="must rise, got"):
        cache.select([1, 1])
    with pytest.raises(ValueError, match=r"key_lengths must lie in 0 \.\. 1, got 2"):
        decoder(random.normal(4, 1, D), cache=cache, key_lengths=[1, 1, 2, 1])
    with pytest.raises(ValueError, match="full: hypothesis 0 holds 0 of 3 positions and 4 more"):
        decoder(random.normal(4, 4, D), cache=cache)
    with pytest.raises(ValueError, match="relative_bias must have shape"):
        decoder(random.normal(4, 1, D), cache=cache, relative_bias=random.normal(3, 3))
    with pytest.raises(TypeError, match="x must be float32, got float64"):
        decoder(random.normal(4, 1, D).astype(np.float64), cache=cache)
    np.testing.assert_array_equal(cache.lengths, [0] * 4)
    with pytest.raises(ValueError, match="read-only"):
        cache.lengths[0] = 3


def step_arguments(random, sources, beam_size, *, capacity=4):
    """A call of the core for one block of two heads; every source has a memory of two rows."""
    packed = {
        shape: fm.Linear(random.normal(*shape))._packed
        for shape in ((3 * D, D), (D, D), (48, D), (D, 48))
    }
    maps = (packed[3 * D, D], *[packed[D, D]] * 3, packed[48, D], packed[D, 48], None)
    slots = sources * beam_size
    buffers = [np.zeros(s, np.float32) for s in [(slots, 2, capacity, D // 2)] * 2]
    buffers += [random.normal(2, 2 * sources, D // 2) for _ in range(2)]
    blocks = [(*maps, None, None, None, False, 2, 2, None, *buffers)]
    x = random.normal(slots, 1, D)
    zeros = np.zeros(slots, np.int64)
    starts = 2 * np.arange(sources)
    memory = [starts, starts * 0 + 2]
    return [blocks, None, x, beam_size, np.arange(slots), zeros, None, None, *memory, None]


def test_wrong_arguments_of_the_core(random):
    """The layers above never pass these; none may crash or be taken for something else."""
    good = step_arguments(random, 4, 1)
    assert _core.decoder_step(*good).shape == (4, 1, D)
    # 4 * (2^62 + 1) is 4 in 64 bits.
    with pytest.raises(ValueError, match="beam_size must be at least 1"):
        _core.decoder_step(*good[:3], 2**62 + 1, *good[4:])
    with pytest.raises(TypeError, match="beam_size must be an int, got float"):
        _core.decoder_step(*good[:3], 1.5, *good[4:])
    block = good[0][0]
    for place, thing, message in (
        (0, "text", "maps must be packed linear layers, got str"),
        (11, None, "heads must be an int"),
        (14, [1.0], "key must be a numpy.ndarray, got list"),
    ):
        with pytest.raises(TypeError, match=message):
            _core.decoder_step([(*block[:place], thing, *block[place + 1 :])], *good[1:])
    with pytest.raises(ValueError, match="a block needs all its maps"):
        _core.decoder_step([(None, *block[1:])], *good[1:])
    narrow = (np.ones(D - 1, np.float32), None, 1e-5)
    with pytest.raises(ValueError, match=r"norms\[2\]\.weight must have shape"):
        _core.decoder_step([(*block[:9], narrow, *block[10:])], *good[1:])
    with pytest.raises(ValueError, match=r"decoder_step: norm\.weight must have shape"):
        _core.decoder_step(good[0], narrow, *good[2:])
    largest = np.iinfo(np.int64).max
    with pytest.raises(ValueError, match=f"source 0 has {largest} rows from 1 on"):
        _core.decoder_step(*good[:8], good[8] + 1, good[9] * 0 + largest, None)
    for slots, message in (
        (np.zeros(4, np.int64), r"position_slots must be \(4, 0 or more\), got \(4,\)"),
        (np.zeros((3, 2), np.int64), r"position_slots must be \(4, 0 or more\), got \(3, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            _core.decoder_step(*good[:7], slots, *good[8:])
    with pytest.raises(ValueError, match=r"must be \(4, 2 or more\), got \(4, 1\)"):
        _core.decoder_step(*good[:5], good[5] + 2, None, np.zeros((4, 1), np.int64), *good[8:])
    with pytest.raises(TypeError, match="position_slots must be integers, got float64"):
        _core.decoder_step(*good[:7], np.zeros((4, 1)), *good[8:])


def test_the_memory_is_an_input(random):
    """Arrays that are only read had to be writeable, with a contiguous last axis."""
    good = step_arguments(random, 4, 1)
    *block, memory_key, memory_value = good[0][0]
    expected = _core.decoder_step(*good)
    spread = np.empty((*memory_key.shape, 2), np.float32)
    spread[..., 0], spread[..., 1] = memory_key, memory_value
    locked = memory_key.copy(), memory_value.copy()
    for array in locked:
        array.flags.writeable = False
    for key, value in (locked, (spread[..., 0], spread[..., 1])):
        assert_same_bits(_core.decoder_step([(*block, key, value)], *good[1:]), expected)
    locked_key = block[14].copy()
    locked_key.flags.writeable = False
    with pytest.raises(ValueError, match=r"decoder_step: key must have 4 axes, .*be writeable"):
        _core.decoder_step([(*block[:14], locked_key, block[15], *locked)], *good[1:])
    with pytest.raises(ValueError, match="decoder_step: memory_key must have 3 axes, got shape"):
        _core.decoder_step([(*block, memory_key[0], memory_value)], *good[1:])


def test_keys_and_values_that_share_memory(random):
    """One step wrote over what another had read, or over what it had itself still to read."""
    good = step_arguments(random, 4, 1)
    *maps, key, value, memory_key, memory_value = good[0][0]
    good[0].append((*maps, key.copy(), value.copy(), memory_key, memory_value))  # memories may
    together = np.zeros((2, *key.shape), np.float32)
    beside = np.zeros((*key.shape[:3], 2 * key.shape[3]), np.float32)
    of_memory = together.reshape(-1)[: memory_key.size].reshape(memory_key.shape)
    width = key.shape[3]
    expected = _core.decoder_step(*good)

    def step(*arrays, x=good[2]):
        return _core.decoder_step([(*maps, *arrays), good[0][1]], None, x, *good[3:])

    memory = memory_key, memory_value
    for apart in ((together[0], together[1]), (beside[..., :width], beside[..., width:])):
        assert_same_bits(step(*apart, *memory), expected)
    together[:] = 7
    for arrays, names in (
        ((together[0], together[0], *memory), "key and value"),
        ((together[0], beside[..., :width], of_memory, memory_value), "key and memory_key"),
        ((beside[..., :width], together[0], memory_key, of_memory), "value and memory_value"),
        ((good[0][1][14], together[1], *memory), "key and key"),
        ((beside[..., :width], beside[..., 1 : width + 1], *memory), "key and value"),
    ):
        first, second = names.split(" and ")
        either = f"({first} and {second}|{second} and {first}) must not share memory"
        with pytest.raises(ValueError, match=f"^decoder_step: {either}"):
            step(*arrays)
    x = together.reshape(-1)[: good[2].size].reshape(good[2].shape)
    with pytest.raises(ValueError, match=r"^decoder_step: (x and key|key and x) must not share"):
        step(together[0], value, *memory, x=x)
    for key in (together[0][:1], together[0, :, :, :1]):
        twice = np.lib.stride_tricks.as_strided(key, together[0].shape, (*[0] * 3, 4))
        with pytest.raises(ValueError, match=r"key must not be a view whose elements share memory"):
            step(twice, value, *memory)
    assert (together == 7).all()


def test_a_list_of_blocks_that_changes_while_it_is_read(random):
    """A number in a tuple may be of a class, whose code then runs."""
    good = step_arguments(random, 4, 1)
    (block,) = good[0]
    blocks = [block, (*block[:14], block[14].copy(), block[15].copy(), *block[16:])]
    expected = _core.decoder_step(blocks, *good[1:])

    class Two:
        def __index__(self):
            blocks[:] = [None] * 1000
            blocks.clear()
            return 2

    blocks[0] = (*block[:11], Two(), *block[12:])
    assert_same_bits(_core.decoder_step(blocks, *good[1:]), expected)


def test_a_relative_bias_is_refused_before_the_first_part_of_many_sources(random):
    """Many sources go through the blocks part by part; one in the last needs a bias that is NaN."""
    position, reach = 3, 5
    arguments = step_arguments(random, 40_000, 1)
    arguments[5][-1] = position
    bias = random.normal(2, 2 * reach + 1)
    bias[:, reach - position] = np.nan
    before = arguments[0][0][14].copy()
    with pytest.raises(ValueError, match="relative_bias must be finite"):
        _core.decoder_step(*arguments[:-1], bias)
    np.testing.assert_array_equal(arguments[0][0][14], before)
