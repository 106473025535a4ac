"""fastmha translate with checkpoints, as users run it: files and pipes, interruptions, languages,
n-best, mistakes. (What it does with the model that comes along is in test_cli.py.)"""

import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time

import fastmha as fm
import pytest
from fastmha.translate_command import TranslationFile
from pieces import Models, made_up_lines, write_tokenizer
from seq2seq_checkpoints import write_checkpoint

# short targets, so that thousands of lines take a second
SHORT = {"max_length": 8, "no_repeat_ngram_size": 2}


def make(directory, family, model_type, trained, **tokens):
    size = write_tokenizer(directory, family, trained)
    tokens = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, **tokens}
    write_checkpoint(directory, model_type, vocab_size=size, **tokens)
    file = directory / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | SHORT))
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, trained):
    directory = tmp_path_factory.mktemp("t5")
    return make(directory, "t5", "t5", trained, pad_token_id=0, decoder_start_token_id=0)


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory, trained):
    return make(tmp_path_factory.mktemp("m2m"), "m2m_100", "m2m_100", trained)


@pytest.fixture(scope="module")
def model(checkpoint):
    return fm.load(checkpoint)


def varied(count):
    texts = made_up_lines(count, seed=9)
    texts[3::50] = [""] * len(texts[3::50])
    return texts


