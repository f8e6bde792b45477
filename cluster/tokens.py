"""Ray's token: finds it, or creates one that only its owner can read."""

import os
import secrets
import sys
from pathlib import Path

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the name of a variable


def token_path() -> Path:
    """The file from which Ray reads the token if the environment does not contain one."""
    named = os.environ.get(TOKEN_PATH)
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def find_token() -> str | None:
    """The token, looked up in Ray's order: first the environment, then the file."""
    if token := os.environ.get(TOKEN, "").strip():
        return token
    try:
        return token_path().read_text().strip() or None
    except OSError:
        return None


def source() -> str:
    """Where the token comes from, as text for a message."""
    return f"the variable {TOKEN}" if os.environ.get(TOKEN) else str(token_path())


def readable_by_others() -> bool:
    """Whether the token is in a file that other users of the machine can read."""
    path = token_path()
    return not os.environ.get(TOKEN) and path.exists() and bool(path.stat().st_mode & 0o077)


def ensure_token() -> str:
    """Returns the existing token, or creates one in a file of mode 600 (`ray get-auth-token --generate` sets 644)."""
    path, token = token_path(), find_token()
    if token is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(32)
        path.unlink(missing_ok=True)  # an empty file, perhaps with another mode
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token)
    elif readable_by_others() and path.stat().st_uid == os.getuid():
        path.chmod(0o600)
    return token


def use_token() -> None:
    """Makes Ray send the token from now on, unless RAY_AUTH_MODE is already set.

    Only for a cluster that we have started. For an address that a user has typed, the user must set RAY_AUTH_MODE,
    because the server at that address learns the token.
    """
    if MODE in os.environ:
        return
    os.environ[MODE] = "token"
    if "ray" in sys.modules:  # Ray has already read the variable
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")
