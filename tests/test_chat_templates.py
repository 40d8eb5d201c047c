"""Chat templates of well-known models, in short: what is learnt is what follows the prompt."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from test_chat import learnt, text_of
from test_tokenizer import BYTES
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from r1jax.config import ConfigError, DataError
from r1jax.data.chat import render, render_prompt
from r1jax.data.tokenizer import Tokenizer
from r1jax.weights.load import load_tokenizer

QWEN25 = """\
{%- if messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% else %}<|im_start|>system
You are helpful.<|im_end|>
{% endif %}
{%- for m in messages %}
    {%- if m.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# OPENED: Qwen3-Thinking-2507 and Qwen3.5 open <think> in the prompt, Qwen3 leaves it to the model.
QWEN3 = """\
{%- if tools %}{{ '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- if m.role != 'assistant' %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {%- set thoughts = '' %}
        {%- if m.reasoning_content is string %}
            {%- set thoughts = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set thoughts = thoughts.lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thoughts.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- '<|im_start|>assistant\\n' + content }}{% endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}OPENED{% endif %}"""
SWITCH = """\
{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}"""
QWEN3_HYBRID = QWEN3.replace("OPENED", SWITCH + "{% endif %}")
QWEN3_THINKING = QWEN3.replace("OPENED", "{{ '<think>\\n' }}")
QWEN35 = QWEN3.replace("OPENED", SWITCH + "{% else %}{{ '<think>\\n' }}{% endif %}")

# R1's own and QwQ's: the prompt opens <think>, what the assistant says loses its thoughts.
R1_JINJA = """\
{{- '<|im_start|>' if false }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% endif %}
    {%- if m.role == 'system' %}{{ m.content }}{% endif %}
    {%- if m.role == 'assistant' %}
        {{- '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""
QWQ = QWEN25.replace(
    "m.content +", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content) +"
).replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")
OPEN_CHATML = QWEN25.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}")

LLAMA3 = """\
{%- for m in messages %}
    {%- set text = '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' %}
    {%- set text = text + m.content | trim + '<|eot_id|>' %}
    {{- (bos_token + text) if loop.first else text }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
MISTRAL = """\
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}{% endif %}
{%- endfor %}"""
LLAMA2 = """\
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- for m in messages %}
    {%- if m.role == 'user' %}
        {%- set first = system and loop.index0 == 1 %}
        {%- set text = ('<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if first else '') + m.content %}
        {{- bos_token + '[INST] ' + text | trim + ' [/INST]' }}
    {%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

CONTROL = [
    *("<s>", "</s>", "<｜User｜>", "<｜Assistant｜>", "<|im_start|>", "<|im_end|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"),
    "<|endoftext|>",
]
# Every template with the token that ends its turns.
TEMPLATES = {
    "qwen2.5": (QWEN25, "<|im_end|>"),
    "qwen3": (QWEN3_HYBRID, "<|im_end|>"),
    "qwen3-thinking": (QWEN3_THINKING, "<|im_end|>"),
    "qwen3.5": (QWEN35, "<|im_end|>"),
    "r1": (R1_JINJA, "<|im_end|>"),
    "qwq": (QWQ, "<|im_end|>"),
    "open-chatml": (OPEN_CHATML, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "mistral": (MISTRAL, "</s>"),
    "llama2": (LLAMA2, "</s>"),
}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "2 + 2?"}
AGAIN = {"role": "user", "content": "Sure?"}


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


PLAIN = said("It is 4.")
THOUGHTS = said("<think>\nhm\n</think>\n\nIt is 4.")


def write_tokenizer(directory: Path, template: Any, eos: str, **config: Any) -> Path:
    """Byte-level BPE without merges, with every control token that a template above has."""
    vocab = {c: i for i, c in enumerate(BYTES)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": eos, "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(roles | config))
    return directory


@pytest.fixture(scope="module")
def tokenizers_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    directory = tmp_path_factory.mktemp("templates")
    return {
        name: load_tokenizer(write_tokenizer(directory / name, *parts))
        for name, parts in TEMPLATES.items()
    }


THINKING = ("qwen3-thinking", "qwen3.5", "r1", "qwq", "open-chatml")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", [PLAIN, THOUGHTS], ids=["plain", "thoughts"])
def test_what_is_learnt_follows_the_prompt(
    tokenizers_of: dict[str, Tokenizer], name: str, answer: dict[str, Any]
) -> None:
    tokenizer, (_, end) = tokenizers_of[name], TEMPLATES[name]
    expected = answer["content"]
    if name in THINKING:  # the prompt has opened the tag
        thoughts = "hm" if answer is THOUGHTS else ""
        expected = f"{thoughts}\n</think>\n\nIt is 4."
    elif name == "qwen3" and answer is PLAIN:
        expected = "<think>\n\n</think>\n\nIt is 4."
    found = learnt([USER, answer], tokenizer, "chat")
    assert found.replace(" ", "") == f"{expected}‹{end}›".replace(" ", "")
    prompt = render_prompt([USER], tokenizer, "chat")
    tokens, mask = render([USER, answer], tokenizer, "chat")
    assert tokens[: len(prompt)] == prompt
    assert mask[: len(prompt) + 1] == [0] * len(prompt) + [1]
    assert text_of(tokens, tokenizer).count("<think>") <= 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_turn_of_several(tokenizers_of: dict[str, Tokenizer], name: str) -> None:
    """Earlier turns are learnt where they stand as they were said, and never without thoughts."""
    tokenizer, (_, end) = tokenizers_of[name], TEMPLATES[name]
    messages = [USER, THOUGHTS, AGAIN, THOUGHTS]
    found = learnt(messages, tokenizer, "chat")
    tail = f"hm\n</think>\n\nIt is 4.‹{end}›".replace(" ", "")
    assert found.replace(" ", "").endswith(tail)
    whole = name in ("qwen2.5", "open-chatml", "llama3", "gemma", "mistral", "llama2")
    assert found.count("4.") == found.count("hm") == 1 + whole
    tokens, _ = render(messages, tokenizer, "chat")
    prompt = render_prompt(messages[:-1], tokenizer, "chat")
    assert tokens[: len(prompt)] == prompt


@pytest.mark.parametrize("name", sorted(TEMPLATES.keys() - {"mistral", "gemma"}))
def test_the_systems_words_are_read(tokenizers_of: dict[str, Tokenizer], name: str) -> None:
    tokenizer = tokenizers_of[name]
    for messages in ([SYSTEM, USER], [SYSTEM, USER, PLAIN, AGAIN]):
        assert "Be brief." in text_of(render_prompt(messages, tokenizer, "chat"), tokenizer)
    assert learnt([SYSTEM, USER, PLAIN], tokenizer, "chat") == learnt(
        [USER, PLAIN], tokenizer, "chat"
    )


@pytest.mark.parametrize("name", ["qwen3", "qwen3-thinking", "qwen3.5"])
def test_reasoning_content_is_learnt(tokenizers_of: dict[str, Tokenizer], name: str) -> None:
    apart = said("It is 4.", reasoning_content="two plus two")
    together = said("<think>\ntwo plus two\n</think>\n\nIt is 4.")
    tokenizer = tokenizers_of[name]
    assert render([USER, apart], tokenizer, "chat") == render([USER, together], tokenizer, "chat")
    assert "two plus two" in learnt([USER, apart], tokenizer, "chat")


@pytest.mark.parametrize(
    ("name", "messages", "expected"),
    [
        ("qwen2.5", [USER, said("4", reasoning_content="two plus two")], "'reasoning_content'"),
        ("qwen2.5", [USER, said("4", weight=1)], "'weight' of a message of the assistant"),
        ("qwen2.5", [USER, said("5", weight=0), AGAIN, said("4")], "'weight' of a message"),
        ("qwen2.5", [USER, said("5", train=False), AGAIN, said("4")], "'train' of a message"),
        ("qwen2.5", [USER | {"name": "Ann"}, PLAIN], "'name' of a message of the user"),
        ("llama3", [USER, said("4", tool_calls=[{"name": "f"}])], "'tool_calls'"),
        ("r1", [USER, said("4", reasoning_content="two")], "'reasoning_content'"),
        ("mistral", [SYSTEM, USER, PLAIN], "'content' of a message of the system"),
        ("gemma", [SYSTEM, USER, PLAIN], "System role not supported"),
        (
            "qwen3-thinking",
            [USER, said("<think>a</think>b", reasoning_content="c")],
            "thoughts both in",
        ),
        ("open-chatml", [USER, said("Well. <think>a</think>b")], "opens it again"),
    ],
)
def test_what_nobody_reads_is_refused(
    tokenizers_of: dict[str, Tokenizer], name: str, messages: list[Any], expected: str
) -> None:
    with pytest.raises((DataError, ConfigError), match=expected):
        render(messages, tokenizers_of[name], "chat")


@pytest.mark.parametrize("template", ["r1", "plain", "r1_zero", "r1_zero_short"])
def test_our_templates_read_role_and_content(
    tokenizers_of: dict[str, Tokenizer], template: str
) -> None:
    messages = [USER, said("4", reasoning_content="two")]
    with pytest.raises(DataError, match=f"'{template}' reads no key 'reasoning_content'"):
        render(messages, tokenizers_of["r1"], template)


EMPTY = {"tool_calls": None, "name": "", "tools": [], "reasoning_content": None}


@pytest.mark.parametrize("template", ["chat", "r1", "plain"])
def test_empty_keys_say_nothing(tokenizers_of: dict[str, Tokenizer], template: str) -> None:
    """As the Hugging Face hub fills them in where other rows have something."""
    tokenizer = tokenizers_of["qwen3"]
    filled = [USER | EMPTY, said("4", **EMPTY)]
    assert render(filled, tokenizer, template) == render([USER, said("4")], tokenizer, template)


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_parts_of_text_are_one_text(tokenizers_of: dict[str, Tokenizer], role: str) -> None:
    parts = [{"type": "text", "text": "It "}, {"type": "text", "text": "is 4."}]
    whole, cut = [USER, PLAIN], [USER, PLAIN]
    place = 0 if role == "user" else 1
    whole[place], cut[place] = ({"role": role, "content": c} for c in ("It is 4.", parts))
    tokenizer = tokenizers_of["llama3"]
    assert render(cut, tokenizer, "chat") == render(whole, tokenizer, "chat")
    picture = {"type": "image_url", "image_url": {"url": "a.png"}}
    for bad in ([picture], [parts[0] | {"cache_control": {"type": "x"}}], ["It is 4."]):
        cut[place] = {"role": role, "content": bad}
        with pytest.raises(DataError, match="content has a part"):
            render(cut, tokenizer, "chat")


@pytest.mark.parametrize(
    ("content", "completion"),
    [
        ("\n<think>\nhm\n</think>\n\n4", "hm\n</think>\n\n4"),
        (" <think>hm</think>4", "hm</think>4"),
        ("\n\n<think>\n</think>4", "</think>4"),
        ("hm</think>4", "hm</think>4"),
    ],
)
@pytest.mark.parametrize(("name", "template"), [("r1", "r1"), ("r1", "chat"), ("qwq", "chat")])
def test_the_tag_is_learnt_once(
    tokenizers_of: dict[str, Tokenizer], name: str, template: str, content: str, completion: str
) -> None:
    messages = [USER, said(content)]
    assert learnt(messages, tokenizers_of[name], template) == f"{completion}‹<|im_end|>›"
    with pytest.raises(DataError, match="opens it again"):
        render([USER, said("Hm. <think>a</think>4")], tokenizers_of[name], template)


def test_tools_are_variables_of_the_template(tokenizers_of: dict[str, Tokenizer]) -> None:
    tools = [{"name": "add<|im_end|>"}]
    tokens, _ = render([USER, PLAIN], tokenizers_of["qwen3"], "chat", {"tools": tools})
    assert text_of(tokens, tokenizers_of["qwen3"]).startswith(
        '‹<|im_start|>›system\n{"name": "add<|im_end|>"}‹<|im_end|>›\n‹<|im_start|>›user'
    )


PHI = QWEN25.removesuffix("{% endif %}") + "{% else %}{{ '<|endoftext|>' }}{% endif %}"


@pytest.mark.parametrize("template", [PHI, QWEN25])
def test_every_turn_is_learnt_whatever_stands_behind_the_last(
    tmp_path: Path, template: str
) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, template, "<|im_end|>"))
    greeted = [said("Hello!"), USER, PLAIN, AGAIN, said("Yes.")]
    for conversation in (greeted, greeted[1:]):
        assert learnt(conversation, tokenizer, "chat") == "It is 4.‹<|im_end|>›Yes.‹<|im_end|>›"
    with pytest.raises(DataError, match="answers nothing"):
        render([PLAIN], tokenizer, "chat")


CALLS = """\
{%- if messages %}{% set note = '' %}{% endif %}{{ note }}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}
    {%- for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@pytest.mark.parametrize(
    ("arguments", "raw", "expected"),
    [
        ({"x": 1}, False, '{"x": 1}'),
        ('{"x": 1}', True, '{"x": 1}'),
        ('{"x": 1}', False, None),  # a string in quotes would be learnt
    ],
)
def test_arguments_of_calls(
    tmp_path: Path, arguments: Any, raw: bool, expected: str | None
) -> None:
    template = CALLS.replace(" | tojson", "") if raw else CALLS
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, template, "<|im_end|>"))
    call = said("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])
    if expected is None:
        with pytest.raises(DataError, match="a tool call are a text, which the .* let them be an"):
            render([USER, call], tokenizer, "chat")
    else:
        assert learnt([USER, call], tokenizer, "chat") == f"{expected}‹<|im_end|>›"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": 5}, "eos_token is 5, not a token"),
        ({"bos_token": ["<s>"]}, "bos_token is .*, not a token"),
        ({"chat_template": {"default": "x"}}, "chat_template is dict, not a text"),
        ({"chat_template": ["x"]}, "the chat template cannot be read"),
        ({"chat_template": [{"name": "default"}]}, "the chat template cannot be read"),
    ],
)
def test_wrong_files_of_a_tokenizer(tmp_path: Path, config: Any, message: str) -> None:
    write_tokenizer(tmp_path, QWEN25, "<|im_end|>", **config)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_a_template_file_that_is_not_utf8(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, QWEN25, "<|im_end|>")
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match="the chat template cannot be read"):
        load_tokenizer(tmp_path)


def test_a_text_beside_messages_that_changes_nothing(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, CALLS, "<|im_end|>"))
    with pytest.raises(DataError, match="does not read the key 'note' beside messages"):
        render([USER, PLAIN], tokenizer, "chat", {"note": "Be brief."})


def test_a_template_that_goes_on_behind_the_stop(tmp_path: Path) -> None:
    template = QWEN25.replace("'<|im_end|>\\n' }}", "'<|im_end|>\\nDone.' }}")
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, template, "<|im_end|>"))
    with pytest.raises(ConfigError, match="goes on behind the stop token.*'Done.'"):
        render([USER, PLAIN], tokenizer, "chat")
