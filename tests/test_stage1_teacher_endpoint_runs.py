"""Runs against an endpoint: failures counted, money, folders, concurrency, and runs that are stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import KEY, Asked, Reply, config, config_file, good, serving

from shared.errors import RunError, UsageError
from stage1_teacher import endpoint as endpoint_module
from stage1_teacher import generate as generate_module
from stage1_teacher.__main__ import main
from stage1_teacher.answer_folder import AnswerFile
from stage1_teacher.endpoint import Endpoint
from stage1_teacher.endpoint_pool import Pool
from stage1_teacher.generate import failure, generate
from stage1_teacher.prompt_sets import Prompt

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between a test and its own server, and no long waits between tries."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.001)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "answers.jsonl").read_text().splitlines()]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["stage1-teacher", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_an_endpoint_of_nonsense_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda *_: Reply(b"<html>")) as server:
        code = command(monkeypatch, "generate", config_file(tmp_path, server.url))
    assert code == 2 and len(server.asked) == 6 * 3, "every question has its three tries, then the run ends"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: endpoint {server.url}/completions: expected answers, got no JSON: '<html>'; "
        "check url, model and style: is this an OpenAI-compatible server?"
    )
    assert rows(tmp_path) == []


def test_a_long_row_of_failures_ends_the_run_early(tmp_path: Path) -> None:
    with serving(lambda *_: Reply(b"", 500)) as server, pytest.raises(RunError, match="500 Internal Server Error"):
        generate(config(tmp_path, server.url, prompts=30, endpoint={"retries": 0, "concurrency": 1}))
    assert len(server.asked) == 8


def test_some_failures_are_counted_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    def script(number: int, asked: Asked) -> Reply:
        return Reply(b"?") if asked.body["prompt"] == "def f1():\n" and number < 20 else good(asked)

    with serving(script) as server:
        chosen = config(tmp_path, server.url)
        facts = generate(chosen)
        assert (facts["new"], facts["failed"]) == (4, {"nonsense": 2})
        assert str(failure(facts)) == (
            f"{tmp_path}/out/answers.jsonl: 2 of 6 answers missing: expected an answer to every question, "
            "got 2 nonsense; the last: no JSON: '?'; run the same command again to ask for these alone"
        )
        server.script = lambda _, asked: good(asked)
        again = generate(chosen)
    assert (again["new"], again["there"], again["failed"]) == (2, 6, {})
    assert failure(again) is None


def test_no_more_at_once_than_agreed(tmp_path: Path) -> None:
    together, lock = threading.Barrier(3), threading.Lock()
    now, most = [0], [0]

    def script(_: int, asked: Asked) -> Reply:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(30)  # nobody is answered before three are asked
        with lock:
            now[0] -= 1
        return good(asked)

    with serving(script) as server:
        facts = generate(config(tmp_path, server.url, prompts=6, endpoint={"concurrency": 3}))
    assert facts["new"] == 12 and most == [3]


def test_money_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10 and 5 tokens an answer at 100 and 1000 dollars a million: 6 answers cost 6 * (0.001 + 0.005)."""
    changes = {"usd_per_million": {"input": 100, "output": 1000}}
    with serving(lambda _, asked: good(asked)) as server:
        facts = generate(config(tmp_path, server.url, endpoint=changes))
        assert facts["usd"] == pytest.approx(0.036)
        assert facts["expected_usd"] == pytest.approx(6 * (4 * 100 + 50 * 1000) / 1e6), "10 letters are 4 tokens"
        said = capsys.readouterr().err
        assert "expected cost $0.3024 in all (prompts at 3 letters a token, answers at 50 tokens)" in said
        assert "$0.0360 of about $0.0360" in said
        more = generate(config(tmp_path, server.url, endpoint=changes, samples=4))
    assert more["expected_usd"] == pytest.approx(0.036 + 6 * (4 * 100 + 5 * 1000) / 1e6), "as long as those so far"
    assert (more["new"], more["usd"]) == (6, pytest.approx(0.072))


