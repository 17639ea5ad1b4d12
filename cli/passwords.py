"""Where a password comes from: flag, then environment, then a prompt.  Never an argument, never a log.

Passwords are bytes.  What a file, a command or a descriptor gives loses the end of its last line, nothing else.

They are read into a bytearray, without copies on the way, so that wipe() leaves nothing of them.  Not those in SNAPFS_PASSWORD,
which stand in the process's environment in any case.
"""

from __future__ import annotations

import io
import os
import secrets
import shlex
import stat
import subprocess
import sys
import termios
from collections.abc import Callable
from typing import cast

from snapfs.cli.options import Settings
from snapfs.repo.errors import UsageError
from snapfs.repo.format.crypto import wipe

Notice = Callable[[str], None]
Password = bytes | bytearray
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""32 of them: 5 bits a letter; none that looks like another."""
_TOO_LONG = 64 * 1024
"""In bytes: more is no password but a wrong file, /dev/zero perhaps, that would fill the memory."""
_FROM_ENVIRONMENT = ("PASSWORD_COMMAND", "PASSWORD_FILE", "PASSWORD_FD", "PASSWORD")


def given(
    prefix: str,
    file: str | None = None,
    command: str | None = None,
    empty: bool = False,
    notice: Notice = lambda _: None,
) -> Password | None:
    """The password that flags or the environment words with this prefix ("SNAPFS_") name; None if there are none.
    Raises UsageError."""
    if empty:
        return b""
    password: Password
    if file is not None:
        password, origin = _from_file(file, notice), f"--password-file {file}"
    elif command is not None:
        password, origin = _from_command(command), "--password-command"
    else:
        words = [word for word in _FROM_ENVIRONMENT if os.environ.get(prefix + word)]
        if not words:
            return None
        if len(words) > 1:
            raise UsageError(f"{prefix}{words[0]} and {prefix}{words[1]} are both set: set one of them")
        origin = prefix + words[0]
        value = os.environ[origin]
        if words[0] == "PASSWORD_COMMAND":
            password = _from_command(value)
        elif words[0] == "PASSWORD_FILE":
            password = _from_file(value, notice)
        elif words[0] == "PASSWORD_FD":
            password = _from_descriptor(value, origin)
        else:
            password = os.fsencode(value)
    if not password:
        raise UsageError(
            f"{origin} gives an empty password; where no protection is wanted, say --insecure-no-password"
        )
    return password


def existing(settings: Settings, notice: Notice) -> Password | None:
    """The password of a repository as the settings name it; None: ask for it."""
    return given(
        "SNAPFS_", settings.password_file, settings.password_command, settings.insecure_no_password, notice
    )


def from_file(name: str, notice: Notice) -> Password:
    """The password in a file.  Raises UsageError."""
    password = _from_file(name, notice)
    if not password:
        raise UsageError(f"password file {name}: is empty")
    return password


def ask(question: str, instead: str = "--password-file, --password-command or SNAPFS_PASSWORD") -> Password:
    """Ask on the terminal, without echo.  Raises UsageError where there is none."""
    if not _has_terminal():
        raise UsageError(f"no password, and no terminal to ask for it: use {instead}")
    password = _typed(question)
    if password is None:
        raise UsageError("no password was typed")
    return password


def forget(password: Password | None) -> None:
    """Wipe what is not needed any more."""
    if isinstance(password, bytearray):
        wipe(password)


def ask_new(question: str, instead: str) -> Password:
    """Ask for a new password twice, until both are equal; `instead` says what to use where there is no terminal."""
    for _ in range(3):
        password = ask(question, instead)
        if not password:
            raise UsageError("an empty password protects nothing; if that is wanted: --insecure-no-password")
        if ask("once more, to be sure: ") == password:
            return password
        print("these two were not the same; please try again", file=sys.stderr)
    raise UsageError("no password was typed twice in the same way")


def generate() -> bytes:
    """64 random letters and digits, 320 bits, in groups of eight."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(8)) for _ in range(8)).encode()


def _has_terminal() -> bool:
    if sys.stdin is not None and sys.stdin.isatty():
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _typed(question: str) -> Password | None:
    """A line from the terminal, which does not show it; None at its end.  getpass makes copies that stay."""
    sys.stderr.flush()
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        fd = os.dup(sys.stdin.fileno())
    with open(fd, "rb", buffering=0) as terminal:
        shown = termios.tcgetattr(fd)
        hidden = [*shown]
        hidden[3] = shown[3] & ~termios.ECHO
        termios.tcsetattr(fd, termios.TCSAFLUSH, hidden)
        try:
            os.write(fd, question.encode("utf-8", "replace"))
            line = _read(terminal, until=b"\n")
        finally:
            termios.tcsetattr(fd, termios.TCSAFLUSH, shown)
            os.write(fd, b"\n")
    if not line:
        return None
    while line.endswith((b"\n", b"\r")):
        del line[-1]
    return line


def _read(file: io.RawIOBase, until: bytes = b"") -> bytearray:
    """All of it, or up to the end of a line; at most _TOO_LONG bytes.  Into one buffer, the rest of which is wiped."""
    buffer = bytearray(_TOO_LONG)
    length = 0
    with memoryview(buffer) as view:
        while length < _TOO_LONG and (got := file.readinto(view[length:])):
            length += got
            if until and buffer.endswith(until, 0, length):
                break
    password = bytearray(memoryview(buffer)[:length])
    wipe(buffer)
    return password


def _from_file(name: str, notice: Notice) -> Password:
    try:
        with open(name, "rb", buffering=0) as file:
            mode = os.fstat(file.fileno()).st_mode
            password = _first_line(_read(file), f"password file {name}")
    except OSError as error:
        raise UsageError(f"password file {name}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        notice(f"everybody on this machine can read the password file {name}: chmod 600 {shlex.quote(name)}")
    return password


def _from_command(text: str) -> Password:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"password command: {error}") from None
    if not words:
        raise UsageError("the password command is empty")
    try:
        with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0) as running:
            pipe = cast(io.RawIOBase, running.stdout)
            said = _read(pipe)
            pipe.close()
    except OSError as error:
        raise UsageError(f"password command {words[0]}: {error.strerror}") from None
    if running.returncode and len(said) < _TOO_LONG:
        raise UsageError(f"password command {words[0]} failed with exit code {running.returncode}")
    return _first_line(said, f"password command {words[0]}")


def _from_descriptor(text: str, origin: str) -> Password:
    try:
        with open(int(text), "rb", buffering=0) as file:
            return _first_line(_read(file), origin)
    except (ValueError, OSError):
        raise UsageError(f"{origin}={text} is not a file descriptor that can be read") from None


def _first_line(data: bytearray, origin: str) -> Password:
    if len(data) >= _TOO_LONG:
        raise UsageError(f"{origin}: too long for a password")
    while data.endswith((b"\n", b"\r")):
        del data[-1]
    if b"\n" in data:
        wipe(data)
        raise UsageError(f"{origin}: more than one line, and a password is one")
    return data
