"""One tokenizer for SentencePiece models, Hugging Face directories and GGUF files. No jax.

Text is untrusted: a control token that somebody types is encoded as ordinary text. Only
r1jax/data/chat.py writes control tokens, by their ids.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece
import tokenizers
from etils import epath
from tokenizers import AddedToken

from r1jax.config import DataError
from r1jax.files import absolute

# What load_tokenizer reads and Tokenizer.save writes back, byte for byte.
SENTENCEPIECE, FAST, CONFIG = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
SPECIAL_MAP, GENERATION, TEMPLATE = (
    "special_tokens_map.json", "generation_config.json", "chat_template.jinja",
)  # fmt: skip
FILES = (SENTENCEPIECE, FAST, CONFIG, SPECIAL_MAP, GENERATION, TEMPLATE)
PROTO = "sentencepiece.sentencepiece_model_pb2"  # the library's own reading of its files
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")

# <|im_start|>, <｜User｜>: steer the model although some tokenizers don't call them special.
CONTROL_SHAPE = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)
# <think>, [THINK], <|begin_of_solution|>: a model writes them, whatever a tokenizer calls them.
_THOUGHTS = re.compile(r"[<\[].*(?:think|thought|reason|answer|solution).*[>\]]", re.I | re.DOTALL)
_TAG = re.compile(r"<(/?)([A-Za-z][\w:-]*)>")


def written_tags(tokens: Iterable[str], roles: Iterable[str]) -> set[str]:
    """Which of the tokens that a tokenizer calls special are text: tags that a model writes.

    Those whose names speak of thoughts or answers, and pairs such as <tool_call> and </tool_call>,
    but for `roles` (<s> and </s> are a pair as well).
    """
    known = set(tokens) - set(roles)
    pairs = {token for token in known if (tag := _TAG.fullmatch(token)) and _partner(tag) in known}
    return pairs | {token for token in known if _THOUGHTS.fullmatch(token)}


def _partner(tag: re.Match[str]) -> str:
    return f"<{'' if tag[1] else '/'}{tag[2]}>"


class SentencePiece:
    """tokenizer.model; its control symbols are never parsed from text."""

    vocab_size: int
    control: dict[str, int]  # control tokens and their ids
    roles: dict[str, str]  # the file's own idea of ROLES
    first_id: int | None  # what it puts before every text, if anything
    begins_anew: bool  # whether text behind a control token is encoded as if it began there

    def __init__(self, model: bytes, roles: Iterable[str] = ()) -> None:
        """`roles` are the tokens of ROLES that other files name."""
        processor = _processor(model)
        self.vocab_size = processor.get_piece_size()
        pieces = {i: processor.id_to_piece(i) for i in range(self.vocab_size)}
        ids = (processor.bos_id(), processor.eos_id(), processor.pad_id(), processor.unk_id())
        self.roles = {role: pieces[i] for role, i in zip(ROLES, ids, strict=True) if i >= 0}
        self.first_id = processor.bos_id() if processor.bos_id() >= 0 else None
        self.begins_anew = False
        control = {pieces[i]: i for i in pieces if processor.is_control(i)}
        tags = written_tags(control, {*roles, *self.roles.values()})
        self.control = {piece: i for piece, i in control.items() if piece not in tags}
        proto = spm_proto(model)
        for piece in proto.pieces:
            if piece.piece in tags:
                piece.type = piece.USER_DEFINED
        self._beginning = _processor(proto.SerializeToString())
        proto.normalizer_spec.add_dummy_prefix = False
        self._going_on = _processor(proto.SerializeToString())

    def encode(self, text: str, begins: bool) -> list[int]:
        return (self._beginning if begins else self._going_on).encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._going_on.decode([i for i in ids if i < self.vocab_size])

    def token_id(self, token: str) -> int | None:
        token_id = self._going_on.piece_to_id(token)
        return token_id if self._going_on.id_to_piece(token_id) == token else None


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def spm_proto(model: bytes) -> Any:
    return importlib.import_module(PROTO).ModelProto.FromString(model)


class Fast:
    """tokenizer.json, with the same attributes; its ROLES stand in other files."""

    def __init__(self, definition: str, roles: Iterable[str] = ()) -> None:
        """`roles` are the tokens of ROLES that other files name."""
        self.roles: dict[str, str] = {}
        values = json.loads(definition)
        added = values.get("added_tokens") or ()
        tags = written_tags([token["content"] for token in added], roles)
        for token in added:
            token["special"] = token["special"] and token["content"] not in tags
        self._beginning = tokenizers.Tokenizer.from_str(json.dumps(values))
        control = {
            i: t
            for i, t in self._beginning.get_added_tokens_decoder().items()
            if t.special or (CONTROL_SHAPE.fullmatch(t.content) and t.content not in tags)
        }
        self.begins_anew = _begins_anew(values.get("normalizer"), values.get("pre_tokenizer"))
        steps = ("normalizer", "pre_tokenizer", "decoder")
        going_on = values | {s: _without_space(values[s]) for s in steps if s in values}
        self._going_on = self._beginning  # as most have it: no space is put before a text
        if going_on != values:
            self._going_on = tokenizers.Tokenizer.from_str(json.dumps(going_on))
        for tokenizer in (self._beginning, self._going_on):
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode_special_tokens = True  # "encode them like any other text"
            tokenizer.add_special_tokens([_as_special(token) for token in control.values()])
        self.vocab_size = max(self._beginning.get_vocab().values()) + 1
        self.control = {token.content: token_id for token_id, token in control.items()}
        self.first_id = next(iter(self._beginning.encode("", add_special_tokens=True).ids), None)

    def encode(self, text: str, begins: bool) -> list[int]:
        tokenizer = self._beginning if begins else self._going_on
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._going_on.decode(ids, skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._beginning.token_to_id(token)


Step = dict[str, Any] | None  # of a tokenizer.json: its normalizer, pre_tokenizer or decoder


def _without_space(step: Step) -> Step:
    """The step without the space that it puts before a text, or takes away from one."""
    if step is None or (step["type"] == "Prepend") or _strips_space(step):
        return None
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never", "add_prefix_space": False}
    if step["type"] == "ByteLevel":
        return step | {"add_prefix_space": False}
    if step["type"] == "Sequence":
        name = next(key for key in step if key != "type")
        parts = [part for each in step[name] if (part := _without_space(each))]
        return step | {name: parts}
    return step


def _strips_space(step: dict[str, Any]) -> bool:
    return step["type"] == "Strip" and step.get("content") == " "


def _begins_anew(*steps: Step) -> bool:
    """Whether a space is put before each text between two special tokens."""
    for step in (step for step in steps if step):
        parts = [part for value in step.values() if isinstance(value, list) for part in value]
        if step["type"] == "Sequence" and _begins_anew(*parts):
            return True
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") == "always":
            return bool(step.get("add_prefix_space", True))
        if step["type"] == "Prepend" or (step["type"] == "ByteLevel" and step["add_prefix_space"]):
            return True
    return False


Backend = SentencePiece | Fast


class Tokenizer:
    """Text <-> ids, and the ids that begin and end a sequence."""

    vocab_size: int  # the largest id + 1; a model's own may be larger
    bos_id: int | None  # begins every sequence; None where the model knows no such token
    eos_id: int  # ends an assistant's turn
    stop_ids: tuple[int, ...]  # every id that ends a completion; eos_id among them
    pad_id: int
    chat_template: str | None  # jinja2
    special_tokens: dict[str, str]  # ROLES, as the chat template's variables
    control_tokens: dict[str, int]  # what encode never emits

    def __init__(self, files: Mapping[str, bytes], source: str) -> None:
        """`files` are those of FILES that there are; `source` names them in errors."""
        self._files, self._source = dict(files), source
        self._backend = _backend(files, source)
        config = _json(files, CONFIG, source)
        self.vocab_size = self._backend.vocab_size
        self.special_tokens = self._backend.roles | _roles(files, source)
        ids = {role: self._id(token) for role, token in self.special_tokens.items()}
        if "eos_token" not in ids:
            raise DataError(f"{source} names no eos_token (in {CONFIG} or {SPECIAL_MAP})")
        self.eos_id = ids["eos_token"]
        bos_id = ids.get("bos_token")
        adds_bos = config.get("add_bos_token", bos_id == self._backend.first_id)
        self.bos_id = bos_id if adds_bos else None
        self.pad_id = ids.get("pad_token", self.eos_id)
        more = stop_ids(_json(files, GENERATION, source), f"{source}/{GENERATION}")
        self.stop_ids = tuple(dict.fromkeys([self.eos_id, *more]))
        self.chat_template = _chat_template(files, config, source)
        roles = {t: ids[role] for role, t in self.special_tokens.items() if role != "unk_token"}
        self.control_tokens = dict(self._backend.control) | roles
        unknown = ids.get("unk_token")  # stands for what the vocabulary lacks
        self._forbidden = frozenset(self.control_tokens.values()) - {unknown}

    def encode(self, text: str, begins: bool = False) -> list[int]:
        """Ids of `text` as plain text, without bos, behind other text; decode gives it back.

        Some tokenizers put a space before a text that `begins` a sequence.
        """
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates: "?"
        ids = self._backend.encode(text, begins) if text else []
        if not self._forbidden.isdisjoint(ids):
            token = next(t for t, i in self.control_tokens.items() if i in ids)
            raise DataError(
                f"{self._source} cannot encode the text {token} without its control token"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without control tokens; broken UTF-8 at the ends becomes U+FFFD."""
        return self._backend.decode([int(i) for i in ids])

    def document(self, text: str) -> list[int]:
        """A whole text as a model is trained on it: bos (if it has one), the text, eos."""
        return [*self.beginning(text), self.eos_id]

    def beginning(self, text: str) -> list[int]:
        """The beginning of a sequence: bos (if the model has one) and the text."""
        return [*self.prefix, *self.encode(text, begins=True)]

    @property
    def begins_anew(self) -> bool:
        """Whether text behind a control token is encoded as if it began there."""
        return self._backend.begins_anew

    @property
    def prefix(self) -> list[int]:
        """What every sequence begins with: [bos_id] or nothing."""
        return [] if self.bos_id is None else [self.bos_id]

    def save(self, directory: epath.PathLike) -> None:
        """Writes the files that load_tokenizer reads."""
        target = absolute(directory)
        target.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (target / name).write_bytes(content)

    def changed(
        self, stop_tokens: Sequence[str] = (), template_args: Mapping[str, Any] | None = None
    ) -> Tokenizer:
        """Another tokenizer with these tokens as its only stops, the first of them its eos where
        the eos is not among them, and these values as defaults of its chat template's variables.
        """
        files = dict(self._files)
        if stop_tokens:
            stops = {token: self._id(token) for token in stop_tokens}
            eos = self.special_tokens["eos_token"]
            eos = eos if eos in stops else stop_tokens[0]
            _edit(files, CONFIG, self._source, eos_token=eos)
            _edit(files, GENERATION, self._source, eos_token_id=list(stops.values()))
        if template_args:
            template = _with_defaults(self.chat_template or "", template_args)
            if TEMPLATE in files:
                files[TEMPLATE] = template.encode("utf-8")
            else:
                _edit(files, CONFIG, self._source, chat_template=template)
        return Tokenizer(files, self._source)

    def exported(self) -> dict[str, bytes]:
        """The files with what transformers needs beside them to begin and stop as we do."""
        files = dict(self._files)
        _edit(files, GENERATION, self._source, eos_token_id=list(self.stop_ids))
        if FAST not in files:
            spaces = spm_proto(files[SENTENCEPIECE]).normalizer_spec
            about = self.special_tokens | {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": self.bos_id is not None,
                "add_eos_token": False,
                "add_prefix_space": spaces.add_dummy_prefix,
                "legacy": False,
                "clean_up_tokenization_spaces": False,
            }
            _edit(files, CONFIG, self._source, **about | _json(files, CONFIG, self._source))
        return files

    def _id(self, token: str) -> int:
        token_id = self._backend.token_id(token)
        if token_id is None:
            raise DataError(f"{self._source}: the vocabulary lacks the special token {token!r}")
        return token_id