def test_a_killed_run_pays_for_no_answer_twice(tmp_path: Path) -> None:
    hold = threading.Event()

    def script(number: int, asked: Asked) -> Reply:
        if number >= 7:
            hold.wait(60)
        return good(asked)

    with serving(script) as server:
        file = config_file(tmp_path, server.url, prompts=6, endpoint={"concurrency": 1})
        process = subprocess.Popen(
            [sys.executable, "-m", "stage1_teacher", "generate", file], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 60
        while len(server.asked) < 8:
            assert time.monotonic() < end and process.poll() is None, "it hangs"
            time.sleep(0.01)
        process.kill()
        process.wait()
        hold.set()
        kept = rows(tmp_path)
        assert len(kept) == 7, "an answer is in the file before the next question is asked"
        paid = {asked.body["seed"] for asked in server.asked[:7]}
        with (tmp_path / "out" / "answers.jsonl").open("a") as torn:
            torn.write('{"prompt_id": "plain/5", "ind')
        facts = generate(config(tmp_path, server.url, prompts=6, endpoint={"concurrency": 1}))
    assert (facts["new"], facts["there"]) == (5, 12)
    assert not paid & {asked.body["seed"] for asked in server.asked[8:]}
    assert rows(tmp_path)[:7] == kept and len(rows(tmp_path)) == 12


def test_nothing_is_written_behind_an_answer_that_a_full_disk_tore(tmp_path: Path) -> None:
    saved: list[str] = []

    def save(row: dict[str, Any]) -> None:
        saved.append(row["answer"])
        if len(saved) == 3:
            raise OSError(28, "No space left on device")

    prompts = [Prompt(f"plain/{n}", "plain", "ask me", "ask me") for n in range(40)]
    with serving(lambda _, asked: good(asked)) as server, pytest.raises(OSError, match="No space left"):
        chosen = config(tmp_path, server.url, endpoint={"concurrency": 8})
        Pool(Endpoint(chosen), iter([(prompt, 0) for prompt in prompts]), save).run()
    assert len(saved) == 3


def test_an_answer_is_written_whole_by_a_disk_that_takes_it_in_parts(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl", every=1)
    whole = file._file

    class Parts:
        def write(self, raw: Any) -> int:
            return whole.write(raw[:7])

        def fileno(self) -> int:
            return whole.fileno()

        def close(self) -> None:
            whole.close()

    file._file = Parts()  # type: ignore[assignment]
    file.add({"answer": "\u00e9" * 50})
    file.close()
    assert (tmp_path / "answers.jsonl").read_text() == '{"answer": "' + "\u00e9" * 50 + '"}\n'


def test_sigterm_ends_in_order_and_keeps_what_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pools: list[Pool] = []
    monkeypatch.setattr(generate_module, "Pool", lambda *parts: pools.append(Pool(*parts)) or pools[0])

    def script(number: int, asked: Asked) -> Reply:
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        if number >= 3:
            assert pools[0].endpoint.stop.wait(60), "the run goes on"
        return good(asked)

    with serving(script) as server:
        code = command(monkeypatch, "generate", config_file(tmp_path, server.url, prompts=50), "--json")
    assert code == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"out": str(tmp_path / "out"), "finished": False}
    assert shown.err.splitlines()[-1] == (
        f"stopped by SIGTERM: every answer so far is in {tmp_path}/out; the same command goes on"
    )
    assert len(rows(tmp_path)) == len(server.asked) < 6


def test_a_folder_holds_one_set_of_settings(tmp_path: Path) -> None:
    with serving(lambda _, asked: good(asked)) as server:
        generate(config(tmp_path, server.url))
        with pytest.raises(UsageError) as error:
            generate(config(tmp_path, server.url, temperature=0.5))
        assert str(error.value) == (
            f"out {tmp_path}/out: expected answers with the same settings, "
            "got temperature 0.8 there and 0.5 wanted; choose another out, or set them as they were"
        )
        with pytest.raises(UsageError, match="same prompts"):
            generate(config(tmp_path, server.url, prompts=4))
        with pytest.raises(UsageError, match="same teacher, got model asked-model there and other wanted"):
            generate(config(tmp_path, server.url, prompts=3, endpoint={"model": "other"}))
    assert len(server.asked) == 6


def test_a_folder_without_an_answer_is_bound_to_nothing(tmp_path: Path) -> None:
    with serving(lambda *_: Reply(b"", 404)) as server:
        with pytest.raises(UsageError, match="got 404 Not Found; check url, style, model and whether it wants a key"):
            generate(config(tmp_path, server.url))
        server.script = lambda _, asked: good(asked)
        assert generate(config(tmp_path, server.url, style="chat", prompts=4))["there"] == 8
    assert json.loads((tmp_path / "out" / "generate.json").read_text())["settings"]["style"] == "chat"
    assert len((tmp_path / "out" / "prompts.jsonl").read_text().splitlines()) == 4


def test_without_a_key_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(UsageError) as error:
        generate(config(tmp_path, "http://127.0.0.1:1/v1", endpoint={"key_env": "TEACHER_KEY"}))
    assert str(error.value) == (
        "endpoint.key_env TEACHER_KEY: expected that variable to hold a key, got an empty one or none; "
        "export TEACHER_KEY=... in the shell that runs this"
    )
    assert not (tmp_path / "out").exists()
