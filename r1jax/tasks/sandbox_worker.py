"""Runs inside a sandbox, by itself: standard library only, handed to `python -I -S -c` as text.

Arguments: a role, a JSON object of resource limits, a folder with numpy, and the role's open
descriptors.

- `program` (source, errors): a whole program; standard input and output are the test's.
- `candidate` (channel): defines what the program defines, then answers requests.
- `harness` (channel, verdicts): runs test code against the candidate at the channel's other end. It
  alone knows the expected values and writes verdicts; what the candidate prints goes nowhere.

Between candidate and harness travels plain data only: numbers, text, lists, dates and the like are
copied as values of the built-in types, instances of the prelude's classes attribute by attribute.
Anything else stays where it is and the harness gets a `Remote` for it, which equals nothing but
itself. So a candidate can give answers and nothing more: no `__eq__` of its own is ever called in
the harness. A function of the test's (a key, a predicate) stays in the harness too: the candidate
gets a `Callback`, and while it runs each side answers what the other asks.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import resource
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

MEMORY_EXIT = 77  # a program that ran out of memory
MAX_MESSAGE = 1 << 26  # bytes
MAX_ITEMS = 1_000_000  # that a Remote yields when iterated
Reply = dict[str, Any]
ASK, NUMBER = "<ask>", "<number>"  # no names that a program can use
PREDICATES = {"startswith", "endswith"} | {
    name for kind in (str, bytes, set, float) for name in dir(kind) if name.startswith("is")
}
_BUILTIN_TYPES: dict[str, type] = {
    x.__name__: x for x in vars(builtins).values() if isinstance(x, type)
}


def limit_resources(limits: dict[str, int]) -> None:
    """Hard limits, which the program cannot raise again: it has no capabilities."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(kind, (value, value))


# -- plain data ------------------------------------------------------------------------------------


def encode(
    root: Any, records: dict[str, type], keep: Callable[[Any], list[Any]]
) -> list[list[Any]]:
    """A value as a flat table; entry 0 is the root, entries name others by their index.

    Flat, so that neither depth (a linked list of thousands) nor cycles matter. `keep` takes what is
    no plain data and gives the entry by which the other side may ask for it.
    """
    items, index = [root], {id(root): 0}

    def ref(item: Any) -> int:
        if id(item) not in index:
            index[id(item)] = len(items)
            items.append(item)
        return index[id(item)]

    def entry(x: Any) -> list[Any]:
        if type(x).__module__ == "numpy" and getattr(x, "shape", None) == ():
            x = x.item()
        if (
            type(x).__module__ == "numpy"
            and type(x).__name__ == "ndarray"
            and not x.dtype.hasobject
        ):
            return ["N", x.dtype.str, list(x.shape), x.tobytes().hex()]
        if x is None or isinstance(x, bool):
            return ["c", x]
        if isinstance(x, int):
            return ["i", hex(int(x))]
        if isinstance(x, float):
            return ["f", float(x).hex()]
        if isinstance(x, complex):
            return ["z", x.real.hex(), x.imag.hex()]
        if isinstance(x, str):
            return ["s", str.__str__(x)]
        if isinstance(x, type) and _BUILTIN_TYPES.get(x.__name__) is x:
            return ["T", x.__name__]
        if isinstance(x, bytes | bytearray):
            return ["b", bytes(x).hex()]
        if isinstance(x, range):
            return ["R", hex(x.start), hex(x.stop), hex(x.step)]
        for kind, letter in ((list, "l"), (tuple, "t"), (set, "S"), (frozenset, "F")):
            if isinstance(x, kind):
                return [letter, [ref(item) for item in x]]
        if isinstance(x, dict):
            return ["d", [[ref(key), ref(value)] for key, value in x.items()]]
        if (text := as_text(x)) is not None:
            return text
        name = type(x).__name__
        if name in records and isinstance(getattr(x, "__dict__", None), dict):
            return ["r", name, [[key, ref(value)] for key, value in vars(x).items()]]
        return keep(x)

    table: list[list[Any]] = []
    while len(table) < len(items):
        table.append(entry(items[len(table)]))
    return table


# Types of the standard library, whose values travel as text: {name: (module, from text)}.
_TEXTS: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "Decimal": ("decimal", lambda kind, text: kind(text)),
    "Fraction": ("fractions", lambda kind, text: kind(text)),
    "datetime": ("datetime", lambda kind, text: kind.fromisoformat(text)),
    "date": ("datetime", lambda kind, text: kind.fromisoformat(text)),
    "time": ("datetime", lambda kind, text: kind.fromisoformat(text)),
    "timedelta": ("datetime", lambda kind, text: kind(*map(int, text.split()))),
}


