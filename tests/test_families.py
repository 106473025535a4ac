"""Every family and every switch of its config against transformers, which wrote the checkpoints."""

import json

import fastmha as fm
import numpy as np
import pytest
import torch
from checkpoints import (
    FAMILIES,
    random_sequences,
    reference_forward,
    rewrite_config,
    write_checkpoint,
)
from conftest import assert_same_bits
from fastmha.families import FAMILIES as OURS
from fastmha.families.distances import buckets
from safetensors.numpy import load_file, save_file

LENGTHS = (17, 1, 64, 2, 200, 17, 17, 33, 130, 64, 3)
CASES = {
    "bert": ("bert", {}),
    **{
        f"bert, {name}": ("bert", {"hidden_act": name})
        for name in (
            *("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "relu"),
            *("silu", "swish"),
        )
    },
    "bert, types, eps": ("bert", {"type_vocab_size": 5, "layer_norm_eps": 1e-3}),
    "bert, one head": ("bert", {"num_attention_heads": 1, "num_hidden_layers": 1}),
    "distilbert": ("distilbert", {}),
    "distilbert, relu": ("distilbert", {"activation": "relu"}),
    "distilbert, sinusoidal": ("distilbert", {"sinusoidal_pos_embds": True}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "roberta, padding id": ("roberta", {"pad_token_id": 5}),
    "xlm-roberta": ("xlm-roberta", {}),
    "camembert": ("camembert", {}),
    "mpnet": ("mpnet", {}),
    "mpnet, relu, eps": ("mpnet", {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "modernbert": ("modernbert", {"local_attention": 16}),
    "modernbert, wide": ("modernbert", {}),
    "modernbert, odd window": ("modernbert", {"local_attention": 9, "norm_eps": 1e-3}),
    "modernbert, biases": (
        "modernbert",
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "local_attention": 16},
    ),
    "modernbert, layer types": (
        "modernbert",
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "local_attention": 8,
            "hidden_activation": "silu",
        },
    ),
    "modernbert, local alone": (
        "modernbert",
        {"layer_types": ["sliding_attention"] * 3, "local_attention": 2},
    ),
    "modernbert, thetas": (
        "modernbert",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
}


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1, np.abs(theirs).max()))


def check(directory, reference, sequences):
    """Hidden states and weights are transformers'; the bits are the same in any company."""
    model = fm.load(directory)
    states, attention = model.forward(sequences, return_attention=True)
    for ids, state, layers in zip(sequences, states, attention, strict=True):
        expected, maps = reference_forward(reference, ids)
        assert_close(state, expected)
        assert len(layers) == len(maps)
        for weights, expected in zip(layers, maps, strict=True):
            assert_close(weights, expected)
        assert_same_bits(model.forward([ids])[0], state, f"alone, length {len(ids)}")
    for again, state in zip(
        model.forward(sequences[::-1], batch_tokens=70), states[::-1], strict=True
    ):
        assert_same_bits(again, state, "other batches")
    return model


@pytest.mark.parametrize(("model_type", "config"), CASES.values(), ids=CASES)
def test_as_transformers(tmp_path, model_type, config):
    reference = write_checkpoint(tmp_path, model_type, **config)
    check(tmp_path, reference, random_sequences(*LENGTHS))


def test_every_family_is_tested():
    assert OURS.keys() == FAMILIES.keys() == {model_type for model_type, _ in CASES.values()}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_encode(tmp_path, model_type):
    """The mean of the hidden states of the text's ids, whatever else is encoded with it."""
    reference = write_checkpoint(tmp_path, model_type)
    model = fm.load(tmp_path)
    texts = ["w3 w50 w96", "", "w4", " ".join(f"w{n}" for n in range(3, 97)), "w3 w50 w96"]
    embeddings = model.encode(texts)
    assert embeddings.shape == (5, 48)
    for text, embedding in zip(texts, embeddings, strict=True):
        (ids,) = model.encode_texts([text])
        assert_close(embedding, reference_forward(reference, ids)[0].mean(0))
        assert_same_bits(model.encode(text)[0], embedding)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "mpnet"])
def test_a_padding_token_within_a_text_has_no_position(tmp_path, model_type):
    reference = write_checkpoint(tmp_path, model_type)
    sequences = random_sequences(9, 30, 2)
    for ids in sequences:
        ids[::3] = 1
    check(tmp_path, reference, [*sequences, np.array([1]), np.array([1, 1, 4])])


HEADS = {
    "bert": ("ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering", "ForPreTraining"),
    "distilbert": ("ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"),
    "roberta": ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
    "xlm-roberta": ("ForMaskedLM", "ForQuestionAnswering"),
    "camembert": ("ForMaskedLM", "ForTokenClassification"),
    "mpnet": ("ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"),
    "modernbert": ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
}


