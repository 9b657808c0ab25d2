"""Jobs: what they make, and how they wait, end, and survive."""

import base64
import io
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from helpers.serving import SlowRunner, eventually, finished
from PIL import Image

import ebca
from ebca.errors import ParameterError
from ebca.runtime.cli import run
from ebca.runtime.serving.errors import ConflictError, QueueFullError, UnavailableError, UnknownJobError
from ebca.runtime.serving.store import State, Store
from ebca.runtime.serving.uploads import decoded
from ebca.runtime.serving.work import Asked

PROMPT = "a red circle and a blue square"


def asked(**fields) -> Asked:
    sizes = {name: fields.pop(name) for name in ("height", "width", "num_images", "previews") if name in fields}
    return Asked({"prompt": PROMPT, "seed": 1, "steps": 5, **fields}, **sizes)


def test_an_image_is_the_file_of_ebca_run(open_service, tmp_path):
    service = open_service()
    # The command line has schedules where JSON has numbers.
    job = service.submit(asked(gamma_attn="reverse_step:0.01:0.5", gamma_norm="constant:0", num_images=2))
    assert finished(service, job).state is State.DONE
    file = tmp_path / "direct.png"
    options = ["--gamma-attn", "reverse_step:0.01:0.5", "--num-images", "2", "--seed", "1", "--steps", "5"]
    assert run.main(["--engine", "shapes", "--prompt", PROMPT, *options, "--device", "cpu", "--output", str(file)]) == 0
    for index in range(2):
        assert service.image(job.id, index) == file.with_stem(f"direct-{index}").read_bytes()


def test_sessions_are_used_again(open_service, served_engine, monkeypatch):
    made = []
    session = type(served_engine).session
    monkeypatch.setattr(
        type(served_engine), "session", lambda *args, **kw: made.append(args[1:]) or session(*args, **kw)
    )
    service = open_service()
    for size in ((64, 64), (64, 64), (64, 72), (64, 64)):
        finished(service, service.submit(asked(height=size[0], width=size[1])))
    # One more for each check.
    assert len(made) == 4 + 2


def test_progress_and_previews_reach_every_listener(open_service):
    service = open_service(start=False)
    job = service.submit(asked(previews=1))
    seen = [[] for _ in range(3)]
    for views in seen:
        service.watch(job.id, lambda views=views: views.append(service.view(job.id)))
    service.start()
    finished(service, job)
    eventually(lambda: all(views[-1].state is State.DONE for views in seen))
    for views in seen:
        running = [view for view in views if view.state is State.RUNNING]
        assert [view.done for view in running] == sorted(view.done for view in running)
        # PNDM makes one evaluation more than it has steps.
        assert running[-1].done == running[-1].total == 6
        with Image.open(io.BytesIO(running[-1].preview)) as preview:
            assert preview.size == (64, 64)


def test_who_waits_for_the_end_is_not_told_about_places_and_progress(open_service):
    service = open_service(start=False)
    jobs = [service.submit(asked(seed=seed)) for seed in range(3)]
    told = []
    for job in jobs:
        service.watch(job.id, lambda job=job: told.append(service.is_over(job.id)), only_end=True)
    assert not any(service.is_over(job.id) for job in jobs)
    service.cancel(jobs[2].id)
    service.start()
    finished(service, jobs[1])
    eventually(lambda: len(told) == 3)
    assert told == [True, True, True]
    assert service.live_view(jobs[0].id) is None and service.view(jobs[0].id).state is State.DONE


def test_a_job_of_another_owner_is_not_shown_while_it_waits(open_service):
    service = open_service(start=False)
    job = service.submit(asked(), owner="somebody")
    assert service.live_view(job.id, "somebody").position == 1 and service.live_view(job.id, "else") is None
    with pytest.raises(UnknownJobError):
        service.view(job.id, "else")


def test_telemetry_is_kept(open_service):
    service = open_service()
    job = service.submit(asked(energies=True, attention_maps=True, num_images=2))
    finished(service, job)
    energies = service.telemetry(job.id, "energies")
    assert len(energies["evaluations"]) == 6 * len(energies["layers"])
    maps = service.telemetry(job.id, "attention")["images"]
    assert len(maps) == 2
    assert maps[0]["tokens"][:4] == ["<|startoftext|>", "a", "red", "circle"]
    assert np.shape(maps[0]["maps"])[1:] == (16, 16)
    other = service.submit(asked())
    finished(service, other)
    with pytest.raises(UnknownJobError, match="no energies"):
        service.telemetry(other.id, "energies")


