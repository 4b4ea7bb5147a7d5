"""Access to data sets, vocabularies and weights: the Hugging Face hub, its caches, or a folder with the same layout.

With hub=DIR everything is read from DIR/org/name/... and from nowhere else. Without it, the caches are used first, then
the network: data sets are prepared in CACHE/datasets, files are stored in CACHE/hub (the raw downloads of a data set
stay in Hugging Face's own cache, HF_HOME). Code that comes with a data set is never executed.

Longer than 300 lines: all access to the network and its failures.
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

CHECK_SECONDS = 3.0  # timeout of the one short check
STALL_SECONDS = 10.0  # timeout of each request; the library retries five times, then the error is reported
ALL_SUBSETS = "*"  # means every subset of a data set
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

HUB_FOLDER_HINT = (
    "hub=DIR: read from a folder with the layout of the Hugging Face hub, DIR/org/name/..., not the network"
)
OWN_TEXT_HINT = "corpus=text corpus.path=FILE, FOLDER or GLOB: use your own text"
RETRY_HINT = f"try again (no partial file is kept), or use {HUB_FOLDER_HINT}"
DEMO_HINT = (
    "run the demo, which needs no download: gpt1 pretrain model=tiny corpus=demo, gpt1 finetune task=demo_sentiment,"
)
DEMO_HINT += " gpt1 sweeps study=demo"


# --- what a run needs -------------------------------------------------------------------------------------------------


class UnknownSubset(UserError):
    """The data set exists, but not the requested subset."""


@dataclass(frozen=True)
class Requirement:
    """A data set that a run needs, or with `filename` a file of a model repository (any one of several names)."""

    purpose: str
    repo: str
    subset: str | None
    filename: str | tuple[str, ...] | None
    remedies: tuple[str, ...]

    def __str__(self) -> str:
        subset = {None: "", ALL_SUBSETS: "all its subsets"}.get(self.subset, f"subset {self.subset}")
        part = " or ".join(_as_tuple(self.filename)) if self.filename else subset
        return f"{self.repo}{part and ', ' + part} ({self.purpose})"


def task_requirements(task: TaskConfig) -> list[Requirement]:
    """Return the task's data set, in the subsets of its main splits; nothing if it reads the user's files."""
    if task.repo is None or task.path:
        return []
    main = [split for name, split in task.splits.items() if "_" not in name]  # valid_high may be absent
    subsets = [split.rpartition("/")[0] or task.subset for split in main]
    remedies = (task.remedy,) if task.remedy else ()
    return [
        Requirement(f"data set of task={task.name}", task.repo, subset, None, remedies)
        for subset in dict.fromkeys(subsets)
    ]


def corpus_requirements(corpus: CorpusConfig) -> list[Requirement]:
    """Return the data set of the corpus, if it is from the hub."""
    if corpus.source != "hub" or corpus.repo is None:
        return []
    return [Requirement(f"corpus={corpus.name}", corpus.repo, corpus.subset, None, (OWN_TEXT_HINT,))]


def tokenizer_requirements(tokenizer: TokenizerConfig) -> list[Requirement]:
    """Return the files of a published vocabulary; nothing if the tokenizer is trained."""
    if tokenizer.source != "hub" or tokenizer.repo is None:
        return []
    alternative = "bytes" if tokenizer.level == "bytes" else "bpe"
    remedy = f"tokenizer={alternative} with gpt1 pretrain: train merges on the corpus"
    purpose = f"vocabulary of tokenizer={tokenizer.name}"
    return [Requirement(purpose, tokenizer.repo, None, name, (remedy,)) for name in ("vocab.json", "merges.txt")]


def check_requirements(requirements: Sequence[Requirement], hub: str | None, cache: str | Path) -> None:
    """Check before any work that all requirements are available. Raises UserError: all missing ones, and remedies."""
    if hub is not None and not Path(hub).is_dir():
        problem = "this is a file" if Path(hub).exists() else "no such folder"
        raise UserError(
            f"hub={hub}: {problem}; give a folder with the layout of the Hugging Face hub: DIR/org/name/..."
        )
    missing = {item: reason for item in requirements if (reason := missing_reason(item, hub, cache))}
    if not missing:
        return
    if hub is not None:
        head = f"This run needs the following, which hub={hub} does not have:"
    elif error := connection_error():
        head = f"The Hugging Face hub cannot be reached ({error}), and this machine does not have what this run needs:"
    else:
        return  # the download either works or reports its own error
    lines = [f"  {item}" + (f": {reason}" if hub is not None else "") for item, reason in missing.items()]
    remedies = dict.fromkeys([HUB_FOLDER_HINT, *(remedy for item in missing for remedy in item.remedies), DEMO_HINT])
    raise UserError("\n".join([head, *lines, "What you can do:", *(f"  {remedy}" for remedy in remedies)]))


def missing_reason(requirement: Requirement, hub: str | None, cache: str | Path) -> str | None:
    """Return why the requirement is not available in the folder `hub` or else in the caches; None if it is."""
    repo, name, subset = requirement.repo, requirement.filename, requirement.subset
    if hub is None:
        path = _cached_file(repo, name, cache) if name else _prepared_folder(repo, subset, cache)
        return None if path else "not in the caches"
    try:
        if name:
            find_file(repo, name, hub, cache)
        elif subset == ALL_SUBSETS:
            subset_names(repo, hub)
        else:
            _dataset_builder(repo, subset, hub, cache)
    except UserError as error:
        return str(error)
    return None


def connection_error() -> str | None:
    """Return why the Hugging Face hub (HF_ENDPOINT) does not answer; None if it does."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    results: list[str | None] = []

    def connect() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=CHECK_SECONDS)
            results.append(None)
        except Exception as error:  # clients and proxies raise many classes
            results.append(f"{constants.ENDPOINT}: {_root_cause(error)}")

    # NOTE: if a name server does not answer, the client blocks far beyond its timeout: use a thread and abandon it.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CHECK_SECONDS)
    return results[0] if results else f"{constants.ENDPOINT}: no answer within {CHECK_SECONDS:g} seconds"


