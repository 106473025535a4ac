"""Every encoder-decoder family and every switch of its config against transformers, which wrote the
checkpoints."""

import copy
from inspect import signature

import numpy as np
import pytest
import torch
import transformers
from checkpoints import rewrite_config
from conftest import assert_same_bits
from fastmha.families import SEQ2SEQ_FAMILIES as OURS
from fastmha.families.distances import buckets
from safetensors.numpy import load_file, save_file
from seq2seq_checkpoints import (
    EOS,
    FAMILIES,
    PAD,
    VOCAB,
    load,
    packed,
    reference_logits,
    sequences,
    write_checkpoint,
)
from tolerance import U

SOURCES = (17, 1, 40, 2, 64, 17, 3)
TARGETS = (9, 30, 1, 64, 12, 2, 17)
CASES = {
    "bart": ("bart", {}),
    "bart, scaled, relu": ("bart", {"scale_embedding": True, "activation_function": "relu"}),
    "bart, untied": ("bart", {"tie_word_embeddings": False}),
    "mbart": ("mbart", {"scale_embedding": True}),
    "mbart, relu, unscaled": ("mbart", {"activation_function": "relu"}),
    "m2m_100": ("m2m_100", {}),
    "m2m_100, unscaled, silu, padding id": (
        "m2m_100",
        {"scale_embedding": False, "activation_function": "silu", "pad_token_id": 5},
    ),
    "marian": ("marian", {"scale_embedding": True, "activation_function": "swish"}),
    "marian, unscaled, gelu": ("marian", {}),
    "marian, relu": ("marian", {"activation_function": "relu"}),
    "marian, two vocabularies": (
        "marian",
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 131},
    ),
    "t5": ("t5", {}),
    **{
        f"t5, {name}": ("t5", {"feed_forward_proj": name, "tie_word_embeddings": False})
        for name in ("gated-gelu", "gated-silu", "gated-relu", "gelu")
    },
    "t5, gated, scaled": ("t5", {"feed_forward_proj": "gated-gelu"}),
    "t5, buckets, eps, layers": (
        "t5",
        {
            **{"relative_attention_num_buckets": 9, "relative_attention_max_distance": 21},
            **{"num_decoder_layers": 3, "layer_norm_epsilon": 1e-2},
        },
    ),
    "mt5": ("mt5", {}),
    "mt5, relu": ("mt5", {"feed_forward_proj": "relu"}),
    "marian, untied": (
        "marian",
        {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
    ),
}


def assert_as_exact(ours, theirs, exact, what=""):
    """Against float64: at most four times as far off as PyTorch, which sums in other orders.

    The factor is that of the project for linear maps; below a few roundings of the largest number
    neither order is the better one.
    """
    allowed = 4 * np.abs(theirs - exact).max() + 16 * U * np.abs(exact).max()
    error = np.abs(ours - exact).max()
    assert error <= allowed, f"{what}: off by {error:.2e}, allowed {allowed:.2e}"


def check(directory, reference, lengths=(SOURCES, TARGETS)):
    """Logits are transformers', at once and step by step, with the same bits in any company."""
    network = load(directory)
    sources = sequences(*lengths[0])
    targets = sequences(*lengths[1], first=EOS, seed=1)
    double = copy.deepcopy(reference).double()
    ids, bounds = packed(sources)
    target_ids, target_bounds = packed(targets)
    memory = network.encode(ids, bounds)
    logits = network.target_logits(memory, bounds, target_ids, target_bounds)
    pairs = list(zip(sources, targets, strict=True))
    theirs = np.concatenate([reference_logits(reference, *pair) for pair in pairs])
    exact = np.concatenate([reference_logits(double, *pair) for pair in pairs])
    assert logits.shape == (len(target_ids), network.vocab_size)
    assert_as_exact(logits, theirs, exact, "at once")
    memories = np.split(memory, bounds[1:-1])
    steps = stepwise(network, memories, targets)
    assert_as_exact(np.concatenate(steps), theirs, exact, "step by step")
    for n, (source, target) in enumerate(pairs):
        alone = network.encode(source, [0, len(source)])
        assert_same_bits(alone, memories[n], f"source {n} alone")
        assert_same_bits(
            network.target_logits(alone, [0, len(alone)], target, [0, len(target)]),
            logits[target_bounds[n] : target_bounds[n + 1]],
            f"target {n} alone",
        )
        assert_same_bits(
            stepwise(network, [alone], [target])[0], steps[n], f"steps of target {n} alone"
        )
    return network


