"""The door to data sets, vocabularies and weights: the Hugging Face hub, its caches, or a folder laid out like it.

With hub=DIR everything is read from DIR/org/name/... and nothing else. Without, what the caches hold is used as it is,
and the network is asked for the rest: data sets are prepared under CACHE/datasets, files kept under CACHE/hub (the raw
downloads of a data set stay in Hugging Face's own cache, HF_HOME). No code that comes with a data set is ever executed.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt1cli.config.data import CorpusConfig, TokenizerConfig
from gpt1cli.config.schema import UserError
from gpt1cli.config.task import TaskConfig

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

PATIENCE = 3.0  # seconds the hub has to answer the one short check
STALL = 10.0  # seconds in which it has to send something, each time that it is asked: five times again, then it is told
ALL = "*"  # the subset that stands for every subset of a data set
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

HUB_FOLDER = "hub=DIR: a folder laid out like the Hugging Face hub, DIR/org/name/..., used instead of the network"
OWN_TEXT = "corpus=text corpus.path=FILE, FOLDER or GLOB: text of your own"
AGAIN = f"try again, nothing half is kept; or {HUB_FOLDER}"
DEMO = "the demo, which needs nothing: gpt1 pretrain model=tiny corpus=demo, gpt1 finetune task=demo_sentiment,"
DEMO += " gpt1 sweeps study=demo"


# --- what a run needs -------------------------------------------------------------------------------------------------


class NoSubset(UserError):
    """The data set is there, but not in the subset that was asked for."""


@dataclass(frozen=True)
class Need:
    """Something a run reads from outside: a data set, or with `filename` a file of a model (of several, any one)."""

    what: str
    repo: str
    subset: str | None
    filename: str | tuple[str, ...] | None
    ways_out: tuple[str, ...]

    def __str__(self) -> str:
        subset = {None: "", ALL: "all its subsets"}.get(self.subset, f"subset {self.subset}")
        part = " or ".join(_names(self.filename)) if self.filename else subset
        return f"{self.repo}{part and ', ' + part} ({self.what})"


def task_needs(task: TaskConfig) -> list[Need]:
    """The task's data set, in the subsets of its main splits; none where it reads files of the user's own."""
    if task.repo is None or task.path:
        return []
    main = [split for name, split in task.splits.items() if "_" not in name]  # valid_high may be absent
    subsets = [split.rpartition("/")[0] or task.subset for split in main]
    ways = (task.remedy,) if task.remedy else ()
    return [Need(f"data set of task={task.name}", task.repo, subset, None, ways) for subset in dict.fromkeys(subsets)]


def corpus_needs(corpus: CorpusConfig) -> list[Need]:
    """The corpus' data set, where it is one of the hub."""
    if corpus.source != "hub" or corpus.repo is None:
        return []
    return [Need(f"corpus={corpus.name}", corpus.repo, corpus.subset, None, (OWN_TEXT,))]


def tokenizer_needs(tokenizer: TokenizerConfig) -> list[Need]:
    """The published vocabulary, where the tokenizer is not trained in place."""
    if tokenizer.source != "hub" or tokenizer.repo is None:
        return []
    trained = "bytes" if tokenizer.level == "bytes" else "bpe"
    way = f"tokenizer={trained} with gpt1 pretrain: merges trained on the corpus"
    what = f"vocabulary of tokenizer={tokenizer.name}"
    return [Need(what, tokenizer.repo, None, name, (way,)) for name in ("vocab.json", "merges.txt")]


def require(needs: Sequence[Need], hub: str | None, cache: str | Path) -> None:
    """One short check before any work; UserError lists all that cannot be had, together, and each way out once."""
    if hub is not None and not Path(hub).is_dir():
        kind = "this is a file" if Path(hub).exists() else "no such folder"
        raise UserError(f"hub={hub}: {kind}; a folder laid out like the Hugging Face hub is wanted: DIR/org/name/...")
    missing = {need: reason for need in needs if (reason := amiss(need, hub, cache))}
    if not missing:
        return
    if hub is not None:
        head = f"hub={hub} lacks what this run needs:"
    elif silence := unreachable():
        head = f"This run needs what is not on this machine, and the Hugging Face hub cannot be reached ({silence}):"
    else:
        return  # the network has it, or says why not when it is asked
    lines = [f"  {need}" + (f": {reason}" if hub is not None else "") for need, reason in missing.items()]
    ways = dict.fromkeys([HUB_FOLDER, *(way for need in missing for way in need.ways_out), DEMO])
    raise UserError("\n".join([head, *lines, "Ways out:", *(f"  {way}" for way in ways)]))


