"""Addresses of clusters in all the forms that people type: each works, or the message has the right form."""

import re
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.addresses import cluster_address, dashboard_url, is_same, reachable, unreachable, without_proxy
from cluster.client import open_client
from pipeline.errors import UserError

URLS = {
    "http://head:8265": "http://head:8265",
    "http://head:8265/": "http://head:8265",
    "http://head:8265//": "http://head:8265",
    " http://head:8265\n": "http://head:8265",
    "HTTP://Head:8265": "http://head:8265",
    "head:8265": "http://head:8265",
    "head": "http://head:8265",
    "head/": "http://head:8265",
    "head.example.com": "http://head.example.com:8265",
    "my_head-1:80": "http://my_head-1:80",
    "localhost": "http://localhost:8265",
    "localhost:1234": "http://localhost:1234",
    "10.0.0.5": "http://10.0.0.5:8265",
    "10.0.0.5:1": "http://10.0.0.5:1",
    "::1": "http://[::1]:8265",
    "[::1]:8265": "http://[::1]:8265",
    "http://[fd00::5]:8265/": "http://[fd00::5]:8265",
    "http://head": "http://head",
    "https://ray.example.com": "https://ray.example.com",
    "https://ray.example.com/": "https://ray.example.com",
    "https://example.com/team/ray/": "https://example.com/team/ray",
    "https://example.com:8443/ray": "https://example.com:8443/ray",
    "example.com/ray": "http://example.com/ray",
    "http://head:8265/#/jobs": "http://head:8265",
    "http://head:8265/#/overview?tab=1": "http://head:8265",
    "https://example.com/ray/#/cluster": "https://example.com/ray",
    "auto:8265": "http://auto:8265",
}

NO_URLS = {
    "": "http://HEAD:8265",
    "http://": "http://HEAD:8265",
    "://head": "http://HEAD:8265",
    "http://:8265": "http://HEAD:8265",
    "http:///jobs": "http://HEAD:8265",
    "http:head:8265": "http://HEAD:8265",
    "http:/head:8265": "http://HEAD:8265",
    "http://head:": "http://HEAD:8265",
    "http://head:port": "http://HEAD:8265",
    "http://head:0": "http://HEAD:8265",
    "http://head:70000": "http://HEAD:8265",
    "http://head 8265": "http://HEAD:8265",
    "head,other:8265": "http://HEAD:8265",
    "http://[::1:8265": "http://HEAD:8265",
    "::1:8265:x": "http://HEAD:8265",
    "ray://head:10001": "http://head:8265",
    "ray://[fd00::5]:10001": "http://[fd00::5]:8265",
    "grpc://head:6379": "http://head:8265",
    "ws://head:8265": "http://head:8265",
    "file:///tmp/ray": "http://HEAD:8265",
    "http://me:hush@head:8265": "http://head:8265",
    "http://head:8265/?token=hush": "http://head:8265",
    "auto": "http://HEAD:8265",
    "local": "http://HEAD:8265",
}


@pytest.mark.parametrize("text", URLS)
def test_a_url_of_a_dashboard(text: str) -> None:
    assert dashboard_url(text) == URLS[text]
    assert dashboard_url(URLS[text]) == URLS[text]


@pytest.mark.parametrize("text", NO_URLS)
def test_what_is_no_url_of_a_dashboard_is_one_sentence_with_the_right_form(text: str) -> None:
    with pytest.raises(UserError) as caught:
        dashboard_url(text)
    message = str(caught.value)
    assert message.startswith("--address ") and "\n" not in message.strip() and "hush" not in message
    advice = re.search(r"such as (http://\S*:8265)", message)
    assert advice and advice[1] == NO_URLS[text]
    assert dashboard_url(advice[1]) == advice[1].lower()


@given(
    st.text(st.sampled_from("aZ09.:/[]@#?%-_ \t"), max_size=12), st.sampled_from(["", "http://", "ray://", "https://"])
)
def test_any_text_is_an_address_or_a_sentence(text: str, scheme: str) -> None:
    for parse in (dashboard_url, cluster_address):
        try:
            parsed = parse(scheme + text)
        except UserError as error:
            assert "expected" in str(error)
        else:
            assert parse(parsed) == parsed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("auto", "auto"), ("local", "local"), ("head:6379", "head:6379"), (" head:6379/ ", "head:6379")),
        *(("10.0.0.5:6379", "10.0.0.5:6379"), ("[::1]:6379", "[::1]:6379"), ("localhost:1", "localhost:1")),
    ],
)
def test_an_address_of_a_cluster(text: str, expected: str) -> None:
    assert cluster_address(text) == expected


