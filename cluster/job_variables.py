"""Environment variables of a job on a command line: plain values, and the files of secrets."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pipeline.errors import UserError
from pipeline.secret_files import SECRET_FILES, UNREADABLE

SECRET_WORDS = {"key", "keys", "pass", "pwd", "passphrase", "auth", "sas", "pat", "jwt", "cookie", "dsn"}
SECRET_ENDINGS = (
    "secret",
    "secrets",
    "token",
    "password",
    "passwd",
    "credential",
    "credentials",
    "apikey",
    "accesskey",
)


def plain_variables(given: Sequence[str]) -> dict[str, str]:
    """The variables of `--env NAME=VALUE`.

    Raises:
        UserError: a text has another form, or its name or value looks like a secret.
    """
    found = {}
    for text in given:
        name, value = _pair("--env", text, "VALUE")
        if looks_secret(name, value):
            raise UserError(
                f"--env {name}: this looks like a secret, and values of --env are shown in the cluster's dashboard. "
                f"Put the value into a file that all machines of the cluster can read, and use --secret {name}=FILE."
            )
        found[name] = value
    return found


def secret_files(given: Sequence[str]) -> dict[str, str]:
    """The files of `--secret NAME=FILE`.

    Raises:
        UserError: a text has another form, or its file is not an absolute path.
    """
    found = {}
    for text in given:
        name, file = _pair("--secret", text, "FILE")
        if not PurePosixPath(file).is_absolute():
            raise UserError(
                f"--secret {name}: expected the absolute path of a file on the cluster's machines, such as "
                f"--secret {name}=/run/secrets/{name.lower()}. The value itself is never sent."
            )
        found[name] = file
    return found


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable probably holds a secret, by the words of its name or by a password in its value."""
    words = [word for word in re.split(r"[_\W]+", name.lower()) if word]
    if words[-1] in ("file", "path", "dir") or name == "GOOGLE_APPLICATION_CREDENTIALS":
        return False
    if any(word in SECRET_WORDS or word.endswith(SECRET_ENDINGS) for word in words):
        return True
    if value.lstrip().startswith("-----BEGIN"):
        return True
    try:
        return urlsplit(value).password is not None
    except ValueError:
        return False


def _pair(flag: str, text: str, second: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in (SECRET_FILES, UNREADABLE):
        shown = text if flag == "--secret" else name
        raise UserError(f"{flag} {shown}: expected {flag} NAME={second}, with a name of letters, digits and _.")
    return name, value
