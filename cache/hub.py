"""hf://datasets/org/name[@revision]: a cache as a data set on the Hugging Face hub, by huggingface_hub itself.

A revision is resolved to a commit once and everything is read from that commit. A push uploads the files, then, as its last
commit, manifest and dataset card together. Who is logged in is huggingface_hub's business (HF_TOKEN, `hf auth login`).
Not for other URLs (remote.py) nor for the card's text (card.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cache.card import card_text
from cache.manifest import MANIFEST, Manifest
from cache.remote_http import HttpRemote
from cache.remote_manifest import manifest_bytes, parsed
from cache.transfer import File, files_of, part_name
from shared.errors import RunError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(.+))?")
OWN_FILES = {".gitattributes", "README.md", MANIFEST}  # what a data set may hold beside the manifest's files
SNAPSHOT = "snapshot"  # folder inside a pull's work folder


def parse(url: str) -> tuple[str, str | None]:
    """(org/name, revision) of a hub URL.

    Raises:
        UsageError: of another form.
    """
    match = URL.fullmatch(url.rstrip("/"))
    if match is None:
        raise UsageError(
            url, expected="hf://datasets/org/name or hf://datasets/org/name@revision", do="correct the URL"
        )
    return match[1], match[2] and unquote(match[2])


@contextmanager
def told(url: str, kind: str = "data set") -> Iterator[None]:
    """The hub's errors as one line each.

    Raises:
        UsageError: no such data set (or whatever `kind` it is) or revision, no right to it, or offline mode.
        RunError: the hub does not answer, or refuses.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        do = "accept its terms on the hub, then `hf auth login`"
        raise UsageError(url, expected="access", got=f"a gated {kind}", do=do) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        missing = "revision" if isinstance(error, errors.RevisionNotFoundError) else kind
        do = "check the name; a private one needs `hf auth login`"
        raise UsageError(url, expected=f"a {missing} on the hub", got="none", do=do) from None
    except errors.OfflineModeIsEnabled:
        raise UsageError(url, expected="the hub", got="offline mode", do="unset HF_HUB_OFFLINE") from None
    except _network_errors() as error:
        got = getattr(getattr(error, "response", None), "status_code", None) or type(error).__name__
        raise RunError(url, expected="an answer of the hub", got=f"{got}", do="run the same command again") from None


def _network_errors() -> tuple[type[BaseException], ...]:
    """What huggingface_hub raises; the last is its HTTP library's own base, whichever that is."""
    from huggingface_hub import errors

    return (errors.HfHubHTTPError, ConnectionError, getattr(errors, "HTTPError", OSError))


class HubRemote(HttpRemote):
    """A data set at one commit, read by ranges; see Remote."""

    def __init__(self, url: str) -> None:
        from huggingface_hub import HfApi, constants, get_token

        self.repo, self.revision = parse(url)
        with told(url):
            info = HfApi().dataset_info(self.repo, revision=self.revision)
        self.commit = str(info.sha)
        token = get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        super().__init__(f"{constants.ENDPOINT}/datasets/{self.repo}/resolve/{self.commit}", headers)
        self.name = url.rstrip("/")
        self.pinned = f"hf://datasets/{self.repo}@{self.commit}"

    def snapshot(self, work: Path, wanted: list[File]) -> None:
        """Fetch whole files by snapshot_download and leave them as finished `.part` files, still to be checked."""
        from huggingface_hub import snapshot_download

        missing = [file for file in wanted if not (work / part_name(file)).is_file()]
        if not missing:
            return
        folder = work / SNAPSHOT
        with told(self.name):
            self._require_sizes(missing)
            snapshot_download(
                self.repo,
                repo_type="dataset",
                revision=self.commit,
                local_dir=folder,
                allow_patterns=[file.name for file in missing],
            )
        for file in missing:
            if (folder / file.name).is_file():
                (folder / file.name).replace(work / part_name(file))

    def _require_sizes(self, files: list[File]) -> None:
        """The hub lists what the manifest says, before anything large is fetched."""
        there = _sizes(self.repo, self.commit)
        for file in files:
            if there.get(file.name) != file.bytes:
                got, do = f"{there.get(file.name, 'no such file')}", "have it pushed again"
                raise RunError(f"{self.name}/{file.name}", expected=f"{file.bytes} bytes", got=got, do=do)


def _sizes(repo: str, revision: str | None) -> dict[str, int]:
    """Name -> bytes of every file of a data set."""
    from huggingface_hub import HfApi

    rows = HfApi().list_repo_tree(repo, repo_type="dataset", revision=revision, recursive=True)
    return {row.path: row.size for row in rows if hasattr(row, "size")}


def push_to_hub(directory: Path, url: str, manifest: Manifest) -> str:
    """Upload a cache; returns the commit that completed it.

    Raises:
        UsageError: another cache or foreign files there, or no right to write.
        RunError: the hub refuses or does not answer; the same call goes on.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repo, revision = parse(url)
    api = HfApi()
    with told(url):
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        if revision is not None:
            api.create_branch(repo, repo_type="dataset", branch=revision, exist_ok=True)
        _require_place(url, manifest)
        place: dict[str, Any] = {"repo_id": repo, "repo_type": "dataset", "revision": revision}
        names = [file.name for file in files_of(manifest)]
        what = f"cache {manifest.cache_id}"
        api.upload_folder(**place, folder_path=directory, allow_patterns=names, commit_message=f"{what}: files")
        card = card_text(manifest, url, teacher_licence=_licence(api, manifest))
        last = [
            CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card.encode()),
            CommitOperationAdd(path_in_repo=MANIFEST, path_or_fileobj=(directory / MANIFEST).read_bytes()),
        ]
        done = api.create_commit(**place, operations=last, commit_message=f"{what}: manifest and card")
    return str(done.oid)


def _require_place(url: str, manifest: Manifest) -> None:
    """Nothing there but what an earlier push of this cache left."""
    repo, revision = parse(url)
    there = _sizes(repo, revision)
    foreign = sorted(there.keys() - OWN_FILES - {file.name for file in files_of(manifest)})
    if foreign:
        do = "push to a data set of its own"
        raise UsageError(url, expected="an empty data set", got=", ".join(foreign[:3]), do=do)
    if MANIFEST in there:
        remote = HubRemote(url)
        found = parsed(manifest_bytes(remote), url).cache_id
        if found != manifest.cache_id:
            do = "push to another revision (@name) or data set"
            raise UsageError(url, expected=f"cache {manifest.cache_id}", got=f"cache {found}", do=do)


def _licence(api: HfApi, manifest: Manifest) -> str | None:
    """What the teacher's own model card says, where the teacher came from the hub."""
    if manifest.teacher.revision is None:
        return None
    try:
        card = api.model_info(manifest.teacher.id, revision=manifest.teacher.revision).card_data
    except _network_errors():
        return None  # the card then points to the model's page
    return getattr(card, "license", None)
