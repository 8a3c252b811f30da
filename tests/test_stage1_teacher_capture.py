"""Text to cache with a tiny teacher: right records, resume, identity, and one line for every mistake.

Not for the file format (test_cache_*.py) nor for selection (test_stage1_teacher_selection.py).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_capture import tiny_config
from tiny_model import save_tiny_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from cache.manifest import Manifest
from cache.reader import open_cache
from cache.verify import verify
from shared.config import check_config
from shared.corpus_config import CorpusConfig
from shared.errors import RunError, UsageError
from stage1_teacher import capture as capture_module
from stage1_teacher.batches import pack
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.reading import Reader

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("teacher"), rows=300)  # 257 tokens: a padded vocabulary


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "rows.jsonl"
    rows = [{"ask": f"# number {n}\n", "code": f"x = {n} * {'y' * (n % 13)}1\n", "task_id": n} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder: Path, teacher: Path, corpus: Path, **changes: Any) -> CaptureConfig:
    data: dict[str, Any] = {
        "cache": str(folder / "cache"),
        "teacher": {"model": str(teacher), "dtype": "float32", "device_map": "cpu"},
        "corpus": {"path": str(corpus), "prompt": "{ask}", "completion": "{code}", "id": "task_id"},
        "selection": {"k": 8, "top_p": 0.9},
        "windows_per_shard": 9,
        "fidelity": {"positions_per_shard": 8},
        "shape": {"directions": 8, "step": 0.1, "sample_windows": 10},
        "batch_tokens": 128,
    }
    return check_config(CaptureConfig, data | changes, base=folder, name="test")


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def run(config: CaptureConfig) -> Manifest:
    return capture(config, progress=False)


def test_records_are_the_teachers_own(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    manifest = run(settings(tmp_path, teacher, corpus))
    cache = open_cache(tmp_path / "cache")
    assert verify(tmp_path / "cache", "deep") == []
    assert (len(cache), len(manifest.shards), manifest.vocab_size) == (40, 5, 300)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    encoding, gold = manifest.identity.encoding, []
    half = encoding.value_step + encoding.odds_step / 2 + 1e-4  # an entry against its best one, and the whole head
    for number in (0, 17, 39):
        window = cache[number]
        with torch.inference_mode():
            logits_PV = model(torch.from_numpy(window.tokens)[None].long()).logits[0, :-1].double()
        truth_PV = logits_PV.log_softmax(1)
        ends = np.cumsum(window.head_sizes_P)
        for position, end in enumerate(ends):
            head = slice(end - window.head_sizes_P[position], end)
            ids = torch.from_numpy(window.head_ids_E[head]).long()
            found = torch.from_numpy(window.head_logprobs_E[head]).double()
            torch.testing.assert_close(found, truth_PV[position, ids], atol=half, rtol=0)
        truth_P = truth_PV.gather(1, torch.from_numpy(window.tokens[1:]).long()[:, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(window.gold_P).double(), truth_P, atol=half, rtol=0)
        gold.append(window.prompt_tokens)
    assert gold == [len("# number 0\n"), len("# number 17\n"), len("# number 39\n")]


def test_manifest_says_what_it_is(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    manifest = run(settings(tmp_path, teacher, corpus))
    text = (tmp_path / "cache" / "manifest.json").read_text()
    assert str(tmp_path) not in text, "no path of this machine"
    assert str(corpus.parent) not in text
    assert manifest.counts["documents"] == manifest.counts["windows"] == 40
    assert manifest.teacher.architecture == "GPT2LMHeadModel"
    loss = -np.concatenate([open_cache(tmp_path / "cache")[n].gold_P for n in range(40)]).mean()
    assert manifest.teacher_loss == pytest.approx(loss, abs=0.002)
    first = manifest.fidelity[0]
    assert first.temperature == 1.0
    assert first.positions == 5 * 8
    assert 0 < first.tail_mass_error <= first.tail_mass_error_max < 0.01
    assert 0 < first.kl < 1
    assert 8 / 300 < first.kept_mass < 1


def test_same_bytes_again_and_after_an_interruption(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run(settings(tmp_path / "a", teacher, corpus))
    second = settings(tmp_path / "b", teacher, corpus)
    read_shard = Reader.read_shard

    def read_two(reader: Reader, windows: Any, number: int, advance: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return read_shard(reader, windows, number, advance)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read_shard", read_two)
        with pytest.raises(KeyboardInterrupt):
            run(second)
    with pytest.raises(UsageError, match="a capture that has not finished"):
        open_cache(tmp_path / "b" / "cache")
    reread: list[int] = []
    monkeypatch.setattr(Reader, "read_shard", lambda *args: reread.append(args[2]) or read_shard(*args))
    run(second)
    assert reread == [2, 3, 4], "sealed shards are not read again"
    assert files_of(tmp_path / "a" / "cache") == files_of(tmp_path / "b" / "cache")
    run(second)
    assert reread == [2, 3, 4], "a finished capture does nothing"


def test_kill_9_and_run_again(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    (tmp_path / "whole").mkdir()
    run(settings(tmp_path / "whole", teacher, corpus, windows_per_shard=1))
    killed = settings(tmp_path / "killed", teacher, corpus, windows_per_shard=1)
    killed.cache.parent.mkdir()
    config = tmp_path / "killed.json"  # JSON is YAML
    config.write_text(killed.model_dump_json(exclude_none=True))
    command = [sys.executable, "-m", "stage1_teacher", "capture", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(killed.cache.glob("*.h5"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(killed.cache.glob("*.h5"))) >= 3
    run(killed)
    assert files_of(tmp_path / "whole" / "cache") == files_of(killed.cache)


def test_other_settings_or_other_text_are_refused(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    (tmp_path / "shaped").mkdir()
    run(settings(tmp_path, teacher, corpus, shape=None))
    run(settings(tmp_path / "shaped", teacher, corpus))
    with pytest.raises(UsageError, match=r"encoding.k .and 1 more.: expected 8, got 9; use the same settings"):
        run(settings(tmp_path, teacher, corpus, shape=None, selection={"k": 9, "top_p": 0.9}))
    with pytest.raises(UsageError, match=r"encoding.k .and [0-9]+ more.: expected 8, got 9; use the same settings"):
        run(settings(tmp_path / "shaped", teacher, corpus, selection={"k": 9, "top_p": 0.9}))
    with pytest.raises(UsageError, match=r"encoding.coord_step .and [0-9]+ more.: expected 0.1, got 0.2; use the same"):
        run(settings(tmp_path / "shaped", teacher, corpus, shape={"directions": 8, "step": 0.2, "sample_windows": 10}))


def test_a_wanted_error_is_kept_by_the_capture(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    """The aim is taken on a sample; the manifest's own measurement, on other positions, finds it again."""
    shape = {"kl": 0.01, "sample_windows": 40}
    manifest = run(settings(tmp_path, teacher, corpus, shape=shape, fidelity={"positions_per_shard": 64}))
    assert verify(tmp_path / "cache", "deep") == []
    assert manifest.identity.shape is not None and manifest.identity.shape.directions < 32
    worst = max(row.kl for row in manifest.fidelity if row.temperature <= 2)
    assert 0.005 < worst < 0.015
    (tmp_path / "again").mkdir()
    again = settings(tmp_path / "again", teacher, corpus, shape=shape, fidelity={"positions_per_shard": 64})
    run(again)
    assert files_of(tmp_path / "cache") == files_of(again.cache)


