"""The processes of one run, known to each other: who has not come, and who is gone.

The first one listens at the port behind the coordinator's, and every other one keeps a connection
to it as long as it runs. So a process that dies is noticed by its closed connection, a host that
dies by the system's own keep-alives, and the others end with a sentence instead of waiting for it.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1jax.config import UserError
from r1jax.machines.preemption import STOPPED

LOST = 76  # the exit code where another process is gone: the same command goes on
SILENT = 35  # seconds after which a host is gone that does not answer
GRACE = 20  # seconds in which a process may end by itself of an error that others have told
TELLING = 5  # seconds in which the others are heard before an error of this one counts


class Link:
    """A connection to another process, over which JSON objects go, a line each."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._lines = connection.makefile("r", encoding="utf-8")  # one: it reads ahead

    def heard(self) -> Iterator[Any]:
        """Until the connection is closed."""
        try:
            for line in self._lines:
                yield json.loads(line)
        except (OSError, ValueError):  # closed, torn, or somebody else's
            return

    def say(self, message: Mapping[str, Any]) -> None:
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return  # whoever listens there notices by itself

    def keep_alive(self) -> None:
        """A host that does not answer closes the connection after SILENT seconds."""
        self.connection.settimeout(None)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        every = SILENT // 5
        for name, value in (
            ("TCP_KEEPIDLE", every),
            ("TCP_KEEPINTVL", every),
            ("TCP_KEEPCNT", 4),
            ("TCP_USER_TIMEOUT", 1000 * SILENT),
        ):
            if hasattr(socket, name):  # Linux
                self.connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Peers:
    """The others, from here."""

    def __init__(self, process: int, hosts: Sequence[str], links: Mapping[int, Link]) -> None:
        """`links` are the connections to the others: the first process has all, the others one."""
        self._process, self._hosts, self._links = process, list(hosts), dict(links)
        self._ended: set[int] = set()  # in good order
        self._code = 0  # this process's own exit code, as far as it is known
        self._said_goodbye = False
        self._lock = threading.Lock()
        for other, link in self._links.items():
            threading.Thread(target=self._listen, args=(other, link), daemon=True).start()
        atexit.register(self._say_goodbye)

    def ends_with(self, code: int) -> None:
        """What the others are told when this process ends."""
        self._code = code

    def _listen(self, other: int, link: Link) -> None:
        for said in link.heard():
            if "gone" in said:
                self._leave(said["gone"])
            self._hear(said["process"], said["code"])
        if other not in self._ended:
            self._leave(f"{self._name(other)} is gone")

    def _hear(self, process: int, code: int) -> None:
        """Another process ends."""
        self._ended.add(process)
        if process == self._process:
            return
        if self._process == 0:
            self._tell({"process": process, "code": code})
        if code not in (0, STOPPED):
            said = f"{self._name(process)} has ended with exit code {code}; its log says why"
            timer = threading.Timer(GRACE, self._leave, [said])
            timer.daemon = True
            timer.start()

    def _leave(self, said: str) -> None:
        """From any thread: the main one may wait for what never comes."""
        if self._said_goodbye:
            os._exit(self._code)
        self._tell({"gone": said})  # else this process would be who is gone
        print(f"error: {said}; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.stderr.flush()
        os._exit(LOST)

    def _say_goodbye(self) -> None:
        self._said_goodbye = True
        self._tell({"process": self._process, "code": self._code})

    def _tell(self, message: Mapping[str, Any]) -> None:
        with self._lock:
            for link in self._links.values():
                link.say(message)

    def _name(self, process: int) -> str:
        return f"process {process} ({self._hosts[process]})"


_peers: Peers | None = None


def meet(address: str, count: int, process: int, seconds: float) -> None:
    """Returns when all processes have come to the first one, which listens behind the port of
    `address`, HOST:PORT. UserError, that names those who have not, after so many seconds.
    """
    global _peers
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address!r}; it is HOST:PORT")
    behind = int(port) + 1 if int(port) < 65_535 else int(port) - 1
    deadline = time.monotonic() + seconds
    if process == 0:
        hosts, links = _gather(behind, count, deadline, seconds)
    else:
        hosts, links = _join(host.strip("[]"), behind, process, deadline, seconds)
    _peers = Peers(process, hosts, links)


def ends_with(code: int) -> None:
    """Tells the others, when this process ends, with which exit code; nothing for a single one."""
    if _peers is not None:
        _peers.ends_with(code)


def hear_others() -> None:
    """An error may be another process's end; then this one ends here, with a sentence on that."""
    if _peers is not None:
        time.sleep(TELLING)


def _gather(
    port: int, count: int, deadline: float, seconds: float
) -> tuple[list[str], dict[int, Link]]:
    hosts: dict[int, str] = {0: socket.gethostname()}
    links: dict[int, Link] = {}
    with _listening(port) as server:
        while len(hosts) < count and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection, _ = server.accept()
                connection.settimeout(TELLING)
                link = Link(connection)
                hello = next(link.heard())
                if hello["process"] not in range(1, count):
                    continue
                hosts[hello["process"]] = str(hello["host"])
            except (OSError, StopIteration, KeyError, TypeError, ValueError):
                continue  # too late, or somebody else
            link.keep_alive()
            links[hello["process"]] = link
    missing = sorted(set(range(count)) - set(hosts))
    if missing:
        said = f"after {seconds:.0f} s {_named(missing, count)} of {count} had not come"
        for link in links.values():
            link.say({"missing": said})
        raise UserError(said)
    for link in links.values():
        link.say({"hosts": [hosts[i] for i in range(count)]})
    return [hosts[i] for i in range(count)], links


def _listening(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        said = os.strerror(error.errno or 0)
        raise UserError(
            f"port {port}, behind the coordinator's, where the processes meet: {said};"
            " give JAX_COORDINATOR_ADDRESS (or JAX_COORDINATOR_PORT) another one"
        ) from None


def _join(
    host: str, port: int, process: int, deadline: float, seconds: float
) -> tuple[list[str], dict[int, Link]]:
    connection = None
    while connection is None:
        try:
            connection = socket.create_connection((host, port), timeout=TELLING)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"after {seconds:.0f} s process 0 did not answer at {host}:{port}: {error}"
                ) from None
            time.sleep(0.2)
    connection.settimeout(max(deadline - time.monotonic(), 0) + TELLING)
    link = Link(connection)
    link.say({"process": process, "host": socket.gethostname()})
    answer: Any = next(link.heard(), None)
    if not isinstance(answer, dict) or not answer.keys() & {"missing", "hosts"}:
        raise UserError(f"process 0 does not answer at {host}:{port}, where the processes meet")
    if "missing" in answer:
        raise UserError(answer["missing"])
    link.keep_alive()
    return answer["hosts"], {0: link}


def _named(processes: Sequence[int], count: int) -> str:
    """With the hosts that a TPU slice names."""
    names = [name for name in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]
    of_hosts = [f" ({names[i]})" if len(names) == count else "" for i in processes]
    said = ", ".join(f"{i}{name}" for i, name in zip(processes, of_hosts, strict=True))
    return f"process{'es' if len(processes) > 1 else ''} {said}"
