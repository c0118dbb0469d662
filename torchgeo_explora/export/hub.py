"""Deltas on the Hugging Face Hub."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from torchgeo_explora.export.card import model_card
from torchgeo_explora.models.formats.files import hub_or_offline

_NAME = 'delta.safetensors'


def push_to_hub(
    path: str | os.PathLike[str],
    repo: str,
    base: str,
    data: str,
    scores: Mapping[str, float] | None = None,
    licence: str | None = None,
    private: bool = True,
    api: HfApi | None = None,
) -> str:
    """Upload a delta with its card, and return its address.

    The card names base, data, recipe and scores, and the chain of licences. A licence
    that allows more than the base's is refused before anything is sent.

    Args:
        path: A file of `save_delta`.
        repo: Name of the repository, 'user/name'; it is created if needed.
        base: Where the weights of the base come from, such as
            'timm/vit_large_patch14_dinov2.lvd142m'.
        data: What the delta was trained on.
        scores: Measured scores by name.
        licence: Licence in the Hub's spelling, such as 'cc-by-nc-4.0'; that of the base
            if None.
        private: Whether a new repository is private.
        api: A client with another address or token; the user's own login if None.

    Raises:
        ConnectionError: If the Hub refuses or cannot be reached.
        ValueError: If the file is not a delta, or its licence is unknown or too
            permissive.
    """
    api = api or HfApi()
    card = model_card(path, repo, base, data, scores, licence)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / _NAME)
        card.save(Path(folder) / 'README.md')
        try:
            with hub_or_offline(api.endpoint):
                api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message='Upload a delta'
            )
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            raise ConnectionError(
                f'could not upload to {repo} ({error}): log in with `hf auth login`'
                ' and a token with write access'
            ) from error
    return str(getattr(commit, 'repo_url', None) or f'{api.endpoint}/{repo}')


def from_hub(
    repo: str,
    revision: str | None = None,
    filename: str = _NAME,
    api: HfApi | None = None,
) -> Path:
    """Return the path of a published delta in the Hub's cache, downloading it first.

    Args:
        repo: Name of the repository, 'user/name'.
        revision: Commit, branch or tag; the latest if None.
        filename: Name of the file in the repository.
        api: A client with another address or token; the user's own login if None.

    Raises:
        FileNotFoundError: If the repository, revision or file does not exist, or if it
            is not in the cache and there is no network.
        ValueError: If *repo* is not the name of a repository.
    """
    api = api or HfApi()
    try:
        with hub_or_offline(api.endpoint):
            return Path(api.hf_hub_download(repo, filename, revision=revision))
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f'{filename} of {repo} is not in the cache, and {api.endpoint} cannot be'
            f' reached: get the file elsewhere and give its path ({error})'
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f'{repo} has no file {filename}: look at {api.endpoint}/{repo}'
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f'{repo} has no revision {revision!r}') from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f'there is no repository {repo} on {api.endpoint}, or you cannot see it:'
            ' check the name, or log in with `hf auth login`'
        ) from error