def as_text(x: Any) -> list[Any] | None:
    """The entry of a value of exactly one of these types; None for others."""
    name = type(x).__name__
    module, _ = _TEXTS.get(name, ("", None))
    if getattr(sys.modules.get(module), name, None) is not type(x):
        return None
    if name == "timedelta":
        return ["X", name, f"{x.days} {x.seconds} {x.microseconds}"]
    return ["X", name, x.isoformat() if module == "datetime" else str(x)]


def from_text(name: str, text: str) -> Any:
    module, make = _TEXTS[name]
    return make(getattr(importlib.import_module(module), name), text)


def decode(
    table: list[list[Any]], records: dict[str, type], find: Callable[[str, int], Any]
) -> Any:
    """The inverse; every value is of exactly a built-in type, a record's class, or from `find`."""
    built: dict[int, Any] = {}

    def value(i: int) -> Any:
        if i not in built:
            built[i] = shallow(table[i])
        return built[i]

    def shallow(entry: list[Any]) -> Any:
        kind = entry[0]
        if kind == "c":
            return {None: None, True: True, False: False}[entry[1]]
        if kind == "i":
            return int(entry[1], 16)
        if kind == "f":
            return float.fromhex(entry[1])
        if kind == "z":
            return complex(float.fromhex(entry[1]), float.fromhex(entry[2]))
        if kind == "s":
            return str(entry[1])
        if kind == "T":
            return _BUILTIN_TYPES[entry[1]]
        if kind == "b":
            return bytes.fromhex(entry[1])
        if kind == "t":
            return tuple(value(i) for i in entry[1])
        if kind == "F":
            return frozenset(value(i) for i in entry[1])
        if kind == "r":
            return object.__new__(records[entry[1]])
        if kind == "R":
            return range(*(int(x, 16) for x in entry[1:]))
        if kind in "hk":  # something there, or a function of the test's
            return find(kind, int(entry[1]))
        if kind == "X":
            return from_text(entry[1], entry[2])
        if kind == "N":
            numpy = importlib.import_module("numpy")
            return numpy.frombuffer(bytes.fromhex(entry[3]), entry[1]).reshape(entry[2]).copy()
        return {"l": list, "S": set, "d": dict}[kind]()

    for i in range(len(table)):
        value(i)
    for i, entry in enumerate(table):  # what may hold itself is filled last
        if entry[0] == "l":
            built[i].extend(built[j] for j in entry[1])
        elif entry[0] == "S":
            built[i].update(built[j] for j in entry[1])
        elif entry[0] == "d":
            built[i].update((built[k], built[v]) for k, v in entry[1])
        elif entry[0] == "r":
            # Data only: an attribute that hides a method would be code of the other side's.
            kind = type(built[i])
            data = ((name, built[j]) for name, j in entry[2])
            vars(built[i]).update((n, x) for n, x in data if not hasattr(kind, n))
    return built[0]


class Gone(BaseException):
    """The other side is gone or sends no messages; no test's `except Exception` may swallow it."""


class Channel:
    """Messages as JSON behind their length."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self.gone = False  # a bare `except:` of a test's may have swallowed that

    def _end(self) -> Gone:
        self.gone = True
        return Gone()

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        data = struct.pack("!Q", len(data)) + data
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            raise self._end() from None

    def receive(self) -> Any:
        """Raises Gone."""
        (length,) = struct.unpack("!Q", self._exactly(8))
        if length > MAX_MESSAGE:
            raise self._end()
        try:
            return json.loads(self._exactly(length))
        except (ValueError, RecursionError):
            raise self._end() from None

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            try:
                part = self._file.read(min(count, 1 << 20))
            except OSError:
                part = b""
            if not part:
                raise self._end()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def run_source(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Not with this file's own `from __future__`."""
    exec(compile(source, name, "exec", dont_inherit=True), namespace)


def module_of(name: str, source: str) -> tuple[dict[str, Any], dict[str, type]]:
    """(namespace after the prelude has run in it, the classes that the prelude defines)."""
    module = types.ModuleType(name)
    module.__dict__.update(__builtins__=builtins, __file__="/tmp/program.py")
    sys.modules[name] = module
    run_source(source, "<prelude>", module.__dict__)
    records = {
        key: value
        for key, value in module.__dict__.items()
        if isinstance(value, type) and value.__module__ == name
    }
    return module.__dict__, records


# -- the candidate's side --------------------------------------------------------------------------


