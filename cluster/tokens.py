"""Ray's token: where it is found, and making one that only its owner can read."""

import os
import secrets
import sys
from pathlib import Path

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - the name of a variable


def token_path() -> Path:
    """The file that Ray looks in when the environment has no token itself."""
    named = os.environ.get(TOKEN_PATH)
    return Path(named) if named else Path.home() / ".ray" / "auth_token"


def find_token() -> str | None:
    """The token by Ray's own order: the environment, then the file."""
    if token := os.environ.get(TOKEN, "").strip():
        return token
    try:
        return token_path().read_text().strip() or None
    except OSError:
        return None


def source() -> str:
    """Where the token comes from, in words for a message."""
    return f"the variable {TOKEN}" if os.environ.get(TOKEN) else str(token_path())


def readable_by_others() -> bool:
    """Whether the token lies in a file that other users of the machine can read."""
    path = token_path()
    return not os.environ.get(TOKEN) and path.exists() and bool(path.stat().st_mode & 0o077)


def ensure_token() -> str:
    """The token that there is, or a new one in a file of mode 600. `ray get-auth-token --generate` leaves it at 644."""
    path, token = token_path(), find_token()
    if token is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        token = secrets.token_hex(32)
        path.unlink(missing_ok=True)  # an empty one, perhaps of another mode
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token)
    elif readable_by_others() and path.stat().st_uid == os.getuid():
        path.chmod(0o600)
    return token


def use_token() -> None:
    """Sends the token along from now on, unless somebody chose otherwise.

    Only for a cluster of our own: Ray sends no token to an address that was typed unless RAY_AUTH_MODE says so, since
    whoever listens there would learn it.
    """
    if MODE in os.environ:
        return
    os.environ[MODE] = "token"
    if "ray" in sys.modules:  # it has read the variable already
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")
