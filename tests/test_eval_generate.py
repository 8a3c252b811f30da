"""Generation: samples that depend on nothing but their own seed, stop words, positions, memory, and the prompt trap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import save_tiny_model
from transformers import GenerationConfig, TopPLogitsWarper

from eval.config import EvalConfig, ModelSpec, TaskSpec
from eval.generate import Generator, pending, plan, split_prompts
from eval.judge import judge
from eval.models import LoadedModel, load, locate
from eval.prompts import PRESETS, Preset
from shared.errors import RunError, UsageError
from shared.sampling import draw_tokens
from shared.tasks import Task, load_tasks

AS_IS = PRESETS["as-is"]


def task(name: str, prompt: str) -> Task:
    return Task(name, prompt, "    return 1\n", "def check(f): pass\n", "f", "", "humaneval")


TASKS = [task(f"T/{n}", f"def f{n}(x):\n" + "    # a line\n" * (n % 4)) for n in range(6)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return load(locate(ModelSpec(name="tiny", path=str(path))), "float32", torch.device("cpu"))


def config(**fields: Any) -> EvalConfig:
    settings = {"samples": 3, "max_new_tokens": 24, "batch_size": 8, "device": "cpu", "dtype": "float32", **fields}
    spec = ModelSpec(name="tiny", path="/nowhere")
    return EvalConfig(out=Path("/nowhere"), models=[spec], tasks=[TaskSpec(name="humaneval")], **settings)


def all_rows(loaded: LoadedModel, settings: EvalConfig, tasks: Sequence[Task] = TASKS, preset: Preset = AS_IS) -> Any:
    generator = Generator(loaded, "set", preset, settings)
    return [row for batch in plan(loaded, tasks, preset, settings) for row in generator.rows(batch)]


def by_sample(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], str]:
    return {(row["task_id"], row["index"]): row["completion"] for row in rows}


def test_rows_say_what_they_are(loaded: LoadedModel) -> None:
    rows = all_rows(loaded, config(seed=7))
    assert len(rows) == 18
    assert rows[0].keys() == {
        "model", "task_set", "task_id", "index", "completion", "tokens", "finish", "preset", "seed", "settings", "weights",
        "mean_logprob",
    }  # fmt: skip
    assert rows[0]["settings"] == {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 24, "dtype": "float32"}
    assert {row["weights"] for row in rows} == {loaded.files.identity[:16]}
    assert {(row["model"], row["task_set"], row["preset"], row["seed"]) for row in rows} == {
        ("tiny", "set", "as-is/1", 7)
    }


def test_a_sample_does_not_depend_on_its_neighbours(loaded: LoadedModel) -> None:
    together = by_sample(all_rows(loaded, config(batch_size=18)))
    alone = by_sample(all_rows(loaded, config(batch_size=1)))
    fewer = by_sample(all_rows(loaded, config(batch_size=5), TASKS[2:]))
    assert together == alone
    assert fewer.items() <= together.items()
    assert len(set(together.values())) > 12  # they are samples, not one answer


def test_seeds_differ_and_repeat(loaded: LoadedModel) -> None:
    first, again, other = (by_sample(all_rows(loaded, config(seed=seed))) for seed in (0, 0, 1))
    assert first == again
    assert sum(first[key] != other[key] for key in first) > 12


def test_greedy_is_the_largest_logit(loaded: LoadedModel) -> None:
    row = all_rows(loaded, config(temperature=0, max_new_tokens=5), TASKS[:1])[0]
    ids = loaded.tokenizer(TASKS[0].prompt)["input_ids"]
    for _ in range(5):
        with torch.inference_mode():
            ids.append(int(loaded.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert row["completion"] == AS_IS.cut(loaded.tokenizer.decode(ids)[len(TASKS[0].prompt) :])


def test_log_probabilities_are_the_models_own(loaded: LoadedModel) -> None:
    """At temperature 1 whatever the sampler does, and as one forward pass over the finished text gives them."""
    settings = config(temperature=0.6, top_p=0.8, max_new_tokens=6)
    generator = Generator(loaded, "set", AS_IS, settings)
    batch = plan(loaded, TASKS, AS_IS, settings)[0]
    for request, (new_ids, logprobs) in zip(batch, generator._generate(batch), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *new_ids]])
        with torch.inference_mode():
            forced_TV = loaded.model(ids).logits[0, len(request.prompt_ids) - 1 : -1].double().log_softmax(-1)
        wanted = forced_TV.gather(1, torch.tensor(new_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs).double(), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("most", [2, 8, 64])
def test_draws_follow_the_nucleus(top_p: float, most: int) -> None:
    torch.manual_seed(3)
    logits = torch.randn(40) * 2
    kept = TopPLogitsWarper(top_p)(None, logits[None])[0] if top_p < 1 else logits  # type: ignore[arg-type]
    expected = torch.softmax(kept, dim=-1)
    draws = (torch.arange(20_000) + 0.5) / 20_000  # every quantile once: no chance in this test
    tokens = draw_tokens(torch.softmax(logits, -1).expand(20_000, -1), draws, top_p, most)
    assert torch.allclose(torch.bincount(tokens, minlength=40) / 20_000, expected, atol=2e-4)


def test_the_largest_draw_never_takes_a_token_of_no_probability() -> None:
    probabilities = torch.tensor([[0.25, 0.75, 0.0, 0.0]])
    for top_p in (0.9, 1.0):
        assert int(draw_tokens(probabilities, torch.tensor([1.0]), top_p)) in (0, 1)
        assert int(draw_tokens(probabilities, torch.tensor([0.0]), top_p)) in (0, 1)


class Scripted:
    """A model that answers with fixed texts, chosen by what its prompt ends in; it knows only stripped prompts."""

    def __init__(self, loaded: LoadedModel, *, good: str, bad: str) -> None:
        self.tokenizer, self.good, self.bad = loaded.tokenizer, good, bad
        self.generation_config = GenerationConfig()
        self.prompts: list[str] = []

    def generate(self, ids_BL: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = []
        for ids, mask in zip(ids_BL, attention_mask, strict=True):
            prompt = self.tokenizer.decode(ids[mask.bool()])
            self.prompts.append(prompt)
            rows.append(self.tokenizer(self.bad if prompt.endswith("\n") else self.good)["input_ids"])
        width = max(map(len, rows)) + 1
        return torch.cat([ids_BL, torch.tensor([row + [0] * (width - len(row)) for row in rows])], dim=1)


def test_the_trap_a_model_that_only_goes_on_from_a_stripped_prompt(loaded: LoadedModel) -> None:
    prompt = 'def one():\n    """Return one."""\n'
    scripted = Scripted(loaded, good="\n    return 1\n\n\ndef main():\n    pass\n", bad='\n\n"""\n')
    model = replace(loaded, model=scripted)
    found = all_rows(model, config(samples=1), [task("T/0", prompt)], PRESETS["humaneval-stripped"])[0]
    assert scripted.prompts == ['def one():\n    """Return one."""']  # exact bytes
    assert (found["completion"], found["finish"]) == ("\n    return 1\n\n", "stop word")
    program: dict[str, Any] = {}
    exec(prompt + found["completion"], program)  # the judge joins the task's own prompt: still a right program
    assert program["one"]() == 1
    unstripped = all_rows(model, config(samples=1), [task("T/0", prompt)])[0]
    assert unstripped["completion"] != found["completion"]