# ---- the files of a directory ----


def _backend(files: Mapping[str, bytes], source: str) -> Backend:
    try:
        roles = _roles(files, source).values()
        if FAST in files:
            return Fast(files[FAST].decode("utf-8"), roles)
        if SENTENCEPIECE in files:
            return SentencePiece(files[SENTENCEPIECE], roles)
    except Exception as error:  # the libraries raise bare Exceptions for files they cannot read
        raise DataError(f"{source} holds a tokenizer that cannot be read: {error}") from error
    raise DataError(f"{source} has neither {FAST} nor {SENTENCEPIECE}")


def _as_special(token: AddedToken) -> AddedToken:
    return AddedToken(
        token.content, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
        normalized=token.normalized, special=True,
    )  # fmt: skip


def _json(files: Mapping[str, bytes], name: str, source: str) -> dict[str, Any]:
    try:
        values = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise DataError(f"{source}/{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{source}/{name} is a JSON {type(values).__name__}, expected an object")
    return values


def _edit(files: dict[str, bytes], name: str, source: str, **values: Any) -> None:
    """Sets keys of a JSON file among `files`; nothing is written where they are set already."""
    before = _json(files, name, source)
    if before | values != before:
        text = json.dumps(before | values, indent=2, ensure_ascii=False)
        files[name] = (text + "\n").encode("utf-8")