@pytest.mark.parametrize(
    ("model_type", "head"), [(name, head) for name, heads in HEADS.items() for head in heads]
)
def test_with_a_head(tmp_path, model_type, head):
    """Heads are left out, and the prefix in front of the encoder's names."""
    reference = write_checkpoint(tmp_path, model_type, head=head)
    check(tmp_path, reference, random_sequences(5, 20))


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_widened(tmp_path, model_type, dtype):
    reference = write_checkpoint(tmp_path, model_type, dtype=dtype)
    check(tmp_path, reference, random_sequences(5, 20))


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_shards(tmp_path, model_type):
    reference = write_checkpoint(tmp_path, model_type, shards="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    check(tmp_path, reference, random_sequences(5, 20))


def test_names_of_old_checkpoints(tmp_path):
    """gamma and beta for a norm, and buffers that hold nothing learnt."""
    reference = write_checkpoint(tmp_path, "bert", head="ForMaskedLM")
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in load_file(file).items()
    }
    save_file(old | {"bert.embeddings.position_ids": np.arange(210)[None]}, file)
    check(tmp_path, reference, random_sequences(5, 20))


def test_configs_of_old_checkpoints(tmp_path):
    """ModernBERT before layer_types and rope_parameters."""
    reference = write_checkpoint(
        tmp_path,
        "modernbert",
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 3000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        },
    )
    rewrite_config(
        tmp_path,
        layer_types=None,
        rope_parameters=None,
        global_attn_every_n_layers=2,
        global_rope_theta=3000.0,
        local_rope_theta=30.0,
        position_embedding_type="absolute",
    )
    check(tmp_path, reference, random_sequences(5, 70))


def test_buckets_of_distances():
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = torch.arange(-600, 601)
    expected = MPNetEncoder.relative_position_bucket(distances)
    np.testing.assert_array_equal(
        buckets(distances.numpy(), 32, 128, both_sides=True), expected.numpy()
    )


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("bert", {"hidden_act": "mish"}, r"hidden_act must be one of .*, got 'mish'"),
        ("bert", {"hidden_act": 3}, "hidden_act must be a str, got 3"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relat"),
        ("bert", {"is_decoder": True}, "is_decoder is True; supported is False"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention is True"),
        ("bert", {"pruned_heads": {"1": [0]}}, r"pruned_heads is \{'1': \[0\]\}"),
        ("bert", {"quantization_config": {"bits": 4}}, "quantization_config is .* leaving it out"),
        ("bert", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map says that the model is code"),
        ("bert", {"hidden_size": None}, "missing: hidden_size"),
        ("bert", {"hidden_size": "48"}, "hidden_size must be an int, got '48'"),
        ("bert", {"num_attention_heads": 5}, r"multiple of num_heads \(5\)"),
        ("bert", {"max_position_embeddings": 0}, "at least one position"),
        ("bert", {"num_hidden_layers": 0}, "at least one block"),
        ("bert", {"num_hidden_layers": -1}, "num_hidden_layers must not be negative"),
        ("bert", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, the weights are"),
        ("bert", {"hidden_size": 10**12}, "hidden_size is 1000000000000, the weights are 5"),
        ("modernbert", {"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers"),
        ("bert", {"num_attention_heads": 0}, "num_heads must be at least 1"),
        ("distilbert", {"activation": "mish"}, "activation must be one of"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id must not be negative, got -1"),
        ("roberta", {"pad_token_id": 300}, r"leaves no position after pad_token_id \(300\)"),
        ("mpnet", {"relative_attention_num_buckets": 8}, "num_buckets is 8; supported is 32"),
        ("mpnet", {"pad_token_id": 0}, "pad_token_id is 0; supported is 1"),
        ("mpnet", {"num_attention_heads": 5}, r"multiple of num_attention_heads \(5\)"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ("modernbert", {"layer_types": ["chunked_attention"] * 3}, "got 'chunked_attention'"),
        ("modernbert", {"hidden_activation": "mish"}, "hidden_activation must be one of"),
        ("modernbert", {"hidden_size": 52}, "even multiple of num_attention_heads"),
        (
            "modernbert",
            {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
            "full_attention: rope_type must be 'default'",
        ),
        (
            "modernbert",
            {"rope_parameters": None, "local_rope_theta": -1.0},
            "sliding_attention: rope_theta must be above 0",
        ),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling is"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, model_type, changes, message):
    write_checkpoint(tmp_path, model_type)
    rewrite_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as failure:
        fm.load(tmp_path)
    assert str(failure.value).startswith(str(tmp_path / "config.json"))


def test_weights_that_do_not_fit(tmp_path):
    write_checkpoint(tmp_path, "bert")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    layer = "encoder.layer.1.attention"
    tensors["extra.weight"] = tensors.pop(f"{layer}.self.key.bias")
    tensors[f"{layer}.self.query.weight"] = np.zeros((48, 40), np.float32)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(48, np.int32)
    tensors["encoder.layer.0.output.dense.bias"] = np.zeros(48)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="missing") as failure:
        fm.load(tmp_path)
    for piece in (
        str(tmp_path),
        f"missing: {layer}.self.key.bias",
        "unexpected: extra.weight",
        f"{layer}.self.query.weight: config.json says shape (48, 48), got (48, 40)",
        "embeddings.LayerNorm.bias: expected one of F32, F16, BF16, got I32",
        "encoder.layer.0.output.dense.bias: expected one of F32, F16, BF16, got F64",
    ):
        assert piece in str(failure.value)


def test_more_layers_than_the_config_says(tmp_path):
    write_checkpoint(tmp_path, "bert")
    rewrite_config(tmp_path, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"unexpected: encoder\.layer\.2\.attention"):
        fm.load(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2
