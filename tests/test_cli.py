"""The command line as users run it: arguments, files, pipes, mistakes; the attention page."""

import html.parser
import json
import os
import pty
import re
import subprocess
import sys

import fastmha as fm
import numpy as np
import pytest
from checkpoints import write_checkpoint
from fastmha.attend_page import attend_page
from fastmha.translation_results import AttentionMaps

HAMBURGER, IN_ENGLISH = "我想吃汉堡", "I want to eat a hamburger"
UNKNOWN = "鲸"  # no sentence of the demo's grammar holds it


def run(*args, stdin="", expect=0, **options):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "fastmha.cli"),
            *(argument if isinstance(argument, bytes) else str(argument) for argument in args),
        ],
        input=stdin if isinstance(stdin, bytes) else stdin.encode(),
        capture_output=True,
        check=False,
        timeout=120,
        **options,
    )
    out, err = result.stdout.decode(), result.stderr.decode()
    assert result.returncode == expect, f"status {result.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def model():
    return fm.load(fm.demo_model_path())


@pytest.fixture(scope="module")
def known(model):
    """Characters of the model's own vocabulary, to make sentences of any length."""
    vocabulary = model.texts.source.tokens
    return sorted(token for token in vocabulary if len(token) == 1 and token.strip())


# ---- the model in Python ------------------------------------------------------------------------


def test_the_worked_example(model):
    assert model.translate([HAMBURGER]) == [IN_ENGLISH]
    assert model.translate([HAMBURGER], beam_size=4) == [IN_ENGLISH]
    assert model.translate([]) == []


@pytest.mark.parametrize("beam_size", [1, 3])
def test_order_and_batching_do_not_matter(model, known, beam_size):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(known, rng.integers(1, 20))) for _ in range(30)]
    texts[4] = texts[11] = ""
    texts[17] = " \t"
    together = model.translate(texts, beam_size=beam_size, max_new_tokens=20)
    assert [together[n] for n in (4, 11, 17)] == [""] * 3
    assert len(set(together)) > 15
    for n in (0, 4, 9, 17, 29):
        alone = model.translate([texts[n]], beam_size=beam_size, max_new_tokens=20)
        assert alone == together[n : n + 1]
    again = model.translate(texts[::-1], beam_size=beam_size, max_new_tokens=20, batch_size=7)
    assert again[::-1] == together


def test_ids_in_and_out_are_texts_in_and_out(model):
    (ids,) = model.encode_texts([HAMBURGER])
    assert ids[-1] == model.config.eos_token_id
    assert len(ids) == 6
    (out,), (score,) = model.generate([ids], return_scores=True)
    assert model.decode(out) == IN_ENGLISH
    assert -1 < score <= 0
    assert not set(out.tolist()) & {0, 1, 2}
    (state,) = model.forward([ids])
    assert state.shape == (6, model.config.d_model)
    assert model.generate([ids], max_new_tokens=3)[0].tolist() == out[:3].tolist()


def test_unknown_characters_warn_and_the_rest_is_translated(model):
    with pytest.warns(fm.UnknownCharacterWarning, match=r"text 1: '鲸' \(U\+9CB8\) at character 3"):
        (first, second) = model.translate([HAMBURGER, f"我想{UNKNOWN}吃汉堡"])
    assert first == IN_ENGLISH
    assert second
    pieces = model.unknown(f"{UNKNOWN}我{UNKNOWN}")
    assert [(piece.text, piece.position) for piece in pieces] == [(UNKNOWN, 0), (UNKNOWN, 2)]
    assert model.unknown(HAMBURGER) == []


def test_wrong_texts(model):
    with pytest.raises(TypeError, match=r"got one str; pass \[text\]"):
        model.translate(HAMBURGER)
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got int"):
        model.translate([HAMBURGER, 5])
    with pytest.raises(ValueError, match=r"texts\[1\] holds U\+D800 at character 2, a lone surr"):
        model.translate([HAMBURGER, "我\ud800"])
    for method in (model.tokenize, model.unknown, model.attention):
        with pytest.raises(ValueError, match=r"U\+DCFF at character 1, a lone surrogate"):
            method("\udcff")
    longest = model.config.max_positions
    with pytest.raises(ValueError, match=rf"text 1 has {longest + 1} tokens"):
        model.translate([HAMBURGER, "我" * longest])
    with pytest.raises(ValueError, match="beam_size must be at least 1"):
        model.translate([HAMBURGER], beam_size=0)
    assert len(model.translate(["我" * (longest - 1)])) == 1


