"""Messages to systemd over its datagram socket. Without NOTIFY_SOCKET every call does nothing."""

import os
import socket


def _send(message: str) -> bool:
    """Whether it was sent. A lost message must never hurt the daemon, so no error leaves this function."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    target = os.fsencode(address)
    if address.startswith("@"):  # Linux's abstract names begin with a zero byte
        target = b"\0" + target[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(0.2)  # a full queue must not hold up the work loop
            channel.sendto(message.encode(errors="replace"), target)
    except (OSError, ValueError):
        return False
    return True


def _one_line(text: str) -> str:
    return " ".join(text.split())


def ready(text: str = "") -> bool:
    return _send("READY=1" + (f"\nSTATUS={_one_line(text)}" if text else ""))


def status(text: str) -> bool:
    return _send(f"STATUS={_one_line(text)}")


def watchdog() -> bool:
    return _send("WATCHDOG=1")


def stopping(text: str = "") -> bool:
    return _send("STOPPING=1" + (f"\nSTATUS={_one_line(text)}" if text else ""))


def extend_timeout(seconds: float) -> bool:
    """Asks for this much more time from now on; to be repeated while a checkpoint is being saved."""
    return _send(f"EXTEND_TIMEOUT_USEC={max(1, int(seconds * 1_000_000))}")


def watchdog_interval() -> float | None:
    """How often to ping, in seconds: half of what the unit allows. None where nobody waits for pings."""
    try:
        usec = int(os.environ.get("WATCHDOG_USEC", "0"))
        for_pid = int(os.environ.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return None
    return usec / 2_000_000 if usec > 0 and for_pid == os.getpid() else None
