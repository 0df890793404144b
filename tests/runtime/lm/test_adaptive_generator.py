"""The adaptive generator on the two smallest shipped decoders: limits, accounts, verification, failures."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from edgescale.control import Battery
from edgescale.control.generators import encode_generators
from edgescale.control.request import Limit
from edgescale.core.errors import RigError, UsageError
from edgescale.runtime import samples as rules
from edgescale.runtime.lm import AdaptiveGenerator, LanguageModel, Options, adaptive
from edgescale.runtime.lm.table import record, seed_of
from edgescale.select.generators import Checked, build_generators

EXAMPLE = Path(__file__).parents[3] / "examples" / "tinylm"
FILES = {"xs": "tinylm_xs_int4.onnx", "s": "tinylm_s_int8.onnx"}
OPTIONS = Options(max_tokens=48)


@pytest.fixture(scope="module")
def task():
    sys.path.insert(0, str(EXAMPLE))
    import tinylm_task

    sys.path.remove(str(EXAMPLE))
    return tinylm_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def table(task, folder):
    prompts = list(dict.fromkeys(p.prompt for p in task.problems(8, 3)))
    models = {name: EXAMPLE / file for name, file in FILES.items()}
    return record(folder, models, prompts, task.correct, task.answer_of, 8, OPTIONS)


@pytest.fixture(scope="module")
def checked_policy(table):
    verdicts = {name: d.right for name, d in table.drawn.items()}
    return build_generators(table, FILES, Checked(verdicts), "tinylm", max_tokens=48, power_mw=500.0)


@pytest.fixture(scope="module")
def vote_policy(table):
    return build_generators(table, FILES, None, "tinylm", max_tokens=48, rounds=4)


@pytest.fixture
def checked(checked_policy, task):
    return AdaptiveGenerator(checked_policy, EXAMPLE, task.answer_of, task.correct)


@pytest.fixture(scope="module")
def asked(task):
    return [p.prompt for p in task.problems(4, 99)]


def test_a_table_holds_what_the_models_say_and_is_recorded_once(table, task, folder, monkeypatch):
    model = LanguageModel(EXAMPLE / FILES["xs"])
    for number in (0, 20, 40):
        prompt = table.prompts[number]
        done = model.generate(prompt, 8, Options(max_tokens=48, seed=seed_of(prompt, "xs")))
        drawn = table.drawn["xs"]
        assert list(drawn.tokens[number]) == [len(c.tokens) for c in done]
        assert list(drawn.right[number]) == [task.correct(prompt, c.text) for c in done]
        texts = [task.answer_of(prompt, c.text) for c in done]
        same = [[a == b for b in texts] for a in texts]
        codes = drawn.answers[number]
        assert (np.equal.outer(codes, codes) == np.array(same)).all()
        assert [c == 0 for c in codes] == [t == "" for t in texts]
    monkeypatch.setattr(LanguageModel, "generate", lambda *_: pytest.fail("drawn again"))
    models = {name: EXAMPLE / file for name, file in FILES.items()}
    again = record(folder, models, table.prompts, task.correct, task.answer_of, 8, OPTIONS)
    assert (again.drawn["s"].answers == table.drawn["s"].answers).all()
    with pytest.raises(UsageError, match="does not exist"):
        record(folder, {"no": EXAMPLE / "no.onnx"}, table.prompts, task.correct, task.answer_of, 8, OPTIONS)


def test_asking_ends_with_the_first_accepted_completion(checked, task, asked):
    for prompt in asked:
        result = checked.run(prompt)
        assert result.accepted == task.correct(prompt, result.text) == result.settled
        assert result.samples >= 1 and not result.cut
        same = [o for o in checked.policy.ladders if o.quality[result.difficulty] == result.quality]
        assert result.samples <= max(o.samples for o in same)


def test_a_vote_is_the_weighted_majority_of_what_was_asked(vote_policy, task, asked):
    generator = AdaptiveGenerator(vote_policy, EXAMPLE, task.answer_of)
    seen = 0
    for prompt in asked:
        result = generator.run(prompt)
        if len(result.asked) > 1:
            continue
        ((name, count),) = result.asked.items()
        model = LanguageModel(EXAMPLE / FILES[name])
        done = model.generate(prompt, count, Options(max_tokens=48, seed=seed_of(prompt, name)))
        answers = [task.answer_of(prompt, c.text) for c in done]
        if not any(answers):
            continue
        seen += 1
        weights = [np.exp(c.log_probability / len(c.tokens)) for c in done]
        choice = rules.weighted_majority(answers, [w * (a != "") for w, a in zip(weights, answers, strict=True)])
        assert (result.answer, result.share) == (choice.answer, pytest.approx(choice.share))
        assert task.answer_of(prompt, result.text) == result.answer
        assert result.tokens == len(prompt) + sum(len(c.tokens) for c in done)
        assert result.token_bytes == result.tokens * (EXAMPLE / FILES[name]).stat().st_size
    assert seen > 5


@pytest.mark.parametrize("limit", [200_000, 1_000_000, 3_000_000, 20_000_000])
def test_token_bytes_of_a_call_are_never_exceeded(checked, asked, limit):
    for prompt in asked:
        result = checked.run(prompt, token_bytes=limit)
        assert result.token_bytes <= limit
        assert result.cut or result.held or result.settled or result.binding


def test_a_call_that_nothing_fits_says_so(checked, asked):
    result = checked.run(asked[-1], token_bytes=1000)
    assert (result.text, result.samples, result.held, result.cut) == ("", 0, False, True)
    assert result.binding & Limit.ENERGY
    result = checked.run(asked[-1], quality=1.0)
    assert not result.held and result.binding == Limit.QUALITY and result.samples > 0


def test_a_mean_budget_and_a_battery_are_kept(checked_policy, task, asked):
    generator = AdaptiveGenerator(checked_policy, EXAMPLE, task.answer_of, task.correct)
    spent = [generator.run(prompt, mean_token_bytes=2e6).token_bytes for prompt in asked * 4]
    assert 0.6 * 2e6 <= np.mean(spent) <= 2e6 * (1 + 16 / len(spent))
    battery = Battery(50_000.0, calls=len(asked))
    used = [generator.run(prompt, battery=battery).energy_uj for prompt in asked]
    assert battery.remaining_uj == pytest.approx(50_000.0 - sum(used)) and min(used) > 0


def test_memory_chooses_the_variant(checked, asked):
    small = (EXAMPLE / FILES["xs"]).stat().st_size
    for prompt in asked:
        assert set(checked.run(prompt, memory=small).asked) == {"xs"}


def test_a_deadline_cuts_a_call_short(checked, asked, monkeypatch):
    """By a clock that goes half a millisecond whenever it is read, whatever this machine does meanwhile."""
    ticks = itertools.count()
    monkeypatch.setattr(adaptive, "perf_counter", lambda: next(ticks) / 2000)
    for prompt in asked:
        result = checked.run(prompt, deadline_ms=20)
        assert result.milliseconds <= 20 + 1
        assert result.settled or result.cut or result.samples > 0
    assert max(checked.run(prompt).milliseconds for prompt in asked) > 40


def test_a_variant_that_fails_is_replaced_in_the_same_call(checked, asked, monkeypatch):
    start = LanguageModel.start

    def broken(self, *arguments, **more):
        if "_s_" in self.decoder.name:
            raise RigError("out of memory")
        return start(self, *arguments, **more)

    monkeypatch.setattr(LanguageModel, "start", broken)
    for prompt in asked:
        assert set(checked.run(prompt).asked) == {"xs"}
    monkeypatch.setattr(LanguageModel, "start", lambda *_, **__: (_ for _ in ()).throw(RigError("broken")))
    with pytest.raises(RigError, match="every variant failed"):
        checked.run(asked[0])


def test_the_policy_says_whether_a_verifier_is_asked(checked_policy, vote_policy, task, tmp_path):
    with pytest.raises(UsageError, match="give one"):
        AdaptiveGenerator(checked_policy, EXAMPLE)
    with pytest.raises(UsageError, match="asks no verifier"):
        AdaptiveGenerator(vote_policy, EXAMPLE, task.answer_of, task.correct)
    path = tmp_path / "policy.json"
    path.write_bytes(encode_generators(vote_policy))
    generator = AdaptiveGenerator(path, EXAMPLE, task.answer_of)
    assert generator.run("43+7=").samples >= 1
    with pytest.raises(UsageError, match="no power"):
        generator.run("43+7=", energy_uj=5)
    with pytest.raises(UsageError, match="one mean budget"):
        generator.run("43+7=", mean_ms=5, mean_token_bytes=5)
    with pytest.raises(RigError, match="no variant opens"):
        AdaptiveGenerator(path).run("43+7=")
    with pytest.raises(UsageError, match="cannot read"):
        AdaptiveGenerator(tmp_path / "none.json")
