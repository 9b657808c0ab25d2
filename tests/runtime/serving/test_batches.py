"""Jobs that are alike run as one batch, and make the images that they make alone."""

import time
from dataclasses import replace

import pytest
from helpers.serving import eventually, finished

from ebca.errors import NumericalError
from ebca.runtime.request.fields import GenerateRequest
from ebca.runtime.serving import batches
from ebca.runtime.serving.limits import Limits
from ebca.runtime.serving.runner import EngineRunner
from ebca.runtime.serving.store import State
from ebca.runtime.serving.work import Asked

PROMPTS = ("a red circle", "a blue square", "a green triangle", "a (yellow:1.3) circle and a blue square")


def asked(prompt: str = "a red circle", seed: int = 1, **more) -> Asked:
    return Asked({"prompt": prompt, "seed": seed, "steps": 3, "gamma_attn": 0.01, "gamma_norm": 0.02, **more})


class Counting(EngineRunner):
    """Notes how many jobs ran together."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.ran: list[int] = []

    def run(self, work, on_progress):
        self.ran.append(1)
        return super().run(work, on_progress)

    def run_together(self, works, on_progress):
        self.ran.append(len(works))
        return super().run_together(works, on_progress)


@pytest.fixture
def runner(served_engine) -> Counting:
    return Counting(served_engine, Limits(), 4)


@pytest.mark.parametrize("scheduler", ["pndm", "ddim", "euler_ancestral"])
def test_images_and_files_are_those_of_each_alone(runner, scheduler):
    every = [asked(prompt, seed, scheduler=scheduler) for seed, prompt in enumerate(PROMPTS)]
    works = [runner.prepare(one)[0] for one in every]
    assert len({work.alike for work in works}) == 1 and works[0].alike is not None
    progress = [[] for _ in works]
    made = runner.run_together(works, [lambda p, to=to: to.append((p.done, p.total)) or True for to in progress])
    alone = [runner.run(work, lambda p: True) for work in works]
    assert [one.images for one in made] == [one.images for one in alone]
    assert [one.parameters for one in made] == [one.parameters for one in alone]
    assert all(seen == progress[0] and seen[-1][0] == seen[-1][1] for seen in progress)


@pytest.mark.parametrize(
    "more",
    [
        {"steps": 4}, {"scheduler": "ddim"}, {"gamma_attn": 0.0}, {"guidance_scale": 3.0}, {"negative_prompt": "x"},
        {"prompt": "a red circle " * 40}, {"clip_skip": 1},
    ],
)  # fmt: skip
def test_what_differs_in_more_than_prompt_and_seed_is_not_alike(runner, more):
    first, second = (runner.prepare(one)[0] for one in (asked(), asked(**more)))
    assert first.alike is not None and first.alike != second.alike


@pytest.mark.parametrize(
    "more",
    [
        {"token_weights": [["circle", 2.0]]}, {"energies": True}, {"attention_maps": True}, {"subjects": "auto"},
        {"edits": [{"prompt": "blue", "alpha": 0.5}]},
    ],
)  # fmt: skip
def test_what_has_more_than_a_prompt_runs_alone(runner, more):
    assert runner.prepare(asked(**more))[0].alike is None


def test_several_images_and_previews_run_alone(runner):
    for changes in ({"num_images": 2}, {"previews": 1}):
        assert runner.prepare(replace(asked(), **changes))[0].alike is None
    assert batches.alike(GenerateRequest.of(prompt=["a", "b"], seed=1), 77, 64, 64) is None


def test_sizes_are_powers_of_two():
    assert [batches.size(waiting, 8) for waiting in (1, 2, 3, 5, 8, 20)] == [1, 2, 2, 4, 8, 8]
    assert batches.size(20, 6) == 4 and batches.size(20, 1) == 1


def test_waiting_jobs_run_together_and_others_keep_their_place(open_service, runner):
    service = open_service(runners=[runner], start=False, max_batch=4)
    jobs = [service.submit(asked(prompt, seed)) for seed, prompt in enumerate(PROMPTS)]
    other = service.submit(asked(steps=4))
    last = service.submit(asked(seed=9))
    service.start()
    views = [finished(service, job) for job in (*jobs, other, last)]
    assert [view.state for view in views] == [State.DONE] * 6
    assert runner.ran == [4, 1, 1]
    for seed, (job, prompt) in enumerate(zip(jobs, PROMPTS, strict=True)):
        work, _ = runner.prepare(asked(prompt, seed))
        assert service.image(job.id, 0) == runner.run(work, lambda p: True).images[0]


def test_without_the_option_each_runs_alone(open_service, runner):
    service = open_service(runners=[runner], start=False)
    jobs = [service.submit(asked(seed=seed)) for seed in range(3)]
    service.start()
    assert {finished(service, job).state for job in jobs} == {State.DONE} and runner.ran == [1, 1, 1]


def test_one_of_a_batch_is_cancelled(open_service, runner):
    service = open_service(runners=[runner], start=False, max_batch=2)
    jobs = [service.submit(asked(seed=seed, steps=40)) for seed in range(2)]
    service.start()
    eventually(lambda: service.view(jobs[0].id).done > 0)
    service.cancel(jobs[0].id)
    views = [finished(service, job) for job in jobs]
    assert [view.state for view in views] == [State.CANCELLED, State.DONE] and runner.ran == [2]


def test_all_of_a_batch_are_cancelled(open_service, runner):
    service = open_service(runners=[runner], start=False, max_batch=2)
    jobs = [service.submit(asked(seed=seed, steps=150)) for seed in range(2)]
    service.start()
    eventually(lambda: service.view(jobs[0].id).done > 0)
    began = time.monotonic()
    for job in jobs:
        service.cancel(job.id)
    assert {finished(service, job).state for job in jobs} == {State.CANCELLED}
    assert time.monotonic() - began < 5


def test_a_job_that_fails_does_not_fail_its_batch(open_service, runner, monkeypatch):
    run = EngineRunner.run

    def failing(self, work, on_progress):
        if work.request["seed"] == 1:
            raise NumericalError("the image is not finite", "use other gammas")
        return run(self, work, on_progress)

    def together(self, works, on_progress):
        raise NumericalError("the image is not finite", "use other gammas")

    monkeypatch.setattr(EngineRunner, "run", failing)
    monkeypatch.setattr(EngineRunner, "run_together", together)
    service = open_service(runners=[runner], start=False, max_batch=4)
    jobs = [service.submit(asked(seed=seed)) for seed in range(4)]
    service.start()
    views = [finished(service, job) for job in jobs]
    assert [view.state for view in views] == [State.DONE, State.FAILED, State.DONE, State.DONE]
    assert "not finite" in views[1].error.problem