def write_lines(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return path


def command(*args):
    return [sys.executable, "-m", "fastmha.cli", "translate", *map(str, args)]


def run(*args, stdin="", expect=0):
    result = subprocess.run(command(*args), input=stdin.encode(), capture_output=True, timeout=120)
    out, err = result.stdout.decode(), result.stderr.decode()
    assert result.returncode == expect, f"status {result.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def as_lines(texts):
    return "".join(f"{text}\n" for text in texts)


# ---- what comes out -----------------------------------------------------------------------------


def test_files_and_pipes(tmp_path, checkpoint, model):
    texts = varied(300)
    source, out = write_lines(tmp_path / "texts.txt", texts), tmp_path / "out.txt"
    expected = as_lines(model.translate(texts))
    assert run("--model", checkpoint, "-f", source) == (expected, "")
    arguments = ("--model", checkpoint, "-o", out, "--batch", 7, "--threads", 1)
    assert run(*arguments, stdin=source.read_text()) == ("", "")
    assert out.read_text("utf-8") == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.txt", "texts.txt"]
    assert "out.txt exists; --force replaces it" in run(*arguments, expect=1)[1]
    expected = as_lines(model.translate(texts[:9], beam_size=3, max_new_tokens=4))
    options = ("--beam", 3, "--max-new-tokens", 4, "--force")
    run(*arguments, *options, stdin=as_lines(texts[:9]))
    assert out.read_text("utf-8") == expected


def test_n_best_and_scores(checkpoint, model):
    texts = ["kalo mine", "", "tura shi"]
    expected = list(model.n_best_stream(texts, 3, beam_size=4))
    rows = [translation for best in expected for translation in best]
    arguments = ("--model", checkpoint, "--n-best", 3, "--beam", 4)
    out = run(*arguments, stdin=as_lines(texts))[0]
    assert out == as_lines(translation.text for translation in rows)
    out = run(*arguments, "--scores", stdin=as_lines(texts))[0]
    assert out == as_lines(f"{translation.score:.6g}\t{translation.text}" for translation in rows)
    out = run("--model", checkpoint, "--scores", "kalo mine")[0]
    score, text = out.rstrip("\n").split("\t")
    assert float(score) < 0
    assert text == model.translate(["kalo mine"])[0]
    err = run(*arguments[:-1], 2, "kalo", expect=1)[1]
    assert "--n-best (3) must be at most --beam (2)" in err


def test_languages(multilingual):
    model = fm.load(multilingual)
    languages = ("--src-lang", "fr", "--tgt-lang", "de")
    out = run("--model", multilingual, *languages, "kalo mine")[0]
    assert out == as_lines(model.translate(["kalo mine"], src_lang="fr", tgt_lang="de"))
    assert out != run("--model", multilingual, *languages[:-1], "zu", "kalo mine")[0]
    for arguments, message in (
        ((), "--tgt-lang must say the language of the translation, one of {}\n"),
        (("--tgt-lang", "xx"), "--tgt-lang must be one of {}; got 'xx'\n"),
        (("--tgt-lang", "de", "--src-lang", "xx"), "--src-lang must be one of {}; got 'xx'\n"),
    ):
        expected = "fastmha: " + message.format(
            "af, am, ar, ast, az, ba, be, bg, bn, br and 90 more"
        )
        for name in ("translate", "attend"):
            called = command("--model", multilingual, *arguments, "kalo")
            called[called.index("translate")] = name
            result = subprocess.run(called, capture_output=True, text=True)
            assert (result.returncode, result.stderr) == (1, expected)


def test_attend(tmp_path, multilingual):
    file = tmp_path / "page.html"
    arguments = ["attend", "--model", str(multilingual), "--tgt-lang", "de", "kalo", "-o", file]
    result = subprocess.run(
        [sys.executable, "-m", "fastmha.cli", *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"\n{file}\n")
    text = file.read_text("utf-8")
    assert '"__de__"' in text
    assert "Decoder to encoder" in text


def test_progress_with_rate_and_time_left(tmp_path, checkpoint):
    source = write_lines(tmp_path / "texts.txt", varied(700))
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    arguments = command("--model", checkpoint, "-f", source, "-o", tmp_path / "out.txt")
    subprocess.run(arguments, stderr=slave, env=environment, check=True)
    os.close(slave)
    seen = b""
    try:
        while part := os.read(master, 65536):
            seen += part
    except OSError:
        pass  # the other end is closed
    os.close(master)
    for word in ("translating", "/700", "lines/s", "left"):
        assert word in seen.decode()


@pytest.mark.parametrize("name", ["translate", "embed"])
def test_what_an_output_must_not_replace(tmp_path, name):
    """Before a model is read: a pipe or a directory, also with --force, and what is read."""
    fifo, folder, source = tmp_path / "fifo", tmp_path / "folder", tmp_path / "texts.txt"
    os.mkfifo(fifo)
    folder.mkdir()
    write_lines(source, ["kalo"])
    read = ["-f", source] if name == "translate" else [source]
    missing = tmp_path / "missing"
    for arguments, message in (
        ([*read, "-o", fifo], f"{fifo} is no regular file .* write > {fifo}"),
        ([*read, "-o", "/dev/null"], "/dev/null is no regular file"),
        ([*read, "-o", folder], f"{folder} is a directory; name a file"),
        ([*read, "-o", source], f"{source} is read and would be replaced"),
        (["-o", source], f"{source} is read and would be replaced"),
    ):
        for force in ([], ["--force"]):
            called = command("--model", missing, *arguments, *force)
            called[called.index("translate")] = name
            with source.open() as stdin:
                result = subprocess.run(called, stdin=stdin, capture_output=True, text=True)
            assert result.returncode == 1
            assert re.fullmatch(f"fastmha: {message}.*\n", result.stderr), result.stderr
    assert fifo.is_fifo()
    assert source.read_text() == "kalo\n"
    assert sorted(tmp_path.iterdir()) == [fifo, folder, source]


# ---- interruptions ------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(tmp_path, checkpoint, model, stop):
    """No line is lost or there twice, and the file is what it is without a stop."""
    texts = varied(12000)
    source, out = write_lines(tmp_path / "texts.txt", texts), tmp_path / "out.txt"
    state = tmp_path / "out.txt.partial.json"
    # A job in the background of a shell ignores SIGINT, and so do its children: not this one.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command("--model", checkpoint, "-o", out, "--batch", 2),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, ours)

    def rows_kept():
        return json.loads(state.read_text())["rows"] if state.exists() else 0

    # lines come until some are kept; it waits for more, and cannot end before the signal
    for first in range(0, len(texts) - 100, 100):
        process.stdin.write(as_lines(texts[first : first + 100]))
        process.stdin.flush()
        time.sleep(0.02)
        if rows_kept():
            break
    until = time.monotonic() + 120
    while not rows_kept() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(stop)
    killed = stop == signal.SIGKILL
    assert process.wait(timeout=60) == (-stop if killed else 128 + stop)
    process.stdin.close()
    err = process.stderr.read()
    process.stderr.close()
    rows = rows_kept()
    assert 0 < rows < len(texts)
    if not killed:
        assert f"stopped; {rows} rows are kept" in err
    with out.with_name("out.txt.partial").open("ab") as partial:
        partial.write(b"half a li")  # as if it had been stopped while it wrote
    _, err = run("--model", checkpoint, "-f", source, "-o", out)
    assert f"going on after {rows} rows" in err
    assert out.read_text("utf-8") == as_lines(model.translate(texts))
    assert not state.exists()


@pytest.mark.parametrize("call", range(6))
def test_interrupted_while_rows_are_kept(tmp_path, monkeypatch, call):
    """Wherever the interruption comes, keeping the rows once more neither doubles nor loses any."""
    lines = [f"line {n}" for n in range(5)]
    calls = 0

    def interrupted(real):
        def run(*arguments):
            nonlocal calls
            calls += 1
            result = real(*arguments)
            if calls == call + 1:
                raise KeyboardInterrupt
            return result

        return run

    path = tmp_path / "out.txt"
    with TranslationFile(path, "identity") as out:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", interrupted(os.fsync))
            patch.setattr(pathlib.Path, "replace", interrupted(pathlib.Path.replace))
            try:
                for line in lines[:3]:
                    out.append(line, line.upper() + "\n")
                    out.keep()
            except KeyboardInterrupt:
                pass
        assert calls == call + 1
        out.keep()
        kept = out.rows
        assert kept == call // 3 + 1
    with TranslationFile(path, "identity") as out:
        out.check_kept(iter(lines))
        for line in lines[kept:]:
            out.append(line, line.upper() + "\n")
        out.keep()
        out.finish()
    assert path.read_text().splitlines() == [line.upper() for line in lines]


def test_what_is_before_a_mistake_is_kept(tmp_path, checkpoint, model):
    """And the line that is wrong has its number when the job goes on, too."""
    source, out = tmp_path / "texts.txt", tmp_path / "out.txt"
    source.write_bytes(b"kalo\n\nmine\n\xff\n")
    arguments = ("--model", checkpoint, "-f", source, "-o", out)
    for _ in range(2):
        err = run(*arguments, expect=1)[1]
        assert "line 4: not UTF-8" in err
    assert "going on after 3 rows" in err
    write_lines(source, ["kalo", "", "mine", "tura"])
    run(*arguments)
    assert out.read_text("utf-8") == as_lines(model.translate(["kalo", "", "mine", "tura"]))


def test_lines_that_are_too_long(tmp_path, multilingual):
    source, out = tmp_path / "texts.txt", tmp_path / "out.txt"
    write_lines(source, ["kalo", "", "mine tura " * 60, "ka"])
    arguments = ("--model", multilingual, "--tgt-lang", "de", "-f", source, "-o", out)
    for _ in range(2):
        err = run(*arguments, expect=1)[1]
        assert re.search(
            r"line 3: \d+ tokens, the model has 96 positions; split it, or truncate", err
        )
    assert "with other settings" in run(*arguments, "--truncate", expect=1)[1]
    run(*arguments, "--truncate", "--restart")
    assert len(out.read_text("utf-8").splitlines()) == 4


def test_a_job_goes_on_with_the_same_input_and_model_only(tmp_path, checkpoint, multilingual):
    source, out = tmp_path / "texts.txt", tmp_path / "out.txt"
    source.write_bytes(b"kalo\nmine\ntura\n\xff\n")
    arguments = ("--model", checkpoint, "-f", source, "-o", out)
    run(*arguments, expect=1)
    other = ("--model", multilingual, "--tgt-lang", "de", "-f", source, "-o", out)
    for changed, message in (
        (other, "made by another model"),
        ((*arguments, "--beam", 2), "made with other settings"),
        ((*arguments, "--scores"), "made with other settings"),
        ((*arguments, "--max-new-tokens", 3), "made with other settings"),
    ):
        err = run(*changed, expect=1)[1]
        assert f"was {message}; --restart begins anew\n" in err
    write_lines(source, ["kalo", "tura", "mine"])
    err = run(*arguments, expect=1)[1]
    assert "the first 3 texts are not those" in err
    assert err.endswith("; --restart begins anew\n")
    # neither the batch nor the threads are settings that a result depends on
    write_lines(source, ["kalo", "mine", "tura", "shi"])
    assert "going on after 3 rows" in run(*arguments, "--batch", 1, "--threads", 1)[1]


def test_which_instruction_set_a_job_began_on_is_said(tmp_path, monkeypatch):
    path = tmp_path / "out.txt"
    with TranslationFile(path, "bits", settings="x") as out:
        out.append("a", "A\n")
        out.keep()
    monkeypatch.setattr("fastmha.growing_file.isa", lambda: "other")
    with TranslationFile(path, "bits", settings="x") as out:  # the same bits are enough
        assert out.rows == 1
    message = f"was made on the instruction set {fm.isa()}, not other; delete out.txt.partial.json"
    with pytest.raises(ValueError, match=message):
        TranslationFile(path, "other bits", settings="x")


def test_stopped_between_the_end_and_the_removal_of_the_state(tmp_path):
    """The state of a finished file, which names rows that no longer are in a partial one."""
    path = tmp_path / "out.txt"
    with TranslationFile(path, "identity") as out:
        out.append("a", "A\n")
        out.keep()
        kept = out.state_file.read_bytes()
        out.finish()
        out.state_file.write_bytes(kept)
    with TranslationFile(path, "identity") as out:
        assert out.rows == 0
        assert not out.state_file.exists()
        assert path.read_text() == "A\n"
        out.append("b", "B\n")
        out.keep()
        out.finish()
    assert path.read_text() == "B\n"


def test_memory_does_not_grow_with_the_input(tmp_path, checkpoint):
    """4 MB of sources more, as text, ids and translations, and no more memory."""
    code = (
        "from fastmha.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(open('/proc/self/status').read())"
    )
    peaks = []
    for count in (1_000, 20_000):
        source = write_lines(tmp_path / "texts.txt", ["kalo mine tura shi " * 10] * count)
        arguments = ["translate", "--model", checkpoint, "-f", source, "--max-new-tokens", "2"]
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments, "-o", tmp_path / f"{count}.txt"],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", result.stdout)[1]) / 1024)
        assert (tmp_path / f"{count}.txt").read_text("utf-8").count("\n") == count
    assert peaks[1] - peaks[0] < 10, peaks
