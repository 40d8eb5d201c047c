"""# The paper's claims, in miniature

What DeepSeek-R1's paper says and what r1jax's mini world shows: a base model of 1.9 M parameters,
pretrained from scratch on a corpus of its own, takes the paper's pipeline on problems with known
answers. Written by

    python -m r1jax.tables --claims experiments/mini/claims.py \\
        --workdirs experiments/mini/measured --output experiments/mini

from committed measurements. They are of three sweeps, which the same command with
`--workdirs runs/mini` reads as well:

    python -m r1jax.sweep --config experiments/mini/r1_zero.py --workdir runs/mini/r1-zero \\
        --parallel 2
    python -m r1jax.sweep --config experiments/mini/r1.py --workdir runs/mini/r1 --parallel 2
    python -m r1jax.sweep --config experiments/mini/ablations.py --workdir runs/mini/arms \\
        --parallel 2

and each is committed, here the first, as a file with a line a run:

    python -m r1jax.tables --workdirs runs/mini/r1-zero \\
        --measured experiments/mini/measured/r1-zero.jsonl

The paper's numbers are of other models and other problems: what is judged is the direction of an
effect, not its size. A claim is *reproduced* where every seed shows the paper's direction and the
mean difference is more than twice its standard error over seeds, *contrary* where the same holds of
the opposite, *not reproduced* otherwise. Nothing was tuned for a verdict.
"""

from collections.abc import Sequence

from r1jax.reports.claims import Claim, Comparison, Measured, Runs, by_seed, curve, final, minus
from r1jax.reports.paper import read_paper
from r1jax.reports.results import ROWS, groups_table
from r1jax.reports.runs import RunRecord
from r1jax.reports.table import Table

PAPER = read_paper()
ZERO = "r1-zero/*"
HERE = "experiments/mini"
R1_ZERO, PIPELINE, ARMS = f"{HERE}/r1_zero.py", f"{HERE}/r1.py", f"{HERE}/ablations.py"


def ends(figure: str, series: str, scale: float = 100.0) -> tuple[float, float]:
    """First and last point of a curve of the paper."""
    points = PAPER[figure]["series"][series]
    return points[0][1] * scale, points[-1][1] * scale


def lasts(figure: str, smaller: str, larger: str) -> tuple[float, float]:
    """The last points of two curves of the paper, in %."""
    return ends(figure, smaller)[1], ends(figure, larger)[1]


def stages(row: str, smaller: str, larger: str) -> tuple[float, float]:
    """Two cells of the paper's table of stages."""
    table = PAPER["stages"]
    values = dict(zip(table["columns"], table["rows"][row], strict=True))
    return values[smaller], values[larger]


def rises(label: str, figure: str, series: str, metric: str, **scales: float) -> Comparison:
    """R1-Zero's curve ends above where it began."""
    scale = scales.get("paper", 100.0)
    return Comparison(
        label,
        ends(figure, series, scale),
        curve(ZERO, metric, "first"),
        curve(ZERO, metric, "last"),
        scales.get("ours", 100.0),
        int(scales.get("digits", 1)),
    )


def model(name: str, benchmark: str = "reasoning", metric: str = "pass@1") -> Measured:
    return final(f"r1/*/eval_{name}", benchmark, metric)


def arm(name: str) -> Measured:
    """Held-out accuracy of an arm of ablations.py."""
    return final(f"arms/arm={name},seed=*", "heldout", "pass@1")


