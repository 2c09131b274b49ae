"""The school world: wrong chains by the thousand, splits that keep stories together, one student for all machines."""

import csv, json, os, random, re
from dataclasses import replace
from fractions import Fraction
import pytest
from mcft.core import resolve
from mcft.school_teacher import _CORES, agrees, check_chain, critique, read_steps, teach, wordings
from mcft.words import (
    Step,
    WordProblem,
    apply,
    chain_of,
    value_text,
    read_school,
    read_splits,
    redrawn,
    school_file,
)

NEEDS_FILES = pytest.mark.skipif("MCFT_DATA_DIR" not in os.environ, reason="needs the problem files: set MCFT_DATA_DIR")


def problem(story: str, numbers: tuple, equation: str) -> WordProblem:
    return WordProblem("test", story, tuple(map(Fraction, numbers)), equation, "tests")


PROBLEMS = [
    problem("Ann has number0 plums and gets number1 more. How many plums has she?", (14, 9), "+ number0 number1"),
    problem("Bob had $number0 and spent $number1. How much money is left?", (31, 12), "- number0 number1"),
    problem("A box holds number0 pens. How many pens are in number1 boxes?", (6, 17), "* number0 number1"),
    problem("number0 pupils sit in number1 rows. How many pupils are in each row?", (56, 7), "/ number0 number1"),
    problem(
        "Eve had number0 cards, won number1 and lost number2. How many cards has she now?",
        (40, 13, 8),
        "- + number0 number1 number2",
    ),
    problem(
        "number0 red and number1 blue beads are put on number2 strings. How many beads are on each string?",
        (27, 15, 6),
        "/ + number0 number1 number2",
    ),
    problem(
        "Of number0 eggs number1 broke, the others sell at $number2 each. How much money is that?",
        (23, 5, 3),
        "* - number0 number1 number2",
    ),
    problem(
        "Tom pays with $number0 for number1 books at $number2. How much money does he get back?",
        (50, 4, 11),
        "- number0 * number1 number2",
    ),
]


def chain(steps: list[Step]) -> str:  # as the student writes it
    body = "\n".join(f"Do it: {s.text()} things." for s in steps)
    return f"<think>\n{body}\n</think>\n\\boxed{{{value_text(steps[-1].value)}}}"


def changed(
    p: WordProblem, at: int, step: Step
) -> list[Step]:  # one step replaced; what follows goes on with its value
    out, now = list(p.steps), {p.steps[at].value: step.value}
    out[at] = step
    for i in range(at + 1, len(out)):
        s = out[i]
        a, b = now.get(s.a, s.a), now.get(s.b, s.b)
        if s.op == "/" and b == 0:
            return out[:i]
        out[i] = Step(s.op, a, b, apply(s.op, a, b))
        now[s.value] = out[i].value
    return out


def wrong_chains(p: WordProblem, rng: random.Random):  # (kind, index of the first wrong step, chain)
    steps = p.steps
    known = {*p.numbers, *(s.value for s in steps)}
    for i, s in enumerate(steps):
        yield "slip", i, changed(p, i, replace(s, value=s.value + rng.choice((-2, -1, 1, 10))))
        for op in "+-*/":
            if op != s.op and not (op == "/" and s.b == 0) and apply(op, s.a, s.b) != s.value:
                yield "operation", i, changed(p, i, Step(op, s.a, s.b, apply(op, s.a, s.b)))
        if s.op in "-/" and 0 not in (s.a, s.b) and s.a != s.b:
            yield "order", i, changed(p, i, Step(s.op, s.b, s.a, apply(s.op, s.b, s.a)))
        foreign = next(v for v in (s.a + k for k in (1, 9, 100, 37)) if v not in known)
        if not (s.op == "/" and s.b == 0):
            yield "foreign", i, changed(p, i, Step(s.op, foreign, s.b, apply(s.op, foreign, s.b)))
    if len(steps) > 1:
        yield "missing", -1, steps[:-1]
    yield "extra", len(steps), [*steps, Step("+", steps[-1].value, steps[0].a, steps[-1].value + steps[0].a)]


def written(steps: list[Step]) -> str | None:  # None: a value has no short decimal
    try:
        return chain(steps)
    except ValueError:
        return None


def verdicts(
    problems: list[WordProblem],
) -> list[tuple]:  # (kind, index, chain, problem, finding) of every constructed chain
    rng, out = random.Random(0), []
    for p in problems:
        for kind, at, steps in wrong_chains(p, rng):
            text = written(steps)
            if text is not None:
                out.append((kind, at, text, p, check_chain(p, text)))
    return out


