"""What to say where weights of the hub cannot be had: one line each, without addresses with keys in them."""

from __future__ import annotations

import re
from types import ModuleType

from hvdtrain.config.hub_address import HubAddress


def unreachable(hub: ModuleType, error: BaseException) -> str | None:
    """Why the hub did not answer, or not as it should; None for another error."""
    if isinstance(error, hub.errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, hub.errors.HfHubHTTPError):
        status = _status(error)
        return f"it answers {status}" if status in (408, 429) or (status or 0) >= 500 else None
    # Of its HTTP client, whose module has had several names.
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"TransportError", "ConnectionError", "RequestException", "TimeoutException"}:
        return f"{type(error).__name__}: {str(error)[:80]}" if str(error) else type(error).__name__
    return None


def reason(hub: ModuleType, error: BaseException, address: HubAddress) -> str:
    """What went wrong and what to do, in a line."""
    errors, repository = hub.errors, address.repository
    download = f"once where there is a network, hf download {repository}"
    download += f" --revision {address.revision}" if address.revision else ""
    cause: BaseException = error
    while isinstance(cause, errors.LocalEntryNotFoundError) and cause.__cause__ is not None:
        cause = cause.__cause__
    cache = hub.constants.HF_HUB_CACHE
    place = re.sub(r"//[^/@]*@", "//", hub.constants.ENDPOINT)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set, and the cache {cache} has not all files of {repository}: {download}; "
            "or name a file"
        )
    if (why := unreachable(hub, cause)) is not None:
        return (
            f"the hub {place} cannot be reached ({_printable(why)}), and the cache {cache} "
            f"has not all files of {repository}: try again, or {download}; or name a file"
        )
    page = f"{place}/{repository}"
    if isinstance(cause, errors.GatedRepoError):
        return f"gated: accept its terms on {page}, and log in with `hf auth login`"
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"there is no {page}, or it is private: check the name, or log in with `hf auth login`"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{repository} has no revision {address.revision}"
    if (status := _status(cause)) is not None:
        login = ": log in with `hf auth login`" if status in (401, 403) else ""
        return f"the hub answers {status} for {repository}{login}"
    if "Consistency check" in str(cause):
        return "the download ended early: start again, and it is repeated"
    if isinstance(cause, OSError) and cause.strerror:
        return f"the cache {cache}: {cause.strerror}: choose another folder with HF_HOME"
    return f"it could not be downloaded: {type(cause).__name__}: {_printable(str(cause))}"


def _printable(text: str) -> str:
    line = text.split("\n", maxsplit=1)[0][:100]
    return "".join(char if char.isprintable() else "?" for char in line)


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