def amiss(need: Need, hub: str | None, cache: str | Path) -> str | None:
    """Why the need is not at hand; None when it is."""
    if hub is None:
        name, subset = need.filename, need.subset
        found = _downloaded(need.repo, name, cache) if name else _prepared(need.repo, subset, cache)
        return None if found else "not in the caches"
    try:
        if need.filename:
            file(need.repo, need.filename, hub, cache)
        elif need.subset == ALL:
            subsets(need.repo, hub)
        else:
            _builder(need.repo, need.subset, hub, cache)
    except UserError as error:
        return str(error)
    return None


def unreachable() -> str | None:
    """Why the Hugging Face hub (HF_ENDPOINT) does not answer; None when it does."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    answer: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
            answer.append(None)
        except Exception as error:  # any client, any proxy, any reason: it cannot be reached
            answer.append(f"{constants.ENDPOINT}: {_reason(error)}")

    # NOTE a name server that does not answer holds a client far beyond its own timeout, so a thread is left to it
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return answer[0] if answer else f"{constants.ENDPOINT}: no answer within {PATIENCE:g} seconds"


# --- files of a model -------------------------------------------------------------------------------------------------


def file(repo: str, filename: str | Sequence[str], hub: str | None, cache: str | Path) -> Path:
    """A file of a model repository, or the first there is of several; all files of one repository lie in one folder."""
    if hub is not None:
        found = [path for name in _names(filename) if (path := Path(hub, repo, name)).is_file()]
        if found:
            return found[0]
        raise UserError(f"{Path(hub, repo)}: no {' or '.join(_names(filename))} there")
    return _downloaded(repo, filename, cache) or _download(repo, filename, cache)


def _downloaded(repo: str, filename: str | Sequence[str], cache: str | Path) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo, name, cache_dir=_file_cache(repo, cache)) for name in _names(filename))
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _download(repo: str, filename: str | Sequence[str], cache: str | Path) -> Path:
    _bound_waiting()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for name in _names(filename):
        try:
            return Path(hf_hub_download(repo, name, cache_dir=_file_cache(repo, cache)))
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # refused, gated, cut off: the library has a dozen classes for it
            raise UserError(f"{repo}, {name}: {_reason(error)}\n{AGAIN}") from error
    raise UserError(f"{repo}: no {' or '.join(_names(filename))} there")


def _file_cache(repo: str, cache: str | Path) -> Path:
    """Where the files of a repository are kept: our cache, unless only Hugging Face's own knows the repository."""
    from huggingface_hub import constants

    ours, shared = Path(cache, "hub"), Path(constants.HF_HUB_CACHE)
    folder = "models--" + repo.replace("/", "--")
    return shared if (shared / folder).is_dir() and not (ours / folder).is_dir() else ours


def _names(filename: str | Sequence[str]) -> tuple[str, ...]:
    return (filename,) if isinstance(filename, str) else tuple(filename)


# --- data sets --------------------------------------------------------------------------------------------------------


def dataset(repo: str, subset: str | None, split: str, hub: str | None, cache: str | Path) -> Dataset:
    """A split of a data set, memory-mapped. UserError where it cannot be had, names what is there instead."""
    where, builder = _where(repo, subset, hub), _builder(repo, subset, hub, cache)
    try:
        builder.download_and_prepare()
        names = list(builder.info.splits)
        if split in names:
            return builder.as_dataset(split=split)
    except Exception as error:  # whatever the readers raise: the data or the way to it is at fault
        broken = _unreadable_file(builder)
        told = f"{broken or where}: cannot be read ({_reason(error)})"
        raise UserError(told if hub is not None else f"{told}\n{AGAIN}") from error
    raise UserError(f"{where}: no split {split}; there: {', '.join(names)}")


def split_names(repo: str, subset: str | None, hub: str | None, cache: str | Path) -> list[str]:
    """The splits of a data set, under the data set's own names."""
    builder = _builder(repo, subset, hub, cache)
    return [str(name) for name in builder.config.data_files or builder.info.splits or ()]


