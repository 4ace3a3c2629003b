"""The Hub's client, and what it raises said without secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from persona_tasks.hub.entries import SECRET
from persona_tasks.hub.files import Refused

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class HubError(RuntimeError):
    """The Hub did not do what it was asked for. The message says what to do."""


def client() -> HfApi:
    """A client of the Hub at ``$HF_ENDPOINT``. Its token is ``$HF_TOKEN`` or that of `hf auth login`."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="persona-tasks")


def redacted(text: str) -> str:
    """`text` without anything that looks like a secret, and without our token."""
    from huggingface_hub import get_token

    token = get_token()
    return SECRET.sub("***", text.replace(token, "***") if token else text)


@contextmanager
def talking_to(repository: str) -> Iterator[None]:
    """Turn what the client raises into a `HubError`: one sentence, no token, and no request or traceback behind it."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HubError, Refused):
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = (error.server_message or str(error)).strip().splitlines()
        raise HubError(redacted(f"{repository}: {_advice(status)} ({status}: {' '.join(said)[:300]})")) from None
    except Exception as error:  # the client's HTTP library, hf_xet and the sockets below have exceptions of their own
        if not _from_network(error):
            raise
        raise HubError(
            redacted(f"{repository}: the connection broke ({type(error).__name__}). Run the command again")
        ) from None


def _from_network(error: Exception) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, (OSError, RuntimeError)) or module.startswith(("httpx", "httpcore", "hf_xet"))


def _advice(status: int) -> str:
    if status == 412:
        return "somebody else committed meanwhile; nothing was changed. Run the command again"
    if status in (401, 403):
        return "no access with this token. Set HF_TOKEN, or `hf auth login`"
    if status == 404:
        return "not found"
    if status >= 500 or status == 429:
        return "the Hub has a problem. Run the command again; what is done stays done"
    return "the Hub refused"