def test_a_generation_ends_at_its_stop_word(loaded: LoadedModel) -> None:
    free = all_rows(loaded, config(max_new_tokens=40))
    letters = [row["completion"][at : at + 2] for row in free for at in (5, 12) if row["tokens"] == 40]
    preset = replace(AS_IS, stop_words=tuple({text for text in letters if len(text) == 2 and text.isascii()}))
    stopped = all_rows(loaded, config(max_new_tokens=40), preset=preset)
    for before, after in zip(free, stopped, strict=True):
        assert after["completion"] == preset.cut(before["completion"])
        assert after["finish"] == "stop word" or after["completion"] == before["completion"]
    assert sum(row["tokens"] for row in stopped) < 0.7 * sum(row["tokens"] for row in free)


def test_nothing_generated_is_a_legal_completion(loaded: LoadedModel) -> None:
    silent = replace(loaded, model=Scripted(loaded, good="", bad=""))
    rows = all_rows(silent, config())
    assert {(row["completion"], row["tokens"], row["finish"]) for row in rows} == {("", 0, "end")}


def test_prompts_near_the_end_of_the_positions_get_less_room(loaded: LoadedModel) -> None:
    tasks = [task("short", "a"), task("long", "b" * 250), task("longer", "c" * 250), task("full", "d" * 256)]
    tasks.append(task("beyond", "e" * 300))
    rows = {(row["task_id"], row["index"]): row for row in all_rows(loaded, config(), tasks)}
    assert rows["long", 0]["tokens"] <= 6  # 256 positions
    assert {rows[name, 1]["finish"] for name in ("full", "beyond")} == {"no room"}
    assert rows["full", 2]["completion"] == ""
    assert rows["short", 0]["tokens"] > 6