def stepwise(network, memories, targets):
    """The logits of each target, one token at a time; targets join one after the other, and one
    that ends leaves the others."""
    hypotheses = network.start(len(targets), max(map(len, targets)))
    waiting, present = list(range(len(targets))), []
    found = [[] for _ in targets]
    while waiting or present:
        if waiting:
            n = waiting.pop(0)
            hypotheses.join(memories[n], np.array([0, len(memories[n])]))
            present.append(n)
        rows = hypotheses.logits(np.array([targets[n][len(found[n])] for n in present]))
        for n, row in zip(present, rows, strict=True):
            found[n].append(row.copy())
        stay = [place for place, n in enumerate(present) if len(targets[n]) > len(found[n])]
        if len(stay) < len(present):
            hypotheses.select(stay)
            present = [present[place] for place in stay]
    return [np.array(rows) for rows in found]


@pytest.mark.parametrize(("model_type", "config"), CASES.values(), ids=CASES)
def test_as_transformers(tmp_path, model_type, config):
    reference = write_checkpoint(tmp_path, model_type, **config)
    check(tmp_path, reference)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_attention_weights(tmp_path, model_type):
    reference = write_checkpoint(tmp_path, model_type)
    network = load(tmp_path)
    source, target = sequences(11)[0], sequences(7, first=EOS)[0]
    found = network.attention_weights(source, target)
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        out = reference(
            input_ids=torch.from_numpy(source)[None],
            decoder_input_ids=torch.from_numpy(target)[None],
            output_attentions=True,
        )
    expected = out.encoder_attentions, out.decoder_attentions, out.cross_attentions
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) == 2
        for weights, maps in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(weights, maps[0].numpy(), rtol=0, atol=1e-4)


def test_every_family_is_tested():
    assert OURS.keys() == FAMILIES.keys() == {model_type for model_type, _ in CASES.values()}


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened(tmp_path, model_type, dtype):
    check(tmp_path, write_checkpoint(tmp_path, model_type, dtype=dtype), ((5, 20), (3, 9)))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_shards(tmp_path, model_type):
    reference = write_checkpoint(tmp_path, model_type, shards="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check(tmp_path, reference, ((5, 20), (3, 9)))


SHARED, OUTPUT = "shared.weight", "lm_head.weight"
PLACES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def stored(model_type, name):
    return name if name == OUTPUT or model_type in ("t5", "mt5") else f"model.{name}"


def rewrite(directory, change):
    """Let `change` work on the tensors of a checkpoint, a dict of their names."""
    file = directory / "model.safetensors"
    tensors = dict(load_file(file))
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("places", [*[(place,) for place in PLACES], (OUTPUT,), PLACES])
def test_tied_tensors_are_found_wherever_they_are_stored(tmp_path, model_type, places):
    reference = write_checkpoint(tmp_path, model_type)

    def move(tensors):
        table = tensors.pop(stored(model_type, SHARED))
        tensors.update({stored(model_type, name): table.copy() for name in places})

    rewrite(tmp_path, move)
    check(tmp_path, reference, ((5, 20), (3, 9)))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_tensors_that_are_stored_apart_are_apart(tmp_path, model_type):
    """As transformers has it, whatever the config says about ties."""
    write_checkpoint(tmp_path, model_type)

    def untie(tensors):
        table = tensors[stored(model_type, SHARED)]
        for factor, name in enumerate((*PLACES, OUTPUT), start=2):
            tensors[stored(model_type, name)] = table * np.float32(factor / 2)

    rewrite(tmp_path, untie)
    reference = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    check(tmp_path, reference, ((5, 20), (3, 9)))


@pytest.mark.parametrize("model_type", ["bart", "mbart", "marian"])
def test_without_prefix_bias_and_output(tmp_path, model_type):
    """As the model without its head is saved: tied weights are all that it needs. Buffers that old
    versions stored are nothing to load."""
    reference = write_checkpoint(tmp_path, model_type)

    def strip(tensors):
        tensors.pop("final_logits_bias")
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        if model_type == "marian":
            tensors["encoder.embed_positions.weight"] = np.zeros((96, 48), np.float32)
        else:
            tensors["encoder.version"] = np.zeros(1, np.float32)

    rewrite(tmp_path, strip)
    reference.final_logits_bias.zero_()
    check(tmp_path, reference, ((5, 20), (3, 9)))


@pytest.mark.parametrize("model_type", ["bart", "m2m_100"])
def test_one_array_for_all_tables_of_half_precision(tmp_path, model_type):
    """A widened table is there once, beside the packed output map."""
    write_checkpoint(tmp_path, model_type, dtype=torch.bfloat16)
    network = load(tmp_path)
    assert network.source.words.weight is network.target.words.weight


def test_a_bias_of_t5_that_nothing_reads(tmp_path):
    reference = write_checkpoint(tmp_path, "t5")
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({name: np.ones((32, 3), np.float32)}))
    check(tmp_path, reference, ((5, 20), (3, 9)))


