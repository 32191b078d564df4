"""Files of a repository on the Hugging Face hub, read by ranges: no weights are fetched, and nothing is written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from lumoe.errors import UserError
from lumoe.moe.checkpoint.headers import Files
from lumoe.moe.checkpoint.safetensors import LARGEST_HEADER
from lumoe.moe.planning.inputs import HUB

TIMEOUT_S = 10.0
_RETRIES = 1
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^@:]+))?(?::(.+))?")
_OK, _PARTIAL = 200, 206


@dataclass(frozen=True)
class HubName:
    """A model on the hub, as `hub:ORG/NAME`, `hub:ORG/NAME@REVISION` or `hub:ORG/NAME:FILE`.

    Attributes:
        file: a GGUF file's name, or what only its name has, such as Q4_K_M.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read a name that begins with `hub:`.

        Raises:
            UserError: it is not written like one.
        """
        match = _NAME.fullmatch(text.removeprefix(HUB))
        if match is None:
            raise UserError(
                f"model '{text}': write it as hub:ORG/NAME, hub:ORG/NAME@REVISION or hub:ORG/NAME:FILE.gguf"
            )
        return cls(match[1], match[2], match[3])


class HubFiles(Files):
    """A repository at one commit; HF_ENDPOINT says where the hub is, HF_TOKEN who asks.

    Attributes:
        commit: that the revision stood for when it was first asked for.
        read_bytes: that were fetched until now, the list of files aside.
    """

    def __init__(self, name: HubName) -> None:
        """Ask for the list of files.

        Raises:
            UserError: there is no such repository, it is not open to whoever asks, or the hub does not answer.
        """
        from huggingface_hub import HfApi, constants

        self.where, self._name = f"{HUB}{name.repository}", name
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.read_bytes, self._lock = 0, Lock()
        self._whole = dict[str, bytes]()  # configuration and index are looked at more than once
        with self._one_sentence(self.where):
            info = HfApi(endpoint=self._endpoint, library_name="lumoe").model_info(
                name.repository, revision=name.revision, files_metadata=True, timeout=TIMEOUT_S
            )
            self._sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or []}
            self.commit = str(info.sha or name.revision or "main")

    def names(self) -> Sequence[str]:
        return sorted(self._sizes)

    def size(self, name: str) -> int:
        return self._sizes[name]

    def read(self, name: str, begin: int, end: int | None = None) -> bytes:
        if end is None and begin == 0 and name in self._whole:
            return self._whole[name]
        last = self._sizes[name] if end is None else min(end, self._sizes[name])
        if last - begin > LARGEST_HEADER:
            raise UserError(f"{self.where}/{name}: {last - begin} bytes, too many for a header or a configuration")
        if last <= begin:
            return b""
        with self._one_sentence(f"{self.where}/{name}"):
            content = self._range(name, begin, last)
        with self._lock:
            self.read_bytes += len(content)
            if end is None and begin == 0:
                self._whole[name] = content
        return content

    def _range(self, name: str, begin: int, end: int) -> bytes:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_backoff,
        )

        url = hf_hub_url(self._name.repository, name, revision=self.commit, endpoint=self._endpoint)
        headers = build_hf_headers(library_name="lumoe")
        asked = {**headers, "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with http_backoff("GET", url, max_retries=_RETRIES, headers=asked, stream=True, timeout=TIMEOUT_S) as response:
            hf_raise_for_status(response)
            whole = begin == 0 and end == self._sizes[name]
            if response.status_code != _PARTIAL and not (whole and response.status_code == _OK):
                raise UserError(
                    f"{self.where}/{name}: the server does not send parts of files, and the whole would be "
                    f"{self._sizes[name]} bytes; download the model and give its folder"
                )
            # No more than was asked for, whatever is sent.
            return bytes(response.raw.read(end - begin))

    @contextmanager
    def _one_sentence(self, what: str) -> Iterator[None]:
        from huggingface_hub import errors
        from requests.exceptions import ConnectionError, HTTPError, RequestException, Timeout

        page = f"{self._endpoint}/{self._name.repository}"
        try:
            yield
        except UserError:
            raise
        except errors.GatedRepoError:
            raise UserError(f"{what}: access is gated; accept the terms at {page} and set HF_TOKEN") from None
        except errors.RepositoryNotFoundError:
            raise UserError(f"{what}: no such repository at {page}; if it is private, set HF_TOKEN") from None
        except errors.RevisionNotFoundError:
            raise UserError(f"{what}: there is no revision '{self._name.revision}' of it at {page}") from None
        except errors.EntryNotFoundError:
            raise UserError(f"{what}: no such file at {page}") from None
        except HTTPError as error:
            status = error.response.status_code if error.response is not None else "an error"
            raise UserError(f"{what}: the hub answered with {status} ({page}); try again or set HF_TOKEN") from None
        except Timeout:
            raise UserError(f"{what}: no answer from {self._endpoint} within {TIMEOUT_S:g} s; try again") from None
        except (ConnectionError, errors.OfflineModeIsEnabled):
            raise UserError(
                f"{what}: {self._endpoint} cannot be reached; check the network and HF_ENDPOINT, or give a folder with "
                "the model's config.json"
            ) from None
        except (RequestException, errors.HFValidationError, ValueError, KeyError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{what}: {self._endpoint} does not answer as a hub does ({reason})") from None
