"""The training config: shipped files load, mistakes are one line. Not for the training itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from shared.config import load_config
from shared.errors import UsageError
from stage2_student.config import TrainConfig

CONFIGS = sorted((Path(__file__).parent.parent / "stage2_student" / "configs").glob("*.yaml"))
GOOD = {
    "out": "out",
    "cache": "cache",
    "validation": {"fraction": 0.1},
    "student": {"preset": "gpt2-44m"},
    "kd_weight": 1.0,
    "ce_weight": 0.0,
    "epochs": 1,
}


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def test_the_five_students_of_the_first_recipe_ship() -> None:
    configs = [load_config(TrainConfig, path) for path in CONFIGS if path.name.startswith("mbpp-")]
    assert sorted((c.student.preset, c.temperature.at(0), c.kd_weight.at(0)) for c in configs) == [
        ("gpt2-202m", 2.0, 0.5),
        ("gpt2-202m", 2.0, 0.7),
        ("gpt2-44m", 1.5, 0.3),
        ("gpt2-44m", 1.7, 0.6),
        ("gpt2-44m", 2.0, 0.5),
    ]
    for config in configs:
        assert config.kd_weight.at(0) + config.ce_weight.at(0) == pytest.approx(1)
        assert (config.epochs, config.learning_rate, config.gradient_accumulation) == (7, 5e-5, 4)
    assert len({config.out for config in configs}) == 5


def test_the_demos_twins_differ_in_the_weights_alone() -> None:
    distilled, plain = (
        load_config(TrainConfig, CONFIGS[0].with_name(f"demo-{name}.yaml")) for name in ("distilled", "cross-entropy")
    )
    weights = {"kd_weight": 0.0, "ce_weight": 1.0}
    assert plain.settings() == {**distilled.settings(), **weights}
    assert distilled.kd_weight.at(0) > 0
    assert distilled.cache == plain.cache
    assert distilled.out != plain.out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_steps": 3}, "exactly one of epochs, max_steps"),
        ({"epochs": None}, "exactly one of epochs, max_steps"),
        ({"kd_weight": 0}, "kd_weight or ce_weight above 0"),
        ({"temperature": 0.5}, "temperature 0.5: the cache holds the tail's mass for T >= 0.69"),
        ({"temperature": {"from": 2, "to": 0.5}}, "temperature 0.5: the cache holds the tail's mass for T >= 0.69"),
        (
            {"temperature": {"from": 4, "too": 1}},
            "'temperature.too': expected one of from, shape, to; did you mean 'to'",
        ),
        ({"temperature": {"from": 4}}, "key 'temperature.to': expected a value"),
        ({"temperature": True}, "a number, or {from: number, to: number, shape: linear or cosine}, got True"),
        ({"temperature": float("inf")}, "a number, or {from: number, to: number, shape: linear or cosine}, got inf"),
        ({"temperature": 0}, "key 'temperature': expected values above 0, got 0"),
        ({"ce_weight": {"from": 1, "to": -1}}, "key 'ce_weight': expected values of 0 or more"),
        ({"kd_weight": {"from": 0, "to": 1, "shape": "cos"}}, "'linear' or 'cosine', got 'cos'"),
        ({"kd_weight": {"from": 0, "to": 0}}, "kd_weight or ce_weight above 0"),
        ({"divergence": {"name": "jsd"}}, "expected beta, between 0 and 1, beside name: jsd"),
        ({"divergence": {"name": "skew_kl", "beta": 0.1}}, "expected alpha, between 0 and 1, beside name: skew_kl"),
        ({"divergence": {"beta": 0.5}}, "expected neither beta nor alpha beside name: forward_kl"),
        ({"divergence": {"name": "skew_kl", "alpha": 1}}, "'divergence.alpha': expected Input should be less than 1"),
        ({"divergence": {"name": "forward_lk"}}, "'forward_kl', 'reverse_kl', 'jsd'"),
        ({"divergence": {"nam": "jsd"}}, "'divergence.nam': expected one of alpha, beta, name; did you mean 'name'"),
        ({"temprature": 2}, "unknown key 'temprature'"),
        ({"form": "whole"}, "'full', 'bucket' or 'renormalised'"),
        ({"student": {}}, "exactly one of preset, architecture, pretrained"),
        ({"student": {"preset": "gpt2-44m", "revision": "main"}}, "revision only beside pretrained"),
        ({"student": {"preset": "gpt2-45m"}}, "'llama-44m' or 'llama-202m'"),
        ({"student": {"architecture": {"layers": 1, "width": 30, "heads": 4}}}, "width to be a multiple of heads"),
        ({"validation": {}}, "exactly one of cache, fraction"),
        ({"validation": {"fraction": 1.5}}, "less than 1"),
        ({"learning_rate": "fast"}, "learning_rate"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(TrainConfig, write(tmp_path, **changes))
    assert sentence in str(caught.value)


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        load_config(TrainConfig, write(tmp_path, temprature=2))


def test_paths_are_relative_to_the_file_and_pretrained_may_be_a_hub_id(tmp_path: Path) -> None:
    local = load_config(TrainConfig, write(tmp_path, student={"pretrained": "./model"}))
    assert local.cache == tmp_path / "cache"
    assert local.student.pretrained == str(tmp_path / "model")
    hub = load_config(TrainConfig, write(tmp_path), ["student.preset=null", "student.pretrained=org/model"])
    assert hub.student.pretrained == "org/model"


def test_settings_leave_out_where_a_run_stands(tmp_path: Path) -> None:
    one = load_config(TrainConfig, write(tmp_path, workers=2, device="cpu"))
    other = load_config(TrainConfig, write(tmp_path, out="elsewhere"))
    assert one.settings() == other.settings()
    assert "learning_rate" in one.settings()


def test_a_number_is_a_ramp_that_stays_and_is_written_as_a_number(tmp_path: Path) -> None:
    moving = {"from": 4.0, "to": 1.0, "shape": "cosine"}
    config = load_config(TrainConfig, write(tmp_path, kd_weight=0.5, temperature=moving))
    assert [config.kd_weight.at(progress) for progress in (0, 0.3, 1)] == [0.5, 0.5, 0.5]
    assert [config.temperature.at(progress) for progress in (0, 0.5, 1)] == pytest.approx([4, 2.5, 1])
    settings = config.settings()
    assert (settings["kd_weight"], settings["temperature"]) == (0.5, moving)
    typed = load_config(
        TrainConfig, write(tmp_path), ["temperature.from=4", "temperature.to=1", "divergence.name=reverse_kl"]
    )
    assert typed.temperature.at(0.25) == pytest.approx(3.25)
    assert typed.divergence.name == "reverse_kl"