@pytest.mark.parametrize("scaled", [False, True])
def test_configs_of_old_t5_checkpoints(tmp_path, scaled):
    """Before scale_decoder_outputs and num_decoder_layers had fields of their own."""
    reference = write_checkpoint(
        tmp_path, "t5", feed_forward_proj="gated-gelu", tie_word_embeddings=scaled
    )
    rewrite_config(
        tmp_path,
        **{"scale_decoder_outputs": None, "dense_act_fn": None, "is_gated_act": None},
        **{"num_decoder_layers": None, "tie_word_embeddings": scaled, "n_positions": 512},
    )
    assert reference.config.scale_decoder_outputs == scaled
    check(tmp_path, reference, ((5, 20), (3, 9)))


def test_t5_takes_sequences_of_any_length(tmp_path):
    """Beyond the distance at which its buckets end, too."""
    reference = write_checkpoint(tmp_path, "t5", std=0.2)
    check(tmp_path, reference, ((300, 7, 131), (140, 5, 260)))


@pytest.mark.parametrize("both_sides", [False, True])
@pytest.mark.parametrize(("count", "furthest"), [(32, 128), (4, 3), (9, 21), (64, 1000), (33, 50)])
def test_buckets_of_distances(both_sides, count, furthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-2 * furthest, 2 * furthest + 1)
    expected = T5Attention._relative_position_bucket(distances, both_sides, count, furthest)
    found = buckets(distances.numpy(), count, furthest, both_sides=both_sides)
    np.testing.assert_array_equal(found, expected.numpy())
    last = found[distances.numpy() <= -furthest]
    assert (last == last[0]).all()  # so a table of this many distances says everything


def test_tables_stay_mapped(tmp_path):
    write_checkpoint(tmp_path, "bart")
    network = load(tmp_path)
    for table in (network.source.words, network.target.words, network.source.learned):
        base = table.weight
        while base is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)


def test_padding_within_a_source(tmp_path):
    """A padding token of M2M100 has no position of its own, those after it count on without it."""
    reference = write_checkpoint(tmp_path, "m2m_100")
    network = load(tmp_path)
    source, target = np.array([5, PAD, 7, PAD, PAD, 9, 2]), np.array([EOS, 4, 5])
    memory = network.encode(source, [0, 7])
    logits = network.target_logits(memory, [0, 7], target, [0, 3])
    assert_as_exact(
        logits,
        reference_logits(reference, source, target),
        reference_logits(copy.deepcopy(reference).double(), source, target),
    )