# --- files of a model -------------------------------------------------------------------------------------------------


def find_file(repo: str, filename: str | Sequence[str], hub: str | None, cache: str | Path) -> Path:
    """Return the path of a file of a model repository, or of the first of several names that exists.

    All files of a repository are in one folder. Raises UserError if none exists or the download fails.
    """
    if hub is not None:
        paths = [path for name in _as_tuple(filename) if (path := Path(hub, repo, name)).is_file()]
        if paths:
            return paths[0]
        raise UserError(f"{Path(hub, repo)}: no file {' or '.join(_as_tuple(filename))}")
    return _cached_file(repo, filename, cache) or _download_file(repo, filename, cache)


def _cached_file(repo: str, filename: str | Sequence[str], cache: str | Path) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    paths = (try_to_load_from_cache(repo, name, cache_dir=_file_cache(repo, cache)) for name in _as_tuple(filename))
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def _download_file(repo: str, filename: str | Sequence[str], cache: str | Path) -> Path:
    _limit_timeouts()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for name in _as_tuple(filename):
        try:
            return Path(hf_hub_download(repo, name, cache_dir=_file_cache(repo, cache)))
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # the library raises a dozen classes
            raise UserError(f"{repo}, {name}: {_root_cause(error)}\n{RETRY_HINT}") from error
    raise UserError(f"{repo}: no file {' or '.join(_as_tuple(filename))}")


def _file_cache(repo: str, cache: str | Path) -> Path:
    """Return the cache folder of a repository: ours, unless only Hugging Face's own cache has the repository."""
    from huggingface_hub import constants

    ours, shared = Path(cache, "hub"), Path(constants.HF_HUB_CACHE)
    folder = "models--" + repo.replace("/", "--")
    return shared if (shared / folder).is_dir() and not (ours / folder).is_dir() else ours


def _as_tuple(filename: str | Sequence[str]) -> tuple[str, ...]:
    return (filename,) if isinstance(filename, str) else tuple(filename)


# --- data sets --------------------------------------------------------------------------------------------------------


def load_split(repo: str, subset: str | None, split: str, hub: str | None, cache: str | Path) -> Dataset:
    """Return a split of a data set, memory-mapped. Raises UserError if it cannot be read or does not exist."""
    place, builder = _describe_place(repo, subset, hub), _dataset_builder(repo, subset, hub, cache)
    try:
        builder.download_and_prepare()
        names = list(builder.info.splits)
        if split in names:
            return builder.as_dataset(split=split)
    except Exception as error:  # the readers raise many classes; all mean bad data or a bad connection
        damaged = _unreadable_file(builder)
        message = f"{damaged or place}: cannot be read ({_root_cause(error)})"
        raise UserError(message if hub is not None else f"{message}\n{RETRY_HINT}") from error
    raise UserError(f"{place}: no split {split}; its splits: {', '.join(names)}")


def split_names(repo: str, subset: str | None, hub: str | None, cache: str | Path) -> list[str]:
    """Return the data set's own names of its splits."""
    builder = _dataset_builder(repo, subset, hub, cache)
    return [str(name) for name in builder.config.data_files or builder.info.splits or ()]


