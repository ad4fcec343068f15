"""Files of the Hugging Face hub, by addresses such as hf://organisation/repository@revision/file.

The package huggingface_hub downloads them and keeps them in its cache, where they are found without
a network too.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from flair_jax.errors import UserError
from flair_jax.runtime import console

SCHEME = "hf://"
# A revision is a branch, a tag or a commit, none with a slash, or of a pull request refs/pr/1.
_ADDRESS = re.compile(
    r"hf://(?P<organisation>[^/@]+)/(?P<name>[^/@]+)(@(?P<revision>refs/pr/\d+|[^/]+))?"
    r"(/(?P<file>.*[^/]))?/?"
)
_TIMEOUT = 10  # seconds for the answer of the hub


class UnreachableError(UserError):
    """The hub gives no answer."""


@dataclasses.dataclass(frozen=True)
class Address:
    """A repository of the hub, or a file in it.

    Attributes:
        repository: "organisation/name".
        revision: a branch, tag or commit; None: the default branch.
        file: path in the repository; "": none is named.
    """

    repository: str
    revision: str | None = None
    file: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repository}{revision}" + (f"/{self.file}" if self.file else "")

    def with_file(self, file: str) -> "Address":
        """The address of a file of the same repository and revision."""
        return dataclasses.replace(self, file=file)


def parse(text: str) -> Address:
    """The address that a text is.

    Raises:
        UserError: it is none.
    """
    found = _ADDRESS.fullmatch(text)
    if not found:
        raise UserError(
            f"{text} is not of the form hf://organisation/repository, with @revision and /file "
            "where they are wanted"
        )
    return Address(
        f"{found['organisation']}/{found['name']}", found["revision"], found["file"] or ""
    )


def download(address: Address) -> pathlib.Path:
    """A file of the hub, from the cache if it has not changed or the hub cannot be reached.

    Raises:
        UserError: huggingface_hub is missing, there is no such file, or it is not in the cache and
            cannot be fetched.
    """
    hub = _huggingface_hub(address)
    path = _ask(
        address,
        lambda: hub.hf_hub_download(
            address.repository,
            address.file,
            revision=address.revision,
            etag_timeout=_TIMEOUT,
        ),
    )
    return pathlib.Path(path)


def download_all(
    address: Address, choose: Callable[[Sequence[str]], Sequence[str]]
) -> list[pathlib.Path]:
    """Files of one commit of a repository.

    Args:
        address: of the repository.
        choose: takes the names of all of its files, and gives those to fetch.

    Raises:
        UserError: see `download`.
    """
    hub = _huggingface_hub(address)

    def ask() -> Any:
        return hub.HfApi().model_info(
            address.repository, revision=address.revision, timeout=_TIMEOUT
        )

    def cached() -> Any:
        return hub.snapshot_download(
            address.repository, revision=address.revision, local_files_only=True
        )

    try:
        info = _ask(address, ask)
    except UnreachableError as error:
        try:
            folder = pathlib.Path(cached())
        except Exception:  # of many kinds: it is not in the cache
            raise error from error.__cause__
        console.log(
            f"note: the Hugging Face hub cannot be reached; {address} is taken from its cache, "
            f"commit {folder.name}"
        )
        files = (path for path in folder.rglob("*") if path.is_file())
        return [folder / name for name in choose([p.relative_to(folder).as_posix() for p in files])]
    first, *rest = choose([file.rfilename for file in info.siblings or ()])
    # The revision leads the cache to the commit, and the commit to the other files: meanwhile the
    # branch may have moved.
    paths = [download(address.with_file(first))]
    folder = paths[0].parents[len(pathlib.PurePosixPath(first).parts) - 1]  # snapshots/<commit>
    commit = dataclasses.replace(address, revision=folder.name)
    return paths + [download(commit.with_file(name)) for name in rest]


def _huggingface_hub(address: Address) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(f"{address} needs huggingface_hub: pip install 'flair-jax[hub]'") from error
    return huggingface_hub


def _ask(address: Address, question: Callable[[], Any]) -> Any:
    """What the hub answers.

    Raises:
        UnreachableError: it gives no answer.
        UserError: it has not what is asked for.
    """
    from huggingface_hub import errors

    page = f"https://huggingface.co/{address.repository}"
    try:
        return question()
    except errors.GatedRepoError as error:
        raise UserError(
            f"{address}: its owners ask for an agreement: give it at {page}, and log in with "
            "hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{address}: there is no {page}; or it is private: log in with hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{address}: {page} has no revision {address.revision}: expected a branch, a tag or "
            "a commit"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        problem = error.__cause__ or error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{address}: {page} has no file {address.file}") from error
    except Exception as error:  # many kinds, of the libraries for HTTP among them
        problem = error
    reason = (str(problem).strip() or "no answer").splitlines()[0][:200]
    revision = f" --revision={address.revision}" if address.revision else ""
    raise UnreachableError(
        f"{address} is not in the cache and cannot be fetched from the Hugging Face hub "
        f"({type(problem).__name__}: {reason}): connect to the network, or where there is one run "
        f"hf download {address.repository}{revision} --local-dir=FOLDER, and give the path of "
        + (f"FOLDER/{address.file}" if address.file else "FOLDER")
    ) from problem