def test_progress_shows_on_stderr_alone(model, capfd):
    assert model.translate([HAMBURGER] * 3, progress=True) == [IN_ENGLISH] * 3
    assert capfd.readouterr().out == ""


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the demo model's directory, to break."""
    for file in fm.demo_model_path().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def rewrite_config(checkpoint, **changes):
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | changes))


def test_broken_checkpoints(checkpoint, tmp_path):
    assert fm.load(checkpoint).translate([HAMBURGER]) == [IN_ENGLISH]
    original = (checkpoint / "config.json").read_text()
    wrong = [
        ({"model_type": "mystery"}, "must be one of fastmha-transformer, .* got 'mystery'"),
        ({"model_type": None}, "must be one of"),
        ({"d_model": "128"}, "d_model must be an int, got '128'"),
        ({"norm_first": 1}, "norm_first must be a bool"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"d_ff": 511}, r"linear1\.weight: expected shape \(511, \d+\), got"),
        ({"src_vocab_size": 20}, r"source_tokenizer\.json: holds .* tokens"),
    ]
    for changes, message in wrong:
        rewrite_config(checkpoint, **changes)
        with pytest.raises(ValueError, match=message):
            fm.load(checkpoint)
        (checkpoint / "config.json").write_text(original)
    incomplete = json.loads(original)
    del incomplete["d_model"], incomplete["d_ff"]
    for text, message in (
        ("{", "not JSON"),
        ("[]", "expected a JSON object, got a list"),
        ("{}", "got None"),
        (json.dumps(incomplete), "d_ff"),
    ):
        (checkpoint / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            fm.load(checkpoint)
    (checkpoint / "config.json").write_text(original)
    for name in ("source_tokenizer.json", "model.safetensors", "config.json"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            fm.load(checkpoint)
        (checkpoint / name).unlink()
        with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
            fm.load(checkpoint)
        (checkpoint / name).write_bytes(content)
    with pytest.raises(FileNotFoundError, match="not a directory"):
        fm.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="dtype must be 'float32'"):
        fm.load(checkpoint, dtype="int4")
    assert fm.load(checkpoint, dtype=np.float32).translate([HAMBURGER]) == [IN_ENGLISH]


# ---- translate ----------------------------------------------------------------------------------


def test_translate_prints_the_translation_and_nothing_else():
    assert run("translate", HAMBURGER) == (f"{IN_ENGLISH}\n", "")
    assert run("translate", HAMBURGER, "--beam", 4, "--threads", 1) == (f"{IN_ENGLISH}\n", "")


def test_translate_pipes_files_and_blank_lines(model, known, tmp_path):
    rng = np.random.default_rng(1)
    lines = ["".join(rng.choice(known, rng.integers(1, 12))) for _ in range(12)]
    lines[3] = lines[7] = ""
    expected = model.translate(lines)
    text = "\n".join(lines) + "\n"
    assert run("translate", stdin=text)[0] == "".join(f"{line}\n" for line in expected)
    assert run("translate", stdin=text.replace("\n", "\r\n"))[0].splitlines() == expected
    assert run("translate", stdin=text.rstrip("\n"))[0].splitlines() == expected

    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("\n".join(lines[:5]) + "\n", "utf-8-sig")
    second.write_text("\n".join(lines[5:]), "utf-8")
    out, err = run("translate", "--file", first, "-f", second)
    assert out.splitlines() == expected
    assert err == ""
    out = run("translate", HAMBURGER, "--file", "-", stdin=text)[0]
    assert out.splitlines() == [IN_ENGLISH, *expected]
    assert run("translate", stdin="") == ("", "")
    assert run("translate", stdin="\n\n")[0] == "\n\n"


def test_translate_more_lines_than_a_chunk_keeps_the_order(model):
    lines = [HAMBURGER, "", HAMBURGER[:1]] * 400
    expected = model.translate(lines[:3])
    assert run("translate", stdin="\n".join(lines))[0].splitlines() == expected * (len(lines) // 3)


@pytest.mark.parametrize("source", ["stdin", "file"])
def test_lines_before_a_bad_byte_are_translated(tmp_path, source):
    text = f"{HAMBURGER}\n\n{HAMBURGER}\n我".encode() + b"\xff\n" + HAMBURGER.encode()
    file = tmp_path / "mixed.txt"
    file.write_bytes(text)
    if source == "stdin":
        out, err = run("translate", stdin=text, expect=1)
    else:
        out, err = run("translate", "--file", file, expect=1)
    assert out == f"{IN_ENGLISH}\n\n{IN_ENGLISH}\n"
    name = "stdin" if source == "stdin" else str(file)
    assert err.startswith(f"fastmha: {name}: line 4: not UTF-8: byte 0xff at byte 4; ")
    assert err.count("\n") == 1


def test_files_before_a_missing_one_are_translated(tmp_path):
    file = tmp_path / "here.txt"
    file.write_text(HAMBURGER, "utf-8")
    out, err = run("translate", "--file", file, "--file", tmp_path / "missing", expect=1)
    assert out == f"{IN_ENGLISH}\n"
    assert "missing" in err


def test_translate_does_not_depend_on_the_locale():
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert run("translate", stdin=HAMBURGER, env=environment)[0] == f"{IN_ENGLISH}\n"


def test_translate_names_unknown_characters():
    out, err = run("translate", stdin=f"{HAMBURGER}\n\n我想{UNKNOWN}吃汉堡\n")
    assert len(out.splitlines()) == 3
    assert out.startswith(f"{IN_ENGLISH}\n\n")
    assert err == "fastmha: line 3: unknown to the model: '鲸' (U+9CB8) at character 3\n"


def test_unknown_characters_of_a_sentence_share_one_line():
    err = run("translate", f"我想{UNKNOWN * 9}吃汉堡")[1]
    assert err.count("\n") == 1
    assert err.count("U+9CB8") == 5
    assert err.endswith(" and 4 more\n")


def test_lines_before_one_that_is_too_long_are_translated():
    out, err = run("translate", stdin=f"{HAMBURGER}\n\n{'我' * 2000}\n{HAMBURGER}\n", expect=1)
    assert out == f"{IN_ENGLISH}\n\n"
    assert err.startswith("fastmha: line 3: 2001 tokens")


def test_lines_are_counted_in_their_own_file(tmp_path):
    """Those that are too long and those with unknown characters, as those that are not UTF-8."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(f"{HAMBURGER}\n" * 3, "utf-8")
    second.write_text(f"{UNKNOWN}\n{HAMBURGER}\n{'我' * 2000}\n{HAMBURGER}\n", "utf-8")
    for options in ([], ["-o", tmp_path / "out.txt"], ["-o", tmp_path / "out.txt"]):
        unknown, *_, too_long = run("translate", "-f", first, "-f", second, *options, expect=1)[
            1
        ].splitlines()
        assert too_long.startswith(f"fastmha: {second}: line 3: 2001 tokens")
        if "going on" not in unknown:
            assert unknown.startswith(f"fastmha: {second}: line 1: unknown to the model")
    stdin = f"{HAMBURGER}\n{UNKNOWN}\n"
    err = run("translate", UNKNOWN, "-f", first, "-f", "-", stdin=stdin)[1]
    assert [line.partition(": unknown")[0] for line in err.splitlines()] == [
        "fastmha: arguments: line 1",
        "fastmha: stdin: line 2",
    ]


def test_a_file_name_among_the_sentences_gets_a_hint(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text(HAMBURGER, "utf-8")
    err = run("translate", file)[1]
    assert f"fastmha: {file} is a file" in err
    assert f"fastmha translate --file {file}" in err


def test_a_dash_is_standard_input():
    assert run("translate", "-", stdin=HAMBURGER) == (f"{IN_ENGLISH}\n", "")


def test_closed_standard_input():
    command = f"exec {sys.executable} -m fastmha.cli translate <&-"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("fastmha: nothing to translate")


def test_closed_standard_output():
    command = f"exec {sys.executable} -m fastmha.cli translate {HAMBURGER} >&-"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "fastmha: standard output is closed\n"


def test_version_and_module():
    version = run("--version")[0]
    assert version == f"fastmha {fm.__version__}\n"
    command = [sys.executable, "-m", "fastmha", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == version


def test_translate_max_new_tokens():
    out = run("translate", HAMBURGER, "--max-new-tokens", 3)[0]
    assert out == "I want to\n"


def test_a_reader_that_leaves_is_no_mistake():
    """`fastmha translate | head -1`: no message, no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastmha.cli", "translate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    _, err = process.communicate(f"{HAMBURGER}\n".encode() * 3000, timeout=120)
    assert err == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("args", "stdin", "status", "message"),
    [
        (["--file", "/no/such/file"], "", 1, "/no/such/file"),
        (["--model", "/no/such/model", "我"], "", 1, "/no/such/model is not a directory"),
        (
            ["我" * 2000],
            "",
            1,
            r"line 1: 2001 tokens, the model has \d+ positions; split it, or truncate",
        ),
        ([], HAMBURGER + "\n" + "我" * 2000, 1, "line 2: 2001 tokens"),
        ([], b"\xff\xfe\x00", 1, "stdin: line 1: not UTF-8: byte 0xff at byte 1; convert"),
        ([HAMBURGER, b"\xe6\x88\x91\xe6"], "", 1, "argument 2: not UTF-8: byte 0xe6 at byte 4"),
        ([HAMBURGER, "--max-new-tokens", "9999"], "", 1, r"at most \d+ tokens"),
        ([HAMBURGER, "--beam", "0"], "", 2, "--beam"),
        ([HAMBURGER, "--threads", "-1"], "", 2, "--threads"),
        ([HAMBURGER, "--bean", "2"], "", 2, "--bean"),
    ],
)
def test_translate_mistakes(args, stdin, status, message):
    _, err = run("translate", *args, stdin=stdin, expect=status)
    assert re.search(message, err)
    if status == 1:
        assert err.startswith("fastmha: ")
        assert err.count("\n") == 1


def on_terminal(command, stdin, width=100):
    """Run a shell command whose stderr is a terminal; what was written there."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": str(width)}
    process = subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, stderr=slave, env=environment, check=False
    )
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 65536):
            seen += chunk
    except OSError:
        pass  # the other end is closed
    os.close(master)
    return process, seen.decode()


def test_progress_is_for_terminals():
    command = [sys.executable, "-m", "fastmha.cli", "translate"]
    process, seen = on_terminal(command, f"{HAMBURGER}\n".encode() * 5)
    assert process.stdout.decode() == f"{IN_ENGLISH}\n" * 5
    assert "translating" in seen


# ---- attend -------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """Tags, attributes and the data of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self._inside = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1][1] += data

    def handle_endtag(self, tag):
        self._inside = None

    @property
    def data(self):
        (found,) = [json.loads(text) for attrs, text in self.scripts if attrs.get("id") == "data"]
        return found


