"""Programmatic rewards that raise, hang, die or return nonsense, in a process of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from assay.records import Rollout, reply, user_prompt
from assay.rewards.apart import Apart, FaultSettings
from assay.rewards.rules import combine
from assay.settings import InputError
from assay.stages.rewarding import Rewards, load_rules

RULES = '''
import os, subprocess, sys, time

def length(prompts, responses, topic, **columns):
    print("chatter that must not end up in the answer")
    return [float(len(r[-1]["content"])) for r in responses]

def hangs(prompts, responses, **columns):
    if any("slow" in r[-1]["content"] for r in responses):
        while True:
            pass
    return [1.0] * len(responses)

def starts_what_hangs(prompts, responses, **columns):
    subprocess.run([sys.executable, "-c", "import os, sys, time; print(os.getpid(), file=sys.stderr); "
                    f"open({os.environ['PID']!r}, 'w').write(str(os.getpid())); time.sleep(600)"])
    return [1.0] * len(responses)

def starts_what_stays(prompts, responses, **columns):
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(os.environ["PID"], "w").write(str(started.pid))
    return [1.0] * len(responses)

def counts_on(prompts, responses, **columns):
    """A loop in C that no signal handler of Python's interrupts."""
    sum(range(10**12))
    return [1.0] * len(responses)

def leaves(prompts, responses, **columns):
    if any("exit()" in r[-1]["content"] for r in responses):
        exit()
    return [2.0] * len(responses)

def huge(prompts, responses, **columns):
    return [10**400] * len(responses)

def dies(prompts, responses, **columns):
    os._exit(7)

def raises(prompts, responses, **columns):
    if any("bad" in r[-1]["content"] for r in responses):
        raise ValueError("no such thing")
    return [2.0] * len(responses)

def flaky(prompts, responses, **columns):
    """Fails the first time."""
    path = os.environ["FLAKY"]
    if not os.path.exists(path):
        open(path, "w").close()
        raise OSError("try again")
    return [3.0] * len(responses)

def none(prompts, responses, **columns):
    return None

def short(prompts, responses, **columns):
    return [1.0]

def nan(prompts, responses, **columns):
    return [float("nan")] * len(responses)

def text(prompts, responses, **columns):
    return ["good"] * len(responses)

class Tensor:
    shape = (2,)
Tensor.__module__ = "torch"

def tensor(prompts, responses, **columns):
    return Tensor()
