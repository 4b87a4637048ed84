"""Addresses of databases, which may hold passwords."""

from urllib.parse import parse_qsl, unquote, urlsplit

from musketeers.errors import ConfigError


def place_of(url: str, *schemes: str) -> str:
    """Where the address leads: scheme, host, port and path, without user, password and options.

    Raises `ConfigError`, which does not repeat it, for an address of another scheme.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        # what cannot be read may be a password with a sign in it that has to be escaped
        raise ConfigError(
            "--url cannot be read; write it as scheme://user:password@host:port/name, with signs "
            "such as / and @ in a password as %2F and %40"
        ) from None
    if parts.scheme not in schemes:
        raise ConfigError(f"--url must begin with {' or '.join(f'{s}://' for s in schemes)}")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


def without_secrets(text: str, url: str) -> str:
    """Somebody else's words as one line, in which the passwords of the address are hidden."""
    parts = urlsplit(url)
    options = [value for name, value in parse_qsl(parts.query) if name.endswith("password")]
    line = " ".join(text.split())
    for secret in {parts.password or "", unquote(parts.password or ""), *options} - {""}:
        line = line.replace(secret, "***")
    return line
