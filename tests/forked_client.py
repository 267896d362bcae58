"""Stands where a daemon expects its trainer, and has a warm server fork one off (tests/forked_trainer.py).

    python forked_client.py SOCKET JOBDIR --alive-fd N --lock-fd N

Standard library only, and little of it. The forked process has this one's descriptors, working folder and
environment; SIGTERM is handed on, its end is this one's end, and being killed kills it.
"""

import itertools
import json
import os
import signal
import socket
import sys


def main(path: str, arguments: list[str]) -> int:
    kept = [int(value) for option, value in itertools.pairwise(arguments) if option.endswith("-fd")]
    alive, death = os.pipe()  # nobody writes: it closes when this process is gone, however
    told = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ), "kept": kept}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        server.connect(path)
        socket.send_fds(server, [json.dumps(told).encode()], [alive, 1, 2, *kept])
        os.close(alive)
        for descriptor in kept:  # the lock is the trainer's alone, and so is the knowledge that its daemon lives
            os.close(descriptor)
        pid = json.loads(server.recv(1024))["pid"]
        signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
        code = int(json.loads(server.recv(1024))["code"])
    os.close(death)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