'''


@pytest.fixture
def places(tmp_path):
    (tmp_path / "rules.py").write_text(RULES)
    return lambda *names: [f"{tmp_path}/rules.py:{name}" for name in names]


def rollouts(*texts):
    prompt = user_prompt("Hello.", meta={"topic": "greeting"})
    return [
        Rollout(prompt=prompt, response=reply(text), stop="stop", ids=(1,), sampler_logprobs=(0.0,)) for text in texts
    ]


def test_imports_that_take_too_long_are_a_fault_like_others(places, tmp_path, monkeypatch):
    """And the process's late word is never taken for an answer."""
    (tmp_path / "rules.py").write_text("import time\ntime.sleep(3)\n" + RULES)
    source = rewards(places("length"), timeout=1.0, then="mask")  # imported here, where it may take its time
    monkeypatch.setattr("assay.rewards.apart.START", 0.2)
    with pytest.raises(InputError, match="took longer than"):
        source.rules.score_parts(["Hello."], [[{"role": "assistant", "content": "Hi."}]], topic=["greeting"])
    assert source(rollouts("a"), 1).failed == [True]


def rewards(places, timeout=10.0, **faults):
    settings = FaultSettings(timeout=timeout, **faults)
    return Rewards(None, 1.0, load_rules(places, settings.timeout), {}, settings)


def test_they_give_what_they_give_here(places):
    apart, here = rewards(places("length", "raises")), rewards(places("length", "raises"), timeout=0)
    assert isinstance(apart.rules, Apart) and not isinstance(here.rules, Apart)
    told = [source(rollouts("Yes.", "No, never."), 2) for source in (apart, here)]
    assert told[0] == told[1] and told[0].totals == [4 + 2, 10 + 2]
    apart.rules.close()


def test_one_that_hangs_is_killed_in_time_and_the_next_call_goes_on(places):
    source = rewards(places("hangs"), timeout=1.0)
    source(rollouts("quick"), 1)  # the process is up
    began = time.monotonic()
    with pytest.raises(InputError, match="hangs: no answer within 1 s"):
        source(rollouts("slow"), 1)
    assert time.monotonic() - began < 5
    assert source.rules.process is None and source(rollouts("quick"), 1).totals == [1.0]
    source.rules.close()


@pytest.mark.parametrize("name", ["counts_on", "starts_what_hangs"])
def test_nothing_of_what_hangs_is_left(name, places, tmp_path, monkeypatch):
    """The process is gone, and so is the program that the reward started."""
    monkeypatch.setenv("PID", str(tmp_path / "pid"))
    source = rewards(places("length", name), timeout=3.0)
    with pytest.raises(InputError, match="no answer within 3 s"):
        source.rules.score_parts(["Hello."], [[{"role": "assistant", "content": "slow"}]], topic=["x"])
    if name == "starts_what_hangs":
        began, pid = time.monotonic(), int((tmp_path / "pid").read_text())
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            assert time.monotonic() - began < 10
            time.sleep(0.05)
    assert source.rules.close() == 0


def test_only_the_prompts_that_failed_are_masked(places):
    source = rewards(places("raises"), then="mask")
    told = source(rollouts("fine", "good", "bad", "fine"), 2)
    assert told.totals == [2.0, 2.0, 0.0, 0.0] and told.failed == [False, False, True, True]
    source.rules.close()


def test_without_a_process_faults_are_masked_as_well(places):
    told = rewards(places("raises"), timeout=0, then="mask")(rollouts("bad", "fine"), 1)
    assert told.failed == [True, False]


def test_a_call_that_failed_is_made_again(places, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAKY", str(tmp_path / "once"))
    source = rewards(places("flaky"), retries=1)
    assert source(rollouts("x"), 1).totals == [3.0]
    source.rules.close()


def test_retries_have_an_end(places):
    """Asked three times in all, then the run stops with the fault; it is not taken for a reward of 0."""
    asked = []

    def broken(prompts, responses):
        asked.append(len(responses))
        raise OSError("no answer")

    source = Rewards(None, 1.0, combine([(1.0, broken)]), {}, FaultSettings(timeout=0, retries=2))
    with pytest.raises(InputError, match="'broken' failed on 2 responses: OSError: no answer"):
        source(rollouts("a", "b"), 1)
    assert asked == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", "'raises' failed on 1 responses: ValueError: no such thing"),
        ("leaves", "'leaves' failed on 1 responses: SystemExit"),
        ("huge", "got inf for response 0"),
        ("none", "'none' must return 1 finite numbers, one per response; got None"),
        ("nan", "got nan for response 0"),
        ("text", "got str 'good' for response 0"),
        ("tensor", "got a tensor (2,) (return .tolist())"),
    ],
)
@pytest.mark.parametrize("timeout", [0.0, 10.0], ids=["here", "apart"])
def test_what_went_wrong_is_said_in_one_line(name, said, timeout, places):
    source = rewards(places(name), timeout=timeout)
    with pytest.raises(InputError) as error:
        source(rollouts("bad exit()"), 1)
    assert said in str(error.value) and "\n" not in str(error.value)
    if timeout:
        source.rules.close()


def test_a_process_that_dies_is_told_of(places):
    source = rewards(places("dies"))
    with pytest.raises(InputError, match="ended with exit code 7"):
        source(rollouts("bad"), 1)


def test_a_wrong_number_of_rewards_is_an_error(places):
    with pytest.raises(InputError, match="'short' must return 2 finite numbers, one per response; got 1"):
        rewards(places("short"), timeout=0)(rollouts("a", "b"), 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_job_leaves_its_end_to_the_parent(places, number):
    """What a reward starts then can be ended by signals as ever."""
    source = rewards(places("length"))
    source(rollouts("a"), 1)
    source.rules.process.send_signal(number)
    assert source(rollouts("abc"), 1).totals == [3.0]
    source.rules.close()


def test_what_a_reward_left_running_ends_with_a_parent_that_ends_well(places, tmp_path):
    asks = "from assay.rewards.rules import combine\nfrom assay.rewards.apart import Apart\n"
    asks += f"places = {places('starts_what_stays')!r}\n"
    asks += "Apart(combine([(1.0, places[0])]), places, 60.0).score_parts(['a'], ['b'])\n"
    subprocess.run([sys.executable, "-c", asks], check=True, env={**os.environ, "PID": str(tmp_path / "pid")})
    assert _soon(lambda: not _alive(int((tmp_path / "pid").read_text())))


def test_its_process_ends_with_the_one_that_started_it(tmp_path):
    """However that one ended: killed, it says good-bye to nobody."""
    (tmp_path / "rules.py").write_text(
        "import os, time\n\n\n"
        "def sleeps(prompts, responses, **_):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    asks = "from assay.rewards.rules import combine\nfrom assay.rewards.apart import Apart\n"
    asks += f"place = {str(tmp_path / 'rules.py')!r} + ':sleeps'\n"
    asks += "Apart(combine([(1.0, place)]), [place], 600.0).score_parts(['a'], ['b'])\n"
    parent = subprocess.Popen([sys.executable, "-c", asks])
    try:
        assert _soon(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        worker = int((tmp_path / "pid").read_text())
        assert _alive(worker)
    finally:
        parent.kill()
        parent.wait()
    assert _soon(lambda: not _alive(worker))


def _soon(true):
    for _ in range(200):
        if true():
            return True
        time.sleep(0.1)
    return False


def _alive(pid):
    """And no zombie that nobody has asked about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except OSError:
        return False