def test_attend_writes_every_head_of_every_layer(tmp_path, model):
    file = tmp_path / "page.html"
    out, err = run("attend", HAMBURGER, "-o", file)
    assert out == f"{IN_ENGLISH}\n{file}\n"
    assert err == ""
    data = Page(file.read_text("utf-8")).data
    assert (data["text"], data["translation"]) == (HAMBURGER, IN_ENGLISH)
    source, target = [*HAMBURGER, "</s>"], ["<s>", *IN_ENGLISH.split()]
    expected = model.attention(HAMBURGER)
    config = model.config
    for kind, weights, rows, columns, layers in zip(
        data["kinds"],
        (expected.encoder, expected.decoder, expected.cross),
        (source, target, target),
        (source, target, source),
        (config.num_encoder_layers, config.num_decoder_layers, config.num_decoder_layers),
        strict=True,
    ):
        assert (kind["rows"], kind["columns"]) == (rows, columns)
        shown = np.array(kind["layers"])
        assert shown.shape == (layers, config.num_heads, len(rows), len(columns))
        np.testing.assert_allclose(shown, np.stack(weights), rtol=0, atol=5.1e-5)
        np.testing.assert_allclose(shown.sum(-1), 1, rtol=0, atol=1e-3)
    assert [kind["masked"] for kind in data["kinds"]] == [False, True, False]
    assert not np.triu(np.array(data["kinds"][1]["layers"]), 1).any(), "masked"