def test_first_wrong_step_and_kind():
    found = verdicts(PROBLEMS)
    assert len(found) > 60
    for kind, at, text, p, f in found:
        assert (f.kind, f.at) == (kind, at), (p.question, text, f)


@pytest.mark.parametrize("p", PROBLEMS)
def test_reference_chain_is_correct(p):
    text = f"<think>\n{chain_of(p)}\n</think>\n\\boxed{{{value_text(p.answer)}}}"
    assert check_chain(p, text).kind == ""
    assert check_chain(p, text.replace("\\boxed", "The answer is ")).kind == "unfinished"
    assert check_chain(p, text.replace(f"\\boxed{{{value_text(p.answer)}}}", "\\boxed{9999}")).kind == "answer"


@pytest.mark.parametrize(
    "text, kind",
    [
        ("50 - 44 = 6", "missing"),
        ("11 * 4 = 44\n50 - 44 = 6", ""),
        ("4 x 11 = 44. $50 - $44 = $6", ""),
        ("50 - 11 - 11 - 11 - 11 = 6", "missing"),
        ("50 - 4 * 11 = 6", ""),
        ("4 * 11 = 44\n44 - 50 = -6", "order"),
        ("50 - 4 = 46", "missing"),
        ("4 * 12 = 48", "foreign"),
        ("4 + 11 = 15", "operation"),
        ("4 * 11 = 44\n50 - 44 = 6\n6 + 4 = 10", "extra"),
        ("", "no_steps"),
        ("fifty minus forty-four is six", "no_steps"),
        ("4 / 0 = 0", "foreign"),
    ],
)
def test_kinds_by_hand(text, kind):
    found = check_chain(PROBLEMS[7], text + "\n\\boxed{6}")
    assert found.kind == kind


@pytest.mark.parametrize("p", PROBLEMS)
@pytest.mark.parametrize("held_out", [False, True])
def test_critique_is_right_and_about_the_chain(p, held_out):
    rng = random.Random(1)
    for kind, at, steps in wrong_chains(p, rng):
        text = written(steps)
        if text is None:
            continue
        made = critique(p, text, held_out=held_out)
        assert made["answer"] == value_text(p.answer) and made["error"] == kind and made["reasoning"] == chain_of(p)
        assert value_text(p.answer) in made["critique"], made
        if at >= 0:
            formula = steps[at].text()
            assert formula in made["critique"] or formula.split(" = ")[0] in made["critique"], (made, formula)
        assert "{" not in made["critique"] and not re.search(r"\ba a", made["critique"])


def test_held_out_words_are_never_trained_on():
    for slot in _CORES:
        seen, held = set(wordings(slot)), set(wordings(slot, True))
        assert len(seen) >= 30 and len(held) >= 20 and not seen & held


def test_teacher_names_an_unknown_question():
    if "MCFT_DATA_DIR" not in os.environ:
        pytest.skip("needs the problem files")
    with pytest.raises(ValueError, match="no equation for the question 'What is 2"):
        teach("What is 2 + 2?", "4")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\\boxed{}",
        "= = =",
        "1 + = 2",
        "3 4 = 7",
        "1 / 0 = 2",
        "99999999999999999999 * 99999999999999999999 = 1",
        "1,2,3 + 4 = 5",
        "٣ + 4 = 7",
        "1.5.2 + 1 = 2",
        "5 - - - 3 = 2",
    ],
)
def test_reading_never_breaks(text):
    read_steps(text)
    assert check_chain(PROBLEMS[0], text).kind