def claims() -> list[Claim]:
    pass_1, cons_16 = "eval/heldout/pass@1", "eval/heldout/cons@16"
    levels = [f"{pass_1}/level/{level}" for level in (1, 5)]
    gain_1, gain_5 = (minus(curve(ZERO, m, "last"), curve(ZERO, m, "first")) for m in levels)
    paper_gains = [ends("levels", f"level {level}") for level in (1, 5)]
    hacked = "r1/*/hacked"
    return [
        Claim(
            "RL alone, without any SFT, teaches a base model to reason",
            "Figure 1a",
            R1_ZERO,
            [
                rises("held-out pass@1, first → last update (%)", "accuracy", "pass@1", pass_1),
                rises("held-out cons@16, first → last update (%)", "accuracy", "cons@16", cons_16),
                Comparison(
                    "pass@1 → cons@16 at the end (%)",
                    lasts("accuracy", "pass@1", "cons@16"),
                    curve(ZERO, pass_1, "last"),
                    curve(ZERO, cons_16, "last"),
                ),
            ],
        ),
        Claim(
            "Its responses grow longer by themselves",
            "Figure 1b",
            R1_ZERO,
            [
                rises(
                    "mean length in training, first → last 5 % (tokens)",
                    "length",
                    "length",
                    "grpo/completion/length",
                    paper=1.0,
                    ours=1.0,
                )
            ],
        ),
        Claim(
            "Hard problems gain most",
            "Figure 8",
            R1_ZERO,
            [
                Comparison(
                    "gain at level 1 → at level 5 (points)",
                    (paper_gains[0][1] - paper_gains[0][0], paper_gains[1][1] - paper_gains[1][0]),
                    gain_1,
                    gain_5,
                )
            ],
            "The paper's level 1 begins at 95 %; here it begins where there is most to gain.",
        ),
        Claim(
            "Reflective words become frequent",
            "Figure 9",
            R1_ZERO,
            [
                rises(
                    "first → last 5 % (paper: in an evaluation; here: in a completion)",
                    "reflective_words",
                    "all words",
                    "grpo/completion/reflective_words",
                    paper=1.0,
                    ours=1.0,
                    digits=2,
                )
            ],
        ),
        Claim(
            "The cold start costs reasoning, and RL wins it back",
            "Table 3",
            PIPELINE,
            [
                Comparison(
                    "Dev1 → R1-Zero, reasoning (paper: AIME) (%)",
                    stages("AIME 2024", "Dev1", "R1-Zero"),
                    model("dev1"),
                    model("zero"),
                ),
                Comparison(
                    "Dev1 → Dev2, reasoning (paper: AIME) (%)",
                    stages("AIME 2024", "Dev1", "Dev2"),
                    model("dev1"),
                    model("dev2"),
                ),
            ],
        ),
        Claim(
            "The pipeline teaches to follow instructions, which R1-Zero cannot",
            "Table 3",
            PIPELINE,
            [
                Comparison(
                    "R1-Zero → R1, requests done as asked (paper: IF-Eval) (%)",
                    stages("IF-Eval", "R1-Zero", "R1"),
                    model("zero", "instructions"),
                    model("r1", "instructions"),
                ),
                Comparison(
                    "R1-Zero → Dev1, requests done as asked (paper: IF-Eval) (%)",
                    stages("IF-Eval", "R1-Zero", "Dev1"),
                    model("zero", "instructions"),
                    model("dev1", "instructions"),
                ),
            ],
            "Here the cold start is of problems alone: Dev1 takes every request for one.",
        ),
        Claim(
            "RL for all scenarios makes answers preferred, and reasoning no worse",
            "Table 3",
            PIPELINE,
            [
                Comparison(
                    "Dev3 → R1, preferred to the reference (paper: AlpacaEval 2) (%)",
                    stages("AlpacaEval2", "Dev3", "R1"),
                    model("dev3", "instructions", "preference"),
                    model("r1", "instructions", "preference"),
                ),
                Comparison(
                    "Dev3 → R1, reasoning (paper: AIME) (%)",
                    stages("AIME 2024", "Dev3", "R1"),
                    model("dev3"),
                    model("r1"),
                ),
            ],
            "Dev3's replies are the reference's word for word in 98 of 100 cases, which counts one"
            " half (50 %): there was nothing left to win, whatever the first verdict says.",
        ),
        Claim(
            "The language reward keeps reasoning in one language, at a small cost in accuracy",
            "Figure 7",
            PIPELINE,
            [
                Comparison(
                    "language consistency without → with the reward (%)",
                    lasts("language_consistency", "consistency, without", "consistency, with"),
                    model("dev2_no_language", metric="language"),
                    model("dev2", metric="language"),
                ),
                Comparison(
                    "accuracy with → without the reward (paper: LiveCodeBench) (%)",
                    lasts("language_consistency", "LiveCodeBench, with", "LiveCodeBench, without"),
                    model("dev2"),
                    model("dev2_no_language"),
                ),
            ],
        ),
        Claim(
            "The helpful reward model is hacked when it is optimised too long",
            "Figure 6",
            PIPELINE,
            [
                Comparison(
                    "reward in training, first → last 5 %",
                    ends("reward_hacking", "reward (smoothed)", 1.0),
                    curve(hacked, "grpo/reward/helpful", "first"),
                    curve(hacked, "grpo/reward/helpful", "last"),
                    1.0,
                    2,
                ),
                Comparison(
                    "reasoning, last update → first (paper: Codeforces) (%)",
                    ends("reward_hacking", "Codeforces pass@1")[::-1],
                    curve(hacked, "eval/reasoning/pass@1", "last"),
                    curve(hacked, "eval/reasoning/pass@1", "first"),
                ),
                Comparison(
                    "requests done as asked, last update → first (paper: Codeforces) (%)",
                    ends("reward_hacking", "Codeforces pass@1")[::-1],
                    curve(hacked, "eval/instructions/pass@1", "last"),
                    curve(hacked, "eval/instructions/pass@1", "first"),
                ),
            ],
        ),
        Claim(
            "Distilling R1 into a small model beats RL on the small model",
            "Table 16",
            PIPELINE,
            [
                Comparison(
                    "RL on the small model → distilled, reasoning (paper: AIME) (%)",
                    (
                        PAPER["distillation"]["rows"]["Qwen2.5-32B-Zero"][0],
                        PAPER["distillation"]["rows"]["DeepSeek-R1-Distill-Qwen-32B"][0],
                    ),
                    model("student_zero"),
                    model("distilled"),
                )
            ],
            "At equal tokens and at equal compute: the pipeline's own tables.",
        ),
        Claim(
            "GRPO is better than PPO, whose lambda must be 1",
            "Figure 4",
            ARMS,
            [
                Comparison(
                    "PPO, lambda 1 → GRPO (%)",
                    lasts("ppo", "PPO, lambda 1", "GRPO"),
                    arm("ppo"),
                    arm("grpo"),
                ),
                Comparison(
                    "PPO, lambda 0.95 → lambda 1 (%)",
                    lasts("ppo", "PPO, lambda 0.95", "PPO, lambda 1"),
                    arm("ppo_095"),
                    arm("ppo"),
                ),
            ],
        ),
    ]


def tables(runs: Runs) -> Sequence[Table]:
    """The arms side by side: variants of the objective, PPO, off-policy rollouts."""
    arms: dict[str, list[RunRecord]] = {}
    for name, run in by_seed(runs, "arms/arm=*").items():
        arms.setdefault(name.partition(",")[0], []).append(run)
    shown = ("pass@1", "lenient_pass@1", "format", "length")
    rows = [row for row in ROWS if row.metric in shown]
    return [groups_table("Variants of the objective, held out", arms, "heldout", rows)]
