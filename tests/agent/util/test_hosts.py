"""Only `localhost` and addresses that are read as loopback are this machine, in settings and in headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.util.hosts import is_loopback, is_loopback_origin, read_host


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost", "127.0.0.1", "127.8.9.10", "::1", "[::1]", "0:0::1", "::ffff:127.0.0.1"]
)
def test_localhost_and_loopback_addresses_are_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("127.evil.com", "127.0.0.1.evil.com", "127.0.0.1, evil.com", "evil.com@127.0.0.1", "localhost.evil.com"),
        *("localhost.", "127.0.0.1.", " 127.0.0.1", "127.0.0.1:80", "", "0.0.0.0", "::", "::2", "::ffff:10.0.0.1"),
        *("127.1", "127.", "0x7f.1", "0x7f000001", "2130706433", "127.0.0.01", "0177.0.0.1", "127.0.0.\u0661"),
        *("[127.0.0.1]", "[::1", "::1]", "[[::1]]", "[localhost]", "::1%eth0", "[::1%25eth0]", "\u24db\u24de\u24d2al"),
    ],
)
def test_what_only_looks_like_this_machine_is_another(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost", "localhost"),
        ("127.0.0.1:8777", "127.0.0.1"),
        ("[::1]:8777", "[::1]"),
        ("[::1]", "[::1]"),
        ("evil.example:65535", "evil.example"),
        *((one, None) for one in ("", ":80", "::1", "[::1", "[::1]x", "[::1]:", "[]", "[evil.example]")),
        *((one, None) for one in ("localhost:", "localhost:8o", "localhost:-1", "localhost:65536", "localhost:80:80")),
        *((one, None) for one in ("a@localhost", "localhost/x", "localhost?x", "localhost#x", "127.0.0.1, evil.com")),
        *((one, None) for one in ("localhost ", " localhost", "localhost\n", "local\thost", "l\xf6calhost")),
    ],
)
def test_a_host_header_is_a_host_and_perhaps_a_port(header: str, host: str | None) -> None:
    assert read_host(header) == host


def test_an_origin_of_this_machine_has_a_scheme_a_host_and_perhaps_a_port() -> None:
    for origin in ("http://localhost", "https://127.0.0.1:3000", "HTTP://[::1]:80"):
        assert is_loopback_origin(origin)
    for origin in (
        *("null", "", "localhost", "//localhost", "http://", "file://localhost", "http://127.evil.com"),
        *("http://localhost.evil.com", "http://localhost:80@evil.com", "http://evil.com@localhost"),
        *("http://localhost/", "http://localhost http://evil.com", "http://evil.com#localhost", "http://[::1"),
    ):
        assert not is_loopback_origin(origin)


@given(st.text(max_size=30) | st.from_regex(r"[\[\]:.@%0-9a-f]{0,20}", fullmatch=True))
def test_whatever_a_header_says_it_is_read_or_not_and_nothing_breaks(text: str) -> None:
    named = read_host(text)
    assert named is None or is_loopback(named) in (True, False)
    assert is_loopback_origin(text) in (True, False)
