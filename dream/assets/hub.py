"""Hub references: is it at hand, and if not, one line that says what to do, in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dream.errors import DreamError

FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]  # what a model folder needs; no pickles
TIMEOUT = 5  # seconds for one question to the hub
INSTEAD = "or run -S model.size=tiny, which needs no hub"


def split_revision(reference: str) -> tuple[str, str | None]:
    """Split a hub reference.

    >>> split_revision("owner/name@v1"), split_revision("owner/name")
    (('owner/name', 'v1'), ('owner/name', None))
    """
    name, _, revision = reference.partition("@")
    return name, revision or None


def commit(reference: str) -> str:
    """The commit that a hub model was resolved to: the name of its snapshot's folder in the local cache.

    Raises:
        DreamError: as :func:`download`.
    """
    return download(reference).name


def cached(reference: str) -> Path | None:
    """Snapshot folder of a hub model or adapter that is complete in the local Hugging Face cache, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, revision = split_revision(reference)
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    if (folder / "adapter_config.json").exists():
        return folder if (folder / "adapter_model.safetensors").exists() else None
    index = folder / "model.safetensors.index.json"
    wanted = {"model.safetensors"}
    if index.exists():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    complete = (folder / "config.json").exists() and all((folder / file).exists() for file in wanted)
    return folder if complete else None


def download(reference: str) -> Path:
    """Snapshot folder of a hub model: from the cache, else downloaded (safetensors only)."""
    folder = cached(reference)
    if folder:
        return folder
    check_model(reference)
    from huggingface_hub import snapshot_download

    name, revision = split_revision(reference)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except Exception as error:  # the HTTP library and its errors differ between releases of huggingface_hub
        _refuse_busy(f"model {reference}", error)
        raise DreamError(f"model {reference} could not be downloaded ({_first(error)})", "Run again: it goes on") from None


def check_model(reference: str) -> None:
    """Return if a hub model is in the cache or can be downloaded; :class:`DreamError` otherwise."""
    if cached(reference):
        return
    name, revision = split_revision(reference)
    info = _ask("model", name, revision)
    if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or []):
        raise DreamError(f"model {reference} has no safetensors weights on the hub", "Choose another model or revision")


def check_dataset(name: str, revision: str | None = None, wanted_by: str = "", instead: str = INSTEAD) -> None:
    """Return if a hub data set is in the cache, at its revision, or can be reached; :class:`DreamError` otherwise."""
    snapshots = _cache_of(name) / "snapshots"
    if (snapshots / revision if revision else snapshots).exists():
        return
    _ask("dataset", name, revision, wanted_by, instead)


def dataset_commit(name: str) -> str:
    """The commit of a hub data set's main branch: that of a downloaded one, else the hub's; asked as :func:`check_dataset`."""
    downloaded = _cache_of(name) / "refs" / "main"
    return downloaded.read_text(encoding="utf-8").strip() if downloaded.exists() else _ask("dataset", name, None).sha


def _cache_of(dataset: str) -> Path:
    """Where the local Hugging Face cache keeps a data set."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}"


def _ask(kind: str, name: str, revision: str | None, wanted_by: str = "", instead: str = INSTEAD) -> Any:
    """Metadata of a hub repository, asked once with a short time limit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    thing = f"{'data set' if kind == 'dataset' else 'model'} {name}{f'@{revision}' if revision else ''}{wanted_by}"
    repository = f"{'--repo-type dataset ' if kind == 'dataset' else ''}{name}{f' --revision {revision}' if revision else ''}"
    try:
        api = HfApi()
        return (api.dataset_info if kind == "dataset" else api.model_info)(name, revision=revision, timeout=TIMEOUT)
    except GatedRepoError:
        raise DreamError(f"{thing} is gated", f"Accept its licence on the hub and run `hf auth login`, {instead}") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise DreamError(
            f"{thing} is not on the hub, or it is private", "Check the name and revision, or run `hf auth login`"
        ) from None
    except Exception as error:  # the HTTP library and its errors differ between releases of huggingface_hub
        _refuse_busy(thing, error)
        raise DreamError(
            f"{thing} is not in the local Hugging Face cache and the hub cannot be reached ({type(error).__name__})",
            f"Run on a machine with network access, download it first with `hf download {repository}`, {instead}",
        ) from None


def _refuse_busy(thing: str, error: Exception) -> None:
    """:class:`DreamError` if the hub is there and refuses for now: too many questions, or a fault of its own."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status == 429:
        raise DreamError(f"{thing}: the hub is asked too often (429)", "Wait some minutes, then run again") from None
    if status >= 500:
        raise DreamError(f"{thing}: the hub has a fault of its own ({status})", "Wait some minutes, then run again") from None


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
