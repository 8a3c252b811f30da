"""One question to an endpoint: what is sent, what comes back, retries, limits, nonsense, keys."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import KEY, Asked, Reply, config, good, serving, settings

from shared.config import check_config
from shared.errors import CodestillError, UsageError
from stage1_teacher import endpoint as endpoint_module
from stage1_teacher.endpoint import Endpoint, NoAnswer, Pace, read_answer, retry_after
from stage1_teacher.generate import generate
from stage1_teacher.generate_config import GenerateConfig
from stage1_teacher.prompt_sets import Prompt

PROMPT = Prompt("plain/a", "plain", "ask me", "ask me", stop=("\nA", "\nB", "\nC", "\nD", "\nE"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between a test and its own server, and no long waits between tries."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.001)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_every_question_is_asked_once_with_its_own_seed(tmp_path: Path, style: str) -> None:
    with serving(lambda _, asked: good(asked)) as server:
        facts = generate(config(tmp_path, server.url, style=style, endpoint={"key_env": "TEACHER_KEY"}))
    assert {asked.path for asked in server.asked} == {f"/v1/{'chat/' if style == 'chat' else ''}completions"}
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert len({asked.body["seed"] for asked in server.asked}) == 6 == facts["new"]
    first = server.asked[0].body
    assert (first["model"], first["max_tokens"], first["temperature"], first["top_p"]) == ("asked-model", 50, 0.8, 0.95)
    texts = Counter(a.body["messages"][0]["content"] if style == "chat" else a.body["prompt"] for a in server.asked)
    assert texts == {f"def f{n}():\n": 2 for n in range(3)}
    found = rows(tmp_path)
    assert {(row["prompt_id"], row["index"]) for row in found} == {(f"plain/{n}", i) for n in range(3) for i in (0, 1)}
    assert {(row["prompt_tokens"], row["completion_tokens"], row["model"]) for row in found} == {
        (10, 5, "served-model-1")
    }
    assert KEY not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json*"))


def test_no_more_stop_words_than_servers_take_and_no_seed_where_it_is_refused(tmp_path: Path) -> None:
    changes = {"send_seed": False, "length_field": "max_completion_tokens"}
    with serving(lambda _, asked: good(asked)) as server:
        Endpoint(config(tmp_path, server.url, endpoint=changes)).ask(PROMPT, 0)
    body = server.asked[0].body
    assert body["stop"] == ["\nA", "\nB", "\nC", "\nD"]
    assert "seed" not in body and "max_tokens" not in body and body["max_completion_tokens"] == 50


def tries(tmp_path: Path, script: Callable[[int, Asked], Reply], **server: Any) -> tuple[Any, list[float], int]:
    """What one question comes to, the waits before its further tries, and how often it was asked."""
    waits: list[float] = []
    with serving(script) as running:
        endpoint = Endpoint(config(tmp_path, running.url, endpoint=server))
        endpoint._sleep = lambda seconds: waits.append(seconds)  # type: ignore[method-assign]
        try:
            found: Any = endpoint.ask(PROMPT, 0)
        except (NoAnswer, CodestillError) as error:
            found = error
    return found, [wait for wait in waits if wait], len(running.asked)


def test_a_pause_that_the_server_asks_for_is_kept_by_everybody(tmp_path: Path) -> None:
    def script(number: int, asked: Asked) -> Reply:
        return Reply(b"{}", 429, {"Retry-After": "7"}) if number == 0 else good(asked, "late")

    found, waits, asked = tries(tmp_path, script)
    assert (found.text, asked) == ("late", 2)
    assert waits[0] == 7.0
    assert 6 < waits[1] <= 7, "the next turn is behind the pause for every thread"


def test_further_tries_wait_longer_and_end(tmp_path: Path) -> None:
    found, waits, asked = tries(tmp_path, lambda *_: Reply(b"down", 503), retries=4)
    assert isinstance(found, NoAnswer) and (found.kind, found.said) == ("server", "503 Service Unavailable")
    assert asked == 5 and len(waits) == 4
    assert all(0.5 <= wait / (0.001 * 2**n) <= 1 for n, wait in enumerate(waits))


def test_a_dropped_connection_is_tried_again(tmp_path: Path) -> None:
    def script(number: int, asked: Asked) -> Reply:
        whole = good(asked, "whole")
        whole.drop = number == 0
        return whole

    found, _, asked = tries(tmp_path, script)
    assert (found.text, asked) == ("whole", 2)


def test_nobody_there(tmp_path: Path) -> None:
    with serving(lambda _, asked: good(asked)) as server:
        url = server.url
    with pytest.raises(NoAnswer, match="Connection refused"):
        Endpoint(config(tmp_path, url, endpoint={"retries": 0})).ask(PROMPT, 0)


def test_a_slow_server_is_not_waited_for(tmp_path: Path) -> None:
    over = threading.Event()

    def script(_: int, asked: Asked) -> Reply:
        over.wait(30)
        return good(asked)

    found, _, asked = tries(tmp_path, script, timeout_s=0.05, retries=1)
    over.set()
    assert (found.kind, found.said, asked) == ("timeout", "nothing whole within 0.05 s", 2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "too long\nby far"}}, " (too long\nby far)"),
        ({"error": "too long"}, " (too long)"),
        ({"detail": "too long"}, " (too long)"),
        ({"detail": [{"loc": 1}]}, ""),
        ({"error": {}}, ""),
        (7, ""),
    ],
)
def test_what_a_server_says_of_one_question_is_not_asked_again(tmp_path: Path, body: Any, said: str) -> None:
    found, _, asked = tries(tmp_path, lambda *_: Reply(json.dumps(body).encode(), 400))
    assert (found.kind, found.said, asked) == ("refused", f"400 Bad Request{said}", 1)


def test_a_wrong_key_ends_the_run_and_is_never_shown(tmp_path: Path) -> None:
    said = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
    found, _, asked = tries(tmp_path, lambda *_: Reply(said, 401), key_env="TEACHER_KEY")
    assert asked == 1 and isinstance(found, UsageError)
    assert str(found).partition("completions: ")[2] == (
        "expected an answer, got 401 Unauthorized (bad key ***); check url, style, model and the key in $TEACHER_KEY"
    )


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with serving(lambda _, asked: good(asked)) as other:
        found, _, _ = tries(tmp_path, lambda *_: Reply(b"", 307, {"Location": other.url}), key_env="TEACHER_KEY")
    assert isinstance(found, UsageError) and "got 307 Temporary Redirect" in str(found)
    assert other.asked == []


def test_a_body_without_end_is_given_up(tmp_path: Path) -> None:
    found, _, asked = tries(tmp_path, lambda _, asked: good(asked, "x" * (2 << 20)), retries=0)
    assert (found.kind, found.said, asked) == ("nonsense", f"more than {(1 << 20) + 256 * 50} bytes", 1)


NONSENSE = {
    b"": "no JSON: ''",
    b"<html>502</html>": "no JSON: '<html>502</html>'",
    b'{"\xff": 1}': "bytes that are no text",
    b"[" * 100_000: f"no JSON: '{'[' * 40}'",
    b"[]": "JSON without choices[0].text",
    b"7": "JSON without choices[0].text",
    b'"text"': "JSON without choices[0].text",
    b'{"choices": []}': "JSON without choices[0].text",
    b'{"choices": {"0": 1}}': "JSON without choices[0].text",
    b'{"choices": [["text"]]}': "JSON without choices[0].text",
    b'{"choices": [{"message": {"content": "x"}}]}': "JSON without choices[0].text",
    b'{"choices": [{"text": 7}]}': "an answer that is no text",
    b'{"choices": [{"text": null}]}': "an answer that is no text",
    b'{"choices": [{"text": "\\ud800"}]}': "an answer that is no text",
}


@pytest.mark.parametrize("raw", NONSENSE)
def test_nonsense_is_told_from_an_answer(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(NoAnswer) as error:
        read_answer(raw, config(tmp_path, "http://host/v1"), PROMPT)
    assert (error.value.kind, error.value.said) == ("nonsense", NONSENSE[raw])


def test_odd_but_readable_replies(tmp_path: Path) -> None:
    odd = {"choices": [{"text": "abc", "finish_reason": 3}], "usage": {"prompt_tokens": True}, "model": ["x"]}
    found = read_answer(json.dumps(odd).encode(), config(tmp_path, "http://host/v1"), PROMPT)
    assert (found.finish, found.model, found.estimated) == ("stop", "asked-model", True)
    assert (found.prompt_tokens, found.completion_tokens) == (2, 1), "6 and 3 letters at 3 letters a token"
    refused = {"choices": [{"message": {"content": None, "refusal": "no"}}]}
    chat = config(tmp_path, "http://host/v1", style="chat")
    assert read_answer(json.dumps(refused).encode(), chat, PROMPT).text == "no"


def test_requests_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(endpoint_module.time, "monotonic", lambda: clock[0])
    pace = Pace(120)
    assert [pace.turn() for _ in range(3)] == [0, 0.5, 1.0]
    clock[0] += 10
    assert [pace.turn(), pace.turn()] == [0, 0.5], "a quiet time is not saved up for a rush"
    pace.pause(30)
    assert pace.turn() == 30
    assert [Pace(None).turn() for _ in range(2)] == [0, 0]


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("12.5", 0) == 12.5
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 20) == 40
    assert retry_after("-3", 0) == 0
    assert [retry_after(value, 0) for value in (None, "soon", "nan", "inf")] == [None] * 4


def test_a_pause_longer_than_anybody_waits_is_no_answer(tmp_path: Path) -> None:
    found, _, asked = tries(tmp_path, lambda *_: Reply(b"", 429, {"Retry-After": "86400"}))
    assert (found.said, asked) == ("429 Too Many Requests, and asks to wait 86400 s", 1)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"key_env": KEY}, "key_env: the NAME of an environment variable in capitals, such as OPENAI_API_KEY"),
        ({"url": f"https://me:{KEY}@host/v1"}, "url: no user, password or query; the key comes from the variable"),
        ({"url": f"https://host/v1?key={KEY}"}, "url: no user, password or query; the key comes from the variable"),
        ({"url": "host/v1"}, "url: http:// or https:// and a host"),
        ({"api_key": KEY}, "unknown key 'endpoint.api_key'"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(
    tmp_path: Path, server: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        config(tmp_path, "http://host/v1", endpoint=server)
    assert said in str(error.value) and KEY not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": {"model": "./x"}}, "exactly one of teacher and endpoint"),
        ({"temperature": 0}, "samples: 1 where temperature is 0"),
        ({"prompts": {}}, "at least one of mbpp, code, instructions, plain"),
    ],
)
def test_configs_that_cannot_be_meant(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    data = settings(tmp_path, "http://host/v1") | changes
    with pytest.raises(UsageError, match=said):
        check_config(GenerateConfig, data, base=tmp_path, name="test")