def test_an_aim_out_of_reach_starts_nothing(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    with pytest.raises(UsageError, match=r"shape.kl: 1e-09: expected what this teacher and text allow, got .* finest"):
        run(settings(tmp_path, teacher, corpus, shape={"kl": 1e-9}))
    assert not (tmp_path / "cache").exists()


def test_a_teacher_whose_tail_has_no_shape_keeps_its_mass(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = capture_module.load_teacher
    monkeypatch.setattr(capture_module, "load_teacher", lambda config: replace(real(config), softcap=30.0))
    for shape in ({"kl": 0.03}, {"directions": 8, "step": 0.1}):
        config = settings(tmp_path, teacher, corpus, shape=shape)  # the same cache: neither wish leaves a trace
        manifest = run(config)
        expected = "its logits are soft-capped at 30, so they are not linear in the hidden state"
        line = f"the tail keeps its mass alone (r = 0): teacher {manifest.teacher.id}: {expected}"
        assert capsys.readouterr().err.splitlines().count(line) == 1
    assert (manifest.identity.shape, manifest.identity.encoding.directions) == (None, 0)
    assert not (config.cache / "basis.h5").exists()
    assert verify(config.cache, "deep") == []
    assert open_cache(config.cache)[0].coords_PR.shape[1] == 0


def test_text_that_changed_since_the_crash(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changing = tmp_path / "rows.jsonl"
    changing.write_text(corpus.read_text())
    config = settings(tmp_path, teacher, changing)
    with monkeypatch.context() as patch:
        patch.setattr(capture_module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    changing.write_text(corpus.read_text().replace("number 3", "number three"))
    with pytest.raises(UsageError, match=r"corpus\.windows_sha256.*use the same settings, or another directory"):
        run(config)
    monkeypatch.setattr(capture_module, "look_ahead", lambda *_: None)  # a stream tells nothing ahead
    stream = config.model_copy(update={"cache": tmp_path / "stream", "shape": None})
    with monkeypatch.context() as patch:
        patch.setattr(capture_module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(stream)
    changing.write_text(corpus.read_text())
    with pytest.raises(UsageError, match=r"shard 00000-.*the text changed since the capture began"):
        run(stream)


def test_damaged_sealed_shard_is_named(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, teacher, corpus)
    with monkeypatch.context() as patch:
        patch.setattr(capture_module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    shard = sorted(config.cache.glob("*.h5"))[1]
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(RunError, match=f"shard {shard.name}: .*delete it and run again"):
        run(config)
    shard.unlink()
    run(config)
    assert verify(config.cache, "deep") == []


def test_a_full_disk_leaves_no_half_shard(
    tmp_path: Path, teacher: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, teacher, corpus)
    real = os.fsync

    def full(handle: int) -> None:
        if len(list(config.cache.glob("*.h5"))) >= 2:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run(config)
    assert not list(config.cache.glob("*.tmp"))
    assert not (config.cache / "manifest.json").exists()
    run(config)
    assert verify(config.cache, "deep") == []


def test_bad_teachers_are_one_line_before_any_work(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(UsageError, match="expected a tokenizer"):
        run(settings(tmp_path, bare, corpus))
    for path in teacher.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"expected weights in \*\.safetensors"):
        run(settings(tmp_path, bare, corpus))
    with pytest.raises(UsageError, match="nothing there"):
        run(settings(tmp_path, tmp_path / "absent", corpus))
    assert not (tmp_path / "cache").exists(), "nothing was started"


def test_teacher_smaller_than_its_tokenizer(tmp_path: Path, corpus: Path) -> None:
    small = save_tiny_model(tmp_path / "small", rows=100)
    with pytest.raises(UsageError, match="expected at most 100 tokens, the model's vocabulary, got 257"):
        run(settings(tmp_path, small, corpus))


def test_bad_text_is_one_line_before_the_teacher_is_opened(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UsageError, match="expected at least one document"):
        run(settings(tmp_path, teacher, empty))
    right = settings(tmp_path, teacher, corpus)
    column = check_config(CorpusConfig, {"path": str(corpus), "text": "cod"}, base=tmp_path, name="test")
    wrong_column = right.model_copy(update={"corpus": column})
    with pytest.raises(UsageError, match="column"):
        capture(wrong_column, progress=False)
    with pytest.raises(UsageError, match=r"expected at most 12 tokens, got \d+; raise max_length"):
        run(settings(tmp_path, teacher, corpus, windows={"max_length": 12}))
    assert not (tmp_path / "cache").exists()


def test_a_directory_that_holds_something_else(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    config = settings(tmp_path, teacher, corpus)
    config.cache.mkdir()
    (config.cache / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"expected an empty or new directory, got thesis\.tex"):
        run(config)
    assert (config.cache / "thesis.tex").read_text() == "years of work"


def test_logits_that_are_not_the_heads_are_refused(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    class Scaled(GPT2LMHeadModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    from stage1_teacher.teacher import split

    config = settings(tmp_path, teacher, corpus)
    torch.manual_seed(0)
    model = Scaled(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=1, initializer_range=0.5)
    ).eval()
    with pytest.raises(UsageError, match="expected logits that its head computes from the last hidden state"):
        split(model, config.teacher)


def test_batches_hold_every_window_once_within_the_budget(corpus: Path) -> None:
    class Sized:
        def __init__(self, length: int) -> None:
            self.tokens = np.zeros(length, np.int32)

    lengths = np.random.default_rng(0).integers(2, 90, 200).tolist()
    windows: Any = [Sized(length) for length in [*lengths, 500]]
    batches = list(pack(windows, 128))
    assert sorted(index for batch in batches for index in batch) == list(range(201))
    sizes = [len(batch) * max(len(windows[index].tokens) for index in batch) for batch in batches]
    assert sizes[0] == 500, "a window above the budget is read alone"
    assert max(sizes[1:]) <= 128


def test_command_line_ends_with_the_next_step(tmp_path: Path, teacher: Path, corpus: Path) -> None:
    config = tmp_path / "capture.json"
    config.write_text(settings(tmp_path, teacher, corpus).model_dump_json(exclude_none=True))
    command = [sys.executable, "-m", "stage1_teacher", "capture", str(config)]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert (facts["windows"], facts["bytes"] > 0) == (40, True)
    wrong = subprocess.run([*command, "--set", "selectoin.k=3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "unknown key 'selectoin'" in wrong.stderr
    assert "did you mean 'selection'?" in wrong.stderr


def test_windows_longer_than_the_teachers_positions_are_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "teacher", positions=16)
    with pytest.raises(
        UsageError, match=r"expected positions for windows of \d\d tokens, got 16; set windows.max_length"
    ):
        capture(tiny_config(tmp_path), progress=False)
    short = {"max_length": 16, "long_documents": "split"}
    assert capture(tiny_config(tmp_path, windows=short), progress=False).total("windows") > 40