def test_padding_within_a_target(tmp_path):
    """Its row is 0, and those after it count it, as when tokens come one by one."""
    reference = write_checkpoint(tmp_path, "m2m_100")
    network = load(tmp_path)
    source, target = np.array([5, 7, 2]), np.array([EOS, PAD, 5, PAD, 9, 6])
    memory = network.encode(source, [0, 3])
    # what transformers calls it depends on its version
    name = "cache" if "cache" in signature(reference.forward).parameters else "past_key_values"
    expected, cache = [], None
    for token in target:
        with torch.no_grad():
            step = reference(
                input_ids=torch.from_numpy(source)[None],
                decoder_input_ids=torch.tensor([[token]]),
                use_cache=True,
                **{name: cache},
            )
        cache = step[name]
        expected.append(step.logits[0, 0].numpy())
    tolerance = 2e-5 * np.abs(expected).max()
    at_once = network.target_logits(memory, [0, 3], target, [0, 6])
    np.testing.assert_allclose(at_once, expected, rtol=0, atol=tolerance)
    steps = stepwise(network, [memory], [target])[0]
    np.testing.assert_allclose(steps, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("marian", {"activation_function": "mish"}, "activation_function must be one of .* 'mish'"),
        ("marian", {"normalize_before": True}, "normalize_before is True; supported is False"),
        ("marian", {"is_encoder_decoder": False}, "is_encoder_decoder is False; supported is True"),
        ("marian", {"quantization_config": {"bits": 4}}, "quantization_config is .* leaving it"),
        ("marian", {"auto_map": {"AutoModelForSeq2SeqLM": "x.Y"}}, "auto_map says that the model"),
        ("marian", {"d_model": None}, "missing: d_model"),
        ("marian", {"d_model": "48"}, "d_model must be an int, got '48'"),
        ("marian", {"decoder_layers": 0}, "at least one block"),
        ("marian", {"decoder_layers": 10**9}, "decoder_layers is 1000000000, the weights are"),
        ("marian", {"decoder_attention_heads": 5}, r"multiple of num_heads \(5\)"),
        ("marian", {"max_position_embeddings": 0}, "max_position_embeddings must be at least 1"),
        ("marian", {"max_position_embeddings": 10**6}, "max_position_embeddings is 1000000 for"),
        ("marian", {"scale_embedding": 1}, "scale_embedding must be a bool, got 1"),
        ("bart", {"normalize_before": True}, "normalize_before is True; supported is False"),
        ("bart", {"encoder_attention_heads": 0}, "num_heads must be at least 1"),
        ("bart", {"is_decoder": True}, "is_decoder is True; supported is False"),
        ("mbart", {"normalize_before": False}, "normalize_before is False; supported is True"),
        ("mbart", {"encoder_ffn_dim": 0}, "d_ff must be at least 1"),
        ("m2m_100", {"pad_token_id": -1}, "pad_token_id must not be negative, got -1"),
        ("m2m_100", {"d_model": 2}, "d_model must be at least 4, got 2"),
        ("m2m_100", {"activation_function": 3}, "activation_function must be a str, got 3"),
        ("t5", {"feed_forward_proj": "twice-gelu"}, "feed_forward_proj must be .* 'twice-gelu'"),
        ("t5", {"feed_forward_proj": "gated-mish", "dense_act_fn": None}, "proj must be one of"),
        ("t5", {"feed_forward_proj": 3}, "feed_forward_proj must be an activation .* got 3"),
        ("t5", {"dense_act_fn": "silu"}, "dense_act_fn is 'silu', feed_forward_proj 'relu' means"),
        ("t5", {"relative_attention_num_buckets": 3}, "num_buckets must be at least 4, got 3"),
        ("t5", {"relative_attention_max_distance": 16}, r"must lie in 17 \.\. 100000 with 32"),
        ("t5", {"relative_attention_max_distance": 10**6}, "max_distance must lie in .* got 1000"),
        ("t5", {"d_kv": 0}, "head_dim must be at least 1"),
        ("t5", {"num_layers": 0}, "at least one block"),
        ("t5", {"num_decoder_layers": 10**7}, "num_decoder_layers is 10000000, the weights are"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        ("mt5", {"num_heads": None}, "missing: num_heads"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, model_type, changes, message):
    write_checkpoint(tmp_path, model_type)
    rewrite_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as failure:
        load(tmp_path)
    assert str(failure.value).startswith(str(tmp_path / "config.json"))


def test_weights_that_do_not_fit(tmp_path):
    write_checkpoint(tmp_path, "bart")
    layer = "model.decoder.layers.1"

    def spoil(tensors):
        tensors["extra.weight"] = tensors.pop(f"{layer}.encoder_attn.k_proj.bias")
        tensors[f"{layer}.fc1.weight"] = np.zeros((48, 40), np.float32)
        tensors["model.encoder.layernorm_embedding.bias"] = np.zeros(48, np.int32)
        tensors["final_logits_bias"] = np.zeros((2, VOCAB), np.float32)
        tensors.pop("model.shared.weight")

    rewrite(tmp_path, spoil)
    with pytest.raises(ValueError, match="missing") as failure:
        load(tmp_path)
    for piece in (
        str(tmp_path),
        "missing: decoder.embed_tokens.weight, "
        "decoder.layers.1.encoder_attn.k_proj.bias, encoder.embed_tokens.weight, lm_head.weight",
        "unexpected: extra.weight",
        f"{layer}.fc1.weight: config.json says shape (80, 48), got (48, 40)",
        "model.encoder.layernorm_embedding.bias: expected one of F32, F16, BF16, got I32",
        f"final_logits_bias: config.json says shape ({VOCAB},), got (2, {VOCAB})",
    ):
        assert piece in str(failure.value)


@pytest.mark.parametrize("model_type", ["bart", "m2m_100", "mbart", "marian"])
def test_an_untied_output_must_be_there(tmp_path, model_type):
    write_checkpoint(tmp_path, model_type)
    rewrite_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        load(tmp_path)


def test_more_layers_than_the_config_says(tmp_path):
    write_checkpoint(tmp_path, "marian")
    rewrite_config(tmp_path, decoder_layers=1)
    with pytest.raises(ValueError, match=r"unexpected: model\.decoder\.layers\.1\.encoder_attn"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("error", "message", "ids", "bounds"),
    [
        (ValueError, "encode: source 1 holds the id 113, .* 0 .. 112", [5, 113], [0, 1, 2]),
        (ValueError, "source 0 holds the id -1", [-1], [0, 1]),
        (ValueError, "source 1 is empty", [5, 6], [0, 1, 1, 2]),
        (ValueError, "source 0 has 97 tokens, the model has 96 positions", [5] * 97, [0, 97]),
        (ValueError, "cu_seqlens must be one-dimensional, start at 0", [5, 6], [0, 3]),
        (ValueError, "end to end in one dimension", [[5, 6]], [0, 1]),
        (TypeError, "source ids must be integers", [0.5], [0, 1]),
    ],
)
def test_wrong_sources(marian, error, message, ids, bounds):
    with pytest.raises(error, match=message):
        marian.encode(np.array(ids), np.array(bounds))


@pytest.mark.parametrize(
    ("error", "message", "ids", "bounds"),
    [
        (ValueError, "target 0 holds the id 113, .* 0 .. 112", [113], [0, 1]),
        (ValueError, "target 0 is empty", [], [0, 0]),
        (ValueError, "target 0 has 97 tokens, the model has 96 positions", [5] * 97, [0, 97]),
        (ValueError, "x holds 2 sequences, memory 1", [5, 6], [0, 1, 2]),
    ],
)
def test_wrong_targets(marian, error, message, ids, bounds):
    memory = marian.encode([5, 6], [0, 2])
    with pytest.raises(error, match=message):
        marian.target_logits(memory, [0, 2], np.array(ids, np.int64), np.array(bounds))


def test_more_tokens_than_positions(marian):
    with pytest.raises(ValueError, match=r"the model has 96 positions, .* max_new_tokens=97"):
        marian.start(1, 97)


@pytest.fixture
def marian(tmp_path):
    write_checkpoint(tmp_path, "marian")
    return load(tmp_path)


def test_no_tokens_at_all(marian):
    assert marian.encode(np.empty(0, np.int64), [0]).shape == (0, 48)