def _roles(files: Mapping[str, bytes], source: str) -> dict[str, str]:
    """ROLES -> token, as the JSON files name them; a token is a string or {"content": string}."""
    config, special_map = _json(files, CONFIG, source), _json(files, SPECIAL_MAP, source)
    roles = {}
    for role in ROLES:
        token = config.get(role) or special_map.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if token and not isinstance(token, str):
            raise DataError(f"{source}: {role} is {token!r}, not a token")
        if token:
            roles[role] = token
    return roles


def stop_ids(values: Mapping[str, Any], source: str) -> list[int]:
    """What a generation_config.json or a model's config.json says of tokens that end a text."""
    more = values.get("eos_token_id")
    found = more if isinstance(more, list) else [] if more is None else [more]
    for token in found:
        if type(token) is not int or token < 0:
            raise DataError(f"{source}: eos_token_id {more!r} is neither an id nor a list of ids")
    return found


def with_stops(files: Mapping[str, bytes], model_config: bytes, source: str) -> dict[str, bytes]:
    """`files`, with the stops of a model's config.json among those of generation_config.json."""
    found, values = dict(files), _json({"config.json": model_config}, "config.json", source)
    stops = stop_ids(_json(files, GENERATION, source), f"{source}/{GENERATION}")
    more = [i for i in stop_ids(values, f"{source}/config.json") if i not in stops]
    if more:
        _edit(found, GENERATION, source, eos_token_id=[*stops, *more])
    return found


def _with_defaults(template: str, values: Mapping[str, Any]) -> str:
    """The template with values for variables where its caller gives none."""
    lines = [f"{{% set {k} = {k} if {k} is defined else {v!r} %}}\n" for k, v in values.items()]
    return "".join(lines) + template


def _chat_template(
    files: Mapping[str, bytes], config: Mapping[str, Any], source: str
) -> str | None:
    template = config.get("chat_template")
    try:
        if TEMPLATE in files:
            template = files[TEMPLATE].decode("utf-8")
        elif isinstance(template, list):  # several, by name
            template = {t["name"]: t["template"] for t in template}.get("default")
    except (TypeError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: the chat template cannot be read: {error!r}") from None
    if template is not None and not isinstance(template, str):
        raise DataError(f"{source}: chat_template is {type(template).__name__}, not a text")
    return template