def dataset_fingerprint(dataset: Dataset) -> str:
    """Return a digest of column names, types and values, which does not depend on where they were read."""
    digest = hashlib.sha256(repr(dataset.features).encode())
    for rows in dataset.with_format("arrow").iter(batch_size=256):
        compact = rows.take(list(range(len(rows)))).combine_chunks()  # without the rows around the slice
        for batch in compact.to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _quiet_datasets() -> Any:
    """Import the `datasets` library and silence it: our own errors report what matters."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    _limit_timeouts()
    return datasets


@functools.cache  # once, because it closes the open connections
def _limit_timeouts() -> None:
    """Make the hub's library wait at most STALL_SECONDS for an answer, instead of a minute or for ever."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def shorten(request: Any) -> None:
        timeouts = request.extensions.get("timeout", {})
        phases = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {
            phase: min(timeouts.get(phase) or STALL_SECONDS, STALL_SECONDS) for phase in phases
        }

    def build_client() -> Any:
        client = default_client_factory()
        client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], shorten]}
        return client

    set_client_factory(build_client)


def _dataset_builder(repo: str, subset: str | None, hub: str | None, cache: str | Path) -> DatasetBuilder:
    """Return the library's builder of a data set; only its description is downloaded yet."""
    datasets = _quiet_datasets()
    if hub is None and (prepared := _prepared_folder(repo, subset, cache)):
        from datasets.packaged_modules.cache.cache import Cache

        root, name, (config, version, key) = prepared.parents[3], repo.split("/")[-1], prepared.parts[-3:]
        return Cache(str(root), dataset_name=name, config_name=config, version=version, hash=key, repo_id=repo)
    path, prepared_in, folder = repo, Path(cache, "datasets"), Path(hub or "", repo)
    if hub is not None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        path, prepared_in = str(folder.resolve()), prepared_in / _folder_key(folder)
    elif folder.exists():  # the library would read it instead of the hub
        raise UserError(f"{repo}: {Path.cwd()} has a folder of this name; use hub=. to read it, or run gpt1 elsewhere")
    try:
        return datasets.load_dataset_builder(path, subset, cache_dir=str(prepared_in))
    except Exception as error:  # see `load_split`
        subsets = _list_subsets(path) if isinstance(error, ValueError) else []
        if subsets and subset not in subsets:
            problem = f"no subset {subset}" if subset else "a subset must be named"
            raise UnknownSubset(f"{path}: {problem}; its subsets: {', '.join(subsets)}") from error
        message = f"{_describe_place(repo, subset, hub)}: cannot be read ({_root_cause(error)})"
        raise UserError(message if hub is not None else f"{message}\n{RETRY_HINT}") from error


def _prepared_folder(repo: str, subset: str | None, cache: str | Path) -> Path | None:
    """Return the folder of a data set that was downloaded completely, in our cache or Hugging Face's; else None."""
    datasets = _quiet_datasets()
    from datasets.naming import camelcase_to_snakecase

    *organisation, name = repo.split("/")
    folder = "___".join([*organisation, camelcase_to_snakecase(name)])
    for root in (Path(cache, "datasets"), Path(datasets.config.HF_DATASETS_CACHE)):
        complete = [info.parent for info in (root / folder / (subset or "default")).glob("*/*/dataset_info.json")]
        complete = [path for path in complete if path.suffix != ".incomplete"]
        if complete:
            return max(complete, key=lambda path: path.stat().st_mtime)
    return None


def _folder_key(folder: Path) -> str:
    """Return a name for the state of a folder.

    NOTE: the library's own key depends only on the folder's README: if other files changed, it would use the old ones.
    """
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state = path.stat()
            digest.update(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return f"{folder.parent.name}___{folder.name}-{digest.hexdigest()[:16]}"


def subset_names(repo: str, hub: str | None) -> list[str]:
    """Return the names of a data set's subsets. Raises UserError if they cannot be listed."""
    if names := _list_subsets(str(Path(hub, repo).resolve()) if hub is not None else repo):
        return names
    raise UserError(f"{_describe_place(repo, None, hub)}: its subsets cannot be listed; name one with task.subset=NAME")


def _list_subsets(path: str) -> list[str]:
    try:
        return _quiet_datasets().get_dataset_config_names(path)
    except Exception:  # the first error says more
        return []


def _describe_place(repo: str, subset: str | None, hub: str | None) -> str:
    return (repo if hub is None else str(Path(hub, repo))) + (f", subset {subset}" if subset else "")


def _unreadable_file(builder: DatasetBuilder) -> str | None:
    """Return the first parquet file of a data set that cannot be read to its end; None if all can."""
    import pyarrow.parquet

    paths: Iterable[str] = (path for paths in (builder.config.data_files or {}).values() for path in paths)
    for path in paths:
        if path.endswith(".parquet") and Path(path).is_file():
            try:
                for _ in pyarrow.parquet.ParquetFile(path).iter_batches():
                    pass
            except Exception:  # Arrow raises OSError, ValueError and classes of its own
                return path
    return None


def _root_cause(error: BaseException) -> str:
    """Return the message of the innermost cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
