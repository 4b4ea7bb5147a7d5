"""Benchmarks: turns, ratios, tables, and that each candidate can do its job. No speed is tested here."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Iterator

import pytest
import torch

from gpt1cli.bench import BENCHMARKS
from gpt1cli.bench.contest import BenchSettings, Candidate, CandidateTiming, Contest, run_contest, speedup
from gpt1cli.cli.main import main
from gpt1cli.commands.bench import build_contests, contest_facts, contest_rows, contest_table

COMMAND = "gpt1cli.bench.starting:run_command"


def word_writer(word: str, path: object) -> Candidate:
    """A candidate that appends a word to a file five times per turn."""
    return Candidate(word, COMMAND, {"words": ["sh", "-c", f"echo {word} >> {path}"]})


def test_candidates_take_turns_and_the_first_round_is_not_counted(tmp_path):
    contest = Contest("words", "starts", [word_writer("a", tmp_path / "words"), word_writer("b", tmp_path / "words")])
    a, b = run_contest(contest, rounds=2, threads=1)
    assert (tmp_path / "words").read_text().split() == (["a"] * 5 + ["b"] * 5) * 3
    assert [one.name for one in (a, b)] == ["a", "b"] and len(a.rates) == len(b.rates) == 2
    assert min(a.rates) > 0 and a.peak_memory_bytes > 10_000_000


def test_failed_candidate_is_named_with_its_error():
    contest = Contest("none", "starts", [Candidate("broken", COMMAND, {"words": ["false"]})])
    with pytest.raises(RuntimeError, match=r"^broken failed: subprocess\.CalledProcessError: .*false"):
        run_contest(contest, rounds=1, threads=None)
    contest = Contest("none", "starts", [Candidate("unknown", "gpt1cli.bench.starting:no_such")])
    with pytest.raises(RuntimeError, match="unknown failed: AttributeError"):
        run_contest(contest, rounds=1, threads=None)
    contest = Contest("none", "starts", [Candidate("killed", COMMAND, {"words": ["sh", "-c", "kill -9 $PPID"]})])
    with pytest.raises(RuntimeError, match="killed failed: killed by SIGKILL"):
        run_contest(contest, rounds=1, threads=None)


def test_speedup_is_the_median_ratio_within_rounds():
    """The machine is four times slower in the second round; within the rounds ours is 2, 2 and 3 times as fast."""
    ours, other = CandidateTiming("ours", [8, 2, 9], 0), CandidateTiming("other", [4, 1, 3], 0)
    assert speedup(ours, other) == 2 and ours.rate == 8


@pytest.fixture
def contest() -> Contest:
    candidates = [Candidate(name, COMMAND) for name in ("gpt1", "peer", "matrix products")]
    return Contest("pretrain", "tokens", candidates, {"peer": 1.5}, 100.0, 0.55, max_memory_ratio={"peer": 0.65})


def test_facts_and_table_of_a_contest_by_hand(contest):
    measured = [
        CandidateTiming("gpt1", [60, 80], 2**31),
        CandidateTiming("peer", [30, 40], 2**30),
        CandidateTiming("matrix products", [1e4, 1e4], 2**29),
    ]
    ours, peer, ceiling = contest_facts(contest, measured)
    assert (ours["median"], ours["ratio"], ours["floor"], ours["share_of_ceiling"]) == (70, None, None, 0.6857)
    assert (peer["ratio"], peer["floor"], peer["share_of_ceiling"]) == (2.0, 1.5, 0.3429)
    assert (ceiling["ratio"], ceiling["share_of_ceiling"]) == (None, None)
    assert contest_rows(contest, measured) == [
        ["gpt1", "70 tokens", "60 - 80", "", "", "69% (floor 55%)", "2.00 GB"],
        ["peer", "35 tokens", "30 - 40", "2.00 x", "1.5 x", "34%", "1.00 GB (gpt1: 2.00 of it, limit 0.65)"],
        ["matrix products", "10k FLOP", "10k - 10k", "", "", "", "0.50 GB"],
    ]
    nothing = {"flops": None, "min_ceiling_share": None, "min_speedup": {}, "max_memory_ratio": {}}
    plain = dataclasses.replace(contest, **nothing, in_subprocesses=True)
    table = contest_table(plain, measured[:2])  # without memory and without empty columns
    assert table.header == ["candidate", "per second", "range", "speedup of gpt1"]
    assert table.rows == [["gpt1", "70 tokens", "60 - 80", ""], ["peer", "35 tokens", "30 - 40", "2.00 x"]]
    assert [fact["peak_memory_bytes"] for fact in contest_facts(plain, measured[:2])] == [None, None]


def all_contests() -> Iterator[Contest]:
    for device in ("cpu", "cuda"):
        for what in BENCHMARKS:
            yield from build_contests(what, BenchSettings(device, peer=True))


def test_every_candidate_function_takes_its_options_and_min_speedup_names_candidates():
    names = [contest.name for contest in all_contests()]
    assert len(names) > 15
    for contest in all_contests():
        assert len({candidate.name for candidate in contest.candidates}) == len(contest.candidates)
        assert contest.min_speedup.keys() <= {candidate.name for candidate in contest.candidates[1:]}
        for candidate in contest.candidates:
            module, _, function = candidate.make.partition(":")
            inspect.signature(getattr(importlib.import_module(module), function)).bind(**candidate.options)


@pytest.mark.parametrize(
    ("make", "options", "units"),
    [
        ("corpus_job", {"tokens": 10**6}, 10 * 32 * 64),
        ("examples_job", {"examples": 100}, 10 * 32 * 16),
        ("context_job", {"context": 128}, 10 * 4096),
    ],
)
def test_every_scaling_job_runs(make, options, units):
    from gpt1cli.bench import scaling

    assert getattr(scaling, make)(device="cpu", **options)() == units


def test_attention_share_of_the_operations_by_hand():
    """Tiny: 2 blocks of 12 x 128^2 weights and a table of 1,000 x 128; 2,048 tokens of attention."""
    from gpt1cli.bench.scaling import attention_share

    weights, attention = 6 * (2 * 12 * 128**2 + 1_000 * 128), 12 * 2 * 128 * 2048
    assert attention_share(2048) == f" (attention {attention / (weights + attention):.0%} of the operations)"


TRAINING, SPEAKING = "gpt1cli.bench.training:", "gpt1cli.bench.speaking:"
CHOICE = {"questions": 1, "shared": 9, "answers": 2, "length": 3}
SMALL = [
    (TRAINING + "pretraining_job", {"batch": 2, "context": 8, "dropout": 0.1}, 16),
    (TRAINING + "peer_pretraining_job", {"batch": 2, "context": 8, "dropout": 0.1, "precision": "bf16"}, 16),
    (TRAINING + "fine_tuning_job", {"batch": 2}, 2),
    (TRAINING + "peer_fine_tuning_job", {"batch": 2, "precision": "fp32"}, 2),
    (TRAINING + "choice_job", {**CHOICE, "train": True, "separate_rows": False}, 1),
    (TRAINING + "choice_job", {**CHOICE, "train": False, "separate_rows": True}, 1),
    (TRAINING + "peer_choice_job", {**CHOICE, "train": True, "precision": "bf16"}, 1),
    (TRAINING + "peer_choice_job", {**CHOICE, "train": False, "precision": "bf16"}, 1),
    (SPEAKING + "scoring_job", {"shared": 9, "queries": 3, "length": 2, "shared_prefix": True}, 3),
    (SPEAKING + "scoring_job", {"shared": 9, "queries": 3, "length": 2, "shared_prefix": False}, 3),
    (SPEAKING + "peer_scoring_job", {"shared": 9, "queries": 3, "length": 2}, 3),
    (SPEAKING + "generation_job", {"prompt": 4, "tokens": 3, "precision": "bf16", "samples": 2}, 6),
    (SPEAKING + "peer_generation_job", {"prompt": 4, "tokens": 3}, 3),
]


@pytest.mark.parametrize(("make", "options", "units"), SMALL, ids=[make.partition(":")[2] for make, _, _ in SMALL])
def test_every_job_runs(make, options, units):
    module, _, function = make.partition(":")
    torch.manual_seed(0)
    job = getattr(importlib.import_module(module), function)(device="cpu", model="mini", **options)
    assert job() == units and job() == units


def test_tokenizer_jobs_read_the_whole_text(tmp_path):
    from gpt1cli.bench import tokenizing

    (tmp_path / "text.txt").write_text("\n\n".join(["The sea was calm, and so was she. " * 20] * 40))
    source = {"text": str(tmp_path / "text.txt"), "vocabulary": None}
    texts = tokenizing.read_documents(source["text"])
    size = (tmp_path / "text.txt").stat().st_size
    assert len(texts) > 5 and "\n\n".join(texts) == (tmp_path / "text.txt").read_text()
    assert size - 2 * len(texts) <= tokenizing.tokenize_job(**source, processes=1, warm=True)() <= size
    assert tokenizing.tokenize_job(**source, processes=1, warm=False)() == tokenizing.peer_tokenize_job(**source)()
    assert 0 < tokenizing.plain_rules_job(**source)() < size / 8


@pytest.mark.slow
def test_bench_writes_a_table_and_its_figures(tmp_path, capsys):
    words = ["what=[startup]", "rounds=1", "peer=none", "runtime.progress=none", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(["bench", *words]) == 0
    content = json.loads((tmp_path / "run" / "bench.json").read_text())
    assert [contest["name"] for contest in content["contests"]] == ["startup, --help", "startup, --cfg job"]
    assert [one["name"] for one in content["contests"][0]["contenders"]] == ["gpt1", "python -c pass"]
    assert content["rounds"] == 1 and content["machine"]["torch"] == torch.__version__
    assert "startup, --cfg job" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.md").read_text()
    assert "## startup, --help" in page and "| an empty Hydra app |" in page
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("runtime.precision=fp32", "precision, compile and micro_batch"),
        ("runtime.compile=true", "precision, compile and micro_batch"),
        pytest.param("runtime.device=cuda", "no CUDA device", marks=no_cuda),
    ],
)
def test_settings_that_a_benchmark_ignores_are_refused(tmp_path, capsys, word, message):
    assert main(["bench", "what=[startup]", "peer=none", word, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err


def test_missing_text_file_is_refused(tmp_path, capsys):
    assert main(["bench", "what=[tokenize]", "peer=none", "input=/no/such", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "input=/no/such: no such file; give a text file" in capsys.readouterr().err