def test_attend_for_encoders(tmp_path):
    write_checkpoint(tmp_path, "bert")
    file = tmp_path / "page.html"
    text = "w3 <b>w4</b> w50"
    out, err = run("attend", "--model", tmp_path, text, "-o", file)
    assert (out, err) == (f"{file}\n", "")
    data = Page(file.read_text("utf-8")).data
    assert (data["text"], data["translation"]) == (text, None)
    (kind,) = data["kinds"]
    assert kind["rows"] == kind["columns"] == ["<s>", "w3", "w3", "w50", "</s>"]
    assert not kind["masked"]
    (expected,) = fm.load(tmp_path).forward([[0, 3, 3, 50, 2]], return_attention=True)[1]
    np.testing.assert_allclose(kind["layers"], np.stack(expected), rtol=0, atol=5.1e-5)
    for arguments, message in (
        (["attend", "--model", tmp_path, text, "--beam", 2], "are for models that translate"),
        (["translate", "--model", tmp_path, text], "does not translate; fastmha embed"),
    ):
        assert message in run(*arguments, expect=1)[1]


def test_attend_refuses_what_no_browser_shows(tmp_path):
    """Before the weights are computed: 12 heads times 3,000 tokens squared would be 100 million."""
    write_checkpoint(tmp_path, "bert", max_position_embeddings=5000)
    err = run("attend", "--model", tmp_path, "w3 " * 3000, "-o", tmp_path / "a.html", expect=1)[1]
    assert "3002 tokens have 108,144,048 weights" in err
    assert "shorten the text to 577 tokens" in err
    assert not (tmp_path / "a.html").exists()
    maps = AttentionMaps(("a",), ("b",), "b", *[[np.zeros((9, 400, 400), np.float32)] * 1] * 3)
    with pytest.raises(ValueError, match=r"attend: 4,320,000 weights .* a page holds 4,000,000"):
        attend_page("a", maps)


