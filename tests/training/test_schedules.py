import pytest
import torch
from torch.optim import lr_scheduler

from bessemer.errors import UsageError
from bessemer.training.schedules import SCHEDULES, Cosine, Fixed, Inv, OneCycle, Step


def torch_rates(make_scheduler, iterations, lr=1.0):
    """The rates that one of torch's schedulers gives to the updates of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(schedule, iterations):
    return [schedule(iteration, iterations) for iteration in range(iterations)]


def test_fixed_never_moves():
    assert set(rates(Fixed(), 50)) == {1.0}


def test_inv_is_caffes_rate_of_lenet():
    assert 0.01 * Inv()(0, 10_000) == 0.01
    assert 0.01 * Inv()(10_000, 10_000) == pytest.approx(0.005946, abs=5e-7)


def test_step_drops_at_the_iterations_named_and_not_before():
    schedule = Step(at=(18_000, 19_000))
    found = [schedule(iteration, 20_000) for iteration in (0, 17_999, 18_000, 18_999, 19_000, 19_999)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_step_equals_torchs():
    expected = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [5, 6, 11], gamma=0.3), 15)
    assert rates(Step(at=(5, 6, 11), factor=0.3), 15) == pytest.approx(expected)


def test_step_with_a_warmup_is_torchs_climb_times_torchs_drops():
    climb = torch_rates(lambda o: lr_scheduler.LinearLR(o, 1 / 16, 1, total_iters=5), 20)
    drops = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [8, 12], gamma=0.1), 20)
    found = rates(Step(at=(8, 12), warmup=5, start=1 / 16), 20)
    assert found == pytest.approx([one * other for one, other in zip(climb, drops, strict=True)])
    assert 1.6 * found[0] == pytest.approx(0.1)
    assert rates(Step(at=(3,)), 5) == pytest.approx([1, 1, 1, 0.1, 0.1])


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_equals_torchs(final):
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 40, eta_min=final), 40)
    assert rates(Cosine(final=final), 40) == pytest.approx(expected)


def test_cosine_with_a_warmup_equals_torchs_two_schedules_in_a_row():
    climb = torch_rates(lambda o: lr_scheduler.LinearLR(o, 1 / 6, 1, total_iters=5), 5)
    descent = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 35), 35)
    assert rates(Cosine(warmup=5), 40) == pytest.approx(climb + descent)


@pytest.mark.parametrize(("iterations", "peak_at"), [(100, 0.3), (50, 0.5), (41, 0.2)])
def test_one_cycle_equals_torchs(iterations, peak_at):
    expected = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o, 1.0, iterations, pct_start=peak_at, div_factor=25, final_div_factor=400, cycle_momentum=False
        ),
        iterations - 1,  # torch refuses to step beyond the last
    )
    found = rates(OneCycle(peak_at=peak_at, start=0.04, final=1e-4), iterations)
    assert found[:-1] == pytest.approx(expected)
    assert found[-1] == pytest.approx(1e-4)


@pytest.mark.parametrize("schedule", [kind() if name != "step" else kind((1,)) for name, kind in SCHEDULES.items()])
@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_short_runs_get_rates_between_0_and_the_base_rate(schedule, iterations):
    assert all(0 <= rate <= 1 for rate in rates(schedule, iterations))


@pytest.mark.parametrize("schedule", [Cosine(final=0.1), OneCycle(final=0.1)])
def test_past_the_end_the_rate_stays(schedule):
    assert schedule(15, 10) == schedule(1000, 10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "settings", "setting"),
    [
        ("inv", {"gamma": -1}, "gamma"),
        ("inv", {"power": float("nan")}, "power"),
        ("step", {"at": ()}, "at"),
        ("step", {"at": (5, 5)}, "at"),
        ("step", {"at": (9, 5)}, "at"),
        ("step", {"at": (0, 5)}, "at"),
        ("step", {"at": (0.5,)}, "at"),
        ("step", {"at": (5,), "factor": 0}, "factor"),
        ("step", {"at": (5,), "warmup": -1}, "warmup"),
        ("step", {"at": (5,), "start": 1.5}, "start"),
        ("cosine", {"warmup": -1}, "warmup"),
        ("cosine", {"warmup": 0.5}, "warmup"),
        ("cosine", {"final": 2}, "final"),
        ("one-cycle", {"peak_at": 0}, "peak_at"),
        ("one-cycle", {"peak_at": 1}, "peak_at"),
        ("one-cycle", {"start": -1}, "start"),
        ("one-cycle", {"final": 1.5}, "final"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(name, settings, setting):
    with pytest.raises(UsageError, match=f"^{name}: {setting} should"):
        SCHEDULES[name](**settings)


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(UsageError, match="warmup of 10 iterations leaves nothing of a run of 10"):
        Cosine(warmup=10)(0, 10)


def test_a_list_of_places_is_as_good_as_a_tuple():
    assert Step(at=[3, 5]) == Step(at=(3, 5))
    assert hash(Step(at=[3, 5])) == hash(Step(at=(3, 5)))
