"""A program that Ray starts as a worker: it has one forked in its place (`prefork.py`), and ends as that one does.

Nothing heavy is imported, and no site-packages: it starts in a hundredth of a second.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def main() -> None:
    """stand_in.py SOCKET PROGRAM ARGUMENTS..."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    asked = {"arguments": sys.argv[2:], "environment": dict(os.environ), "folder": os.getcwd()}
    text = json.dumps(asked).encode()
    socket.send_fds(client, [len(text).to_bytes(8, "big")], [0, 1, 2])
    client.sendall(text)
    status = client.recv(1)
    sys.exit(status[0] if status else 1)


if __name__ == "__main__":
    main()