def test_the_page_needs_no_network(tmp_path):
    run("attend", HAMBURGER, "-o", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Page(text)
    assert "link" not in page.tags
    assert not [name for name, _ in page.attributes if name in ("src", "href")]
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest", text)
    assert (
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
    ) in (page.attributes)


HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--\u2028&amp;\"'\\ {{DATA}}"
)


def test_text_from_outside_is_escaped():
    """In the text, the translation and every token: it comes back as it was, and adds nothing to
    the page."""
    weights = [np.full((1, 1, 1), 1.0, np.float32)]

    def page(text):
        maps = AttentionMaps((text,), (text,), text, weights, weights, weights)
        return Page(attend_page(text, maps))

    plain, hostile = page("x"), page(HOSTILE)
    assert hostile.tags == plain.tags
    assert hostile.attributes == plain.attributes
    assert hostile.data["text"] == hostile.data["translation"] == HOSTILE
    for kind in hostile.data["kinds"]:
        assert kind["rows"] == kind["columns"] == [HOSTILE]
    template_script = hostile.scripts[-1][1]
    assert template_script == plain.scripts[-1][1]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", template_script
    )


def test_attend_escapes_through_the_command(tmp_path):
    """The same through the command, where the tokenizer turns what it does not know into unknown
    tokens."""
    file = tmp_path / "page.html"
    text = "<script>alert(1)</script>我"
    _, err = run("attend", text, "-o", file)
    assert "unknown to the model" in err
    page = Page(file.read_text("utf-8"))
    assert page.tags.count("script") == 2
    assert page.data["text"] == text