def candidate(descriptor: int) -> None:
    """Loads the program, then serves requests until the harness is gone."""
    channel = Channel(descriptor)
    start = channel.receive()
    namespace, records = module_of("__main__", start["prelude"])
    kept: dict[int, Any] = {}

    def keep(item: Any) -> list[Any]:
        if isinstance(item, Callback):
            return ["k", vars(item)[NUMBER]]
        kept[id(item)] = item
        return ["h", id(item)]

    def find(kind: str, number: int) -> Any:
        return Callback(call_back, number) if kind == "k" else kept[number]

    def call_back(number: int, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Calls a function of the test's, and serves what it asks meanwhile."""
        tables = [encode(x, records, keep) for x in (args, kwargs)]
        channel.send({"callback": number, "args": tables})
        while "args" in (message := channel.receive()):
            channel.send(reply(lambda message=message: answer(message)))  # type: ignore[misc]
        if "error" in message:
            *names, text = map(str, message["error"])
            raise error_of(names, text, records)
        return decode(message["value"], records, find)

    def load() -> None:
        with contextlib.suppress(SystemExit, EOFError):  # a main program that ends, or wants input
            run_source(start["program"], "<program>", namespace)

    def answer(request: Reply) -> Any:
        operation, *rest = (decode(table, records, find) for table in request["args"])
        return OPERATIONS[operation](namespace, *rest)

    def reply(work: Callable[[], Any]) -> Reply:
        try:
            return {"value": encode(work(), records, keep)}
        except MemoryError:
            os._exit(MEMORY_EXIT)
        except Gone:
            raise
        except BaseException as error:  # SystemExit too: it ends nothing here
            return {"error": [*(kind.__name__ for kind in type(error).__mro__), said(error)]}

    channel.send(reply(load))
    while True:
        request = channel.receive()
        channel.send(reply(lambda request=request: answer(request)))  # type: ignore[misc]


class Callback:
    """A function of the test's, which stays in the harness."""

    def __init__(self, call: Callable[..., Any], number: int) -> None:
        vars(self).update({ASK: call, NUMBER: number})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[ASK](vars(self)[NUMBER], list(args), kwargs)


def error_of(names: list[str], message: str, records: dict[str, type]) -> Exception:
    """The first class of the other side's error that is known here, as an exception to raise.

    None that Python itself acts on: StopIteration would end a loop of the test's.
    """
    for name in names:
        known = records.get(name) or _BUILTIN_TYPES.get(name, object)
        ends_loops = issubclass(known, StopIteration | StopAsyncIteration)
        if issubclass(known, Exception) and not ends_loops:
            try:
                return known(message)
            except Exception:  # some want more than a text
                return known.__new__(known, message)
    return RuntimeError(message)


def said(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except Exception:
        return ""


def _iterate(_: Any, item: Any) -> list[Any]:
    return [value for value, _ in zip(item, range(MAX_ITEMS), strict=False)]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "has": lambda namespace, name: name in namespace,
    "get": lambda namespace, name: namespace[name],
    "call": lambda _, function, args, kwargs: function(*args, **kwargs),
    "attribute": lambda _, item, name: getattr(item, name),
    "set": lambda _, item, name, value: setattr(item, name, value),
    "item": lambda _, item, key: item[key],
    "set_item": lambda _, item, key, value: item.__setitem__(key, value),
    "len": lambda _, item: len(item),
    "next": lambda _, item: [value for _, value in zip(range(1), item, strict=False)],
    "iterate": _iterate,
}


# -- the harness's side ----------------------------------------------------------------------------


class Remote:
    """Something in the candidate's process. Two are equal only if they are the same."""

    def __init__(self, ask: Callable[..., Any], number: int) -> None:
        vars(self).update({ASK: ask, NUMBER: number})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[ASK]("call", self, list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        # Nor what Python itself looks for, nor what a test asks a text or a set for yes or no.
        if name.startswith("__") or name in PREDICATES:
            raise AttributeError(name)
        return vars(self)[ASK]("attribute", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[ASK]("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return vars(self)[ASK]("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        vars(self)[ASK]("set_item", self, key, value)

    def __len__(self) -> int:
        return int(vars(self)[ASK]("len", self))

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        return iter(vars(self)[ASK]("iterate", self))

    def __next__(self) -> Any:
        for value in vars(self)[ASK]("next", self):
            return value
        raise StopIteration


class Harness:
    """Runs tests one after another; each gets the names that the candidate defines."""

    def __init__(self, channel: Channel, prelude: str, program: str) -> None:
        self._channel = channel
        self._namespace, self._records = module_of("harness_prelude", prelude)
        self._remotes: dict[int, Remote] = {}
        self._functions: list[Callable[..., Any]] = []
        channel.send({"prelude": prelude, "program": program})
        self._receive()

    def _ask(self, *args: Any) -> Any:
        tables = [encode(arg, self._records, self._entry) for arg in args]
        self._channel.send({"args": tables})
        return self._receive()

    def _receive(self) -> Any:
        while "callback" in (reply := self._channel.receive()):
            self._channel.send(self._called(reply))
        if "error" in reply:
            *names, message = map(str, reply["error"])
            error = error_of(names, message, self._records)
            error.from_candidate = names[0]  # type: ignore[attr-defined]
            raise error
        return decode(reply["value"], self._records, self._find)

    def _called(self, request: Reply) -> Reply:
        """The result of a function of the test's, for the candidate that was given it."""
        try:
            function = self._functions[int(request["callback"])]
            args, kwargs = (decode(x, self._records, self._find) for x in request["args"])
            return {"value": encode(function(*args, **kwargs), self._records, self._entry)}
        except Exception as error:
            return {"error": [*(kind.__name__ for kind in type(error).__mro__), said(error)]}

    def _entry(self, item: Any) -> list[Any]:
        if isinstance(item, Remote):
            return ["h", int(vars(item)[NUMBER])]
        if not callable(item):
            raise TypeError(f"a test cannot pass a {type(item).__name__} to a candidate")
        self._functions.append(item)
        return ["k", len(self._functions) - 1]

    def _find(self, kind: str, number: int) -> Any:
        return self._functions[number] if kind == "k" else self._remote(number)

    def _remote(self, number: int) -> Remote:
        return self._remotes.setdefault(number, Remote(self._ask, number))

    def run(self, test: str) -> None:
        """Raises what the test raises."""
        code = compile(test, "<test>", "exec", dont_inherit=True)
        namespace = dict(self._namespace)
        python = set(dir(builtins)) - declared(test)
        for name in sorted(names_of(code) - set(namespace) - python):
            if self._ask("has", name) is True:
                namespace[name] = self._ask("get", name)
        try:
            exec(code, namespace)
        finally:
            if self._channel.gone:  # whatever the test made of that
                raise Gone


def names_of(code: types.CodeType) -> set[str]:
    """The global names (and attributes) that code and the functions in it mention."""
    inner = (names_of(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


def declared(test: str) -> set[str]:
    """The names that a test says are the candidate's, by `global` outside of functions."""
    if "global " not in test:
        return set()
    import ast  # which few tests need

    nodes = [node for node in ast.parse(test).body if isinstance(node, ast.Global)]
    return {name for node in nodes for name in node.names}


def harness(channel: int, verdict_file: int) -> None:
    """Standard input: {prelude, program, tests, stop_early}. Out: per test [verdict, message]."""
    job = json.load(sys.stdin)
    with os.fdopen(verdict_file, "w") as verdicts:

        def tell(*line: Any) -> None:
            verdicts.write(json.dumps(line) + "\n")
            verdicts.flush()

        try:
            driver = Harness(Channel(channel), job["prelude"], job["program"])
            for test in job["tests"]:
                try:
                    driver.run(test)
                    tell("passed", "")
                except Exception as error:
                    tell(*verdict_of(error))
                    if job["stop_early"]:
                        return
        except Gone:
            tell("crash", "the program ended its process")
        except Exception as error:  # the program does not load
            tell(*verdict_of(error))


def verdict_of(error: Exception) -> tuple[str, str]:
    """An error of the candidate's own is a crash, one of the test's code a wrong answer."""
    name = getattr(error, "from_candidate", None)
    if name == "MemoryError":
        return "memory_limit", str(error)
    if name is not None:
        return "crash", f"{name}: {error}"
    return "wrong_answer", f"{type(error).__name__}: {error}"[:500]


def program(source_descriptor: int, errors: int) -> None:
    """A whole program as __main__: a JSON list of prelude and program."""
    os.dup2(errors, 2)
    os.close(errors)
    with os.fdopen(source_descriptor) as file:
        prelude, source = json.load(file)
    try:
        namespace, _ = module_of("__main__", prelude)
        run_source(source, "<program>", namespace)
    except MemoryError:
        os._exit(MEMORY_EXIT)


def main() -> None:
    """What the sandbox calls."""
    _, role, given, packages, *descriptors = sys.argv
    del sys.argv[1:]
    limit_resources(json.loads(given))
    sys.set_int_max_str_digits(0)  # the limits of time hold instead
    sys.path.append(packages)
    os.putenv("OPENBLAS_NUM_THREADS", "1")  # numpy's; a thread counts as a process here
    # What Python's `site` does, which is left out.
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    roles: dict[str, Callable[..., None]] = {
        "program": program,
        "candidate": candidate,
        "harness": harness,
    }
    with contextlib.suppress(Gone):
        roles[role](*map(int, descriptors))
