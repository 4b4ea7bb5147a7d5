"""Which runs are seeds of one experiment, and which are other experiments."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt1cli.reporting.collect import Finished, summed_up, tables, variants

BASE = {
    "init": "a", "lr": 0.1, "pretrained": True, "seed": 0, "model": {"name": "mini", "d_model": 256},
    "task": {"name": "rte", "metrics": ["accuracy"], "splits": {"valid": "validation"}}, "runtime": {"threads": 1},
}  # fmt: skip


def run(accuracy: float = 0.5, **changes: object) -> Finished:
    result = {"command": "finetune", "valid": {"accuracy": accuracy}}
    return Finished(Path("somewhere"), BASE | changes, result)


def rows(*runs: Finished) -> list[list[str]]:
    (table,) = tables(runs)
    return [list(row) for row in table.rows]


def test_seeds_are_summed_up_and_other_settings_told_apart():
    found = rows(run(0.5), run(0.7, seed=1), run(0.1, lr=0.2), run(0.3, lr=0.2, seed=1))
    assert found == [
        ["rte", "lr=0.1", "0, 1", "accuracy (valid) 0.600 ± 0.141"],
        ["rte", "lr=0.2", "0, 1", "accuracy (valid) 0.200 ± 0.141"],
    ]


def test_a_seed_that_was_repeated_is_still_one_seed():
    found = rows(run(0.5), run(0.6), run(0.75, seed=1))  # 0.55 and 0.75
    assert found == [["rte", "default", "0 (2 runs), 1", "accuracy (valid) 0.650 ± 0.141"]]
    assert rows(run(0.5), run(0.6)) == [["rte", "default", "0 (2 runs)", "accuracy (valid) 0.550"]]


def test_settings_of_a_group_go_along_with_its_name_unless_it_stands_for_several():
    small, large = {"name": "mini", "d_model": 256}, {"name": "base", "d_model": 768}
    assert list(variants([run(model=small), run(model=large)])) == ["model.name=mini", "model.name=base"]
    wide = small | {"d_model": 512}
    assert list(variants([run(model=small), run(model=wide), run(model=large)])) == [
        "model.name=mini, model.d_model=256",
        "model.name=mini, model.d_model=512",
        "model.name=base, model.d_model=768",
    ]


def test_a_split_that_only_some_runs_have_is_reported():
    both = {"command": "evaluate", "valid": {"accuracy": 0.5}, "test": {"accuracy": 0.25}}
    config = BASE | {"task": BASE["task"] | {"splits": {"valid": "validation", "test": "test"}}}
    told = {"command": "evaluate", "valid": {"accuracy": 0.7}}
    (table,) = tables([Finished(Path("a"), config, told), Finished(Path("b"), config | {"seed": 1}, both)])
    assert table.rows[0][3] == "accuracy (valid) 0.600 ± 0.141, accuracy (test) 0.250"


def test_another_init_for_each_seed_is_one_experiment_and_several_for_one_seed_are_not():
    assert list(variants([run(), run(seed=1, init="b")])) == ["default"]
    found = variants([run(), run(init="b"), run(seed=1), run(seed=1, init="b")])
    assert {name: len(group) for name, group in found.items()} == {"init=a": 2, "init=b": 2}


def test_another_model_is_told_by_its_name_and_changed_shapes_by_their_keys():
    tiny = {"name": "tiny", "d_model": 128}
    assert sorted(variants([run(), run(model=tiny)])) == ["model.name=mini", "model.name=tiny"]
    wide = {"name": "mini", "d_model": 512}
    assert sorted(variants([run(), run(model=wide)])) == ["model.d_model=256", "model.d_model=512"]


def test_tasks_are_compared_with_themselves_alone():
    cola = {"name": "cola", "metrics": ["accuracy"], "splits": {"valid": "validation"}}
    found = [row[:3] for row in rows(run(), run(task=cola, lr=0.3))]
    assert found == [["cola", "default", "0"], ["rte", "default", "0"]]


def test_without_an_init_nothing_is_called_pretrained():
    found = variants([run(), run(init="none")])
    assert list(found) == ["pretrained=True", "pretrained=False"]


def test_few_examples_and_prompts_have_a_table_of_their_own_and_tell_how_they_were_trained():
    few = {"method": "prompt", "shots": 16, "demos": "none"}
    runs = [run(0.5), run(0.7, **few), run(0.9, seed=1, **few), run(0.6, **{**few, "method": "head"})]
    plain, table = tables(runs)
    assert [row[:3] for row in plain.rows] == [["rte", "default", "0"]]
    assert table.title == "Fine-tuning on few examples, or through a prompt"
    assert [list(row) for row in table.rows] == [
        ["rte", "method=head, shots=16, demos=none", "0", "accuracy (valid) 0.600"],
        ["rte", "method=prompt, shots=16, demos=none", "0, 1", "accuracy (valid) 0.800 ± 0.141"],
    ]
    shown = (("random", 4), ("none", 4), ("none", 9))
    (table,) = tables([run(0.5, **{**few, "demos": demos, "demo_sets": sets}) for demos, sets in shown])
    assert [row[1] for row in table.rows] == [
        "method=prompt, shots=16, demos=none", "method=prompt, shots=16, demos=random (4 sets)",
    ]  # fmt: skip
    (whole,) = tables([run(0.5, method="prompt", shots=None, demos="none")])
    assert [list(row[:2]) for row in whole.rows] == [["rte", "method=prompt, shots=None, demos=none"]]


def test_mean_and_sample_standard_deviation_by_hand():
    assert summed_up([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}]) == ["x 3.000 ± 2.646"]
    assert summed_up([{"x": 0.25}]) == ["x 0.250"]
    assert pytest.approx(2.646, abs=1e-3) == ((4 + 1 + 9) / 2) ** 0.5