def test_batches_are_sorted_by_length_and_share_their_room(loaded: LoadedModel) -> None:
    tasks = [*TASKS, task("long", "b" * 250)]
    batches = plan(loaded, tasks, AS_IS, config(batch_size=4))
    assert sum(map(len, batches)) == 21 and max(map(len, batches)) == 4
    lengths = [len(request.prompt_ids) for batch in batches for request in batch]
    assert lengths == sorted(lengths)
    assert all(len({request.room for request in batch}) == 1 for batch in batches)


def test_only_batches_with_a_missing_sample_are_pending(loaded: LoadedModel) -> None:
    batches = plan(loaded, TASKS, AS_IS, config(batch_size=4))
    done = {(request.task_id, request.index) for batch in batches for request in batch}
    one = batches[2][1]
    assert list(pending(batches, done)) == []
    assert list(pending(batches, done - {(one.task_id, one.index)})) == [batches[2]]


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_model_that_diverged_is_an_error(tmp_path: Path, temperature: float) -> None:
    spec = ModelSpec(name="tiny", path=str(save_tiny_model(tmp_path / "tiny")))
    broken = load(locate(spec), "float32", torch.device("cpu"))
    with torch.no_grad():
        broken.model.transformer.ln_f.weight[3] = torch.nan
    with pytest.raises(RunError) as error:
        all_rows(broken, config(temperature=temperature))
    assert str(error.value) == (
        "model 'tiny': expected logits that are numbers, got NaN; train it again, or take an earlier checkpoint"
    )


def test_an_empty_prompt_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError) as error:
        plan(loaded, [task("T/9", "")], AS_IS, config())
    assert str(error.value) == "task T/9: expected a prompt, got no token; remove the task"


class Cramped:
    """A model whose memory holds `most` sequences."""

    def __init__(self, model: Any, most: int, error: RuntimeError | None = None) -> None:
        self.model, self.most, self.sizes = model, most, []
        self.error = error or torch.OutOfMemoryError("no more")

    def generate(self, ids_BL: torch.Tensor, **settings: Any) -> Any:
        self.sizes.append(len(ids_BL))
        if len(ids_BL) > self.most:
            raise self.error
        return self.model.generate(ids_BL, **settings)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no more"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_batches_halve_when_memory_runs_out_and_stay_so(
    loaded: LoadedModel, error: RuntimeError, capsys: pytest.CaptureFixture[str]
) -> None:
    cramped = Cramped(loaded.model, 2, error)
    rows = all_rows(replace(loaded, model=cramped), config(batch_size=8))
    assert rows == all_rows(loaded, config(batch_size=8))
    assert cramped.sizes[:3] == [8, 4, 2] and max(cramped.sizes[3:]) == 2
    said = "tiny: out of memory with 8 sequences at once; halving until they fit\n"
    assert capsys.readouterr() == ("", said)


def test_another_error_is_not_taken_for_memory(loaded: LoadedModel) -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2$"):
        all_rows(replace(loaded, model=Cramped(loaded.model, 2, RuntimeError("mat1 and mat2"))), config())


def test_rows_are_human_eval_samples(loaded: LoadedModel) -> None:
    row = all_rows(loaded, config(), TASKS[:1])[0]
    verdict = next(judge([{"task_id": row["task_id"], "completion": row["completion"]}], TASKS[:1], jobs=1))
    assert (verdict["task_id"], verdict["index"]) == ("T/0", 0)


def test_one_sequence_that_does_not_fit_is_an_error(loaded: LoadedModel) -> None:
    with pytest.raises(RunError) as error:
        all_rows(replace(loaded, model=Cramped(loaded.model, 0)), config())
    assert str(error.value) == (
        "task T/0: out of memory on cpu with a batch of one; lower max_new_tokens or use a larger device"
    )


def test_prompts_of_every_preset_are_checked_for_the_trap(loaded: LoadedModel, shared_data: Path) -> None:
    tasks = load_tasks(shared_data / "mbpp.jsonl")[10:14]
    for name in ("mbpp-docstring", "mbpp-3-shot", "evalplus-mbpp", "evalplus-mbpp-newline"):
        assert split_prompts(loaded, tasks, PRESETS[name]) == 0  # a byte a token: nothing can be split
