"""The model hub as ``heatlens fetch-model`` sees it: what a repository holds, its files one by one, clear errors.

Everything goes through huggingface_hub, which knows tokens (HF_TOKEN), proxies, retries and HF_ENDPOINT.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heatlens.errors import ConfigError, ModelError, SetupError, one_line
from heatlens.files import digest_file

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at a commit. ``digest`` is SHA-256 (files in LFS) or git's SHA-1 of a blob."""

    repository: str
    commit: str
    path: str
    size: int
    digest: str

    def fits(self, local: Path) -> bool:
        """Is the local file the one that the hub states, by size and digest?"""
        try:
            if local.stat().st_size != self.size:
                return False
            return (digest_file(local) if len(self.digest) == 64 else _blob_digest(local)) == self.digest
        except OSError:
            return False


def _blob_digest(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Repository:
    """A repository at one commit; ``files`` by path."""

    name: str
    commit: str
    files: dict[str, RemoteFile]


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT or the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def look_up(name: str, revision: str) -> Repository:
    """Commit and files of ``name`` at ``revision`` (commit, tag or branch). ModelError says why it cannot be had."""
    with asking(name, revision):
        from huggingface_hub import HfApi

        info = HfApi(endpoint=endpoint()).model_info(name, revision=revision, files_metadata=True)
    commit = str(info.sha or revision)
    stated = [_remote_file(name, commit, sibling) for sibling in info.siblings or []]
    return Repository(name, commit, {file.path: file for file in stated})


def _remote_file(name: str, commit: str, sibling: Any) -> RemoteFile:
    digest = sibling.lfs["sha256"] if sibling.lfs else sibling.blob_id
    return RemoteFile(name, commit, sibling.rfilename, int(sibling.size or 0), str(digest or ""))


def download(file: RemoteFile, staging: Path) -> Path:
    """``file`` under ``staging``, its digest checked. Goes on behind the last byte that an earlier call left.

    A file that is not what the hub states is removed, and ModelError raised.
    """
    path = staging / f"{file.repository.replace('/', '--')}-{file.commit}" / file.path
    if file.fits(path):
        return path
    if not file.digest:
        raise ModelError(f"the hub {endpoint()} states no digest for {file.path} of {file.repository}: not fetched")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with asking(file.repository, file.commit, file.path):
        _continue(file, part)
    if not file.fits(part):
        part.unlink(missing_ok=True)
        raise ModelError(
            f"{file.path} of {file.repository} came with another content than the hub states ({file.size} bytes, "
            f"digest {file.digest}); it was removed. Run the same command again; if it happens again, a proxy or "
            f"mirror on the way ({endpoint()}) hands out something else"
        )
    part.replace(path)
    return path


def _continue(file: RemoteFile, part: Path) -> None:
    """Append to ``part`` what is missing, again and again as long as a connection that breaks brought something."""
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _append(file, part)
        except Exception:
            if part.stat().st_size > before:
                continue
            raise
        return


def _append(file: RemoteFile, part: Path) -> None:
    """One request. hf_hub_download keeps nothing of a file when its process ends; a part of one's own stays."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(library_name="heatlens")
    headers["Accept-Encoding"] = "identity"  # or a range would count compressed bytes
    with part.open("ab") as stream:
        http_get(
            hf_hub_url(file.repository, file.path, revision=file.commit, endpoint=endpoint()),
            stream,
            resume_size=stream.tell(),
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.path,
        )
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def asking(name: str, revision: str, file: str = "") -> Iterator[None]:
    """What the hub's client raises in here, as a ModelError for people."""
    from huggingface_hub import errors

    what = f"{file} of {name}" if file else name
    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"{name!r} is no repository of the hub: {one_line(error)}") from None
    except errors.OfflineModeIsEnabled:
        raise ModelError(offline_text()) from None
    except errors.GatedRepoError:
        raise ModelError(_refused(name)) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"{name} on {endpoint()} has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"{endpoint()} has no model {name}, or it is private: names are OWNER/NAME as in the address bar; "
            "for a private one set HF_TOKEN to a token that may read it"
        ) from None
    except Exception as error:  # the client raises dozens of types: of its own, of its HTTP library, OSError
        raise _for_people(error, name, what) from None


def _for_people(error: Exception, name: str, what: str) -> SetupError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ModelError(_refused(name))
    if status == 404:
        return ModelError(f"the hub {endpoint()} has listed {what}, and then does not have it")
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return SetupError(f"the disk is full; what came of {what} is kept, and the same command goes on from there")
    reason = f"answered {status}" if status else "cannot be reached, or the connection broke"
    return ModelError(
        f"the hub {endpoint()} {reason} ({what}): {_innermost(error)[:300]}. This command needs a machine with "
        "internet (HTTPS_PROXY, HF_ENDPOINT for a mirror); run it again and it goes on where it stopped"
    )


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _refused(name: str) -> str:
    return (
        f"{endpoint()} does not hand out {name} to you: accept its terms on {endpoint()}/{name}, then set HF_TOKEN to "
        "a token of that account (or run `hf auth login`)"
    )


def offline_text() -> str:
    """What to say when the client must not use the network."""
    return (
        "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing can be fetched: run this with HF_HUB_OFFLINE=0 "
        "on a machine with internet; --verify needs none"
    )