def test_no_text_of_a_problem_is_committed():
    with open(resolve("data/school/splits.csv"), newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["id", "hash", "story", "split"] and len(rows) > 3800
    assert all(
        re.fullmatch(r"(mawps|svamp)-\d{4}", r["id"])
        and re.fullmatch(r"[0-9a-f]{12}", r["hash"])
        and re.fullmatch(r"(mawps|svamp)-\d{4}", r["story"])
        for r in rows
    )


def test_a_story_is_in_one_split():
    where = {}
    for r in read_splits().values():
        where.setdefault(r["story"], set()).add(r["split"])
    assert {frozenset(s) for s in where.values()} <= {
        frozenset(s) for s in (["midtrain"], ["critique"], ["dev"], ["test"], ["svamp"], ["svamp", "test"])
    }
    assert len({r["hash"] for r in read_splits().values()}) == len(read_splits())


@NEEDS_FILES
def test_all_constructed_chains_of_all_problems():
    problems = [p for ps in read_school().values() for p in ps][::4]
    found = verdicts(problems)
    right = sum((f.kind, f.at) == (kind, at) for kind, at, _, _, f in found)
    assert len(found) > 4000 and right / len(found) > 0.99, right / len(found)
    correct = sum(check_chain(p, written(p.steps)).kind == "" for p in problems)
    assert correct >= len(problems) - 1  # one equation divides by what it multiplied with


@NEEDS_FILES
def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "svamp.json").write_text("[]")
    (tmp_path / "MANIFEST.json").write_text("{}")
    monkeypatch.setenv("MCFT_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="sha256"):
        school_file("words/svamp.json")


def test_redrawn_numbers_keep_the_story():
    for p in PROBLEMS:
        q = redrawn(p, 3)
        assert q is None or (q.story == p.story and q.numbers != p.numbers and q.answer > 0)
    assert sum(redrawn(p, 3) is not None for p in PROBLEMS) >= 6


def test_merge_is_the_sum_and_needs_a_matching_base():
    torch = pytest.importorskip("torch")
    from mcft.school_student import merged_state, state_digest

    torch.manual_seed(0)
    base = {"model.a.weight": torch.randn(6, 5), "model.norm.weight": torch.randn(5)}
    lora = {
        "base_model.model.model.a.lora_A.weight": torch.randn(2, 5).bfloat16(),
        "base_model.model.model.a.lora_B.weight": torch.randn(6, 2).bfloat16(),
    }
    merged = merged_state(base, lora, 2.0)
    whole = (
        base["model.a.weight"].double()
        + 2
        * lora["base_model.model.model.a.lora_B.weight"].double()
        @ lora["base_model.model.model.a.lora_A.weight"].double()
    ).bfloat16()
    assert torch.equal(merged["model.a.weight"], whole) and merged["model.norm.weight"].dtype == torch.bfloat16
    assert (
        state_digest(merged)
        == state_digest(merged_state(base, lora, 2.0))
        != state_digest(merged_state(base, lora, 1.0))
    )
    with pytest.raises(ValueError, match="does not belong to this base"):
        merged_state({"model.b.weight": torch.randn(6, 5)}, lora, 2.0)


def test_published_student_is_complete():
    folder = resolve("data/school/student")
    if not (folder / "student.json").exists():
        pytest.skip("no student is published yet")
    about = json.loads((folder / "student.json").read_text())
    told = json.loads((folder / "adapter_config.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", about["digest"]) and 0.25 <= about["dev_correct"] / about["n_dev"] <= 0.5
    assert (told["r"], told["lora_alpha"]) == (16, 32) and "/work" not in json.dumps(told) + json.dumps(about)
    assert (folder / "adapter_model.safetensors").stat().st_size < 12e6
    assert "CC BY-NC" in (folder / "README.md").read_text()


def test_every_kind_of_fault_is_found():
    story = "Mia has number0 short and number1 long pencils and gives number2 away. How many are left?"
    p = problem(story, (9, 27, 20), "- + number0 number1 number2")

    def kind(chain, box="16"):
        return check_chain(p, f"<think>\n{chain}\n</think>\n\\boxed{{{box}}}").kind
    assert kind("9 + 27 = 36\n36 - 20 = 16") == ""
    assert kind("27 - 20 = 7\n7 + 9 = 16") == ""  # another way
    assert kind("9 + 27 = 36\n36 - 20 = 16", "16.0") == ""
    assert kind("9 + 27 = 36\n36 - 20 = 16", "36") == "answer"
    assert kind("9 + 27 = 37\n37 - 20 = 17", "17") == "slip"
    assert kind("9 * 27 = 243") == "operation"
    assert kind("20 - 27 = -7") == "order"
    assert kind("9 + 72 = 81") == "foreign"
    assert kind("9 + 27 = 36") == "missing"
    assert kind("9 + 27 = 36\n36 - 20 = 16\n16 + 9 = 25", "25") == "extra"
    assert kind("It is") == "no_steps"
    assert check_chain(p, "9 + 27 = 36. 36 - 20 = 16").kind == "unfinished"


def test_a_value_agrees_when_it_is_rounded_correctly():
    third = Fraction(43, 6)
    assert [agrees(Fraction(x), third) for x in ("7.17", "7.2", "7.16", "7")] == [True, True, False, False]
