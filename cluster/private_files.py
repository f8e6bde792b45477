"""Recognizes files that must not leave this machine: credentials, keys and tokens, by name and by content."""

from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

NAMES = (
    *(".env*", "*.env", "_netrc", ".netrc", ".pgpass", ".my.cnf", ".pypirc", ".npmrc", ".yarnrc*", "pip.conf"),
    *(
        ".git-credentials",
        ".htpasswd",
        ".s3cfg",
        ".boto",
        ".databrickscfg",
        "rclone.conf",
        ".passwd-s3fs",
        ".vault-token",
    ),
    *(".ssh", ".aws", ".azure", ".kube", ".ray", ".gnupg", ".oci", ".kaggle", ".snowflake", ".secrets", "secrets"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.p8", "*.token", "auth_token"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.kubeconfig", "kubeconfig", "kubeconfig.*", "*.tfstate*"),
    *("credentials", "*credentials*.json", "*credentials*.y*ml", "*credentials*.ini", "*credentials*.csv"),
    *("*service*account*.json", "client_secret*.json", "kaggle.json", "accesskeys.csv"),
    *("*secret*.json", "*secret*.y*ml", "*secret*.toml", "*secret*.ini", "*secret*.txt", "*password*.txt"),
)
"""Patterns of file and folder names, in lower case. What is in such a folder is private too."""

PATHS = (
    *(".config/gcloud", ".config/gh", ".config/rclone", ".docker/config.json", ".mc/config.json"),
    *(".huggingface/token", "huggingface/token", ".cargo/credentials.toml"),
)
"""Paths whose last name alone says nothing."""

HEAD_BYTES = 4096


def private_part(path: PurePosixPath) -> PurePosixPath | None:
    """The part of a relative path, from its start, whose name is private; None if there is none."""
    lower = [part.lower() for part in path.parts]
    for end in range(1, len(lower) + 1):
        beginning = "/".join(["", *lower[:end]])
        if any(fnmatchcase(lower[end - 1], name) for name in NAMES) or any(beginning.endswith(f"/{p}") for p in PATHS):
            return PurePosixPath(*path.parts[:end])
    return None


def has_private_content(file: Path) -> bool:
    """Whether a file is a private key, or a key of a service account, whatever its name is."""
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES).lstrip()
    first_line = head.partition(b"\n")[0]
    is_key = first_line.startswith(b"-----BEGIN ") and b"PRIVATE KEY" in first_line
    return is_key or (head.startswith(b"{") and b"-----BEGIN PRIVATE KEY" in head)
