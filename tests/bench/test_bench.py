"""The benchmark's own workings: turns, ratios, and that every contender can do its job. No speed is tested here."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Iterator

import pytest
import torch

from gpt1cli.bench import BENCHMARKS
from gpt1cli.bench.contest import Contender, Contest, Measured, Setting, hold, ratio
from gpt1cli.cli.main import main
from gpt1cli.commands.bench import contests_of, facts_of, rows_of, table_of

COMMAND = "gpt1cli.bench.starting:command"


def says(word: str, path: object) -> Contender:
    """A contender that leaves a word in a file, five times a turn."""
    return Contender(word, COMMAND, {"words": ["sh", "-c", f"echo {word} >> {path}"]})


def test_contenders_take_turns_and_the_first_round_is_not_counted(tmp_path):
    contest = Contest("words", "starts", [says("a", tmp_path / "said"), says("b", tmp_path / "said")])
    a, b = hold(contest, rounds=2, threads=1)
    assert (tmp_path / "said").read_text().split() == (["a"] * 5 + ["b"] * 5) * 3
    assert [one.name for one in (a, b)] == ["a", "b"] and len(a.rates) == len(b.rates) == 2
    assert min(a.rates) > 0 and a.peak_memory_bytes > 10_000_000


def test_a_contender_that_fails_is_named_with_its_last_words():
    contest = Contest("none", "starts", [Contender("broken", COMMAND, {"words": ["false"]})])
    with pytest.raises(RuntimeError, match=r"^broken failed: subprocess\.CalledProcessError: .*false"):
        hold(contest, rounds=1, threads=None)
    contest = Contest("none", "starts", [Contender("unknown", "gpt1cli.bench.starting:no_such")])
    with pytest.raises(RuntimeError, match="unknown failed: AttributeError"):
        hold(contest, rounds=1, threads=None)
    contest = Contest("none", "starts", [Contender("killed", COMMAND, {"words": ["sh", "-c", "kill -9 $PPID"]})])
    with pytest.raises(RuntimeError, match="killed failed: ended by SIGKILL"):
        hold(contest, rounds=1, threads=None)


def test_the_ratio_is_that_of_rounds_side_by_side():
    """The machine slows down fourfold in the second round: within each round ours is twice as fast, or three times."""
    ours, other = Measured("ours", [8, 2, 9], 0), Measured("other", [4, 1, 3], 0)
    assert ratio(ours, other) == 2 and ours.rate == 8


@pytest.fixture
def contest() -> Contest:
    contenders = [Contender(name, COMMAND) for name in ("gpt1", "peer", "bare products")]
    return Contest("pretrain", "tokens", contenders, {"peer": 1.5}, 100.0, 0.55, memory_limits={"peer": 0.65})


def test_what_is_told_of_a_contest_by_hand(contest):
    measured = [Measured("gpt1", [60, 80], 2**31), Measured("peer", [30, 40], 2**30), Measured("bare", [1e4, 1e4], 0)]
    measured[2] = Measured("bare products", measured[2].rates, 2**29)
    ours, peer, bare = facts_of(contest, measured)
    assert (ours["median"], ours["ratio"], ours["floor"], ours["share_of_ceiling"]) == (70, None, None, 0.6857)
    assert (peer["ratio"], peer["floor"], peer["share_of_ceiling"]) == (2.0, 1.5, 0.3429)
    assert (bare["ratio"], bare["share_of_ceiling"]) == (None, None)
    assert rows_of(contest, measured) == [
        ["gpt1", "70 tokens", "60 - 80", "", "", "69% (floor 55%)", "2.00 GB"],
        ["peer", "35 tokens", "30 - 40", "2.00 x", "1.5 x", "34%", "1.00 GB (gpt1: 2.00 of it, limit 0.65)"],
        ["bare products", "10k FLOP", "10k - 10k", "", "", "", "0.50 GB"],
    ]
    bare_of_all = {"flops": None, "share_floor": None, "floors": {}, "memory_limits": {}}
    elsewhere = dataclasses.replace(contest, **bare_of_all, in_subprocesses=True)
    found = table_of(elsewhere, measured[:2])  # no memory is told of, and blank columns are left out
    assert found.header == ["contender", "a second", "range", "gpt1 is"]
    assert found.rows == [["gpt1", "70 tokens", "60 - 80", ""], ["peer", "35 tokens", "30 - 40", "2.00 x"]]
    assert [fact["peak_memory_bytes"] for fact in facts_of(elsewhere, measured[:2])] == [None, None]


def all_contests() -> Iterator[Contest]:
    for device in ("cpu", "cuda"):
        for what in BENCHMARKS:
            yield from contests_of(what, Setting(device, peer=True))


def test_every_contender_is_a_function_that_takes_its_options_and_every_floor_is_anothers():
    names = [contest.name for contest in all_contests()]
    assert len(names) > 15
    for contest in all_contests():
        assert len({contender.name for contender in contest.contenders}) == len(contest.contenders)
        assert contest.floors.keys() <= {contender.name for contender in contest.contenders[1:]}
        for contender in contest.contenders:
            module, _, function = contender.make.partition(":")
            inspect.signature(getattr(importlib.import_module(module), function)).bind(**contender.options)


@pytest.mark.parametrize(
    ("make", "options", "units"),
    [
        ("on_corpus", {"tokens": 10**6}, 10 * 32 * 64),
        ("on_examples", {"examples": 100}, 10 * 32 * 16),
        ("on_context", {"context": 128}, 10 * 4096),
    ],
)
def test_every_job_of_growing_work_can_be_done(make, options, units):
    from gpt1cli.bench import scaling

    assert getattr(scaling, make)(device="cpu", **options)() == units


def test_attention_s_share_of_the_operations_by_hand():
    """Tiny: 2 blocks of 12 x 128^2 weights and a table of 1,000 x 128; 2,048 tokens are attended to."""
    from gpt1cli.bench.scaling import share

    weights, attention = 6 * (2 * 12 * 128**2 + 1_000 * 128), 12 * 2 * 128 * 2048
    assert share(2048) == f" (attention {attention / (weights + attention):.0%} of the operations)"


TRAINING, SPEAKING = "gpt1cli.bench.training:", "gpt1cli.bench.speaking:"
CHOICE = {"questions": 1, "shared": 9, "answers": 2, "length": 3}
SMALL = [
    (TRAINING + "our_pretraining", {"batch": 2, "context": 8, "dropout": 0.1}, 16),
    (TRAINING + "their_pretraining", {"batch": 2, "context": 8, "dropout": 0.1, "precision": "bf16"}, 16),
    (TRAINING + "our_fine_tuning", {"batch": 2}, 2),
    (TRAINING + "their_fine_tuning", {"batch": 2, "precision": "fp32"}, 2),
    (TRAINING + "our_choice", {**CHOICE, "train": True, "apart": False}, 1),
    (TRAINING + "our_choice", {**CHOICE, "train": False, "apart": True}, 1),
    (TRAINING + "their_choice", {**CHOICE, "train": True, "precision": "bf16"}, 1),
    (TRAINING + "their_choice", {**CHOICE, "train": False, "precision": "bf16"}, 1),
    (SPEAKING + "our_scores", {"shared": 9, "queries": 3, "length": 2, "kept": True}, 3),
    (SPEAKING + "our_scores", {"shared": 9, "queries": 3, "length": 2, "kept": False}, 3),
    (SPEAKING + "their_scores", {"shared": 9, "queries": 3, "length": 2}, 3),
    (SPEAKING + "our_text", {"prompt": 4, "tokens": 3, "precision": "bf16", "samples": 2}, 6),
    (SPEAKING + "their_text", {"prompt": 4, "tokens": 3}, 3),
]


@pytest.mark.parametrize(("make", "options", "units"), SMALL, ids=[make.partition(":")[2] for make, _, _ in SMALL])
def test_every_job_can_be_done(make, options, units):
    module, _, function = make.partition(":")
    torch.manual_seed(0)
    job = getattr(importlib.import_module(module), function)(device="cpu", model="mini", **options)
    assert job() == units and job() == units


def test_the_jobs_of_the_tokenizer_read_the_whole_text(tmp_path):
    from gpt1cli.bench import tokenizing

    (tmp_path / "text.txt").write_text("\n\n".join(["The sea was calm, and so was she. " * 20] * 40))
    source = {"text": str(tmp_path / "text.txt"), "vocabulary": None}
    texts = tokenizing.documents(source["text"])
    whole = (tmp_path / "text.txt").stat().st_size
    assert len(texts) > 5 and "\n\n".join(texts) == (tmp_path / "text.txt").read_text()
    assert whole - 2 * len(texts) <= tokenizing.ours(**source, processes=1, warm=True)() <= whole
    assert tokenizing.ours(**source, processes=1, warm=False)() == tokenizing.theirs(**source)()
    assert 0 < tokenizing.plain(**source)() < whole / 8


@pytest.mark.slow
def test_bench_writes_a_table_and_its_figures(tmp_path, capsys):
    words = ["what=[startup]", "rounds=1", "peer=none", "runtime.progress=none", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(["bench", *words]) == 0
    found = json.loads((tmp_path / "run" / "bench.json").read_text())
    assert [contest["name"] for contest in found["contests"]] == ["startup, --help", "startup, --cfg job"]
    assert [one["name"] for one in found["contests"][0]["contenders"]] == ["gpt1", "python -c pass"]
    assert found["rounds"] == 1 and found["machine"]["torch"] == torch.__version__
    assert "startup, --cfg job" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.md").read_text()
    assert "## startup, --help" in page and "| an empty Hydra app |" in page
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("runtime.precision=fp32", "each contender's own"),
        ("runtime.compile=true", "each contender's own"),
        pytest.param("runtime.device=cuda", "no CUDA device here", marks=no_cuda),
    ],
)
def test_what_a_benchmark_cannot_heed_is_refused(tmp_path, capsys, word, message):
    assert main(["bench", "what=[startup]", "peer=none", word, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err


def test_a_text_that_is_not_there_is_told(tmp_path, capsys):
    assert main(["bench", "what=[tokenize]", "peer=none", "input=/no/such", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "input=/no/such: no such file; a text file to tokenise is wanted" in capsys.readouterr().err