@pytest.mark.parametrize(
    ("text", "host"),
    [
        *(("head", "head"), ("ray://head:10001", "head"), ("http://head:8265", "head"), ("https://head/ray", "head")),
        *(("redis://head:6379", "head"), ("head:port", "HEAD"), ("head:6379/x", "head"), ("::1", "HEAD")),
        *(("me:hush@head:6379", "head"), (":6379", "HEAD"), ("head:0", "HEAD"), ("ray://", "HEAD")),
    ],
)
def test_what_is_no_address_of_a_cluster_is_one_sentence_with_the_right_form(text: str, host: str) -> None:
    with pytest.raises(UserError, match=f"RAY_ADDRESS is .*: expected .*{host}:6379") as caught:
        cluster_address(text)
    if (url := re.search(r"--address (\S+)$", str(caught.value))) is not None:
        assert dashboard_url(url[1]) == f"http://{host.lower()}:8265"
    assert cluster_address(f"{host}:6379") == f"{host.lower()}:6379"


def test_localhost_is_the_loopback_address() -> None:
    assert is_same("http://localhost:8265", "http://127.0.0.1:8265") and is_same("localhost:6379", "127.0.0.1:6379")
    for other in ("http://127.0.0.1:8266", "https://127.0.0.1:8265", "http://head:8265", "http://127.0.0.1:8265/ray"):
        assert not is_same("http://localhost:8265", other)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_server_is_reachable_by_each_form_of_its_address(family: socket.AddressFamily) -> None:
    with socket.socket(family) as server:
        try:
            server.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        except OSError:
            pytest.skip("this machine has no such address")
        server.listen()
        host, port = server.getsockname()[:2]
        typed = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for text in (typed, f"http://{typed}", f"https://{typed}/ray/"):
            assert reachable(dashboard_url(text))
        assert reachable(cluster_address(typed))
    assert not reachable(f"http://{typed}")
    assert not reachable("http://no-such-host.invalid:8265")


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, "head"), ({"no_proxy": "a"}, "a,head"), ({"NO_PROXY": "a,head"}, "a,head"), ({"no_proxy": ""}, "head")],
)
def test_no_proxy_is_used_for_a_host(before: dict[str, str], after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    assert without_proxy("head") == {"no_proxy": after, "NO_PROXY": after}


ANSWERS = {
    "nothing": b"",
    "another protocol": b"220 mail.example.com ESMTP\r\n",
    "no such page": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>",
    "a gateway without a server": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "other JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_server_that_is_no_dashboard_is_one_sentence(scheme: str, answer: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    if ANSWERS[answer] and connection.recv(65536):
                        connection.sendall(ANSWERS[answer])

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(UserError) as caught:
            open_client(f"{scheme}://127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)
    message = str(caught.value)
    assert "is not a Ray dashboard" in message and len(message) < 250, message
    assert not re.search("Max retries|HTTPConnectionPool|object at|Traceback|\n", message), message


def test_an_empty_address_is_not_the_head_of_this_machine() -> None:
    """As of a variable that is not set: --address "$HEAD"."""
    with pytest.raises(UserError, match="expected the URL of Ray's dashboard"):
        open_client("")


def test_a_head_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message names a proxy that is not used, and a port that is probably missing."""
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"^Nothing answers at http://127\.0\.0\.1:1\. Check"):
        open_client("127.0.0.1:1")
    assert "add the port of the dashboard: http://head:8265. Check" in unreachable("http://head")
    assert "http://head:8265/ray." in unreachable("http://head/ray")
    assert "at https://head (port 443). Check" in unreachable("https://head")
    monkeypatch.setenv("http_proxy", "http://me:hush@proxy:3128")
    message = unreachable("http://head:8265")
    assert "The proxy of the variable http_proxy is not used" in message and "hush" not in message
    assert "proxy" not in unreachable("https://head:8265")
    monkeypatch.setenv("no_proxy", "head")
    assert "proxy" not in unreachable("http://head:8265")