def fingerprint(dataset: Dataset) -> str:
    """A digest of column names, types and values: the same rows give the same one, wherever they were read from."""
    digest = hashlib.sha256(repr(dataset.features).encode())
    for rows in dataset.with_format("arrow").iter(batch_size=256):
        compact = rows.take(list(range(len(rows)))).combine_chunks()  # a slice would bring its surroundings along
        for batch in compact.to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _library() -> Any:
    """The `datasets` library, silent: what matters is told by our own errors."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    _bound_waiting()
    return datasets


@functools.cache  # once: it closes the connections that are in use
def _bound_waiting() -> None:
    """Have the hub's library wait STALL seconds for an answer, where it would wait a minute, or for ever."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def shorten(request: Any) -> None:
        waits = request.extensions.get("timeout", {})
        kinds = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {kind: min(waits.get(kind) or STALL, STALL) for kind in kinds}

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks = {**made.event_hooks, "request": [*made.event_hooks["request"], shorten]}
        return made

    set_client_factory(client)


def _builder(repo: str, subset: str | None, hub: str | None, cache: str | Path) -> DatasetBuilder:
    """The library's handle on a data set; nothing is downloaded yet, but for its description."""
    datasets = _library()
    if hub is None and (prepared := _prepared(repo, subset, cache)):
        from datasets.packaged_modules.cache.cache import Cache

        root, name, (config, version, key) = prepared.parents[3], repo.split("/")[-1], prepared.parts[-3:]
        return Cache(str(root), dataset_name=name, config_name=config, version=version, hash=key, repo_id=repo)
    path, prepared_under, folder = repo, Path(cache, "datasets"), Path(hub or "", repo)
    if hub is not None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        path, prepared_under = str(folder.resolve()), prepared_under / _key(folder)
    elif folder.exists():  # the library would take it for the hub's
        raise UserError(f"{repo}: a folder of that name lies in {Path.cwd()}: name it by hub=., or start elsewhere")
    try:
        return datasets.load_dataset_builder(path, subset, cache_dir=str(prepared_under))
    except Exception as error:  # see `dataset`
        subsets = _subsets(path) if isinstance(error, ValueError) else []
        if subsets and subset not in subsets:
            amiss = f"no subset {subset}" if subset else "a subset must be named"
            raise NoSubset(f"{path}: {amiss}; there: {', '.join(subsets)}") from error
        told = f"{_where(repo, subset, hub)}: cannot be read ({_reason(error)})"
        raise UserError(told if hub is not None else f"{told}\n{AGAIN}") from error


def _prepared(repo: str, subset: str | None, cache: str | Path) -> Path | None:
    """The folder of a data set that came from the network before, whole, in our cache or in Hugging Face's own."""
    datasets = _library()
    from datasets.naming import camelcase_to_snakecase

    *organisation, name = repo.split("/")
    folder = "___".join([*organisation, camelcase_to_snakecase(name)])
    for root in (Path(cache, "datasets"), Path(datasets.config.HF_DATASETS_CACHE)):
        whole = [info.parent for info in (root / folder / (subset or "default")).glob("*/*/dataset_info.json")]
        whole = [path for path in whole if path.suffix != ".incomplete"]
        if whole:
            return max(whole, key=lambda path: path.stat().st_mtime)
    return None


def _key(folder: Path) -> str:
    """A name for the state of a folder.

    NOTE the library's own key follows from the folder's README alone: other files beside the same one would be taken
    for those prepared before.
    """
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state = path.stat()
            digest.update(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return f"{folder.parent.name}___{folder.name}-{digest.hexdigest()[:16]}"


def subsets(repo: str, hub: str | None) -> list[str]:
    """The names of a data set's subsets, as the hub lists them. UserError where they cannot be had."""
    if names := _subsets(str(Path(hub, repo).resolve()) if hub is not None else repo):
        return names
    raise UserError(f"{_where(repo, None, hub)}: its subsets cannot be listed; name one by task.subset=")


def _subsets(path: str) -> list[str]:
    try:
        return _library().get_dataset_config_names(path)
    except Exception:  # then the first error tells more
        return []


def _where(repo: str, subset: str | None, hub: str | None) -> str:
    return (repo if hub is None else str(Path(hub, repo))) + (f", subset {subset}" if subset else "")


def _unreadable_file(builder: DatasetBuilder) -> str | None:
    """The first parquet file of a folder that cannot be read to its end."""
    import pyarrow.parquet

    files: Iterable[str] = (file for files in (builder.config.data_files or {}).values() for file in files)
    for path in files:
        if path.endswith(".parquet") and Path(path).is_file():
            try:
                for _ in pyarrow.parquet.ParquetFile(path).iter_batches():
                    pass
            except Exception:  # Arrow raises OSError, ValueError and classes of its own
                return path
    return None


def _reason(error: BaseException) -> str:
    """The innermost cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