def test_attend_mistakes(tmp_path):
    _, err = run("attend", "  ", expect=1)
    assert err == "fastmha: attention: the text is blank\n"
    _, err = run("attend", "我" * 2000, expect=1)
    assert err.startswith("fastmha: the text has 2001 tokens, the model has ")
    # before a model is read
    for page, message in (
        (tmp_path / "no" / "page.html", f"{tmp_path / 'no'} is not a directory"),
        (tmp_path, f"{tmp_path} is a directory; name a file"),
    ):
        _, err = run("attend", HAMBURGER, "--model", tmp_path / "no", "-o", page, expect=1)
        assert err == f"fastmha: {message}\n"


# ---- info, bench, help --------------------------------------------------------------------------


def test_info():
    out, err = run("info")
    facts = dict(re.split(r"\s{2,}|(?<=available) ", line, maxsplit=1) for line in out.splitlines())
    assert facts["version"] == fm.__version__
    assert facts["ISA in use"] == fm.isa()
    assert facts["ISAs available"].split(", ") == fm.available_isas()
    assert int(facts["threads"]) >= 1
    assert {"compiler", "OpenMP", "CPU"} <= facts.keys()
    assert err == ""


def test_an_unknown_instruction_set_is_a_line(monkeypatch):
    """The core refuses it while it is imported, before anything of the command has run."""
    monkeypatch.setenv("FASTMHA_ISA", "bogus")
    _, err = run("info", expect=1)
    assert err.startswith("fastmha: FASTMHA_ISA=bogus is unknown; this build has ")
    assert err.count("\n") == 1
    code = [sys.executable, "-c", "import fastmha"]
    imported = subprocess.run(code, capture_output=True, text=True, check=False)
    assert "ImportError: FASTMHA_ISA=bogus is unknown" in imported.stderr


@pytest.mark.parametrize("text", ["abc", "0"])
def test_a_senseless_number_of_threads_is_a_line(monkeypatch, text):
    """As for an instruction set: the core refuses it while it is imported."""
    monkeypatch.setenv("FASTMHA_NUM_THREADS", text)
    _, err = run("info", expect=1)
    assert err.startswith("fastmha: FASTMHA_NUM_THREADS must be a whole number from 1 to ")
    assert err.endswith(f", got '{text}'\n")
    assert err.count("\n") == 1


def test_what_the_system_says_comes_without_its_number(tmp_path):
    _, err = run("translate", "--file", tmp_path / "absent.txt", expect=1)
    assert err == f"fastmha: {tmp_path / 'absent.txt'}: No such file or directory\n"


def test_flags_have_no_type_in_the_help():
    for command in ([], ["translate"], ["embed"], ["attend"], ["info"], ["bench"]):
        assert "bool" not in run(*command, "--help")[0]


def test_bench_outside_a_checkout_says_where_it_is(tmp_path):
    _, err = run("bench", expect=1, cwd=tmp_path)
    assert "source tree" in err
    assert err.count("\n") == 1


def test_bench_runs_the_folder_and_hands_options_on(tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()  # before any other bench on the path
    (tmp_path / "bench" / "__main__.py").write_text("import sys; print(sys.argv[1:]); sys.exit(3)")
    (tmp_path / "below").mkdir()
    for folder in (tmp_path, tmp_path / "below"):
        out, _ = run("bench", "--only", "linear", expect=3, cwd=folder)
        assert out == "['--only', 'linear']\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["translate", "attend", "info", "bench"]),
        (
            ["translate"],
            ["--file", "--beam", "--threads", "--max-new-tokens", "pipe", "stderr", "UTF-8"],
        ),
        (["attend"], ["--output", "page", "network"]),
        (["bench"], ["bench/"]),
    ],
)
def test_help(command, words):
    out, _ = run(*command, "--help")
    for word in words:
        assert word in out
