"""The list of files that are sent to a cluster: exactly known, and never with a private file."""

import subprocess
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.package import Package, make_package
from cluster.private_files import private_part
from pipeline.errors import UserError

PRIVATE = (
    *(".env", ".env.production", "prod.env", ".ssh/id_ed25519", ".ssh/config", ".aws/credentials", ".aws/config"),
    *(".azure/accessTokens.json", ".config/gcloud/access_tokens.db", ".kube/config", ".docker/config.json", ".netrc"),
    *(".pgpass", ".pypirc", ".npmrc", ".git-credentials", ".ray/auth_token", "server.pem", "tls.key", "a.p12", "b.pfx"),
    *(
        "id_rsa",
        "id_rsa.pub",
        "id_ecdsa",
        "id_ed25519_work",
        "credentials.json",
        "my-credentials-2.json",
        "cluster.kubeconfig",
    ),
    *(
        "kubeconfig",
        "service-account.json",
        "my_service_account_key.json",
        "client_secret_1.json",
        "ID_RSA",
        "Server.PEM",
    ),
    *(
        "secrets/db",
        "secrets.yaml",
        "app-secret.json",
        ".gnupg/secring.gpg",
        "keystore.jks",
        ".vault-token",
        "gcp.token",
    ),
    *("terraform.tfstate", "kaggle.json", ".config/gh/hosts.yml", ".huggingface/token", "rclone.conf", "passwords.txt"),
)
PLAIN = (
    "jobs/cli.py",
    "experiment.yaml",
    "tokens.py",
    "keys.py",
    "environment.yaml",
    "monkey.txt",
    "config.json",
    "a b.txt",
)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True)


def write(folder: Path, *names: str, text: str = "text") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write(tmp_path, "jobs/cli.py", "experiment.yaml")
    return tmp_path


def names(package: Package) -> list[str]:
    return list(package.files)


@pytest.mark.parametrize("tracked", [True, False, None], ids=["tracked", "untracked", "without git"])
def test_private_files_are_never_sent(project: Path, tracked: bool | None) -> None:
    """Also if git tracks them, and below other folders."""
    write(project, *PLAIN, *PRIVATE, *(f"deep/er/{name}" for name in PRIVATE))
    if tracked is not None:
        git(project, "init", "--quiet")
    if tracked:
        git(project, "add", "--force", ".")
    package = make_package(project)
    assert names(package) == sorted(PLAIN)
    text = package.describe()
    for name in PRIVATE:
        first = str(private_part(PurePosixPath(name)))
        assert first in text and f"deep/er/{first}" in text


PARTS = st.lists(st.sampled_from(["a", "conf", "Data", "x.y"]), max_size=3)


@given(before=PARTS, private=st.sampled_from(PRIVATE), upper=st.booleans())
@settings(max_examples=200)
def test_a_private_name_is_private_at_any_depth(before: list[str], private: str, upper: bool) -> None:
    path = PurePosixPath(*before, private.upper() if upper else private)
    part = private_part(path)
    assert part is not None and path.is_relative_to(part)
    assert private_part(PurePosixPath(*before, "model.py")) is None


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----\nabc",
        "-----BEGIN RSA PRIVATE KEY-----\nabc",
        '{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\\nabc"}',
    ],
)
def test_a_key_is_private_under_any_name(project: Path, text: str) -> None:
    write(project, "notes.txt", text=text)
    package = make_package(project)
    assert "notes.txt" not in package.files and package.private == ["notes.txt"]


def test_files_that_git_ignores_are_not_sent(project: Path) -> None:
    write(
        project, "log/part.parquet", "kept.txt", "sub/other.txt", "runs/a", "results/b", "__pycache__/c.pyc", ".venv/d"
    )
    write(project, ".gitignore", text="log/\n")
    write(project, "sub/.gitignore", text="other.txt\n")
    git(project, "init", "--quiet")
    package = make_package(project, ["results"])
    assert names(package) == [".gitignore", "experiment.yaml", "jobs/cli.py", "kept.txt", "sub/.gitignore"]
    assert package.ignored == ["log/", "sub/other.txt"]


def test_include_sends_what_is_named(project: Path) -> None:
    write(project, "log/part.parquet", "log/.env", ".env", "local.yaml")
    write(project, ".gitignore", text="log/\nlocal.yaml\n")
    git(project, "init", "--quiet")
    package = make_package(project, include=["log", "local.yaml"])
    assert {"log/part.parquet", "local.yaml"} <= set(package.files)
    assert package.ignored == []
    assert package.private == [".env", "log/.env"]  # a folder does not stand for the private files in it
    assert ".env" in make_package(project, include=[".env"]).files
    for wrong in ("../other", "missing", "/etc/passwd"):
        with pytest.raises(UserError, match="inside"):
            make_package(project, include=[wrong])


def test_links_are_followed_only_to_files_that_are_sent(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside, "data.txt")
    write(project, ".env", "ignored.txt", "plain.txt", "folder/a.txt")
    write(project, ".gitignore", text="ignored.txt\n")
    git(project, "init", "--quiet")
    targets = {"out.txt": outside / "data.txt", "out": outside, "to-env": ".env", "to-ignored": "ignored.txt"}
    targets |= {"to-plain": "plain.txt", "to-folder": "folder", "nowhere": "missing"}
    for name, target in targets.items():
        (project / name).symlink_to(target)
    package = make_package(project)
    assert package.links == sorted(set(targets) - {"to-plain"})
    assert {"to-plain", "plain.txt", "folder/a.txt"} <= set(package.files)
    assert not {name for name in package.files if name.startswith(("out", "to-env", "to-ignored", "to-folder"))}


def test_a_repository_inside_this_one_is_sent_by_its_own_rules(project: Path) -> None:
    write(project, "inner/a.txt", "inner/b.txt", "inner/.env")
    write(project, "inner/.gitignore", text="b.txt\n")
    git(project, "init", "--quiet")
    git(project / "inner", "init", "--quiet")
    package = make_package(project)
    assert "inner/a.txt" in package.files and "inner/b.txt" not in package.files
    assert package.private == ["inner/.env"]


def test_deleted_files_are_not_sent(project: Path) -> None:
    write(project, "gone.txt")
    git(project, "init", "--quiet")
    git(project, "add", ".")
    (project / "gone.txt").unlink()
    assert names(make_package(project)) == ["experiment.yaml", "jobs/cli.py"]


def test_the_same_files_give_the_same_bytes(project: Path, tmp_path: Path) -> None:
    make_package(project).write_zip(tmp_path / "1.zip")
    (project / "experiment.yaml").touch()
    package = make_package(project, ["1.zip"])
    package.write_zip(tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    assert ZipFile(tmp_path / "2.zip").namelist() == ["experiment.yaml", "jobs/cli.py"]
