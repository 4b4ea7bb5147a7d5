"""Finished runs: which are seeds of one experiment, and which are different experiments."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt1cli.reporting.collect import FinishedRun, format_mean_std, group_variants, summary_tables

BASE = {
    "init": "a", "lr": 0.1, "pretrained": True, "seed": 0, "model": {"name": "mini", "d_model": 256},
    "task": {"name": "rte", "metrics": ["accuracy"], "splits": {"valid": "validation"}}, "runtime": {"threads": 1},
}  # fmt: skip


def run(accuracy: float = 0.5, **changes: object) -> FinishedRun:
    result = {"command": "finetune", "valid": {"accuracy": accuracy}}
    return FinishedRun(Path("somewhere"), BASE | changes, result)


def rows(*runs: FinishedRun) -> list[list[str]]:
    (table,) = summary_tables(runs)
    return [list(row) for row in table.rows]


def test_seeds_are_averaged_and_other_settings_are_variants():
    table_rows = rows(run(0.5), run(0.7, seed=1), run(0.1, lr=0.2), run(0.3, lr=0.2, seed=1))
    assert table_rows == [
        ["rte", "lr=0.1", "0, 1", "accuracy (valid) 0.600 ± 0.141"],
        ["rte", "lr=0.2", "0, 1", "accuracy (valid) 0.200 ± 0.141"],
    ]


def test_repeated_seed_counts_as_one_seed():
    table_rows = rows(run(0.5), run(0.6), run(0.75, seed=1))  # 0.55 and 0.75
    assert table_rows == [["rte", "default", "0 (2 runs), 1", "accuracy (valid) 0.650 ± 0.141"]]
    assert rows(run(0.5), run(0.6)) == [["rte", "default", "0 (2 runs)", "accuracy (valid) 0.550"]]


def test_settings_of_a_group_follow_its_name_unless_the_name_is_ambiguous():
    small, large = {"name": "mini", "d_model": 256}, {"name": "base", "d_model": 768}
    assert list(group_variants([run(model=small), run(model=large)])) == ["model.name=mini", "model.name=base"]
    wide = small | {"d_model": 512}
    assert list(group_variants([run(model=small), run(model=wide), run(model=large)])) == [
        "model.name=mini, model.d_model=256",
        "model.name=mini, model.d_model=512",
        "model.name=base, model.d_model=768",
    ]


def test_split_of_only_some_runs_is_reported():
    both = {"command": "evaluate", "valid": {"accuracy": 0.5}, "test": {"accuracy": 0.25}}
    config = BASE | {"task": BASE["task"] | {"splits": {"valid": "validation", "test": "test"}}}
    valid = {"command": "evaluate", "valid": {"accuracy": 0.7}}
    runs = [FinishedRun(Path("a"), config, valid), FinishedRun(Path("b"), config | {"seed": 1}, both)]
    (table,) = summary_tables(runs)
    assert table.rows[0][3] == "accuracy (valid) 0.600 ± 0.141, accuracy (test) 0.250"


def test_one_init_per_seed_is_one_experiment_and_several_inits_per_seed_are_not():
    assert list(group_variants([run(), run(seed=1, init="b")])) == ["default"]
    variants = group_variants([run(), run(init="b"), run(seed=1), run(seed=1, init="b")])
    assert {name: len(group) for name, group in variants.items()} == {"init=a": 2, "init=b": 2}


def test_models_differ_by_name_and_changed_shapes_by_their_keys():
    tiny = {"name": "tiny", "d_model": 128}
    assert sorted(group_variants([run(), run(model=tiny)])) == ["model.name=mini", "model.name=tiny"]
    wide = {"name": "mini", "d_model": 512}
    assert sorted(group_variants([run(), run(model=wide)])) == ["model.d_model=256", "model.d_model=512"]


def test_tasks_are_grouped_separately():
    cola = {"name": "cola", "metrics": ["accuracy"], "splits": {"valid": "validation"}}
    cells = [row[:3] for row in rows(run(), run(task=cola, lr=0.3))]
    assert cells == [["cola", "default", "0"], ["rte", "default", "0"]]


def test_run_without_init_is_not_pretrained():
    variants = group_variants([run(), run(init="none")])
    assert list(variants) == ["pretrained=True", "pretrained=False"]


def test_few_shot_and_prompt_runs_have_a_separate_table_with_their_method():
    few = {"method": "prompt", "shots": 16, "demos": "none"}
    runs = [run(0.5), run(0.7, **few), run(0.9, seed=1, **few), run(0.6, **{**few, "method": "head"})]
    usual, table = summary_tables(runs)
    assert [row[:3] for row in usual.rows] == [["rte", "default", "0"]]
    assert table.title == "Fine-tuning on few examples, or through a prompt"
    assert [list(row) for row in table.rows] == [
        ["rte", "method=head, shots=16, demos=none", "0", "accuracy (valid) 0.600"],
        ["rte", "method=prompt, shots=16, demos=none", "0, 1", "accuracy (valid) 0.800 ± 0.141"],
    ]
    settings = (("random", 4), ("none", 4), ("none", 9))
    (table,) = summary_tables([run(0.5, **{**few, "demos": demos, "demo_sets": sets}) for demos, sets in settings])
    assert [row[1] for row in table.rows] == [
        "method=prompt, shots=16, demos=none", "method=prompt, shots=16, demos=random (4 sets)",
    ]  # fmt: skip
    (full_data,) = summary_tables([run(0.5, method="prompt", shots=None, demos="none")])
    assert [list(row[:2]) for row in full_data.rows] == [["rte", "method=prompt, shots=None, demos=none"]]


def test_mean_and_sample_standard_deviation_by_hand():
    assert format_mean_std([{"x": 1.0}, {"x": 2.0}, {"x": 6.0}]) == ["x 3.000 ± 2.646"]
    assert format_mean_std([{"x": 0.25}]) == ["x 0.250"]
    assert pytest.approx(2.646, abs=1e-3) == ((4 + 1 + 9) / 2) ** 0.5