def test_a_seed_that_is_not_given_is_drawn_once(open_service):
    service = open_service()
    job = service.submit(Asked({"prompt": PROMPT, "steps": 5}))
    view = finished(service, job)
    assert view.job.parameters["seed"] == job.parameters["seed"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"steps": 151}, "steps is 151"),
        ({"num_images": 9}, "num_images is 9"),
        ({"height": 4096, "width": 4096}, "pixels"),
        ({"prompt": "a" * 20_001}, "characters"),
        ({"image": "/etc/passwd"}, "not base64"),
        ({"image": {"png": "/etc/passwd"}}, "not base64"),
        ({"control": [{"image": "/etc/passwd"}]}, "not base64"),
        ({"regions": {"red circle": "/etc/passwd"}}, "not base64"),
        ({"repaint": {"jump_count": 10**9}}, "jump_count"),
        ({"output": "latents"}, "output is 'latents'"),
        ({"seed": 10**400}, "seed"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_requests_beyond_the_limits_are_refused(open_service, fields, problem):
    service = open_service(start=False)
    with pytest.raises(ebca.EbcaError, match=problem):
        service.submit(asked(**fields))
    assert service.views() == []


def test_the_queue_is_bounded(open_service):
    slow = SlowRunner()
    service = open_service(runners=[slow], queue=2)
    first = service.submit(asked())
    eventually(lambda: service.counts() == (0, 1))
    waiting = [service.submit(asked()) for _ in range(2)]
    assert [service.view(job.id).position for job in waiting] == [1, 2]
    with pytest.raises(QueueFullError) as refused:
        service.submit(asked())
    assert refused.value.retry_after >= 1
    slow.go.set()
    assert [finished(service, job).state for job in (first, *waiting)] == [State.DONE] * 3


def test_a_job_is_cancelled_while_it_waits_and_while_it_runs(open_service):
    slow = SlowRunner()
    service = open_service(runners=[slow])
    running, waiting = service.submit(asked()), service.submit(asked())
    eventually(lambda: service.view(running.id).state is State.RUNNING)
    assert service.cancel(waiting.id).state is State.CANCELLED
    service.cancel(running.id)
    assert finished(service, running).state is State.CANCELLED
    again = service.run_again(running.id)
    slow.go.set()
    assert finished(service, again).state is State.DONE
    assert service.cancel(again.id).state is State.DONE
    with pytest.raises(ConflictError, match="the job is done"):
        service.run_again(again.id)


def test_a_session_is_used_after_a_job_was_cancelled(open_service):
    service = open_service()
    job = service.submit(asked(steps=100))
    eventually(lambda: service.view(job.id).done > 0)
    service.cancel(job.id)
    assert finished(service, job).state is State.CANCELLED
    direct = service.submit(asked())
    assert finished(service, direct).state is State.DONE


def test_time_runs_out_for_jobs_that_wait_and_that_run(open_service):
    service = open_service(runners=[SlowRunner()], seconds=5)
    running, waiting = service.submit(asked(), seconds=0.2), service.submit(asked(), seconds=0.1)
    assert finished(service, waiting).state is State.EXPIRED
    assert finished(service, running).state is State.EXPIRED
    with pytest.raises(ParameterError, match="timeout_s is 6"):
        service.submit(asked(), seconds=6)


@pytest.mark.parametrize("error", [ebca.NumericalError("it is not finite", "use other gammas"), RuntimeError("secret")])
def test_a_job_that_fails_says_why_and_the_worker_lives(open_service, error):
    slow = SlowRunner(error)
    slow.go.set()
    service = open_service(runners=[slow])
    for _ in range(2):
        view = finished(service, service.submit(asked()))
        assert view.state is State.FAILED
        assert ("not finite" in str(view.error)) == isinstance(error, ebca.EbcaError)
        assert "secret" not in str(view.error)
    assert service.ready


def test_a_full_disk_fails_the_job_and_the_worker_lives(open_service, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    slow = SlowRunner()
    service = open_service(runners=[slow])
    with monkeypatch.context() as patched:
        patched.setattr(Store, "finish", full)
        job = service.submit(asked())
        slow.go.set()
        assert "disk is full" in str(finished(service, job).error)
        patched.setattr(Store, "add", full)
        with pytest.raises(UnavailableError, match="disk is full"):
            service.submit(asked())
    assert finished(service, service.submit(asked())).state is State.DONE


def test_a_shutdown_finishes_what_runs_and_keeps_what_waits(open_service):
    slow = SlowRunner()
    service = open_service(runners=[slow])
    running, waiting = service.submit(asked()), service.submit(asked())
    eventually(lambda: service.view(running.id).state is State.RUNNING)
    slow.go.set()
    service.shutdown()
    assert not service.ready
    with pytest.raises(UnavailableError, match="shut down"):
        service.submit(asked())
    assert service.view(running.id).state is State.DONE
    assert service.view(waiting.id).state in (State.QUEUED, State.DONE)
    service._store.close()
    quick = SlowRunner()
    quick.go.set()
    after = open_service(runners=[quick])
    assert finished(after, waiting).state is State.DONE
    assert after.image(running.id, 0) == b"png"


def test_a_shutdown_does_not_wait_for_ever(open_service):
    service = open_service(runners=[SlowRunner()])
    job = service.submit(asked())
    eventually(lambda: service.view(job.id).state is State.RUNNING)
    service.shutdown(grace=0.1)
    assert service.view(job.id).state is State.INTERRUPTED


KILLED = """
import sys, time
from pathlib import Path
import ebca
from ebca.runtime.serving.limits import Limits
from ebca.runtime.serving.runner import EngineRunner
from ebca.runtime.serving.service import Service
from ebca.runtime.serving.store import Store
from ebca.runtime.serving.work import Asked
engine = ebca.load("shapes", device="cpu", threads=1)
service = Service([EngineRunner(engine, Limits())], Store(Path(sys.argv[1])), Limits())
service.start()
request = {"prompt": "a red circle", "seed": 1}
one = service.submit(Asked({**request, "steps": 2}))
while not service.view(one.id).state.final:
    time.sleep(0.01)
two, three = service.submit(Asked({**request, "steps": 150}, num_images=8)), service.submit(Asked(request))
while service.view(two.id).done < 2:
    time.sleep(0.01)
print(one.id, two.id, three.id, flush=True)
time.sleep(60)
"""


def test_jobs_survive_a_kill(open_service, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        done, running, waiting = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    service = open_service()
    assert service.view(done).state is State.DONE
    with Image.open(io.BytesIO(service.image(done, 0))) as image:
        image.load()
    found = service.view(running)
    assert (found.state, found.job.tokens) == (State.INTERRUPTED, ())
    assert finished(service, service.view(waiting).job).state is State.DONE
    service.run_again(running)
    eventually(lambda: service.view(running).state is State.RUNNING)
    service.cancel(running)


def test_a_folder_serves_one_process_at_a_time(open_service, tmp_path):
    service = open_service(start=False)
    with pytest.raises(ParameterError, match="used by another process"):
        Store(tmp_path / "data")
    service._store.close()
    Store(tmp_path / "data").close()
    (tmp_path / "file").touch()
    with pytest.raises(ParameterError, match="cannot be used"):
        Store(tmp_path / "file")


def test_old_jobs_are_removed_with_their_images(open_service):
    slow = SlowRunner()
    slow.go.set()
    service = open_service(runners=[slow], keep=3)
    jobs = [service.submit(asked()) for _ in range(6)]
    for job in jobs:
        eventually(lambda job=job: not service._store.job(job.id) or service.view(job.id).state.final)
    assert [view.job.id for view in service.views()] == [job.id for job in jobs[:2:-1]]
    assert service._store._db.execute("SELECT count(*) FROM images").fetchone() == (3,)
    service.remove(jobs[-1].id)
    assert service._store._db.execute("SELECT count(*) FROM images").fetchone() == (2,)


def test_jobs_of_others_are_unknown(open_service):
    slow = SlowRunner()
    slow.go.set()
    service = open_service(runners=[slow])
    job = service.submit(asked(), owner="anna")
    finished(service, job)
    for call in (service.view, service.cancel, service.run_again, service.remove, lambda *a: service.image(a[0], 0)):
        with pytest.raises(UnknownJobError):
            call(job.id)
    assert service.image(job.id, 0, "anna") == b"png"
    assert [view.job.id for view in service.views("anna")] == [job.id]
    assert service.views() == []


def test_data_urls_are_read():
    assert decoded("image", "data:image/png;base64,AAAA") == decoded("image", "AAAA") == bytes(3)


def test_an_image_to_start_from_is_the_same_as_a_file(open_service, tmp_path):
    service = open_service()
    source = tmp_path / "source.png"
    Image.effect_noise((80, 64), 50).convert("RGB").save(source)
    text = base64.b64encode(source.read_bytes()).decode()
    job = service.submit(asked(image=text, strength=0.6, scheduler="ddim", steps=10))
    assert finished(service, job).state is State.DONE
    with ebca.load("shapes", device="cpu", threads=1) as engine:
        direct = engine.generate(PROMPT, seed=1, steps=10, image=source, strength=0.6, scheduler="ddim")
    with Image.open(io.BytesIO(service.image(job.id, 0))) as image:
        assert np.array_equal(np.asarray(image), np.asarray(direct.images[0]))
